//! A blob on its way into a layer: hashed, decompressed, hashed again, bounded.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::UnpackError;
use super::entries::Source;
use crate::id::Digest;

/// Counts and hashes what is read through it.
pub(in crate::image) struct Hashing<R> {
    inner: R,
    tally: Tally,
    most_bytes: u64,
}

/// What a [`Hashing`] has seen so far; shared with it.
#[derive(Clone, Default)]
pub(in crate::image) struct Tally(Rc<RefCell<(Sha256, u64)>>);

impl Tally {
    pub fn bytes(&self) -> u64 {
        self.0.borrow().1
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(self.0.borrow().0.clone().finalize().into())
    }
}

impl<R> Hashing<R> {
    pub fn new(inner: R, most_bytes: u64) -> (Self, Tally) {
        let tally = Tally::default();
        (Self { inner, tally: tally.clone(), most_bytes }, tally)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let mut tally = self.tally.0.borrow_mut();
        tally.0.update(&buffer[..read]);
        tally.1 += read as u64;
        if tally.1 > self.most_bytes {
            let limit = self.most_bytes;
            return Err(io::Error::other(UnpackError::Limit { what: "bytes after decompression", limit }));
        }
        Ok(read)
    }
}

impl<R: Read> Source for Hashing<R> {}

/// How a stream is compressed, told by its first bytes: media types lie.
pub(in crate::image) enum Compression {
    Gzip,
    Zstd,
    None,
}

impl Compression {
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Decompresses a stream, whatever it is compressed with.
///
/// # Errors
/// Those of reading its first bytes, or no memory for a decoder.
pub(in crate::image) fn decompressed<'r>(mut raw: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut start = Vec::with_capacity(4);
    raw.by_ref().take(4).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let whole: Box<dyn BufRead + 'r> = Box::new(BufReader::with_capacity(128 << 10, Cursor::new(start).chain(raw)));
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Compression::None => Box::new(whole),
    })
}
