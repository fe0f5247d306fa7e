//! The file a container's log goes to.
//!
//! The log directory is the pod's; what lies below it may have been touched by somebody hostile, so nothing there is
//! reached through a link, and nothing but a regular file is written. A full disk loses output, never a
//! container: it is read on, counted, and written again as soon as there is room.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::log::Sink;

/// Why a log file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The path is none that lies below the log directory.
    #[error("log path {path}: must be absolute, below the log directory {}, and without \"..\"", directory.display())]
    Path {
        /// As asked for.
        path: String,
        /// The pod's.
        directory: PathBuf,
    },
    /// The kernel refused a step.
    #[error("{step} {}: {errno:?}{}", path.display(), hint(*errno))]
    Open {
        /// "open log directory", "open log" …
        step: &'static str,
        /// Host path.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Something else than a regular file is there.
    #[error("open log {}: no regular file; remove what is there", path.display())]
    NotRegular {
        /// Host path.
        path: PathBuf,
    },
}

impl LogError {
    /// The kernel's answer, 0 if it was not the kernel that said no.
    #[must_use]
    pub fn errno(&self) -> i32 {
        if let Self::Open { errno, .. } = self { *errno as i32 } else { 0 }
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ELOOP => "; a symbolic link is in the way, and logs are never written through one",
        Errno::ENXIO => "; a FIFO or socket is there, remove it",
        Errno::ENOSPC | Errno::EDQUOT => "; free some space",
        _ => "",
    }
}

/// Where a log file is: a directory that is trusted, and a path below it that is not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    directory: PathBuf,
    below: PathBuf,
}

impl Place {
    fn new(directory: &str, path: &str) -> Result<Self, LogError> {
        let refuse = || LogError::Path { path: path.to_owned(), directory: directory.into() };
        let whole = Path::new(path);
        let directory = match directory {
            "" => whole.parent().ok_or_else(refuse)?,
            given => Path::new(given),
        };
        let below = whole.strip_prefix(directory).map_err(|_| refuse())?;
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        // A byte of 0 would end the path early, a trailing slash name a directory.
        let odd = path.contains('\0') || path.ends_with('/');
        if !directory.is_absolute() || below.as_os_str().is_empty() || !plain || odd {
            return Err(refuse());
        }
        Ok(Self { directory: directory.to_owned(), below: below.to_owned() })
    }

    fn open(&self) -> Result<File, LogError> {
        let path = || self.directory.join(&self.below);
        let failed = |step, path| move |errno| LogError::Open { step, path, errno };
        let directory =
            open_log_directory(&self.directory).map_err(failed("open log directory", self.directory.clone()))?;
        let parent = match self.below.parent() {
            Some(parent) if parent != Path::new("") => {
                make_below(directory, parent).map_err(failed("make the directory of log", path()))?
            }
            _ => directory,
        };
        let file =
            open_file(&parent, self.below.file_name().unwrap_or_default()).map_err(failed("open log", path()))?;
        let status = fstat(&file).map_err(failed("open log", path()))?;
        if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(LogError::NotRegular { path: path() });
        }
        Ok(File::from(file))
    }
}

/// The pod's log directory, made if it is not there: kubelet makes it, other clients leave it to the runtime.
fn open_log_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
            open(path, flags, Mode::empty())
        }
        other => other,
    }
}

/// One step down at a time, no links; what is missing is made.
fn make_below(mut at: OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(resolve());
    for name in path.iter() {
        at = match openat2(&at, name, how) {
            Err(Errno::ENOENT) => {
                match mkdirat(&at, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e),
                }
                openat2(&at, name, how)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// `O_NONBLOCK`: a FIFO planted there is an error instead of an endless wait.
fn open_file(directory: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY
        | OFlag::O_APPEND
        | OFlag::O_CREAT
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).mode(Mode::from_bits_truncate(0o640)).resolve(resolve());
    openat2(directory.as_fd(), name, how)
}

fn resolve() -> ResolveFlag {
    ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

/// A log file, open for as long as its container is there.
#[derive(Debug)]
pub struct LogFile {
    place: Place,
    file: File,
    /// Bytes of the log lost since it last could be written; `None`: all is well.
    lost: Option<(u64, Errno)>,
    /// What there is to tell, and has not been told yet.
    note: Option<String>,
    /// The file ends inside a line.
    torn: bool,
}

impl LogFile {
    /// Opens the file at the host path `path`, which lies below `directory` (the file's own if empty), making what
    /// is missing.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(directory: &str, path: &str) -> Result<Self, LogError> {
        let place = Place::new(directory, path)?;
        let file = place.open()?;
        Ok(Self { place, file, lost: None, note: None, torn: false })
    }

    /// Goes on in the file its path names now.
    ///
    /// # Errors
    /// [`LogError`]; then the old file stays in use.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = self.place.open()?;
        self.torn = false;
        Ok(())
    }

    /// What somebody should know about this log: once when it cannot be written, once when it can again.
    pub fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    fn failed(&mut self, lost: usize, errno: Errno) {
        if self.lost.is_none() {
            let path = self.place.directory.join(&self.place.below);
            self.note = Some(format!("write log {}: {errno:?}; output is lost until it succeeds", path.display()));
        }
        let before = self.lost.map_or(0, |(bytes, _)| bytes);
        self.lost = Some((before + lost as u64, errno));
    }

    fn succeeded(&mut self) {
        if let Some((bytes, errno)) = self.lost.take() {
            let path = self.place.directory.join(&self.place.below);
            self.note = Some(format!("log {} is written again; {bytes} bytes were lost to {errno:?}", path.display()));
        }
    }

    /// Takes the piece of a line away that a write got done before it failed; tells how long it was.
    fn cut(&mut self, written: &[u8]) -> usize {
        let piece = written.iter().rev().take_while(|&&b| b != b'\n').count();
        if piece > 0 {
            let end = self.file.stream_position().unwrap_or(0).checked_sub(piece as u64);
            self.torn = end.is_none_or(|end| self.file.set_len(end).is_err());
        }
        piece
    }
}

impl Sink for LogFile {
    fn write(&mut self, lines: &[u8]) {
        if self.torn {
            match self.file.write_all(b"\n") {
                Ok(()) => self.torn = false,
                Err(e) => return self.failed(lines.len(), errno_of(&e)),
            }
        }
        let mut done = 0;
        while done < lines.len() {
            match self.file.write(&lines[done..]) {
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let piece = self.cut(&lines[..done]);
                    return self.failed(lines.len() - done + piece, errno_of(&e));
                }
            }
        }
        self.succeeded();
    }
}

fn errno_of(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn path(dir: &tempfile::TempDir, name: &str) -> String {
        dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn directory(dir: &tempfile::TempDir) -> &str {
        dir.path().to_str().unwrap()
    }

    #[test]
    fn made_with_its_directories_appended_and_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let name = path(&dir, "web/0.log");
        let mut log = LogFile::open(directory(&dir), &name).unwrap();
        log.write(b"one\n");
        assert_eq!(fs::metadata(&name).unwrap().permissions().mode() & 0o777, 0o640);
        fs::rename(&name, path(&dir, "web/0.log.1")).unwrap();
        log.write(b"two\n");
        log.reopen().unwrap();
        log.write(b"three\n");
        assert_eq!(fs::read(path(&dir, "web/0.log.1")).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::read(&name).unwrap(), b"three\n");
        drop(log);
        LogFile::open("", &name).unwrap().write(b"four\n");
        assert_eq!(fs::read(&name).unwrap(), b"three\nfour\n");
    }

    #[test]
    fn paths_stay_below_the_log_directory() {
        for (directory, path) in [
            ("/var/log/pods/p", "/var/log/pods/q/0.log"),
            ("/var/log/pods/p", "/var/log/pods/p"),
            ("/var/log/pods/p", "/var/log/pods/p/../q/0.log"),
            ("/var/log/pods/p", "c/0.log"),
            ("/var/log/pods/p", "/var/log/pods/p/c/"),
            ("/var/log/pods/p", "/var/log/pods/p/c\0/d"),
            ("logs", "logs/0.log"),
            ("", "0.log"),
            ("", "/"),
            ("", ""),
        ] {
            assert!(matches!(LogFile::open(directory, path), Err(LogError::Path { .. })), "{directory:?} {path:?}");
        }
    }

    #[test]
    fn no_link_is_followed_below_the_log_directory() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("victim"), b"").unwrap();
        symlink(other.path().join("victim"), dir.path().join("0.log")).unwrap();
        symlink(other.path(), dir.path().join("folder")).unwrap();
        symlink("/nowhere", dir.path().join("dangling")).unwrap();
        for name in ["0.log", "folder/victim", "folder/new", "dangling", "dangling/0.log"] {
            let e = LogFile::open(directory(&dir), &path(&dir, name)).unwrap_err();
            assert_eq!(e.errno(), Errno::ELOOP as i32, "{name}: {e}");
        }
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
        // The way to the log directory itself is the host's affair.
        let through = path(&dir, "folder");
        LogFile::open(&through, &format!("{through}/0.log")).unwrap();
    }

    #[test]
    fn only_regular_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = path(&dir, "fifo");
        nix::unistd::mkfifo(fifo.as_str(), Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(LogFile::open(directory(&dir), &fifo).unwrap_err().errno(), Errno::ENXIO as i32);
        // With a reader it could be opened.
        let _reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert!(matches!(LogFile::open(directory(&dir), &fifo), Err(LogError::NotRegular { .. })));
        fs::create_dir(path(&dir, "folder")).unwrap();
        assert!(LogFile::open(directory(&dir), &path(&dir, "folder")).is_err());
    }

    #[test]
    fn a_full_disk_loses_output_and_says_so_once() {
        let mut log = LogFile {
            place: Place::new("/dev", "/dev/full").unwrap(),
            file: fs::OpenOptions::new().append(true).open("/dev/full").unwrap(),
            lost: None,
            note: None,
            torn: false,
        };
        log.write(b"one\n");
        assert_eq!(log.take_note().unwrap(), "write log /dev/full: ENOSPC; output is lost until it succeeds");
        log.write(b"two\n");
        assert_eq!(log.take_note(), None);
        log.file = tempfile::tempfile().unwrap();
        log.write(b"three\n");
        assert_eq!(log.take_note().unwrap(), "log /dev/full is written again; 8 bytes were lost to ENOSPC");
        log.write(b"four\n");
        assert_eq!(log.take_note(), None);
    }

    #[test]
    fn a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let name = path(&dir, "0.log");
        let mut log = LogFile::open("", &name).unwrap();
        log.write(b"one\n");
        log.file.write_all(b"two\nthr").unwrap();
        assert_eq!(log.cut(b"two\nthr"), 3);
        log.write(b"four\n");
        assert_eq!(fs::read(&name).unwrap(), b"one\ntwo\nfour\n");
    }
}
