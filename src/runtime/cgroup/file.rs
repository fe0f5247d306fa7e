//! Control files and cgroup directories, always from a directory held open.
//!
//! Nothing here follows a link or leaves the mount it starts in; reads are bounded, and calls that a
//! signal interrupted are repeated.

use std::os::fd::{AsFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

/// Longest control file read. The longest of interest is `cgroup.procs`: a million pids.
const MAX_FILE_BYTES: usize = 8 << 20;
/// Most sub-cgroups listed of one cgroup.
const MAX_CHILDREN: usize = 65_536;

/// Repeats `call` as long as a signal interrupts it.
pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// Opens the cgroup at `relative` as a place (`O_PATH`): good for the calls below and for clone3(2).
pub(super) fn open_dir(root: impl AsFd, relative: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
    // EAGAIN: something was renamed meanwhile and the kernel could not be sure.
    loop {
        match retry(|| openat2(root.as_fd(), relative, how)) {
            Err(Errno::EAGAIN) => {}
            done => return done,
        }
    }
}

/// Opens the cgroup at `relative` for listing, and for extended attributes, which `O_PATH` is not good for.
pub(super) fn open_listing(root: impl AsFd, relative: &str) -> nix::Result<OwnedFd> {
    open_file(root, relative, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

fn open_file(dir: impl AsFd, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    retry(|| openat(dir.as_fd(), name, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY, Mode::empty()))
}

/// Opens a control file for writing, more than once.
pub(super) fn open_write(dir: impl AsFd, name: &str) -> nix::Result<OwnedFd> {
    open_file(dir, name, OFlag::O_WRONLY)
}

/// Opens a control file for reading, more than once.
pub(super) fn open_read(dir: impl AsFd, name: &str) -> nix::Result<OwnedFd> {
    open_file(dir, name, OFlag::O_RDONLY)
}

/// Reads a control file; bytes that are no UTF-8 are replaced.
///
/// # Errors
/// As open(2) and read(2); `EFBIG` if it is longer than 8 MiB.
pub(super) fn read(dir: impl AsFd, name: &str) -> nix::Result<String> {
    let file = open_file(dir, name, OFlag::O_RDONLY)?;
    let mut bytes = Vec::new();
    // One page holds almost every control file.
    let mut chunk = [0u8; 4096];
    loop {
        let n = retry(|| nix::unistd::read(&file, &mut chunk))?;
        if n == 0 {
            return Ok(match String::from_utf8_lossy(&bytes) {
                std::borrow::Cow::Borrowed(text) => text.to_owned(),
                std::borrow::Cow::Owned(text) => text,
            });
        }
        if bytes.len() + n > MAX_FILE_BYTES {
            return Err(Errno::EFBIG);
        }
        bytes.extend_from_slice(&chunk[..n]);
    }
}

/// Writes a whole value in one call, as control files demand.
///
/// # Errors
/// As open(2) and write(2); `EIO` if only a part was taken.
pub(super) fn write(dir: impl AsFd, name: &str, value: &str) -> nix::Result<()> {
    let file = open_file(dir, name, OFlag::O_WRONLY | OFlag::O_TRUNC)?;
    write_to(&file, value)
}

/// As [`write`], to a file that is open.
pub(super) fn write_to(file: impl AsFd, value: &str) -> nix::Result<()> {
    let n = retry(|| nix::unistd::write(file.as_fd(), value.as_bytes()))?;
    if n == value.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// The names of the sub-cgroups.
///
/// # Errors
/// As open(2) and getdents(2); `E2BIG` past 65,536 of them.
pub(super) fn children(dir: impl AsFd) -> nix::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(open_listing(dir, ".")?)?.iter() {
        let entry = entry?;
        if entry.file_type() != Some(Type::Directory) {
            continue;
        }
        match entry.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) if names.len() < MAX_CHILDREN => names.push(name.to_owned()),
            Ok(_) => return Err(Errno::E2BIG),
            // Not ours to understand; removing the parent will say EBUSY.
            Err(_) => {}
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn links_and_parents_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("file")).unwrap();
        let root = File::open(dir.path()).unwrap();
        assert!(open_dir(&root, "a").is_ok());
        assert_eq!(open_dir(&root, "link").unwrap_err(), Errno::ELOOP);
        assert_eq!(open_dir(&root, "..").unwrap_err(), Errno::EXDEV);
        assert_eq!(open_dir(&root, "/etc").unwrap_err(), Errno::EXDEV);
        assert_eq!(read(&root, "file").unwrap_err(), Errno::ELOOP);
        assert_eq!(write(&root, "file", "x").unwrap_err(), Errno::ELOOP);
    }

    #[test]
    fn values_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("v"), "12345\n").unwrap();
        let root = File::open(dir.path()).unwrap();
        write(&root, "v", "7").unwrap();
        assert_eq!(read(&root, "v").unwrap(), "7");
        assert_eq!(write(&root, "absent", "7").unwrap_err(), Errno::ENOENT);
        assert!(!dir.path().join("absent").exists());
    }

    #[test]
    fn an_endless_file_is_given_up() {
        let dev = File::open("/dev").unwrap();
        assert_eq!(read(&dev, "zero").unwrap_err(), Errno::EFBIG);
    }

    #[test]
    fn children_are_directories_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(children(File::open(dir.path()).unwrap()).unwrap(), ["sub"]);
    }
}
