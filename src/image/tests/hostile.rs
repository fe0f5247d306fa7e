//! Archives made to do harm. Each is refused with one sentence or made harmless; either way nothing outside the store
//! changes and nothing of a refused one stays.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tar::EntryType;

use super::kit::{Blob, Layer, Layout, add, archive, docker_archive, fixture, front, root_only};
use super::{assert_tidy, store};
use crate::image::{ImageError, Limits, Store};

/// Imports layers that must be refused; returns the reason after making sure that nothing is left.
#[track_caller]
fn refused_with(limits: Limits, layers: Vec<Blob>) -> String {
    refused_archive(limits, &Layout::of(layers).tar())
}

#[track_caller]
fn refused(layer: Layer) -> String {
    refused_with(Limits::default(), vec![layer.build()])
}

#[track_caller]
fn refused_archive(limits: Limits, archive: &tempfile::NamedTempFile) -> String {
    root_only();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::with_limits(dir.path(), limits).unwrap();
    let reason = store.import(archive.path(), Some("hostile")).unwrap_err().to_string();
    assert!(store.list().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0, "{reason}");
    assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 0, "{reason}");
    assert!(!reason.contains('\n') && !reason.ends_with('.'), "{reason}");
    reason
}

#[track_caller]
fn says(reason: &str, words: &str) {
    assert!(reason.contains(words), "{reason:?} does not say {words:?}");
}

/// A directory outside any store, to be found unchanged.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("o").rand_bytes(4).tempdir().unwrap();
        fs::write(dir.path().join("file"), "untouched").unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 1);
        let file = self.0.path().join("file");
        assert_eq!(fs::read(&file).unwrap(), b"untouched");
        let data = fs::metadata(&file).unwrap();
        assert_eq!((data.nlink(), data.uid(), data.mode() & 0o7777), (1, 0, 0o644));
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["..", "../x", "a/../../x", "/../x", "a/..", "./../x"] {
        says(&refused(Layer::new().file(name, b"x")), "\"..\"");
    }
    says(
        &refused(Layer::new().file("a", b"x").link(EntryType::Link, "b", "../../../etc/passwd")),
        "no path in the image",
    );
}

#[test]
fn absolute_names_are_names_in_the_image() {
    let (_dir, store) = store();
    let outside = Outside::new();
    let image = Layout::of(vec![Layer::new().file(&outside.path("file"), b"changed").build()]).tar();
    let image = store.import(image.path(), None).unwrap().remove(0);
    let inside = store.layer_path(&image.layers[0]).join(outside.path("file").trim_start_matches('/'));
    assert_eq!(fs::read(inside).unwrap(), b"changed");
    outside.assert_unchanged();
}

#[test]
fn nothing_is_written_through_a_link() {
    let (_dir, store) = store();
    let outside = Outside::new();
    let away = outside.path("");
    let up = format!("{}{away}", "../".repeat(20));
    let layer = Layer::new()
        .link(EntryType::Symlink, "abs", &away)
        .file("abs/new", b"x")
        .file("abs/file", b"x")
        .link(EntryType::Symlink, "rel", &up)
        .file("rel/new2", b"x")
        .link(EntryType::Symlink, "onto", &outside.path("file"))
        .file("onto", b"x")
        .link(EntryType::Symlink, "root", "/proc/self/root")
        .file("root/tmp/x", b"x")
        .directory("rel/dir", 0o777)
        .file("rel/.wh.file", b"")
        .file("abs/.wh..wh..opq", b"")
        .device("abs/zero", 1, 5)
        .build();
    store.import(Layout::of(vec![layer]).tar().path(), None).unwrap();
    outside.assert_unchanged();
}

#[test]
fn hard_links_cannot_reach_or_change_what_is_outside() {
    let (_dir, store) = store();
    let outside = Outside::new();
    let target = outside.path("file");
    says(&refused(Layer::new().link(EntryType::Link, "stolen", &target)), "hard link to nothing");
    says(&refused(Layer::new().directory("d", 0o755).link(EntryType::Link, "l", "d")), "directory");
    says(&refused(Layer::new().link(EntryType::Link, "l", "/")), "directory");
    // A hard link to a symbolic link, then content, owner and mode through it.
    let mut header = Layer::header(EntryType::Regular, 1);
    header.set_mode(0o4777);
    header.set_uid(1);
    let layer = Layer::new()
        .link(EntryType::Symlink, "sym", &target)
        .link(EntryType::Link, "hard", "sym")
        .raw(header.clone(), b"hard", b"", b"x")
        .link(EntryType::Link, "again", "sym")
        .raw(header, b"sym", b"", b"x")
        .build();
    let image = store.import(Layout::of(vec![layer]).tar().path(), None).unwrap().remove(0);
    outside.assert_unchanged();
    assert!(fs::symlink_metadata(store.layer_path(&image.layers[0]).join("again")).unwrap().is_symlink());
}

#[test]
fn a_lower_layer_cannot_lead_an_upper_one_out() {
    let (_dir, store) = store();
    let outside = Outside::new();
    let base = Layer::new()
        .link(EntryType::Symlink, "away", &outside.path(""))
        .link(EntryType::Symlink, "leaf", &outside.path("file"))
        .build();
    let top = Layer::new().file("away/new", b"x").link(EntryType::Link, "copy", "leaf").build();
    let image = store.import(Layout::of(vec![base, top]).tar().path(), None).unwrap().remove(0);
    outside.assert_unchanged();
    // What comes up is the link, not what it points to.
    assert!(fs::symlink_metadata(store.layer_path(&image.layers[0]).join("copy")).unwrap().is_symlink());

    let loops = Layer::new().link(EntryType::Symlink, "l", "m").link(EntryType::Symlink, "m", "l").build();
    says(&refused_with(Limits::default(), vec![loops, Layer::new().file("l/x", b"").build()]), "too many links");
}

#[test]
fn whiteouts_of_nothing_or_of_the_parent_are_refused() {
    for name in [".wh.", "a/.wh.", ".wh..", ".wh...", "a/.wh...", ".wh.../x", ".wh.a/b"] {
        says(&refused(Layer::new().file(name, b"")), "whiteout");
    }
}

#[test]
fn overlay_attributes_cannot_be_forged() {
    let (_dir, store) = store();
    let layer = Layer::new()
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .directory("d", 0o755)
        .pax(&[("SCHILY.xattr.trusted.overlay.metacopy", b""), ("SCHILY.xattr.security.selinux", b"x")])
        .file("f", b"x")
        .build();
    let image = store.import(Layout::of(vec![layer]).tar().path(), None).unwrap().remove(0);
    for name in ["d", "f"] {
        use std::os::fd::AsFd;
        let file = fs::File::open(store.layer_path(&image.layers[0]).join(name)).unwrap();
        assert_eq!(crate::sys::xattr::list(file.as_fd()).unwrap(), Vec::<std::ffi::CString>::new());
    }
}

#[test]
fn owners_beyond_32_bits_are_refused() {
    for id in [u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let text = id.to_string();
        says(&refused(Layer::new().pax(&[("uid", text.as_bytes())]).file("f", b"")), "32-bit");
        says(&refused(Layer::new().pax(&[("gid", text.as_bytes())]).directory("d", 0o755)), "32-bit");
    }
}

#[test]
fn kinds_no_layer_has_are_refused() {
    let header = Layer::header(EntryType::new(b'V'), 0);
    says(&refused(Layer::new().raw(header, b"volume", b"", b"")), "no file, directory, link, device or fifo");
    says(&refused(Layer::new().device("d", 1 << 12, 0)), "no device");
    says(&refused(Layer::new().file("./", b"").file(".", b"x")), "root is a directory");
    says(&refused(Layer::new().file("a", b"").file("a/b", b"")), "not a directory");
    says(&refused(Layer::new().link(EntryType::Symlink, "s", "")), "no path");
}

#[test]
fn a_declared_size_is_not_believed() {
    let mut tar = Layer::new().file("small", b"x").tar();
    tar.truncate(1024);
    let mut header = Layer::header(EntryType::Regular, 64 << 20);
    header.set_path("huge").unwrap();
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&[7; 4096]);
    says(&refused_with(Limits::default(), vec![Blob::of(tar.clone(), "gzip")]), "ends in the middle");
    let small = Limits { layer_bytes: 32 << 20, ..Limits::default() };
    says(&refused_with(small, vec![Blob::of(tar, "gzip")]), "33554432 bytes in one file");
}

#[test]
fn bombs_are_defused() {
    let limits = Limits { layer_bytes: 4 << 20, ..Limits::default() };
    // Zeros after the end of the archive cost nothing to make either.
    let mut trailing = Layer::new().file("f", b"x").tar();
    trailing.resize(32 << 20, 0);
    let mut nested = Layer::new().file("f", &vec![0; 3 << 20]).file("g", &vec![0; 3 << 20]).tar();
    nested.resize(8 << 20, 0);
    for plain in [trailing, nested] {
        for how in ["gzip", "zstd"] {
            says(&refused_with(limits.clone(), vec![Blob::of(plain.clone(), how)]), "bytes after decompression");
        }
    }
    let sparse = Layer::new().pax(&[("GNU.sparse.size", b"999999999999"), ("GNU.sparse.map", b"0,0")]).file("s", b"");
    says(&refused_with(limits, vec![sparse.build()]), "bytes in one file");
}

#[test]
fn damage_of_every_kind_is_told() {
    let good = Layer::new().file("f", &[7; 3000]).build();
    let spoil = |how: &dyn Fn(&mut Blob)| {
        let mut blob = good.clone();
        how(&mut blob);
        refused_with(Limits::default(), vec![blob])
    };
    says(&spoil(&|b| b.bytes.truncate(b.bytes.len() / 2)), "damaged");
    says(&spoil(&|b| b.bytes.extend_from_slice(b"garbage")), "damaged");
    says(&spoil(&|b| b.bytes.clear()), "diff ID");
    says(&spoil(&|b| b.bytes[..10].fill(0x1f)), "damaged");
    says(&spoil(&|b| b.diff_id = crate::id::Digest::sha256([7; 32])), "diff ID is sha256:");
    says(&refused_with(Limits::default(), vec![Blob::of(good.bytes[..20].to_vec(), "zstd")]), "damaged");
}

#[test]
fn blobs_must_be_what_their_descriptors_say() {
    let image = Layout::of(vec![Layer::new().file("f", b"x").build()]);
    let blobs = |files: &std::collections::BTreeMap<String, Vec<u8>>| {
        files.keys().filter(|n| n.starts_with("blobs/")).cloned().collect::<Vec<_>>()
    };
    for name in blobs(&image.files()) {
        let mut files = image.files();
        files.get_mut(&name).unwrap()[5] ^= 1;
        says(&refused_archive(Limits::default(), &archive(&files)), "damaged");
        let mut files = image.files();
        files.get_mut(&name).unwrap().push(b' ');
        says(&refused_archive(Limits::default(), &archive(&files)), "bytes, not");
        let mut files = image.files();
        files.remove(&name);
        says(&refused_archive(Limits::default(), &archive(&files)), "the archive lacks blobs/sha256/");
    }
}

#[test]
fn entries_without_end_are_stopped() {
    let limits = Limits { layer_entries: 100, header_bytes: 8192, work: 5000, ..Limits::default() };
    let many = (0..200).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), b""));
    says(&refused_with(limits.clone(), vec![many.build()]), "100 entries");
    let row = Layer::new().pax(&[("comment", b"x")]).tar()[..1024].repeat(50);
    says(&refused_with(limits.clone(), vec![Blob::of(row, "gzip")]), "extended headers");
    let long = vec![b'x'; 9000];
    says(
        &refused_with(limits.clone(), vec![Layer::new().pax(&[("path", &long)]).file("f", b"").build()]),
        "extended headers",
    );
    // Replacing a full directory again and again.
    let churn = (0..12).fold(Layer::new(), |layer, _| {
        (0..4).fold(layer.directory("d", 0o755), |l, i| l.file(&format!("d/{i}"), b"")).file("d", b"")
    });
    says(&refused_with(Limits { work: 500, ..limits }, vec![churn.build()]), "steps of work");
}

#[test]
fn deep_and_long_paths_are_refused() {
    let deep = "d/".repeat(400);
    says(&refused(Layer::new().pax(&[("path", deep.as_bytes())]).directory("d", 0o755)), "too deep");
    let wide = "w".repeat(300);
    says(&refused(Layer::new().pax(&[("path", wide.as_bytes())]).file("w", b"")), "255 bytes");
    let long = format!("{}x", "abcdefgh/".repeat(600));
    says(&refused(Layer::new().pax(&[("path", long.as_bytes())]).file("l", b"")), "too long");
    says(&refused(Layer::new().pax(&[("path", b"a\0b")]).file("n", b"")), "NUL");
    // A path made deeper by links than it looks.
    let mut layer = Layer::new().directory("0", 0o755);
    for i in 0..30 {
        layer = layer.link(EntryType::Symlink, &format!("l{i}"), &format!("{}/{}", "0", "d/".repeat(40)));
        layer = layer.file(&format!("l{i}/f"), b"");
    }
    let limits = Limits { path_depth: 35, ..Limits::default() };
    says(&refused_with(limits, vec![layer.build()]), "deep");
}

// The limits of these two are far above what they take, and far below what each step looking at all others would.

#[test]
fn many_small_steps_stay_quick() {
    let (_dir, store) = store();
    let mut layer = Layer::new().directory("d", 0o755);
    for i in 0..20_000 {
        layer = layer.file("d/.wh..wh..opq", b"").file(&format!("d/{}", i % 100), b"");
    }
    let before = Instant::now();
    store.import(Layout::of(vec![layer.build()]).tar().path(), None).unwrap();
    assert!(before.elapsed() < Duration::from_secs(120), "{:?}", before.elapsed());
}

#[test]
fn a_hundred_thousand_entries_are_no_trouble() {
    let (_dir, store) = store();
    let layer = (0..100_000)
        .fold(Layer::new().directory("d", 0o755), |l, i| l.link(EntryType::Symlink, &format!("d/{i}"), "x"));
    let before = Instant::now();
    let image = store.import(Layout::of(vec![layer.build()]).tar().path(), None).unwrap().remove(0);
    assert!(before.elapsed() < Duration::from_secs(120), "{:?}", before.elapsed());
    assert!(store.usage().inodes_used > 100_000);
    store.remove(image.id.as_str()).unwrap();
}

#[test]
fn a_full_disk_gives_one_sentence_and_its_space_back() {
    root_only();
    // A file system of its own, in a mount namespace that ends with this thread and those it starts.
    let test = || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
        for reserve_bytes in [0, 1 << 20] {
            let limits = Limits { reserve_bytes, ..Limits::default() };
            let store = Store::with_limits(dir.path(), limits).unwrap();
            let noise: Vec<u8> =
                (0..40 << 20_u32).map(|i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
            let layout = Layout::of(vec![Layer::new().file("small", b"x").file("big", &noise).compressed("zstd")]);
            let reason = store.import(layout.tar().path(), None).unwrap_err().to_string();
            says(&reason, "no space is left below");
            says(&reason, "free some and try again");
            assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
            // The space is there again.
            store.import(&fixture("pause"), None).unwrap();
            store.remove("registry.k8s.io/pause:3.10").unwrap();
        }
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn confused_and_malformed_documents_are_refused() {
    let image = || Layout::of(vec![Layer::new().file("f", b"x").build()]);
    let with_config = |config: Value| {
        let mut image = image();
        image.config = config;
        refused_archive(Limits::default(), &image.tar())
    };
    let good = image().config;
    let changed = |path: &str, value: Value| {
        let mut config = good.clone();
        *config.pointer_mut(path).unwrap() = value;
        with_config(config)
    };
    says(&changed("/config", json!({ "Env": [1] })), "malformed");
    says(&changed("/config", json!({ "Env": ["NAME"] })), "NAME=VALUE");
    says(&changed("/rootfs/diff_ids", json!([["sha256:x"]])), "malformed");
    says(&changed("/rootfs/diff_ids", json!(["sha256:../../../../etc/passwd"])), "malformed");
    says(&changed("/rootfs/diff_ids", json!([])), "1 layers, its configuration 0");
    says(&with_config(json!([])), "malformed");

    let files = image().files();
    let spoilt = |manifest: &dyn Fn(&mut Value)| {
        let mut image = image();
        let name = files.keys().find(|n| files[*n].starts_with(b"{\"config\":{\"digest\"")).unwrap();
        let mut document: Value = serde_json::from_slice(&files[name]).unwrap();
        manifest(&mut document);
        image.manifest = Some(document);
        let mut all = image.files();
        all.extend(files.iter().filter(|(n, _)| n.as_str() != "index.json").map(|(n, b)| (n.clone(), b.clone())));
        refused_archive(Limits::default(), &archive(&all))
    };
    says(&spoilt(&|m| m["manifests"] = json!([])), "at once");
    says(&spoilt(&|m| m["layers"] = json!([])), "no layers");
    says(&spoilt(&|m| m["layers"][0]["digest"] = json!(["x"])), "malformed");
    says(&spoilt(&|m| m["layers"][0]["size"] = json!(-1)), "malformed");
    says(&spoilt(&|m| m["layers"][0]["size"] = json!(1)), "bytes, not 1");
    says(&spoilt(&|m| m["schemaVersion"] = json!(1)), "schemaVersion");
    says(&spoilt(&|m| m["config"]["mediaType"] = json!("application/vnd.example+json")), "artifact");
    says(&spoilt(&|m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json")), "its descriptor");
}

#[test]
fn indexes_are_followed_neither_too_far_nor_too_often() {
    let image = Layout::of(vec![Layer::new().file("f", b"x").build()]);
    let index_type = "application/vnd.oci.image.index.v1+json";
    let mut files = image.files();
    let mut entry: Value = serde_json::from_slice::<Value>(&files["index.json"]).unwrap()["manifests"][0].clone();
    for _ in 0..10 {
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        entry = add(&mut files, index_type, index.to_string().into_bytes());
    }
    front(&mut files, &[entry]);
    says(&refused_archive(Limits::default(), &archive(&files)), "indexes inside each other");

    // Each index names the one below many times: work would grow by a power.
    let mut files = image.architecture("s390x").files();
    let mut entry: Value = serde_json::from_slice::<Value>(&files["index.json"]).unwrap()["manifests"][0].clone();
    entry.as_object_mut().unwrap().remove("platform");
    for _ in 0..3 {
        let index = json!({ "schemaVersion": 2, "manifests": vec![entry; 50] });
        entry = add(&mut files, index_type, index.to_string().into_bytes());
    }
    front(&mut files, &[entry]);
    says(&refused_archive(Limits::default(), &archive(&files)), "1024 manifests");
}

#[test]
fn documents_have_a_largest_size() {
    let limits = Limits { manifest_bytes: 2000, config_bytes: 2000, layers: 3, ..Limits::default() };
    let layer = Layer::new().file("f", b"x").build();
    let mut image = Layout::of(vec![layer.clone()]);
    image.config["padding"] = json!("x".repeat(3000));
    says(&refused_archive(limits.clone(), &image.tar()), "2000 bytes");
    let mut image = Layout::of(vec![layer.clone()]);
    image.descriptor["padding"] = json!("x".repeat(3000));
    says(&refused_archive(limits.clone(), &image.tar()), "2000 bytes");
    says(&refused_with(limits, vec![layer; 4]), "3 layers");
}

#[test]
fn hostile_names_are_refused() {
    root_only();
    let layer = || Layer::new().file("f", b"x").build();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for name in ["../../x:1", "UPPER/case:1", "a b:1", "a:1\n", "host/a:\u{1b}[31m"] {
        let annotated = Layout::of(vec![layer()]).named(name).tar();
        assert!(matches!(store.import(annotated.path(), None), Err(ImageError::Reference(_))), "{name:?}");
        let (docker, _) = docker_archive(vec![layer()], &[name]);
        assert!(matches!(store.import(docker.path(), None), Err(ImageError::Reference(_))), "{name:?}");
        assert!(matches!(store.import(annotated.path(), Some(name)), Err(ImageError::Reference(_))), "{name:?}");
    }
    assert!(store.list().is_empty());
    assert_tidy(dir.path());
}

#[test]
fn docker_archives_name_only_what_is_in_them() {
    let outside = Outside::new();
    let manifest = |config: &str, layer: &str| {
        let text = json!([{ "Config": config, "RepoTags": null, "Layers": [layer] }]).to_string().into_bytes();
        archive(&[("manifest.json".to_owned(), text)].into())
    };
    let path = outside.path("file");
    says(&refused_archive(Limits::default(), &manifest(&path, "x")), "the archive lacks");
    says(&refused_archive(Limits::default(), &manifest("../../etc/passwd", "x")), "the archive lacks");
    let empty = archive(&[("manifest.json".to_owned(), b"[]".to_vec())].into());
    says(&refused_archive(Limits::default(), &empty), "0 images");
    let forged = format!("{}.json", "ab".repeat(32));
    let config = Layout::of(vec![]).config.to_string().into_bytes();
    let text = json!([{ "Config": forged, "Layers": [] }]).to_string().into_bytes();
    let files = [("manifest.json".to_owned(), text), (forged, config)].into();
    says(&refused_archive(Limits::default(), &archive(&files)), "damaged or forged");
}

#[test]
fn what_is_no_image_is_told() {
    says(
        &refused_archive(Limits::default(), &archive(&[("readme".to_owned(), b"x".to_vec())].into())),
        "neither an OCI",
    );
    let (_dir, store) = store();
    let absent = store.import(std::path::Path::new("/nonexistent.tar"), None).unwrap_err().to_string();
    says(&absent, "open /nonexistent.tar: ENOENT");
    assert!(store.import(std::path::Path::new("/dev/null"), None).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_layers_never_panic_nor_leave_anything(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let (dir, store) = store();
        for how in ["plain", "gzip"] {
            // Anything may come of it but a panic; when refused, nothing stays.
            if store.import(Layout::of(vec![Blob::of(bytes.clone(), how)]).tar().path(), None).is_err() {
                prop_assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
            } else {
                store.list().iter().for_each(|i| assert!(store.remove(i.id.as_str()).unwrap()));
            }
        }
    }

    #[test]
    fn entries_in_any_order_never_panic_nor_lead_out(
        steps in proptest::collection::vec((0_u8..7, "(/|\\.\\./|\\./)?[abc](/[abc]|/\\.wh\\.[ab]|/\\.wh\\.\\.wh\\.\\.opq){0,3}", "(/|\\.\\./)?[abc](/[abc]){0,2}"), 0..24),
        at in 0_usize..24,
    ) {
        let (dir, store) = store();
        let blob = |steps: &[(u8, String, String)]| {
            steps.iter().fold(Layer::new(), |layer, (kind, name, target)| match kind {
                0 | 1 => layer.file(name, b"content"),
                2 => layer.directory(name, 0o755),
                3 | 4 => layer.link(EntryType::Symlink, name, target),
                5 => layer.link(EntryType::Link, name, target),
                _ => layer.device(name, 0, 0),
            }).build()
        };
        // The same steps once in one layer and once over two.
        let (below, above) = steps.split_at(at.min(steps.len()));
        for layers in [vec![blob(&steps)], vec![blob(below), blob(above)]] {
            match store.import(Layout::of(layers).tar().path(), None) {
                Ok(images) => images.iter().for_each(|i| assert!(store.remove(i.id.as_str()).unwrap())),
                Err(e) => prop_assert!(!e.to_string().contains("panic"), "{e}"),
            }
            prop_assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
        }
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_changed_document_never_panics(at in 0_usize..4000, value: u8) {
        let (_dir, store) = store();
        let image = Layout::of(vec![Layer::new().file("f", b"x").build()]);
        let mut files = image.files();
        for bytes in files.values_mut() {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        store.import(archive(&files).path(), None).ok();
    }
}
