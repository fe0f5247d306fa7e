//! Layers in the making, shared by all pulls.
//!
//! One layer is made once, however many pulls of one registry want it. What nobody wants any more is given up; what
//! is whole is kept a while for the next try. Only what is the same blob of the same registry is shared before it is
//! whole: else a registry that sends a byte a minute, or an image that calls a huge or wrong blob by another's diff ID,
//! could hold up or spoil the images of others.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::AbortHandle;

use super::error::PullError;
use super::fetch::Fetch;
use super::lanes::Lanes;
use super::pipe::{Intake, pipe};
use super::source::Source;
use crate::id::Digest;
use crate::image::error::{ImageError, StoreError, UnpackError};
use crate::image::import::FoundLayer;
use crate::image::registry::RegistryError;
use crate::image::stack::{Made, Room};
use crate::image::stage::WriteBack;
use crate::image::store::{Inner, lock};

/// How long a whole layer is kept that no image uses yet.
const KEEP: Duration = Duration::from_secs(600);
/// Bytes of one blob between the network and the unpacking thread.
pub(super) const QUEUE_BYTES: u32 = 512 << 10;
/// Blobs being fetched, by all pulls and by one.
const FETCHES: (usize, usize) = (24, 12);
/// Layers being unpacked, by all pulls and by one; each has up to 2 MiB of buffers.
const UNPACKS: (usize, usize) = (12, 6);
/// Bytes of parts fetched ahead, by all pulls.
const READ_AHEAD_BYTES: usize = 16 << 20;
/// Bytes unpacked after which writing to the disk is started, so that the end has less to wait for.
const FLUSH_BYTES: u64 = 64 << 20;

/// All layers in the making.
#[derive(Debug)]
pub(super) struct Pool {
    slots: Mutex<HashMap<Key, Slot>>,
    pub fetches: Arc<Lanes>,
    pub unpacks: Arc<Lanes>,
    pub read_ahead: Arc<Semaphore>,
    unflushed: AtomicU64,
    is_flushing: AtomicBool,
}

/// What makes two layers in the making the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    registry: String,
    /// Digest and size.
    blob: Option<(Digest, u64)>,
    diff_id: Digest,
}

impl Key {
    fn of(registry: &str, layer: &FoundLayer) -> Self {
        let (blob, diff_id) = (layer.expected.blob.clone(), layer.expected.diff_id.clone());
        Self { registry: registry.to_owned(), blob, diff_id }
    }
}

#[derive(Debug)]
enum Slot {
    Making { making: Arc<Making>, interests: usize },
    Kept { making: Arc<Making>, serial: u64 },
}

/// One layer.
#[derive(Debug)]
struct Making {
    state: watch::Receiver<MakingState>,
    /// None if it was whole from the start.
    task: AbortHandle,
}

/// How far a layer is.
#[derive(Debug, Clone, Default)]
pub(super) struct MakingState {
    /// Bytes of the blob that were taken; none before its turn.
    pub taken: Option<u64>,
    pub result: Option<Result<Arc<Made>, PullError>>,
}

/// What a pull needs to make layers.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Tells pulls apart.
    pub pull: u64,
    pub store: Arc<Inner>,
    /// Older than the first byte of the layers.
    pub disk: Arc<WriteBack>,
    pub registry: String,
    pub source: Arc<dyn Source>,
    /// Whether whole layers are kept should the pull end now.
    pub keep: Arc<AtomicBool>,
}

/// One pull's interest in one layer.
#[derive(Debug)]
pub(super) struct Interest {
    pool: Arc<Pool>,
    key: Key,
    making: Option<Arc<Making>>,
    keep: Arc<AtomicBool>,
    /// Others wanted it first.
    pub is_joined: bool,
}

impl Pool {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            fetches: Lanes::new(FETCHES.0, FETCHES.1),
            unpacks: Lanes::new(UNPACKS.0, UNPACKS.1),
            read_ahead: Arc::new(Semaphore::new(READ_AHEAD_BYTES)),
            unflushed: AtomicU64::new(0),
            is_flushing: AtomicBool::new(false),
        })
    }

    /// Joins the making of a layer, or starts it.
    pub fn join(self: &Arc<Self>, job: &Job, layer: &FoundLayer) -> Interest {
        let key = Key::of(&job.registry, layer);
        let mut slots = lock(&self.slots);
        let (making, is_joined) = match slots.remove(&key) {
            Some(Slot::Making { making, interests }) => {
                slots.insert(key.clone(), Slot::Making { making: Arc::clone(&making), interests: interests + 1 });
                (making, true)
            }
            Some(Slot::Kept { making, .. }) => {
                slots.insert(key.clone(), Slot::Making { making: Arc::clone(&making), interests: 1 });
                (making, true)
            }
            None => {
                let making = self.start(job, layer, &key);
                slots.insert(key.clone(), Slot::Making { making: Arc::clone(&making), interests: 1 });
                (making, false)
            }
        };
        drop(slots);
        Interest { pool: Arc::clone(self), key, making: Some(making), keep: Arc::clone(&job.keep), is_joined }
    }

    fn start(self: &Arc<Self>, job: &Job, layer: &FoundLayer, key: &Key) -> Arc<Making> {
        let (state_in, state) = watch::channel(MakingState::default());
        let (pool, job, layer, key) = (Arc::clone(self), job.clone(), layer.clone(), key.clone());
        let task = tokio::spawn(async move {
            let result = pool.make(&job, &layer, &state_in).await;
            if result.is_err() {
                // Before it is told: whoever tries again must not meet this one.
                pool.forget(&key, &state_in);
            }
            state_in.send_modify(|state| state.result = Some(result));
        });
        Arc::new(Making { state, task: task.abort_handle() })
    }

    /// Takes a failed making out of the way.
    fn forget(&self, key: &Key, failed: &watch::Sender<MakingState>) {
        let mut slots = lock(&self.slots);
        let is_it = |making: &Making| failed.subscribe().same_channel(&making.state);
        if slots.get(key).is_some_and(|slot| is_it(slot.making())) {
            slots.remove(key);
        }
    }

    async fn make(
        self: &Arc<Self>,
        job: &Job,
        layer: &FoundLayer,
        state: &watch::Sender<MakingState>,
    ) -> Result<Arc<Made>, PullError> {
        // Every blob of a registry has a descriptor; without one there is nothing to ask for.
        let Some((digest, size)) = layer.expected.blob.clone() else {
            return Err(PullError::Died);
        };
        let _fetching = self.fetches.enter(job.pull).await;
        let made = loop {
            state.send_modify(|state| state.taken = Some(0));
            let (feed, intake) = pipe(QUEUE_BYTES);
            let (source, digest) = (Arc::clone(&job.source), digest.clone());
            let fetch = Fetch { source, digest: digest.clone(), size, read_ahead: Arc::clone(&self.read_ahead) };
            let fetched = fetch.run(feed, |taken| state.send_modify(|state| state.taken = Some(taken)));
            let unpacked = async {
                let _unpacking = self.unpacks.enter(job.pull).await;
                unpack(job.clone(), intake, layer.clone()).await
            };
            match both(fetched, unpacked).await {
                // One mirror's damage is not the next one's.
                Err(error) if is_of_the_bytes(&error) && job.source.distrust(&digest) => {}
                made => break made?,
            }
        };
        state.send_modify(|state| state.taken = Some(size));
        self.flush(&job.disk, made.bytes());
        Ok(Arc::new(made))
    }

    /// Has the disk begin to write what was unpacked.
    fn flush(self: &Arc<Self>, disk: &Arc<WriteBack>, bytes: u64) {
        if self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes < FLUSH_BYTES
            || self.is_flushing.swap(true, Ordering::AcqRel)
        {
            return;
        }
        self.unflushed.store(0, Ordering::Relaxed);
        let (pool, disk) = (Arc::clone(self), Arc::clone(disk));
        let run = move || {
            // A failure is remembered, and told when the image is to become visible; other pulls have their own.
            disk.sync().ok();
            pool.is_flushing.store(false, Ordering::Release);
        };
        if std::thread::Builder::new().name("flush".to_owned()).spawn(run).is_err() {
            self.is_flushing.store(false, Ordering::Release);
        }
    }

    /// Drops a kept layer when its time is over.
    fn expire_later(self: &Arc<Self>, runtime: &Handle, key: Key, serial: u64) {
        let pool = Arc::downgrade(self);
        runtime.spawn(async move {
            tokio::time::sleep(KEEP).await;
            let Some(pool) = pool.upgrade() else { return };
            let expired = {
                let mut slots = lock(&pool.slots);
                match slots.get(&key) {
                    Some(Slot::Kept { serial: kept, .. }) if *kept == serial => slots.remove(&key),
                    _ => None,
                }
            };
            drop_elsewhere(expired);
        });
    }

    /// Whether the layer is there, whole.
    pub fn has_whole(&self, registry: &str, layer: &FoundLayer) -> bool {
        let slots = lock(&self.slots);
        slots.get(&Key::of(registry, layer)).is_some_and(|slot| slot.making().is_whole())
    }

    /// Drops all layers that are kept for another try, now, but for these. Blocks.
    pub fn drop_kept_but(&self, registry: &str, wanted: &[FoundLayer]) {
        let wanted: Vec<Key> = wanted.iter().map(|layer| Key::of(registry, layer)).collect();
        let mut kept = Vec::new();
        lock(&self.slots).retain(|key, slot| match slot {
            Slot::Kept { making, .. } if !wanted.contains(key) => {
                kept.push(Arc::clone(making));
                false
            }
            _ => true,
        });
    }
}

impl Slot {
    fn making(&self) -> &Making {
        match self {
            Self::Making { making, .. } | Self::Kept { making, .. } => making,
        }
    }
}

impl Making {
    fn is_whole(&self) -> bool {
        matches!(self.state.borrow().result, Some(Ok(_)))
    }
}

impl Interest {
    /// Waits for the layer; `report` is told how far it is.
    pub async fn made(&self, mut report: impl FnMut(&MakingState)) -> Result<Arc<Made>, PullError> {
        let Some(making) = &self.making else { return Err(PullError::Died) };
        let mut watched = making.state.clone();
        loop {
            {
                let state = watched.borrow_and_update();
                report(&state);
                if let Some(result) = &state.result {
                    return result.clone();
                }
            }
            if watched.changed().await.is_err() {
                // The task may have ended with a last word.
                return watched.borrow().result.clone().unwrap_or(Err(PullError::Died));
            }
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let Some(making) = self.making.take() else { return };
        let result = making.state.borrow().result.clone();
        // It may wait for a layer that just becomes visible: not while others wait for us.
        let is_whole = matches!(result, Some(Ok(made)) if !made.is_committed());
        let mut slots = lock(&self.pool.slots);
        match slots.get_mut(&self.key) {
            Some(Slot::Making { making: there, interests }) if Arc::ptr_eq(there, &making) => {
                *interests -= 1;
                if *interests > 0 {
                    return;
                }
            }
            // It failed, and was forgotten.
            _ => return,
        }
        slots.remove(&self.key);
        making.task.abort();
        if let (true, true, Ok(runtime)) = (is_whole, self.keep.load(Ordering::Relaxed), Handle::try_current()) {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            slots.insert(self.key.clone(), Slot::Kept { making, serial });
            drop(slots);
            self.pool.expire_later(&runtime, self.key.clone(), serial);
            return;
        }
        drop(slots);
        drop_elsewhere(making);
    }
}

/// Whether other bytes might have been unpacked.
fn is_of_the_bytes(error: &PullError) -> bool {
    let PullError::Image(error) = error else { return false };
    let ImageError::Unpack { source, .. } = &**error else { return false };
    match source {
        UnpackError::Damaged { .. } | UnpackError::Entry { .. } | UnpackError::Limit { .. } => true,
        UnpackError::Mismatch { what, .. } => *what != "diff ID",
        UnpackError::DiskFull { .. } | UnpackError::System { .. } | UnpackError::Read { .. } => false,
    }
}

/// Waits for both, or for the first error: no unpacking goes on without bytes, and none that failed waits for more.
async fn both<T>(
    fetched: impl Future<Output = Result<(), RegistryError>>,
    unpacked: impl Future<Output = Result<T, PullError>>,
) -> Result<T, PullError> {
    let mut unpacked = pin!(unpacked);
    tokio::select! {
        fetched = fetched => {
            let made = unpacked.await;
            // What the unpacking says then is only that bytes are missing.
            fetched?;
            made
        }
        made = &mut unpacked => made,
    }
}

/// Drops what may have a large tree to remove, where nobody waits for it.
pub(super) fn drop_elsewhere<T: Send + 'static>(value: T) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn_blocking(move || drop(value));
    }
}

/// Unpacks in a thread of its own, which ends with the pipe.
async fn unpack(job: Job, intake: Intake, layer: FoundLayer) -> Result<Made, PullError> {
    let (result_in, result) = oneshot::channel();
    let dir = job.store.layers.dir().to_owned();
    let run = move || {
        let room = Room { store: &job.store, disk: &job.disk };
        let made = Made::unpack(&room, intake, &layer.expected, None);
        // Nobody waits any more: what was made goes with the answer.
        result_in.send(made).ok();
    };
    let spawned = std::thread::Builder::new().name("unpack".to_owned()).spawn(run);
    spawned.map_err(|e| ImageError::Store(StoreError::io("start a thread for", dir, e)))?;
    Ok(result.await.map_err(|_| PullError::Died)??)
}
