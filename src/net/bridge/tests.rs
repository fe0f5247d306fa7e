//! The driver against a kernel: a namespace stands for the host, others are pods. They want root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::id::SandboxId;
use crate::net::{Attachment, Driver, Namespace, Request};

const PATIENCE: Duration = Duration::from_secs(5);

fn id(n: u16) -> SandboxId {
    let mut bytes = [7; 32];
    // The names of devices show the first digits alone.
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    SandboxId::from_random(bytes)
}

fn request(n: u16) -> Request {
    Request {
        id: id(n),
        name: format!("pod-{n}"),
        namespace: "default".into(),
        uid: format!("uid-{n}"),
        ports: Vec::new(),
        bandwidth: crate::net::Bandwidth::default(),
        dns: crate::net::Dns::default(),
        ips: Vec::new(),
        mac: String::new(),
        cgroup_parent: String::new(),
        annotations: std::collections::BTreeMap::new(),
    }
}

/// Runs on a thread that is in a network namespace of its own.
fn on_a_host<T: Send>(act: impl FnOnce(&Path) -> T + Send) -> T {
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let host = namespace::create().expect("make a network namespace; these tests want root");
            namespace::inside(host.as_fd(), || act(directory.path())).unwrap()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn settings(directory: &Path) -> Settings {
    Settings::new(directory.join("net"))
}

struct TestPod {
    namespace: OwnedFd,
    attachment: Attachment,
    id: SandboxId,
}

impl TestPod {
    fn start(bridge: &Bridge, request: &Request) -> Result<Self, NetError> {
        // A thread may end in another namespace than it began in: each setup has one that is thrown away.
        let namespace = namespace::create().unwrap();
        let attachment = bridge.setup(request, Namespace { fd: namespace.as_fd(), path: None })?;
        Ok(Self { namespace, attachment, id: request.id.clone() })
    }

    fn ip(&self, is_v4: bool) -> IpAddr {
        self.attachment.addresses.iter().map(|a| a.ip).find(|ip| ip.is_ipv4() == is_v4).unwrap()
    }

    fn check(&self, bridge: &Bridge) -> Result<(), NetError> {
        bridge.check(&self.id, Namespace { fd: self.namespace.as_fd(), path: None })
    }

    fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        namespace::inside(self.namespace.as_fd(), act).unwrap()
    }

    /// Answers each connection with the address it came from.
    fn listen(&self, port: u16) {
        let listener = self.inside(|| TcpListener::bind(("::", port)).unwrap());
        echo(listener);
    }
}

fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let mut request = [0; 4];
            if stream.read_exact(&mut request).is_ok() && &request == b"quit" {
                return;
            }
            stream.write_all(peer.to_string().as_bytes()).ok();
        }
    });
}

/// Connects from the thread's namespace; the address the other side saw.
fn ask(to: impl Into<SocketAddr>) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who?")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.parse().map_err(std::io::Error::other)
}

#[test]
fn pods_and_host_reach_each_other_by_both_families() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let (a, b) = (TestPod::start(&bridge, &request(1)).unwrap(), TestPod::start(&bridge, &request(2)).unwrap());
        a.listen(80);
        for is_v4 in [true, false] {
            let (to, from) = ((a.ip(is_v4), 80), b.ip(is_v4));
            assert_eq!(ask(to).unwrap(), a.attachment.addresses[usize::from(!is_v4)].gateway.unwrap());
            assert_eq!(b.inside(|| ask(to)).unwrap(), from);
        }
        a.check(&bridge).unwrap();
        assert_eq!(a.attachment.mac, link::mac_text(&link::mac_of(a.ip(true))));
        for pod in [&a, &b] {
            assert_eq!(bridge.teardown(&pod.id, None), []);
            assert_eq!(bridge.teardown(&pod.id, None), []);
        }
        assert_eq!(bridge.known().unwrap(), []);
    });
}

#[test]
fn two_hundred_pods_at_once_all_get_their_own_address() {
    on_a_host(|directory| {
        let host = namespace::current().unwrap();
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pods: Vec<TestPod> = std::thread::scope(|scope| {
            let one = |n| {
                let (bridge, host) = (&bridge, &host);
                scope.spawn(move || {
                    namespace::inside(host.as_fd(), || TestPod::start(bridge, &request(n)).unwrap()).unwrap()
                })
            };
            let threads: Vec<_> = (0..200).map(one).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let addresses: std::collections::BTreeSet<IpAddr> =
            pods.iter().flat_map(|pod| &pod.attachment.addresses).map(|a| a.ip).collect();
        assert_eq!(addresses.len(), 400);
        for pod in &pods {
            pod.check(&bridge).unwrap();
            assert_eq!(bridge.teardown(&pod.id, None), []);
        }
    });
}
