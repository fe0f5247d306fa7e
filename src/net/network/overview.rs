//! What there is of networks, for people.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::super::thread::{apart, guarded};
use super::super::{Attachment, Choice, PoolUse};
use super::{Network, Slot};
use crate::id::SandboxId;

/// How long a person waits for a driver's answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// One driver, for people.
#[derive(Debug, Clone)]
pub struct Overview {
    /// "bridge", "cni".
    pub driver: &'static str,
    /// Whether the next pod is connected by it.
    pub chosen: bool,
    /// Why it can connect none.
    pub problem: Option<String>,
    /// The sandboxes it has connected.
    pub pods: Vec<(SandboxId, Attachment)>,
    /// What the driver says of itself.
    pub details: serde_json::Value,
}

impl Network {
    /// How many pods each driver has connected, from memory.
    #[must_use]
    pub fn connected(&self) -> Vec<(&'static str, usize)> {
        self.slots.iter().map(|slot| slot.driver.name()).map(|driver| (driver, self.live_count(driver))).collect()
    }

    /// The ranges of addresses that pods get theirs of, and how full they are. Waits for a driver that is at its books.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolUse> {
        let pools = |slot: &Arc<Slot>| guarded(slot.driver.name(), || slot.driver.pools()).unwrap_or_default();
        self.slots.iter().flat_map(pools).collect()
    }

    fn live_count(&self, driver: &str) -> usize {
        self.attached().values().filter(|connected| connected.driver() == driver).count()
    }

    /// All drivers, for people. One that does not answer in time says so, and keeps no other.
    pub async fn overview(self: &Arc<Self>) -> Vec<Overview> {
        self.overview_within(DEADLINE).await
    }

    pub(super) async fn overview_within(self: &Arc<Self>, limit: Duration) -> Vec<Overview> {
        let asked: Vec<_> =
            self.slots.iter().map(|slot| tokio::spawn(Arc::clone(self).look(Arc::clone(slot), limit))).collect();
        let mut all = Vec::new();
        for (slot, answer) in self.slots.iter().zip(asked) {
            let lost = |e: tokio::task::JoinError| self.unknown(slot, e.to_string());
            all.push(answer.await.unwrap_or_else(lost));
        }
        all
    }

    async fn look(self: Arc<Self>, slot: Arc<Slot>, limit: Duration) -> Overview {
        let (network, asked) = (Arc::clone(&self), Arc::clone(&slot));
        match timeout(limit, apart("look at the network", move || network.look_here(&asked))).await {
            Ok(Ok(overview)) => overview,
            Ok(Err(e)) => self.unknown(&slot, e.to_string()),
            Err(_) => self.unknown(&slot, format!("the driver has not answered within {limit:?}")),
        }
    }

    fn look_here(&self, slot: &Slot) -> Overview {
        let driver = slot.driver.name();
        let status = guarded(driver, || slot.driver.status()).and_then(|status| status);
        let details = guarded(driver, || slot.driver.describe()).unwrap_or_default();
        let problem = status.err().map(|e| e.to_string());
        // Of its own accord aril does not insist on the bridge: pods have loopback alone then.
        let is_dispensable = self.settings.wanted.driver == Choice::Auto && driver == "bridge";
        let chosen = self.would_choose(driver) && (problem.is_none() || !is_dispensable);
        Overview { driver, chosen, problem, pods: self.pods_of(driver), details }
    }

    /// What is known of a driver without asking it.
    fn unknown(&self, slot: &Slot, problem: String) -> Overview {
        let driver = slot.driver.name();
        let chosen = self.would_choose(driver);
        Overview {
            driver,
            chosen,
            problem: Some(problem),
            pods: self.pods_of(driver),
            details: serde_json::Value::Null,
        }
    }

    fn pods_of(&self, driver: &str) -> Vec<(SandboxId, Attachment)> {
        self.live(driver).into_iter().map(|live| (live.id, live.attachment)).collect()
    }
}
