//! Images through CRI: names, removal, accounts.

use aril::api::cri::{
    Image, ImageFilter, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest, RemoveImageRequest,
    StreamImagesRequest,
};
use aril::api::service::cri::image_service_client::ImageServiceClient;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Response};

use crate::support::{Entry, Options, TestNode, custom_image, refused};

fn spec(reference: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() })
}

fn status(node: &TestNode, reference: &str) -> Option<Image> {
    let request = ImageStatusRequest { image: spec(reference), verbose: false };
    node.cri().images(|mut c| async move { c.image_status(request).await }).expect("image status").image
}

fn list(node: &TestNode, filter: Option<&str>) -> Vec<Image> {
    let request = ListImagesRequest { filter: filter.map(|f| ImageFilter { image: spec(f) }) };
    node.cri().images(|mut c| async move { c.list_images(request).await }).expect("list images").images
}

fn remove(node: &TestNode, reference: &str) {
    let request = RemoveImageRequest { image: spec(reference) };
    node.cri().images(|mut c| async move { c.remove_image(request).await }).expect("remove an image");
}

#[test]
fn an_image_is_known_by_all_its_names() {
    let node = TestNode::start();
    let image = status(&node, "probe").expect("the probe image");
    assert!(image.id.starts_with("sha256:") && image.size > 100_000, "{image:?}");
    assert_eq!(image.repo_tags, ["docker.io/library/probe:latest"]);
    let bare = image.id.trim_start_matches("sha256:");
    let digest = image.repo_digests.first().cloned();
    let names =
        ["probe:latest", "docker.io/library/probe", "docker.io/library/probe:latest", &image.id, bare, &bare[..12]];
    for name in names.into_iter().map(str::to_owned).chain(digest) {
        assert_eq!(status(&node, &name).as_ref(), Some(&image), "{name}");
    }
    for name in ["prob", "probe:other", "example.com/probe", "probe@sha256:00", "..", ""] {
        let request = ImageStatusRequest { image: spec(name), verbose: false };
        let answer = node.cri().images(|mut c| async move { c.image_status(request).await });
        assert!(answer.is_err() || answer.unwrap().image.is_none(), "{name}");
    }
    node.finish();
}

#[test]
fn images_are_listed_once_with_all_tags() {
    let node = TestNode::start();
    node.import("test-tags");
    node.import("test-1");
    assert_eq!(list(&node, None).len(), 3);
    let tagged = list(&node, Some("gcr.io/k8s-staging-cri-tools/test-image-tags:2"));
    assert_eq!((tagged.len(), tagged[0].repo_tags.len()), (1, 3));
    remove(&node, "gcr.io/k8s-staging-cri-tools/test-image-tags:2");
    assert_eq!(list(&node, None).len(), 2);
    assert!(status(&node, "gcr.io/k8s-staging-cri-tools/test-image-tags:1").is_none());
    node.finish();
}

/// All messages of a streamed list.
fn streamed(node: &TestNode, filter: Option<&str>) -> Vec<Vec<Image>> {
    let request = StreamImagesRequest { filter: filter.map(|f| ImageFilter { image: spec(f) }) };
    let collect = |mut c: ImageServiceClient<Channel>| async move {
        let mut stream = c.stream_images(request).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await? {
            messages.push(message.images);
        }
        Ok(Response::new(messages))
    };
    node.cri().images(collect).expect("stream images")
}

#[test]
fn a_streamed_list_is_the_list() {
    let node = TestNode::start();
    node.import("test-tags");
    node.import("test-1");
    assert_eq!(streamed(&node, None).concat(), list(&node, None));
    assert_eq!(streamed(&node, Some("probe")).concat(), list(&node, Some("probe")));
    assert_eq!(list(&node, Some("probe")).len(), 1);
    assert!(streamed(&node, Some("other")).concat().is_empty());
    node.finish();
}

#[test]
fn images_are_pinned_by_the_configuration() {
    let config = "pinned_images = [\"probe\", \"gcr.io/k8s-staging-cri-tools/test-image-tags:2\"]\n".to_owned();
    let node = TestNode::with(Options { config, ..Options::default() });
    node.import("test-tags");
    node.import("test-1");
    let pinned: Vec<Image> = list(&node, None).into_iter().filter(|i| i.pinned).collect();
    assert_eq!(pinned.len(), 2, "{pinned:?}");
    assert!(status(&node, "gcr.io/k8s-staging-cri-tools/test-image-tags:1").unwrap().pinned, "one image, three names");
    assert!(!status(&node, "gcr.io/k8s-staging-cri-tools/test-image-1").unwrap().pinned);
    node.finish();
}

#[test]
fn an_image_may_go_while_its_container_runs() {
    let node = TestNode::start();
    let pod = node.run_pod("removed");
    let container = pod.sleeper();
    remove(&node, "probe");
    assert!(list(&node, None).is_empty());
    assert_eq!(container.sh("cat /etc/hostname >/dev/null; echo fine"), "fine");
    node.kill_daemon();
    node.restart();
    assert_eq!(container.sh("ls / >/dev/null; echo fine"), "fine");
    refused(pod.container(["true"]).try_create(), Code::NotFound, &["probe"]);
    container.remove().unwrap();
    node.import("probe");
    assert_eq!(pod.script("echo again"), (0, "again\n".to_owned()));
    node.finish();
}

#[test]
fn layers_go_with_the_last_image_that_has_them() {
    let node = TestNode::start();
    let layers = || std::fs::read_dir(node.path("root/layers")).unwrap().count();
    let before = layers();
    node.import("test-1");
    assert_eq!(layers(), before + 1, "busybox's layer is shared");
    remove(&node, "gcr.io/k8s-staging-cri-tools/test-image-1");
    assert_eq!(layers(), before);
    node.finish();
}

#[test]
fn images_survive_the_daemon() {
    let node = TestNode::start();
    node.import("configured");
    let before = list(&node, None);
    node.kill_daemon();
    node.restart();
    let mut after = list(&node, None);
    after.sort_by_key(|i| before.iter().position(|b| b.id == i.id));
    assert_eq!(after, before);
    node.finish();
}

#[test]
fn the_user_is_told() {
    let node = TestNode::start();
    let told = |name: &str| {
        let image = status(&node, &node.import(name)).unwrap();
        (image.uid.map(|u| u.value), image.username)
    };
    assert_eq!(told("user-uid"), (Some(1002), String::new()));
    assert_eq!(told("user-name"), (None, "www-data".to_owned()));
    assert_eq!(told("user-uid-group"), (Some(1003), String::new()));
    assert_eq!(told("user-name-group"), (None, "www-data".to_owned()));
    assert_eq!(told("busybox"), (None, String::new()));
    node.finish();
}

#[test]
fn disk_use_is_accounted_for() {
    let node = TestNode::start();
    let info = || node.cri().images(|mut c| async move { c.image_fs_info(ImageFsInfoRequest {}).await }).unwrap();
    let used = |i: &aril::api::cri::ImageFsInfoResponse| i.image_filesystems[0].used_bytes.unwrap().value;
    let before = info();
    assert!(used(&before) > 1_000_000 && !before.container_filesystems.is_empty());
    let mountpoint = &before.image_filesystems[0].fs_id.as_ref().unwrap().mountpoint;
    assert!(std::path::Path::new(mountpoint).is_dir(), "{mountpoint}");
    node.import("test-1");
    assert!(used(&info()) > used(&before));
    node.finish();
}

#[test]
fn archives_that_are_none_are_refused() {
    let node = TestNode::start();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(node.path(name), bytes).unwrap();
        node.path(name)
    };
    for path in [
        file("empty", b""),
        file("text", b"hello"),
        file("gzip", b"\x1f\x8b\x08\x00broken"),
        node.path("missing"),
        node.path(""),
    ] {
        let error = node.cri().import(&path).expect_err("not an archive");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(error.message().contains(name), "{}", error.message());
        assert!([Code::InvalidArgument, Code::NotFound].contains(&error.code()), "{error:?}");
    }
    let good = custom_image(&node.path(""), "cut", &json!({}), &[Entry::File("a", 0o644, &[7; 100_000])]);
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&good, &bytes[..60_000]).unwrap();
    assert!(node.cri().import(&good).is_err());
    assert_eq!(list(&node, None).len(), 1);
    node.finish();
}
