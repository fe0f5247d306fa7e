//! The books: who has which address and which host port, in memory, and on disk as one symbolic link each.
//!
//! A symbolic link is there or not, with its whole content; it cannot be half written. `leases/10.87.0.2` leads to the
//! sandbox's id, `ports/tcp-8080-any` to id and port of the pod. The directory is the truth after a restart.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::link::host_end;
use super::range::Range;
use crate::disk::{self, Durability};
use crate::id::SandboxId;
use crate::net::{Leftover, NetError, Ports, Protocol};

const LEASES: &str = "leases";
const PORTS: &str = "ports";
const DAMAGED: &str = "damaged";
const RANGES: &str = "ranges.json";

/// What a sandbox has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    pub addresses: Vec<(IpAddr, Range)>,
    pub ports: Vec<Ports>,
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
    /// Entries that say nothing.
    damaged: Vec<PathBuf>,
}

/// A host port as people compete for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    protocol: Protocol,
    port: u16,
    /// `None`: all addresses.
    host_ip: Option<IpAddr>,
}

impl Claim {
    fn of(port: &Ports) -> Self {
        Self { protocol: port.protocol, port: port.host_port, host_ip: port.host_ip }
    }

    fn name(&self) -> String {
        let host_ip = self.host_ip.map_or_else(|| "any".to_owned(), |ip| ip.to_string());
        format!("{}-{}-{host_ip}", self.protocol.as_str(), self.port)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let protocol = match parts.next()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        let port = parts.next()?.parse().ok()?;
        let host_ip = match parts.next()? {
            "any" => None,
            ip => Some(ip.parse().ok()?),
        };
        Some(Self { protocol, port, host_ip })
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io { step, path, source }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Books {
    /// Reads what is there; makes nothing.
    ///
    /// # Errors
    /// [`NetError::Io`] if a directory is there and cannot be read.
    pub fn open(directory: &Path, configured: &[Range]) -> Result<Self, NetError> {
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
        self.save_ranges().inspect_err(|_| self.ranges = before)?;
        Ok(true)
    }

    /// Writes down what must be on disk before the first address is given.
    ///
    /// # Errors
    /// [`NetError::Io`].
    pub fn save_ranges(&self) -> Result<(), NetError> {
        for directory in [LEASES, PORTS] {
            let path = self.directory.join(directory);
            disk::private_dir(&path).map_err(io_error("make directory", &path))?;
        }
        let path = self.directory.join(RANGES);
        let text = serde_json::to_vec_pretty(&self.ranges).unwrap_or_default();
        disk::write_atomic(&path, &text, Durability::Process).map_err(io_error("write", &path))
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
                Some(ip) => self.asked(*ip, range)?,
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

    /// Notes what people call a sandbox.
    pub fn call(&mut self, id: &SandboxId, name: String) {
        if let Some(pod) = self.pods.get_mut(id) {
            pod.name = name;
        }
    }

    /// Whom to name as the owner of something.
    fn owner(&self, id: &SandboxId) -> String {
        match self.pods.get(id) {
            Some(pod) if !pod.name.is_empty() => format!("pod {} (sandbox {id})", pod.name),
            _ => format!("sandbox {id}"),
        }
    }

    fn asked(&self, ip: IpAddr, range: Range) -> Result<IpAddr, NetError> {
        if !range.is_for_pods(ip) {
            let reason = format!("{ip} is not an address for pods of {range}");
            return Err(NetError::Invalid { field: "ips".into(), reason });
        }
        match self.leases.get(&ip) {
            Some(owner) => Err(NetError::Taken { what: format!("address {ip}"), owner: self.owner(owner) }),
            None => Ok(ip),
        }
    }

    fn next(&mut self, range: Range, network: &str, is_gone: &mut dyn FnMut(&str) -> bool) -> Result<IpAddr, NetError> {
        let mut after = self.last.get(&range).copied();
        let mut first = None;
        loop {
            let ip = range.next_free(after, |ip| !self.leases.contains_key(&ip)).filter(|ip| first != Some(*ip));
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

/// "host port 10.0.0.1:80/tcp".
pub fn port_name(port: &Ports) -> String {
    let host_ip = port.host_ip.map(|ip| format!("{ip} ")).unwrap_or_default();
    format!("host port {host_ip}{}/{}", port.host_port, port.protocol.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> SandboxId {
        SandboxId::from_random([n; 32])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn port(host_ip: Option<&str>, host_port: u16) -> Ports {
        Ports { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip: host_ip.map(ip) }
    }

    fn open(directory: &Path) -> Books {
        let books = Books::open(directory, &["10.9.0.0/29".parse().unwrap(), "fd09::/64".parse().unwrap()]).unwrap();
        books.save_ranges().unwrap();
        books
    }

    fn enter(books: &mut Books, n: u8, ports: &[Ports]) -> Result<Pod, NetError> {
        books.enter(&id(n), "aril", &[], ports, &mut |_| true)
    }

    #[test]
    fn books_outlive_whoever_keeps_them() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        let pod = enter(&mut books, 1, &[port(None, 8080), port(Some("10.0.0.1"), 81)]).unwrap();
        assert_eq!(pod.addresses.iter().map(|(ip, _)| *ip).collect::<Vec<_>>(), [ip("10.9.0.2"), ip("fd09::2")]);
        drop(books);
        let mut again = open(directory.path());
        let read = again.pods()[&id(1)].clone();
        assert_eq!((&read.addresses, read.is_new), (&pod.addresses, false));
        assert_eq!(read.ports.len(), 2);
        assert_eq!(enter(&mut again, 2, &[]).unwrap().addresses[0].0, ip("10.9.0.3"));
        assert_eq!(again.release(&id(1)), []);
        assert_eq!(again.release(&id(1)), []);
        assert_eq!(open(directory.path()).pods().keys().collect::<Vec<_>>(), [&id(2)]);
    }

    #[test]
    fn a_host_port_has_one_owner() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        enter(&mut books, 1, &[port(Some("10.0.0.1"), 80), port(None, 81)]).unwrap();
        for (host_ip, number, is_free) in [
            (Some("10.0.0.1"), 80, false),
            (None, 80, false),
            (Some("10.0.0.2"), 80, true),
            (Some("10.0.0.2"), 81, false),
            (None, 82, true),
        ] {
            let result = books.check_ports(&id(2), &[port(host_ip, number)]);
            assert_eq!(result.is_ok(), is_free, "{host_ip:?} {number}");
            assert_eq!(is_free, !result.err().is_some_and(|e| e.to_string().contains(id(1).as_str())));
        }
        let udp = Ports { protocol: Protocol::Udp, ..port(None, 81) };
        books.check_ports(&id(2), &[udp]).unwrap();
    }

    #[test]
    fn an_address_rests_while_its_device_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        for n in 1..=5 {
            enter(&mut books, n, &[]).unwrap();
        }
        books.release(&id(2));
        let refused = books.enter(&id(6), "aril", &[], &[], &mut |_| false).unwrap_err();
        assert!(matches!(refused, NetError::Exhausted { .. }), "{refused}");
        books.release(&id(6));
        let asked_of = &mut Vec::new();
        let pod = books.enter(&id(7), "aril", &[], &[], &mut |name| {
            asked_of.push(name.to_owned());
            true
        });
        assert_eq!(pod.unwrap().addresses[0].0, ip("10.9.0.3"));
        assert_eq!(*asked_of, [host_end(&id(2))]);
    }

    #[test]
    fn addresses_asked_for_are_given_or_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        let mut ask = |n, text| books.enter(&id(n), "aril", &[ip(text)], &[], &mut |_| true);
        assert_eq!(ask(1, "10.9.0.5").unwrap().addresses[0].0, ip("10.9.0.5"));
        assert!(matches!(ask(2, "10.9.0.5"), Err(NetError::Taken { .. })));
        assert!(matches!(ask(3, "10.9.0.1"), Err(NetError::Invalid { .. })));
        assert!(matches!(ask(4, "fd08::5"), Err(NetError::Invalid { .. })));
    }

    #[test]
    fn damaged_entries_give_no_address_away_and_move_aside() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        enter(&mut books, 1, &[]).unwrap();
        let leases = directory.path().join(LEASES);
        fs::write(leases.join("10.9.0.3"), "a file").unwrap();
        symlink("nobody", leases.join("10.9.0.4")).unwrap();
        symlink(id(9).as_str(), leases.join("no address")).unwrap();
        symlink("x", directory.path().join(PORTS).join("tcp-0")).unwrap();
        let mut books = open(directory.path());
        assert_eq!(books.pods().len(), 1);
        assert_eq!(books.tidy(&mut |_| true), []);
        assert_eq!(fs::read_dir(directory.path().join(DAMAGED)).unwrap().count(), 4);
        assert_eq!(enter(&mut books, 2, &[]).unwrap().addresses[0].0, ip("10.9.0.3"));
        assert_eq!(fs::read_dir(leases).unwrap().count(), 4);
    }

    #[test]
    fn an_entry_damaged_meanwhile_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        fs::write(directory.path().join(LEASES).join("10.9.0.2"), "a file").unwrap();
        assert_eq!(enter(&mut books, 1, &[]).unwrap().addresses[0].0, ip("10.9.0.2"));
        assert_eq!(open(directory.path()).pods().len(), 1);
    }

    #[test]
    fn ranges_of_kubelet_are_for_new_pods_and_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        enter(&mut books, 1, &[]).unwrap();
        assert!(books.set_pod_cidr(vec!["10.244.1.0/24".parse().unwrap()]).unwrap());
        assert!(!books.set_pod_cidr(vec!["10.244.1.0/24".parse().unwrap()]).unwrap());
        let mut books = open(directory.path());
        assert_eq!(enter(&mut books, 2, &[]).unwrap().addresses[0].0, ip("10.244.1.2"));
        assert_eq!((books.pods()[&id(1)].addresses.len(), books.known().len()), (2, 3));
        books.release(&id(1));
        books.tidy(&mut |_| true);
        assert_eq!(books.known().len(), 1);
    }

    #[test]
    fn live_sandboxes_win() {
        let directory = tempfile::tempdir().unwrap();
        let mut books = open(directory.path());
        let range = books.current()[0];
        assert_eq!(books.restore(&id(1), &[(ip("10.9.0.4"), range)], &[port(None, 80)]), []);
        assert_eq!(books.restore(&id(1), &[(ip("10.9.0.4"), range)], &[port(None, 80)]), []);
        let left = books.restore(&id(2), &[(ip("10.9.0.4"), range)], &[]);
        assert!(left[0].reason.contains(id(1).as_str()), "{left:?}");
        assert_eq!(open(directory.path()).pods()[&id(1)].ports.len(), 1);
    }
}
