//! One thin function per system call: descriptors, mounts, processes, namespaces, sockets, terminals.
//!
//! Owns every `unsafe` block of the project, each with its proof. Decides nothing: callers bring policy,
//! these functions bring types (`BorrowedFd` in, `OwnedFd` out, errno as [`std::io::Error`]). Every descriptor made
//! here is close-on-exec from birth. What nix wraps soundly is used from nix directly.

#![allow(unsafe_code)]

pub mod memory;
pub mod mount;
pub mod net;
pub mod path;
pub mod process;
pub mod socket;
pub mod tty;
pub mod wait;
pub mod xattr;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A system call's result: negative is an error in `errno`.
fn cvt(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// A system call's result that is a new descriptor.
fn cvt_fd(ret: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(cvt(ret)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just made `fd` for this process; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
