//! Debian's `docker-registry`, served on loopback of a node's network namespace from a directory of its own.
//!
//! Images get in by its storage layout, so nothing needs to be pushed, and they are there at once. A daemon finds it by
//! `hosts.toml`: it can stand in for any registry.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::images::{fixture, scratch};
use super::token_server::TokenServer;
use super::{PATIENCE, TestNode, wait_for};

/// Who may pull from registries that ask, and the password's bcrypt hash as `htpasswd -B` writes it.
pub const USER: &str = "puller";
pub const PASSWORD: &str = "secret";
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a registry wants of those who ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Nothing, over HTTP.
    Plain,
    /// User and password with every request.
    Basic,
    /// A token, which another server gives for user and password.
    Token,
    /// Nothing, over HTTPS by an authority nobody knows.
    Tls,
}

/// A running registry.
pub struct DockerRegistry {
    process: Child,
    directory: tempfile::TempDir,
    manner: Manner,
    address: String,
    _tokens: Option<TokenServer>,
}

impl DockerRegistry {
    /// One that asks for nothing.
    pub fn start(node: &TestNode) -> Self {
        Self::with(node, Manner::Plain)
    }

    /// One of this manner.
    pub fn with(node: &TestNode, manner: Manner) -> Self {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name);
        let mut config = json!({
            "version": 0.1,
            "storage": {
                "filesystem": {"rootdirectory": path("storage")},
                "maintenance": {"uploadpurging": {"enabled": false}, "readonly": {"enabled": true}},
            },
            "http": {"addr": "127.0.0.1:0"},
        });
        let mut tokens = None;
        match manner {
            Manner::Plain => {}
            Manner::Basic => {
                fs::write(path("htpasswd"), format!("{USER}:{HASH}\n")).expect("write htpasswd");
                config["auth"] = json!({"htpasswd": {"realm": "test", "path": path("htpasswd")}});
            }
            Manner::Token => {
                let server = TokenServer::start(node.listen(), (USER, PASSWORD));
                fs::write(path("tokens.pem"), server.certificate_pem()).expect("write the certificate");
                config["auth"] = json!({"token": {
                    "realm": server.realm(), "service": "registry", "issuer": "test", "rootcertbundle": path("tokens.pem"),
                }});
                tokens = Some(server);
            }
            Manner::Tls => {
                certify(directory.path());
                config["http"]["tls"] = json!({"certificate": path("server.pem"), "key": path("server.key")});
            }
        }
        // JSON is YAML.
        fs::write(path("config.yml"), config.to_string()).expect("write the registry's configuration");
        let log = File::create(path("log")).expect("create the registry's log");
        // Not in the node's mount namespace: it is no process of the node.
        let process = Command::new("nsenter")
            .args(["--target", &node.holder_pid().to_string(), "--net", "--"])
            .arg(program())
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate the log"))
            .stderr(log)
            .spawn()
            .expect("start docker-registry");
        let mut registry = Self { process, directory, manner, address: String::new(), _tokens: tokens };
        registry.address = registry.listening();
        registry
    }

    fn listening(&mut self) -> String {
        let log = self.path("log");
        let process = &mut self.process;
        wait_for("docker-registry to listen", PATIENCE, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let ended = process.try_wait().expect("wait for docker-registry");
            assert!(ended.is_none(), "docker-registry ended with {ended:?}: {text}");
            let after = text.split_once("listening on ")?.1;
            Some(after.split(['"', ',', ' ']).next()?.to_owned())
        })
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// How often it was asked for something that has `text` in its path.
    pub fn requests(&self, text: &str) -> usize {
        self.log().lines().filter(|l| l.contains("HTTP/1.1") && l.contains(text)).count()
    }

    /// Lets the node's daemon look for images of `host` here.
    pub fn stand_in(&self, node: &TestNode, host: &str) {
        self.stand_in_behind(node, host, &[]);
    }

    /// The same, with others to be tried first.
    pub fn stand_in_behind(&self, node: &TestNode, host: &str, first: &[&str]) {
        let scheme = if self.manner == Manner::Tls { "https" } else { "http" };
        // As the last resort, where else the registry of that name itself would be asked.
        let mut text = format!("server = \"{scheme}://{}\"\n", self.address);
        if self.manner == Manner::Tls {
            text.push_str(&format!("ca = \"{}\"\n", self.path("ca.pem").display()));
        }
        for address in first {
            text.push_str(&format!("[host.\"{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"));
        }
        let directory = node.path("certs.d").join(host);
        fs::create_dir_all(&directory).expect("create a directory for hosts.toml");
        fs::write(directory.join("hosts.toml"), text).expect("write hosts.toml");
    }

    /// Serves an image of the catalogue under the paths of all its names; returns the digest of its manifest.
    pub fn publish(&self, name: &str) -> String {
        let mut archive = tar::Archive::new(File::open(fixture(name)).expect("open a fixture"));
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("read a fixture") {
            let mut entry = entry.expect("read a fixture");
            let path = entry.path().expect("a path").display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("read a fixture");
            files.insert(path, bytes);
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).expect("an index");
        let mut digest = String::new();
        for entry in index["manifests"].as_array().expect("a list") {
            digest = entry["digest"].as_str().expect("a digest").to_owned();
            let blobs = files.iter().filter(|(path, _)| path.starts_with("blobs/")).map(|(_, bytes)| bytes.as_slice());
            let name = entry["annotations"]["io.containerd.image.name"].as_str().expect("a name");
            self.store(name, blobs, &digest);
        }
        digest
    }

    /// Serves an image of these layers (plain tars) under a name with a tag; returns the digest of its manifest.
    pub fn publish_layers(&self, name: &str, layers: &[Vec<u8>]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/probe"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let layers: Vec<Vec<u8>> = layers.iter().map(|l| gzip(l)).collect();
        let of = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": of("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|l| of("application/vnd.oci.image.layer.v1.tar+gzip", l)).collect::<Vec<_>>()});
        let manifest = manifest.to_string().into_bytes();
        let blobs = layers.iter().map(Vec::as_slice).chain([config.as_slice(), manifest.as_slice()]);
        let digest = digest(&manifest);
        self.store(name, blobs, &digest);
        digest
    }

    fn store<'a>(&self, name: &str, blobs: impl Iterator<Item = &'a [u8]>, manifest: &str) {
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        let (first, rest) = repository.split_once('/').expect("a path");
        let repository = if first.contains(['.', ':']) { rest } else { repository };
        let root = self.path("storage/docker/registry/v2");
        let home = root.join("repositories").join(repository);
        let put = |path: PathBuf, bytes: &[u8]| {
            fs::create_dir_all(path.parent().expect("a directory")).expect("create a directory");
            fs::write(path, bytes).expect("write to the registry's storage");
        };
        let link = |folder: PathBuf, digest: &str| {
            put(folder.join("sha256").join(&digest["sha256:".len()..]).join("link"), digest.as_bytes());
        };
        for bytes in blobs {
            let digest = digest(bytes);
            let hex = &digest["sha256:".len()..];
            put(root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"), bytes);
            link(home.join("_layers"), &digest);
        }
        link(home.join("_manifests/revisions"), manifest);
        let tag = home.join("_manifests/tags").join(tag);
        link(tag.join("index"), manifest);
        put(tag.join("current/link"), manifest.as_bytes());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // Errors mean that it is gone, which is what is wanted.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Installed, or unpacked by `tests/setup`.
fn program() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/docker-registry/usr/bin/docker-registry");
    if unpacked.exists() { unpacked } else { PathBuf::from("docker-registry") }
}

/// An authority and a server's certificate by it.
fn certify(directory: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let server = server.signed_by(&key, &authority).expect("a certificate");
    for (name, text) in [("ca.pem", authority.pem()), ("server.pem", server.pem()), ("server.key", key.serialize_pem())]
    {
        fs::write(directory.join(name), text).expect("write a certificate");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}
