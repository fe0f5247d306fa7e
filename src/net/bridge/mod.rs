//! The built-in network: a bridge, a pair of devices and addresses of both families a pod, one table of nftables.
//!
//! Owns the device named in the settings, host ends that carry a sandbox's id as alias, the table `inet aril` and the
//! state directory. Never touches tables, devices or routes of others; what it changes of the host beyond its own is
//! forwarding, which it only ever turns on.
//!
//! Host ports from ::1 are served by the daemon itself ([`loopback`]); all else works without it.
//!
//! No program is run: all goes by netlink, in few sends. A pair of devices is born where each end belongs, and is never
//! deleted while somebody waits: both make the kernel wait for all processors. A pod's end goes with its namespace, and
//! the host's end with that.
//!
//! A lease is written before a device is made, and struck after the last element of the table is gone.

mod books;
mod driver;
mod host;
mod link;
mod loopback;
mod netlink;
mod nftables;
mod pod;
mod ports;
mod range;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::books::Books;
use self::loopback::Loopback;
use self::netlink::{Batch, Refusal, Socket};
use self::nftables::{Element, Layout, Table};
use self::range::Range;
use crate::net::{Leftover, NetError, namespace};

/// What the driver is called.
const NAME: &str = "bridge";
/// Name of the network.
const NETWORK: &str = "aril";
/// MTU where the host has no default route to learn it from, in bytes.
const MTU: u32 = 1500;
/// Least MTU of a link with IPv6, in bytes.
const LEAST_MTU: u32 = 1280;

/// What a bridge is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The device's name, up to 15 bytes.
    pub name: String,
    /// The pods' addresses: one network of IPv4, one of IPv6, or one of each, with their lengths.
    pub subnets: Vec<(IpAddr, u8)>,
    /// MTU in bytes; `None`: that of the device of the default route.
    pub mtu: Option<u32>,
    /// Whether pods are kept from talking to each other, but by host ports.
    pub isolated: bool,
    /// Whether what leaves for elsewhere gets the host's address.
    pub masquerade: bool,
    /// Leases and host ports; lost with a reboot, as the pods are.
    pub state_dir: PathBuf,
}

impl Settings {
    /// The defaults: `aril0`, 10.87.0.0/16 and fd61:7269:6c::/64, which neither docker nor podman uses; masquerading.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            name: "aril0".into(),
            subnets: vec![([10, 87, 0, 0].into(), 16), ([0xfd61, 0x7269, 0x6c, 0, 0, 0, 0, 0].into(), 64)],
            mtu: None,
            isolated: false,
            masquerade: true,
            state_dir,
        }
    }

    fn ranges(&self) -> Result<Vec<Range>, NetError> {
        let one = |(ip, prefix): &(IpAddr, u8)| Range::new(*ip, *prefix);
        let invalid = |reason| NetError::Invalid { field: "subnets".into(), reason };
        let list = self.subnets.iter().map(one).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        range::one_each("subnets", &list)?;
        Ok(list)
    }

    fn check(&self) -> Result<(), NetError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_short = (1..libc::IFNAMSIZ).contains(&self.name.len());
        if !is_short || !self.name.chars().all(is_name) || [".", "..", "all", "default"].contains(&self.name.as_str()) {
            let reason = format!("{:?} is no name for a device", self.name);
            return Err(NetError::Invalid { field: "name".into(), reason });
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(LEAST_MTU..=65_535).contains(mtu)) {
            let reason = format!("{mtu} is not from {LEAST_MTU} to 65535");
            return Err(NetError::Invalid { field: "mtu".into(), reason });
        }
        Ok(())
    }
}

/// The bridge as it is in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Made {
    index: u32,
    mtu: u32,
    /// What its ports are to be.
    port: link::Port,
}

/// The driver. Locks are taken in the order of the fields.
#[derive(Debug)]
pub struct Bridge {
    settings: Settings,
    /// The namespace the driver was opened in.
    host: OwnedFd,
    /// `None`: not looked at yet, or known to be broken.
    made: Mutex<Option<Made>>,
    /// Held by whoever tries host ports, until they are in the books: what is tried is bound for a moment, and would be
    /// a process of the host's to the next.
    trying: Mutex<()>,
    books: Mutex<Books>,
    route: Mutex<Socket>,
    table: Mutex<Table>,
    loopback: Mutex<Loopback>,
}

/// A lock whose data stays right whatever a thread that panicked was about.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bridge {
    /// The driver for the calling thread's network namespace. Makes nothing there, nor on disk. Called outside of a
    /// runtime of tokio it does not serve host ports at ::1.
    ///
    /// # Errors
    /// [`NetError::Invalid`] naming the setting; [`NetError::Io`] if the books cannot be read.
    pub fn open(settings: Settings) -> Result<Self, NetError> {
        settings.check()?;
        let mut ranges = settings.ranges()?;
        if !host::has_ipv6() && ranges.iter().any(|range| range.is_v4()) {
            let before = ranges.len();
            ranges.retain(|range| range.is_v4());
            if ranges.len() < before {
                tracing::warn!("the kernel has no IPv6: pods get addresses of IPv4 alone");
            }
        }
        let socket = |source| NetError::Kernel { step: "open", object: "netlink socket".into(), source };
        Ok(Self {
            host: namespace::current().map_err(socket)?,
            made: Mutex::new(None),
            trying: Mutex::new(()),
            books: Mutex::new(Books::open(&settings.state_dir, &ranges)?),
            route: Mutex::new(Socket::route().map_err(socket)?),
            table: Mutex::new(Table::open().map_err(socket)?),
            loopback: Mutex::new(Loopback::open()),
            settings,
        })
    }

    /// The bridge, made if it is not known to be there.
    fn ready(&self) -> Result<Made, NetError> {
        let mut made = lock(&self.made);
        if let Some(made) = *made {
            return Ok(made);
        }
        let fresh = self.ensure()?;
        *made = Some(fresh);
        Ok(fresh)
    }

    /// Makes what is missing of what all pods share.
    fn ensure(&self) -> Result<Made, NetError> {
        let books = lock(&self.books);
        let known = books.known().to_vec();
        books.save_ranges()?;
        self.no_overlap(&books)?;
        let mut made = self.ensure_bridge(&known)?;
        let failed =
            |source| NetError::Kernel { step: "enter network namespace", object: "of the host".into(), source };
        made.port.hairpin = namespace::inside(self.host.as_fd(), || {
            host::prepare(&self.settings.name, &known).map(|()| host::filters_bridges())
        })
        .map_err(failed)??;
        if lock(&self.table).ensure(&self.layout(&books), &elements(&books)).map_err(in_table)? {
            tracing::info!(bridge = self.settings.name, "made the table of nftables");
        }
        Ok(made)
    }

    fn layout(&self, books: &Books) -> Layout {
        Layout {
            bridge: self.settings.name.clone(),
            ranges: books.known().to_vec(),
            isolated: self.settings.isolated,
            masquerade: self.settings.masquerade,
        }
    }

    /// Whether nobody else routes our addresses. kubelet's range is the cluster's affair: only told of.
    fn no_overlap(&self, books: &Books) -> Result<(), NetError> {
        let mut route = lock(&self.route);
        let bridge = link::by_name(&mut route, &self.settings.name).map_err(|r| r.about(&self.settings.name))?;
        let index = bridge.map_or(0, |link| link.index);
        let Some((range, other)) = host::overlap(&mut route, books.current(), index)? else { return Ok(()) };
        let reason = format!(
            "the address range {range} of pods overlaps the host's route to {}/{}; give the network another range",
            other.to, other.prefix
        );
        if books.is_by_kubelet() {
            tracing::warn!("{reason}");
            return Ok(());
        }
        Err(NetError::NotReady { reason })
    }

    fn ensure_bridge(&self, ranges: &[Range]) -> Result<Made, NetError> {
        let name = &self.settings.name;
        let mut route = lock(&self.route);
        let look = |route: &mut Socket| link::by_name(route, name).map_err(|refusal| refusal.about(name));
        let mut found = look(&mut route)?;
        if found.is_none() {
            let mtu = self.mtu(&mut route)?;
            let mac = link::mac_of(ranges.first().map_or(IpAddr::from([0; 4]), |range| range.gateway()));
            let mut batch = Batch::default();
            link::add_bridge(&mut batch, name, mtu, mac);
            // Somebody may have made it just now: looked at below as if it had been there.
            route.all(batch, &[libc::EEXIST]).map_err(|refusal| refusal.about(name))?;
            found = look(&mut route)?;
        }
        let bridge = found.filter(|link| link.kind == "bridge").ok_or_else(|| NetError::NotReady {
            reason: format!("device {name} of the host is not a bridge; remove it, or give the network another name"),
        })?;
        let has = link::addresses(&mut route, bridge.index).map_err(|refusal| refusal.about(name))?;
        let mut batch = Batch::default();
        link::set_up(&mut batch, bridge.index);
        for range in ranges.iter().filter(|range| !has.contains(&(range.gateway(), range.prefix()))) {
            link::add_address(&mut batch, bridge.index, range.gateway(), *range);
        }
        route.all(batch, &[]).map_err(|refusal| refusal.about(name))?;
        let port = link::Port { isolated: self.settings.isolated, hairpin: false };
        Ok(Made { index: bridge.index, mtu: bridge.mtu, port })
    }

    fn mtu(&self, route: &mut Socket) -> Result<u32, NetError> {
        if let Some(mtu) = self.settings.mtu {
            return Ok(mtu);
        }
        let failed = |refusal: Refusal| refusal.about("of the host");
        let routes = pod::routes(route).map_err(failed)?;
        let outward: Vec<u32> = routes.iter().filter(|r| r.prefix == 0).map(|r| r.device).collect();
        let links = link::all(route).map_err(failed)?;
        let least = links.iter().filter(|link| outward.contains(&link.index)).map(|link| link.mtu).min();
        Ok(least.unwrap_or(MTU).max(LEAST_MTU))
    }

    /// Puts all host ends of live sandboxes into the bridge, and deletes those of nobody.
    fn put_ends_right(&self, made: Made, books: &Books) -> Vec<Leftover> {
        let mut route = lock(&self.route);
        let links = match link::all(&mut route) {
            Ok(links) => links,
            Err(e) => return vec![Leftover { what: "devices of the host".into(), reason: e.to_string() }],
        };
        let mut left = Vec::new();
        for end in links.iter().filter(|link| link.kind == "veth" && link.name.starts_with(link::PREFIX)) {
            let owner = books.pods().keys().find(|id| link::host_end(id) == end.name);
            let mut batch = Batch::default();
            match owner {
                Some(_) if end.master == made.index && end.is_up => continue,
                Some(_) => link::enslave(&mut batch, end.index, made.index, made.port),
                // Marked, or made half: a port of ours that nobody had the time to mark.
                None if is_id(&end.alias) || (end.alias.is_empty() && end.master == made.index) => {
                    link::delete(&mut batch, end.index);
                }
                None => continue,
            }
            let what = format!("device {} of sandbox {}", end.name, end.alias);
            let failed = route.all(batch, &[libc::ENODEV]).err();
            left.extend(failed.map(|e| Leftover { what, reason: e.to_string() }));
        }
        left
    }

    /// Removes everything of ours from the host: the bridge, all devices of pods, the books. For when no pod is left.
    ///
    /// Returns what is still there.
    pub fn reset(&self) -> Vec<Leftover> {
        let mut made = lock(&self.made);
        *made = None;
        let mut books = lock(&self.books);
        let mut route = lock(&self.route);
        let mut left = Vec::new();
        let mut failed = |what: String, reason: String| left.push(Leftover { what, reason });
        match link::all(&mut route) {
            Ok(links) => {
                for link in links.iter().filter(|link| self.is_ours(link)) {
                    let mut batch = Batch::default();
                    link::delete(&mut batch, link.index);
                    if let Err(e) = route.all(batch, &[libc::ENODEV]) {
                        failed(format!("device {}", link.name), e.to_string());
                    }
                }
            }
            Err(e) => failed("devices of the host".into(), e.to_string()),
        }
        lock(&self.loopback).close_all();
        if let Err(e) = lock(&self.table).delete() {
            failed("table of nftables".into(), e.to_string());
        }
        if let Err(e) = books.reset() {
            failed("books of the bridge".into(), e.to_string());
        }
        left
    }

    fn is_ours(&self, link: &link::Link) -> bool {
        match link.kind.as_str() {
            "bridge" => link.name == self.settings.name,
            "veth" => link.name.starts_with(link::PREFIX) && is_id(&link.alias),
            _ => false,
        }
    }
}

/// All host ports in the books.
fn elements(books: &Books) -> Vec<Element> {
    books.pods().values().flat_map(nftables::elements).collect()
}

fn in_table(refusal: Refusal) -> NetError {
    refusal.about("in table inet aril of nftables")
}

fn is_id(text: &str) -> bool {
    text.parse::<crate::id::SandboxId>().is_ok()
}
