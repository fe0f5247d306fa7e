//! Pods and containers: their state, their tasks, and what Kubernetes asks of them.
//!
//! Owns the records on disk, one task a pod that changes them, and the picture all lists are
//! answered from. Never makes a system call on a container's behalf: the pod's shim does. Never
//! speaks gRPC: `cri` translates.
//!
//! ```text
//!   sandbox      Creating ──► Ready ──► Stopping ──► NotReady ──► Removing ──► (gone)
//!                    │          └── shim lost ─────────▲             ▲
//!                    └── failed: undone ────────────────────────────►┘
//!
//!   container    Creating ──► Created ──► Running ──► Exited ──► Removing ──► (gone)
//!                    │           └── start failed ──────▲           ▲
//!                    └── failed: undone ───────────────────────────►┘
//! ```
//!
//! Invariants:
//! - Each change is persisted, acted upon, published, in this order; removal deletes the record last.
//! - A pod's state is changed by that pod's task alone ([`pod`]); lists read [`index`] and wait for nobody.
//! - A caller that goes away cancels nothing; a repeated request joins the one under way.
//! - After a restart, records and shims are brought together again ([`recover`]).
//! - What pods use is read by threads that may hang, and is part of no record ([`stats`]).
//!
//! Follows CRI v1, RuntimeService.

mod api;
mod capture;
mod erase;
mod error;
mod etc;
mod events;
mod exec;
mod forward;
mod index;
mod machine;
mod network;
mod pod;
mod record;
mod recover;
mod resources;
mod settings;
pub mod spec;
pub mod state;
mod stats;
mod store;
pub mod timeline;
mod usage;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

pub use self::capture::OUTPUT_LIMIT_BYTES;
pub use self::error::{ErrorKind, NodeError};
pub use self::events::{Event, EventKind, EventReader, EventsLost};
pub use self::exec::{Attachment, ExecOutput, Resizer, Session, SessionConfig};
pub use self::machine::{cgroup_version, recursive_read_only};
pub use self::pod::chain;
pub use self::record::{ContainerRecord, SandboxRecord, User};
pub use self::settings::Settings;
pub use self::stats::{
    ContainerNumbers, Counted, Details, Disk, Filesystem, FullContainer, FullPod, Huge, Interface, PodNumbers,
    Pressure, Processes, Stall, Usage, Written,
};
pub use self::store::StoreError;
pub use self::usage::{ContainerUsage, ImageUsage};
// Part of what node gives and takes, so that those above need not know the wire.
pub use crate::wire::session::Streams;

use self::index::Index;
use self::state::Nanos;
use self::store::Store;
use crate::id::{ContainerId, SandboxId};
use crate::image;
use crate::net::Network;
use crate::wire::spawn::Spawner;

/// This node: every pod on it. One a process, shared by all that serve requests.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    store: Store,
    images: image::Store,
    puller: image::Puller,
    index: Index,
    spawner: Spawner,
    defaults: spec::Defaults,
    random: File,
    started_at: Nanos,
    network: Arc<Network>,
    warned: Mutex<BTreeSet<String>>,
    exec_memory: capture::Budget,
    /// Held by whoever is at work for a caller though there may be no pod.
    work: Arc<()>,
    /// Containers that run and of which nothing is known any more.
    forlorn: Mutex<BTreeSet<ContainerId>>,
    stats: stats::Stats,
}

impl Node {
    /// Opens the node's directories, takes their lock and brings back every pod that was there.
    ///
    /// Returns once each pod is reunited with its shim, or known to have lost it. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`NodeError::Store`] if another daemon has the lock or a directory cannot be used;
    /// [`NodeError::Images`]; [`NodeError::Io`] if the shim program cannot be read.
    pub async fn open(settings: Settings) -> Result<Arc<Self>, NodeError> {
        let store = Store::open(&settings)?;
        let images = image::Store::open(&settings.root).map_err(NodeError::Images)?;
        let registries = image::RegistrySettings {
            config_dir: settings.registry_config_dir.clone(),
            progress_timeout: settings.image_pull_progress_timeout,
            ..image::RegistrySettings::default()
        };
        let spawner = Spawner::new(&settings.shim, &settings.root).map_err(NodeError::io("load", &settings.shim))?;
        let random = File::open("/dev/urandom").map_err(NodeError::io("open", "/dev/urandom"))?;
        let network = settings.network.clone();
        let node = Arc::new(Self {
            defaults: machine::defaults(&settings),
            settings,
            store,
            puller: image::Puller::new(images.clone(), image::RegistryClient::new(registries)),
            images,
            index: Index::default(),
            spawner,
            random,
            started_at: now(),
            network: Network::open(network),
            warned: Mutex::default(),
            exec_memory: capture::Budget::default(),
            work: Arc::default(),
            forlorn: Mutex::default(),
            stats: stats::Stats::open(),
        });
        recover::recover(&node).await?;
        tokio::spawn(Arc::clone(&node.network).attend());
        tokio::spawn(node.index.attend_events());
        Ok(node)
    }

    /// The images of this node.
    #[must_use]
    pub fn images(&self) -> &image::Store {
        &self.images
    }

    /// What brings images from registries.
    #[must_use]
    pub fn puller(&self) -> &image::Puller {
        &self.puller
    }

    /// Keeps a daemon from being idle while it is held.
    #[must_use]
    pub fn at_work(&self) -> Arc<()> {
        Arc::clone(&self.work)
    }

    /// Whether there is neither a pod nor work for a caller.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.counts().0 == 0 && Arc::strong_count(&self.work) == 1
    }

    /// Whether the configuration wants the image kept, by any of its names.
    #[must_use]
    pub fn is_pinned(&self, image: &image::Image) -> bool {
        self.settings.pinned_images.iter().any(|pin| match (pin.digest(), pin.tagged()) {
            (Some(digest), _) => image.repo_digests.contains(&pin.with_digest(digest)),
            (None, tagged) => tagged.is_some_and(|name| image.repo_tags.contains(&name)),
        })
    }

    /// Where it keeps what.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// When this daemon started.
    #[must_use]
    pub fn started_at(&self) -> Nanos {
        self.started_at
    }

    /// How many sandboxes and containers there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.index.counts()
    }

    /// How many shims it is connected to.
    #[must_use]
    pub fn shims(&self) -> usize {
        self.index.shims()
    }

    /// Whether a warning has not been logged since this daemon started. Past a thousand all are old.
    fn is_new_warning(&self, warning: &str) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        warned.len() < 1000 && warned.insert(warning.to_owned())
    }

    fn forlorn(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        self.forlorn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_sandbox_id(&self) -> Result<SandboxId, NodeError> {
        self.random_bytes().map(SandboxId::from_random)
    }

    fn new_container_id(&self) -> Result<ContainerId, NodeError> {
        self.random_bytes().map(ContainerId::from_random)
    }

    fn random_bytes(&self) -> Result<[u8; 32], NodeError> {
        let mut bytes = [0; 32];
        (&self.random).read_exact(&mut bytes).map_err(NodeError::io("read", "/dev/urandom"))?;
        Ok(bytes)
    }
}

/// The time, as CRI counts it; never 0.
#[must_use]
pub fn now() -> Nanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Nanos::try_from(since.as_nanos()).unwrap_or(Nanos::MAX).max(1)
}

#[cfg(test)]
mod tests;
