//! What is asked for a pod's network.

use std::net::IpAddr;

use super::sandbox::{cgroup_parent, host_network};
use super::{Defaults, SpecError, check};
use crate::api::cri;
use crate::id::SandboxId;
use crate::net::{Bandwidth, Dns, Ports, Protocol, Request};

/// "none": the pod is connected to no network, for which CRI has no word.
const NETWORK: &str = "aril/network";
/// Names for addresses, beside the pod's own: "NAME=ADDRESS", comma-separated. Kubelet writes the file itself, so CRI has
/// no field for it.
const HOSTS: &str = "aril/hosts";
/// Most of them.
const MAX_HOSTS: usize = 256;
/// Kubernetes' annotations of limits on traffic, in bits a second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What kubelet takes for a limit: 1k to 1P.
const MIN_BITS: u128 = 1_000;
const MAX_BITS: u128 = 1_000_000_000_000_000;

/// The longest quantity that is looked at.
const MAX_QUANTITY: usize = 32;

/// The network a pod asks for; `None` on the host's.
///
/// # Errors
/// [`SpecError`] naming the field below `config`, or the annotation.
///
/// Source: CRI v1 `PodSandboxConfig`; <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity>.
pub fn network(
    id: &SandboxId,
    config: &cri::PodSandboxConfig,
    defaults: &Defaults,
) -> Result<Option<Request>, SpecError> {
    let (ports, bandwidth) = check(config)?;
    if host_network(config) || is_alone(config)? {
        return Ok(None);
    }
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    Ok(Some(Request {
        id: id.clone(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        ports,
        bandwidth,
        dns: Dns { servers: dns.servers, searches: dns.searches, options: dns.options },
        ips: Vec::new(),
        mac: String::new(),
        cgroup_parent: cgroup_parent(config, defaults)?,
        annotations: config.annotations.clone().into_iter().collect(),
    }))
}

/// Whether a pod is to have loopback alone.
fn is_alone(config: &cri::PodSandboxConfig) -> Result<bool, SpecError> {
    match config.annotations.get(NETWORK).map(String::as_str) {
        None => Ok(false),
        Some("none") if config.port_mappings.iter().all(|port| port.host_port == 0) => Ok(true),
        Some("none") => Err(SpecError::invalid("port_mappings", "lead to a pod without a network")),
        Some(_) => Err(SpecError::invalid(format!("annotations[{NETWORK:?}]"), "is not \"none\"")),
    }
}

/// What needs more than to be handed on.
pub(super) fn check(config: &cri::PodSandboxConfig) -> Result<(Vec<Ports>, Bandwidth), SpecError> {
    let bandwidth = Bandwidth { ingress: bits(config, INGRESS)?, egress: bits(config, EGRESS)? };
    hosts(config)?;
    Ok((ports(config)?, bandwidth))
}

/// What a pod wants in `/etc/hosts` beside itself.
///
/// # Errors
/// [`SpecError`] naming the annotation.
pub fn hosts(config: &cri::PodSandboxConfig) -> Result<Vec<(IpAddr, String)>, SpecError> {
    let Some(text) = config.annotations.get(HOSTS).filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
    let invalid = |problem: String| SpecError::invalid(format!("annotations[{HOSTS:?}]"), problem);
    if text.split(',').count() > MAX_HOSTS {
        return Err(invalid(format!("has more than {MAX_HOSTS} entries")));
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let entry = |entry: &str| {
        let (name, address) = entry.split_once('=')?;
        let is_name = (1..=255).contains(&name.len()) && name.chars().all(is_plain) && !name.starts_with(['-', '.']);
        Some((address.parse().ok()?, name.to_owned())).filter(|_| is_name)
    };
    let shown = |entry: &str| entry.chars().take(80).collect::<String>();
    text.split(',').map(|e| entry(e).ok_or_else(|| invalid(format!("{:?} is not NAME=ADDRESS", shown(e))))).collect()
}

/// The host ports, each once. One that leads to two ports of the pod is refused: only the first would be reached.
fn ports(config: &cri::PodSandboxConfig) -> Result<Vec<Ports>, SpecError> {
    let mut ports: Vec<Ports> = Vec::new();
    for (i, port) in config.port_mappings.iter().enumerate() {
        let field = |name: &str| format!("port_mappings[{i}].{name}");
        let number = |name: &str, number: i32| {
            u16::try_from(number).map_err(|_| SpecError::invalid(field(name), format!("{number} is no port")))
        };
        let protocol = match check::known::<cri::Protocol>(&field("protocol"), port.protocol)? {
            cri::Protocol::Tcp => Protocol::Tcp,
            cri::Protocol::Udp => Protocol::Udp,
            cri::Protocol::Sctp => Protocol::Sctp,
        };
        let host_ip = match port.host_ip.as_str() {
            "" => None,
            text => {
                let ip =
                    text.parse::<IpAddr>().map_err(|_| SpecError::invalid(field("host_ip"), "is no IP address"))?;
                Some(ip).filter(|ip| !ip.is_unspecified())
            }
        };
        let (container_port, host_port) =
            (number("container_port", port.container_port)?, number("host_port", port.host_port)?);
        // Without a port of the host it is only said which port the container listens on.
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(SpecError::invalid(field("container_port"), "0 is no port to lead host_port to"));
        }
        let port = Ports { protocol, container_port, host_port, host_ip };
        let is_rival =
            |other: &&Ports| (other.protocol, other.host_port, other.host_ip) == (protocol, host_port, port.host_ip);
        match ports.iter().find(is_rival) {
            None => ports.push(port),
            Some(same) if same.container_port == container_port => {}
            Some(other) => {
                let problem = format!("{host_port} leads to container_port {} already", other.container_port);
                return Err(SpecError::invalid(field("host_port"), problem));
            }
        }
    }
    Ok(ports)
}

fn bits(config: &cri::PodSandboxConfig, annotation: &str) -> Result<Option<u64>, SpecError> {
    let Some(text) = config.annotations.get(annotation) else { return Ok(None) };
    let invalid = |problem: &str| {
        let shown: String = text.chars().take(80).collect();
        SpecError::invalid(format!("annotations[{annotation:?}]"), format!("{shown:?} {problem}"))
    };
    let value = quantity(text).ok_or_else(|| invalid("is no quantity like \"10M\""))?;
    if value < MIN_BITS {
        return Err(invalid("is less than 1k bits a second"));
    }
    if value > MAX_BITS {
        return Err(invalid("is more than 1P bits a second"));
    }
    Ok(u64::try_from(value).ok())
}

/// A Kubernetes quantity, rounded up. What is too large for any use comes out as the largest number; what is below zero is none.
fn quantity(text: &str) -> Option<u128> {
    if text.len() > MAX_QUANTITY {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (base, exponent): (u128, i32) = match suffix {
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "" => (10, 0),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        _ => (10, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let power = |base: u128, exponent: u32| base.checked_pow(exponent);
    let places = u32::try_from(fraction.len()).ok()?;
    let (up, down) = if exponent >= 0 { (exponent.unsigned_abs(), 0) } else { (0, exponent.unsigned_abs()) };
    let scaled = match power(base, up).and_then(|scale| digits.checked_mul(scale)) {
        Some(scaled) => scaled,
        None if digits == 0 => 0,
        None => return Some(u128::MAX),
    };
    let divisor = power(10, places.checked_add(down)?).unwrap_or(u128::MAX);
    Some(scaled.div_ceil(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ports: &[(i32, i32, &str)], annotations: &[(&str, &str)]) -> cri::PodSandboxConfig {
        let ports = ports.iter().map(|(container_port, host_port, host_ip)| cri::PortMapping {
            container_port: *container_port,
            host_port: *host_port,
            host_ip: (*host_ip).to_owned(),
            ..cri::PortMapping::default()
        });
        cri::PodSandboxConfig {
            port_mappings: ports.collect(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..cri::PodSandboxConfig::default()
        }
    }

    fn request(config: &cri::PodSandboxConfig) -> Result<Option<Request>, String> {
        let id = "a".repeat(64).parse().unwrap();
        network(&id, config, &Defaults::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn ports_without_one_on_the_host_are_left_out_and_each_is_once() {
        let all = [(80, 0, ""), (80, 8080, ""), (80, 8080, "0.0.0.0"), (80, 8080, "192.0.2.1"), (0, 0, "")];
        let request = request(&config(&all, &[])).unwrap().unwrap();
        let ports = request.ports.iter().map(|p| (p.container_port, p.host_port, p.host_ip.map(|ip| ip.to_string())));
        assert_eq!(ports.collect::<Vec<_>>(), [(80, 8080, None), (80, 8080, Some("192.0.2.1".to_owned()))]);
    }

    #[test]
    fn the_hosts_network_asks_for_nothing_but_is_checked() {
        let host = |mut config: cri::PodSandboxConfig| {
            let options = cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() };
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options = Some(options);
            config
        };
        assert_eq!(request(&host(config(&[(80, 8080, "")], &[]))), Ok(None));
        assert!(request(&host(config(&[(80, 70000, "")], &[]))).unwrap_err().contains("host_port"));
    }

    #[test]
    fn bandwidths_are_quantities_within_kubelets_limits() {
        for (text, bits) in [
            ("1k", 1_000),
            ("10M", 10_000_000),
            ("1.5M", 1_500_000),
            (".5G", 500_000_000),
            ("1Ki", 1024),
            ("0.5Mi", 524_288),
            ("+2e3", 2_000),
            ("1E6", 1_000_000),
            ("12345678901m", 12_345_679),
            ("1P", 1_000_000_000_000_000),
        ] {
            let request = request(&config(&[], &[(INGRESS, text), (EGRESS, "1M")])).unwrap().unwrap();
            assert_eq!(request.bandwidth, Bandwidth { ingress: Some(bits), egress: Some(1_000_000) }, "{text}");
        }
        for text in [
            "",
            "M",
            "10MB",
            "ten",
            "-1M",
            "1..5",
            "1.2.3k",
            "10 M",
            "999",
            "0",
            "1n",
            "1001T",
            "1E",
            "5Ei",
            "1e99",
            "1e-99",
            "1e9999999999",
            "99999999999999999999999999999999",
            "1000000000000000000000000000000000000000",
        ] {
            let error = request(&config(&[], &[(EGRESS, text)])).unwrap_err();
            assert!(error.contains(EGRESS), "{text}: {error}");
        }
    }
}
