//! Devices of the host inside a container.

use std::path::PathBuf;

use nix::errno::Errno;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{Input, SpecError, check};

/// Entries of the request's list.
const MAX_DEVICES: usize = 1024;

/// Parts of the host's `/dev` that are mounts or per-container, so no container gets the host's.
const PRIVATE: [&str; 6] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"];

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where it was found.
    pub path: String,
    /// A block device; else a character device.
    pub is_block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Nodes to make, and who may open what.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub nodes: Vec<LinuxDevice>,
    pub rules: Vec<LinuxDeviceCgroup>,
}

/// All of the host's devices for a privileged container, else those asked for.
pub(super) fn devices(input: &Input<'_>, privileged: bool) -> Result<Devices, SpecError> {
    check::at_most("devices", &input.config.devices, MAX_DEVICES)?;
    let mut devices = Devices { nodes: Vec::new(), rules: vec![everything(privileged)] };
    if privileged {
        let field = "linux.security_context.privileged";
        for device in look_up(input, field, "/dev")? {
            let is_below =
                |place: &str| device.path.strip_prefix(place).is_some_and(|r| r.is_empty() || r.starts_with('/'));
            if !PRIVATE.iter().any(|place| is_below(place)) {
                devices.nodes.push(node(&device.path, &device));
            }
        }
    }
    for i in 0..input.config.devices.len() {
        add(input, i, &mut devices)?;
    }
    Ok(devices)
}

fn add(input: &Input<'_>, i: usize, devices: &mut Devices) -> Result<(), SpecError> {
    let asked = &input.config.devices[i];
    let field = format!("devices[{i}]");
    check::absolute(&format!("{field}.host_path"), &asked.host_path)?;
    let target = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
    let target = check::in_container(&format!("{field}.container_path"), target)?;
    if target == "/" || target == "/dev" {
        let reason = format!("{target:?} is no place for a device");
        return Err(SpecError::invalid(format!("{field}.container_path"), reason));
    }
    let access = if asked.permissions.is_empty() { "rwm" } else { asked.permissions.as_str() };
    if !access.chars().all(|c| "rwm".contains(c)) {
        let reason = format!("{access:?} has other letters than r, w, m");
        return Err(SpecError::invalid(format!("{field}.permissions"), reason));
    }
    let host_path = asked.host_path.trim_end_matches('/');
    for device in look_up(input, &format!("{field}.host_path"), host_path)? {
        // A directory's nodes keep their places below the new directory.
        let below = device.path.strip_prefix(host_path).unwrap_or_default();
        let path = format!("{target}{below}");
        let node = node(&path, &device);
        devices.rules.push(rule(&node, access));
        devices.nodes.retain(|n: &LinuxDevice| n.path() != node.path());
        devices.nodes.push(node);
    }
    Ok(())
}

fn look_up(input: &Input<'_>, field: &str, path: &str) -> Result<Vec<HostDevice>, SpecError> {
    (input.devices)(path).map_err(|errno: Errno| SpecError::Device {
        field: field.to_owned(),
        path: path.to_owned(),
        errno,
    })
}

fn node(path: &str, device: &HostDevice) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(PathBuf::from(path));
    node.set_typ(if device.is_block { LinuxDeviceType::B } else { LinuxDeviceType::C });
    node.set_major(i64::from(device.major));
    node.set_minor(i64::from(device.minor));
    node.set_file_mode(Some(device.mode & 0o7777));
    node.set_uid(Some(device.uid));
    node.set_gid(Some(device.gid));
    node
}

fn rule(node: &LinuxDevice, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(node.typ()));
    rule.set_major(Some(node.major()));
    rule.set_minor(Some(node.minor()));
    rule.set_access(Some(access.to_owned()));
    rule
}

fn everything(allow: bool) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_access(Some("rwm".to_owned()));
    rule
}
