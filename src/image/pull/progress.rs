//! Where a pull stands.

use crate::id::Digest;

/// Where a pull stands. Replaced as a whole, at most once for each MiB that comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Lowest first; empty until the manifest is known.
    pub layers: Vec<LayerProgress>,
}

/// What a pull is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Asks the registry what the reference means.
    #[default]
    Resolving,
    /// Fetches and unpacks layers.
    Layers,
    /// Brings them to the disk and makes the image visible.
    Committing,
    /// The image is there.
    Done,
}

/// Where one layer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of its blob.
    pub digest: Digest,
    /// What becomes of it.
    pub state: LayerState,
    /// Bytes of the blob that came and were taken.
    pub done_bytes: u64,
    /// Bytes of the blob.
    pub total_bytes: u64,
}

/// What becomes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Its turn did not come yet.
    Waiting,
    /// It is fetched, checked and unpacked in one go.
    Downloading,
    /// All of it is unpacked and verified.
    Unpacked,
    /// The store had it before.
    Present,
}
