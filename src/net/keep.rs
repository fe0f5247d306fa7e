//! What the network needs beside setups and teardowns: leftovers are tried again, what is shared is looked after.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::Leftover;
use super::network::{Network, Slot};
use super::thread::{apart, guarded};

/// How often what all pods share is looked at, while there are pods.
const LOOK: Duration = Duration::from_secs(10);
/// The same for drivers that start programs for it.
const LOOK_OUTSIDE: Duration = Duration::from_secs(600);
/// How long a look that finds somebody at work every time is put off…
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// … before newcomers wait for it, and how long they do.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after a change by others it is looked at.
const SETTLE: Duration = Duration::from_millis(100);
/// Leftovers tried at the same time: after a reboot there is one for each pod of before.
const MOST_AT_ONCE: usize = 32;

impl Network {
    /// Looks after the network until the runtime ends: at once, then while there are pods or leftovers; else it sleeps.
    pub async fn attend(self: Arc<Self>) {
        let mut keepers: Vec<Keeper> = self.slots.iter().map(|slot| Keeper::new(Arc::clone(slot))).collect();
        let mut retries = JoinSet::new();
        let mut watches = JoinSet::new();
        for slot in &self.slots {
            for descriptor in slot.driver.watches() {
                watches.spawn(watch(Arc::clone(slot), descriptor));
            }
        }
        loop {
            while retries.try_join_next().is_some() {}
            for (id, driver) in self.leftovers.due(MOST_AT_ONCE - retries.len()) {
                let network = Arc::clone(&self);
                // Side by side: one that hangs must not keep the others waiting.
                retries.spawn(async move { network.teardown_by(&id, &driver).await });
            }
            for keeper in &mut keepers {
                keeper.look(&self).await;
            }
            let looks = keepers.iter().map(|keeper| keeper.due).filter(|_| self.is_in_use());
            let next = self.leftovers.next().filter(|_| retries.len() < MOST_AT_ONCE);
            let wake = looks.chain(next).min();
            tokio::select! {
                () = sleep_until(wake) => {}
                () = self.changed.notified() => {}
                Some(_) = retries.join_next() => {}
            }
        }
    }

    /// Tries all leftovers again, due or not, one after the other.
    pub(super) async fn retry(self: &Arc<Self>) {
        for (id, driver) in self.leftovers.take_all() {
            self.teardown_by(&id, &driver).await;
        }
    }

    /// Hands what a driver has of sandboxes nobody knows over to be torn down, with the namespace if it is still pinned,
    /// beside everything else. Within a reconciliation each of them could cost a deadline while all pods wait.
    fn disown_strangers(&self, slot: &Slot) {
        // Known first: what is connected meanwhile is not among them.
        let Ok(known) = slot.driver.known() else { return };
        for id in known.iter().filter(|id| !self.is_known(id)) {
            info!(sandbox = %id, driver = slot.driver.name(), "network of a pod that is no more is taken away");
            self.leftovers.hand_over(id, slot.driver.name());
        }
    }
}

/// Reconciles one driver now and then.
struct Keeper {
    slot: Arc<Slot>,
    due: Instant,
    /// At start also without pods, if the driver knows of any.
    first: bool,
    /// Since when it finds somebody at work whenever it looks.
    put_off: Option<Instant>,
    last: Vec<Leftover>,
}

impl Keeper {
    fn new(slot: Arc<Slot>) -> Self {
        Self { slot, due: Instant::now(), first: true, put_off: None, last: Vec::new() }
    }

    async fn look(&mut self, network: &Arc<Network>) {
        if Instant::now() < self.due || !(self.first || network.is_in_use()) {
            return;
        }
        let pause = if self.slot.driver.needs_path() { LOOK_OUTSIDE } else { LOOK };
        self.due = Instant::now() + pause;
        let (network, slot) = (Arc::clone(network), Arc::clone(&self.slot));
        let is_overdue = self.put_off.is_some_and(|since| since.elapsed() >= LONGEST_DELAY);
        let patience = if is_overdue { PATIENCE } else { Duration::ZERO };
        match apart("reconcile", move || reconcile(&network, &slot, patience)).await {
            Ok(Some(left)) => {
                (self.first, self.put_off) = (false, None);
                if left != self.last && !left.is_empty() {
                    let what: Vec<String> = left.iter().map(|l| format!("{}: {}", l.what, l.reason)).collect();
                    warn!(driver = self.slot.driver.name(), left = what.join("; "), "network not wholly put right");
                }
                self.last = left;
            }
            // Somebody is at work.
            Ok(None) => {
                self.put_off.get_or_insert_with(Instant::now);
                // After a turn in vain the newcomers have theirs.
                self.due = Instant::now() + if is_overdue { 10 * PATIENCE } else { Duration::from_secs(1) };
            }
            Err(e) => warn!(driver = self.slot.driver.name(), error = %e, "network not reconciled"),
        }
    }
}

// tokio wants `unsafe` with its newer name; an OwnedFd stays the same descriptor as long as it lives.
#[allow(deprecated)]
fn wait_for(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// Has a driver mend what others changed, as soon as the kernel tells of it.
async fn watch(slot: Arc<Slot>, descriptor: OwnedFd) {
    let Ok(descriptor) = wait_for(descriptor) else { return };
    while let Ok(mut ready) = descriptor.readable().await {
        ready.clear_ready();
        // A firewall that is loaded anew comes in several steps.
        tokio::time::sleep(SETTLE).await;
        let changed = Arc::clone(&slot);
        let mended = apart("mend", move || changed.driver.mend()).await.and_then(|mended| mended);
        if let Err(e) = mended {
            warn!(driver = slot.driver.name(), error = %e, "network not mended after a change by others");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// `None` if a pod is being connected or disconnected.
fn reconcile(network: &Network, slot: &Slot, patience: Duration) -> Option<Vec<Leftover>> {
    if slot.driver.needs_path() {
        network.disown_strangers(slot);
    }
    let _gate = slot.gate.alone(patience)?;
    let begun = Instant::now();
    let driver = slot.driver.name();
    let live = network.live(driver);
    if live.is_empty() && slot.driver.known().is_ok_and(|known| known.is_empty()) {
        network.sweep_pins();
        return Some(Vec::new());
    }
    let left = guarded(driver, || slot.driver.reconcile(&live));
    if slot.driver.needs_path() {
        network.sweep_pins();
    }
    debug!(driver, pods = live.len(), elapsed = ?begun.elapsed(), "network reconciled");
    Some(left.unwrap_or_else(|e| vec![Leftover { what: format!("network of driver {driver}"), reason: e.to_string() }]))
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
