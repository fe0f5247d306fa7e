//! Writing limits: all of them or none.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use cgroups_rs::fs::error::Error as FsError;
use nix::errno::Errno;

use super::detect::Version;
use super::error::CgroupError;
use super::{Cgroup, file, v1, v2};
use crate::plan;

impl Cgroup {
    /// Sets the limits that are given and leaves the others, for a new cgroup and for a running one.
    ///
    /// Amounts are in bytes, microseconds and v1 shares as the fields' names say; -1 means no limit and 0 that the
    /// field is not given, as in the OCI runtime specification. v1 and v2 files are written according to which
    /// hierarchy carries the controller. Returns a sentence for each limit that this host cannot hold.
    ///
    /// # Errors
    /// Whatever fails, the limits are what they were before ([`CgroupError::NotRestored`] if that failed too).
    /// [`CgroupError::Value`] for values that make no sense, [`CgroupError::BelowUsage`] for a memory limit below
    /// what is in use, [`CgroupError::Kernel`] for what the kernel refuses.
    pub fn apply(&self, r: &plan::Resources) -> Result<Vec<String>, CgroupError> {
        check(r)?;
        let mut journal = Journal { cgroup: self, undo: Vec::new(), warnings: Vec::new() };
        match journal.apply(r) {
            Ok(()) => Ok(journal.warnings),
            Err(e) => Err(journal.unwind(e)),
        }
    }
}

/// A number that is given: not absent and not 0.
pub(super) fn given(field: Option<i64>) -> Option<i64> {
    field.filter(|n| *n != 0)
}

/// A text that is given.
pub(super) fn text(field: Option<&String>) -> Option<&str> {
    field.map(String::as_str).filter(|s| !s.is_empty())
}

/// What the kernel would misread or answer with a bare EINVAL.
fn check(r: &plan::Resources) -> Result<(), CgroupError> {
    let refuse = |what: String, reason: &str| Err(CgroupError::Value { what, reason: reason.to_owned() });
    for (name, value, least) in [
        ("cpu_shares", r.cpu_shares, 0),
        ("cpu_period_us", r.cpu_period_us, 0),
        ("cpu_burst_us", r.cpu_burst_us, 0),
        ("cpu_quota_us", r.cpu_quota_us, -1),
        ("memory_limit_bytes", r.memory_limit_bytes, -1),
        ("memory_swap_bytes", r.memory_swap_bytes, -1),
        ("memory_reservation_bytes", r.memory_reservation_bytes, -1),
        ("pids_limit", r.pids_limit, -1),
    ] {
        if value.is_some_and(|v| v < least) {
            return refuse(format!("{name} {}", value.unwrap_or(0)), "it is negative");
        }
    }
    for (name, list) in [("cpuset_cpus", &r.cpuset_cpus), ("cpuset_mems", &r.cpuset_mems)] {
        let list = text(list.as_ref()).unwrap_or("");
        if list.len() > 4096 || !list.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-') {
            return refuse(format!("{name} {:?}", super::error::clipped(list)), "it is no list like 0-3,7");
        }
    }
    if let (Some(limit), Some(swap)) = (given(r.memory_limit_bytes), given(r.memory_swap_bytes))
        && swap != -1
        && (limit == -1 || swap < limit)
    {
        return refuse(format!("memory_swap_bytes {swap}"), "it is memory plus swap and below memory_limit_bytes");
    }
    Ok(())
}

/// What was written, so that it can be put back.
pub(super) struct Journal<'a> {
    cgroup: &'a Cgroup,
    undo: Vec<Undo>,
    warnings: Vec<String>,
}

struct Undo {
    hierarchy: usize,
    name: String,
    old: String,
}

impl Journal<'_> {
    fn apply(&mut self, r: &plan::Resources) -> Result<(), CgroupError> {
        let cpu = given(r.cpu_shares).or(given(r.cpu_quota_us)).or(given(r.cpu_period_us)).or(given(r.cpu_burst_us));
        let cpuset = text(r.cpuset_cpus.as_ref()).or(text(r.cpuset_mems.as_ref()));
        let memory = given(r.memory_limit_bytes).or(given(r.memory_swap_bytes)).or(given(r.memory_reservation_bytes));
        if let Some(i) = self.carrying("cpuset", cpuset.is_some()) {
            if self.is_v2(i) { v2::cpuset(self, i, r)? } else { v1::cpuset(self, i, r)? }
        }
        if let Some(i) = self.carrying("cpu", cpu.is_some()) {
            if self.is_v2(i) { v2::cpu(self, i, r)? } else { v1::cpu(self, i, r)? }
        }
        if let Some(i) = self.carrying("memory", memory.is_some()) {
            if self.is_v2(i) { v2::memory(self, i, r)? } else { v1::memory(self, i, r)? }
        }
        let pids = given(r.pids_limit);
        if let (Some(i), Some(limit)) = (self.carrying("pids", pids.is_some()), pids) {
            if self.is_v2(i) { self.set(i, "pids.max", &max_or(limit))? } else { v1::pids(self, i, limit)? }
        }
        if let Some(i) = self.carrying("hugetlb", !r.hugepages.is_empty()) {
            self.hugepages(i, &r.hugepages)?;
        }
        if r.unified.is_empty() { Ok(()) } else { v2::unified(self, &r.unified) }
    }

    /// The number of the hierarchy that carries a controller, with a warning if it is wanted and none does.
    fn carrying(&mut self, controller: &str, wanted: bool) -> Option<usize> {
        if !wanted {
            return None;
        }
        let position = self.cgroup.hierarchies.position(controller);
        if position.is_none() {
            self.warn(format!(
                "no cgroup hierarchy carries the {controller} controller: its limits are not applied; \
                 enable it on the kernel command line or mount it"
            ));
        }
        position
    }

    pub(super) fn warn(&mut self, sentence: String) {
        self.warnings.push(sentence);
    }

    pub(super) fn is_v2(&self, hierarchy: usize) -> bool {
        self.cgroup.hierarchies.get(hierarchy).is_v2()
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        self.cgroup
    }

    /// Enables a controller of the v2 hierarchy where create did not: beside v1, v2 is mostly for tracking.
    ///
    /// There a cgroup above may have processes of its own; that costs the limit, not the container.
    fn enable_beside_v1(&mut self, hierarchy: usize, controller: &str) -> Result<bool, CgroupError> {
        let cgroup = self.cgroup;
        if !self.is_v2(hierarchy) || cgroup.hierarchies.version() != Version::Hybrid {
            return Ok(true);
        }
        match v2::enable_above(cgroup.hierarchies.get(hierarchy), &cgroup.path, &[controller]) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EBUSY) => {
                self.warn(format!("{e}; the {controller} limits are not applied"));
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// As [`Self::enable_beside_v1`], an error where that is a warning.
    pub(super) fn require_beside_v1(&mut self, hierarchy: usize, controller: &str) -> Result<(), CgroupError> {
        let cgroup = self.cgroup;
        if cgroup.hierarchies.version() != Version::Hybrid {
            return Ok(());
        }
        v2::enable_above(cgroup.hierarchies.get(hierarchy), &cgroup.path, &[controller])
    }

    fn hugepages(&mut self, i: usize, limits: &[plan::HugepageLimit]) -> Result<(), CgroupError> {
        for limit in limits {
            let digits = limit.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
            if !matches!(&limit.page_size[digits.len()..], "KB" | "MB" | "GB")
                || digits.is_empty()
                || !digits.bytes().all(|b| b.is_ascii_digit())
            {
                return Err(CgroupError::Value {
                    what: format!("hugepage size {:?}", super::error::clipped(&limit.page_size)),
                    reason: "it is none of the form 2MB, 1GB".to_owned(),
                });
            }
        }
        if !self.enable_beside_v1(i, "hugetlb")? {
            return Ok(());
        }
        let file = if self.is_v2(i) { "max" } else { "limit_in_bytes" };
        for limit in limits {
            let (size, value) = (&limit.page_size, limit.limit_bytes.to_string());
            match self.set(i, &format!("hugetlb.{size}.{file}"), &value) {
                // This size is not one of the kernel's, so nobody can use a page of it.
                Err(e) if e.errno() == Some(Errno::ENOENT) && limit.limit_bytes == 0 => continue,
                Err(e) if e.errno() == Some(Errno::ENOENT) => {
                    self.warn(format!("the kernel has no huge pages of {size}: their limit is not applied"));
                    continue;
                }
                done => done?,
            }
            // Reservations are counted apart since Linux 5.7.
            match self.set(i, &format!("hugetlb.{size}.rsvd.{file}"), &value) {
                Err(e) if e.errno() == Some(Errno::ENOENT) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// The cgroup's directory; `ENOENT` if it does not exist in that hierarchy.
    pub(super) fn dir(&self, hierarchy: usize) -> Result<BorrowedFd<'_>, CgroupError> {
        self.cgroup.dir(hierarchy).ok_or_else(|| {
            let object = self.cgroup.hierarchies.get(hierarchy).object(self.cgroup.path.relative());
            CgroupError::kernel("open cgroup", object, Errno::ENOENT)
        })
    }

    /// "memory.max of cgroup unified:/a".
    pub(super) fn object(&self, hierarchy: usize, name: &str) -> String {
        let cgroup = self.cgroup.hierarchies.get(hierarchy).object(self.cgroup.path.relative());
        format!("{name} of cgroup {cgroup}")
    }

    /// What a file says now, without the line end.
    pub(super) fn read(&self, hierarchy: usize, name: &str) -> Result<String, CgroupError> {
        match file::read(self.dir(hierarchy)?, name) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(errno) => Err(CgroupError::Kernel {
                step: "read",
                object: self.object(hierarchy, name),
                errno,
                hint: hint(name, errno),
            }),
        }
    }

    /// Writes a value, noting the old one.
    pub(super) fn set(&mut self, hierarchy: usize, name: &str, value: &str) -> Result<(), CgroupError> {
        let dir = self.dir(hierarchy)?;
        let old = self.old(hierarchy, name)?;
        if old.as_deref() == Some(value) {
            return Ok(());
        }
        let result = file::write(dir, name, value);
        self.note(hierarchy, name, value, old, result)
    }

    /// Writes a value through a controller of cgroups-rs, which is given the cgroup's directory as a path through our
    /// own descriptor: nothing is looked up by name again.
    pub(super) fn set_by(
        &mut self,
        hierarchy: usize,
        name: &str,
        value: &str,
        write: impl FnOnce(PathBuf) -> Result<(), FsError>,
    ) -> Result<(), CgroupError> {
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir(hierarchy)?.as_raw_fd()));
        let old = self.old(hierarchy, name)?;
        if old.as_deref() == Some(value) {
            return Ok(());
        }
        let result = write(dir).map_err(|e| errno_of(&e));
        self.note(hierarchy, name, value, old, result)
    }

    /// The old value; `None` for a file that cannot be read.
    fn old(&self, hierarchy: usize, name: &str) -> Result<Option<String>, CgroupError> {
        match self.read(hierarchy, name) {
            Ok(old) => Ok(Some(old)),
            Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::EACCES | Errno::EOPNOTSUPP)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn note(
        &mut self,
        hierarchy: usize,
        name: &str,
        value: &str,
        old: Option<String>,
        result: nix::Result<()>,
    ) -> Result<(), CgroupError> {
        if let Err(errno) = result {
            let object = format!("{} to {:?}", self.object(hierarchy, name), super::error::clipped(value));
            return Err(CgroupError::Kernel { step: "set", object, errno, hint: hint(name, errno) });
        }
        self.undo.extend(old.map(|old| Undo { hierarchy, name: name.to_owned(), old }));
        Ok(())
    }

    /// Puts everything back, newest first, past failures.
    fn unwind(mut self, cause: CgroupError) -> CgroupError {
        let mut stuck = None;
        while let Some(Undo { hierarchy, name, old }) = self.undo.pop() {
            let Some(dir) = self.cgroup.dir(hierarchy) else { continue };
            // A write of nothing never reaches the kernel's parser.
            let old = if old.is_empty() { "\n" } else { &old };
            if let Err(errno) = file::write(dir, &name, old) {
                stuck.get_or_insert((self.object(hierarchy, &name), errno));
            }
        }
        match stuck {
            None => cause,
            Some((object, errno)) => CgroupError::NotRestored { cause: Box::new(cause), object, errno },
        }
    }
}

/// "max" for a negative number.
pub(super) fn max_or(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// cgroups-rs keeps the I/O error as its source.
fn errno_of(e: &FsError) -> Errno {
    std::error::Error::source(e)
        .and_then(|e| e.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error)
        .map_or(Errno::EIO, Errno::from_raw)
}

/// What an answer of the kernel means for a file, and what to try.
fn hint(name: &str, errno: Errno) -> &'static str {
    match (name, errno) {
        (_, Errno::ENODEV) => "; the cgroup was removed",
        (_, Errno::ENOENT) => "; the kernel has no such file here, or the controller is not enabled for the cgroup",
        (_, Errno::EBUSY) if name.starts_with("memory.") => {
            "; more is in use and cannot be reclaimed: stop something in it or choose a higher limit"
        }
        ("memory.limit_in_bytes" | "memory.memsw.limit_in_bytes", Errno::EINVAL) => {
            "; memory must not be above memory plus swap: set both"
        }
        ("cpu.cfs_quota_us" | "cpu.cfs_period_us" | "cpu.max", Errno::EINVAL) => {
            "; the quota is at least 1000, the period 1000 to 1000000, and their ratio not above the parent's"
        }
        ("cpu.cfs_burst_us" | "cpu.max.burst", Errno::EINVAL) => "; the burst is not above the quota",
        ("cpuset.cpus" | "cpuset.mems", Errno::EACCES | Errno::EINVAL | Errno::ERANGE) => {
            "; choose from those of the cgroup above and of the machine"
        }
        ("cpuset.cpus" | "cpuset.mems", Errno::EBUSY) => "; cgroups below use what would be taken away",
        ("cpuset.cpus" | "cpuset.mems", Errno::ENOSPC) => "; it has processes and needs at least one",
        _ => "",
    }
}
