//! From a reference to the image for this machine: indexes, a manifest, a configuration.

use std::collections::BTreeSet;

use super::error::PullError;
use super::source::{Document, Source};
use crate::id::Digest;
use crate::image::error::ImageError;
use crate::image::import::{Found, Offered, assemble, hash, malformed};
use crate::image::limits::Limits;
use crate::image::manifest::{self, Descriptor, Document as Parsed, Offers, Platform};
use crate::image::reference::Reference;

/// Follows what the reference names (`top`) to the image for this machine.
pub(super) async fn find(
    source: &dyn Source,
    top: Document,
    reference: &Reference,
    limits: &Limits,
) -> Result<Found, PullError> {
    let mut finder =
        Finder { source, limits, host: Platform::host(), seen: BTreeSet::new(), offered: Offers::default() };
    let digest = top.digest.clone();
    // As in an index, depth first; the nearest is last.
    let mut todo = vec![Next { document: Some(top), descriptor: None, depth: 0 }];
    while let Some(next) = todo.pop() {
        if let Some(mut image) = finder.step(next, &mut todo).await? {
            image.digest = Some(digest);
            image.names = BTreeSet::from([reference.clone()]);
            return Ok(image);
        }
    }
    Err(ImageError::Platform { wanted: finder.host.to_string(), offered: finder.offered.into_list() }.into())
}

struct Finder<'a> {
    source: &'a dyn Source,
    limits: &'a Limits,
    host: Platform,
    /// Documents looked at: an index can name the same one again and again, or in a circle.
    seen: BTreeSet<Digest>,
    offered: Offers,
}

/// A document to be looked at; fetched, or by its descriptor.
struct Next {
    document: Option<Document>,
    descriptor: Option<Descriptor>,
    depth: usize,
}

impl Finder<'_> {
    async fn step(&mut self, next: Next, todo: &mut Vec<Next>) -> Result<Option<Found>, PullError> {
        let document = match (next.document, &next.descriptor) {
            (Some(document), _) => document,
            (None, Some(descriptor)) => {
                if !self.seen.insert(descriptor.digest.clone()) {
                    return Ok(None);
                }
                self.bounded(descriptor, self.limits.manifest_bytes)?;
                self.source.manifest_at(&descriptor.digest, descriptor.size).await?
            }
            (None, None) => return Ok(None),
        };
        let name = format!("manifest {}", document.digest);
        checked(&name, &document.bytes, &document.digest)?;
        if self.seen.len() >= self.limits.manifests {
            let limit = self.limits.manifests as u64;
            return Err(ImageError::Limit { object: name, what: "manifests", limit }.into());
        }
        // What the descriptor announced binds the document; what the registry says binds nobody.
        let announced = next.descriptor.as_ref().map_or("", |d| d.media_type.as_str());
        match manifest::parse(&document.bytes, announced).map_err(|reason| malformed(&name, reason))? {
            Parsed::Index(entries) => {
                if next.depth >= self.limits.index_depth {
                    let limit = self.limits.index_depth as u64;
                    return Err(ImageError::Limit { object: name, what: "indexes inside each other", limit }.into());
                }
                for entry in entries.into_iter().rev().filter(|entry| !entry.is_attestation()) {
                    match &entry.platform {
                        Some(platform) if !platform.suits(&self.host) => {
                            self.offered.add(&platform.to_string());
                        }
                        _ => todo.push(Next { document: None, descriptor: Some(entry), depth: next.depth + 1 }),
                    }
                }
                Ok(None)
            }
            Parsed::Manifest { config, layers } => self.image(&name, &document, &config, &layers).await,
        }
    }

    async fn image(
        &mut self,
        name: &str,
        document: &Document,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Option<Found>, PullError> {
        if let Some(artifact) = config.artifact() {
            self.offered.add(&artifact);
            return Ok(None);
        }
        self.bounded(config, self.limits.config_bytes)?;
        let bytes = self.source.small_blob(&config.digest, config.size, self.limits.config_bytes).await?;
        checked(&format!("configuration {}", config.digest), &bytes, &config.digest)?;
        let manifest = serde_json::from_slice(&document.bytes).map_err(|e| malformed(name, e.to_string()))?;
        match assemble(self.limits, &self.host, name, manifest, (&config.digest, bytes.to_vec()), layers)? {
            Ok(found) => Ok(Some(found)),
            Err(Offered(platform)) => {
                self.offered.add(&platform);
                Ok(None)
            }
        }
    }

    fn bounded(&self, descriptor: &Descriptor, limit: u64) -> Result<(), ImageError> {
        if descriptor.size > limit {
            return Err(ImageError::Limit { object: format!("blob {}", descriptor.digest), what: "bytes", limit });
        }
        Ok(())
    }
}

/// The client compares digests too; what becomes visible must not depend on that.
fn checked(object: &str, bytes: &[u8], expected: &Digest) -> Result<(), ImageError> {
    let actual = hash(bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(ImageError::DigestMismatch { object: object.to_owned(), expected: expected.clone(), actual })
}
