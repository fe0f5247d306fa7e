//! Whether the layers of an image are still what was unpacked.

use super::error::StoreError;
use super::stage;
use super::store::Store;
use super::unpack;
use crate::id::Digest;

/// What reading all files of an image found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The image.
    pub id: Digest,
    /// Uppermost first.
    pub layers: Vec<VerifiedLayer>,
}

/// One layer of a verified image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLayer {
    /// Its directory below `layers`.
    pub key: String,
    /// What it was unpacked from.
    pub diff_id: Digest,
    /// Files, directories and the like.
    pub files: u64,
    /// What they occupy.
    pub bytes: u64,
    /// Differences from the list made when it was unpacked, a sentence each, at most 100; none if it is sound.
    pub faults: Vec<String>,
}

impl Verified {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.layers.iter().all(|layer| layer.faults.is_empty())
    }
}

impl Store {
    /// Reads every file of an image and compares kind, content (XXH3), size, permissions, owner, time, link target,
    /// extended attributes and number of names with the list made when its layers were unpacked. None if there is no
    /// such image. Blocks.
    ///
    /// It finds damage by disks, crashes and careless people. It is no proof against somebody who can write to the
    /// store: that one can write the lists too. The digests of the registry were compared when the layers were
    /// unpacked; the blobs they belong to are not kept.
    ///
    /// # Errors
    /// [`StoreError`] if a layer's directory or record cannot be read.
    pub fn verify(&self, reference: &str) -> Result<Option<Verified>, StoreError> {
        let Some(image) = self.get(reference) else {
            return Ok(None);
        };
        // It may be removed meanwhile.
        let hold = self.hold(&image.layers);
        let layers = image.layers.iter().map(|key| self.verify_layer(key)).collect::<Result<_, _>>()?;
        drop(hold);
        Ok(Some(Verified { id: image.id.clone(), layers }))
    }

    fn verify_layer(&self, key: &str) -> Result<VerifiedLayer, StoreError> {
        let layers = &self.inner.layers;
        let (record, fs_path) = (layers.record(key)?, layers.fs_path(key));
        let compared = unpack::compare_files(stage::open(&fs_path)?, &fs_path.with_file_name(stage::FILES));
        let (occupied, faults) = compared.map_err(|e| StoreError::io("read", fs_path, e))?;
        let (files, bytes) = (occupied.inodes, occupied.bytes);
        Ok(VerifiedLayer { key: key.to_owned(), diff_id: record.diff_id, files, bytes, faults })
    }
}
