//! Paths below a root that a stranger filled: resolved by the kernel inside that root (openat2), used by descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, mkdirat};

/// Opens `path` as a process with its root at `root` would see it: `..` stops there, absolute symbolic links start
/// there, and links of procfs that lead elsewhere (`/proc/self/fd/…`) are refused with `ELOOP`.
///
/// # Errors
/// As openat2(2). Always close-on-exec.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    open_resolved(root, path, flags, mode, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Opens `path` below `dir` without leaving it, following no symbolic link and entering no other mount.
///
/// # Errors
/// `ELOOP` for a link, `EXDEV` for a way out, else as openat2(2).
pub fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    open_resolved(dir, path, flags, mode, resolve)
}

/// Opens a file of a procfs by its own directory descriptor: links inside procfs (`self`) are followed, anything
/// mounted over it or leading out of it is not.
///
/// # Errors
/// `EXDEV` when something is mounted over the path, else as openat2(2).
pub fn open_proc(proc: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    open_resolved(proc, path, flags, Mode::empty(), resolve)
}

fn open_resolved(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    mode: Mode,
    resolve: ResolveFlag,
) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
    // openat2 answers EAGAIN when a rename raced with `..`; it is the caller's to try again.
    for _ in 0..128 {
        match nix::fcntl::openat2(dir, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// Opens the directory `path` inside `root`, making what is missing of it (owned by the caller, `mode`).
///
/// # Errors
/// `EEXIST`/`ENOTDIR` when something in the way is no directory, else as openat2(2) and mkdirat(2).
pub fn make_dirs_in_root(root: BorrowedFd<'_>, path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let dir_flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match open_in_root(root, path, dir_flags, Mode::empty()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let mut walked = PathBuf::from("/");
    let mut dir = root.try_clone_to_owned()?;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                walked.push(name);
                dir = match open_in_root(root, &walked, dir_flags, Mode::empty()) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                        match mkdirat(&dir, name, mode) {
                            Ok(()) | Err(Errno::EEXIST) => {}
                            Err(e) => return Err(e.into()),
                        }
                        open_in_root(root, &walked, dir_flags, Mode::empty())?
                    }
                    other => other?,
                };
            }
            Component::ParentDir => {
                walked.pop();
                dir = open_in_root(root, &walked, dir_flags, Mode::empty())?;
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(dir)
}

/// Opens the file `path` inside `root` as a place to mount on (`O_PATH`), making an empty one if there is none.
///
/// # Errors
/// As [`make_dirs_in_root`] and openat2(2).
pub fn make_file_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    match open_in_root(root, path, OFlag::O_PATH, Mode::empty()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let dir = make_dirs_in_root(root, parent, Mode::from_bits_truncate(0o755))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY;
    open_beneath(dir.as_fd(), Path::new(name), flags, Mode::from_bits_truncate(0o644))?;
    open_beneath(dir.as_fd(), Path::new(name), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn absolute_links_and_dots_stay_inside() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        for path in ["link", "../../etc/passwd", "/etc/../../etc/passwd"] {
            let file = open_in_root(root.as_fd(), Path::new(path), OFlag::O_RDONLY, Mode::empty()).unwrap();
            let mut text = String::new();
            io::Read::read_to_string(&mut fs::File::from(file), &mut text).unwrap();
            assert_eq!(text, "inside", "{path}");
        }
    }

    #[test]
    fn directories_are_made_through_links_that_stay_inside() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/real", dir.path().join("var")).unwrap();
        make_dirs_in_root(root.as_fd(), Path::new("/var/a/../b/c"), Mode::from_bits_truncate(0o755)).unwrap();
        assert!(dir.path().join("real/b/c").is_dir());
    }

    #[test]
    fn a_dangling_link_is_not_followed_to_make_a_file() {
        let (dir, root) = root();
        symlink("/nowhere/else", dir.path().join("target")).unwrap();
        assert!(make_file_in_root(root.as_fd(), Path::new("/target")).is_err());
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn beneath_follows_no_link() {
        let (dir, root) = root();
        symlink("/etc/passwd", dir.path().join("log")).unwrap();
        let error = open_beneath(root.as_fd(), Path::new("log"), OFlag::O_RDONLY, Mode::empty()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
