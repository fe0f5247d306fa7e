//! What pods and containers use: read from the kernel when asked, by a thread that may hang.
//!
//! Owns the earlier readings that rates are made of ([`samples`]) and what containers have written, counted now and then
//! ([`layers`]). Nothing is done and no clock runs while nobody asks. What is kept is of objects that exist, some hundred
//! bytes each, and only of those that were asked about.
//!
//! One request is the work of one thread, of a few if it is about hundreds of containers. At most [`READERS`] requests
//! are at work: where the kernel lets readers hang, they end with an error, and nothing else waits for them.

mod full;
mod interfaces;
mod layers;
mod read;
mod samples;
mod walk;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::full::{Filesystem, FullContainer, FullPod, Processes};
pub use self::interfaces::Interface;
pub use self::layers::Written;
pub(super) use self::walk::occupied;
pub use crate::runtime::cgroup::{Details, Disk, Huge, Pressure, Stall, Usage};

use self::layers::Layers;
use self::samples::Samples;
use super::Node;
use super::error::NodeError;
use super::record::{ContainerRecord, SandboxRecord};
use super::state::Nanos;
use crate::id::{ContainerId, SandboxId};
use crate::runtime::cgroup::Hierarchies;

/// Requests that read at the same time.
const READERS: usize = 4;
/// How long a request waits, for its turn and for the kernel.
const PATIENCE: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Arc<NodeError>>;

/// What a container uses.
#[derive(Debug)]
pub struct ContainerNumbers {
    /// Whose numbers they are.
    pub record: Arc<ContainerRecord>,
    /// What its cgroup counts.
    pub cgroup: Counted,
    /// What it has written over its image; `None` until it was counted.
    pub written: Option<Written>,
}

/// What a cgroup counts, or several together.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// When it was read.
    pub at: Nanos,
    /// The counters.
    pub usage: Usage,
    /// CPU time of late, in billionths of a core; `None` where CPU time is not counted.
    pub nano_cores: Option<u64>,
}

/// What a pod uses.
#[derive(Debug)]
pub struct PodNumbers {
    /// Whose numbers they are.
    pub record: Arc<SandboxRecord>,
    /// Of the pod's cgroup, or of all its containers together where it has none for itself.
    pub cgroup: Counted,
    /// Its interfaces and when they were read; `None` on the host's network.
    pub network: Option<(Nanos, Vec<Interface>)>,
    /// Of those that run.
    pub containers: Vec<ContainerNumbers>,
}

/// What is kept between requests.
#[derive(Debug)]
pub(super) struct Stats {
    hierarchies: std::result::Result<Hierarchies, String>,
    turns: Arc<Semaphore>,
    containers: Samples<ContainerId>,
    pods: Samples<SandboxId>,
    layers: Layers,
    /// How many CPUs there are.
    cpus: OnceLock<u64>,
}

impl Stats {
    /// Looks for the hierarchies once. That there are none is told to those who ask.
    pub fn open() -> Self {
        Self {
            hierarchies: Hierarchies::detect().map_err(|e| e.to_string()),
            turns: Arc::new(Semaphore::new(READERS)),
            containers: Samples::default(),
            pods: Samples::default(),
            layers: Layers::default(),
            cpus: OnceLock::new(),
        }
    }

    fn cpus(&self) -> u64 {
        *self.cpus.get_or_init(|| {
            let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
            online.ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(1).max(1)
        })
    }
}

impl Node {
    /// What a running container uses.
    ///
    /// # Errors
    /// [`NodeError::NoContainer`], [`NodeError::Ambiguous`]; [`NodeError::Refused`] if it does not run;
    /// [`NodeError::Deadline`] if the kernel does not answer.
    ///
    /// Source: CRI v1 `ContainerStats`.
    pub async fn container_numbers(self: &Arc<Self>, id: &str) -> Result<ContainerNumbers> {
        let container = self.container(id)?;
        let (short, state) = (container.id.short().to_owned(), container.state_name());
        let numbers = self.numbers_of_containers(vec![container]).await?.pop();
        numbers.ok_or_else(|| refused("container", short, state))
    }

    /// What each of these containers uses; those that do not run, or end meanwhile, are left out.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] if the kernel does not answer; [`NodeError::Io`] without cgroups.
    ///
    /// Source: CRI v1 `ListContainerStats`.
    pub async fn numbers_of_containers(
        self: &Arc<Self>,
        containers: Vec<Arc<ContainerRecord>>,
    ) -> Result<Vec<ContainerNumbers>> {
        self.read(move |node, hierarchies| read::containers(node, hierarchies, &containers)).await
    }

    /// What a pod uses.
    ///
    /// # Errors
    /// As [`container_numbers`](Self::container_numbers), with [`NodeError::NoSandbox`].
    ///
    /// Source: CRI v1 `PodSandboxStats`.
    pub async fn pod_numbers(self: &Arc<Self>, id: &str) -> Result<PodNumbers> {
        let sandbox = self.sandbox(id)?;
        let (short, state) = (sandbox.id.short().to_owned(), sandbox.state_name());
        let numbers = self.numbers_of_pods(vec![sandbox]).await?.pop();
        numbers.ok_or_else(|| refused("sandbox", short, state))
    }

    /// What each of these pods uses; those that are not ready are left out.
    ///
    /// # Errors
    /// As [`numbers_of_containers`](Self::numbers_of_containers).
    ///
    /// Source: CRI v1 `ListPodSandboxStats`.
    pub async fn numbers_of_pods(self: &Arc<Self>, sandboxes: Vec<Arc<SandboxRecord>>) -> Result<Vec<PodNumbers>> {
        self.read(move |node, hierarchies| read::pods(node, hierarchies, &sandboxes)).await
    }

    /// Everything there is to tell of each pod that is ready.
    ///
    /// # Errors
    /// As [`numbers_of_containers`](Self::numbers_of_containers).
    ///
    /// Source: CRI v1 `ListPodSandboxMetrics`.
    pub async fn full_numbers(self: &Arc<Self>) -> Result<Vec<FullPod>> {
        self.read(full::pods).await
    }

    /// What all containers have written, running or not, as far as it was counted. Reads no cgroup, so it waits for
    /// nobody who does.
    ///
    /// Source: CRI v1 `ImageFsInfo`.
    pub async fn written(self: &Arc<Self>) -> Written {
        let node = Arc::clone(self);
        let sum = move || {
            let containers = node.containers();
            node.stats.layers.count(&node.settings, &containers, layers::SHORTLY);
            let counted = containers.iter().filter_map(|c| node.stats.layers.get(&c.id));
            // As old as the oldest part of it.
            counted.fold(nothing_written(), |sum, one| Written {
                bytes: sum.bytes.saturating_add(one.bytes),
                inodes: sum.inodes.saturating_add(one.inodes),
                at: sum.at.min(one.at),
            })
        };
        tokio::task::spawn_blocking(sum).await.unwrap_or_else(|_| nothing_written())
    }

    /// Has a thread read something.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &Hierarchies) -> T + Send + 'static,
    ) -> Result<T> {
        let late = || {
            let (step, object) = ("read the counters of", "the node's cgroups".to_owned());
            let hint = ": requests for them hang in the kernel";
            Arc::new(NodeError::Deadline { step, object, limit: PATIENCE, hint })
        };
        let broken =
            |message: String| Arc::new(NodeError::io("read", "/sys/fs/cgroup")(std::io::Error::other(message)));
        let node = Arc::clone(self);
        let read = async move {
            let Ok(turn) = Arc::clone(&node.stats.turns).acquire_owned().await else {
                return Err(broken("nobody reads any more".to_owned()));
            };
            let read = move || {
                let _turn = turn;
                match &node.stats.hierarchies {
                    Ok(hierarchies) => Ok(work(&node, hierarchies)),
                    Err(e) => Err(e.clone()),
                }
            };
            let done = tokio::task::spawn_blocking(read).await;
            done.map_err(|e| e.to_string()).and_then(std::convert::identity).map_err(broken)
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(late()))
    }
}

fn nothing_written() -> Written {
    Written { bytes: 0, inodes: 0, at: super::now() }
}

fn refused(object: &'static str, id: String, state: &'static str) -> Arc<NodeError> {
    Arc::new(NodeError::Refused { object, id, state, operation: "tell what it uses" })
}
