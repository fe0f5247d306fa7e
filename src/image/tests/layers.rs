//! Layers as real images have them, in all their variety.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tar::EntryType;

use super::kit::{Blob, Layer, Layout};
use super::store;
use crate::image::{Image, Store};
use crate::sys::xattr;

fn import(store: &Store, layers: Vec<Blob>) -> std::sync::Arc<Image> {
    store.import(Layout::of(layers).tar().path(), Some("test")).unwrap().remove(0)
}

fn attribute(path: &std::path::Path, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    use std::os::fd::AsFd;
    xattr::get(fs::File::open(path).unwrap().as_fd(), name).unwrap()
}

#[test]
fn attributes_of_all_kinds_are_kept() {
    let (_dir, store) = store();
    let mut header = Layer::header(EntryType::Regular, 2);
    header.set_mode(0o6711);
    header.set_uid(1000);
    header.set_gid(2000);
    let layer = Layer::new()
        .directory("d", 0o1770)
        .pax(&[("SCHILY.xattr.user.note", b"\0binary\n"), ("mtime", b"1500000000.25")])
        .raw(header, b"d/f", b"", b"ok")
        .link(EntryType::Symlink, "d/abs", "/etc/passwd")
        .link(EntryType::Link, "d/hard", "/d/f")
        .device("d/zero", 1, 5)
        .build();
    let image = import(&store, vec![layer]);
    let root = store.layer_path(&image.layers[0]);
    let file = fs::metadata(root.join("d/f")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o6711, 1000, 2000, 2));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_500_000_000, 250_000_000));
    assert_eq!(attribute(&root.join("d/f"), c"user.note").unwrap(), b"\0binary\n");
    assert_eq!(fs::read_link(root.join("d/abs")).unwrap().to_str(), Some("/etc/passwd"));
    assert_eq!(fs::symlink_metadata(root.join("d/zero")).unwrap().rdev(), nix::sys::stat::makedev(1, 5));
    let dir = fs::metadata(root.join("d")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o1770, 1_600_000_000));
}

#[test]
fn file_capabilities_survive_the_change_of_owner() {
    let (_dir, store) = store();
    // Version 2, effective, cap_net_raw permitted.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new().pax(&[("SCHILY.xattr.security.capability", &capability)]).file("ping", b"x").build();
    let image = import(&store, vec![layer]);
    let path = store.layer_path(&image.layers[0]).join("ping");
    assert_eq!(attribute(&path, c"security.capability").unwrap(), capability);
}

#[test]
fn sparse_files_keep_their_holes() {
    let (_dir, store) = store();
    let layer = Layer::new()
        .pax(&[("GNU.sparse.name", b"s"), ("GNU.sparse.size", b"1048576"), ("GNU.sparse.map", b"0,2,1000000,3")])
        .file("stored-name", b"abcde")
        .build();
    let image = import(&store, vec![layer]);
    let path = store.layer_path(&image.layers[0]).join("s");
    let content = fs::read(&path).unwrap();
    assert_eq!(
        (content.len(), &content[..2], &content[1_000_000..1_000_003]),
        (1 << 20, b"ab".as_slice(), b"cde".as_slice())
    );
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 100_000);
}

#[test]
fn whiteouts_concern_the_layers_below_only() {
    let (_dir, store) = store();
    let base = Layer::new().directory("d", 0o755).file("d/old", b"1").file("f", b"1").build();
    let layer = Layer::new()
        .directory("d", 0o755)
        .file("d/new", b"2")
        .file(".wh.d", b"")
        .file(".wh.f", b"")
        .file("f", b"2")
        .file(".wh.gone", b"")
        .directory("gone", 0o700)
        .file(".wh..wh.plnk", b"")
        .build();
    let image = import(&store, vec![base, layer]);
    let root = store.layer_path(&image.layers[0]);
    assert_eq!(fs::read(root.join("d/new")).unwrap(), b"2");
    assert_eq!(fs::read(root.join("f")).unwrap(), b"2");
    assert_eq!(attribute(&root.join("d"), c"trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(attribute(&root.join("gone"), c"trusted.overlay.opaque").unwrap(), b"y");
    assert!(!root.join(".wh..wh.plnk").exists());
}

#[test]
fn a_hard_link_into_a_lower_layer_brings_the_file_up() {
    let (_dir, store) = store();
    let mut header = Layer::header(EntryType::Regular, 7);
    header.set_mode(0o4755);
    header.set_uid(7);
    let base = Layer::new()
        .directory("bin", 0o711)
        .pax(&[("SCHILY.xattr.user.note", b"kept")])
        .raw(header, b"bin/tool", b"", b"content")
        .build();
    let middle = Layer::new().file("other", b"x").build();
    let layer = Layer::new().directory("usr", 0o755).link(EntryType::Link, "usr/tool", "bin/tool").build();
    let key = layer.diff_id.hex().to_owned();
    let image = import(&store, vec![base, middle, layer.clone()]);
    assert_ne!(image.layers[0], key, "kept under its chain ID");
    let root = store.layer_path(&image.layers[0]);
    let (tool, link) = (fs::metadata(root.join("bin/tool")).unwrap(), fs::metadata(root.join("usr/tool")).unwrap());
    assert_eq!((tool.ino(), tool.mode() & 0o7777, tool.uid()), (link.ino(), 0o4755, 7));
    assert_eq!(fs::read(root.join("usr/tool")).unwrap(), b"content");
    assert_eq!(attribute(&root.join("bin/tool"), c"user.note").unwrap(), b"kept");
    assert_eq!(fs::metadata(root.join("bin")).unwrap().mode() & 0o777, 0o711);

    // Over another base it is another layer.
    let base = Layer::new().directory("bin", 0o755).file("bin/tool", b"other").build();
    let other = import(&store, vec![base, layer]);
    assert_eq!(fs::read(store.layer_path(&other.layers[0]).join("usr/tool")).unwrap(), b"other");
    assert_ne!(other.layers[0], image.layers[0]);
}

#[test]
fn an_implied_directory_is_what_the_layers_below_say() {
    let (_dir, store) = store();
    let base = Layer::new()
        .directory("tmp", 0o1777)
        .directory("usr", 0o755)
        .directory("usr/bin", 0o750)
        .link(EntryType::Symlink, "bin", "usr/bin")
        .link(EntryType::Symlink, "loop", "loop")
        .build();
    let layer = Layer::new().file("tmp/x", b"1").file("bin/tool", b"2").file("new/y", b"3").build();
    let image = import(&store, vec![base.clone(), layer.clone()]);
    let root = store.layer_path(&image.layers[0]);
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    // Written through the link of the base, as a container would see it; the link itself stays below.
    assert_eq!(fs::read(root.join("usr/bin/tool")).unwrap(), b"2");
    assert_eq!(fs::metadata(root.join("usr/bin")).unwrap().mode() & 0o777, 0o750);
    assert!(fs::symlink_metadata(root.join("bin")).is_err());
    assert_eq!(fs::metadata(root.join("new")).unwrap().mode() & 0o777, 0o755);

    // The same layer as the lowest one stands for itself.
    let alone = import(&store, vec![layer.clone()]);
    assert_eq!(alone.layers[0], layer.diff_id.hex());
    assert!(store.layer_path(&alone.layers[0]).join("bin/tool").exists());
    // And is still not used above others.
    let again = import(&store, vec![base, layer]);
    assert_eq!(again.layers, image.layers);
}

#[test]
fn implied_directories_that_are_plain_below_make_no_layer_of_its_own() {
    let (_dir, store) = store();
    let plain = Layer::new().directory("usr", 0o755).directory("usr/lib", 0o755).build();
    let layer = Layer::new().file("usr/lib/x", b"1").file("opt/y", b"2").build();
    let key = layer.diff_id.hex().to_owned();
    let image = import(&store, vec![plain, layer.clone()]);
    assert_eq!(image.layers[0], key, "as it is, also for other images");

    // Found on disk, too, it is measured against what lies below.
    let narrow = Layer::new().directory("usr", 0o755).directory("usr/lib", 0o700).build();
    let other = import(&store, vec![narrow, layer.clone()]);
    assert_ne!(other.layers[0], key);
    let lib = fs::metadata(store.layer_path(&other.layers[0]).join("usr/lib")).unwrap();
    assert_eq!(lib.mode() & 0o777, 0o700);
    let marked = Layer::new().pax(&[("SCHILY.xattr.user.note", b"kept")]).directory("opt", 0o755).build();
    let other = import(&store, vec![marked, layer]);
    assert_ne!(other.layers[0], key);
    assert_eq!(attribute(&store.layer_path(&other.layers[0]).join("opt"), c"user.note").unwrap(), b"kept");
}

#[test]
fn links_inside_a_layer_are_resolved_inside_it() {
    let (_dir, store) = store();
    let layer = Layer::new()
        .directory("usr", 0o755)
        .directory("usr/lib", 0o755)
        .link(EntryType::Symlink, "lib", "/usr/lib")
        .link(EntryType::Symlink, "usr/up", "../../../../usr/lib")
        .file("lib/a", b"1")
        .file("usr/up/b", b"2")
        .build();
    let image = import(&store, vec![layer]);
    let root = store.layer_path(&image.layers[0]);
    assert_eq!(fs::read(root.join("usr/lib/a")).unwrap(), b"1");
    assert_eq!(fs::read(root.join("usr/lib/b")).unwrap(), b"2");
    assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_symlink());
}

#[test]
fn of_entries_with_one_path_the_later_wins() {
    let (_dir, store) = store();
    let layer = Layer::new()
        .file("f", b"first")
        .link(EntryType::Link, "kept", "f")
        .file("f", b"second")
        .directory("d", 0o755)
        .directory("d/e", 0o755)
        .file("d/e/x", b"1")
        .file("d", b"now a file")
        .link(EntryType::Symlink, "s", "/nowhere")
        .directory("s", 0o700)
        .file("s/in", b"2")
        .directory("twice", 0o700)
        .directory("twice", 0o751)
        .link(EntryType::Link, "kept", "kept")
        .build();
    let image = import(&store, vec![layer]);
    let root = store.layer_path(&image.layers[0]);
    assert_eq!(fs::read(root.join("f")).unwrap(), b"second");
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"first");
    assert_eq!(fs::read(root.join("d")).unwrap(), b"now a file");
    assert_eq!(fs::read(root.join("s/in")).unwrap(), b"2");
    assert_eq!(fs::metadata(root.join("twice")).unwrap().mode() & 0o777, 0o751);
}

#[test]
fn the_root_directory_can_have_attributes() {
    let (_dir, store) = store();
    let image = import(&store, vec![Layer::new().directory("./", 0o711).file("./a", b"1").build()]);
    let root = fs::metadata(store.layer_path(&image.layers[0])).unwrap();
    assert_eq!((root.mode() & 0o777, root.mtime()), (0o711, 1_600_000_000));
}
