//! Whether pods can be connected now. Asked every few seconds by kubelet, and often by people, so plugins are asked
//! once for a while, and a plugin that hangs holds up one caller until its deadline and nobody else.

use std::time::{Duration, Instant};

use super::super::NetError;
use super::chain::{self, Chain};
use super::list::NetworkList;
use super::plugin::{Budget, Verb};
use super::version::Version;
use super::{Cni, lock};

/// How long an answer of the plugins counts.
const FRESH: Duration = Duration::from_secs(5);

/// What the plugins said last.
#[derive(Debug, Default)]
pub(super) struct Last {
    /// The list that was asked, as text; when; and the reason if it cannot connect pods.
    answer: Option<(String, Instant, Result<(), String>)>,
    /// Somebody is asking.
    asking: bool,
}

impl Cni {
    pub(super) fn readiness(&self) -> Result<(), NetError> {
        let loaded = self.load()?;
        chain::locate(&self.plugins, &loaded.list)?;
        let budget = self.plugins.budget(Verb::Status);
        self.check_versions(&loaded.list, budget)?;
        let list = chain::pin(&self.plugins, loaded.list, budget)?;
        if list.version() < Version::V1_1_0 {
            return Ok(());
        }
        let text = list.to_json().map(|raw| raw.get().to_owned()).unwrap_or_default();
        let not_ready = |reason: String| NetError::NotReady { reason };
        {
            let mut last = lock(&self.last_status);
            let same = last.answer.as_ref().filter(|(of, _, _)| *of == text);
            if let Some((_, when, answer)) = same
                && (last.asking || when.elapsed() < FRESH)
            {
                return answer.clone().map_err(not_ready);
            }
            if last.asking {
                return Err(not_ready(format!("the plugins of CNI network {} have not answered yet", list.name)));
            }
            last.asking = true;
        }
        let asking = Asking(self);
        let chain = Chain { plugins: &self.plugins, list: &list, target: None, capabilities: None, budget };
        let answer = chain.status().map_err(|e| e.to_string());
        lock(&self.last_status).answer = Some((text, Instant::now(), answer.clone()));
        drop(asking);
        answer.map_err(not_ready)
    }

    /// Names a plugin that does not speak the list's only version before a pod fails for it.
    fn check_versions(&self, list: &NetworkList, budget: Budget) -> Result<(), NetError> {
        for kind in chain::programs(list) {
            // That it is there was seen a moment ago.
            let Ok(Some(spoken)) = self.plugins.versions(kind, budget) else { continue };
            if !list.versions.iter().any(|version| spoken.contains(version)) {
                let wanted: Vec<&str> = list.versions.iter().map(|v| v.as_str()).collect();
                let reason = format!(
                    "plugin {kind} of CNI network {} does not speak CNI {}: install a later release of it, or lower \
                     cniVersion",
                    list.name,
                    wanted.join(" or ")
                );
                return Err(NetError::NotReady { reason });
            }
        }
        Ok(())
    }
}

/// Ends the asking whatever happens.
struct Asking<'a>(&'a Cni);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        lock(&self.0.last_status).asking = false;
    }
}
