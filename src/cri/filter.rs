//! Which objects a list is about: all given criteria must hold.

use std::collections::BTreeMap;

use super::status::{container_state, sandbox_state};
use crate::api::cri;
use crate::node::{ContainerRecord, SandboxRecord};

/// Whether a sandbox is wanted. An id may be the beginning of one.
pub(super) fn sandbox(filter: Option<&cri::PodSandboxFilter>, record: &SandboxRecord) -> bool {
    filter.is_none_or(|f| {
        record.id.as_str().starts_with(&f.id)
            && f.state.as_ref().is_none_or(|s| s.state == i32::from(sandbox_state(record)))
            && has_labels(&record.config.labels, &f.label_selector)
    })
}

/// Whether a container is wanted. Ids may be the beginnings of some.
pub(super) fn container(filter: Option<&cri::ContainerFilter>, record: &ContainerRecord) -> bool {
    filter.is_none_or(|f| {
        record.id.as_str().starts_with(&f.id)
            && record.sandbox.as_str().starts_with(&f.pod_sandbox_id)
            && f.state.as_ref().is_none_or(|s| s.state == i32::from(container_state(record)))
            && has_labels(&record.config.labels, &f.label_selector)
    })
}

/// Whether a sandbox's numbers are wanted. An id may be the beginning of one.
pub(super) fn sandbox_stats(filter: Option<&cri::PodSandboxStatsFilter>, record: &SandboxRecord) -> bool {
    filter.is_none_or(|f| record.id.as_str().starts_with(&f.id) && has_labels(&record.config.labels, &f.label_selector))
}

/// Whether a container's numbers are wanted. Ids may be the beginnings of some.
pub(super) fn container_stats(filter: Option<&cri::ContainerStatsFilter>, record: &ContainerRecord) -> bool {
    filter.is_none_or(|f| {
        record.id.as_str().starts_with(&f.id)
            && record.sandbox.as_str().starts_with(&f.pod_sandbox_id)
            && has_labels(&record.config.labels, &f.label_selector)
    })
}

fn has_labels(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{container_record, sandbox_record};
    use super::*;

    #[test]
    fn no_filter_and_an_empty_one_want_everything() {
        assert!(sandbox(None, &sandbox_record()) && container(None, &container_record()));
        assert!(sandbox(Some(&Default::default()), &sandbox_record()));
        assert!(container(Some(&Default::default()), &container_record()));
    }

    #[test]
    fn all_criteria_must_hold() {
        let record = container_record();
        let right = cri::ContainerFilter {
            id: record.id.as_str()[..5].to_owned(),
            pod_sandbox_id: record.sandbox.to_string(),
            state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerCreated.into() }),
            label_selector: [("app".to_owned(), "web".to_owned())].into(),
        };
        assert!(container(Some(&right), &record));
        let other = |change: fn(&mut cri::ContainerFilter)| {
            let mut filter = right.clone();
            change(&mut filter);
            filter
        };
        for wrong in [
            other(|f| f.id = "zz".into()),
            other(|f| f.pod_sandbox_id = "zz".into()),
            other(|f| f.state = Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerExited.into() })),
            other(|f| drop(f.label_selector.insert("tier".into(), "db".into()))),
            other(|f| drop(f.label_selector.insert("app".into(), "db".into()))),
        ] {
            assert!(!container(Some(&wrong), &record), "{wrong:?}");
        }
    }

    #[test]
    fn numbers_are_filtered_like_lists() {
        let record = container_record();
        let filter = |id: &str, sandbox: &str, app: &str| cri::ContainerStatsFilter {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            label_selector: [("app".to_owned(), app.to_owned())].into(),
        };
        assert!(container_stats(None, &record) && container_stats(Some(&Default::default()), &record));
        assert!(container_stats(Some(&filter(&record.id.as_str()[..5], record.sandbox.as_str(), "web")), &record));
        for wrong in [filter("zz", "", "web"), filter("", "zz", "web"), filter("", "", "db")] {
            assert!(!container_stats(Some(&wrong), &record), "{wrong:?}");
        }
        let record = sandbox_record();
        let filter = |id: &str, app: &str| cri::PodSandboxStatsFilter {
            id: id.to_owned(),
            label_selector: [("app".to_owned(), app.to_owned())].into(),
        };
        assert!(sandbox_stats(None, &record) && sandbox_stats(Some(&filter(&record.id.as_str()[..5], "web")), &record));
        assert!(
            !sandbox_stats(Some(&filter("zz", "web")), &record) && !sandbox_stats(Some(&filter("", "db")), &record)
        );
    }

    #[test]
    fn sandboxes_are_filtered_by_state_too() {
        let value = |state: cri::PodSandboxState| cri::PodSandboxFilter {
            state: Some(cri::PodSandboxStateValue { state: state.into() }),
            ..Default::default()
        };
        assert!(sandbox(Some(&value(cri::PodSandboxState::SandboxReady)), &sandbox_record()));
        assert!(!sandbox(Some(&value(cri::PodSandboxState::SandboxNotready)), &sandbox_record()));
    }
}
