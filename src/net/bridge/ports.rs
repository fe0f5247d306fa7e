//! Host ports beyond the table: whether a process of the host has one, and connections that outlive their pod.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use super::books::port_name;
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

/// Makes the host forget the UDP conversations with a pod by a host port: they have no end, so a client that goes on
/// talking would talk to the dead pod for as long as it does.
///
/// Looked for by port and picked out here: the kernel's own filter by an address of IPv6 takes all but that one (seen
/// with Linux 6.18), and before Linux 5.8 there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn forget_udp(socket: &mut Socket, ip: IpAddr, host_port: u16) -> Result<(), Refusal> {
    /// `CTA_FILTER_F_CTA_PROTO_NUM`, `…_DST_PORT`: what of the tuple counts.
    const PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;
    const UDP: [u8; 1] = [17];
    let (family, source, octets) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, 1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, 3, ip.octets().to_vec()),
    };
    let header = [u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    let port = host_port.to_be_bytes();
    let tuple = Attributes::default().nest(2, &Attributes::default().put(1, &UDP).put(3, &port));
    let filter = Attributes::default().put(1, &PROTOCOL_AND_PORT.to_ne_bytes()).put(2, &0u32.to_ne_bytes());
    let asked = Attributes::default().nest(BEGUN, &tuple).nest(25, &filter);
    let kind = |message: i32| u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8 | message).unwrap_or_default();
    // IPCTNL_MSG_CT_GET.
    let found = socket.dump("list UDP conversations", kind(1), &[&header[..], &asked.0].concat())?;
    let mut batch = Batch::default();
    for (_, payload) in &found {
        let Some(attributes) = payload.get(header.len()..) else { continue };
        let part = |tuple, part, kind| attribute(attribute(attribute(attributes, tuple)?, part)?, kind);
        // Answers come from the pod.
        let is_ours = part(ANSWERED, 1, source) == Some(&octets[..])
            && part(BEGUN, 2, 1) == Some(&UDP[..])
            && part(BEGUN, 2, 3) == Some(&port[..]);
        if let Some(tuple) = attribute(attributes, ANSWERED).filter(|_| is_ours) {
            let one = Attributes::default().nest(ANSWERED, &Attributes(tuple.to_vec()));
            // IPCTNL_MSG_CT_DELETE.
            let payload = [&header[..], &one.0].concat();
            batch.push("forget UDP conversation", kind(2), netlink_packet_core::NLM_F_ACK, &payload);
        }
    }
    if batch.is_empty() { Ok(()) } else { socket.all(batch, &[libc::ENOENT]) }
}
