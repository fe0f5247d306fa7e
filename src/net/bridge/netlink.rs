//! Messages to the kernel and its answers: batches, dumps, extended acknowledgements.
//!
//! The kernel handles a message while it is sent, so a socket never waits for anybody else; the time-out only guards
//! against an answer that is lost for want of memory.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::net::NetError;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Largest answer in one piece; the kernel makes dumps no larger.
const RECEIVE_BYTES: usize = 32 * 1024;
/// Room for the elements of some ten thousand host ports in one transaction.
const SEND_BYTES: usize = 4 << 20;
/// How long an answer may take.
const PATIENCE_SECONDS: i64 = 10;
/// How often a dump is begun anew that others changed while it ran.
const DUMPS: usize = 8;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ACK_TEXT: u16 = 1;

/// The kernel's refusal of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the message was to do ("add address").
    pub step: &'static str,
    /// errno.
    pub errno: i32,
    /// The kernel's explanation; may be empty.
    pub text: String,
}

impl Refusal {
    fn of(step: &'static str, source: &io::Error) -> Self {
        Self { step, errno: source.raw_os_error().unwrap_or(libc::EIO), text: String::new() }
    }

    /// As the module's error, about `object`.
    pub fn about(self, object: impl Into<String>) -> NetError {
        NetError::Kernel { step: self.step, object: object.into(), source: self.into() }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let plain = Self::from_raw_os_error(refusal.errno);
        if refusal.text.is_empty() { plain } else { Self::new(plain.kind(), refusal.to_string()) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = io::Error::from_raw_os_error(self.errno);
        if self.text.is_empty() { write!(f, "{errno}") } else { write!(f, "{errno}: {}", self.text) }
    }
}

/// Messages to be sent together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message begins and what it is to do.
    steps: Vec<(usize, &'static str)>,
}

impl Batch {
    /// Appends a message. `payload` begins with the header of the protocol.
    pub fn push(&mut self, step: &'static str, kind: u16, flags: u16, payload: &[u8]) {
        self.steps.push((self.bytes.len(), step));
        let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// As [`push`](Self::push), for a message as a type.
    pub fn message(&mut self, step: &'static str, kind: u16, flags: u16, message: &impl Emitable) {
        self.push(step, kind, flags | NLM_F_ACK, &emitted(message));
    }
}

/// A message's bytes.
pub fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// What came back of a dump: kind and payload.
pub type Answer = (u16, Vec<u8>);

/// A socket of one protocol, in the namespace it was opened in.
pub struct Socket {
    raw: RawSocket,
    /// The kernel's number of it.
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Socket {
    /// For links, addresses and routes: `NETLINK_ROUTE` of the calling thread's network namespace.
    ///
    /// # Errors
    /// As netlink(7).
    pub fn route() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// For nftables and connection tracking: `NETLINK_NETFILTER`.
    ///
    /// # Errors
    /// As netlink(7).
    pub fn netfilter() -> io::Result<Self> {
        let socket = Self::open(libc::NETLINK_NETFILTER)?;
        // A whole table goes in one send; without the privilege the default has to do.
        setsockopt(&socket.raw.as_fd(), sockopt::SndBufForce, &SEND_BYTES).ok();
        setsockopt(&socket.raw.as_fd(), sockopt::RcvBufForce, &SEND_BYTES).ok();
        Ok(socket)
    }

    fn open(protocol: i32) -> io::Result<Self> {
        let mut raw = RawSocket::new(isize::try_from(protocol).unwrap_or_default())?;
        let port = raw.bind_auto()?.port_number();
        raw.connect(&SocketAddr::new(0, 0))?;
        // Errors in words; without the message they are about, which we have.
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        setsockopt(&raw.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { raw, port, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// The number by which the kernel tells others who changed something.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends all messages at once, each to be acknowledged; returns what was refused.
    ///
    /// # Errors
    /// The socket's own failure.
    pub fn run(&mut self, batch: Batch) -> Result<Vec<Refusal>, Refusal> {
        let steps = batch.steps.clone();
        let first = self.send(batch)?;
        let mut refused = Vec::new();
        let mut answered = 0;
        while answered < steps.len() {
            for (sequence, refusal) in self.acknowledgements(first, &steps)? {
                answered += usize::from(sequence >= first);
                refused.extend(refusal);
            }
        }
        Ok(refused)
    }

    /// As [`run`](Self::run): all or the first error that is none of `but`.
    ///
    /// # Errors
    /// The first refusal.
    pub fn all(&mut self, batch: Batch, but: &[i32]) -> Result<(), Refusal> {
        let refused = self.run(batch)?.into_iter().find(|refusal| !but.contains(&refusal.errno));
        refused.map_or(Ok(()), Err)
    }

    /// A transaction of nftables: all of it happens or nothing. `batch` begins and ends with the markers of nfnetlink,
    /// and its last but one message asks for an acknowledgement.
    ///
    /// # Errors
    /// The first refusal.
    pub fn transaction(&mut self, batch: Batch) -> Result<(), Refusal> {
        let steps = batch.steps.clone();
        let first = self.send(batch)?;
        let last = steps.len().saturating_sub(2);
        let mut worst = None;
        loop {
            for (sequence, refusal) in self.acknowledgements(first, &steps)? {
                let at = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                // A commit that fails is told of as a failure of the batch's beginning, and then nothing else follows.
                let is_over = at == last || (at == 0 && refusal.is_some());
                worst = worst.or(refusal);
                if is_over {
                    return worst.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// All objects of a kind. Begun anew if the kernel says that they changed meanwhile.
    ///
    /// # Errors
    /// The refusal; `EINTR` if they never stopped changing.
    pub fn dump(&mut self, step: &'static str, kind: u16, payload: &[u8]) -> Result<Vec<Answer>, Refusal> {
        for _ in 0..DUMPS {
            if let Some(answers) = self.dump_once(step, kind, payload)? {
                return Ok(answers);
            }
        }
        Err(Refusal { step, errno: libc::EINTR, text: "they change all the time".into() })
    }

    fn dump_once(&mut self, step: &'static str, kind: u16, payload: &[u8]) -> Result<Option<Vec<Answer>>, Refusal> {
        let mut batch = Batch::default();
        batch.push(step, kind, NLM_F_DUMP, payload);
        let first = self.send(batch)?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            self.receive(step)?;
            for message in messages(&self.buffer) {
                if message.sequence_number() != first {
                    continue;
                }
                whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        // An empty end is a success; else it begins with an errno as an error does.
                        let refusal = refusal(step, &message);
                        return refusal.map_or(Ok(whole.then_some(answers)), Err);
                    }
                    kind => answers.push((kind, message.payload().to_vec())),
                }
            }
        }
    }

    /// One object; `None` if the kernel has no such (`ENOENT`, `ENODEV`, `ESRCH`).
    ///
    /// # Errors
    /// The refusal.
    pub fn get(&mut self, step: &'static str, kind: u16, payload: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        let mut batch = Batch::default();
        batch.push(step, kind, 0, payload);
        let first = self.send(batch)?;
        loop {
            self.receive(step)?;
            let Some(message) = messages(&self.buffer).find(|message| message.sequence_number() == first) else {
                continue;
            };
            if message.message_type() != NLMSG_ERROR {
                return Ok(Some(message.payload().to_vec()));
            }
            return match refusal(step, &message) {
                Some(r) if ![libc::ENOENT, libc::ENODEV, libc::ESRCH].contains(&r.errno) => Err(r),
                _ => Ok(None),
            };
        }
    }

    /// Numbers and sends a batch; the first number.
    fn send(&mut self, mut batch: Batch) -> Result<u32, Refusal> {
        let count = u32::try_from(batch.steps.len()).unwrap_or(u32::MAX);
        // Never 0, and never anywhere near to wrapping within a batch.
        if self.sequence > u32::MAX / 2 {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        for (sequence, (at, _)) in (first..).zip(&batch.steps) {
            batch.bytes[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        let step = batch.steps.first().map_or("send", |(_, step)| step);
        self.raw.send(&batch.bytes, 0).map_err(|e| Refusal::of(step, &e))?;
        Ok(first)
    }

    fn receive(&mut self, step: &'static str) -> Result<(), Refusal> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(Refusal {
                        step,
                        errno: libc::EMSGSIZE,
                        text: "the kernel's answer is too long".into(),
                    });
                }
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Refusal::of(step, &e)),
            }
        }
    }

    /// The acknowledgements of one datagram with their numbers; those of earlier batches are passed over.
    fn acknowledgements(
        &mut self,
        first: u32,
        steps: &[(usize, &'static str)],
    ) -> Result<Vec<(u32, Option<Refusal>)>, Refusal> {
        self.receive(steps.first().map_or("receive", |(_, step)| step))?;
        let mut list = Vec::new();
        for message in messages(&self.buffer).filter(|message| message.message_type() == NLMSG_ERROR) {
            let sequence = message.sequence_number();
            let at = sequence.checked_sub(first).and_then(|at| usize::try_from(at).ok());
            if let Some((_, step)) = at.and_then(|at| steps.get(at)) {
                list.push((sequence, refusal(step, &message)));
            }
        }
        Ok(list)
    }
}

/// The messages in a datagram.
fn messages(bytes: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(message.length()).ok()?.next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(message)
    })
}

/// The error in an acknowledgement (struct nlmsgerr) or an end of a dump, if it is one.
fn refusal(step: &'static str, message: &NetlinkBuffer<&[u8]>) -> Option<Refusal> {
    let payload = message.payload();
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    if code >= 0 {
        return None;
    }
    // Behind the code comes the header of the message that failed, and that message unless it was cut off.
    let is_capped = message.flags() & NLM_F_CAPPED != 0;
    let inner = payload.get(4..8).and_then(|l| l.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let inner = if is_capped { HEADER } else { usize::try_from(inner).unwrap_or(HEADER) };
    let attributes = if message.flags() & NLM_F_ACK_TLVS == 0 { None } else { payload.get(4 + inner..) };
    let text = attributes.and_then(|bytes| string(attribute(bytes, ACK_TEXT)?)).unwrap_or_default();
    Some(Refusal { step, errno: -code, text })
}

/// The value of the first attribute of a kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(bytes).map_while(Result::ok).find(|nla| nla.kind() == kind)?;
    // The value lies in `bytes`, which lives longer than the iterator's item.
    let start = found.into_inner().as_ptr().addr() - bytes.as_ptr().addr();
    let length = usize::from(u16::from_ne_bytes(bytes.get(start..start + 2)?.try_into().ok()?));
    bytes.get(start + 4..start + length)
}

/// A text that ends with a zero byte.
pub fn string(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok().map(str::to_owned)
}

/// A number of the machine's byte order.
pub fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
