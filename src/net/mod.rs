//! The network of pods: one namespace a pod, and a driver that connects it.
//!
//! Owns what a pod has in the network beyond its namespaces: devices, addresses, host ports, the books about them.
//! Never knows a pod's state or its containers; `node` says when a network is made and when it goes.
//!
//! A driver ([`Driver`]) is synchronous and may block: it is called on a thread made for the one call, which may enter
//! network namespaces and is thrown away. What lives on the host (lease, pin, rules, a plugin's result) is written
//! down before it is made, by the sandbox's id, so that a teardown needs no more than that id.
//!
//! [`Network`] is what `node` talks to: it chooses the driver, makes the namespace, keeps what could not be taken away
//! until it can, and sees to it that a driver that hangs or panics costs nobody but the pod it was called for.
//!
//! Follows CNI 1.1 in its words: a network is *added* to a pod and *deleted* from it.

pub mod bridge;
pub mod cni;
pub mod dial;
mod error;
mod gate;
mod keep;
mod leftover;
pub mod namespace;
mod network;
mod pin;
mod request;
mod settings;
mod thread;

pub use self::error::{Leftover, NetError};
pub use self::network::{Network, Overview, SetUp, Status};
pub use self::request::{Address, Attachment, Bandwidth, Dns, Ports, Protocol, Request, Route};
pub use self::settings::{Choice, Settings};

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use crate::id::SandboxId;

/// The pod's own end of its network.
pub const INTERFACE: &str = "eth0";

/// A pod's network namespace, as a driver gets it.
#[derive(Debug, Clone, Copy)]
pub struct Namespace<'a> {
    /// The namespace.
    pub fd: BorrowedFd<'a>,
    /// Where it is pinned on the host, for drivers that ask for it ([`Driver::needs_path`]).
    pub path: Option<&'a Path>,
}

/// How full a range of addresses is.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolUse {
    /// "10.87.0.0/16".
    pub range: String,
    /// Addresses that pods have.
    pub used: usize,
    /// Addresses there are for pods; a float, as there may be very many.
    pub size: f64,
}

/// A sandbox with a network, by its record.
#[derive(Debug, Clone)]
pub struct Live {
    /// The sandbox.
    pub id: SandboxId,
    /// How it is connected.
    pub attachment: Attachment,
}

/// Connects pods to a network. One instance serves all pods; every call has a thread of its own and may block until the
/// deadline the driver itself keeps.
pub trait Driver: std::fmt::Debug + Send + Sync {
    /// "bridge", "cni".
    fn name(&self) -> &'static str;

    /// Whether what runs for this driver needs the namespace by a path on the host.
    fn needs_path(&self) -> bool;

    /// Whether pods can be connected now.
    ///
    /// # Errors
    /// The reason, for NetworkReady and for people.
    fn status(&self) -> Result<(), NetError>;

    /// Whether this request can be served at all; makes nothing.
    ///
    /// # Errors
    /// [`NetError::Invalid`] or [`NetError::Unsupported`] naming the field.
    fn validate(&self, request: &Request) -> Result<(), NetError>;

    /// Connects a namespace. A failed setup leaves what [`teardown`](Self::teardown) takes away.
    ///
    /// # Errors
    /// [`NetError`] naming the step.
    fn setup(&self, request: &Request, namespace: Namespace<'_>) -> Result<Attachment, NetError>;

    /// Whether the network still is as `setup` left it; repairs what belongs to all pods (bridge, tables).
    ///
    /// # Errors
    /// What of the pod's own is missing.
    fn check(&self, id: &SandboxId, namespace: Namespace<'_>) -> Result<(), NetError>;

    /// Takes away all that was made for the sandbox, whatever is left of it and of its namespace, goes on past
    /// failures, and may be called any number of times, also for a sandbox never set up.
    ///
    /// Returns what is still there, to be tried again; empty: nothing.
    fn teardown(&self, id: &SandboxId, namespace: Option<Namespace<'_>>) -> Vec<Leftover>;

    /// The sandboxes this driver has something of, by its own books.
    ///
    /// # Errors
    /// [`NetError::Io`] if the books cannot be read.
    fn known(&self) -> Result<Vec<SandboxId>, NetError>;

    /// Called at start and now and then with every sandbox this driver has connected: takes away what belongs to others
    /// (not where [`needs_path`](Self::needs_path): there each of them has come to [`teardown`](Self::teardown)), rebuilds its own books where they are damaged, and brings back what is missing of what all pods share. Returns
    /// what could not be put right. No setup and no teardown of this driver is under way meanwhile, and those that come
    /// wait for it to end.
    fn reconcile(&self, live: &[Live]) -> Vec<Leftover>;

    /// Descriptors of which one becomes readable when somebody may have changed what all pods share; then
    /// [`mend`](Self::mend) is called, beside everything else.
    fn watches(&self) -> Vec<OwnedFd> {
        Vec::new()
    }

    /// Brings back at once what is missing of what all pods share, and reads what [`watches`](Self::watches) told.
    ///
    /// # Errors
    /// What could not be brought back; the next reconciliation tries again.
    fn mend(&self) -> Result<(), NetError> {
        Ok(())
    }

    /// kubelet's address range for this node's pods (UpdateRuntimeConfig), one or two, comma-separated; checked.
    ///
    /// # Errors
    /// [`NetError::Invalid`] if it is none.
    fn set_pod_cidr(&self, cidr: &str) -> Result<(), NetError>;

    /// The ranges that pods get addresses of, where this driver keeps any.
    fn pools(&self) -> Vec<PoolUse> {
        Vec::new()
    }

    /// What a person wants to know of the network (`aril network inspect`), as JSON.
    fn describe(&self) -> serde_json::Value;

    /// Takes away what all pods shared: bridge, tables, books. Called when no pod is connected; the next setup makes
    /// anew what it needs. Returns what is still there.
    fn reset(&self) -> Vec<Leftover> {
        Vec::new()
    }
}

/// A driver that could be opened, or its name and why it could not.
type Opened = Result<Arc<dyn Driver>, (&'static str, NetError)>;

/// The drivers of this build.
fn drivers(settings: &Settings) -> Vec<Opened> {
    let bridge = bridge::Bridge::open(settings.of_bridge());
    let cni = cni::Cni::open(settings.of_cni());
    vec![
        bridge.map(|driver| Arc::new(driver) as Arc<dyn Driver>).map_err(|e| ("bridge", e)),
        cni.map(|driver| Arc::new(driver) as Arc<dyn Driver>).map_err(|e| (cni::NAME, e)),
    ]
}
