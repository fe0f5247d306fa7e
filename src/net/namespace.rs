//! Network namespaces, made and entered by a thread that is thrown away afterwards.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

use crate::sys::net::loopback_up;

/// The namespace the calling thread is in.
///
/// # Errors
/// As open(2).
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// A new namespace, its loopback up. It lives as long as somebody holds or is in it.
///
/// # Errors
/// As unshare(2), setns(2) and netdevice(7). The thread may be in the new namespace then, and must end.
pub fn create() -> io::Result<OwnedFd> {
    let home = current()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let made = current()?;
    loopback_up()?;
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    Ok(made)
}

/// Does something in a namespace and comes back. Sockets made in it stay in it.
///
/// # Errors
/// As setns(2). The thread may be in that namespace then, and must end.
pub fn inside<T>(namespace: BorrowedFd<'_>, act: impl FnOnce() -> T) -> io::Result<T> {
    let home = current()?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let result = act();
    setns(&home, CloneFlags::CLONE_NEWNET)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn inode(fd: &OwnedFd) -> u64 {
        nix::sys::stat::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn a_thread_makes_and_enters_a_namespace_and_comes_back() {
        std::thread::spawn(|| {
            let home = inode(&current().unwrap());
            let made = create().unwrap();
            assert_ne!(inode(&made), home);
            assert!(made.as_raw_fd() > 2);
            let there = inside(made.as_fd(), || inode(&current().unwrap())).unwrap();
            assert_eq!(there, inode(&made));
            assert_eq!(inode(&current().unwrap()), home);
        })
        .join()
        .unwrap();
    }
}
