//! Listing and killing the processes of a cgroup and of all below it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::error::CgroupError;
use super::{Cgroup, file};
use crate::sys::process::{pidfd_open, pidfd_signal};

/// Deepest nesting looked into.
const MAX_DEPTH: u32 = 64;
/// Most cgroups looked into in one listing.
const MAX_CGROUPS: u32 = 100_000;
/// How often processes that appear while others are killed are listed again.
const MAX_ROUNDS: u32 = 1000;
/// How many processes are held by pidfd at a time: few beside the limit of open files.
const BATCH: usize = 128;

impl Cgroup {
    /// The processes in it and below it, sorted; zombies are not among them.
    ///
    /// # Errors
    /// [`CgroupError::Kernel`]; a cgroup that is gone has none.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        Ok(self.pids_in(self.hierarchies.tracking())?.into_iter().collect())
    }

    fn pids_in(&self, hierarchy: usize) -> Result<BTreeSet<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        let Some(dir) = self.dir(hierarchy) else { return Ok(pids) };
        let mut budget = MAX_CGROUPS;
        collect(dir, MAX_DEPTH, &mut budget, &mut pids).map_err(|errno| {
            let object = self.hierarchies.get(hierarchy).object(self.path.relative());
            CgroupError::kernel("list the processes of cgroup", object, errno)
        })?;
        Ok(pids)
    }

    /// Sends a signal to every process in it and below it; those born meanwhile may be missed.
    ///
    /// Returns how many got it.
    ///
    /// # Errors
    /// [`CgroupError::Value`] if the number is no signal; [`CgroupError::Kernel`] if one could not be signalled.
    pub fn signal_all(&self, number: i32) -> Result<usize, CgroupError> {
        let signal = Signal::try_from(number).map_err(|_| CgroupError::Value {
            what: format!("signal {number}"),
            reason: "it is no signal of this system".to_owned(),
        })?;
        let tracking = self.hierarchies.tracking();
        self.signal_set(tracking, &self.pids_in(tracking)?, signal)
    }

    /// A number read from the cgroup may belong to somebody else a moment later. So processes are taken hold of by
    /// number, and those are signalled whose number is listed still: then it is them, or somebody who is in it too.
    fn signal_set(&self, hierarchy: usize, pids: &BTreeSet<i32>, signal: Signal) -> Result<usize, CgroupError> {
        let fail = |pid: i32, e: &std::io::Error| {
            let object = format!("process {pid} of cgroup {}", self.path.as_str());
            CgroupError::kernel("signal", object, e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        };
        let gone = |e: &std::io::Error| e.raw_os_error() == Some(Errno::ESRCH as i32);
        let numbers: Vec<i32> = pids.iter().copied().collect();
        let mut reached = 0;
        for batch in numbers.chunks(BATCH) {
            let mut held: Vec<(i32, OwnedFd)> = Vec::with_capacity(batch.len());
            for &pid in batch {
                match pidfd_open(pid) {
                    Ok(pidfd) => held.push((pid, pidfd)),
                    Err(e) if gone(&e) => {}
                    Err(e) => return Err(fail(pid, &e)),
                }
            }
            let listed = self.pids_in(hierarchy)?;
            for (pid, pidfd) in held.iter().filter(|(pid, _)| listed.contains(pid)) {
                match pidfd_signal(pidfd.as_fd(), signal as i32) {
                    Ok(()) => reached += 1,
                    Err(e) if gone(&e) => {}
                    Err(e) => return Err(fail(*pid, &e)),
                }
            }
        }
        Ok(reached)
    }

    /// Sends SIGKILL to everything in it and below it, nothing escaping by forking; does not wait for the deaths.
    ///
    /// # Errors
    /// [`CgroupError::Kernel`]; [`CgroupError::Unkillable`] on kernels without `cgroup.kill` if processes fork
    /// faster than they die. A cgroup that is gone is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let killed = self.send_kill();
        // A process frozen on v1 dies only once it is thawed.
        if let Some(dir) = self.directory("freezer") {
            thaw(dir, MAX_DEPTH);
        }
        killed
    }

    fn send_kill(&self) -> Result<(), CgroupError> {
        if let Some(unified) = self.hierarchies.unified().and_then(|i| self.dir(i)) {
            match file::write(unified, "cgroup.kill", "1") {
                Ok(()) => return Ok(()),
                // ENOENT: before Linux 5.14. EOPNOTSUPP: a threaded cgroup has no processes of its own.
                Err(Errno::ENOENT | Errno::EOPNOTSUPP) => {}
                Err(Errno::ENODEV) => return Ok(()),
                Err(errno) => {
                    let object = format!("unified:{}", self.path.as_str());
                    return Err(CgroupError::kernel("kill cgroup", object, errno));
                }
            }
        }
        self.kill_one_by_one(self.hierarchies.tracking())
    }

    /// As [`Cgroup::kill`], and everything that is in it in any other hierarchy of its own.
    ///
    /// For a cgroup that stays busy: somebody put a process into it in one hierarchy and not where we look.
    ///
    /// # Errors
    /// As [`Cgroup::kill`]; all hierarchies are tried.
    pub fn kill_everywhere(&self) -> Result<(), CgroupError> {
        let mut first = self.kill();
        for (i, place) in self.dirs.iter().enumerate() {
            if place.as_ref().is_some_and(|p| p.own) {
                first = first.and(self.kill_one_by_one(i));
            }
        }
        first
    }

    /// A process with a SIGKILL pending cannot fork, so once a listing shows nobody new, all are doomed.
    pub(super) fn kill_one_by_one(&self, hierarchy: usize) -> Result<(), CgroupError> {
        let mut doomed = BTreeSet::new();
        for _ in 0..MAX_ROUNDS {
            let pids = self.pids_in(hierarchy)?;
            self.signal_set(hierarchy, &pids, Signal::SIGKILL)?;
            if pids.is_subset(&doomed) {
                return Ok(());
            }
            doomed = pids;
        }
        Err(CgroupError::Unkillable { path: self.path.as_str().to_owned(), rounds: MAX_ROUNDS })
    }
}

/// Thaws a v1 cgroup that is frozen, and those below it that are by themselves. What cannot be thawed, or is gone, is
/// left to whoever waits for the processes to end.
fn thaw(dir: BorrowedFd<'_>, depth: u32) {
    let Ok(state) = file::read(dir, "freezer.state") else { return };
    if state.trim() == "THAWED" || depth == 0 {
        return;
    }
    file::write(dir, "freezer.state", "THAWED").ok();
    for child in file::children(dir).unwrap_or_default() {
        if let Ok(child) = file::open_dir(dir, &child) {
            thaw(child.as_fd(), depth - 1);
        }
    }
}

fn collect(dir: BorrowedFd<'_>, depth: u32, budget: &mut u32, pids: &mut BTreeSet<i32>) -> nix::Result<()> {
    *budget = budget.checked_sub(1).ok_or(Errno::E2BIG)?;
    let text = match file::read(dir, "cgroup.procs") {
        // Removed meanwhile.
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
        // A threaded cgroup: its processes are listed by the cgroup above.
        Err(Errno::EOPNOTSUPP) => String::new(),
        text => text?,
    };
    // 0 is a process of another PID namespace, which cannot be named from here.
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    let depth = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
    for child in gone_is_empty(file::children(dir))? {
        match file::open_dir(dir, &child) {
            Ok(child) => collect(child.as_fd(), depth, budget, pids)?,
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn gone_is_empty(children: nix::Result<Vec<String>>) -> nix::Result<Vec<String>> {
    match children {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(Vec::new()),
        other => other,
    }
}
