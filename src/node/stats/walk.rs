//! Counting what is below a directory that a container may be writing in.
//!
//! From descriptor to descriptor: no link is followed, no other filesystem entered, what vanishes is passed over. A
//! directory is read piece by piece, so it takes no memory to have many files.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::{Dir, OwningIter};
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// Directories inside each other that are counted; each takes two descriptors.
const DEPTH: usize = 200;
/// Entries counted: a walk ends some time.
const MAX_ENTRIES: u64 = 20_000_000;
/// Files with several names that are remembered; what comes after is counted with each name.
const MAX_LINKED: usize = 500_000;

/// What is below a directory, without itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupied {
    /// Bytes, as `du` counts them: blocks, and files with several names once.
    pub bytes: u64,
    /// Files, directories and the like.
    pub inodes: u64,
}

/// A directory being read.
struct Level {
    fd: OwnedFd,
    entries: OwningIter,
}

impl Level {
    fn new(fd: OwnedFd) -> Option<Self> {
        // Both are one open directory with one position.
        let entries = Dir::from_fd(fd.try_clone().ok()?).ok()?.into_iter();
        Some(Self { fd, entries })
    }
}

/// Counts what is below `top`; nothing if that is no directory. Blocks.
#[must_use]
pub fn occupied(top: &Path) -> Occupied {
    let mut sum = Occupied::default();
    let Ok(top) = open(top, DIRECTORY, Mode::empty()) else { return sum };
    let Ok(device) = fstat(&top).map(|stat| stat.st_dev) else { return sum };
    let mut linked = BTreeSet::new();
    let mut seen = 0;
    let mut levels: Vec<Level> = Level::new(top).into_iter().collect();
    while let Some(level) = levels.last_mut() {
        let entry = level.entries.next().filter(|_| seen < MAX_ENTRIES);
        // An error of readdir(3) ends a directory: it would come again for ever.
        let Some(Ok(entry)) = entry else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        seen += 1;
        let Ok(stat) = fstatat(&level.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev != device {
            continue;
        }
        let is_dir = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        let is_first = is_dir || stat.st_nlink < 2 || linked.len() >= MAX_LINKED || linked.insert(stat.st_ino);
        if is_first {
            sum.bytes = sum.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
            sum.inodes += 1;
        }
        if is_dir && levels.len() < DEPTH {
            let below = levels.last().and_then(|level| openat(&level.fd, name, DIRECTORY, Mode::empty()).ok());
            // It may have been moved here from another filesystem meanwhile.
            let same = |fd: &OwnedFd| fstat(fd).is_ok_and(|stat| stat.st_dev == device);
            levels.extend(below.filter(same).and_then(Level::new));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_counted_once_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("upper");
        fs::create_dir_all(top.join("a/b")).unwrap();
        let before = occupied(&top);
        assert_eq!(before.inodes, 2);
        fs::write(top.join("a/b/file"), vec![1; 100_000]).unwrap();
        let after = occupied(&top);
        assert!((100_000..200_000).contains(&(after.bytes - before.bytes)), "{before:?} {after:?}");
        assert_eq!(after.inodes, 3);
        fs::hard_link(top.join("a/b/file"), top.join("again")).unwrap();
        assert_eq!(occupied(&top), after);
        symlink("/usr", top.join("out")).unwrap();
        let linked = occupied(&top);
        assert!(linked.bytes - after.bytes < 10_000, "{linked:?}");
        assert_eq!(linked.inodes, 4);
        fs::remove_file(top.join("out")).unwrap();
        fs::remove_file(top.join("again")).unwrap();
        fs::remove_file(top.join("a/b/file")).unwrap();
        assert_eq!(occupied(&top).inodes, before.inodes);
        assert_eq!(occupied(&dir.path().join("absent")), Occupied::default());
        assert_eq!(occupied(&top.join("a/b/file")), Occupied::default());
    }

    #[test]
    fn what_vanishes_and_appears_meanwhile_is_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().to_owned();
        std::thread::scope(|scope| {
            let churn = scope.spawn(|| {
                for round in 0..300 {
                    let name = top.join(format!("d{}", round % 3));
                    fs::create_dir_all(name.join("x/y")).unwrap();
                    fs::write(name.join("x/y/f"), "1").unwrap();
                    fs::remove_dir_all(name).unwrap();
                }
            });
            while !churn.is_finished() {
                assert!(occupied(&top).inodes <= 12);
            }
        });
        assert_eq!(occupied(&top), Occupied::default());
    }

    #[test]
    fn a_tree_of_any_depth_is_walked() {
        let dir = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        for _ in 0..DEPTH + 50 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        assert_eq!(occupied(dir.path()).inodes, DEPTH as u64);
    }
}
