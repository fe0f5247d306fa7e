//! What all pods need of the host: forwarding, switches of the bridge, ranges that nobody else routes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::netlink::Socket;
use super::pod::{Route, routes};
use super::range::Range;
use crate::net::NetError;

const SYSCTL: &str = "/proc/sys/net";

fn path(name: &str) -> PathBuf {
    Path::new(SYSCTL).join(name)
}

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(path(name)).ok()?.trim().to_owned())
}

/// Writes a switch unless it is so already; `true`: it was otherwise.
fn set(name: &str, value: &str) -> Result<bool, NetError> {
    if read(name).as_deref() == Some(value) {
        return Ok(false);
    }
    let failed = |source: io::Error| NetError::Io { step: "set", path: path(name), source };
    fs::write(path(name), value).map_err(failed).map(|()| true)
}

/// Whether packets that only cross a bridge meet the rules for routed ones (br_netfilter). What is sent back to where
/// it came from is then sent by the bridge itself, whose ports must allow that.
pub fn filters_bridges() -> bool {
    let is_on = |name| read(name).is_some_and(|value| value != "0");
    is_on("bridge/bridge-nf-call-iptables") || is_on("bridge/bridge-nf-call-ip6tables")
}

/// Whether the kernel speaks IPv6.
pub fn has_ipv6() -> bool {
    path("ipv6/conf").is_dir()
}

/// Lets the calling thread's namespace forward packets, and the bridge serve pods.
///
/// # Errors
/// [`NetError::Io`] naming the switch.
pub fn prepare(bridge: &str, ranges: &[Range]) -> Result<(), NetError> {
    if ranges.iter().any(|range| range.is_v4()) && set("ipv4/ip_forward", "1")? {
        tracing::info!(bridge, "turned on forwarding of IPv4 (net.ipv4.ip_forward) for pods");
    }
    if ranges.iter().any(|range| !range.is_v4()) {
        set(&format!("ipv6/conf/{bridge}/disable_ipv6"), "0")?;
        // A pod must not pose as the host's router (CVE-2020-10749).
        set(&format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
        if read("ipv6/conf/all/forwarding").as_deref() != Some("1") {
            keep_router_advertisements(bridge);
            set("ipv6/conf/all/forwarding", "1")?;
            tracing::info!(bridge, "turned on forwarding of IPv6 (net.ipv6.conf.all.forwarding) for pods");
        }
    }
    Ok(())
}

/// Lets the host's own connections to 127.0.0.1 reach host ports. The table must be there, which keeps pods from abusing it.
///
/// # Errors
/// [`NetError::Io`] naming the switch.
pub fn let_loopback_in(bridge: &str, ranges: &[Range]) -> Result<(), NetError> {
    if ranges.iter().any(|range| range.is_v4()) {
        set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
    }
    Ok(())
}

/// A host that forwards does not listen to routers any more unless told so: those who did go on.
fn keep_router_advertisements(bridge: &str) {
    let Ok(listing) = fs::read_dir(path("ipv6/conf")) else { return };
    for entry in listing.filter_map(Result::ok) {
        let device = entry.file_name().to_string_lossy().into_owned();
        let name = format!("ipv6/conf/{device}/accept_ra");
        if ["all", "default", "lo", bridge].contains(&device.as_str()) || read(&name).as_deref() != Some("1") {
            continue;
        }
        match set(&name, "2") {
            Ok(_) => tracing::info!(device, "kept router advertisements on though the host forwards (accept_ra=2)"),
            Err(e) => tracing::warn!(device, error = %e, "could not keep router advertisements on"),
        }
    }
}

/// The first route of somebody else to one of the ranges or a part of it. A wider one, as a default route or a VPN's
/// halves of the internet, leads to what the bridge does not.
///
/// # Errors
/// [`NetError::Kernel`].
pub fn overlap(socket: &mut Socket, ranges: &[Range], bridge: u32) -> Result<Option<(Range, Route)>, NetError> {
    let routes = routes(socket).map_err(|refusal| refusal.about("of the host"))?;
    let others = routes.into_iter().filter(|route| route.device != bridge || bridge == 0);
    let mut pairs = others.filter_map(|route| {
        let range = ranges.iter().find(|range| range.contains(route.to) && route.prefix >= range.prefix())?;
        Some((*range, route))
    });
    Ok(pairs.next())
}
