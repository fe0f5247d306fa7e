//! Makes the layers of images that are about to become visible.
//!
//! Each layer is first unpacked by itself. One that turns out to depend on the layers below it is unpacked again in
//! its place in the stack and kept under its chain ID. Nothing becomes visible before all layers of all images are
//! whole and on the disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::error::{ImageError, StoreError, UnpackError};
use super::import::{Found, FoundLayer};
use super::layers::Counted;
use super::record::{Dependence, LayerRecord};
use super::stage::{self, Stage, WriteBack};
use super::store::{Hold, Inner, lock};
use super::unpack::{self, Expected, Lower};
use crate::id::Digest;
use crate::observe::metrics::UNPACKED;

/// Layers unpacked at once. Decompression and hashing fill a processor each; more would compete for the disk.
const MOST_AT_ONCE: usize = 4;

/// Where the blobs of layers come from.
pub(super) trait Blobs {
    /// Unpacks a layer, by itself or with the layers below it at hand. Blocks.
    fn unpack(&self, room: &Room<'_>, layer: &FoundLayer, lower: Option<&Lower>) -> Result<Made, ImageError>;
}

/// Where layers are made.
#[derive(Debug)]
pub(super) struct Room<'a> {
    pub store: &'a Inner,
    /// Older than the first byte of what is made here.
    pub disk: &'a Arc<WriteBack>,
}

/// A layer that is whole and was verified.
#[derive(Debug)]
pub(super) struct Made {
    record: LayerRecord,
    /// A hard link to what is not in the layer itself.
    dangling_link: Option<String>,
    /// What tells of its bytes.
    disk: Arc<WriteBack>,
    place: Mutex<Place>,
}

#[derive(Debug)]
enum Place {
    /// Not visible; removed when nobody wants it any more.
    Staged(Counted, Stage),
    /// In the books.
    Committed(Hold),
    /// Neither, while it becomes visible, or after somebody died over that.
    Between,
}

/// Layers of images on their way, by key.
pub(super) type Layers = BTreeMap<String, Arc<Made>>;

/// The layers `images` need: which are there, which are not.
#[derive(Debug)]
pub(super) struct Needed {
    /// Each image's layers' chain IDs, lowest first.
    chains: Vec<Vec<String>>,
    /// On those that are there already: they must not go while we work.
    hold: Hold,
    /// What tells whether the missing ones came to the disk.
    pub disk: Arc<WriteBack>,
    /// To be unpacked, each once, though images share them.
    pub missing: Vec<FoundLayer>,
}

/// Finds out which layers must be made.
pub(super) fn needed(store: &Inner, images: &[Found]) -> Result<Needed, ImageError> {
    let disk = WriteBack::watch(store.layers.dir())?;
    let chains: Vec<Vec<String>> = images.iter().map(chain_ids).collect();
    let diffs = images.iter().flat_map(|i| i.layers.iter().map(|l| l.expected.diff_id.hex().to_owned()));
    let wanted: Vec<String> = diffs.chain(chains.iter().flatten().cloned()).collect();
    let hold = Hold::new(&store.layers, &wanted);
    let missing = missing(images, &chains, &hold);
    Ok(Needed { chains, hold, disk, missing })
}

/// Makes all missing layers of `images` from an archive. Returns the keys of each image's layers, lowest first, and a
/// hold on them.
pub(super) fn make(store: &Inner, archive: &Archive, images: &[Found]) -> Result<(Vec<Vec<String>>, Hold), ImageError> {
    let needed = needed(store, images)?;
    let layers = flat_layers(&Room { store, disk: &needed.disk }, archive, &needed.missing)?;
    finish(store, archive, images, needed, layers)
}

/// Decides how layers are used, brings them to the disk, makes them visible.
pub(super) fn finish(
    store: &Inner,
    blobs: &dyn Blobs,
    images: &[Found],
    needed: Needed,
    mut layers: Layers,
) -> Result<(Vec<Vec<String>>, Hold), ImageError> {
    let mut hold = needed.hold;
    let room = Room { store, disk: &needed.disk };
    let mut keys = Vec::new();
    for (image, chains) in images.iter().zip(&needed.chains) {
        keys.push(stack(&room, blobs, (image, chains), &mut layers, &mut hold)?);
    }
    layers.retain(|key, _| keys.iter().flatten().any(|used| used == key));
    commit(store, &layers, &mut hold)?;
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

/// What is not held: others may be there now, and gone when they are wanted.
fn missing(images: &[Found], chains: &[Vec<String>], hold: &Hold) -> Vec<FoundLayer> {
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for (image, chains) in images.iter().zip(chains) {
        for (layer, chain) in image.layers.iter().zip(chains) {
            let key = layer.expected.diff_id.hex();
            // A layer under its chain ID says that it was needed so.
            if !hold.has(key) && !hold.has(chain) && seen.insert(key) {
                missing.push(layer.clone());
            }
        }
    }
    missing
}

/// Unpacks layers by themselves, in parallel; the first error stops all.
fn flat_layers(room: &Room<'_>, blobs: &Archive, layers: &[FoundLayer]) -> Result<Layers, ImageError> {
    let queue: Mutex<VecDeque<&FoundLayer>> = Mutex::new(layers.iter().collect());
    let results: Mutex<(Layers, Option<ImageError>)> = Mutex::new((Layers::new(), None));
    let work = || {
        loop {
            let Some(layer) = lock(&queue).pop_front() else {
                return;
            };
            let made = blobs.unpack(room, layer, None);
            let mut results = lock(&results);
            match made {
                Ok(made) => drop(results.0.insert(layer.expected.diff_id.hex().to_owned(), Arc::new(made))),
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
    let (made, error) = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    error.map_or(Ok(made), Err)
}

impl Blobs for Archive {
    fn unpack(&self, room: &Room<'_>, layer: &FoundLayer, lower: Option<&Lower>) -> Result<Made, ImageError> {
        let blob = self.blob(&layer.blob)?;
        if let Some((digest, expected)) = &layer.expected.blob
            && blob.size() != *expected
        {
            let (object, actual) = (format!("layer {digest}"), blob.size());
            return Err(ImageError::SizeMismatch { object, expected: *expected, actual });
        }
        Made::unpack(room, blob, &layer.expected, lower)
    }
}

impl Made {
    /// Unpacks a blob into the store, out of sight.
    pub fn unpack(
        room: &Room<'_>,
        blob: impl Read + Send + 'static,
        expected: &Expected,
        lower: Option<&Lower>,
    ) -> Result<Self, ImageError> {
        let store = room.store;
        let dir = store.layers.dir();
        let stage = Stage::new(dir)?;
        let unpacked = unpack::unpack(blob, expected, stage.open_fs()?, dir, lower, &store.limits);
        let outcome = unpacked.map_err(|source| ImageError::Unpack { layer: expected.diff_id.to_string(), source })?;
        let dependence = match (&outcome.dangling_link, outcome.implied.any()) {
            (None, false) => Dependence::None,
            (None, true) => outcome.implied.into_paths().map_or(Dependence::Contents, Dependence::Directories),
            (Some(_), _) => Dependence::Contents,
        };
        let record = stage.describe(&expected.diff_id, dependence, outcome.contents)?;
        UNPACKED.add(record.occupied_bytes);
        let counted = store.layers.count_staged(&stage, &record);
        let (dangling_link, disk) = (outcome.dangling_link, Arc::clone(room.disk));
        Ok(Self { record, dangling_link, disk, place: Mutex::new(Place::Staged(counted, stage)) })
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.record.occupied_bytes
    }

    /// Whether it is in the books.
    pub fn is_committed(&self) -> bool {
        matches!(*lock(&self.place), Place::Committed(_))
    }

    fn open(&self, store: &Inner, key: &str) -> Result<OwnedFd, StoreError> {
        match &*lock(&self.place) {
            Place::Staged(_, stage) => stage.open_fs(),
            Place::Committed(_) | Place::Between => stage::open(&store.layers.fs_path(key)),
        }
    }

    /// Makes the layer visible, unless it is; it must be on the disk.
    fn commit(&self, store: &Inner, key: &str) -> Result<(), StoreError> {
        let mut place = lock(&self.place);
        match std::mem::replace(&mut *place, Place::Between) {
            Place::Staged(counted, mut stage) => {
                if let Err(error) = store.layers.commit(&mut stage, key, &self.record) {
                    // Others who wait for this layer must not take it for visible.
                    *place = Place::Staged(counted, stage);
                    return Err(error);
                }
                *place = Place::Committed(Hold::adopt(&store.layers, key.to_owned()));
                // If somebody else was first, a whole tree goes with the stage.
                drop(place);
                drop((counted, stage));
            }
            Place::Committed(hold) => *place = Place::Committed(hold),
            Place::Between => {
                let hold = Hold::new(&store.layers, &[key.to_owned()]);
                if !hold.has(key) {
                    let died = std::io::Error::other("an earlier try died; pull or import the image again");
                    return Err(StoreError::io("make visible", store.layers.dir().join(key), died));
                }
                *place = Place::Committed(hold);
            }
        }
        Ok(())
    }
}

/// Decides under which key each layer of an image is used, and makes those that depend on the ones below.
fn stack(
    room: &Room<'_>,
    blobs: &dyn Blobs,
    (image, chains): (&Found, &[String]),
    made: &mut Layers,
    hold: &mut Hold,
) -> Result<Vec<String>, ImageError> {
    let store = room.store;
    let mut keys: Vec<String> = Vec::new();
    for (index, (layer, chain)) in image.layers.iter().zip(chains).enumerate() {
        let diff = layer.expected.diff_id.hex();
        let is_lowest = index == 0;
        let by_itself = made.get(diff);
        let dependence = match by_itself {
            Some(layer) => layer.record.dependence(),
            None if hold.has(diff) => store.layers.dependence(diff).unwrap_or(Dependence::Contents),
            // Not there by itself: then it is there under its chain ID.
            None => Dependence::Contents,
        };
        if is_lowest && let Some(link) = by_itself.and_then(|layer| layer.dangling_link.clone()) {
            let source = UnpackError::Entry { entry: link, reason: "it is a hard link to nothing" };
            return Err(ImageError::Unpack { layer: layer.expected.diff_id.to_string(), source });
        }
        if is_lowest || dependence == Dependence::None {
            keys.push(diff.to_owned());
            continue;
        }
        if made.contains_key(chain) || hold.take(chain) {
            keys.push(chain.clone());
            continue;
        }
        let below = keys.iter().rev().map(|key| open_layer(store, made, key)).collect::<Result<_, _>>()?;
        let lower = Lower::new(below);
        if let Dependence::Directories(paths) = dependence
            && all_plain(&lower, &paths).map_err(|e| StoreError::io("look at the layers in", store.layers.dir(), e))?
        {
            keys.push(diff.to_owned());
            continue;
        }
        let layer = blobs.unpack(room, layer, Some(&lower))?;
        made.insert(chain.clone(), Arc::new(layer));
        keys.push(chain.clone());
    }
    Ok(keys)
}

/// Whether these implied directories are, above `lower`, what they are without it.
fn all_plain(lower: &Lower, paths: &[String]) -> std::io::Result<bool> {
    for path in paths {
        if !lower.leaves_plain(path)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn open_layer(store: &Inner, made: &Layers, key: &str) -> Result<OwnedFd, StoreError> {
    match made.get(key) {
        Some(layer) => layer.open(store, key),
        None => stage::open(&store.layers.fs_path(key)),
    }
}

/// Brings everything to the disk, then makes the layers visible.
pub(super) fn commit(store: &Inner, made: &Layers, hold: &mut Hold) -> Result<(), StoreError> {
    if made.is_empty() {
        return Ok(());
    }
    let dir = store.layers.dir();
    // Layers made by other pulls have their own: ours may have been opened after a failure was told.
    let mut disks: Vec<&Arc<WriteBack>> = Vec::new();
    for layer in made.values() {
        if !disks.iter().any(|disk| Arc::ptr_eq(disk, &layer.disk)) {
            disks.push(&layer.disk);
        }
    }
    disks.into_iter().try_for_each(|disk| disk.sync())?;
    for (key, layer) in made {
        layer.commit(store, key)?;
        hold.join(Hold::new(&store.layers, std::slice::from_ref(key)));
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io("sync", dir, e))
}
