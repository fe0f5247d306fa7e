//! Frames of SPDY/3.1, with the headers in them.

use std::hash::{DefaultHasher, Hash, Hasher};

use aril::stream::spdy::{
    self, DICTIONARY, Decoder, Deflater, Frame, SpdyError, Windows, data_head, go_away, limits, ping, reset, settings,
    window_update,
};
use bytes::BytesMut;
use flate2::{Compress, Compression, FlushCompress};

use crate::dice::Dice;
use crate::engine::Target;

pub const TARGET: Target = Target { name: "spdy_frames", seeds, words, run, most_allocated, clean: || {} };

/// Headers as Kubernetes' clients send them.
const KINDS: [&str; 5] = ["error", "stdin", "stdout", "resize", "data"];

fn seeds() -> Vec<Vec<u8>> {
    let stored = {
        let (mut out, mut deflater) = (Vec::new(), Deflater::default());
        for (id, kind) in (1..).step_by(2).zip(KINDS) {
            deflater.syn_stream(id, &[("streamType", kind), ("port", "8080"), ("requestID", "1")], id == 5, &mut out);
        }
        deflater.syn_reply(1, &mut out);
        out.extend([&data_head(3, 5, false)[..], b"hello", &data_head(3, 0, true)].concat());
        out
    };
    let compressed = {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&DICTIONARY).unwrap();
        let mut out = Vec::new();
        for (id, kind) in (1u32..).step_by(2).zip(KINDS) {
            out.extend(syn_stream(id, &mut compress, &block(&[("streamtype", kind), ("requestid", "17")])));
        }
        // Little that becomes much.
        out.extend(syn_stream(21, &mut compress, &block(&[("x", &"y".repeat(15_000))])));
        out.extend(syn_stream(23, &mut compress, &vec![0; 16_000]));
        out
    };
    vec![words().concat(), stored, compressed]
}

fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
    let mut out = number(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        out.extend(number(text.len()));
        out.extend(text.bytes());
    }
    out
}

fn syn_stream(id: u32, compress: &mut Compress, block: &[u8]) -> Vec<u8> {
    let mut body = [&id.to_be_bytes()[..], &[0; 6]].concat();
    body.reserve(block.len() + 1024);
    compress.compress_vec(block, &mut body, FlushCompress::Sync).unwrap();
    [&[0x80, 3, 0, 1, 0][..], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat()
}

fn words() -> Vec<Vec<u8>> {
    let of = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    vec![
        of(&|out| reset(3, spdy::status::CANCEL, out)),
        of(&|out| ping(7, out)),
        of(&|out| go_away(1, 0, out)),
        of(&|out| window_update(1, 4096, out)),
        of(&|out| settings(1 << 20, out)),
        // Kinds that there are, with the head alone.
        vec![0x80, 3, 0, 1, 0, 0, 0, 10],
        vec![0x80, 3, 0, 2, 0, 0, 0, 4],
        vec![0x80, 3, 0, 8, 0, 0, 0, 4],
        vec![0x80, 3, 0, 99, 0, 0, 0, 2],
        data_head(1, 3, false).to_vec(),
        data_head(1, 0, true).to_vec(),
        data_head(3, 0x00ff_ffff, true).to_vec(),
        // A block that is stored, and the empty one behind it.
        vec![0, 1, 0, 0xfe, 0xff, b'x'],
        vec![0, 0, 0, 0xff, 0xff],
        vec![0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2],
        b"streamtype".to_vec(),
    ]
}

fn most_allocated(input: usize) -> usize {
    // The inflater's window and tables of each decoder, one block of headers as bytes and as text, and the input.
    (256 << 10) + 8 * limits::HEADER_BYTES + 6 * input
}

fn run(input: &[u8]) -> u64 {
    let mut dice = Dice::of(input);
    let whole = read([input], &mut dice);
    let pieces = dice.cut(input);
    let cut = read(pieces, &mut dice);
    assert_eq!(whole.digest, cut.digest, "pieces make a difference");
    whole.behaviour
}

struct Outcome {
    /// Of all that was read, however it was cut.
    digest: u64,
    behaviour: u64,
}

fn read<'i>(pieces: impl IntoIterator<Item = &'i [u8]>, dice: &mut Dice) -> Outcome {
    let (mut decoder, mut windows, mut input) = (Decoder::default(), Windows::default(), BytesMut::new());
    let (mut all, mut kinds) = (DefaultHasher::new(), DefaultHasher::new());
    let (mut run, mut count, mut error) = (None, 0, None);
    'input: for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let before = input.len();
            let frame = match decoder.decode(&mut input) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    assert!(input.len() < 8 + limits::CONTROL_FRAME_BYTES, "{} bytes wait", input.len());
                    break;
                }
                Err(e) => {
                    error = Some(e);
                    break 'input;
                }
            };
            assert!(input.len() < before || matches!(&frame, Frame::Data { bytes, .. } if bytes.is_empty()));
            digest(&frame, &mut run, &mut all);
            count += 1;
            if count < 24 {
                (std::mem::discriminant(&frame), size(&frame)).hash(&mut kinds);
            }
            if dice.below(16) == 0 {
                check_written(&frame);
            }
            keep_windows(&mut windows, &frame, dice);
        }
    }
    error.as_ref().map(ToString::to_string).hash(&mut all);
    error.as_ref().map(|e| (std::mem::discriminant::<SpdyError>(e), kind_of(e))).hash(&mut kinds);
    Outcome { digest: all.finish(), behaviour: kinds.finish() }
}

fn kind_of(error: &SpdyError) -> u16 {
    if let SpdyError::Malformed { kind, .. } = error { *kind } else { 0 }
}

/// Roughly how large, so that not every length is something new.
fn size(frame: &Frame) -> (usize, u32, bool) {
    match frame {
        Frame::SynStream { headers, fin, .. } => {
            (headers.len(), headers.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>().max(1).ilog2(), *fin)
        }
        Frame::Data { bytes, fin, .. } => (0, bytes.len().max(1).ilog2(), *fin),
        _ => (0, 0, false),
    }
}

/// Pieces of data on one stream count as one.
fn digest(frame: &Frame, run: &mut Option<u32>, all: &mut DefaultHasher) {
    match frame {
        Frame::Data { id, bytes, fin } => {
            if *run != Some(*id) && (!bytes.is_empty() || *fin) {
                ("data", id).hash(all);
                *run = Some(*id);
            }
            all.write(bytes);
            if *fin {
                "fin".hash(all);
                *run = None;
            }
        }
        frame => {
            *run = None;
            if let Frame::SynStream { headers, .. } = frame {
                assert!(headers.len() <= limits::HEADERS);
                let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
                assert!(bytes <= limits::HEADER_BYTES, "{bytes} bytes of headers");
            }
            format!("{frame:?}").hash(all);
        }
    }
}

/// What was read is read again from what we write.
fn check_written(frame: &Frame) {
    let mut out = Vec::new();
    match frame {
        Frame::SynStream { id, headers, fin } => {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            Deflater::default().syn_stream(*id, &headers, *fin, &mut out);
            if out.len() > limits::CONTROL_FRAME_BYTES {
                return;
            }
        }
        Frame::Reset { id, status } => reset(*id, *status, &mut out),
        Frame::Settings { initial_window: Some(bytes) } => settings(*bytes, &mut out),
        Frame::WindowUpdate { id, delta } => window_update(*id, *delta, &mut out),
        Frame::Ping(id) => ping(*id, &mut out),
        Frame::Data { id, bytes, fin } => {
            out = [&data_head(*id, bytes.len(), *fin)[..], bytes].concat();
        }
        _ => return,
    }
    let again = Decoder::default().decode(&mut BytesMut::from(&out[..]));
    assert_eq!(again.as_ref().map(Option::as_ref), Ok(Some(frame)));
}

/// Windows hold whatever is said about them.
fn keep_windows(windows: &mut Windows, frame: &Frame, dice: &mut Dice) {
    match frame {
        Frame::SynStream { id, .. } => windows.begin(*id),
        Frame::Settings { initial_window: Some(bytes) } => windows.set_initial(*bytes),
        Frame::WindowUpdate { id, delta } => windows.open(*id, *delta),
        Frame::Reset { id, .. } => {
            windows.lift(*id);
            windows.end(*id);
        }
        Frame::Data { id, .. } => {
            let wanted = dice.below(1 << 17);
            windows.begin(*id);
            assert!(windows.take(*id, wanted) <= wanted);
        }
        _ => {}
    }
}
