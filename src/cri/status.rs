//! Records to CRI's messages: pure.

use crate::api::cri;
use crate::node::spec::signal_number;
use crate::node::state::{ContainerState, Exit, SandboxState};
use crate::node::{ContainerRecord, SandboxRecord, User};

/// CRI knows two states of a sandbox. One that cannot be reached is of no use.
pub(super) fn sandbox_state(record: &SandboxRecord) -> cri::PodSandboxState {
    match record.state {
        SandboxState::Ready if !record.unreachable => cri::PodSandboxState::SandboxReady,
        _ => cri::PodSandboxState::SandboxNotready,
    }
}

/// CRI's four states of a container. One that is being removed has ended, as far as anybody may count on it.
pub(super) fn container_state(record: &ContainerRecord) -> cri::ContainerState {
    match record.state {
        _ if record.is_unknown() => cri::ContainerState::ContainerUnknown,
        ContainerState::Creating | ContainerState::Created { .. } => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited(_) | ContainerState::Removing { .. } => cri::ContainerState::ContainerExited,
    }
}

/// A sandbox in a list.
pub(super) fn sandbox_item(record: &SandboxRecord) -> cri::PodSandbox {
    cri::PodSandbox {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// A sandbox's status.
pub(super) fn sandbox_status(record: &SandboxRecord) -> cri::PodSandboxStatus {
    let context = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.clone()).unwrap_or_default();
    cri::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        // On the host's network, with loopback alone, or stopped, a pod has no address of its own.
        network: Some(network(record)),
        linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options: Some(options) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

fn network(record: &SandboxRecord) -> cri::PodSandboxNetworkStatus {
    let stands = record.state.is_ready();
    let addresses = record.network.iter().filter(|_| stands).flat_map(|network| &network.addresses);
    let mut ips = addresses.map(|address| address.ip.to_string());
    let ip = ips.next().unwrap_or_default();
    cri::PodSandboxNetworkStatus { ip, additional_ips: ips.map(|ip| cri::PodIp { ip }).collect() }
}

/// A container in a list.
pub(super) fn container_item(record: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox.to_string(),
        metadata: record.config.metadata.clone(),
        image: Some(image(record)),
        image_ref: record.image_id.to_string(),
        state: container_state(record).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.to_string(),
    }
}

/// A container's status.
pub(super) fn container_status(record: &ContainerRecord) -> cri::ContainerStatus {
    let none = Exit {
        started_at: record.state.started_at(),
        finished_at: 0,
        code: 0,
        reason: crate::node::state::Reason::Completed,
        message: String::new(),
    };
    let exit = exit(record);
    let Exit { started_at, finished_at, code, message, .. } = exit.unwrap_or(&none).clone();
    cri::ContainerStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: container_state(record).into(),
        created_at: record.created_at,
        started_at,
        finished_at,
        exit_code: code,
        image: Some(image(record)),
        image_ref: record.image_id.to_string(),
        reason: exit.map(|exit| exit.reason.as_str().to_owned()).unwrap_or_default(),
        message,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.clone(),
        resources: record
            .resources
            .as_ref()
            .map(|linux| cri::ContainerResources { linux: Some(linux.clone()), windows: None }),
        image_id: record.image_id.to_string(),
        user: record.user.as_ref().map(user),
        stop_signal: stop_signal(record).into(),
    }
}

/// How a container ended, if it has.
pub(super) fn exit(record: &ContainerRecord) -> Option<&Exit> {
    match &record.state {
        ContainerState::Exited(exit) | ContainerState::Removing { exit: Some(exit), .. } => Some(exit),
        _ => None,
    }
}

/// The mounts as asked for; those of images also tell which image it came to.
fn mounts(record: &ContainerRecord) -> Vec<cri::Mount> {
    let mut mounts = record.config.mounts.clone();
    for volume in &record.image_volumes {
        if let Some(image) = mounts.get_mut(volume.mount).and_then(|mount| mount.image.as_mut()) {
            image.image_ref = volume.image_id.to_string();
        }
    }
    mounts
}

fn image(record: &ContainerRecord) -> cri::ImageSpec {
    let asked = record.config.image.clone().unwrap_or_default();
    cri::ImageSpec { image: record.image_name.clone(), ..asked }
}

fn user(user: &User) -> cri::ContainerUser {
    cri::ContainerUser {
        linux: Some(cri::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|&gid| gid.into()).collect(),
        }),
    }
}

/// The signal a stop sends: as it was asked for, else the image's or SIGTERM.
fn stop_signal(record: &ContainerRecord) -> cri::Signal {
    match record.config.stop_signal() {
        cri::Signal::RuntimeDefault => (1..=65)
            .filter_map(|n| cri::Signal::try_from(n).ok())
            .find(|signal| signal_number(*signal) == Some(record.stop_signal))
            .unwrap_or_default(),
        asked => asked,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::node::state::{ContainerEvent, Reason};

    pub fn sandbox_record() -> SandboxRecord {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: "p".into(), ..Default::default() }),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..Default::default()
        };
        SandboxRecord {
            version: 1,
            id: "a".repeat(64).parse().unwrap(),
            state: SandboxState::Ready,
            created_at: 5,
            runtime_handler: "aril".into(),
            overhead: None,
            resources: None,
            network: None,
            warnings: Vec::new(),
            timeline: Vec::new(),
            unreachable: false,
            config: config.into(),
        }
    }

    pub fn container_record() -> ContainerRecord {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 2 }),
            image: Some(cri::ImageSpec { image: "sha256:0101".into(), ..Default::default() }),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            mounts: vec![cri::Mount { container_path: "/v".into(), propagation: 2, ..Default::default() }],
            ..Default::default()
        };
        ContainerRecord {
            version: 1,
            id: "c".repeat(64).parse().unwrap(),
            sandbox: "a".repeat(64).parse().unwrap(),
            state: ContainerState::Created { pid: 7 },
            created_at: 6,
            image_id: crate::id::Digest::sha256([1; 32]),
            image_name: "busybox:latest".into(),
            layers: Vec::new(),
            image_volumes: Vec::new(),
            log_path: "/var/log/pods/p/c/0.log".into(),
            stop_signal: 15,
            user: Some(User { uid: 1000, gid: 5, groups: vec![5, 6] }),
            resources: Some(cri::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
            warnings: Vec::new(),
            timeline: Vec::new(),
            unreachable: false,
            config: config.into(),
        }
    }

    #[test]
    fn a_status_is_complete() {
        let mut record = container_record();
        for event in
            [ContainerEvent::Started { pid: 7, at: 10 }, ContainerEvent::Exited { code: 137, at: 20, oom_killed: true }]
        {
            record.state = record.state.apply(&event).unwrap();
        }
        let status = container_status(&record);
        assert_eq!((status.created_at, status.started_at, status.finished_at, status.exit_code), (6, 10, 20, 137));
        assert_eq!((status.reason.as_str(), status.state()), ("OOMKilled", cri::ContainerState::ContainerExited));
        assert_eq!((status.image_ref.as_str(), &status.image_id), (record.image_id.as_str(), &status.image_ref));
        assert_eq!(status.image.as_ref().map(|i| i.image.as_str()), Some("busybox:latest"));
        assert_eq!(status.mounts, record.config.mounts);
        assert_eq!(status.log_path, record.log_path);
        assert_eq!(status.stop_signal(), cri::Signal::Sigterm);
        let user = status.user.and_then(|u| u.linux).unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 5, vec![5, 6]));
        assert_eq!(status.resources.and_then(|r| r.linux).unwrap().cpu_shares, 2);
    }

    #[test]
    fn a_container_that_has_not_ended_has_no_reason() {
        let status = container_status(&container_record());
        assert_eq!((status.reason.as_str(), status.started_at, status.finished_at), ("", 0, 0));
    }

    #[test]
    fn a_removal_under_way_still_tells_the_end() {
        let mut record = container_record();
        let exit = Exit { started_at: 1, finished_at: 2, code: 3, reason: Reason::Error, message: String::new() };
        record.state = ContainerState::Removing { exit: Some(exit), started_at: 0 };
        let status = container_status(&record);
        assert_eq!((status.exit_code, status.state()), (3, cri::ContainerState::ContainerExited));
    }

    #[test]
    fn the_signal_asked_for_is_the_one_shown() {
        let mut record = container_record();
        let mut config = (*record.config).clone();
        config.stop_signal = cri::Signal::Sigpoll.into();
        record.config = config.into();
        assert_eq!(stop_signal(&record), cri::Signal::Sigpoll);
        record = container_record();
        record.stop_signal = 34;
        assert_eq!(stop_signal(&record), cri::Signal::Sigrtmin);
    }

    #[test]
    fn what_cannot_be_reached_is_not_ready_and_unknown_unless_it_has_ended() {
        let sandbox = SandboxRecord { unreachable: true, ..sandbox_record() };
        assert_eq!(sandbox_state(&sandbox), cri::PodSandboxState::SandboxNotready);
        let mut container = ContainerRecord { unreachable: true, ..container_record() };
        assert_eq!(container_state(&container), cri::ContainerState::ContainerUnknown);
        let exit = ContainerEvent::Exited { code: 0, at: 20, oom_killed: false };
        container.state = container.state.apply(&exit).unwrap();
        assert_eq!(container_state(&container), cri::ContainerState::ContainerExited);
    }

    #[test]
    fn labels_come_back_as_given() {
        let record = sandbox_record();
        assert_eq!(sandbox_item(&record).labels, record.config.labels);
        assert_eq!(sandbox_status(&record).labels, record.config.labels);
        assert_eq!(sandbox_status(&record).state(), cri::PodSandboxState::SandboxReady);
    }
}
