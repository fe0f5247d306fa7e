//! Making and removing cgroup directories of one hierarchy.
//!
//! A cgroup filesystem has no symbolic links and no mounts inside, so a checked relative path resolved from the
//! root's descriptor names one directory; making a cgroup whose parent exists is one mkdirat(2) and one openat2(2).
//!
//! A cgroup that had to be made above another is marked with an extended attribute. Whoever removes the last cgroup
//! below it removes it too, whichever process made it, and no record has to be kept of it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::detect::Hierarchy;
use super::error::CgroupError;
use super::file::{self, retry};
use super::path::CgroupPath;
use crate::sys::xattr;

/// How often making starts over when somebody else removes the empty cgroups above meanwhile.
const MAX_ATTEMPTS: u32 = 16;
/// Deepest nesting removed below a container's cgroup: what a container made in its own cgroup namespace.
const MAX_DEPTH: u32 = 64;
/// The mark of a cgroup made above another. Only the host's root may set or see `trusted` attributes.
const MARK: &CStr = c"trusted.aril.made";
/// Most sub-cgroups removed in one call.
const MAX_REMOVED: u32 = 100_000;

/// A cgroup just made or found.
#[derive(Debug)]
pub(super) struct New {
    pub(super) fd: OwnedFd,
    /// Whether it did not exist before.
    pub(super) made: bool,
}

/// Makes `path` and what is missing above it.
pub(super) fn make(h: &Hierarchy, path: &CgroupPath) -> Result<New, CgroupError> {
    let mut result = Err(Errno::ENOENT);
    for _ in 0..MAX_ATTEMPTS {
        result = try_make(h.root(), path);
        // ENOENT: a neighbour's cleanup took an empty cgroup above away; make it again.
        if !matches!(result, Err(Errno::ENOENT)) {
            break;
        }
    }
    result.map_err(|errno| {
        prune(h, path);
        let hint = match errno {
            Errno::ENOSPC => "; the host has as many cgroups as it can: remove some",
            Errno::EAGAIN => "; a cgroup above has reached its cgroup.max.depth or cgroup.max.descendants",
            Errno::EROFS | Errno::EACCES | Errno::EPERM => "; the cgroup filesystem is not writable for us",
            _ => "",
        };
        CgroupError::Kernel { step: "make cgroup", object: h.object(path.relative()), errno, hint }
    })
}

fn try_make(root: BorrowedFd<'_>, path: &CgroupPath) -> nix::Result<New> {
    let made = match mkdir(root, path.relative()) {
        Err(Errno::ENOENT) => {
            for ancestor in path.ancestors() {
                if mkdir(root, ancestor)? {
                    mark(root, ancestor);
                }
            }
            mkdir(root, path.relative())?
        }
        done => done?,
    };
    match file::open_dir(root, path.relative()) {
        Ok(fd) => Ok(New { fd, made }),
        Err(errno) => {
            if made {
                // No descriptor is free, say: nobody would know of it.
                rmdir(root, path.relative()).ok();
            }
            Err(errno)
        }
    }
}

/// Marks a cgroup as ours to remove. Where that is not possible it stays when the last one below it goes.
fn mark(root: BorrowedFd<'_>, relative: &str) {
    if let Ok(dir) = file::open_listing(root, relative) {
        xattr::set(dir.as_fd(), MARK, b"1").ok();
    }
}

/// Removes the cgroups above `path` that are marked and empty, innermost first.
pub(super) fn prune(h: &Hierarchy, path: &CgroupPath) {
    for ancestor in path.ancestors().rev() {
        let marked = match file::open_listing(h.root(), ancestor) {
            Ok(dir) => xattr::is_set(dir.as_fd(), MARK).unwrap_or(false),
            // Somebody else was faster; go on above.
            Err(Errno::ENOENT) => continue,
            Err(_) => false,
        };
        if !marked {
            return;
        }
        match rmdir(h.root(), ancestor) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // Others are in it still: the last of them will remove it.
            Err(_) => return,
        }
    }
}

/// Whether the directory is new.
fn mkdir(root: BorrowedFd<'_>, relative: &str) -> nix::Result<bool> {
    match retry(|| mkdirat(root, relative, Mode::from_bits_truncate(0o755))) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn rmdir(dir: BorrowedFd<'_>, name: &str) -> nix::Result<()> {
    retry(|| unlinkat(dir, name, UnlinkatFlags::RemoveDir))
}

/// Removes `path` with everything below it, and what was made for it above; one that is gone is no error.
pub(super) fn remove(h: &Hierarchy, path: &CgroupPath) -> Result<(), CgroupError> {
    let mut budget = MAX_REMOVED;
    match remove_below(h.root(), path.relative(), MAX_DEPTH, &mut budget) {
        Ok(()) | Err(Errno::ENOENT) => {
            prune(h, path);
            Ok(())
        }
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
