//! `aril pods` and `aril ps`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::args::{Output, PsArgs};
use super::connect::Daemon;
use super::error::CliError;
use super::find::{Objects, container_name, pod_name};
use super::inspect;
use super::logs;
use super::output::{self, Rows, short};
use super::time;
use crate::api::cri;
use crate::api::node::{ListNetworkPodsRequest, NetworkPod};

/// A pod as programs get it.
#[derive(Debug, Serialize)]
struct Pod<'a> {
    id: &'a str,
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
    attempt: u32,
    state: &'static str,
    ips: &'a [String],
    ports: &'a [String],
    created_at: String,
    containers: Vec<&'a str>,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
}

/// A container as programs get it.
#[derive(Debug, Serialize)]
struct Container<'a> {
    id: &'a str,
    name: &'a str,
    attempt: u32,
    pod: PodRef<'a>,
    image: &'a str,
    image_id: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(flatten)]
    end: Option<&'a End>,
    created_at: String,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct PodRef<'a> {
    id: &'a str,
    name: &'a str,
    namespace: &'a str,
}

/// How a container ended.
#[derive(Debug, Serialize)]
struct End {
    exit_code: i32,
    reason: String,
}

/// What lists do not tell, by container id.
#[derive(Debug, Default)]
struct Details {
    pids: BTreeMap<String, i32>,
    ends: BTreeMap<String, End>,
}

impl Details {
    /// Asks about each container: what has ended how, and with `pids` what runs as which process.
    async fn fetch(daemon: &mut Daemon, containers: &[cri::Container], pids: bool) -> Result<Self, CliError> {
        let mut details = Self::default();
        for container in containers {
            let id = &container.id;
            if container.state() != cri::ContainerState::ContainerExited {
                if pids && let Some(pid) = inspect::pid(daemon, id).await? {
                    details.pids.insert(id.clone(), pid);
                }
                continue;
            }
            match logs::status(daemon, id).await {
                Ok(status) => {
                    let end = End { exit_code: status.exit_code, reason: status.reason };
                    details.ends.insert(id.clone(), end);
                }
                // Removed since it was listed.
                Err(CliError::Daemon(status)) if status.code() == tonic::Code::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(details)
    }
}

/// `aril pods` where there is neither a daemon nor any pod.
pub(super) fn no_pods(output: Output) -> Result<(), CliError> {
    output::print(&match output {
        Output::Json => output::json(&[(); 0])?,
        Output::Table | Output::Wide => pod_table(&Objects::default(), &Addresses::new(), output == Output::Wide, 0),
    })
}

/// `aril ps` where there is neither a daemon nor any pod.
pub(super) fn no_containers(args: &PsArgs, output: Output) -> Result<(), CliError> {
    let table = |wide| container_table(&Objects::default(), &Details::default(), wide, 0);
    output::print(&match output {
        _ if args.quiet => String::new(),
        Output::Json => output::json(&[(); 0])?,
        Output::Table | Output::Wide => table(output == Output::Wide),
    })
}

/// `aril pods`.
pub(super) async fn pods(daemon: &mut Daemon, output: Output) -> Result<(), CliError> {
    let mut objects = Objects::fetch(daemon).await?;
    objects.pods.sort_by_key(|p| std::cmp::Reverse(p.created_at));
    let addresses = addresses(daemon).await?;
    output::print(&match output {
        Output::Json => output::json(&objects.pods.iter().map(|p| pod(p, &objects, &addresses)).collect::<Vec<_>>())?,
        Output::Table | Output::Wide => pod_table(&objects, &addresses, output == Output::Wide, time::now()),
    })
}

/// How the pods are connected that are, by id.
type Addresses = BTreeMap<String, Connected>;

/// Addresses without their networks' lengths, and host ports as people write them.
#[derive(Debug, Default)]
struct Connected {
    ips: Vec<String>,
    ports: Vec<String>,
}

async fn addresses(daemon: &mut Daemon) -> Result<Addresses, CliError> {
    let pods = daemon.node.list_network_pods(ListNetworkPodsRequest {}).await?.into_inner().pods;
    let bare = |address: &String| address.split('/').next().unwrap_or_default().to_owned();
    let connected =
        |pod: NetworkPod| (pod.id, Connected { ips: pod.addresses.iter().map(bare).collect(), ports: pod.ports });
    Ok(pods.into_iter().map(connected).collect())
}

fn pod<'a>(from: &'a cri::PodSandbox, objects: &'a Objects, addresses: &'a Addresses) -> Pod<'a> {
    let metadata = from.metadata.as_ref();
    Pod {
        id: &from.id,
        name: pod_name(from),
        namespace: metadata.map_or("", |m| &m.namespace),
        uid: metadata.map_or("", |m| &m.uid),
        attempt: metadata.map_or(0, |m| m.attempt),
        state: pod_state(from.state()),
        ips: addresses.get(&from.id).map_or(&[], |connected| connected.ips.as_slice()),
        ports: addresses.get(&from.id).map_or(&[], |connected| connected.ports.as_slice()),
        created_at: time::format(from.created_at),
        containers: objects.of_pod(from).map(|c| c.id.as_str()).collect(),
        labels: &from.labels,
        annotations: &from.annotations,
    }
}

fn pod_table(objects: &Objects, addresses: &Addresses, wide: bool, now: i64) -> String {
    let mut headings = vec!["POD ID", "NAME", "NAMESPACE", "STATE", "IP", "CONTAINERS", "AGE"];
    if wide {
        headings.extend(["PORTS", "UID", "ATTEMPT"]);
    }
    let mut rows = Rows::new(&headings);
    for pod in &objects.pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let running = objects.of_pod(pod).filter(|c| c.state() == cri::ContainerState::ContainerRunning).count();
        let mut cells = vec![
            short(&pod.id).to_owned(),
            metadata.name,
            metadata.namespace,
            pod_state(pod.state()).to_owned(),
            addresses.get(&pod.id).map(|connected| connected.ips.join(",")).unwrap_or_default(),
            format!("{running}/{}", objects.of_pod(pod).count()),
            time::age(pod.created_at, now),
        ];
        if wide {
            let ports = addresses.get(&pod.id).map(|connected| connected.ports.join(",")).unwrap_or_default();
            cells.extend([ports, metadata.uid, metadata.attempt.to_string()]);
        }
        rows.add(cells);
    }
    rows.text()
}

/// `aril ps`.
pub(super) async fn ps(daemon: &mut Daemon, args: &PsArgs, output: Output) -> Result<(), CliError> {
    let mut objects = Objects::fetch(daemon).await?;
    objects.containers.retain(|c| args.all || c.state() == cri::ContainerState::ContainerRunning);
    objects.containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    if args.quiet {
        return output::print(&objects.containers.iter().map(|c| format!("{}\n", c.id)).collect::<String>());
    }
    let details = Details::fetch(daemon, &objects.containers, output != Output::Table).await?;
    output::print(&match output {
        Output::Json => {
            let all: Vec<_> = objects.containers.iter().map(|c| container(c, &objects, &details)).collect();
            output::json(&all)?
        }
        Output::Table | Output::Wide => container_table(&objects, &details, output == Output::Wide, time::now()),
    })
}

fn container<'a>(from: &'a cri::Container, objects: &'a Objects, details: &'a Details) -> Container<'a> {
    let pod = objects.pod_of(from);
    Container {
        id: &from.id,
        name: container_name(from),
        attempt: from.metadata.as_ref().map_or(0, |m| m.attempt),
        pod: PodRef {
            id: &from.pod_sandbox_id,
            name: pod.map_or("", pod_name),
            namespace: pod.and_then(|p| p.metadata.as_ref()).map_or("", |m| &m.namespace),
        },
        image: image(from),
        image_id: if from.image_id.is_empty() { &from.image_ref } else { &from.image_id },
        state: container_state(from.state()),
        pid: details.pids.get(&from.id).copied(),
        end: details.ends.get(&from.id),
        created_at: time::format(from.created_at),
        labels: &from.labels,
        annotations: &from.annotations,
    }
}

fn container_table(objects: &Objects, details: &Details, wide: bool, now: i64) -> String {
    let mut headings = vec!["CONTAINER ID", "NAME", "POD", "IMAGE", "STATE", "AGE"];
    if wide {
        headings.extend(["REASON", "PID", "POD ID", "ATTEMPT"]);
    }
    let mut rows = Rows::new(&headings);
    for container in &objects.containers {
        let end = details.ends.get(&container.id);
        let mut cells = vec![
            short(&container.id).to_owned(),
            container_name(container).to_owned(),
            objects.pod_of(container).map_or("", pod_name).to_owned(),
            shown_image(image(container)),
            match end {
                Some(end) => format!("exited ({})", end.exit_code),
                None => container_state(container.state()).to_owned(),
            },
            time::age(container.created_at, now),
        ];
        if wide {
            cells.push(end.map_or("-".to_owned(), |end| end.reason.clone()));
            cells.push(details.pids.get(&container.id).map_or("-".to_owned(), ToString::to_string));
            cells.push(short(&container.pod_sandbox_id).to_owned());
            cells.push(container.metadata.as_ref().map_or(0, |m| m.attempt).to_string());
        }
        rows.add(cells);
    }
    rows.text()
}

/// What the person asked for, if it is known.
fn image(container: &cri::Container) -> &str {
    let Some(spec) = &container.image else { return "" };
    if spec.user_specified_image.is_empty() { &spec.image } else { &spec.user_specified_image }
}

/// Names as they are, ids short.
fn shown_image(image: &str) -> String {
    if image.starts_with("sha256:") { short(image).to_owned() } else { image.to_owned() }
}

/// CRI's states in one word.
pub(super) fn container_state(state: cri::ContainerState) -> &'static str {
    match state {
        cri::ContainerState::ContainerCreated => "created",
        cri::ContainerState::ContainerRunning => "running",
        cri::ContainerState::ContainerExited => "exited",
        cri::ContainerState::ContainerUnknown => "unknown",
    }
}

/// CRI's states in one word.
pub(super) fn pod_state(state: cri::PodSandboxState) -> &'static str {
    match state {
        cri::PodSandboxState::SandboxReady => "ready",
        cri::PodSandboxState::SandboxNotready => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Objects {
        let metadata =
            cri::PodSandboxMetadata { name: "web".into(), namespace: "default".into(), ..Default::default() };
        let pod = cri::PodSandbox { id: "a".repeat(64), metadata: Some(metadata), created_at: 1, ..Default::default() };
        let metadata = cri::ContainerMetadata { name: "app".into(), attempt: 2 };
        let image = cri::ImageSpec { image: format!("sha256:{}", "c".repeat(64)), ..Default::default() };
        let container = cri::Container {
            id: "b".repeat(64),
            pod_sandbox_id: "a".repeat(64),
            metadata: Some(metadata),
            image: Some(image),
            state: cri::ContainerState::ContainerRunning.into(),
            created_at: 1,
            ..Default::default()
        };
        Objects { pods: vec![pod], containers: vec![container] }
    }

    fn addresses() -> Addresses {
        let ips = vec!["10.0.0.2".to_owned(), "fd::2".to_owned()];
        [("a".repeat(64), Connected { ips, ports: vec!["8080:80/tcp".to_owned()] })].into()
    }

    #[test]
    fn tables_for_people() {
        let now = 60_000_000_000;
        assert_eq!(
            pod_table(&objects(), &addresses(), false, now),
            "POD ID        NAME  NAMESPACE  STATE  IP              CONTAINERS  AGE\n\
             aaaaaaaaaaaa  web   default    ready  10.0.0.2,fd::2  1/1         59s\n"
        );
        assert!(pod_table(&objects(), &addresses(), true, now).contains("  59s  8080:80/tcp  "));
        assert_eq!(
            container_table(&objects(), &Details::default(), false, now),
            "CONTAINER ID  NAME  POD  IMAGE         STATE    AGE\n\
             bbbbbbbbbbbb  app   web  cccccccccccc  running  59s\n"
        );
        let details = Details { pids: [("b".repeat(64), 77)].into(), ..Details::default() };
        let wide = container_table(&objects(), &details, true, now);
        assert!(wide.contains("  77   aaaaaaaaaaaa  2"), "{wide}");
    }

    #[test]
    fn an_ended_container_tells_its_exit_code() {
        let mut all = objects();
        all.containers[0].state = cri::ContainerState::ContainerExited.into();
        let end = End { exit_code: 137, reason: "OOMKilled".to_owned() };
        let details = Details { ends: [("b".repeat(64), end)].into(), ..Details::default() };
        assert!(container_table(&all, &details, false, 0).contains("  exited (137)  "));
        assert!(container_table(&all, &details, true, 0).contains("  OOMKilled  "));
        let value = serde_json::to_value(container(&all.containers[0], &all, &details)).unwrap();
        assert_eq!((&value["state"], &value["exit_code"]), (&"exited".into(), &137.into()));
        assert_eq!(value["reason"], "OOMKilled");
    }

    #[test]
    fn json_for_programs() {
        let (all, addresses) = (objects(), addresses());
        let details = Details::default();
        let value = serde_json::to_value(container(&all.containers[0], &all, &details)).unwrap();
        assert_eq!(value["pod"]["name"], "web");
        assert_eq!(value["state"], "running");
        assert_eq!(value["created_at"], "1970-01-01T00:00:00.000Z");
        assert!(value.get("pid").is_none());
        let value = serde_json::to_value(pod(&all.pods[0], &all, &addresses)).unwrap();
        assert_eq!(value["ips"], serde_json::json!(["10.0.0.2", "fd::2"]));
        assert_eq!(value["ports"], serde_json::json!(["8080:80/tcp"]));
        assert_eq!(value["containers"][0], "b".repeat(64));
    }
}
