//! Runs a list: ADD forwards, each plugin with the result of the one before; DEL backwards, past failures; CHECK, GC
//! and STATUS where version and list allow them.

use std::path::PathBuf;

use serde_json::value::RawValue;

use super::super::{Leftover, NetError};
use super::book::Book;
use super::error::Failure;
use super::list::{Extra, NetworkList, Plugin};
use super::plugin::{Budget, Plugins, Target, UNKNOWN_CONTAINER, Verb};
use super::request::Capabilities;
use super::result;
use super::version::Version;

/// A list being run for one attachment, or for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain<'a> {
    pub plugins: &'a Plugins,
    pub list: &'a NetworkList,
    pub target: Option<Target<'a>>,
    pub capabilities: Option<&'a Capabilities>,
    /// The time for all of it.
    pub budget: Budget,
}

/// An ADD that stopped: the reason, and the result of the plugins that succeeded.
#[derive(Debug)]
pub(super) struct Stopped {
    pub error: NetError,
    pub partial: Option<Box<RawValue>>,
}

impl Chain<'_> {
    fn call(&self, plugin: &Plugin, verb: Verb, extra: Extra<'_>) -> Result<Vec<u8>, Failure> {
        let extra = Extra { capabilities: self.capabilities, ..extra };
        let input = plugin.request(&self.list.name, self.list.version(), extra);
        let input = input.map_err(|e| Failure::Broken(format!("its configuration cannot be written: {e}")))?;
        self.plugins.call(&plugin.kind, verb, self.target, &input, self.budget)
    }

    fn error(&self, plugin: &Plugin, verb: Verb, failure: Failure) -> NetError {
        failure.of(&plugin.kind, &self.list.name, verb.as_str())
    }

    pub(super) fn add(&self) -> Result<Box<RawValue>, Stopped> {
        let mut last: Option<Box<RawValue>> = None;
        for plugin in &self.list.plugins {
            let extra = Extra { previous: last.as_deref(), ..Extra::default() };
            let answer = self.call(plugin, Verb::Add, extra);
            match answer.and_then(|answer| result::object(&answer).map_err(Failure::Broken)) {
                Ok(result) => last = Some(result),
                Err(failure) => {
                    return Err(Stopped { error: self.error(plugin, Verb::Add, failure), partial: last });
                }
            }
        }
        last.ok_or_else(|| {
            let reason = format!("CNI network {} has no plugins", self.list.name);
            Stopped { error: NetError::NotReady { reason }, partial: None }
        })
    }

    /// Returns what could not be deleted; once time is up, also what was not tried.
    pub(super) fn del(&self, book: &Book) -> Vec<Leftover> {
        // Before 0.4.0 the result was not part of DEL.
        let previous = book.result.as_deref().filter(|_| self.list.version() >= Version::V0_4_0);
        let mut left = Vec::new();
        for plugin in self.list.plugins.iter().rev() {
            match self.call(plugin, Verb::Del, Extra { previous, ..Extra::default() }) {
                Ok(_) | Err(Failure::Refused { code: UNKNOWN_CONTAINER, .. }) => {}
                Err(failure) => left.push(Leftover {
                    what: format!("CNI DEL by {} of network {}", plugin.kind, self.list.name),
                    reason: failure.to_string(),
                }),
            }
        }
        left
    }

    /// Does nothing where the list or its version has no CHECK.
    pub(super) fn check(&self, result: &RawValue) -> Result<(), NetError> {
        if self.list.disable_check || self.list.version() < Version::V0_4_0 {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            let answer = self.call(plugin, Verb::Check, Extra { previous: Some(result), ..Extra::default() });
            answer.map_err(|failure| self.error(plugin, Verb::Check, failure))?;
        }
        Ok(())
    }

    /// Tells all plugins which attachments are valid; returns what they could not clean up. Ends with the first one that
    /// hangs: no pod is connected meanwhile.
    ///
    /// # Errors
    /// The same, if one hung.
    pub(super) fn gc(&self, valid: &RawValue) -> Result<Vec<Leftover>, Vec<Leftover>> {
        if self.list.disable_gc || self.list.version() < Version::V1_1_0 {
            return Ok(Vec::new());
        }
        let mut left = Vec::new();
        for plugin in &self.list.plugins {
            if let Err(failure) = self.call(plugin, Verb::Gc, Extra { valid: Some(valid), ..Extra::default() }) {
                let what = format!("CNI GC by {} of network {}", plugin.kind, self.list.name);
                left.push(Leftover { what, reason: failure.to_string() });
                if matches!(failure, Failure::Deadline(_) | Failure::Late(_)) {
                    return Err(left);
                }
            }
        }
        Ok(left)
    }

    /// Asks all plugins whether they can connect pods, where the version has STATUS.
    pub(super) fn status(&self) -> Result<(), NetError> {
        if self.list.version() < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            let answer = self.call(plugin, Verb::Status, Extra::default());
            answer.map_err(|failure| self.error(plugin, Verb::Status, failure))?;
        }
        Ok(())
    }
}

/// The programs of a list, with those it delegates addresses to.
pub(super) fn programs(list: &NetworkList) -> impl Iterator<Item = &str> {
    list.plugins.iter().flat_map(|plugin| [Some(plugin.kind.as_str()), plugin.delegate.as_deref()]).flatten()
}

/// The files of all programs of a list.
///
/// # Errors
/// [`NetError::NotReady`] naming those that are missing.
pub(super) fn locate(plugins: &Plugins, list: &NetworkList) -> Result<Vec<PathBuf>, NetError> {
    let mut missing: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for kind in programs(list) {
        match plugins.find(kind) {
            Ok(path) => found.push(path),
            Err(failure) => missing.push(format!("plugin {kind} of CNI network {}: {failure}", list.name)),
        }
    }
    missing.dedup();
    if missing.is_empty() { Ok(found) } else { Err(NetError::NotReady { reason: missing.join("; ") }) }
}

/// The list with the highest version that all its plugins speak. Where it leaves no choice nobody is asked: the plugin
/// itself says no.
///
/// # Errors
/// [`NetError::NotReady`] naming the plugin that speaks none of the list's versions, or is not there.
pub(super) fn pin(plugins: &Plugins, list: NetworkList, budget: Budget) -> Result<NetworkList, NetError> {
    if list.versions.len() < 2 {
        let version = list.version();
        return Ok(list.pinned(version));
    }
    let mut possible = list.versions.clone();
    for kind in programs(&list) {
        let spoken = plugins.versions(kind, budget).map_err(|failure| NetError::NotReady {
            reason: format!("plugin {kind} of CNI network {}: {failure}", list.name),
        })?;
        let Some(spoken) = spoken else { continue };
        possible.retain(|version| spoken.contains(version));
        if possible.is_empty() {
            let reason = format!(
                "plugin {kind} of CNI network {} speaks none of its versions that the other plugins speak: \
                 install plugins of one release",
                list.name
            );
            return Err(NetError::NotReady { reason });
        }
    }
    Ok(match possible.first() {
        Some(&version) => list.pinned(version),
        None => list,
    })
}
