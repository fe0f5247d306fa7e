//! Cgroup: path, limits, device rules; and the device nodes they are about.

use oci_spec::runtime::{
    Linux, LinuxBlockIo, LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources,
};

use super::{CompileError, absolute, text};
use crate::plan;

/// What every container may use: making any node (it can open none but those allowed here), and
/// the nodes of `/dev` that OCI promises. `-1`: all.
const DEFAULT_RULES: [(&str, i64, i64, &str); 11] = [
    ("c", -1, -1, "m"),
    ("b", -1, -1, "m"),
    ("c", 1, 3, "rwm"),    // null
    ("c", 1, 5, "rwm"),    // zero
    ("c", 1, 7, "rwm"),    // full
    ("c", 1, 8, "rwm"),    // random
    ("c", 1, 9, "rwm"),    // urandom
    ("c", 5, 0, "rwm"),    // tty
    ("c", 5, 1, "rwm"),    // console
    ("c", 5, 2, "rwm"),    // ptmx
    ("c", 136, -1, "rwm"), // pts/*
];

/// Character devices made in every container, so no list needs to name them; another device in the
/// place of one is not skipped, for the runtime to refuse.
const DEFAULT_NODES: [(&str, i64, i64); 8] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/console", 5, 1),
    ("/dev/ptmx", 5, 2),
];

pub(super) fn cgroup(linux: &Linux) -> Result<plan::Cgroup, CompileError> {
    let path = linux.cgroups_path().as_ref().ok_or_else(|| CompileError::missing("linux.cgroupsPath"))?;
    let path = text("linux.cgroupsPath", path)?;
    absolute("linux.cgroupsPath", &path)?;
    let none = LinuxResources::default();
    let resources = linux.resources().as_ref().unwrap_or(&none);
    Ok(plan::Cgroup {
        path,
        resources: Some(compile_resources(resources)?),
        devices: device_rules(resources.devices().as_deref().unwrap_or_default())?,
    })
}

/// Limits, for a container to be made or one that runs. Device rules are not among them.
///
/// # Errors
/// [`CompileError`] naming a limit this runtime has no notion of, or a number out of range.
///
/// Source: OCI runtime spec, `config-linux.md`, "Control groups".
pub fn compile_resources(resources: &LinuxResources) -> Result<plan::Resources, CompileError> {
    super::refuse(&[
        ("linux.resources.blockIO", resources.block_io().as_ref().is_some_and(|b| *b != LinuxBlockIo::default())),
        ("linux.resources.network", resources.network().is_some()),
        ("linux.resources.rdma", resources.rdma().as_ref().is_some_and(|m| !m.is_empty())),
    ])?;
    let mut plan = plan::Resources::default();
    if let Some(memory) = resources.memory() {
        set_memory(&mut plan, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        set_cpu(&mut plan, cpu)?;
    }
    plan.pids_limit = resources.pids().map(|p| p.limit());
    for (i, huge) in resources.hugepage_limits().iter().flatten().enumerate() {
        let limit_bytes = u64::try_from(huge.limit())
            .map_err(|_| CompileError::invalid(format!("linux.resources.hugepageLimits[{i}].limit"), "negative"))?;
        plan.hugepages.push(plan::HugepageLimit { page_size: huge.page_size().clone(), limit_bytes });
    }
    plan.unified = resources.unified().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(plan)
}

fn set_memory(plan: &mut plan::Resources, memory: &LinuxMemory) -> Result<(), CompileError> {
    // `kernel` and `kernelTCP` are obsolete: kernels ignore or refuse them, and so does the spec.
    super::refuse(&[
        ("linux.resources.memory.swappiness", memory.swappiness().is_some()),
        ("linux.resources.memory.disableOOMKiller", memory.disable_oom_killer() == Some(true)),
    ])?;
    plan.memory_limit_bytes = memory.limit();
    plan.memory_swap_bytes = memory.swap();
    plan.memory_reservation_bytes = memory.reservation();
    Ok(())
}

fn set_cpu(plan: &mut plan::Resources, cpu: &LinuxCpu) -> Result<(), CompileError> {
    super::refuse(&[
        ("linux.resources.cpu.idle", cpu.idle().is_some_and(|i| i != 0)),
        ("linux.resources.cpu.realtimeRuntime", cpu.realtime_runtime().is_some_and(|r| r != 0)),
        ("linux.resources.cpu.realtimePeriod", cpu.realtime_period().is_some_and(|p| p != 0)),
    ])?;
    plan.cpu_shares = signed("linux.resources.cpu.shares", cpu.shares())?;
    plan.cpu_quota_us = cpu.quota();
    plan.cpu_period_us = signed("linux.resources.cpu.period", cpu.period())?;
    plan.cpu_burst_us = signed("linux.resources.cpu.burst", cpu.burst())?;
    plan.cpuset_cpus = cpu.cpus().clone().filter(|s| !s.is_empty());
    plan.cpuset_mems = cpu.mems().clone().filter(|s| !s.is_empty());
    Ok(())
}

fn signed(field: &str, value: Option<u64>) -> Result<Option<i64>, CompileError> {
    value
        .map(|v| i64::try_from(v).map_err(|_| CompileError::invalid(field, format!("{v} is out of range"))))
        .transpose()
}

/// The spec's rules in their order, then what every container may use. A spec that allows all
/// devices needs no more.
fn device_rules(rules: &[LinuxDeviceCgroup]) -> Result<Vec<plan::DeviceRule>, CompileError> {
    let mut list = Vec::with_capacity(rules.len() + DEFAULT_RULES.len());
    for (i, rule) in rules.iter().enumerate() {
        let access = rule.access().clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "rwm".to_owned());
        if !access.chars().all(|c| "rwm".contains(c)) {
            let field = format!("linux.resources.devices[{i}].access");
            return Err(CompileError::invalid(field, format!("{access:?} has other letters than r, w, m")));
        }
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => "a",
            LinuxDeviceType::B => "b",
            LinuxDeviceType::C | LinuxDeviceType::U => "c",
            // No cgroup controls FIFOs.
            LinuxDeviceType::P => {
                let field = format!("linux.resources.devices[{i}].type");
                return Err(CompileError::invalid(field, "a FIFO is no device"));
            }
        };
        list.push(plan::DeviceRule {
            allow: rule.allow(),
            kind: kind.to_owned(),
            major: rule.major().unwrap_or(-1),
            minor: rule.minor().unwrap_or(-1),
            access,
        });
    }
    let last_general = list.iter().rev().find(|r| r.kind == "a" && r.major == -1 && r.minor == -1);
    if last_general.is_none_or(|r| !r.allow) {
        list.extend(DEFAULT_RULES.map(|(kind, major, minor, access)| plan::DeviceRule {
            allow: true,
            kind: kind.to_owned(),
            major,
            minor,
            access: access.to_owned(),
        }));
    }
    Ok(list)
}

/// The nodes to make beside the default ones.
pub(super) fn devices(linux: &Linux) -> Result<Vec<plan::Device>, CompileError> {
    let mut list = Vec::new();
    for (i, device) in linux.devices().iter().flatten().enumerate() {
        let field = format!("linux.devices[{i}]");
        let path = text(&field, device.path())?;
        absolute(&field, &path)?;
        let is_character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        if is_character && DEFAULT_NODES.contains(&(path.as_str(), device.major(), device.minor())) {
            continue;
        }
        list.push(compile_device(&field, path, device)?);
    }
    Ok(list)
}

fn compile_device(field: &str, path: String, device: &LinuxDevice) -> Result<plan::Device, CompileError> {
    if device.typ() == LinuxDeviceType::A {
        return Err(CompileError::invalid(format!("{field}.type"), "\"a\" is no type of a node"));
    }
    let number = |name: &str, n: i64| {
        u32::try_from(n).map_err(|_| CompileError::invalid(format!("{field}.{name}"), format!("{n} is out of range")))
    };
    Ok(plan::Device {
        path,
        kind: device.typ().as_str().to_owned(),
        major: number("major", device.major())?,
        minor: number("minor", device.minor())?,
        // Bits beside permissions (a whole st_mode) are what some writers put here.
        file_mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
