//! Small files that are whole or absent: written beside their place and renamed into it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of any process. Enough for all that a reboot ends anyway.
    Process,
    /// A power cut: file and directory are synced.
    Power,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Replaces `path` by `bytes` (mode 0600) in one step.
///
/// # Errors
/// Any of open(2), write(2), fsync(2), rename(2); then `path` is as it was and nothing is left beside it.
pub fn write_atomic(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = temporary_name(path);
    let result = write_new(&temporary, bytes, durability).and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = result {
        // The first error is the one to tell.
        fs::remove_file(&temporary).ok();
        return Err(e);
    }
    if durability == Durability::Power
        && let Some(dir) = path.parent()
    {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Whether a directory entry is a leftover of an interrupted [`write_atomic`].
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Makes `path` and what is missing above it as directories only root can enter (0700).
///
/// # Errors
/// As mkdir(2); an existing directory is none.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}.{serial}.tmp", std::process::id()))
}

fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if durability == Durability::Power {
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        write_atomic(&path, b"one", Durability::Process).unwrap();
        write_atomic(&path, b"two", Durability::Power).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"x", Durability::Process).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_are_known_by_name() {
        assert!(is_temporary(temporary_name(Path::new("/x/a.json")).file_name().unwrap().to_str().unwrap()));
        assert!(!is_temporary("a.json"));
    }
}
