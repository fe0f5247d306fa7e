//! `GetContainerEvents`: what happens, in order, with the pod as it was at that moment.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aril::api::cri::{ContainerEventResponse, ContainerState, PodSandboxState};
use nix::sys::signal::Signal;
use serde_json::Value;
use tonic::Code;

use crate::support::events::{CREATED, DELETED, Events, STARTED, STOPPED};
use crate::support::{TestNode, read_proc};

fn pod_state(event: &ContainerEventResponse) -> PodSandboxState {
    event.pod_sandbox_status.as_ref().unwrap().state()
}

fn states(event: &ContainerEventResponse) -> Vec<ContainerState> {
    event.containers_statuses.iter().map(|status| status.state()).collect()
}

#[test]
fn a_late_reader_learns_of_a_whole_life_as_it_was() {
    use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    use PodSandboxState::{SandboxNotready, SandboxReady};
    let node = TestNode::start();
    let pod = node.pod("life").with(|c| drop(c.labels.insert("app".into(), "web".into()))).run();
    let container = pod.run(["sh", "-c", "exit 3"]);
    let ended = container.wait_exited();
    container.remove().unwrap();
    pod.stop().unwrap();
    pod.remove().unwrap();

    let mut events = Events::follow(node.cri());
    let told: Vec<ContainerEventResponse> = (0..8).map(|_| events.next()).collect();
    let (p, c) = (pod.id.as_str(), container.id.as_str());
    let expected = [
        (CREATED, p, SandboxReady, vec![]),
        (STARTED, p, SandboxReady, vec![]),
        (CREATED, c, SandboxReady, vec![ContainerCreated]),
        (STARTED, c, SandboxReady, vec![ContainerRunning]),
        (STOPPED, c, SandboxReady, vec![ContainerExited]),
        (DELETED, c, SandboxReady, vec![]),
        (STOPPED, p, SandboxNotready, vec![]),
        (DELETED, p, SandboxNotready, vec![]),
    ];
    for (event, (kind, id, state, containers)) in told.iter().zip(&expected) {
        assert_eq!((event.container_event_type(), event.container_id.as_str()), (*kind, *id));
        assert_eq!((pod_state(event), &states(event)), (*state, containers), "{event:?}");
        let status = event.pod_sandbox_status.as_ref().unwrap();
        assert_eq!((&status.metadata, &status.labels), (&pod.config.metadata, &pod.config.labels));
    }
    assert_eq!(told[4].containers_statuses, [ended]);
    assert!(told.windows(2).all(|pair| pair[0].created_at < pair[1].created_at));
    node.finish();
}

#[test]
fn all_readers_get_the_same() {
    let node = TestNode::start();
    let mut readers: Vec<Events> = (0..10).map(|_| Events::follow(node.cri())).collect();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let node = &node;
            scope.spawn(move || {
                let pod = node.pod(&format!("p{i}")).host_network().run();
                let container = pod.sleeper();
                container.stop(0).unwrap();
                pod.remove().unwrap();
            });
        }
    });
    readers.push(Events::follow(node.cri()));
    let told: Vec<Vec<ContainerEventResponse>> =
        readers.iter_mut().map(|reader| (0..4 * 8).map(|_| reader.next()).collect()).collect();
    assert!(told.iter().all(|one| *one == told[0]));
    node.finish();
}

#[test]
fn two_hundred_pods_each_tell_their_life_once() {
    const PODS: usize = 200;
    let node = TestNode::start();
    let mut reader = Events::follow(node.cri());
    let next = AtomicUsize::new(0);
    let mut lives: HashMap<String, Vec<_>> = HashMap::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= PODS {
                        break;
                    }
                    let pod = node.pod(&format!("p{i}")).host_network().run();
                    // One that ends at once, one that is stopped, one that runs when it is removed.
                    let container = pod.run(if i.is_multiple_of(3) { vec!["true"] } else { vec!["sleep", "100000"] });
                    if i % 3 == 1 {
                        container.stop(0).unwrap();
                    }
                    if i.is_multiple_of(2) {
                        container.remove().unwrap();
                    }
                    pod.remove().unwrap();
                }
            });
        }
        let mut last_at = 0;
        for _ in 0..PODS * 8 {
            let event = reader.next();
            assert!(event.created_at > last_at, "{} after {last_at}", event.created_at);
            last_at = event.created_at;
            lives.entry(event.container_id.clone()).or_default().push(event.container_event_type());
        }
    });
    assert_eq!(lives.len(), 2 * PODS);
    for (id, life) in lives {
        assert_eq!(life, [CREATED, STARTED, STOPPED, DELETED], "{id}");
    }
    // And nothing more.
    let last = node.pod("last").host_network().run();
    assert_eq!(reader.take(1), [(CREATED, last.id)]);
    node.finish();
}

#[test]
fn what_ended_while_the_daemon_was_dead_is_told_once() {
    let node = TestNode::start();
    let pod = node.pod("dead").host_network().run();
    let (ends, lives) = (pod.sleeper(), pod.sleeper());
    node.kill_daemon();
    ends.kill(Signal::SIGKILL);
    node.restart();
    let mut events = Events::follow(node.cri());
    let event = events.next();
    assert_eq!((event.container_event_type(), event.container_id.as_str()), (STOPPED, ends.id.as_str()));
    let status = |id: &str| event.containers_statuses.iter().find(|s| s.id == id).unwrap();
    assert_eq!((status(&ends.id).exit_code, status(&lives.id).state()), (137, ContainerState::ContainerRunning));
    lives.stop(0).unwrap();
    assert_eq!(events.take(1), [(STOPPED, lives.id.clone())]);

    node.kill_daemon();
    node.restart();
    let mut events = Events::follow(node.cri());
    lives.remove().unwrap();
    assert_eq!(events.take(1), [(DELETED, lives.id)], "all else was told before");
    node.finish();
}

#[test]
fn ends_of_all_kinds_say_why() {
    let node = TestNode::start();
    let pod = node.pod("ends").host_network().run();
    let mut events = Events::follow(node.cri());
    events.take(2);
    let ended = |event: ContainerEventResponse, id: &str| {
        assert_eq!((event.container_event_type(), event.container_id.as_str()), (STOPPED, id));
        let status = event.containers_statuses.into_iter().find(|s| s.id == id).unwrap();
        (status.exit_code, status.reason)
    };
    let limit = 30 << 20;
    let hungry = pod.container(["/probe", "alloc", "200000000"]);
    let hungry = hungry.resources(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (limit, limit)).run();
    assert_eq!(events.take(2), [(CREATED, hungry.id.clone()), (STARTED, hungry.id.clone())]);
    assert_eq!(ended(events.next(), &hungry.id), (137, "OOMKilled".to_owned()));

    let absent = pod.container(["/no-such-program"]).create();
    assert!(absent.start().is_err());
    assert_eq!(events.take(1), [(CREATED, absent.id.clone())]);
    assert_eq!(ended(events.next(), &absent.id), (128, "StartError".to_owned()), "it never started");

    let running = pod.sleeper();
    events.take(2);
    running.remove().unwrap();
    assert_eq!(ended(events.next(), &running.id), (137, "Error".to_owned()), "removed while it ran");
    assert_eq!(events.take(1), [(DELETED, running.id)]);

    let created = pod.container(["true"]).create();
    created.remove().unwrap();
    assert_eq!(events.take(3), [CREATED, STOPPED, DELETED].map(|kind| (kind, created.id.clone())), "it never started");
    node.finish();
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up_and_is_told() {
    let node = TestNode::start();
    let (mut slow, mut quick) = (Events::follow(node.cri()), Events::follow(node.cri()));
    let annotations = [("long".to_owned(), "x".repeat(1_000_000))];
    for i in 0..12 {
        let pod = node.pod(&format!("p{i}")).host_network().with(|c| c.annotations = annotations.clone().into()).run();
        pod.remove().unwrap();
        assert_eq!(quick.take(4), [CREATED, STARTED, STOPPED, DELETED].map(|kind| (kind, pod.id.clone())));
    }
    let (mut taken, mut last_at) = (0, 0);
    let lost = loop {
        match slow.try_next() {
            Ok(event) => {
                assert!(event.created_at > last_at);
                (taken, last_at) = (taken + 1, event.created_at);
            }
            Err(lost) => break lost,
        }
    };
    assert_eq!(lost.code(), Code::DataLoss, "{lost}");
    let count: usize = lost.message().split(' ').next().unwrap().parse().expect("how many were lost");
    assert!(count > 0 && taken + count < 48, "{taken} taken, {lost}");
    let text = read_proc(node.daemon_pid(), "status");
    let rss = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB");
    assert!(rss.parse::<u64>().unwrap() < 100 << 10, "the daemon has {rss} KiB");
    node.finish();
}

/// The lines of a command that must succeed.
fn lines(node: &TestNode, arguments: &[&str]) -> Vec<String> {
    let output = node.aril(arguments.iter().copied()).output().expect("run aril");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_person_reads_what_happened() {
    let node = TestNode::start();
    assert!(lines(&node, &["events"]).is_empty());
    let pod = node.pod("web").host_network().run();
    let container = pod.container(["sh", "-c", "exit 3"]).with(|c| c.metadata.as_mut().unwrap().name = "app".into());
    let container = container.with(|c| drop(c.labels.insert("tier".into(), "front".into()))).run();
    container.wait_exited();

    let all = lines(&node, &["events"]);
    let words = |line: &str| line.split_once('Z').unwrap().1.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (p, c) = (format!("({})", &pod.id[..12]), format!("({})", &container.id[..12]));
    assert_eq!(words(&all[0]), ["pod", "created", "web", &p]);
    assert_eq!(words(&all[2]), ["container", "created", "web/app", &c, "image=probe"]);
    let ended = ["container", "stopped", "web/app", &c, "image=probe", "exit_code=3", "reason=Error"];
    assert_eq!(words(&all[4]), ended);
    assert!(all.len() == 5 && all.iter().all(|line| !line.contains('\x1b')), "{all:?}");

    let of = |arguments: &[&str]| lines(&node, &[&["events"], arguments].concat()).len();
    assert_eq!(of(&["--filter", "event=started"]), 2);
    assert_eq!(of(&["--filter", "event=started", "--filter", "event=created", "--filter", "type=pod"]), 2);
    assert_eq!(of(&["--filter", "label=tier=front"]), 3);
    assert_eq!(of(&["--since", "2100-01-01T00:00:00Z"]), 0);
    assert_eq!(of(&["--since", "1h"]), 5);
    let refused = node.aril(["events", "--filter", "colour=red"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    let objects = lines(&node, &["events", "-o", "json"]);
    let objects: Vec<Value> =
        objects.iter().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!((&objects[4]["event"], &objects[4]["exit_code"]), (&"stopped".into(), &3.into()));
    assert_eq!(objects[4]["container"]["id"], container.id);
    assert!(objects.windows(2).all(|pair| pair[0]["time_nano"].as_i64() < pair[1]["time_nano"].as_i64()));
    node.finish();
}

#[test]
fn a_person_follows_what_happens() {
    let node = TestNode::start();
    let pod = node.pod("web").host_network().run();
    let mut command = node.aril(["events", "-f", "--filter", "event=stopped"]);
    let mut following = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(following.stdout.take().unwrap()).lines();
    let container = pod.run(["true"]);
    let line = told.next().unwrap().unwrap();
    assert!(line.contains(&container.id[..12]) && line.ends_with("exit_code=0 reason=Completed"), "{line}");
    assert!(node.stop_daemon().success());
    assert!(told.next().is_none());
    let output = following.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("the daemon ends"), "{error}");
    node.finish();
}

#[test]
fn readers_do_not_keep_a_daemon_from_ending() {
    let node = TestNode::start();
    let mut events = Events::follow(node.cri());
    let begun = Instant::now();
    assert!(node.stop_daemon().success());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(events.try_next().unwrap_err().code(), Code::Unavailable);
    node.finish();
}
