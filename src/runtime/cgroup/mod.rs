//! Cgroups: where a container's processes are counted, limited and killed.
//!
//! A [`Cgroup`] is one path in every hierarchy of the host ([`Hierarchies`]), its directories held open; all
//! work is done from those descriptors. Processes enter it by themselves through an [`Entry`], between clone
//! and exec, because the kernel makes anybody else who moves a process wait for an RCU grace period.
//!
//! Invariants:
//! - a path is checked before anything is touched, because it can come from a request;
//! - controllers are enabled on v2 in the cgroups above, never in a container's own, which has processes;
//! - limits are all written or none: what was written before a failure is put back;
//! - of the cgroups above, only those that [`Cgroup::create`] made are removed, with the last one below them.
//!
//! It never moves a process out of a cgroup, and never freezes.
//!
//! Rules followed: Documentation/admin-guide/cgroup-v1, …/cgroup-v2.rst; OCI runtime specification,
//! config-linux "Control groups" for the meaning of the limits.

mod details;
mod detect;
mod devices;
mod entry;
mod error;
#[cfg(test)]
mod fake_tests;
mod file;
mod kill;
mod limits;
mod path;
mod record;
#[cfg(test)]
mod root_tests;
mod stats;
mod tree;
mod v1;
mod v2;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;

pub use details::{Details, Disk, Huge};
pub use detect::{Hierarchies, Hierarchy, Mounted, Version};
pub use entry::Entry;
pub use error::CgroupError;
pub use record::{SWEEP_PATIENCE, sweep};
pub use stats::{Pressure, Reader, Stall, Usage};

use path::CgroupPath;

/// One cgroup path in all hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: CgroupPath,
    /// One per hierarchy; `None` where it does not exist.
    dirs: Vec<Option<Place>>,
}

/// A cgroup's directory in one hierarchy.
#[derive(Debug, Clone)]
struct Place {
    fd: Arc<OwnedFd>,
    /// v1: the `tasks` file, opened by the first who enters and kept for each exec session after it.
    tasks: Arc<OnceLock<Arc<OwnedFd>>>,
    /// False: the directory belongs to the cgroup this one is a tracker of.
    own: bool,
}

impl Place {
    fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), tasks: Arc::default(), own: true }
    }
}

impl Cgroup {
    /// Makes the cgroup in each hierarchy, with all that is missing above it, ready to be entered.
    ///
    /// One that exists is taken as it is. On v1 the cpuset is filled from the one above; on v2 the controllers
    /// we know are enabled in the cgroups above. If a step fails, what was made is removed again.
    ///
    /// # Errors
    /// [`CgroupError::Path`] for a path that is not absolute, is the root, or is otherwise malformed;
    /// [`CgroupError::Kernel`] for what the kernel refuses.
    pub fn create(h: &Hierarchies, path: &str) -> Result<Self, CgroupError> {
        let path = CgroupPath::parse(path)?;
        let mut cgroup = Self { hierarchies: h.clone(), path, dirs: Vec::with_capacity(h.len()) };
        let mut made_here = Vec::with_capacity(h.len());
        let done = (0..h.len()).try_for_each(|i| cgroup.create_in(i, &mut made_here));
        match done {
            Ok(()) => Ok(cgroup),
            Err(e) => {
                cgroup.undo_create(&made_here);
                Err(e)
            }
        }
    }

    fn create_in(&mut self, index: usize, made_here: &mut Vec<usize>) -> Result<(), CgroupError> {
        let hierarchies = self.hierarchies.clone();
        let h = hierarchies.get(index);
        let new = tree::make(h, &self.path)?;
        if new.made {
            made_here.push(index);
        }
        let place = Place::new(new.fd);
        let fd = Arc::clone(&place.fd);
        self.dirs.push(Some(place));
        if h.is_v2() {
            // Beside v1, v2 is there for tracking and killing; see `apply` for the controllers it may carry.
            if hierarchies.version() == Version::V2 {
                v2::enable_above(h, &self.path, v2::KNOWN)?;
            }
        } else if h.controllers().iter().any(|c| c == "cpuset") {
            v1::fill_cpuset(h, &self.path, fd.as_fd(), new.made)?;
        }
        Ok(())
    }

    /// Takes a half-made cgroup away; what cannot be removed was not ours alone.
    fn undo_create(&self, made_here: &[usize]) {
        for &i in made_here {
            tree::remove(self.hierarchies.get(i), &self.path).ok();
        }
    }

    /// Opens a cgroup that exists in at least one hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::Path`] as [`Cgroup::create`]; [`CgroupError::Kernel`] with `ENOENT` if no hierarchy has it.
    pub fn open(h: &Hierarchies, path: &str) -> Result<Self, CgroupError> {
        let path = CgroupPath::parse(path)?;
        let dirs = (0..h.len()).map(|i| open_place(h.get(i), &path)).collect::<Result<Vec<_>, _>>()?;
        if dirs.iter().all(Option::is_none) {
            return Err(CgroupError::kernel("open cgroup", path.as_str().to_owned(), Errno::ENOENT));
        }
        Ok(Self { hierarchies: h.clone(), path, dirs })
    }

    /// The path, from the root of each hierarchy.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// The hierarchies it is in.
    #[must_use]
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Its directory in the hierarchy that carries `controller`, if there is one.
    #[must_use]
    pub fn directory(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        self.dir(self.hierarchies.position(controller)?)
    }

    /// Its directory in each hierarchy, with the name such a directory usually has: "unified", the v1 controllers
    /// ("cpu,cpuacct"), or a named hierarchy's name ("systemd").
    pub fn places(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.hierarchies.iter().zip(&self.dirs).filter_map(|(h, place)| {
            let label = h.label();
            Some((label.strip_prefix("name=").unwrap_or(label), place.as_ref()?.fd.as_fd()))
        })
    }

    fn dir(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.dirs[index].as_ref().map(|place| place.fd.as_fd())
    }

    /// Makes a sub-cgroup for one exec session, so that the session can be killed as a whole.
    ///
    /// It exists only in the hierarchy used for tracking; in the others its processes are in this cgroup, and its
    /// [`Cgroup::entry`] leads there. Its limits are this cgroup's.
    ///
    /// # Errors
    /// [`CgroupError::Path`] if `name` is no single component; [`CgroupError::Kernel`] as mkdir(2).
    pub fn tracker(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.path.child(name)?;
        let tracking = self.hierarchies.tracking();
        let h = self.hierarchies.get(tracking);
        let new = tree::make(h, &path)?;
        if !h.is_v2() && h.controllers().iter().any(|c| c == "cpuset") {
            v1::fill_cpuset(h, &path, new.fd.as_fd(), new.made)?;
        }
        let lend = |place: &Option<Place>| place.as_ref().map(|p| Place { own: false, ..p.clone() });
        let mut dirs: Vec<_> = self.dirs.iter().map(lend).collect();
        dirs[tracking] = Some(Place::new(new.fd));
        Ok(Self { hierarchies: self.hierarchies.clone(), path, dirs })
    }

    /// Removes it with everything below, then the cgroups above that [`Cgroup::create`] made and that are empty now.
    ///
    /// A cgroup that is gone already is no error. Every hierarchy is tried, whatever the others say.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] while processes remain: kill, wait a moment and call again.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut first = Ok(());
        for (i, place) in self.dirs.iter().enumerate() {
            if place.as_ref().is_some_and(|p| p.own) {
                first = first.and(tree::remove(self.hierarchies.get(i), &self.path));
            }
        }
        first
    }

    /// How often the kernel killed a process because its limit was reached, in it or below it. 0 if unknown.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let Some(index) = self.hierarchies.position("memory") else { return 0 };
        let Some(dir) = self.dir(index) else { return 0 };
        // Mounted with memory_localevents, memory.events leaves out what is below, as the other always does.
        let v2 = self.hierarchies.get(index).is_v2();
        let names: &[&str] = if v2 { &["memory.events", "memory.events.local"] } else { &["memory.oom_control"] };
        let count = |name: &&str| file::read(dir, name).ok().and_then(|text| keyed(&text, "oom_kill"));
        names.iter().filter_map(count).max().unwrap_or(0)
    }
}

fn open_place(h: &Hierarchy, path: &CgroupPath) -> Result<Option<Place>, CgroupError> {
    match file::open_dir(h.root(), path.relative()) {
        Ok(fd) => Ok(Some(Place::new(fd))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(CgroupError::kernel("open cgroup", h.object(path.relative()), errno)),
    }
}

/// The number after `key` in a file of "key number" lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), None);
        assert_eq!(keyed("", "oom_kill"), None);
    }
}
