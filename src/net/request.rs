//! What is asked for a pod's network, and what came of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::SandboxId;

/// What a pod's network is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The sandbox.
    pub id: SandboxId,
    /// The pod's name, namespace and uid in Kubernetes' words.
    pub name: String,
    /// See `name`.
    pub namespace: String,
    /// See `name`.
    pub uid: String,
    /// Host ports; those without a number on the host are not in it.
    #[serde(default)]
    pub ports: Vec<Ports>,
    /// Limits on traffic.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// The pod's DNS configuration, for drivers that hand it on.
    #[serde(default)]
    pub dns: Dns,
    /// Addresses asked for; empty: the driver chooses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// A hardware address asked for ("02:00:00:00:00:01"); empty: the driver chooses.
    #[serde(default)]
    pub mac: String,
    /// The cgroup below which the pod's cgroups are.
    #[serde(default)]
    pub cgroup_parent: String,
    /// The pod's annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// One host port. CRI `PortMapping`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ports {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod, never 0.
    pub container_port: u16,
    /// Port on the host, never 0.
    pub host_port: u16,
    /// The host's address it listens on; `None`: all of them, loopback included.
    pub host_ip: Option<IpAddr>,
}

/// Transport of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// "tcp", "udp", "sctp".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Limits on a pod's traffic in bits a second; `None`: no limit. From the annotations `kubernetes.io/ingress-bandwidth`
/// and `kubernetes.io/egress-bandwidth`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

/// CRI `DNSConfig`, or what a network says of name service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Dns {
    #[serde(default)]
    pub servers: Vec<String>,
    #[serde(default)]
    pub searches: Vec<String>,
    #[serde(default)]
    pub options: Vec<String>,
}

/// How a pod is connected; kept in its record, since the addresses must outlive the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the driver that made it.
    pub driver: String,
    /// The network's name ("aril", or that of the CNI configuration list).
    pub network: String,
    /// The pod's interface.
    pub interface: String,
    /// Its hardware address; may be empty.
    #[serde(default)]
    pub mac: String,
    /// Its MTU in bytes; 0: unknown.
    #[serde(default)]
    pub mtu: u32,
    /// The pod's addresses, the first one as `PodSandboxStatus.network.ip`.
    pub addresses: Vec<Address>,
    /// Routes that were set.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Host ports that lead to the pod.
    #[serde(default)]
    pub ports: Vec<Ports>,
    /// What the network says of name service; empty: nothing.
    #[serde(default)]
    pub dns: Dns,
    /// What was done less well than asked.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// An address with its network's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits that are the network's.
    pub prefix: u8,
    /// The way out, if there is one.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A route in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination and its length; 0: the default route.
    pub to: IpAddr,
    /// See `to`.
    pub prefix: u8,
    /// The next hop; `None`: on the link.
    pub via: Option<IpAddr>,
}
