//! Walks a tar stream entry by entry, with bounds on all it remembers.
//!
//! Headers are taken apart by the `tar` crate; the walk is ours, because extended headers, long names and maps of
//! sparse files must be bounded before they are read into memory. Formats: v7, ustar, GNU, pax.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::UnpackError;
use super::pax::{Pax, number};
use crate::image::Limits;

const BLOCK: usize = 512;

/// A stream that can pass over bytes without handing them out.
pub(in crate::image) trait Source: Read {
    /// Passes over `bytes`; `UnexpectedEof` if there are fewer.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut this = self;
        let passed = io::copy(&mut Read::take(&mut this, bytes), &mut io::sink())?;
        if passed == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads at most `most` bytes, where they are or into `buffer`; none at the end.
    fn piece<'a>(&'a mut self, buffer: &'a mut [u8], most: usize) -> io::Result<&'a [u8]> {
        let most = most.min(buffer.len());
        let read = self.read(&mut buffer[..most])?;
        Ok(&buffer[..read])
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A type flag no layer has.
    Other,
}

/// One entry; its content follows in the stream.
#[derive(Debug, Clone)]
pub(in crate::image) struct Entry {
    /// As written, nothing checked.
    pub path: Vec<u8>,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Bytes of content in the stream; of files only.
    pub size: u64,
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: Option<Sparse>,
}

/// A file with holes: where the bytes in the stream belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Sparse {
    pub real_size: u64,
    /// Offset and length, ascending, apart from each other, within `real_size`.
    pub parts: Vec<(u64, u64)>,
}

/// The walk over one tar stream.
pub(in crate::image) struct Entries<'a, R> {
    source: R,
    limits: &'a Limits,
    most_entries: u64,
    seen: u64,
    /// Unread content of the current entry, and what fills its last block.
    remaining: u64,
    padding: u64,
    ended: bool,
}

/// What the headers before an entry said about it.
#[derive(Default)]
struct Extra {
    pax: Pax,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl<'a, R: Source> Entries<'a, R> {
    pub fn new(source: R, limits: &'a Limits, most_entries: u64) -> Self {
        Self { source, limits, most_entries, seen: 0, remaining: 0, padding: 0, ended: false }
    }

    /// The stream, standing where the current entry's content goes on.
    pub fn source(&mut self) -> &mut R {
        &mut self.source
    }

    /// The next entry; none at the end of the archive. Passes over content that was not read.
    pub fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extra = Extra::default();
        loop {
            self.source.skip(self.remaining + self.padding).map_err(from_stream)?;
            (self.remaining, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            self.content_size(numeric(&header.as_old().size, || header.entry_size())?)?;
            match header.entry_type() {
                EntryType::XHeader => extra.pax.add(&self.extra_content(&mut extra.bytes)?)?,
                EntryType::GNULongName => extra.long_path = Some(self.long_name(&mut extra.bytes)?),
                EntryType::GNULongLink => extra.long_link = Some(self.long_name(&mut extra.bytes)?),
                // Remarks about the archive as a whole; nothing a layer depends on.
                EntryType::XGlobalHeader => self.charge(&mut extra.bytes, self.remaining)?,
                _ => return self.entry(&header, extra).map(Some),
            }
        }
    }

    /// Reads content of the current entry.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = loop {
            match self.source.read(&mut buffer[..most]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(from_stream)?,
            }
        };
        if read == 0 {
            return Err(damaged("it ends in the middle of a file"));
        }
        self.remaining -= read as u64;
        Ok(read)
    }

    /// At most `most` bytes of the current entry's content, in place or in `buffer`; none at its end.
    pub fn piece<'b>(&'b mut self, buffer: &'b mut [u8], most: u64) -> Result<&'b [u8], UnpackError> {
        let most = usize::try_from(self.remaining.min(most)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let piece = self.source.piece(buffer, most).map_err(from_stream)?;
        if piece.is_empty() {
            return Err(damaged("it ends in the middle of a file"));
        }
        self.remaining -= piece.len() as u64;
        Ok(piece)
    }

    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut block = [0; BLOCK];
        if self.ended || !self.block(&mut block)? || block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let spaced = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) });
        if header.cksum().ok() != Some(spaced.sum()) {
            return Err(damaged("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// Reads one block; false at a clean end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(damaged("it ends in the middle of a header")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(from_stream(e)),
            }
        }
        Ok(true)
    }

    fn content_size(&mut self, size: u64) -> Result<(), UnpackError> {
        if size > self.limits.layer_bytes {
            return Err(UnpackError::Limit { what: "bytes in one file", limit: self.limits.layer_bytes });
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// Counts a header before an entry against the bound: an endless row of them must end.
    fn charge(&self, bytes: &mut u64, size: u64) -> Result<(), UnpackError> {
        *bytes = bytes.saturating_add(size).saturating_add(BLOCK as u64);
        if *bytes > self.limits.header_bytes {
            return Err(UnpackError::Limit {
                what: "bytes of extended headers before one entry",
                limit: self.limits.header_bytes,
            });
        }
        Ok(())
    }

    fn extra_content(&mut self, bytes: &mut u64) -> Result<Vec<u8>, UnpackError> {
        self.charge(bytes, self.remaining)?;
        let mut content = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.read(&mut chunk)? {
                0 => return Ok(content),
                n => content.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn long_name(&mut self, bytes: &mut u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.extra_content(bytes)?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn entry(&mut self, header: &Header, extra: Extra) -> Result<Entry, UnpackError> {
        self.seen += 1;
        if self.seen > self.most_entries {
            return Err(UnpackError::Limit { what: "entries", limit: self.most_entries });
        }
        let Extra { mut pax, long_path, long_link, .. } = extra;
        let plain_path = || header.path_bytes().into_owned();
        let path = pax.path.clone().or(long_path).unwrap_or_else(plain_path);
        let kind = kind(header, &path);
        if let Some(size) = pax.size {
            self.content_size(size)?;
        }
        if kind != Kind::File {
            // Only files have content, whatever their headers say.
            (self.remaining, self.padding) = (0, 0);
        }
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let old = header.as_old();
        let mut entry = Entry {
            link: pax.link.clone().or(long_link).or(header.link_name_bytes().map(Into::into)).unwrap_or_default(),
            kind,
            mode: numeric(&old.mode, || header.mode())?,
            uid: pax.uid.map_or_else(|| numeric(&old.uid, || header.uid()), Ok)?,
            gid: pax.gid.map_or_else(|| numeric(&old.gid, || header.gid()), Ok)?,
            mtime: match pax.mtime {
                Some(time) => time,
                // A time after the year 292 billion is no time.
                None => (i64::try_from(numeric(&old.mtime, || header.mtime())?).unwrap_or(0), 0),
            },
            size: self.remaining,
            device: if is_device { device(header)? } else { (0, 0) },
            sparse: None,
            xattrs: std::mem::take(&mut pax.xattrs),
            path,
        };
        if kind == Kind::File {
            self.sparse(header, pax, &mut entry)?;
        }
        Ok(entry)
    }

    /// Finds out whether the file has holes, by any of the four ways tar has to say so.
    fn sparse(&mut self, header: &Header, pax: Pax, entry: &mut Entry) -> Result<(), UnpackError> {
        let (real_size, numbers) = if header.entry_type() == EntryType::GNUSparse {
            self.gnu_sparse(header)?
        } else if pax.sparse.major == Some(1) {
            let real_size = pax.sparse.real_size.ok_or_else(bad_map)?;
            (real_size, self.leading_map()?)
        } else if !pax.sparse.numbers.is_empty() || pax.sparse.real_size.is_some() {
            (pax.sparse.real_size.ok_or_else(bad_map)?, pax.sparse.numbers)
        } else {
            return Ok(());
        };
        if let Some(name) = pax.sparse.name {
            entry.path = name;
        }
        entry.size = self.remaining;
        entry.sparse = Some(self.checked_map(real_size, &numbers)?);
        Ok(())
    }

    fn checked_map(&self, real_size: u64, numbers: &[u64]) -> Result<Sparse, UnpackError> {
        if real_size > self.limits.layer_bytes {
            return Err(UnpackError::Limit { what: "bytes in one file", limit: self.limits.layer_bytes });
        }
        let (pairs, rest) = numbers.as_chunks::<2>();
        let mut parts = Vec::with_capacity(pairs.len());
        let (mut end, mut stored) = (0_u64, 0_u64);
        for [offset, length] in pairs {
            if *offset < end {
                return Err(bad_map());
            }
            end = offset.checked_add(*length).filter(|e| *e <= real_size).ok_or_else(bad_map)?;
            stored += length;
            parts.push((*offset, *length));
        }
        if rest.is_empty() && stored == self.remaining { Ok(Sparse { real_size, parts }) } else { Err(bad_map()) }
    }

    /// The old GNU way: four stretches in the header, more in blocks after it.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<u64>), UnpackError> {
        let gnu = header.as_gnu().ok_or_else(bad_map)?;
        let mut numbers = Vec::new();
        let mut add = |slots: &[tar::GnuSparseHeader], most: usize| -> Result<(), UnpackError> {
            for slot in slots.iter().filter(|s| !s.is_empty()) {
                numbers.push(slot.offset().map_err(|_| bad_map())?);
                numbers.push(slot.length().map_err(|_| bad_map())?);
            }
            if numbers.len() / 2 > most { Err(too_many_parts(most)) } else { Ok(()) }
        };
        add(&gnu.sparse, self.limits.sparse_parts)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            if !self.block(block.as_mut_bytes())? {
                return Err(bad_map());
            }
            // A block without a stretch would make an endless row cost nothing.
            if block.sparse()[0].is_empty() {
                return Err(bad_map());
            }
            add(block.sparse(), self.limits.sparse_parts)?;
            extended = block.is_extended();
        }
        Ok((gnu.real_size().map_err(|_| bad_map())?, numbers))
    }

    /// The way of version 1.0: decimal lines in the first blocks of the content, how many stretches first.
    fn leading_map(&mut self) -> Result<Vec<u64>, UnpackError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line: Vec<u8> = Vec::new();
        let mut expected = None;
        loop {
            let mut block = [0; BLOCK];
            if self.remaining < BLOCK as u64 || !self.block(&mut block)? {
                return Err(bad_map());
            }
            self.remaining -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad_map());
                    }
                    continue;
                }
                let value = number(&std::mem::take(&mut line))?;
                match expected {
                    None if value > self.limits.sparse_parts as u64 => {
                        return Err(too_many_parts(self.limits.sparse_parts));
                    }
                    None => expected = Some(value * 2),
                    Some(_) => numbers.push(value),
                }
                if expected == Some(numbers.len() as u64) {
                    return Ok(numbers);
                }
            }
        }
    }
}

/// A number of a header; a field left blank is zero, as old archivers meant it.
fn numeric<T: Default>(field: &[u8], parsed: impl FnOnce() -> io::Result<T>) -> Result<T, UnpackError> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) {
        return Ok(T::default());
    }
    parsed().map_err(|_| damaged("a header has a malformed number"))
}

fn device(header: &Header) -> Result<(u32, u32), UnpackError> {
    let fields = header.as_gnu().map(|h| (h.dev_major, h.dev_minor));
    let (major, minor) = fields.or(header.as_ustar().map(|h| (h.dev_major, h.dev_minor))).unwrap_or_default();
    Ok((
        numeric(&major, || header.device_major())?.unwrap_or(0),
        numeric(&minor, || header.device_minor())?.unwrap_or(0),
    ))
}

fn kind(header: &Header, path: &[u8]) -> Kind {
    match header.entry_type() {
        // Before there was a flag for directories, a slash at the end made one.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        _ => Kind::Other,
    }
}

/// A stream that is no tar archive, or a broken one.
pub(super) fn damaged(reason: &str) -> UnpackError {
    UnpackError::Damaged { reason: reason.to_owned() }
}

fn bad_map() -> UnpackError {
    damaged("the map of a sparse file is malformed")
}

fn too_many_parts(most: usize) -> UnpackError {
    UnpackError::Limit { what: "stretches in one sparse file", limit: most as u64 }
}

/// An error of the stream below: of the system, of a bound (carried inside), or of a decoder.
pub(super) fn from_stream(e: io::Error) -> UnpackError {
    if e.raw_os_error().is_some() {
        return UnpackError::Read { source: e };
    }
    match e.downcast::<UnpackError>() {
        Ok(own) => own,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
        Err(e) => damaged(&format!("its compressed stream is broken ({e})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Source for &[u8] {}

    fn walk(bytes: &[u8], limits: &Limits) -> Result<Vec<Entry>, UnpackError> {
        let mut entries = Entries::new(bytes, limits, 1000);
        let mut all = Vec::new();
        while let Some(entry) = entries.next()? {
            all.push(entry);
        }
        Ok(all)
    }

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o640);
        header.set_cksum();
        header
    }

    #[test]
    fn names_of_all_lengths_are_read() {
        let long = format!("{}/end", "d".repeat(180));
        let bytes = archive(|b| {
            b.append_data(&mut file(3), "short", b"abc".as_slice()).unwrap();
            b.append_data(&mut file(0), &long, b"".as_slice()).unwrap();
            b.append_link(
                &mut {
                    let mut h = file(0);
                    h.set_entry_type(EntryType::Symlink);
                    h
                },
                "l",
                &long,
            )
            .unwrap();
        });
        let all = walk(&bytes, &Limits::default()).unwrap();
        assert_eq!(all[0].path, b"short");
        assert_eq!((all[0].size, all[0].mode, all[0].kind), (3, 0o640, Kind::File));
        assert_eq!(all[1].path, long.as_bytes());
        assert_eq!((all[2].kind, all[2].link.as_slice()), (Kind::Symlink, long.as_bytes()));
    }

    #[test]
    fn an_endless_row_of_extended_headers_ends() {
        let limits = Limits { header_bytes: 8192, ..Limits::default() };
        let one = archive(|b| b.append_pax_extensions([("comment", b"x".as_slice())]).unwrap());
        let row = one[..1024].repeat(100);
        assert!(matches!(walk(&row, &limits), Err(UnpackError::Limit { .. })));
        let mut global = one[..1024].to_vec();
        global[156] = b'g';
        let mut header = Header::from_byte_slice(&global[..512]).clone();
        header.set_cksum();
        global[..512].copy_from_slice(header.as_bytes());
        assert!(matches!(walk(&global.repeat(100), &limits), Err(UnpackError::Limit { .. })));
    }

    #[test]
    fn a_huge_declared_header_is_refused_before_it_is_read() {
        for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink, EntryType::XGlobalHeader] {
            let mut header = file(10 << 30);
            header.set_entry_type(kind);
            header.set_cksum();
            let result = walk(header.as_bytes(), &Limits::default());
            assert!(matches!(result, Err(UnpackError::Limit { .. })), "{kind:?}: {result:?}");
        }
    }

    #[test]
    fn damage_is_told() {
        let good = archive(|b| b.append_data(&mut file(3), "f", b"abc".as_slice()).unwrap());
        assert!(walk(&good[..700], &Limits::default()).is_err());
        assert!(walk(&good[..100], &Limits::default()).is_err());
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        assert!(matches!(walk(&flipped, &Limits::default()), Err(UnpackError::Damaged { .. })));
        // Without the two empty blocks at the end it is still whole.
        assert_eq!(walk(&good[..1024], &Limits::default()).unwrap().len(), 1);
    }

    fn sparse_entry(records: &[(&str, &[u8])], content: &[u8]) -> Result<Option<Sparse>, UnpackError> {
        let bytes = archive(|b| {
            b.append_pax_extensions(records.iter().copied()).unwrap();
            b.append_data(&mut file(content.len() as u64), "f", content).unwrap();
        });
        Ok(walk(&bytes, &Limits::default())?[0].sparse.clone())
    }

    #[test]
    fn maps_of_sparse_files_are_read_and_checked() {
        let zero_one: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"10,2,50,3")];
        let expected = Sparse { real_size: 100, parts: vec![(10, 2), (50, 3)] };
        assert_eq!(sparse_entry(&zero_one, b"abcde").unwrap(), Some(expected.clone()));

        let mut content = b"2\n10\n2\n50\n3\n".to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"abcde");
        let one: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"100")];
        assert_eq!(sparse_entry(&one, &content).unwrap(), Some(expected));

        for map in
            [b"10,2,11,3".as_slice(), b"50,3,10,2", b"10,2,99,3", b"10,2,50", b"10,2,50,4", b"1,18446744073709551615"]
        {
            let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100"), ("GNU.sparse.map", map)];
            assert!(sparse_entry(&records, b"abcde").is_err(), "{}", String::from_utf8_lossy(map));
        }
        assert!(sparse_entry(&one, b"99999999999\n").is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_neither_panic_nor_run_away(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let limits = Limits::default();
            walk(&bytes, &limits).ok();
            // With a right checksum the bytes get further.
            if bytes.len() >= BLOCK {
                let mut header = Header::from_byte_slice(&bytes[..BLOCK]).clone();
                header.set_cksum();
                bytes[..BLOCK].copy_from_slice(header.as_bytes());
                walk(&bytes, &limits).ok();
            }
        }

        #[test]
        fn a_changed_archive_neither_panics_nor_runs_away(at in 0_usize..2048, value: u8, kind in "[0-7xgLKS]") {
            let mut bytes = archive(|b| {
                b.append_pax_extensions([("GNU.sparse.map", b"0,3".as_slice()), ("GNU.sparse.size", b"5")]).unwrap();
                b.append_data(&mut file(3), "f", b"abc".as_slice()).unwrap();
            });
            bytes[at] = value;
            let second = &mut bytes[1024..1536];
            second[156] = kind.as_bytes()[0];
            let mut header = Header::from_byte_slice(second).clone();
            header.set_cksum();
            second.copy_from_slice(header.as_bytes());
            walk(&bytes, &Limits::default()).ok();
        }
    }
}
