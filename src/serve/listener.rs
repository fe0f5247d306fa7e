//! The daemon's socket: private from birth, never two daemons on one, never a dead one in the way.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, process};

use nix::errno::Errno;
use tokio::net::UnixListener;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("somebody listens on {} already; stop it, or give this daemon another {option}", path.display())]
    Live { path: PathBuf, option: &'static str },
    #[error("{} is there and no socket; move it away, or give another {option}", path.display())]
    NotASocket { path: PathBuf, option: &'static str },
    #[error("socket path {} is longer than 107 bytes; give a shorter {option}", path.display())]
    TooLong { path: PathBuf, option: &'static str },
    #[error("{step} {}: {:?}", path.display(), Errno::from_raw(source.raw_os_error().unwrap_or(0)))]
    Io { step: &'static str, path: PathBuf, source: io::Error },
}

/// A listening socket and the file it is found at.
#[derive(Debug)]
pub struct Bound {
    listener: StdListener,
    path: PathBuf,
    /// Device and inode: a successor's file at the same path is not ours to remove.
    file: (u64, u64),
}

impl Bound {
    /// Listens at `path`, for root alone. A socket that a dead daemon left there is replaced. `option` is what whoever
    /// wants another path has to change.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn new(path: &Path, option: &'static str) -> Result<Self, ListenError> {
        let io = |step| move |source| ListenError::Io { step, path: path.to_owned(), source };
        let dir = path.parent().unwrap_or(Path::new("/"));
        aril::disk::private_dir(dir).map_err(io("make the directory of socket"))?;
        check_place(path, option)?;
        // Born under a name of its own: only when it is private does it get the one that clients know.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.{}", process::id()));
        // One left by a daemon of the same number.
        fs::remove_file(&temporary).ok();
        let bound = StdListener::bind(&temporary).map_err(|e| match e.raw_os_error() {
            // The standard library counts the bytes itself.
            None => ListenError::TooLong { path: path.to_owned(), option },
            Some(_) => io("bind socket")(e),
        })?;
        let published = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| bound.set_nonblocking(true))
            .and_then(|()| fs::symlink_metadata(&temporary))
            .and_then(|meta| fs::rename(&temporary, path).map(|()| (meta.dev(), meta.ino())));
        match published {
            Ok(file) => Ok(Self { listener: bound, path: path.to_owned(), file }),
            Err(e) => {
                // The first error is the one to tell.
                fs::remove_file(&temporary).ok();
                Err(io("publish socket")(e))
            }
        }
    }

    /// The socket for the event loop. Needs a tokio runtime.
    ///
    /// # Errors
    /// As dup(2) and epoll_ctl(2).
    pub fn listener(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.listener.try_clone()?)
    }

    /// Takes the file away, if it is still ours.
    pub fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            // The next daemon replaces what cannot be removed.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Refuses a place where a daemon lives, or where something else is.
fn check_place(path: &Path, option: &'static str) -> Result<(), ListenError> {
    // Longer than `sockaddr_un` holds, the connection below would fail for that reason and hide a living daemon.
    if path.as_os_str().len() > 107 {
        return Err(ListenError::TooLong { path: path.to_owned(), option });
    }
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ListenError::Io { step: "look at socket", path: path.to_owned(), source }),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned(), option });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::Live { path: path.to_owned(), option }),
        // Only this says that nobody listens.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(source) => Err(ListenError::Io { step: "try socket", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("aril.sock");
        let bound = Bound::new(&path, "--socket").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
        let error = Bound::new(&path, "--socket").unwrap_err().to_string();
        assert!(error.starts_with("somebody listens on "), "{error}");
        bound.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_successors_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aril.sock");
        let dead = Bound::new(&path, "--socket").unwrap();
        let file = dead.file;
        drop(dead.listener);
        let alive = Bound::new(&path, "--socket").unwrap();
        UnixStream::connect(&path).unwrap();
        Bound { listener: alive.listener.try_clone().unwrap(), path: path.clone(), file }.remove();
        assert!(path.exists());
    }

    #[test]
    fn other_files_and_long_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "x").unwrap();
        assert!(matches!(Bound::new(&path, "--socket"), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"x");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(Bound::new(&long, "--socket"), Err(ListenError::TooLong { .. })));
    }
}
