//! What a container takes from the host: detached copies of the mounts it binds, made while the host's tree is in reach.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::Mode;

use super::error::{Doing, StepError};
use crate::plan::mount::Kind;
use crate::plan::{self, Propagation};
use crate::sys::mount::{SetAttr, clone_mount, set_attr};

/// The detached copy that `mount` binds, with its attributes and propagation; `None` if it binds nothing of the host.
pub(super) fn open(mount: &plan::Mount) -> Result<Option<OwnedFd>, StepError> {
    if mount.kind() != Kind::Bind {
        return Ok(None);
    }
    let source = Path::new(&mount.source);
    let what = || format!("bind {} on {}", mount.source, mount.target);
    let path = CString::new(mount.source.as_bytes()).map_err(|_| StepError::new(Errno::EINVAL, what()))?;
    if mount.create_source && !source.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(source).doing(|| format!("make {}", mount.source))?;
    }
    if mount.need_peer {
        check_peer(mount)?;
    }
    let copy = clone_mount(AT_FDCWD, &path, mount.recursive).doing(what)?;
    apply(mount, &copy).doing(what)?;
    Ok(Some(copy))
}

/// Attributes and propagation of a copy, before anyone can see it.
pub(super) fn apply(mount: &plan::Mount, copy: &OwnedFd) -> std::io::Result<()> {
    let propagation = match mount.propagation() {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    };
    set_attr(copy.as_fd(), SetAttr { propagation, recursive: mount.recursive, ..SetAttr::default() })?;
    let attrs =
        SetAttr { set: mount.attr_set, clear: mount.attr_clear, propagation: 0, recursive: mount.attr_recursive };
    set_attr(copy.as_fd(), attrs)
}

/// Refuses a propagation that the source's mount cannot have: mounts would silently stay on one side.
fn check_peer(mount: &plan::Mount) -> Result<(), StepError> {
    let what = || format!("bind {} with propagation", mount.source);
    let source =
        nix::fcntl::open(mount.source.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).doing(what)?;
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", source.as_raw_fd())).doing(what)?;
    let id = fdinfo.lines().find_map(|l| l.strip_prefix("mnt_id:")).unwrap_or_default().trim();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").doing(what)?;
    let Some(peers) = peer_fields(&mountinfo, id) else { return Err(StepError::new(Errno::EINVAL, what())) };
    let shared = peers.iter().any(|f| f.starts_with("shared:"));
    let slave = peers.iter().any(|f| f.starts_with("master:"));
    match mount.propagation() {
        Propagation::Shared if !shared => {
            let why = "bidirectionally: the mount it is on is not shared (try `mount --make-rshared` on it)";
            Err(StepError::new(Errno::EINVAL, format!("bind {} {why}", mount.source)))
        }
        Propagation::Slave if !shared && !slave => {
            let why = "with host-to-container propagation: the mount it is on is neither shared nor a slave";
            Err(StepError::new(Errno::EINVAL, format!("bind {} {why}", mount.source)))
        }
        _ => Ok(()),
    }
}

/// The optional fields of the mount `id` in proc_pid_mountinfo(5).
fn peer_fields<'a>(mountinfo: &'a str, id: &str) -> Option<Vec<&'a str>> {
    let line = mountinfo.lines().find(|l| l.split(' ').next() == Some(id))?;
    Some(line.split(' ').skip(6).take_while(|f| *f != "-").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_are_those_before_the_dash() {
        let text = "21 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda rw\n22 21 0:5 / /x rw - tmpfs t rw\n";
        assert_eq!(peer_fields(text, "21").unwrap(), ["shared:1", "master:2"]);
        assert!(peer_fields(text, "22").unwrap().is_empty());
        assert_eq!(peer_fields(text, "2"), None);
    }
}
