//! Why the node could not do what it was asked to.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::spec::SpecError;
use super::store::StoreError;
use crate::compile::CompileError;
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
    #[error("image {0:?} is not on this node: import it with `aril image import`")]
    NoImage(String),
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
    /// Something this runtime does not do.
    #[error("{what} is not supported: {instead}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do.
        instead: &'static str,
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
    #[error("{step} of {object}")]
    Shim {
        /// What was to be done ("create container").
        step: &'static str,
        /// With what.
        object: String,
        /// What the shim says.
        source: WireError,
    },
    /// Something took too long.
    #[error("{step} of {object} took longer than {}s{hint}", limit.as_secs_f64())]
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

impl NodeError {
    pub(super) fn shim(step: &'static str, object: impl ToString) -> impl FnOnce(WireError) -> Self {
        let object = object.to_string();
        move |source| Self::Shim { step, object, source }
    }

    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }

    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }
}
