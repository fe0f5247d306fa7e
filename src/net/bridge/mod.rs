//! The built-in network: a bridge, a pair of devices and addresses of both families a pod, one table of nftables.
//!
//! Owns the device named in the settings, host ends that are its ports and carry a sandbox's id as alias, the tables
//! `inet aril` and `bridge aril` and the state directory. Never touches tables, devices or routes of others; what it changes of the host beyond its own is
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
mod shared;
mod watch;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::books::Books;
use self::loopback::Loopback;
use self::netlink::Socket;
use self::nftables::{Element, Table};
use self::range::Range;
use self::watch::Watch;
use crate::net::{NetError, namespace};

/// What the driver is called.
const NAME: &str = "bridge";
/// Name of the network.
const NETWORK: &str = "aril";
/// MTU where the host has no default route to learn it from, in bytes.
const MTU: u32 = 1500;
/// Least MTU of a link with IPv6, in bytes.
const LEAST_MTU: u32 = 1280;

/// Names that no bridge can have: loopback's, and those that stand for others in a path.
const NO_NAMES: [&str; 5] = ["lo", ".", "..", "all", "default"];

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
        let one = |(ip, prefix): &(IpAddr, u8)| {
            let range = Range::new(*ip, *prefix)?;
            let has_host_bits = range.network() != *ip;
            if has_host_bits { Err(format!("{ip}/{prefix} is an address, its network is {range}")) } else { Ok(range) }
        };
        let invalid = |reason| NetError::Invalid { field: "subnets".into(), reason };
        let list = self.subnets.iter().map(one).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        range::one_each("subnets", &list)?;
        Ok(list)
    }

    fn check(&self) -> Result<(), NetError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_short = (1..libc::IFNAMSIZ).contains(&self.name.len());
        if !is_short || !self.name.chars().all(is_name) || NO_NAMES.contains(&self.name.as_str()) {
            let reason = format!("{:?} is no name for a bridge", self.name);
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
    /// For connection tracking alone.
    tracking: Mutex<Socket>,
    route: Mutex<Socket>,
    table: Mutex<Table>,
    loopback: Mutex<Loopback>,
    watch: Mutex<Watch>,
    /// Somebody else's route into our ranges, in words.
    overlap: Mutex<Option<String>>,
    /// Whether pods get no address of IPv6 because the kernel has none.
    lacks_ipv6: bool,
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
        let mut lacks_ipv6 = false;
        if !host::has_ipv6() && ranges.iter().any(|range| range.is_v4()) {
            let before = ranges.len();
            ranges.retain(|range| range.is_v4());
            lacks_ipv6 = ranges.len() < before;
            if lacks_ipv6 {
                tracing::warn!("the kernel has no IPv6: pods get addresses of IPv4 alone");
            }
        }
        let socket = |source| NetError::Kernel { step: "open", object: "netlink socket".into(), source };
        let table = Table::open(&settings.name).map_err(socket)?;
        Ok(Self {
            host: namespace::current().map_err(socket)?,
            made: Mutex::new(None),
            trying: Mutex::new(()),
            books: Mutex::new(Books::open(&settings.state_dir, &ranges)?),
            route: Mutex::new(Socket::route().map_err(socket)?),
            tracking: Mutex::new(Socket::netfilter().map_err(socket)?),
            watch: Mutex::new(Watch::open(table.port()).map_err(socket)?),
            table: Mutex::new(table),
            loopback: Mutex::new(Loopback::open()),
            overlap: Mutex::default(),
            lacks_ipv6,
            settings,
        })
    }
}

/// What the table has of all pods in the books.
fn elements(books: &Books) -> Vec<Element> {
    books.pods().iter().flat_map(|(id, pod)| nftables::elements(id, pod)).collect()
}

fn is_id(text: &str) -> bool {
    text.parse::<crate::id::SandboxId>().is_ok()
}
