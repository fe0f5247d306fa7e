//! Pods and containers from nothing to nothing.

use std::collections::BTreeMap;

use aril::api::cri::{
    CheckpointContainerRequest, ContainerFilter, ContainerState, ContainerStateValue, ImageSpec, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue, RemoveContainerRequest,
    RemoveImageRequest, RemovePodSandboxRequest, RuntimeConfigRequest, StatusRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdatePodSandboxResourcesRequest, UpdateRuntimeConfigRequest, VersionRequest,
};
use tonic::Code;

use crate::support::{Container, Pod, TestNode, refused};

fn pods(node: &TestNode, filter: PodSandboxFilter) -> Vec<String> {
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let answer = node.cri().runtime(|mut c| async move { c.list_pod_sandbox(request).await }).expect("list pods");
    answer.items.into_iter().map(|p| p.id).collect()
}

fn containers(node: &TestNode, filter: ContainerFilter) -> Vec<String> {
    let request = ListContainersRequest { filter: Some(filter) };
    let answer = node.cri().runtime(|mut c| async move { c.list_containers(request).await });
    answer.expect("list containers").containers.into_iter().map(|c| c.id).collect()
}

fn odd_text() -> BTreeMap<String, String> {
    let pairs = [("a", ""), ("b/c.d-e", "\u{0}\n\t\"\\ "), ("ключ", "значение 🦀"), ("long", &"x".repeat(10_000))];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[test]
fn a_pod_is_ready_then_not_then_gone() {
    let node = TestNode::start();
    let pod = node.run_pod("life");
    let status = pod.status();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert!(status.created_at > 1_600_000_000_000_000_000, "created_at is nanoseconds: {}", status.created_at);

    pod.stop().unwrap();
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    assert_eq!(node.pod_ids(), [pod.id.clone()]);
    pod.remove().unwrap();
    assert!(node.pod_ids().is_empty());
    refused(pod.try_status(), Code::NotFound, &[&pod.id[..12]]);
    node.finish();
}

#[test]
fn a_container_is_created_running_exited_gone() {
    let node = TestNode::start();
    let container = node.run_pod("life").container(["sh", "-c", "exit 3"]).create();
    let created = container.status();
    assert_eq!((created.state(), created.started_at), (ContainerState::ContainerCreated, 0));
    assert!(created.created_at > 0);
    assert_eq!(created.metadata, container.config.metadata);
    assert_eq!(created.image.as_ref().unwrap().image, "probe");
    assert!(created.image_ref.starts_with("sha256:"), "{}", created.image_ref);

    container.start().unwrap();
    let exited = container.wait_exited();
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    assert!(created.created_at <= exited.started_at && exited.started_at <= exited.finished_at);
    assert_eq!(exited.created_at, created.created_at);
    container.remove().unwrap();
    refused(container.try_status(), Code::NotFound, &[&container.id[..12]]);
    assert!(node.container_ids().is_empty());
    node.finish();
}

#[test]
fn a_success_is_completed() {
    let node = TestNode::start();
    let status = node.run(["true"]).wait_exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    node.finish();
}

#[test]
fn labels_and_annotations_come_back_byte_for_byte() {
    let node = TestNode::start();
    let pod = node.pod("attributes").with(|c| (c.labels, c.annotations) = (odd_text(), odd_text())).run();
    let container = pod.container(["true"]).with(|c| (c.labels, c.annotations) = (odd_text(), odd_text())).create();
    let (p, c) = (pod.status(), container.status());
    for map in [p.labels, p.annotations, c.labels, c.annotations] {
        assert_eq!(map, odd_text());
    }
    let all = node.cri().runtime(|mut c| async move { c.list_pod_sandbox(ListPodSandboxRequest::default()).await });
    assert_eq!(all.unwrap().items[0].annotations, odd_text());
    node.finish();
}

#[test]
fn what_is_unknown_is_already_stopped_and_removed() {
    let node = TestNode::start();
    let id = "0123456789abcdef".repeat(4);
    let (stop_pod, remove_pod) =
        (StopPodSandboxRequest { pod_sandbox_id: id.clone() }, RemovePodSandboxRequest { pod_sandbox_id: id.clone() });
    let (stop, remove) = (
        StopContainerRequest { container_id: id.clone(), timeout: 1 },
        RemoveContainerRequest { container_id: id.clone() },
    );
    let image = RemoveImageRequest { image: Some(ImageSpec { image: id, ..ImageSpec::default() }) };
    let cri = node.cri();
    cri.runtime(|mut c| async move { c.stop_pod_sandbox(stop_pod).await }).unwrap();
    cri.runtime(|mut c| async move { c.remove_pod_sandbox(remove_pod).await }).unwrap();
    cri.runtime(|mut c| async move { c.stop_container(stop).await }).unwrap();
    cri.runtime(|mut c| async move { c.remove_container(remove).await }).unwrap();
    cri.images(|mut c| async move { c.remove_image(image).await }).unwrap();
    node.finish();
}

#[test]
fn stopping_and_removing_twice_succeeds() {
    let node = TestNode::start();
    let pod = node.run_pod("twice");
    let container = pod.sleeper();
    for _ in 0..2 {
        container.stop(0).unwrap();
    }
    for _ in 0..2 {
        container.remove().unwrap();
    }
    for _ in 0..2 {
        pod.stop().unwrap();
    }
    for _ in 0..2 {
        pod.remove().unwrap();
    }
    node.finish();
}

#[test]
fn a_running_container_is_removed_by_force_and_so_is_a_pod() {
    let node = TestNode::start();
    let pod = node.run_pod("force");
    let (one, two) = (pod.sleeper(), pod.sleeper());
    one.remove().unwrap();
    assert_eq!(node.container_ids(), [two.id.clone()]);
    assert!(one.pids().is_empty());
    pod.remove().unwrap();
    assert!(node.container_ids().is_empty() && two.pids().is_empty());
    node.finish();
}

#[test]
fn stopping_a_pod_ends_its_containers() {
    let node = TestNode::start();
    let pod = node.run_pod("stop");
    let (running, created) = (pod.sleeper(), pod.container(["true"]).create());
    pod.stop().unwrap();
    assert_eq!(running.state(), ContainerState::ContainerExited);
    assert_eq!(running.status().exit_code, 137);
    refused(created.start(), Code::FailedPrecondition, &[]);
    refused(pod.container(["true"]).try_create(), Code::FailedPrecondition, &[&pod.id[..12]]);
    node.finish();
}

#[test]
fn a_container_starts_once() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    refused(container.start(), Code::FailedPrecondition, &[&container.id[..12]]);
    container.stop(0).unwrap();
    refused(container.start(), Code::FailedPrecondition, &[&container.id[..12]]);
    node.finish();
}

#[test]
fn a_retry_gets_what_the_first_call_made() {
    let node = TestNode::start();
    let builder = node.pod("retry");
    let (first, second) = (builder.clone().run(), builder.clone().run());
    assert_eq!(first.id, second.id);
    let container = first.container(["sleep", "100000"]);
    assert_eq!(container.clone().create().id, container.clone().create().id);
    let next = builder.with(|c| c.metadata.as_mut().unwrap().attempt = 1).run();
    assert_ne!(next.id, first.id);
    node.finish();
}

#[test]
fn retries_at_the_same_time_join() {
    let node = TestNode::start();
    let builder = node.pod("join");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| builder.clone().run().id)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let pod = builder.run();
    let container = pod.container(["sleep", "100000"]);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| container.clone().create().id)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!((node.pod_ids().len(), node.container_ids().len()), (1, 1));
    node.finish();
}

#[test]
fn pods_are_listed_by_id_state_and_labels() {
    let node = TestNode::start();
    let labelled = |name: &str, pairs: &[(&str, &str)]| -> Pod<'_> {
        let labels = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        node.pod(name).with(|c| c.labels = labels).run()
    };
    let (one, two) = (labelled("one", &[("app", "a"), ("tier", "x")]), labelled("two", &[("app", "a")]));
    two.stop().unwrap();
    let by_labels = |pairs: &[(&str, &str)]| PodSandboxFilter {
        label_selector: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..PodSandboxFilter::default()
    };
    let by_state = |state: PodSandboxState| PodSandboxFilter {
        state: Some(PodSandboxStateValue { state: state.into() }),
        ..PodSandboxFilter::default()
    };
    assert_eq!(pods(&node, by_labels(&[("app", "a")])).len(), 2);
    assert_eq!(pods(&node, by_labels(&[("app", "a"), ("tier", "x")])), [one.id.clone()]);
    assert!(pods(&node, by_labels(&[("app", "b")])).is_empty());
    assert_eq!(pods(&node, by_state(PodSandboxState::SandboxReady)), [one.id.clone()]);
    assert_eq!(pods(&node, by_state(PodSandboxState::SandboxNotready)), [two.id.clone()]);
    for id in [&two.id[..], &two.id[..13]] {
        let filter = PodSandboxFilter { id: id.to_owned(), ..PodSandboxFilter::default() };
        assert_eq!(pods(&node, filter), [two.id.clone()]);
    }
    node.finish();
}

#[test]
fn containers_are_listed_by_id_state_pod_and_labels() {
    let node = TestNode::start();
    let (pod, other) = (node.run_pod("one"), node.run_pod("two"));
    let run = |pod: &Pod<'_>, label: &str| -> String {
        let builder = pod.container(["sleep", "100000"]);
        builder.with(|c| drop(c.labels.insert("l".to_owned(), label.to_owned()))).run().id
    };
    let (a, b, c) = (run(&pod, "a"), run(&pod, "b"), run(&other, "a"));
    let of_pod = |id: &str| ContainerFilter { pod_sandbox_id: id.to_owned(), ..ContainerFilter::default() };
    let mut in_pod = containers(&node, of_pod(&pod.id));
    in_pod.sort();
    let mut expected = [a.clone(), b];
    expected.sort();
    assert_eq!(in_pod, expected);
    assert_eq!(containers(&node, of_pod(&other.id[..12])), [c.clone()]);
    let label_selector = [("l".to_owned(), "a".to_owned())].into();
    assert_eq!(containers(&node, ContainerFilter { label_selector, ..of_pod(&pod.id) }), [a.clone()]);
    assert_eq!(containers(&node, ContainerFilter { id: a[..12].to_owned(), ..Default::default() }), [a]);
    let state = Some(ContainerStateValue { state: ContainerState::ContainerExited.into() });
    assert!(containers(&node, ContainerFilter { state, ..Default::default() }).is_empty());
    node.finish();
}

#[test]
fn an_id_may_be_given_by_its_beginning() {
    let node = TestNode::start();
    let pod = node.run_pod("prefix");
    let full = pod.sleeper();
    let short = full.called(&full.id[..10]);
    assert_eq!(short.status().id, full.id);
    assert_eq!(short.exec(["echo", "here"]).stdout, "here\n");
    short.stop(0).unwrap();
    short.remove().unwrap();
    assert!(node.container_ids().is_empty());
    node.finish();
}

#[test]
fn a_prefix_of_two_is_refused() {
    let node = TestNode::start();
    // With 17 containers, two of them begin with the same digit.
    let pod = node.run_pod("many");
    let all: Vec<Container<'_>> = (0..17).map(|_| pod.container(["true"]).create()).collect();
    let doubled = |c: &&Container<'_>| all.iter().filter(|o| o.id[..1] == c.id[..1]).count() > 1;
    let one = all.iter().find(doubled).unwrap();
    let short = one.called(&one.id[..1]);
    assert!(short.try_status().is_err());
    assert!(short.stop(0).is_err() || one.state() == ContainerState::ContainerCreated);
    node.finish();
}

#[test]
fn the_runtime_tells_what_it_is() {
    let node = TestNode::start();
    let cri = node.cri();
    let version = cri.runtime(|mut c| async move { c.version(VersionRequest::default()).await }).unwrap();
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert_eq!(version.runtime_name, "aril");
    assert_eq!(version.runtime_version.split('.').count(), 3);
    let status = cri.runtime(|mut c| async move { c.status(StatusRequest { verbose: true }).await }).unwrap();
    let conditions = status.status.unwrap().conditions;
    assert!(conditions.iter().any(|c| c.r#type == "RuntimeReady" && c.status), "{conditions:?}");
    assert!(conditions.iter().any(|c| c.r#type == "NetworkReady"), "{conditions:?}");
    assert!(status.runtime_handlers.iter().any(|h| h.name.is_empty()));
    let config = cri.runtime(|mut c| async move { c.runtime_config(RuntimeConfigRequest {}).await }).unwrap();
    assert!(config.linux.is_some());
    let update = UpdateRuntimeConfigRequest::default();
    cri.runtime(|mut c| async move { c.update_runtime_config(update).await }).unwrap();
    node.finish();
}

#[test]
fn a_resized_pod_is_acknowledged_and_what_is_not_built_is_named() {
    let node = TestNode::start();
    let pod = node.run_pod("resize");
    let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    node.cri().runtime(|mut c| async move { c.update_pod_sandbox_resources(request).await }).unwrap();
    let request = CheckpointContainerRequest::default();
    let answer = node.cri().runtime(|mut c| async move { c.checkpoint_container(request).await });
    refused(answer, Code::Unimplemented, &["CheckpointContainer"]);
    node.finish();
}

#[test]
fn an_unknown_runtime_handler_is_refused() {
    let node = TestNode::start();
    refused(node.pod("handler").handler("gvisor").try_run(), Code::InvalidArgument, &["gvisor"]);
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn cgroups_above_the_pod_that_were_made_for_it_go_with_it() {
    let node = TestNode::start();
    let parent = format!("{}/made/for/it", node.cgroup_parent());
    let pod = node.pod("parent").linux(|l| l.cgroup_parent = parent.clone()).run();
    let container = pod.sleeper();
    assert!(crate::support::read_proc(container.init_pid(), "cgroup").contains(&parent));
    node.finish();
}
