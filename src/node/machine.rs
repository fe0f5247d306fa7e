//! What has to be known of this machine before a pod can be described.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::settings::Settings;
use super::spec::{Defaults, HostDevice};

/// The deepest directory of devices that is looked into.
const MAX_DEPTH: usize = 8;

/// Looks at the machine once.
#[must_use]
pub(super) fn defaults(settings: &Settings) -> Defaults {
    let general = Defaults::default();
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Defaults {
        hostname: hostname.unwrap_or(general.hostname),
        cgroup_parent: settings.cgroup_parent.clone(),
        capabilities: bounding_set(&status).unwrap_or(general.capabilities),
        device_rules: has_v1("devices"),
        apparmor: fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y")),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        swap: swap_is_counted(),
        recursive_read_only: recursive_read_only(),
        shm_size_bytes: settings.shm_size_bytes,
        open_files: settings.open_files,
        unprivileged_ports: general.unprivileged_ports,
    }
}

/// Whether a mount can be made read-only with all below it (mount_setattr(2), Linux 5.12).
#[must_use]
pub fn recursive_read_only() -> bool {
    nix::sys::utsname::uname().ok().and_then(|u| version(u.release().to_str()?)).is_some_and(|v| v >= (5, 12))
}

/// "v1", "hybrid" or "v2", for people.
#[must_use]
pub fn cgroup_version() -> &'static str {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let types: Vec<&str> = mounts.lines().filter_map(|line| filesystem(line).map(|(kind, _, _)| kind)).collect();
    match (types.contains(&"cgroup"), types.contains(&"cgroup2")) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        _ => "v2",
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The line `CapBnd` of a `/proc/…/status`.
fn bounding_set(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Type, mount point and superblock options of a line of mountinfo.
fn filesystem(line: &str) -> Option<(&str, &str, &str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    Some((kind.next()?, place.split(' ').nth(4)?, kind.nth(1).unwrap_or_default()))
}

/// Whether a v1 hierarchy carries this controller.
fn has_v1(controller: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let carries =
        |(kind, _, options): (&str, &str, &str)| kind == "cgroup" && options.split(',').any(|o| o == controller);
    mounts.lines().filter_map(filesystem).any(carries)
}

/// v1 shows the files of swap only if it counts; v2 counts unless the kernel was told not to.
fn swap_is_counted() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_memory = |(kind, _, options): &(&str, &str, &str)| {
        *kind == "cgroup" && options.split(',').any(|option| option == "memory")
    };
    match mounts.lines().filter_map(filesystem).find(is_memory) {
        Some((_, mountpoint, _)) => Path::new(mountpoint).join("memory.memsw.limit_in_bytes").exists(),
        None => !fs::read_to_string("/proc/cmdline").unwrap_or_default().contains("swapaccount=0"),
    }
}

/// The device node `path`, or all below the directory `path`.
///
/// # Errors
/// `ENODEV` for what is neither, else as stat(2).
pub(super) fn devices(path: &str) -> Result<Vec<HostDevice>, Errno> {
    let metadata = fs::metadata(path).map_err(errno)?;
    if let Some(device) = device(path.to_owned(), &metadata) {
        return Ok(vec![device]);
    }
    if !metadata.is_dir() {
        return Err(Errno::ENODEV);
    }
    let mut found = Vec::new();
    let mut todo: Vec<(PathBuf, usize)> = vec![(path.into(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        for entry in fs::read_dir(&dir).map_err(errno)?.flatten() {
            // The entry itself, so no loop of links is followed.
            let Ok(metadata) = entry.metadata() else { continue };
            let Some(name) = entry.path().to_str().map(str::to_owned) else { continue };
            if metadata.is_dir() && depth < MAX_DEPTH {
                todo.push((entry.path(), depth + 1));
            }
            found.extend(device(name, &metadata));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn device(path: String, metadata: &fs::Metadata) -> Option<HostDevice> {
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    let number = metadata.rdev();
    Some(HostDevice {
        path,
        is_block: kind.is_block_device(),
        major: u32::try_from(nix::sys::stat::major(number)).ok()?,
        minor: u32::try_from(nix::sys::stat::minor(number)).ok()?,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

#[allow(clippy::needless_pass_by_value)] // the shape map_err wants
fn errno(e: std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.5-1-amd64"), Some((6, 18)));
        assert!(version("5.9.0") < Some((5, 12)));
        assert_eq!(version("weird"), None);
    }

    #[test]
    fn the_bounding_set_is_read_as_hexadecimal() {
        assert_eq!(bounding_set("Name:\tx\nCapBnd:\t00000000a80425fb\n"), Some(0xa804_25fb));
        assert_eq!(bounding_set("Name:\tx\n"), None);
    }

    #[test]
    fn mountinfo_lines_are_taken_apart() {
        let line = "34 24 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory";
        assert_eq!(filesystem(line), Some(("cgroup", "/sys/fs/cgroup/memory", "rw,memory")));
        assert_eq!(filesystem("garbage"), None);
    }

    #[test]
    fn devices_are_found_and_files_are_none() {
        let null = devices("/dev/null").unwrap();
        assert_eq!((null[0].major, null[0].minor, null[0].is_block), (1, 3, false));
        assert_eq!(devices("/proc/self/status").unwrap_err(), Errno::ENODEV);
        assert_eq!(devices("/nonexistent").unwrap_err(), Errno::ENOENT);
    }
}
