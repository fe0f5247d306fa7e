//! The facade: one for the node, in front of all drivers.

mod overview;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::gate::Gate;
use super::leftover::Leftovers;
use super::pin::Pins;
use super::thread::{apart, guarded};
use super::{Attachment, Choice, Driver, Leftover, Live, Namespace, NetError, Request, Settings, namespace};
use crate::disk::{self, Durability};
use crate::id::SandboxId;

pub use self::overview::Overview;

/// How long an answer about readiness is good for.
const FRESH: Duration = Duration::from_secs(1);
/// How long one who asks for it waits for a newer one.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a reset waits for pods that are being connected or disconnected.
const RESET_PATIENCE: Duration = Duration::from_secs(10);

/// A pod's network as it was made.
#[derive(Debug)]
pub struct SetUp {
    /// The namespace; `None`: whoever holds the pod makes one with loopback alone.
    pub namespace: Option<OwnedFd>,
    /// How it is connected; `None`: not at all.
    pub attachment: Option<Attachment>,
    /// What was done less well than asked.
    pub warnings: Vec<String>,
    /// What took how long, in order: "namespace", "driver".
    pub steps: Vec<(&'static str, Duration)>,
}

/// Whether pods can be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The driver that the next pod gets ("bridge", "cni", "none").
    pub driver: &'static str,
    /// Why a pod gets no network; `None`: it gets one.
    pub problem: Option<String>,
}

/// A driver and the gate before it: held shared by every call about one pod, alone by a reconciliation.
#[derive(Debug)]
pub(super) struct Slot {
    pub driver: Arc<dyn Driver>,
    pub gate: Gate,
}

/// The network of a node's pods. One a node, shared by all pods' tasks.
#[derive(Debug)]
pub struct Network {
    settings: Settings,
    pub(super) slots: Vec<Arc<Slot>>,
    /// Drivers that could not be opened, and why.
    broken: Vec<(&'static str, String)>,
    pins: Pins,
    pub(super) leftovers: Leftovers,
    /// By whom each sandbox was connected, from before it is until it is no more.
    attached: Mutex<BTreeMap<SandboxId, Connected>>,
    pod_cidr: Mutex<String>,
    status: Mutex<Option<(Instant, Status)>>,
    asking: AtomicBool,
    /// Told when there is something to look after.
    pub(super) changed: Notify,
}

/// See [`Network::attached`].
#[derive(Debug, Clone)]
enum Connected {
    /// A setup is under way, or has failed.
    Begun(&'static str),
    Done(Box<Attachment>),
}

impl Connected {
    fn driver(&self) -> &str {
        match self {
            Self::Begun(driver) => driver,
            Self::Done(attachment) => &attachment.driver,
        }
    }
}

impl Network {
    /// Reads the books of an earlier daemon and gets the drivers ready. Makes nothing outside of `settings.root`.
    #[must_use]
    pub fn open(settings: Settings) -> Arc<Self> {
        let (mut drivers, mut broken) = (Vec::new(), Vec::new());
        for opened in super::drivers(&settings) {
            match opened {
                Ok(driver) => drivers.push(driver),
                Err((name, e)) => {
                    warn!(driver = name, error = %e, "network driver not usable");
                    broken.push((name, e.to_string()));
                }
            }
        }
        Self::with(settings, drivers, broken)
    }

    /// With these drivers, told apart by their names.
    #[must_use]
    pub fn with_drivers(settings: Settings, drivers: Vec<Arc<dyn Driver>>) -> Arc<Self> {
        Self::with(settings, drivers, Vec::new())
    }

    fn with(settings: Settings, drivers: Vec<Arc<dyn Driver>>, broken: Vec<(&'static str, String)>) -> Arc<Self> {
        let (pins, leftovers) = (settings.root.join("pins"), settings.root.join("leftovers"));
        for dir in [&pins, &leftovers] {
            // What cannot be written down later says so.
            disk::private_dir(dir).unwrap_or_else(|e| warn!(error = %e, "{} not made", dir.display()));
        }
        let slots = drivers.into_iter().map(|driver| Arc::new(Slot { driver, gate: Gate::default() })).collect();
        let network = Self {
            slots,
            broken,
            pins: Pins::new(settings.wanted.netns_dir.clone(), pins),
            leftovers: Leftovers::open(leftovers),
            attached: Mutex::default(),
            pod_cidr: Mutex::new(std::fs::read_to_string(pod_cidr_path(&settings)).unwrap_or_default()),
            status: Mutex::default(),
            asking: AtomicBool::new(false),
            changed: Notify::new(),
            settings,
        };
        let cidr = network.pod_cidr();
        if !cidr.is_empty() {
            network.hand_on(&cidr).unwrap_or_else(|e| warn!(error = %e, "pod CIDR kept from before not usable"));
        }
        Arc::new(network)
    }

    /// Takes a connected sandbox over from an earlier daemon.
    pub fn adopt(&self, id: &SandboxId, attachment: &Attachment) {
        self.attached().insert(id.clone(), Connected::Done(Box::new(attachment.clone())));
        self.changed.notify_one();
    }

    /// Makes a pod's namespace and connects it. A setup that fails, or whose daemon dies, leaves what
    /// [`teardown`](Self::teardown) takes away. Dropping the future ends nothing.
    ///
    /// # Errors
    /// [`NetError`] naming step and plugin; [`NetError::Unsupported`] for host ports where there is no network.
    pub async fn setup(self: &Arc<Self>, request: Request) -> Result<SetUp, NetError> {
        let network = Arc::clone(self);
        apart("set up", move || network.setup_here(&request)).await?
    }

    fn setup_here(&self, request: &Request) -> Result<SetUp, NetError> {
        let slot = match self.chosen()? {
            Ok(slot) => slot,
            Err(problem) => return without(request, problem),
        };
        let driver = slot.driver.name();
        let _gate = slot.gate.shared();
        guarded(driver, || slot.driver.validate(request))??;
        // From here on a teardown is wanted, and gets by the id alone to all that was made.
        self.attached().insert(request.id.clone(), Connected::Begun(driver));
        let making = Instant::now();
        let made = namespace::create();
        let object = || request.id.short().to_owned();
        let made = made.map_err(|source| NetError::Kernel {
            step: "make the network namespace of",
            object: object(),
            source,
        })?;
        let path = slot.driver.needs_path().then(|| self.pins.make(&request.id, made.as_fd())).transpose()?;
        let namespace = Namespace { fd: made.as_fd(), path: path.as_deref() };
        let begun = Instant::now();
        let attachment = guarded(driver, || slot.driver.setup(request, namespace))??;
        let steps = vec![("namespace", begun.duration_since(making)), ("driver", begun.elapsed())];
        debug!(sandbox = %request.id, driver, elapsed = ?begun.elapsed(), "network made");
        self.adopt(&request.id, &attachment);
        Ok(SetUp { namespace: Some(made), warnings: attachment.warnings.clone(), attachment: Some(attachment), steps })
    }

    /// Takes a sandbox's network away, whatever there is of it, and may be called any number of times. Always ends, and
    /// has no error: what could not be taken away is written down and tried again.
    pub async fn teardown(self: &Arc<Self>, id: &SandboxId) {
        let driver = self.attached().get(id).map(|connected| connected.driver().to_owned());
        self.teardown_by(id, driver.as_deref().unwrap_or_default()).await;
        self.changed.notify_one();
    }

    /// As [`teardown`](Self::teardown), soon: for what an earlier daemon left, on whose end nobody should wait.
    pub fn abandon(&self, id: &SandboxId) {
        let driver = self.attached().get(id).map(|connected| connected.driver().to_owned());
        // In this order: there is no moment in which nobody knows it.
        self.leftovers.hand_over(id, driver.as_deref().unwrap_or_default());
        self.attached().remove(id);
        self.changed.notify_one();
    }

    /// By one driver, or all if the name is empty.
    pub(super) async fn teardown_by(self: &Arc<Self>, id: &SandboxId, driver: &str) {
        let slots: Vec<&Arc<Slot>> =
            self.slots.iter().filter(|slot| driver.is_empty() || slot.driver.name() == driver).collect();
        let mut left = Vec::new();
        if slots.is_empty() && !driver.is_empty() {
            let reason = format!("this aril has no network driver {driver}");
            left.push(Leftover { what: format!("network of sandbox {}", id.short()), reason });
        }
        let is_one = !driver.is_empty();
        let mut is_noted = false;
        for slot in slots {
            let (network, slot, sandbox) = (Arc::clone(self), Arc::clone(slot), id.clone());
            // A thread each: one that panicked may be in whatever namespace.
            match apart("tear down", move || network.teardown_here(&slot, &sandbox, is_one)).await {
                Ok(of_driver) => {
                    left.extend(of_driver);
                    is_noted |= is_one;
                }
                Err(e) => left.push(leftover_of(id, &e)),
            }
        }
        if !is_noted {
            self.conclude(id, driver, left);
        }
    }

    /// With `and_conclude` the sandbox is one of this driver alone, and what came of the teardown is noted before a
    /// reconciliation can be told of a sandbox that is connected no more, or find one that nobody knows.
    fn teardown_here(&self, slot: &Slot, id: &SandboxId, and_conclude: bool) -> Vec<Leftover> {
        let _gate = slot.gate.shared();
        let begun = Instant::now();
        let driver = slot.driver.name();
        let pinned = if slot.driver.needs_path() { self.pins.open(id) } else { None };
        let path = self.pins.path(id);
        let namespace = pinned.as_ref().map(|fd| Namespace { fd: fd.as_fd(), path: Some(&path) });
        let left = guarded(driver, || slot.driver.teardown(id, namespace));
        debug!(sandbox = %id, driver, elapsed = ?begun.elapsed(), "network taken away");
        let left = left.unwrap_or_else(|e| vec![leftover_of(id, &e)]);
        if !and_conclude {
            return left;
        }
        self.conclude(id, driver, left);
        Vec::new()
    }

    /// Notes how a teardown ended, and that the sandbox is connected no more.
    fn conclude(&self, id: &SandboxId, driver: &str, mut left: Vec<Leftover>) {
        if left.is_empty()
            && let Err(e) = self.pins.remove(id)
        {
            left.push(leftover_of(id, &e));
        }
        self.leftovers.note(id, driver, left);
        self.attached().remove(id);
    }

    /// The driver for the next pod, or why there is none.
    fn chosen(&self) -> Result<Result<&Arc<Slot>, String>, NetError> {
        let slot = |name: &str| {
            let found = self.slots.iter().find(|slot| slot.driver.name() == name);
            let reason = self.broken.iter().find(|(broken, _)| *broken == name).map(|(_, reason)| reason.clone());
            let none = || format!("this aril has no network driver {name}");
            found.ok_or_else(|| NetError::NotReady { reason: reason.unwrap_or_else(none) })
        };
        match self.settings.wanted.driver {
            Choice::None => Ok(Err("pods have loopback alone, as the configuration says (network.driver)".to_owned())),
            Choice::Bridge => slot("bridge").map(Ok),
            Choice::Cni => slot("cni").map(Ok),
            Choice::Auto if self.settings.has_cni() => slot("cni").map(Ok),
            Choice::Auto => {
                let usable = slot("bridge").and_then(|slot| {
                    // One that was ready a moment ago says itself what is wrong.
                    let was_ready = self.last_status().is_some_and(|s| s.driver == "bridge" && s.problem.is_none());
                    if !was_ready {
                        guarded("bridge", || slot.driver.status())??;
                    }
                    Ok(slot)
                });
                Ok(usable.map_err(|e| e.to_string()))
            }
        }
    }

    /// Whether pods can be connected. Waits no longer than a moment; then the answer is an older one.
    pub async fn status(self: &Arc<Self>) -> Status {
        let fresh = |(at, status): (Instant, Status)| (at.elapsed() < FRESH).then_some(status);
        if let Some(status) = self.status_and_age().and_then(fresh) {
            return status;
        }
        if !self.asking.swap(true, Ordering::AcqRel) {
            let network = Arc::clone(self);
            let asked = tokio::spawn(async move {
                let asked = Arc::clone(&network);
                let status = apart("ask", move || asked.status_here()).await;
                let problem = |e: NetError| Status { driver: "none", problem: Some(e.to_string()) };
                *network.status.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((Instant::now(), status.unwrap_or_else(problem)));
                network.asking.store(false, Ordering::Release);
            });
            // If it takes longer, its answer is the next one's.
            timeout(PATIENCE, asked).await.map(drop).ok();
        }
        let none = || Status { driver: "none", problem: Some("the network driver has not answered yet".to_owned()) };
        self.last_status().unwrap_or_else(none)
    }

    fn status_here(&self) -> Status {
        match self.chosen() {
            Ok(Ok(slot)) => {
                let driver = slot.driver.name();
                let status = guarded(driver, || slot.driver.status()).and_then(|status| status);
                Status { driver, problem: status.err().map(|e| e.to_string()) }
            }
            Ok(Err(problem)) => Status { driver: "none", problem: Some(problem) },
            Err(e) => Status { driver: "none", problem: Some(e.to_string()) },
        }
    }

    fn status_and_age(&self) -> Option<(Instant, Status)> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn last_status(&self) -> Option<Status> {
        self.status_and_age().map(|(_, status)| status)
    }

    /// kubelet's address range for the pods of this node, one or two, comma-separated; kept over restarts. Empty changes
    /// nothing.
    ///
    /// # Errors
    /// [`NetError::Invalid`] if it is none; [`NetError::Io`] if it cannot be kept.
    pub async fn set_pod_cidr(self: &Arc<Self>, cidr: &str) -> Result<(), NetError> {
        if cidr.is_empty() || cidr == self.pod_cidr() {
            return Ok(());
        }
        check_pod_cidr(cidr)?;
        let (network, cidr) = (Arc::clone(self), cidr.to_owned());
        apart("set the pod CIDR", move || {
            network.hand_on(&cidr)?;
            let path = pod_cidr_path(&network.settings);
            let kept = disk::private_dir(&network.settings.root)
                .and_then(|()| disk::write_atomic(&path, cidr.as_bytes(), Durability::Process));
            kept.map_err(|source| NetError::Io { step: "write", path, source })?;
            *network.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner) = cidr;
            Ok(())
        })
        .await?
    }

    /// To every driver. One that connects no pods may find fault with it.
    fn hand_on(&self, cidr: &str) -> Result<(), NetError> {
        // Where there is no CNI configuration yet, the driver may be about to make one of this range.
        let is_auto = self.settings.wanted.driver == Choice::Auto;
        let counts = |driver: &str| self.would_choose(driver) || is_auto && driver == "cni";
        let mut result = Ok(());
        for slot in &self.slots {
            let driver = slot.driver.name();
            match guarded(driver, || slot.driver.set_pod_cidr(cidr)).and_then(|handed| handed) {
                Ok(()) => {}
                Err(e) if counts(driver) => result = Err(e),
                Err(e) => debug!(driver, error = %e, "pod CIDR refused by a driver that connects no pods"),
            }
        }
        result
    }

    /// The address range last given; empty: none.
    #[must_use]
    pub fn pod_cidr(&self) -> String {
        self.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where a sandbox's namespace is pinned on the host, if it is.
    #[must_use]
    pub fn pin(&self, id: &SandboxId) -> Option<PathBuf> {
        let path = self.pins.path(id);
        (self.pins.known().contains(id) && path.exists()).then_some(path)
    }

    /// Whether the next pod is one of this driver by the settings and what there is of configurations.
    fn would_choose(&self, driver: &str) -> bool {
        match self.settings.wanted.driver {
            Choice::Auto => (driver == "cni") == self.settings.has_cni(),
            Choice::Bridge => driver == "bridge",
            Choice::Cni => driver == "cni",
            Choice::None => false,
        }
    }

    /// What could not be taken away so far, by sandbox.
    #[must_use]
    pub fn leftovers(&self) -> Vec<(SandboxId, Vec<Leftover>)> {
        self.leftovers.list()
    }

    /// Takes away what all pods shared. Returns what is still there.
    ///
    /// # Errors
    /// [`NetError::NotReady`] while a pod is connected.
    pub async fn reset(self: &Arc<Self>) -> Result<Vec<Leftover>, NetError> {
        self.refuse_in_use(|_| true)?;
        self.retry().await;
        let mut left: Vec<Leftover> = self.leftovers().into_iter().flat_map(|(_, left)| left).collect();
        for slot in &self.slots {
            let (network, slot) = (Arc::clone(self), Arc::clone(slot));
            let result = apart("reset", move || {
                let driver = slot.driver.name();
                let busy = || NetError::NotReady { reason: format!("driver {driver} is at work; try again") };
                let _gate = slot.gate.alone(RESET_PATIENCE).ok_or_else(busy)?;
                // A pod may have come meanwhile; from here on none does.
                network.refuse_in_use(|connected| connected.driver() == driver)?;
                Ok::<_, NetError>(slot.driver.reset())
            });
            left.extend(result.await??);
        }
        Ok(left)
    }

    fn refuse_in_use(&self, counts: impl Fn(&Connected) -> bool) -> Result<(), NetError> {
        let reason = match self.attached().values().filter(|connected| counts(connected)).count() {
            0 => return Ok(()),
            1 => "a pod is connected to the network; remove it first".to_owned(),
            pods => format!("{pods} pods are connected to the network; remove them first"),
        };
        Err(NetError::NotReady { reason })
    }

    /// The sandboxes a driver has connected.
    pub(super) fn live(&self, driver: &str) -> Vec<Live> {
        let of_driver = |(id, connected): (&SandboxId, &Connected)| match connected {
            Connected::Done(attachment) if attachment.driver == driver => {
                Some(Live { id: id.clone(), attachment: (**attachment).clone() })
            }
            _ => None,
        };
        self.attached().iter().filter_map(of_driver).collect()
    }

    /// Whether any sandbox is connected.
    pub(super) fn is_in_use(&self) -> bool {
        !self.attached().is_empty()
    }

    /// Takes pins away whose sandbox is neither connected nor to be tried again.
    pub(super) fn sweep_pins(&self) {
        for id in self.pins.known() {
            if !self.is_known(&id)
                && let Err(e) = self.pins.remove(&id)
            {
                debug!(sandbox = %id, error = %e, "stray pin not removed");
            }
        }
    }

    /// Whether a sandbox is connected, or was begun to be.
    #[must_use]
    pub fn is_connected(&self, id: &SandboxId) -> bool {
        self.attached().contains_key(id)
    }

    /// Whether a sandbox is connected, or what is left of it is to be taken away.
    pub(super) fn is_known(&self, id: &SandboxId) -> bool {
        self.attached().contains_key(id) || self.leftovers.has(id)
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Connected>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pod without a network: it gets loopback, and no host ports.
fn without(request: &Request, problem: String) -> Result<SetUp, NetError> {
    if !request.ports.is_empty() {
        return Err(NetError::Unsupported {
            field: "port_mappings".to_owned(),
            reason: format!("no host ports: {problem}"),
        });
    }
    let warnings = vec![format!("no network but loopback: {problem}")];
    Ok(SetUp { namespace: None, attachment: None, warnings, steps: Vec::new() })
}

fn leftover_of(id: &SandboxId, error: &NetError) -> Leftover {
    Leftover { what: format!("network of sandbox {}", id.short()), reason: error.to_string() }
}

fn pod_cidr_path(settings: &Settings) -> PathBuf {
    settings.root.join("pod-cidr")
}

/// One or two ranges, of different families.
fn check_pod_cidr(text: &str) -> Result<(), NetError> {
    let invalid =
        |reason: String| NetError::Invalid { field: "runtime_config.network_config.pod_cidr".to_owned(), reason };
    let mut families = Vec::new();
    for cidr in text.split(',') {
        let parsed = cidr.trim().split_once('/').and_then(|(ip, prefix)| {
            let (ip, prefix) = (ip.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
            (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some(ip)
        });
        let shown: String = cidr.chars().take(80).collect();
        let ip = parsed.ok_or_else(|| invalid(format!("{shown:?} is no address range like \"10.244.1.0/24\"")))?;
        families.push(ip.is_ipv4());
    }
    match families[..] {
        [_] | [true, false] | [false, true] => Ok(()),
        [_, _] => Err(invalid("two ranges of one family; give one, or one of each".to_owned())),
        _ => Err(invalid("more than two ranges; give one, or one of each family".to_owned())),
    }
}

#[cfg(test)]
mod tests;
