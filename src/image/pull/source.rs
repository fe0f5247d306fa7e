//! Where a pull reads from, as the pipeline sees it.

use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::id::Digest;
use crate::image::reference::Reference;
use crate::image::registry::{Blob, Credentials, RawManifest, RegistryClient, RegistryError, Repository};

/// What a registry answers, some time.
pub(in crate::image) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// All registries, by the hosts of references.
pub(in crate::image) trait Registry: Debug + Send + Sync {
    /// The repository of a reference, as these credentials may read it.
    fn open<'a>(&'a self, reference: &'a Reference, credentials: &'a Credentials) -> Answer<'a, Arc<dyn Source>>;
}

/// One repository, and in it what the reference names.
pub(in crate::image) trait Source: Debug + Send + Sync {
    /// The digest of what the reference names, by one small request.
    fn resolve(&self) -> Answer<'_, Digest>;
    /// What the reference names: a manifest or an index.
    fn manifest(&self) -> Answer<'_, Document>;
    /// A document named by another one.
    fn manifest_at<'a>(&'a self, digest: &'a Digest, size: u64) -> Answer<'a, Document>;
    /// A whole blob of at most `most` bytes.
    fn small_blob<'a>(&'a self, digest: &'a Digest, size: u64, most: u64) -> Answer<'a, Bytes>;
    /// A blob, or a part of it. Nothing is sent yet.
    fn blob(&self, digest: &Digest, size: u64, range: Option<Range<u64>>) -> Box<dyn Transfer>;
    /// A blob from this offset on; what a server without ranges sends before that is passed over.
    fn rest(&self, digest: &Digest, size: u64, from: u64) -> Box<dyn Transfer>;
    /// Takes a blob no more from the hosts it came from, as its bytes were wrong; whether there is another host.
    fn distrust(&self, digest: &Digest) -> bool;
}

/// A manifest or index.
#[derive(Debug, Clone)]
pub(in crate::image) struct Document {
    pub bytes: Bytes,
    pub digest: Digest,
}

/// A blob on its way. Not hashed.
pub(in crate::image) trait Transfer: Send {
    /// The next bytes; none exactly when all came.
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>>;
    /// Whether parts can be asked for; known once bytes came.
    fn has_ranges(&self) -> bool;
    /// Ends the transfer early, at this offset of the blob.
    fn stop_at(&mut self, end: u64);
}

impl Registry for RegistryClient {
    fn open<'a>(&'a self, reference: &'a Reference, credentials: &'a Credentials) -> Answer<'a, Arc<dyn Source>> {
        Box::pin(async move { Ok(Arc::new(Self::open(self, reference, credentials).await?) as Arc<dyn Source>) })
    }
}

impl Source for Repository {
    fn resolve(&self) -> Answer<'_, Digest> {
        Box::pin(async move { Ok(Self::resolve(self).await?.digest) })
    }

    fn manifest(&self) -> Answer<'_, Document> {
        Box::pin(async move { Ok(Self::manifest(self).await?.into()) })
    }

    fn manifest_at<'a>(&'a self, digest: &'a Digest, size: u64) -> Answer<'a, Document> {
        Box::pin(async move { Ok(Self::manifest_at(self, digest, size).await?.into()) })
    }

    fn small_blob<'a>(&'a self, digest: &'a Digest, size: u64, most: u64) -> Answer<'a, Bytes> {
        Box::pin(Self::small_blob(self, digest, size, most))
    }

    fn blob(&self, digest: &Digest, size: u64, range: Option<Range<u64>>) -> Box<dyn Transfer> {
        Box::new(Self::blob(self, digest, size, range))
    }

    fn rest(&self, digest: &Digest, size: u64, from: u64) -> Box<dyn Transfer> {
        Box::new(Self::blob(self, digest, size, Some(from..size)).passing_over())
    }

    fn distrust(&self, digest: &Digest) -> bool {
        Self::distrust(self, digest)
    }
}

impl Transfer for Blob {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(Self::chunk(self))
    }

    fn has_ranges(&self) -> bool {
        self.ranges()
    }

    fn stop_at(&mut self, end: u64) {
        Self::stop_at(self, end);
    }
}

impl From<RawManifest> for Document {
    fn from(raw: RawManifest) -> Self {
        Self { bytes: raw.bytes, digest: raw.digest }
    }
}
