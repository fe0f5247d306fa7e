//! The client against registries on loopback: what it fetches, whom it shows what, and what it makes of bad answers.

mod access;
mod hostile;
mod mirrors;
mod transfer;
mod trust;

#[path = "../../../../tests/support/registry.rs"]
#[allow(dead_code)]
mod fake;

use std::time::Duration;

use fake::{Misdeed, OCI_INDEX, OCI_MANIFEST, Options, Registry};

use crate::image::registry::*;

/// Too short to be worth the wait, too long to be met by accident on a busy machine.
const STALL: Duration = Duration::from_millis(1500);

/// Directories of `hosts.toml` that start empty, and a client that reads them.
struct Home {
    directory: tempfile::TempDir,
    client: RegistryClient,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory);
        Self { directory, client: RegistryClient::new(settings) }
    }

    /// Writes a file into the directory of a registry.
    fn write(&self, registry: &str, file: &str, text: &str) {
        let directory = self.directory.path().join(registry);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(file), text).unwrap();
    }

    fn hosts(&self, registry: &str, text: &str) {
        self.write(registry, "hosts.toml", text);
    }

    async fn open(&self, reference: &str) -> Repository {
        self.open_with(reference, &Credentials::anonymous()).await
    }

    async fn open_with(&self, reference: &str, credentials: &Credentials) -> Repository {
        self.client.open(&reference.parse().unwrap(), credentials).await.unwrap()
    }

    async fn manifest(&self, reference: &str) -> Result<RawManifest, RegistryError> {
        self.open(reference).await.manifest().await
    }
}

fn settings(directory: &tempfile::TempDir) -> RegistrySettings {
    let config_dir = directory.path().to_owned();
    RegistrySettings { config_dir, progress_timeout: STALL, ..RegistrySettings::default() }
}

/// Bytes that repeat nowhere near each other.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Stores a small manifest under the tag; its digest.
fn small(registry: &Registry, repository: &str, tag: &str) -> String {
    registry.add_manifest(repository, Some(tag), OCI_MANIFEST, format!("{{\"of\":\"{tag}\"}}").as_bytes())
}

async fn read(blob: &mut Blob) -> Result<Vec<u8>, RegistryError> {
    let mut all = Vec::new();
    while let Some(chunk) = blob.chunk().await? {
        assert!(!chunk.is_empty() && chunk.len() <= 256 << 10, "a chunk of {}", chunk.len());
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T, RegistryError>, kind: RegistryErrorKind, words: &[&str]) -> String {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "{text:?}");
    assert!(text.len() < 1500, "{text}");
    text
}

#[tokio::test]
async fn manifests_are_fetched_by_tag_and_by_digest() {
    let (home, registry) = (Home::new(), Registry::start());
    let manifest = small(&registry, "a/b", "1");
    let index = registry.add_manifest("a/b", Some("all"), OCI_INDEX, b"[]");
    let host = registry.host();

    let got = home.manifest(&format!("{host}/a/b:1")).await.unwrap();
    assert_eq!((got.digest.as_str(), got.media_type.as_str()), (manifest.as_str(), OCI_MANIFEST));
    assert_eq!(&got.bytes[..], b"{\"of\":\"1\"}");
    let got = home.manifest(&format!("{host}/a/b@{index}")).await.unwrap();
    assert_eq!((got.digest.as_str(), got.media_type.as_str()), (index.as_str(), OCI_INDEX));
    // The digest wins over a tag.
    let got = home.manifest(&format!("{host}/a/b:1@{index}")).await.unwrap();
    assert_eq!(got.digest.as_str(), index);

    let repository = home.open(&format!("{host}/a/b:all")).await;
    let got = repository.manifest_at(&manifest.parse().unwrap(), 10).await.unwrap();
    assert_eq!(got.digest.as_str(), manifest);
    fails(
        repository.manifest_at(&manifest.parse().unwrap(), 11).await,
        RegistryErrorKind::Mismatch,
        &["10 bytes", "not 11"],
    );
    let accept = registry.seen("GET", "/manifests/1")[0].header("accept");
    for kind in [OCI_INDEX, OCI_MANIFEST, "manifest.list.v2+json", "distribution.manifest.v2+json"] {
        assert!(accept.contains(kind), "{accept}");
    }
    assert!(registry.requests()[0].header("user-agent").starts_with("aril/"));
}

#[tokio::test]
async fn a_tag_is_resolved_by_one_cheap_request() {
    let (home, registry) = (Home::new(), Registry::start());
    let digest = small(&registry, "a/b", "1");
    let repository = home.open(&format!("{}/a/b:1", registry.host())).await;
    let resolved = repository.resolve().await.unwrap();
    assert_eq!((resolved.digest.as_str(), resolved.size), (digest.as_str(), Some(10)));
    assert_eq!(resolved.media_type, OCI_MANIFEST);
    let methods: Vec<String> = registry.requests().into_iter().map(|r| r.method).collect();
    assert_eq!(methods, ["HEAD"]);

    // A registry without HEAD, or one that says no digest, is asked for the document.
    let refusal = Misdeed::Status(405, vec![], String::new());
    for misdeed in [refusal, Misdeed::Header("docker-content-digest".to_owned(), String::new())] {
        registry.misbehave("HEAD", "/manifests/", 1, misdeed);
        assert_eq!(repository.resolve().await.unwrap().digest.as_str(), digest);
    }
    assert_eq!(registry.seen("GET", "/manifests/1").len(), 2);
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_missing() {
    let (home, registry) = (Home::new(), Registry::start());
    let host = registry.host();
    let words = [host.as_str(), "404", "manifest of a/b:1", "MANIFEST_UNKNOWN", "check"];
    fails(home.manifest(&format!("{host}/a/b:1")).await, RegistryErrorKind::NotFound, &words);
    let repository = home.open(&format!("{host}/a/b:1")).await;
    fails(repository.resolve().await, RegistryErrorKind::NotFound, &[&host, "404"]);
    let absent = fake::digest_of(b"absent").parse().unwrap();
    let mut blob = repository.blob(&absent, 6, None);
    fails(blob.chunk().await, RegistryErrorKind::NotFound, &["BLOB_UNKNOWN", absent.as_str()]);
    assert_eq!(registry.requests().len(), 3, "what is missing is asked for once");
}

/// A pull runs on tasks that move between threads.
#[tokio::test]
async fn everything_can_be_awaited_on_any_thread() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    let (home, registry) = (Home::new(), Registry::start());
    let digest = registry.add_blob("a", b"hello");
    let repository = send(home.open(&format!("{}/a:1", registry.host()))).await;
    drop(send(repository.resolve()));
    drop(send(repository.manifest()));
    let digest = digest.parse().unwrap();
    assert_eq!(&send(repository.small_blob(&digest, 5, 5)).await.unwrap()[..], b"hello");
    let mut blob = repository.blob(&digest, 5, None);
    assert_eq!(send(blob.chunk()).await.unwrap().unwrap().len(), 5);
}

#[tokio::test]
async fn a_small_blob_is_verified_whole() {
    let (home, registry) = (Home::new(), Registry::start());
    let digest = registry.add_blob("a", b"{\"os\":\"linux\"}").parse().unwrap();
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    assert_eq!(repository.small_blob(&digest, 14, 100).await.unwrap().len(), 14);
    fails(repository.small_blob(&digest, 14, 13).await, RegistryErrorKind::Limit, &["14 bytes", "13"]);
    fails(repository.small_blob(&digest, 15, 100).await, RegistryErrorKind::Mismatch, &["14 bytes", "15"]);
    registry.misbehave("GET", "/blobs/", 1, Misdeed::Garble);
    fails(repository.small_blob(&digest, 14, 100).await, RegistryErrorKind::Mismatch, &["damaged or forged"]);
}

/// The fake registry itself must not be what makes tests pass.
#[tokio::test]
async fn one_that_asks_for_a_client_certificate_is_not_reached_without() {
    let authority = fake::Authority::new("clients");
    let identity = fake::self_signed(&["127.0.0.1"]);
    let clients = Some(authority.pem().to_owned());
    let registry = Registry::with(Options { identity: Some(identity), clients, ..Options::default() });
    let home = Home::new();
    let host = registry.host();
    home.hosts(&host, &format!("[host.\"https://{host}\"]\nskip_verify = true\n"));
    let error = home.manifest(&format!("{host}/a:1")).await.unwrap_err();
    assert!(matches!(error.kind(), RegistryErrorKind::Tls | RegistryErrorKind::Unavailable), "{error}");
    assert!(registry.requests().is_empty());
}
