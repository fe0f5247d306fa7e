//! The three files of `/etc` every container of a pod sees.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::NodeError;
use crate::api::cri;
use crate::plan;

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

/// `/etc/hosts` of a pod with a network of its own: itself, by every loopback address.
#[must_use]
pub fn hosts(hostname: &str) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        text += &format!("127.0.1.1\t{hostname}\n");
    }
    text
}

/// The files of `/etc` all containers of the pod see.
///
/// # Errors
/// [`NodeError::Io`] if a file of the host cannot be read or one of the pod's not written.
pub(super) fn write(dir: &Path, config: &cri::PodSandboxConfig, plan: &plan::Sandbox) -> Result<(), NodeError> {
    let hostname = if plan.hostname.is_empty() { host_name() } else { plan.hostname.clone() };
    // On the host's network the host's names hold.
    let hosts = if plan.new_net { hosts(&hostname).into_bytes() } else { host_file("/etc/hosts")? };
    let resolv = match &config.dns_config {
        Some(dns) if has_dns(Some(dns)) => resolv_conf(dns).into_bytes(),
        _ => host_file("/etc/resolv.conf")?,
    };
    for (name, bytes) in [("hosts", hosts), ("hostname", format!("{hostname}\n").into_bytes()), ("resolv.conf", resolv)]
    {
        let path = dir.join(name);
        write_public(&path, &bytes).map_err(NodeError::io("write", &path))?;
    }
    Ok(())
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
        assert!(hosts("web-0").ends_with("127.0.1.1\tweb-0\n"));
        assert!(!hosts("").contains("127.0.1.1"));
    }
}
