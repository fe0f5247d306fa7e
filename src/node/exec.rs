//! Processes beside a container's first one: ExecSync, and sessions with streams.
//!
//! None of this changes a state, so none of it asks the pod's task: it goes straight to the shim.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::Node;
use super::capture::Capture;
use super::error::NodeError;
use super::pod::chain;
use super::record::ContainerRecord;
use super::spec;
use crate::observe::instrument::Held;
use crate::observe::metrics::EXEC_SESSIONS;
use crate::stream::Pipe;
use crate::wire::client::{Shim, WireError};
use crate::wire::session::{ExecSession, ExecStdio, Streams};

/// How long output may still come after the process ended, from children that hold its pipes.
const DRAIN: Duration = Duration::from_millis(100);

/// How long a killed session may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What a command in a container came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most [`super::OUTPUT_LIMIT_BYTES`], or less while many commands write much at a time.
    pub stdout: Vec<u8>,
    /// As `stdout`.
    pub stderr: Vec<u8>,
    /// 128 + signal number if killed.
    pub exit_code: i32,
}

/// A session with streams. Dropping it kills what it runs.
#[derive(Debug)]
pub struct Session {
    /// Written; absent with a terminal or without input.
    pub stdin: Option<Pipe>,
    /// Read; absent with a terminal.
    pub stdout: Option<Pipe>,
    /// Read; absent with a terminal.
    pub stderr: Option<Pipe>,
    /// Read and written: both sides of a terminal.
    pub terminal: Option<Pipe>,
    container: Arc<ContainerRecord>,
    session: ExecSession,
    kill: KillOnDrop,
}

/// The streams of a container's first process.
#[derive(Debug)]
pub struct Attachment {
    /// Written; closing it ends the input.
    pub stdin: Option<Pipe>,
    /// Read.
    pub stdout: Option<Pipe>,
    /// Read.
    pub stderr: Option<Pipe>,
    container: Arc<ContainerRecord>,
    shim: Shim,
}

/// What a session with streams is to be.
#[derive(Debug, Clone, Default)]
pub struct SessionConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal.
    pub tty: bool,
    /// With input.
    pub stdin: bool,
    /// Rows and columns of the terminal; 0: the kernel's default.
    pub size: (u16, u16),
    /// KEY=VALUE, beside the container's and in place of those with the same key.
    pub env: Vec<String>,
    /// Empty: the container's.
    pub working_dir: String,
    /// Like an image's; empty: the container's.
    pub user: String,
}

/// A session whose client goes away must not go on.
#[derive(Debug)]
struct KillOnDrop {
    shim: Shim,
    exec_id: String,
    armed: bool,
    _counted: Held,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.armed {
            let (shim, id) = (self.shim.clone(), std::mem::take(&mut self.exec_id));
            tokio::spawn(async move {
                if let Ok(Err(e)) = timeout(KILL_DEADLINE, shim.kill_exec(&id, 0)).await {
                    debug!(exec = id, error = %chain(&e), "abandoned exec session not killed");
                }
            });
        }
    }
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

impl Node {
    /// Runs a command in a running container and waits for its end.
    ///
    /// With a `limit`, the command and everything it started is killed when that is over. The same
    /// happens when the future is dropped.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] at the limit; else why the command could not be started. That it
    /// failed is no error.
    ///
    /// Source: CRI v1 `ExecSync`.
    pub async fn exec_sync(
        &self,
        container: &str,
        command: &[String],
        limit: Option<Duration>,
    ) -> Result<ExecOutput, Arc<NodeError>> {
        let (record, shim) = self.running(container, "exec in it")?;
        let process = spec::exec_process(command, false).map_err(NodeError::from)?;
        let pipe = || Pipe::from_process().map_err(NodeError::io("make", "pipe"));
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let stdio = ExecStdio { stdin: None, stdout: Some(their_stdout), stderr: Some(their_stderr) };
        let failed = || NodeError::shim("exec in container", record.id.short());

        let mut kill = self.kill_on_drop(&shim);
        let session = shim.exec(record.id.as_str(), &kill.exec_id, &process, true, stdio).await;
        let mut session = session.map_err(failed())?;
        let (mut stdout, mut stderr) =
            (Capture::new(stdout, &self.exec_memory), Capture::new(stderr, &self.exec_memory));
        let ended = {
            let read = async {
                tokio::join!(stdout.read_to_end(), stderr.read_to_end());
                std::future::pending::<()>().await;
            };
            let end = async {
                tokio::select! {
                    code = session.wait() => code,
                    () = read => Err(WireError::Gone),
                }
            };
            match limit {
                None => Ok(end.await),
                Some(limit) => timeout(limit, end).await.map_err(|_| limit),
            }
        };
        match ended {
            Ok(code) => {
                kill.armed = false;
                let exit_code = code.map_err(failed())?;
                // What the process itself wrote is in the pipes already.
                let rest = async { tokio::join!(stdout.read_to_end(), stderr.read_to_end()) };
                timeout(DRAIN + self.exec_memory.delay(), rest).await.ok();
                Ok(ExecOutput { stdout: stdout.bytes, stderr: stderr.bytes, exit_code })
            }
            Err(limit) => {
                kill.now(&mut session).await;
                let object = record.id.short().to_owned();
                let hint = ": it was killed with all it had started";
                Err(Arc::new(NodeError::Deadline { step: "command in container", object, limit, hint }))
            }
        }
    }

    /// Runs a command in a running container with streams.
    ///
    /// # Errors
    /// Why it could not be started, as far as that is known at once; else [`Session::wait`] tells.
    pub async fn exec(&self, container: &str, config: SessionConfig) -> Result<Session, Arc<NodeError>> {
        let (record, shim) = self.running(container, "exec in it")?;
        let SessionConfig { command, tty, env, working_dir, user, .. } = &config;
        let mut process = spec::exec_session(command, *tty, env, working_dir, user).map_err(NodeError::from)?;
        (process.tty_rows, process.tty_cols) = (config.size.0.into(), config.size.1.into());
        let made = NodeError::io("make", "pipe");
        let pipes = if config.tty { Ok(Default::default()) } else { pipes(config.stdin) };
        let ([stdin, stdout, stderr], stdio) = pipes.map_err(made)?;
        let kill = self.kill_on_drop(&shim);
        let session = shim.exec(record.id.as_str(), &kill.exec_id, &process, true, stdio).await;
        let mut session = session.map_err(NodeError::shim("exec in container", record.id.short()))?;
        let terminal = match session.pty().await {
            Some(pty) => Some(Pipe::new(pty).map_err(NodeError::io("watch", "terminal"))?),
            None => None,
        };
        Ok(Session { stdin, stdout, stderr, terminal, container: record, session, kill })
    }

    /// Joins the streams of a container's first process; before its start, so that nothing is missed, or later.
    ///
    /// # Errors
    /// If it has ended, or the shim refuses.
    pub async fn attach(&self, container: &str, streams: Streams) -> Result<Attachment, Arc<NodeError>> {
        let (record, shim) = self.alive(container, "attach to it")?;
        let attached = shim.attach(record.id.as_str(), streams).await;
        let attached = attached.map_err(NodeError::shim("attach to container", record.id.short()))?;
        let stream = |fd: Option<_>| fd.map(Pipe::new).transpose().map_err(NodeError::io("watch", "stream"));
        Ok(Attachment {
            stdin: stream(attached.stdin)?,
            stdout: stream(attached.stdout)?,
            stderr: stream(attached.stderr)?,
            container: record,
            shim,
        })
    }

    fn kill_on_drop(&self, shim: &Shim) -> KillOnDrop {
        // Unique in the shim's life, which may span several daemons.
        let exec_id = format!("{:x}-{}", self.started_at, SERIAL.fetch_add(1, Ordering::Relaxed));
        KillOnDrop { shim: shim.clone(), exec_id, armed: true, _counted: EXEC_SESSIONS.hold() }
    }
}

type Pipes = ([Option<Pipe>; 3], ExecStdio);

fn pipes(stdin: bool) -> std::io::Result<Pipes> {
    let input = if stdin { Some(Pipe::to_process()?) } else { None };
    let (input, their_input) = input.unzip();
    let (stdout, their_stdout) = Pipe::from_process()?;
    let (stderr, their_stderr) = Pipe::from_process()?;
    let theirs = ExecStdio { stdin: their_input, stdout: Some(their_stdout), stderr: Some(their_stderr) };
    Ok(([input, Some(stdout), Some(stderr)], theirs))
}

impl KillOnDrop {
    /// Kills the session and waits until it is gone; one that hangs in the kernel is left.
    async fn now(&mut self, session: &mut ExecSession) {
        let gone = async {
            match self.shim.kill_exec(&self.exec_id, 0).await {
                Ok(()) => session.wait().await.map(drop),
                Err(e) => Err(e),
            }
        };
        if timeout(KILL_DEADLINE, gone).await.is_ok() {
            self.armed = false;
        }
    }
}

impl Session {
    /// The exit code, 128 + signal number if killed.
    ///
    /// # Errors
    /// Why the command could not be started, or that the shim is gone.
    pub async fn wait(&mut self) -> Result<i32, Arc<NodeError>> {
        let result = self.session.wait().await;
        self.kill.armed = false;
        result.map_err(|e| NodeError::shim("exec in container", self.container.id.short())(e).into())
    }

    /// Tells how to change the terminal's size while the session is waited for.
    #[must_use]
    pub fn resizer(&self) -> Resizer {
        let (shim, exec_id) = (self.kill.shim.clone(), self.kill.exec_id.clone());
        Resizer { shim, container: self.container.id.to_string(), exec_id }
    }
}

impl Attachment {
    /// Changes the size of the container's terminal.
    #[must_use]
    pub fn resizer(&self) -> Resizer {
        Resizer { shim: self.shim.clone(), container: self.container.id.to_string(), exec_id: String::new() }
    }
}

/// Changes a terminal's size.
#[derive(Debug, Clone)]
pub struct Resizer {
    shim: Shim,
    container: String,
    exec_id: String,
}

impl Resizer {
    /// Sets the size. That it cannot be set (any more) is nobody's concern.
    pub async fn resize(&self, rows: u16, cols: u16) {
        if let Err(e) = self.shim.resize(&self.container, &self.exec_id, rows, cols).await {
            debug!(container = self.container, error = %chain(&e), "terminal not resized");
        }
    }
}
