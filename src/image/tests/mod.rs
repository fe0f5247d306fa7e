//! The store as its users see it, on real archives and a real file system. Needs root: layers have owners and devices.

mod books;
mod hostile;
pub(super) mod kit;
mod layers;
mod power;
mod verify;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::*;
use kit::{Layer, Layout, docker_archive, fixture, root_only};

fn store() -> (tempfile::TempDir, Store) {
    root_only();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Nothing but finished layers and records is in a store's root.
#[track_caller]
fn assert_tidy(root: &Path) {
    for entry in fs::read_dir(root.join("layers")).unwrap().chain(fs::read_dir(root.join("images")).unwrap()) {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with("tmp-") && !name.starts_with('.'), "{name} is left");
    }
}

#[test]
fn busybox_is_imported_with_all_its_names() {
    let (dir, store) = store();
    let images = store.import(&fixture("busybox"), None).unwrap();
    let [image] = images.as_slice() else { panic!("{images:?}") };
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(image.config.env[0].0, "PATH");
    assert!(image.repo_tags.contains(&"docker.io/library/busybox:latest".to_owned()), "{:?}", image.repo_tags);
    assert_eq!(image.repo_tags.len(), 3);
    assert!(image.repo_digests[0].starts_with("docker.io/library/busybox@sha256:"));

    let digest = image.repo_digests[0].clone();
    let hex = image.id.hex();
    for name in ["busybox", "busybox:latest", "docker.io/library/busybox", &hex[..12], hex, image.id.as_str(), &digest]
    {
        assert_eq!(store.get(name).as_ref(), Some(image), "{name}");
    }
    for name in ["busybox:2", "", "sha256:", "zz", "../busybox"] {
        assert_eq!(store.get(name), None, "{name}");
    }

    let fs_path = store.layer_path(&image.layers[0]);
    let at = |path: &str| fs::symlink_metadata(fs_path.join(path)).unwrap();
    assert!(at("bin/sh").is_file());
    assert_eq!(at("bin/sh").ino(), at("bin/busybox").ino());
    assert_eq!(at("tmp").mode() & 0o7777, 0o1777);
    assert_eq!((at("home/worker").uid(), at("home/worker").mtime()), (1001, 1_700_000_000));
    assert_eq!(at("").mode() & 0o777, 0o755);
    assert_tidy(dir.path());
}

#[test]
fn setuid_bits_and_shared_layers_survive() {
    let (_dir, store) = store();
    let base = store.import(&fixture("busybox"), None).unwrap();
    let image = store.import(&fixture("nonewprivs"), None).unwrap();
    assert_eq!(image[0].layers.len(), 2);
    assert_eq!(image[0].layers[1], base[0].layers[0]);
    let program = fs::metadata(store.layer_path(&image[0].layers[0]).join("nonewprivs")).unwrap();
    assert_eq!((program.mode() & 0o7777, program.uid()), (0o4755, 0));
}

#[test]
fn whiteouts_become_what_overlay_reads() {
    let (_dir, store) = store();
    let image = store.import(&fixture("whiteouts"), None).unwrap().remove(0);
    let top = store.layer_path(&image.layers[0]);
    let mark = fs::symlink_metadata(top.join("etc/motd")).unwrap();
    assert!(mark.file_type().is_char_device() && mark.rdev() == 0);
    assert!(fs::symlink_metadata(top.join("srv/null")).unwrap().rdev() == nix::sys::stat::makedev(1, 3));
    assert!(fs::symlink_metadata(top.join("srv/fifo")).unwrap().file_type().is_fifo());

    // The kernel's own opinion.
    let work = tempfile::tempdir().unwrap();
    let [upper, scratch, merged] = ["upper", "work", "merged"].map(|n| work.path().join(n));
    [&upper, &scratch, &merged].iter().for_each(|d| fs::create_dir(d).unwrap());
    let lower: Vec<_> = image.layers.iter().map(|k| store.layer_path(k).display().to_string()).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), scratch.display());
    let script = format!(
        "mount -t overlay overlay -o {options} {m} && ls {m}/etc/motd {m}/opt/gone {m}/srv/below; cat {m}/srv/above && stat -c %a {m}/etc",
        m = merged.display()
    );
    let seen = Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]).output();
    let seen = seen.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "a file of the upper layer\n755\n");
    assert_eq!(String::from_utf8_lossy(&seen.stderr).matches("No such file").count(), 3);
}

#[test]
fn a_restart_finds_everything_again_and_drops_the_unfinished() {
    let (dir, store) = store();
    store.import(&fixture("busybox"), None).unwrap();
    store.import(&fixture("user-name"), None).unwrap();
    let before = (store.list(), store.usage());
    drop(store);
    fs::create_dir_all(dir.path().join("layers/tmp-1-1/fs/deep/er")).unwrap();
    fs::write(dir.path().join("images/.x.json.1.1.tmp"), "{").unwrap();
    fs::write(dir.path().join("images/broken.json"), "{").unwrap();

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), before.0);
    assert_eq!(store.get("busybox").unwrap().config.cmd, ["sh"]);
    fs::remove_file(dir.path().join("images/broken.json")).unwrap();
    assert_eq!((store.usage().used_bytes, store.usage().inodes_used), (before.1.used_bytes, before.1.inodes_used));
    assert_tidy(dir.path());
}

#[test]
fn usage_adds_up_with_du() {
    let (dir, store) = store();
    for name in ["busybox", "whiteouts", "test-1", "pause"] {
        store.import(&fixture(name), None).unwrap();
    }
    let du = |flags: &[&str]| -> u64 {
        let output =
            Command::new("du").args(flags).args(["layers", "images"]).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|l| l.split('\t').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    let usage = store.usage();
    assert_eq!(usage.used_bytes, du(&["-s", "--block-size=1"]));
    assert_eq!(usage.inodes_used, du(&["-s", "--inodes"]));
    assert_eq!(usage.mountpoint, dir.path());
    assert!(usage.timestamp_ns > 0);
}

#[test]
fn a_tag_moves_to_the_image_imported_last() {
    let (dir, store) = store();
    let old = store.import(&fixture("test-1"), Some("me/app:1")).unwrap().remove(0);
    let new = store.import(&fixture("test-2"), Some("me/app:1")).unwrap().remove(0);
    assert_eq!(old.repo_tags, ["docker.io/me/app:1"]);
    assert_eq!(store.get("me/app:1").unwrap().id, new.id);
    assert!(store.get(old.id.as_str()).unwrap().repo_tags.is_empty());
    let again = Store::open(dir.path()).unwrap();
    assert_eq!(again.get("me/app:1").unwrap().id, new.id);
    assert_eq!(again.list(), store.list());
}

#[test]
fn importing_twice_adds_names_and_nothing_else() {
    let (dir, store) = store();
    let first = store.import(&fixture("busybox"), None).unwrap().remove(0);
    let used = store.usage().inodes_used;
    let second = store.import(&fixture("busybox"), Some("localhost:5000/other:x")).unwrap().remove(0);
    assert_eq!((second.id.clone(), second.layers.clone()), (first.id.clone(), first.layers.clone()));
    assert_eq!(second.repo_tags.len(), first.repo_tags.len() + 1);
    assert_eq!((store.usage().inodes_used, store.list().len()), (used, 1));
    assert_tidy(dir.path());
}

#[test]
fn removing_takes_all_names_and_only_unshared_layers() {
    let (dir, store) = store();
    let base = store.import(&fixture("busybox"), None).unwrap().remove(0);
    let derived = store.import(&fixture("test-1"), None).unwrap().remove(0);
    assert!(store.remove("busybox:1").unwrap());
    assert!(store.get("busybox:latest").is_none() && store.get(base.id.as_str()).is_none());
    assert!(store.layer_path(&base.layers[0]).exists());
    assert!(!store.remove("busybox:1").unwrap());
    assert!(store.remove(&derived.id.hex()[..10]).unwrap());
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 0);
}

#[test]
fn held_layers_outlive_their_image() {
    let (dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    let hold = store.hold(&image.layers);
    let second = store.hold(&image.layers);
    store.remove("busybox").unwrap();
    store.collect();
    drop(hold);
    assert!(store.layer_path(&image.layers[0]).join("bin/sh").exists() && store.has_layers(&image.layers));
    drop(second);
    assert!(!store.layer_path(&image.layers[0]).exists() && !store.has_layers(&image.layers));
    kit::eventually(|| fs::read_dir(dir.path().join("layers")).unwrap().count() == 0);
}

#[test]
fn after_a_restart_unheld_layers_without_image_go_at_collect() {
    let (dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    fs::remove_file(dir.path().join(format!("images/{}.json", image.id.hex()))).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.list().is_empty());
    let hold = store.hold(&image.layers);
    store.collect();
    assert!(store.has_layers(&image.layers));
    drop(hold);
    store.collect();
    assert!(!store.has_layers(&image.layers));
}

#[test]
fn an_image_whose_layer_is_gone_is_left_out() {
    let (dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    drop(store);
    fs::remove_file(dir.path().join("layers").join(&image.layers[0]).join("layer.json")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.list().is_empty());
    // Importing it again repairs it.
    store.import(&fixture("busybox"), None).unwrap();
    assert!(store.layer_path(&image.layers[0]).join("bin/sh").exists());
    assert_eq!(Store::open(dir.path()).unwrap().list().len(), 1);
}

#[test]
fn folders_and_docker_archives_are_read_too() {
    let (_dir, store) = store();
    let layer = || Layer::new().file("hello", b"world").build();
    let from_tar = store.import(Layout::of(vec![layer()]).tar().path(), Some("a")).unwrap().remove(0);
    let folder = Layout::of(vec![layer()]).folder();
    assert_eq!(store.import(folder.path(), Some("b")).unwrap()[0].id, from_tar.id);

    let (archive, id) = docker_archive(vec![layer()], &["example.com/c:1", "d:2"]);
    let docker = store.import(archive.path(), None).unwrap().remove(0);
    assert_eq!(docker.id, id);
    assert_eq!(docker.layers, from_tar.layers);
    assert_eq!(docker.repo_tags[2..], ["docker.io/library/d:2", "example.com/c:1"]);
    // It has no manifest, so nothing to pin: those of the layouts stay alone.
    assert_eq!(docker.repo_digests, store.get("b").unwrap().repo_digests);
}

#[test]
fn layers_may_be_plain_gzip_or_zstd() {
    let (_dir, store) = store();
    let layers = ["plain", "gzip", "zstd"].map(|c| Layer::new().file(c, c.as_bytes()).compressed(c));
    let image = store.import(Layout::of(layers.into()).tar().path(), Some("mixed")).unwrap().remove(0);
    for (key, name) in image.layers.iter().zip(["zstd", "gzip", "plain"]) {
        assert_eq!(fs::read_to_string(store.layer_path(key).join(name)).unwrap(), name);
    }
}

#[test]
fn an_index_is_searched_for_this_machine() {
    let (_dir, store) = store();
    let mine = Layout::of(vec![Layer::new().file("mine", b"1").build()]);
    let other = Layout::of(vec![Layer::new().file("other", b"1").build()]).architecture("s390x");
    let statement = Layout::of(vec![Layer::new().file("statement", b"1").build()]).platform("unknown", "unknown");
    let archive = Layout::index(vec![other, statement, mine], "example.com/multi:1");
    let images = store.import(archive.path(), None).unwrap();
    assert_eq!(images.len(), 1);
    assert!(store.layer_path(&images[0].layers[0]).join("mine").exists());

    let other = Layout::of(vec![Layer::new().file("other", b"1").build()]).architecture("s390x");
    let error = store.import(Layout::index(vec![other], "x").path(), None).unwrap_err().to_string();
    assert!(error.contains("linux/s390x"), "{error}");
}

#[test]
fn imports_side_by_side_share_layers() {
    let (dir, store) = store();
    let names = ["test-1", "test-2", "test-3", "test-latest", "busybox"];
    let paths = names.map(fixture);
    std::thread::scope(|scope| {
        for path in &paths {
            scope.spawn(|| store.import(path, None).unwrap());
            scope.spawn(|| store.import(path, None).unwrap());
        }
    });
    assert_eq!(store.list().len(), names.len());
    for image in store.list() {
        assert!(store.remove(image.id.as_str()).unwrap());
    }
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn a_name_for_several_images_is_refused() {
    let (_dir, store) = store();
    let two = ["1", "2"].map(|n| Layout::of(vec![Layer::new().file(n, b"x").build()]).named(&format!("app:{n}")));
    let archive = Layout::several(two.into());
    assert!(matches!(store.import(archive.path(), Some("x")), Err(ImageError::Ambiguous { images: 2 })));
    assert_eq!(store.import(archive.path(), None).unwrap().len(), 2);
    assert_eq!(store.get("app:2").unwrap().repo_tags, ["docker.io/library/app:2"]);
}
