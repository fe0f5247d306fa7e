//! Paths hidden from a container or made read-only for it, by descriptors verified to be what they seem.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat, makedev};

use super::dev::Dev;
use super::error::{Doing, StepError};
use super::mounts::remount_over;
use crate::sys::mount::{FsContext, SetAttr, attach, attr, clone_mount};
use crate::sys::path::open_in_root;

/// Hides each path that exists: a directory below an empty read-only one, a file below `/dev/null`; the container's own
/// one, or the host's for a container that was given the host's `/dev`.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[String], dev: Option<&Dev>) -> Result<(), StepError> {
    let (mut empty, mut of_host) = (None, None);
    for path in paths {
        let Some((target, is_dir)) = open_existing(root, path)? else { continue };
        let what = || format!("mask {path}");
        if is_dir {
            mask_directory(target.as_fd(), &mut empty).doing(what)?;
        } else {
            let null = match (dev, &mut of_host) {
                (Some(dev), _) => &dev.null,
                (None, Some(opened)) => opened,
                (None, of_host) => of_host.insert(open_host_null().doing(what)?),
            };
            verify_null(null).doing(what)?;
            let copy = clone_mount(null.as_fd(), c"", false).doing(what)?;
            attach(copy.as_fd(), target.as_fd()).doing(what)?;
        }
    }
    Ok(())
}

/// One empty filesystem serves all: the first is attached, the others are copies of it.
fn mask_directory(target: BorrowedFd<'_>, empty: &mut Option<OwnedFd>) -> std::io::Result<()> {
    if let Some(attached) = empty {
        let copy = clone_mount(attached.as_fd(), c"", false)?;
        return attach(copy.as_fd(), target);
    }
    let context = FsContext::open(c"tmpfs")?;
    context.set_string(c"size", c"4k")?;
    context.set_string(c"nr_inodes", c"2")?;
    context.set_string(c"mode", c"555")?;
    let made = context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    attach(made.as_fd(), target)?;
    *empty = Some(made);
    Ok(())
}

/// Before the pivot the host's tree is still there.
fn open_host_null() -> nix::Result<OwnedFd> {
    nix::fcntl::open(Path::new("/dev/null"), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

fn verify_null(null: &OwnedFd) -> nix::Result<()> {
    let stat = fstat(null)?;
    let is_char = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if is_char && stat.st_rdev == makedev(1, 3) { Ok(()) } else { Err(Errno::ENODEV) }
}

/// Makes each path that exists, with all below it, read-only.
pub(super) fn make_readonly(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), StepError> {
    let change = SetAttr { set: attr::RDONLY, recursive: true, ..SetAttr::default() };
    for path in paths {
        if let Some((target, _)) = open_existing(root, path)? {
            remount_over(target.as_fd(), change, path)?;
        }
    }
    Ok(())
}

fn open_existing(root: BorrowedFd<'_>, path: &str) -> Result<Option<(OwnedFd, bool)>, StepError> {
    let what = || format!("open {path}");
    let target = match open_in_root(root, Path::new(path), OFlag::O_PATH, Mode::empty()) {
        Ok(fd) => fd,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e).doing(what),
    };
    let stat = fstat(&target).doing(what)?;
    let is_dir = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    Ok(Some((target, is_dir)))
}
