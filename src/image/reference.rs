//! Image references: `busybox`, `registry.k8s.io/pause:3.10`, `host:5000/a/b@sha256:…`.
//!
//! Parsed once, by the grammar registries agree on, into a normal form with nothing left out; what a person
//! may leave out (`docker.io/library/`, `:latest`) is filled in. No part can hold `..`, a control character or
//! an upper-case repository, so a reference is safe in messages and paths.

use std::fmt;
use std::str::FromStr;

use crate::id::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const NAME_BYTES: usize = 255;
const TAG_BYTES: usize = 128;

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reference:?} is no image reference: {reason}")]
pub struct ReferenceError {
    /// The text, at most its first 300 characters.
    pub reference: String,
    /// What is wrong with it, for people.
    pub reason: &'static str,
}

/// A repository with a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Registry and repository: `docker.io/library/busybox`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The host of the registry, with its port if there is one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when the text had neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest (or index) it is pinned to. Wins over a tag.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As CRI's `repo_tags` has it: `docker.io/library/busybox:latest`; none if a digest was given, which wins over a tag:
    /// what a pinned image is called elsewhere must not move this machine's own names.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        let tag = self.tag.as_ref().filter(|_| self.digest.is_none());
        tag.map(|tag| format!("{}:{tag}", self.name()))
    }

    /// As CRI's `repo_digests` has it.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError { reference: text.chars().take(300).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest =
                digest.parse().map_err(|_| "after @ there must be sha256: and 64 lowercase hexadecimal digits")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    check_registry(&registry)?;
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > NAME_BYTES {
        return Err("registry and repository are longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry, repository, tag, digest })
}

/// The part before the first slash is a registry if it looks like a host, else it belongs to the repository.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry must be a host name or address, with a port if need be";
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(BAD)?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(BAD);
            }
            ("v6", if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(BAD)?) })
        }
        None => registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port))),
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.split('.').all(label_ok) || port.is_some_and(|p| p.is_empty() || p.parse::<u16>().is_err()) {
        return Err(BAD);
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be lowercase");
    }
    if !repository.split('/').all(is_component) {
        return Err("a repository is made of lowercase letters and digits, separated by '.', '_', '__', '-' or '/'");
    }
    Ok(())
}

/// Letters and digits, with single separators (two underscores, any number of dashes) only between them.
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes
        .split(|b| alphanumeric(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fine = tag.len() <= TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if fine { Ok(()) } else { Err("a tag is 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn normal(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn what_people_leave_out_is_filled_in() {
        assert_eq!(normal("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(normal("me/app"), "docker.io/me/app:latest");
        assert_eq!(normal("docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("index.docker.io/library/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("registry.k8s.io/pause:3.10"), "registry.k8s.io/pause:3.10");
        assert_eq!(normal("localhost/a"), "localhost/a:latest");
        assert_eq!(normal("host:5000/a/b"), "host:5000/a/b:latest");
        assert_eq!(normal("[::1]:5000/a"), "[::1]:5000/a:latest");
        assert_eq!(normal("127.0.0.1:5000/a__b.c---d:T_1"), "127.0.0.1:5000/a__b.c---d:T_1");
    }

    #[test]
    fn a_digest_keeps_the_tag_in_the_text_but_names_nothing_by_it() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(normal(&format!("busybox@{digest}")), format!("docker.io/library/busybox@{digest}"));
        let both: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!((both.tagged(), both.tag()), (None, Some("1")));
        assert_eq!(both.digest().unwrap().as_str(), digest);
    }

    #[test]
    fn hostile_texts_are_refused() {
        let long = "a".repeat(300);
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "../a",
            "a/./b",
            "Busybox",
            "a/B",
            "a b",
            "a\n",
            "a\0",
            "a:b:c",
            "a:..",
            "a:-x",
            "a:.x",
            "a/b:c/d",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a@sha256:00",
            "a@sha512:00",
            "host:/a",
            "host:99999/a",
            "host:x/a",
            "[zz]/a",
            "[::1/a",
            "ho_st.x/a",
            "http://x/a",
            "é",
            &long,
            &long_tag,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_accepted_is_stable_and_safe(text in "\\PC{0,60}|[a-z.:/@_-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let shown = reference.to_string();
                prop_assert_eq!(shown.parse::<Reference>().unwrap(), reference);
                prop_assert!(!shown.contains("..") && shown.bytes().all(|b| b.is_ascii_graphic()));
            }
        }
    }
}
