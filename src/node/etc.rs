//! The three files of `/etc` every container of a pod sees.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::NodeError;
use super::spec;
use crate::api::cri;
use crate::net;
use crate::plan;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved listens, and where it lists the servers it asks.
const STUB: &str = "127.0.0.53";
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// `/etc/resolv.conf` from the pod's DNS config; none means the host's own.
///
/// Entries go in as they are given: that each is one word was checked with the rest of the config.
#[must_use]
pub fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// Whether the pod brings a DNS config of its own.
#[must_use]
pub fn has_dns(dns: Option<&cri::DnsConfig>) -> bool {
    dns.is_some_and(|d| !(d.servers.is_empty() && d.searches.is_empty() && d.options.is_empty()))
}

/// `/etc/hosts` of a pod with a network of its own: itself, by its addresses or else by one of loopback's.
#[must_use]
pub fn hosts(hostname: &str, addresses: &[net::Address]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if hostname.is_empty() {
        return text;
    }
    if addresses.is_empty() {
        text += &format!("127.0.1.1\t{hostname}\n");
    }
    for address in addresses {
        text += &format!("{}\t{hostname}\n", address.ip);
    }
    text
}

/// The files of `/etc` all containers of the pod see. Returns what was done less well than one might expect.
///
/// # Errors
/// [`NodeError::Io`] if a file of the host cannot be read or one of the pod's not written.
pub(super) fn write(
    dir: &Path,
    config: &cri::PodSandboxConfig,
    plan: &plan::Sandbox,
    network: Option<&net::Attachment>,
) -> Result<Vec<String>, NodeError> {
    let hostname = if plan.hostname.is_empty() { host_name() } else { plan.hostname.clone() };
    let addresses = network.map(|network| &network.addresses[..]).unwrap_or_default();
    // On the host's network the host's names hold.
    let mut hosts = if plan.new_net { hosts(&hostname, addresses).into_bytes() } else { host_file(HOSTS)? };
    if hosts.last().is_some_and(|last| *last != b'\n') {
        hosts.push(b'\n');
    }
    for (address, name) in spec::hosts(config)? {
        hosts.extend(format!("{address}\t{name}\n").bytes());
    }
    let of_network = network.map(|network| of_driver(&network.dns));
    let mut warnings = Vec::new();
    let resolv = match config.dns_config.as_ref().filter(|dns| has_dns(Some(dns))).cloned().or(of_network) {
        Some(dns) if has_dns(Some(&dns)) => resolv_conf(&dns).into_bytes(),
        _ if plan.new_net => {
            let host = host_file(RESOLV_CONF)?;
            let (text, dropped) = without_loopback(&String::from_utf8_lossy(&host), || host_file(UPSTREAM).ok());
            warnings.extend(dropped);
            text.into_bytes()
        }
        _ => host_file(RESOLV_CONF)?,
    };
    for (name, bytes) in [("hosts", hosts), ("hostname", format!("{hostname}\n").into_bytes()), ("resolv.conf", resolv)]
    {
        let path = dir.join(name);
        write_public(&path, &bytes).map_err(NodeError::io("write", &path))?;
    }
    Ok(warnings)
}

/// What a network says of name service. That each entry is one word is checked here: a plugin said it.
fn of_driver(dns: &net::Dns) -> cri::DnsConfig {
    let words = |list: &[String]| {
        let is_word =
            |text: &&String| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        list.iter().filter(is_word).cloned().collect()
    };
    cri::DnsConfig { servers: words(&dns.servers), searches: words(&dns.searches), options: words(&dns.options) }
}

/// The host's `resolv.conf` for a pod with a network of its own, where the host's loopback is out of reach: in place of
/// systemd-resolved's stub the file with the servers behind it, and of what is left no name server on loopback. If that
/// leaves none, there is none: which server of the world to ask is not for a runtime to choose. Says what was dropped.
fn without_loopback(host: &str, upstream: impl FnOnce() -> Option<Vec<u8>>) -> (String, Option<String>) {
    let server = |line: &str| -> Option<String> {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().map(str::to_owned)).flatten()
    };
    let is_stub = host.lines().filter_map(server).any(|server| server == STUB);
    let upstream = if is_stub { upstream().filter(|bytes| !bytes.is_empty()) } else { None };
    let text = upstream.map_or_else(|| host.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
    let on_loopback =
        |line: &&str| server(line).and_then(|server| server.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_loopback());
    let dropped: Vec<String> = text.lines().filter(on_loopback).filter_map(server).collect();
    let mut kept: String = text.lines().filter(|line| !on_loopback(line)).flat_map(|line| [line, "\n"]).collect();
    if dropped.is_empty() {
        return (text, None);
    }
    let rest = kept.lines().filter_map(server).count();
    if kept.trim().is_empty() {
        kept.clear();
    }
    let left = if rest == 0 { "no name server is left; " } else { "" };
    let warning = format!(
        "resolv.conf: name server {} of the host is on its loopback, which a pod cannot reach; {left}give the pod a DNS configuration",
        dropped.join(", ")
    );
    (kept, Some(warning))
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

/// A file of the host's; empty if it has none.
fn host_file(path: &str) -> Result<Vec<u8>, NodeError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(NodeError::io("read", path)),
    }
}

/// Readable by whatever user a container runs as, whatever our own umask.
fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_entries_come_out_verbatim() {
        let dns = cri::DnsConfig {
            servers: vec!["10.10.10.10".into(), "fe80::1%eth0".into()],
            searches: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:8".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.example b.example\nnameserver 10.10.10.10\nnameserver fe80::1%eth0\noptions ndots:8\n"
        );
        assert!(has_dns(Some(&dns)) && !has_dns(Some(&cri::DnsConfig::default())) && !has_dns(None));
    }

    #[test]
    fn a_pod_knows_itself() {
        assert!(hosts("web-0", &[]).ends_with("127.0.1.1\tweb-0\n"));
        assert!(!hosts("", &[]).contains("127.0.1.1"));
        let address = |ip: &str| net::Address { ip: ip.parse().unwrap(), prefix: 24, gateway: None };
        let both = hosts("web-0", &[address("10.88.0.7"), address("fd00::7")]);
        assert!(both.ends_with("10.88.0.7\tweb-0\nfd00::7\tweb-0\n") && !both.contains("127.0.1.1"), "{both}");
    }

    #[test]
    fn name_servers_on_the_hosts_loopback_are_not_for_pods() {
        let none = || -> Option<Vec<u8>> { panic!("nobody asked for it") };
        let plain = "search a.example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0";
        assert_eq!(without_loopback(plain, none), (plain.to_owned(), None));

        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        let behind = || Some(b"nameserver 192.0.2.7\n".to_vec());
        assert_eq!(without_loopback(stub, behind), ("nameserver 192.0.2.7\n".to_owned(), None));
        let (text, warning) = without_loopback(stub, || None);
        assert_eq!(text, "options edns0\n");
        assert!(warning.unwrap().contains("no name server is left"));

        let (text, warning) = without_loopback("nameserver 127.0.0.1\nnameserver ::1\nnameserver 192.0.2.1\n", none);
        assert_eq!(text, "nameserver 192.0.2.1\n");
        let warning = warning.unwrap();
        assert!(warning.contains("127.0.0.1, ::1") && !warning.contains("is left"), "{warning}");
    }

    #[test]
    fn what_a_plugin_says_of_name_service_breaks_out_of_no_line() {
        let dns = net::Dns { servers: vec!["192.0.2.1".into(), "1\nsearch evil".into()], ..Default::default() };
        assert_eq!(resolv_conf(&of_driver(&dns)), "nameserver 192.0.2.1\n");
    }
}
