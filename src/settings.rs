//! What the network of pods can be told, in one place for those who read it and those who follow it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

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

/// What the network of pods is to be. Checked in its form by `config`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Network {
    /// Which driver; decided anew for each pod.
    pub driver: Choice,
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
    /// How long a CNI plugin may take for ADD or DEL; `None`: what is usual for its command.
    pub cni_timeout: Option<Duration>,
    /// How long all plugins of a CNI network together may take for ADD or DEL; `None`: as usual, or as long as one of
    /// them may.
    pub cni_total_timeout: Option<Duration>,
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

impl Default for Network {
    /// The usual places, and the driver chosen by what is there.
    fn default() -> Self {
        Self {
            driver: Choice::default(),
            netns_dir: PathBuf::from("/run/netns"),
            cni_config_dir: PathBuf::from("/etc/cni/net.d"),
            cni_plugin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            cni_template: None,
            cni_ports_elsewhere: false,
            cni_timeout: None,
            cni_total_timeout: None,
            bridge: "aril0".to_owned(),
            subnets: Vec::new(),
            mtu: 0,
            isolate: false,
            masquerade: true,
        }
    }
}
