//! What is mounted in a container: the kernel's filesystems, the pod's files, the request's volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Mount;

use super::namespace::Pod;
use super::{Defaults, Input, SpecError, check};
use crate::api::cri::{self, MountPropagation as Propagation};
use crate::plan;

/// Volumes of one container.
const MAX_MOUNTS: usize = 4096;

/// Files below /proc that a volume may cover: what shows a container its own limits instead of the
/// machine's. Anything else there would fake the kernel to whoever trusts it.
const COVERABLE_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Mounts in their order, and which of them are volumes.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub list: Vec<Mount>,
    /// Positions in `list`.
    pub volumes: Vec<usize>,
    /// Those that are images, by their positions in `list`.
    pub images: BTreeMap<usize, plan::ImageTree>,
    /// Whether `/dev/shm` is the pod's.
    pub sandbox_shm: bool,
}

/// How the container is run, as far as its mounts depend on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub pod: Pod,
    pub privileged: bool,
    pub readonly_rootfs: bool,
}

struct Entry {
    mount: Mount,
    target: String,
    is_volume: bool,
    image: Option<plan::ImageTree>,
}

/// The whole list. A volume replaces what would be mounted at its place, and of the kernel's
/// filesystems also what would be mounted below it; then the shallower comes first, so that nothing
/// is covered by its own parent.
pub(super) fn mounts(input: &Input<'_>, manner: Manner) -> Result<Mounts, SpecError> {
    let config = input.config;
    check::at_most("mounts", &config.mounts, MAX_MOUNTS)?;
    let mut volumes = Vec::with_capacity(config.mounts.len());
    for (i, asked) in config.mounts.iter().enumerate() {
        volumes.push(match asked.image {
            Some(_) => image_volume(i, asked, input)?,
            None => volume(i, asked, input.defaults)?,
        });
    }
    let is_covered = |path: &str| volumes.iter().any(|v| v.target == path);
    let is_below_volume =
        |path: &str| volumes.iter().any(|v| path.strip_prefix(&v.target).is_some_and(|rest| rest.starts_with('/')));
    let mut entries: Vec<Entry> = kernel_mounts(manner.privileged)
        .into_iter()
        .filter(|e| !is_covered(&e.target) && !is_below_volume(&e.target))
        .collect();

    let files: Vec<Entry> =
        pod_files(input, manner.readonly_rootfs).into_iter().filter(|e| !is_covered(&e.target)).collect();
    let has_own_shm = !is_covered("/dev/shm");
    let mut rest = files;
    if has_own_shm {
        rest.push(shm(manner.pod.host_ipc, input.defaults));
    }
    rest.extend(volumes);
    // Stable: of two at one place the later one is on top, as given.
    rest.sort_by_key(|e| e.target.matches('/').count());
    entries.extend(rest);

    let volumes = entries.iter().enumerate().filter(|(_, e)| e.is_volume).map(|(i, _)| i).collect();
    let images = entries.iter_mut().enumerate().filter_map(|(i, e)| Some((i, e.image.take()?))).collect();
    Ok(Mounts {
        images,
        list: entries.into_iter().map(|e| e.mount).collect(),
        volumes,
        sandbox_shm: has_own_shm && !manner.pod.host_ipc,
    })
}

fn entry(target: &str, fstype: &str, source: &str, options: &[&str]) -> Entry {
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from(target));
    mount.set_typ(Some(fstype.to_owned()));
    mount.set_source(Some(PathBuf::from(source)));
    mount.set_options(Some(options.iter().map(|&o| o.to_owned()).collect()));
    Entry { mount, target: target.to_owned(), is_volume: false, image: None }
}

/// What every Linux program expects. Only a privileged container may write to the kernel's settings.
fn kernel_mounts(privileged: bool) -> Vec<Entry> {
    let mut sys = vec!["nosuid", "noexec", "nodev"];
    let mut cgroup = vec!["nosuid", "noexec", "nodev", "relatime"];
    if !privileged {
        sys.push("ro");
        cgroup.push("ro");
    }
    vec![
        entry("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        entry("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        entry(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        entry("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        entry("/sys", "sysfs", "sysfs", &sys),
        entry("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
    ]
}

/// The files that name the pod and its resolvers.
fn pod_files(input: &Input<'_>, readonly: bool) -> Vec<Entry> {
    let paths = input.paths;
    let mut options = vec!["rbind", "rprivate"];
    if readonly {
        options.push("ro");
    }
    [("/etc/hosts", &paths.hosts), ("/etc/hostname", &paths.hostname), ("/etc/resolv.conf", &paths.resolv_conf)]
        .into_iter()
        .filter(|(_, source)| !source.is_empty())
        .map(|(target, source)| entry(target, "bind", source, &options))
        .collect()
}

/// Shared memory goes with the IPC namespace: one tmpfs for the pod, or the host's.
fn shm(host_ipc: bool, defaults: &Defaults) -> Entry {
    if host_ipc {
        entry("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate"])
    } else {
        let size = format!("size={}k", defaults.shm_size_bytes / 1024);
        entry("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size])
    }
}

fn volume(i: usize, asked: &cri::Mount, defaults: &Defaults) -> Result<Entry, SpecError> {
    let field = format!("mounts[{i}]");
    if !asked.image_sub_path.is_empty() {
        return Err(SpecError::invalid(format!("{field}.image_sub_path"), "set without image"));
    }
    refuse_unimplemented(&field, asked, defaults)?;
    check::absolute(&format!("{field}.host_path"), &asked.host_path)?;
    let target = check::in_container(&format!("{field}.container_path"), &asked.container_path)?;
    check_target(&field, &target, &asked.host_path)?;
    let propagation = check::known(&format!("{field}.propagation"), asked.propagation)?;
    let mut options = vec!["rbind"];
    options.push(match propagation {
        Propagation::PropagationPrivate => "rprivate",
        Propagation::PropagationHostToContainer => "rslave",
        Propagation::PropagationBidirectional => "rshared",
    });
    if asked.recursive_read_only {
        check_recursive(&format!("{field}.recursive_read_only"), asked, propagation, defaults)?;
        options.push("rro");
    } else if asked.readonly {
        options.push("ro");
    }
    Ok(Entry { is_volume: true, ..entry(&target, "bind", &asked.host_path, &options) })
}

/// What no volume can have yet.
fn refuse_unimplemented(field: &str, asked: &cri::Mount, defaults: &Defaults) -> Result<(), SpecError> {
    for (name, list) in [("uidMappings", &asked.uid_mappings), ("gidMappings", &asked.gid_mappings)] {
        if !list.is_empty() {
            return Err(SpecError::unimplemented(format!("{field}.{name}"), "id-mapped mounts are"));
        }
    }
    if asked.selinux_relabel && defaults.selinux {
        return Err(SpecError::unimplemented(format!("{field}.selinux_relabel"), "SELinux labels are"));
    }
    Ok(())
}

/// The files of another image. They belong to all who use it, so nobody gets them writable; nor do its device nodes
/// and setuid programs count, which the pod did not ask for.
fn image_volume(i: usize, asked: &cri::Mount, input: &Input<'_>) -> Result<Entry, SpecError> {
    let field = format!("mounts[{i}]");
    let refuse = |name: &str, reason: &str| {
        Err(SpecError::ImageVolume { field: format!("{field}.{name}"), reason: reason.to_owned() })
    };
    refuse_unimplemented(&field, asked, input.defaults)?;
    if !asked.host_path.is_empty() {
        return refuse("host_path", "set beside image; a volume is one or the other");
    }
    if !asked.readonly {
        return refuse("readonly", "an image can only be mounted read-only");
    }
    let propagation = check::known(&format!("{field}.propagation"), asked.propagation)?;
    if propagation == Propagation::PropagationBidirectional {
        return refuse("propagation", "nothing mounted in an image volume can be seen outside");
    }
    if asked.recursive_read_only {
        check_recursive(&format!("{field}.recursive_read_only"), asked, propagation, input.defaults)?;
    }
    check::plain(&format!("{field}.image_sub_path"), &asked.image_sub_path, check::MAX_PATH)?;
    if asked.image_sub_path.starts_with('/') || asked.image_sub_path.split('/').any(|part| part == "..") {
        return refuse("image_sub_path", "it must be a path inside the image, relative and without \"..\"");
    }
    let Some(image) = input.image_volumes.iter().find(|image| image.mount == i) else {
        return refuse("image", "the image is not on this node");
    };
    let target = check::in_container(&format!("{field}.container_path"), &asked.container_path)?;
    check_target(&field, &target, "")?;
    let tree = plan::ImageTree { lower: image.layers.clone(), sub_path: asked.image_sub_path.clone() };
    let entry = entry(&target, "overlay", image.id.as_str(), &["ro", "nosuid", "nodev"]);
    Ok(Entry { image: Some(tree), ..entry })
}

fn check_target(field: &str, target: &str, host_path: &str) -> Result<(), SpecError> {
    let field = format!("{field}.container_path");
    if target == "/" {
        return Err(SpecError::invalid(field, "a volume cannot replace the container's root"));
    }
    // The host's own procfs is a kernel's as well.
    let is_proc = target == "/proc" && host_path.trim_end_matches('/') == "/proc";
    let is_in_proc = target == "/proc" || target.starts_with("/proc/");
    if is_in_proc && !is_proc && !COVERABLE_PROC.contains(&target) {
        return Err(SpecError::invalid(field, format!("{target:?} is the kernel's; nothing can be mounted there")));
    }
    Ok(())
}

fn check_recursive(
    field: &str,
    asked: &cri::Mount,
    propagation: Propagation,
    defaults: &Defaults,
) -> Result<(), SpecError> {
    let reason = if !asked.readonly {
        "needs readonly as well"
    } else if propagation != Propagation::PropagationPrivate {
        "needs PROPAGATION_PRIVATE, since mounts that come later would be writable"
    } else if !defaults.recursive_read_only {
        "needs Linux 5.12 or later"
    } else {
        return Ok(());
    };
    Err(SpecError::RecursiveReadOnly { field: field.to_owned(), reason: reason.to_owned() })
}
