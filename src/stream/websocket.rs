//! WebSocket as a server speaks it: bytes to pieces of messages and back, without any I/O.
//!
//! Messages are handed out as they come, never gathered: clients send input in messages of any size, and a library
//! that gathers them would have to refuse large ones or hold them. No extension is agreed on.
//!
//! Follows RFC 6455.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use sha1::{Digest, Sha1};

/// RFC 6455, 1.3.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// RFC 6455, 5.5.
const CONTROL_BYTES: usize = 125;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// RFC 6455, 7.4.1: all is said.
pub const NORMAL: u16 = 1000;
/// RFC 6455, 7.4.1: the peer broke the rules.
pub const PROTOCOL_ERROR: u16 = 1002;

/// Longest head in front of what a server sends.
pub const HEAD_BYTES: usize = 10;

/// Why a client's bytes are not WebSocket. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum WebSocketError {
    #[error("a frame that is not masked")]
    NotMasked,
    #[error("a frame with reserved bits, or of a type there is not ({0:#04x})")]
    Reserved(u8),
    #[error("a control frame in several parts or of more than {CONTROL_BYTES} bytes")]
    Control,
    #[error("a message within another, or the rest of none")]
    Order,
    #[error("a frame longer than 2^63 bytes")]
    Length,
}

/// What a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Data {
        /// At most what was put in; may be empty.
        bytes: Bytes,
        /// Whether it begins a message.
        first: bool,
        /// Whether it ends one.
        last: bool,
    },
    /// To be answered with the same bytes.
    Ping(Bytes),
    /// It will say nothing more.
    Close,
}

/// The rest of a frame with data.
#[derive(Debug)]
struct Rest {
    left: u64,
    mask: [u8; 4],
    ends_message: bool,
    is_first: bool,
}

/// Bytes to pieces of messages.
#[derive(Debug, Default)]
pub struct Decoder {
    rest: Option<Rest>,
    in_message: bool,
}

impl Decoder {
    /// Takes what can be taken from the front of `input`; `None` if more must be read first.
    ///
    /// # Errors
    /// [`WebSocketError`]; nothing sensible comes after that.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, WebSocketError> {
        loop {
            if let Some(piece) = self.piece(input) {
                return Ok(Some(piece));
            }
            if self.rest.is_some() {
                return Ok(None);
            }
            let Some((first, length, head)) = head(input)? else { return Ok(None) };
            let (fin, kind) = (first & FIN != 0, first & 0x0f);
            let mask = |input: &BytesMut| [input[head - 4], input[head - 3], input[head - 2], input[head - 1]];
            match kind {
                CONTINUATION | TEXT | BINARY => {
                    if (kind == CONTINUATION) != self.in_message {
                        return Err(WebSocketError::Order);
                    }
                    let is_first = !self.in_message;
                    self.in_message = !fin;
                    self.rest = Some(Rest { left: length, mask: mask(input), ends_message: fin, is_first });
                    input.advance(head);
                }
                CLOSE | PING | PONG => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    if !fin || length > CONTROL_BYTES {
                        return Err(WebSocketError::Control);
                    }
                    if input.len() < head + length {
                        return Ok(None);
                    }
                    let mask = mask(input);
                    let mut frame = input.split_to(head + length);
                    frame.advance(head);
                    unmask(&mut frame, mask);
                    match kind {
                        CLOSE => return Ok(Some(Event::Close)),
                        PING => return Ok(Some(Event::Ping(frame.freeze()))),
                        _ => {}
                    }
                }
                _ => return Err(WebSocketError::Reserved(first)),
            }
        }
    }

    fn piece(&mut self, input: &mut BytesMut) -> Option<Event> {
        let rest = self.rest.as_mut()?;
        if input.is_empty() && rest.left > 0 {
            return None;
        }
        let length = usize::try_from(rest.left).unwrap_or(usize::MAX).min(input.len());
        let mut bytes = input.split_to(length);
        unmask(&mut bytes, rest.mask);
        rest.mask.rotate_left(length % 4);
        rest.left -= length as u64;
        let first = std::mem::take(&mut rest.is_first);
        let is_over = rest.left == 0;
        let last = is_over && rest.ends_message;
        if is_over {
            self.rest = None;
        }
        Some(Event::Data { bytes: bytes.freeze(), first, last })
    }
}

/// The first byte, the length and the length of the head of the frame at the front; `None` if it is not yet there.
fn head(input: &BytesMut) -> Result<Option<(u8, u64, usize)>, WebSocketError> {
    let mut rest = &input[..];
    if rest.len() < 2 {
        return Ok(None);
    }
    let (first, second) = (rest.get_u8(), rest.get_u8());
    if first & RESERVED != 0 {
        return Err(WebSocketError::Reserved(first));
    }
    if second & MASKED == 0 {
        return Err(WebSocketError::NotMasked);
    }
    let (length, extra) = match second & !MASKED {
        126 if rest.len() >= 2 => (u64::from(rest.get_u16()), 2),
        127 if rest.len() >= 8 => (rest.get_u64(), 8),
        126 | 127 => return Ok(None),
        length => (u64::from(length), 0),
    };
    if length > i64::MAX.cast_unsigned() {
        return Err(WebSocketError::Length);
    }
    let head = 2 + extra + 4;
    Ok((input.len() >= head).then_some((first, length, head)))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let word = u32::from_ne_bytes(mask);
    let mut words = bytes.chunks_exact_mut(4);
    for chunk in &mut words {
        if let Ok(four) = <[u8; 4]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u32::from_ne_bytes(four) ^ word).to_ne_bytes());
        }
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Puts the head of a whole message of `length` bytes in front of them: it ends at the end of `room`, which has
/// [`HEAD_BYTES`] or more. Returns how long it is.
pub fn put_head(room: &mut [u8], is_text: bool, length: usize) -> usize {
    let first = FIN | if is_text { TEXT } else { BINARY };
    let mut head = [0; HEAD_BYTES];
    head[0] = first;
    let used = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => {
            head[1] = short;
            2
        }
        (_, Ok(medium)) => {
            head[1] = 126;
            head[2..4].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..].copy_from_slice(&(length as u64).to_be_bytes());
            HEAD_BYTES
        }
    };
    let start = room.len() - used;
    room[start..].copy_from_slice(&head[..used]);
    used
}

/// Appends the answer to a ping.
pub fn pong(bytes: &[u8], out: &mut Vec<u8>) {
    control(PONG, bytes, out);
}

/// Appends the last frame.
pub fn close(code: u16, out: &mut Vec<u8>) {
    control(CLOSE, &code.to_be_bytes(), out);
}

fn control(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    let bytes = &bytes[..bytes.len().min(CONTROL_BYTES)];
    out.extend([FIN | kind, u8::try_from(bytes.len()).unwrap_or_default()]);
    out.extend(bytes);
}

/// What proves to a client that its `Sec-WebSocket-Key` was understood.
#[must_use]
pub fn accept(key: &str) -> String {
    STANDARD.encode(Sha1::digest(format!("{key}{ACCEPT_SUFFIX}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a client sends it.
    fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEAD_BYTES];
        let used = put_head(&mut out, false, payload.len());
        let mut out = out.split_off(HEAD_BYTES - used);
        (out[0], out[1]) = (first, out[1] | MASKED);
        out.extend(mask);
        let mut payload = payload.to_vec();
        unmask(&mut payload, mask);
        out.extend(payload);
        out
    }

    fn all(bytes: &[u8]) -> Result<Vec<Event>, WebSocketError> {
        let (mut decoder, mut input, mut events) = (Decoder::default(), BytesMut::from(bytes), Vec::new());
        while let Some(event) = decoder.decode(&mut input)? {
            events.push(event);
        }
        Ok(events)
    }

    fn data(bytes: &'static [u8], first: bool, last: bool) -> Event {
        Event::Data { bytes: Bytes::from_static(bytes), first, last }
    }

    #[test]
    fn the_key_is_answered_as_the_rfc_does() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn messages_pings_and_the_end_are_told_apart() {
        let mask = [1, 2, 3, 4];
        let bytes = [
            frame(FIN | BINARY, mask, b"one"),
            frame(TEXT, mask, b"tw"),
            frame(FIN | PING, mask, b"?"),
            frame(FIN | PONG, mask, b"!"),
            frame(FIN | CONTINUATION, mask, b"o"),
            frame(FIN | BINARY, mask, b""),
            frame(FIN | CLOSE, mask, &[3, 232]),
        ];
        let expected = [
            data(b"one", true, true),
            data(b"tw", true, false),
            Event::Ping(Bytes::from_static(b"?")),
            data(b"o", false, true),
            data(b"", true, true),
            Event::Close,
        ];
        assert_eq!(all(&bytes.concat()).unwrap(), expected);
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        let mask = [9; 4];
        assert_eq!(all(&[FIN | BINARY, 0]), Err(WebSocketError::NotMasked));
        assert_eq!(all(&frame(FIN | 0x40 | BINARY, mask, b"")), Err(WebSocketError::Reserved(0xc2)));
        assert_eq!(all(&frame(FIN | 3, mask, b"")), Err(WebSocketError::Reserved(0x83)));
        assert_eq!(all(&frame(FIN | PING, mask, &[0; 126])), Err(WebSocketError::Control));
        assert_eq!(all(&frame(PING, mask, b"")), Err(WebSocketError::Control));
        assert_eq!(all(&frame(FIN | CONTINUATION, mask, b"")), Err(WebSocketError::Order));
        let within = [frame(BINARY, mask, b"a"), frame(FIN | BINARY, mask, b"b")].concat();
        assert_eq!(all(&within), Err(WebSocketError::Order));
        let too_long = [&[FIN | BINARY, MASKED | 127, 0x80][..], &[0; 11]].concat();
        assert_eq!(all(&too_long), Err(WebSocketError::Length));
    }

    #[test]
    fn heads_are_as_long_as_they_must_be() {
        for (length, expected) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut room = [0; 16];
            let used = put_head(&mut room, false, length);
            assert_eq!((used, room[16 - used]), (expected, FIN | BINARY), "{length}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            message in proptest::collection::vec(any::<u8>(), 0..300), mask in any::<[u8; 4]>(), cut in 1usize..50)
        {
            let bytes = [frame(BINARY, mask, &message), frame(FIN | CONTINUATION, mask, &message)].concat();
            let (mut decoder, mut input, mut got, mut ends) = (Decoder::default(), BytesMut::new(), Vec::new(), 0);
            for piece in bytes.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(event) = decoder.decode(&mut input).unwrap() {
                    let Event::Data { bytes, first, last } = event else { panic!("only data was sent") };
                    prop_assert!(!first || got.is_empty());
                    got.extend_from_slice(&bytes);
                    ends += usize::from(last);
                }
            }
            prop_assert_eq!((got, ends), ([&message[..], &message[..]].concat(), 1));
        }

        #[test]
        fn nothing_makes_it_panic_or_wait_for_much(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(&bytes[..]));
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
            // A whole control frame is the most that is waited for.
            prop_assert!(decoder.decode(&mut input).is_err() || input.len() < 14 + CONTROL_BYTES);
        }
    }
}
