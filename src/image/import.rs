//! From an archive to images in the store: find the images, unpack the layers that are missing, write them down.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::config::{self, Parsed};
use super::error::ImageError;
use super::limits::Limits;
use super::manifest::{self, Descriptor, DockerImage, Document, Offers, Platform};
use super::record::{ImageRecord, LayerOfImage};
use super::reference::Reference;
use super::stack;
use super::store::Inner;
use super::unpack::Expected;
use crate::id::Digest;

/// An image found in an archive; only its documents were read so far.
#[derive(Debug)]
pub(super) struct Found {
    pub id: Digest,
    /// Of what its names mean, a manifest or an index; none in archives of `docker save`.
    pub digest: Option<Digest>,
    manifest: Option<Box<RawValue>>,
    config: Vec<u8>,
    /// Lowest first.
    pub layers: Vec<FoundLayer>,
    pub names: BTreeSet<Reference>,
}

/// A layer by its name in the archive, or its digest in a registry.
#[derive(Debug, Clone)]
pub(super) struct FoundLayer {
    pub blob: String,
    pub expected: Expected,
}

/// Imports an archive; returns the ids of its images.
pub(super) fn import(store: &Inner, path: &Path, name: Option<&str>) -> Result<Vec<Digest>, ImageError> {
    let name: Option<Reference> = name.map(str::parse).transpose()?;
    let archive = Archive::open(path, store.layers.dir(), &store.limits)?;
    let mut images =
        Finder { archive: &archive, limits: &store.limits, host: Platform::host(), manifests: 0 }.find()?;
    if let Some(name) = name {
        match images.as_mut_slice() {
            [image] => image.names = BTreeSet::from([name]),
            images => return Err(ImageError::Ambiguous { images: images.len() }),
        }
    }
    // Held until the images are visible, or for good given back.
    let (keys, hold) = stack::make(store, &archive, &images)?;
    for (image, keys) in images.iter().zip(keys) {
        store.publish(record(image, keys)?)?;
    }
    drop(hold);
    Ok(images.into_iter().map(|i| i.id).collect())
}

pub(super) fn record(image: &Found, keys: Vec<String>) -> Result<ImageRecord, ImageError> {
    let config = serde_json::from_slice(&image.config).map_err(|e| malformed("the configuration", e.to_string()))?;
    let diff_ids = image.layers.iter().map(|l| l.expected.diff_id.clone());
    let layers = diff_ids.zip(keys).map(|(diff_id, key)| LayerOfImage { diff_id, key }).collect();
    let mut record = ImageRecord::new(image.id.clone(), layers, image.manifest.clone(), config);
    record.tags = image.names.iter().filter_map(Reference::tagged).collect();
    if let Some(digest) = &image.digest {
        record.digests = image.names.iter().map(|name| name.with_digest(digest)).collect();
    }
    Ok(record)
}

struct Finder<'a> {
    archive: &'a Archive,
    limits: &'a Limits,
    host: Platform,
    /// Documents looked at so far: an index can name the same one again and again.
    manifests: usize,
}

impl Finder<'_> {
    fn find(&mut self) -> Result<Vec<Found>, ImageError> {
        if self.archive.has("index.json") {
            return self.layout();
        }
        if self.archive.has("manifest.json") {
            return self.docker();
        }
        let reason = "it has no index.json and no manifest.json".to_owned();
        Err(ImageError::Format { path: self.archive.path().to_owned(), reason })
    }

    /// The images of an OCI layout.
    fn layout(&mut self) -> Result<Vec<Found>, ImageError> {
        let bytes = self.archive.document("index.json", self.limits.manifest_bytes)?;
        let Document::Index(entries) = manifest::parse(&bytes, "").map_err(|r| malformed("index.json", r))? else {
            return Err(malformed("index.json", "it is a manifest, not an index".to_owned()));
        };
        let mut images: Vec<Found> = Vec::new();
        let mut offered = Offers::default();
        for entry in entries.iter().filter(|e| !e.is_attestation()) {
            let Some(mut image) = self.resolve(entry, 0, &mut offered)? else {
                continue;
            };
            image.names = annotated_name(entry)?.into_iter().collect();
            image.digest = Some(entry.digest.clone());
            match images.iter_mut().find(|known| known.id == image.id && known.digest == image.digest) {
                Some(known) => known.names.append(&mut image.names),
                None => images.push(image),
            }
        }
        if images.is_empty() {
            return Err(ImageError::Platform { wanted: self.host.to_string(), offered: offered.into_list() });
        }
        Ok(images)
    }

    /// Follows a descriptor to the image for this machine; none if it has none.
    fn resolve(&mut self, entry: &Descriptor, depth: usize, offered: &mut Offers) -> Result<Option<Found>, ImageError> {
        if let Some(platform) = &entry.platform
            && !platform.suits(&self.host)
        {
            offered.add(&platform.to_string());
            return Ok(None);
        }
        self.manifests += 1;
        let too_many = |what, limit| Err(ImageError::Limit { object: "the archive".to_owned(), what, limit });
        if self.manifests > self.limits.manifests {
            return too_many("manifests", self.limits.manifests as u64);
        }
        if depth > self.limits.index_depth {
            return too_many("indexes inside each other", self.limits.index_depth as u64);
        }
        let bytes = self.verified(entry, self.limits.manifest_bytes)?;
        let name = format!("manifest {}", entry.digest);
        match manifest::parse(&bytes, &entry.media_type).map_err(|r| malformed(&name, r))? {
            Document::Index(entries) => {
                for entry in entries.iter().filter(|e| !e.is_attestation()) {
                    if let Some(found) = self.resolve(entry, depth + 1, offered)? {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            }
            Document::Manifest { config, layers } => {
                let manifest = serde_json::from_slice(&bytes).map_err(|e| malformed(&name, e.to_string()))?;
                self.image(&name, manifest, &config, &layers, offered)
            }
        }
    }

    fn image(
        &self,
        name: &str,
        manifest: Box<RawValue>,
        config: &Descriptor,
        layers: &[Descriptor],
        offered: &mut Offers,
    ) -> Result<Option<Found>, ImageError> {
        if let Some(artifact) = config.artifact() {
            offered.add(&artifact);
            return Ok(None);
        }
        let bytes = self.verified(config, self.limits.config_bytes)?;
        match assemble(self.limits, &self.host, name, manifest, (&config.digest, bytes), layers)? {
            Ok(found) => Ok(Some(found)),
            Err(Offered(platform)) => {
                offered.add(&platform);
                Ok(None)
            }
        }
    }

    /// The images of an archive of `docker save`.
    fn docker(&self) -> Result<Vec<Found>, ImageError> {
        let bytes = self.archive.document("manifest.json", self.limits.manifest_bytes)?;
        let entries: Vec<DockerImage> =
            serde_json::from_slice(&bytes).map_err(|e| malformed("manifest.json", e.to_string()))?;
        if entries.is_empty() || entries.len() > self.limits.manifests {
            return Err(malformed("manifest.json", format!("it names {} images", entries.len())));
        }
        entries.into_iter().map(|entry| self.docker_image(entry)).collect()
    }

    fn docker_image(&self, entry: DockerImage) -> Result<Found, ImageError> {
        let name = clip(&entry.config);
        let bytes = self.archive.document(&entry.config, self.limits.config_bytes)?;
        let id = hash(&bytes);
        // The file is called by its digest.
        let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
            && expected != id
        {
            return Err(ImageError::DigestMismatch { object: format!("configuration {name}"), expected, actual: id });
        }
        let parsed = config::parse(&bytes).map_err(|r| malformed(&format!("configuration {name}"), r))?;
        if !suits(&self.host, &parsed) {
            let mut offered = Offers::default();
            offered.add(&format!("{}/{}", parsed.os, parsed.architecture));
            return Err(ImageError::Platform { wanted: self.host.to_string(), offered: offered.into_list() });
        }
        count_layers(self.limits, "manifest.json", entry.layers.len(), &parsed)?;
        let layer = |(blob, diff_id)| FoundLayer { blob, expected: Expected { blob: None, diff_id } };
        let layers = entry.layers.into_iter().zip(parsed.diff_ids).map(layer).collect();
        let names = entry.repo_tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?;
        Ok(Found { id, digest: None, manifest: None, config: bytes, layers, names })
    }

    /// Reads a document and compares it with its descriptor.
    fn verified(&self, descriptor: &Descriptor, most: u64) -> Result<Vec<u8>, ImageError> {
        let object = || format!("blob {}", descriptor.digest);
        let bytes = self.archive.document(&blob_name(&descriptor.digest), most)?;
        if bytes.len() as u64 != descriptor.size {
            let (expected, actual) = (descriptor.size, bytes.len() as u64);
            return Err(ImageError::SizeMismatch { object: object(), expected, actual });
        }
        let actual = hash(&bytes);
        if actual != descriptor.digest {
            return Err(ImageError::DigestMismatch { object: object(), expected: descriptor.digest.clone(), actual });
        }
        Ok(bytes)
    }
}

/// What an image is for instead of this machine.
pub(super) struct Offered(pub String);

/// Makes an image of its manifest and configuration, both already compared with their digests.
pub(super) fn assemble(
    limits: &Limits,
    host: &Platform,
    name: &str,
    manifest: Box<RawValue>,
    (id, config): (&Digest, Vec<u8>),
    layers: &[Descriptor],
) -> Result<Result<Found, Offered>, ImageError> {
    let parsed = config::parse(&config).map_err(|r| malformed(&format!("configuration {id}"), r))?;
    if !suits(host, &parsed) {
        return Ok(Err(Offered(format!("{}/{}", parsed.os, parsed.architecture))));
    }
    count_layers(limits, name, layers.len(), &parsed)?;
    if let Some(reason) = layers.iter().find_map(Descriptor::no_layer) {
        return Err(malformed(name, reason));
    }
    let layer = |(descriptor, diff_id): (&Descriptor, Digest)| FoundLayer {
        blob: blob_name(&descriptor.digest),
        expected: Expected { blob: Some((descriptor.digest.clone(), descriptor.size)), diff_id },
    };
    let layers = layers.iter().zip(parsed.diff_ids).map(layer).collect();
    let names = BTreeSet::new();
    Ok(Ok(Found { id: id.clone(), digest: None, manifest: Some(manifest), config, layers, names }))
}

fn count_layers(limits: &Limits, name: &str, layers: usize, config: &Parsed) -> Result<(), ImageError> {
    let diff_ids = config.diff_ids.len();
    if layers > limits.layers {
        let limit = limits.layers as u64;
        return Err(ImageError::Limit { object: name.to_owned(), what: "layers", limit });
    }
    match layers {
        0 => Err(malformed(name, "it has no layers".to_owned())),
        _ if layers != diff_ids => {
            Err(malformed(name, format!("it has {layers} layers, its configuration {diff_ids}")))
        }
        _ => Ok(()),
    }
}

/// Whether an image's own word fits this machine; what it does not say is taken on trust.
fn suits(host: &Platform, config: &Parsed) -> bool {
    (config.os.is_empty() || config.os == host.os)
        && (config.architecture.is_empty() || config.architecture == host.architecture)
}

/// The name an index gives an image: in full by containerd, docker and buildkit; by others often a tag alone, which
/// names nothing.
fn annotated_name(entry: &Descriptor) -> Result<Option<Reference>, ImageError> {
    let annotation = |key: &str| entry.annotations.get(key);
    let full = annotation("io.containerd.image.name")
        .or_else(|| annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':'])));
    Ok(full.map(|name| name.parse()).transpose()?)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(super) fn hash(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

pub(super) fn malformed(document: &str, reason: String) -> ImageError {
    ImageError::Document { document: document.to_owned(), reason }
}

pub(super) fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}
