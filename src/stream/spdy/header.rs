//! Blocks of headers: compressed with one context for all of a direction.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{ADLER32, DICTIONARY};
use super::{SpdyError, limits};

/// Names, in lower case, and values. A value with several parts has NUL between them.
pub type Headers = Vec<(String, String)>;

/// The value of a header; names are compared in lower case.
#[must_use]
pub fn value<'h>(headers: &'h Headers, name: &str) -> Option<&'h str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Reads the blocks of one direction.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The headers of a block.
    ///
    /// # Errors
    /// [`SpdyError`], after which the context is lost.
    pub fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut out = vec![0; 1024];
        let (start_in, start_out) = (self.0.total_in(), self.0.total_out());
        loop {
            // Both are bounded by the lengths of slices.
            let used = usize::try_from(self.0.total_in() - start_in).unwrap_or(usize::MAX);
            let filled = usize::try_from(self.0.total_out() - start_out).unwrap_or(usize::MAX);
            if filled == out.len() {
                if out.len() > limits::HEADER_BYTES {
                    return Err(SpdyError::HeadersTooLong);
                }
                // One byte more than is allowed tells that there is more.
                out.resize((out.len() * 4).min(limits::HEADER_BYTES + 1), 0);
            }
            let (Some(input), Some(room)) = (block.get(used..), out.get_mut(filled..)) else {
                return Err(SpdyError::Inflate);
            };
            let had_room = room.len();
            match self.0.decompress(input, room, FlushDecompress::Sync) {
                // A stream of headers ends with its connection alone.
                Ok(Status::StreamEnd) => return Err(SpdyError::Inflate),
                Ok(Status::Ok | Status::BufError) => {
                    let written = usize::try_from(self.0.total_out() - start_out).unwrap_or(usize::MAX) - filled;
                    let read = self.0.total_in() - start_in;
                    if written < had_room {
                        out.truncate(filled + written);
                        return if read == block.len() as u64 { Ok(out) } else { Err(SpdyError::Inflate) };
                    }
                }
                Err(e) if e.needs_dictionary() == Some(ADLER32) => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| SpdyError::Inflate)?;
                }
                Err(_) => return Err(SpdyError::Inflate),
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let count = number(&mut block)?;
    if count > limits::HEADERS {
        return Err(SpdyError::TooManyHeaders(count));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?;
        let value = text(&mut block)?;
        let is_name = |b: u8| b.is_ascii_graphic() && !b.is_ascii_uppercase();
        let is_new = !headers.iter().any(|(other, _)| *other == name);
        if name.is_empty() || !name.bytes().all(is_name) || !is_new {
            return Err(SpdyError::Header);
        }
        headers.push((name, value));
    }
    if block.is_empty() { Ok(headers) } else { Err(SpdyError::Header) }
}

fn number(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let (first, rest) = block.split_first_chunk().ok_or(SpdyError::Header)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*first)).map_err(|_| SpdyError::Header)
}

fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = number(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(SpdyError::Header)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Header)
}

/// Writes the blocks of one direction, without compressing: what is said is a few bytes, and a compressor's memory for
/// each connection is not.
#[derive(Debug, Default)]
pub struct Deflater {
    has_begun: bool,
}

impl Deflater {
    /// Appends a block.
    pub fn headers(&mut self, headers: &[(&str, &str)], out: &mut Vec<u8>) {
        let mut block = Vec::new();
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        block.extend(length(headers.len()));
        for (name, value) in headers {
            block.extend(length(name.len()));
            block.extend(name.to_ascii_lowercase().bytes());
            block.extend(length(value.len()));
            block.extend(value.bytes());
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            // RFC 1950: deflate with a window of 32 KiB, and a dictionary of this checksum.
            out.extend([0x78, 0x20]);
            out.extend(ADLER32.to_be_bytes());
        }
        // RFC 1951, 3.2.4. The empty one at the end makes readers hand out what came before.
        for piece in block.chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let length = u16::try_from(piece.len()).unwrap_or_default();
            out.push(0);
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// A block as other implementations write it: compressed, with the dictionary and one context.
    fn compressed(compress: &mut Compress, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len() + 1024);
        compress.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    fn compressor() -> Compress {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&DICTIONARY).unwrap();
        compress
    }

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        Deflater { has_begun: true }.headers(headers, &mut out);
        // One block without its head, and without the empty one.
        out[5..out.len() - 5].to_vec()
    }

    #[test]
    fn blocks_of_others_share_a_context() {
        let (mut compress, mut inflater) = (compressor(), Inflater::default());
        let mut lengths = Vec::new();
        for kind in ["error", "stdin", "stdout", "stdout"] {
            let block = compressed(&mut compress, &plain(&[("streamtype", kind)]));
            lengths.push(block.len());
            assert_eq!(inflater.headers(&block).unwrap(), [("streamtype".to_owned(), kind.to_owned())]);
        }
        assert!(lengths[3] < lengths[0], "{lengths:?}");
    }

    #[test]
    fn what_inflates_to_too_much_is_refused() {
        let mut block = compressor();
        let bomb = compressed(&mut block, &vec![0; limits::HEADER_BYTES + 1]);
        assert!(bomb.len() < 100);
        assert_eq!(Inflater::default().headers(&bomb), Err(SpdyError::HeadersTooLong));
    }

    #[test]
    fn wrong_blocks_are_refused() {
        let refused = |plain: &[u8]| Inflater::default().headers(&compressed(&mut compressor(), plain)).unwrap_err();
        assert_eq!(refused(&[0, 0, 0, 65]), SpdyError::TooManyHeaders(65));
        assert_eq!(refused(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]), SpdyError::Header);
        assert_eq!(refused(&[0, 0, 0, 0, 0]), SpdyError::Header);
        assert_eq!(refused(&[0, 0]), SpdyError::Header);
        assert_eq!(refused(&plain(&[("a", "1"), ("a", "2")])), SpdyError::Header);
        let mut upper = plain(&[("a", "1")]);
        upper[8] = b'A';
        assert_eq!(refused(&upper), SpdyError::Header);
        // Without the dictionary, or with another; or an end.
        let mut ended = Vec::with_capacity(100);
        let mut compress = compressor();
        compress.compress_vec(&plain(&[]), &mut ended, FlushCompress::Finish).unwrap();
        assert_eq!(Inflater::default().headers(&ended), Err(SpdyError::Inflate));
        let mut other = Compress::new(Compression::best(), true);
        other.set_dictionary(b"another").unwrap();
        let other = compressed(&mut other, &plain(&[]));
        assert_eq!(Inflater::default().headers(&other), Err(SpdyError::Inflate));
        // Half a block.
        let half = compressed(&mut compressor(), &plain(&[("a", "1")]));
        assert!(Inflater::default().headers(&half[..half.len() / 2]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(blocks in proptest::collection::vec(
            proptest::collection::btree_map("[a-z-]{1,20}", ".{0,40}", 0..8), 1..5))
        {
            let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
            for block in blocks {
                let headers: Vec<_> = block.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let mut bytes = Vec::new();
                deflater.headers(&headers, &mut bytes);
                let expected: Headers = block.clone().into_iter().collect();
                prop_assert_eq!(inflater.headers(&bytes), Ok(expected));
            }
        }

        #[test]
        fn no_block_is_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..2000), valid_head in any::<bool>()) {
            let mut block = if valid_head { vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2] } else { Vec::new() };
            block.extend(bytes);
            if let Ok(headers) = Inflater::default().headers(&block) {
                prop_assert!(headers.len() <= limits::HEADERS);
                prop_assert!(headers.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() <= limits::HEADER_BYTES);
            }
        }
    }
}
