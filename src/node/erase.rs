//! Removal of directories whose content a container wrote.
//!
//! Works on descriptors, never follows a link, and neither recurses nor builds paths: a tree of
//! any depth takes two open descriptors. A directory found below the top is emptied of its files;
//! the directories in it are first moved up to the top, where their turn comes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Removes the directory `path` with all that is in it. One that is not there is fine.
///
/// # Errors
/// As openat(2), renameat(2) and unlinkat(2); what was removed until then stays removed.
pub fn erase(path: &Path) -> io::Result<()> {
    let top = match open(path, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut serial = 0u64;
    // Each pass removes what is at the top and brings up what was one level deeper.
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            erase_entry(&top, &name, &mut serial)?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn erase_entry(top: &OwnedFd, name: &CStr, serial: &mut u64) -> io::Result<()> {
    if unlink(top, name)? {
        return Ok(());
    }
    let sub = match openat(top, name, DIRECTORY, Mode::empty()) {
        Ok(sub) => sub,
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for inner in names(&sub)? {
        if !unlink(&sub, &inner)? {
            lift(&sub, &inner, top, serial)?;
        }
    }
    match unlinkat(top, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes what is no directory; false if it is one.
fn unlink(dir: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EISDIR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Moves the directory `from/name` into `top`, under a name nobody has.
fn lift(from: &OwnedFd, name: &CStr, top: &OwnedFd, serial: &mut u64) -> io::Result<()> {
    loop {
        *serial += 1;
        let target = format!(".erase-{serial}");
        match renameat(from, name, top, target.as_str()) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            // The container's own file or directory has this name: take another.
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    // Its own open file: the position in a directory is the open file's.
    let again = openat(dir.as_fd(), c".", DIRECTORY, Mode::empty())?;
    let mut found = Vec::new();
    for entry in Dir::from_fd(again)?.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            found.push(name);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), b"x").unwrap();
        let doomed = dir.path().join("doomed");
        fs::create_dir_all(doomed.join("a/b")).unwrap();
        symlink(&outside, doomed.join("link")).unwrap();
        symlink(&outside, doomed.join("a/b/link")).unwrap();
        fs::write(doomed.join("a/file"), b"x").unwrap();
        fs::write(doomed.join(".erase-1"), b"in the way").unwrap();
        erase(&doomed).unwrap();
        assert!(!doomed.exists());
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn depth_is_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let doomed = dir.path().join("doomed");
        fs::create_dir(&doomed).unwrap();
        let mut at = open(&doomed, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        erase(&doomed).unwrap();
        assert!(!doomed.exists());
    }

    #[test]
    fn nothing_is_nothing_to_do_and_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        erase(&dir.path().join("absent")).unwrap();
        symlink("/", dir.path().join("link")).unwrap();
        assert!(erase(&dir.path().join("link")).is_err());
    }
}
