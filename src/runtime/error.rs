//! What goes wrong between a plan and a process.

use std::io;

use nix::errno::Errno;

use super::cgroup::CgroupError;

/// Why the shim could not set up a pod or clone a process.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The pod's or a container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A step in the shim itself.
    #[error("{step}: {source}")]
    Step {
        /// Name of the step.
        step: &'static str,
        /// What it could not do.
        source: StepError,
    },
    /// The plan asks for what cannot be.
    #[error("{0}")]
    Plan(String),
    /// A new process died or spoke nonsense before it was ready.
    #[error("the container's first process ended before it was ready, in or after step {after:?}")]
    Lost {
        /// The last thing known of it.
        after: String,
    },
}

impl RuntimeError {
    /// The kernel's reason, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Cgroup(e) => e.errno(),
            Self::Step { source, .. } => Some(source.errno),
            Self::Plan(_) | Self::Lost { .. } => None,
        }
    }
}

/// One thing that could not be done, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {}", describe(*errno))]
pub struct StepError {
    /// Verb and object ("mount proc on /proc").
    pub what: String,
    /// The reason.
    pub errno: Errno,
}

impl StepError {
    /// A refusal of ours, told with the errno that fits.
    pub(super) fn new(errno: Errno, what: impl Into<String>) -> Self {
        Self { what: what.into(), errno }
    }
}

/// `ENOENT (No such file or directory)`.
fn describe(errno: Errno) -> String {
    format!("{errno:?} ({})", errno.desc())
}

/// Says what was being done when a call failed.
pub(super) trait Doing<T> {
    /// `what`: verb and object.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|e| StepError::new(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw), what()))
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|errno| StepError::new(errno, what()))
    }
}

/// Names the step that a call of the shim itself belongs to.
pub(super) trait InStep<T> {
    fn in_step(self, step: &'static str) -> Result<T, RuntimeError>;
}

impl<T> InStep<T> for Result<T, StepError> {
    fn in_step(self, step: &'static str) -> Result<T, RuntimeError> {
        self.map_err(|source| RuntimeError::Step { step, source })
    }
}
