//! What is done inside a pod's network namespace: its end of the pair, addresses, routes.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::link::{self, Link};
use super::netlink::{Batch, Refusal, Socket, attribute, emitted, number};
use super::range::Range;
use crate::net::{INTERFACE, NetError};

/// Length of `struct rtmsg`, and attributes of routes.
const ROUTE_HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;

/// How long the kernel may take for a fresh address, and how long it is given before it is asked again.
const SETTLED: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_micros(50);

/// A route of the namespace's tables, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination; all zero with length 0: the default route.
    pub to: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    /// Index of the device; 0: none.
    pub device: u32,
}

/// Sets up the pod's end, by a socket of its namespace.
///
/// # Errors
/// The step the kernel refused.
pub fn configure(socket: &mut Socket, addresses: &[(IpAddr, Range)]) -> Result<Link, Refusal> {
    let missing = Refusal { step: "look for device", errno: libc::ENODEV, text: String::new() };
    let device = link::by_name(socket, INTERFACE)?.ok_or(missing)?;
    if addresses.iter().any(|(ip, _)| ip.is_ipv6()) {
        // A neighbour that advertises itself as a router must not become the pod's. Without procfs there is no
        // such switch, and then no address of IPv6 either.
        fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/accept_ra"), "0").ok();
        fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"), "0").ok();
    }
    let mut batch = Batch::default();
    link::set_up(&mut batch, device.index);
    for (ip, range) in addresses {
        link::add_address(&mut batch, device.index, *ip, *range);
        // Behind its address: a next hop must be on a link that is up.
        add_default(&mut batch, device.index, range.gateway());
    }
    socket.all(batch, &[])?;
    Ok(device)
}

/// Waits until the kernel takes packets for these addresses of its own. For those of IPv6 that is a moment after they
/// were added: a worker of the kernel's joins their groups and routes them, till when what comes for them is lost, and
/// who looks for them asks again only after a second.
pub fn settle(socket: &mut Socket, addresses: impl IntoIterator<Item = IpAddr>) {
    for ip in addresses.into_iter().filter(IpAddr::is_ipv6) {
        let until = Instant::now() + SETTLED;
        let mut pause = FIRST_PAUSE;
        while !is_local(socket, ip) {
            if Instant::now() > until {
                tracing::debug!(%ip, "the kernel does not take packets for an address yet");
                break;
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
    }
}

/// Whether what comes for an address of IPv6 is the namespace's own.
pub fn is_local(socket: &mut Socket, ip: IpAddr) -> bool {
    /// Where `struct rtmsg` has the type, and that of the host's own addresses.
    const TYPE: usize = 7;
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = 128;
    message.attributes.push(RouteAttribute::Destination(ip.into()));
    let found = socket.get("look for route", libc::RTM_GETROUTE, &emitted(&message));
    found.is_ok_and(|found| found.is_some_and(|payload| payload.get(TYPE) == Some(&libc::RTN_LOCAL)))
}

fn add_default(batch: &mut Batch, device: u32, gateway: IpAddr) {
    let mut message = RouteMessage::default();
    message.header.address_family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    message.attributes.push(RouteAttribute::Oif(device));
    batch.message("add default route", libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &message);
}

/// The routes of the main table, both families.
///
/// # Errors
/// The kernel's refusal.
pub fn routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
    let mut list = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let answers = socket.dump("list routes", libc::RTM_GETROUTE, &emitted(&message))?;
        list.extend(answers.iter().filter_map(|(_, payload)| route(payload)));
    }
    Ok(list)
}

fn route(payload: &[u8]) -> Option<Route> {
    let attributes = payload.get(ROUTE_HEADER..)?;
    let get = |kind| attribute(attributes, kind);
    let is_v4 = i32::from(*payload.first()?) == libc::AF_INET;
    let table = get(RTA_TABLE).and_then(number).unwrap_or_else(|| payload[4].into());
    let nowhere = if is_v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then(|| Route {
        to: get(RTA_DST).and_then(link::ip).unwrap_or(nowhere),
        prefix: payload[1],
        gateway: get(RTA_GATEWAY).and_then(link::ip),
        device: get(RTA_OIF).and_then(number).unwrap_or(0),
    })
}

/// What of the pod's end is missing; empty: nothing.
///
/// # Errors
/// The kernel's refusal.
pub fn missing(socket: &mut Socket, addresses: &[(IpAddr, Range)]) -> Result<Vec<String>, Refusal> {
    let Some(device) = link::by_name(socket, INTERFACE)? else {
        return Ok(vec![format!("device {INTERFACE}")]);
    };
    let mut list = Vec::new();
    if !device.is_up {
        list.push(format!("{INTERFACE} is not up"));
    }
    let (has, routes) = (link::addresses(socket, device.index)?, routes(socket)?);
    for (ip, range) in addresses {
        if !has.contains(&(*ip, range.prefix())) {
            list.push(format!("address {ip}/{}", range.prefix()));
        }
        let gateway = range.gateway();
        if !routes.iter().any(|route| route.prefix == 0 && route.gateway == Some(gateway)) {
            list.push(format!("default route by {gateway}"));
        }
    }
    Ok(list)
}

/// A failure to enter the namespace.
pub fn entering(source: io::Error) -> NetError {
    NetError::Kernel { step: "enter network namespace", object: "of the pod".into(), source }
}
