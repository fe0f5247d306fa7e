//! What v1 asks for: cpusets that start empty, and limits whose order matters.
//!
//! The limits of cpu, cpuset, memory and pids are written by the controllers of cgroups-rs. Each such write opens the
//! file by path, through the descriptor of the cgroup's directory (`/proc/self/fd/<n>/cpu.shares`): 7.8 µs where a
//! write relative to the descriptor takes 4.9 µs, so some 20 µs for all limits of a container, and 13 kB in the
//! static shim. Device rules are a dozen writes to one file, which [`super::devices`] opens once: 26 µs for twelve.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use nix::errno::Errno;

use super::detect::Hierarchy;
use super::error::CgroupError;
use super::file;
use super::limits::{Journal, given, max_or, text};
use super::path::CgroupPath;
use crate::plan;

const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Fills the CPUs and memory nodes of a cpuset cgroup, and of those above it, from the next one above that has
/// some. Nobody can enter a v1 cpuset without them (`ENOSPC`), and one just made (`new`) has none.
pub(super) fn fill_cpuset(
    h: &Hierarchy,
    path: &CgroupPath,
    leaf: BorrowedFd<'_>,
    new: bool,
) -> Result<(), CgroupError> {
    let mut chain = Chain {
        h,
        leaf,
        relatives: std::iter::once(path.relative()).chain(path.ancestors().rev()).collect(),
        above: Vec::new(),
    };
    CPUSET_FILES.iter().try_for_each(|name| chain.fill(name, new))
}

/// A cgroup and those above it, opened once for both files, and only as far up as is needed.
struct Chain<'a> {
    h: &'a Hierarchy,
    leaf: BorrowedFd<'a>,
    /// Innermost first, without the root.
    relatives: Vec<&'a str>,
    above: Vec<OwnedFd>,
}

impl Chain<'_> {
    /// From the bottom up until a value is found, then down again: one that is set has all above it set, because the
    /// kernel wants a cpuset to be part of the one above.
    fn fill(&mut self, name: &str, new: bool) -> Result<(), CgroupError> {
        let mut level = usize::from(new);
        let value = loop {
            let text = file::read(self.dir(level, name)?, name).map_err(|e| self.fail("read", level, name, e))?;
            let value = text.trim();
            if !value.is_empty() {
                break value.to_owned();
            }
            if level == self.relatives.len() {
                return Err(self.fail("read", level, name, Errno::ENODATA));
            }
            level += 1;
        };
        while level > 0 {
            level -= 1;
            file::write(self.dir(level, name)?, name, &value).map_err(|e| self.fail("set", level, name, e))?;
        }
        Ok(())
    }

    /// The directory `level` steps above the leaf; past the last one, the root.
    fn dir(&mut self, level: usize, name: &str) -> Result<BorrowedFd<'_>, CgroupError> {
        if level == 0 {
            return Ok(self.leaf);
        }
        if level == self.relatives.len() {
            return Ok(self.h.root());
        }
        while self.above.len() < level {
            let next = self.above.len() + 1;
            let opened = file::open_dir(self.h.root(), self.relatives[next]);
            self.above.push(opened.map_err(|e| self.fail("open", next, name, e))?);
        }
        Ok(self.above[level - 1].as_fd())
    }

    fn fail(&self, step: &'static str, level: usize, name: &str, errno: Errno) -> CgroupError {
        let relative = self.relatives.get(level).copied().unwrap_or("");
        CgroupError::kernel(step, format!("{name} of cgroup {}", self.h.object(relative)), errno)
    }
}

/// cpu.shares, the CFS quota and its burst.
pub(super) fn cpu(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    let controller = |dir| CpuController::new(dir, PathBuf::new(), false);
    if let Some(shares) = given(r.cpu_shares) {
        // The kernel raises and lowers it into 2..=262144 by itself.
        j.set_by(i, "cpu.shares", &shares.to_string(), |d| controller(d).set_shares(shares.unsigned_abs()))?;
    }
    let (quota, period) = (given(r.cpu_quota_us), given(r.cpu_period_us));
    let mut burst = given(r.cpu_burst_us).map(|b| b.to_string());
    // A burst above the old quota has to wait for the new one; one below the new quota may have to come first.
    if let Some(value) = &burst {
        match j.set(i, "cpu.cfs_burst_us", value) {
            Err(e) if e.errno() == Some(Errno::EINVAL) && quota.is_some() => {}
            done => {
                done?;
                burst = None;
            }
        }
    }
    let set_period = |j: &mut Journal<'_>| match period {
        Some(p) => j.set_by(i, "cpu.cfs_period_us", &p.to_string(), |d| controller(d).set_cfs_period(p.unsigned_abs())),
        None => Ok(()),
    };
    // The ratio may not exceed the parent's at any moment; if the new period does with the old quota, the new quota
    // with the old period does not.
    let period_later = match set_period(j) {
        Err(e) if e.errno() == Some(Errno::EINVAL) && quota.is_some() => true,
        done => {
            done?;
            false
        }
    };
    if let Some(q) = quota {
        j.set_by(i, "cpu.cfs_quota_us", &q.to_string(), |d| controller(d).set_cfs_quota(q))?;
    }
    if period_later {
        set_period(j)?;
    }
    burst.map_or(Ok(()), |value| j.set(i, "cpu.cfs_burst_us", &value))
}

/// cpuset.cpus and cpuset.mems.
pub(super) fn cpuset(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    let controller = |dir| CpuSetController::new(dir, PathBuf::new(), false);
    if let Some(cpus) = text(r.cpuset_cpus.as_ref()) {
        j.set_by(i, "cpuset.cpus", cpus, |d| controller(d).set_cpus(cpus))?;
    }
    if let Some(mems) = text(r.cpuset_mems.as_ref()) {
        j.set_by(i, "cpuset.mems", mems, |d| controller(d).set_mems(mems))?;
    }
    Ok(())
}

/// Memory, memory plus swap, and the soft limit. Memory may not be above memory plus swap at any moment, so the
/// order depends on whether the latter grows.
pub(super) fn memory(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    let controller = |dir| MemController::new(dir, PathBuf::new(), false);
    let limit = given(r.memory_limit_bytes);
    // Unlimited memory within limited memory plus swap is none.
    let swap = given(r.memory_swap_bytes).or(limit.filter(|l| *l == -1));
    let swap = swap_counted(j, i, given(r.memory_swap_bytes).is_some(), swap)?;
    let set_limit = |j: &mut Journal<'_>| match limit {
        Some(l) => j.set_by(i, LIMIT, &l.to_string(), |d| controller(d).set_limit(l)),
        None => Ok(()),
    };
    let Some((new, old)) = swap else {
        set_limit(j)?;
        return soft_limit(j, i, r);
    };
    let set_swap =
        |j: &mut Journal<'_>| j.set_by(i, MEMSW_LIMIT, &new.to_string(), |d| controller(d).set_memswap_limit(new));
    if new == -1 || new.unsigned_abs() >= old {
        set_swap(j)?;
        set_limit(j)?;
    } else {
        set_limit(j)?;
        set_swap(j)?;
    }
    soft_limit(j, i, r)
}

const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW_LIMIT: &str = "memory.memsw.limit_in_bytes";

/// The new and the old limit of memory plus swap; `None` if there is none to set, or the kernel does not count swap.
fn swap_counted(
    j: &mut Journal<'_>,
    i: usize,
    asked: bool,
    new: Option<i64>,
) -> Result<Option<(i64, u64)>, CgroupError> {
    let Some(new) = new else { return Ok(None) };
    match j.read(i, MEMSW_LIMIT) {
        Ok(old) => Ok(Some((new, old.parse().unwrap_or(u64::MAX)))),
        Err(e) if e.errno() == Some(Errno::ENOENT) => {
            if asked && new != -1 {
                j.warn(
                    "the kernel does not count swap: the limit of memory plus swap is not applied; boot with \
                     swapaccount=1"
                        .to_owned(),
                );
            }
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn soft_limit(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    let Some(soft) = given(r.memory_reservation_bytes) else { return Ok(()) };
    let write = |dir| MemController::new(dir, PathBuf::new(), false).set_soft_limit(soft);
    j.set_by(i, "memory.soft_limit_in_bytes", &soft.to_string(), write)
}

/// pids.max.
pub(super) fn pids(j: &mut Journal<'_>, i: usize, limit: i64) -> Result<(), CgroupError> {
    let max = if limit < 0 { MaxValue::Max } else { MaxValue::Value(limit) };
    j.set_by(i, "pids.max", &max_or(limit), |d| PidController::new(d, PathBuf::new(), false).set_pid_max(max))
}
