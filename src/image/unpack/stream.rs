//! A blob on its way into a layer: hashed, decompressed, hashed again, bounded.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;

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

/// The largest window of zstd, as a power of two: the 8 MiB that RFC 8878 asks every decoder to take and encoders to
/// keep to, and which levels up to 19 do. A blob of a few bytes can ask for gigabytes, which live as long as the decoder.
const WINDOW_LOG: u32 = 23;

/// A decoder of zstd that says when a window is too large.
struct Zstd<'r>(zstd::stream::read::Decoder<'static, Box<dyn BufRead + Send + 'r>>);

impl Read for Zstd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const TOO_LARGE: ZSTD_ErrorCode = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge;
        self.0.read(buffer).map_err(|e| {
            let own = e.get_ref().and_then(|inner| inner.downcast_ref::<zstd::Error>());
            if own.is_some_and(|own| own.is(TOO_LARGE)) {
                let (what, limit) = ("bytes in the window of its zstd stream", 1 << WINDOW_LOG);
                return io::Error::other(UnpackError::Limit { what, limit });
            }
            e
        })
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
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(WINDOW_LOG)?;
            Box::new(Zstd(decoder))
        }
        Compression::None => Box::new(whole),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Zeros, compressed with a window of this size.
    fn zeros(window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn windows_of_zstd_are_bounded() {
        let read = |window_log| {
            let blob = zeros(window_log);
            decompressed(blob.as_slice()).and_then(|mut plain| io::copy(&mut plain, &mut io::sink()))
        };
        assert_eq!(read(WINDOW_LOG).unwrap(), 1 << 20);
        for window_log in [WINDOW_LOG + 1, 27] {
            let error = read(window_log).unwrap_err().downcast::<UnpackError>().unwrap();
            assert!(error.to_string().contains("more than 8388608 bytes in the window"), "{error}");
        }
    }
}
