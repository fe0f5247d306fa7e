//! The table `[metrics]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::keys::Key;

/// Where the numbers for Prometheus are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A socket file. Absolute.
    Unix(PathBuf),
}

/// What the table says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// Where they are served; `None`: nowhere.
    pub address: Option<MetricsAddress>,
    /// That other machines may read them was thought of.
    pub allow_remote: bool,
}

/// The keys of the table, by their full names.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "metrics.address",
        wants: "an IP address with a port like \"127.0.0.1:9537\", or a socket like \"unix:///run/aril/metrics.sock\"",
        take: |raw, v| address(v.as_str()?).map(|address| raw.metrics.address = Some(address)),
    },
    Key {
        name: "metrics.allow_remote",
        wants: "true or false",
        take: |raw, v| v.as_bool().map(|b| raw.metrics.allow_remote = b),
    },
];

impl Metrics {
    /// The address that other machines reach though nobody said that they may.
    pub(super) fn exposed(&self) -> Option<SocketAddr> {
        match self.address {
            Some(MetricsAddress::Tcp(address)) if !self.allow_remote => {
                Some(address).filter(|address| !address.ip().to_canonical().is_loopback())
            }
            _ => None,
        }
    }
}

fn address(text: &str) -> Option<MetricsAddress> {
    if let Some(path) = text.strip_prefix("unix://") {
        let path = PathBuf::from(path);
        return (path.is_absolute() && path.file_name().is_some()).then_some(MetricsAddress::Unix(path));
    }
    text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0).map(MetricsAddress::Tcp)
}
