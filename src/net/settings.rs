//! What the network of pods is to be, with the places of this daemon.

use std::path::PathBuf;

use super::{bridge, cni};
pub use crate::settings::{Choice, Network};

/// All that the network must be told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Settings {
    /// What is wanted.
    pub wanted: Network,
    /// Where books are that outlive a reboot (`<root>/network`). Absolute.
    pub root: PathBuf,
    /// Where those are that a reboot ends (`<state>/network`). Absolute.
    pub state: PathBuf,
}

impl Settings {
    /// The usual, with books in these places.
    #[must_use]
    pub fn new(root: PathBuf, state: PathBuf) -> Self {
        Self { wanted: Network::default(), root, state }
    }

    pub(super) fn of_bridge(&self) -> bridge::Settings {
        let usual = bridge::Settings::new(self.state.join("bridge"));
        bridge::Settings {
            name: self.wanted.bridge.clone(),
            subnets: if self.wanted.subnets.is_empty() { usual.subnets } else { self.wanted.subnets.clone() },
            mtu: (self.wanted.mtu != 0).then_some(self.wanted.mtu),
            isolated: self.wanted.isolate,
            masquerade: self.wanted.masquerade,
            state_dir: usual.state_dir,
        }
    }

    pub(super) fn of_cni(&self) -> cni::Settings {
        let usual = cni::Deadlines::default();
        cni::Settings {
            config_dir: self.wanted.cni_config_dir.clone(),
            plugin_dirs: self.wanted.cni_plugin_dirs.clone(),
            books: self.root.join("cni"),
            template: self.wanted.cni_template.clone(),
            ports_elsewhere: self.wanted.cni_ports_elsewhere,
            deadlines: cni::Deadlines {
                add: self.wanted.cni_timeout.unwrap_or(usual.add),
                del: self.wanted.cni_timeout.unwrap_or(usual.del),
                total: self
                    .wanted
                    .cni_total_timeout
                    .unwrap_or(usual.total.max(self.wanted.cni_timeout.unwrap_or_default())),
                ..usual
            },
        }
    }

    /// Whether there is a CNI configuration.
    #[must_use]
    pub fn has_cni(&self) -> bool {
        let is_configuration = |entry: std::fs::DirEntry| {
            let path = entry.path();
            let has_ending =
                path.extension().is_some_and(|e| ["conf", "conflist", "json"].iter().any(|known| e == *known));
            has_ending && entry.file_type().is_ok_and(|kind| !kind.is_dir())
        };
        let Ok(list) = std::fs::read_dir(&self.wanted.cni_config_dir) else { return false };
        list.flatten().any(is_configuration)
    }
}
