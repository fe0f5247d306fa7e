//! The books: what is written down about images, by whom it may be changed, what failures leave.

use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::image::record::{ImageRecord, LayerOfImage};
use crate::image::registry::Credentials;
use crate::image::stack::{self, Layers, Made, Room};
use crate::image::stage::WriteBack;
use crate::image::store::Hold;
use crate::image::unpack::Expected;
use kit::Blob;

fn layer(name: &str) -> Blob {
    Layer::new().file(name, name.as_bytes()).build()
}

fn record_path(root: &Path, image: &Image) -> std::path::PathBuf {
    root.join(format!("images/{}.json", image.id.hex()))
}

#[test]
fn documents_are_kept_as_they_came() {
    let (dir, store) = store();
    let mut layout = Layout::of(vec![layer("a")]);
    // Written out line by line, or parsed into values, this is many times as large.
    layout.config["x"] = Value::Array(vec![serde_json::json!({ "": 0 }); 100_000]);
    let config = layout.config.to_string();
    let image = store.import(layout.tar().path(), Some("kept")).unwrap().remove(0);
    let record = fs::read_to_string(record_path(dir.path(), &image)).unwrap();
    assert!(record.contains(&config) && record.len() < config.len() + 4096, "{} of {}", record.len(), config.len());
    assert_eq!(kit::digest(config.as_bytes()), image.id);
    assert_eq!(Store::open(dir.path()).unwrap().list(), store.list());
}

#[test]
fn records_written_line_by_line_are_read_too() {
    let (dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    let path = record_path(dir.path(), &image);
    let values: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(&path, serde_json::to_vec_pretty(&values).unwrap()).unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().list(), [image]);
}

#[test]
fn oversized_configurations_are_refused() {
    let (dir, store) = store();
    let mut layout = Layout::of(vec![layer("a")]);
    layout.config["x"] = "a".repeat(2 << 20).into();
    let error = store.import(layout.tar().path(), Some("large")).unwrap_err().to_string();
    assert!(error.contains("2097152"), "{error}");
    assert!(store.list().is_empty());
    assert_tidy(dir.path());
}

#[test]
fn a_pinned_name_moves_no_tag() {
    let (_dir, store) = store();
    let [old, new] = ["old", "new"].map(|name| Layout::of(vec![layer(name)]));
    let old = store.import(old.tar().path(), Some("me/app:1")).unwrap().remove(0);
    let new = new.tar();
    let digest = store.import(new.path(), Some("x")).unwrap().remove(0).repo_digests[0].clone();
    assert!(store.remove("x").unwrap());
    let pinned = format!("me/app:1@{}", digest.split_once('@').unwrap().1);
    let new = store.import(new.path(), Some(&pinned)).unwrap().remove(0);
    assert_eq!(store.get("me/app:1").unwrap().id, old.id);
    assert_eq!(store.get(&pinned).unwrap().id, new.id);
    assert!(new.repo_tags.is_empty() && new.repo_digests.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_pull_moves_no_tag() {
    let (_dir, store) = store();
    let fake = crate::image::pull::tests::fake::Fake::new();
    let puller = Puller::of(store.clone(), Arc::new(Arc::clone(&fake)));
    fake.serve("app:1", &Layout::of(vec![layer("old")]));
    let digest = fake.serve("app:2", &Layout::of(vec![layer("new")]));
    let pinned = format!("reg.example/app:1@{digest}");
    let pull = |name: &str| puller.pull(name.parse().unwrap(), Credentials::anonymous()).finish();
    let old = pull("reg.example/app:1").await.unwrap();
    // The second time it is known, and only named.
    for _ in 0..2 {
        let new = pull(&pinned).await.unwrap();
        assert_eq!(store.get("reg.example/app:1").unwrap().id, old.id);
        assert_eq!(store.get(&pinned).unwrap().id, new.id);
        assert!(new.repo_tags.is_empty() && new.id != old.id);
    }
}

#[test]
fn a_tag_that_cannot_be_taken_stays_where_it_was() {
    let (dir, store) = store();
    let old = store.import(&fixture("test-1"), Some("me/app:1")).unwrap().remove(0);
    let known = store.import(&fixture("test-3"), Some("me/other:1")).unwrap().remove(0);
    let path = record_path(dir.path(), &old);
    let record = fs::read(&path).unwrap();
    fs::write(&path, "{").unwrap();
    for image in ["test-2", "test-3"] {
        let error = store.import(&fixture(image), Some("me/app:1")).unwrap_err().to_string();
        assert!(error.starts_with("read ") && error.contains(old.id.hex()), "{error}");
    }
    fs::write(&path, record).unwrap();
    assert_eq!(store.list().len(), 2);
    let again = Store::open(dir.path()).unwrap();
    assert_eq!(again.list(), store.list());
    assert_eq!(again.get("me/app:1").unwrap().id, old.id);
    assert_eq!(again.get("me/other:1").unwrap().id, known.id);
}

#[test]
fn an_image_left_out_claims_no_tag() {
    let (dir, store) = store();
    let old = store.import(&fixture("test-1"), Some("me/app:1")).unwrap().remove(0);
    let path = record_path(dir.path(), &old);
    let record = fs::read(&path).unwrap();
    let new = store.import(Layout::of(vec![layer("new")]).tar().path(), Some("me/app:1")).unwrap().remove(0);
    // As after a power cut between the two records, with a layer lost.
    fs::write(&path, record).unwrap();
    fs::remove_file(dir.path().join("layers").join(&new.layers[0]).join("layer.json")).unwrap();
    let again = Store::open(dir.path()).unwrap();
    assert_eq!(again.get("me/app:1").unwrap().id, old.id);
}

#[test]
fn a_tag_for_an_image_without_record_is_not_given() {
    let (dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    fs::remove_file(record_path(dir.path(), &image)).unwrap();
    let named = store.inner.add_tag(&image.id, Some("docker.io/me/app:1".to_owned())).unwrap();
    assert_eq!(named, None);
    assert!(!record_path(dir.path(), &image).exists());
}

#[test]
fn an_image_is_not_published_without_its_layers() {
    let (dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    let mut record = ImageRecord::read(&record_path(dir.path(), &image)).unwrap();
    record.id = kit::digest(b"another");
    let (diff_id, key) = (kit::digest(b"gone"), kit::digest(b"gone").hex().to_owned());
    record.layers.push(LayerOfImage { diff_id, key: key.clone() });
    let error = store.inner.publish(record).unwrap_err().to_string();
    assert!(error.contains(&key) && error.contains("removed meanwhile"), "{error}");
    assert_eq!((store.list().len(), fs::read_dir(dir.path().join("images")).unwrap().count()), (1, 1));
}

/// A layer that is whole but not visible.
pub(super) fn made(store: &Store, disk: &Arc<WriteBack>, blob: Blob) -> Layers {
    let expected = Expected { blob: None, diff_id: blob.diff_id.clone() };
    let room = Room { store: &store.inner, disk };
    let made = Made::unpack(&room, std::io::Cursor::new(blob.bytes), &expected, None).unwrap();
    Layers::from([(blob.diff_id.hex().to_owned(), Arc::new(made))])
}

#[test]
fn a_layer_that_could_not_become_visible_is_visible_to_nobody() {
    let (dir, store) = store();
    let disk = WriteBack::watch(dir.path()).unwrap();
    let made = made(&store, &disk, layer("a"));
    for entry in fs::read_dir(dir.path().join("layers")).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    // Each stands for a pull that shares the layer.
    for _ in 0..2 {
        let mut hold = Hold::new(&store.inner.layers, &[]);
        let error = stack::commit(&store.inner, &made, &mut hold).unwrap_err().to_string();
        assert!(error.starts_with("rename to"), "{error}");
    }
}

#[test]
fn whole_layers_count_before_they_are_visible_and_once() {
    let (dir, store) = store();
    let du = || {
        let output = Command::new("du").args(["-s", "-B1"]).arg(dir.path().join("layers")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let images = fs::metadata(dir.path().join("images")).unwrap().blocks() * 512;
    let disk = WriteBack::watch(dir.path()).unwrap();
    let content = vec![7; 1 << 20];
    let blob = Layer::new().file("large", &content).build();
    let (first, second) = (made(&store, &disk, blob.clone()), made(&store, &disk, blob));
    assert!(du() > 2 << 20);
    assert_eq!(store.usage().used_bytes, du() + images);
    let mut hold = Hold::new(&store.inner.layers, &[]);
    for made in [&first, &second] {
        stack::commit(&store.inner, made, &mut hold).unwrap();
    }
    assert_eq!(store.usage().used_bytes, du() + images);
    assert!(du() < 2 << 20);
    drop((first, second, hold));
    kit::eventually(|| fs::read_dir(dir.path().join("layers")).unwrap().count() == 0);
    assert_eq!(store.usage().used_bytes, du() + images);
}

#[test]
fn a_hold_counts_each_layer_once() {
    let (_dir, store) = store();
    let image = store.import(&fixture("busybox"), None).unwrap().remove(0);
    let mut hold = store.hold(&[image.layers.clone(), image.layers.clone()].concat());
    hold.join(store.hold(&image.layers));
    assert!(hold.take(&image.layers[0]) && !hold.take(kit::digest(b"gone").hex()));
    store.remove("busybox").unwrap();
    assert!(store.has_layers(&image.layers));
    drop(hold);
    assert!(!store.has_layers(&image.layers));
}
