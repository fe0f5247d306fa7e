//! Damage to layers on disk is found and named.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::kit::{Layer, Layout, fixture};
use super::store;
use crate::image::Store;

fn faults(store: &Store, name: &str) -> Vec<String> {
    let verified = store.verify(name).unwrap().unwrap();
    let faults: Vec<String> = verified.layers.iter().flat_map(|layer| layer.faults.clone()).collect();
    assert_eq!(verified.is_sound(), faults.is_empty());
    faults
}

/// An image with a bit of everything; the directory of its layer.
fn peculiar() -> (tempfile::TempDir, Store, PathBuf) {
    let (dir, store) = store();
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let layer = Layer::new()
        .directory("etc", 0o755)
        .file("etc/big file", &big)
        .file("etc/a\\b'\"c", b"odd")
        .file("etc/empty", b"")
        .link(EntryType::Symlink, "etc/absolute", "/usr/bin /x y")
        .link(EntryType::Link, "etc/twin", "etc/empty")
        .pax(&[("SCHILY.xattr.user.note", b"a value")])
        .file("etc/noted", b"noted")
        .device("null", 1, 3)
        .directory("etc.d", 0o700)
        .file("etc.d/x", b"x")
        .file("etc.d/.wh..wh..opq", b"")
        .file(".wh.gone", b"")
        .build();
    let file = Layout::of(vec![layer]).named("peculiar").tar();
    let image = store.import(file.path(), None).unwrap().remove(0);
    let fs_path = store.layer_path(&image.layers[0]);
    (dir, store, fs_path)
}

/// Changes something and tells what verifying says; times of directories are put right, to find the change alone.
#[track_caller]
fn after(change: impl FnOnce(&Path)) -> Vec<String> {
    let (_dir, store, fs_path) = peculiar();
    assert_eq!(faults(&store, "peculiar"), [""; 0]);
    let times = ["etc", "etc.d", ""].map(|dir| (fs_path.join(dir), fs::metadata(fs_path.join(dir)).unwrap()));
    change(&fs_path);
    for (dir, before) in times {
        if let Ok(dir) = fs::File::open(dir) {
            dir.set_modified(before.modified().unwrap()).unwrap();
        }
    }
    faults(&store, "peculiar")
}

#[test]
fn what_was_unpacked_is_sound() {
    let (_dir, store) = store();
    for name in ["busybox", "nonewprivs", "whiteouts"] {
        store.import(&fixture(name), None).unwrap();
    }
    for image in store.list() {
        let verified = store.verify(image.id.as_str()).unwrap().unwrap();
        assert!(verified.is_sound(), "{verified:?}");
        assert_eq!(verified.layers.len(), image.layers.len());
        assert!(verified.layers.iter().all(|layer| layer.files > 1 && layer.bytes > 0));
    }
    assert_eq!(store.verify("absent").unwrap(), None);
}

#[test]
fn a_flipped_bit_is_found() {
    let flipped = after(|fs_path| {
        let path = fs_path.join("etc/big file");
        let before = fs::metadata(&path).unwrap();
        let mut file = fs::File::options().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(1_234_567)).unwrap();
        file.write_all(&[0xff]).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
    });
    assert_eq!(flipped, ["/etc/big file has other content"]);
}

#[test]
fn lost_and_added_files_are_found() {
    let lost = after(|fs_path| fs::remove_file(fs_path.join("etc.d/x")).unwrap());
    assert_eq!(lost, ["/etc.d/x is missing"]);
    let tree = after(|fs_path| fs::remove_dir_all(fs_path.join("etc.d")).unwrap());
    assert_eq!(tree, ["/etc.d is missing", "/etc.d/x is missing"]);
    let added = after(|fs_path| fs::write(fs_path.join("etc/zzz"), "").unwrap());
    assert_eq!(added, ["/etc/zzz does not belong to it"]);
    let last = after(|fs_path| fs::write(fs_path.join("zzz"), "").unwrap());
    assert_eq!(last, ["/zzz does not belong to it"]);
}

#[test]
fn changed_attributes_are_found() {
    let set = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(after(|fs_path| set(fs_path.join("etc/empty"), 0o4755)).len(), 2, "both names of the file");
    assert_eq!(after(|fs_path| set(fs_path.join("etc.d"), 0o777)), ["/etc.d has the permissions 777, not 700"]);
    let owner = after(|fs_path| std::os::unix::fs::chown(fs_path.join("null"), Some(7), None).unwrap());
    assert_eq!(owner, ["/null has the owner 7:0, not 0:0"]);
    let target = after(|fs_path| {
        let link = fs_path.join("etc/absolute");
        let time = fs::symlink_metadata(&link).unwrap().mtime();
        fs::remove_file(&link).unwrap();
        symlink("/usr/bin /x z", &link).unwrap();
        let stamp = nix::sys::time::TimeSpec::new(time, 0);
        let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &link, &stamp, &stamp, flags).unwrap();
    });
    assert_eq!(target, ["/etc/absolute has other target"]);
    let attribute = after(|fs_path| {
        let file = fs::File::open(fs_path.join("etc/noted")).unwrap();
        crate::sys::xattr::set(std::os::fd::AsFd::as_fd(&file), c"user.note", b"another").unwrap();
    });
    assert_eq!(attribute, ["/etc/noted has other extended attributes"]);
    let opaque = after(|fs_path| {
        let dir = fs::File::open(fs_path.join("etc")).unwrap();
        crate::sys::xattr::set(std::os::fd::AsFd::as_fd(&dir), c"trusted.overlay.opaque", b"y").unwrap();
    });
    assert_eq!(opaque, ["/etc has other extended attributes"]);
    let split = after(|fs_path| {
        fs::remove_file(fs_path.join("etc/twin")).unwrap();
        fs::write(fs_path.join("etc/twin"), "").unwrap();
    });
    assert!(split.iter().any(|fault| fault == "/etc/empty has other number of links"), "{split:?}");
}

#[test]
fn a_damaged_list_is_found() {
    let cut = after(|fs_path| {
        let list = fs::File::options().write(true).open(fs_path.with_file_name("files.zst")).unwrap();
        list.set_len(list.metadata().unwrap().len() / 2).unwrap();
    });
    assert!(cut[0].contains("the list of its files"), "{cut:?}");
    let gone = after(|fs_path| fs::remove_file(fs_path.with_file_name("files.zst")).unwrap());
    assert_eq!(gone.len(), 1);
    assert!(gone[0].contains("the list of its files cannot be read"), "{gone:?}");
}
