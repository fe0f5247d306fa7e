//! Frames.

use bytes::{Buf, Bytes, BytesMut};

use super::header::{Headers, Inflater};
use super::{SpdyError, limits};

const VERSION: u16 = 3;
const CONTROL_BIT: u32 = 1 << 31;
const HEAD_BYTES: usize = 8;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Of SETTINGS, the only one that is of use.
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream is reset.
pub mod status {
    /// Its frames make no sense.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// It was refused before anything was done with it.
    pub const REFUSED_STREAM: u32 = 3;
    /// Nobody wants it any more.
    pub const CANCEL: u32 = 5;
    /// More came than could be taken.
    pub const FLOW_CONTROL_ERROR: u32 = 7;
}

/// What a peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// It begins a stream; with `fin`, it will send nothing on it.
    SynStream {
        /// Odd from a client.
        id: u32,
        /// What the stream is for.
        headers: Headers,
        /// Whether its side is closed at once.
        fin: bool,
    },
    /// It accepts a stream of ours.
    SynReply {
        /// The stream.
        id: u32,
        /// Whether it will send nothing on it.
        fin: bool,
    },
    /// A stream is over, both ways.
    Reset {
        /// The stream.
        id: u32,
        /// As in [`status`].
        status: u32,
    },
    /// How wide windows are at first, if it says so.
    Settings {
        /// Bytes.
        initial_window: Option<u32>,
    },
    /// To be answered with the same number, if that is the peer's own.
    Ping(u32),
    /// It takes no new streams.
    GoAway,
    /// More headers of a stream; what they say is of no use.
    Headers {
        /// The stream.
        id: u32,
        /// Whether it was the last of it.
        fin: bool,
    },
    /// A stream's window is opened.
    WindowUpdate {
        /// The stream.
        id: u32,
        /// By so many bytes.
        delta: u32,
    },
    /// A piece of a data frame; `fin` comes with the last one.
    Data {
        /// The stream.
        id: u32,
        /// At most what was put in.
        bytes: Bytes,
        /// Whether it was the last of the stream.
        fin: bool,
    },
}

/// The rest of a data frame.
#[derive(Debug)]
struct Rest {
    id: u32,
    left: usize,
    fin: bool,
}

/// Bytes to frames. Keeps nothing but the headers' context: what is not used up stays with the caller.
#[derive(Debug, Default)]
pub struct Decoder {
    inflater: Inflater,
    rest: Option<Rest>,
}

impl Decoder {
    /// Takes a frame, or a piece of one with data, from the front of `input`; `None` if more must be read first.
    ///
    /// No more than [`limits::CONTROL_FRAME_BYTES`] and eight have to be in `input` to get on.
    ///
    /// # Errors
    /// [`SpdyError`]; nothing sensible comes after that.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(piece) = self.piece(input) {
                return Ok(Some(piece));
            }
            if self.rest.is_some() || input.len() < HEAD_BYTES {
                return Ok(None);
            }
            let mut head = &input[..HEAD_BYTES];
            let (first, second) = (head.get_u32(), head.get_u32());
            let [flags, ..] = second.to_be_bytes();
            // 24 bits.
            let length = usize::try_from(second & 0x00ff_ffff).unwrap_or(usize::MAX);
            if first & CONTROL_BIT == 0 {
                let id = checked(first)?;
                input.advance(HEAD_BYTES);
                self.rest = Some(Rest { id, left: length, fin: flags & FLAG_FIN != 0 });
                continue;
            }
            let [v1, v2, k1, k2] = first.to_be_bytes();
            let (version, kind) = (u16::from_be_bytes([v1 & 0x7f, v2]), u16::from_be_bytes([k1, k2]));
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            if length > limits::CONTROL_FRAME_BYTES {
                return Err(SpdyError::FrameTooLong(length));
            }
            if input.len() < HEAD_BYTES + length {
                return Ok(None);
            }
            let frame = input.split_to(HEAD_BYTES + length);
            if let Some(frame) = self.control(kind, flags & FLAG_FIN != 0, &frame[HEAD_BYTES..])? {
                return Ok(Some(frame));
            }
        }
    }

    fn piece(&mut self, input: &mut BytesMut) -> Option<Frame> {
        let rest = self.rest.as_mut()?;
        if input.is_empty() && rest.left > 0 {
            return None;
        }
        let (id, length) = (rest.id, rest.left.min(input.len()));
        rest.left -= length;
        let is_last = rest.left == 0;
        let fin = is_last && rest.fin;
        if is_last {
            self.rest = None;
        }
        Some(Frame::Data { id, bytes: input.split_to(length).freeze(), fin })
    }

    /// `None`: of a type nobody knows.
    fn control(&mut self, kind: u16, fin: bool, mut body: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let malformed = SpdyError::Malformed { kind, length: body.len() };
        let fixed = match kind {
            SYN_STREAM => body.len() >= 10,
            SYN_REPLY | HEADERS | SETTINGS => body.len() >= 4,
            RST_STREAM | GOAWAY | WINDOW_UPDATE => body.len() == 8,
            PING => body.len() == 4,
            _ => return Ok(None),
        };
        if !fixed {
            return Err(malformed);
        }
        let first = body.get_u32();
        Ok(Some(match kind {
            SYN_STREAM => {
                // Associated stream, priority, slot.
                body.advance(6);
                // Before anything is judged: the context is everybody's.
                let headers = self.inflater.headers(body)?;
                Frame::SynStream { id: checked(first)?, headers, fin }
            }
            SYN_REPLY => {
                self.inflater.headers(body)?;
                Frame::SynReply { id: checked(first)?, fin }
            }
            HEADERS => {
                self.inflater.headers(body)?;
                Frame::Headers { id: checked(first)?, fin }
            }
            RST_STREAM => Frame::Reset { id: checked(first)?, status: body.get_u32() },
            WINDOW_UPDATE => Frame::WindowUpdate { id: checked(first)?, delta: body.get_u32() & !CONTROL_BIT },
            PING => Frame::Ping(first),
            GOAWAY => Frame::GoAway,
            _ => {
                let count = usize::try_from(first).unwrap_or(usize::MAX);
                if count > limits::SETTINGS || body.len() != count * 8 {
                    return Err(malformed);
                }
                let mut initial_window = None;
                for _ in 0..count {
                    let (id, value) = (body.get_u32() & 0x00ff_ffff, body.get_u32());
                    if id == INITIAL_WINDOW_SIZE {
                        initial_window = Some(value & !CONTROL_BIT);
                    }
                }
                Frame::Settings { initial_window }
            }
        }))
    }
}

fn checked(id: u32) -> Result<u32, SpdyError> {
    match id & !CONTROL_BIT {
        0 => Err(SpdyError::StreamZero),
        id => Ok(id),
    }
}

/// What stands before `length` bytes of data; `length` is below 16 MiB.
#[must_use]
pub fn data_head(id: u32, length: usize, fin: bool) -> [u8; HEAD_BYTES] {
    head(id & !CONTROL_BIT, fin, length)
}

fn head(first: u32, fin: bool, length: usize) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    let [a, b, c, d] = first.to_be_bytes();
    let [_, f, g, h] = length.to_be_bytes();
    [a, b, c, d, u8::from(fin), f, g, h]
}

fn control(kind: u16, fin: bool, body: &[u8], out: &mut Vec<u8>) {
    let first = CONTROL_BIT | u32::from(VERSION) << 16 | u32::from(kind);
    out.extend(head(first, fin, body.len()));
    out.extend(body);
}

fn pair(kind: u16, first: u32, second: u32, out: &mut Vec<u8>) {
    control(kind, false, &[first.to_be_bytes(), second.to_be_bytes()].concat(), out);
}

/// Appends RST_STREAM.
pub fn reset(id: u32, status: u32, out: &mut Vec<u8>) {
    pair(RST_STREAM, id, status, out);
}

/// Appends PING.
pub fn ping(id: u32, out: &mut Vec<u8>) {
    control(PING, false, &id.to_be_bytes(), out);
}

/// Appends GOAWAY: no stream after `last` was looked at.
pub fn go_away(last: u32, status: u32, out: &mut Vec<u8>) {
    pair(GOAWAY, last, status, out);
}

/// Appends WINDOW_UPDATE.
pub fn window_update(id: u32, delta: u32, out: &mut Vec<u8>) {
    pair(WINDOW_UPDATE, id, delta, out);
}

/// Appends SETTINGS that say how wide windows are.
pub fn settings(initial_window: u32, out: &mut Vec<u8>) {
    let words = [1, INITIAL_WINDOW_SIZE, initial_window].map(u32::to_be_bytes);
    control(SETTINGS, false, &words.concat(), out);
}

impl super::Deflater {
    /// Appends SYN_STREAM.
    pub fn syn_stream(&mut self, id: u32, headers: &[(&str, &str)], fin: bool, out: &mut Vec<u8>) {
        let mut body = [id.to_be_bytes(), [0; 4]].concat();
        body.extend([0, 0]);
        self.headers(headers, &mut body);
        control(SYN_STREAM, fin, &body, out);
    }

    /// Appends SYN_REPLY without headers.
    pub fn syn_reply(&mut self, id: u32, out: &mut Vec<u8>) {
        let mut body = id.to_be_bytes().to_vec();
        self.headers(&[], &mut body);
        control(SYN_REPLY, false, &body, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Deflater;
    use super::*;

    fn all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, SpdyError> {
        let mut input = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.decode(&mut input)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn one_of_each() -> Vec<u8> {
        let (mut out, mut deflater) = (Vec::new(), Deflater::default());
        deflater.syn_stream(1, &[("streamType", "stdin")], false, &mut out);
        deflater.syn_stream(3, &[("streamType", "error")], true, &mut out);
        deflater.syn_reply(1, &mut out);
        settings(1 << 20, &mut out);
        window_update(1, 4096, &mut out);
        ping(7, &mut out);
        // Of a type nobody knows.
        control(99, false, b"whatever", &mut out);
        out.extend(data_head(1, 5, false));
        out.extend(b"hello");
        out.extend(data_head(1, 0, true));
        reset(3, status::CANCEL, &mut out);
        go_away(1, 0, &mut out);
        out
    }

    fn expected() -> Vec<Frame> {
        let headers = |kind: &str| vec![("streamtype".to_owned(), kind.to_owned())];
        vec![
            Frame::SynStream { id: 1, headers: headers("stdin"), fin: false },
            Frame::SynStream { id: 3, headers: headers("error"), fin: true },
            Frame::SynReply { id: 1, fin: false },
            Frame::Settings { initial_window: Some(1 << 20) },
            Frame::WindowUpdate { id: 1, delta: 4096 },
            Frame::Ping(7),
            Frame::Data { id: 1, bytes: Bytes::from_static(b"hello"), fin: false },
            Frame::Data { id: 1, bytes: Bytes::new(), fin: true },
            Frame::Reset { id: 3, status: status::CANCEL },
            Frame::GoAway,
        ]
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        assert_eq!(all(&mut Decoder::default(), &one_of_each()), Ok(expected()));
    }

    #[test]
    fn data_is_handed_out_as_it_comes() {
        let mut decoder = Decoder::default();
        let frames = all(&mut decoder, &[&data_head(5, 6, true)[..], b"ab"].concat()).unwrap();
        assert_eq!(frames, [Frame::Data { id: 5, bytes: Bytes::from_static(b"ab"), fin: false }]);
        assert_eq!(all(&mut decoder, b"").unwrap(), []);
        let frames = all(&mut decoder, b"cdefXX").unwrap();
        assert_eq!(frames, [Frame::Data { id: 5, bytes: Bytes::from_static(b"cdef"), fin: true }]);
    }

    #[test]
    fn what_is_too_much_or_not_spdy_is_refused_before_it_is_there() {
        let error = |first: u32, second: u32| {
            let head = [first.to_be_bytes(), second.to_be_bytes()].concat();
            all(&mut Decoder::default(), &head).unwrap_err()
        };
        let too_long = limits::CONTROL_FRAME_BYTES + 1;
        let kind = |kind: u16| CONTROL_BIT | u32::from(VERSION) << 16 | u32::from(kind);
        assert_eq!(error(kind(SYN_STREAM), u32::try_from(too_long).unwrap()), SpdyError::FrameTooLong(too_long));
        assert_eq!(error(kind(99), 0x00ff_ffff), SpdyError::FrameTooLong(0x00ff_ffff));
        assert_eq!(error(CONTROL_BIT | 2 << 16 | 1, 0), SpdyError::Version(2));
        assert_eq!(error(kind(PING), 0), SpdyError::Malformed { kind: PING, length: 0 });
        assert_eq!(error(0, 1), SpdyError::StreamZero);
        let mut out = Vec::new();
        reset(0, 1, &mut out);
        assert_eq!(all(&mut Decoder::default(), &out), Err(SpdyError::StreamZero));
        out.clear();
        control(SETTINGS, false, &[0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 1], &mut out);
        assert_eq!(all(&mut Decoder::default(), &out), Err(SpdyError::Malformed { kind: SETTINGS, length: 12 }));
    }

    /// Data of one stream in one piece, whatever pieces it came in.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut joined: Vec<Frame> = Vec::new();
        for frame in frames {
            match (joined.last_mut(), frame) {
                (
                    Some(Frame::Data { id, bytes, fin: fin @ false }),
                    Frame::Data { id: same, bytes: more, fin: end },
                ) if *id == same && !bytes.is_empty() => {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                    *fin = end;
                }
                (_, frame) => joined.push(frame),
            }
        }
        joined
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(cuts in proptest::collection::vec(1usize..40, 0..40)) {
            let bytes = one_of_each();
            let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts.into_iter().chain([bytes.len()]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                input.extend_from_slice(now);
                while let Some(frame) = decoder.decode(&mut input).unwrap() {
                    frames.push(frame);
                }
            }
            prop_assert_eq!(joined(frames), joined(expected()));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn nothing_makes_it_panic_or_wait_for_much(
            start in 0usize..300,
            flips in proptest::collection::vec((0usize..300, any::<u8>()), 0..6),
            noise in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut bytes = one_of_each();
            let length = bytes.len();
            for (at, value) in flips {
                bytes[at % length] = value;
            }
            bytes.extend(noise);
            let mut input = BytesMut::from(&bytes[start % length..]);
            let mut decoder = Decoder::default();
            loop {
                let before = input.len();
                match decoder.decode(&mut input) {
                    Ok(Some(_)) => prop_assert!(input.len() < before || before == 0),
                    Ok(None) => {
                        prop_assert!(input.len() < HEAD_BYTES + limits::CONTROL_FRAME_BYTES);
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
    }
}
