//! The image configuration: what a container starts with when its request does not say.
//!
//! Data, never authority: nothing here chooses host paths, devices or security settings. Every text is free of
//! NUL, and of control characters where it names a user, a directory or a signal.
//!
//! Follows the OCI image specification, "Image Configuration".

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::id::Digest;

/// Items of one list or map: each takes many times its size in the document, for as long as the image is there. A
/// process starts with 6 MiB of arguments and variables at most, real images have dozens.
const MOST_ITEMS: usize = 10_000;

/// The parts of the configuration a container is made from; empty means not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`, any mixture; resolved inside the container.
    pub user: String,
    /// Names and values, in order; a name is never empty.
    pub env: Vec<(String, String)>,
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// What follows them, or the whole command line.
    pub cmd: Vec<String>,
    /// Where the process starts.
    pub working_dir: String,
    /// By name or number.
    pub stop_signal: String,
    /// Container paths that hold data; sorted.
    pub volumes: Vec<String>,
    /// Free-form.
    pub labels: BTreeMap<String, String>,
}

/// A configuration document after all checks.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    pub config: ImageConfig,
    pub architecture: String,
    pub os: String,
    /// Lowest layer first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<Settings>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

/// Go writes absent lists and maps as null.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads a configuration document; the error is a reason for people.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if document.rootfs.kind != "layers" {
        return Err(format!("rootfs.type is {:?}, not \"layers\"", clip(&document.rootfs.kind)));
    }
    Ok(Parsed {
        config: settings(document.config.unwrap_or_default())?,
        architecture: plain("architecture", document.architecture.unwrap_or_default())?,
        os: plain("os", document.os.unwrap_or_default())?,
        diff_ids: document.rootfs.diff_ids.unwrap_or_default(),
    })
}

fn settings(settings: Settings) -> Result<ImageConfig, String> {
    let length = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
    for (field, items) in [
        ("Env", length(&settings.env)),
        ("Entrypoint", length(&settings.entrypoint)),
        ("Cmd", length(&settings.cmd)),
        ("Volumes", settings.volumes.as_ref().map_or(0, BTreeMap::len)),
        ("Labels", settings.labels.as_ref().map_or(0, BTreeMap::len)),
    ] {
        if items > MOST_ITEMS {
            return Err(format!("{field} has {items} items, more than the {MOST_ITEMS} that are accepted"));
        }
    }
    Ok(ImageConfig {
        user: plain("User", settings.user.unwrap_or_default())?,
        env: settings.env.unwrap_or_default().into_iter().map(variable).collect::<Result<_, _>>()?,
        entrypoint: words("Entrypoint", settings.entrypoint.unwrap_or_default())?,
        cmd: words("Cmd", settings.cmd.unwrap_or_default())?,
        working_dir: plain("WorkingDir", settings.working_dir.unwrap_or_default())?,
        stop_signal: plain("StopSignal", settings.stop_signal.unwrap_or_default())?,
        volumes: settings
            .volumes
            .unwrap_or_default()
            .into_keys()
            .map(|v| plain("Volumes", v))
            .collect::<Result<_, _>>()?,
        labels: settings.labels.unwrap_or_default(),
    })
}

/// A variable without a value would be looked up in somebody's environment; there is none to give.
fn variable(text: String) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("Env has {:?}, which is not NAME=VALUE", clip(&text))),
    }
}

fn words(field: &str, words: Vec<String>) -> Result<Vec<String>, String> {
    match words.iter().find(|w| w.contains('\0')) {
        Some(word) => Err(format!("{field} has {:?}, with a NUL byte", clip(word))),
        None => Ok(words),
    }
}

fn plain(field: &str, text: String) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err(format!("{field} has {:?}, with a control character", clip(&text)));
    }
    Ok(text)
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(config: &str) -> String {
        let id = format!("sha256:{}", "ab".repeat(32));
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        )
    }

    #[test]
    fn a_full_configuration_is_read() {
        let text = document(
            r#"{"User":"a:b","Env":["A=1","B=x=y","C="],"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"/w",
                "StopSignal":"SIGINT","Volumes":{"/b":{},"/a":{}},"Labels":{"k":"v"}}"#,
        );
        let parsed = parse(text.as_bytes()).unwrap();
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(parsed.config.env, [pair("A", "1"), pair("B", "x=y"), pair("C", "")]);
        assert_eq!(parsed.config.volumes, ["/a", "/b"]);
        assert_eq!((parsed.config.user.as_str(), parsed.config.cmd.len(), parsed.diff_ids.len()), ("a:b", 1, 1));
        assert!(parsed.config.entrypoint.is_empty());
    }

    #[test]
    fn an_empty_configuration_is_fine() {
        assert_eq!(parse(document("null").as_bytes()).unwrap().config, ImageConfig::default());
        assert_eq!(parse(document("{}").as_bytes()).unwrap().config, ImageConfig::default());
    }

    #[test]
    fn endless_lists_are_refused() {
        let words = |count: usize| format!(r#"{{"Cmd":[{}""]}}"#, r#""","#.repeat(count));
        assert_eq!(parse(document(&words(MOST_ITEMS - 1)).as_bytes()).unwrap().config.cmd.len(), MOST_ITEMS);
        let reason = parse(document(&words(MOST_ITEMS)).as_bytes()).unwrap_err();
        assert!(reason.contains("Cmd has 10001 items"), "{reason}");
    }

    #[test]
    fn malformed_configurations_are_refused_with_the_field() {
        for (config, word) in [
            (r#"{"Env":["NAME"]}"#, "NAME=VALUE"),
            (r#"{"Env":["*"]}"#, "NAME=VALUE"),
            (r#"{"Env":["=x"]}"#, "NAME=VALUE"),
            (r#"{"Env":["A=\u0000"]}"#, "NAME=VALUE"),
            (r#"{"Env":[1]}"#, "invalid type"),
            (r#"{"Env":"A=1"}"#, "invalid type"),
            (r#"{"Cmd":["a\u0000b"]}"#, "Cmd"),
            (r#"{"User":"root\nroot"}"#, "User"),
            (r#"{"WorkingDir":"/a\tb"}"#, "WorkingDir"),
            (r#"{"Volumes":["/a"]}"#, "invalid type"),
            (r#"{"User":"a","User":"b"}"#, "duplicate"),
        ] {
            let reason = parse(document(config).as_bytes()).unwrap_err();
            assert!(reason.contains(word), "{config}: {reason}");
        }
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            "\u{1}",
            r#"{"rootfs":{"type":"layers","diff_ids":"sha256:x"}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":[["sha256:x"]]}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../etc"]}}"#,
            r#"{"rootfs":{"type":"other","diff_ids":[]}}"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
