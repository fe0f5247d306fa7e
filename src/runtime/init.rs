//! The shim's side of a new process: a pidfd and a socket on which it reports, waits and fails.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use prost::Message;

use super::cgroup::Cgroup;
use super::error::RuntimeError;
use super::stages::step_of;
use crate::plan;
use crate::plan::init_report::Body;
use crate::sys::socket;

/// The most a report may take; warnings are clipped to fit.
const MAX_REPORT_BYTES: usize = 16 << 10;

/// Standard streams for a new process. `None` is `/dev/null`. With a terminal all are ignored.
#[derive(Debug, Default)]
pub struct Stdio3 {
    /// Read by the process.
    pub stdin: Option<OwnedFd>,
    /// Written by the process.
    pub stdout: Option<OwnedFd>,
    /// Written by the process.
    pub stderr: Option<OwnedFd>,
}

/// A process on its way to becoming a workload.
#[derive(Debug)]
pub struct Init {
    /// In the shim's PID namespace.
    pub pid: i32,
    /// The process.
    pub pidfd: OwnedFd,
    /// Non-blocking; readable when [`Init::receive`] has something.
    pub channel: OwnedFd,
    /// The container's cgroup, or the exec session's tracking one.
    pub cgroup: Cgroup,
}

/// What the process has to say.
#[derive(Debug)]
pub enum InitMessage {
    /// Everything is in place; it waits for [`Init::release`]. Exec sessions do not wait and do not say this unless
    /// they have a terminal.
    Ready {
        /// Who it became.
        user: plan::ResolvedUser,
        /// What was done less well than asked.
        warnings: Vec<String>,
        /// Step and microseconds, in order.
        steps: Vec<(String, u64)>,
        /// The terminal's master side.
        pty: Option<OwnedFd>,
    },
    /// It could not, and has ended or is about to.
    Failed {
        /// Name of the step.
        step: String,
        /// 0 if there is none.
        errno: i32,
        /// Object and reason.
        message: String,
    },
    /// The channel closed: execve succeeded, or the process was killed (its exit tells).
    Executed,
}

impl Init {
    /// The next message; `None` if there is none yet.
    ///
    /// # Errors
    /// [`RuntimeError::Plan`] for a malformed report, which only a bug can send.
    pub fn receive(&self) -> Result<Option<InitMessage>, RuntimeError> {
        let mut buffer = vec![0; MAX_REPORT_BYTES];
        let (len, mut fds) = match socket::receive(self.channel.as_fd(), &mut buffer) {
            Ok(got) => got,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => return Ok(Some(InitMessage::Executed)),
            Err(e) => return Err(RuntimeError::Plan(format!("receive from the container's first process: {e}"))),
        };
        if len == 0 {
            return Ok(Some(InitMessage::Executed));
        }
        let report = plan::InitReport::decode(&buffer[..len])
            .map_err(|e| RuntimeError::Plan(format!("decode the report of the container's first process: {e}")))?;
        Ok(report.body.map(|body| match body {
            Body::Ready(ready) => InitMessage::Ready {
                user: ready.user.unwrap_or_default(),
                warnings: ready.warnings,
                steps: ready.steps.into_iter().map(|s| (s.name, s.elapsed_us)).collect(),
                pty: fds.pop(),
            },
            Body::Failure(f) => InitMessage::Failed { step: f.step, errno: f.errno, message: f.message },
        }))
    }

    /// The step it is in while it prepares a container, for a sentence about what takes so long.
    #[must_use]
    pub fn step(&self) -> Option<String> {
        step_of(self.pid)
    }

    /// Lets the process become the workload.
    ///
    /// # Errors
    /// `EPIPE` if it is gone.
    pub fn release(&self) -> io::Result<()> {
        socket::send(self.channel.as_fd(), b"go", &[])
    }
}

/// The new process's side.
pub(super) fn report(channel: BorrowedFd<'_>, body: Body, pty: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let report = plan::InitReport { body: Some(body) };
    let bytes = report.encode_to_vec();
    let fds: Vec<_> = pty.into_iter().collect();
    if bytes.len() > MAX_REPORT_BYTES {
        return Err(Errno::EMSGSIZE.into());
    }
    socket::send(channel, &bytes, &fds)
}

/// Waits to be released; false if the shim is gone, and with it the reason to go on.
pub(super) fn wait_release(channel: BorrowedFd<'_>) -> bool {
    loop {
        match socket::receive(channel, &mut [0; 8]) {
            Ok((len, _)) => return len > 0,
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(_) => return false,
        }
    }
}
