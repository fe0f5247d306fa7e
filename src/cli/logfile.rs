//! Container logs as CRI has them written: `<time> <stdout|stderr> <P|F> <bytes>` a line, `P` for a line that
//! goes on in the next entry of its stream.
//!
//! Reads what is there and goes on where it stopped, also past a rotation or truncation of the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longer lines without an end are no log of ours; they are cut rather than kept in memory.
const LONGEST: usize = 1 << 20;

/// Where a container wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339, as written; empty if this is no entry.
    pub time: &'a str,
    /// Where it was written.
    pub stream: Stream,
    /// Whether a line ends here.
    pub ends: bool,
    /// What was written, without the line's end.
    pub bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `line` without its newline. What is no entry, because something else wrote into the file, is output itself.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Self {
        Self::well_formed(line).unwrap_or(Self { time: "", stream: Stream::Stdout, ends: true, bytes: line })
    }

    fn well_formed(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |&b| b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok().filter(|t| t.contains('T'))?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // Tags may follow the first, after colons.
        let ends = match parts.next()?.split(|&b| b == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, ends, bytes: parts.next()? })
    }
}

/// An open log and the place reached in it.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Of the first byte in `pending`.
    offset: u64,
    pending: Vec<u8>,
}

impl LogFile {
    /// From its beginning.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)?, offset: 0, pending: Vec::new() })
    }

    /// Hands every whole line there is now to `each`, with its offset. `each` may stop it with an error.
    ///
    /// # Errors
    /// As read(2), and those of `each`.
    pub fn read<E: From<io::Error>>(&mut self, mut each: impl FnMut(u64, Entry<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            let count = match self.file.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            self.pending.extend_from_slice(&chunk[..count]);
            self.take_lines(&mut each)?;
        }
    }

    fn take_lines<E>(&mut self, each: &mut impl FnMut(u64, Entry<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut start = 0;
        while let Some(length) = self.pending[start..].iter().position(|&b| b == b'\n') {
            each(self.offset + start as u64, Entry::parse(&self.pending[start..start + length]))?;
            start += length + 1;
        }
        if self.pending.len() - start > LONGEST {
            each(self.offset + start as u64, Entry::parse(&self.pending[start..]))?;
            start = self.pending.len();
        }
        self.pending.drain(..start);
        self.offset += start as u64;
        Ok(())
    }

    /// Goes on in the file that has its name now, if that is another or is shorter than it was; tells whether it is.
    /// What the old one still had is handed to `each` first. Then there is more to [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn follow<E: From<io::Error>>(&mut self, each: impl FnMut(u64, Entry<'_>) -> Result<(), E>) -> Result<bool, E> {
        let mine = self.file.metadata()?;
        if mine.len() < self.offset {
            self.seek(0)?;
            return Ok(true);
        }
        let file = match File::open(&self.path) {
            Ok(file) => file,
            // Between the renaming and the reopening there is no file of that name.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let there = file.metadata()?;
        if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) {
            return Ok(false);
        }
        // Whoever made the new file writes to it alone: nothing is added to the old one any more.
        self.read(each)?;
        *self = Self { path: std::mem::take(&mut self.path), file, offset: 0, pending: Vec::new() };
        Ok(true)
    }

    /// Goes to where the last `count` lines begin that are wanted; tells which streams have a line open there that
    /// began before.
    ///
    /// # Errors
    /// As read(2).
    pub fn tail(&mut self, count: usize, wanted: impl Fn(&Entry<'_>) -> bool) -> io::Result<Open> {
        let mut begins = VecDeque::new();
        let mut open = Open::default();
        self.seek(0)?;
        self.read(|offset, entry| {
            let before = open.clone();
            if open.begins(&entry) && wanted(&entry) {
                begins.push_back((offset, before));
                if begins.len() > count {
                    begins.pop_front();
                }
            }
            Ok::<(), io::Error>(())
        })?;
        let (offset, open) = begins.pop_front().unwrap_or((self.offset, open));
        self.seek(offset)?;
        Ok(open)
    }

    /// Goes on at `offset`, the beginning of a line.
    fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.offset = offset;
        self.pending.clear();
        Ok(())
    }
}

/// For each stream whether its last entry left a line open.
#[derive(Debug, Default, Clone)]
pub struct Open([bool; 2]);

impl Open {
    /// Takes note of an entry; tells whether it begins a line.
    pub fn begins(&mut self, entry: &Entry<'_>) -> bool {
        let open = &mut self.0[usize::from(entry.stream == Stream::Stderr)];
        !std::mem::replace(open, !entry.ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const T: &str = "2026-11-23T19:00:00.000000001Z";

    fn text(log: &mut LogFile) -> Vec<(Stream, bool, String)> {
        let mut all = Vec::new();
        log.read(|_, e| {
            all.push((e.stream, e.ends, String::from_utf8_lossy(e.bytes).into_owned()));
            Ok::<(), io::Error>(())
        })
        .unwrap();
        all
    }

    fn follow(log: &mut LogFile) -> (bool, Vec<String>) {
        let mut rest = Vec::new();
        let rotated = log.follow(|_, e| {
            rest.push(String::from_utf8_lossy(e.bytes).into_owned());
            Ok::<(), io::Error>(())
        });
        (rotated.unwrap(), rest)
    }

    #[test]
    fn entries() {
        let line = format!("{T} stderr P a  b ");
        let entry = Entry::parse(line.as_bytes());
        assert_eq!(entry, Entry { time: T, stream: Stream::Stderr, ends: false, bytes: b"a  b " });
        let empty = format!("{T} stdout F ");
        assert_eq!(Entry::parse(empty.as_bytes()).bytes, b"");
        let tags = format!("{T} stdout P:x y");
        assert!(!Entry::parse(tags.as_bytes()).ends);
        for odd in ["", "hello", "a b c d", "2026T stdout X y", "2026T stdin F y"] {
            assert_eq!(Entry::parse(odd.as_bytes()).bytes, odd.as_bytes(), "{odd}");
        }
    }

    #[test]
    fn half_a_line_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = File::create(&path).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        write!(file, "{T} stdout F one\n{T} stdo").unwrap();
        assert_eq!(text(&mut log), [(Stream::Stdout, true, "one".into())]);
        writeln!(file, "ut F two").unwrap();
        assert_eq!(text(&mut log), [(Stream::Stdout, true, "two".into())]);
        assert_eq!(follow(&mut log), (false, vec![]));
    }

    #[test]
    fn a_rotated_file_is_read_to_its_end_and_the_new_one_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, format!("{T} stdout F one\n")).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(text(&mut log).len(), 1);
        let old = dir.path().join("log.1");
        std::fs::rename(&path, &old).unwrap();
        assert_eq!(follow(&mut log), (false, vec![]));
        // Written between the last look and the reopening.
        let mut writer = File::options().append(true).open(&old).unwrap();
        writeln!(writer, "{T} stdout F last of the old").unwrap();
        std::fs::write(&path, format!("{T} stdout F two\n")).unwrap();
        assert_eq!(follow(&mut log), (true, vec!["last of the old".into()]));
        assert_eq!(text(&mut log), [(Stream::Stdout, true, "two".into())]);
        File::create(&path).unwrap();
        assert_eq!(follow(&mut log), (true, vec![]));
        assert_eq!(text(&mut log), []);
    }

    #[test]
    fn the_last_lines_count_as_a_person_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let lines =
            format!("{T} stdout F one\n{T} stdout P tw\n{T} stderr F err\n{T} stdout F o\n{T} stdout F three\n");
        std::fs::write(&path, lines).unwrap();
        let rest = |count| {
            let mut log = LogFile::open(&path).unwrap();
            let open = log.tail(count, |_| true).unwrap();
            assert_eq!(open.0, [count == 2, false], "{count}");
            text(&mut log).into_iter().map(|(_, _, t)| t).collect::<Vec<_>>()
        };
        assert_eq!(rest(0), Vec::<String>::new());
        assert_eq!(rest(1), ["three"]);
        assert_eq!(rest(2), ["err", "o", "three"]);
        assert_eq!(rest(3), ["tw", "err", "o", "three"]);
        assert_eq!(rest(9).len(), 5);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert!(!text(&mut log).is_empty());
        assert!(log.pending.len() <= LONGEST + (1 << 16));
    }
}
