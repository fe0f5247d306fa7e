//! What the machine and its set-up offer: rights, cgroups, disk, network, and aril's own parts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use super::Check;
use super::kernel::{existing, read};
use crate::cli::error::errno;
use crate::cli::output::bytes;
use crate::config::Config;

/// All of them.
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![root_user(), capabilities()];
    checks.extend(cgroups());
    checks.push(disk(&config.root));
    checks.push(shim(config));
    checks.push(ip_forward());
    checks.push(daemon(&config.socket));
    checks
}

fn root_user() -> Check {
    const NAME: &str = "user";
    let uid = geteuid();
    if uid.is_root() { Check::ok(NAME, "root") } else { Check::missing(NAME, format!("uid {uid}"), "run aril as root") }
}

/// Bits of the effective set, by name: those without which no container can be built…
const NEEDED: &[(u32, &str)] = &[
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (3, "FOWNER"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
    (31, "SETFCAP"),
];
/// … and those some containers ask for, with what happens to them then.
const WANTED: &[(u32, &str, &str)] = &[
    (2, "DAC_READ_SEARCH", "cannot be given to containers"),
    (10, "NET_BIND_SERVICE", "cannot be given to containers"),
    (13, "NET_RAW", "cannot be given to containers"),
    (19, "SYS_PTRACE", "cannot be given to containers"),
    (24, "SYS_RESOURCE", "oom_score_adj cannot be lowered and hard limits not be raised, each with a warning"),
];

fn capabilities() -> Check {
    const NAME: &str = "capabilities";
    let status = read("/proc/self/status").unwrap_or_default();
    let Some(effective) = capability_set(&status, "CapEff") else {
        return Check::warning(NAME, "/proc/self/status tells none", "mount /proc");
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    let needed: Vec<&str> = NEEDED.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| *name).collect();
    if !needed.is_empty() {
        let remedy = "run as root outside of other containers, or give these to the service that starts aril";
        return Check::missing(NAME, format!("without {}", needed.join(", ")), remedy);
    }
    let wanted: Vec<_> = WANTED.iter().filter(|(bit, ..)| !has(*bit)).collect();
    if wanted.is_empty() {
        return Check::ok(NAME, "all that are used");
    }
    let names: Vec<&str> = wanted.iter().map(|(_, name, _)| *name).collect();
    let effects: Vec<String> = wanted.iter().map(|(_, name, effect)| format!("without {name} {effect}")).collect();
    Check::warning(NAME, format!("without {}", names.join(", ")), effects.join("; "))
}

/// "CapEff:\t000001ffffffffff" of /proc/self/status.
fn capability_set(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// How cgroups are mounted, and which controllers can be used.
fn cgroups() -> Vec<Check> {
    const MOUNT: &str = "cgroups";
    let mounts = Mounts::parse(&read("/proc/self/mountinfo").unwrap_or_default());
    // A controller is bound to one of them; with both, either may have it.
    let offered = mounts.v2.as_ref().and_then(|v2| read(&format!("{v2}/cgroup.controllers"))).unwrap_or_default();
    let offered = offered.split_whitespace().map(ToOwned::to_owned);
    let mode = match (mounts.v2.is_some(), mounts.v1.is_empty()) {
        (true, true) => "v2",
        (true, false) => "hybrid: v1 controllers, v2 beside them",
        (false, false) => "v1",
        (false, true) => {
            let remedy = "mount them with `mount -t cgroup2 none /sys/fs/cgroup`";
            return vec![Check::missing(MOUNT, "not mounted", remedy)];
        }
    };
    let controllers: Vec<String> = mounts.v1.iter().cloned().chain(offered).collect();
    let first = if mode == "v2" {
        Check::ok(MOUNT, mode)
    } else {
        Check::note(MOUNT, format!("{mode}; kubelet 1.35 and newer want v2 unless told `failCgroupV1: false`"))
    };
    vec![first, controllers_check(&controllers)]
}

fn controllers_check(there: &[String]) -> Check {
    const NAME: &str = "cgroup controllers";
    let lacks = |wanted: &[&'static str]| -> Vec<&'static str> {
        wanted.iter().copied().filter(|name| !there.iter().any(|t| t == name)).collect()
    };
    let needed = lacks(&["cpu", "memory", "pids"]);
    if !needed.is_empty() {
        let remedy =
            "enable them on the kernel command line (cgroup_enable=memory, systemd.unified_cgroup_hierarchy=1)";
        return Check::missing(NAME, format!("without {}", needed.join(", ")), remedy);
    }
    let wanted = lacks(&["cpuset", "hugetlb"]);
    if wanted.is_empty() {
        return Check::ok(NAME, there.join(", "));
    }
    let found = format!("without {}; limits of that kind are skipped with a warning", wanted.join(", "));
    Check::note(NAME, found)
}

/// The cgroup mounts of /proc/self/mountinfo.
#[derive(Debug, Default, PartialEq)]
struct Mounts {
    v2: Option<String>,
    /// Controllers of v1.
    v1: Vec<String>,
}

impl Mounts {
    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            // Optional fields end with a dash; type, source and the filesystem's options follow.
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let (Some(point), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else { continue };
            match kind {
                "cgroup2" => mounts.v2 = mounts.v2.or_else(|| Some(point.to_owned())),
                "cgroup" => {
                    let options = after.split(' ').nth(2).unwrap_or_default().split(',');
                    mounts.v1.extend(
                        options.filter(|o| !matches!(*o, "rw" | "ro") && !o.contains('=')).map(ToOwned::to_owned),
                    );
                }
                _ => {}
            }
        }
        mounts
    }
}

fn disk(root: &Path) -> Check {
    const NAME: &str = "disk space";
    const LITTLE: u64 = 1 << 30;
    let place = existing(root);
    let free = match statvfs(&place) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(e) => return Check::warning(NAME, format!("{}: {e:?}", place.display()), "choose another --root"),
    };
    let found = format!("{} free for {}", bytes(free), root.display());
    if free >= LITTLE {
        return Check::ok(NAME, found);
    }
    Check::warning(NAME, found, "make room, remove images with `aril image rm`, or choose another --root")
}

fn shim(config: &Config) -> Check {
    const NAME: &str = "shim";
    let executable = std::env::current_exe().ok();
    let path = match config.find_shim(executable.as_deref()) {
        Ok(path) => path,
        Err(e) => return Check::missing(NAME, "not found", e.to_string()),
    };
    match is_static(&path) {
        Ok(true) => Check::ok(NAME, format!("{}, static", path.display())),
        Ok(false) => {
            let found = format!("{} is linked dynamically and takes more memory a pod", path.display());
            Check::warning(NAME, found, "build it with `make shim`")
        }
        Err(e) => {
            let found = format!("{} cannot be read as a program ({})", path.display(), errno(&e));
            Check::missing(NAME, found, "build it with `make shim`")
        }
    }
}

/// Whether the ELF program at `path` names no interpreter (PT_INTERP) to load libraries with. 64-bit, little-endian.
fn is_static(path: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    File::open(path)?.take(1 << 16).read_to_end(&mut head)?;
    let wrong = || io::Error::other("no 64-bit little-endian ELF file");
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(wrong());
    }
    let field = |at: usize, size: usize| -> io::Result<u64> {
        let bytes = head.get(at..at + size).ok_or_else(wrong)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (table, size, count) = (field(0x20, 8)?, field(0x36, 2)?, field(0x38, 2)?);
    for entry in 0..count {
        let at = usize::try_from(table + entry * size).map_err(|_| wrong())?;
        if field(at, 4)? == u64::from(PT_INTERP) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ip_forward() -> Check {
    const NAME: &str = "IP forwarding";
    match read("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Check::ok(NAME, "on"),
        _ if is_read_only() => Check::warning(
            NAME,
            "off, and /proc/sys is read-only here",
            "run `sysctl -w net.ipv4.ip_forward=1` where it can be written: without it pods reach no further than this machine",
        ),
        _ => Check::note(NAME, "off; it is turned on with the first pod on the bridge"),
    }
}

/// Whether the kernel's settings cannot be changed from here, as in most containers.
fn is_read_only() -> bool {
    let flags = statvfs("/proc/sys/net/ipv4").map(|fs| fs.flags());
    flags.is_ok_and(|flags| flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

fn daemon(socket: &Path) -> Check {
    const NAME: &str = "daemon";
    match UnixStream::connect(socket) {
        Ok(_) => Check::ok(NAME, format!("listens on {}", socket.display())),
        Err(e) if fs::symlink_metadata(socket).is_err() || e.kind() == io::ErrorKind::ConnectionRefused => {
            Check::note(NAME, format!("does not run ({} on {})", errno(&e), socket.display()))
        }
        Err(e) => {
            let found = format!("{} on {}", errno(&e), socket.display());
            Check::warning(NAME, found, "look at its log; start it again with `aril serve`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn cgroup_mounts() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
            32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let mounts = Mounts::parse(hybrid);
        assert_eq!(mounts.v2.as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mounts.v1, ["cpu", "cpuacct", "xattr"]);
        assert_eq!(Mounts::parse("nonsense\n\n"), Mounts::default());
    }

    #[test]
    fn controllers() {
        let there = |names: &str| names.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        assert_eq!(controllers_check(&there("cpu memory pids cpuset hugetlb")).verdict, Verdict::Ok);
        assert_eq!(controllers_check(&there("cpu memory pids")).verdict, Verdict::Note);
        let check = controllers_check(&there("cpu pids"));
        assert_eq!((check.verdict, check.found.as_str()), (Verdict::Missing, "without memory"));
    }

    #[test]
    fn capability_sets() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t000001fffeffffff\n";
        let set = capability_set(status, "CapEff").unwrap();
        assert_eq!((set >> 24 & 1, set >> 21 & 1), (0, 1));
        assert_eq!(capability_set(status, "CapBnd"), None);
    }

    #[test]
    fn static_programs_are_told_from_dynamic_ones() {
        // This test itself is linked dynamically on every host it is built for.
        assert!(!is_static(&std::env::current_exe().unwrap()).unwrap() || cfg!(target_feature = "crt-static"));
        assert!(is_static(Path::new("/proc/self/status")).is_err());
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, b"\x7fELF\x02\x01").unwrap();
        assert!(is_static(&short).is_err());
    }
}
