//! Entering a cgroup.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::error::CgroupError;
use super::{Cgroup, file};

/// The way into a cgroup, opened beforehand: for a child between clone and exec, which then needs no path, no
/// `/proc` and no permission but the descriptors.
#[derive(Debug)]
pub struct Entry {
    tasks: Vec<Arc<OwnedFd>>,
    unified: Option<Arc<OwnedFd>>,
}

impl Entry {
    /// The cgroup's directory in the v2 hierarchy, for `CLONE_INTO_CGROUP`; `None` without one.
    #[must_use]
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|fd| fd.as_fd())
    }

    /// Moves the calling thread into the cgroup in every v1 hierarchy.
    ///
    /// Only for a process with one thread: others would stay where they are. Writing `0` to `tasks` takes no
    /// lock that waits for other processes.
    ///
    /// # Errors
    /// As write(2) to `tasks`: `ENODEV` if the cgroup was removed, `ENOSPC` if its cpuset is empty.
    pub fn enter(&self) -> io::Result<()> {
        self.tasks.iter().try_for_each(|tasks| Ok(file::write_to(tasks, "0")?))
    }

    /// Moves the calling process into the cgroup in every hierarchy, v2 too.
    ///
    /// For a process that was not cloned into it. The v2 move may wait some milliseconds for the kernel.
    ///
    /// # Errors
    /// As [`Entry::enter`]; `EBUSY` if the v2 cgroup has controllers enabled for cgroups below it.
    pub fn enter_all(&self) -> io::Result<()> {
        self.enter()?;
        let Some(unified) = &self.unified else { return Ok(()) };
        let procs = file::open_write(unified, "cgroup.procs")?;
        Ok(file::write_to(procs, "0")?)
    }
}

impl Cgroup {
    /// Opens the way in.
    ///
    /// # Errors
    /// [`CgroupError::Kernel`] if the cgroup was removed meanwhile.
    pub fn entry(&self) -> Result<Entry, CgroupError> {
        let mut entry = Entry { tasks: Vec::with_capacity(self.dirs.len()), unified: None };
        for (i, place) in self.dirs.iter().enumerate() {
            let h = self.hierarchies.get(i);
            let fail = |errno| CgroupError::kernel("open the way into cgroup", h.object(self.path.relative()), errno);
            let place = place.as_ref().ok_or_else(|| fail(nix::errno::Errno::ENOENT))?;
            if h.is_v2() {
                entry.unified = Some(Arc::clone(&place.fd));
            } else if let Some(tasks) = place.tasks.get() {
                entry.tasks.push(Arc::clone(tasks));
            } else {
                let tasks = Arc::new(file::open_write(&place.fd, "tasks").map_err(fail)?);
                entry.tasks.push(Arc::clone(place.tasks.get_or_init(|| tasks)));
            }
        }
        Ok(entry)
    }
}
