//! A pod's shared environment.

use super::namespace::{self, Pod, PodPid};
use super::{Defaults, SpecError, check, network, security, user};
use crate::api::cri;
use crate::compile::sysctl::{self, Owned};
use crate::id::SandboxId;
use crate::plan;

/// The kernel's longest hostname (`__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;
/// Longest name and uid of a pod, well above what Kubernetes allows.
const MAX_NAME: usize = 253;
/// Entries of each DNS list.
const MAX_DNS: usize = 128;
/// Kernel parameters of one pod.
const MAX_SYSCTLS: usize = 256;

/// Whether the pod uses the host's network.
#[must_use]
pub fn host_network(config: &cri::PodSandboxConfig) -> bool {
    namespace::pod(config).is_ok_and(|pod| pod.host_network)
}

/// The plan of a sandbox; checks everything of the config that a sandbox is made from.
///
/// # Errors
/// [`SpecError`] naming the field below `config`.
///
/// Source: CRI v1 `RunPodSandboxRequest.config`.
pub fn sandbox_plan(
    id: &SandboxId,
    config: &cri::PodSandboxConfig,
    defaults: &Defaults,
) -> Result<plan::Sandbox, SpecError> {
    check_metadata(config)?;
    check_files(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    let pod = namespace::pod(config)?;
    namespace::user_namespace(context.namespace_options.as_ref())?;
    security::sandbox(&context, defaults)?;
    user::groups("linux.security_context.supplemental_groups", &context.supplemental_groups)?;
    network::check(config)?;

    let parent = cgroup_parent(config, defaults)?;
    let new_uts = !pod.host_network || !config.hostname.is_empty();
    Ok(plan::Sandbox {
        hostname: config.hostname.clone(),
        new_net: !pod.host_network,
        new_ipc: !pod.host_ipc,
        new_uts,
        shared_pid: pod.pid == PodPid::Shared,
        sysctls: sysctls(&linux, pod, new_uts, defaults)?,
        shm_size_bytes: if pod.host_ipc { 0 } else { defaults.shm_size_bytes },
        init_cgroup: format!("{parent}/aril-{id}"),
        cgroup_parent: parent,
    })
}

/// The cgroup below which all of the pod's cgroups are, without a slash at the end.
///
/// # Errors
/// [`SpecError::Invalid`] if what was asked for is no path of a cgroup.
pub fn cgroup_parent(config: &cri::PodSandboxConfig, defaults: &Defaults) -> Result<String, SpecError> {
    const FIELD: &str = "linux.cgroup_parent";
    let asked = config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
    if asked.is_empty() {
        return Ok(defaults.cgroup_parent.trim_end_matches('/').to_owned());
    }
    check::plain(FIELD, asked, check::MAX_PATH)?;
    if asked.trim_end_matches('/').ends_with(".slice") {
        let reason = format!(
            "{asked:?} is a systemd slice, but the cgroup driver here is cgroupfs; set kubelet's cgroupDriver to it"
        );
        return Err(SpecError::invalid(FIELD, reason));
    }
    if asked.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(SpecError::invalid(FIELD, format!("{asked:?} contains \".\" or \"..\"")));
    }
    let parts: Vec<&str> = asked.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("/{}", parts.join("/")))
}

fn check_metadata(config: &cri::PodSandboxConfig) -> Result<(), SpecError> {
    let metadata = config.metadata.as_ref().ok_or_else(|| SpecError::invalid("metadata", "missing"))?;
    for (field, text) in [
        ("metadata.name", &metadata.name),
        ("metadata.uid", &metadata.uid),
        ("metadata.namespace", &metadata.namespace),
    ] {
        if text.is_empty() {
            return Err(SpecError::invalid(field, "missing"));
        }
        check::plain(field, text, MAX_NAME)?;
    }
    Ok(())
}

/// Texts that go into the pod's files, where a stray line would be a setting, and its log directory.
fn check_files(config: &cri::PodSandboxConfig) -> Result<(), SpecError> {
    let name = config.hostname.as_str();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.len() > MAX_HOSTNAME || !name.chars().all(is_plain) || name.starts_with(['-', '.']) {
        let shown: String = name.chars().take(80).collect();
        let reason = format!(
            "{shown:?} is not a hostname: at most {MAX_HOSTNAME} letters, digits, '-', '.', '_', not starting with '-' or '.'"
        );
        return Err(SpecError::invalid("hostname", reason));
    }
    if !config.log_directory.is_empty() {
        check::absolute("log_directory", &config.log_directory)?;
    }
    let none = cri::DnsConfig::default();
    let dns = config.dns_config.as_ref().unwrap_or(&none);
    for (field, list) in [
        ("dns_config.servers", &dns.servers),
        ("dns_config.searches", &dns.searches),
        ("dns_config.options", &dns.options),
    ] {
        check::at_most(field, list, MAX_DNS)?;
        for (i, text) in list.iter().enumerate() {
            let field = format!("{field}[{i}]");
            check::plain(&field, text, MAX_NAME + 2)?;
            if text.is_empty() || text.contains(char::is_whitespace) {
                return Err(SpecError::invalid(field, format!("{text:?} is not one word")));
            }
        }
    }
    Ok(())
}

fn sysctls(
    linux: &cri::LinuxPodSandboxConfig,
    pod: Pod,
    new_uts: bool,
    defaults: &Defaults,
) -> Result<Vec<plan::Sysctl>, SpecError> {
    if linux.sysctls.len() > MAX_SYSCTLS {
        return Err(SpecError::invalid("linux.sysctls", format!("has more than {MAX_SYSCTLS} entries")));
    }
    let owned = Owned { net: !pod.host_network, ipc: !pod.host_ipc, uts: new_uts };
    let mut list: Vec<plan::Sysctl> = Vec::with_capacity(linux.sysctls.len() + 2);
    for (name, value) in &linux.sysctls {
        let shown: String = name.chars().take(80).collect();
        let field = format!("linux.sysctls[{shown:?}]");
        let checked = sysctl::check(name, value, owned).map_err(|e| SpecError::invalid(&field, e.to_string()))?;
        if list.iter().any(|s| s.name == checked.name) {
            return Err(SpecError::invalid(field, "given twice, with dots and with slashes"));
        }
        list.push(checked);
    }
    if defaults.unprivileged_ports && !pod.host_network {
        for (name, value) in
            [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")]
        {
            if list.iter().all(|s| s.name != name) {
                list.push(plan::Sysctl { name: name.to_owned(), value: value.to_owned() });
            }
        }
    }
    Ok(list)
}
