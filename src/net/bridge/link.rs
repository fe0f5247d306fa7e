//! Devices of the host: the bridge, and the host's ends of pods.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::netlink::{Batch, Refusal, Socket, attribute, emitted, number, string};
use super::range::Range;
use crate::id::SandboxId;

/// What the name of every host end begins with.
pub const PREFIX: &str = "aril";
/// Digits of the sandbox's id in it: IFNAMSIZ allows 15 bytes in all.
const DIGITS: usize = 11;
/// Length of `struct ifinfomsg`, `ifaddrmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_IFALIAS: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// A hardware address.
pub type Mac = [u8; 6];

/// A device, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    pub index: u32,
    pub is_up: bool,
    pub name: String,
    /// "bridge", "veth".
    pub kind: String,
    /// Whose it is, in our words.
    pub alias: String,
    /// The bridge it is a port of; 0: none.
    pub master: u32,
    pub mtu: u32,
    pub mac: Vec<u8>,
}

impl Link {
    fn parse(payload: &[u8]) -> Option<Self> {
        let attributes = payload.get(LINK_HEADER..)?;
        let text = |kind| attribute(attributes, kind).and_then(string).unwrap_or_default();
        let count = |kind| attribute(attributes, kind).and_then(number).unwrap_or_default();
        let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
        Some(Self {
            index: number(payload.get(4..8)?)?,
            is_up: number(payload.get(8..12)?)? & LinkFlags::Up.bits() != 0,
            name: text(IFLA_IFNAME),
            kind: attribute(info, IFLA_INFO_KIND).and_then(string).unwrap_or_default(),
            alias: text(IFLA_IFALIAS),
            master: count(IFLA_MASTER),
            mtu: count(IFLA_MTU),
            mac: attribute(attributes, IFLA_ADDRESS).unwrap_or_default().to_vec(),
        })
    }
}

/// The host end's name: 15 bytes, of which 11 are the first digits of the sandbox's id.
pub fn host_end(id: &SandboxId) -> String {
    format!("{PREFIX}{}", &id.as_str()[..DIGITS])
}

/// The hardware address that belongs to an address: locally administered, one device alone, the same each time, so
/// that neighbours who remember it stay right when the address moves on to another pod.
pub fn mac_of(ip: IpAddr) -> Mac {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    // The second byte tells the families apart.
    let family = if ip.is_ipv4() { 0xa1 } else { 0xa6 };
    [0x02, family, last[0], last[1], last[2], last[3]]
}

/// "02:a1:0a:57:00:02".
pub fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The device of a name.
///
/// # Errors
/// The kernel's refusal.
pub fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let message = link([LinkAttribute::IfName(name.into())]);
    let found = socket.get("look for device", libc::RTM_GETLINK, &emitted(&message))?;
    Ok(found.and_then(|payload| Link::parse(&payload)))
}

/// All devices.
///
/// # Errors
/// The kernel's refusal.
pub fn all(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let answers = socket.dump("list devices", libc::RTM_GETLINK, &emitted(&LinkMessage::default()))?;
    Ok(answers.iter().filter_map(|(_, payload)| Link::parse(payload)).collect())
}

/// The addresses of a device with their networks' lengths.
///
/// # Errors
/// The kernel's refusal.
pub fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<(IpAddr, u8)>, Refusal> {
    let answers = socket.dump("list addresses", libc::RTM_GETADDR, &emitted(&AddressMessage::default()))?;
    let one = |payload: &[u8]| {
        let of = number(payload.get(4..8)?)?;
        let ip = ip(attribute(payload.get(ADDRESS_HEADER..)?, IFA_ADDRESS)?)?;
        (of == index).then_some((ip, *payload.get(1)?))
    };
    Ok(answers.iter().filter_map(|(_, payload)| one(payload)).collect())
}

/// The addresses of all devices.
///
/// # Errors
/// The kernel's refusal.
pub fn all_addresses(socket: &mut Socket) -> Result<Vec<IpAddr>, Refusal> {
    let answers = socket.dump("list addresses", libc::RTM_GETADDR, &emitted(&AddressMessage::default()))?;
    let one = |payload: &[u8]| {
        let attributes = payload.get(ADDRESS_HEADER..)?;
        // Of a link between two, the first is the other side's.
        ip(attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?)
    };
    Ok(answers.iter().filter_map(|(_, payload)| one(payload)).collect())
}

/// An address from its bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn link<const N: usize>(attributes: [LinkAttribute; N]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.extend(attributes);
    message
}

fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

/// Makes a bridge, up. Its hardware address and MTU are given, so that neither follows its ports.
pub fn add_bridge(batch: &mut Batch, name: &str, mtu: u32, mac: Mac) {
    let mut message = link([
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                // No loops can be: its ports are pods, so it may forward from the first moment on.
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::ForwardDelay(0),
            ])),
        ]),
    ]);
    up(&mut message);
    batch.message("make bridge", libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message);
}

/// Makes a pair of devices, each where it belongs: the host's end up, in the bridge and marked with the sandbox's id,
/// the other as `interface` in the namespace. Neither is ever moved, for which the kernel waits.
pub fn add_pair(batch: &mut Batch, id: &SandboxId, pair: &Pair<'_>) {
    let peer = link([
        LinkAttribute::IfName(pair.interface.into()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::Address(pair.mac.into()),
        LinkAttribute::NetNsFd(pair.namespace.as_raw_fd()),
    ]);
    let name = host_end(id);
    let mut message = link([
        LinkAttribute::IfName(name.clone()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::Controller(pair.bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    up(&mut message);
    batch.message("make device", libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message);
    // A new device takes neither alias nor port options: they need a message of their own.
    let mut mark = link([LinkAttribute::IfName(name), LinkAttribute::IfAlias(id.to_string())]);
    mark.attributes.extend(pair.port.attribute());
    batch.message("mark device", libc::RTM_NEWLINK, 0, &mark);
}

/// What a pair of devices is made from.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The pod's.
    pub namespace: BorrowedFd<'a>,
    /// Its name there.
    pub interface: &'a str,
    pub mac: Mac,
    pub mtu: u32,
    /// Index of the bridge.
    pub bridge: u32,
    pub port: Port,
}

/// What a port of the bridge is besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// It talks to the host alone.
    pub isolated: bool,
    /// It gets back what it sent to itself.
    pub hairpin: bool,
}

impl Port {
    fn attribute(self) -> Option<LinkAttribute> {
        if !self.isolated && !self.hairpin {
            return None;
        }
        let options = vec![InfoBridgePort::Isolated(self.isolated), InfoBridgePort::HairpinMode(self.hairpin)];
        Some(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ]))
    }
}

/// Puts a device up and into a bridge.
pub fn enslave(batch: &mut Batch, index: u32, bridge: u32, port: Port) {
    let mut message = link([LinkAttribute::Controller(bridge)]);
    message.header.index = index;
    up(&mut message);
    batch.message("put device into bridge", libc::RTM_NEWLINK, 0, &message);
    if let Some(options) = port.attribute() {
        let mut message = link([options]);
        message.header.index = index;
        batch.message("set port's options", libc::RTM_NEWLINK, 0, &message);
    }
}

/// Sets a device up, by its index.
pub fn set_up(batch: &mut Batch, index: u32) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    up(&mut message);
    batch.message("set device up", libc::RTM_NEWLINK, 0, &message);
}

/// Deletes a device. The kernel waits for all who may still use it.
pub fn delete(batch: &mut Batch, index: u32) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    batch.message("delete device", libc::RTM_DELLINK, 0, &message);
}

/// Gives a device an address of a range. An IPv6 address is usable at once: nobody else can have it.
pub fn add_address(batch: &mut Batch, index: u32, ip: IpAddr, range: Range) {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = range.prefix();
    message.attributes.push(AddressAttribute::Local(ip));
    match ip {
        IpAddr::V4(ip) => {
            message.header.family = AddressFamily::Inet;
            let IpAddr::V4(network) = range.network() else { return };
            let hosts = u32::MAX.checked_shr(range.prefix().into()).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast((network.to_bits() | hosts).into()));
            message.attributes.push(AddressAttribute::Address(ip.into()));
        }
        IpAddr::V6(ip) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Address(ip.into()));
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    batch.message("add address", libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_sandboxes_apart() {
        let id: SandboxId = "0123456789abcdef".repeat(4).parse().unwrap();
        assert_eq!(host_end(&id), "aril0123456789a");
        assert!(host_end(&id).len() < libc::IFNAMSIZ);
    }

    #[test]
    fn hardware_addresses_are_local_and_of_one_device() {
        for ip in ["10.87.0.2", "fd61:7269:6c::2"] {
            let mac = mac_of(ip.parse().unwrap());
            assert_eq!(mac[0] & 0b11, 0b10, "{ip}");
        }
        assert_eq!(mac_text(&mac_of("10.87.0.2".parse().unwrap())), "02:a1:0a:57:00:02");
    }
}
