//! What a pod asks for, in CNI's two ways: arguments for all plugins, and capabilities for those that declare them.

use std::collections::BTreeMap;

use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::super::{NetError, Request};
use super::list::NetworkList;

/// The capability's name for annotations, as other runtimes have it.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The least burst, in bits: a few of the largest packets the kernel makes.
const LEAST_BURST: u64 = 4 * (64 << 10) * 8;

/// Capability arguments by capability.
pub(super) type Capabilities = BTreeMap<&'static str, Box<RawValue>>;

/// CNI_ARGS: whose pod it is. Plugins that do not know the keys are told to pass over them.
///
/// # Errors
/// [`NetError::Invalid`] for a value that would end the pair it is in.
pub(super) fn args(request: &Request) -> Result<String, NetError> {
    let pairs = [
        ("IgnoreUnknown", "1", "IgnoreUnknown"),
        ("K8S_POD_NAMESPACE", &*request.namespace, "metadata.namespace"),
        ("K8S_POD_NAME", &*request.name, "metadata.name"),
        ("K8S_POD_INFRA_CONTAINER_ID", request.id.as_str(), "id"),
        ("K8S_POD_UID", &*request.uid, "metadata.uid"),
    ];
    let is_bad = |c: char| matches!(c, ';' | '=') || c.is_control();
    if let Some((_, value, field)) = pairs.iter().find(|(_, value, _)| value.contains(is_bad)) {
        let reason = format!("{:?} has a ';', '=' or control character, which CNI_ARGS cannot hold", value);
        return Err(NetError::Invalid { field: (*field).to_owned(), reason });
    }
    Ok(pairs.map(|(key, value, _)| format!("{key}={value}")).join(";"))
}

/// CNI_ARGS of a sandbox of which nothing is known but its id.
pub(super) fn bare_args(id: &crate::id::SandboxId) -> String {
    format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={id}")
}

/// Whether the plugins of a list can do what is asked; what they only do less well is returned as warnings.
///
/// # Errors
/// [`NetError::Unsupported`] naming the field and the capability nobody declares.
pub(super) fn check(request: &Request, list: &NetworkList, ports_elsewhere: bool) -> Result<Vec<String>, NetError> {
    let asked = [
        ("port_mappings", "portMappings", !request.ports.is_empty() && !ports_elsewhere, "portmap"),
        ("ips", "ips", !request.ips.is_empty(), "static"),
        ("mac", "mac", !request.mac.is_empty(), "tuning"),
    ];
    let refused = asked.into_iter().find(|(_, capability, asked, _)| *asked && !list.declares(capability));
    if let Some((field, capability, _, example)) = refused {
        let reason = format!(
            "no plugin of CNI network {} declares the capability {capability}, so it would be ignored: add one that does, \
             such as {example} with \"capabilities\": {{\"{capability}\": true}}",
            list.name
        );
        return Err(NetError::Unsupported { field: field.to_owned(), reason });
    }
    let mut warnings = Vec::new();
    let limits = request.bandwidth.ingress.is_some() || request.bandwidth.egress.is_some();
    if limits && !list.declares("bandwidth") {
        let name = &list.name;
        warnings
            .push(format!("traffic is not limited: no plugin of CNI network {name} declares the capability bandwidth"));
    }
    Ok(warnings)
}

/// Everything a plugin may declare that is known of this pod.
pub(super) fn capabilities(request: &Request) -> serde_json::Result<Capabilities> {
    let mut all = Capabilities::new();
    let mut insert = |name, value: serde_json::Value| -> serde_json::Result<()> {
        all.insert(name, to_raw_value(&value)?);
        Ok(())
    };
    if !request.ports.is_empty() {
        insert("portMappings", request.ports.iter().map(port).collect())?;
    }
    let bandwidth = bandwidth(request);
    if !bandwidth.is_empty() {
        insert("bandwidth", bandwidth.into())?;
    }
    if !request.ips.is_empty() {
        insert("ips", json!(request.ips))?;
    }
    if !request.mac.is_empty() {
        insert("mac", json!(request.mac))?;
    }
    let dns = &request.dns;
    if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) {
        insert("dns", json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }))?;
    }
    if !request.cgroup_parent.is_empty() {
        insert("cgroupPath", json!(request.cgroup_parent))?;
    }
    if !request.annotations.is_empty() {
        insert(ANNOTATIONS, json!(request.annotations))?;
    }
    Ok(all)
}

fn port(port: &super::super::Ports) -> serde_json::Value {
    let mut value = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.as_str(),
    });
    if let Some(ip) = port.host_ip {
        value["hostIP"] = json!(ip);
    }
    value
}

/// Rates in bits a second, bursts in bits. CNI has no "none" for bursts, and one as large as it may be would let half a
/// gigabyte through before a limit counts: a tenth of a second's worth does not.
fn bandwidth(request: &Request) -> serde_json::Map<String, serde_json::Value> {
    let mut map = serde_json::Map::new();
    let both = [("ingress", request.bandwidth.ingress), ("egress", request.bandwidth.egress)];
    for (name, rate) in both.into_iter().filter_map(|(name, rate)| Some((name, rate?))) {
        map.insert(format!("{name}Rate"), json!(rate));
        map.insert(format!("{name}Burst"), json!((rate / 10).clamp(LEAST_BURST, u64::from(u32::MAX))));
    }
    map
}
