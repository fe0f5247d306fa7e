//! One pull from beginning to end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::statvfs::statvfs;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::error::PullError;
use super::fetch::Fetch;
use super::pipe::pipe;
use super::pool::{Interest, Job, MakingState, Pool, QUEUE_BYTES, drop_elsewhere};
use super::progress::{LayerProgress, LayerState, Phase, Progress};
use super::resolve;
use super::source::{Registry, Source};
use crate::id::Digest;
use crate::image::error::{ImageError, StoreError, UnpackError};
use crate::image::import::{self, Found, FoundLayer};
use crate::image::reference::Reference;
use crate::image::registry::{Credentials, RegistryError};
use crate::image::stack::{self, Blobs, Made, Room};
use crate::image::store::{Image, Inner, Store, lock};
use crate::image::unpack::Lower;

/// A pull to be done.
#[derive(Debug)]
pub(super) struct Run {
    pub serial: u64,
    pub store: Store,
    pub registry: Arc<dyn Registry>,
    pub pool: Arc<Pool>,
    pub reference: Reference,
    pub credentials: Credentials,
    pub progress: watch::Sender<Progress>,
}

impl Run {
    pub async fn run(self) -> Result<Arc<Image>, PullError> {
        let source = self.registry.open(&self.reference, &self.credentials).await?;
        // What is known costs one small request, which also shows that the caller may have it.
        if self.is_known() {
            let digest = source.resolve().await?;
            if let Some(image) = self.present(&digest).await? {
                return Ok(image);
            }
        }
        let top = source.manifest().await?;
        if let Some(image) = self.present(&top.digest).await? {
            return Ok(image);
        }
        let limits = &self.store.inner.limits;
        let found = resolve::find(&*source, top, &self.reference, limits).await?;
        let keep = Arc::new(AtomicBool::new(true));
        let image = self.layers(source, found, &keep).await;
        if image.as_ref().is_err_and(is_full) {
            let pool = Arc::clone(&self.pool);
            blocking(move || pool.drop_kept_but("", &[])).await?;
        }
        image
    }

    /// Whether the store has an image by this name.
    fn is_known(&self) -> bool {
        self.store.get(&self.reference.to_string()).is_some()
    }

    /// The image of a manifest that was pulled from this repository before, now with this tag.
    async fn present(&self, digest: &Digest) -> Result<Option<Arc<Image>>, PullError> {
        let name = self.reference.with_digest(digest);
        let Some(image) = self.store.get(&name) else {
            return Ok(None);
        };
        let (store, tag) = (self.store.clone(), self.reference.tagged());
        let named = blocking(move || {
            // So that nobody removes it meanwhile.
            let _hold = store.hold(&image.layers);
            if !store.has_layers(&image.layers) {
                return Ok(None);
            }
            let Some(image) = store.inner.add_tag(&image.id, tag)? else { return Ok(None) };
            let present = |key: &String| LayerProgress {
                // The blobs' digests are not needed any more, nor their sizes.
                digest: store.inner.layers.record(key).map_or_else(|_| image.id.clone(), |record| record.diff_id),
                state: LayerState::Present,
                done_bytes: 0,
                total_bytes: 0,
            };
            let layers = image.layers.iter().rev().map(present).collect();
            Ok::<_, ImageError>(Some((image, layers)))
        });
        let Some((image, layers)) = named.await?? else { return Ok(None) };
        self.progress.send_replace(Progress { phase: Phase::Done, layers });
        Ok(Some(image))
    }

    /// Fetches what is missing and makes the image visible.
    async fn layers(
        &self,
        source: Arc<dyn Source>,
        found: Found,
        keep: &Arc<AtomicBool>,
    ) -> Result<Arc<Image>, PullError> {
        let store = Arc::clone(&self.store.inner);
        let registry = self.reference.registry().to_owned();
        let looked = {
            let (store, pool, registry) = (Arc::clone(&store), Arc::clone(&self.pool), registry.clone());
            blocking(move || {
                let images = vec![found];
                let needed = stack::needed(&store, &images)?;
                room(&store, &pool, &registry, &needed.missing)?;
                Ok::<_, ImageError>((images, needed))
            })
        };
        let (images, needed) = looked.await??;
        self.announce(&images[0], &needed.missing);
        let (disk, keep) = (Arc::clone(&needed.disk), Arc::clone(keep));
        let job = Job { pull: self.serial, store, disk, registry, source, keep: Arc::clone(&keep) };
        let mut making = JoinSet::new();
        for layer in &needed.missing {
            let (pool, job, layer, progress) =
                (Arc::clone(&self.pool), job.clone(), layer.clone(), self.progress.clone());
            making.spawn(async move { layer_of(&pool, &job, &layer, &progress).await });
        }
        let mut made = stack::Layers::new();
        let mut interests = Vec::new();
        let mut failed = None;
        while let Some(ended) = making.join_next().await {
            match ended.unwrap_or(Err(PullError::Died)) {
                Ok((key, layer, interest)) => {
                    made.insert(key, layer);
                    interests.push(interest);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = failed {
            // Before the others are given up: they ask.
            keep.store(error.is_passing(), Ordering::Relaxed);
            drop(making);
            drop(interests);
            drop_elsewhere(made);
            return Err(error);
        }
        self.progress.send_modify(|progress| progress.phase = Phase::Committing);
        // Dropped with this future: who stops waiting ends what is still fetched.
        let (_wanted, given_up) = watch::channel(());
        let (runtime, pool) = (Handle::current(), Arc::clone(&self.pool));
        let blobs = PullBlobs { job, runtime, pool, given_up, failed: Mutex::default() };
        let image = blocking(move || commit(&blobs, images, needed, made)).await?;
        // What is not in use now is of no use: layers that were made again in their place.
        keep.store(false, Ordering::Relaxed);
        drop_elsewhere(interests);
        let image = image?;
        self.progress.send_modify(|progress| progress.phase = Phase::Done);
        Ok(image)
    }

    /// Says which layers there are.
    fn announce(&self, image: &Found, missing: &[FoundLayer]) {
        let missing: BTreeSet<&Digest> = missing.iter().map(|layer| &layer.expected.diff_id).collect();
        let one = |layer: &FoundLayer| {
            let is_missing = missing.contains(&layer.expected.diff_id);
            let (digest, total_bytes) = layer.expected.blob.clone()?;
            let (state, done_bytes) =
                if is_missing { (LayerState::Waiting, 0) } else { (LayerState::Present, total_bytes) };
            Some(LayerProgress { digest, state, done_bytes, total_bytes })
        };
        let layers = image.layers.iter().filter_map(one).collect();
        self.progress.send_replace(Progress { phase: Phase::Layers, layers });
    }
}

/// One layer, by this pull or another.
async fn layer_of(
    pool: &Arc<Pool>,
    job: &Job,
    layer: &FoundLayer,
    progress: &watch::Sender<Progress>,
) -> Result<(String, Arc<Made>, Interest), PullError> {
    let key = layer.expected.diff_id.hex().to_owned();
    let report = |state: &MakingState| show(progress, layer, state);
    loop {
        let interest = pool.join(job, layer);
        match interest.made(report).await {
            Ok(made) => return Ok((key, made, interest)),
            // Another pull's failure, perhaps of its credentials, is not ours.
            Err(_) if interest.is_joined => {}
            Err(error) => return Err(error),
        }
    }
}

fn show(progress: &watch::Sender<Progress>, layer: &FoundLayer, state: &MakingState) {
    let Some((digest, size)) = &layer.expected.blob else { return };
    progress.send_if_modified(|progress| {
        let mut is_changed = false;
        for shown in progress.layers.iter_mut().filter(|shown| shown.digest == *digest) {
            let is_whole = matches!(state.result, Some(Ok(_)));
            let (now, done_bytes) = match state.taken {
                _ if is_whole => (LayerState::Unpacked, *size),
                Some(taken) => (LayerState::Downloading, taken),
                None => (LayerState::Waiting, 0),
            };
            is_changed |= (shown.state, shown.done_bytes) != (now, done_bytes);
            (shown.state, shown.done_bytes) = (now, done_bytes);
        }
        is_changed
    });
}

/// Brings layers to the disk and the image into the books.
fn commit(
    blobs: &PullBlobs,
    images: Vec<Found>,
    needed: stack::Needed,
    made: stack::Layers,
) -> Result<Arc<Image>, PullError> {
    let store = &blobs.job.store;
    let finished = stack::finish(store, blobs, &images, needed, made);
    let (keys, hold) = match (finished, lock(&blobs.failed).take()) {
        // What the unpacking said then was only that bytes were missing.
        (Err(_), Some(error)) => return Err(error.into()),
        (finished, _) => finished?,
    };
    if blobs.given_up.has_changed().is_err() {
        return Err(PullError::Died);
    }
    let mut id = None;
    for (image, keys) in images.iter().zip(keys) {
        store.publish(import::record(image, keys)?)?;
        id = Some(image.id.clone());
    }
    drop(hold);
    id.and_then(|id| store.image_by_id(&id)).ok_or(PullError::Died)
}

/// Layers that reach into those below are fetched once more, now that those are there.
#[derive(Debug)]
struct PullBlobs {
    job: Job,
    runtime: Handle,
    pool: Arc<Pool>,
    /// Closed when nobody wants the image any more.
    given_up: watch::Receiver<()>,
    failed: Mutex<Option<RegistryError>>,
}

impl Blobs for PullBlobs {
    fn unpack(&self, room: &Room<'_>, layer: &FoundLayer, lower: Option<&Lower>) -> Result<Made, ImageError> {
        let Some((digest, size)) = layer.expected.blob.clone() else {
            return Err(ImageError::Missing { name: layer.blob.clone() });
        };
        let (pull, mut given_up) = (self.job.pull, self.given_up.clone());
        let _unpacking = self.runtime.block_on(async {
            tokio::select! {
                lane = self.pool.unpacks.enter(pull) => Some(lane),
                // The unpacking below ends at once then.
                _ = given_up.changed() => None,
            }
        });
        let (feed, intake) = pipe(QUEUE_BYTES);
        let source = Arc::clone(&self.job.source);
        let fetch = Fetch { source, digest, size, read_ahead: Arc::clone(&self.pool.read_ahead) };
        let fetches = Arc::clone(&self.pool.fetches);
        let fetched = async move {
            let _fetching = fetches.enter(pull).await;
            fetch.run(feed, |_| {}).await
        };
        let fetching = self.runtime.spawn(async move {
            tokio::select! {
                fetched = fetched => fetched,
                // The pipe goes with it, and so the unpacking ends.
                _ = given_up.changed() => Ok(()),
            }
        });
        let made = Made::unpack(room, intake, &layer.expected, lower);
        if made.is_err() {
            // The network is not waited for.
            fetching.abort();
        }
        if let Ok(Err(error)) = self.runtime.block_on(fetching) {
            *lock(&self.failed) = Some(error);
        }
        made
    }
}

/// Refuses a pull early that cannot fit: what is unpacked is rarely smaller than its blob. Layers kept for the next try
/// of other pulls make way. Blocks.
fn room(store: &Inner, pool: &Pool, registry: &str, missing: &[FoundLayer]) -> Result<(), ImageError> {
    let dir = store.layers.dir();
    let to_come = missing.iter().filter(|layer| !pool.has_whole(registry, layer));
    let sizes = to_come.filter_map(|layer| Some(layer.expected.blob.as_ref()?.1));
    let wanted = sizes.fold(store.limits.reserve_bytes, u64::saturating_add);
    let fits = || {
        let space = statvfs(dir).map_err(|e| StoreError::io("look at the free space of", dir, e.into()))?;
        Ok::<_, StoreError>(wanted <= space.blocks_available().saturating_mul(space.fragment_size()))
    };
    if missing.is_empty() || fits()? {
        return Ok(());
    }
    pool.drop_kept_but(registry, missing);
    if fits()? {
        return Ok(());
    }
    Err(StoreError::DiskFull { path: PathBuf::from(dir) }.into())
}

fn is_full(error: &PullError) -> bool {
    let PullError::Image(error) = error else { return false };
    matches!(
        **error,
        ImageError::Store(StoreError::DiskFull { .. })
            | ImageError::Unpack { source: UnpackError::DiskFull { .. }, .. }
    )
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PullError::Died)
}
