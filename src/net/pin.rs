//! Pins: a namespace's name on the host, for software that can only be told a path.
//!
//! A pin is written down in a directory of ours before it is made, so that one daemon never takes another's away.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::NetError;
use crate::disk;
use crate::id::SandboxId;

/// Where `ip netns` has its pins. Nobody else's directory is mounted over.
const OF_IP: &[&str] = &["/run/netns", "/var/run/netns"];

/// The pins of one daemon.
#[derive(Debug)]
pub(super) struct Pins {
    /// Where they are.
    dir: PathBuf,
    /// One empty file a pin, by the sandbox's id.
    book: PathBuf,
}

impl Pins {
    pub fn new(dir: PathBuf, book: PathBuf) -> Self {
        Self { dir, book }
    }

    /// Where a sandbox's namespace is pinned, if it is.
    pub fn path(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("aril-{}", id.short()))
    }

    /// Pins a namespace.
    ///
    /// # Errors
    /// [`NetError::Io`], [`NetError::Kernel`]; [`remove`](Self::remove) takes away what is there then.
    pub fn make(&self, id: &SandboxId, namespace: BorrowedFd<'_>) -> Result<PathBuf, NetError> {
        let note = self.book.join(id.as_str());
        disk::private_dir(&self.book).and_then(|()| touch(&note)).map_err(failed("write down the pin", &note))?;
        let path = self.path(id);
        let make = DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        make.map_err(failed("make directory", &self.dir))?;
        if OF_IP.iter().any(|dir| self.dir == Path::new(dir)) {
            share(&self.dir).map_err(failed("share the mounts below", &self.dir))?;
        }
        touch(&path).map_err(failed("make the pin", &path))?;
        let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| failed("pin a network namespace at", &path)(e.into()))?;
        Ok(path)
    }

    /// The namespace that is pinned for a sandbox.
    pub fn open(&self, id: &SandboxId) -> Option<OwnedFd> {
        let file = File::open(self.path(id)).ok()?;
        // A file without a mount is what a death between the two steps leaves.
        let is_namespace =
            nix::sys::statfs::fstatfs(&file).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC);
        is_namespace.then(|| file.into())
    }

    /// Takes a pin away. One that is not there, or not ours, is fine.
    ///
    /// # Errors
    /// [`NetError::Io`].
    pub fn remove(&self, id: &SandboxId) -> Result<(), NetError> {
        let note = self.book.join(id.as_str());
        if !note.exists() {
            return Ok(());
        }
        let path = self.path(id);
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing is mounted there, or there is nothing.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(failed("unpin", &path)(e.into())),
        }
        remove_file(&path).map_err(failed("remove the pin", &path))?;
        remove_file(&note).map_err(failed("strike the pin", &note))
    }

    /// The sandboxes a pin was written down for.
    pub fn known(&self) -> Vec<SandboxId> {
        let Ok(list) = fs::read_dir(&self.book) else { return Vec::new() };
        list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}

/// Makes a directory a mount whose mounts are shared, as `ip netns add` does before its first one. Where nobody has, and
/// what it is on is not shared, `ip` would later put such a mount over ours: what is below can be reached no more.
fn share(dir: &Path) -> io::Result<()> {
    let make_shared = || mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    // `ip` and other pods' pins may be about to do the same.
    let lock = Flock::lock(File::open(dir)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    match make_shared() {
        // No mount yet.
        Err(Errno::EINVAL) => {
            mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            make_shared()?;
        }
        other => other?,
    }
    drop(lock);
    Ok(())
}

fn touch(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io { step, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::namespace;
    use super::*;

    /// As `ip netns add` prepares its directory.
    fn as_ip_does(dir: &Path) {
        let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
        if mount(None::<&str>, dir, None::<&str>, shared, None::<&str>).is_err() {
            mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).unwrap();
            mount(None::<&str>, dir, None::<&str>, shared, None::<&str>).unwrap();
        }
    }

    #[test]
    fn a_pin_is_removed_though_ip_came_after_it() {
        let test = || {
            // A `/run` of the test's own, in a mount namespace of its own, whose mounts are shared with nobody.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            let dir = Path::new("/run/netns");
            let pins = Pins::new(dir.to_owned(), "/run/book".into());
            let ids: Vec<SandboxId> = (1..=3).map(|n| SandboxId::from_random([n; 32])).collect();
            let made = namespace::create().unwrap();
            for id in &ids[..2] {
                pins.make(id, made.as_fd()).unwrap();
                assert!(pins.open(id).is_some());
            }
            as_ip_does(dir);
            pins.make(&ids[2], made.as_fd()).unwrap();
            for id in &ids {
                pins.remove(id).unwrap();
            }
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
            assert!(pins.known().is_empty());
        };
        std::thread::spawn(test).join().unwrap();
    }
}
