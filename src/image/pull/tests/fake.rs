//! A registry in memory that does what a test says.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::id::Digest;
use crate::image::pull::source::{Answer, Document, Registry, Source, Transfer};
use crate::image::reference::Reference;
use crate::image::registry::{Credentials, RegistryError, RegistryErrorKind};
use crate::image::tests::kit::{self, Layout};

/// What was asked for, and how blobs behave.
#[derive(Debug)]
pub struct Fake {
    /// By digest.
    blobs: Mutex<BTreeMap<String, Bytes>>,
    /// By `repository:tag`.
    tags: Mutex<BTreeMap<String, Digest>>,
    pub heads: AtomicUsize,
    pub manifests: AtomicUsize,
    /// Digests of blobs that a transfer was begun of, in order.
    pub transfers: Mutex<Vec<Digest>>,
    /// Ranges that were asked for.
    pub ranges: Mutex<Vec<Range<u64>>>,
    /// Users that opened something.
    pub opened: Mutex<Vec<Credentials>>,
    /// Who may read.
    pub allowed: Mutex<Option<Credentials>>,
    /// Chunks that may still be handed out.
    pub gate: Semaphore,
    /// Blobs that break off in the middle, with this kind of error.
    pub broken: Mutex<BTreeMap<Digest, RegistryErrorKind>>,
    /// Blobs of which nothing more comes after the first chunk.
    pub stalled: Mutex<Vec<Digest>>,
    /// What each chunk waits for.
    pub delay: Mutex<Duration>,
    pub chunk_bytes: AtomicUsize,
    /// Whether parts are refused, though it is said that they can be asked for.
    pub no_ranges: AtomicBool,
    /// Transfers now under way.
    pub under_way: AtomicUsize,
    pub most_under_way: AtomicUsize,
    /// Transfers of what was left of a blob.
    pub rests: AtomicUsize,
    /// What another host has by a digest.
    pub mirrored: Mutex<BTreeMap<Digest, Vec<u8>>>,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            blobs: Mutex::default(),
            tags: Mutex::default(),
            heads: AtomicUsize::new(0),
            manifests: AtomicUsize::new(0),
            transfers: Mutex::default(),
            ranges: Mutex::default(),
            opened: Mutex::default(),
            allowed: Mutex::default(),
            gate: Semaphore::new(1 << 20),
            broken: Mutex::default(),
            stalled: Mutex::default(),
            delay: Mutex::default(),
            chunk_bytes: AtomicUsize::new(64 << 10),
            no_ranges: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            rests: AtomicUsize::new(0),
            mirrored: Mutex::default(),
        })
    }

    /// Serves an image under `repository:tag`; returns its manifest's digest.
    pub fn serve(&self, name: &str, image: &Layout) -> Digest {
        let mut files = image.files();
        let index: Value = serde_json::from_slice(&files.remove("index.json").unwrap()).unwrap();
        files.remove("oci-layout");
        let mut blobs = self.blobs.lock().unwrap();
        for (path, bytes) in files {
            blobs.insert(format!("sha256:{}", path.rsplit('/').next().unwrap()), bytes.into());
        }
        let digest: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
        self.tags.lock().unwrap().insert(name.to_owned(), digest.clone());
        digest
    }

    /// Serves an index of what is served already, with the descriptors' platforms.
    pub fn serve_index(&self, name: &str, entries: &[(&Digest, Value)]) -> Digest {
        let manifests: Vec<Value> = entries
            .iter()
            .map(|(digest, platform)| {
                let size = self.blobs.lock().unwrap().get(digest.as_str()).map_or(7, Bytes::len);
                let mut entry = json!({ "digest": digest.as_str(), "size": size });
                if !platform.is_null() {
                    entry["platform"] = platform.clone();
                }
                entry
            })
            .collect();
        self.serve_document(name, json!({ "schemaVersion": 2, "manifests": manifests }).to_string().as_bytes())
    }

    pub fn serve_document(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = kit::digest(bytes);
        self.put(&digest, bytes);
        self.tags.lock().unwrap().insert(name.to_owned(), digest.clone());
        digest
    }

    /// Puts bytes under a digest, which may be wrong.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) {
        self.blobs.lock().unwrap().insert(digest.to_string(), Bytes::copy_from_slice(bytes));
    }

    /// A repository, without a pull around it.
    pub async fn open_for_test(self: &Arc<Self>) -> Arc<dyn Source> {
        self.open(&"reg.example/app:1".parse().unwrap(), &Credentials::anonymous()).await.unwrap()
    }

    pub fn transfers_of(&self, digest: &Digest) -> usize {
        self.transfers.lock().unwrap().iter().filter(|d| *d == digest).count()
    }

    fn get(&self, digest: &Digest) -> Result<Bytes, RegistryError> {
        let found = self.blobs.lock().unwrap().get(digest.as_str()).cloned();
        found.ok_or_else(|| RegistryError::new(RegistryErrorKind::NotFound, format!("it has no {digest}")))
    }
}

impl Registry for Arc<Fake> {
    fn open<'a>(&'a self, reference: &'a Reference, credentials: &'a Credentials) -> Answer<'a, Arc<dyn Source>> {
        Box::pin(async move {
            self.opened.lock().unwrap().push(credentials.clone());
            if self.allowed.lock().unwrap().as_ref().is_some_and(|allowed| allowed != credentials) {
                return Err(RegistryError::new(RegistryErrorKind::Unauthorized, "who are you?"));
            }
            Ok(Arc::new(Repository { fake: Arc::clone(self), reference: reference.clone() }) as Arc<dyn Source>)
        })
    }
}

#[derive(Debug)]
struct Repository {
    fake: Arc<Fake>,
    reference: Reference,
}

impl Repository {
    fn digest(&self) -> Result<Digest, RegistryError> {
        if let Some(digest) = self.reference.digest() {
            return Ok(digest.clone());
        }
        let name = format!("{}:{}", self.reference.repository(), self.reference.tag().unwrap());
        let found = self.fake.tags.lock().unwrap().get(&name).cloned();
        found.ok_or_else(|| RegistryError::new(RegistryErrorKind::NotFound, format!("there is no {name}")))
    }

    fn document(&self, digest: &Digest) -> Result<Document, RegistryError> {
        self.fake.manifests.fetch_add(1, Ordering::Relaxed);
        Ok(Document { bytes: self.fake.get(digest)?, digest: digest.clone() })
    }
}

impl Source for Repository {
    fn resolve(&self) -> Answer<'_, Digest> {
        self.fake.heads.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { self.digest() })
    }

    fn manifest(&self) -> Answer<'_, Document> {
        Box::pin(async { self.document(&self.digest()?) })
    }

    fn manifest_at<'a>(&'a self, digest: &'a Digest, _: u64) -> Answer<'a, Document> {
        Box::pin(async move { self.document(digest) })
    }

    fn small_blob<'a>(&'a self, digest: &'a Digest, _: u64, _: u64) -> Answer<'a, Bytes> {
        Box::pin(async move { self.fake.get(digest) })
    }

    fn blob(&self, digest: &Digest, size: u64, range: Option<Range<u64>>) -> Box<dyn Transfer> {
        self.fake.transfers.lock().unwrap().push(digest.clone());
        self.fake.ranges.lock().unwrap().extend(range.clone());
        let now = self.fake.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.fake.most_under_way.fetch_max(now, Ordering::Relaxed);
        let range = range.unwrap_or(0..size);
        Box::new(Part {
            fake: Arc::clone(&self.fake),
            digest: digest.clone(),
            at: range.start,
            end: range.end,
            chunks: 0,
            is_refused: range.start > 0 && self.fake.no_ranges.load(Ordering::Relaxed),
        })
    }

    fn distrust(&self, digest: &Digest) -> bool {
        let other = self.fake.mirrored.lock().unwrap().remove(digest);
        let is_another = other.is_some();
        other.into_iter().for_each(|bytes| self.fake.put(digest, &bytes));
        is_another
    }

    fn rest(&self, digest: &Digest, size: u64, from: u64) -> Box<dyn Transfer> {
        self.fake.rests.fetch_add(1, Ordering::Relaxed);
        self.fake.transfers.lock().unwrap().push(digest.clone());
        self.fake.under_way.fetch_add(1, Ordering::Relaxed);
        let (fake, digest) = (Arc::clone(&self.fake), digest.clone());
        Box::new(Part { fake, digest, at: from, end: size, chunks: 0, is_refused: false })
    }
}

struct Part {
    fake: Arc<Fake>,
    digest: Digest,
    at: u64,
    end: u64,
    chunks: usize,
    is_refused: bool,
}

impl Transfer for Part {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async {
            if self.at >= self.end {
                return Ok(None);
            }
            if self.is_refused {
                return Err(RegistryError::new(RegistryErrorKind::NoRanges, "it has no ranges"));
            }
            self.chunks += 1;
            if self.chunks > 1 && self.fake.stalled.lock().unwrap().contains(&self.digest) {
                std::future::pending::<()>().await;
            }
            if self.chunks > 1
                && let Some(kind) = self.fake.broken.lock().unwrap().get(&self.digest)
            {
                return Err(RegistryError::new(*kind, "the connection broke"));
            }
            self.fake.gate.acquire().await.unwrap().forget();
            let delay = *self.fake.delay.lock().unwrap();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let blob = self.fake.get(&self.digest)?;
            let start = usize::try_from(self.at).unwrap();
            let most = self.fake.chunk_bytes.load(Ordering::Relaxed);
            let end = usize::try_from(self.end).unwrap().min(start + most);
            // A blob that is too short is padded: whoever hashes must notice.
            let mut bytes = blob.slice(start.min(blob.len())..end.min(blob.len()));
            if bytes.len() < end - start {
                bytes = [&bytes[..], &vec![0; end - start - bytes.len()]].concat().into();
            }
            self.at = end as u64;
            Ok(Some(bytes))
        })
    }

    fn has_ranges(&self) -> bool {
        self.at > 0
    }

    fn stop_at(&mut self, end: u64) {
        self.end = end;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.fake.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
