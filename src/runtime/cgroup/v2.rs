//! What v2 asks for: controllers that are enabled from above, and limits in its own units.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::detect::Hierarchy;
use super::error::{CgroupError, clipped};
use super::file;
use super::limits::{Journal, given, max_or, text};
use super::path::CgroupPath;
use crate::plan;

/// The controllers whose limits and counters we use.
pub(super) const KNOWN: &[&str] = &["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Enables controllers for `path` in each cgroup above it, the root first, where they are not yet.
///
/// Those the hierarchy does not carry are passed over.
///
/// # Errors
/// `EBUSY` names the cgroup above that has processes of its own: the kernel allows controllers below a cgroup only
/// if it has none. `ENOENT` if a cgroup above does not hand the controller down.
pub(super) fn enable_above(h: &Hierarchy, path: &CgroupPath, wanted: &[&str]) -> Result<(), CgroupError> {
    let wanted: Vec<&str> = wanted.iter().copied().filter(|w| h.controllers().iter().any(|c| c == w)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    enable(h, "", &wanted)?;
    path.ancestors().try_for_each(|ancestor| enable(h, ancestor, &wanted))
}

fn enable(h: &Hierarchy, relative: &str, wanted: &[&str]) -> Result<(), CgroupError> {
    let fail = |errno| CgroupError::Kernel {
        step: "enable controllers below cgroup",
        object: format!("{} ({})", h.object(relative), wanted.join(" ")),
        errno,
        hint: match errno {
            Errno::EBUSY => "; it has processes of its own, which v2 forbids: use a cgroup without as parent",
            Errno::ENOENT => "; a cgroup above does not hand them down",
            Errno::EOPNOTSUPP => "; it is a threaded cgroup",
            _ => "",
        },
    };
    let dir = if relative.is_empty() { None } else { Some(file::open_dir(h.root(), relative).map_err(fail)?) };
    let dir = dir.as_ref().map_or_else(|| h.root(), std::os::fd::AsFd::as_fd);
    let enabled = file::read(dir, "cgroup.subtree_control").map_err(fail)?;
    let missing: Vec<String> =
        wanted.iter().filter(|w| !enabled.split_whitespace().any(|e| e == **w)).map(|w| format!("+{w}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    file::write(dir, "cgroup.subtree_control", &missing.join(" ")).map_err(fail)
}

/// Weight of v1 shares: 2, 1024 and 262144 shares become 1, 100 and 10000, and what is between lies on a parabola
/// through them in logarithmic scale, as the other OCI runtimes have it since 2025. Others are clamped.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    // exponent(l) = (l² + 125·l)/612 − 7/34 with l = log2(shares) is 0, 2 and 4 there.
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    // Exact: below 2^18.
    #[allow(clippy::cast_precision_loss)]
    let l = (shares as f64).log2();
    let weight = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil();
    // In 1..=10000 by the above.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let weight = weight as u64;
    weight.clamp(1, 10_000)
}

/// cpu.weight, cpu.max and cpu.max.burst.
pub(super) fn cpu(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    if let Some(shares) = given(r.cpu_shares) {
        j.set(i, "cpu.weight", &cpu_weight(shares.unsigned_abs()).to_string())?;
    }
    let (quota, period) = (given(r.cpu_quota_us), given(r.cpu_period_us));
    let mut burst = given(r.cpu_burst_us).map(|b| b.to_string());
    // As on v1: the burst is never above the quota.
    if let Some(value) = &burst {
        match j.set(i, "cpu.max.burst", value) {
            Err(e) if e.errno() == Some(Errno::EINVAL) && quota.is_some() => {}
            done => {
                done?;
                burst = None;
            }
        }
    }
    if quota.is_some() || period.is_some() {
        let now = j.read(i, "cpu.max")?;
        let (quota_now, period_now) = now.split_once(' ').unwrap_or((&now, "100000"));
        let quota = quota.map_or_else(|| quota_now.to_owned(), max_or);
        let period = period.map_or_else(|| period_now.to_owned(), |p| p.to_string());
        j.set(i, "cpu.max", &format!("{quota} {period}"))?;
    }
    burst.map_or(Ok(()), |value| j.set(i, "cpu.max.burst", &value))
}

/// cpuset.cpus and cpuset.mems.
pub(super) fn cpuset(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    for (name, list) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
        if let Some(list) = text(list.as_ref()) {
            j.set(i, name, list)?;
        }
    }
    Ok(())
}

/// memory.max, memory.swap.max and memory.low.
pub(super) fn memory(j: &mut Journal<'_>, i: usize, r: &plan::Resources) -> Result<(), CgroupError> {
    let limit = given(r.memory_limit_bytes);
    // Taken before memory.max changes: swap alone is relative to the limit that stays.
    let swap = swap_max(j, i, limit, given(r.memory_swap_bytes))?;
    if let Some(limit) = limit {
        if let Ok(bytes) = u64::try_from(limit) {
            make_room(j, i, bytes)?;
        }
        j.set(i, "memory.max", &max_or(limit))?;
    }
    if let Some(swap) = swap {
        match j.set(i, "memory.swap.max", &swap) {
            Err(e) if e.errno() == Some(Errno::ENOENT) => {
                if swap != "max" && swap != "0" {
                    j.warn("the kernel does not count swap: the swap limit is not applied".to_owned());
                }
            }
            done => done?,
        }
    }
    given(r.memory_reservation_bytes).map_or(Ok(()), |low| j.set(i, "memory.low", &max_or(low)))
}

/// What v1's limit of memory plus swap means for swap alone.
fn swap_max(j: &Journal<'_>, i: usize, limit: Option<i64>, both: Option<i64>) -> Result<Option<String>, CgroupError> {
    let both = match (both, limit) {
        (Some(-1), _) | (None, Some(-1)) => return Ok(Some("max".to_owned())),
        (None, _) => return Ok(None),
        (Some(both), _) => both,
    };
    let memory = match limit {
        Some(limit) => Some(limit),
        None => j.read(i, "memory.max")?.parse().ok(),
    };
    let refuse =
        |reason: &str| Err(CgroupError::Value { what: format!("memory_swap_bytes {both}"), reason: reason.to_owned() });
    match memory {
        None | Some(-1) => refuse("it needs a memory limit, of which swap is the rest"),
        Some(memory) if memory > both => refuse("it is memory plus swap and below the memory limit"),
        Some(memory) => Ok(Some((both - memory).to_string())),
    }
}

/// Refuses a limit below what is in use: v2 would take it and kill processes until it fits. Caches are given back
/// first where the kernel has memory.reclaim (Linux 5.19).
fn make_room(j: &Journal<'_>, i: usize, limit_bytes: u64) -> Result<(), CgroupError> {
    let usage = || -> Result<u64, CgroupError> { Ok(j.read(i, "memory.current")?.parse().unwrap_or(0)) };
    let before = usage()?;
    if before <= limit_bytes {
        return Ok(());
    }
    // EAGAIN: not all of it could be reclaimed, which the next line sees for itself.
    file::write(j.dir(i)?, "memory.reclaim", &(before - limit_bytes).to_string()).ok();
    let usage_bytes = usage()?;
    if usage_bytes <= limit_bytes {
        return Ok(());
    }
    Err(CgroupError::BelowUsage { path: j.cgroup().path().to_owned(), limit_bytes, usage_bytes })
}

/// The files of the map, as they are given.
pub(super) fn unified(j: &mut Journal<'_>, map: &BTreeMap<String, String>) -> Result<(), CgroupError> {
    let refuse = |name: &str, reason: &str| {
        Err(CgroupError::Value { what: format!("unified file {:?}", clipped(name)), reason: reason.to_owned() })
    };
    let Some(i) = j.cgroup().hierarchies.unified() else {
        return refuse(map.keys().next().map_or("", String::as_str), "this host has no cgroup v2 hierarchy");
    };
    for (name, value) in map {
        if !is_limit_file(name) {
            return refuse(name, "it is no v2 file of a controller, like memory.high");
        }
        if value.len() > 4096 || value.chars().any(char::is_control) {
            return refuse(name, "its value is longer than 4096 bytes or has a control character");
        }
    }
    for (name, value) in map {
        let controller = name.split('.').next().unwrap_or("");
        if controller != "cgroup" {
            if !j.cgroup().hierarchies.get(i).controllers().iter().any(|c| c == controller) {
                return refuse(name, "the cgroup v2 hierarchy of this host does not carry its controller");
            }
            j.require_beside_v1(i, controller)?;
            let enabled = j.read(i, "cgroup.controllers")?;
            if !enabled.split_whitespace().any(|e| e == controller) {
                return refuse(name, "its controller is not enabled for the cgroup");
            }
        }
        j.set(i, name, value)?;
    }
    Ok(())
}

/// Whether a name can be a controller's file: never one of the core files, which move, kill and freeze, nor a path.
fn is_limit_file(name: &str) -> bool {
    if matches!(name, "cgroup.max.depth" | "cgroup.max.descendants") {
        return true;
    }
    let Some((controller, rest)) = name.split_once('.') else { return false };
    name.len() <= 128
        && controller != "cgroup"
        && !controller.is_empty()
        && controller.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        && rest
            .split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_three_fixed_points_are_met() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (1, 1), (u64::MAX, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        // A tenth and ten times the default.
        assert_eq!((cpu_weight(102), cpu_weight(10_240)), (17, 639));
    }

    proptest! {
        #[test]
        fn weights_grow_with_shares_and_stay_in_range(a in 0u64..300_000, b in 0u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(cpu_weight(low) <= cpu_weight(high));
            prop_assert!((1..=10_000).contains(&cpu_weight(a)));
        }

        #[test]
        fn a_limit_file_is_one_component_of_a_controller(name in "[a-zA-Z0-9_./\n-]{0,30}") {
            if is_limit_file(&name) {
                prop_assert!(!name.contains('/') && !name.contains("..") && !name.contains('\n'));
                prop_assert!(!name.starts_with("cgroup.") || name.starts_with("cgroup.max."));
            }
        }
    }
}
