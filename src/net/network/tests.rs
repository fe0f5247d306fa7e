use std::sync::atomic::AtomicUsize;

use super::super::{Address, Dns};
use super::*;

/// A driver that does as it is told and notes what it was asked.
#[derive(Debug, Default)]
struct Fake {
    needs_path: bool,
    not_ready: bool,
    panics: bool,
    /// Refuses every pod CIDR.
    picky: bool,
    /// How many teardowns fail.
    sticky: AtomicUsize,
    /// How long a teardown takes.
    slow: Duration,
    /// Never says whether it is ready, until told to.
    silent: Option<Mutex<std::sync::mpsc::Receiver<()>>>,
    calls: Mutex<Vec<String>>,
    books: Mutex<Vec<SandboxId>>,
}

impl Fake {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    /// All calls since the last time, but questions whether it is ready.
    fn calls(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.retain(|call| call != "status");
        calls
    }
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        if self.needs_path { "cni" } else { "bridge" }
    }

    fn needs_path(&self) -> bool {
        self.needs_path
    }

    fn status(&self) -> Result<(), NetError> {
        self.note("status");
        if let Some(told) = &self.silent {
            told.lock().unwrap().recv().ok();
        }
        if self.not_ready { Err(NetError::NotReady { reason: "no bridge today".into() }) } else { Ok(()) }
    }

    fn validate(&self, request: &Request) -> Result<(), NetError> {
        match request.mac.as_str() {
            "" => Ok(()),
            _ => Err(NetError::Unsupported { field: "mac".into(), reason: "no".into() }),
        }
    }

    fn setup(&self, request: &Request, namespace: Namespace<'_>) -> Result<Attachment, NetError> {
        self.note(format!("setup, path {}", namespace.path.is_some_and(|path| path.exists())));
        self.books.lock().unwrap().push(request.id.clone());
        assert!(!self.panics, "told to");
        Ok(attachment(self.name()))
    }

    fn check(&self, _: &SandboxId, _: Namespace<'_>) -> Result<(), NetError> {
        Ok(())
    }

    fn teardown(&self, id: &SandboxId, namespace: Option<Namespace<'_>>) -> Vec<Leftover> {
        self.note(format!("teardown, namespace {}", namespace.is_some()));
        std::thread::sleep(self.slow);
        let sticks = self.sticky.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if sticks {
            return vec![Leftover { what: "lease".into(), reason: "EIO".into() }];
        }
        self.books.lock().unwrap().retain(|known| known != id);
        Vec::new()
    }

    fn known(&self) -> Result<Vec<SandboxId>, NetError> {
        Ok(self.books.lock().unwrap().clone())
    }

    fn reconcile(&self, live: &[Live]) -> Vec<Leftover> {
        self.note(format!("reconcile {}", live.len()));
        self.books.lock().unwrap().retain(|id| live.iter().any(|live| live.id == *id));
        Vec::new()
    }

    fn set_pod_cidr(&self, cidr: &str) -> Result<(), NetError> {
        self.note(format!("cidr {cidr}"));
        match self.picky {
            true => Err(NetError::Invalid { field: "pod_cidr".into(), reason: "too small".into() }),
            false => Ok(()),
        }
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::json!({ "fake": true })
    }

    fn reset(&self) -> Vec<Leftover> {
        self.note("reset");
        Vec::new()
    }
}

fn attachment(driver: &str) -> Attachment {
    let address = Address { ip: "10.88.0.2".parse().unwrap(), prefix: 16, gateway: None };
    Attachment {
        driver: driver.into(),
        network: "aril".into(),
        interface: "eth0".into(),
        mac: String::new(),
        mtu: 0,
        addresses: vec![address],
        routes: Vec::new(),
        ports: Vec::new(),
        dns: Dns::default(),
        warnings: Vec::new(),
    }
}

fn id(digit: char) -> SandboxId {
    digit.to_string().repeat(64).parse().unwrap()
}

fn request(id: SandboxId) -> Request {
    Request {
        id,
        name: "pod".into(),
        namespace: "test".into(),
        uid: "u".into(),
        ports: Vec::new(),
        bandwidth: super::super::Bandwidth::default(),
        dns: Dns::default(),
        ips: Vec::new(),
        mac: String::new(),
        cgroup_parent: String::new(),
        annotations: BTreeMap::new(),
    }
}

struct Place {
    dir: tempfile::TempDir,
    settings: Settings,
}

fn place(driver: Choice) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(dir.path().join("network"), dir.path().join("state"));
    settings.wanted.driver = driver;
    settings.wanted.netns_dir = dir.path().join("netns");
    settings.wanted.cni_config_dir = dir.path().join("net.d");
    Place { dir, settings }
}

impl Place {
    fn network(&self, fakes: &[&Arc<Fake>]) -> Arc<Network> {
        let drivers = fakes.iter().map(|fake| Arc::clone(fake) as Arc<dyn Driver>).collect();
        Network::with_drivers(self.settings.clone(), drivers)
    }

    fn pins(&self) -> usize {
        std::fs::read_dir(&self.settings.wanted.netns_dir).map_or(0, Iterator::count)
    }
}

/// Pins are mounts: a runtime whose threads have a mount namespace of their own.
fn run(test: impl Future<Output = ()>) {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_pod_is_pinned_only_for_who_needs_it_and_nothing_stays() {
    run(async {
        for (needs_path, driver) in [(true, Choice::Cni), (false, Choice::Bridge)] {
            let (place, fake) = (place(driver), Arc::new(Fake { needs_path, ..Fake::default() }));
            let network = place.network(&[&fake]);
            let made = network.setup(request(id('a'))).await.unwrap();
            assert!(made.namespace.is_some() && made.attachment.is_some());
            assert_eq!(place.pins(), usize::from(needs_path));
            assert_eq!(network.pin(&id('a')).is_some(), needs_path);
            network.teardown(&id('a')).await;
            assert_eq!(
                fake.calls(),
                [format!("setup, path {needs_path}"), format!("teardown, namespace {needs_path}")]
            );
            assert_eq!((place.pins(), network.leftovers().len()), (0, 0));
            assert!(!network.is_in_use());
        }
    });
}

#[test]
fn the_driver_is_chosen_for_each_pod_and_remembered() {
    run(async {
        let place = place(Choice::Auto);
        let (bridge, cni) = (Arc::new(Fake::default()), Arc::new(Fake { needs_path: true, ..Fake::default() }));
        let network = place.network(&[&bridge, &cni]);
        network.setup(request(id('a'))).await.unwrap();
        assert_eq!(network.status().await, Status { driver: "bridge", problem: None });
        std::fs::create_dir(&place.settings.wanted.cni_config_dir).unwrap();
        std::fs::write(place.settings.wanted.cni_config_dir.join("10-x.conflist"), b"{}").unwrap();
        assert_eq!(network.setup(request(id('b'))).await.unwrap().attachment.unwrap().driver, "cni");
        network.teardown(&id('a')).await;
        assert_eq!((bridge.calls().len(), cni.calls().len()), (2, 1));

        // A later daemon, told by the record, or not knowing whose it is.
        let network = place.network(&[&bridge, &cni]);
        network.adopt(&id('b'), &attachment("cni"));
        network.teardown(&id('b')).await;
        assert_eq!((bridge.calls().len(), cni.calls().len()), (0, 1));
        network.teardown(&id('c')).await;
        assert_eq!((bridge.calls().len(), cni.calls().len()), (1, 1));
        drop(place.dir);
    });
}

#[test]
fn where_nothing_can_be_set_up_pods_have_loopback_and_no_host_ports() {
    run(async {
        let fake = Arc::new(Fake { not_ready: true, ..Fake::default() });
        for (driver, reason) in [(Choice::None, "configuration"), (Choice::Auto, "no bridge today")] {
            let network = place(driver).network(&[&fake]);
            let made = network.setup(request(id('a'))).await.unwrap();
            assert!(made.namespace.is_none() && made.attachment.is_none());
            assert!(made.warnings[0].contains(reason), "{:?}", made.warnings);
            let status = network.status().await;
            assert!(status.driver == "none" && status.problem.unwrap().contains(reason));
            let port = super::super::Ports {
                protocol: super::super::Protocol::Tcp,
                container_port: 80,
                host_port: 8080,
                host_ip: None,
            };
            let asked = Request { ports: vec![port], ..request(id('a')) };
            assert!(matches!(network.setup(asked).await, Err(NetError::Unsupported { .. })));
        }
        let network = place(Choice::Cni).network(&[&fake]);
        assert!(matches!(network.setup(request(id('a'))).await, Err(NetError::NotReady { .. })));
    });
}

#[test]
fn a_panic_costs_its_own_call() {
    run(async {
        let place = place(Choice::Cni);
        let fake = Arc::new(Fake { needs_path: true, panics: true, ..Fake::default() });
        let network = place.network(&[&fake]);
        let error = network.setup(request(id('a'))).await.unwrap_err();
        assert!(error.to_string().contains("told to"), "{error}");
        network.teardown(&id('a')).await;
        assert_eq!(fake.calls(), ["setup, path true", "teardown, namespace true"]);
        assert_eq!(place.pins(), 0);
    });
}

#[test]
fn what_is_left_is_tried_again_also_by_the_next_daemon() {
    run(async {
        let place = place(Choice::Cni);
        let fake = Arc::new(Fake { needs_path: true, sticky: AtomicUsize::new(2), ..Fake::default() });
        let network = place.network(&[&fake]);
        network.setup(request(id('a'))).await.unwrap();
        network.teardown(&id('a')).await;
        assert_eq!((network.leftovers().len(), place.pins()), (1, 1));
        assert!(!network.is_connected(&id('a')), "nobody waits for it again");
        drop(network);

        let network = place.network(&[&fake]);
        let keeper = tokio::spawn(Arc::clone(&network).attend());
        let gone = async {
            while !network.leftovers().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
        keeper.abort();
        assert_eq!(place.pins(), 0);
        let teardowns = fake.calls().iter().filter(|call| *call == "teardown, namespace true").count();
        assert_eq!(teardowns, 3);
    });
}

#[test]
fn a_reconciliation_waits_for_nobody_and_keeps_what_is_connected() {
    run(async {
        let place = place(Choice::Bridge);
        let fake = Arc::new(Fake::default());
        fake.books.lock().unwrap().push(id('c'));
        let network = place.network(&[&fake]);
        network.adopt(&id('a'), &attachment("bridge"));
        fake.books.lock().unwrap().push(id('a'));
        let (begun, end) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
        let (slot, barriers) = (Arc::clone(&network.slots[0]), (Arc::clone(&begun), Arc::clone(&end)));
        let busy = std::thread::spawn(move || {
            let _gate = slot.gate.shared();
            barriers.0.wait();
            barriers.1.wait();
        });
        begun.wait();
        let keeper = tokio::spawn(Arc::clone(&network).attend());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fake.calls(), Vec::<String>::new(), "a pod was being connected");
        end.wait();
        busy.join().unwrap();
        let done = async {
            while fake.calls() != ["reconcile 1"] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), done).await.unwrap();
        assert_eq!(*fake.books.lock().unwrap(), [id('a')]);
        keeper.abort();
    });
}

#[test]
fn strangers_are_torn_down_with_their_namespaces_beside_everything_else() {
    run(async {
        let place = place(Choice::Cni);
        let fake = Fake { needs_path: true, slow: Duration::from_secs(2), ..Fake::default() };
        let fake = Arc::new(fake);
        let strangers = ['b', 'c', 'd'];
        // An earlier daemon connected them, and nothing else is known of them.
        let earlier = place.network(&[&fake]);
        for stranger in strangers {
            earlier.setup(request(id(stranger))).await.unwrap();
        }
        drop(earlier);
        fake.calls();
        let network = place.network(&[&fake]);
        network.adopt(&id('a'), &attachment("cni"));
        let keeper = tokio::spawn(Arc::clone(&network).attend());
        let begun = Instant::now();
        while fake.calls.lock().unwrap().iter().filter(|call| *call == "teardown, namespace true").count() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let meanwhile = Instant::now();
        network.setup(request(id('e'))).await.unwrap();
        assert!(meanwhile.elapsed() < Duration::from_secs(1), "a pod waited {:?}", meanwhile.elapsed());
        while place.pins() > 1 || !network.leftovers().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5), "one after the other");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*fake.books.lock().unwrap(), [id('e')]);
        keeper.abort();
    });
}

#[test]
fn the_pod_cidr_is_checked_handed_on_and_kept() {
    run(async {
        let place = place(Choice::Bridge);
        let fake = Arc::new(Fake::default());
        let network = place.network(&[&fake]);
        for wrong in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,fd00::/64,fd01::/64", ","]
        {
            let error = network.set_pod_cidr(wrong).await.unwrap_err();
            assert!(matches!(error, NetError::Invalid { .. }), "{wrong}: {error}");
        }
        network.set_pod_cidr("").await.unwrap();
        assert_eq!(fake.calls(), Vec::<String>::new());
        for _ in 0..2 {
            network.set_pod_cidr("10.244.1.0/24,fd00::/64").await.unwrap();
        }
        assert_eq!(fake.calls(), ["cidr 10.244.1.0/24,fd00::/64"]);
        let network = place.network(&[&fake]);
        assert_eq!(network.pod_cidr(), "10.244.1.0/24,fd00::/64");
        assert_eq!(fake.calls(), ["cidr 10.244.1.0/24,fd00::/64"]);
    });
}

#[test]
fn a_driver_that_connects_nobody_has_no_say_in_the_pod_cidr() {
    run(async {
        let bridge = Arc::new(Fake { picky: true, ..Fake::default() });
        let cni = Arc::new(Fake { needs_path: true, ..Fake::default() });
        for (driver, fits) in [(Choice::Bridge, false), (Choice::Cni, true), (Choice::Auto, false)] {
            let network = place(driver).network(&[&bridge, &cni]);
            assert_eq!(network.set_pod_cidr("10.1.0.0/30").await.is_ok(), fits, "{driver:?}");
            assert_eq!(cni.calls(), ["cidr 10.1.0.0/30"]);
        }
    });
}

#[test]
fn a_reset_is_for_a_network_without_pods() {
    run(async {
        let place = place(Choice::Bridge);
        let fake = Arc::new(Fake::default());
        let network = place.network(&[&fake]);
        network.setup(request(id('a'))).await.unwrap();
        assert!(network.reset().await.is_err());
        network.teardown(&id('a')).await;
        assert_eq!(network.reset().await.unwrap(), Vec::new());
    });
}

/// Polls a future once, on the test's own thread: what other threads do for it goes on, what it does itself does not.
async fn begin<F: Future + Unpin>(future: &mut F) {
    let once = std::future::poll_fn(|context| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_ready())
    });
    assert!(!once.await, "it has ended already");
}

#[test]
fn no_reconciliation_is_told_of_a_pod_that_was_just_taken_away() {
    run(async {
        for sticky in [0, 1] {
            let place = place(Choice::Cni);
            let fake = Fake { needs_path: true, sticky: AtomicUsize::new(sticky), ..Fake::default() };
            let fake = Arc::new(fake);
            let network = place.network(&[&fake]);
            network.setup(request(id('a'))).await.unwrap();
            fake.calls();
            let sandbox = id('a');
            let mut teardown = Box::pin(network.teardown(&sandbox));
            begin(&mut teardown).await;
            while fake.calls.lock().unwrap().is_empty() {
                std::thread::yield_now();
            }
            // Whoever gets the gate next, before anything else can happen.
            let alone = network.slots[0].gate.alone(Duration::from_secs(10)).unwrap();
            assert!(network.live("cni").is_empty(), "it would be given its lease again");
            assert_eq!(network.is_known(&id('a')), sticky == 1, "what is left is known by its note");
            drop(alone);
            teardown.await;
            assert_eq!(network.leftovers().len(), sticky);
            assert_eq!(place.pins(), sticky);
        }
    });
}

#[test]
fn a_pod_that_comes_during_a_reset_keeps_its_network() {
    run(async {
        let place = place(Choice::Bridge);
        let fake = Arc::new(Fake::default());
        let network = place.network(&[&fake]);
        let coming = network.slots[0].gate.shared();
        let mut reset = Box::pin(network.reset());
        begin(&mut reset).await;
        network.adopt(&id('a'), &attachment("bridge"));
        drop(coming);
        let error = reset.await.unwrap_err().to_string();
        assert!(error.contains("a pod is connected"), "{error}");
        assert_eq!(fake.calls(), Vec::<String>::new());
        network.teardown(&id('a')).await;
        assert_eq!(network.reset().await.unwrap(), Vec::new());
        assert_eq!(fake.calls(), ["teardown, namespace false", "reset"]);
    });
}

#[test]
fn an_overview_asks_each_driver_once_and_names_one_that_is_silent() {
    run(async {
        let place = place(Choice::Bridge);
        let (told, silent) = std::sync::mpsc::channel();
        let bridge = Arc::new(Fake { silent: Some(Mutex::new(silent)), ..Fake::default() });
        let cni = Arc::new(Fake { needs_path: true, not_ready: true, ..Fake::default() });
        let network = place.network(&[&bridge, &cni]);
        network.adopt(&id('a'), &attachment("bridge"));
        let overview = network.overview_within(Duration::from_millis(500)).await;
        drop(told);
        let [of_bridge, of_cni] = &overview[..] else { panic!("{overview:?}") };
        let problem = of_bridge.problem.as_deref().unwrap();
        assert!(problem.contains("has not answered within 500ms"), "{problem}");
        assert!(of_bridge.chosen && of_bridge.pods.len() == 1, "{of_bridge:?}");
        assert!(!of_cni.chosen && of_cni.problem.as_deref().unwrap().contains("no bridge today"), "{of_cni:?}");
        assert_eq!(*bridge.calls.lock().unwrap(), ["status"]);
        assert_eq!(*cni.calls.lock().unwrap(), ["status"]);
    });
}

#[test]
fn a_directory_is_no_cni_configuration() {
    let place = place(Choice::Auto);
    std::fs::create_dir_all(place.settings.wanted.cni_config_dir.join("old.conf")).unwrap();
    std::fs::write(place.settings.wanted.cni_config_dir.join("README"), b"").unwrap();
    assert!(!place.settings.has_cni());
    std::fs::write(place.settings.wanted.cni_config_dir.join("10-x.conf"), b"{}").unwrap();
    assert!(place.settings.has_cni());
    drop(place.dir);
}
