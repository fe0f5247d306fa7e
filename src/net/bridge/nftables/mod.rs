//! The one table of ours, `inet aril`: made, looked at and changed in transactions.
//!
//! A host port is an element of a map, so pods come and go by one small change each, however many there are. The rest
//! of the table depends on settings and ranges alone and is made anew as a whole.

mod attributes;
mod rules;

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NlasIterator};

pub use self::attributes::Attributes;
use self::attributes::Expressions;
use self::rules::{CHAINS, Chain, MAPS, Map};
pub use self::rules::{Element, Layout, elements};
use super::netlink::{Batch, Refusal, Socket, attribute, string};

/// The table's name.
const TABLE: &str = "aril";
/// Elements in one message: an attribute has room for some hundred more.
const ELEMENTS: usize = 500;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    /// How ours was when it was last found whole.
    whole: Option<Whole>,
}

/// What was found whole, and when: the generation of all tables of the namespace says only that nobody changed any.
#[derive(Debug, PartialEq, Eq)]
struct Whole {
    generation: u32,
    layout: Layout,
    elements: Vec<Element>,
}

fn header(family: i32, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![u8::try_from(family).unwrap_or_default(), 0, high, low]
}

fn kind(message: i32) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | message).unwrap_or_default()
}

fn message(attributes: &Attributes) -> Vec<u8> {
    [header(libc::NFPROTO_INET, 0), attributes.0.clone()].concat()
}

/// A transaction being written.
#[derive(Default)]
struct Transaction {
    batch: Batch,
    last: Option<(&'static str, u16, u16, Vec<u8>)>,
}

impl Transaction {
    fn add(&mut self, step: &'static str, message_kind: i32, flags: u16, attributes: &Attributes) {
        let marker = header(libc::AF_UNSPEC, u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default());
        match self.last.take() {
            None => self.batch.push("begin transaction", BATCH_BEGIN, 0, &marker),
            Some((step, kind, flags, payload)) => self.batch.push(step, kind, flags, &payload),
        }
        self.last = Some((step, kind(message_kind), flags, message(attributes)));
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
    /// The socket, for what else it can do (connection tracking).
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// For the calling thread's network namespace; makes nothing.
    ///
    /// # Errors
    /// As netlink(7).
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::netfilter()?, whole: None })
    }

    /// Makes the table as it is to be, in place of whatever there is by its name, in one transaction.
    ///
    /// # Errors
    /// The step that the kernel refused; then nothing has changed.
    pub fn rebuild(&mut self, layout: &Layout, elements: &[Element]) -> Result<(), Refusal> {
        self.whole = None;
        let table = Attributes::default().text(1, TABLE);
        let mut all = Transaction::default();
        // Made first, so that deleting it is never refused.
        all.add("make table", libc::NFT_MSG_NEWTABLE, CREATE, &table);
        all.add("delete table", libc::NFT_MSG_DELTABLE, 0, &table);
        all.add("make table", libc::NFT_MSG_NEWTABLE, CREATE, &table);
        CHAINS.iter().for_each(|chain| all.add("make chain", libc::NFT_MSG_NEWCHAIN, CREATE, &chain_message(*chain)));
        for (number, map) in (1..).zip(&MAPS) {
            all.add("make map", libc::NFT_MSG_NEWSET, CREATE, &map_message(*map, number));
        }
        for (chain, rule) in rules::rules(layout) {
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            all.add("make rule", libc::NFT_MSG_NEWRULE, flags, &rule_message(chain, &rule));
        }
        add_elements(&mut all, "add host ports", libc::NFT_MSG_NEWSETELEM, CREATE, elements);
        all.run(&mut self.socket)
    }

    /// Makes the table anew if it is not as it is to be; `true`: it was not.
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub fn ensure(&mut self, layout: &Layout, elements: &[Element]) -> Result<bool, Refusal> {
        let generation = self.generation()?;
        let wanted = |generation| Whole { generation, layout: layout.clone(), elements: elements.to_vec() };
        let wanted = generation.map(wanted);
        if wanted.is_some() && wanted == self.whole {
            return Ok(false);
        }
        if self.is_whole(layout, elements)? {
            self.whole = wanted;
            return Ok(false);
        }
        self.rebuild(layout, elements).map(|()| true)
    }

    /// Adds host ports. They may be there already.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOENT`: there is no such table any more.
    pub fn add(&mut self, elements: &[Element]) -> Result<(), Refusal> {
        let mut some = Transaction::default();
        add_elements(&mut some, "add host ports", libc::NFT_MSG_NEWSETELEM, CREATE, elements);
        some.run(&mut self.socket)
    }

    /// Takes host ports away.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOENT`: one of them or the table is not there.
    pub fn remove(&mut self, elements: &[Element]) -> Result<(), Refusal> {
        let mut some = Transaction::default();
        add_elements(&mut some, "take host ports away", libc::NFT_MSG_DELSETELEM, 0, elements);
        some.run(&mut self.socket)
    }

    /// Whether there is a table by our name.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn exists(&mut self) -> Result<bool, Refusal> {
        let payload = message(&Attributes::default().text(1, TABLE));
        Ok(self.socket.get("look for table", kind(libc::NFT_MSG_GETTABLE), &payload)?.is_some())
    }

    /// Deletes the table, if there is one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete(&mut self) -> Result<(), Refusal> {
        self.whole = None;
        let table = Attributes::default().text(1, TABLE);
        let mut all = Transaction::default();
        all.add("make table", libc::NFT_MSG_NEWTABLE, CREATE, &table);
        all.add("delete table", libc::NFT_MSG_DELTABLE, 0, &table);
        all.run(&mut self.socket)
    }

    /// A number that changes with every change of any table.
    fn generation(&mut self) -> Result<Option<u32>, Refusal> {
        let payload = header(libc::AF_UNSPEC, 0);
        let answer = self.socket.get("look at tables", kind(libc::NFT_MSG_GETGEN), &payload)?;
        let number = answer.as_deref().and_then(|bytes| attribute(bytes.get(HEADER..)?, 1));
        Ok(number.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?))))
    }

    fn is_whole(&mut self, layout: &Layout, elements: &[Element]) -> Result<bool, Refusal> {
        if !self.exists()? {
            return Ok(false);
        }
        let wanted = rules::rules(layout);
        let mut wanted: Vec<(String, Vec<u8>)> =
            wanted.iter().map(|(chain, rule)| ((*chain).to_owned(), mark(chain, rule))).collect();
        let payload = message(&Attributes::default().text(1, TABLE));
        let answers = self.socket.dump("list rules", kind(libc::NFT_MSG_GETRULE), &payload)?;
        let mut found: Vec<(String, Vec<u8>)> = answers.iter().filter_map(|(_, payload)| rule_of(payload)).collect();
        // The order of chains is the kernel's; that of rules in a chain is ours.
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        found.sort_by(|a, b| a.0.cmp(&b.0));
        if wanted != found {
            return Ok(false);
        }
        let wanted: BTreeSet<&Element> = elements.iter().collect();
        let mut found = BTreeSet::new();
        for map in MAPS {
            found.extend(self.elements(map)?);
        }
        Ok(wanted == found.iter().collect())
    }

    fn elements(&mut self, map: Map) -> Result<Vec<Element>, Refusal> {
        let payload = message(&Attributes::default().text(1, TABLE).text(2, map.name));
        let answers = self.socket.dump("list host ports", kind(libc::NFT_MSG_GETSETELEM), &payload)?;
        let lists = answers.iter().filter_map(|(_, payload)| attribute(payload.get(HEADER..)?, 3));
        let all = lists.flat_map(|list| NlasIterator::new(list).map_while(Result::ok));
        let element = |element: &[u8]| {
            let value = |kind| attribute(attribute(element, kind)?, 1).map(<[u8]>::to_vec);
            Some(Element { map, key: value(1)?, data: value(2)? })
        };
        Ok(all.filter_map(|nla| element(nla.value())).collect())
    }
}

fn chain_message(chain: Chain) -> Attributes {
    let attributes = Attributes::default().text(1, TABLE).text(3, chain.name);
    let Some((kind, hook, priority)) = chain.hook else { return attributes };
    let place = Attributes::default().number(1, hook).put(2, &priority.to_be_bytes());
    attributes.nest(4, &place).number(5, libc::NF_ACCEPT.cast_unsigned()).text(7, kind)
}

fn map_message(map: Map, number: u32) -> Attributes {
    const MAP: u32 = 8;
    let (key, data) = map.types();
    let attributes = Attributes::default().text(1, TABLE).text(2, map.name).number(3, MAP);
    let attributes = attributes.number(4, key).number(5, map.key_length());
    attributes.number(6, data).number(7, map.data_length()).number(10, number)
}

/// A rule's comment, as nft(8) shows it: a fingerprint, by which a rule is known to be as we made it.
fn mark(chain: &str, rule: &Expressions) -> Vec<u8> {
    let bytes = [chain.as_bytes(), &rule.attributes().0].concat();
    let text = format!("aril {:016x}\0", xxhash_rust::xxh3::xxh3_64(&bytes));
    let length = u8::try_from(text.len()).unwrap_or_default();
    [&[0, length], text.as_bytes()].concat()
}

fn rule_message(chain: &'static str, rule: &Expressions) -> Attributes {
    let attributes = Attributes::default().text(1, TABLE).text(2, chain);
    attributes.nest(4, rule.attributes()).put(7, &mark(chain, rule))
}

/// Chain and mark of a rule as the kernel tells it.
fn rule_of(payload: &[u8]) -> Option<(String, Vec<u8>)> {
    let attributes = payload.get(HEADER..)?;
    let chain = attribute(attributes, 2).and_then(string)?;
    Some((chain, attribute(attributes, 7).unwrap_or_default().to_vec()))
}

fn add_elements(transaction: &mut Transaction, step: &'static str, message: i32, flags: u16, elements: &[Element]) {
    for map in MAPS {
        let of_map: Vec<&Element> = elements.iter().filter(|element| element.map == map).collect();
        for some in of_map.chunks(ELEMENTS) {
            let list = some.iter().fold(Attributes::default(), |list, element| {
                let one = Attributes::default().data(1, &element.key).data(2, &element.data);
                list.nest(1, &one)
            });
            let attributes = Attributes::default().text(1, TABLE).text(2, map.name).nest(3, &list);
            transaction.add(step, message, flags, &attributes);
        }
    }
}

/// What others might do to the table.
#[cfg(test)]
impl Table {
    /// Takes a chain's rules away.
    pub fn flush(&mut self, chain: &str) {
        let attributes = Attributes::default().text(1, TABLE).text(2, chain);
        self.tamper(libc::NFT_MSG_DELRULE, &attributes);
    }

    /// Takes a map's elements away.
    pub fn empty(&mut self, map: &str) {
        let attributes = Attributes::default().text(1, TABLE).text(2, map);
        self.tamper(libc::NFT_MSG_DELSETELEM, &attributes);
    }

    fn tamper(&mut self, message: i32, attributes: &Attributes) {
        let mut all = Transaction::default();
        all.add("tamper", message, 0, attributes);
        all.run(&mut self.socket).unwrap();
    }
}
