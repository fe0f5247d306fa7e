//! The driver against a kernel: a namespace stands for the host, others are pods. They want root.

mod changes;
mod loopback;
mod packets;
mod sources;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::netlink::Batch;
use super::*;
use crate::id::SandboxId;
use crate::net::{Attachment, Driver, Live, Namespace, Ports, Protocol, Request};

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

    fn live(&self) -> Live {
        Live { id: self.id.clone(), attachment: self.attachment.clone() }
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

fn with_port(n: u16, protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> Request {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    Request { ports: vec![Ports { protocol, container_port: 80, host_port, host_ip }], ..request(n) }
}

fn localhost(is_v4: bool) -> IpAddr {
    if is_v4 { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) }
}

#[test]
fn host_ports_lead_from_everywhere_to_the_pod() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let a = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let b = TestPod::start(&bridge, &request(2)).unwrap();
        a.listen(80);
        for is_v4 in [true, false] {
            let gateway = a.attachment.addresses[usize::from(!is_v4)].gateway.unwrap();
            assert_eq!(ask((gateway, 8080)).expect("from the host by its own address"), gateway);
            assert_eq!(b.inside(|| ask((gateway, 8080))).expect("from another pod"), gateway);
            assert_eq!(a.inside(|| ask((gateway, 8080))).expect("from the pod itself"), gateway);
        }
        assert_eq!(ask((localhost(true), 8080)).unwrap(), a.attachment.addresses[0].gateway.unwrap());
        // By ::1 there is no way through the kernel: without the daemon refused at once, not swallowed.
        let refused = ask((localhost(false), 8080)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        bridge.teardown(&a.id, None);
        assert!(ask((localhost(true), 8080)).is_err());
    });
}

#[test]
fn what_was_deleted_behind_our_back_comes_back() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let a = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        a.listen(80);
        delete(&bridge, "aril0");
        lock(&bridge.table).delete().unwrap();
        assert!(ask((localhost(true), 8080)).is_err());
        assert_eq!(bridge.reconcile(&[a.live()]), []);
        a.check(&bridge).unwrap();
        for is_v4 in [true, false] {
            ask((a.ip(is_v4), 80)).unwrap();
        }
        ask((localhost(true), 8080)).unwrap();
        // A new pod finds out by itself.
        delete(&bridge, "aril0");
        let b = TestPod::start(&bridge, &request(2)).unwrap();
        b.listen(80);
        ask((b.ip(true), 80)).unwrap();
    });
}

fn delete(bridge: &Bridge, name: &str) {
    let mut route = lock(&bridge.route);
    let found = link::by_name(&mut route, name).unwrap().expect(name);
    let mut batch = Batch::default();
    link::delete(&mut batch, found.index);
    route.all(batch, &[]).unwrap();
}

#[test]
fn a_driver_opened_again_knows_its_pods_and_takes_away_strangers() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let a = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let b = TestPod::start(&bridge, &with_port(2, Protocol::Tcp, None, 8081)).unwrap();
        a.listen(80);
        // Killed half-way: addresses written down, nothing made.
        bridge.enter(&with_port(3, Protocol::Udp, None, 53)).unwrap();
        drop(bridge);

        let bridge = Bridge::open(settings(directory)).unwrap();
        assert_eq!(bridge.known().unwrap(), [id(1), id(2), id(3)]);
        let taken =
            bridge.setup(&with_port(4, Protocol::Tcp, None, 8081), Namespace { fd: a.namespace.as_fd(), path: None });
        assert!(taken.unwrap_err().to_string().contains(id(2).as_str()));
        assert_eq!(bridge.reconcile(&[a.live()]), []);
        assert_eq!(bridge.known().unwrap(), [id(1)]);
        assert_eq!(link::by_name(&mut lock(&bridge.route), &link::host_end(&b.id)).unwrap(), None);
        ask((localhost(true), 8080)).unwrap();
        let c = TestPod::start(&bridge, &with_port(4, Protocol::Tcp, None, 8081)).unwrap();
        assert!(![a.ip(true), b.ip(true)].contains(&c.ip(true)));
        assert_eq!(bridge.teardown(&id(3), None), []);

        assert_eq!(bridge.reset(), []);
        assert!(link::all(&mut lock(&bridge.route)).unwrap().iter().all(|link| link.name == "lo"));
        assert!(!lock(&bridge.table).exists().unwrap() && !directory.join("net").exists());
    });
}

#[test]
fn ports_that_others_have_are_refused() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", 8080)).unwrap();
        for (n, host_ip, is_taken) in [(1, None, true), (2, Some("127.0.0.1"), true), (3, Some("127.0.0.2"), false)] {
            let result = TestPod::start(&bridge, &with_port(n, Protocol::Tcp, host_ip, 8080));
            assert_eq!(matches!(result, Err(NetError::Taken { .. })), is_taken, "{host_ip:?}");
            assert_eq!(result.is_ok(), !is_taken);
        }
        assert_eq!(bridge.known().unwrap(), [id(3)]);
        let away = TestPod::start(&bridge, &with_port(5, Protocol::Tcp, Some("192.0.2.1"), 1)).unwrap();
        assert_eq!(away.attachment.warnings.len(), 1);
    });
}

/// The outside world: a namespace at the other end of a device of the host's.
fn world() -> OwnedFd {
    let world = namespace::create().unwrap();
    let mut socket = Socket::route().unwrap();
    let range = |text: &str| text.parse::<Range>().unwrap();
    let mut batch = Batch::default();
    // Not the host's end of a pod, but made as one.
    let pair = link::Pair {
        namespace: world.as_fd(),
        interface: crate::net::INTERFACE,
        mac: [2, 0, 0, 0, 0, 9],
        mtu: 1500,
        bridge: 0,
        port: link::Port { isolated: false, hairpin: false },
    };
    link::add_pair(&mut batch, &id(999), &pair);
    socket.all(batch, &[]).unwrap();
    let end = link::by_name(&mut socket, &link::host_end(&id(999))).unwrap().unwrap();
    let mut batch = Batch::default();
    // The driver must not take it for a pod that is gone.
    let mut mark = netlink_packet_route::link::LinkMessage::default();
    mark.header.index = end.index;
    mark.attributes.push(netlink_packet_route::link::LinkAttribute::IfAlias("the world".into()));
    batch.message("mark device", libc::RTM_NEWLINK, 0, &mark);
    for (ip, network) in [("203.0.113.1", "203.0.113.0/24"), ("2001:db8::1", "2001:db8::/64")] {
        link::add_address(&mut batch, end.index, ip.parse().unwrap(), range(network));
    }
    socket.all(batch, &[]).unwrap();
    namespace::inside(world.as_fd(), || {
        let addresses = [("203.0.113.9", "203.0.113.0/24"), ("2001:db8::9", "2001:db8::/64")];
        let addresses = addresses.map(|(ip, network)| (ip.parse().unwrap(), range(network)));
        pod::configure(&mut Socket::route().unwrap(), &addresses).unwrap();
    })
    .unwrap();
    world
}

#[test]
fn the_world_sees_the_host_and_reaches_host_ports_alone() {
    on_a_host(|directory| {
        let world = world();
        let bridge = Bridge::open(settings(directory)).unwrap();
        let a = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let local = TestPod::start(&bridge, &with_port(2, Protocol::Tcp, Some("127.0.0.1"), 8081)).unwrap();
        a.listen(80);
        local.listen(80);
        echo(namespace::inside(world.as_fd(), || TcpListener::bind(("::", 99)).unwrap()).unwrap());
        for (host, out) in [("203.0.113.1", "203.0.113.9"), ("2001:db8::1", "2001:db8::9")] {
            let (host, out): (IpAddr, IpAddr) = (host.parse().unwrap(), out.parse().unwrap());
            assert_eq!(a.inside(|| ask((out, 99))).unwrap(), host, "masqueraded");
            // The pod sees who it is talking to.
            assert_eq!(namespace::inside(world.as_fd(), || ask((host, 8080))).unwrap().unwrap(), out);
        }
        ask((localhost(true), 8081)).unwrap();
        let outside = namespace::inside(world.as_fd(), || ask(("203.0.113.1".parse::<IpAddr>().unwrap(), 8081)));
        assert!(outside.unwrap().is_err());
    });
}

#[test]
fn a_range_that_comes_while_pods_are_up_is_in_the_table_at_once() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let _first = TestPod::start(&bridge, &request(1)).unwrap();
        // Found whole, and remembered so.
        assert_eq!(bridge.reconcile(&[]), []);
        assert_eq!(bridge.reconcile(&[]), []);
        bridge.set_pod_cidr("10.99.0.0/24").unwrap();
        let _second = TestPod::start(&bridge, &request(2)).unwrap();
        let books = lock(&bridge.books);
        let mut table = nftables::Table::open("aril0").unwrap();
        let was_made = table.ensure(&bridge.layout(&books), &elements(&books)).unwrap();
        assert!(!was_made, "the table was not as it is to be");
    });
}
