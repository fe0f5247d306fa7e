//! Host ports beyond the table: whether a process of the host has one, and connections that outlive their pod.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use super::books::{Pod, port_name};
use super::link;
use super::netlink::{Batch, Refusal, Socket, attribute};
use super::nftables::Attributes;
use crate::net::{NetError, Ports, Protocol};

/// Whether a port can be had of the calling thread's namespace: it is bound for a moment.
///
/// Returns what to tell of the port, if it is free but will not be reached.
///
/// # Errors
/// [`NetError::Taken`] if a process listens there.
pub fn try_bind(port: &Ports) -> Result<Option<String>, NetError> {
    let all = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    let addresses = port.host_ip.as_ref().map_or(&all[..], std::slice::from_ref);
    for ip in addresses {
        let Err(e) = bind_once(port.protocol, SocketAddr::new(*ip, port.host_port)) else { continue };
        match e.raw_os_error() {
            // No IPv6: then nobody listens by it either.
            Some(libc::EAFNOSUPPORT) => {}
            Some(libc::EADDRINUSE) => {
                return Err(NetError::Taken { what: port_name(port), owner: "a process of the host".into() });
            }
            Some(libc::EADDRNOTAVAIL) => {
                // All addresses of a family that is switched off are none.
                let is_asked = port.host_ip.is_some();
                return Ok(is_asked.then(|| format!("{}: the host does not have that address", port_name(port))));
            }
            _ => return Err(NetError::Kernel { step: "try", object: port_name(port), source: e }),
        }
    }
    Ok(None)
}

/// The standard library lets a TCP port be bound of which only ended connections are left, as servers do.
fn bind_once(protocol: Protocol, address: SocketAddr) -> io::Result<()> {
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
        // The host's own SCTP is a module that is hardly ever loaded, and has no sockets in the standard library.
        Protocol::Sctp => Ok(()),
    }
}

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`: a conversation as it began, and as answers to it are.
const BEGUN: u16 = 1;
const ANSWERED: u16 = 2;

/// A UDP conversation that the host tracks.
struct Conversation {
    /// Where its first datagram went.
    to: SocketAddr,
    /// Who answers: another than `to`, if that was a host port of a pod.
    by: IpAddr,
    /// By what the kernel finds it.
    answers: Vec<u8>,
}

/// Makes the host forget the UDP conversations with a pod by its host ports: they have no end, so a client that goes on
/// talking would talk to the dead pod for as long as it does.
///
/// # Errors
/// The kernel's refusal.
pub fn forget_with(socket: &mut Socket, pod: &Pod) -> Result<(), Refusal> {
    forget(socket, pod, |found| found.retain(|one| pod.addresses.iter().any(|(ip, _)| *ip == one.by)))
}

/// Makes the host forget the UDP conversations by a pod's host ports that began before it was there, with nobody or with
/// another pod: a client that goes on talking would not be led to this one. `route` tells which addresses are the host's.
///
/// # Errors
/// The kernel's refusal.
pub fn forget_before(socket: &mut Socket, route: &mut Socket, pod: &Pod) -> Result<(), Refusal> {
    let mut failed = None;
    forget(socket, pod, |found| {
        found.retain(|one| !pod.addresses.iter().any(|(ip, _)| *ip == one.by));
        if found.is_empty() {
            return;
        }
        let own = link::all_addresses(route).unwrap_or_else(|e| {
            failed = Some(e);
            Vec::new()
        });
        found.retain(|one| one.to.ip().is_loopback() || own.contains(&one.to.ip()));
    })?;
    failed.map_or(Ok(()), Err)
}

fn forget(socket: &mut Socket, pod: &Pod, pick: impl FnOnce(&mut Vec<Conversation>)) -> Result<(), Refusal> {
    let is_udp = |port: &&Ports| port.protocol == Protocol::Udp;
    let ports: Vec<&Ports> = pod.ports.iter().filter(is_udp).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        if pod.addresses.iter().any(|(ip, _)| ip.is_ipv4() == (family == libc::AF_INET)) {
            found.extend(conversations(socket, family, &ports)?);
        }
    }
    pick(&mut found);
    let mut batch = Batch::default();
    for one in &found {
        let family = if one.to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let answers = Attributes::default().nest(ANSWERED, &Attributes(one.answers.clone()));
        // IPCTNL_MSG_CT_DELETE.
        let payload = [&header(family)[..], &answers.0].concat();
        batch.push("forget UDP conversation", message(2), netlink_packet_core::NLM_F_ACK, &payload);
    }
    if batch.is_empty() { Ok(()) } else { socket.all(batch, &[libc::ENOENT]) }
}

fn header(family: i32) -> [u8; 4] {
    [u8::try_from(family).unwrap_or_default(), 0, 0, 0]
}

fn message(kind: i32) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8 | kind).unwrap_or_default()
}

/// The UDP conversations by these host ports.
///
/// Picked out here: the kernel's own filter by an address of IPv6 takes all but that one (seen with Linux 6.18), by ports
/// it takes one alone, and before Linux 5.8 there is none.
fn conversations(socket: &mut Socket, family: i32, ports: &[&Ports]) -> Result<Vec<Conversation>, Refusal> {
    /// `CTA_FILTER_F_CTA_PROTO_NUM`, `…_DST_PORT`: what of the tuple counts.
    const PROTOCOL: u32 = 1 << 3;
    const PORT: u32 = 1 << 5;
    const UDP: [u8; 1] = [17];
    let (source, reached) = if family == libc::AF_INET { (1, 2) } else { (3, 4) };
    let (mut tuple, mut counts) = (Attributes::default().put(1, &UDP), PROTOCOL);
    if let [port] = ports {
        (tuple, counts) = (tuple.put(3, &port.host_port.to_be_bytes()), counts | PORT);
    }
    let filter = Attributes::default().put(1, &counts.to_ne_bytes()).put(2, &0u32.to_ne_bytes());
    let asked = Attributes::default().nest(BEGUN, &Attributes::default().nest(2, &tuple)).nest(25, &filter);
    // IPCTNL_MSG_CT_GET.
    let answers = socket.dump("list UDP conversations", message(1), &[&header(family)[..], &asked.0].concat())?;
    let one = |payload: &[u8]| {
        let attributes = payload.get(header(family).len()..)?;
        let part = |tuple, part, kind| attribute(attribute(attribute(attributes, tuple)?, part)?, kind);
        if part(BEGUN, 2, 1)? != UDP {
            return None;
        }
        let port = u16::from_be_bytes(part(BEGUN, 2, 3)?.try_into().ok()?);
        let to = SocketAddr::new(link::ip(part(BEGUN, 1, reached)?)?, port);
        let is_of = |ours: &&Ports| ours.host_port == port && ours.host_ip.is_none_or(|ip| ip == to.ip());
        let answers = attribute(attributes, ANSWERED)?.to_vec();
        let by = link::ip(part(ANSWERED, 1, source)?)?;
        ports.iter().any(|ours| is_of(ours)).then_some(Conversation { to, by, answers })
    };
    Ok(answers.iter().filter_map(|(_, payload)| one(payload)).collect())
}
