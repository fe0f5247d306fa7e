//! What can go wrong with a cgroup, each told in one sentence.

use nix::errno::Errno;

/// Why an operation on a cgroup failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// The path is none that we would touch.
    #[error("cgroup path {path:?}: {reason}")]
    Path {
        /// As given, clipped.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Neither a cgroup v1 nor a v2 filesystem is mounted.
    #[error("find the cgroup hierarchies: none is mounted; mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup")]
    NoHierarchy,
    /// The kernel refused a step.
    #[error("{step} {object}: {errno:?}{hint}")]
    Kernel {
        /// What was being done ("make cgroup").
        step: &'static str,
        /// To what: hierarchy and path, and the file if there is one.
        object: String,
        /// The kernel's answer.
        errno: Errno,
        /// Empty, or "; what it means and what to try".
        hint: &'static str,
    },
    /// A value the kernel would not take, found before anything was written.
    #[error("{what}: {reason}")]
    Value {
        /// Field and value.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The limit is below what is in use, and the use cannot be reclaimed.
    #[error(
        "set memory.max of cgroup {path} to {limit_bytes} bytes: {usage_bytes} bytes are in use and cannot be \
         reclaimed; stop something in it or choose a higher limit"
    )]
    BelowUsage {
        /// The cgroup.
        path: String,
        /// What was asked for.
        limit_bytes: u64,
        /// What is in use.
        usage_bytes: u64,
    },
    /// A limit was refused, and one written before it could not be put back.
    #[error("{cause}; and {object} could not be put back: {errno:?}")]
    NotRestored {
        /// Why the limits were to be put back.
        cause: Box<CgroupError>,
        /// File and cgroup that keep the new value.
        object: String,
        /// Why.
        errno: Errno,
    },
    /// Processes remain in it.
    #[error("remove cgroup {object}: EBUSY; processes remain in it, kill them first")]
    Busy {
        /// Hierarchy and path.
        object: String,
    },
    /// New processes appear faster than they are killed.
    #[error("kill cgroup {path}: processes still appear after {rounds} rounds; set pids.max and try again")]
    Unkillable {
        /// The cgroup.
        path: String,
        /// How often its processes were listed and killed.
        rounds: u32,
    },
}

impl CgroupError {
    /// The kernel's answer, if it was the kernel that said no.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Busy { .. } => Some(Errno::EBUSY),
            Self::NoHierarchy => Some(Errno::ENODEV),
            Self::Path { .. } | Self::Value { .. } => Some(Errno::EINVAL),
            Self::BelowUsage { .. } => Some(Errno::EBUSY),
            Self::NotRestored { cause, .. } => cause.errno(),
            Self::Unkillable { .. } => None,
        }
    }

    pub(super) fn kernel(step: &'static str, object: String, errno: Errno) -> Self {
        Self::Kernel { step, object, errno, hint: "" }
    }
}

/// The start of a hostile text is enough to name it.
pub(super) fn clipped(s: &str) -> String {
    s.chars().take(120).collect()
}
