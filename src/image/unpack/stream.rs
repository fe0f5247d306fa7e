//! A blob on its way into a layer: hashed, decompressed, hashed again, bounded.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::UnpackError;
use crate::id::Digest;
use crate::image::store::lock;

/// What went through so far: bytes and their SHA-256. Clones share it.
#[derive(Clone, Default)]
pub(in crate::image) struct Tally(Arc<Mutex<(Sha256, u64)>>);

impl Tally {
    /// Counts `bytes`; an error when they are more than `most` in all.
    pub fn add(&self, bytes: &[u8], most: u64) -> io::Result<()> {
        let mut tally = lock(&self.0);
        tally.0.update(bytes);
        tally.1 += bytes.len() as u64;
        if tally.1 > most {
            return Err(io::Error::other(UnpackError::Limit { what: "bytes after decompression", limit: most }));
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        lock(&self.0).1
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(lock(&self.0).0.clone().finalize().into())
    }
}

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
pub(in crate::image) fn decompressed<'r>(mut raw: impl Read + Send + 'r) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut start = Vec::with_capacity(4);
    raw.by_ref().take(4).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let whole: Box<dyn BufRead + Send + 'r> =
        Box::new(BufReader::with_capacity(128 << 10, Cursor::new(start).chain(raw)));
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Compression::None => Box::new(whole),
    })
}
