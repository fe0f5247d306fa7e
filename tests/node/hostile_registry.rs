//! Registries that lie, dawdle and break, and clients that lose patience: the daemon goes on, nothing is left, and
//! whoever asked is told who did what.

use std::time::{Duration, Instant};

use aril::api::cri::{AuthConfig, ImageSpec, PullImageRequest};
use serde_json::json;
use tonic::{Code, Status};

use crate::pulls::{list, pull, pull_with, used};
use crate::support::registry::{self, Access, Misdeed, OCI_INDEX, OCI_MANIFEST, Registry};
use crate::support::{Entry, Options, PATIENCE, TestNode, layer, wait_for};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn start() -> TestNode {
    let config = "image_pull_progress_timeout_seconds = 1\n".to_owned();
    TestNode::with(Options { config, ..Options::default() })
}

/// A registry in the node's network that the daemon speaks plain HTTP to.
pub fn registry(node: &TestNode) -> Registry {
    let registry = node.in_network(Registry::start);
    trust(node, &registry);
    registry
}

fn trust(node: &TestNode, registry: &Registry) {
    let directory = node.path("certs.d").join(registry.host());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.host())).unwrap();
}

/// Serves an image with one layer of a file with this content; gives its reference.
pub fn image(registry: &Registry, name: &str, content: &[u8]) -> String {
    let layer = layer(&[Entry::File("file", 0o644, content)]);
    let diff_id = crate::support::registry::digest_of(&layer);
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    registry.add_image(name, "1", config.to_string().as_bytes(), &[(TAR, &layer)]);
    format!("{}/{name}:1", registry.host())
}

/// The digest of the image's only layer, as it is asked for.
pub fn layer_of(content: &[u8]) -> String {
    crate::support::registry::digest_of(&layer(&[Entry::File("file", 0o644, content)]))
}

fn entries(node: &TestNode) -> usize {
    std::fs::read_dir(node.path("root/layers")).unwrap().count()
}

#[test]
fn nothing_a_registry_does_harms_or_leaves_anything() {
    let node = start();
    let content = vec![7; 200_000];
    let blob = format!("/blobs/{}", layer_of(&content));
    let manifest = "/manifests/";
    let before = (used(&node), entries(&node), node.daemon_pid());
    let answer = |status, header: &[(&str, &str)], body: &str| {
        let header = header.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Misdeed::Status(status, header, body.to_owned())
    };
    let cases: Vec<(&str, Misdeed)> = vec![
        (&blob, Misdeed::Garble),
        (&blob, Misdeed::Longer(10)),
        (&blob, Misdeed::Shorter(10)),
        (&blob, Misdeed::Endless),
        (&blob, Misdeed::StallAfter(5000)),
        (&blob, Misdeed::TruncateAfter(5000)),
        (&blob, Misdeed::Silence),
        (&blob, Misdeed::Body(vec![0; 300])),
        (&blob, answer(404, &[], "{}")),
        (&blob, answer(500, &[], "oops")),
        (manifest, Misdeed::Garble),
        (manifest, Misdeed::Endless),
        (manifest, Misdeed::Silence),
        (manifest, Misdeed::Body(b"{\"schemaVersion\":2,".to_vec())),
        (manifest, Misdeed::Body(vec![b'['; 100_000])),
        (manifest, answer(200, &[("content-type", OCI_MANIFEST)], "[]")),
        (manifest, answer(429, &[("retry-after", "0")], "slow down")),
        (manifest, answer(500, &[], "\u{1b}[31mred")),
        (manifest, answer(418, &[], "")),
        (manifest, Misdeed::Redirect("/v2/hostile/manifests/1".to_owned())),
        (manifest, Misdeed::Redirect("file:///etc/passwd".to_owned())),
        (manifest, answer(401, &[("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/token\"")], "")),
        (manifest, answer(401, &[("www-authenticate", "Negotiate")], "")),
    ];
    std::thread::scope(|scope| {
        for (part, misdeed) in cases {
            let (node, content) = (&node, &content);
            scope.spawn(move || {
                let registry = registry(node);
                let reference = image(&registry, "hostile", content);
                registry.misbehave("*", part, usize::MAX, misdeed.clone());
                let status = pull(node, &reference).expect_err(&format!("{part}: {misdeed:?}"));
                let text = status.message();
                let told = format!("{part}: {misdeed:?}: {status}");
                // Host, step and cause.
                assert!(text.contains(&registry.host()), "{told}");
                assert!(["manifest", "layer", "blob", "token"].iter().any(|step| text.contains(step)), "{told}");
                assert!(text.len() < 1000 && !text.contains(['\n', '\u{1b}']), "{told}");
                assert!(![Code::Internal, Code::Cancelled].contains(&status.code()), "{told}");
            });
        }
    });
    assert_eq!((used(&node), entries(&node), node.daemon_pid()), before);
    assert_eq!(list(&node).len(), 1, "the probe alone");
    assert!(!node.daemon_log().contains("panicked"), "{}", node.daemon_log());
    node.finish();
}

#[test]
fn documents_beyond_all_measure_are_refused() {
    let node = start();
    let before = (used(&node), entries(&node));
    let registry = registry(&node);
    let one = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{}","size":5}}"#, "a".repeat(64));
    let index = |entries: usize, more: &str| {
        let list = vec![one.as_str(); entries].join(",");
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{list}]{more}}}"#)
    };
    let own = |digest: &str, size: usize| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_INDEX}","digest":"{digest}","size":{size}}}]}}"#
        )
    };
    registry.add_manifest("huge", Some("1"), OCI_INDEX, index(100_000, "").as_bytes());
    registry.add_manifest("both", Some("1"), OCI_INDEX, index(1, r#","layers":[]"#).as_bytes());
    registry.add_manifest("missing", Some("1"), OCI_INDEX, index(3, "").as_bytes());
    // Indexes inside indexes.
    let mut inner = index(1, "");
    for _ in 0..20 {
        let digest = registry.add_manifest("deep", Some("1"), OCI_INDEX, inner.as_bytes());
        inner = own(&digest, inner.len());
    }
    for name in ["huge", "both", "missing", "deep"] {
        let status = pull(&node, &format!("{}/{name}:1", registry.host())).expect_err(name);
        assert!(status.message().contains(name) && status.message().len() < 1000, "{status}");
        assert!([Code::FailedPrecondition, Code::NotFound].contains(&status.code()), "{name}: {status:?}");
    }
    assert_eq!((used(&node), entries(&node)), before);
    node.finish();
}

#[test]
fn a_registry_that_recovers_is_no_failure() {
    let node = start();
    let registry = registry(&node);
    let content = vec![9; 100_000];
    let reference = image(&registry, "shaky", &content);
    let blob = format!("/blobs/{}", layer_of(&content));
    registry.misbehave("*", "/manifests/", 1, Misdeed::Status(503, Vec::new(), String::new()));
    registry.misbehave("GET", &blob, 1, Misdeed::TruncateAfter(30_000));
    registry.misbehave("GET", &blob, 1, Misdeed::StallAfter(20_000));
    pull(&node, &reference).unwrap();
    // It went on where it was cut off.
    assert!(registry.seen("GET", &blob).iter().any(|r| r.header("range").starts_with("bytes=")));
    node.finish();
}

/// Only the registry itself gets what is its own: not a mirror, nor whom that names, nor where a blob really lies.
#[test]
fn credentials_reach_no_stranger() {
    let node = start();
    let auth = || AuthConfig { username: "me".to_owned(), password: "secret".to_owned(), ..AuthConfig::default() };
    let untold = |stranger: &Registry| {
        let told = stranger.requests().into_iter().find(|r| !r.header("authorization").is_empty());
        assert!(told.is_none(), "{told:?}");
    };
    let (mirror, stranger) = (registry(&node), node.in_network(Registry::start));
    image(&mirror, "guarded", b"x");
    std::fs::rename(node.path("certs.d").join(mirror.host()), node.path("certs.d/quay.io")).unwrap();
    let challenge = format!("Bearer realm=\"{}\",service=\"s\", Basic realm=\"x\"", stranger.url("/token"));
    let refusal = Misdeed::Status(401, vec![("www-authenticate".to_owned(), challenge)], String::new());
    mirror.misbehave("*", "/manifests/", usize::MAX, refusal);
    let status = pull_with(&node, "quay.io/guarded:1", Some(auth())).expect_err("a mirror's challenge");
    assert!(!status.message().contains("secret"), "{status}");
    untold(&mirror);
    untold(&stranger);

    let access = Access::Basic("me".to_owned(), "secret".to_owned());
    let guarded = node.in_network(|| Registry::with(registry::Options { access, ..Default::default() }));
    trust(&node, &guarded);
    let reference = image(&guarded, "moved", b"elsewhere");
    image(&stranger, "moved", b"elsewhere");
    let blob = format!("/blobs/{}", layer_of(b"elsewhere"));
    guarded.misbehave("GET", &blob, usize::MAX, Misdeed::Redirect(stranger.url(&format!("/v2/moved{blob}"))));
    pull_with(&node, &reference, Some(auth())).unwrap();
    assert_eq!(stranger.seen("GET", &blob).len(), 1);
    untold(&stranger);
    node.finish();
}

/// A pull that nobody waits for any more ends, whoever it was that asked.
#[test]
fn a_client_that_goes_away_ends_its_pull() {
    let node = TestNode::start();
    let registry = registry(&node);
    let content = vec![3; 400_000];
    let reference = image(&registry, "slow", &content);
    let blob = format!("/blobs/{}", layer_of(&content));
    let before = (used(&node), entries(&node));
    let slow = || registry.misbehave("GET", &blob, 1, Misdeed::Trickle(500, Duration::from_millis(20)));
    let wait_for_blob = |count: usize| {
        wait_for("the layer to be asked for", PATIENCE, || (registry.seen("GET", &blob).len() >= count).then_some(()));
    };
    let ended = || {
        wait_for("the pull's end", Duration::from_secs(5), || (entries(&node) == before.1).then_some(()));
        assert_eq!((used(&node), list(&node).len()), (before.0, 1));
    };

    slow();
    let request = PullImageRequest {
        image: Some(ImageSpec { image: reference.clone(), ..ImageSpec::default() }),
        ..PullImageRequest::default()
    };
    let call = |mut c: aril::api::service::cri::image_service_client::ImageServiceClient<tonic::transport::Channel>| async move {
        match tokio::time::timeout(Duration::from_millis(700), c.pull_image(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the client's")),
        }
    };
    assert_eq!(node.cri().images(call).unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(registry.seen("GET", &blob).len(), 1);
    ended();

    slow();
    let mut person = node.aril(["pull", "-q", &reference]).spawn().unwrap();
    wait_for_blob(2);
    person.kill().unwrap();
    person.wait().unwrap();
    ended();

    // The next one is not held up by them.
    let begun = Instant::now();
    pull(&node, &reference).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    node.finish();
}

#[test]
fn pulls_of_one_image_are_one() {
    let node = TestNode::start();
    let registry = registry(&node);
    let content = vec![5; 100_000];
    let reference = image(&registry, "wanted", &content);
    let blob = format!("/blobs/{}", layer_of(&content));
    registry.misbehave("GET", &blob, 1, Misdeed::Trickle(5000, Duration::from_millis(20)));
    let ids: Vec<String> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..6).map(|_| scope.spawn(|| pull(&node, &reference).unwrap())).collect();
        // One loses patience; the others' pull goes on.
        let mut hasty = node.aril(["pull", "-q", &reference]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        hasty.kill().unwrap();
        hasty.wait().unwrap();
        pulls.into_iter().map(|p| p.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(registry.seen("GET", &blob).len(), 1, "{:?}", registry.seen("GET", &blob));
    node.finish();
}
