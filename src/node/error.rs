//! Why the node could not do what it was asked to.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::spec::{self, SpecError};
use super::store::StoreError;
use crate::compile::CompileError;
use crate::net::NetError;
use crate::wire::client::WireError;

/// Why the node could not do what it was asked to. `cri` maps each to a gRPC code.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No such sandbox.
    #[error("no sandbox has the id {0:?}")]
    NoSandbox(String),
    /// No such container.
    #[error("no container has the id {0:?}")]
    NoContainer(String),
    /// The image of a container is not on this node.
    #[error("image {0:?} is not on this node: pull it first")]
    NoImage(String),
    /// The image of a volume is not on this node; kubelet knows the prefix.
    #[error("ImageVolumeMountFailed: {field}: image {image:?} is not on this node: pull it first")]
    NoVolumeImage {
        /// Which mount of the request.
        field: String,
        /// As it was asked for.
        image: String,
    },
    /// The image of a volume could not be mounted; kubelet knows the prefix.
    #[error("ImageVolumeMountFailed: {0}")]
    ImageVolume(String),
    /// Half an id that is the start of several.
    #[error("{count} {objects} have an id that starts with {prefix:?}: give more of it")]
    Ambiguous {
        /// "sandboxes" or "containers".
        objects: &'static str,
        /// What was given.
        prefix: String,
        /// How many it fits.
        count: usize,
    },
    /// A field of the request is missing or cannot be right.
    #[error("{field}: {problem}")]
    Invalid {
        /// As in CRI ("config.metadata.name").
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The name is taken by something else.
    #[error("{object} {name} exists already ({id}), {difference}: remove it or ask for another attempt")]
    Exists {
        /// "sandbox" or "container".
        object: &'static str,
        /// The name with its attempt.
        name: String,
        /// Id of the one there is.
        id: String,
        /// Why it is not what was asked for.
        difference: &'static str,
    },
    /// The object is in a state in which this cannot be done.
    #[error("{object} {id} is {state}: cannot {operation}")]
    Refused {
        /// "sandbox" or "container".
        object: &'static str,
        /// Its id.
        id: String,
        /// Its state.
        state: &'static str,
        /// What was asked for.
        operation: &'static str,
    },
    /// The CRI config makes no container.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The OCI spec cannot be carried out.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A record could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The shim refused or failed.
    #[error("{step} {object}")]
    Shim {
        /// What was to be done ("create container").
        step: &'static str,
        /// With what.
        object: String,
        /// What the shim says.
        source: WireError,
    },
    /// Something took too long.
    #[error("{step} {object} took longer than {}s{hint}", limit.as_secs_f64())]
    Deadline {
        /// What was under way.
        step: &'static str,
        /// With what.
        object: String,
        /// How long was waited.
        limit: Duration,
        /// What may be the matter (starts with ": "), or empty.
        hint: &'static str,
    },
    /// One of our own files or programs failed us.
    #[error("{step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image store could not be opened.
    #[error("open the image store: {0}")]
    Images(crate::image::StoreError),
    /// The pod's network could not be made, or what was asked of the network not be done.
    #[error("{message}")]
    Network {
        /// Step, plugin or field, and reason.
        message: String,
        /// What sort of failure.
        kind: ErrorKind,
    },
    /// Nobody answers at a port of a pod.
    #[error("connect to port {port} of sandbox {sandbox}: {source}{hint}")]
    Connect {
        /// On localhost in the pod.
        port: u16,
        /// The start of its id.
        sandbox: String,
        /// What may be the matter (starts with "; "), or empty.
        hint: &'static str,
        /// As connect(2).
        source: io::Error,
    },
    /// The task of a pod ended while it was asked.
    #[error("{object} {id} went away meanwhile")]
    Gone {
        /// "sandbox" or "container".
        object: &'static str,
        /// Its id.
        id: String,
    },
}

/// Said when a killed process does not die.
pub(super) const STUCK: &str = ": a process of it hangs in the kernel (state D), often on a dead network filesystem";

/// What sort of failure it is, whatever failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such object.
    NotFound,
    /// The request can never be right.
    Invalid,
    /// This runtime does not do that.
    Unsupported,
    /// There is another object of this name.
    Exists,
    /// The object's state does not allow it.
    Refused,
    /// The disk is full.
    NoSpace,
    /// It took too long.
    Deadline,
    /// What should have done it went away; asking again may help.
    Unavailable,
    /// Anything else.
    Internal,
}

impl NodeError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSandbox(_) | Self::NoContainer(_) | Self::NoImage(_) | Self::NoVolumeImage { .. } => {
                ErrorKind::NotFound
            }
            Self::Ambiguous { .. } | Self::Invalid { .. } | Self::Compile(_) => ErrorKind::Invalid,
            // Nearly always a sub path that is not there.
            Self::ImageVolume(_) => ErrorKind::Invalid,
            Self::Spec(e) => match e.kind() {
                spec::Kind::InvalidArgument => ErrorKind::Invalid,
                spec::Kind::Unimplemented => ErrorKind::Unsupported,
            },
            Self::Exists { .. } => ErrorKind::Exists,
            Self::Refused { .. } => ErrorKind::Refused,
            Self::Store(e) if e.is_full() => ErrorKind::NoSpace,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            Self::Store(_) | Self::Io { .. } | Self::Images(_) => ErrorKind::Internal,
            Self::Shim { source, .. } => shim_kind(source),
            Self::Deadline { .. } => ErrorKind::Deadline,
            Self::Network { kind, .. } => *kind,
            Self::Connect { .. } | Self::Gone { .. } => ErrorKind::Unavailable,
        }
    }

    /// The step that failed, one of few: names of objects are not in it.
    #[must_use]
    pub fn failed_step(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Shim { step, source: WireError::Shim { step: inner, .. }, .. } if !inner.is_empty() => {
                return Cow::Owned(format!("{step}: {inner}"));
            }
            Self::Shim { step, .. } | Self::Deadline { step, .. } | Self::Io { step, .. } => step,
            Self::Store(_) => "write a record",
            Self::Images(_) => "open the image store",
            Self::Network { .. } => "network",
            Self::Connect { .. } => "connect to a port",
            Self::ImageVolume(_) => "mount an image",
            Self::NoImage(_) | Self::NoVolumeImage { .. } => "find the image",
            Self::Spec(_) | Self::Compile(_) => "make the spec",
            Self::NoSandbox(_) | Self::NoContainer(_) | Self::Ambiguous { .. } | Self::Gone { .. } => "find the object",
            Self::Invalid { .. } | Self::Exists { .. } | Self::Refused { .. } => "check the request",
        })
    }

    pub(super) fn shim(step: &'static str, object: impl ToString) -> impl FnOnce(WireError) -> Self {
        let object = object.to_string();
        move |source| Self::Shim { step, object, source }
    }

    /// A failed set-up of a sandbox's network; an error about a field of the request needs no more words.
    pub(super) fn network(sandbox: &str) -> impl FnOnce(NetError) -> Self {
        let step = format!("set up the network of sandbox {sandbox}");
        move |e| match e {
            NetError::Invalid { .. } | NetError::Unsupported { .. } => Self::about_network(e),
            e => Self::Network { message: format!("{step}: {e}"), kind: network_kind(&e) },
        }
    }

    /// What was asked of the network as a whole could not be done.
    #[allow(clippy::needless_pass_by_value)] // the shape map_err wants
    pub(super) fn about_network(e: NetError) -> Self {
        Self::Network { message: e.to_string(), kind: network_kind(&e) }
    }

    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }

    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }
}

fn network_kind(error: &NetError) -> ErrorKind {
    match error {
        NetError::Invalid { .. } => ErrorKind::Invalid,
        NetError::Unsupported { .. } => ErrorKind::Unsupported,
        NetError::Taken { .. } => ErrorKind::Refused,
        NetError::Exhausted { .. } => ErrorKind::NoSpace,
        NetError::NotReady { .. } => ErrorKind::Unavailable,
        NetError::Deadline { .. } | NetError::Late { .. } => ErrorKind::Deadline,
        NetError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        NetError::Plugin { .. } | NetError::Kernel { .. } | NetError::Panicked { .. } | NetError::Io { .. } => {
            ErrorKind::Internal
        }
    }
}

fn shim_kind(error: &WireError) -> ErrorKind {
    use crate::wire::pb::error::Kind;
    match (error, error.kind()) {
        (WireError::Gone, _) => ErrorKind::Unavailable,
        (_, Some(Kind::NotFound)) => ErrorKind::NotFound,
        (_, Some(Kind::Refused)) => ErrorKind::Refused,
        (_, Some(Kind::Invalid)) => ErrorKind::Invalid,
        (_, Some(Kind::Deadline)) => ErrorKind::Deadline,
        (_, Some(Kind::NoSpace)) => ErrorKind::NoSpace,
        (_, Some(Kind::Unsupported)) => ErrorKind::Unsupported,
        (_, Some(Kind::Internal) | None) => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain;
    use super::*;
    use crate::wire::pb::error::Kind;

    #[test]
    fn every_cause_is_told_in_one_sentence() {
        let message = "exec \"/x\": ENOENT, is it in the image?".into();
        let source = WireError::Shim { kind: Kind::Refused, step: "exec".into(), errno: 2, message };
        let error = NodeError::shim("start container", "abc")(source);
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.failed_step(), "start container: exec");
        assert_eq!(chain(&error), "start container abc: exec \"/x\": ENOENT, is it in the image?");
    }

    #[test]
    fn a_full_disk_and_a_lost_shim_are_told_apart() {
        let full = || io::Error::from_raw_os_error(28);
        assert_eq!(NodeError::io("write", "/x")(full()).kind(), ErrorKind::NoSpace);
        let store = StoreError::Io { step: "write", path: "/x".into(), source: full() };
        assert_eq!(NodeError::Store(store).kind(), ErrorKind::NoSpace);
        assert_eq!(NodeError::shim("start container", "abc")(WireError::Gone).kind(), ErrorKind::Unavailable);
    }
}
