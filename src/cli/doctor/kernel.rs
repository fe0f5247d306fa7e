//! What the kernel offers, found out by trying it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::utsname::uname;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::Check;
use crate::cli::error::errno;
use crate::sys::mount::{FsContext, SetAttr, attr, set_attr};
use crate::sys::process::{Cloned, SingleThreaded, clone_process, exit_now, pidfd_open, pidfd_signal};
use crate::sys::{mount, path};

const NEWER: &str = "use Linux 5.15 or newer, and see that no seccomp filter around this process forbids it";

/// All of them; `root` is where overlays would live.
pub(super) fn checks(root: &Path) -> Vec<Check> {
    vec![
        version(),
        tried("new mount API", "fsopen, fsmount, mount_setattr and open_tree work", NEWER, mount_api()),
        overlay(root),
        tried("openat2", "works", NEWER, openat2()),
        tried("pidfd", "pidfd_open and pidfd_send_signal work", NEWER, pidfd()),
        namespaces(),
        user_namespaces(),
        memfd(),
        seccomp(),
        security_modules(),
    ]
}

fn tried(name: &'static str, works: &str, remedy: &str, result: io::Result<()>) -> Check {
    match result {
        Ok(()) => Check::ok(name, works),
        Err(e) => Check::missing(name, format!("refused with {}", errno(&e)), remedy),
    }
}

fn version() -> Check {
    const NAME: &str = "kernel";
    let Ok(names) = uname() else { return Check::missing(NAME, "uname fails", "run on Linux") };
    let release = names.release().to_string_lossy().into_owned();
    let found = format!("Linux {release} {}", names.machine().to_string_lossy());
    match release_number(&release) {
        Some(number) if number >= (5, 15) => Check::ok(NAME, found),
        _ => Check::warning(NAME, found, "Linux 5.15 is the oldest that aril is meant for; see what else is missing"),
    }
}

/// "6.18.1-cloud" → (6, 18).
fn release_number(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A tmpfs that is mounted nowhere, made read-only, and a copy of it.
fn mount_api() -> io::Result<()> {
    let tmpfs = FsContext::open(c"tmpfs")?.mount(attr::NODEV)?;
    set_attr(tmpfs.as_fd(), SetAttr { set: attr::RDONLY, ..SetAttr::default() })?;
    let root = File::open("/")?;
    mount::clone_mount(root.as_fd(), c"", false).map(drop)
}

/// An overlay mounted nowhere, with its writable layer on the filesystem of `root`.
fn overlay(root: &Path) -> Check {
    const NAME: &str = "overlay";
    let place = existing(root);
    match try_overlay(&place) {
        Ok(()) => Check::ok(NAME, format!("works on the filesystem of {}", place.display())),
        Err((e, complaint)) => {
            let remedy = match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                Errno::ENODEV => "load it with `modprobe overlay`, or use a kernel with CONFIG_OVERLAY_FS".to_owned(),
                Errno::EROFS => format!("make {} writable, or choose another --root", place.display()),
                _ => format!("keep --root on ext4, xfs or btrfs; {} is on something else", place.display()),
            };
            let complaint = complaint.map(|c| format!(": {c}")).unwrap_or_default();
            Check::missing(NAME, format!("refused with {}{complaint}", errno(&e)), remedy)
        }
    }
}

/// `path`, or the nearest directory above it that is there.
pub(super) fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn try_overlay(place: &Path) -> Result<(), (io::Error, Option<String>)> {
    let plain = |e: io::Error| (e, None);
    let dir = Probe::new(place).map_err(plain)?;
    let context = FsContext::open(c"overlay").map_err(plain)?;
    for (key, name) in [(c"lowerdir", "lower"), (c"upperdir", "upper"), (c"workdir", "work")] {
        let path = dir.0.join(name);
        fs::create_dir(&path).map_err(plain)?;
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| plain(e.into()))?;
        context.set_string(key, &path).map_err(plain)?;
    }
    match context.mount(0) {
        Ok(mount) => {
            // A file that is written goes up, which wants extended attributes and whiteouts of the filesystem.
            let file =
                path::open_in_root(mount.as_fd(), Path::new("file"), OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR);
            file.map(drop).map_err(plain)
        }
        Err(e) => {
            let complaint = context.complaint();
            Err((e, complaint))
        }
    }
}

/// A directory that goes when dropped.
struct Probe(PathBuf);

impl Probe {
    fn new(place: &Path) -> io::Result<Self> {
        let path = place.join(format!(".aril-doctor-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Nothing more can be done about it; its name says whose it is.
        fs::remove_dir_all(&self.0).ok();
    }
}

fn openat2() -> io::Result<()> {
    let root = File::open("/proc")?;
    path::open_in_root(root.as_fd(), Path::new("version"), OFlag::O_RDONLY, Mode::empty()).map(drop)
}

fn pidfd() -> io::Result<()> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    pidfd_signal(pidfd_open(own)?.as_fd(), 0)
}

/// Each kind by itself: a child that is born into it and ends.
fn namespaces() -> Check {
    const NAME: &str = "clone3, namespaces";
    const KINDS: [(&str, CloneFlags); 6] = [
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mount", CloneFlags::CLONE_NEWNS),
        ("network", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ];
    let Ok(alone) = SingleThreaded::check() else {
        return Check::note(NAME, "not tried: this process has several threads");
    };
    let refused: Vec<String> = KINDS
        .iter()
        .filter_map(|(kind, flag)| born_into(alone, *flag).err().map(|e| format!("{kind} ({})", errno(&e))))
        .collect();
    if refused.is_empty() {
        return Check::ok(NAME, "pid, mount, network, ipc, uts and cgroup can be made");
    }
    let remedy =
        "run as root with CAP_SYS_ADMIN, and with a kernel that has these namespaces; see /proc/sys/user/max_*";
    Check::missing(NAME, format!("refused: {}", refused.join(", ")), remedy)
}

fn born_into(alone: SingleThreaded, flag: CloneFlags) -> io::Result<()> {
    match clone_process(alone, u64::from(flag.bits().cast_unsigned()), None)? {
        Cloned::Child => exit_now(0),
        Cloned::Parent { pid, pidfd: _ } => waitpid(Pid::from_raw(pid), None).map(drop).map_err(io::Error::from),
    }
}

fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    match read("/proc/sys/user/max_user_namespaces").as_deref() {
        None => Check::note(NAME, "the kernel has none; pods that ask for one will be refused"),
        Some("0") => {
            Check::note(NAME, "forbidden by user.max_user_namespaces=0; pods that ask for one will be refused")
        }
        Some(count) => Check::ok(NAME, format!("up to {count}")),
    }
}

/// Shims run from a sealed memfd; where that is forbidden, from an unlinked copy.
fn memfd() -> Check {
    const NAME: &str = "executable memfd";
    if read("/proc/sys/vm/memfd_noexec").as_deref() == Some("2") {
        return Check::note(NAME, "forbidden by vm.memfd_noexec=2; shims run from an unlinked copy instead");
    }
    match memfd_create(c"aril-doctor", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING) {
        Ok(_) => Check::ok(NAME, "works"),
        Err(e) => Check::note(NAME, format!("refused with {e:?}; shims run from an unlinked copy instead")),
    }
}

fn seccomp() -> Check {
    const NAME: &str = "seccomp";
    match read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("errno") => Check::ok(NAME, "filters work"),
        _ => Check::warning(NAME, "the kernel has no filters", "use a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn security_modules() -> Check {
    let apparmor = read("/sys/module/apparmor/parameters/enabled").is_some_and(|v| v.starts_with('Y'));
    let selinux = match read("/sys/fs/selinux/enforce").as_deref() {
        Some("1") => Some("SELinux enforcing"),
        Some(_) => Some("SELinux permissive"),
        None => None,
    };
    let active: Vec<&str> = apparmor.then_some("AppArmor").into_iter().chain(selinux).collect();
    let found = if active.is_empty() { "neither AppArmor nor SELinux".to_owned() } else { active.join(", ") };
    Check::note("security modules", found)
}

/// A small file without its last newline.
pub(super) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_numbers() {
        assert_eq!(release_number("6.18.1-cloud"), Some((6, 18)));
        assert_eq!(release_number("5.4"), Some((5, 4)));
        assert_eq!(release_number("next"), None);
    }

    #[test]
    fn the_nearest_directory_that_is_there() {
        assert_eq!(existing(Path::new("/proc/nothing/at/all")), Path::new("/proc"));
    }

    #[test]
    fn a_filesystem_without_room_for_overlays_is_told() {
        let check = overlay(Path::new("/proc"));
        assert_eq!(check.verdict, super::super::Verdict::Missing);
        assert!(!check.remedy.is_empty());
    }
}
