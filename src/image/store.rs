//! The images of this machine: found in memory, kept on disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::config::ImageConfig;
use super::error::{ImageError, StoreError};
use super::import;
use super::layers::Layers;
use super::limits::Limits;
use super::record::ImageRecord;
use super::reference::Reference;
use super::unpack::Occupied;
use crate::disk;
use crate::id::Digest;

/// One image, never changed: a new name makes a new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration; the same from whatever archive or registry it came.
    pub id: Digest,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, sorted.
    pub repo_digests: Vec<String>,
    /// What its layers occupy, also those shared with other images.
    pub size_bytes: u64,
    /// Keys of its layers, uppermost first and each once, as overlay wants them.
    pub layers: Vec<String>,
    /// What containers start with.
    pub config: ImageConfig,
}

/// What the store occupies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, as `du` counts them.
    pub used_bytes: u64,
    /// Files, directories and the like.
    pub inodes_used: u64,
    /// The store's root, which is on the file system asked about.
    pub mountpoint: PathBuf,
    /// When, in nanoseconds since 1970.
    pub timestamp_ns: i64,
}

/// The store of images. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    root: PathBuf,
    images_dir: PathBuf,
    pub limits: Limits,
    pub layers: Arc<Layers>,
    images: Mutex<Images>,
    /// What the records and the two directories occupy, counted when they change.
    books: Mutex<Occupied>,
    /// Held while records change on disk. Never taken by lookups.
    writer: Mutex<()>,
}

#[derive(Debug, Default)]
struct Images {
    by_id: BTreeMap<Digest, Arc<Image>>,
    /// Tags and digests, in full.
    by_name: HashMap<String, Digest>,
}

/// Keeps layers on disk while a container uses them, whatever becomes of their images.
#[derive(Debug)]
pub struct Hold {
    layers: Arc<Layers>,
    keys: BTreeSet<String>,
}

impl Hold {
    pub(super) fn new(layers: &Arc<Layers>, keys: &[String]) -> Self {
        Self { layers: Arc::clone(layers), keys: layers.hold(keys.iter().collect()) }
    }

    /// Takes over a hold that was already counted.
    pub(super) fn adopt(layers: &Arc<Layers>, key: String) -> Self {
        Self { layers: Arc::clone(layers), keys: BTreeSet::from([key]) }
    }

    /// Whether this layer is among them.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Holds this layer too if it is there; whether it is held now.
    pub(super) fn take(&mut self, key: &str) -> bool {
        if !self.has(key) {
            self.join(Self::new(&self.layers, &[key.to_owned()]));
        }
        self.has(key)
    }

    /// Holds those of `other` too.
    pub(super) fn join(&mut self, mut other: Self) {
        // What `other` releases when it goes is what was held twice.
        other.keys.retain(|key| !self.keys.insert(key.clone()));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.layers.release(&self.keys);
    }
}

impl Store {
    /// Opens the store in `<root>/layers` and `<root>/images`, made if need be (0700), and removes what an
    /// interrupted import left. One process at a time may have it open.
    ///
    /// Images whose record or layers cannot be read are left out, with a warning in the log.
    ///
    /// # Errors
    /// [`StoreError`] if the directories cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::with_limits(root, Limits::default())
    }

    /// As [`Store::open`], with other bounds on what imports may ask for.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn with_limits(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        let images_dir = root.join("images");
        disk::private_dir(&images_dir).map_err(|e| StoreError::io("make directory", &images_dir, e))?;
        let layers = Arc::new(Layers::open(&root.join("layers"))?);
        let inner = Inner {
            root: root.to_owned(),
            images_dir,
            limits,
            layers,
            images: Mutex::default(),
            books: Mutex::default(),
            writer: Mutex::default(),
        };
        inner.load()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// All images, ordered by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.images().by_id.values().cloned().collect()
    }

    /// The image a reference means: an id (with or without `sha256:`), a name with a tag or digest, in short form or
    /// full, or the start of exactly one id.
    #[must_use]
    pub fn get(&self, reference: &str) -> Option<Arc<Image>> {
        let images = self.inner.images();
        let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
        if let Ok(id) = format!("sha256:{digits}").parse::<Digest>() {
            return images.by_id.get(&id).cloned();
        }
        if let Ok(parsed) = reference.parse::<Reference>()
            && let Some(id) = parsed.digest().map(|d| parsed.with_digest(d)).or(parsed.tagged())
            && let Some(id) = images.by_name.get(&id)
        {
            return images.by_id.get(id).cloned();
        }
        let is_prefix = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut matching = images.by_id.values().filter(|i| is_prefix && i.id.hex().starts_with(digits));
        match (matching.next(), matching.next()) {
            (Some(image), None) => Some(Arc::clone(image)),
            _ => None,
        }
    }

    /// Removes the image a reference means, with all its names; false if there is none. Layers that other images
    /// or containers use stay. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if its record cannot be removed; the image is then still there.
    pub fn remove(&self, reference: &str) -> Result<bool, StoreError> {
        let writer = lock(&self.inner.writer);
        let Some(image) = self.get(reference) else {
            return Ok(false);
        };
        let path = self.inner.record_path(&image.id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::io("remove", path, e)),
            _ => self.inner.images().remove(&image.id),
        }
        self.inner.sync_images()?;
        let doomed = self.inner.layers.take_unused(&image.layers, &self.inner.used_by_images());
        self.inner.count();
        // Large trees take their time, for which no other image must wait.
        drop(writer);
        doomed.remove();
        Ok(true)
    }

    /// The name of an image that a reference is, in full; none if it means the image by its id, or none at all.
    #[must_use]
    pub fn name(&self, reference: &str) -> Option<String> {
        let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
        if format!("sha256:{digits}").parse::<Digest>().is_ok() {
            return None;
        }
        let parsed = reference.parse::<Reference>().ok()?;
        let name = parsed.digest().map(|d| parsed.with_digest(d)).or(parsed.tagged())?;
        self.inner.images().by_name.contains_key(&name).then_some(name)
    }

    /// Takes a name, as [`Store::name`] gives it, from the image that has it, which stays. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if its record cannot be read or written; it then keeps the name.
    pub fn untag(&self, name: &str) -> Result<(), StoreError> {
        let _writer = lock(&self.inner.writer);
        let Some(id) = self.inner.images().by_name.get(name).cloned() else { return Ok(()) };
        let path = self.inner.record_path(&id);
        let mut record = ImageRecord::read(&path).map_err(|e| StoreError::io("read", &path, e))?;
        record.tags.remove(name);
        record.digests.remove(name);
        record.write(&path).map_err(|e| StoreError::io("write", &path, e))?;
        if let Ok(image) = self.inner.image(&record) {
            self.inner.images().insert(image);
        }
        Ok(())
    }

    /// Imports all images for this machine from an OCI image layout (a folder or a tar) or an archive of
    /// `docker save`, compressed or not. `name` replaces the names in it, if it holds one image. An image that is
    /// there already gets the new names too; a name that another image had moves. Blocks.
    ///
    /// # Errors
    /// [`ImageError`]; then nothing of the archive is visible and its space is given back.
    pub fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>, ImageError> {
        let imported = import::import(&self.inner, path, name);
        // Buffers, windows, and code that nobody else runs.
        crate::sys::memory::give_back().ok();
        let ids = imported?;
        let images = self.inner.images();
        Ok(ids.iter().filter_map(|id| images.by_id.get(id).cloned()).collect())
    }

    /// What the store occupies, from the books: nothing on disk is looked at.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let (layers, records) = (self.inner.layers.occupied(), *lock(&self.inner.books));
        let (used_bytes, inodes_used) = (layers.bytes + records.bytes, layers.inodes + records.inodes);
        Usage { used_bytes, inodes_used, mountpoint: self.inner.root.clone(), timestamp_ns: now() }
    }

    /// How many layers there are.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        self.inner.layers.count()
    }

    /// Keeps layers while the returned value lives. Layers that are not there are passed over: see
    /// [`Store::has_layers`].
    #[must_use = "the layers are held only as long as this lives"]
    pub fn hold(&self, layers: &[String]) -> Hold {
        Hold::new(&self.inner.layers, layers)
    }

    /// Whether all these layers are on disk.
    #[must_use]
    pub fn has_layers(&self, layers: &[String]) -> bool {
        layers.iter().all(|key| self.inner.layers.has(key))
    }

    /// Removes layers that neither an image nor a [`Hold`] uses. To be called once containers found after a restart
    /// hold theirs again. Blocks.
    pub fn collect(&self) {
        let writer = lock(&self.inner.writer);
        let doomed = self.inner.layers.take_unused(&self.inner.layers.keys(), &self.inner.used_by_images());
        self.inner.count();
        drop(writer);
        doomed.remove();
    }

    /// What a layer occupies; 0 if it is not there.
    #[must_use]
    pub fn layer_bytes(&self, key: &str) -> u64 {
        self.inner.layers.bytes(key)
    }

    /// The directory with the files of a layer.
    #[must_use]
    pub fn layer_path(&self, key: &str) -> PathBuf {
        self.inner.layers.fs_path(key)
    }
}

impl Images {
    fn insert(&mut self, image: Image) {
        self.remove(&image.id);
        let id = image.id.clone();
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            self.by_name.insert(name.clone(), id.clone());
        }
        self.by_id.insert(id, Arc::new(image));
    }

    fn remove(&mut self, id: &Digest) {
        self.by_id.remove(id);
        self.by_name.retain(|_, owner| owner != id);
    }
}

impl Inner {
    fn images(&self) -> MutexGuard<'_, Images> {
        lock(&self.images)
    }

    fn record_path(&self, id: &Digest) -> PathBuf {
        self.images_dir.join(format!("{}.json", id.hex()))
    }

    fn used_by_images(&self) -> BTreeSet<String> {
        self.images().by_id.values().flat_map(|i| i.layers.iter().cloned()).collect()
    }

    /// Counts what is beside the layers.
    fn count(&self) {
        let records: Vec<PathBuf> = self.images().by_id.keys().map(|id| self.record_path(id)).collect();
        let dirs = [self.images_dir.clone(), self.layers.dir().to_owned()];
        let mut books = Occupied::default();
        for path in records.iter().chain(&dirs) {
            if let Ok(data) = fs::symlink_metadata(path) {
                books.bytes += data.blocks() * 512;
                books.inodes += 1;
            }
        }
        *lock(&self.books) = books;
    }

    fn sync_images(&self) -> Result<(), StoreError> {
        let synced = fs::File::open(&self.images_dir).and_then(|dir| dir.sync_all());
        synced.map_err(|e| StoreError::io("sync", &self.images_dir, e))
    }

    /// Reads the records at start.
    fn load(&self) -> Result<(), StoreError> {
        let listed = fs::read_dir(&self.images_dir).map_err(|e| StoreError::io("read", &self.images_dir, e))?;
        let mut images = Vec::new();
        for entry in listed.flatten() {
            let path = entry.path();
            if disk::is_temporary(&entry.file_name().to_string_lossy()) {
                fs::remove_file(&path).map_err(|e| StoreError::io("remove", path, e))?;
                continue;
            }
            match self.loaded(&path) {
                Ok(image) => images.push(image),
                Err(reason) => tracing::warn!(path = %path.display(), reason, "image left out"),
            }
        }
        // The latest claim to a tag is the valid one: a power cut may have come between two writes. Images left out
        // claim nothing.
        images.sort_by_key(|(tagged_at, _)| std::cmp::Reverse(*tagged_at));
        let mut taken = BTreeSet::new();
        for (_, mut image) in images {
            image.repo_tags.retain(|tag| taken.insert(tag.clone()));
            self.show(image);
        }
        self.count();
        Ok(())
    }

    /// One image and when it was tagged, or why it is left out. The record goes at once: it holds whole documents.
    fn loaded(&self, path: &Path) -> Result<(i64, Image), String> {
        let record = ImageRecord::read(path).map_err(|e| format!("its record is not readable: {e}"))?;
        if self.record_path(&record.id) != path {
            return Err(format!("its record is that of {}", record.id));
        }
        if let Some(layer) = record.layers.iter().find(|l| !self.layers.has(&l.key)) {
            return Err(format!("its layer {} is gone", layer.key));
        }
        let image = self.image(&record).map_err(|reason| format!("its configuration is malformed: {reason}"))?;
        Ok((record.tagged_at, image))
    }

    fn show(&self, image: Image) {
        self.layers.used_by_image(image.layers.iter().cloned());
        self.images().insert(image);
    }

    fn image(&self, record: &ImageRecord) -> Result<Image, String> {
        Ok(Image {
            id: record.id.clone(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size_bytes: record.size_bytes,
            layers: record.stack(),
            config: record.parsed()?.config,
        })
    }

    pub fn image_by_id(&self, id: &Digest) -> Option<Arc<Image>> {
        self.images().by_id.get(id).cloned()
    }

    /// Gives an image one more tag, taken from whichever had it; none if the image is gone. Nothing is written if it has
    /// the tag already.
    pub fn add_tag(&self, id: &Digest, tag: Option<String>) -> Result<Option<Arc<Image>>, ImageError> {
        // Nobody may remove the image, or give it another tag, between what is read here and what is written.
        let _writer = lock(&self.writer);
        let Some(image) = self.image_by_id(id) else { return Ok(None) };
        let Some(tag) = tag.filter(|tag| !image.repo_tags.contains(tag)) else { return Ok(Some(image)) };
        let path = self.record_path(id);
        let mut record = match ImageRecord::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| StoreError::io("read", &path, e))?,
        };
        record.tags.insert(tag);
        self.write_down(record)?;
        Ok(self.image_by_id(id))
    }

    /// Writes an image down and makes it visible. Its layers must be held by the caller meanwhile.
    pub fn publish(&self, record: ImageRecord) -> Result<(), ImageError> {
        let _writer = lock(&self.writer);
        self.write_down(record)
    }

    /// As [`Inner::publish`], by whom the lock on records is held.
    fn write_down(&self, mut record: ImageRecord) -> Result<(), ImageError> {
        let path = self.record_path(&record.id);
        let known = self.image_by_id(&record.id);
        let mut before = None;
        if let Some(known) = &known {
            record.tags.extend(known.repo_tags.iter().cloned());
            record.digests.extend(known.repo_digests.iter().cloned());
            // The layers stay as they were: containers and other calls may have their paths.
            before = ImageRecord::read(&path).ok();
            if let Some(before) = &before {
                record.layers.clone_from(&before.layers);
                record.manifest = record.manifest.or_else(|| before.manifest.clone());
            }
        }
        // Until the image itself keeps them: an image never appears without its layers, whatever the caller did.
        let keys = record.stack();
        let hold = Hold::new(&self.layers, &keys);
        if let Some(key) = keys.into_iter().find(|key| !hold.has(key)) {
            return Err(StoreError::LayerGone { key, image: record.id }.into());
        }
        record.size_bytes = record.stack().iter().map(|key| self.layers.bytes(key)).sum();
        record.tagged_at = now();
        let image = self.image(&record).map_err(|reason| ImageError::Document {
            document: format!("the configuration of {}", record.id),
            reason,
        })?;
        record.write(&path).map_err(|e| StoreError::io("write", &path, e))?;
        if let Err(error) = self.take_tags(&record) {
            // Or it would claim the tags at the next start.
            let undone = match (before, known) {
                (Some(before), _) => before.write(&path),
                (None, None) => fs::remove_file(&path),
                (None, Some(_)) => Ok(()),
            };
            if let Err(error) = undone {
                tracing::warn!(path = %path.display(), %error, "record of an image that did not become visible is left");
            }
            return Err(error.into());
        }
        self.show(image);
        self.count();
        Ok(())
    }

    /// Takes the tags of `record` from the images that had them.
    fn take_tags(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let owners: BTreeSet<Digest> = {
            let images = self.images();
            record.tags.iter().filter_map(|t| images.by_name.get(t)).filter(|o| **o != record.id).cloned().collect()
        };
        // All are read before any is written: a record that cannot be read is what goes wrong most.
        let read = |owner| {
            let path = self.record_path(owner);
            ImageRecord::read(&path).map_err(|e| StoreError::io("read", path, e))
        };
        let others: Vec<ImageRecord> = owners.iter().map(read).collect::<Result<_, _>>()?;
        for mut other in others {
            let path = self.record_path(&other.id);
            other.tags.retain(|t| !record.tags.contains(t));
            other.write(&path).map_err(|e| StoreError::io("write", &path, e))?;
            if let Ok(image) = self.image(&other) {
                self.images().insert(image);
            }
        }
        Ok(())
    }
}

/// A panic elsewhere leaves these consistent: nothing is changed in two steps under one lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
