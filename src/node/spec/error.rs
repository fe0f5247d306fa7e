//! Why a request cannot be turned into a spec.

use nix::errno::Errno;

/// Names the CRI field that is to blame. Texts are for the person who wrote the pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The field can never be right, whatever the state of the node.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field in its CRI message.
        field: String,
        /// What is wrong, and what to do if that is not obvious.
        reason: String,
    },
    /// The field asks for what this version does not do.
    #[error("{field}: {what} not supported by this version of aril")]
    Unimplemented {
        /// Path of the field in its CRI message.
        field: String,
        /// With its verb: "CDI devices are".
        what: String,
    },
    /// `recursive_read_only` where it cannot hold; kubelet knows the prefix.
    #[error("RROUnsupported: {field}: {reason}")]
    RecursiveReadOnly {
        /// Path of the field in its CRI message.
        field: String,
        /// The rule that is broken.
        reason: String,
    },
    /// An image as a volume; kubelet knows the prefix.
    #[error("ImageVolumeMountFailed: {field}: {reason}")]
    ImageVolume {
        /// Path of the field in its CRI message.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A device of the host could not be looked at.
    #[error("{field}: look up device {path}: {errno}")]
    Device {
        /// Path of the field in its CRI message.
        field: String,
        /// On the host.
        path: String,
        /// `ENODEV` if it is no device.
        errno: Errno,
    },
}

/// Which answer an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// gRPC `InvalidArgument`.
    InvalidArgument,
    /// gRPC `Unimplemented`.
    Unimplemented,
}

impl SpecError {
    /// Which answer it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } | Self::RecursiveReadOnly { .. } | Self::ImageVolume { .. } | Self::Device { .. } => {
                Kind::InvalidArgument
            }
            Self::Unimplemented { .. } => Kind::Unimplemented,
        }
    }

    pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    pub(super) fn unimplemented(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unimplemented { field: field.into(), what: what.into() }
    }
}
