//! The OOM score of a container that runs: of each process in it, as children inherit it and the cgroup has none.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::cgroup::Cgroup;
use super::error::{Doing, InStep, RuntimeError};
use crate::sys::path::open_proc;

const STEP: &str = "oom_score_adj";
/// How often processes born meanwhile are looked for. Each round reaches the parents of the next one's.
const MAX_ROUNDS: u32 = 100;
/// How many processes are held at a time: few beside the limit of open files.
const BATCH: usize = 128;

/// Sets the score of every process in the cgroup and below it. Without `CAP_SYS_RESOURCE` it cannot be lowered below
/// what it was at first: a warning, no failure.
pub(super) fn set_all(proc: BorrowedFd<'_>, cgroup: &Cgroup, score: i32) -> Result<Vec<String>, RuntimeError> {
    let mut done = BTreeSet::new();
    let mut denied = 0_usize;
    for _ in 0..MAX_ROUNDS {
        let fresh: Vec<i32> = cgroup.pids()?.into_iter().filter(|pid| !done.contains(pid)).collect();
        if fresh.is_empty() {
            break;
        }
        for batch in fresh.chunks(BATCH) {
            denied += set_batch(proc, cgroup, batch, score)?;
        }
        done.extend(fresh);
    }
    Ok(match denied {
        0 => Vec::new(),
        some => vec![format!(
            "oom_score_adj of {some} processes stays above {score}: lowering it needs CAP_SYS_RESOURCE, which this host \
             lacks"
        )],
    })
}

/// As for signals: processes are taken hold of by number, and those are meant whose number is listed still. Returns for
/// how many it was not allowed.
fn set_batch(proc: BorrowedFd<'_>, cgroup: &Cgroup, pids: &[i32], score: i32) -> Result<usize, RuntimeError> {
    let mut held: Vec<(i32, OwnedFd)> = Vec::with_capacity(pids.len());
    for &pid in pids {
        let dir = open_proc(proc, &PathBuf::from(pid.to_string()), OFlag::O_PATH | OFlag::O_DIRECTORY);
        held.extend(unless_gone(dir).doing(|| format!("open process {pid}")).in_step(STEP)?.map(|dir| (pid, dir)));
    }
    let listed: BTreeSet<i32> = cgroup.pids()?.into_iter().collect();
    let mut denied = 0;
    for (pid, dir) in held.iter().filter(|(pid, _)| listed.contains(pid)) {
        match unless_gone(set_one(dir.as_fd(), score)) {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => denied += 1,
            failed => drop(failed.doing(|| format!("set oom_score_adj of process {pid} to {score}")).in_step(STEP)?),
        }
    }
    Ok(denied)
}

fn set_one(process: BorrowedFd<'_>, score: i32) -> io::Result<()> {
    let file = open_proc(process, "oom_score_adj".as_ref(), OFlag::O_WRONLY)?;
    File::from(file).write_all(score.to_string().as_bytes())
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if [Errno::ENOENT, Errno::ESRCH].map(|errno| Some(errno as i32)).contains(&e.raw_os_error()) => Ok(None),
        other => other.map(Some),
    }
}
