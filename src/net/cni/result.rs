//! What ADD answers (CNI specification, section 5), read strictly: whatever a plugin says of a pod's addresses ends up
//! in what kubelet hands to everybody.
//!
//! The shapes of 0.3.1 to 1.1.0 differ by fields that are added or left out, so one reader does for all.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::super::{Address, Attachment, Dns, INTERFACE, Ports, Route};
use super::error::{one_line, quoted};
use super::version::Version;

/// Entries of each list of a result.
const MOST_ENTRIES: usize = 1024;
/// Addresses of one pod.
const MOST_ADDRESSES: usize = 32;
/// Longest name of a domain or option.
const LONGEST_NAME: usize = 255;
/// The kernel's number for the table that routes are looked up in.
const MAIN_TABLE: u64 = 254;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    cni_version: Option<String>,
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Ip>>,
    routes: Option<Vec<Path>>,
    dns: Option<Names>,
}

#[derive(Deserialize)]
struct Interface {
    name: Option<String>,
    mac: Option<String>,
    mtu: Option<u32>,
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    gateway: Option<String>,
    interface: Option<u64>,
}

#[derive(Deserialize)]
struct Path {
    dst: String,
    gw: Option<String>,
    table: Option<u64>,
}

#[derive(Deserialize, Default)]
struct Names {
    nameservers: Option<Vec<String>>,
    domain: Option<String>,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

/// The text of an answer as JSON, to be handed on as it is.
///
/// # Errors
/// A sentence if it is no object.
pub(super) fn object(answer: &[u8]) -> Result<Box<RawValue>, String> {
    let wrong = |why: &str| format!("answered with no result ({why}) but {}", quoted(answer));
    let text = std::str::from_utf8(answer).map_err(|_| wrong("not UTF-8"))?;
    let raw: Box<RawValue> = serde_json::from_str(text).map_err(|e| wrong(&one_line(&e.to_string(), 80)))?;
    if raw.get().starts_with('{') { Ok(raw) } else { Err(wrong("no object")) }
}

/// How the pod is connected by the last plugin's result.
///
/// # Errors
/// A sentence saying what of the result is wrong.
pub(super) fn attachment(raw: &RawValue, network: &str, ports: &[Ports]) -> Result<Attachment, String> {
    let answer: Answer =
        serde_json::from_str(raw.get()).map_err(|e| format!("its result: {}", one_line(&e.to_string(), 200)))?;
    check_version(answer.cni_version.as_deref())?;
    let interfaces = few("interfaces", answer.interfaces, MOST_ENTRIES)?;
    let ours = pods_interface(&interfaces);
    let addresses = addresses(few("ips", answer.ips, MOST_ENTRIES)?, &interfaces, ours)?;
    let routes = routes(few("routes", answer.routes, MOST_ENTRIES)?, &addresses)?;
    let mine = ours.and_then(|index| interfaces.get(index));
    let mac = mine.and_then(|i| i.mac.as_deref()).unwrap_or_default();
    if !is_mac(mac) {
        return Err(format!("mac {:?} of {INTERFACE} is no hardware address", one_line(mac, 40)));
    }
    Ok(Attachment {
        driver: super::NAME.to_owned(),
        network: network.to_owned(),
        interface: INTERFACE.to_owned(),
        mac: mac.to_ascii_lowercase(),
        mtu: mine.and_then(|i| i.mtu).unwrap_or(0),
        addresses,
        routes,
        ports: ports.to_vec(),
        dns: names(answer.dns.unwrap_or_default())?,
        warnings: Vec::new(),
    })
}

/// A result with what an attachment says, for a network whose result was lost.
pub(super) fn rebuilt(attachment: &Attachment, version: Version) -> serde_json::Result<Box<RawValue>> {
    let ips = attachment.addresses.iter().map(|address| {
        let mut ip = json!({ "address": format!("{}/{}", address.ip, address.prefix) });
        if let Some(gateway) = address.gateway {
            ip["gateway"] = json!(gateway);
        }
        if version < Version::V1_0_0 {
            ip["version"] = json!(if address.ip.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    let routes = attachment.routes.iter().map(|route| {
        let mut path = json!({ "dst": format!("{}/{}", route.to, route.prefix) });
        if let Some(via) = route.via {
            path["gw"] = json!(via);
        }
        path
    });
    let dns = &attachment.dns;
    to_raw_value(&json!({
        "cniVersion": version.as_str(),
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": { "nameservers": dns.servers, "search": dns.searches, "options": dns.options },
    }))
}

/// Plugins that name no version mean that of the request; those of before 0.3.1 have another shape.
fn check_version(version: Option<&str>) -> Result<(), String> {
    match version {
        Some(other) if !other.is_empty() && other != "0.3.0" && Version::known(other).is_none() => {
            Err(format!("its result has cniVersion {:?}, which aril does not speak", one_line(other, 40)))
        }
        _ => Ok(()),
    }
}

fn few<T>(what: &str, list: Option<Vec<T>>, most: usize) -> Result<Vec<T>, String> {
    let list = list.unwrap_or_default();
    if list.len() > most { Err(format!("its result has {} {what}, more than {most}", list.len())) } else { Ok(list) }
}

/// The interface of the pod's name; the one in a sandbox, if the host has one of that name too.
fn pods_interface(interfaces: &[Interface]) -> Option<usize> {
    let named = |i: &Interface| i.name.as_deref() == Some(INTERFACE);
    let inside = |i: &Interface| i.sandbox.as_deref().is_some_and(|s| !s.is_empty());
    interfaces.iter().position(|i| named(i) && inside(i)).or_else(|| interfaces.iter().position(named))
}

/// Those of the pod's interface, and those that name no interface.
fn addresses(ips: Vec<Ip>, interfaces: &[Interface], ours: Option<usize>) -> Result<Vec<Address>, String> {
    let mut found = Vec::new();
    for ip in ips {
        let index = ip.interface.map(|index| usize::try_from(index).unwrap_or(usize::MAX));
        if let Some(index) = index.filter(|&index| index >= interfaces.len()) {
            return Err(format!(
                "its address {:?} is of interface {index}, which is not listed",
                one_line(&ip.address, 60)
            ));
        }
        let address = address(&ip)?;
        if (index.is_none() || index == ours) && !found.contains(&address) {
            found.push(address);
        }
    }
    match found.len() {
        0 => Err(format!("its result has no address for {INTERFACE} of the pod")),
        n if n > MOST_ADDRESSES => Err(format!("its result has {n} addresses, more than {MOST_ADDRESSES}")),
        _ => Ok(found),
    }
}

fn address(ip: &Ip) -> Result<Address, String> {
    let shown = one_line(&ip.address, 60);
    let (address, prefix) = cidr(&ip.address).ok_or_else(|| format!("ips: {shown:?} is no address with its length"))?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!("ips: {shown} cannot be a pod's address"));
    }
    Ok(Address { ip: address, prefix, gateway: hop("gateway", ip.gateway.as_deref())? })
}

fn routes(paths: Vec<Path>, addresses: &[Address]) -> Result<Vec<Route>, String> {
    let mut found = Vec::new();
    // Tables of their own are for those who look into them.
    for path in paths.into_iter().filter(|p| p.table.is_none_or(|table| table == 0 || table == MAIN_TABLE)) {
        let shown = one_line(&path.dst, 60);
        let (to, prefix) = cidr(&path.dst).ok_or_else(|| format!("routes: {shown:?} is no network"))?;
        let gateway = || addresses.iter().find(|a| a.ip.is_ipv4() == to.is_ipv4()).and_then(|a| a.gateway);
        found.push(Route { to, prefix, via: hop("gw", path.gw.as_deref())?.or_else(gateway) });
    }
    Ok(found)
}

fn hop(what: &str, text: Option<&str>) -> Result<Option<IpAddr>, String> {
    let wrong = |text: &str| format!("{what}: {:?} is no address", one_line(text, 60));
    text.filter(|text| !text.is_empty()).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn names(names: Names) -> Result<Dns, String> {
    let servers = few("nameservers", names.nameservers, MOST_ADDRESSES)?;
    if let Some(wrong) = servers.iter().find(|s| s.parse::<IpAddr>().is_err()) {
        return Err(format!("dns: {:?} is no address", one_line(wrong, 60)));
    }
    let mut searches = few("search domains", names.search, MOST_ADDRESSES)?;
    if searches.is_empty() {
        searches.extend(names.domain.filter(|domain| !domain.is_empty()));
    }
    let options = few("options", names.options, MOST_ADDRESSES)?;
    let is_word = |text: &String| text.len() <= LONGEST_NAME && text.chars().all(|c| c.is_ascii_graphic());
    if let Some(wrong) = searches.iter().chain(&options).find(|text| !is_word(text)) {
        return Err(format!("dns: {:?} is no domain or option", one_line(wrong, 60)));
    }
    Ok(Dns { servers, searches, options })
}

/// An address and the length of its network.
pub(super) fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let is_number = !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
    let length = is_number.then(|| length.parse().ok()).flatten()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

/// Empty, or pairs of hexadecimal digits, as many as Ethernet (6) to InfiniBand (20) have.
fn is_mac(text: &str) -> bool {
    let pairs = || text.split(':');
    let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    text.is_empty() || (matches!(pairs().count(), 6 | 8 | 20) && pairs().all(is_pair))
}
