//! The merged view of the layers below, for the rare layer that depends on them.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::make::Attributes;
use super::walk::{file_type, is_whiteout, look, open_dir};
use crate::sys::xattr;

/// Overlay's mark of a directory that hides the ones below it.
pub(super) const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// The `fs` directories of layers already unpacked, uppermost first.
#[derive(Debug, Default)]
pub(in crate::image) struct Lower(Vec<OwnedFd>);

/// Something in the merged view.
pub(super) enum Found {
    Directory(OwnedFd, FileStat),
    Symlink(Vec<u8>),
    /// A file, device or fifo by its directory and name.
    Other(OwnedFd, CString, FileStat),
}

impl Lower {
    pub fn new(uppermost_first: Vec<OwnedFd>) -> Self {
        Self(uppermost_first)
    }

    /// Looks a path up that goes through no symbolic link; none if no layer has it, or one hides it.
    pub(super) fn find(&self, path: &[u8]) -> Result<Option<Found>, Errno> {
        for layer in &self.0 {
            match find_in(layer, path)? {
                InLayer::Found(found) => return Ok(Some(found)),
                InLayer::Hidden => return Ok(None),
                InLayer::Absent => {}
            }
        }
        Ok(None)
    }

    /// Whether a directory that a path implies is, with these layers below, what it is without any: below there is
    /// nothing to go through, or a directory with the same owner, mode and attributes.
    pub fn leaves_plain(&self, path: &str) -> Result<bool, Errno> {
        Ok(match self.find(path.as_bytes())? {
            Some(Found::Directory(fd, stat)) => Attributes::of(fd.as_fd(), &stat)?.is_plain(),
            Some(Found::Symlink(_)) => false,
            Some(Found::Other(..)) | None => true,
        })
    }
}

enum InLayer {
    Found(Found),
    /// Neither here nor, for who looks from above, below.
    Hidden,
    Absent,
}

fn find_in(layer: &OwnedFd, path: &[u8]) -> Result<InLayer, Errno> {
    let mut dir = open_dir(layer.as_fd(), c".")?;
    let mut opaque = is_opaque(&dir)?;
    let mut parts = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).peekable();
    if parts.peek().is_none() {
        let stat = fstat(&dir)?;
        return Ok(InLayer::Found(Found::Directory(dir, stat)));
    }
    while let Some(part) = parts.next() {
        let name = CString::new(part).map_err(|_| Errno::EINVAL)?;
        let stat = match look(dir.as_fd(), &name) {
            Ok(stat) if is_whiteout(&stat) => return Ok(InLayer::Hidden),
            Ok(stat) => stat,
            Err(Errno::ENOENT) if opaque => return Ok(InLayer::Hidden),
            Err(Errno::ENOENT) => return Ok(InLayer::Absent),
            Err(e) => return Err(e),
        };
        let is_last = parts.peek().is_none();
        match file_type(&stat) {
            SFlag::S_IFDIR => {
                dir = open_dir(dir.as_fd(), &name)?;
                if is_last {
                    return Ok(InLayer::Found(Found::Directory(dir, stat)));
                }
                opaque |= is_opaque(&dir)?;
            }
            SFlag::S_IFLNK if is_last => {
                let target: OsString = readlinkat(&dir, name.as_c_str())?;
                return Ok(InLayer::Found(Found::Symlink(target.into_vec())));
            }
            _ if is_last => return Ok(InLayer::Found(Found::Other(dir, name, stat))),
            // A file where the path needs a directory hides what is below.
            _ => return Ok(InLayer::Hidden),
        }
    }
    Ok(InLayer::Absent)
}

fn is_opaque(dir: &OwnedFd) -> Result<bool, Errno> {
    let value = xattr::get(dir.as_fd(), OPAQUE).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    Ok(value.as_deref() == Some(b"y"))
}
