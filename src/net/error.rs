//! Why a network could not be made, or not be taken away.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why something about a pod's network failed: the step, the object, the reason.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NetError {
    /// The request can never be right.
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    /// The driver cannot do this.
    #[error("{field}: {reason}")]
    Unsupported { field: String, reason: String },
    /// A host port or address is somebody else's.
    #[error("{what} is taken by {owner}")]
    Taken { what: String, owner: String },
    /// No address is left.
    #[error("network {network} has no free address in {range}; {hint}")]
    Exhausted { network: String, range: String, hint: String },
    /// No pod can be connected now.
    #[error("{reason}")]
    NotReady { reason: String },
    /// A plugin said no, or nothing one can read.
    #[error("CNI plugin {plugin} of network {network}, {step}: {reason}")]
    Plugin { plugin: String, network: String, step: &'static str, reason: String },
    /// A plugin took too long.
    #[error("CNI plugin {plugin} of network {network}, {step}: no answer within {} s", limit.as_secs())]
    Deadline { plugin: String, network: String, step: &'static str, limit: Duration },
    /// All plugins together took too long, and this one was not reached, or was at work.
    #[error(
        "CNI plugin {plugin} of network {network}, {step}: no answer within the {} s that all plugins of the network \
         have together",
        limit.as_secs_f32()
    )]
    Late { plugin: String, network: String, step: &'static str, limit: Duration },
    /// The kernel refused.
    #[error("{step} {object}: {source}")]
    Kernel { step: &'static str, object: String, source: io::Error },
    /// A driver gave up in a way it must not.
    #[error("network driver {driver} panicked: {message}; this is a flaw of aril")]
    Panicked { driver: String, message: String },
    /// A file could not be read or written.
    #[error("{step} {}: {source}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
}

/// What is still there of a network that was to go.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Leftover {
    /// "lease 10.88.0.7 of sandbox …", "CNI DEL by portmap".
    pub what: String,
    /// Why it is still there.
    pub reason: String,
}
