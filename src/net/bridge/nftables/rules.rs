//! The table's content: chains, rules, maps. Pure.
//!
//! One table of the family `inet` serves both families with one set of hooks; NAT in it needs Linux 5.2.

use std::net::IpAddr;

use super::attributes::{Expressions, REGISTER, Verdict};
use crate::net::bridge::books::Pod;
use crate::net::bridge::range::Range;
use crate::net::{Ports, Protocol};

/// A chain, with its place if packets come by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    /// Type, hook, priority.
    pub hook: Option<(&'static str, u32, i32)>,
}

/// The chains. Priorities: before connection tracking; where destinations, where sources are translated.
pub const CHAINS: [Chain; 6] = [
    Chain { name: "ports", hook: None },
    Chain { name: "guard", hook: Some(("filter", 0, -300)) },
    Chain { name: "prerouting", hook: Some(("nat", 0, -100)) },
    Chain { name: "forward", hook: Some(("filter", 2, 0)) },
    Chain { name: "output", hook: Some(("nat", 3, -100)) },
    Chain { name: "postrouting", hook: Some(("nat", 4, 100)) },
];

/// A map from what a host port is to where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Map {
    pub name: &'static str,
    pub is_v4: bool,
    /// Whether the host's address is part of the key.
    pub by_address: bool,
}

impl Map {
    fn address_length(self) -> u32 {
        if self.is_v4 { 4 } else { 16 }
    }

    /// Bytes of a key: address, protocol and port, each padded to four.
    pub fn key_length(self) -> u32 {
        if self.by_address { self.address_length() + 8 } else { 8 }
    }

    /// Bytes of a value: address and port.
    pub fn data_length(self) -> u32 {
        self.address_length() + 4
    }

    /// Types as nft(8) shows them: of key and value, six bits a part.
    pub fn types(self) -> (u32, u32) {
        const PROTOCOL: u32 = 12;
        const PORT: u32 = 13;
        let address = if self.is_v4 { 7 } else { 8 };
        let key = (PROTOCOL << 6) | PORT;
        (if self.by_address { (address << 12) | key } else { key }, (address << 6) | PORT)
    }
}

/// The maps; those by address are asked first.
pub const MAPS: [Map; 4] = [
    Map { name: "host4", is_v4: true, by_address: true },
    Map { name: "any4", is_v4: true, by_address: false },
    Map { name: "host6", is_v4: false, by_address: true },
    Map { name: "any6", is_v4: false, by_address: false },
];

/// An entry of a map: one host port of one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub map: Map,
    pub key: Vec<u8>,
    pub data: Vec<u8>,
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The elements of a pod's host ports.
pub fn elements(pod: &Pod) -> Vec<Element> {
    pod.ports.iter().flat_map(|port| MAPS.iter().filter_map(|map| element(*map, port, pod))).collect()
}

fn element(map: Map, port: &Ports, pod: &Pod) -> Option<Element> {
    if port.host_ip.is_some() != map.by_address || port.host_ip.is_some_and(|ip| ip.is_ipv4() != map.is_v4) {
        return None;
    }
    let (pod_ip, _) = pod.addresses.iter().find(|(ip, _)| ip.is_ipv4() == map.is_v4)?;
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
}

/// Rules with their chains, in order.
pub fn rules(layout: &Layout) -> Vec<(&'static str, Expressions)> {
    let mut list = guard(layout);
    // What comes from outside for 127.0.0.1 is none of ours: it is for the routing code to drop.
    list.push(("prerouting", network(REACHED, LOOPBACK.0, LOOPBACK.1).verdict(Verdict::Return)));
    // The kernel cannot lead a connection from ::1 out of the host: the daemon listens there.
    let itself = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
    list.push(("output", in_network(Expressions::default(), REACHED, itself, 128).verdict(Verdict::Return)));
    for chain in ["prerouting", "output"] {
        list.push((chain, Expressions::default().reaching_this_host().verdict(Verdict::Jump("ports"))));
    }
    list.extend(MAPS.iter().map(|map| ("ports", lead(*map))));
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
const FROM: bool = true;
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
fn lead(map: Map) -> Expressions {
    let mut rule = family(Expressions::default(), map.is_v4);
    let mut register = REGISTER;
    if map.by_address {
        rule = rule.payload(1, if map.is_v4 { 16 } else { 24 }, map.address_length(), register);
        register += map.address_length() / 4;
    }
    rule.meta(libc::NFT_META_L4PROTO, register)
        .payload(2, 2, 2, register + 1)
        .map(map.name)
        .translate_destination(map.is_v4)
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
fn device(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}

fn family(rule: Expressions, is_v4: bool) -> Expressions {
    let family = if is_v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
    rule.meta(libc::NFT_META_NFPROTO, REGISTER).compare(REGISTER, true, &[u8::try_from(family).unwrap_or_default()])
}

fn network(is_from: bool, ip: [u8; 4], prefix: u8) -> Expressions {
    in_network(Expressions::default(), is_from, ip.into(), prefix)
}

/// Goes on if the source or the destination lies in a network.
fn in_network(rule: Expressions, is_from: bool, ip: IpAddr, prefix: u8) -> Expressions {
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
        true,
        &octets(ip),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ports: Vec<Ports>) -> Pod {
        let address = |ip: &str, range: &str| (ip.parse().unwrap(), range.parse().unwrap());
        let addresses = vec![address("10.9.0.2", "10.9.0.0/24"), address("fd09::2", "fd09::/64")];
        Pod { addresses, ports, ..Pod::default() }
    }

    #[test]
    fn a_host_port_of_all_addresses_is_one_element_a_family() {
        let port = Ports { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
        let list = elements(&pod(vec![port]));
        assert_eq!(list.iter().map(|e| e.map.name).collect::<Vec<_>>(), ["any4", "any6"]);
        assert_eq!(list[0].key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(list[0].data, [10, 9, 0, 2, 0, 80, 0, 0]);
    }

    #[test]
    fn keys_and_values_have_the_length_of_their_map() {
        for host_ip in [None, Some("10.0.0.1".parse().unwrap()), Some("::1".parse().unwrap())] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                for e in elements(&pod(vec![Ports { protocol, container_port: 1, host_port: 2, host_ip }])) {
                    let lengths = (e.key.len(), e.data.len());
                    assert_eq!(lengths, (e.map.key_length() as usize, e.map.data_length() as usize));
                }
            }
        }
    }

    #[test]
    fn every_rule_is_in_a_chain_of_the_table() {
        let ranges = vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()];
        let layout = Layout { bridge: "aril0".into(), ranges, isolated: true, masquerade: true };
        for (chain, _) in rules(&layout) {
            assert!(CHAINS.iter().any(|known| known.name == chain), "{chain}");
        }
        let plain = Layout { isolated: false, masquerade: false, ..layout.clone() };
        assert!(rules(&plain).len() < rules(&layout).len());
    }
}
