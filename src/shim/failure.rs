//! Why a request was not done, as the daemon is told.

use std::io;

use nix::errno::Errno;

use super::logfile::LogError;
use crate::runtime::RuntimeError;
use crate::runtime::cgroup::CgroupError;
use crate::wire::pb;
use crate::wire::pb::error::Kind;

/// An error reply in the making.
#[derive(Debug, Clone)]
pub struct Failure(pb::Error);

impl Failure {
    /// Of this kind, with one sentence for a person.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(pb::Error { kind: kind.into(), step: String::new(), errno: 0, message: message.into() })
    }

    /// The object is in no state for this.
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// There is no such object.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// The request cannot be right.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// A step on an object failed.
    #[must_use]
    pub fn io(what: &str, source: &io::Error) -> Self {
        let errno = source.raw_os_error().unwrap_or(0);
        let reason = match errno {
            0 => source.to_string(),
            errno => format!("{:?}", Errno::from_raw(errno)),
        };
        Self::new(kind_of(errno), format!("{what}: {reason}")).errno(errno)
    }

    /// What a container's or exec session's first process said before it ended.
    #[must_use]
    pub fn of_init(step: String, errno: i32, message: String) -> Self {
        let kind = kind_of_step(&step, errno);
        Self(pb::Error { kind: kind.into(), step, errno, message })
    }

    /// With this errno.
    #[must_use]
    pub fn errno(mut self, errno: i32) -> Self {
        self.0.errno = errno;
        self
    }

    /// In this step.
    #[must_use]
    pub fn step(mut self, step: impl Into<String>) -> Self {
        self.0.step = step.into();
        self
    }

    /// The sentence.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// As it travels.
    #[must_use]
    pub fn into_reply(self) -> pb::reply::Body {
        pb::reply::Body::Error(self.0)
    }
}

/// What an errno says whatever the step.
fn kind_of(errno: i32) -> Kind {
    match Errno::from_raw(errno) {
        Errno::ENOSPC | Errno::EDQUOT => Kind::NoSpace,
        Errno::ENOSYS | Errno::EOPNOTSUPP => Kind::Unsupported,
        Errno::ETIMEDOUT => Kind::Deadline,
        _ => Kind::Internal,
    }
}

/// What an errno says about what was asked for: a program, path, user or source that is not there or not right is the
/// request's fault.
fn kind_of_step(step: &str, errno: i32) -> Kind {
    const ASKED: [Errno; 10] = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::EACCES,
        Errno::ELOOP,
        Errno::ENAMETOOLONG,
        Errno::ENOEXEC,
        Errno::E2BIG,
        Errno::EINVAL,
        Errno::EXDEV,
    ];
    match kind_of(errno) {
        Kind::Internal if ASKED.contains(&Errno::from_raw(errno)) && step != "cgroup" => Kind::Invalid,
        kind => kind,
    }
}

impl From<LogError> for Failure {
    fn from(e: LogError) -> Self {
        let kind = match kind_of(e.errno()) {
            Kind::Internal => Kind::Invalid,
            kind => kind,
        };
        Self::new(kind, e.to_string()).errno(e.errno()).step("log")
    }
}

impl From<CgroupError> for Failure {
    fn from(e: CgroupError) -> Self {
        let errno = e.errno().map_or(0, |errno| errno as i32);
        let kind = match &e {
            CgroupError::Path { .. } | CgroupError::Value { .. } => Kind::Invalid,
            CgroupError::Kernel { errno: Errno::EINVAL | Errno::ERANGE, .. } => Kind::Invalid,
            CgroupError::BelowUsage { .. } => Kind::Refused,
            _ => kind_of(errno),
        };
        Self::new(kind, e.to_string()).errno(errno).step("cgroup")
    }
}

impl From<RuntimeError> for Failure {
    fn from(e: RuntimeError) -> Self {
        let errno = e.errno().map_or(0, |errno| errno as i32);
        let step = match &e {
            RuntimeError::Cgroup(_) => "cgroup",
            RuntimeError::Step { step, .. } => step,
            RuntimeError::Plan(message) => return Self::invalid(message.clone()),
            RuntimeError::Lost { .. } => "",
        };
        Self::of_init(step.to_owned(), errno, e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(failure: Failure) -> Kind {
        failure.0.kind()
    }

    #[test]
    fn errnos_become_kinds() {
        let of = |step: &str, errno: Errno| kind(Failure::of_init(step.into(), errno as i32, String::new()));
        assert_eq!(of("exec", Errno::ENOENT), Kind::Invalid);
        assert_eq!(of("exec", Errno::ENOMEM), Kind::Internal);
        assert_eq!(of("rootfs", Errno::ENOSPC), Kind::NoSpace);
        assert_eq!(of("mounts", Errno::ENOSYS), Kind::Unsupported);
        assert_eq!(of("cgroup", Errno::ENOENT), Kind::Internal);
        assert_eq!(kind(Failure::io("make pipe", &Errno::EMFILE.into())), Kind::Internal);
        assert_eq!(Failure::io("make pipe", &Errno::EMFILE.into()).message(), "make pipe: EMFILE");
    }
}
