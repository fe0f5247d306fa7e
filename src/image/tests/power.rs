//! Disks that lose power and disks that are full: real file systems, mounted where only one thread sees them.
//!
//! A power cut is ext4's shutdown without a flush of its journal: what was not synced by then is lost, as it would be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::kit::{Blob, Layer, Layout, eventually, root_only};
use crate::image::pull::tests::fake::Fake;
use crate::image::pull::tests::noise;
use crate::image::registry::Credentials;
use crate::image::stack;
use crate::image::stage::WriteBack;
use crate::image::store::Hold;
use crate::image::{ImageError, Limits, PullError, Puller, Store};

/// Runs a test in a thread with a mount namespace of its own; threads it starts are in it, too.
fn in_own_mounts(test: impl FnOnce(&Path) + Send) {
    root_only();
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        test(dir.path());
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(run).join()) {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("run {program}: {e}"));
    output.status.success()
}

/// An ext4 in a file.
struct Disk {
    image: PathBuf,
    root: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Self {
        let disk = Self { image: dir.join("disk"), root: dir.join("root") };
        fs::File::create(&disk.image).unwrap().set_len(384 << 20).unwrap();
        fs::create_dir(&disk.root).unwrap();
        assert!(run("/usr/sbin/mkfs.ext4", &["-q", "-F", disk.image.to_str().unwrap()]), "make a file system");
        disk.mount();
        disk
    }

    fn mount(&self) {
        let (image, root) = (self.image.to_str().unwrap(), self.root.to_str().unwrap());
        assert!(run("mount", &["-o", "loop", image, root]), "mount the disk");
    }

    /// From now on nothing reaches the disk, not even what is on its way.
    fn cut(&self) {
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
        let script = "open(F, '<', $ARGV[0]) or die; my $how = pack('L', 2); ioctl(F, 0x8004587d, $how) or die $!;";
        assert!(run("perl", &["-e", script, self.root.to_str().unwrap()]), "shut the file system down");
    }

    /// Once nobody has a file of it open any more.
    fn unmount(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while !run("umount", &[self.root.to_str().unwrap()]) {
            assert!(Instant::now() < end, "the disk stays in use");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A layer of several files, large and small, with all that has to be on the disk in time.
fn layer(number: u64) -> Blob {
    let mut layer = Layer::new().directory("data", 0o750).directory("data/deep", 0o700);
    layer =
        layer.file(&format!("data/large-{number}"), &noise(300_000 + usize::try_from(number).unwrap() * 7919, number));
    for small in 0..30 {
        layer =
            layer.file(&format!("data/deep/{number}-{small}"), &noise(50 + small * 150, number * 100 + small as u64));
    }
    layer.link(tar::EntryType::Symlink, "data/link", "/data/deep").build()
}

/// Everything that is listed is whole, nothing else is there, and the books add up with `du`.
#[track_caller]
fn assert_sound(store: &Store, root: &Path) {
    for image in store.list() {
        let verified = store.verify(image.id.as_str()).unwrap().unwrap();
        assert!(verified.is_sound(), "{:?}: {verified:?}", image.repo_tags);
    }
    store.collect();
    super::assert_tidy(root);
    let du = |dir: &str| -> u64 {
        let output = Command::new("du").args(["-s", "-B1"]).arg(root.join(dir)).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    assert_eq!(store.usage().used_bytes, du("layers") + du("images"));
}

#[test]
fn bytes_that_never_came_to_the_disk_become_no_layer() {
    in_own_mounts(|dir| {
        // A disk that promises more than it has: writing back fails, long after writing did not.
        let thin = dir.join("thin");
        fs::create_dir(&thin).unwrap();
        mount(Some("thin"), &thin, Some("tmpfs"), MsFlags::empty(), Some("size=12m")).unwrap();
        let disk = Disk { image: thin.join("disk"), root: dir.join("root") };
        fs::File::create(&disk.image).unwrap().set_len(128 << 20).unwrap();
        fs::create_dir(&disk.root).unwrap();
        // Without a journal: one that breaks would be noticed by anybody.
        let made = ["-q", "-F", "-O", "^has_journal", disk.image.to_str().unwrap()];
        assert!(run("/usr/sbin/mkfs.ext4", &made), "make a file system");
        disk.mount();
        let store = Store::open(&disk.root).unwrap();
        let layers = disk.root.join("layers");
        let watched = WriteBack::watch(&layers).unwrap();
        let blob = Blob::of(Layer::new().file("large", &vec![7; 24 << 20]).tar(), "plain");
        let made = super::books::made(&store, &watched, blob);
        let another = || nix::unistd::syncfs(fs::File::open(&layers).unwrap());
        another().unwrap_err();
        // Told once, it is forgotten.
        let end = Instant::now() + Duration::from_secs(10);
        while another().is_err() {
            assert!(Instant::now() < end, "the disk goes on failing");
        }
        for _ in 0..2 {
            let mut hold = Hold::new(&store.inner.layers, &[]);
            let error = stack::commit(&store.inner, &made, &mut hold).unwrap_err().to_string();
            assert!(error.contains("write to the disk") || error.contains("no space"), "{error}");
        }
        assert!(store.inner.layers.keys().is_empty());
        drop((made, store, watched));
        disk.unmount();
    });
}

#[test]
fn a_power_cut_at_any_moment_leaves_every_listed_image_whole() {
    in_own_mounts(|dir| {
        let disk = Disk::new(dir);
        let fake = Fake::new();
        let layers: Vec<Blob> = (0..12).map(layer).collect();
        let mut archives = Vec::new();
        for number in 0..12 {
            let own: Vec<Blob> = [0, 1, 3, 7].iter().map(|step| layers[(number + step) % 12].clone()).collect();
            let image = Layout::of(own).named(&format!("reg.example/imported-{number}:1"));
            fake.serve(&format!("pulled-{number}:1"), &image);
            archives.push(image.tar());
        }
        let mut survived = 0;
        for round in 0..10_u64 {
            let store = Store::open(&disk.root).unwrap();
            let (pulled, imported) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
            let done = Arc::new(pulled);
            let runtime = runtime();
            let puller = Puller::of(store.clone(), Arc::new(Arc::clone(&fake)));
            for worker in 0..2 {
                let (puller, done) = (puller.clone(), Arc::clone(&done));
                runtime.spawn(async move {
                    for number in 0..12 {
                        let name = format!("reg.example/pulled-{}:1", (number * 5 + worker * 6) % 12);
                        let pulling = puller.pull(name.parse().unwrap(), Credentials::anonymous());
                        if pulling.finish().await.is_ok() {
                            done.lock().unwrap().push(name);
                        }
                    }
                });
            }
            // Anywhere in the second or so that all of it takes; the first rounds fall into the first pulls.
            let moment = Instant::now() + Duration::from_millis(15 + round * round * 17);
            for archive in archives.iter().cycle() {
                if Instant::now() >= moment {
                    break;
                }
                let image = store.import(archive.path(), None).unwrap().remove(0);
                // Removals are cut in the middle as well.
                if imported.fetch_add(1, Ordering::Relaxed) % 3 == 2 {
                    let import = image.repo_tags.iter().find(|tag| tag.contains("imported")).cloned();
                    store.remove(&import.unwrap()).unwrap();
                    done.lock().unwrap().retain(|name| store.get(name).is_some());
                }
            }
            let promised: Vec<String> =
                done.lock().unwrap().iter().filter(|n| store.get(n).is_some()).cloned().collect();
            disk.cut();
            drop(puller);
            runtime.shutdown_timeout(Duration::from_secs(20));
            drop(store);
            disk.unmount();

            disk.mount();
            let store = Store::open(&disk.root).unwrap();
            assert_sound(&store, &disk.root);
            for name in promised {
                assert!(store.get(&name).is_some(), "round {round}: {name} was there before the cut");
                survived += 1;
            }
            if round % 3 == 2 {
                for image in store.list() {
                    store.remove(image.id.as_str()).unwrap();
                }
                assert_sound(&store, &disk.root);
            }
        }
        assert!(survived > 0, "no pull ended before a cut");
        disk.unmount();
    });
}

/// An image that is small on the way and large on the disk.
fn swelling(number: u64, megabytes: usize) -> Layout {
    let mut layer = Layer::new();
    for part in 0..megabytes {
        let content = vec![u8::try_from(part % 250).unwrap(); 1 << 20];
        layer = layer.file(&format!("{number}-{part}"), &content);
    }
    Layout::of(vec![Layer::new().file("small", b"small").build(), layer.build()])
}

#[test]
fn a_full_disk_fails_one_pull_and_gives_the_space_back() {
    // Refused while there is some left, and when there really is none.
    for reserve_bytes in [8 << 20, 0] {
        in_own_mounts(|dir| {
            let root = dir.join("root");
            fs::create_dir(&root).unwrap();
            assert!(run("mount", &["-t", "tmpfs", "-o", "size=48m", "none", root.to_str().unwrap()]));
            let store = Store::with_limits(&root, Limits { reserve_bytes, ..Limits::default() }).unwrap();
            let fake = Fake::new();
            fake.serve("fits:1", &swelling(1, 12));
            fake.serve("large:1", &swelling(2, 60));
            fake.serve("fits:2", &swelling(3, 12));
            let runtime = runtime();
            let puller = Puller::of(store.clone(), Arc::new(Arc::clone(&fake)));
            let pull = |name: &str| {
                runtime.block_on(async { puller.pull(name.parse().unwrap(), Credentials::anonymous()).finish().await })
            };
            pull("reg.example/fits:1").unwrap();
            let free = || nix::sys::statvfs::statvfs(&root).unwrap().blocks_available();
            let before = free();
            let error = pull("reg.example/large:1").unwrap_err();
            let text = error.to_string();
            assert!(text.contains("no space is left below") && text.contains("free some"), "{text}");
            assert!(
                matches!(&error, PullError::Image(e) if matches!(**e, ImageError::Unpack { .. } | ImageError::Store(_)))
            );
            eventually(|| free() == before);
            // Another pull is not harmed.
            pull("reg.example/fits:2").unwrap();
            assert_eq!(store.list().len(), 2);
            for image in store.list() {
                assert!(store.verify(image.id.as_str()).unwrap().unwrap().is_sound());
                store.remove(image.id.as_str()).unwrap();
            }
            super::assert_tidy(&root);
        });
    }
}
