//! Mounts below a container's root: each target opened inside the root, each mount attached by descriptor.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};

use super::cgroup::Cgroup;
use super::error::{Doing, StepError};
use crate::plan;
use crate::sys::mount::{FsContext, SetAttr, attach, attr, clone_mount, set_attr};
use crate::sys::path::{make_dirs_in_root, make_file_in_root, open_beneath};

const DIR_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Attaches `source` at the container path `target`, making the mount point if there is none.
///
/// A target on the container's `/proc` other than that procfs itself would fake kernel files to us and to every
/// program that trusts them, and is refused but for the few places that others have come to use.
pub(super) fn bind(root: BorrowedFd<'_>, mount: &plan::Mount, source: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || format!("mount {} on {}", mount.source, mount.target);
    let is_dir = is_directory(source).doing(what)?;
    let target = open_target(root, &mount.target, is_dir)?;
    refuse_procfs(root, target.as_fd(), mount)?;
    attach(source, target.as_fd()).doing(what)
}

/// A new filesystem on the container path.
pub(super) fn filesystem(root: BorrowedFd<'_>, mount: &plan::Mount) -> Result<OwnedFd, StepError> {
    let what = || format!("mount {} on {}", mount.fstype, mount.target);
    let context = FsContext::open(&c_string(&mount.fstype)?).doing(what)?;
    if !mount.source.is_empty() {
        context.set_string(c"source", &c_string(&mount.source)?).doing(what)?;
    }
    for option in &mount.options {
        let what = || format!("{} with option {option}", what());
        match option.split_once('=') {
            Some((key, value)) => context.set_string(&c_string(key)?, &c_string(value)?).doing(what)?,
            None => context.set_flag(&c_string(option)?).doing(what)?,
        }
    }
    let made = context.mount(mount.attr_set).doing(|| match context.complaint() {
        Some(text) => format!("{}: {text}", what()),
        None => what(),
    })?;
    let target = if matches!(mount.fstype.as_str(), "proc" | "sysfs") {
        open_plain_directory(root, &mount.target)?
    } else {
        open_target(root, &mount.target, true)?
    };
    attach(made.as_fd(), target.as_fd()).doing(what)?;
    Ok(made)
}

/// The pod's `/dev/shm`, the same for all of its containers.
pub(super) fn shared_memory(root: BorrowedFd<'_>, mount: &plan::Mount, shm: BorrowedFd<'_>) -> Result<(), StepError> {
    let what = || format!("mount the pod's shared memory on {}", mount.target);
    let copy = clone_mount(shm, c"", false).doing(what)?;
    let target = open_target(root, &mount.target, true)?;
    attach(copy.as_fd(), target.as_fd()).doing(what)
}

/// A copy of a container's directory in one cgroup hierarchy, and the hierarchy's label.
pub(super) type CgroupCopy = (String, OwnedFd);

/// Copies of the container's directories in all hierarchies, made while the host's mounts are in reach.
pub(super) fn copy_cgroups(mount: &plan::Mount, cgroup: &Cgroup) -> Result<Vec<CgroupCopy>, StepError> {
    let change = SetAttr { set: mount.attr_set, propagation: libc::MS_PRIVATE, ..SetAttr::default() };
    let copy = |(label, directory): (&str, BorrowedFd<'_>)| {
        let what = || format!("copy cgroup hierarchy {label} for {}", mount.target);
        let copy = clone_mount(directory, c"", false).doing(what)?;
        set_attr(copy.as_fd(), change).doing(what)?;
        Ok((label.to_owned(), copy))
    };
    cgroup.places().map(copy).collect()
}

/// The container's own part of the cgroup hierarchies, where programs look for it.
///
/// v2 alone: the container's directory. Otherwise a tmpfs with one directory per hierarchy. Never writable unless the
/// plan says so: `release_agent` and limits are the host's.
pub(super) fn cgroups(root: BorrowedFd<'_>, mount: &plan::Mount, copies: &[CgroupCopy]) -> Result<(), StepError> {
    let what = || format!("mount cgroups on {}", mount.target);
    let target = open_target(root, &mount.target, true)?;
    if let [(_, only)] = copies {
        return attach(only.as_fd(), target.as_fd()).doing(what);
    }
    let context = FsContext::open(c"tmpfs").doing(what)?;
    context.set_string(c"mode", c"755").doing(what)?;
    context.set_string(c"size", c"64k").doing(what)?;
    let tmpfs = context.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC).doing(what)?;
    attach(tmpfs.as_fd(), target.as_fd()).doing(what)?;
    for (label, copy) in copies {
        let what = || format!("mount cgroup hierarchy {label} below {}", mount.target);
        nix::sys::stat::mkdirat(&tmpfs, label.as_str(), DIR_MODE).doing(what)?;
        let place = open_beneath(tmpfs.as_fd(), Path::new(label), OFlag::O_PATH, Mode::empty()).doing(what)?;
        attach(copy.as_fd(), place.as_fd()).doing(what)?;
        // `cpu` leads to `cpu,cpuacct` and the like, as on every host with such a hierarchy.
        for controller in label.split(',').filter(|c| c != label) {
            nix::unistd::symlinkat(label.as_str(), &tmpfs, controller).doing(what)?;
        }
    }
    set_attr(tmpfs.as_fd(), SetAttr { set: mount.attr_set & attr::RDONLY, ..SetAttr::default() }).doing(what)
}

/// Opens the mount point of a container path, made if absent as what `is_dir` says.
pub(super) fn open_target(root: BorrowedFd<'_>, target: &str, is_dir: bool) -> Result<OwnedFd, StepError> {
    let path = Path::new(target);
    let opened = if is_dir { make_dirs_in_root(root, path, DIR_MODE) } else { make_file_in_root(root, path) };
    opened.doing(|| format!("open mount point {target}"))
}

/// `/proc` and `/sys` must be directories of the image itself: through a link the kernel's own files could be
/// mounted where the image wants them and something else be found where we look for them.
fn open_plain_directory(root: BorrowedFd<'_>, target: &str) -> Result<OwnedFd, StepError> {
    let what = || format!("open mount point {target}, which must be a directory and no link");
    let opened = open_target(root, target, true)?;
    let name = target.trim_matches('/');
    let direct = nix::fcntl::openat(root, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let stat = fstat(direct.doing(what)?).doing(what)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        return Err(StepError::new(Errno::ENOTDIR, what()));
    }
    Ok(opened)
}

/// Places inside the container's procfs that may be bound over: what lxcfs-like services provide. Not
/// `net/dev`, though others allow it: it is of each process, and the mount would be seen by none.
const PROC_OVERLAYS: [&str; 9] =
    ["cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "sys/kernel/ns_last_pid", "uptime"];

fn refuse_procfs(root: BorrowedFd<'_>, target: BorrowedFd<'_>, mount: &plan::Mount) -> Result<(), StepError> {
    let what = || format!("mount {} on {}", mount.source, mount.target);
    let magic = nix::sys::statfs::fstatfs(target).doing(what)?.filesystem_type();
    if magic != nix::sys::statfs::PROC_SUPER_MAGIC {
        return Ok(());
    }
    // Not the path asked for: through a link of the image it may lead to any file of procfs.
    let (root, place) = (path_of(root).doing(what)?, path_of(target).doing(what)?);
    let inside = place.strip_prefix(root).ok().and_then(|place| place.strip_prefix("proc").ok()).and_then(Path::to_str);
    if inside.is_some_and(|inside| PROC_OVERLAYS.contains(&inside)) {
        return Ok(());
    }
    Err(StepError::new(Errno::EPERM, format!("{}, which is inside the container's procfs", what())))
}

/// Where a descriptor is, by the host's procfs.
fn path_of(fd: BorrowedFd<'_>) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn is_directory(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let stat = fstat(fd)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

fn c_string(text: &str) -> Result<CString, StepError> {
    CString::new(text).map_err(|_| StepError::new(Errno::EINVAL, format!("use mount option {text:?}")))
}

/// A copy of the mounted directory or file behind `fd`, put back on top of it with other attributes.
pub(super) fn remount_over(fd: BorrowedFd<'_>, change: SetAttr, path: &str) -> Result<(), StepError> {
    let what = || format!("make {path} read-only");
    let copy = clone_mount(fd, c"", true).doing(what)?;
    set_attr(copy.as_fd(), change).doing(what)?;
    attach(copy.as_fd(), fd).doing(what)
}
