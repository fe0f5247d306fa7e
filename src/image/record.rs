//! What is written down about images and layers: one small file each, which a person can read.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::config::{self, Parsed};
use super::unpack::Occupied;
use crate::disk::{self, Durability};
use crate::id::Digest;

/// The version of both files; others are refused.
const VERSION: u32 = 1;

/// `images/<id>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    version: u32,
    /// Digest of the configuration, as it was in the archive.
    pub id: Digest,
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
    /// Lowest first.
    pub layers: Vec<LayerOfImage>,
    pub size_bytes: u64,
    /// Nanoseconds since 1970: of two images that claim one tag, the later has it.
    pub tagged_at: i64,
    /// As imported, like the configuration: a stranger's text, which takes a hundred times its size once it is
    /// parsed into values. Archives of `docker save` have none.
    pub manifest: Option<Box<RawValue>>,
    pub config: Box<RawValue>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerOfImage {
    pub diff_id: Digest,
    /// Directory below `layers`.
    pub key: String,
}

/// `layers/<key>/layer.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    version: u32,
    pub diff_id: Digest,
    /// Of `fs`, as `du` counts.
    pub occupied_bytes: u64,
    pub inodes: u64,
    /// Not to be used above other layers under its diff ID, unless `implied_directories` say otherwise.
    pub depends_on_lower: bool,
    /// Directories it lacks and paths of it go through; absent if it depends on others in another way too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implied_directories: Option<Vec<String>>,
}

/// How a layer depends on those below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dependence {
    /// Not at all.
    None,
    /// Only where these directories, which it implies, are something special there.
    Directories(Vec<String>),
    /// Always.
    Contents,
}

impl ImageRecord {
    pub fn new(id: Digest, layers: Vec<LayerOfImage>, manifest: Option<Box<RawValue>>, config: Box<RawValue>) -> Self {
        let (tags, digests) = (BTreeSet::new(), BTreeSet::new());
        Self { version: VERSION, id, tags, digests, layers, size_bytes: 0, tagged_at: 0, manifest, config }
    }

    pub fn read(path: &Path) -> io::Result<Self> {
        let record: Self = read(path)?;
        checked(record.version)?;
        if record.layers.iter().any(|l| !is_key(&l.key)) {
            return Err(io::Error::other("a layer's key is malformed"));
        }
        Ok(record)
    }

    pub fn write(&self, path: &Path) -> io::Result<()> {
        disk::write_atomic(path, &serde_json::to_vec_pretty(self)?, Durability::Power)
    }

    /// The keys of its layers, uppermost first, each once: of a layer that comes again, all that counts is uppermost,
    /// and overlay refuses to have a directory twice.
    pub fn stack(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        self.layers.iter().rev().filter(|l| seen.insert(&l.key)).map(|l| l.key.clone()).collect()
    }

    /// The configuration in its checked form.
    pub fn parsed(&self) -> Result<Parsed, String> {
        config::parse(self.config.get().as_bytes())
    }
}

impl LayerRecord {
    pub fn new(diff_id: Digest, occupied: Occupied, dependence: Dependence) -> Self {
        let Occupied { bytes: occupied_bytes, inodes } = occupied;
        let (depends_on_lower, implied_directories) = match dependence {
            Dependence::None => (false, None),
            Dependence::Directories(paths) => (true, Some(paths)),
            Dependence::Contents => (true, None),
        };
        Self { version: VERSION, diff_id, occupied_bytes, inodes, depends_on_lower, implied_directories }
    }

    /// How it stands to the layers below.
    pub fn dependence(&self) -> Dependence {
        match (self.depends_on_lower, &self.implied_directories) {
            (false, _) => Dependence::None,
            (true, Some(paths)) => Dependence::Directories(paths.clone()),
            (true, None) => Dependence::Contents,
        }
    }

    pub fn read(path: &Path) -> io::Result<Self> {
        let record: Self = read(path)?;
        checked(record.version)?;
        Ok(record)
    }

    /// Writes it into a layer that is not visible yet; syncing is up to who makes it so.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        disk::write_atomic(path, &serde_json::to_vec_pretty(self)?, Durability::Process)
    }
}

/// Whether a name is that of a layer's directory.
pub(super) fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn checked(version: u32) -> io::Result<()> {
    if version == VERSION { Ok(()) } else { Err(io::Error::other(format!("it has version {version}, not {VERSION}"))) }
}
