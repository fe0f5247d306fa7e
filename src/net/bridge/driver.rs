//! The bridge as a driver: what happens for one pod.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::books::Books;
use super::books::Pod;
use super::link::{self, Mac, Pair};
use super::netlink::{Batch, Refusal, Socket};
use super::nftables::{Element, elements};
use super::pod;
use super::ports;
use super::range::{Range, parse_list};
use super::{Bridge, Made, NAME, NETWORK, lock};
use crate::id::SandboxId;
use crate::net::{
    Address, Attachment, Dns, Driver, INTERFACE, Leftover, Live, Namespace, NetError, PoolUse, Request, Route,
    namespace,
};

impl Driver for Bridge {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_path(&self) -> bool {
        false
    }

    fn status(&self) -> Result<(), NetError> {
        self.is_usable()
    }

    fn validate(&self, request: &Request) -> Result<(), NetError> {
        mac(&request.mac)?;
        let v4 = request.ips.iter().filter(|ip| ip.is_ipv4()).count();
        if v4 > 1 || request.ips.len() - v4 > 1 {
            let reason = "a pod gets one address of IPv4 and one of IPv6".into();
            return Err(NetError::Invalid { field: "ips".into(), reason });
        }
        let books = lock(&self.books);
        let is_served = |ip: &&IpAddr| books.current().iter().any(|range| range.is_for_pods(**ip));
        if let Some(ip) = request.ips.iter().find(|ip| !is_served(ip)) {
            let ranges = books.current().iter().map(Range::to_string).collect::<Vec<_>>().join(" and ");
            let reason = format!("{ip} is not an address for pods of {ranges}");
            return Err(NetError::Invalid { field: "ips".into(), reason });
        }
        let has_family = |ip: IpAddr| books.current().iter().any(|range| range.is_v4() == ip.is_ipv4());
        if let Some(ip) = request.ports.iter().filter_map(|port| port.host_ip).find(|ip| !has_family(*ip)) {
            let reason = format!("host address {ip} is of a family that pods have no address of");
            return Err(NetError::Invalid { field: "port_mappings".into(), reason });
        }
        unsupported(request)
    }

    fn setup(&self, request: &Request, namespace: Namespace<'_>) -> Result<Attachment, NetError> {
        self.validate(request)?;
        let made = self.ready()?;
        let id = &request.id;
        // An earlier try must not stand in its own way.
        let closing = lock(&self.loopback).close(id);
        closing.wait();
        let (pod, mac, warnings) = self.enter_with_ports(request)?;
        self.connect(id, namespace, made, mac)?;
        let of_pod = |refusal: Refusal| refusal.about(format!("of sandbox {id}"));
        let configure = || {
            let mut socket = Socket::route().map_err(pod::entering)?;
            pod::configure(&mut socket, &pod.addresses).map_err(of_pod)?;
            Ok::<Socket, NetError>(socket)
        };
        let mut socket = namespace::inside(namespace.fd, configure).map_err(pod::entering)??;
        // Last: nobody is sent to a pod that is not there yet.
        self.open_ports(id, &pod)?;
        pod::settle(&mut socket, pod.addresses.iter().map(|(ip, _)| *ip));
        lock(&self.loopback).serve(id, &pod, self.host.as_fd())?;
        Ok(Attachment { warnings, ..attachment(&pod, made.mtu, mac) })
    }

    fn check(&self, id: &SandboxId, namespace: Namespace<'_>) -> Result<(), NetError> {
        self.repair()?;
        let Some(pod) = lock(&self.books).pods().get(id).cloned() else {
            return Err(NetError::NotReady { reason: format!("network {NETWORK} knows nothing of sandbox {id}") });
        };
        let about = |refusal: Refusal| refusal.about(format!("of sandbox {id}"));
        let mut missing = namespace::inside(namespace.fd, || {
            let mut socket = Socket::route().map_err(pod::entering)?;
            pod::missing(&mut socket, &pod.addresses).map_err(about)
        })
        .map_err(pod::entering)??;
        let end = link::by_name(&mut lock(&self.route), &link::host_end(id)).map_err(about)?;
        if !end.is_some_and(|end| end.is_up && end.master != 0) {
            missing.push(format!("{} in the bridge", link::host_end(id)));
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(NetError::NotReady { reason: format!("network of sandbox {id} lacks {}", missing.join(", ")) })
    }

    fn teardown(&self, id: &SandboxId, _: Option<Namespace<'_>>) -> Vec<Leftover> {
        let closing = lock(&self.loopback).close(id);
        closing.wait();
        let mut books = lock(&self.books);
        let Some(pod) = books.pods().get(id).cloned() else { return Vec::new() };
        let mut left = self.close_ports(id, &pod, &books);
        if left.is_empty() {
            left = books.release(id);
        }
        drop(books);
        self.forget_conversations(&pod);
        left
    }

    fn known(&self) -> Result<Vec<SandboxId>, NetError> {
        Ok(lock(&self.books).pods().keys().cloned().collect())
    }

    fn reconcile(&self, live: &[Live]) -> Vec<Leftover> {
        let mut left = self.put_books_right(live);
        left.extend(self.serve_loopback());
        if lock(&self.books).pods().is_empty() && lock(&self.made).is_none() {
            return left;
        }
        if let Err(e) = self.repair() {
            left.push(Leftover { what: format!("bridge {}", self.settings.name), reason: e.to_string() });
        }
        left
    }

    fn set_pod_cidr(&self, cidr: &str) -> Result<(), NetError> {
        let ranges = parse_list("pod_cidr", cidr)?;
        if lock(&self.books).set_pod_cidr(ranges)? {
            // The next setup gives the bridge its new address, beside the old ones.
            *lock(&self.made) = None;
        }
        Ok(())
    }

    fn watches(&self) -> Vec<OwnedFd> {
        let descriptors = lock(&self.watch).descriptors();
        descriptors.unwrap_or_else(|e| {
            tracing::warn!(error = %e, "changes of the bridge by others are not seen at once");
            Vec::new()
        })
    }

    fn mend(&self) -> Result<(), NetError> {
        lock(&self.watch).drain();
        self.mend_shared()
    }

    fn reset(&self) -> Vec<Leftover> {
        self.take_away()
    }

    fn pools(&self) -> Vec<PoolUse> {
        let books = lock(&self.books);
        let pool = |range: &Range| PoolUse { range: range.to_string(), used: books.leased(*range), size: range.size() };
        books.current().iter().map(pool).collect()
    }

    fn describe(&self) -> serde_json::Value {
        let made = *lock(&self.made);
        let books = lock(&self.books);
        let text = |ranges: &[Range]| ranges.iter().map(Range::to_string).collect::<Vec<_>>();
        let pods = books.pods().iter().map(|(id, pod)| {
            let addresses: Vec<IpAddr> = pod.addresses.iter().map(|(ip, _)| *ip).collect();
            serde_json::json!({ "sandbox": id, "addresses": addresses, "ports": pod.ports })
        });
        serde_json::json!({
            "driver": NAME,
            "bridge": self.settings.name,
            "mtu": made.map(|made| made.mtu).or(self.settings.mtu),
            "ranges": text(books.current()),
            "former_ranges": text(books.known()).into_iter().filter(|r| !text(books.current()).contains(r))
                .collect::<Vec<_>>(),
            "by_kubelet": books.is_by_kubelet(),
            "overlap": *lock(&self.overlap),
            "without_ipv6": self.lacks_ipv6,
            "sources_checked": if lock(&self.table).is_by_port() { "by port" } else { "by range" },
            "isolated": self.settings.isolated,
            "masquerade": self.settings.masquerade,
            "pods": pods.collect::<Vec<_>>(),
        })
    }
}

impl Bridge {
    /// As [`enter`](Self::enter), if the host ports are free; with warnings about them.
    fn enter_with_ports(&self, request: &Request) -> Result<(Pod, Mac, Vec<String>), NetError> {
        if request.ports.is_empty() {
            let (pod, mac) = self.enter(request)?;
            return Ok((pod, mac, Vec::new()));
        }
        let _alone = lock(&self.trying);
        // First those of pods: they do not listen on the host, but for the daemon in their place.
        lock(&self.books).check_ports(&request.id, &request.ports)?;
        let all = || request.ports.iter().filter_map(|port| ports::try_bind(port).transpose()).collect();
        let failed =
            |source| NetError::Kernel { step: "enter network namespace", object: "of the host".into(), source };
        let tried: Result<Vec<String>, NetError> = namespace::inside(self.host.as_fd(), all).map_err(failed)?;
        let warnings = tried?;
        let (pod, mac) = self.enter(request)?;
        Ok((pod, mac, warnings))
    }

    /// Has the daemon listen at ::1 for all pods in the books; what cannot be served.
    fn serve_loopback(&self) -> Vec<Leftover> {
        let books = lock(&self.books);
        lock(&self.loopback).serve_these(books.pods(), self.host.as_fd())
    }

    /// Brings a pod into the table: its host ports, and what it may say that it is.
    fn open_ports(&self, id: &SandboxId, pod: &Pod) -> Result<(), NetError> {
        let wanted = elements(id, pod);
        let added = lock(&self.table).add(&wanted);
        if added.is_err() {
            // Somebody took the table away, or changed it.
            let books = lock(&self.books);
            let mut table = lock(&self.table);
            let title = table.title();
            table.rebuild(&self.layout(&books), &super::elements(&books)).map_err(|refusal| refusal.about(title))?;
        }
        let forgotten = ports::forget_before(&mut lock(&self.tracking), &mut lock(&self.route), pod);
        if let Err(e) = forgotten {
            tracing::debug!(sandbox = %id, error = %e, "could not forget UDP conversations");
        }
        Ok(())
    }

    /// Takes a pod out of the table; what could not be taken.
    fn close_ports(&self, id: &SandboxId, pod: &Pod, books: &Books) -> Vec<Leftover> {
        let gone = elements(id, pod);
        let mut table = lock(&self.table);
        if gone.is_empty() || table.remove(&gone).is_ok() {
            return Vec::new();
        }
        // One of them was not there: all others have to go too, so the table is made as it is without this pod.
        let others = books.pods().iter().filter(|(other, _)| *other != id);
        let others: Vec<Element> = others.flat_map(|(id, pod)| elements(id, pod)).collect();
        let rebuilt =
            table.exists().and_then(|exists| if exists { table.rebuild(&self.layout(books), &others) } else { Ok(()) });
        let what = || format!("host ports of sandbox {id}");
        rebuilt.err().map(|e| Leftover { what: what(), reason: e.to_string() }).into_iter().collect()
    }

    /// Makes the host forget the UDP conversations with a pod that is no more.
    fn forget_conversations(&self, pod: &Pod) {
        if let Err(e) = ports::forget_with(&mut lock(&self.tracking), pod) {
            tracing::debug!(pod = pod.name, error = %e, "could not forget UDP conversations");
        }
    }

    /// Leases and claims for a request, on disk. What an earlier try left is given back first.
    pub(super) fn enter(&self, request: &Request) -> Result<(Pod, Mac), NetError> {
        let mut books = lock(&self.books);
        if let Some(pod) = books.pods().get(&request.id).cloned() {
            self.close_ports(&request.id, &pod, &books);
        }
        if let Some(left) = books.release(&request.id).into_iter().next() {
            return Err(NetError::Taken { what: left.what, owner: format!("an earlier try: {}", left.reason) });
        }
        let mut is_gone = |name: &str| matches!(link::by_name(&mut lock(&self.route), name), Ok(None));
        let mut pod = books.enter(&request.id, NETWORK, &request.ips, &request.ports, &mut is_gone)?;
        let first = pod.addresses.first().map_or(IpAddr::from([0; 4]), |(ip, _)| *ip);
        let mac = mac(&request.mac)?.unwrap_or_else(|| link::mac_of(first));
        books.note(&request.id, format!("{}/{}", request.namespace, request.name), mac);
        pod.mac = Some(mac);
        Ok((pod, mac))
    }

    /// Makes the pair of devices. If the bridge is not what it was, it is made anew with all that was in it; an end left
    /// by an earlier try goes.
    fn connect(&self, id: &SandboxId, namespace: Namespace<'_>, made: Made, mac: Mac) -> Result<(), NetError> {
        let make = |made: Made| {
            let mut batch = Batch::default();
            let Made { index: bridge, mtu, port } = made;
            let pair = Pair { namespace: namespace.fd.as_fd(), interface: INTERFACE, mac, mtu, bridge, port };
            link::add_pair(&mut batch, id, &pair);
            lock(&self.route).all(batch, &[])
        };
        let object = || format!("{} of sandbox {id}", link::host_end(id));
        let Err(first) = make(made) else { return Ok(()) };
        let old = link::by_name(&mut lock(&self.route), &link::host_end(id)).map_err(|r| r.about(object()))?;
        if let Some(old) = old {
            if old.alias != id.as_str() && !old.alias.is_empty() {
                return Err(NetError::Taken { what: format!("device {}", old.name), owner: old.alias });
            }
            let mut batch = Batch::default();
            link::delete(&mut batch, old.index);
            lock(&self.route).all(batch, &[libc::ENODEV]).map_err(|r| r.about(object()))?;
        }
        self.repair()?;
        let again = self.ready()?;
        make(again).map_err(|refusal| if refusal.errno == libc::ENODEV { first } else { refusal }.about(object()))
    }

    /// Strangers out of the books, live sandboxes into them.
    fn put_books_right(&self, live: &[Live]) -> Vec<Leftover> {
        let mut books = lock(&self.books);
        let is_stranger = |(id, pod): &(&SandboxId, &Pod)| !pod.is_new && !live.iter().any(|live| live.id == **id);
        let strangers: Vec<SandboxId> = books.pods().iter().filter(is_stranger).map(|(id, _)| id.clone()).collect();
        let gone: Vec<Pod> = strangers.iter().filter_map(|id| books.pods().get(id).cloned()).collect();
        let mut left: Vec<Leftover> = strangers.iter().flat_map(|id| books.release(id)).collect();
        for live in live.iter().filter(|live| live.attachment.driver == NAME) {
            let range = |address: &Address| Some((address.ip, Range::new(address.ip, address.prefix).ok()?));
            let addresses: Vec<_> = live.attachment.addresses.iter().filter_map(range).collect();
            left.extend(books.restore(&live.id, &addresses, &live.attachment.ports));
            books.note_mac(&live.id, mac(&live.attachment.mac).ok().flatten());
        }
        let mut is_gone = |name: &str| matches!(link::by_name(&mut lock(&self.route), name), Ok(None));
        left.extend(books.tidy(&mut is_gone));
        drop(books);
        gone.iter().for_each(|pod| self.forget_conversations(pod));
        left
    }
}

/// The hardware address asked for.
fn mac(text: &str) -> Result<Option<Mac>, NetError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts: Vec<Option<u8>> = text
        .split(':')
        .take(7)
        .map(|part| {
            let is_octet = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            if is_octet { u8::from_str_radix(part, 16).ok() } else { None }
        })
        .collect();
    let mac = parts.into_iter().collect::<Option<Vec<u8>>>().and_then(|bytes| Mac::try_from(bytes).ok());
    match mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]) {
        Some(mac) => Ok(Some(mac)),
        None => {
            let shown: String = text.chars().take(40).collect();
            let reason = format!("{shown:?} is no hardware address of one device, such as 02:00:00:00:00:01");
            Err(NetError::Invalid { field: "mac".into(), reason })
        }
    }
}

fn unsupported(request: &Request) -> Result<(), NetError> {
    let no = |field: &str, reason: &str| Err(NetError::Unsupported { field: field.into(), reason: reason.into() });
    let why = "the built-in bridge cannot limit traffic; use a CNI configuration with the plugin bandwidth";
    if request.bandwidth.ingress.is_some() {
        return no("annotations[kubernetes.io/ingress-bandwidth]", why);
    }
    if request.bandwidth.egress.is_some() {
        return no("annotations[kubernetes.io/egress-bandwidth]", why);
    }
    Ok(())
}

fn attachment(pod: &Pod, mtu: u32, mac: Mac) -> Attachment {
    let address =
        |(ip, range): &(IpAddr, Range)| Address { ip: *ip, prefix: range.prefix(), gateway: Some(range.gateway()) };
    let route = |(ip, range): &(IpAddr, Range)| Route {
        to: if ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) },
        prefix: 0,
        via: Some(range.gateway()),
    };
    Attachment {
        driver: NAME.into(),
        network: NETWORK.into(),
        interface: INTERFACE.into(),
        mac: link::mac_text(&mac),
        mtu,
        addresses: pod.addresses.iter().map(address).collect(),
        routes: pod.addresses.iter().map(route).collect(),
        ports: pod.ports.clone(),
        dns: Dns::default(),
        warnings: Vec::new(),
    }
}
