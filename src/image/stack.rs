//! Makes the layers of images that are about to be imported, several at a time.
//!
//! Each layer is first unpacked by itself. One that turns out to depend on the layers below it is unpacked again in
//! its place in the stack and kept under its chain ID. Nothing becomes visible before all layers of all images are
//! whole and on the disk.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::error::{ImageError, StoreError, UnpackError};
use super::import::{Found, FoundLayer};
use super::record::LayerRecord;
use super::stage::{self, Stage};
use super::store::{Hold, Inner, lock};
use super::unpack::{self, Lower, Outcome};
use crate::id::Digest;

/// Layers unpacked at once. Decompression and hashing fill a processor each; more would compete for the disk.
const MOST_AT_ONCE: usize = 4;

/// Layers made so far, by key.
type Staged = BTreeMap<String, (Stage, Digest, Outcome)>;

/// Makes all missing layers of `images`. Returns the keys of each image's layers, lowest first, and a hold on them.
pub(super) fn make(store: &Inner, archive: &Archive, images: &[Found]) -> Result<(Vec<Vec<String>>, Hold), ImageError> {
    let chains: Vec<Vec<String>> = images.iter().map(chain_ids).collect();
    // What is there already must not go while we work.
    let wanted: Vec<String> = images
        .iter()
        .flat_map(|i| i.layers.iter().map(|l| l.expected.diff_id.hex().to_owned()))
        .chain(chains.iter().flatten().cloned())
        .collect();
    let mut hold = Hold::new(&store.layers, &wanted);
    let mut staged = flat_layers(store, archive, &missing(store, images, &chains))?;
    let mut keys = Vec::new();
    for (image, chains) in images.iter().zip(&chains) {
        keys.push(stack(store, archive, image, chains, &mut staged)?);
    }
    staged.retain(|key, _| keys.iter().flatten().any(|used| used == key));
    commit(store, staged, &mut hold)?;
    Ok((keys, hold))
}

/// The chain ID's digits of each layer: of the lowest, those of its diff ID.
fn chain_ids(image: &Found) -> Vec<String> {
    let mut chain: Option<Digest> = None;
    let mut ids = Vec::new();
    for layer in &image.layers {
        let diff_id = &layer.expected.diff_id;
        let next = match &chain {
            None => diff_id.clone(),
            Some(below) => Digest::sha256(Sha256::digest(format!("{below} {diff_id}")).into()),
        };
        ids.push(next.hex().to_owned());
        chain = Some(next);
    }
    ids
}

/// Layers to be unpacked, each once, though images share them.
fn missing<'a>(store: &Inner, images: &'a [Found], chains: &[Vec<String>]) -> Vec<&'a FoundLayer> {
    let mut missing: BTreeMap<&str, &FoundLayer> = BTreeMap::new();
    for (image, chains) in images.iter().zip(chains) {
        for (layer, chain) in image.layers.iter().zip(chains) {
            let key = layer.expected.diff_id.hex();
            // A layer under its chain ID says that it was needed so.
            if !store.layers.has(key) && !store.layers.has(chain) {
                missing.insert(key, layer);
            }
        }
    }
    missing.into_values().collect()
}

/// Unpacks layers by themselves, in parallel; the first error stops all.
fn flat_layers(store: &Inner, archive: &Archive, layers: &[&FoundLayer]) -> Result<Staged, ImageError> {
    let queue: Mutex<VecDeque<&FoundLayer>> = Mutex::new(layers.iter().copied().collect());
    let results: Mutex<(Staged, Option<ImageError>)> = Mutex::new((Staged::new(), None));
    let work = || {
        loop {
            let Some(layer) = lock(&queue).pop_front() else {
                return;
            };
            let made = unpack_one(store, archive, layer, None);
            let mut results = lock(&results);
            match made {
                Ok(made) => drop(results.0.insert(layer.expected.diff_id.hex().to_owned(), made)),
                Err(e) => {
                    results.1.get_or_insert(e);
                    lock(&queue).clear();
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_ONCE).min(layers.len());
    std::thread::scope(|scope| {
        // This thread works too: without memory for another it does so alone.
        for _ in 1..threads {
            std::thread::Builder::new().name("unpack".to_owned()).spawn_scoped(scope, work).ok();
        }
        work();
    });
    let (staged, error) = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    error.map_or(Ok(staged), Err)
}

fn unpack_one(
    store: &Inner,
    archive: &Archive,
    layer: &FoundLayer,
    lower: Option<&Lower>,
) -> Result<(Stage, Digest, Outcome), ImageError> {
    let diff_id = &layer.expected.diff_id;
    let blob = archive.blob(&layer.blob)?;
    if let Some((digest, expected)) = &layer.expected.blob
        && blob.size() != *expected
    {
        let (object, actual) = (format!("layer {digest}"), blob.size());
        return Err(ImageError::SizeMismatch { object, expected: *expected, actual });
    }
    let stage = Stage::new(store.layers.dir())?;
    let unpacked = unpack::unpack(blob, &layer.expected, stage.open_fs()?, store.layers.dir(), lower, &store.limits);
    match unpacked {
        Ok(outcome) => Ok((stage, diff_id.clone(), outcome)),
        Err(source) => Err(ImageError::Unpack { layer: diff_id.to_string(), source }),
    }
}

/// Decides under which key each layer of an image is used, and makes those that depend on the ones below.
fn stack(
    store: &Inner,
    archive: &Archive,
    image: &Found,
    chains: &[String],
    staged: &mut Staged,
) -> Result<Vec<String>, ImageError> {
    let mut keys: Vec<String> = Vec::new();
    for (index, (layer, chain)) in image.layers.iter().zip(chains).enumerate() {
        let diff = layer.expected.diff_id.hex();
        let is_lowest = index == 0;
        let outcome = staged.get(diff).map(|(_, _, outcome)| outcome);
        let depends = match outcome {
            Some(outcome) => outcome.implied_directory || outcome.dangling_link.is_some(),
            // Not there by itself: then it is there under its chain ID.
            None => store.layers.depends_on_lower(diff).unwrap_or(true),
        };
        if is_lowest && let Some(link) = outcome.and_then(|o| o.dangling_link.clone()) {
            let source = UnpackError::Entry { entry: link, reason: "it is a hard link to nothing" };
            return Err(ImageError::Unpack { layer: layer.expected.diff_id.to_string(), source });
        }
        if is_lowest || !depends {
            keys.push(diff.to_owned());
            continue;
        }
        if !store.layers.has(chain) && !staged.contains_key(chain) {
            let lower =
                Lower::new(keys.iter().rev().map(|key| open_layer(store, staged, key)).collect::<Result<_, _>>()?);
            let made = unpack_one(store, archive, layer, Some(&lower))?;
            staged.insert(chain.clone(), made);
        }
        keys.push(chain.clone());
    }
    Ok(keys)
}

fn open_layer(store: &Inner, staged: &Staged, key: &str) -> Result<OwnedFd, StoreError> {
    match staged.get(key) {
        Some((stage, ..)) => stage.open_fs(),
        None => stage::open(&store.layers.fs_path(key)),
    }
}

/// Brings everything to the disk, then makes the layers visible.
fn commit(store: &Inner, staged: Staged, hold: &mut Hold) -> Result<(), StoreError> {
    if staged.is_empty() {
        return Ok(());
    }
    let dir = store.layers.dir();
    let sync = || -> std::io::Result<()> { Ok(nix::unistd::syncfs(File::open(dir)?)?) };
    sync().map_err(|e| StoreError::io("sync the file system of", dir, e))?;
    let mut described: Vec<(String, Stage, LayerRecord)> = Vec::new();
    for (key, (stage, diff_id, outcome)) in staged {
        let depends = outcome.implied_directory || outcome.dangling_link.is_some();
        let record = stage.describe(&diff_id, depends)?;
        described.push((key, stage, record));
    }
    for (key, stage, record) in described {
        store.layers.commit(stage, &key, &record)?;
        hold.join(Hold::adopt(&store.layers, key));
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io("sync", dir, e))
}
