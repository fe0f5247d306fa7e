//! Host ports beyond the table: whether a process of the host has one, and connections that outlive their pod.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use super::books::port_name;
use super::netlink::{Batch, Refusal, Socket};
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

/// Makes the host forget the UDP conversations with a pod: they have no end, so a client that goes on talking would talk
/// to the dead pod for as long as it does.
///
/// # Errors
/// The kernel's refusal; before Linux 5.8 it cannot do that.
pub fn forget_udp(socket: &mut Socket, ip: IpAddr) -> Result<(), Refusal> {
    /// `CTA_FILTER_F_CTA_IP_SRC`, `…_PROTO_NUM`: what of the tuple counts.
    const SOURCE_AND_PROTOCOL: u32 = 1 | 1 << 3;
    let (family, source, octets) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, 1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, 3, ip.octets().to_vec()),
    };
    let address = Attributes::default().put(source, &octets);
    let protocol = Attributes::default().put(1, &[17]);
    // Answers come from the pod.
    let tuple = Attributes::default().nest(1, &address).nest(2, &protocol);
    let filter = Attributes::default().put(1, &0u32.to_ne_bytes()).put(2, &SOURCE_AND_PROTOCOL.to_ne_bytes());
    let attributes = Attributes::default().nest(2, &tuple).nest(25, &filter);
    let mut payload = vec![u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    payload.extend(attributes.0);
    // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE.
    let kind = u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8 | 2).unwrap_or_default();
    let mut batch = Batch::default();
    batch.push("forget UDP conversations", kind, netlink_packet_core::NLM_F_ACK, &payload);
    socket.all(batch, &[libc::ENOENT])
}
