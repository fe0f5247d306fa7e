//! The layers on disk: which there are, what they occupy, who holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::error::StoreError;
use super::record::{Dependence, LayerRecord, is_key};
use super::stage::{self, Stage};
use super::store::lock;
use super::unpack::Occupied;
use crate::disk;

/// All layers of the store.
#[derive(Debug)]
pub(super) struct Layers {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: BTreeMap<String, Layer>,
    /// Layers images use, as last told: a released layer that is in here stays.
    used_by_images: BTreeSet<String>,
    /// What whole layers occupy that are not visible yet.
    staged: Occupied,
}

#[derive(Debug)]
struct Layer {
    /// The directory with all in it.
    occupied: Occupied,
    dependence: Dependence,
    holds: usize,
}

/// Layers out of the books and out of sight, whose trees are still to be removed.
#[derive(Debug)]
#[must_use = "the trees stay until the next start"]
pub(super) struct Doomed(Vec<PathBuf>);

impl Layers {
    /// Reads which layers there are and removes the unfinished.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        disk::private_dir(dir).map_err(|e| StoreError::io("make directory", dir, e))?;
        let mut state = State::default();
        for entry in fs::read_dir(dir).map_err(|e| StoreError::io("read", dir, e))? {
            let entry = entry.map_err(|e| StoreError::io("read", dir, e))?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with(stage::PREFIX) {
                stage::remove_tree(&path)?;
            } else if is_key(&name) {
                match LayerRecord::read(&path.join("layer.json")) {
                    Ok(record) => drop(state.layers.insert(name, Layer::new(&path, &record))),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "layer not readable, left out"),
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), state: Mutex::new(state) })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the files of a layer are.
    pub fn fs_path(&self, key: &str) -> PathBuf {
        self.dir.join(key).join("fs")
    }

    pub fn has(&self, key: &str) -> bool {
        self.state().layers.contains_key(key)
    }

    /// How a layer kept under its diff ID depends on those below; none if it is not there.
    pub fn dependence(&self, key: &str) -> Option<Dependence> {
        self.state().layers.get(key).map(|l| l.dependence.clone())
    }

    pub fn keys(&self) -> Vec<String> {
        self.state().layers.keys().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.state().layers.len()
    }

    /// What is written down about a layer.
    pub fn record(&self, key: &str) -> Result<LayerRecord, StoreError> {
        let path = self.dir.join(key).join("layer.json");
        LayerRecord::read(&path).map_err(|e| StoreError::io("read", path, e))
    }

    /// What one layer occupies.
    pub fn bytes(&self, key: &str) -> u64 {
        self.state().layers.get(key).map_or(0, |l| l.occupied.bytes)
    }

    /// What all layers occupy, visible or whole; one still being unpacked counts once it is whole.
    pub fn occupied(&self) -> Occupied {
        let state = self.state();
        state.layers.values().fold(state.staged, |sum, layer| Occupied {
            bytes: sum.bytes + layer.occupied.bytes,
            inodes: sum.inodes + layer.occupied.inodes,
        })
    }

    /// Holds those of the layers that are there and returns their keys.
    pub fn hold(&self, keys: BTreeSet<&String>) -> BTreeSet<String> {
        let mut state = self.state();
        let mut held = BTreeSet::new();
        for key in keys {
            if let Some(layer) = state.layers.get_mut(key) {
                layer.holds += 1;
                held.insert(key.clone());
            }
        }
        held
    }

    /// Gives held layers back; those nobody needs any more are removed.
    pub fn release(&self, keys: &BTreeSet<String>) {
        let mut state = self.state();
        for key in keys {
            if let Some(layer) = state.layers.get_mut(key) {
                layer.holds = layer.holds.saturating_sub(1);
            }
        }
        let doomed = self.take(&mut state, keys);
        drop(state);
        if doomed.0.is_empty() {
            return;
        }
        // Whoever lets go of a container must not wait for a large tree to be removed. Without a thread it is removed
        // at the next start.
        let spawned = std::thread::Builder::new().name("remove-layers".to_owned()).spawn(move || doomed.remove());
        if let Err(error) = spawned {
            tracing::warn!(%error, "unused layers not removed before the next start");
        }
    }

    /// Takes away those of the layers that neither `used_by_images` nor a hold needs.
    pub fn take_unused(&self, keys: &[String], used_by_images: &BTreeSet<String>) -> Doomed {
        let mut state = self.state();
        state.used_by_images.clone_from(used_by_images);
        self.take(&mut state, keys)
    }

    /// Tells which layers a new image uses, so that they stay when the import lets go of them.
    pub fn used_by_image(&self, keys: impl IntoIterator<Item = String>) {
        self.state().used_by_images.extend(keys);
    }

    /// Counts a whole layer while the returned value lives.
    pub fn count_staged(self: &Arc<Self>, stage: &Stage, record: &LayerRecord) -> Counted {
        let occupied = Layer::new(stage.path(), record).occupied;
        let mut state = self.state();
        state.staged.bytes += occupied.bytes;
        state.staged.inodes += occupied.inodes;
        drop(state);
        Counted { layers: Arc::clone(self), occupied }
    }

    /// Makes a staged layer visible, held once for the caller. If it is visible already the stage stays one, for the
    /// caller to drop: removing it takes time. After an error, too.
    pub fn commit(&self, stage: &mut Stage, key: &str, record: &LayerRecord) -> Result<(), StoreError> {
        let path = self.dir.join(key);
        // Under the lock: no other thread may see a layer on disk that is not in the books, or the reverse.
        let mut state = self.state();
        if let Some(layer) = state.layers.get_mut(key) {
            layer.holds += 1;
            return Ok(());
        }
        // One that could not be read at start is in the way; it is removed at the next.
        match fs::rename(&path, stage::temporary(&self.dir)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::io("move aside", path, e)),
            _ => {}
        }
        stage.commit(&path)?;
        let mut layer = Layer::new(&path, record);
        layer.holds = 1;
        state.layers.insert(key.to_owned(), layer);
        Ok(())
    }

    /// Takes unneeded layers out of the books and out of sight; their trees are the caller's to remove.
    fn take<'k>(&self, state: &mut State, keys: impl IntoIterator<Item = &'k String>) -> Doomed {
        let mut doomed = Vec::new();
        for key in keys {
            let is_unused = state.layers.get(key).is_some_and(|l| l.holds == 0) && !state.used_by_images.contains(key);
            if !is_unused {
                continue;
            }
            let (path, gone) = (self.dir.join(key), stage::temporary(&self.dir));
            match fs::rename(&path, &gone) {
                Ok(()) => {
                    state.layers.remove(key);
                    doomed.push(gone);
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "unused layer not removed"),
            }
        }
        Doomed(doomed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Layer {
    fn new(path: &Path, record: &LayerRecord) -> Self {
        let mut occupied = Occupied { bytes: record.occupied_bytes, inodes: record.inodes };
        for path in [path, &path.join("layer.json"), &path.join(stage::FILES)] {
            if let Ok(data) = fs::symlink_metadata(path) {
                occupied.bytes += data.blocks() * 512;
                occupied.inodes += 1;
            }
        }
        Self { occupied, dependence: record.dependence(), holds: 0 }
    }
}

/// A whole layer that is in the sum, but not in the books.
#[derive(Debug)]
pub(super) struct Counted {
    layers: Arc<Layers>,
    occupied: Occupied,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.layers.state();
        state.staged.bytes -= self.occupied.bytes;
        state.staged.inodes -= self.occupied.inodes;
    }
}

impl Doomed {
    /// Removes the trees. Takes time: no lock should be held.
    pub fn remove(self) {
        for path in self.0 {
            if let Err(error) = stage::remove_tree(&path) {
                tracing::warn!(path = %path.display(), %error, "unused layer not removed");
            }
        }
    }
}
