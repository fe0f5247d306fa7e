//! Why an image cannot be imported or stored: one sentence each.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::id::Digest;
use crate::image::reference::ReferenceError;

/// Why an image was not imported or pulled. Nothing of it is visible then, and its space is given back.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive itself cannot be read.
    #[error("{step} {}: {}", path.display(), reason(source))]
    Archive { step: &'static str, path: PathBuf, source: io::Error },
    /// Neither `index.json` nor `manifest.json` is in it.
    #[error("{} is neither an OCI image layout nor a docker save archive: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    /// A document or layer named by another is not in the archive.
    #[error("the archive lacks {name}; was it saved for another platform or cut short?")]
    Missing { name: String },
    /// A document is not what the specification says.
    #[error("{document} is malformed: {reason}")]
    Document { document: String, reason: String },
    /// More of something than [`crate::image::Limits`] allows.
    #[error("{object} has more than {limit} {what}, the most that is accepted")]
    Limit { object: String, what: &'static str, limit: u64 },
    /// The bytes are not those the digest was made of.
    #[error("{object} has digest {actual}, not {expected}: the data is damaged or forged")]
    DigestMismatch { object: String, expected: Digest, actual: Digest },
    /// The size differs from the one in the descriptor.
    #[error("{object} has {actual} bytes, not {expected}: the data is damaged or forged")]
    SizeMismatch { object: String, expected: u64, actual: u64 },
    /// No image for this machine.
    #[error("there is no image for {wanted} in it, only for {}", offered.join(", "))]
    Platform { wanted: String, offered: Vec<String> },
    /// A name for several images.
    #[error("the archive holds {images} images, so a name for one of them cannot be chosen")]
    Ambiguous { images: usize },
    /// The chosen name is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A layer could not be unpacked.
    #[error("unpack layer {layer}: {source}")]
    Unpack { layer: String, source: UnpackError },
    /// The result could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why one layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The compressed stream or the tar in it is damaged.
    #[error("{reason}: the layer is damaged or forged")]
    Damaged { reason: String },
    /// An entry that no honest archive has.
    #[error("entry {entry:?} is refused: {reason}")]
    Entry { entry: String, reason: &'static str },
    /// More of something than [`crate::image::Limits`] allows.
    #[error("it has more than {limit} {what}, the most that is accepted")]
    Limit { what: &'static str, limit: u64 },
    /// The disk is full, or would be.
    #[error("no space is left below {}: free some and try again", path.display())]
    DiskFull { path: PathBuf },
    /// A system call failed.
    #[error("{step} {object:?}: {errno}")]
    System { step: &'static str, object: String, errno: Errno },
    /// The blob could not be read.
    #[error("read the blob: {}", reason(source))]
    Read { source: io::Error },
    /// The bytes are not those the digest was made of.
    #[error("its {what} is {actual}, not {expected}: the data is damaged or forged")]
    Mismatch { what: &'static str, expected: String, actual: String },
}

/// Why the store on disk could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store.
    #[error("{step} {}: {}", path.display(), reason(source))]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    /// No file system below the store has room.
    #[error("no space is left below {}: free some and try again", path.display())]
    DiskFull { path: PathBuf },
    /// A layer that an image needs is not there any more.
    #[error("layer {key} of image {image} was removed meanwhile: try again")]
    LayerGone { key: String, image: Digest },
}

impl StoreError {
    /// An error of `step` on `path`; a full disk is told apart.
    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match is_full(&source) {
            true => Self::DiskFull { path },
            false => Self::Io { step, path, source },
        }
    }
}

/// Whether the error says that there is no room.
pub(super) fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT))
}

/// The errno by its name where there is one, for people.
fn reason(e: &io::Error) -> String {
    e.raw_os_error().map_or_else(|| e.to_string(), |raw| Errno::from_raw(raw).to_string())
}
