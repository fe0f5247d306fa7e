//! What all pods share: the bridge, switches of the host, the tables. Made, looked at, put right, taken away.

use std::net::IpAddr;
use std::os::fd::AsFd;

use super::books::Books;
use super::link::{self, Link};
use super::netlink::{Batch, Refusal, Socket};
use super::nftables::Layout;
use super::range::Range;
use super::{Bridge, LEAST_MTU, MTU, Made, elements, host, is_id, lock, pod};
use crate::net::{Leftover, NetError, namespace};

impl Bridge {
    /// The bridge, made if it is not known to be there. The tables are looked at if somebody else has changed any.
    pub(super) fn ready(&self) -> Result<Made, NetError> {
        let mut made = lock(&self.made);
        if let Some(made) = *made {
            if !lock(&self.table).is_untouched() {
                self.ensure_table(&lock(&self.books))?;
            }
            return Ok(made);
        }
        self.make(&mut made)
    }

    fn make(&self, made: &mut Option<Made>) -> Result<Made, NetError> {
        *made = None;
        let fresh = self.ensure()?;
        *made = Some(fresh);
        lock(&self.watch).look_at(fresh.index);
        Ok(fresh)
    }

    /// Brings back what is missing of what all pods share.
    pub(super) fn repair(&self) -> Result<(), NetError> {
        let mut made = lock(&self.made);
        let fresh = self.make(&mut made)?;
        let left = self.put_ends_right(fresh, &lock(&self.books));
        match left.into_iter().next() {
            Some(first) => Err(NetError::NotReady { reason: format!("{}: {}", first.what, first.reason) }),
            None => Ok(()),
        }
    }

    /// Brings back what is missing of what was made, if something seems to be. Cheap if nothing is.
    ///
    /// # Errors
    /// What could not be brought back.
    pub(super) fn mend_shared(&self) -> Result<(), NetError> {
        let Some(made) = *lock(&self.made) else { return Ok(()) };
        let name = &self.settings.name;
        let (found, has) = {
            let mut route = lock(&self.route);
            let found = link::by_name(&mut route, name).map_err(|refusal| refusal.about(name))?;
            let has = link::addresses(&mut route, made.index).map_err(|refusal| refusal.about(name))?;
            (found, has)
        };
        let is_there = found.is_some_and(|link| link.index == made.index && link.is_up);
        let lacks = |range: &Range| !has.contains(&(range.gateway(), range.prefix()));
        let is_whole = is_there && !lock(&self.books).current().iter().any(lacks);
        if is_whole && lock(&self.table).is_untouched() {
            return Ok(());
        }
        if !is_whole {
            tracing::warn!(bridge = name, "somebody changed the bridge, it is put right");
        }
        self.repair()
    }

    /// Makes what is missing of what all pods share.
    fn ensure(&self) -> Result<Made, NetError> {
        let mut books = lock(&self.books);
        books.save_ranges()?;
        let name = &self.settings.name;
        let about = |refusal: Refusal| refusal.about(name);
        let (found, has) = {
            let mut route = lock(&self.route);
            let found = link::by_name(&mut route, name).map_err(about)?;
            let has = match &found {
                Some(found) => link::addresses(&mut route, found.index).map_err(about)?,
                None => Vec::new(),
            };
            (found, has)
        };
        let has = |range: &Range| has.contains(&(range.gateway(), range.prefix()));
        let is_taken = |range: &Range| has(range) || books.is_in_use(*range);
        let refused = self.look_for_overlap(&books, found.as_ref())?.filter(|(range, _)| !is_taken(range));
        if let Some((_, reason)) = &refused
            && books.pods().is_empty()
        {
            return Err(NetError::NotReady { reason: reason.clone() });
        }
        let mut ranges = books.known().to_vec();
        ranges.retain(|range| refused.as_ref().is_none_or(|(refused, _)| refused != range));
        let mut made = self.ensure_bridge(found, &ranges)?;
        let at_home = |act: &dyn Fn() -> Result<bool, NetError>| {
            let failed =
                |source| NetError::Kernel { step: "enter network namespace", object: "of the host".into(), source };
            namespace::inside(self.host.as_fd(), act).map_err(failed)?
        };
        // Before the addresses: there are none of IPv6 where it is switched off.
        made.port.hairpin = at_home(&|| host::prepare(name, &ranges).map(|()| host::filters_bridges()))?;
        let mut batch = Batch::default();
        for range in ranges.iter().filter(|range| !has(range)) {
            link::add_address(&mut batch, made.index, range.gateway(), *range);
        }
        if !batch.is_empty() {
            let mut route = lock(&self.route);
            route.all(batch, &[]).map_err(about)?;
            pod::settle(&mut route, ranges.iter().map(|range| range.gateway()));
        }
        self.ensure_table(&books)?;
        // Behind the table, which keeps pods from abusing it.
        at_home(&|| host::let_loopback_in(name, &ranges).map(|()| true))?;
        match refused {
            Some((_, reason)) => Err(NetError::NotReady { reason }),
            None => Ok(made),
        }
    }

    fn ensure_table(&self, books: &Books) -> Result<(), NetError> {
        let mut table = lock(&self.table);
        let title = table.title();
        if table.ensure(&self.layout(books), &elements(books)).map_err(|refusal| refusal.about(title))? {
            tracing::info!(bridge = self.settings.name, "made the tables of nftables");
        }
        Ok(())
    }

    pub(super) fn layout(&self, books: &Books) -> Layout {
        Layout {
            bridge: self.settings.name.clone(),
            ranges: books.known().to_vec(),
            isolated: self.settings.isolated,
            masquerade: self.settings.masquerade,
            by_port: true,
        }
    }

    /// Whether somebody else routes our addresses, or a part of them: of a wider route nothing comes to them, which are
    /// routed by the longer prefix. kubelet's range is the cluster's affair: only told of.
    fn look_for_overlap(&self, books: &Books, bridge: Option<&Link>) -> Result<Option<(Range, String)>, NetError> {
        let index = bridge.map_or(0, |link| link.index);
        let found = host::overlap(&mut lock(&self.route), books.current(), index)?;
        let found = found.map(|(range, other)| {
            let reason = format!(
                "the address range {range} of pods overlaps the host's route to {}/{}; give the network another range",
                other.to, other.prefix
            );
            (range, reason)
        });
        let reason = found.as_ref().map(|(_, reason)| reason.clone());
        let mut last = lock(&self.overlap);
        if let Some(reason) = reason.as_ref().filter(|reason| last.as_ref() != Some(reason)) {
            tracing::warn!("{reason}");
        }
        *last = reason;
        Ok(found.filter(|_| !books.is_by_kubelet()))
    }

    /// Whether pods can be connected, as far as can be seen without making anything.
    pub(super) fn is_usable(&self) -> Result<(), NetError> {
        let is_made = lock(&self.made).is_some();
        if is_made {
            self.mend_shared()?;
        }
        let books = lock(&self.books);
        if !is_made {
            let name = &self.settings.name;
            let found = link::by_name(&mut lock(&self.route), name).map_err(|refusal| refusal.about(name))?;
            self.look_for_overlap(&books, found.as_ref())?;
        }
        let overlap = lock(&self.overlap).clone().filter(|_| !books.is_by_kubelet());
        overlap.map_or(Ok(()), |reason| Err(NetError::NotReady { reason }))
    }

    /// The device, up.
    fn ensure_bridge(&self, mut found: Option<Link>, ranges: &[Range]) -> Result<Made, NetError> {
        let name = &self.settings.name;
        let mut route = lock(&self.route);
        if found.is_none() {
            let mtu = self.mtu(&mut route)?;
            let mac = link::mac_of(ranges.first().map_or(IpAddr::from([0; 4]), |range| range.gateway()));
            let mut batch = Batch::default();
            link::add_bridge(&mut batch, name, mtu, mac);
            // Somebody may have made it just now: looked at below as if it had been there.
            route.all(batch, &[libc::EEXIST]).map_err(|refusal| refusal.about(name))?;
            found = link::by_name(&mut route, name).map_err(|refusal| refusal.about(name))?;
        }
        let bridge = found.filter(|link| link.kind == "bridge").ok_or_else(|| NetError::NotReady {
            reason: format!("device {name} of the host is not a bridge; remove it, or give the network another name"),
        })?;
        if !bridge.is_up {
            let mut batch = Batch::default();
            link::set_up(&mut batch, bridge.index);
            route.all(batch, &[]).map_err(|refusal| refusal.about(name))?;
        }
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
    pub(super) fn put_ends_right(&self, made: Made, books: &Books) -> Vec<Leftover> {
        let mut route = lock(&self.route);
        let links = match link::all(&mut route) {
            Ok(links) => links,
            Err(e) => return vec![Leftover { what: "devices of the host".into(), reason: e.to_string() }],
        };
        let mut left = Vec::new();
        for end in links.iter().filter(|link| is_end(link)) {
            let owner = books.pods().keys().find(|id| link::host_end(id) == end.name);
            let mut batch = Batch::default();
            match owner {
                Some(_) if end.master == made.index && end.is_up => continue,
                Some(_) => link::enslave(&mut batch, end.index, made.index, made.port),
                None if is_stray(end, Some(made.index), books) => link::delete(&mut batch, end.index),
                None => continue,
            }
            let what = format!("device {} of sandbox {}", end.name, end.alias);
            let failed = route.all(batch, &[libc::ENODEV]).err();
            left.extend(failed.map(|e| Leftover { what, reason: e.to_string() }));
        }
        left
    }

    /// See [`Driver::reset`](crate::net::Driver::reset).
    pub(super) fn take_away(&self) -> Vec<Leftover> {
        let mut made = lock(&self.made);
        *made = None;
        let mut books = lock(&self.books);
        let mut left = Vec::new();
        let mut failed = |what: String, reason: String| left.push(Leftover { what, reason });
        {
            let mut route = lock(&self.route);
            let links = link::all(&mut route).unwrap_or_else(|e| {
                failed("devices of the host".into(), e.to_string());
                Vec::new()
            });
            let is_bridge = |link: &&Link| link.kind == "bridge" && link.name == self.settings.name;
            let bridge = links.iter().find(is_bridge);
            let index = bridge.map(|bridge| bridge.index);
            let is_pods = |id| books.pods().keys().any(|known| link::host_end(known) == id);
            let ends = links.iter().filter(|end| is_end(end));
            let ends = ends.filter(|end| is_stray(end, index, &books) || is_pods(end.name.clone()));
            for link in ends.chain(bridge) {
                let mut batch = Batch::default();
                link::delete(&mut batch, link.index);
                if let Err(e) = route.all(batch, &[libc::ENODEV]) {
                    failed(format!("device {}", link.name), e.to_string());
                }
            }
        }
        if let Err(e) = lock(&self.table).delete() {
            failed("tables of nftables".into(), e.to_string());
        }
        lock(&self.loopback).close_all();
        if let Err(e) = books.reset() {
            failed("books of the bridge".into(), e.to_string());
        }
        left
    }
}

/// Whether a device looks like the host's end of a pod; there may be those of another aril.
fn is_end(link: &Link) -> bool {
    link.kind == "veth" && link.name.starts_with(link::PREFIX)
}

/// Whether it is ours, and no pod's: a port of our bridge, marked or, made half, not yet marked; or one that was put out
/// of it while its pod ended.
fn is_stray(end: &Link, bridge: Option<u32>, books: &Books) -> bool {
    let is_marked = is_id(&end.alias);
    let is_port = bridge == Some(end.master);
    (is_port && (is_marked || end.alias.is_empty())) || (end.master == 0 && is_marked && books.is_draining(&end.name))
}
