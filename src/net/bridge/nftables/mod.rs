//! The tables of ours, `inet aril` and `bridge aril`: made, looked at and changed in transactions.
//!
//! A host port is an element of a map, so pods come and go by one small change each, however many there are. The rest
//! of the table depends on settings and ranges alone and is made anew as a whole.

mod attributes;
mod rules;
mod sources;

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NlasIterator};

pub use self::attributes::Attributes;
use self::attributes::Expressions;
use self::rules::{CHAINS, Chain, MAPS, Map};
pub use self::rules::{Element, Family, Layout, elements};
use super::netlink::{Batch, Refusal, Socket, attribute, string};

/// The families of tables, that which every kernel has first.
const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];
/// Elements in one message: an attribute has room for some hundred more.
const ELEMENTS: usize = 500;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    /// "aril"; of another bridge "aril_" and its name.
    name: String,
    /// Whether the kernel has been found to have no tables of the family `bridge`.
    lacks_bridge: bool,
    /// How ours was when it was last found whole.
    whole: Option<Whole>,
}

/// What was found whole, and when: the generation of all tables of the namespace says only that nobody changed any.
#[derive(Debug, PartialEq, Eq)]
struct Whole {
    generation: u32,
    layout: Layout,
    elements: BTreeSet<Element>,
}

fn header(family: i32, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![u8::try_from(family).unwrap_or_default(), 0, high, low]
}

fn kind(message: i32) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | message).unwrap_or_default()
}

fn message(family: Family, attributes: &Attributes) -> Vec<u8> {
    let number = match family {
        Family::Inet => libc::NFPROTO_INET,
        Family::Bridge => libc::NFPROTO_BRIDGE,
    };
    [header(number, 0), attributes.0.clone()].concat()
}

/// The name of a bridge's tables. There may be several bridges on one host, each with its daemon.
fn name_of(bridge: &str) -> String {
    // nft(8) takes no '-' in a name, and a device's has no '/'.
    if bridge == "aril0" { "aril".into() } else { format!("aril_{}", bridge.replace('-', "/")) }
}

/// A transaction being written.
#[derive(Default)]
struct Transaction {
    batch: Batch,
    last: Option<(&'static str, u16, u16, Vec<u8>)>,
}

impl Transaction {
    fn add(&mut self, family: Family, step: &'static str, message_kind: i32, flags: u16, attributes: &Attributes) {
        let marker = header(libc::AF_UNSPEC, u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default());
        match self.last.take() {
            None => self.batch.push("begin transaction", BATCH_BEGIN, 0, &marker),
            Some((step, kind, flags, payload)) => self.batch.push(step, kind, flags, &payload),
        }
        self.last = Some((step, kind(message_kind), flags, message(family, attributes)));
    }

    /// Does it all, or nothing. The last message is answered when it is done.
    fn run(mut self, socket: &mut Socket) -> Result<(), Refusal> {
        let Some((step, kind, flags, payload)) = self.last.take() else { return Ok(()) };
        self.batch.push(step, kind, flags | NLM_F_ACK, &payload);
        let marker = header(libc::AF_UNSPEC, u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default());
        self.batch.push("end transaction", BATCH_END, 0, &marker);
        socket.transaction(self.batch)
    }
}

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const CREATE: u16 = NLM_F_CREATE;

impl Table {
    /// For the calling thread's network namespace and a bridge; makes nothing.
    ///
    /// # Errors
    /// As netlink(7).
    pub fn open(bridge: &str) -> io::Result<Self> {
        Ok(Self { socket: Socket::netfilter()?, name: name_of(bridge), lacks_bridge: false, whole: None })
    }

    /// "table inet aril of nftables".
    pub fn title(&self) -> String {
        format!("table inet {} of nftables", self.name)
    }

    /// Whether the kernel can tell the ports of a bridge apart, as far as is known.
    pub fn is_by_port(&self) -> bool {
        !self.lacks_bridge
    }

    /// The number by which the kernel names who changes tables here.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    fn families(&self) -> &'static [Family] {
        if self.lacks_bridge { &FAMILIES[..1] } else { &FAMILIES }
    }

    /// A name in one of the tables.
    fn named(&self) -> Attributes {
        Attributes::default().text(1, &self.name)
    }

    /// Makes the tables as they are to be, in place of whatever there is by their name, in one transaction.
    ///
    /// # Errors
    /// The step that the kernel refused; then nothing has changed.
    pub fn rebuild(&mut self, layout: &Layout, elements: &[Element]) -> Result<(), Refusal> {
        self.whole = None;
        let Err(refusal) = self.rebuild_once(layout, elements) else { return Ok(()) };
        if self.lacks_bridge {
            return Err(refusal);
        }
        self.lacks_bridge = true;
        if self.rebuild_once(layout, elements).is_err() {
            // Something else is wrong.
            self.lacks_bridge = false;
            return Err(refusal);
        }
        tracing::warn!(
            error = %refusal,
            "the kernel has no nftables for bridges: pods are not kept from posing as each other"
        );
        Ok(())
    }

    fn rebuild_once(&mut self, layout: &Layout, elements: &[Element]) -> Result<(), Refusal> {
        let layout = Layout { by_port: self.is_by_port(), ..layout.clone() };
        let mut all = Transaction::default();
        for family in self.families() {
            // Made first, so that deleting it is never refused.
            all.add(*family, "make table", libc::NFT_MSG_NEWTABLE, CREATE, &self.named());
            all.add(*family, "delete table", libc::NFT_MSG_DELTABLE, 0, &self.named());
            all.add(*family, "make table", libc::NFT_MSG_NEWTABLE, CREATE, &self.named());
        }
        let is_there = |family: Family| self.families().contains(&family);
        for chain in CHAINS.iter().filter(|chain| is_there(chain.family)) {
            all.add(chain.family, "make chain", libc::NFT_MSG_NEWCHAIN, CREATE, &self.chain_message(*chain));
        }
        for (number, map) in (1..).zip(MAPS.iter().filter(|map| is_there(map.family()))) {
            all.add(map.family(), "make map", libc::NFT_MSG_NEWSET, CREATE, &self.map_message(*map, number));
        }
        for (chain, rule) in rules::rules(&layout) {
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            all.add(family_of(chain), "make rule", libc::NFT_MSG_NEWRULE, flags, &self.rule_message(chain, &rule));
        }
        self.elements_message(&mut all, "add to table", libc::NFT_MSG_NEWSETELEM, CREATE, elements);
        all.run(&mut self.socket)
    }

    /// Makes the tables anew if they are not as they are to be; `true`: they were not.
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub fn ensure(&mut self, layout: &Layout, elements: &[Element]) -> Result<bool, Refusal> {
        let generation = self.generation()?;
        let wanted =
            |generation| Whole { generation, layout: layout.clone(), elements: elements.iter().cloned().collect() };
        let wanted = generation.map(wanted);
        if wanted.is_some() && wanted == self.whole {
            return Ok(false);
        }
        let was_whole = self.is_whole(layout, elements)?;
        if !was_whole {
            self.rebuild(layout, elements)?;
        }
        // Of one just made it is known when it is next asked for: somebody may have changed it already.
        self.whole = wanted.filter(|_| was_whole);
        Ok(!was_whole)
    }

    /// Whether nobody but this has changed any table since ours were last found whole.
    pub fn is_untouched(&mut self) -> bool {
        let Some(known) = self.whole.as_ref().map(|whole| whole.generation) else { return false };
        self.generation().is_ok_and(|now| now == Some(known))
    }

    /// Adds a pod's elements. They may be there already.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOENT`: there is no such table any more.
    pub fn add(&mut self, elements: &[Element]) -> Result<(), Refusal> {
        let mut some = Transaction::default();
        self.elements_message(&mut some, "add to table", libc::NFT_MSG_NEWSETELEM, CREATE, elements);
        self.change(some, |known| known.extend(elements.iter().cloned()))
    }

    /// Takes a pod's elements away.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOENT`: one of them or the table is not there.
    pub fn remove(&mut self, elements: &[Element]) -> Result<(), Refusal> {
        let mut some = Transaction::default();
        self.elements_message(&mut some, "take from table", libc::NFT_MSG_DELSETELEM, 0, elements);
        self.change(some, |known| known.retain(|element| !elements.contains(element)))
    }

    /// Every transaction counts the generation on by one. If somebody else has changed something meanwhile, what is
    /// noted here is behind, and the tables are looked at.
    fn change(&mut self, some: Transaction, note: impl FnOnce(&mut BTreeSet<Element>)) -> Result<(), Refusal> {
        if some.last.is_none() {
            return Ok(());
        }
        let known = self.whole.take();
        some.run(&mut self.socket)?;
        self.whole = known.map(|mut whole| {
            // It is never 0.
            whole.generation = whole.generation.checked_add(1).unwrap_or(1);
            note(&mut whole.elements);
            whole
        });
        Ok(())
    }

    /// Whether there is a table of the family `inet` by our name.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn exists(&mut self) -> Result<bool, Refusal> {
        self.has(Family::Inet)
    }

    fn has(&mut self, family: Family) -> Result<bool, Refusal> {
        let payload = message(family, &self.named());
        Ok(self.socket.get("look for table", kind(libc::NFT_MSG_GETTABLE), &payload)?.is_some())
    }

    /// Deletes the tables, if there are any.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete(&mut self) -> Result<(), Refusal> {
        self.whole = None;
        for family in FAMILIES {
            if !self.has(family)? {
                continue;
            }
            let mut all = Transaction::default();
            all.add(family, "delete table", libc::NFT_MSG_DELTABLE, 0, &self.named());
            all.run(&mut self.socket)?;
        }
        Ok(())
    }

    /// A number that changes with every change of any table.
    fn generation(&mut self) -> Result<Option<u32>, Refusal> {
        let payload = header(libc::AF_UNSPEC, 0);
        let answer = self.socket.get("look at tables", kind(libc::NFT_MSG_GETGEN), &payload)?;
        let number = answer.as_deref().and_then(|bytes| attribute(bytes.get(HEADER..)?, 1));
        Ok(number.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?))))
    }

    fn is_whole(&mut self, layout: &Layout, elements: &[Element]) -> Result<bool, Refusal> {
        let layout = Layout { by_port: self.is_by_port(), ..layout.clone() };
        let wanted = rules::rules(&layout);
        let mut wanted: Vec<(String, Vec<u8>)> =
            wanted.iter().map(|(chain, rule)| ((*chain).to_owned(), mark(chain, rule))).collect();
        let mut found: Vec<(String, Vec<u8>)> = Vec::new();
        for family in self.families() {
            if !self.has(*family)? {
                return Ok(false);
            }
            let payload = message(*family, &self.named());
            let answers = self.socket.dump("list rules", kind(libc::NFT_MSG_GETRULE), &payload)?;
            found.extend(answers.iter().filter_map(|(_, payload)| rule_of(payload)));
        }
        // The order of chains is the kernel's; that of rules in a chain is ours.
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        found.sort_by(|a, b| a.0.cmp(&b.0));
        if wanted != found {
            return Ok(false);
        }
        let wanted: BTreeSet<&Element> = elements.iter().filter(|element| self.serves(element.map)).collect();
        let mut found = BTreeSet::new();
        let families = self.families();
        for map in MAPS.into_iter().filter(|map| families.contains(&map.family())) {
            found.extend(self.elements(map)?);
        }
        Ok(wanted == found.iter().collect())
    }

    fn serves(&self, map: Map) -> bool {
        self.families().contains(&map.family())
    }

    fn elements(&mut self, map: Map) -> Result<Vec<Element>, Refusal> {
        let payload = message(map.family(), &self.named().text(2, map.name));
        let answers = self.socket.dump("list elements", kind(libc::NFT_MSG_GETSETELEM), &payload)?;
        let lists = answers.iter().filter_map(|(_, payload)| attribute(payload.get(HEADER..)?, 3));
        let all = lists.flat_map(|list| NlasIterator::new(list).map_while(Result::ok));
        let element = |element: &[u8]| {
            let value = |kind| attribute(attribute(element, kind)?, 1).map(<[u8]>::to_vec);
            Some(Element { map, key: value(1)?, data: value(2).unwrap_or_default() })
        };
        Ok(all.filter_map(|nla| element(nla.value())).collect())
    }

    fn chain_message(&self, chain: Chain) -> Attributes {
        let attributes = self.named().text(3, chain.name);
        let Some((kind, hook, priority)) = chain.hook else { return attributes };
        let place = Attributes::default().number(1, hook).put(2, &priority.to_be_bytes());
        attributes.nest(4, &place).number(5, libc::NF_ACCEPT.cast_unsigned()).text(7, kind)
    }

    fn map_message(&self, map: Map, number: u32) -> Attributes {
        const MAP: u32 = 8;
        let (key, data) = map.types();
        let is_map = map.data_length() > 0;
        let attributes = self.named().text(2, map.name).number(3, if is_map { MAP } else { 0 });
        let mut attributes = attributes.number(4, key).number(5, map.key_length());
        if is_map {
            attributes = attributes.number(6, data).number(7, map.data_length());
        }
        attributes.number(10, number)
    }

    fn rule_message(&self, chain: &'static str, rule: &Expressions) -> Attributes {
        self.named().text(2, chain).nest(4, rule.attributes()).put(7, &mark(chain, rule))
    }

    fn elements_message(
        &self,
        transaction: &mut Transaction,
        step: &'static str,
        message: i32,
        flags: u16,
        elements: &[Element],
    ) {
        for map in MAPS.into_iter().filter(|map| self.serves(*map)) {
            let of_map: Vec<&Element> = elements.iter().filter(|element| element.map == map).collect();
            for some in of_map.chunks(ELEMENTS) {
                let list = some.iter().fold(Attributes::default(), |list, element| {
                    let one = Attributes::default().data(1, &element.key);
                    list.nest(1, &if element.data.is_empty() { one } else { one.data(2, &element.data) })
                });
                transaction.add(map.family(), step, message, flags, &self.named().text(2, map.name).nest(3, &list));
            }
        }
    }
}

/// The family of a chain's table.
fn family_of(chain: &str) -> Family {
    CHAINS.iter().find(|known| known.name == chain).map_or(Family::Inet, |chain| chain.family)
}

/// A rule's comment, as nft(8) shows it: a fingerprint, by which a rule is known to be as we made it.
fn mark(chain: &str, rule: &Expressions) -> Vec<u8> {
    let bytes = [chain.as_bytes(), &rule.attributes().0].concat();
    let text = format!("aril {:016x}\0", xxhash_rust::xxh3::xxh3_64(&bytes));
    let length = u8::try_from(text.len()).unwrap_or_default();
    [&[0, length], text.as_bytes()].concat()
}

/// Chain and mark of a rule as the kernel tells it.
fn rule_of(payload: &[u8]) -> Option<(String, Vec<u8>)> {
    let attributes = payload.get(HEADER..)?;
    let chain = attribute(attributes, 2).and_then(string)?;
    Some((chain, attribute(attributes, 7).unwrap_or_default().to_vec()))
}

/// What others might do to the table.
#[cfg(test)]
impl Table {
    /// Takes a chain's rules away.
    pub fn flush(&mut self, chain: &str) {
        let attributes = self.named().text(2, chain);
        self.tamper(family_of(chain), libc::NFT_MSG_DELRULE, &attributes);
    }

    /// Takes a map's elements away.
    pub fn empty(&mut self, map: &str) {
        let attributes = self.named().text(2, map);
        let family = MAPS.iter().find(|known| known.name == map).unwrap().family();
        self.tamper(family, libc::NFT_MSG_DELSETELEM, &attributes);
    }

    /// As on a kernel that has no tables of the family `bridge`.
    pub fn forgo_ports(&mut self) {
        self.lacks_bridge = true;
    }

    /// Takes the table for a socket, which nobody else may change it by then (`NFT_TABLE_F_OWNER`).
    pub fn seize(&self) -> Socket {
        let mut socket = Socket::netfilter().unwrap();
        let mut all = Transaction::default();
        all.add(Family::Inet, "seize", libc::NFT_MSG_NEWTABLE, CREATE, &self.named().number(2, 2));
        all.run(&mut socket).unwrap();
        socket
    }

    fn tamper(&mut self, family: Family, message: i32, attributes: &Attributes) {
        let mut all = Transaction::default();
        all.add(family, "tamper", message, 0, attributes);
        // By a socket of its own, as others have.
        all.run(&mut Socket::netfilter().unwrap()).unwrap();
    }
}
