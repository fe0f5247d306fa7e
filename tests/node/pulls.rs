//! Images pulled from registries, through CRI.

use aril::api::cri::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest,
    RemoveImageRequest,
};
use tonic::{Code, Status};

use crate::support::{DockerRegistry, Manner, PASSWORD, TestNode, USER, refused};

/// What critest calls one of its images, and the catalogue's name of it.
const IMAGE: &str = "gcr.io/k8s-staging-cri-tools/test-image-1:latest";
const FIXTURE: &str = "test-1";

fn spec(reference: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() })
}

pub fn pull_with(node: &TestNode, reference: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
    let request = PullImageRequest { image: spec(reference), auth, ..PullImageRequest::default() };
    Ok(node.cri().images(|mut c| async move { c.pull_image(request).await })?.image_ref)
}

pub fn pull(node: &TestNode, reference: &str) -> Result<String, Status> {
    pull_with(node, reference, None)
}

fn status(node: &TestNode, reference: &str) -> Option<Image> {
    let request = ImageStatusRequest { image: spec(reference), verbose: false };
    node.cri().images(|mut c| async move { c.image_status(request).await }).expect("image status").image
}

pub fn list(node: &TestNode) -> Vec<Image> {
    let request = ListImagesRequest::default();
    node.cri().images(|mut c| async move { c.list_images(request).await }).expect("list images").images
}

pub fn remove(node: &TestNode, reference: &str) {
    let request = RemoveImageRequest { image: spec(reference) };
    node.cri().images(|mut c| async move { c.remove_image(request).await }).expect("remove an image");
}

pub fn used(node: &TestNode) -> u64 {
    let info = node.cri().images(|mut c| async move { c.image_fs_info(ImageFsInfoRequest {}).await }).unwrap();
    info.image_filesystems[0].used_bytes.unwrap().value
}

fn password(username: &str, password: &str) -> Option<AuthConfig> {
    Some(AuthConfig { username: username.to_owned(), password: password.to_owned(), ..AuthConfig::default() })
}

#[test]
fn an_image_is_pulled_and_run_by_one_identifier() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    let digest = registry.publish(FIXTURE);
    registry.stand_in(&node, "gcr.io");
    let id = pull(&node, IMAGE).unwrap();
    let image = status(&node, IMAGE).expect("the image");
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, [IMAGE]);
    assert_eq!(image.repo_digests, [format!("gcr.io/k8s-staging-cri-tools/test-image-1@{digest}")]);

    let pod = node.run_pod("pulled");
    let container = pod.container(["sleep", "100000"]).image(&id).run();
    assert_eq!(container.sh("cat /marks/test-1"), "test-1");
    let told = container.status();
    assert_eq!((told.image_ref, told.image_id, told.image.unwrap().image), (id.clone(), id.clone(), IMAGE.to_owned()));

    // Removed by any of its names while a container runs of it, and pulled again.
    remove(&node, &image.repo_digests[0]);
    assert!(status(&node, IMAGE).is_none() && status(&node, &id).is_none());
    assert_eq!(container.sh("cat /marks/test-1"), "test-1");
    assert_eq!(pull(&node, IMAGE).unwrap(), id);
    container.remove().unwrap();
    assert_eq!(pod.container(["cat", "/marks/test-1"]).image(IMAGE).run().wait_exited().exit_code, 0);
    node.finish();
}

#[test]
fn an_image_by_its_digest_has_no_tag() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    let digest = registry.publish(FIXTURE);
    registry.stand_in(&node, "gcr.io");
    let by_digest = format!("gcr.io/k8s-staging-cri-tools/test-image-1@{digest}");
    let id = pull(&node, &by_digest).unwrap();
    let image = status(&node, &by_digest).unwrap();
    assert_eq!((image.id, image.repo_tags.len(), image.repo_digests), (id.clone(), 0, vec![by_digest]));
    // With a tag beside it, the digest is what counts.
    let both = format!("gcr.io/k8s-staging-cri-tools/test-image-1:nonsense@{digest}");
    assert_eq!(pull(&node, &both).unwrap(), id);
    let other = format!("gcr.io/k8s-staging-cri-tools/test-image-1@sha256:{}", "0".repeat(64));
    refused(pull(&node, &other), Code::NotFound, &["test-image-1", "127.0.0.1"]);
    assert_eq!(pull(&node, "gcr.io/k8s-staging-cri-tools/test-image-1").unwrap(), id, "latest is meant");
    node.finish();
}

#[test]
fn an_image_that_is_there_costs_one_small_request() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    registry.publish(FIXTURE);
    registry.stand_in(&node, "gcr.io");
    let id = pull(&node, IMAGE).unwrap();
    let before = (registry.requests("/manifests/"), registry.requests("/blobs/"));
    assert_eq!(pull(&node, IMAGE).unwrap(), id);
    let after = (registry.requests("/manifests/"), registry.requests("/blobs/"));
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 0), "{}", registry.log());
    node.finish();
}

#[test]
fn registries_get_the_credentials_they_want() {
    for manner in [Manner::Basic, Manner::Token] {
        let node = TestNode::start();
        let registry = DockerRegistry::with(&node, manner);
        registry.publish(FIXTURE);
        registry.stand_in(&node, registry.address());
        let image = format!("{}/k8s-staging-cri-tools/test-image-1:latest", registry.address());
        let nothing_yet = (list(&node).len(), used(&node));
        for auth in [None, password(USER, "wrong"), password("nobody", PASSWORD)] {
            let status = refused(pull_with(&node, &image, auth), Code::Unauthenticated, &["127.0.0.1", &image]);
            assert!(!status.message().contains("wrong\"") && !status.message().contains(PASSWORD), "{status}");
        }
        // Credentials of another registry are not for this one.
        let other = AuthConfig { server_address: "quay.io".to_owned(), ..password(USER, PASSWORD).unwrap() };
        assert!(pull_with(&node, &image, Some(other)).is_err(), "{manner:?}");
        assert_eq!((list(&node).len(), used(&node)), nothing_yet);
        let id = pull_with(&node, &image, password(USER, PASSWORD)).unwrap_or_else(|e| panic!("{manner:?}: {e}"));
        // That it is there now is no right to it.
        refused(pull_with(&node, &image, password(USER, "wrong")), Code::Unauthenticated, &["127.0.0.1"]);
        assert_eq!(pull_with(&node, &image, password(USER, PASSWORD)).unwrap(), id);
        // Nor does a mirror get what was given for the registry it stands in for.
        registry.stand_in(&node, "gcr.io");
        refused(pull_with(&node, IMAGE, password(USER, PASSWORD)), Code::Unauthenticated, &["127.0.0.1"]);
        node.finish();
    }
}

#[test]
fn a_registry_is_trusted_by_its_own_authority_alone() {
    let node = TestNode::start();
    let registry = DockerRegistry::with(&node, Manner::Tls);
    registry.publish(FIXTURE);
    registry.stand_in(&node, "gcr.io");
    pull(&node, IMAGE).unwrap();
    remove(&node, IMAGE);
    let hosts = node.path("certs.d/gcr.io/hosts.toml");
    let text = std::fs::read_to_string(&hosts).unwrap();
    let without: String = text.lines().filter(|l| !l.starts_with("ca = ")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&hosts, &without).unwrap();
    refused(pull(&node, IMAGE), Code::FailedPrecondition, &["certificate", "127.0.0.1"]);
    // Read anew for each pull, and by an explicit word alone anybody is trusted.
    std::fs::write(&hosts, without + "skip_verify = true\n").unwrap();
    pull(&node, IMAGE).unwrap();
    node.finish();
}

#[test]
fn mirrors_are_asked_in_their_order() {
    let node = TestNode::start();
    let (empty, full) = (DockerRegistry::start(&node), DockerRegistry::start(&node));
    full.publish(FIXTURE);
    empty.publish("test-2");
    let mirror = format!("http://{}", empty.address());
    full.stand_in_behind(&node, "gcr.io", &["http://127.0.0.1:1", &mirror]);
    pull(&node, IMAGE).unwrap();
    assert!(empty.requests("/manifests/") > 0, "it comes first");
    pull(&node, "gcr.io/k8s-staging-cri-tools/test-image-2").unwrap();
    node.finish();
}

#[test]
fn errors_are_told_as_kubelet_understands_them() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    registry.publish(FIXTURE);
    registry.stand_in(&node, "gcr.io");
    refused(pull(&node, "gcr.io/k8s-staging-cri-tools/test-image-1:none"), Code::NotFound, &["none", "127.0.0.1"]);
    refused(pull(&node, "gcr.io/nowhere"), Code::NotFound, &["nowhere"]);
    for bad in ["", "UPPER", "gcr.io/../x", "a@sha256:0", "-"] {
        let word = if bad.is_empty() { "image.image" } else { bad };
        refused(pull(&node, bad), Code::InvalidArgument, &[word]);
    }
    drop(registry);
    let status = refused(pull(&node, IMAGE), Code::Unknown, &[IMAGE, "127.0.0.1"]);
    assert!(status.message().starts_with("RegistryUnavailable: "), "{status}");
    std::fs::write(node.path("certs.d/gcr.io/hosts.toml"), "[host\n").unwrap();
    refused(pull(&node, IMAGE), Code::FailedPrecondition, &["hosts.toml"]);
    node.finish();
}

#[test]
fn images_named_by_two_registries_are_one() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    registry.publish("pause");
    for host in ["registry.k8s.io", "k8s.gcr.io"] {
        registry.stand_in(&node, host);
    }
    let id = pull(&node, "registry.k8s.io/pause:3.9").unwrap();
    assert_eq!(pull(&node, "k8s.gcr.io/pause:3.9").unwrap(), id);
    let image = status(&node, &id).unwrap();
    assert_eq!(image.repo_tags, ["k8s.gcr.io/pause:3.9", "registry.k8s.io/pause:3.9"]);
    assert_eq!(image.repo_digests.len(), 2);
    remove(&node, "k8s.gcr.io/pause:3.9");
    assert!(status(&node, "registry.k8s.io/pause:3.9").is_none());
    node.finish();
}

#[test]
fn pulled_images_survive_the_daemon_and_give_their_space_back() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    for fixture in [FIXTURE, "test-2", "test-tags"] {
        registry.publish(fixture);
    }
    registry.stand_in(&node, "gcr.io");
    let before = used(&node);
    let names = ["test-image-1", "test-image-2", "test-image-tags:1", "test-image-tags:2"];
    let names = names.map(|name| format!("gcr.io/k8s-staging-cri-tools/{name}"));
    let ids: Vec<String> = std::thread::scope(|scope| {
        let pulls = names.each_ref().map(|name| scope.spawn(|| pull(&node, name).unwrap()));
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert_eq!(ids[2], ids[3]);
    let (listed, full) = (list(&node), used(&node));
    assert_eq!(listed.len(), 4);
    node.kill_daemon();
    node.restart();
    assert_eq!((list(&node), used(&node)), (listed, full));
    ids.iter().for_each(|id| remove(&node, id));
    assert_eq!(used(&node), before);
    node.finish();
}
