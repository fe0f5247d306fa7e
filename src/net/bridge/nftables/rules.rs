//! The content of the tables: chains, rules, maps. Pure.
//!
//! One table of the family `inet` serves both families with one set of hooks; NAT in it needs Linux 5.2. One of the
//! family `bridge`, by the same name, looks at what comes out of pods before the bridge does ([`super::sources`]).

use std::net::IpAddr;

use super::attributes::{Expressions, REGISTER, Verdict};
use super::sources;
use crate::id::SandboxId;
use crate::net::bridge::books::Pod;
use crate::net::bridge::range::Range;
use crate::net::{Ports, Protocol};

/// Whose packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Those of IPv4 and IPv6 that the host receives, routes or sends.
    Inet,
    /// Those that come to a port of a bridge.
    Bridge,
}

/// A chain, with its place if packets come by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    pub family: Family,
    pub name: &'static str,
    /// Type, hook, priority.
    pub hook: Option<(&'static str, u32, i32)>,
}

/// The chains. Priorities: before connection tracking; where destinations, where sources are translated.
pub const CHAINS: [Chain; 7] = [
    inet("ports", None),
    inet("guard", Some(("filter", 0, -300))),
    inet("prerouting", Some(("nat", 0, -100))),
    inet("forward", Some(("filter", 2, 0))),
    inet("output", Some(("nat", 3, -100))),
    inet("postrouting", Some(("nat", 4, 100))),
    Chain { family: Family::Bridge, name: sources::CHAIN, hook: Some(("filter", 0, -300)) },
];

const fn inet(name: &'static str, hook: Option<(&'static str, u32, i32)>) -> Chain {
    Chain { family: Family::Inet, name, hook }
}

/// A map, or a set: then its entries have no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Map {
    pub name: &'static str,
    pub content: Content,
}

/// What is in a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// From what a host port is to where it leads.
    Ports {
        is_v4: bool,
        /// Whether the host's address is part of the key.
        by_address: bool,
    },
    /// The names of pods' ports of the bridge.
    Ends,
    /// By which port which hardware address has which address.
    Sources { is_v4: bool },
}

fn address_length(is_v4: bool) -> u32 {
    if is_v4 { 4 } else { 16 }
}

impl Map {
    pub fn family(self) -> Family {
        if matches!(self.content, Content::Ports { .. }) { Family::Inet } else { Family::Bridge }
    }

    /// Bytes of a key: its parts, each padded to four.
    pub fn key_length(self) -> u32 {
        match self.content {
            Content::Ports { is_v4, by_address: true } => address_length(is_v4) + 8,
            Content::Ports { .. } => 8,
            Content::Ends => 16,
            Content::Sources { is_v4 } => 16 + 8 + address_length(is_v4),
        }
    }

    /// Bytes of a value: address and port; 0: a set's.
    pub fn data_length(self) -> u32 {
        match self.content {
            Content::Ports { is_v4, .. } => address_length(is_v4) + 4,
            _ => 0,
        }
    }

    /// Types as nft(8) shows them: of key and value, six bits a part.
    pub fn types(self) -> (u32, u32) {
        const HARDWARE: u32 = 9;
        const PROTOCOL: u32 = 12;
        const PORT: u32 = 13;
        const DEVICE: u32 = 41;
        let address = |is_v4| if is_v4 { 7 } else { 8 };
        match self.content {
            Content::Ports { is_v4, by_address } => {
                let key = (PROTOCOL << 6) | PORT;
                let address = address(is_v4);
                (if by_address { (address << 12) | key } else { key }, (address << 6) | PORT)
            }
            Content::Ends => (DEVICE, 0),
            Content::Sources { is_v4 } => ((DEVICE << 12) | (HARDWARE << 6) | address(is_v4), 0),
        }
    }
}

/// The maps of host ports, those by address, which are asked first, before the others; then the sets.
pub const MAPS: [Map; 7] = [
    Map { name: "host4", content: Content::Ports { is_v4: true, by_address: true } },
    Map { name: "any4", content: Content::Ports { is_v4: true, by_address: false } },
    Map { name: "host6", content: Content::Ports { is_v4: false, by_address: true } },
    Map { name: "any6", content: Content::Ports { is_v4: false, by_address: false } },
    sources::ENDS,
    sources::SOURCES4,
    sources::SOURCES6,
];

/// An entry of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub map: Map,
    pub key: Vec<u8>,
    /// Empty in a set.
    pub data: Vec<u8>,
}

pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The elements of a pod: its host ports, and what it may say that it is.
pub fn elements(id: &SandboxId, pod: &Pod) -> Vec<Element> {
    let ports = pod.ports.iter().flat_map(|port| MAPS.iter().filter_map(|map| element(*map, port, pod)));
    ports.chain(sources::elements(id, pod)).collect()
}

fn element(map: Map, port: &Ports, pod: &Pod) -> Option<Element> {
    let Content::Ports { is_v4, by_address } = map.content else { return None };
    if port.host_ip.is_some() != by_address || port.host_ip.is_some_and(|ip| ip.is_ipv4() != is_v4) {
        return None;
    }
    let (pod_ip, _) = pod.addresses.iter().find(|(ip, _)| ip.is_ipv4() == is_v4)?;
    let protocol = match port.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let mut key = port.host_ip.map(octets).unwrap_or_default();
    key.extend([protocol, 0, 0, 0]);
    key.extend(padded(port.host_port));
    let data = [octets(*pod_ip), padded(port.container_port).to_vec()].concat();
    Some(Element { map, key, data })
}

/// What the rules are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub bridge: String,
    pub ranges: Vec<Range>,
    pub isolated: bool,
    pub masquerade: bool,
    /// Whether the kernel has tables of the family `bridge`.
    pub by_port: bool,
}

/// Rules with their chains, in order.
pub fn rules(layout: &Layout) -> Vec<(&'static str, Expressions)> {
    let mut list = guard(layout);
    if layout.by_port {
        list.extend(sources::rules().into_iter().map(|rule| (sources::CHAIN, rule)));
    } else {
        list.extend(sources::of_ranges(layout).into_iter().map(|rule| ("guard", rule)));
    }
    // What comes from outside for 127.0.0.1 is none of ours: it is for the routing code to drop.
    list.push(("prerouting", network(REACHED, LOOPBACK.0, LOOPBACK.1).verdict(Verdict::Return)));
    // The kernel cannot lead a connection from ::1 out of the host: the daemon listens there.
    let itself = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
    list.push(("output", in_network(Expressions::default(), REACHED, itself, 128).verdict(Verdict::Return)));
    for chain in ["prerouting", "output"] {
        list.push((chain, Expressions::default().reaching_this_host().verdict(Verdict::Jump("ports"))));
    }
    list.extend(MAPS.iter().filter_map(|map| lead(*map)).map(|rule| ("ports", rule)));
    list.extend(postrouting(layout).into_iter().map(|rule| ("postrouting", rule)));
    if layout.isolated {
        // Port isolation ends where the host routes: from one pod by the gateway to the next.
        let name = device(&layout.bridge);
        let both = Expressions::default().meta(libc::NFT_META_IIFNAME, REGISTER).compare(REGISTER, true, &name);
        let both = both.meta(libc::NFT_META_OIFNAME, REGISTER).compare(REGISTER, true, &name);
        list.push(("forward", both.translated(false).verdict(Verdict::Drop)));
    }
    list
}

const LOOPBACK: ([u8; 4], u8) = ([127, 0, 0, 0], 8);
/// Which address of a packet.
pub const FROM: bool = true;
const REACHED: bool = false;

/// The bridge takes packets for 127.0.0.1, so that answers to the host's own connections find home; from pods none may
/// come that says so itself (CVE-2020-8558). Before connection tracking those answers still have another destination.
fn guard(layout: &Layout) -> Vec<(&'static str, Expressions)> {
    let one = |side| {
        let entered = Expressions::default().meta(libc::NFT_META_IIFNAME, REGISTER);
        let entered = entered.compare(REGISTER, true, &device(&layout.bridge));
        ("guard", in_network(entered, side, LOOPBACK.0.into(), LOOPBACK.1).verdict(Verdict::Drop))
    };
    vec![one(FROM), one(REACHED)]
}

/// Leads host ports to pods.
fn lead(map: Map) -> Option<Expressions> {
    let Content::Ports { is_v4, by_address } = map.content else { return None };
    let mut rule = family(Expressions::default(), is_v4);
    let mut register = REGISTER;
    if by_address {
        rule = rule.payload(1, if is_v4 { 16 } else { 24 }, address_length(is_v4), register);
        register += address_length(is_v4) / 4;
    }
    let rule = rule.meta(libc::NFT_META_L4PROTO, register).payload(2, 2, 2, register + 1);
    Some(rule.map(map.name).translate_destination(is_v4))
}

fn postrouting(layout: &Layout) -> Vec<Expressions> {
    let to_pods = || {
        let left = Expressions::default().meta(libc::NFT_META_OIFNAME, REGISTER);
        left.compare(REGISTER, true, &device(&layout.bridge))
    };
    let within = |rule, range: &Range| in_network(rule, FROM, range.network(), range.prefix());
    // A pod that reached itself or a neighbour by a host port: the answer must come back by the host.
    let mut list: Vec<Expressions> =
        layout.ranges.iter().map(|range| within(to_pods().translated(true), range).masquerade()).collect();
    // The host that reached a pod by its own loopback: no pod could answer.
    list.push(in_network(to_pods(), FROM, LOOPBACK.0.into(), LOOPBACK.1).masquerade());
    list.push(to_pods().verdict(Verdict::Return));
    if layout.masquerade {
        list.push(network(REACHED, [224, 0, 0, 0], 4).verdict(Verdict::Return));
        let multicast = IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]);
        list.push(in_network(Expressions::default(), REACHED, multicast, 8).verdict(Verdict::Return));
        list.extend(layout.ranges.iter().map(|range| within(Expressions::default(), range).masquerade()));
    }
    list
}

/// A device's name as packets carry it.
pub fn device(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}

pub fn family(rule: Expressions, is_v4: bool) -> Expressions {
    let family = if is_v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
    rule.meta(libc::NFT_META_NFPROTO, REGISTER).compare(REGISTER, true, &[u8::try_from(family).unwrap_or_default()])
}

fn network(is_from: bool, ip: [u8; 4], prefix: u8) -> Expressions {
    in_network(Expressions::default(), is_from, ip.into(), prefix)
}

/// Goes on if the source or the destination lies in a network.
fn in_network(rule: Expressions, is_from: bool, ip: IpAddr, prefix: u8) -> Expressions {
    compare_network(rule, is_from, ip, prefix, true)
}

/// Goes on if the source or the destination lies in a network, or does not but is of its family.
pub fn compare_network(rule: Expressions, is_from: bool, ip: IpAddr, prefix: u8, lies_in: bool) -> Expressions {
    let (offset, length) = match (ip.is_ipv4(), is_from) {
        (true, true) => (12, 4),
        (true, false) => (16, 4),
        (false, true) => (8, 16),
        (false, false) => (24, 16),
    };
    let mask = match ip {
        IpAddr::V4(_) => (!u32::MAX.checked_shr(prefix.into()).unwrap_or(0)).to_be_bytes().to_vec(),
        IpAddr::V6(_) => (!u128::MAX.checked_shr(prefix.into()).unwrap_or(0)).to_be_bytes().to_vec(),
    };
    family(rule, ip.is_ipv4()).payload(1, offset, length, REGISTER).mask(REGISTER, &mask).compare(
        REGISTER,
        lies_in,
        &octets(ip),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SandboxId {
        SandboxId::from_random([3; 32])
    }

    fn pod(ports: Vec<Ports>) -> Pod {
        let address = |ip: &str, range: &str| (ip.parse().unwrap(), range.parse().unwrap());
        let addresses = vec![address("10.9.0.2", "10.9.0.0/24"), address("fd09::2", "fd09::/64")];
        Pod { addresses, ports, ..Pod::default() }
    }

    #[test]
    fn a_host_port_of_all_addresses_is_one_element_a_family() {
        let port = Ports { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
        let list = elements(&id(), &pod(vec![port]));
        assert_eq!(list.iter().map(|e| e.map.name).collect::<Vec<_>>(), ["any4", "any6"]);
        assert_eq!(list[0].key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(list[0].data, [10, 9, 0, 2, 0, 80, 0, 0]);
    }

    #[test]
    fn keys_and_values_have_the_length_of_their_map() {
        for host_ip in [None, Some("10.0.0.1".parse().unwrap()), Some("::1".parse().unwrap())] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let mut pod = pod(vec![Ports { protocol, container_port: 1, host_port: 2, host_ip }]);
                pod.mac = Some([2, 0, 0, 0, 0, 1]);
                for e in elements(&id(), &pod) {
                    let lengths = (e.key.len(), e.data.len());
                    assert_eq!(lengths, (e.map.key_length() as usize, e.map.data_length() as usize));
                }
            }
        }
    }

    #[test]
    fn every_rule_is_in_a_chain_of_the_table() {
        let ranges = vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()];
        let layout = Layout { bridge: "aril0".into(), ranges, isolated: true, masquerade: true, by_port: true };
        for (chain, _) in rules(&layout) {
            assert!(CHAINS.iter().any(|known| known.name == chain), "{chain}");
        }
        let plain = Layout { isolated: false, masquerade: false, ..layout.clone() };
        assert!(rules(&plain).len() < rules(&layout).len());
    }
}
