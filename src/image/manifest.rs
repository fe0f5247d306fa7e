//! The documents that lead from an archive's front to its layers: indexes and manifests.
//!
//! Each is read strictly: a document that could be taken for two kinds, a digest that is none, a size below
//! zero, a kind that differs from what its descriptor announced, are refused (CVE-2021-41190, CVE-2026-95839).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::id::Digest;

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// How they are compressed is told by their first bytes.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// Where a blob is, what it should be.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// What an entry of an index is for.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub(super) struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// What this machine runs.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: String::new() }
    }

    /// Whether an image for `self` runs on `host`. Newer levels of amd64 (v2 and up) may not, and are passed by.
    pub fn suits(&self, host: &Self) -> bool {
        let variant_fine = match self.architecture.as_str() {
            "amd64" => matches!(self.variant.as_str(), "" | "v1"),
            "arm64" => matches!(self.variant.as_str(), "" | "v8"),
            _ => true,
        };
        self.os == host.os && self.architecture == host.architecture && variant_fine
    }
}

/// Names told of what an image is for instead of this machine.
const MOST_OFFERS: usize = 16;
/// Characters told of one.
const OFFER_CHARS: usize = 64;

/// What there is instead of an image for this machine: a stranger's words in a message for people, so few, short and
/// printable.
#[derive(Debug, Default)]
pub(super) struct Offers {
    names: BTreeSet<String>,
    has_more: bool,
}

impl Offers {
    pub fn add(&mut self, name: &str) {
        let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let name: String = name.chars().take(OFFER_CHARS).map(printable).collect();
        if self.names.len() < MOST_OFFERS {
            self.names.insert(name);
        } else {
            self.has_more |= !self.names.contains(&name);
        }
    }

    /// For a sentence; never empty.
    pub fn into_list(self) -> Vec<String> {
        let mut list: Vec<String> = self.names.into_iter().collect();
        if list.is_empty() {
            list.push("nothing".to_owned());
        }
        if self.has_more {
            list.push("and others".to_owned());
        }
        list
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// A document behind a descriptor of an index.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Only in documents of the first schema, which nobody should still make.
    fs_layers: Option<IgnoredAny>,
}

/// Reads an index or a manifest. `announced` is the media type its descriptor gave, empty if none did.
/// The error is a reason for people.
pub(super) fn parse(bytes: &[u8], announced: &str) -> Result<Document, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if raw.schema_version != 2 || raw.fs_layers.is_some() {
        return Err(format!("schemaVersion is {}, only 2 is read", raw.schema_version));
    }
    if !announced.is_empty() && !raw.media_type.is_empty() && raw.media_type != announced {
        return Err(format!("it calls itself {:?}, its descriptor {announced:?}", clip(&raw.media_type)));
    }
    let media_type = if raw.media_type.is_empty() { announced } else { &raw.media_type };
    let known = |types: [&str; 2]| media_type.is_empty() || types.contains(&media_type);
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if known(INDEX_TYPES) => Ok(Document::Index(manifests)),
        (None, Some(config), Some(layers)) if known(MANIFEST_TYPES) => Ok(Document::Manifest { config, layers }),
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err("it is an index and a manifest at once".to_owned()),
        (None, None, _) | (None, _, None) => Err("it has neither manifests nor config and layers".to_owned()),
        _ => Err(format!("its media type {:?} does not fit what is in it", clip(media_type))),
    }
}

impl Descriptor {
    /// What it belongs to, for people, if that is no container image.
    pub fn artifact(&self) -> Option<String> {
        let is_image = self.media_type.is_empty() || CONFIG_TYPES.contains(&self.media_type.as_str());
        (!is_image).then(|| format!("an artifact of type {:?}", clip(&self.media_type)))
    }

    /// Why it cannot be a layer of a container image, for people, if it cannot.
    pub fn no_layer(&self) -> Option<String> {
        let is_known = LAYER_TYPES.iter().any(|known| {
            let rest = self.media_type.strip_prefix(known);
            rest.is_some_and(|how| matches!(how, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
        });
        if self.media_type.is_empty() || is_known {
            return None;
        }
        let why = if self.media_type.ends_with("+encrypted") { "it is encrypted" } else { "that is no kind of layer" };
        Some(format!("layer {} has media type {:?}: {why}", self.digest, clip(&self.media_type)))
    }

    /// Statements about an image travel in its index as manifests for no platform.
    pub fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.os == "unknown")
            || self.annotations.contains_key("vnd.docker.reference.type")
    }
}

/// One image of a `docker save` archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    /// Path of the configuration in the archive.
    pub config: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub repo_tags: Vec<String>,
    /// Paths of the layers, lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<String>,
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> String {
        format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":3}}"#, "ab".repeat(32))
    }

    #[test]
    fn the_two_kinds_are_told_apart() {
        let d = descriptor();
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#);
        assert!(matches!(parse(index.as_bytes(), "").unwrap(), Document::Index(list) if list.len() == 1));
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{}","config":{d},"layers":[]}}"#, MANIFEST_TYPES[0]);
        assert!(matches!(parse(manifest.as_bytes(), MANIFEST_TYPES[0]).unwrap(), Document::Manifest { .. }));
    }

    #[test]
    fn confusion_is_refused() {
        let d = descriptor();
        let both = format!(r#"{{"schemaVersion":2,"manifests":[{d}],"config":{d},"layers":[{d}]}}"#);
        let half = format!(r#"{{"schemaVersion":2,"manifests":[{d}],"layers":[{d}]}}"#);
        let lying = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{d}]}}"#, MANIFEST_TYPES[0]);
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{d}]}}"#, INDEX_TYPES[0]);
        let old = format!(r#"{{"schemaVersion":1,"fsLayers":[],"manifests":[{d}]}}"#);
        for (text, announced) in [
            (&both, ""),
            (&half, ""),
            (&lying, ""),
            (&index, MANIFEST_TYPES[0]),
            (&old, ""),
            (&"{}".to_owned(), ""),
            (&"[]".to_owned(), ""),
            (&"{\"schemaVersion\":2}".to_owned(), ""),
        ] {
            assert!(parse(text.as_bytes(), announced).is_err(), "{text} as {announced:?}");
        }
        let unannounced = format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#);
        assert!(parse(unannounced.as_bytes(), MANIFEST_TYPES[0]).is_err());
    }

    #[test]
    fn layers_are_told_from_other_things() {
        let of = |media_type: &str| {
            let text = descriptor().replace("\"x\"", &format!("{media_type:?}"));
            serde_json::from_str::<Descriptor>(&text).unwrap().no_layer()
        };
        for good in [
            "",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            assert_eq!(of(good), None, "{good}");
        }
        assert!(of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted").unwrap().contains("encrypted"));
        for bad in ["application/wasm", "application/vnd.in-toto+json", "application/vnd.oci.image.layer.v1.tarx"] {
            assert!(of(bad).unwrap().contains("no kind of layer"), "{bad}");
        }
    }

    #[test]
    fn bad_descriptors_are_refused() {
        for bad in [
            r#"{"digest":["sha256:x"],"size":1}"#,
            r#"{"digest":"sha256:../../../etc/passwd","size":1}"#,
            r#"{"digest":"","size":1}"#,
            r#"{"size":1}"#,
        ] {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{bad}]}}"#);
            assert!(parse(text.as_bytes(), "").is_err(), "{text}");
        }
        let negative = descriptor().replace(":3}", ":-3}");
        assert!(parse(format!(r#"{{"schemaVersion":2,"manifests":[{negative}]}}"#).as_bytes(), "").is_err());
    }

    #[test]
    fn what_is_offered_is_told_in_few_printable_words() {
        let mut offers = Offers::default();
        assert_eq!(Offers::default().into_list(), ["nothing"]);
        offers.add("linux/\u{1b}[2J\n\u{202e}x");
        offers.add(&"a".repeat(1 << 20));
        for number in 0..1000 {
            offers.add(&format!("b{number:04}"));
        }
        let list = offers.into_list();
        assert_eq!((list.len(), list[16].as_str()), (17, "and others"));
        assert_eq!((list[0].as_str(), list[15].as_str()), ("a".repeat(64).as_str(), "linux/?[2J??x"));
    }

    #[test]
    fn only_what_this_machine_runs_suits_it() {
        let platform = |architecture: &str, variant: &str| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.to_owned(),
        };
        let host = platform("amd64", "");
        assert!(platform("amd64", "").suits(&host));
        assert!(!platform("amd64", "v3").suits(&host));
        assert!(!platform("arm64", "v8").suits(&host));
        assert!(platform("arm64", "v8").suits(&platform("arm64", "")));
    }
}
