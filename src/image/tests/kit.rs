//! Makes archives: good ones from a few words, bad ones by changing any document.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::id::Digest;

#[path = "../../../rootfs-fixtures/fixtures/mod.rs"]
mod fixtures;

/// Fails where files could not get owners and devices.
#[track_caller]
pub fn root_only() {
    assert!(nix::unistd::geteuid().is_root(), "this test makes devices and changes owners: run it as root");
}

/// The path of an image of the fixtures, built once per test process.
pub fn fixture(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap();
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/target/rootfs-fixtures");
    let build = || fixtures::write(Path::new(dir), &[name]).unwrap().remove(0);
    built.entry(name.to_owned()).or_insert_with(build).clone()
}

/// Waits for something a thread does.
#[track_caller]
pub fn eventually(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

/// The tar of a layer, entry by entry, honest or not.
pub struct Layer(tar::Builder<Vec<u8>>);

/// A finished layer.
#[derive(Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    pub diff_id: Digest,
}

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(1_600_000_000);
        header
    }

    /// An entry with a name that the library would refuse to write.
    pub fn raw(mut self, mut header: Header, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        let gnu = header.as_gnu_mut().unwrap();
        assert!(name.len() < 100 && link.len() < 100);
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(Self::header(EntryType::Regular, content.len() as u64), name.as_bytes(), b"", content)
    }

    pub fn directory(self, name: &str, mode: u32) -> Self {
        let mut header = Self::header(EntryType::Directory, 0);
        header.set_mode(mode);
        self.raw(header, name.as_bytes(), b"", b"")
    }

    pub fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.raw(Self::header(kind, 0), name.as_bytes(), target.as_bytes(), b"")
    }

    pub fn device(self, name: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(EntryType::Char, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(header, name.as_bytes(), b"", b"")
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub fn build(self) -> Blob {
        self.compressed("gzip")
    }

    pub fn compressed(self, how: &str) -> Blob {
        Blob::of(self.tar(), how)
    }
}

impl Blob {
    pub fn of(plain: Vec<u8>, how: &str) -> Self {
        let diff_id = digest(&plain);
        let bytes = match how {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain).unwrap();
                encoder.finish().unwrap()
            }
            "zstd" => zstd::stream::encode_all(plain.as_slice(), 1).unwrap(),
            _ => plain,
        };
        Self { bytes, diff_id }
    }
}

/// One image of an OCI layout; its documents can be spoilt before it is written.
pub struct Layout {
    pub layers: Vec<Blob>,
    pub config: Value,
    /// Made from the layers unless set.
    pub manifest: Option<Value>,
    /// Added to the descriptor in the index.
    pub descriptor: Value,
}

impl Layout {
    pub fn of(layers: Vec<Blob>) -> Self {
        let architecture = super::super::manifest::Platform::host().architecture;
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self { config, layers, manifest: None, descriptor: json!({}) }
    }

    pub fn architecture(mut self, name: &str) -> Self {
        self.config["architecture"] = json!(name);
        self.platform("linux", name)
    }

    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        self
    }

    pub fn named(mut self, name: &str) -> Self {
        self.descriptor["annotations"] = json!({ "io.containerd.image.name": name });
        self
    }

    fn put(&self, files: &mut BTreeMap<String, Vec<u8>>) -> Value {
        let config = self.config.to_string().into_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| add(files, "application/vnd.oci.image.layer.v1.tar+gzip", l.bytes.clone()))
            .collect();
        let manifest = self.manifest.clone().unwrap_or_else(|| {
            json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": add(files, "application/vnd.oci.image.config.v1+json", config),
                "layers": layers,
            })
        });
        let mut descriptor =
            add(files, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        for (key, value) in self.descriptor.as_object().unwrap() {
            descriptor[key] = value.clone();
        }
        descriptor
    }

    /// All files of the layout, to be spoilt.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        layout_files(std::slice::from_ref(self))
    }

    pub fn tar(&self) -> tempfile::NamedTempFile {
        archive(&self.files())
    }

    pub fn folder(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in self.files() {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        dir
    }

    pub fn several(images: Vec<Self>) -> tempfile::NamedTempFile {
        archive(&layout_files(&images))
    }

    /// An index inside the layout's index.
    pub fn index(images: Vec<Self>, name: &str) -> tempfile::NamedTempFile {
        let mut files = BTreeMap::new();
        let manifests: Vec<Value> = images.iter().map(|i| i.put(&mut files)).collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        let mut descriptor = add(&mut files, "application/vnd.oci.image.index.v1+json", index.to_string().into_bytes());
        descriptor["annotations"] = json!({ "io.containerd.image.name": name });
        front(&mut files, &[descriptor]);
        archive(&files)
    }
}

fn layout_files(images: &[Layout]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let manifests: Vec<Value> = images.iter().map(|i| i.put(&mut files)).collect();
    front(&mut files, &manifests);
    files
}

pub fn front(files: &mut BTreeMap<String, Vec<u8>>, manifests: &[Value]) {
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    files.insert("index.json".to_owned(), index.to_string().into_bytes());
    files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
}

/// Adds a blob and returns its descriptor.
pub fn add(files: &mut BTreeMap<String, Vec<u8>>, media_type: &str, bytes: Vec<u8>) -> Value {
    let digest = digest(&bytes);
    let descriptor = json!({ "mediaType": media_type, "digest": digest.as_str(), "size": bytes.len() });
    files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
    descriptor
}

pub fn archive(files: &BTreeMap<String, Vec<u8>>) -> tempfile::NamedTempFile {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Layer::header(EntryType::Regular, bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&tar.into_inner().unwrap()).unwrap();
    file
}

/// An archive as `docker save` writes it, and the image's id.
pub fn docker_archive(layers: Vec<Blob>, tags: &[&str]) -> (tempfile::NamedTempFile, Digest) {
    let config = Layout::of(layers.clone()).config.to_string().into_bytes();
    let id = digest(&config);
    let mut files = BTreeMap::new();
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        files.insert(name.clone(), layer.bytes);
    }
    let config_name = format!("{}.json", id.hex());
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    files.insert(config_name, config);
    files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
    (archive(&files), id)
}
