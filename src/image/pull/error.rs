//! Why a pull failed.

use std::sync::Arc;

use crate::image::error::{ImageError, StoreError, UnpackError};
use crate::image::registry::{RegistryError, RegistryErrorKind};

/// Why a pull failed: one sentence. Nothing of the image is visible then, and its space is given back, but for whole
/// layers kept for another try.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The registry does not give what was asked for.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What it gave is no image for this machine, or cannot be unpacked or stored.
    #[error(transparent)]
    Image(Arc<ImageError>),
    /// A task or thread died, for which the log has the reason.
    #[error("the pull died; the daemon's log says where")]
    Died,
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> Self {
        Self::Image(Arc::new(error))
    }
}

impl PullError {
    /// One word for what went wrong, of few.
    pub(super) fn word(&self) -> &'static str {
        let error = match self {
            Self::Registry(e) => return registry_word(e.kind()),
            Self::Died => return "died",
            Self::Image(e) => &**e,
        };
        match error {
            ImageError::Store(StoreError::DiskFull { .. })
            | ImageError::Unpack { source: UnpackError::DiskFull { .. }, .. } => "disk_full",
            ImageError::Store(_) | ImageError::Unpack { source: UnpackError::System { .. }, .. } => "store",
            ImageError::Limit { .. } | ImageError::Unpack { source: UnpackError::Limit { .. }, .. } => "limit",
            ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. } => "damaged",
            ImageError::Unpack { source: UnpackError::Damaged { .. } | UnpackError::Mismatch { .. }, .. } => "damaged",
            ImageError::Unpack { source: UnpackError::Read { .. }, .. } => "unavailable",
            ImageError::Platform { .. } => "platform",
            _ => "malformed",
        }
    }

    /// Whether the same pull may well succeed a little later, so that its layers are worth keeping.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Registry(e)
            if matches!(e.kind(), RegistryErrorKind::Unavailable | RegistryErrorKind::RateLimited))
    }
}

fn registry_word(kind: RegistryErrorKind) -> &'static str {
    match kind {
        RegistryErrorKind::NotFound => "not_found",
        RegistryErrorKind::Unauthorized => "unauthorized",
        RegistryErrorKind::RateLimited => "rate_limited",
        RegistryErrorKind::Unavailable => "unavailable",
        RegistryErrorKind::Tls => "tls",
        RegistryErrorKind::Protocol | RegistryErrorKind::NoRanges => "protocol",
        RegistryErrorKind::Limit => "limit",
        RegistryErrorKind::Mismatch => "damaged",
        RegistryErrorKind::Config => "config",
    }
}
