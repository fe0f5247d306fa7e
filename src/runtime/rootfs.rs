//! The container's root: an overlay made detached, attached only inside the container's mount namespace.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;

use super::error::{Doing, StepError};
use crate::plan;
use crate::sys::mount::{FsContext, SetAttr, attach, attr, clone_mount, set_attr};
use crate::sys::path::open_in_root;

/// A detached mount of the container's root, writable for now.
pub(super) fn open(rootfs: &plan::Rootfs) -> Result<OwnedFd, StepError> {
    if rootfs.lower.is_empty() {
        let path = c_string(&rootfs.path, "root directory")?;
        // The mounts below belong to the bundle too.
        return clone_mount(AT_FDCWD, &path, true).doing(|| format!("open root directory {}", rootfs.path));
    }
    overlay(rootfs)
}

fn overlay(rootfs: &plan::Rootfs) -> Result<OwnedFd, StepError> {
    let what = || format!("mount overlay of {} layers", rootfs.lower.len());
    let context = context_of(&rootfs.lower)?;
    // Nothing of a container's own layer is kept over its end, so nothing need be synced: without this the last
    // unmount would wait for the whole host filesystem.
    context.set_flag(c"volatile").or_else(ignore_unknown).doing(what)?;
    context.set_string(c"index", c"off").or_else(ignore_unknown).doing(what)?;
    set_directory(&context, c"upperdir", &rootfs.upper)?;
    set_directory(&context, c"workdir", &rootfs.work)?;
    context.mount(0).doing(|| match context.complaint() {
        Some(text) => format!("{}: {text}", what()),
        None => what(),
    })
}

/// An overlay being configured, with its layers.
fn context_of(layers: &[String]) -> Result<FsContext, StepError> {
    let what = || format!("mount overlay of {} layers", layers.len());
    let context = FsContext::open(c"overlay").doing(what)?;
    context.set_string(c"source", c"overlay").doing(what)?;
    for layer in layers {
        add_lower(&context, layer)?;
    }
    Ok(context)
}

/// A detached mount of an image's files, or of the directory of it that `tree` names.
///
/// An overlay that has no writable directory: unlike a bind of the layer no container, however privileged, can make
/// it writable again. The mount namespace must be one of our own, for `place` is mounted on for a moment: kernels
/// before Linux 6.15 copy a part of a mount only where that mount is attached.
pub(super) fn image(mount: &plan::Mount, place: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
    let tree = mount.image.clone().unwrap_or_default();
    let what = || format!("mount image {} on {}", mount.source, mount.target);
    let context = context_of(&tree.lower)?;
    let whole = context.mount(mount.attr_set).doing(|| match context.complaint() {
        Some(text) => format!("{}: {text}", what()),
        None => what(),
    })?;
    if tree.sub_path.is_empty() {
        return Ok(whole);
    }
    let what = || format!("mount directory {} of image {} on {}", tree.sub_path, mount.source, mount.target);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let part = open_in_root(whole.as_fd(), Path::new(&tree.sub_path), flags, Mode::empty()).doing(what)?;
    attach(whole.as_fd(), place).doing(what)?;
    let copy = clone_mount(part.as_fd(), c"", false).doing(what);
    nix::unistd::fchdir(&whole).doing(what)?;
    umount2(".", MntFlags::MNT_DETACH).doing(what)?;
    nix::unistd::chdir("/").doing(what)?;
    copy
}

/// An option that an older kernel does not know and that only makes things faster.
fn ignore_unknown(e: std::io::Error) -> std::io::Result<()> {
    if e.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(e) }
}

/// A layer by descriptor (Linux 6.13+), else by path.
fn add_lower(context: &FsContext, layer: &str) -> Result<(), StepError> {
    let what = || format!("open layer {layer}");
    let dir = open_dir(layer).doing(what)?;
    match context.set_fd(c"lowerdir+", dir.as_fd()) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            context.set_string(c"lowerdir+", &c_string(layer, "layer")?).doing(what)
        }
        other => other.doing(what),
    }
}

fn set_directory(context: &FsContext, key: &CStr, path: &str) -> Result<(), StepError> {
    let what = || format!("open {} {path}", key.to_string_lossy());
    let dir = open_dir(path).doing(what)?;
    match context.set_fd(key, dir.as_fd()) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            context.set_string(key, &c_string(path, "directory")?).doing(what)
        }
        other => other.doing(what),
    }
}

fn open_dir(path: &str) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn c_string(text: &str, what: &str) -> Result<CString, StepError> {
    CString::new(text).map_err(|_| StepError::new(Errno::EINVAL, format!("use {what} {text:?}, which holds a NUL")))
}

/// Whether the rules of a container keep it from any device, privileged ones being allowed all.
pub(super) fn denies_devices(rules: &[plan::DeviceRule]) -> bool {
    let last = rules.iter().rfind(|rule| rule.kind == "a" && rule.major == -1 && rule.minor == -1);
    last.is_some_and(|rule| !rule.allow)
}

/// Makes the device nodes of an image mere files, for a host where no controller keeps a container from opening them.
/// Those of its `/dev` are ours.
pub(super) fn refuse_devices(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let change = SetAttr { set: attr::NODEV, ..SetAttr::default() };
    set_attr(root, change).doing(|| "make the device nodes of the root useless".to_owned())
}

/// Cuts the new mount namespace off from the host's: nothing mounted from here on is seen there.
pub(super) fn isolate() -> Result<(), StepError> {
    let what = || "make the mount namespace private".to_owned();
    let root = open_dir("/").doing(what)?;
    let propagation = libc::MS_PRIVATE;
    set_attr(root.as_fd(), SetAttr { propagation, recursive: true, ..SetAttr::default() }).doing(what)
}

/// Puts the detached root where it can be mounted below and pivoted to; `place` is any directory of the host.
pub(super) fn attach_at(root: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), StepError> {
    attach(root, place).doing(|| "attach the root".to_owned())
}

/// Makes `root` the root of the mount namespace and forgets the host's.
pub(super) fn pivot(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || "pivot to the new root".to_owned();
    nix::unistd::fchdir(root).doing(what)?;
    // The old root comes to lie on the new one, at the same place, and is taken away from there (pivot_root(2)).
    nix::unistd::pivot_root(".", ".").doing(what)?;
    umount2(".", MntFlags::MNT_DETACH).doing(|| "detach the host's root".to_owned())?;
    nix::unistd::chdir("/").doing(what)
}

/// Makes the root mount, and it alone, read-only: volumes below keep what they are.
pub(super) fn make_readonly(root: BorrowedFd<'_>) -> Result<(), StepError> {
    let change = SetAttr { set: attr::RDONLY, ..SetAttr::default() };
    set_attr(root, change).doing(|| "make the root read-only".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_about_all_devices_decides() {
        let all = |allow| plan::DeviceRule { allow, kind: "a".into(), major: -1, minor: -1, access: "rwm".into() };
        let null = plan::DeviceRule { allow: true, kind: "c".into(), major: 1, minor: 3, access: "rwm".into() };
        assert!(denies_devices(&[all(false), null.clone()]));
        assert!(!denies_devices(&[all(false), null, all(true)]));
        assert!(!denies_devices(&[]));
    }
}
