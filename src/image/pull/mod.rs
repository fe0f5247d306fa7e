//! Pulling images: from a registry into the store, in one streaming pass.
//!
//! ```text
//! resolve    reference → index → manifest → configuration, each bounded and compared with its digest
//! pool       layers in the making, each once, however many pulls want it
//! fetch      a blob in order, over one connection or several
//! pipe       from the task that fetches to the thread that unpacks, bounded
//! run        one pull from beginning to end
//! ```
//!
//! Layers are fetched, hashed, inflated, hashed again and written as they come; the blob is never on disk. Nothing is
//! visible before every digest, size and diff ID was compared and all is on the disk. Memory is bounded for all pulls
//! together, and the network is never further ahead of the disk than that.
//!
//! Pulls of one reference with the same credentials are one pull. With other credentials it is another one, which has to be
//! let in by the registry itself; layers are shared between them.

mod error;
mod fetch;
mod lanes;
mod pipe;
mod pool;
mod progress;
mod resolve;
mod run;
mod source;
#[cfg(test)]
pub(super) mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::reference::Reference;
use super::registry::{Credentials, RegistryClient};
use super::store::{Image, Store, lock};
use crate::observe::metrics;
use pool::Pool;
use run::Run;
use source::Registry;

pub use error::PullError;
pub use progress::{LayerProgress, LayerState, Phase, Progress};

/// Pulls images into a store. Clones share what is under way.
#[derive(Debug, Clone)]
pub struct Puller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    registry: Arc<dyn Registry>,
    pool: Arc<Pool>,
    running: Mutex<Vec<Running>>,
    serial: AtomicU64,
}

/// A pull under way.
#[derive(Debug)]
struct Running {
    serial: u64,
    reference: Reference,
    credentials: Credentials,
    waiters: usize,
    progress: watch::Receiver<Progress>,
    result: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

type Outcome = Result<Arc<Image>, PullError>;

/// One caller's interest in a pull. When the last one is dropped before the end, the pull stops; whole layers are kept
/// for ten minutes, should it be tried again.
#[derive(Debug)]
#[must_use = "the pull stops when this is dropped"]
pub struct Pulling {
    shared: Arc<Shared>,
    serial: u64,
    progress: watch::Receiver<Progress>,
    result: watch::Receiver<Option<Outcome>>,
}

impl Puller {
    /// Pulls into `store` by `client`. Does nothing yet.
    #[must_use]
    pub fn new(store: Store, client: RegistryClient) -> Self {
        Self::of(store, Arc::new(client))
    }

    pub(super) fn of(store: Store, registry: Arc<dyn Registry>) -> Self {
        let (running, serial) = (Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Shared { store, registry, pool: Pool::new(), running, serial }))
    }

    /// Joins a pull of the same reference with the same credentials that is under way, or starts one. Does not block.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn pull(&self, reference: Reference, credentials: Credentials) -> Pulling {
        let shared = Arc::clone(&self.0);
        let mut running = lock(&shared.running);
        let same = |r: &&mut Running| r.reference == reference && r.credentials == credentials;
        let (serial, progress, result) = match running.iter_mut().find(same) {
            Some(same) => {
                same.waiters += 1;
                (same.serial, same.progress.clone(), same.result.clone())
            }
            None => {
                let started = self.start(reference, credentials);
                let parts = (started.serial, started.progress.clone(), started.result.clone());
                running.push(started);
                parts
            }
        };
        drop(running);
        Pulling { shared, serial, progress, result }
    }

    fn start(&self, reference: Reference, credentials: Credentials) -> Running {
        let shared = Arc::clone(&self.0);
        let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
        let (progress_in, progress) = watch::channel(Progress::default());
        let (result_in, result) = watch::channel(None);
        let run = Run {
            serial,
            store: shared.store.clone(),
            registry: Arc::clone(&shared.registry),
            pool: Arc::clone(&shared.pool),
            reference: reference.clone(),
            credentials: credentials.clone(),
            progress: progress_in,
        };
        let counted = metrics::Pull::begin();
        let task = tokio::spawn(async move {
            let outcome = run.run().await;
            counted.end(outcome.as_ref().map_or_else(PullError::word, |_| "ok"));
            // Who asks from now on starts anew.
            let is_last = {
                let mut running = lock(&shared.running);
                running.retain(|r| r.serial != serial);
                running.is_empty()
            };
            result_in.send_replace(Some(outcome));
            if is_last {
                // Buffers, windows, and code that nobody else runs.
                tokio::task::spawn_blocking(crate::sys::memory::give_back);
            }
        });
        Running { serial, reference, credentials, waiters: 1, progress, result, task: task.abort_handle() }
    }
}

impl Pulling {
    /// Where the pull stands.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits for the end. The image is whole, on the disk, and has the reference's names.
    ///
    /// # Errors
    /// [`PullError`], the same to all who wait for this pull.
    pub async fn finish(mut self) -> Result<Arc<Image>, PullError> {
        match self.result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Err(PullError::Died)),
            Err(_) => Err(PullError::Died),
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        let mut running = lock(&self.shared.running);
        let Some(at) = running.iter().position(|r| r.serial == self.serial) else { return };
        running[at].waiters -= 1;
        if running[at].waiters == 0 {
            running.swap_remove(at).task.abort();
        }
    }
}
