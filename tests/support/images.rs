//! Images to import: the catalogue's, written once a test run, and ones made up by a test.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::fixtures;

static WRITTEN: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);

/// The archive of an image of the catalogue (`rootfs-fixtures --list`).
pub fn fixture(name: &str) -> PathBuf {
    let mut written = WRITTEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = written.get(name) {
        return path.clone();
    }
    // Other test binaries may be at it too.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("images-{}", std::process::id()));
    let path = fixtures::write(&dir, &[name]).expect("write a fixture image").remove(0);
    written.insert(name.to_owned(), path.clone());
    path
}

/// One thing in a made-up layer.
pub enum Entry<'a> {
    /// A directory of this mode.
    Dir(&'a str, u32),
    /// A file of this mode.
    File(&'a str, u32, &'a [u8]),
    /// A symbolic link: path, target.
    Link(&'a str, &'a str),
    /// A named pipe.
    Fifo(&'a str),
    /// The static probe program at this path.
    Probe(&'a str),
}

/// Writes a `docker save` archive of one image, `docker.io/library/<name>:latest`, with one layer.
pub fn custom_image(dir: &Path, name: &str, config: &serde_json::Value, entries: &[Entry]) -> PathBuf {
    let layer = layer(entries);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [format!("docker.io/library/{name}:latest")],
        "Layers": ["layer.tar"],
    }]);
    let path = dir.join(format!("{name}.tar"));
    let mut archive = tar::Builder::new(File::create(&path).expect("create an archive"));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = header(tar::EntryType::Regular, 0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).expect("write an archive");
    };
    add("layer.tar", &layer);
    add("config.json", config.to_string().as_bytes());
    add("manifest.json", manifest.to_string().as_bytes());
    archive.into_inner().expect("finish an archive");
    path
}

/// The tar of a layer.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for entry in entries {
        let done = match entry {
            Entry::Dir(path, mode) => layer.append_data(&mut header(tar::EntryType::Directory, *mode), path, &b""[..]),
            Entry::Fifo(path) => layer.append_data(&mut header(tar::EntryType::Fifo, 0o644), path, &b""[..]),
            Entry::Link(path, to) => layer.append_link(&mut header(tar::EntryType::Symlink, 0o777), path, to),
            Entry::File(path, mode, body) => append_file(&mut layer, path, *mode, body),
            Entry::Probe(path) => append_file(&mut layer, path, 0o755, &probe()),
        };
        done.expect("a layer in memory");
    }
    layer.into_inner().expect("a layer in memory")
}

fn append_file(layer: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, body: &[u8]) -> std::io::Result<()> {
    let mut header = header(tar::EntryType::Regular, mode);
    header.set_size(body.len() as u64);
    layer.append_data(&mut header, path, body)
}

/// The probe as the catalogue's image has it.
fn probe() -> Vec<u8> {
    static PROBE: LazyLock<Vec<u8>> =
        LazyLock::new(|| fixtures::programs::program("probe").expect("compile the probe"));
    PROBE.clone()
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A directory for a test's own files below the build's.
pub fn scratch() -> tempfile::TempDir {
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).expect("create the build's temporary directory");
    tempfile::Builder::new().prefix("node-").tempdir().expect("create a temporary directory")
}
