//! Where entries of a layer land: paths resolved inside the layer, directories made on the way.
//!
//! Never by path strings from the host's root: every step is on a directory descriptor. Symbolic links on the way
//! are resolved here, against the layer (and the layers below), so that a link to `/` or through `..` means the
//! image's root, as it will inside a container.

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, futimens, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::UnpackError;
use super::contents::Contents;
use super::lower::{Found, Lower, OPAQUE};
use super::make::Attributes;
use super::walk::{self, file_type, is_whiteout, look};
use super::whiteout::{refuse, shown, split};
use crate::image::Limits;
use crate::sys::path::open_beneath;
use crate::sys::xattr;

/// Links one path may go through, as in the kernel.
const MOST_LINKS: u32 = 40;
/// Bytes written between two looks at the free space.
const SPACE_STEP: u64 = 32 << 20;

/// A layer's tree being made.
pub(super) struct Tree<'a> {
    root: OwnedFd,
    host_path: PathBuf,
    lower: Option<&'a Lower>,
    limits: &'a Limits,
    /// The directory of the entry before: as asked for, as resolved, open.
    cached: Option<(Vec<u8>, Dir)>,
    /// Set last, because each new entry changes them.
    times: HashMap<Vec<u8>, TimeSpec>,
    times_bytes: usize,
    work: u64,
    unchecked_bytes: u64,
    /// Hashes of what was written, for the list of the layer's files.
    pub contents: Contents,
    /// Bytes of holes in all files so far.
    pub hole_bytes: u64,
    /// Directories made whose attributes a layer below may have.
    pub implied: Implied,
    /// A hard link whose target is not in this layer.
    pub dangling_link: Option<String>,
}

/// An open directory of the layer and its path in it.
#[derive(Clone)]
pub(super) struct Dir {
    pub path: Vec<u8>,
    pub fd: Rc<OwnedFd>,
}

/// Directories that paths of a layer go through and that the layer itself does not have.
#[derive(Debug, Default)]
pub(in crate::image) struct Implied {
    paths: Vec<String>,
    bytes: usize,
    /// There were too many, or one whose name is not text.
    is_unknown: bool,
}

impl Implied {
    /// Bytes of paths that are kept; far more than any sane layer has.
    const MOST_BYTES: usize = 64 << 10;

    fn add(&mut self, path: &[u8]) {
        self.bytes += path.len();
        match std::str::from_utf8(path) {
            Ok(path) if self.bytes <= Self::MOST_BYTES => self.paths.push(path.to_owned()),
            _ => self.is_unknown = true,
        }
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.is_unknown || !self.paths.is_empty()
    }

    /// All of them; none if they are not all known.
    pub fn into_paths(self) -> Option<Vec<String>> {
        if self.is_unknown { None } else { Some(self.paths) }
    }
}

/// What to do about a directory that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    GiveUp,
}

impl<'a> Tree<'a> {
    /// `lower`: none while it is not known whether the layer depends on others; empty for the lowest layer.
    pub fn new(root: OwnedFd, host_path: &Path, lower: Option<&'a Lower>, limits: &'a Limits) -> Self {
        Self {
            root,
            host_path: host_path.to_owned(),
            lower,
            limits,
            cached: None,
            times: HashMap::new(),
            times_bytes: 0,
            work: 0,
            unchecked_bytes: 0,
            contents: Contents::default(),
            hole_bytes: 0,
            implied: Implied::default(),
            dangling_link: None,
        }
    }

    pub fn lower(&self) -> Option<&'a Lower> {
        self.lower
    }

    pub fn limits(&self) -> &'a Limits {
        self.limits
    }

    /// Makes an error of a failed system call on an entry.
    pub fn failed(&self, step: &'static str, path: &[u8]) -> impl Fn(Errno) -> UnpackError + use<> {
        let (host_path, object) = (self.host_path.clone(), shown(path));
        move |errno| match errno {
            Errno::ENOSPC | Errno::EDQUOT => UnpackError::DiskFull { path: host_path.clone() },
            errno => UnpackError::System { step, object: object.clone(), errno },
        }
    }

    /// Counts steps that a hostile layer could ask for without end.
    pub fn charge(&mut self, steps: u64) -> Result<(), UnpackError> {
        self.work = self.work.saturating_add(steps);
        if self.work > self.limits.work {
            return Err(UnpackError::Limit { what: "steps of work", limit: self.limits.work });
        }
        Ok(())
    }

    /// Refuses to write `bytes` more when the disk has not room for them beside the reserve.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.unchecked_bytes = self.unchecked_bytes.saturating_add(bytes);
        if self.unchecked_bytes < SPACE_STEP {
            return Ok(());
        }
        self.unchecked_bytes = 0;
        let space = fstatvfs(&self.root).map_err(self.failed("look at the free space for", b""))?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        if free < bytes.saturating_add(self.limits.reserve_bytes) {
            return Err(UnpackError::DiskFull { path: self.host_path.clone() });
        }
        Ok(())
    }

    /// The directory and name to make the entry `path` (normalised, not the root) at. Missing directories are made.
    pub fn locate(&mut self, path: &[u8]) -> Result<(Dir, CString), UnpackError> {
        let (parent, name) = split(path);
        let dir = self.directory(parent)?;
        let name = CString::new(name).map_err(|_| refuse(path, "its path has a NUL byte"))?;
        Ok((dir, name))
    }

    /// The directory `path` of the layer, made if it is missing.
    pub fn directory(&mut self, path: &[u8]) -> Result<Dir, UnpackError> {
        if let Some((asked, dir)) = &self.cached
            && asked == path
        {
            return Ok(dir.clone());
        }
        let depth = path.iter().filter(|b| **b == b'/').count() as u64;
        self.charge(depth + 1)?;
        // Nearly always the directory is there, and no link on the way: one call then.
        let dir = match open_beneath(self.root.as_fd(), as_path(path), path_flags(), Mode::empty()) {
            Ok(fd) => Dir { path: path.to_vec(), fd: Rc::new(fd) },
            Err(_) => self
                .descend(path, Missing::Make)?
                .ok_or_else(|| refuse(path, "a part of its path is not a directory"))?,
        };
        self.cached = Some((path.to_vec(), dir.clone()));
        Ok(dir)
    }

    /// The directory `path` if this layer has it.
    pub fn existing(&mut self, path: &[u8]) -> Result<Option<Dir>, UnpackError> {
        self.descend(path, Missing::GiveUp)
    }

    fn descend(&mut self, path: &[u8], missing: Missing) -> Result<Option<Dir>, UnpackError> {
        let mut dir = self.root_dir(path)?;
        // The next part is last.
        let mut todo: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            self.charge(1)?;
            if part == b".." {
                let up = split(&dir.path).0.to_vec();
                dir = self.reopen(up, path)?;
                continue;
            }
            let next = join(&dir.path, &part);
            if parts(&next).count() > self.limits.path_depth || next.len() > self.limits.path_bytes {
                return Err(refuse(path, "its path leads too deep"));
            }
            match self.step(&dir, &part, next, missing, path)? {
                Step::Into(below) => dir = below,
                Step::Nowhere => return Ok(None),
                Step::Link(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(refuse(path, "its path goes through too many links"));
                    }
                    if target.starts_with(b"/") {
                        dir = self.root_dir(path)?;
                    }
                    todo.extend(parts(&target).rev().map(<[u8]>::to_vec));
                }
            }
        }
        Ok(Some(dir))
    }

    fn step(
        &mut self,
        dir: &Dir,
        part: &[u8],
        next: Vec<u8>,
        missing: Missing,
        path: &[u8],
    ) -> Result<Step, UnpackError> {
        let name = CString::new(part).map_err(|_| refuse(path, "its path has a NUL byte"))?;
        let stat = match look(dir.fd.as_fd(), &name) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(self.failed("look at", &next)(e)),
        };
        match stat {
            Some(stat) if file_type(&stat) == SFlag::S_IFDIR => {
                let fd = openat(&dir.fd, name.as_c_str(), path_flags(), Mode::empty())
                    .map_err(self.failed("open directory", &next))?;
                Ok(Step::Into(Dir { path: next, fd: Rc::new(fd) }))
            }
            Some(stat) if file_type(&stat) == SFlag::S_IFLNK => {
                let target: OsString = readlinkat(&dir.fd, name.as_c_str()).map_err(self.failed("read link", &next))?;
                Ok(Step::Link(target.into_vec()))
            }
            _ if missing == Missing::GiveUp => Ok(Step::Nowhere),
            Some(stat) if is_whiteout(&stat) => {
                let dir = self.new_directory(dir, &name, next, Some(&Attributes::default()))?;
                self.mark_opaque(&dir)?;
                Ok(Step::Into(dir))
            }
            Some(_) => Ok(Step::Nowhere),
            None => self.imply(dir, &name, next),
        }
    }

    /// Makes a directory that the layer only implies, as the layers below have it.
    fn imply(&mut self, dir: &Dir, name: &CString, next: Vec<u8>) -> Result<Step, UnpackError> {
        let Some(lower) = self.lower else {
            self.implied.add(&next);
            return self.new_directory(dir, name, next, Some(&Attributes::default())).map(Step::Into);
        };
        let attributes = match lower.find(&next).map_err(self.failed("look below for", &next))? {
            Some(Found::Symlink(target)) => return Ok(Step::Link(target)),
            Some(Found::Directory(fd, stat)) => {
                Attributes::of(fd.as_fd(), &stat).map_err(self.failed("read attributes of", &next))?
            }
            Some(Found::Other(..)) | None => Attributes::default(),
        };
        self.new_directory(dir, name, next, Some(&attributes)).map(Step::Into)
    }

    /// Makes a directory, in place of a whiteout if there is one.
    pub fn new_directory(
        &mut self,
        parent: &Dir,
        name: &CString,
        path: Vec<u8>,
        attributes: Option<&Attributes>,
    ) -> Result<Dir, UnpackError> {
        let mode = Mode::from_bits_truncate(0o700);
        match mkdirat(&parent.fd, name.as_c_str(), mode) {
            Err(Errno::EEXIST) => {
                // The cached directory may have been reached through a link that goes now.
                self.cached = None;
                unlinkat(&parent.fd, name.as_c_str(), UnlinkatFlags::NoRemoveDir)
                    .map_err(self.failed("replace", &path))?;
                mkdirat(&parent.fd, name.as_c_str(), mode).map_err(self.failed("make directory", &path))?;
            }
            other => other.map_err(self.failed("make directory", &path))?,
        }
        let fd = openat(&parent.fd, name.as_c_str(), path_flags(), Mode::empty())
            .map_err(self.failed("open directory", &path))?;
        let dir = Dir { path, fd: Rc::new(fd) };
        if let Some(attributes) = attributes {
            self.dress_directory(&dir, attributes)?;
        }
        Ok(dir)
    }

    /// Gives a directory its owner, mode and attributes; its time comes at the end.
    pub fn dress_directory(&mut self, dir: &Dir, attributes: &Attributes) -> Result<(), UnpackError> {
        let fd = walk::open_dir(dir.fd.as_fd(), c".").map_err(self.failed("open directory", &dir.path))?;
        attributes.apply(fd.as_fd()).map_err(self.failed("set attributes of", &dir.path))?;
        if self.times.insert(dir.path.clone(), attributes.mtime).is_none() {
            self.times_bytes += dir.path.len() + 64;
        }
        // A hundred million bytes of directory names is no image.
        let most = 128 << 20;
        if self.times_bytes > most {
            return Err(UnpackError::Limit { what: "bytes of directory names", limit: most as u64 });
        }
        Ok(())
    }

    /// Hides what layers below have in this directory.
    pub fn mark_opaque(&self, dir: &Dir) -> Result<(), UnpackError> {
        let fd = walk::open_dir(dir.fd.as_fd(), c".").map_err(self.failed("open directory", &dir.path))?;
        xattr::set(fd.as_fd(), OPAQUE, b"y")
            .map_err(|e| self.failed("make opaque", &dir.path)(Errno::from_raw(e.raw_os_error().unwrap_or(0))))
    }

    /// Removes what is at the place of a new entry, all of it.
    pub fn clear(&mut self, dir: &Dir, name: &CString, path: &[u8]) -> Result<(), UnpackError> {
        // The cached directory may be inside what goes.
        self.cached = None;
        let mut steps = 0;
        let result = walk::remove(dir.fd.as_fd(), name, &mut steps);
        result.map_err(self.failed("replace", path))?;
        // Removing costs the file system more than a look.
        self.charge(steps.saturating_mul(16))
    }

    /// Sets the times of directories, now that nothing changes in them any more.
    pub fn finish(self) -> Result<(), UnpackError> {
        for (path, time) in &self.times {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let opened = match path.is_empty() {
                true => walk::open_dir(self.root.as_fd(), c".").map_err(Into::into),
                false => open_beneath(self.root.as_fd(), as_path(path), flags, Mode::empty()),
            };
            // Some were replaced by a later entry.
            if let Ok(fd) = opened {
                futimens(&fd, time, time).map_err(self.failed("set the time of", path))?;
            }
        }
        Ok(())
    }

    fn root_dir(&self, path: &[u8]) -> Result<Dir, UnpackError> {
        let fd =
            openat(&self.root, c".", path_flags(), Mode::empty()).map_err(self.failed("open the root for", path))?;
        Ok(Dir { path: Vec::new(), fd: Rc::new(fd) })
    }

    fn reopen(&self, real: Vec<u8>, path: &[u8]) -> Result<Dir, UnpackError> {
        if real.is_empty() {
            return self.root_dir(path);
        }
        let opened = open_beneath(self.root.as_fd(), as_path(&real), path_flags(), Mode::empty());
        let fd =
            opened.map_err(|e| self.failed("open directory", &real)(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        Ok(Dir { path: real, fd: Rc::new(fd) })
    }
}

enum Step {
    Into(Dir),
    Link(Vec<u8>),
    Nowhere,
}

fn path_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".")
}

/// The path of `name` in the directory `dir`.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn as_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    if path.is_empty() { Path::new(".") } else { Path::new(std::ffi::OsStr::from_bytes(path)) }
}
