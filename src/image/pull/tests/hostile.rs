//! Registries that lie.

use super::*;
use crate::image::tests::kit;

fn says(reason: &str, what: &str) {
    assert!(reason.contains(what), "{reason:?} does not say {what:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_noticed_before_anything_is_visible() {
    let bench = bench();
    for (how, size) in [("gzip", 1000), ("gzip", 600_000), ("none", 600_000), ("zstd", 9 << 20)] {
        let honest = layer(1, 100_000);
        let forged = Blob::of(Layer::new().file("x", &noise(size, 2)).tar(), how);
        // Good bytes, but not those of the digest.
        let mut image = Layout::of(vec![honest.clone(), forged.clone()]);
        bench.fake.serve("app:1", &image);
        let mut spoilt = forged.bytes.clone();
        *spoilt.last_mut().unwrap() ^= 1;
        bench.fake.put(&blob_digest(&forged), &spoilt);
        let reason = bench.refusal("reg.example/app:1").await;
        assert!(reason.contains("damaged or forged"), "{how}: {reason}");
        // Bytes of the digest, but not of the diff ID.
        image.config["rootfs"]["diff_ids"][1] = json!(kit::digest(b"another").as_str());
        bench.fake.serve("app:2", &image);
        let reason = bench.refusal("reg.example/app:2").await;
        says(&reason, "diff ID");
        // Cut short: the transfer is padded, as no transfer should.
        bench.fake.put(&blob_digest(&forged), &forged.bytes[..forged.bytes.len() / 2]);
        says(&bench.refusal("reg.example/app:1").await, "damaged or forged");
        assert_eq!(bench.store.list(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_compared_with_their_digests() {
    let bench = bench();
    let digest = bench.fake.serve("app:1", &Layout::of(vec![layer(1, 10)]));
    bench.fake.put(&digest, br#"{"schemaVersion":2,"manifests":[]}"#);
    says(&bench.refusal("reg.example/app:1").await, "has digest");

    let image = Layout::of(vec![layer(1, 10)]);
    bench.fake.serve("app:2", &image);
    let config = image.config.to_string();
    bench.fake.put(&kit::digest(config.as_bytes()), config.replace("linux", "LINUX").as_bytes());
    says(&bench.refusal("reg.example/app:2").await, "configuration sha256:");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_transfers_fail_the_pull_and_tell_why() {
    let bench = bench();
    let broken = layer(1, 400_000);
    bench.fake.serve("app:1", &Layout::of(vec![broken.clone(), layer(2, 100_000)]));
    bench.fake.broken.lock().unwrap().insert(blob_digest(&broken), RegistryErrorKind::NotFound);
    // The cause, not what the decompressor made of it.
    assert_eq!(bench.refusal("reg.example/app:1").await, "the connection broke");
    bench.fake.broken.lock().unwrap().insert(blob_digest(&broken), RegistryErrorKind::Unavailable);
    let error = bench.pull("reg.example/app:1").await.unwrap_err();
    assert!(matches!(&error, PullError::Registry(e) if e.kind() == RegistryErrorKind::Unavailable), "{error}");
    // What may well succeed soon keeps its other layer.
    eventually(|| leftovers(bench.dir.path()) <= 1);
    bench.fake.broken.lock().unwrap().clear();
    bench.pull("reg.example/app:1").await.unwrap();
    bench.assert_tidy();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giants_are_refused_before_they_are_fetched() {
    let limits = Limits { layers: 3, manifests: 10, index_depth: 2, manifest_bytes: 100_000, ..Limits::default() };
    let bench = with_limits(limits);
    bench.fake.serve("many:1", &Layout::of((0..4).map(|n| layer(n, 10)).collect()));
    says(&bench.refusal("reg.example/many:1").await, "more than 3 layers");

    let ours = bench.fake.serve("x:1", &Layout::of(vec![layer(1, 10)]).architecture("s390x"));
    let deep = bench.fake.serve_index("x:2", &[(&ours, Value::Null)]);
    let deeper = bench.fake.serve_index("x:3", &[(&deep, Value::Null)]);
    bench.fake.serve_index("deep:1", &[(&deeper, Value::Null)]);
    says(&bench.refusal("reg.example/deep:1").await, "indexes inside each other");

    let leaves: Vec<_> = (0..12)
        .map(|n| {
            bench.fake.serve_document("x:9", &Layout::of(vec![layer(n, 1)]).architecture("s390x").files()["index.json"])
        })
        .collect();
    let wide: Vec<_> = leaves.iter().map(|digest| (digest, Value::Null)).collect();
    bench.fake.serve_index("wide:1", &wide);
    let before = bench.fake.manifests.load(Ordering::Relaxed);
    assert!(!bench.refusal("reg.example/wide:1").await.is_empty());
    assert!(bench.fake.manifests.load(Ordering::Relaxed) - before <= 12);

    let huge = json!({ "schemaVersion": 2, "manifests": [{ "digest": ours.as_str(), "size": 100_001 }] });
    bench.fake.serve_document("huge:1", huge.to_string().as_bytes());
    says(&bench.refusal("reg.example/huge:1").await, "more than 100000 bytes");

    // The same leaf again and again is looked at once.
    let same: Vec<_> = (0..1000).map(|_| (&ours, Value::Null)).collect();
    bench.fake.serve_index("same:1", &same);
    let before = bench.fake.manifests.load(Ordering::Relaxed);
    says(&bench.refusal("reg.example/same:1").await, "no image for");
    assert_eq!(bench.fake.manifests.load(Ordering::Relaxed) - before, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_image_is_told_apart() {
    let bench = bench();
    let mut artifact = Layout::of(vec![layer(1, 10)]);
    let config = json!({ "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": kit::digest(b"{}").as_str(), "size": 2 });
    artifact.manifest = Some(json!({ "schemaVersion": 2, "config": config, "layers": [] }));
    bench.fake.serve("chart:1", &artifact);
    says(
        &bench.refusal("reg.example/chart:1").await,
        "an artifact of type \"application/vnd.cncf.helm.config.v1+json\"",
    );

    let blob = layer(1, 10);
    let mut encrypted = Layout::of(vec![blob.clone()]);
    let config = encrypted.config.to_string();
    bench.fake.put(&kit::digest(config.as_bytes()), config.as_bytes());
    encrypted.manifest = Some(json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": kit::digest(config.as_bytes()).as_str(), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "digest": blob_digest(&blob).as_str(), "size": blob.bytes.len() }],
    }));
    bench.fake.serve("secret:1", &encrypted);
    says(&bench.refusal("reg.example/secret:1").await, "encrypted");

    bench.fake.serve_document("old:1", br#"{"schemaVersion":1,"fsLayers":[]}"#);
    says(&bench.refusal("reg.example/old:1").await, "schemaVersion is 1");
    bench.fake.serve_document("bad:1", b"<html>");
    says(&bench.refusal("reg.example/bad:1").await, "malformed");
    says(&bench.refusal("reg.example/absent:1").await, "there is no absent:1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_cannot_fit_is_refused_before_it_begins() {
    let bench = bench();
    let blob = layer(1, 10);
    let mut image = Layout::of(vec![blob.clone()]);
    let config = image.config.to_string();
    bench.fake.put(&kit::digest(config.as_bytes()), config.as_bytes());
    image.manifest = Some(json!({
        "schemaVersion": 2,
        "config": { "digest": kit::digest(config.as_bytes()).as_str(), "size": config.len() },
        "layers": [{ "digest": blob_digest(&blob).as_str(), "size": 1_u64 << 60 }],
    }));
    bench.fake.serve("big:1", &image);
    let error = bench.pull("reg.example/big:1").await.unwrap_err();
    says(&error.to_string(), "no space is left");
    assert!(matches!(&error, PullError::Image(e) if matches!(**e, ImageError::Store(_))));
    assert_eq!(bench.fake.transfers.lock().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_one_host_spoilt_comes_from_the_next() {
    let bench = bench();
    for (seed, how, at) in [(1, "gzip", 50_000), (2, "none", 50_000), (3, "none", 3), (4, "zstd", 0)] {
        let blob = Blob::of(Layer::new().file("x", &noise(100_000, seed)).tar(), how);
        bench.fake.serve("app:1", &Layout::of(vec![blob.clone()]));
        let digest = blob_digest(&blob);
        let mut spoilt = blob.bytes.clone();
        spoilt[at] ^= 1;
        bench.fake.put(&digest, &spoilt);
        bench.fake.mirrored.lock().unwrap().insert(digest.clone(), blob.bytes.clone());
        bench.pull("reg.example/app:1").await.unwrap();
        assert_eq!(bench.fake.transfers_of(&digest), 2, "{how}");
        bench.assert_tidy();
    }
    // What its author made wrong is asked for once.
    let blob = layer(7, 1000);
    let mut image = Layout::of(vec![blob.clone()]);
    image.config["rootfs"]["diff_ids"][0] = json!(kit::digest(b"another").as_str());
    bench.fake.serve("app:2", &image);
    bench.fake.mirrored.lock().unwrap().insert(blob_digest(&blob), blob.bytes.clone());
    says(&bench.refusal("reg.example/app:2").await, "diff ID");
    assert_eq!(bench.fake.transfers_of(&blob_digest(&blob)), 1);
}
