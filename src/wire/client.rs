//! The daemon's side: requests matched with their replies by id, and the stream of events.
//!
//! A [`Shim`] is a handle to clone; any number of requests may be under way. One task reads the connection. When it is
//! lost, every request under way and every later one ends in [`WireError::Gone`], and the stream of events ends. When
//! the last handle is dropped the connection is closed; the shim and its workloads go on.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::codec::{MAX_PACKET_BYTES, Outgoing, PacketError, receive};
use super::pb;
use super::spawn::{Spawner, reap};
use crate::sys::socket;

/// What happens in the pod unasked; it ends when the shim is gone.
pub type Events = mpsc::UnboundedReceiver<pb::event::Body>;

/// How long a shim may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Why a request to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// There is no shim any more (or none yet) at the other end.
    #[error("the pod's shim is gone")]
    Gone,
    /// The shim did not do it.
    #[error("{message}")]
    Shim {
        /// What sort of failure.
        kind: pb::error::Kind,
        /// Which step of a container's start failed; may be empty.
        step: String,
        /// 0 if there is none.
        errno: i32,
        /// One sentence for a person.
        message: String,
    },
    /// The request could not be sent: too large, or no memory for it.
    #[error("request to the shim not sent")]
    Send(#[source] PacketError),
    /// The reply was not one to this request.
    #[error("the shim answered {request} with another message; shim and daemon do not fit together")]
    Unexpected {
        /// The request's name.
        request: &'static str,
    },
    /// No common protocol version.
    #[error("the shim speaks protocol version {theirs}, this aril {lowest} to {highest}", lowest = super::LOWEST_VERSION, highest = super::VERSION)]
    Version {
        /// The shim's.
        theirs: u32,
    },
    /// A step of spawning or connecting to a shim failed.
    #[error("{step} of a shim")]
    Start {
        /// "spawn", "connect", "hello" …
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl WireError {
    /// The kind the shim gave its error; `None` if the error is not the shim's.
    #[must_use]
    pub fn kind(&self) -> Option<pb::error::Kind> {
        if let Self::Shim { kind, .. } = self { Some(*kind) } else { None }
    }
}

impl From<pb::Error> for WireError {
    fn from(e: pb::Error) -> Self {
        Self::Shim { kind: e.kind(), step: e.step, errno: e.errno, message: e.message }
    }
}

/// What came of a request: the reply and the descriptors beside it.
pub type Answer = Result<(pb::reply::Body, Vec<OwnedFd>), WireError>;

/// An answer to come.
pub(super) type Pending = oneshot::Receiver<Answer>;

/// Who waits for the replies to one request.
struct Waiter {
    /// For [`pb::ExecStarted`], where it is expected.
    early: Option<oneshot::Sender<Answer>>,
    last: oneshot::Sender<Answer>,
}

struct Connection {
    socket: AsyncFd<OwnedFd>,
    /// `None`: the connection is lost.
    waiting: Mutex<Option<HashMap<u64, Waiter>>>,
    next_id: AtomicU64,
    pid: AtomicI32,
}

impl Connection {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiter>>> {
        // The map is whole between any two statements, so a panic elsewhere has not broken it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the reading task, and with it the connection, together with the last handle.
struct Reader(AbortHandle);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One pod's shim. Cheap to clone.
#[derive(Clone)]
pub struct Shim {
    connection: Arc<Connection>,
    _reader: Arc<Reader>,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Shim {
    /// Starts a shim for the pod with this run directory (which exists) and says hello to it.
    ///
    /// It is not killed when the handle is dropped; when it ends it is reaped.
    ///
    /// # Errors
    /// [`WireError::Start`], [`WireError::Version`], [`WireError::Gone`] if it ended at once (its reason is in
    /// `shim.log` in the run directory).
    pub async fn spawn(spawner: &Spawner, run_dir: &Path) -> Result<(Self, Events), WireError> {
        let (socket, child) = spawner.spawn(run_dir).map_err(|source| WireError::Start { step: "spawn", source })?;
        tokio::spawn(reap(child));
        Self::over(socket).await
    }

    /// Connects to the shim that was started for this run directory earlier.
    ///
    /// # Errors
    /// [`WireError::Gone`] without a socket or a listener, [`WireError::Start`], [`WireError::Version`].
    pub async fn connect(run_dir: &Path) -> Result<(Self, Events), WireError> {
        let socket = connect(run_dir).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => WireError::Gone,
            _ => WireError::Start { step: "connect", source },
        })?;
        Self::over(socket).await
    }

    async fn over(socket: OwnedFd) -> Result<(Self, Events), WireError> {
        let start = |step| move |source| WireError::Start { step, source };
        set_nonblocking(&socket).map_err(start("connect"))?;
        let socket = watch(socket, Interest::READABLE | Interest::WRITABLE).map_err(start("connect"))?;
        let connection = Arc::new(Connection {
            socket,
            waiting: Mutex::new(Some(HashMap::new())),
            next_id: AtomicU64::new(1),
            pid: AtomicI32::new(0),
        });
        let (sender, events) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(Arc::clone(&connection), sender)).abort_handle();
        let shim = Self { connection, _reader: Arc::new(Reader(reader)) };
        let hello = tokio::time::timeout(HELLO_DEADLINE, shim.hello()).await;
        hello.map_err(|_| start("hello")(io::ErrorKind::TimedOut.into()))??;
        Ok((shim, events))
    }

    async fn hello(&self) -> Result<(), WireError> {
        let hello = pb::request::Body::Hello(pb::Hello { version: super::VERSION });
        let (pb::reply::Body::Hello(reply), _) = self.call(hello, Vec::new()).await? else {
            return Err(WireError::Unexpected { request: "hello" });
        };
        if !(super::LOWEST_VERSION..=super::VERSION).contains(&reply.version) {
            return Err(WireError::Version { theirs: reply.version });
        }
        self.connection.pid.store(reply.pid, Ordering::Relaxed);
        Ok(())
    }

    /// The shim's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.connection.pid.load(Ordering::Relaxed)
    }

    /// Sends one request and waits for its last reply. Dropping the future does not cancel the request.
    ///
    /// # Errors
    /// [`WireError::Shim`] for an error reply, [`WireError::Gone`], [`WireError::Send`].
    pub async fn call(&self, body: pb::request::Body, fds: Vec<OwnedFd>) -> Answer {
        let (last, answer) = oneshot::channel();
        self.send(body, fds, Waiter { early: None, last }).await?;
        answer.await.unwrap_or(Err(WireError::Gone))
    }

    /// Sends one request that has an early reply too; see [`super::session`].
    pub(super) async fn call_early(
        &self,
        body: pb::request::Body,
        fds: Vec<OwnedFd>,
    ) -> Result<(Pending, Pending), WireError> {
        let (early, early_answer) = oneshot::channel();
        let (last, answer) = oneshot::channel();
        self.send(body, fds, Waiter { early: Some(early), last }).await?;
        Ok((early_answer, answer))
    }

    async fn send(&self, body: pb::request::Body, fds: Vec<OwnedFd>, waiter: Waiter) -> Result<(), WireError> {
        let id = self.connection.next_id.fetch_add(1, Ordering::Relaxed);
        let packet = Outgoing::new(&pb::Request { id, body: Some(body) }, fds).map_err(WireError::Send)?;
        match self.connection.waiting().as_mut() {
            Some(waiting) => waiting.insert(id, waiter),
            None => return Err(WireError::Gone),
        };
        let sent = self.connection.socket.async_io(Interest::WRITABLE, |fd| packet.send(fd.as_fd())).await;
        if let Err(source) = sent {
            if let Some(waiting) = self.connection.waiting().as_mut() {
                waiting.remove(&id);
            }
            return Err(match source.raw_os_error() {
                Some(nix::libc::EPIPE | nix::libc::ECONNRESET | nix::libc::ENOTCONN) => WireError::Gone,
                _ => WireError::Send(PacketError::Socket { step: "send", source }),
            });
        }
        Ok(())
    }
}

/// Reads replies and events until the connection ends, then lets everybody know.
async fn read(connection: Arc<Connection>, events: mpsc::UnboundedSender<pb::event::Body>) {
    loop {
        let received = connection
            .socket
            .async_io(Interest::READABLE, |fd| {
                // Given back before the wait for more: thousands of idle connections need no buffer.
                let mut buffer = vec![0; MAX_PACKET_BYTES];
                match receive::<pb::Packet>(fd.as_fd(), &mut buffer) {
                    Err(PacketError::Socket { source, .. }) => Err(source),
                    other => Ok(other),
                }
            })
            .await;
        match received {
            Ok(Ok((pb::Packet { body: Some(pb::packet::Body::Reply(reply)) }, fds))) => {
                deliver(&connection, reply, fds);
            }
            Ok(Ok((pb::Packet { body: Some(pb::packet::Body::Event(event)) }, _))) => {
                // Nobody listening is not the shim's fault.
                event.body.map(|event| events.send(event).ok());
            }
            // A kind of packet of a newer shim.
            Ok(Ok((pb::Packet { body: None }, _))) => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    connection.waiting().take();
    // Handles may live on; the shim must see at once that nobody listens any more.
    let fd = connection.socket.as_raw_fd();
    nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both).ok();
}

fn deliver(connection: &Connection, reply: pb::Reply, fds: Vec<OwnedFd>) {
    let mut guard = connection.waiting();
    let Some(waiting) = guard.as_mut() else { return };
    if let Some(body @ pb::reply::Body::ExecStarted(_)) = reply.body {
        let early = waiting.get_mut(&reply.id).and_then(|waiter| waiter.early.take());
        early.map(|early| early.send(Ok((body, fds))).ok());
        return;
    }
    let Some(waiter) = waiting.remove(&reply.id) else { return };
    drop(guard);
    let answer = match reply.body {
        Some(pb::reply::Body::Error(e)) => Err(e.into()),
        Some(body) => Ok((body, fds)),
        None => Err(WireError::Unexpected { request: "a request" }),
    };
    // Whoever asked may have given up.
    waiter.last.send(answer).ok();
}

/// Connects to the socket in `run_dir`, however long its path, if it is served by our own user.
fn connect(run_dir: &Path) -> io::Result<OwnedFd> {
    let dir = std::fs::File::open(run_dir)?;
    let socket = socket::connect(&super::socket_path(dir.as_fd()))?;
    if socket::peer_uid(socket.as_fd())? != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(socket)
}

/// A descriptor the tokio runtime polls.
///
/// tokio's other constructors are unsafe because a type might change its descriptor under way; an `OwnedFd` cannot.
#[allow(deprecated)]
pub(super) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests;
