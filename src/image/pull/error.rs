//! Why a pull failed.

use std::sync::Arc;

use crate::image::error::ImageError;
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
    /// Whether the same pull may well succeed a little later, so that its layers are worth keeping.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Registry(e)
            if matches!(e.kind(), RegistryErrorKind::Unavailable | RegistryErrorKind::RateLimited))
    }
}
