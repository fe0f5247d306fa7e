//! Host ports from ::1, which rules cannot lead to pods: the daemon listens there and passes on.
//!
//! There is no `route_localnet` of IPv6. An answer whose destination has become ::1 again is dropped: by the routing
//! code, to which ::1 is on no device but loopback, and, where packets that cross a bridge meet the rules for routed
//! ones, by the check of what came in before. So from ::1 alone a host port needs the daemon.
//!
//! Nothing is here, no task and no socket, while no pod has a host port. A listener also keeps the port from processes
//! of the host.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::books::{Pod, port_name};
use crate::id::SandboxId;
use crate::net::{Leftover, NetError, Ports, Protocol, namespace};

/// Connections, and clients of UDP, at once a port. More connections wait in the listener's queue; datagrams of more
/// clients are dropped.
const CLIENTS: usize = 512;
/// Datagrams that wait for one client's turn.
const DATAGRAMS: usize = 32;
/// Largest datagram in bytes.
const DATAGRAM_BYTES: usize = 65_535;
/// How long a client of UDP is remembered that says and hears nothing; as connection tracking does.
const IDLE: Duration = Duration::from_secs(30);
/// How long a pod may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// How long sockets may take to be closed.
const CLOSE: Duration = Duration::from_secs(1);
/// How long nothing is accepted after that failed, as it does where descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// What the daemon serves at ::1.
#[derive(Debug)]
pub struct Loopback {
    /// `None`: opened where no runtime is, as by a program that only looks; then nothing is served.
    runtime: Option<Handle>,
    doors: BTreeMap<SandboxId, Vec<Door>>,
}

/// One host port. It closes, with all its connections, when it is dropped; [`Closing`] waits for that.
#[derive(Debug)]
struct Door {
    port: Ports,
    targets: Vec<SocketAddr>,
    task: AbortHandle,
    /// Says nothing, and is at its end when no socket of the port is left.
    ended: std::sync::mpsc::Receiver<()>,
}

/// Held by whatever has a socket of the port.
type Holds = std::sync::mpsc::Sender<()>;

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ports that are about to be closed.
#[derive(Debug, Default)]
#[must_use = "whoever comes next may want the port at once"]
pub struct Closing(Vec<std::sync::mpsc::Receiver<()>>);

impl Closing {
    fn of(doors: Vec<Door>) -> Self {
        // All are told before one is waited for.
        let end = |mut door: Door| std::mem::replace(&mut door.ended, std::sync::mpsc::channel().1);
        Self(doors.into_iter().map(end).collect())
    }

    /// Waits until no socket of them is left: tasks end when a thread of the runtime comes by.
    pub fn wait(self) {
        let until = Instant::now() + CLOSE;
        for ended in self.0 {
            ended.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
        }
    }
}

impl Loopback {
    /// For the runtime the calling thread is in.
    pub fn open() -> Self {
        Self { runtime: Handle::try_current().ok(), doors: BTreeMap::new() }
    }

    /// Serves a pod's host ports; those it serves already go on.
    ///
    /// # Errors
    /// [`NetError::Taken`] if a process has one of them; the others are served.
    pub fn serve(&mut self, id: &SandboxId, pod: &Pod, host: BorrowedFd<'_>) -> Result<(), NetError> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let wanted: Vec<&Ports> = pod.ports.iter().filter(|port| is_served(port)).collect();
        if wanted.is_empty() {
            self.close(id).wait();
            return Ok(());
        }
        let is_wanted =
            |door: &Door| wanted.iter().any(|port| door.port == **port && door.targets == targets(port, pod));
        let (mut had, stale): (Vec<Door>, Vec<Door>) =
            self.doors.remove(id).unwrap_or_default().into_iter().partition(is_wanted);
        Closing::of(stale).wait();
        let (mut doors, mut failed) = (Vec::new(), None);
        for port in wanted {
            let targets = targets(port, pod);
            if let Some(at) = had.iter().position(|door| door.port == *port && door.targets == targets) {
                doors.push(had.swap_remove(at));
                continue;
            }
            match listen(runtime, port, &targets, host) {
                Ok(door) => doors.extend(door),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        if !doors.is_empty() {
            self.doors.insert(id.clone(), doors);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Serves the host ports of these pods and of no others; what could not be.
    pub fn serve_these(&mut self, pods: &BTreeMap<SandboxId, Pod>, host: BorrowedFd<'_>) -> Vec<Leftover> {
        let gone: Vec<SandboxId> = self.doors.keys().filter(|id| !pods.contains_key(*id)).cloned().collect();
        Closing::of(gone.iter().filter_map(|id| self.doors.remove(id)).flatten().collect()).wait();
        let mut left = Vec::new();
        for (id, pod) in pods.iter().filter(|(_, pod)| !pod.ports.is_empty()) {
            let what = || format!("host ports of sandbox {id} from ::1");
            let failed = self.serve(id, pod, host).err();
            left.extend(failed.map(|e| Leftover { what: what(), reason: e.to_string() }));
        }
        left
    }

    /// Closes a pod's.
    pub fn close(&mut self, id: &SandboxId) -> Closing {
        Closing::of(self.doors.remove(id).unwrap_or_default())
    }

    /// Closes all.
    pub fn close_all(&mut self) {
        Closing::of(std::mem::take(&mut self.doors).into_values().flatten().collect()).wait();
    }
}

/// Whether the port is to be had at ::1. SCTP is not: the host may have no sockets of it.
fn is_served(port: &Ports) -> bool {
    let is_here = port.host_ip.is_none_or(|ip| ip == IpAddr::V6(Ipv6Addr::LOCALHOST));
    is_here && port.protocol != Protocol::Sctp
}

/// Where it leads: the pod's address of IPv6, else that of IPv4, for workloads that only listen there.
fn targets(port: &Ports, pod: &Pod) -> Vec<SocketAddr> {
    let address = |is_v4| {
        let found = pod.addresses.iter().map(|(ip, _)| *ip).find(|ip| ip.is_ipv4() == is_v4);
        found.map(|ip| SocketAddr::new(ip, port.container_port))
    };
    [false, true].into_iter().filter_map(address).collect()
}

/// Begins to serve a port; `None`: the host has no ::1.
fn listen(
    runtime: &Handle,
    port: &Ports,
    targets: &[SocketAddr],
    host: BorrowedFd<'_>,
) -> Result<Option<Door>, NetError> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            NetError::Taken { what: format!("{} at ::1", port_name(port)), owner: "a process of the host".into() }
        }
        _ => NetError::Kernel { step: "listen at ::1 for", object: port_name(port), source },
    };
    let address = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port.host_port);
    let _entered = runtime.enter();
    let (holds, ended) = std::sync::mpsc::channel();
    let to: Arc<[SocketAddr]> = targets.into();
    let bound = namespace::inside(host, || match port.protocol {
        Protocol::Udp => std::net::UdpSocket::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(runtime.spawn(datagrams(UdpSocket::from_std(socket)?, to, holds)).abort_handle())
        }),
        Protocol::Tcp | Protocol::Sctp => std::net::TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(runtime.spawn(connections(TcpListener::from_std(listener)?, to, holds)).abort_handle())
        }),
    });
    match bound.and_then(|bound| bound) {
        Ok(task) => Ok(Some(Door { port: port.clone(), targets: targets.to_vec(), task, ended })),
        // IPv6 is off: nobody can come from there.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Passes connections on, until it is aborted; they end with it.
async fn connections(listener: TcpListener, targets: Arc<[SocketAddr]>, holds: Holds) {
    // What is held is dropped last: after the sockets, which are variables of their own.
    let (holds, listener) = (holds, listener);
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut running = JoinSet::new();
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        while running.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let (targets, holds) = (Arc::clone(&targets), holds.clone());
        running.spawn(async move {
            let _last = (holds, place);
            connection(client, &targets).await;
        });
    }
}

async fn connection(mut client: TcpStream, targets: &[SocketAddr]) {
    for target in targets {
        if let Ok(Ok(mut pod)) = timeout(CONNECT, TcpStream::connect(target)).await {
            // What comes in small pieces was sent so.
            client.set_nodelay(true).and(pod.set_nodelay(true)).ok();
            // An end of one direction is passed on alone; an error ends both.
            if tokio::io::copy_bidirectional(&mut client, &mut pod).await.is_err() {
                reset(&client);
                reset(&pod);
            }
            return;
        }
    }
    reset(&client);
}

/// Has the other side see an error, not an end.
fn reset(stream: &TcpStream) {
    stream.set_zero_linger().ok();
}

/// What the conversations of one UDP port share.
#[derive(Debug, Clone)]
struct Shared {
    /// Dropped last.
    socket: Arc<UdpSocket>,
    targets: Arc<[SocketAddr]>,
    /// Which of them did not refuse.
    at: Arc<AtomicUsize>,
    _holds: Holds,
}

/// Passes datagrams on, each client's from a socket of its own, until it is aborted.
async fn datagrams(socket: UdpSocket, targets: Arc<[SocketAddr]>, holds: Holds) {
    let shared = Shared { socket: Arc::new(socket), targets, at: Arc::default(), _holds: holds };
    let mut clients: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    let mut running = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((length, client)) = shared.socket.recv_from(&mut buffer).await else {
            // Only ever of an answer that could not be delivered.
            continue;
        };
        while running.try_join_next().is_some() {}
        let datagram = buffer[..length].to_vec();
        if let Some(queue) = clients.get(&client).filter(|queue| !queue.is_closed()) {
            // A full queue loses datagrams as a full socket does.
            queue.try_send(datagram).ok();
            continue;
        }
        if clients.len() >= CLIENTS {
            clients.retain(|_, queue| !queue.is_closed());
        }
        if clients.len() >= CLIENTS {
            continue;
        }
        let (queue, receiver) = mpsc::channel(DATAGRAMS);
        queue.try_send(datagram).ok();
        clients.insert(client, queue);
        running.spawn(conversation(shared.clone(), client, receiver));
    }
}

/// One client's datagrams there and back, until both sides have been silent for a while or the pod is out of reach;
/// the client's next one begins another.
async fn conversation(shared: Shared, client: SocketAddr, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut last = None;
    for _ in 0..shared.targets.len() {
        let at = shared.at.load(Ordering::Relaxed) % shared.targets.len();
        let said = converse(shared.targets[at], &shared.socket, client, &mut queue, &mut last).await;
        match said {
            // Nobody listens at that address: the same again at the next.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                shared.at.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed).ok();
            }
            _ => return,
        }
    }
}

/// Passes datagrams on to one address of the pod and its answers back. `last` is what was sent last, and is sent first.
async fn converse(
    target: SocketAddr,
    socket: &UdpSocket,
    client: SocketAddr,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    last: &mut Option<Vec<u8>>,
) -> io::Result<()> {
    let from = if target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let pod = UdpSocket::bind((from, 0)).await?;
    pod.connect(target).await?;
    if let Some(datagram) = &last {
        pod.send(datagram).await?;
    }
    loop {
        let next = timeout(IDLE, async {
            tokio::select! {
                datagram = queue.recv() => Ok(datagram),
                ready = pod.ready(Interest::READABLE | Interest::ERROR) => ready.map(|_| None),
            }
        });
        let Ok(next) = next.await else { return Ok(()) };
        match next? {
            Some(datagram) => {
                pod.send(last.insert(datagram)).await?;
            }
            None => answer(&pod, socket, client).await?,
        }
    }
}

/// Passes back what the pod said, if it did.
async fn answer(pod: &UdpSocket, socket: &UdpSocket, client: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    let length = match pod.try_recv(&mut buffer) {
        Ok(length) => length,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return pod.take_error()?.map_or(Ok(()), Err),
        Err(e) => return Err(e),
    };
    // Whether the client is still there is not the pod's affair.
    socket.send_to(&buffer[..length], client).await.ok();
    Ok(())
}
