//! Runs one program to its end: its input from memory, its output bounded, its whole process group killed when time is
//! up.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::error::Failure;
use crate::sys::process::pidfd_open;

/// Bytes of an answer.
const MOST_OUTPUT: usize = 1 << 20;
/// Bytes of a log that are kept.
const KEPT_LOG: usize = 64 << 10;
/// Bytes of a log beyond which something is wrong. A plugin may be talkative, and is not killed for that.
const MOST_LOG: usize = 16 << 20;
/// How long a killed process may take to be gone before somebody else waits for it.
const DEATH: Duration = Duration::from_secs(2);
/// Pause between attempts to execute a file that an installer is still writing, and how long they go on.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY: Duration = Duration::from_secs(2);

/// A program to be run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// Its file.
    pub program: &'a Path,
    /// Its whole environment.
    pub environment: &'a [(&'static str, String)],
    /// What it reads from its standard input.
    pub input: &'a [u8],
    /// How long it may take.
    pub limit: Duration,
}

/// How it ended, and what it said.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: Vec<u8>,
    /// The start of its standard error.
    pub log: Vec<u8>,
}

impl Run<'_> {
    /// Runs it. What is left of its process group when it ends is killed: it has answered, so nothing of it has work to
    /// do any more. A daemon it started in a session of its own is not of its group.
    ///
    /// # Errors
    /// [`Failure::Deadline`] when time is up, [`Failure::Broken`] for too much output or if the kernel refuses.
    pub(super) fn wait(self) -> Result<Ended, Failure> {
        let start = Instant::now();
        let input = self.input().map_err(broken("keep its input in memory"))?;
        let mut running = Running::new(self.spawn(&input, start)?)?;
        drop(input);
        let (mut output, mut log) = (running.take_output(), running.take_log());
        for pipe in [&output.pipe, &log.pipe].into_iter().flatten() {
            nonblocking(pipe.as_fd()).map_err(broken("read its output"))?;
        }
        loop {
            let left = self.limit.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(Failure::Deadline(self.limit)) };
            let has_ended = running.poll(&[&output, &log], left).map_err(broken("wait for it"))?;
            output.drain().map_err(broken("read its output"))?;
            log.drain().map_err(broken("read its log"))?;
            for (sink, what) in [(&output, "output"), (&log, "log")] {
                if sink.seen > sink.most {
                    let reason = format!("killed, because its {what} is longer than {} KiB", sink.most >> 10);
                    return Err(Failure::Broken(reason));
                }
            }
            if has_ended {
                // What it wrote was in the pipes before it ended; a child that keeps them open is not waited for.
                let status = running.finish().map_err(broken("wait for it"))?;
                return Ok(Ended { status, output: output.kept, log: log.kept });
            }
        }
    }

    fn input(&self) -> io::Result<File> {
        /// Not to be executed, whatever `vm.memfd_noexec` has as its default; Linux 6.3, not yet named in nix.
        const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x8);
        let flags = MFdFlags::MFD_CLOEXEC;
        let memfd = match memfd_create(c"aril-cni", flags | MFD_NOEXEC_SEAL) {
            Err(Errno::EINVAL) => memfd_create(c"aril-cni", flags)?,
            other => other?,
        };
        let mut file = File::from(memfd);
        file.write_all(self.input)?;
        file.rewind()?;
        Ok(file)
    }

    fn spawn(&self, input: &File, start: Instant) -> Result<Child, Failure> {
        loop {
            let input = input.try_clone().map_err(broken("keep its input in memory"))?;
            // No pre_exec: without it the standard library uses posix_spawn, which copies no page tables.
            let mut command = Command::new(self.program);
            command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
            command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
            match command.spawn() {
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && start.elapsed() < BUSY.min(self.limit) => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                other => {
                    let reason = |e| Failure::Unusable(format!("{} cannot be executed: {e}", self.program.display()));
                    return other.map_err(reason);
                }
            }
        }
    }
}

/// What one pipe brought.
struct Sink {
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
    /// Bytes to keep.
    keep: usize,
    /// Bytes that came.
    seen: usize,
    /// Bytes that may come.
    most: usize,
}

impl Sink {
    fn new(pipe: Option<OwnedFd>, keep: usize, most: usize) -> Self {
        Self { pipe, kept: Vec::new(), keep, seen: 0, most }
    }

    /// Takes what is there, but not much more than may be.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while let Some(pipe) = &self.pipe {
            match nix::unistd::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    let room = self.keep - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..n.min(room)]);
                    self.seen += n;
                    if self.seen > self.most {
                        return Ok(());
                    }
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// A running program; dropped, it is killed with its process group and reaped.
struct Running {
    child: Option<Child>,
    pidfd: OwnedFd,
}

impl Running {
    fn new(mut child: Child) -> Result<Self, Failure> {
        match pidfd_open(child.id().cast_signed()) {
            Ok(pidfd) => Ok(Self { child: Some(child), pidfd }),
            Err(e) => {
                kill_group(&child);
                child.wait().map(drop).ok();
                Err(broken("open its pidfd")(e))
            }
        }
    }

    fn take_output(&mut self) -> Sink {
        let pipe = self.child.as_mut().and_then(|child| child.stdout.take());
        Sink::new(pipe.map(OwnedFd::from), MOST_OUTPUT, MOST_OUTPUT)
    }

    fn take_log(&mut self) -> Sink {
        let pipe = self.child.as_mut().and_then(|child| child.stderr.take());
        Sink::new(pipe.map(OwnedFd::from), KEPT_LOG, MOST_LOG)
    }

    /// Waits until there is something to read, or it has ended: whether it has.
    fn poll(&self, sinks: &[&Sink], left: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(sinks.iter().filter_map(|s| s.pipe.as_ref()).map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
        // Rounded up: a wait of nothing would spin for the last part of a millisecond.
        let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        match poll(&mut fds, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
            Ok(_) => Ok(fds[0].any().unwrap_or(false)),
            Err(Errno::EINTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the status of what has ended, and ends what is left of its group.
    fn finish(mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Ok(ExitStatus::from_raw(0)) };
        // Before it is reaped: until then its number, which is the group's, is nobody else's.
        kill_group(&child);
        child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_group(&child);
        let is_gone = self.poll(&[], DEATH).unwrap_or(false);
        let mut reap = move || child.wait().map(drop).ok();
        if is_gone {
            reap();
        } else {
            // Stuck in the kernel: the pod must not be, and a zombie must not remain.
            std::thread::spawn(reap);
        }
    }
}

/// Errors mean that nothing is left of the group.
fn kill_group(child: &Child) {
    killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).ok();
}

fn nonblocking(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn broken(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |e| Failure::Broken(format!("{what}: {e}"))
}
