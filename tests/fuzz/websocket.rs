//! Messages of WebSocket.

use std::hash::{DefaultHasher, Hash, Hasher};

use aril::stream::websocket::{Decoder, Event, HEAD_BYTES, WebSocketError, close, pong, put_head};
use bytes::BytesMut;

use crate::dice::Dice;
use crate::engine::Target;

pub const TARGET: Target = Target { name: "websocket_messages", seeds, words, run, most_allocated, clean: || {} };

/// A frame as a client sends it.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut room = [0; HEAD_BYTES];
    let used = put_head(&mut room, false, payload.len());
    let head = &mut room[HEAD_BYTES - used..];
    (head[0], head[1]) = (first, head[1] | 0x80);
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [&*head, &mask].concat().into_iter().chain(masked).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let long = frame(0x82, [1, 2, 3, 4], &[b'x'; 3000]);
    let session = [
        frame(0x82, [1, 2, 3, 4], b"\0input"),
        frame(0x02, [0; 4], b"\0in "),
        frame(0x89, [9; 4], b"ping"),
        frame(0x00, [7, 7, 0, 1], b"three "),
        frame(0x80, [5; 4], b"parts"),
        frame(0x81, [1; 4], b"4{\"Width\":80,\"Height\":24}"),
        frame(0x82, [2; 4], &[255, 0]),
        frame(0x8a, [3; 4], b""),
        frame(0x88, [4; 4], &[3, 232]),
    ];
    vec![session.concat(), words().concat(), long, frame(0x82, [1; 4], &[0; 300])]
}

fn words() -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = [0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a, 0x83, 0xc2]
        .iter()
        .map(|&first| frame(first, [first, 1, 2, 3], b"word"))
        .collect();
    words.extend([
        vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0],
        vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
        vec![0x82, 0xfe, 0, 126],
        vec![0x82, 0x80, 0, 0, 0, 0],
        vec![0x89, 0xfd],
    ]);
    words
}

fn most_allocated(input: usize) -> usize {
    // What has come, and what is said otherwise, each with as much again where a buffer has just grown.
    (16 << 10) + 12 * input
}

fn run(input: &[u8]) -> u64 {
    let mut dice = Dice::of(input);
    let whole = read([input]);
    let cut = read(dice.cut(input));
    assert_eq!((whole.digest, &whole.error), (cut.digest, &cut.error), "pieces make a difference");
    // A client that says the same in other frames is understood in the same way.
    let said = said_otherwise(input, &mut dice);
    assert_eq!(read(dice.cut(&said)).digest, whole.digest, "frames make a difference");
    check_ours(&input[..input.len().min(4000)]);
    whole.behaviour
}

struct Outcome {
    /// Of all messages, however they came.
    digest: u64,
    behaviour: u64,
    error: Option<WebSocketError>,
}

fn read<'i>(pieces: impl IntoIterator<Item = &'i [u8]>) -> Outcome {
    let (mut all, mut kinds) = (DefaultHasher::new(), DefaultHasher::new());
    let (mut count, mut is_open) = (0, false);
    let error = events(pieces, |event| {
        count += 1;
        if count < 24 {
            let size = match event {
                Event::Data { bytes, first, last } => (bytes.len().max(1).ilog2(), *first, *last),
                Event::Ping(bytes) => (u32::try_from(bytes.len()).unwrap(), false, false),
                Event::Close => (0, false, false),
            };
            (std::mem::discriminant(event), size).hash(&mut kinds);
        }
        match event {
            Event::Data { bytes, first, last } => {
                assert_eq!(*first, !is_open, "a message within another");
                is_open = !last;
                if *first {
                    "message".hash(&mut all);
                }
                all.write(bytes);
                if *last {
                    "end".hash(&mut all);
                }
            }
            Event::Ping(bytes) => {
                assert!(bytes.len() <= 125);
                ("ping", &bytes[..]).hash(&mut all);
            }
            Event::Close => "close".hash(&mut all),
        }
    });
    format!("{error:?}").hash(&mut kinds);
    Outcome { digest: all.finish(), behaviour: kinds.finish(), error }
}

/// Hands over all events until the input ends or makes no sense.
fn events<'i>(pieces: impl IntoIterator<Item = &'i [u8]>, mut each: impl FnMut(&Event)) -> Option<WebSocketError> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(event)) => each(&event),
                Ok(None) => {
                    // A whole control frame is the most that is waited for.
                    assert!(input.len() < 14 + 125, "{} bytes wait", input.len());
                    break;
                }
                Err(e) => return Some(e),
            }
        }
    }
    None
}

/// The same messages in frames of other sizes, with other masks.
fn said_otherwise(input: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = Vec::new();
    events([input], |event| {
        let mut mask = || dice.next().to_le_bytes()[..4].try_into().unwrap();
        match event {
            Event::Data { bytes, first, last } => {
                let middle = bytes.len() / 2;
                let kind = if *first { 0x02 } else { 0x00 };
                out.extend(frame(kind, mask(), &bytes[..middle]));
                out.extend(frame(if *last { 0x80 } else { 0 }, mask(), &bytes[middle..]));
            }
            Event::Ping(bytes) => out.extend(frame(0x89, mask(), bytes)),
            Event::Close => out.extend(frame(0x88, mask(), &[])),
        }
    });
    out
}

/// What a server sends is whole, unmasked frames of these bytes.
fn check_ours(bytes: &[u8]) {
    let mut out = Vec::new();
    pong(bytes, &mut out);
    let length = bytes.len().min(125);
    assert_eq!((out[0], usize::from(out[1]), &out[2..]), (0x8a, length, &bytes[..length]));
    out.clear();
    close(1002, &mut out);
    assert_eq!(out, [0x88, 2, 3, 234]);
    let mut room = [0; 16];
    let used = put_head(&mut room, true, bytes.len());
    let head = &room[16 - used..];
    let told = match head[1] {
        126 => usize::from(u16::from_be_bytes([head[2], head[3]])),
        short => short.into(),
    };
    assert_eq!((head[0], told), (0x81, bytes.len()));
}
