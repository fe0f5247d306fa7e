//! Pulls from a registry in memory, honest and not. Needs root: layers have owners and devices.

pub mod fake;
mod hostile;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tar::EntryType;

use super::*;
use crate::image::registry::RegistryErrorKind;
use crate::image::tests::kit::{Blob, Layer, Layout, eventually, root_only};
use crate::image::{ImageError, Limits};
use fake::Fake;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    fake: Arc<Fake>,
    puller: Puller,
}

fn bench() -> Bench {
    with_limits(Limits::default())
}

fn with_limits(limits: Limits) -> Bench {
    root_only();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::with_limits(dir.path(), limits).unwrap();
    let fake = Fake::new();
    let puller = Puller::of(store.clone(), Arc::new(Arc::clone(&fake)));
    Bench { dir, store, fake, puller }
}

impl Bench {
    fn start(&self, name: &str) -> Pulling {
        self.puller.pull(name.parse().unwrap(), Credentials::anonymous())
    }

    async fn pull(&self, name: &str) -> Outcome {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.start(name).finish()).await;
        ended.expect("the pull hangs")
    }

    /// Why a pull fails, and that nothing is left of it.
    async fn refusal(&self, name: &str) -> String {
        let before = self.store.usage().used_bytes;
        let error = self.pull(name).await.unwrap_err();
        self.assert_tidy();
        assert_eq!(self.store.usage().used_bytes, before);
        error.to_string()
    }

    fn assert_tidy(&self) {
        eventually(|| leftovers(self.dir.path()) == 0);
    }
}

fn leftovers(root: &Path) -> usize {
    let names =
        |dir: &str| std::fs::read_dir(root.join(dir)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names("layers").chain(names("images")).filter(|name| name.starts_with("tmp-") || name.starts_with('.')).count()
}

/// Bytes that hardly compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn layer(number: u64, length: usize) -> Blob {
    Layer::new().directory("data", 0o755).file(&format!("data/{number}"), &noise(length, number)).build()
}

fn blob_digest(blob: &Blob) -> crate::id::Digest {
    crate::image::tests::kit::digest(&blob.bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_many_layers_and_all_compressions_is_pulled() {
    let bench = bench();
    let mut layers: Vec<Blob> = (0..20).map(|n| layer(n, 40_000)).collect();
    layers.push(Blob::of(Layer::new().file("zstd", &noise(700_000, 98)).tar(), "zstd"));
    layers.push(Blob::of(Layer::new().file("plain", &noise(700_000, 99)).tar(), "none"));
    let digest = bench.fake.serve("app:1", &Layout::of(layers));
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(3);
    let pulling = bench.start("reg.example/app:1");
    let progress = pulling.progress();
    let image = pulling.finish().await.unwrap();
    assert_eq!(image.layers.len(), 22);
    assert_eq!(image.repo_tags, ["reg.example/app:1"]);
    assert_eq!(image.repo_digests, [format!("reg.example/app@{digest}")]);
    for name in ["plain", "zstd", "data/7"] {
        assert!(image.layers.iter().any(|key| bench.store.layer_path(key).join(name).exists()), "{name}");
    }
    assert!(bench.store.verify("reg.example/app:1").unwrap().unwrap().is_sound());
    let progress = progress.borrow().clone();
    assert_eq!(progress.phase, Phase::Done);
    assert!(progress.layers.iter().all(|l| l.state == LayerState::Unpacked && l.done_bytes == l.total_bytes));
    assert!(bench.fake.most_under_way.load(Ordering::Relaxed) > 2, "layers came one after the other");
    bench.assert_tidy();
    // And all of it is there after a restart.
    drop((bench.puller, bench.store));
    assert_eq!(Store::open(bench.dir.path()).unwrap().list(), [image]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_image_costs_one_small_request() {
    let bench = bench();
    let one = Layout::of(vec![layer(1, 1000)]);
    bench.fake.serve("app:1", &one);
    bench.fake.serve("app:2", &one);
    let first = bench.pull("reg.example/app:1").await.unwrap();
    let (transfers, manifests) =
        (bench.fake.transfers.lock().unwrap().len(), bench.fake.manifests.load(Ordering::Relaxed));
    assert_eq!((transfers, manifests, bench.fake.heads.load(Ordering::Relaxed)), (1, 1, 0));
    let again = bench.pull("reg.example/app:1").await.unwrap();
    assert_eq!(again, first);
    assert_eq!(bench.fake.heads.load(Ordering::Relaxed), 1);
    assert_eq!(bench.fake.manifests.load(Ordering::Relaxed), 1);
    // Another tag of the same manifest needs no layer either.
    let both = bench.pull("reg.example/app:2").await.unwrap();
    assert_eq!(both.repo_tags, ["reg.example/app:1", "reg.example/app:2"]);
    assert_eq!(bench.fake.transfers.lock().unwrap().len(), 1);
    // By digest, too.
    let digest = first.repo_digests[0].clone();
    assert_eq!(bench.pull(&digest).await.unwrap().id, first.id);
    assert_eq!(bench.fake.heads.load(Ordering::Relaxed), 2);

    // The tag moves: only what differs is fetched.
    bench.fake.serve("app:1", &Layout::of(vec![layer(1, 1000), layer(2, 1000)]));
    let moved = bench.pull("reg.example/app:1").await.unwrap();
    assert_ne!(moved.id, first.id);
    assert_eq!(moved.repo_tags, ["reg.example/app:1"]);
    assert_eq!(bench.store.get("reg.example/app:2").unwrap().repo_tags, ["reg.example/app:2"]);
    assert_eq!(bench.fake.transfers.lock().unwrap().len(), 2);

    // Who may not read it does not get it because it is there.
    *bench.fake.allowed.lock().unwrap() = Some(Credentials::password("a", "b"));
    let error = bench.pull("reg.example/app:1").await.unwrap_err();
    assert!(matches!(&error, PullError::Registry(e) if e.kind() == RegistryErrorKind::Unauthorized), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_pulls_of_one_reference_are_one() {
    let bench = bench();
    let digest = blob_digest(&layer(1, 300_000));
    bench.fake.serve("app:1", &Layout::of(vec![layer(1, 300_000)]));
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(20);
    let pulls: Vec<Pulling> = (0..5).map(|_| bench.start("reg.example/app:1")).collect();
    let other = bench.puller.pull("reg.example/app:1".parse().unwrap(), Credentials::password("me", "x"));
    let mut images = Vec::new();
    for pull in pulls {
        images.push(pull.finish().await.unwrap());
    }
    images.push(other.finish().await.unwrap());
    assert!(images.iter().all(|image| image.id == images[0].id));
    assert_eq!(bench.fake.opened.lock().unwrap().len(), 2, "once for each credentials");
    assert_eq!(bench.fake.transfers_of(&digest), 1, "the layer is shared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_pulled_at_once_share_layers_in_the_making() {
    let bench = bench();
    let common = layer(1, 500_000);
    bench.fake.serve("a:1", &Layout::of(vec![common.clone(), layer(2, 10)]));
    bench.fake.serve("b:1", &Layout::of(vec![common.clone(), layer(3, 10)]));
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(10);
    let (a, b) = tokio::join!(bench.pull("reg.example/a:1"), bench.pull("reg.example/b:1"));
    assert_eq!(a.unwrap().layers[1], b.unwrap().layers[1]);
    assert_eq!(bench.fake.transfers_of(&blob_digest(&common)), 1);
    bench.assert_tidy();
    bench.store.remove("reg.example/a:1").unwrap();
    assert!(bench.store.verify("reg.example/b:1").unwrap().unwrap().is_sound());
    bench.store.remove("reg.example/b:1").unwrap();
    eventually(|| std::fs::read_dir(bench.dir.path().join("layers")).unwrap().count() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_nobody_waits_for_stops_and_keeps_what_is_whole() {
    let bench = bench();
    let (done, stuck) = (layer(1, 1000), layer(2, 400_000));
    let (done_digest, stuck_digest) = (blob_digest(&done), blob_digest(&stuck));
    bench.fake.serve("app:1", &Layout::of(vec![done, stuck]));
    bench.fake.stalled.lock().unwrap().push(stuck_digest.clone());
    let first = bench.start("reg.example/app:1");
    let second = bench.start("reg.example/app:1");
    let mut progress = first.progress();
    let one_is_whole = |p: &Progress| p.layers.iter().any(|l| l.state == LayerState::Unpacked);
    tokio::time::timeout(Duration::from_secs(20), progress.wait_for(one_is_whole)).await.unwrap().unwrap();
    drop(first);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.fake.under_way.load(Ordering::Relaxed), 1, "somebody still waits");
    drop(second);
    eventually(|| bench.fake.under_way.load(Ordering::Relaxed) == 0);
    // The half-made layer goes, the whole one waits for another try.
    eventually(|| leftovers(bench.dir.path()) == 1);
    bench.fake.stalled.lock().unwrap().clear();
    bench.pull("reg.example/app:1").await.unwrap();
    assert_eq!((bench.fake.transfers_of(&done_digest), bench.fake.transfers_of(&stuck_digest)), (1, 2));
    bench.assert_tidy();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_removes_what_was_kept() {
    let bench = bench();
    let stuck = layer(2, 400_000);
    bench.fake.stalled.lock().unwrap().push(blob_digest(&stuck));
    bench.fake.serve("app:1", &Layout::of(vec![layer(1, 10), stuck]));
    let pulling = bench.start("reg.example/app:1");
    let mut progress = pulling.progress();
    let one_is_whole = |p: &Progress| p.layers.iter().any(|l| l.state == LayerState::Unpacked);
    tokio::time::timeout(Duration::from_secs(20), progress.wait_for(one_is_whole)).await.unwrap().unwrap();
    // As after a kill: the directory as it is now.
    let copy = tempfile::tempdir().unwrap();
    let status =
        std::process::Command::new("cp").arg("-a").arg(bench.dir.path()).arg(copy.path().join("root")).status();
    assert!(status.unwrap().success());
    assert!(leftovers(&copy.path().join("root")) >= 2);
    let reopened = Store::open(&copy.path().join("root")).unwrap();
    assert_eq!(leftovers(&copy.path().join("root")), 0);
    assert_eq!(reopened.list(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_survives_the_failure_of_who_came_first() {
    let bench = bench();
    let common = layer(1, 500_000);
    bench.fake.serve("a:1", &Layout::of(vec![common.clone()]));
    bench.fake.serve("b:1", &Layout::of(vec![common.clone(), layer(2, 10)]));
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(30);
    let first = bench.start("reg.example/a:1");
    eventually(|| bench.fake.transfers_of(&blob_digest(&common)) == 1);
    let second = bench.start("reg.example/b:1");
    tokio::time::sleep(Duration::from_millis(60)).await;
    bench.fake.broken.lock().unwrap().insert(blob_digest(&common), RegistryErrorKind::Unauthorized);
    assert!(first.finish().await.is_err());
    bench.fake.broken.lock().unwrap().clear();
    second.finish().await.unwrap();
    assert_eq!(bench.fake.transfers_of(&blob_digest(&common)), 2);
    bench.assert_tidy();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_reach_into_others_are_made_in_their_place() {
    let bench = bench();
    let base = Layer::new().directory("etc", 0o700).file("etc/base", b"base").build();
    let reaching = Layer::new().link(EntryType::Link, "twin", "etc/base").build();
    let implying = Layer::new().file("etc/new", b"new").build();
    bench.fake.serve("app:1", &Layout::of(vec![base, reaching.clone(), implying.clone()]));
    let image = bench.pull("reg.example/app:1").await.unwrap();
    let twin = bench.store.layer_path(&image.layers[1]);
    assert_eq!(std::fs::read(twin.join("twin")).unwrap(), b"base");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(bench.store.layer_path(&image.layers[0]).join("etc")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(bench.fake.transfers_of(&blob_digest(&reaching)), 2);
    assert!(bench.store.verify("reg.example/app:1").unwrap().unwrap().is_sound());
    bench.assert_tidy();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_large_blob_is_fetched_in_parts() {
    let bench = bench();
    let large = Blob::of(Layer::new().file("large", &noise(30 << 20, 5)).tar(), "none");
    bench.fake.serve("app:1", &Layout::of(vec![large]));
    bench.fake.chunk_bytes.store(1 << 20, Ordering::Relaxed);
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(15);
    let image = bench.pull("reg.example/app:1").await.unwrap();
    let content = std::fs::read(bench.store.layer_path(&image.layers[0]).join("large")).unwrap();
    assert!(content == noise(30 << 20, 5));
    let ranges = bench.fake.ranges.lock().unwrap().clone();
    assert!(ranges.len() > 3, "{ranges:?}");
    assert!(bench.fake.most_under_way.load(Ordering::Relaxed) > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_only_says_it_has_ranges_is_read_over_one_connection() {
    let bench = bench();
    let large = Blob::of(Layer::new().file("large", &noise(30 << 20, 5)).tar(), "none");
    bench.fake.serve("app:1", &Layout::of(vec![large]));
    bench.fake.chunk_bytes.store(1 << 20, Ordering::Relaxed);
    bench.fake.no_ranges.store(true, Ordering::Relaxed);
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(15);
    let image = bench.pull("reg.example/app:1").await.unwrap();
    let content = std::fs::read(bench.store.layer_path(&image.layers[0]).join("large")).unwrap();
    assert!(content == noise(30 << 20, 5));
    assert!(!bench.fake.ranges.lock().unwrap().is_empty(), "parts were not tried");
    assert_eq!(bench.fake.rests.load(Ordering::Relaxed), 1);
    eventually(|| bench.fake.under_way.load(Ordering::Relaxed) == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_not_far_ahead_of_a_reader_that_waits() {
    let bench = bench();
    // One chunk at a time may pass: what is taken beyond the queue would show.
    let large = Blob::of(Layer::new().file("large", &noise(8 << 20, 6)).tar(), "none");
    let (feed, intake) = super::pipe::pipe(super::pool::QUEUE_BYTES);
    bench.fake.serve("app:1", &Layout::of(vec![large.clone()]));
    let source = bench.fake.open_for_test().await;
    let fetch = super::fetch::Fetch {
        source,
        digest: blob_digest(&large),
        size: large.bytes.len() as u64,
        read_ahead: Arc::new(tokio::sync::Semaphore::new(0)),
    };
    let task = tokio::spawn(fetch.run(feed, |_| {}));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let taken = (1 << 20) - bench.fake.gate.available_permits();
    assert!(taken <= 10, "{taken} chunks of 64 KiB for a queue of 512 KiB");
    drop(intake);
    task.await.unwrap().unwrap();
    eventually(|| bench.fake.under_way.load(Ordering::Relaxed) == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_for_this_machine_is_chosen() {
    let bench = bench();
    let architecture = crate::image::manifest::Platform::host().architecture;
    let ours = bench.fake.serve("x:1", &Layout::of(vec![layer(1, 10)]).architecture(&architecture));
    let other = bench.fake.serve("x:2", &Layout::of(vec![layer(2, 10)]).architecture("s390x"));
    let proof = bench.fake.serve_document("x:3", br#"{"schemaVersion":2}"#);
    let linux = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let unknown = json!({ "os": "unknown", "architecture": "unknown" });
    let inner =
        bench.fake.serve_index("x:4", &[(&proof, unknown), (&other, linux("s390x")), (&ours, linux(&architecture))]);
    let top = bench.fake.serve_index("app:1", &[(&other, linux("s390x")), (&inner, Value::Null)]);
    let image = bench.pull("reg.example/app:1").await.unwrap();
    assert!(bench.store.layer_path(&image.layers[0]).join("data/1").exists());
    assert_eq!(image.repo_digests, [format!("reg.example/app@{top}")], "what the tag means is the index");
    // Known by the index's digest the next time.
    bench.pull("reg.example/app:1").await.unwrap();
    assert_eq!(bench.fake.heads.load(Ordering::Relaxed), 1);

    bench.fake.serve_index("app:2", &[(&other, linux("s390x"))]);
    let reason = bench.refusal("reg.example/app:2").await;
    assert!(reason.contains(&format!("no image for linux/{architecture}")) && reason.contains("s390x"), "{reason}");
    // The configuration has the last word.
    bench.fake.serve_index("app:3", &[(&other, linux(&architecture))]);
    let reason = bench.refusal("reg.example/app:3").await;
    assert!(reason.contains("only for linux/s390x"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_in_use_survive_their_removal_and_a_new_pull() {
    let bench = bench();
    bench.fake.serve("app:1", &Layout::of(vec![layer(1, 1000), layer(2, 1000)]));
    let image = bench.pull("reg.example/app:1").await.unwrap();
    let hold = bench.store.hold(&image.layers);
    assert!(bench.store.remove("reg.example/app:1").unwrap());
    let again = bench.pull("reg.example/app:1").await.unwrap();
    assert_eq!(again.layers, image.layers);
    assert_eq!(bench.fake.transfers.lock().unwrap().len(), 2, "the layers were still there");
    drop(hold);
    assert!(bench.store.has_layers(&again.layers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_comes_again_is_used_once() {
    let bench = bench();
    let (x, y) = (layer(1, 100_000), layer(2, 1000));
    bench.fake.serve("app:1", &Layout::of(vec![x.clone(), y.clone(), x.clone()]));
    let image = bench.pull("reg.example/app:1").await.unwrap();
    assert_eq!(image.layers, [x.diff_id.hex(), y.diff_id.hex()]);
    assert!(image.size_bytes < 200_000);
    assert_eq!(bench.fake.transfers_of(&blob_digest(&x)), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_that_are_implied_alike_need_no_second_unpacking() {
    let bench = bench();
    let base = |mode| Layer::new().directory("usr", 0o755).directory("usr/share", mode).file("usr/a", b"a").build();
    let implying = Layer::new().file("usr/share/x/y", b"y").file("opt/z", b"z").build();
    bench.fake.serve("alike:1", &Layout::of(vec![base(0o755), implying.clone()]));
    bench.fake.serve("other:1", &Layout::of(vec![base(0o700), implying.clone()]));
    let alike = bench.pull("reg.example/alike:1").await.unwrap();
    assert_eq!(alike.layers[0], implying.diff_id.hex());
    assert_eq!(bench.fake.transfers_of(&blob_digest(&implying)), 1);
    // The same layer, there already, where the directory below is another one.
    let other = bench.pull("reg.example/other:1").await.unwrap();
    assert_ne!(other.layers[0], implying.diff_id.hex());
    let share = std::fs::metadata(bench.store.layer_path(&other.layers[0]).join("usr/share")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&share.permissions()) & 0o777, 0o700);
    assert_eq!(bench.fake.transfers_of(&blob_digest(&implying)), 2);
    // And again after a restart, from what is written down.
    drop((bench.puller, bench.store));
    let store = Store::open(bench.dir.path()).unwrap();
    store.remove("reg.example/other:1").unwrap();
    let puller = Puller::of(store.clone(), Arc::new(Arc::clone(&bench.fake)));
    let again = puller.pull("reg.example/other:1".parse().unwrap(), Credentials::anonymous()).finish().await.unwrap();
    assert_eq!(again.layers, other.layers);
}

/// An image may call any blob by any diff ID.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_blob_by_the_same_diff_id_holds_nobody_up() {
    let bench = bench();
    let tar = Layer::new().file("x", &noise(300_000, 1)).tar();
    let (stuck, fine) = (Blob::of(tar.clone(), "none"), Blob::of(tar, "gzip"));
    assert_eq!(stuck.diff_id, fine.diff_id);
    bench.fake.serve("bad:1", &Layout::of(vec![stuck.clone()]));
    bench.fake.serve("good:1", &Layout::of(vec![fine]));
    bench.fake.stalled.lock().unwrap().push(blob_digest(&stuck));
    let first = bench.start("reg.example/bad:1");
    eventually(|| bench.fake.transfers_of(&blob_digest(&stuck)) == 1);
    bench.pull("reg.example/good:1").await.unwrap();
    drop(first);
    bench.assert_tidy();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_given_up_while_it_commits_ends_what_it_still_fetches() {
    let bench = bench();
    let base = Layer::new().file("base", b"base").build();
    let tar = Layer::new().link(EntryType::Link, "twin", "base").file("more", &noise(20_000, 1)).tar();
    let reaching = Blob::of(tar, "none");
    let digest = blob_digest(&reaching);
    bench.fake.serve("app:1", &Layout::of(vec![base, reaching]));
    bench.fake.chunk_bytes.store(1000, Ordering::Relaxed);
    *bench.fake.delay.lock().unwrap() = Duration::from_millis(20);
    let pulling = bench.start("reg.example/app:1");
    let mut progress = pulling.progress();
    let commits = progress.wait_for(|p| p.phase == Phase::Committing);
    drop(tokio::time::timeout(Duration::from_secs(20), commits).await.unwrap().unwrap());
    // The second time it never comes to its end.
    bench.fake.stalled.lock().unwrap().push(digest.clone());
    eventually(|| bench.fake.transfers_of(&digest) == 2);
    assert_eq!(bench.fake.under_way.load(Ordering::Relaxed), 1);
    drop(pulling);
    eventually(|| bench.fake.under_way.load(Ordering::Relaxed) == 0);
    // Nothing holds on to what was unpacked but the two layers kept for another try.
    eventually(|| leftovers(bench.dir.path()) <= 2);
    assert_eq!(bench.store.list(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_unpacked_does_not_wait_for_the_network() {
    let bench = bench();
    // What is wrong stands at the beginning; the end never comes.
    let tar = Layer::new().file("../../x", b"out").file("large", &noise(4 << 20, 1)).tar();
    let blob = Blob::of(tar, "none");
    bench.fake.serve("app:1", &Layout::of(vec![blob.clone()]));
    // Enough for the one buffer that shows it, while a thread waits for the next.
    bench.fake.chunk_bytes.store(300 << 10, Ordering::Relaxed);
    bench.fake.stalled.lock().unwrap().push(blob_digest(&blob));
    let reason = tokio::time::timeout(Duration::from_secs(10), bench.refusal("reg.example/app:1")).await.unwrap();
    assert!(reason.contains("../../x"), "{reason}");
    eventually(|| bench.fake.under_way.load(Ordering::Relaxed) == 0);
}

/// A store on a disk of its own, of this many MiB.
fn on_small_disk(megabytes: u32) -> (Bench, Mounted) {
    root_only();
    let dir = tempfile::tempdir().unwrap();
    let size = format!("size={megabytes}m");
    nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some(size.as_str()))
        .unwrap();
    let mounted = Mounted(dir.path().to_owned());
    let store = Store::with_limits(dir.path(), Limits { reserve_bytes: 1 << 20, ..Limits::default() }).unwrap();
    let fake = Fake::new();
    let puller = Puller::of(store.clone(), Arc::new(Arc::clone(&fake)));
    (Bench { dir, store, fake, puller }, mounted)
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_layers_are_no_reason_to_refuse_a_pull() {
    let (bench, _mounted) = on_small_disk(40);
    let (large, stuck) = (layer(1, 20 << 20), layer(2, 400_000));
    bench.fake.serve("app:1", &Layout::of(vec![large.clone(), stuck.clone()]));
    bench.fake.serve("other:1", &Layout::of(vec![layer(3, 25 << 20)]));
    let give_up = async || {
        bench.fake.stalled.lock().unwrap().push(blob_digest(&stuck));
        let pulling = bench.start("reg.example/app:1");
        let mut progress = pulling.progress();
        let one_is_whole = |p: &Progress| p.layers.iter().any(|l| l.state == LayerState::Unpacked);
        drop(tokio::time::timeout(Duration::from_secs(30), progress.wait_for(one_is_whole)).await.unwrap().unwrap());
        drop(pulling);
        eventually(|| leftovers(bench.dir.path()) == 1);
        bench.fake.stalled.lock().unwrap().clear();
    };
    // What is there already needs no room again.
    give_up().await;
    bench.pull("reg.example/app:1").await.unwrap();
    assert_eq!(bench.fake.transfers_of(&blob_digest(&large)), 1);
    bench.store.remove("reg.example/app:1").unwrap();
    // And what is kept for another makes way.
    give_up().await;
    bench.pull("reg.example/other:1").await.unwrap();
    drop((bench.puller, bench.store));
}
