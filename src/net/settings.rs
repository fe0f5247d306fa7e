//! What the network of pods is to be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{bridge, cni};

/// Which driver connects pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// CNI where a configuration of it is present, else the built-in bridge, else none.
    #[default]
    Auto,
    /// The built-in one.
    Bridge,
    /// CNI plugins.
    Cni,
    /// Pods have loopback alone.
    None,
}

impl Choice {
    /// The choice of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "auto" => Self::Auto,
            "bridge" => Self::Bridge,
            "cni" => Self::Cni,
            "none" => Self::None,
            _ => return None,
        })
    }
}

/// All that the network must be told. Validated by `config`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Settings {
    /// Which driver; decided anew for each pod.
    pub driver: Choice,
    /// Where books are that outlive a reboot (`<root>/network`). Absolute.
    pub root: PathBuf,
    /// Where those are that a reboot ends (`<state>/network`). Absolute.
    pub state: PathBuf,
    /// Where namespaces are pinned for drivers that want a path; `ip netns` shows what is there. Absolute.
    pub netns_dir: PathBuf,
    /// Where CNI configurations are. Absolute.
    pub cni_config_dir: PathBuf,
    /// Where CNI plugins are, in the order they are searched. Absolute.
    pub cni_plugin_dirs: Vec<PathBuf>,
    /// What becomes a CNI configuration once kubelet tells the pods' range. Absolute.
    pub cni_template: Option<PathBuf>,
    /// Host ports are served by the CNI network without a plugin that says so.
    pub cni_ports_elsewhere: bool,
    /// How long a CNI plugin may take; `None`: what is usual for its command.
    pub cni_timeout: Option<Duration>,
    /// The bridge's name.
    pub bridge: String,
    /// The ranges of pods on the bridge, at most one a family; empty: its default.
    pub subnets: Vec<(IpAddr, u8)>,
    /// In bytes; 0: that of the way out.
    pub mtu: u32,
    /// Pods on the bridge do not reach each other.
    pub isolate: bool,
    /// Pods on the bridge leave the machine with its address.
    pub masquerade: bool,
}

impl Settings {
    /// The usual places, and the driver chosen by what is there.
    #[must_use]
    pub fn new(root: PathBuf, state: PathBuf) -> Self {
        Self {
            driver: Choice::default(),
            root,
            state,
            netns_dir: PathBuf::from("/run/netns"),
            cni_config_dir: PathBuf::from("/etc/cni/net.d"),
            cni_plugin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            cni_template: None,
            cni_ports_elsewhere: false,
            cni_timeout: None,
            bridge: "aril0".to_owned(),
            subnets: Vec::new(),
            mtu: 0,
            isolate: false,
            masquerade: true,
        }
    }

    pub(super) fn of_bridge(&self) -> bridge::Settings {
        let usual = bridge::Settings::new(self.state.join("bridge"));
        bridge::Settings {
            name: self.bridge.clone(),
            subnets: if self.subnets.is_empty() { usual.subnets } else { self.subnets.clone() },
            mtu: (self.mtu != 0).then_some(self.mtu),
            isolated: self.isolate,
            masquerade: self.masquerade,
            state_dir: usual.state_dir,
        }
    }

    pub(super) fn of_cni(&self) -> cni::Settings {
        let usual = cni::Deadlines::default();
        cni::Settings {
            config_dir: self.cni_config_dir.clone(),
            plugin_dirs: self.cni_plugin_dirs.clone(),
            books: self.root.join("cni"),
            template: self.cni_template.clone(),
            ports_elsewhere: self.cni_ports_elsewhere,
            deadlines: match self.cni_timeout {
                Some(limit) => cni::Deadlines { add: limit, del: limit, ..usual },
                None => usual,
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
        let Ok(list) = std::fs::read_dir(&self.cni_config_dir) else { return false };
        list.flatten().any(is_configuration)
    }
}
