//! How much a stranger's archive may ask for.

/// Bounds of one import. [`Limits::default`] is far above what real images use and far below what hurts.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one index or manifest document.
    pub manifest_bytes: u64,
    /// Bytes of one image configuration. Real ones have a few KiB; what is read of it stays in memory with the image.
    pub config_bytes: u64,
    /// Indexes inside indexes.
    pub index_depth: usize,
    /// Manifests looked at in one import, over all indexes.
    pub manifests: usize,
    /// Layers of one image; overlay takes no more than 500.
    pub layers: usize,
    /// Files of the archive that holds the image.
    pub archive_entries: u64,
    /// Entries of one layer. What is remembered of each until the layer is whole is up to a hundred bytes, so this bounds
    /// memory; large images of programming environments have some 300,000 files in all their layers.
    pub layer_entries: u64,
    /// Bytes of one layer after decompression, and of all its files together, holes included.
    pub layer_bytes: u64,
    /// Bytes of one path, and of a symbolic link's target.
    pub path_bytes: usize,
    /// Directories one path goes through.
    pub path_depth: usize,
    /// Bytes of the extended headers before one entry.
    pub header_bytes: u64,
    /// Bytes of one extended attribute's value.
    pub xattr_bytes: usize,
    /// Stretches of data in one sparse file.
    pub sparse_parts: usize,
    /// Directory steps, removals and the like in one layer: what bounds the time a hostile layer can take.
    pub work: u64,
    /// Bytes the file system keeps free: unpacking stops before the disk is really full.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 2 << 20,
            index_depth: 4,
            manifests: 1024,
            layers: 500,
            archive_entries: 100_000,
            layer_entries: 1_000_000,
            layer_bytes: 256 << 30,
            path_bytes: 4096,
            path_depth: 256,
            header_bytes: 1 << 20,
            xattr_bytes: 64 << 10,
            sparse_parts: 1 << 16,
            work: 200_000_000,
            reserve_bytes: 64 << 20,
        }
    }
}
