//! Host ports as the books know them.

use std::net::IpAddr;

use crate::net::{Ports, Protocol};

/// A host port as people compete for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub protocol: Protocol,
    pub port: u16,
    /// `None`: all addresses.
    pub host_ip: Option<IpAddr>,
}

impl Claim {
    pub fn of(port: &Ports) -> Self {
        Self { protocol: port.protocol, port: port.host_port, host_ip: port.host_ip }
    }

    /// Its file's name.
    pub fn name(&self) -> String {
        let host_ip = self.host_ip.map_or_else(|| "any".to_owned(), |ip| ip.to_string());
        format!("{}-{}-{host_ip}", self.protocol.as_str(), self.port)
    }

    /// Of its file's name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let protocol = match parts.next()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        let port = parts.next()?.parse().ok()?;
        let host_ip = match parts.next()? {
            "any" => None,
            ip => Some(ip.parse().ok()?),
        };
        Some(Self { protocol, port, host_ip })
    }
}

/// "host port 10.0.0.1:80/tcp".
pub fn port_name(port: &Ports) -> String {
    let host_ip = port.host_ip.map(|ip| format!("{ip} ")).unwrap_or_default();
    format!("host port {host_ip}{}/{}", port.host_port, port.protocol.as_str())
}
