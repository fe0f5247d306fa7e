//! Making and removing cgroup directories of one hierarchy.
//!
//! A cgroup filesystem has no symbolic links and no mounts inside, so a checked relative path resolved from the
//! root's descriptor names one directory; making a cgroup whose parent exists is one mkdirat(2) and one openat2(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::detect::Hierarchy;
use super::error::CgroupError;
use super::file::{self, retry};
use super::path::CgroupPath;

/// How often making starts over when somebody else removes the empty cgroups above meanwhile.
const MAX_ATTEMPTS: u32 = 16;
/// Deepest nesting removed below a container's cgroup: what a container made in its own cgroup namespace.
const MAX_DEPTH: u32 = 64;
/// Most sub-cgroups removed in one call.
const MAX_REMOVED: u32 = 100_000;

/// A cgroup just made or found.
#[derive(Debug)]
pub(super) struct New {
    pub(super) fd: OwnedFd,
    /// Whether it did not exist before.
    pub(super) made: bool,
    /// Relative paths of those above it that did not, outermost first.
    pub(super) ancestors: Vec<String>,
}

/// Makes `path` and what is missing above it.
pub(super) fn make(h: &Hierarchy, path: &CgroupPath) -> Result<New, CgroupError> {
    let mut ancestors = Vec::new();
    let mut last = Errno::ENOENT;
    for _ in 0..MAX_ATTEMPTS {
        match try_make(h.root(), path, &mut ancestors) {
            Ok((fd, made)) => return Ok(New { fd, made, ancestors }),
            // A neighbour's cleanup took an empty cgroup above away; make it again.
            Err(Errno::ENOENT) => {}
            Err(errno) => {
                last = errno;
                break;
            }
        }
    }
    for ancestor in ancestors.iter().rev() {
        remove_dir(h, ancestor).ok();
    }
    let hint = match last {
        Errno::ENOSPC => "; the host has as many cgroups as it can: remove some",
        Errno::EAGAIN => "; a cgroup above has reached its cgroup.max.depth or cgroup.max.descendants",
        Errno::EROFS | Errno::EACCES | Errno::EPERM => "; the cgroup filesystem is not writable for us",
        _ => "",
    };
    Err(CgroupError::Kernel { step: "make cgroup", object: h.object(path.relative()), errno: last, hint })
}

fn try_make(root: BorrowedFd<'_>, path: &CgroupPath, ancestors: &mut Vec<String>) -> nix::Result<(OwnedFd, bool)> {
    let made = match mkdir(root, path.relative()) {
        Err(Errno::ENOENT) => {
            make_ancestors(root, path, ancestors)?;
            mkdir(root, path.relative())?
        }
        done => done?,
    };
    Ok((file::open_dir(root, path.relative())?, made))
}

fn make_ancestors(root: BorrowedFd<'_>, path: &CgroupPath, made: &mut Vec<String>) -> nix::Result<()> {
    for ancestor in path.ancestors() {
        if mkdir(root, ancestor)? && !made.iter().any(|m| m == ancestor) {
            made.push(ancestor.to_owned());
        }
    }
    Ok(())
}

/// Whether the directory is new.
fn mkdir(root: BorrowedFd<'_>, relative: &str) -> nix::Result<bool> {
    match retry(|| mkdirat(root, relative, Mode::from_bits_truncate(0o755))) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes one empty cgroup.
pub(super) fn remove_dir(h: &Hierarchy, relative: &str) -> nix::Result<()> {
    rmdir(h.root(), relative)
}

fn rmdir(dir: BorrowedFd<'_>, name: &str) -> nix::Result<()> {
    retry(|| unlinkat(dir, name, UnlinkatFlags::RemoveDir))
}

/// Removes `path` with everything below it; one that is gone is no error.
pub(super) fn remove(h: &Hierarchy, path: &CgroupPath) -> Result<(), CgroupError> {
    let mut budget = MAX_REMOVED;
    match remove_below(h.root(), path.relative(), MAX_DEPTH, &mut budget) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Err(CgroupError::Busy { object: h.object(path.relative()) }),
        Err(errno) => Err(CgroupError::kernel("remove cgroup", h.object(path.relative()), errno)),
    }
}

/// Depth first. The common case, nothing below, is the first line alone.
fn remove_below(dir: BorrowedFd<'_>, name: &str, depth: u32, budget: &mut u32) -> nix::Result<()> {
    *budget = budget.checked_sub(1).ok_or(Errno::E2BIG)?;
    match rmdir(dir, name) {
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
        done => return done,
    }
    let inside = file::open_dir(dir, name)?;
    let children = file::children(&inside)?;
    if children.is_empty() {
        return Err(Errno::EBUSY);
    }
    let depth = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
    let mut first = Ok(());
    for child in children {
        match remove_below(inside.as_fd(), &child, depth, budget) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // The others are removed all the same.
            Err(errno) => first = first.and(Err(errno)),
        }
    }
    first?;
    rmdir(dir, name)
}
