//! Measures and removes trees by directory descriptors, following no link.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What a tree occupies, as `du` counts it: hard links once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::image) struct Occupied {
    pub bytes: u64,
    pub inodes: u64,
}

impl Occupied {
    pub(super) fn add(&mut self, stat: &FileStat) {
        // Blocks are of 512 bytes whatever the file system's own are.
        self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.inodes += 1;
    }
}

/// Opens a directory to be read, not through a link.
pub(in crate::image) fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Looks at `name` itself, not at where a link leads.
pub(in crate::image) fn look(parent: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Errno> {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// The file type of a status.
pub(in crate::image) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Whether this is overlay's mark that something below is hidden.
pub(in crate::image) fn is_whiteout(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// Removes `name` and all in it; that it is gone already is fine. Adds one to `steps` for each thing removed.
pub(in crate::image) fn remove(parent: BorrowedFd<'_>, name: &CStr, steps: &mut u64) -> Result<(), Errno> {
    *steps += 1;
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(e) => return Err(e),
    }
    let handle = open_dir(parent, name)?;
    let mut dir = Dir::from_fd(handle.try_clone().map_err(|_| Errno::EMFILE)?)?;
    // Collected first: removing while reading may make a file system skip entries.
    let names: Vec<_> = dir.iter().map(|e| e.map(|e| e.file_name().to_owned())).collect::<Result<_, _>>()?;
    drop(dir);
    for below in names.iter().filter(|n| n.as_c_str() != c"." && n.as_c_str() != c"..") {
        remove(handle.as_fd(), below, steps)?;
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}
