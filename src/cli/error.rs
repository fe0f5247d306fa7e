//! What can go wrong in a command, each in one sentence, with the exit code a script sees.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CliError {
    #[error(
        "no daemon listens on {} ({}); start one with `{start}`, or let `aril run` bring one up",
        socket.display(),
        errno(source)
    )]
    NoDaemon { socket: PathBuf, source: io::Error, start: String },
    #[error("the daemon refused this user at {} ({}); run aril as root", socket.display(), errno(source))]
    NotAllowed { socket: PathBuf, source: io::Error },
    #[error("connect to the daemon on {}: {}; look at its log, or restart it", socket.display(), errno(source))]
    Connect { socket: PathBuf, source: io::Error },
    #[error("{}", status_text(.0))]
    Daemon(Status),
    #[error("no {kind} has the name or id {name:?}; see `{list}`")]
    NotFound { kind: &'static str, name: String, list: &'static str },
    #[error("{name:?} means more than one: {}; write more of the id, or POD/NAME", candidates.join(", "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    #[error("{doing}: {}", errno(source))]
    Io { doing: String, source: io::Error },
    /// A container's program could not be started; the code is 126 or 127.
    #[error("{message}")]
    Start { code: u8, message: String },
    /// Some of several objects failed; each was told already.
    #[error("{failed} of {of} failed")]
    Several { failed: usize, of: usize },
    /// Whoever read our output has gone.
    #[error("standard output was closed")]
    OutputClosed,
}

impl CliError {
    /// For a step on a file: "open log /x: ENOENT (No such file or directory)".
    pub(super) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    /// The exit code: 2 for wrong use, 125 to 127 as container tools have it for `run`, else 1.
    #[must_use]
    pub fn code(&self, running: bool) -> u8 {
        match self {
            Self::Start { code, .. } => *code,
            // As a program dies that writes into a closed pipe.
            Self::OutputClosed => 141,
            Self::Usage(_) if !running => 2,
            _ if running => 125,
            _ => 1,
        }
    }

    /// Whether there is nothing to be told.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::OutputClosed)
    }

    /// From a failed connect(2) to `socket`.
    pub(super) fn connect(socket: &Path, source: io::Error, start: String) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NoDaemon { socket, source, start },
            io::ErrorKind::PermissionDenied => Self::NotAllowed { socket, source },
            _ => Self::Connect { socket, source },
        }
    }
}

impl From<io::Error> for CliError {
    /// From reading a log, the only thing that is read bit by bit.
    fn from(source: io::Error) -> Self {
        Self::io("read the log", source)
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Daemon(status)
    }
}

/// The name of the error number, for people who look it up, else the text.
pub(super) fn errno(e: &io::Error) -> String {
    match e.raw_os_error().map(Errno::from_raw) {
        Some(errno) => format!("{errno:?}"),
        None => e.to_string(),
    }
}

/// The daemon's own sentence; where the transport broke instead, one of ours.
fn status_text(status: &Status) -> String {
    let lost = std::error::Error::source(status).is_some() || status.message().is_empty();
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal if lost => {
            "the daemon went away before it answered; its pods go on, see its log and start it again".to_owned()
        }
        Code::Unimplemented if status.message().is_empty() => {
            "the daemon does not know this request; it is older than this program, restart it".to_owned()
        }
        _ if status.message().is_empty() => format!("the daemon answered {:?} and gave no reason", status.code()),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_daemon_is_named_with_the_remedy() {
        let source = io::Error::from_raw_os_error(Errno::ENOENT as i32);
        let error = CliError::connect(Path::new("/run/aril/aril.sock"), source, "aril serve".into());
        assert_eq!(
            error.to_string(),
            "no daemon listens on /run/aril/aril.sock (ENOENT); start one with `aril serve`, or let `aril run` bring one up"
        );
        let source = io::Error::from_raw_os_error(Errno::EACCES as i32);
        assert!(CliError::connect(Path::new("/s"), source, String::new()).to_string().contains("as root"));
    }

    #[test]
    fn the_daemons_words_are_passed_on() {
        let error = CliError::from(Status::not_found("no image x; import it"));
        assert_eq!(error.to_string(), "no image x; import it");
        assert!(CliError::from(Status::unavailable("")).to_string().contains("went away"));
    }

    #[test]
    fn exit_codes() {
        let failed = CliError::Failed(String::new());
        assert_eq!((failed.code(false), failed.code(true)), (1, 125));
        assert_eq!(CliError::Usage(String::new()).code(false), 2);
        assert_eq!(CliError::Start { code: 127, message: String::new() }.code(true), 127);
    }
}
