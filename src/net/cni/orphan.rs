//! Plugins of a daemon that died. They go on by themselves, and would connect a pod after it was taken away, or collect
//! as garbage what a pod of the next daemon has just got: so that one ends them before it calls any.
//!
//! Every plugin, and whatever it starts, has a mark in its environment: the directory of the books it works for.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getsid};
use tracing::warn;

use crate::sys::process::{pidfd_open, pidfd_signal};

/// The variable with the mark.
pub(super) const MARK: &str = "ARIL_CNI_BOOKS";
/// Most of an environment that is read.
const LONGEST: u64 = 256 << 10;
/// How long a search may take: reading of a process that is stuck in the kernel may wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(2);

/// Ends all plugins that work for these books.
pub(super) fn end(books: &Path) {
    let (done, wait) = mpsc::channel();
    let books: PathBuf = books.to_owned();
    let search = move || {
        end_here(&books);
        // Whoever waited may have gone on.
        done.send(()).ok();
    };
    let spawned = std::thread::Builder::new().name("net orphans".to_owned()).spawn(search);
    if spawned.is_err() || wait.recv_timeout(PATIENCE).is_err() {
        warn!("the search for CNI plugins of an earlier daemon has not ended: one may still be at work");
    }
}

fn end_here(books: &Path) {
    let begun = Instant::now();
    let mark = [MARK.as_bytes(), b"=", books.as_os_str().as_bytes()].concat();
    // What one starts before it is killed is found by the next round.
    while begun.elapsed() < PATIENCE && kill_all(&mark) > 0 {}
}

/// Kills those that are there; returns how many there were.
fn kill_all(mark: &[u8]) -> usize {
    let list = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = list.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| may_be_plugin(pid) && kill(pid, mark)).count()
}

/// A plugin has a process group of its own in the daemon's session. What leads its own session is none, as most processes
/// of containers, or was started to stay.
fn may_be_plugin(pid: i32) -> bool {
    let pid = Pid::from_raw(pid);
    matches!((getpgid(Some(pid)), getsid(Some(pid))), (Ok(group), Ok(session)) if group != session)
}

fn kill(pid: i32, mark: &[u8]) -> bool {
    // First, so that what is read and what is killed are one process.
    let Ok(pidfd) = pidfd_open(pid) else { return false };
    if !has_mark(pid, mark) || pidfd_signal(pidfd.as_fd(), Signal::SIGKILL as i32).is_err() {
        return false;
    }
    warn!(pid, "a CNI plugin of an earlier daemon was still at work, and is ended");
    let timeout = PollTimeout::try_from(DEATH).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout).ok();
    true
}

fn has_mark(pid: i32, mark: &[u8]) -> bool {
    let mut environment = Vec::new();
    let read =
        File::open(format!("/proc/{pid}/environ")).and_then(|file| file.take(LONGEST).read_to_end(&mut environment));
    read.is_ok() && environment.split(|byte| *byte == 0).any(|variable| variable == mark)
}
