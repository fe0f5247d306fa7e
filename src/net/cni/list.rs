//! A network configuration list (CNI specification, section 1), and what is made of it for one call of a plugin
//! (section 3).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::error::ConfigError;
use super::version::{Version, candidates};

/// Plugins a list may have.
const MOST_PLUGINS: usize = 32;
/// Longest name of a network or plugin, in bytes: both become names of files.
const LONGEST_NAME: usize = 200;

/// One plugin's configuration: its keys with their values as they were written, so that the plugin gets what its author
/// meant.
pub(super) type Object = BTreeMap<String, Box<RawValue>>;

/// A network: the plugins that make it, in the order of ADD.
#[derive(Debug, Clone)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// What it may be run with, highest first; never empty.
    pub versions: Vec<Version>,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// Plugins of the directory beside the file, named as the network, do not count.
    pub only_inlined: bool,
    /// The chain.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Name of the program.
    pub kind: String,
    /// Capabilities it declares.
    pub capabilities: Vec<String>,
    /// Name of the program it delegates addresses to, if it says so in the usual place (`ipam.type`).
    pub delegate: Option<String>,
    object: Object,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    name: Option<String>,
    cni_version: Option<String>,
    #[serde(default)]
    cni_versions: Vec<String>,
    disable_check: Option<Flag>,
    #[serde(rename = "disableGC")]
    disable_gc: Option<Flag>,
    load_only_inlined_plugins: Option<Flag>,
    plugins: Option<Vec<Object>>,
}

/// A boolean, also as a string: both are found in the wild.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Text(String),
}

/// What one call of a plugin gets beside its own configuration.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extra<'a> {
    /// The result of the plugin before, or of the whole ADD.
    pub previous: Option<&'a RawValue>,
    /// Capability arguments by capability.
    pub capabilities: Option<&'a BTreeMap<&'static str, Box<RawValue>>>,
    /// The attachments that are valid, as JSON.
    pub valid: Option<&'a RawValue>,
}

impl NetworkList {
    /// Reads a list (`*.conflist`); it may have no plugins yet if those of a directory count.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_json::from_str(text).map_err(no_json)?;
        let name = network_name(file.name)?;
        let only_inlined = flag("loadOnlyInlinedPlugins", file.load_only_inlined_plugins)?;
        let plugins = match file.plugins {
            Some(list) if list.is_empty() => return Err(key("plugins", "the list is empty")),
            None if only_inlined => return Err(key("plugins", "missing, and loadOnlyInlinedPlugins is true")),
            given => given.unwrap_or_default(),
        };
        let mut list = Self {
            name,
            versions: candidates(file.cni_version.as_deref(), &file.cni_versions)?,
            disable_check: flag("disableCheck", file.disable_check)?,
            disable_gc: flag("disableGC", file.disable_gc)?,
            only_inlined,
            plugins: Vec::new(),
        };
        list.append(plugins)?;
        Ok(list)
    }

    /// Reads the configuration of a single plugin (`*.conf`, `*.json`) as a list of one.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn parse_single(text: &str) -> Result<Self, ConfigError> {
        let object: Object = serde_json::from_str(text).map_err(no_json)?;
        if !object.contains_key("type") && object.contains_key("plugins") {
            return Err(key("type", "missing; a list of plugins belongs into a file that ends in .conflist"));
        }
        let text = |name: &str| object.get(name).map(|raw| string(name, raw)).transpose();
        let mut list = Self {
            name: network_name(text("name")?)?,
            versions: candidates(text("cniVersion")?.as_deref(), &[])?,
            disable_check: false,
            disable_gc: false,
            only_inlined: true,
            plugins: Vec::new(),
        };
        list.append(vec![object])?;
        Ok(list)
    }

    /// Adds the configuration of one more plugin, from a file of its own.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn append_text(&mut self, text: &str) -> Result<(), ConfigError> {
        let object: Object = serde_json::from_str(text).map_err(no_json)?;
        self.append(vec![object])
    }

    fn append(&mut self, objects: Vec<Object>) -> Result<(), ConfigError> {
        if self.plugins.len() + objects.len() > MOST_PLUGINS {
            return Err(key("plugins", format!("more than {MOST_PLUGINS}")));
        }
        for object in objects {
            self.plugins.push(Plugin::new(object)?);
        }
        Ok(())
    }

    /// The version it is run with, once it is pinned; else the highest.
    #[must_use]
    pub fn version(&self) -> Version {
        self.versions.first().copied().unwrap_or(Version::V0_3_1)
    }

    /// The list with one version, as it is run and kept.
    #[must_use]
    pub fn pinned(mut self, version: Version) -> Self {
        self.versions = vec![version];
        self.only_inlined = true;
        self
    }

    /// The list as a file that [`parse`](Self::parse) reads.
    pub(super) fn to_json(&self) -> serde_json::Result<Box<RawValue>> {
        let versions: Vec<&str> = self.versions.iter().map(|v| v.as_str()).collect();
        to_raw_value(&Written {
            cni_version: self.version().as_str(),
            cni_versions: versions,
            name: &self.name,
            disable_check: self.disable_check,
            disable_gc: self.disable_gc,
            load_only_inlined_plugins: self.only_inlined,
            plugins: self.plugins.iter().map(|p| &p.object).collect(),
        })
    }

    /// The plugins that declare a capability.
    pub(super) fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.iter().any(|c| c == capability))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    cni_version: &'a str,
    cni_versions: Vec<&'a str>,
    name: &'a str,
    disable_check: bool,
    #[serde(rename = "disableGC")]
    disable_gc: bool,
    load_only_inlined_plugins: bool,
    plugins: Vec<&'a Object>,
}

impl Plugin {
    fn new(object: Object) -> Result<Self, ConfigError> {
        let kind = object.get("type").ok_or_else(|| key("type", "missing"))?;
        let kind = string("type", kind)?;
        program_name("type", &kind)?;
        let declared: BTreeMap<String, bool> = match object.get("capabilities") {
            Some(raw) => serde_json::from_str(raw.get())
                .map_err(|_| key("capabilities", format!("plugin {kind} has no object of booleans there")))?,
            None => BTreeMap::new(),
        };
        let delegate = object.get("ipam").and_then(|raw| serde_json::from_str::<Ipam>(raw.get()).ok());
        // Of whatever else a plugin has there, nothing need be understood here.
        let delegate = delegate.and_then(|ipam| ipam.kind).filter(|kind| program_name("ipam.type", kind).is_ok());
        let capabilities = declared.into_iter().filter(|(_, declared)| *declared).map(|(name, _)| name).collect();
        Ok(Self { kind, capabilities, delegate, object })
    }

    /// What the plugin reads from its standard input.
    pub(super) fn request(&self, network: &str, version: Version, extra: Extra<'_>) -> serde_json::Result<Vec<u8>> {
        let runtime = extra.capabilities.map(|all| self.runtime_config(all)).filter(|config| !config.is_empty());
        let runtime = runtime.map(|config| to_raw_value(&config)).transpose()?;
        let (name, version) = (to_raw_value(network)?, to_raw_value(version.as_str())?);
        let is_ours = |name: &str| name == "capabilities" || name.starts_with("cni.dev/");
        let given = self.object.iter().filter(|(name, _)| !is_ours(name));
        let mut request: BTreeMap<&str, &RawValue> = given.map(|(name, raw)| (name.as_str(), &**raw)).collect();
        request.insert("name", &name);
        request.insert("cniVersion", &version);
        if let Some(runtime) = &runtime {
            request.insert("runtimeConfig", runtime);
        }
        if let Some(previous) = extra.previous {
            request.insert("prevResult", previous);
        }
        if let Some(valid) = extra.valid {
            request.insert("cni.dev/valid-attachments", valid);
            // The name in the first text of 1.1, which plugins of that time read.
            request.insert("cni.dev/attachments", valid);
        }
        serde_json::to_vec(&request)
    }

    fn runtime_config<'a>(
        &self,
        all: &'a BTreeMap<&'static str, Box<RawValue>>,
    ) -> BTreeMap<&'static str, &'a RawValue> {
        all.iter()
            .filter(|(name, _)| self.capabilities.iter().any(|c| c == *name))
            .map(|(n, raw)| (*n, &**raw))
            .collect()
    }
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(rename = "type")]
    kind: Option<String>,
}

fn key(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Key { key: key.to_owned(), reason: reason.into() }
}

fn no_json(e: serde_json::Error) -> ConfigError {
    key("JSON", super::error::one_line(&e.to_string(), 200))
}

fn string(name: &str, raw: &RawValue) -> Result<String, ConfigError> {
    serde_json::from_str(raw.get()).map_err(|_| key(name, "is no string"))
}

fn flag(name: &str, flag: Option<Flag>) -> Result<bool, ConfigError> {
    match flag {
        None => Ok(false),
        Some(Flag::Bool(value)) => Ok(value),
        Some(Flag::Text(text)) => match text.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(key(name, "is neither true nor false")),
        },
    }
}

/// A name that becomes part of paths here and in plugins.
fn network_name(name: Option<String>) -> Result<String, ConfigError> {
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| key("name", "missing"))?;
    let is_name = name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !is_name || name.len() > LONGEST_NAME {
        let reason = format!(
            "{:?} is no network's name: a letter or digit, then up to {LONGEST_NAME} of them, of '_', '.' and '-'",
            super::error::one_line(&name, 60)
        );
        return Err(key("name", reason));
    }
    Ok(name)
}

fn program_name(what: &str, name: &str) -> Result<(), ConfigError> {
    let is_bad = |c: char| matches!(c, '/' | '\\') || c.is_control();
    if name.is_empty() || name == "." || name == ".." || name.len() > LONGEST_NAME || name.contains(is_bad) {
        let shown = super::error::one_line(name, 60);
        return Err(key(what, format!("{shown:?} is no name of a program: no '/', no '\\'")));
    }
    Ok(())
}
