//! Where an import reads from: an OCI layout in a folder, or a tar of one, or a `docker save` archive.
//!
//! A tar is indexed once and its blobs are then read in place, by several threads at a time; nothing of it is held in
//! memory. What cannot be read in place (a compressed archive, a pipe) is first written to a nameless file in the store.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;

use super::error::{ImageError, StoreError, UnpackError};
use super::limits::Limits;
use super::unpack::{Compression, Entries, Kind, Source, decompressed};
use crate::sys::path::open_in_root;

/// Links of links an archive may have.
const MOST_LINKS: usize = 8;

/// An archive that holds images.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Folder(OwnedFd),
    Tar { file: File, index: HashMap<String, Place> },
}

#[derive(Debug)]
enum Place {
    At {
        offset: u64,
        size: u64,
    },
    /// To another name of the archive.
    Link(String),
}

/// One file of the archive, being read.
#[derive(Debug)]
pub(super) struct Blob {
    file: File,
    position: u64,
    end: u64,
}

impl Blob {
    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        // By position: threads share one open file.
        let read = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Source for Blob {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self.position.checked_add(bytes).filter(|p| *p <= self.end) {
            Some(position) => {
                self.position = position;
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Archive {
    /// Opens the archive at `path`; `spool_dir` takes a copy of what cannot be read in place.
    pub fn open(path: &Path, spool_dir: &Path, limits: &Limits) -> Result<Self, ImageError> {
        let failed = |step| {
            let path = path.to_owned();
            move |source| ImageError::Archive { step, path, source }
        };
        let kind = path.metadata().map_err(failed("open"))?.file_type();
        if kind.is_dir() {
            let folder = File::open(path).map_err(failed("open"))?;
            return Ok(Self { path: path.to_owned(), contents: Contents::Folder(folder.into()) });
        }
        if kind.is_block_device() || kind.is_socket() {
            return Err(ImageError::Format { path: path.to_owned(), reason: "it is no file or folder".to_owned() });
        }
        let mut file = File::open(path).map_err(failed("open"))?;
        if !kind.is_file() || !matches!(compression(&file).map_err(failed("read"))?, Compression::None) {
            file = spool(file, path, spool_dir, limits)?;
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed("read"))?;
        let index = index(Blob { file: file.try_clone().map_err(failed("open"))?, position: 0, end: size }, limits)
            .map_err(|e| match e {
                // Not of a layer: of this file.
                UnpackError::Damaged { reason } => format!("it is no tar archive, or a damaged one ({reason})"),
                e => e.to_string(),
            })
            .map_err(|reason| ImageError::Format { path: path.to_owned(), reason })?;
        Ok(Self { path: path.to_owned(), contents: Contents::Tar { file, index } })
    }

    /// Where it came from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        self.blob(name).is_ok()
    }

    /// Opens the file `name` of the archive.
    pub fn blob(&self, name: &str) -> Result<Blob, ImageError> {
        let missing = || ImageError::Missing { name: name.chars().take(200).collect() };
        match &self.contents {
            Contents::Folder(folder) => {
                // Without waiting: the name may be a pipe's.
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                let opened = open_in_root(folder.as_fd(), Path::new(name), flags, Mode::empty());
                let file = File::from(opened.map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => ImageError::Archive { step: "open", path: self.path.join(name), source },
                })?);
                match file.metadata() {
                    Ok(data) if data.is_file() => Ok(Blob { file, position: 0, end: data.len() }),
                    _ => Err(missing()),
                }
            }
            Contents::Tar { file, index } => {
                let mut name = name;
                for _ in 0..MOST_LINKS {
                    match index.get(name).ok_or_else(missing)? {
                        Place::Link(target) => name = target,
                        Place::At { offset, size } => {
                            let failed = |source| ImageError::Archive { step: "open", path: self.path.clone(), source };
                            let file = file.try_clone().map_err(failed)?;
                            return Ok(Blob { file, position: *offset, end: offset + size });
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    /// Reads a whole document of at most `most` bytes.
    pub fn document(&self, name: &str, most: u64) -> Result<Vec<u8>, ImageError> {
        let blob = self.blob(name)?;
        if blob.size() > most {
            return Err(ImageError::Limit { object: name.to_owned(), what: "bytes", limit: most });
        }
        let mut bytes = Vec::new();
        // The file may grow while it is read.
        let read = blob.take(most).read_to_end(&mut bytes);
        read.map_err(|source| ImageError::Archive { step: "read", path: self.path.join(name), source })?;
        Ok(bytes)
    }
}

fn compression(file: &File) -> io::Result<Compression> {
    let mut start = [0; 4];
    let read = file.read_at(&mut start, 0)?;
    Ok(Compression::of(&start[..read]))
}

/// Finds every file of a tar. Of two with one name the later counts, as in a layer.
fn index(blob: Blob, limits: &Limits) -> Result<HashMap<String, Place>, UnpackError> {
    let mut entries = Entries::new(blob, limits, limits.archive_entries);
    let mut index = HashMap::new();
    while let Some(entry) = entries.next()? {
        let Some(name) = text(&entry.path).and_then(|p| resolve("", p)) else {
            continue;
        };
        let place = match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                let offset = entries.source().position;
                if offset.checked_add(entry.size).is_none_or(|end| end > entries.source().end) {
                    return Err(UnpackError::Damaged { reason: format!("the archive ends in the middle of {name}") });
                }
                Place::At { offset, size: entry.size }
            }
            // Older `docker save` links layers that images share.
            Kind::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                match text(&entry.link).and_then(|link| resolve(folder, link)) {
                    Some(target) => Place::Link(target),
                    None => continue,
                }
            }
            Kind::HardLink => match text(&entry.link).and_then(|link| resolve("", link)) {
                Some(target) => Place::Link(target),
                None => continue,
            },
            _ => continue,
        };
        index.insert(name, place);
    }
    Ok(index)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A name relative to a folder of the archive as a plain one; none if it leads outside.
fn resolve(folder: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Copies a stream, decompressed, into a nameless file of the store.
fn spool(stream: File, path: &Path, spool_dir: &Path, limits: &Limits) -> Result<File, ImageError> {
    let read = |source| ImageError::Archive { step: "read", path: path.to_owned(), source };
    let store = |source| StoreError::io("write a copy of the archive below", spool_dir, source);
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE);
    let spooled = options.open(spool_dir).map_err(store)?;
    let mut plain = decompressed(stream).map_err(read)?;
    let mut buffer = vec![0; 256 << 10];
    let mut written = 0_u64;
    let mut unchecked = 0_u64;
    loop {
        let bytes = match plain.read(&mut buffer) {
            Ok(0) => return Ok(spooled),
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        spooled.write_all_at(&buffer[..bytes], written).map_err(store)?;
        written += bytes as u64;
        unchecked += bytes as u64;
        if written > limits.layer_bytes {
            let object = path.display().to_string();
            return Err(ImageError::Limit { object, what: "bytes after decompression", limit: limits.layer_bytes });
        }
        if unchecked > 32 << 20 {
            unchecked = 0;
            let space = fstatvfs(&spooled).map_err(|e| store(e.into()))?;
            if space.blocks_available().saturating_mul(space.fragment_size()) < limits.reserve_bytes {
                return Err(StoreError::DiskFull { path: spool_dir.to_owned() }.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<Archive, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        Archive::open(&path, dir.path(), &Limits::default())
    }

    #[test]
    fn files_of_a_tar_are_found_and_read_in_place() {
        let archive = open(&tar_of(&[("a/b", b"one"), ("./c", b"two")])).unwrap();
        assert_eq!(archive.document("a/b", 10).unwrap(), b"one");
        assert_eq!(archive.document("c", 10).unwrap(), b"two");
        assert!(matches!(archive.document("c", 2), Err(ImageError::Limit { .. })));
        assert!(matches!(archive.document("d", 2), Err(ImageError::Missing { .. })));
    }

    #[test]
    fn compressed_archives_are_read() {
        let plain = tar_of(&[("a", b"one")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        assert_eq!(open(&gzip.finish().unwrap()).unwrap().document("a", 10).unwrap(), b"one");
        let zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();
        assert_eq!(open(&zstd).unwrap().document("a", 10).unwrap(), b"one");
    }

    #[test]
    fn links_of_an_archive_stay_in_it() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut link = |name: &str, target: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
        };
        link("x/layer.tar", "../y/layer.tar");
        link("loop", "loop");
        link("out", "../../etc/passwd");
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "y/layer.tar", b"1".as_slice()).unwrap();
        let archive = open(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(archive.document("x/layer.tar", 10).unwrap(), b"1");
        assert!(!archive.has("loop") && !archive.has("out"));
    }

    #[test]
    fn links_of_a_folder_stay_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        let archive = Archive::open(dir.path(), dir.path(), &Limits::default()).unwrap();
        assert!(!archive.has("out") && !archive.has("pipe") && !archive.has("../etc/passwd") && !archive.has("."));
    }

    #[test]
    fn what_is_no_archive_is_told() {
        assert!(open(b"this is a text, not an archive, and longer than nothing").is_err());
        let cut = tar_of(&[("a", &[7; 5000])]);
        assert!(matches!(open(&cut[..2000]), Err(ImageError::Format { .. })));
        let dir = tempfile::tempdir().unwrap();
        let absent = Archive::open(&dir.path().join("absent"), dir.path(), &Limits::default());
        assert!(absent.unwrap_err().to_string().contains("ENOENT"));
    }
}
