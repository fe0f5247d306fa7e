//! Limits as CRI writes them: what an update leaves alone.

use crate::api::cri::LinuxContainerResources;

/// The limits in force after `update`: a zero or empty field of it leaves the one before.
///
/// Source: CRI v1 `UpdateContainerResourcesRequest`; "0 means not set".
#[must_use]
pub fn merged(before: Option<&LinuxContainerResources>, update: &LinuxContainerResources) -> LinuxContainerResources {
    let mut after = before.cloned().unwrap_or_default();
    let numbers = [
        (&mut after.cpu_period, update.cpu_period),
        (&mut after.cpu_quota, update.cpu_quota),
        (&mut after.cpu_shares, update.cpu_shares),
        (&mut after.memory_limit_in_bytes, update.memory_limit_in_bytes),
        (&mut after.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes),
        (&mut after.oom_score_adj, update.oom_score_adj),
    ];
    for (field, value) in numbers {
        if value != 0 {
            *field = value;
        }
    }
    for (field, value) in [(&mut after.cpuset_cpus, &update.cpuset_cpus), (&mut after.cpuset_mems, &update.cpuset_mems)]
    {
        if !value.is_empty() {
            field.clone_from(value);
        }
    }
    for limit in &update.hugepage_limits {
        match after.hugepage_limits.iter_mut().find(|l| l.page_size == limit.page_size) {
            Some(known) => known.limit = limit.limit,
            None => after.hugepage_limits.push(limit.clone()),
        }
    }
    after.unified.extend(update.unified.clone());
    after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cri::HugepageLimit;

    #[test]
    fn an_update_changes_what_it_names_and_repeating_it_changes_nothing() {
        let before = LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 1000,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 1 }],
            ..Default::default()
        };
        let update = LinuxContainerResources {
            cpu_quota: 2000,
            memory_limit_in_bytes: 7,
            hugepage_limits: vec![
                HugepageLimit { page_size: "2MB".into(), limit: 2 },
                HugepageLimit { page_size: "1GB".into(), limit: 3 },
            ],
            unified: [("memory.high".to_owned(), "9".to_owned())].into(),
            ..Default::default()
        };
        let after = merged(Some(&before), &update);
        assert_eq!((after.cpu_shares, after.cpu_quota, after.memory_limit_in_bytes), (512, 2000, 7));
        assert_eq!(
            (after.cpuset_cpus.as_str(), after.hugepage_limits.len(), after.hugepage_limits[0].limit),
            ("0-1", 2, 2)
        );
        assert_eq!(merged(Some(&after), &update), after);
        assert_eq!(merged(None, &update), update);
    }
}
