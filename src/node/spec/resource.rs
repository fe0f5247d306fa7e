//! Limits: CRI's numbers, in which 0 means "not set", to the OCI spec's.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{Defaults, SpecError, check};
use crate::api::cri;
use crate::compile::compile_resources;
use crate::plan;

/// The kernel's bounds of a scheduling period, in microseconds.
const PERIOD_US: std::ops::RangeInclusive<i64> = 1000..=1_000_000;
/// The kernel's least quota, in microseconds.
const MIN_QUOTA_US: i64 = 1000;
/// Entries of the cgroup v2 map.
const MAX_UNIFIED: usize = 256;

/// Limits for a container that exists already, and its OOM score; what is not set stays as it is.
///
/// # Errors
/// [`SpecError::Invalid`] naming the field below `linux`.
///
/// Source: CRI v1 `UpdateContainerResourcesRequest.linux`.
pub fn update(
    resources: &cri::LinuxContainerResources,
    defaults: &Defaults,
) -> Result<(plan::Resources, Option<i32>), SpecError> {
    let spec = resources_spec("linux", resources, defaults)?;
    let score = Some(oom_score_adj("linux", resources)?).filter(|score| *score != 0);
    Ok((compile_resources(&spec).map_err(|e| SpecError::invalid("linux", e.to_string()))?, score))
}

pub(super) fn resources_spec(
    field: &str,
    asked: &cri::LinuxContainerResources,
    defaults: &Defaults,
) -> Result<LinuxResources, SpecError> {
    let mut spec = LinuxResources::default();
    spec.set_cpu(cpu(field, asked)?);
    spec.set_memory(memory(field, asked, defaults)?);
    spec.set_hugepage_limits(hugepages(field, asked)?);
    if !asked.unified.is_empty() {
        spec.set_unified(Some(unified(field, asked)?));
    }
    Ok(spec)
}

/// The OOM score of a container; 0 is a score like any other.
pub(super) fn oom_score_adj(field: &str, asked: &cri::LinuxContainerResources) -> Result<i32, SpecError> {
    match i32::try_from(asked.oom_score_adj) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(score),
        _ => {
            let reason = format!("{} is not from -1000 to 1000", asked.oom_score_adj);
            Err(SpecError::invalid(format!("{field}.oom_score_adj"), reason))
        }
    }
}

fn cpu(field: &str, asked: &cri::LinuxContainerResources) -> Result<Option<LinuxCpu>, SpecError> {
    let mut cpu = LinuxCpu::default();
    if asked.cpu_shares != 0 {
        let shares = u64::try_from(asked.cpu_shares)
            .map_err(|_| SpecError::invalid(format!("{field}.cpu_shares"), "is negative"))?;
        cpu.set_shares(Some(shares));
    }
    if asked.cpu_period != 0 {
        let period = u64::try_from(asked.cpu_period).ok().filter(|_| PERIOD_US.contains(&asked.cpu_period));
        let reason = format!("{} is not from {} to {} µs", asked.cpu_period, PERIOD_US.start(), PERIOD_US.end());
        let period = period.ok_or_else(|| SpecError::invalid(format!("{field}.cpu_period"), reason))?;
        cpu.set_period(Some(period));
    }
    if asked.cpu_quota != 0 {
        if asked.cpu_quota != -1 && asked.cpu_quota < MIN_QUOTA_US {
            let reason = format!("{} is neither -1 (no limit) nor at least {MIN_QUOTA_US} µs", asked.cpu_quota);
            return Err(SpecError::invalid(format!("{field}.cpu_quota"), reason));
        }
        cpu.set_quota(Some(asked.cpu_quota));
    }
    cpu.set_cpus(number_list(&format!("{field}.cpuset_cpus"), &asked.cpuset_cpus)?);
    cpu.set_mems(number_list(&format!("{field}.cpuset_mems"), &asked.cpuset_mems)?);
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

/// `0-3,7`: the kernel's notation of sets.
fn number_list(field: &str, text: &str) -> Result<Option<String>, SpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_number = |s: &str| (1..=5).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
    let is_part = |part: &str| match part.split_once('-') {
        Some((from, to)) => is_number(from) && is_number(to),
        None => is_number(part),
    };
    if text.len() > check::MAX_PATH || !text.split(',').all(is_part) {
        let shown: String = text.chars().take(60).collect();
        return Err(SpecError::invalid(field, format!("{shown:?} is not a list like \"0-3,7\"")));
    }
    Ok(Some(text.to_owned()))
}

fn memory(
    field: &str,
    asked: &cri::LinuxContainerResources,
    defaults: &Defaults,
) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = asked.memory_limit_in_bytes;
    let swap = asked.memory_swap_limit_in_bytes;
    for (name, value) in [("memory_limit_in_bytes", limit), ("memory_swap_limit_in_bytes", swap)] {
        if value < -1 {
            let reason = format!("{value} is neither a size nor -1 (no limit)");
            return Err(SpecError::invalid(format!("{field}.{name}"), reason));
        }
    }
    if swap > 0 && (limit == -1 || limit > swap) {
        let reason = format!("{swap} is memory and swap together, so it cannot be below the memory limit {limit}");
        return Err(SpecError::invalid(format!("{field}.memory_swap_limit_in_bytes"), reason));
    }
    let mut memory = LinuxMemory::default();
    if limit != 0 {
        memory.set_limit(Some(limit));
    }
    if defaults.swap {
        // A memory limit alone is meant as the whole: without this, the rest would go to swap.
        let total = if swap == 0 { limit } else { swap };
        memory.set_swap(Some(total).filter(|t| *t != 0));
    }
    Ok(Some(memory).filter(|m| *m != LinuxMemory::default()))
}

fn hugepages(field: &str, asked: &cri::LinuxContainerResources) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    let mut list: Vec<LinuxHugepageLimit> = Vec::new();
    for (i, entry) in asked.hugepage_limits.iter().enumerate() {
        let size = entry.page_size.as_str();
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
        let is_size =
            (1..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        if !is_size || list.iter().any(|l| l.page_size() == size) {
            let shown: String = size.chars().take(40).collect();
            let reason = format!("{shown:?} is not a size like \"2MB\", or given twice");
            return Err(SpecError::invalid(format!("{field}.hugepage_limits[{i}].page_size"), reason));
        }
        let mut limit = LinuxHugepageLimit::default();
        limit.set_page_size(size.to_owned());
        // Above what any machine has there is no difference.
        limit.set_limit(i64::try_from(entry.limit).unwrap_or(i64::MAX));
        list.push(limit);
    }
    Ok(Some(list).filter(|l| !l.is_empty()))
}

/// Values for files of cgroup v2. Limits only: `cgroup.*` files would change the tree itself.
fn unified(
    field: &str,
    asked: &cri::LinuxContainerResources,
) -> Result<std::collections::HashMap<String, String>, SpecError> {
    if asked.unified.len() > MAX_UNIFIED {
        return Err(SpecError::invalid(format!("{field}.unified"), format!("has more than {MAX_UNIFIED} entries")));
    }
    for (name, value) in &asked.unified {
        let shown: String = name.chars().take(60).collect();
        let entry = format!("{field}.unified[{shown:?}]");
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_');
        let is_file = name.split('.').all(|part| !part.is_empty()) && name.contains('.') && name.chars().all(is_plain);
        if !is_file || name.len() > 255 || name.starts_with("cgroup.") {
            return Err(SpecError::invalid(entry, "is not the name of a controller's file, like \"memory.high\""));
        }
        check::plain(&entry, value, 4096)?;
    }
    Ok(asked.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}
