//! The list of a layer's files: written when the layer is made, compared when somebody asks whether it is still whole.
//!
//! One line a file, sorted by path, compressed with zstd: kind, mode, owner, time, size or target or device, XXH3 of
//! the content, extended attributes, number of names, path. Hashes come from unpacking, where the bytes pass by
//! anyway. The list finds what disks, crashes and careless people do; it proves nothing against somebody who can
//! write to the store, and so could write the list.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use xxhash_rust::xxh3::Xxh3Default;

use super::lower::OPAQUE;
use super::walk::{Occupied, file_type, look, open_dir};
use super::whiteout::allowed_xattr;
use crate::sys::xattr;

/// The first line; a list of another kind is not read.
const HEADING: &str = "aril files 1 xxh3";
/// Differences told at most.
const MOST_FAULTS: usize = 100;
/// A line is at most a path, a target and an escape for every byte of them.
const LINE_BYTES: u64 = 64 << 10;

/// The hash of one file's content, as it passes by.
#[derive(Default)]
pub(super) struct ContentHash(Xxh3Default);

impl ContentHash {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As if there were zeros: that is what a reader sees.
    pub fn add_hole(&mut self, mut length: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while length > 0 {
            let now = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.0.update(&ZEROS[..now]);
            length -= now as u64;
        }
    }

    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// Hashes of files just written, by inode.
#[derive(Debug, Default)]
pub(in crate::image) struct Contents {
    hashes: Vec<(u64, u64)>,
    /// Files with extended attributes, of which there are few.
    attributed: HashSet<u64>,
    /// Files that were copied without a look at their bytes.
    unknown: HashSet<u64>,
    /// Otherwise every file is looked at.
    is_fresh: bool,
}

impl Contents {
    pub(super) fn add(&mut self, inode: u64, hash: Option<u64>, has_attributes: bool) {
        self.is_fresh = true;
        match hash {
            Some(hash) => {
                self.hashes.push((inode, hash));
                self.unknown.remove(&inode);
            }
            None => drop(self.unknown.insert(inode)),
        }
        if has_attributes {
            self.attributed.insert(inode);
        }
    }

    fn sort(&mut self) {
        // An inode freed and used again was written later: the last counts.
        self.hashes.reverse();
        self.hashes.sort_by_key(|(inode, _)| *inode);
        self.hashes.dedup_by_key(|(inode, _)| *inode);
    }

    fn hash(&self, inode: u64) -> Option<u64> {
        if self.unknown.contains(&inode) {
            return None;
        }
        let at = self.hashes.binary_search_by_key(&inode, |(inode, _)| *inode).ok()?;
        Some(self.hashes[at].1)
    }
}

/// One way in which a layer differs from its list: a sentence.
type Fault = String;

/// Writes the list of the files in `dir` to `path`, and measures them. Files whose hash is not in `contents` are read.
///
/// # Errors
/// Those of walking the directory and of writing.
pub(in crate::image) fn write(dir: OwnedFd, mut contents: Contents, path: &Path) -> io::Result<Occupied> {
    contents.sort();
    let file = File::options().write(true).create_new(true).open(path)?;
    let mut out = zstd::stream::Encoder::new(BufWriter::new(file), 1)?;
    writeln!(out, "{HEADING}")?;
    let mut walk = Walk { contents: &contents, occupied: Occupied::default(), linked: HashSet::new(), files: 0 };
    walk.whole(dir, &mut |line, _| writeln!(out, "{line}"))?;
    // So that a list cut short is known as such.
    writeln!(out, "{} files", walk.files)?;
    out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(walk.occupied)
}

/// Reads all files in `dir` and compares them with the list at `path`. Returns how many files and bytes were read, and
/// the differences.
///
/// # Errors
/// Those of reading the directory. A list that cannot be read is a difference.
pub(in crate::image) fn compare(dir: OwnedFd, path: &Path) -> io::Result<(Occupied, Vec<Fault>)> {
    let contents = Contents::default();
    let mut walk = Walk { contents: &contents, occupied: Occupied::default(), linked: HashSet::new(), files: 0 };
    let mut list = match List::open(path) {
        Ok(list) => list,
        Err(e) => {
            walk.whole(dir, &mut |_, _| Ok(()))?;
            return Ok((walk.occupied, vec![format!("the list of its files cannot be read: {e}")]));
        }
    };
    let mut faults = Vec::new();
    walk.whole(dir, &mut |line, shown| {
        list.meet(line, shown, &mut faults);
        Ok(())
    })?;
    list.end(&mut faults);
    Ok((walk.occupied, faults))
}

/// One pass over a layer's files in the order of the list.
struct Walk<'a> {
    contents: &'a Contents,
    occupied: Occupied,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
    files: u64,
}

/// Takes a line of the list and the path in it.
type Take<'a> = dyn FnMut(&str, &str) -> io::Result<()> + 'a;

impl Walk<'_> {
    fn whole(&mut self, dir: OwnedFd, take: &mut Take<'_>) -> io::Result<()> {
        let stat = fstat(&dir)?;
        self.occupied.add(&stat);
        self.files += 1;
        let line = self.line(dir.as_fd(), c".", &stat, "", Some(dir.as_fd()))?;
        take(&line, "")?;
        self.below(dir, "", take)
    }

    fn below(&mut self, dir: OwnedFd, path: &str, take: &mut Take<'_>) -> io::Result<()> {
        let mut reader = Dir::from_fd(dir.try_clone()?)?;
        let mut names: Vec<CString> = Vec::new();
        for entry in reader.iter() {
            let name = entry?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        drop(reader);
        names.sort_unstable();
        for name in &names {
            let stat = look(dir.as_fd(), name)?;
            let below = format!("{path}/{}", name.to_bytes().escape_ascii());
            if stat.st_nlink == 1 || file_type(&stat) == SFlag::S_IFDIR || self.linked.insert(stat.st_ino) {
                self.occupied.add(&stat);
            }
            self.files += 1;
            if file_type(&stat) == SFlag::S_IFDIR {
                let fd = open_dir(dir.as_fd(), name)?;
                take(&self.line(dir.as_fd(), name, &stat, &below, Some(fd.as_fd()))?, &below)?;
                self.below(fd, &below, take)?;
            } else {
                take(&self.line(dir.as_fd(), name, &stat, &below, None)?, &below)?;
            }
        }
        Ok(())
    }

    fn line(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &FileStat,
        path: &str,
        opened: Option<BorrowedFd<'_>>,
    ) -> io::Result<String> {
        let kind = file_type(stat);
        let mut line = String::with_capacity(path.len() + 80);
        let mut put = |text: std::fmt::Arguments<'_>| {
            // A string takes everything.
            line.write_fmt(text).ok();
        };
        put(format_args!(
            "{} {:o} {}:{} {}.{:09} ",
            letter(kind),
            stat.st_mode & 0o7777,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
            stat.st_mtime_nsec
        ));
        match kind {
            SFlag::S_IFREG => {
                let (hash, attributes) = self.regular(dir, name, stat)?;
                put(format_args!("{} {hash:016x} {attributes:x} {}", stat.st_size, stat.st_nlink));
            }
            SFlag::S_IFLNK => {
                let target: OsString = readlinkat(dir, name)?;
                // The arrow keeps an absolute target apart from the path.
                let target = target.into_vec().escape_ascii().to_string().replace(' ', "\\x20");
                put(format_args!("->{target} {}", stat.st_nlink));
            }
            // The number of a directory's names depends on the file system.
            SFlag::S_IFDIR => put(format_args!("{:x}", opened.map_or(Ok(0), attributes_hash)?)),
            _ => put(format_args!("{:x} {}", stat.st_rdev, stat.st_nlink)),
        }
        put(format_args!(" {path}"));
        Ok(line)
    }

    /// Hashes of content and attributes: known, or read.
    fn regular(&self, dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> io::Result<(u64, u64)> {
        let known = self.contents.hash(stat.st_ino);
        let has_none = self.contents.is_fresh && !self.contents.attributed.contains(&stat.st_ino);
        if let (Some(hash), true) = (known, has_none) {
            return Ok((hash, 0));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(dir, name, flags, Mode::empty())?);
        let attributes = attributes_hash(file.as_fd())?;
        if let Some(hash) = known {
            return Ok((hash, attributes));
        }
        let mut hash = ContentHash::default();
        let mut buffer = vec![0; 128 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((hash.finish(), attributes)),
                Ok(read) => hash.add(&buffer[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Extended attributes that belong to the layer, hashed in order; 0 if there are none.
fn attributes_hash(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut names = xattr::list(fd)?;
    names.retain(|name| allowed_xattr(name.as_bytes()) || name.as_c_str() == OPAQUE);
    if names.is_empty() {
        return Ok(0);
    }
    names.sort_unstable();
    let mut hash = Xxh3Default::new();
    for name in names {
        hash.update(name.as_bytes_with_nul());
        let value = xattr::get(fd, &name)?.unwrap_or_default();
        hash.update(&(value.len() as u64).to_le_bytes());
        hash.update(&value);
    }
    Ok(hash.digest())
}

fn letter(kind: SFlag) -> char {
    match kind {
        SFlag::S_IFREG => 'f',
        SFlag::S_IFDIR => 'd',
        SFlag::S_IFLNK => 'l',
        SFlag::S_IFCHR => 'c',
        SFlag::S_IFBLK => 'b',
        SFlag::S_IFIFO => 'p',
        _ => '?',
    }
}

/// A list being read beside a walk.
struct List {
    lines: Box<dyn BufRead>,
    /// Read, but not met by the walk yet.
    next: Option<String>,
    met: u64,
    is_over: bool,
}

impl List {
    fn open(path: &Path) -> io::Result<Self> {
        let lines = BufReader::new(zstd::stream::read::Decoder::new(File::open(path)?)?);
        let mut list = Self { lines: Box::new(lines), next: None, met: 0, is_over: false };
        match list.read()? {
            Some(heading) if heading == HEADING => Ok(list),
            _ => Err(io::Error::other("it is none, or one of another version")),
        }
    }

    fn read(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        self.lines.by_ref().take(LINE_BYTES).read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(whole) => Ok(Some(whole.to_owned())),
            None if line.is_empty() => Ok(None),
            None => Err(io::Error::other("it has a line that never ends")),
        }
    }

    /// The next line about a file; none, with a fault or not, when there is no more.
    fn peek(&mut self, faults: &mut Vec<Fault>) -> Option<&str> {
        if self.next.is_none() && !self.is_over {
            match self.read() {
                Ok(Some(line)) if line.ends_with(" files") && !line.contains('/') => {
                    self.is_over = true;
                    if line != format!("{} files", self.met) {
                        tell(faults, "the list of its files is damaged".to_owned());
                    }
                }
                Ok(Some(line)) => {
                    self.met += 1;
                    self.next = Some(line);
                }
                Ok(None) => {
                    self.is_over = true;
                    tell(faults, "the list of its files is cut short".to_owned());
                }
                Err(e) => {
                    self.is_over = true;
                    tell(faults, format!("the list of its files cannot be read: {e}"));
                }
            }
        }
        self.next.as_deref()
    }

    /// Compares what the walk found with what the list says.
    fn meet(&mut self, found: &str, path: &str, faults: &mut Vec<Fault>) {
        loop {
            let Some(listed) = self.peek(faults) else {
                tell(faults, format!("{} does not belong to it", shown(path)));
                return;
            };
            let listed_path = path_of(listed);
            match order(listed_path, path) {
                std::cmp::Ordering::Less => {
                    tell(faults, format!("{} is missing", shown(listed_path)));
                    self.next = None;
                }
                std::cmp::Ordering::Equal => {
                    if listed != found {
                        tell(faults, format!("{} {}", shown(path), difference(listed, found)));
                    }
                    self.next = None;
                    return;
                }
                std::cmp::Ordering::Greater => {
                    tell(faults, format!("{} does not belong to it", shown(path)));
                    return;
                }
            }
        }
    }

    /// What the list has beyond the walk's end is missing.
    fn end(mut self, faults: &mut Vec<Fault>) {
        while let Some(line) = self.peek(faults) {
            let fault = format!("{} is missing", shown(path_of(line)));
            tell(faults, fault);
            self.next = None;
        }
    }
}

fn tell(faults: &mut Vec<Fault>, fault: Fault) {
    if faults.len() < MOST_FAULTS {
        faults.push(fault);
    }
}

/// The path of a line: it starts with the line's only " /", or is the root's, empty.
fn path_of(line: &str) -> &str {
    line.find(" /").map_or("", |at| &line[at + 1..])
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// The order of a walk: a directory, then all in it, names as bytes.
fn order(a: &str, b: &str) -> std::cmp::Ordering {
    // An escaped byte sorts where the byte itself does.
    let plain = |path: &str| -> Vec<Vec<u8>> { path.split('/').map(unescaped).collect() };
    plain(a).cmp(&plain(b))
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b'x') => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).unwrap_or(0);
                let value = digit(rest.next()) * 16 + digit(rest.next());
                u8::try_from(value).unwrap_or(0)
            }
            other => other.unwrap_or(b'\\'),
        });
    }
    bytes
}

/// What differs between two lines about one path.
fn difference(listed: &str, found: &str) -> String {
    let (mut was, mut is) = (listed.split(' '), found.split(' '));
    if was.next() != is.next() {
        return "is of another kind".to_owned();
    }
    for what in ["permissions", "owner", "time"] {
        let (was, is) = (was.next().unwrap_or_default(), is.next().unwrap_or_default());
        if was != is {
            return format!("has the {what} {is}, not {was}");
        }
    }
    let kind = listed.chars().next();
    let names: &[&str] = match kind {
        Some('f') => &["size", "content", "extended attributes", "number of links"],
        Some('d') => &["extended attributes"],
        Some('l') => &["target", "number of links"],
        _ => &["device number", "number of links"],
    };
    let differing = names.iter().find(|_| was.next() != is.next());
    format!("has other {}", differing.copied().unwrap_or("attributes"))
}
