//! The books: who has which address and which host port, in memory, and on disk as one symbolic link each.
//!
//! A symbolic link is there or not, with its whole content; it cannot be half written. `leases/10.87.0.2` leads to the
//! sandbox's id, `ports/tcp-8080-any` to id and port of the pod. The directory is the truth after a restart.

mod claim;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::claim::Claim;
pub use self::claim::port_name;
use super::link::{Mac, host_end};
use super::range::Range;
use crate::disk::{self, Durability};
use crate::id::SandboxId;
use crate::net::{Leftover, NetError, Ports};

const LEASES: &str = "leases";
const PORTS: &str = "ports";
const DAMAGED: &str = "damaged";
const RANGES: &str = "ranges.json";

/// What a sandbox has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    pub addresses: Vec<(IpAddr, Range)>,
    pub ports: Vec<Ports>,
    /// Its hardware address; `None` after a restart, until its sandbox tells.
    pub mac: Option<Mac>,
    /// "default/web", for those who want what it has; empty after a restart.
    pub name: String,
    /// Set up by this process, not read from disk or a record: nobody's list of live sandboxes, which may be older,
    /// speaks against it.
    pub is_new: bool,
}

/// The ranges, as they are remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ranges {
    /// kubelet's; empty: the settings count.
    pod_cidr: Vec<Range>,
    /// All in which pods may have addresses.
    known: Vec<Range>,
}

/// See the module.
#[derive(Debug)]
pub struct Books {
    directory: PathBuf,
    pods: BTreeMap<SandboxId, Pod>,
    leases: BTreeMap<IpAddr, SandboxId>,
    ports: BTreeMap<Claim, SandboxId>,
    /// Where the search for the next address begins.
    last: BTreeMap<Range, IpAddr>,
    /// Addresses given back whose device the kernel may not have taken away yet, with its name.
    draining: BTreeMap<IpAddr, String>,
    configured: Vec<Range>,
    ranges: Ranges,
    /// The ranges as they were last written.
    written: Vec<u8>,
    /// Entries that say nothing.
    damaged: Vec<PathBuf>,
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io { step, path, source }
}

fn remove_temporaries(directory: &Path) -> Result<(), NetError> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if disk::is_temporary(&entry.file_name().to_string_lossy()) {
            absent_is_fine(fs::remove_file(&path)).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Books {
    /// Reads what is there; makes nothing, and takes away what was being written when a daemon was killed.
    ///
    /// # Errors
    /// [`NetError::Io`] if a directory is there and cannot be read.
    pub fn open(directory: &Path, configured: &[Range]) -> Result<Self, NetError> {
        remove_temporaries(directory)?;
        let text = fs::read(directory.join(RANGES)).unwrap_or_default();
        let mut books = Self {
            directory: directory.to_owned(),
            pods: BTreeMap::new(),
            leases: BTreeMap::new(),
            ports: BTreeMap::new(),
            last: BTreeMap::new(),
            draining: BTreeMap::new(),
            configured: configured.to_vec(),
            // A damaged file costs kubelet's range until it tells it again; leases count all the same.
            ranges: serde_json::from_slice(&text).unwrap_or_default(),
            written: Vec::new(),
            damaged: Vec::new(),
        };
        books.know_current();
        books.read_leases()?;
        books.read_ports()?;
        Ok(books)
    }

    /// Entries of a directory as name and target of a link; what is none of that is noted as damaged.
    fn entries(&mut self, directory: &str) -> Result<Vec<(String, String)>, NetError> {
        let path = self.directory.join(directory);
        let listing = match fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("read", &path))?,
        };
        let mut list = Vec::new();
        for entry in listing {
            let path = entry.map_err(io_error("read", &path))?.path();
            let target = fs::read_link(&path).ok().and_then(|target| target.to_str().map(str::to_owned));
            match (path.file_name().and_then(|name| name.to_str()), target) {
                (Some(name), Some(target)) => list.push((name.to_owned(), target)),
                _ => self.damaged.push(path),
            }
        }
        Ok(list)
    }

    fn read_leases(&mut self) -> Result<(), NetError> {
        for (name, target) in self.entries(LEASES)? {
            let (Ok(ip), Ok(id)) = (name.parse::<IpAddr>(), target.parse::<SandboxId>()) else {
                self.damaged.push(self.directory.join(LEASES).join(name));
                continue;
            };
            self.leases.insert(ip, id.clone());
            let range = self.ranges.known.iter().find(|range| range.is_for_pods(ip)).copied();
            let pod = self.pods.entry(id).or_default();
            if let Some(range) = range {
                pod.addresses.push((ip, range));
                let last = self.last.entry(range).or_insert(ip);
                *last = ip.max(*last);
            }
        }
        // As they were given: IPv4 first.
        self.pods.values_mut().for_each(|pod| pod.addresses.sort_unstable_by_key(|(ip, _)| *ip));
        Ok(())
    }

    fn read_ports(&mut self) -> Result<(), NetError> {
        for (name, target) in self.entries(PORTS)? {
            let parsed = target.split_once(':').and_then(|(id, port)| Some((id.parse().ok()?, port.parse().ok()?)));
            let (Some(claim), Some((id, container_port))) = (Claim::parse(&name), parsed) else {
                self.damaged.push(self.directory.join(PORTS).join(name));
                continue;
            };
            self.ports.insert(claim, SandboxId::clone(&id));
            let Claim { protocol, port: host_port, host_ip } = claim;
            self.pods.entry(id).or_default().ports.push(Ports { protocol, container_port, host_port, host_ip });
        }
        Ok(())
    }

    /// The sandboxes in the books.
    pub fn pods(&self) -> &BTreeMap<SandboxId, Pod> {
        &self.pods
    }

    /// How many addresses of a range pods have.
    pub fn leased(&self, range: Range) -> usize {
        self.leases.keys().filter(|ip| range.is_for_pods(**ip)).count()
    }

    /// The ranges new pods get addresses of.
    pub fn current(&self) -> &[Range] {
        if self.ranges.pod_cidr.is_empty() { &self.configured } else { &self.ranges.pod_cidr }
    }

    /// All ranges in which pods have or may get addresses.
    pub fn known(&self) -> &[Range] {
        &self.ranges.known
    }

    /// Whether the ranges are kubelet's.
    pub fn is_by_kubelet(&self) -> bool {
        !self.ranges.pod_cidr.is_empty()
    }

    fn know_current(&mut self) {
        for range in self.current().to_vec() {
            if !self.ranges.known.contains(&range) {
                self.ranges.known.push(range);
            }
        }
    }

    /// kubelet's ranges, for new pods; `true`: they are others than before.
    ///
    /// # Errors
    /// [`NetError::Io`]; then all is as it was.
    pub fn set_pod_cidr(&mut self, ranges: Vec<Range>) -> Result<bool, NetError> {
        if self.ranges.pod_cidr == ranges {
            return Ok(false);
        }
        let before = self.ranges.clone();
        self.ranges.pod_cidr = ranges;
        self.know_current();
        let saved = self.save_ranges();
        if saved.is_err() {
            self.ranges = before;
        }
        saved.map(|()| true)
    }

    /// Writes down what must be on disk before the first address is given, if it is not there.
    ///
    /// # Errors
    /// [`NetError::Io`].
    pub fn save_ranges(&mut self) -> Result<(), NetError> {
        let path = self.directory.join(RANGES);
        let text = serde_json::to_vec_pretty(&self.ranges).unwrap_or_default();
        if text == self.written && path.exists() {
            return Ok(());
        }
        for directory in [LEASES, PORTS] {
            let path = self.directory.join(directory);
            disk::private_dir(&path).map_err(io_error("make directory", &path))?;
        }
        disk::write_atomic(&path, &text, Durability::Process).map_err(io_error("write", &path))?;
        self.written = text;
        Ok(())
    }

    /// Writes down addresses and ports of a sandbox. `is_gone` says whether a device is no more.
    ///
    /// # Errors
    /// [`NetError::Exhausted`], [`NetError::Taken`], [`NetError::Invalid`], [`NetError::Io`]. What was written goes
    /// with [`release`](Self::release).
    pub fn enter(
        &mut self,
        id: &SandboxId,
        network: &str,
        ips: &[IpAddr],
        ports: &[Ports],
        is_gone: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Pod, NetError> {
        self.check_ports(id, ports)?;
        self.pods.insert(id.clone(), Pod { is_new: true, ..Pod::default() });
        for range in self.current().to_vec() {
            let ip = match ips.iter().find(|ip| ip.is_ipv4() == range.is_v4()) {
                Some(ip) => self.asked(*ip, range, is_gone)?,
                None => self.next(range, network, is_gone)?,
            };
            self.lease(ip, range, id)?;
        }
        for port in ports {
            self.claim(port, id)?;
        }
        Ok(self.pods.get(id).cloned().unwrap_or_default())
    }

    /// Whether somebody else has one of these host ports.
    ///
    /// # Errors
    /// [`NetError::Taken`] naming the owner.
    pub fn check_ports(&self, id: &SandboxId, ports: &[Ports]) -> Result<(), NetError> {
        for port in ports {
            let wanted = Claim::of(port);
            let all = |host_ip| Claim { host_ip, ..wanted };
            // All claims of one protocol and port lie side by side: that of all addresses, then those of single ones.
            let highest = all(Some(IpAddr::from([0xff; 16])));
            let rivals = self.ports.range(all(None)..=highest).filter(|(_, owner)| *owner != id);
            let overlaps =
                |claim: &Claim| wanted.host_ip.is_none() || claim.host_ip.is_none() || claim.host_ip == wanted.host_ip;
            if let Some((_, owner)) = rivals.into_iter().find(|(claim, _)| overlaps(claim)) {
                return Err(NetError::Taken { what: port_name(port), owner: self.owner(owner) });
            }
        }
        Ok(())
    }

    /// Notes what people call a sandbox, and its hardware address.
    pub fn note(&mut self, id: &SandboxId, name: String, mac: Mac) {
        if let Some(pod) = self.pods.get_mut(id) {
            pod.name = name;
            pod.mac = Some(mac);
        }
    }

    /// Notes a sandbox's hardware address.
    pub fn note_mac(&mut self, id: &SandboxId, mac: Option<Mac>) {
        if let Some(pod) = self.pods.get_mut(id) {
            pod.mac = mac.or(pod.mac);
        }
    }

    /// Whether a device of that name was a pod's that has given its addresses back.
    pub fn is_draining(&self, name: &str) -> bool {
        self.draining.values().any(|draining| draining == name)
    }

    /// Whether a pod has an address of a range.
    pub fn is_in_use(&self, range: Range) -> bool {
        self.leases.keys().any(|ip| range.contains(*ip))
    }

    /// Whether an address is the bridge's own, in a range of now or of before.
    fn is_gateway(&self, ip: IpAddr) -> bool {
        self.ranges.known.iter().any(|range| range.gateway() == ip)
    }

    /// Whom to name as the owner of something.
    fn owner(&self, id: &SandboxId) -> String {
        match self.pods.get(id) {
            Some(pod) if !pod.name.is_empty() => format!("pod {} (sandbox {id})", pod.name),
            _ => format!("sandbox {id}"),
        }
    }

    fn asked(&mut self, ip: IpAddr, range: Range, is_gone: &mut dyn FnMut(&str) -> bool) -> Result<IpAddr, NetError> {
        if !range.is_for_pods(ip) || self.is_gateway(ip) {
            let reason = format!("{ip} is not an address for pods of {range}");
            return Err(NetError::Invalid { field: "ips".into(), reason });
        }
        let taken = |owner| Err(NetError::Taken { what: format!("address {ip}"), owner });
        if let Some(owner) = self.leases.get(&ip) {
            return taken(self.owner(owner));
        }
        match self.draining.get(&ip) {
            Some(name) if !is_gone(name) => taken(format!("device {name} of a pod that is being removed")),
            _ => {
                self.draining.remove(&ip);
                Ok(ip)
            }
        }
    }

    fn next(&mut self, range: Range, network: &str, is_gone: &mut dyn FnMut(&str) -> bool) -> Result<IpAddr, NetError> {
        let mut after = self.last.get(&range).copied();
        let mut first = None;
        loop {
            let is_free = |ip| !self.leases.contains_key(&ip) && !self.is_gateway(ip);
            let ip = range.next_free(after, is_free).filter(|ip| first != Some(*ip));
            let Some(ip) = ip else {
                let hint = "remove pods, or give the network a larger range".into();
                return Err(NetError::Exhausted { network: network.into(), range: range.to_string(), hint });
            };
            // Two devices with one address would answer for each other.
            match self.draining.get(&ip) {
                Some(name) if !is_gone(name) => {
                    first.get_or_insert(ip);
                    after = Some(ip);
                }
                _ => {
                    self.draining.remove(&ip);
                    self.last.insert(range, ip);
                    return Ok(ip);
                }
            }
        }
    }

    fn lease(&mut self, ip: IpAddr, range: Range, id: &SandboxId) -> Result<(), NetError> {
        let path = self.directory.join(LEASES).join(ip.to_string());
        put(id.as_str(), &path)?;
        self.leases.insert(ip, id.clone());
        self.pods.entry(id.clone()).or_default().addresses.push((ip, range));
        Ok(())
    }

    fn claim(&mut self, port: &Ports, id: &SandboxId) -> Result<(), NetError> {
        let claim = Claim::of(port);
        put(&format!("{id}:{}", port.container_port), &self.directory.join(PORTS).join(claim.name()))?;
        self.ports.insert(claim, id.clone());
        self.pods.entry(id.clone()).or_default().ports.push(port.clone());
        Ok(())
    }

    /// Gives back all that a sandbox has; returns what could not be struck from the disk.
    pub fn release(&mut self, id: &SandboxId) -> Vec<Leftover> {
        let mut left = Vec::new();
        let mut strike = |what: String, path: PathBuf| match absent_is_fine(fs::remove_file(path)) {
            Ok(()) => true,
            Err(e) => {
                left.push(Leftover { what, reason: e.to_string() });
                false
            }
        };
        let Some(mut pod) = self.pods.remove(id) else { return left };
        let leases: Vec<IpAddr> = self.leases.iter().filter(|(_, owner)| *owner == id).map(|(ip, _)| *ip).collect();
        for ip in leases {
            if strike(format!("lease {ip} of sandbox {id}"), self.directory.join(LEASES).join(ip.to_string())) {
                self.leases.remove(&ip);
                self.draining.insert(ip, host_end(id));
                pod.addresses.retain(|(has, _)| *has != ip);
            }
        }
        pod.ports.retain(|port| {
            let claim = Claim::of(port);
            let gone = strike(port_name(port), self.directory.join(PORTS).join(claim.name()));
            if gone {
                self.ports.remove(&claim);
            }
            !gone
        });
        if !left.is_empty() {
            self.pods.insert(id.clone(), pod);
        }
        left
    }

    /// Brings a live sandbox's addresses and ports into the books, if they are not there; what others have of them is
    /// taken from those unless they are live.
    pub fn restore(&mut self, id: &SandboxId, addresses: &[(IpAddr, Range)], ports: &[Ports]) -> Vec<Leftover> {
        let mut left = Vec::new();
        for (ip, range) in addresses {
            let has = self.pods.get(id).is_some_and(|pod| pod.addresses.contains(&(*ip, *range)));
            match self.leases.get(ip) {
                Some(owner) if owner != id => left.push(Leftover {
                    what: format!("address {ip} of sandbox {id}"),
                    reason: format!("sandbox {owner} has it too; remove one of them"),
                }),
                _ if has => {}
                _ => {
                    if !self.ranges.known.contains(range) {
                        self.ranges.known.push(*range);
                    }
                    left.extend(
                        self.lease(*ip, *range, id)
                            .err()
                            .map(|e| Leftover { what: format!("lease {ip} of sandbox {id}"), reason: e.to_string() }),
                    );
                }
            }
        }
        for port in ports {
            if self.ports.contains_key(&Claim::of(port)) {
                continue;
            }
            let claimed = self.check_ports(id, std::slice::from_ref(port)).and_then(|()| self.claim(port, id));
            let what = format!("{} of sandbox {id}", port_name(port));
            left.extend(claimed.err().map(|e| Leftover { what, reason: e.to_string() }));
        }
        left
    }

    /// Moves aside what says nothing, so that a person can look at it; forgets ranges that nobody uses any more.
    pub fn tidy(&mut self, is_gone: &mut dyn FnMut(&str) -> bool) -> Vec<Leftover> {
        let mut left = Vec::new();
        let aside = self.directory.join(DAMAGED);
        for path in std::mem::take(&mut self.damaged) {
            let name = path.file_name().unwrap_or_default();
            let moved = disk::private_dir(&aside).and_then(|()| fs::rename(&path, aside.join(name)));
            if let Err(e) = absent_is_fine(moved) {
                left.push(Leftover { what: format!("damaged {}", path.display()), reason: e.to_string() });
                self.damaged.push(path);
            }
        }
        self.draining.retain(|_, name| !is_gone(name));
        let current = self.current().to_vec();
        let used = |range: &Range| current.contains(range) || self.leases.keys().any(|ip| range.contains(*ip));
        let known: Vec<Range> = self.ranges.known.iter().copied().filter(|range| used(range)).collect();
        if known != self.ranges.known {
            self.ranges.known = known;
            left.extend(self.save_ranges().err().map(|e| Leftover { what: "ranges".into(), reason: e.to_string() }));
        }
        left
    }

    /// Forgets everything, on disk too.
    ///
    /// # Errors
    /// [`NetError::Io`].
    pub fn reset(&mut self) -> Result<(), NetError> {
        absent_is_fine(fs::remove_dir_all(&self.directory)).map_err(io_error("remove", &self.directory))?;
        *self = Self::open(&self.directory, &self.configured)?;
        Ok(())
    }
}

/// Makes a link, in place of whatever is there.
fn put(target: &str, path: &Path) -> Result<(), NetError> {
    match symlink(target, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // Nobody's by the index, so a damaged entry, or one that says what we are about to.
            let aside = path.with_file_name(format!("../{DAMAGED}-{}", path.file_name().unwrap_or_default().display()));
            fs::rename(path, aside).and_then(|()| symlink(target, path))
        }
        other => other,
    }
    .map_err(io_error("write", path))
}

#[cfg(test)]
mod tests;
