//! The streaming server of CRI: exec, attach and port-forward over HTTP, upgraded to SPDY/3.1 or WebSocket.
//!
//! CRI's Exec, Attach and PortForward answer with a URL; [`Admission::url`] makes it, of a random token that is good
//! once, for a minute. Who comes with it is joined to what a [`Backend`] has for the request. Owns sockets, formats and
//! limits; knows nothing of containers.
//!
//! ```text
//!   client ══ HTTP/1.1, upgraded ══► link ──► streams by number ──► remote:  pipes of a process
//!          ◄══════════════════════ outlet ◄── 64 KiB at a time  ◄── forward: connections into a pod
//! ```
//!
//! Invariants:
//! - Nothing a client sends, or does not read, is held beyond [`limits`]; then its connection waits, and nobody else.
//! - A session ends with its connection: what an exec started is killed, an attachment only lets go.
//! - Every wait for a client has a limit.
//!
//! Follows CRI v1 (`Exec`, `Attach`, `PortForward`), SPDY/3.1, RFC 6455, and what Kubernetes' clients make of them.

mod forward;
mod http;
mod link;
mod negotiate;
mod outlet;
mod pipe;
mod remote;
mod server;
pub mod spdy;
mod token;
pub mod websocket;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;

pub use self::pipe::{CHUNK_BYTES, Pipe, Tail};
pub use self::server::{Admission, Streaming};

/// What a client may take and keep.
pub mod limits {
    use std::time::Duration;

    /// Tokens that wait for their client.
    pub const TOKENS: usize = 1000;
    /// How long each waits.
    pub const TOKEN_LIFE: Duration = Duration::from_secs(60);
    /// Clients with a token, at a time.
    pub const SESSIONS: usize = 1000;
    /// Connections that have not shown a token yet; the oldest goes.
    pub const STRANGERS: usize = 128;
    /// How long a connection has to show one, and to become what it asked for.
    pub const HANDSHAKE: Duration = Duration::from_secs(10);
    /// Bytes of a request's head.
    pub const HEAD_BYTES: usize = 16 << 10;
    /// How long a client has to make the streams it needs.
    pub const STREAMS_MADE: Duration = Duration::from_secs(30);
    /// How long a session may say nothing in either direction.
    pub const IDLE: Duration = Duration::from_secs(4 * 3600);
    /// How long a client has to close a session that is over.
    pub const LINGER: Duration = Duration::from_secs(5);
    /// Streams of one connection.
    pub const STREAMS: usize = 256;
    /// Pieces of a stream's input that nobody has taken yet…
    pub const PIECES: usize = 64;
    /// … bytes of it …
    pub const STREAM_BYTES: usize = 256 << 10;
    /// … and bytes of all of a connection's.
    pub const INPUT_BYTES: usize = 4 << 20;
    /// How long a port may take nothing while what is for others waits behind it.
    pub const STALL: Duration = Duration::from_secs(10);
    /// Bytes sent at a time.
    pub const OUTPUT_BYTES: usize = 64 << 10;
}

/// Which streams of a process a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stdio {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To run a command in a container.
    Exec {
        /// Its full id.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Its streams.
        stdio: Stdio,
    },
    /// To join the streams of a container's first process.
    Attach {
        /// Its full id.
        container: String,
        /// Which of them.
        stdio: Stdio,
    },
    /// To connect to ports in a pod's network.
    PortForward {
        /// Its full id.
        sandbox: String,
        /// For clients that cannot name any themselves.
        ports: Vec<u16>,
    },
}

/// What does the work.
pub trait Backend: Send + Sync + 'static {
    /// What runs for one client.
    type Session: Session;

    /// Begins to do an Exec or Attach.
    ///
    /// # Errors
    /// Why not, in one sentence for the client.
    fn begin(&self, request: Request) -> impl Future<Output = Result<Self::Session, String>> + Send;

    /// Connects to a port of localhost as a pod sees it.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn connect(&self, sandbox: &str, port: u16) -> impl Future<Output = Result<TcpStream, String>> + Send;
}

/// What runs for one client. It ends when dropped.
pub trait Session: Send {
    /// Its streams; asked for once.
    fn pipes(&mut self) -> Pipes;

    /// Waits for the process's end: its exit code, 128 + signal number if killed. Never over for an attachment, which
    /// lasts as long as its streams.
    ///
    /// # Errors
    /// Why it did not run, or is not known to, in one sentence.
    fn wait(&mut self) -> impl Future<Output = Result<i32, String>> + Send;
}

/// Changes the size of a session's terminal: rows, columns.
pub type Resize = Arc<dyn Fn(u16, u16) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Streams of a session.
#[derive(Default)]
pub struct Pipes {
    /// Written; absent with a terminal or without input.
    pub stdin: Option<Pipe>,
    /// Read.
    pub stdout: Option<Pipe>,
    /// Read.
    pub stderr: Option<Pipe>,
    /// Read and written: both sides of a terminal.
    pub terminal: Option<Pipe>,
    /// Of the terminal.
    pub resize: Option<Resize>,
    /// The session is over when its output is, or its input if there is no output.
    pub lasts_as_its_streams: bool,
    /// … or when its input is, in any case.
    pub ends_with_input: bool,
}

impl fmt::Debug for Pipes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipes").field("terminal", &self.terminal.is_some()).finish_non_exhaustive()
    }
}

/// Why there is no URL, or no server.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StreamError {
    #[error("{} requests for streams wait for their clients already; each is given up after {}s",
        limits::TOKENS, limits::TOKEN_LIFE.as_secs())]
    TooMany,
    #[error("listen on {address} for streams; choose another with `stream_address` and `stream_port`")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("read /dev/urandom")]
    Random(#[source] std::io::Error),
}
