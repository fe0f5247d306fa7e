//! The container's `/dev`: a tmpfs of our own with nodes we made, never what the image holds there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid};

use super::error::{Doing, StepError};
use super::mounts;
use crate::plan;
use crate::sys::mount::{FsContext, attach, attr, clone_mount};
use crate::sys::path::{make_dirs_in_root, open_beneath, open_in_root};
use crate::sys::tty;

/// The devices every container has (OCI config-linux, "Default Devices"): name, major, minor.
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links every container has, and where they lead.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// What later steps need of a container's `/dev`, by descriptor: paths to it belong to the container.
#[derive(Debug)]
pub(super) struct Dev {
    /// The tmpfs.
    pub directory: OwnedFd,
    /// Its `null`, made by us: character device 1:3.
    pub null: OwnedFd,
    /// The devpts instance.
    pub pts: OwnedFd,
}

/// A null device that is the pod's alone. Whoever has one as a stream can change the mode and owner of the file behind
/// it, so no process of a pod may get the host's.
#[derive(Debug)]
pub(super) struct Null {
    /// Open for reading and writing.
    pub file: OwnedFd,
    /// Closed, the kernel would take its time to take the filesystem apart.
    _mount: OwnedFd,
}

impl Null {
    pub(super) fn make() -> Result<Self, StepError> {
        let what = || "make the pod's null device".to_owned();
        let context = FsContext::open(c"tmpfs").doing(what)?;
        context.set_string(c"size", c"4k").doing(what)?;
        context.set_string(c"nr_inodes", c"2").doing(what)?;
        context.set_string(c"mode", c"755").doing(what)?;
        let mount = context.mount(attr::NOSUID | attr::NOEXEC).doing(what)?;
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&mount, "null", SFlag::S_IFCHR, mode, makedev(1, 3)).doing(what)?;
        let file = open_beneath(mount.as_fd(), Path::new("null"), OFlag::O_RDWR, Mode::empty()).doing(what)?;
        // The umask took its part away.
        fchmod(&file, mode).doing(what)?;
        Ok(Self { file, _mount: mount })
    }
}

/// Mounts a fresh `/dev` at `target` and fills it.
pub(super) fn mount(root: BorrowedFd<'_>, mount: &plan::Mount) -> Result<Dev, StepError> {
    let what = || format!("mount a new {}", mount.target);
    let context = FsContext::open(c"tmpfs").doing(what)?;
    context.set_string(c"source", c"tmpfs").doing(what)?;
    context.set_string(c"mode", c"755").doing(what)?;
    context.set_string(c"size", c"65536k").doing(what)?;
    let directory = context.mount(attr::NOSUID | attr::STRICTATIME).doing(what)?;
    let target = mounts::open_target(root, &mount.target, true)?;
    attach(directory.as_fd(), target.as_fd()).doing(what)?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&directory, name, SFlag::S_IFCHR, mode, makedev(major, minor)).doing(|| format!("make /dev/{name}"))?;
    }
    for (name, to) in LINKS {
        nix::unistd::symlinkat(to, &directory, name).doing(|| format!("make /dev/{name}"))?;
    }
    let pts = mount_pts(&directory)?;
    let null = open_beneath(directory.as_fd(), Path::new("null"), OFlag::O_RDWR, Mode::empty())
        .doing(|| "open /dev/null".to_owned())?;
    Ok(Dev { directory, null, pts })
}

fn mount_pts(dev: &OwnedFd) -> Result<OwnedFd, StepError> {
    let what = || "mount devpts on /dev/pts".to_owned();
    nix::sys::stat::mkdirat(dev, "pts", Mode::from_bits_truncate(0o755)).doing(what)?;
    let context = FsContext::open(c"devpts").doing(what)?;
    context.set_flag(c"newinstance").doing(what)?;
    context.set_string(c"ptmxmode", c"0666").doing(what)?;
    context.set_string(c"mode", c"0620").doing(what)?;
    context.set_string(c"gid", c"5").doing(what)?;
    let pts = context.mount(attr::NOSUID | attr::NOEXEC).doing(what)?;
    let target = open_beneath(dev.as_fd(), Path::new("pts"), OFlag::O_PATH, Mode::empty()).doing(what)?;
    attach(pts.as_fd(), target.as_fd()).doing(what)?;
    Ok(pts)
}

/// Makes the further device nodes the plan asks for.
pub(super) fn make_nodes(root: BorrowedFd<'_>, devices: &[plan::Device]) -> Result<(), StepError> {
    devices.iter().try_for_each(|device| make_node(root, device))
}

fn make_node(root: BorrowedFd<'_>, device: &plan::Device) -> Result<(), StepError> {
    let what = || format!("make device {}", device.path);
    let path = Path::new(&device.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(StepError::new(Errno::EINVAL, what()));
    };
    let kind = match device.kind.as_str() {
        "b" => SFlag::S_IFBLK,
        "c" | "u" => SFlag::S_IFCHR,
        "p" => SFlag::S_IFIFO,
        _ => return Err(StepError::new(Errno::EINVAL, format!("{} of kind {:?}", what(), device.kind))),
    };
    let dir = make_dirs_in_root(root, parent, Mode::from_bits_truncate(0o755)).doing(what)?;
    let number = makedev(u64::from(device.major), u64::from(device.minor));
    let mode = Mode::from_bits_truncate(device.file_mode);
    match mknodat(&dir, name, kind, mode, number) {
        Ok(()) => {}
        // A default device asked for once more.
        Err(Errno::EEXIST) if same_node(dir.as_fd(), Path::new(name), kind, number) => return Ok(()),
        Err(e) => return Err(e).doing(what),
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    nix::unistd::fchownat(&dir, name, Some(uid), Some(gid), flags).doing(what)
}

fn same_node(dir: BorrowedFd<'_>, name: &Path, kind: SFlag, number: u64) -> bool {
    let opened = open_beneath(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty());
    let Ok(stat) = opened.map_err(|_| Errno::EIO).and_then(fstat) else { return false };
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind && stat.st_rdev == number
}

/// A terminal of the container's own devpts.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The shim's side.
    pub master: OwnedFd,
    /// The process's side.
    pub peer: OwnedFd,
}

/// Opens a new terminal of the devpts instance whose root is `pts`.
pub(super) fn open_terminal(pts: BorrowedFd<'_>, process: &plan::Process) -> Result<Terminal, StepError> {
    let what = || "open a terminal on /dev/pts".to_owned();
    let magic = nix::sys::statfs::fstatfs(pts).doing(what)?.filesystem_type();
    if magic.0 != DEVPTS_SUPER_MAGIC {
        return Err(StepError::new(Errno::ENOTTY, format!("{}, which is no devpts", what())));
    }
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = open_beneath(pts, Path::new("ptmx"), flags, Mode::empty()).doing(what)?;
    let peer = tty::open_peer(master.as_fd()).doing(what)?;
    let cell = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    if process.tty_rows > 0 && process.tty_cols > 0 {
        tty::set_size(master.as_fd(), cell(process.tty_rows), cell(process.tty_cols)).doing(what)?;
    }
    Ok(Terminal { master, peer })
}

/// `DEVPTS_SUPER_MAGIC` of statfs(2).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Shows the terminal as `/dev/console`: the other side itself is mounted there, no path of it is resolved.
pub(super) fn mount_console(dev: &Dev, terminal: &Terminal) -> Result<(), StepError> {
    let what = || "mount the terminal on /dev/console".to_owned();
    let mode = Mode::from_bits_truncate(0o600);
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY;
    open_beneath(dev.directory.as_fd(), Path::new("console"), flags, mode).doing(what)?;
    let target = open_beneath(dev.directory.as_fd(), Path::new("console"), OFlag::O_PATH, Mode::empty()).doing(what)?;
    let copy = clone_mount(terminal.peer.as_fd(), c"", false).doing(what)?;
    attach(copy.as_fd(), target.as_fd()).doing(what)
}

/// The devpts of a container already running, for an exec session's terminal.
pub(super) fn find_pts(root: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
    open_in_root(root, Path::new("/dev/pts"), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
        .doing(|| "open /dev/pts of the container".to_owned())
}
