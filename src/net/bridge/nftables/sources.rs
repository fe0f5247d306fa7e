//! What pods may say that they are: a pod with raw sockets, which containers have by default, could otherwise answer for
//! its neighbours and for the router.
//!
//! What a port of the bridge takes in must come from its pod's hardware address and from one of its addresses, in the
//! headers and in what ARP and neighbour discovery say. Nobody there is a router, and nothing but ARP and IP is spoken.

use std::net::{IpAddr, Ipv6Addr};

use super::attributes::{Expressions, REGISTER, Verdict};
use super::rules::{Content, Element, FROM, Layout, Map, compare_network, device, octets};
use crate::id::SandboxId;
use crate::net::bridge::books::Pod;
use crate::net::bridge::link::{Mac, host_end};

pub const CHAIN: &str = "sources";
pub const ENDS: Map = Map { name: "ends", content: Content::Ends };
pub const SOURCES4: Map = Map { name: "sources4", content: Content::Sources { is_v4: true } };
pub const SOURCES6: Map = Map { name: "sources6", content: Content::Sources { is_v4: false } };

/// Where the parts of a key are: the device's name is four registers long, a hardware address two.
const HARDWARE: u32 = REGISTER + 4;
const ADDRESS: u32 = HARDWARE + 2;
/// Headers of a packet.
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// A pod's elements. Without its hardware address, which is known once its sandbox is, nothing is said of it, and it may
/// say what it likes.
pub fn elements(id: &SandboxId, pod: &Pod) -> Vec<Element> {
    let Some(mac) = pod.mac else { return Vec::new() };
    let name = device(&host_end(id));
    let source = |ip: IpAddr| {
        let map = if ip.is_ipv4() { SOURCES4 } else { SOURCES6 };
        let key = [&name[..], &mac[..], &[0; 2], &octets(ip)].concat();
        Element { map, key, data: Vec::new() }
    };
    let mut list = vec![Element { map: ENDS, key: name.clone(), data: Vec::new() }];
    list.extend(pod.addresses.iter().map(|(ip, _)| source(*ip)));
    if pod.addresses.iter().any(|(ip, _)| ip.is_ipv6()) {
        // What is said by who has no address yet, and by the one that the kernel makes by itself.
        list.extend([source(Ipv6Addr::UNSPECIFIED.into()), source(link_local(mac).into())]);
    }
    list
}

/// The address of a device that is good on its link alone (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The chain's rules.
pub fn rules() -> Vec<Expressions> {
    const ARP: u16 = 0x0806;
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;
    let spoken = |kind: u16| {
        Expressions::default().meta(libc::NFT_META_PROTOCOL, REGISTER).compare(REGISTER, true, &kind.to_be_bytes())
    };
    let named = |rule: Expressions| rule.meta(libc::NFT_META_IIFNAME, REGISTER);
    let from = |rule: Expressions| named(rule).payload(LINK, 6, 6, HARDWARE);
    let neighbour = |kind: u8| {
        let icmp = spoken(IPV6).meta(libc::NFT_META_L4PROTO, REGISTER).compare(REGISTER, true, &[58]);
        icmp.payload(TRANSPORT, 0, 1, REGISTER).compare(REGISTER, true, &[kind])
    };
    let [v4, v6] = [SOURCES4.name, SOURCES6.name];
    vec![
        // Whatever else is a port of the bridge is none of ours.
        named(Expressions::default()).listed(ENDS.name, false).verdict(Verdict::Return),
        from(spoken(ARP))
            .payload(NETWORK, 14, 4, ADDRESS)
            .listed(v4, true)
            // Who it says that has the address: the header may be another's.
            .payload(NETWORK, 8, 6, HARDWARE)
            .listed(v4, true)
            .verdict(Verdict::Return),
        from(spoken(IPV4)).payload(NETWORK, 12, 4, ADDRESS).listed(v4, true).verdict(Verdict::Return),
        neighbour(ROUTER_ADVERTISEMENT).verdict(Verdict::Drop),
        neighbour(REDIRECT).verdict(Verdict::Drop),
        from(neighbour(NEIGHBOUR_ADVERTISEMENT))
            .payload(TRANSPORT, 8, 16, ADDRESS)
            .listed(v6, false)
            .verdict(Verdict::Drop),
        from(spoken(IPV6)).payload(NETWORK, 8, 16, ADDRESS).listed(v6, true).verdict(Verdict::Return),
        Expressions::default().verdict(Verdict::Drop),
    ]
}

/// Where the kernel cannot tell ports apart: what comes from the bridge to be routed must be of the pods' ranges.
pub fn of_ranges(layout: &Layout) -> Vec<Expressions> {
    let link_local = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0]);
    let entered = || {
        let entered = Expressions::default().meta(libc::NFT_META_IIFNAME, REGISTER);
        entered.compare(REGISTER, true, &device(&layout.bridge))
    };
    let one_family = |is_v4: bool| {
        let ranges = layout.ranges.iter().filter(|range| range.is_v4() == is_v4);
        let mut known: Vec<(IpAddr, u8)> = ranges.map(|range| (range.network(), range.prefix())).collect();
        if known.is_empty() {
            return None;
        }
        if !is_v4 {
            known.extend([(link_local, 10), (Ipv6Addr::UNSPECIFIED.into(), 128)]);
        }
        let foreign =
            known.into_iter().fold(entered(), |rule, (ip, prefix)| compare_network(rule, FROM, ip, prefix, false));
        Some(foreign.verdict(Verdict::Drop))
    };
    [true, false].into_iter().filter_map(one_family).collect()
}
