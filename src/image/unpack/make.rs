//! Makes files, directories, links, devices and whiteouts of a layer, each new and never through what was there.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, makedev, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use super::UnpackError;
use super::contents::ContentHash;
use super::entries::{Entries, Entry, Kind, Source, Sparse};
use super::lower::Found;
use super::tree::{Dir, Tree, join};
use super::walk::{file_type, is_whiteout, look};
use super::whiteout::{allowed_xattr, normalise, refuse, split};
use crate::sys::xattr;

/// Owner, mode, time and extended attributes of one file.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub mode: Mode,
    pub uid: Uid,
    pub gid: Gid,
    pub mtime: TimeSpec,
    xattrs: Vec<(CString, Vec<u8>)>,
}

impl Default for Attributes {
    /// A directory nobody described.
    fn default() -> Self {
        Self {
            mode: Mode::from_bits_truncate(0o755),
            uid: Uid::from_raw(0),
            gid: Gid::from_raw(0),
            mtime: TimeSpec::new(0, 0),
            xattrs: Vec::new(),
        }
    }
}

impl Attributes {
    /// As an entry has them.
    pub fn from_entry(entry: &Entry, most_xattr_bytes: usize) -> Result<Self, UnpackError> {
        // The all-ones id means "no change" to chown, and an overflown one would be somebody else's.
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let bad_owner = || refuse(&entry.path, "its owner is no 32-bit id");
        let mut xattrs = Vec::new();
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| allowed_xattr(name)) {
            if value.len() > most_xattr_bytes {
                return Err(refuse(&entry.path, "an extended attribute is too long"));
            }
            let name = CString::new(name.as_slice());
            let name = name.map_err(|_| refuse(&entry.path, "an extended attribute's name has a NUL byte"))?;
            xattrs.push((name, value.clone()));
        }
        Ok(Self {
            mode: Mode::from_bits_truncate(entry.mode & 0o7777),
            uid: Uid::from_raw(id(entry.uid).ok_or_else(bad_owner)?),
            gid: Gid::from_raw(id(entry.gid).ok_or_else(bad_owner)?),
            mtime: TimeSpec::new(entry.mtime.0, entry.mtime.1),
            xattrs,
        })
    }

    /// As an open file or directory has them.
    pub fn of(fd: BorrowedFd<'_>, stat: &FileStat) -> Result<Self, Errno> {
        let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
        let mut attributes = Self::of_special(stat);
        for name in xattr::list(fd).map_err(errno)? {
            if allowed_xattr(name.as_bytes())
                && let Some(value) = xattr::get(fd, &name).map_err(errno)?
            {
                attributes.xattrs.push((name, value));
            }
        }
        Ok(attributes)
    }

    /// Whether they are, but for the time, those of a directory nobody described.
    pub fn is_plain(&self) -> bool {
        let plain = Self::default();
        let of = |a: &Self| (a.mode, a.uid, a.gid);
        of(self) == of(&plain) && self.xattrs.is_empty()
    }

    /// As something that cannot be opened has them: without extended attributes.
    fn of_special(stat: &FileStat) -> Self {
        Self {
            mode: Mode::from_bits_truncate(stat.st_mode & 0o7777),
            uid: Uid::from_raw(stat.st_uid),
            gid: Gid::from_raw(stat.st_gid),
            mtime: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
            xattrs: Vec::new(),
        }
    }

    /// Gives them to an open file or directory, all but the time.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        fchown(fd, Some(self.uid), Some(self.gid))?;
        // After the owner: chown takes setuid bits and file capabilities away.
        fchmod(fd, self.mode)?;
        for (name, value) in &self.xattrs {
            match xattr::set(fd, name, value) {
                // Some file systems have none; then the image's lose nothing but them.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOTSUP) => {}
                other => other.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?,
            }
        }
        Ok(())
    }

    /// Gives owner and time to a link, device or fifo just made at this place.
    fn apply_at(&self, dir: &Dir, name: &CString) -> Result<(), Errno> {
        fchownat(&dir.fd, name.as_c_str(), Some(self.uid), Some(self.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        utimensat(&dir.fd, name.as_c_str(), &self.mtime, &self.mtime, UtimensatFlags::NoFollowSymlink)
    }
}

impl Tree<'_> {
    /// Makes the thing an entry describes at `path`; `entries` stands at its content.
    pub fn put<R: Source>(
        &mut self,
        path: &[u8],
        entry: &Entry,
        entries: &mut Entries<'_, R>,
        buffer: &mut [u8],
    ) -> Result<(), UnpackError> {
        let attributes = Attributes::from_entry(entry, self.limits().xattr_bytes)?;
        match entry.kind {
            Kind::Directory => self.put_directory(path, &attributes),
            Kind::File => {
                let (dir, name) = self.locate(path)?;
                let file = File::from(self.create(&dir, &name, path, &attributes)?);
                let hash = self.fill(&file, path, entry, entries, buffer)?;
                self.dress_file(&file, &attributes, path, Some(hash))
            }
            Kind::Symlink => self.put_symlink(path, &entry.link, &attributes),
            Kind::HardLink => self.put_hard_link(path, &entry.link),
            Kind::CharDevice => self.put_node(path, SFlag::S_IFCHR, entry.device, &attributes),
            Kind::BlockDevice => self.put_node(path, SFlag::S_IFBLK, entry.device, &attributes),
            Kind::Fifo => self.put_node(path, SFlag::S_IFIFO, (0, 0), &attributes),
            Kind::Other => Err(refuse(path, "it is no file, directory, link, device or fifo")),
        }
    }

    /// Sets the attributes of the layer's root directory.
    pub fn put_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(refuse(&entry.path, "the root is a directory"));
        }
        let attributes = Attributes::from_entry(entry, self.limits().xattr_bytes)?;
        let root = self.directory(b"")?;
        self.dress_directory(&root, &attributes)
    }

    fn put_directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), UnpackError> {
        let (parent, name) = self.locate(path)?;
        let real = join(&parent.path, split(path).1);
        let before = look(parent.fd.as_fd(), &name).ok();
        if before.is_some_and(|stat| file_type(&stat) == SFlag::S_IFDIR) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(&parent.fd, name.as_c_str(), flags, Mode::empty())
                .map_err(self.failed("open directory", path))?;
            return self.dress_directory(&Dir { path: real, fd: fd.into() }, attributes);
        }
        let dir = self.new_directory(&parent, &name, real, Some(attributes))?;
        // A directory made new where a layer below had another shows nothing of that one.
        if before.is_some_and(|stat| is_whiteout(&stat)) { self.mark_opaque(&dir) } else { Ok(()) }
    }

    /// Hides `path` of the layers below.
    pub fn put_whiteout(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let (dir, name) = self.locate(path)?;
        match look(dir.fd.as_fd(), &name) {
            // Whiteouts concern the layers below only: what this layer brings stays, in whatever order they come.
            Ok(stat) if file_type(&stat) == SFlag::S_IFDIR => {
                let below = self.directory(path)?;
                self.mark_opaque(&below)
            }
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => mknodat(&dir.fd, name.as_c_str(), SFlag::S_IFCHR, Mode::empty(), 0)
                .map_err(self.failed("make the whiteout of", path)),
            Err(e) => Err(self.failed("look at", path)(e)),
        }
    }

    fn put_symlink(&mut self, path: &[u8], target: &[u8], attributes: &Attributes) -> Result<(), UnpackError> {
        if target.is_empty() || target.len() > self.limits().path_bytes || target.contains(&0) {
            return Err(refuse(path, "its target is no path"));
        }
        let (dir, name) = self.locate(path)?;
        let os_target = std::ffi::OsStr::from_bytes(target);
        self.make_new(&dir, &name, path, |dir, name| symlinkat(os_target, &dir.fd, name.as_c_str()))?;
        attributes.apply_at(&dir, &name).map_err(self.failed("set attributes of", path))
    }

    fn put_node(
        &mut self,
        path: &[u8],
        kind: SFlag,
        (major, minor): (u32, u32),
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        if major > 0xfff || minor > 0xf_ffff {
            return Err(refuse(path, "there is no device with its numbers"));
        }
        let (dir, name) = self.locate(path)?;
        let device = makedev(major.into(), minor.into());
        self.make_new(&dir, &name, path, |dir, name| mknodat(&dir.fd, name.as_c_str(), kind, Mode::empty(), device))?;
        let applied = attributes.apply_at(&dir, &name).and_then(|()| {
            // It was just made here and is no link, so there is nothing to follow.
            fchmodat(&dir.fd, name.as_c_str(), attributes.mode, FchmodatFlags::FollowSymlink)
        });
        applied.map_err(self.failed("set attributes of", path))
    }

    fn put_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let target =
            normalise(target, self.limits()).map_err(|_| refuse(path, "its target is no path in the image"))?;
        if target.is_empty() {
            return Err(refuse(path, "it is a hard link to a directory"));
        }
        let Some((from, from_name)) = self.link_source(path, &target)? else {
            self.dangling_link.get_or_insert_with(|| String::from_utf8_lossy(path).into_owned());
            return Ok(());
        };
        let source = look(from.fd.as_fd(), &from_name).map_err(self.failed("look at", &target))?;
        if file_type(&source) == SFlag::S_IFDIR {
            return Err(refuse(path, "it is a hard link to a directory"));
        }
        let (dir, name) = self.locate(path)?;
        if let Ok(there) = look(dir.fd.as_fd(), &name)
            && (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino)
        {
            return Ok(());
        }
        // Without flags the name itself is linked, even if it is a symbolic link.
        self.make_new(&dir, &name, path, |dir, name| {
            linkat(&from.fd, from_name.as_c_str(), &dir.fd, name.as_c_str(), AtFlags::empty())
        })
    }

    /// Where the file to link is, copied up from a layer below if need be; none if it is not known yet.
    fn link_source(&mut self, path: &[u8], target: &[u8]) -> Result<Option<(Dir, CString)>, UnpackError> {
        let (parent, name) = split(target);
        let name = CString::new(name).map_err(|_| refuse(path, "its target has a NUL byte"))?;
        if let Some(dir) = self.existing(parent)? {
            match look(dir.fd.as_fd(), &name) {
                Ok(stat) if is_whiteout(&stat) => return Err(refuse(path, "it is a hard link to a removed file")),
                Ok(_) => return Ok(Some((dir, name))),
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(self.failed("look at", target)(e)),
            }
        }
        let Some(lower) = self.lower() else {
            return Ok(None);
        };
        let dir = self.directory(parent)?;
        let real = join(&dir.path, name.as_bytes());
        let found = lower.find(&real).map_err(self.failed("look below for", target))?;
        self.copy_up(&dir, &name, &real, found.ok_or_else(|| refuse(path, "it is a hard link to nothing"))?)?;
        Ok(Some((dir, name)))
    }

    /// Brings a file of a layer below into this one.
    fn copy_up(&mut self, dir: &Dir, name: &CString, path: &[u8], found: Found) -> Result<(), UnpackError> {
        let (from, from_name, stat) = match found {
            Found::Directory(..) => return Err(refuse(path, "it is a hard link to a directory")),
            Found::Symlink(target) => return self.put_symlink(path, &target, &Attributes::default()),
            Found::Other(from, from_name, stat) => (from, from_name, stat),
        };
        if file_type(&stat) != SFlag::S_IFREG {
            let attributes = Attributes::of_special(&stat);
            self.make_new(dir, name, path, |dir, name| {
                mknodat(&dir.fd, name.as_c_str(), file_type(&stat), attributes.mode, stat.st_rdev)
            })?;
            return attributes.apply_at(dir, name).map_err(self.failed("set attributes of", path));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(&from, from_name.as_c_str(), flags, Mode::empty());
        let mut source = File::from(opened.map_err(self.failed("open", path))?);
        self.reserve(u64::try_from(stat.st_size).unwrap_or(0))?;
        let attributes = Attributes::of(source.as_fd(), &stat).map_err(self.failed("read attributes of", path))?;
        let mut file = File::from(self.create(dir, name, path, &attributes)?);
        let copied = std::io::copy(&mut source, &mut file).map(drop);
        copied.map_err(|e| self.failed("copy", path)(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        self.dress_file(&file, &attributes, path, None)
    }

    /// Makes an empty file, with its permissions where that needs no second call.
    fn create(
        &mut self,
        dir: &Dir,
        name: &CString,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<OwnedFd, UnpackError> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Setuid and the like only once the owner is right.
        let mode = attributes.mode & Mode::from_bits_truncate(0o777);
        self.make_new(dir, name, path, |dir, name| openat(&dir.fd, name.as_c_str(), flags, mode))
    }

    /// Makes something new, once more after clearing the place: of entries with the same path the later one wins.
    fn make_new<T>(
        &mut self,
        dir: &Dir,
        name: &CString,
        path: &[u8],
        make: impl Fn(&Dir, &CString) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        self.charge(1)?;
        match make(dir, name) {
            Err(Errno::EEXIST) => {
                self.clear(dir, name, path)?;
                make(dir, name).map_err(self.failed("make", path))
            }
            other => other.map_err(self.failed("make", path)),
        }
    }

    /// Writes an entry's content and returns its hash, holes included.
    fn fill<R: Source>(
        &mut self,
        file: &File,
        path: &[u8],
        entry: &Entry,
        entries: &mut Entries<'_, R>,
        buffer: &mut [u8],
    ) -> Result<u64, UnpackError> {
        self.reserve(entry.size)?;
        let failed = self.failed("write", path);
        let errno = |e: std::io::Error| failed(Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        let mut hash = ContentHash::default();
        let Some(Sparse { real_size, parts }) = &entry.sparse else {
            let mut offset = 0;
            while offset < entry.size {
                let piece = entries.piece(buffer, entry.size - offset)?;
                if piece.is_empty() {
                    return Err(refuse(path, "its content is shorter than its header says"));
                }
                file.write_all_at(piece, offset).map_err(errno)?;
                hash.add(piece);
                offset += piece.len() as u64;
            }
            return Ok(hash.finish());
        };
        // Holes cost a reader time, though no space.
        self.hole_bytes = self.hole_bytes.saturating_add(real_size.saturating_sub(entry.size));
        if self.hole_bytes > self.limits().layer_bytes {
            return Err(UnpackError::Limit { what: "bytes of holes", limit: self.limits().layer_bytes });
        }
        file.set_len(*real_size).map_err(errno)?;
        let mut end = 0;
        for &(mut offset, mut length) in parts {
            hash.add_hole(offset - end);
            while length > 0 {
                let piece = entries.piece(buffer, length)?;
                if piece.is_empty() {
                    return Err(refuse(path, "its map of holes does not fit its content"));
                }
                file.write_all_at(piece, offset).map_err(errno)?;
                hash.add(piece);
                offset += piece.len() as u64;
                length -= piece.len() as u64;
            }
            end = offset;
        }
        hash.add_hole(real_size - end);
        Ok(hash.finish())
    }

    /// Gives a file what it was not made with: most are root's, and made with their permissions.
    fn dress_file(
        &mut self,
        file: &File,
        attributes: &Attributes,
        path: &[u8],
        hash: Option<u64>,
    ) -> Result<(), UnpackError> {
        let failed = self.failed("set attributes of", path);
        let stat = fstat(file).map_err(&failed)?;
        let is_right = stat.st_uid == attributes.uid.as_raw()
            && stat.st_gid == attributes.gid.as_raw()
            && stat.st_mode & 0o7777 == attributes.mode.bits();
        if !is_right || !attributes.xattrs.is_empty() {
            attributes.apply(file.as_fd()).map_err(&failed)?;
        }
        futimens(file, &attributes.mtime, &attributes.mtime).map_err(&failed)?;
        self.contents.add(stat.st_ino, hash, !attributes.xattrs.is_empty());
        Ok(())
    }
}
