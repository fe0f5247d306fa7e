//! The images pulled: made once, straight into the storage layout of Docker's registry.
//!
//! A layer is what layers are mostly made of: many files of a few KiB, some of a MiB or more, in nested directories,
//! of text that gzip makes a bit more than a third of, as it does of programs. All of it follows from a seed, so every run pulls the same.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::Result;

/// Layers of `eight`, and the bytes of files in each.
const EIGHT: (u64, u64) = (8, 125_000_000);
const ONE: (u64, u64) = (1, 500_000_000);
const SIXTY: (u64, u64) = (60, 5_000_000);
/// Layers of `eight` that `seven-shared` has too.
const SHARED: usize = 7;
/// Written last.
const DONE: &str = "done.json";

/// How many bytes the files of each layer of each image are.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Unpacked(Vec<(String, Vec<u64>)>);

impl Unpacked {
    /// Of an image without its lowest `shared` layers.
    pub fn bytes(&self, image: &str, shared: usize) -> u64 {
        let layers = self.0.iter().find(|(name, _)| name == image);
        layers.map_or(0, |(_, layers)| layers.iter().skip(shared).sum())
    }
}

#[derive(Debug, Clone)]
struct Layer {
    digest: String,
    size: u64,
    diff_id: String,
    /// Of its files, each rounded up to blocks of the disk.
    unpacked: u64,
}

/// Makes the images below `dir`, a `1/scale` of their size, unless they are there.
pub fn prepare(dir: &Path, scale: u64) -> Result<Unpacked> {
    if let Ok(done) = fs::read(dir.join(DONE)) {
        return Ok(serde_json::from_slice(&done)?);
    }
    eprintln!("making the images below {} …", dir.display());
    fs::remove_dir_all(dir).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    let storage = Storage { dir: dir.join("docker/registry/v2") };
    let eight = layers(&storage, 1000, EIGHT, scale)?;
    let last = layers(&storage, 2000, (1, EIGHT.1), scale)?;
    let seven_shared = [&eight[..SHARED], &last[..]].concat();
    let images = [
        ("eight", eight),
        ("seven-shared", seven_shared),
        ("one", layers(&storage, 3000, ONE, scale)?),
        ("sixty", layers(&storage, 4000, SIXTY, scale)?),
    ];
    let mut unpacked = Unpacked(Vec::new());
    for (name, layers) in images {
        storage.image(name, &layers)?;
        unpacked.0.push((name.to_owned(), layers.iter().map(|layer| layer.unpacked).collect()));
    }
    fs::write(dir.join(DONE), serde_json::to_vec(&unpacked)?)?;
    Ok(unpacked)
}

/// Makes layers on all processors.
fn layers(storage: &Storage, seed: u64, (count, bytes): (u64, u64), scale: u64) -> Result<Vec<Layer>> {
    let workers = thread::available_parallelism()?.get() as u64;
    let mut made: Vec<(u64, Layer)> = thread::scope(|scope| {
        let worker = |first: u64| {
            scope.spawn(move || {
                let mine = (first..count).step_by(usize::try_from(workers).unwrap_or(1));
                mine.map(|n| storage.layer(seed + n, bytes / scale).map(|layer| (n, layer)))
                    .collect::<io::Result<Vec<_>>>()
            })
        };
        let handles: Vec<_> = (0..workers).map(worker).collect();
        let results =
            handles.into_iter().map(|handle| handle.join().map_err(|_| io::Error::other("a worker panicked"))?);
        results.collect::<io::Result<Vec<_>>>().map(|parts| parts.concat())
    })?;
    made.sort_by_key(|(n, _)| *n);
    Ok(made.into_iter().map(|(_, layer)| layer).collect())
}

/// The registry's storage.
#[derive(Debug)]
struct Storage {
    dir: PathBuf,
}

impl Storage {
    /// Makes one layer of about so many bytes.
    fn layer(&self, seed: u64, bytes: u64) -> io::Result<Layer> {
        let temporary = self.dir.join(format!("tmp-{seed}"));
        fs::create_dir_all(&self.dir)?;
        let blob = Hashing::new(io::BufWriter::with_capacity(1 << 20, fs::File::create(&temporary)?));
        let mut tar = tar::Builder::new(Hashing::new(GzEncoder::new(blob, Compression::new(4))));
        let unpacked = fill(&mut tar, seed, bytes)?;
        let (gzip, diff_id, _) = tar.into_inner()?.finish();
        let (mut file, digest, size) = gzip.finish()?.finish();
        file.flush()?;
        let path = self.blob(&digest);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::rename(temporary, path)?;
        Ok(Layer { digest, size, diff_id, unpacked })
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(&digest[..2]).join(digest).join("data")
    }

    fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let digest = hex(&Sha256::digest(bytes));
        let path = self.blob(&digest);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(path, bytes)?;
        Ok(digest)
    }

    fn link(&self, path: &Path, digest: &str) -> io::Result<()> {
        let path = path.join("link");
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(path, format!("sha256:{digest}"))
    }

    /// Makes an image of these layers, called `name:latest`.
    fn image(&self, name: &str, layers: &[Layer]) -> Result<()> {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| format!("sha256:{}", l.diff_id)).collect::<Vec<_>>() },
        });
        let config = serde_json::to_vec(&config)?;
        let config_digest = self.put(&config)?;
        let descriptor = |kind: &str, digest: &str, size: u64| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config_digest, config.len() as u64),
            "layers": layers.iter().map(|l| descriptor("layer.v1.tar+gzip", &l.digest, l.size)).collect::<Vec<_>>(),
        });
        let manifest = self.put(&serde_json::to_vec(&manifest)?)?;
        let repository = self.dir.join("repositories").join(name);
        for digest in layers.iter().map(|l| &l.digest).chain([&config_digest]) {
            self.link(&repository.join("_layers/sha256").join(digest), digest)?;
        }
        let manifests = repository.join("_manifests");
        self.link(&manifests.join("revisions/sha256").join(&manifest), &manifest)?;
        self.link(&manifests.join("tags/latest/current"), &manifest)?;
        self.link(&manifests.join("tags/latest/index/sha256").join(&manifest), &manifest)?;
        Ok(())
    }
}

/// Writes files of about so many bytes; what they occupy.
fn fill(tar: &mut tar::Builder<impl Write>, seed: u64, bytes: u64) -> io::Result<u64> {
    let mut text = Text::new(seed);
    let (mut written, mut occupied, mut number) = (0, 0, 0_u64);
    let mut content = Vec::new();
    while written < bytes {
        // Nine small ones for each large one; the large ones are nine tenths of the bytes.
        let size = if number % 10 == 9 { 1_000_000 + text.below(3_000_000) } else { 1_000 + text.below(50_000) };
        let size = size.min(bytes - written).max(1);
        text.write(&mut content, usize::try_from(size).unwrap_or(0));
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000 + number);
        let path = format!("usr/lib/layer-{seed}/dir-{}/file-{number}", number / 50);
        tar.append_data(&mut header, path, &content[..])?;
        written += size;
        occupied += size.next_multiple_of(4096);
        number += 1;
    }
    Ok(occupied)
}

/// Text from a seed, of words that come again.
#[derive(Debug)]
struct Text {
    state: u64,
    words: Vec<Vec<u8>>,
}

impl Text {
    fn new(seed: u64) -> Self {
        let mut text = Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, words: Vec::new() };
        for _ in 0..4096 {
            let length = 3 + text.below(9);
            let word = (0..length).map(|_| text.next().to_le_bytes()[3]).collect();
            text.words.push(word);
        }
        text
    }

    /// xorshift64*
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    fn write(&mut self, content: &mut Vec<u8>, size: usize) {
        content.clear();
        while content.len() < size {
            // Some words are frequent, most are rare.
            let word = (self.below(4096) * self.below(4096) * self.below(4096)) >> 24;
            content.extend_from_slice(&self.words[usize::try_from(word).unwrap_or(0)]);
            // And now and then a phrase comes again.
            if self.below(20) == 0 && content.len() > 4000 {
                let length = usize::try_from(20 + self.below(60)).unwrap_or(0);
                let from = content.len() - length - usize::try_from(self.below(3000)).unwrap_or(0);
                content.extend_from_within(from..from + length);
            }
        }
        content.truncate(size);
    }
}

/// Counts and hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.hash.finalize()), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
