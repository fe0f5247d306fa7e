//! What the daemon has done when it finds a shim dead: the pod's processes killed, its cgroups removed.
//!
//! Does the same again without harm, and never touches a pod whose shim answers.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::runtime::cgroup::{CgroupError, Hierarchies, SWEEP_PATIENCE, sweep};
use crate::sys::socket;
use crate::wire::{CGROUPS_NAME, SOCKET_NAME, socket_path};

/// Longest list of cgroups read, in bytes.
const MAX_BOOK_BYTES: u64 = 16 * 1024 * 1024;

/// Why the leftovers of a shim could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// There is one.
    #[error("clean up {0}: its shim is alive; stop the pod instead")]
    Alive(String),
    /// The kernel refused a step.
    #[error("{step} {path}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// A cgroup resists.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Removes what a dead shim left for the pod with this run directory. Exit records stay: they are for the daemon.
///
/// # Errors
/// [`CleanupError`]; what could be removed has been.
pub fn cleanup(run_dir: &Path) -> Result<(), CleanupError> {
    let failed = |step, name: &str| {
        let path = run_dir.join(name).display().to_string();
        move |source| CleanupError::Io { step, path, source }
    };
    let dir = match File::open(run_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("open", ""))?,
    };
    match socket::connect(&socket_path(dir.as_fd())) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
        // It may be too busy to take a connection, and still keeps its pod.
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(failed("connect to", SOCKET_NAME)(e)),
        _ => return Err(CleanupError::Alive(run_dir.display().to_string())),
    }
    let book = run_dir.join(CGROUPS_NAME);
    match read_bounded(&book) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => {
            let book = other.map_err(failed("read", CGROUPS_NAME))?;
            sweep(&Hierarchies::detect()?, &book, SWEEP_PATIENCE)?;
        }
    }
    for name in [CGROUPS_NAME, SOCKET_NAME] {
        match std::fs::remove_file(run_dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", name)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    File::open(path)?.take(MAX_BOOK_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_clean_up_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        cleanup(dir.path()).unwrap();
        cleanup(&dir.path().join("absent")).unwrap();
    }

    #[test]
    fn a_pod_with_a_shim_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let listener = socket::listen(path.to_str().unwrap()).unwrap();
        assert!(matches!(cleanup(dir.path()), Err(CleanupError::Alive(_))));
        drop(listener);
        cleanup(dir.path()).unwrap();
        assert!(!path.exists());
    }
}
