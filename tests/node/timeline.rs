//! Where the time of operations went.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aril::api::cri::{ContainerStatusRequest, PodSandboxStatusRequest};
use serde_json::Value;

use crate::support::{Container, Pod, TestNode};

/// What is told of timelines to people.
const DOCUMENTED: &str = include_str!("../../docs/timeline.md");

fn of_pod(node: &TestNode, pod: &Pod<'_>) -> Vec<Value> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    timeline(&node.cri().runtime(|mut c| async move { c.pod_sandbox_status(request).await }).unwrap().info["info"])
}

fn of_container(node: &TestNode, container: &Container<'_>) -> Vec<Value> {
    let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    timeline(&node.cri().runtime(|mut c| async move { c.container_status(request).await }).unwrap().info["info"])
}

fn timeline(info: &str) -> Vec<Value> {
    let info: Value = serde_json::from_str(info).expect("JSON");
    info["timeline"].as_array().expect("a timeline").clone()
}

fn names(operations: &[Value]) -> Vec<&str> {
    operations.iter().map(|operation| operation["operation"].as_str().unwrap()).collect()
}

/// Each step is known, lies in its operation, and those that are not side by side take no longer together.
fn check(operation: &Value, took: Duration) {
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {operation}"));
    let whole = number(&operation["elapsed_us"]);
    assert!(u128::from(whole) <= took.as_micros(), "{operation} in {took:?}");
    let section = DOCUMENTED.split("\n## ").find(|s| s.starts_with(operation["operation"].as_str().unwrap()));
    let section = section.unwrap_or_else(|| panic!("{operation} is not documented"));
    let mut sum = 0;
    for step in operation["steps"].as_array().unwrap() {
        let name = step["name"].as_str().unwrap();
        assert!(section.contains(&format!("`{name}`")), "{name} is not documented");
        let (start, elapsed) = (number(&step["start_us"]), number(&step["elapsed_us"]));
        assert!(start + elapsed <= whole, "{name} outside of {operation}");
        let is_beside = matches!(name, "network" | "files") && operation["operation"] == "RunPodSandbox";
        if !name.contains('/') && !is_beside {
            sum += elapsed;
        }
    }
    assert!(sum <= whole, "the steps of {operation} take {sum} µs");
}

fn steps(operation: &Value) -> BTreeSet<&str> {
    operation["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

#[test]
fn every_operation_tells_its_steps_also_after_a_restart() {
    let node = TestNode::start();
    let timed = |act: &mut dyn FnMut()| {
        let begun = Instant::now();
        act();
        begun.elapsed()
    };
    let (mut pod, mut container) = (None, None);
    let run = timed(&mut || pod = Some(node.run_pod("times")));
    let pod = pod.unwrap();
    let builder = pod.container(["sleep", "100000"]);
    let create = timed(&mut || container = Some(builder.clone().create()));
    let container = container.unwrap();
    let start = timed(&mut || container.start().unwrap());
    let stop = timed(&mut || container.stop(0).unwrap());

    let of_it = of_container(&node, &container);
    assert_eq!(names(&of_it), ["CreateContainer", "StartContainer", "StopContainer"]);
    for (operation, took) in of_it.iter().zip([create, start, stop]) {
        check(operation, took);
    }
    let made = steps(&of_it[0]);
    assert!(
        made.is_superset(&["image", "spec", "plan", "files", "shim", "shim/clone", "shim/rootfs"].into()),
        "{made:?}"
    );
    assert!(steps(&of_it[1]).contains("exec") && steps(&of_it[2]).contains("kill"));

    let ready = of_pod(&node, &pod);
    check(&ready[0], run);
    let made = steps(&ready[0]);
    let expected = ["plan", "record", "network", "network/driver", "shim", "sandbox", "files"];
    assert!(made.is_superset(&expected.into()), "{made:?}");
    assert_eq!(names(&ready), ["RunPodSandbox"]);
    let stop = timed(&mut || pod.stop().unwrap());
    let stopped = of_pod(&node, &pod);
    assert_eq!(names(&stopped), ["RunPodSandbox", "StopPodSandbox"]);
    check(&stopped[1], stop);
    assert_eq!(steps(&stopped[1]), ["shim", "network"].into());

    node.kill_daemon();
    node.restart();
    assert_eq!((of_pod(&node, &pod), of_container(&node, &container)), (stopped, of_it));
    node.finish();
}

#[test]
fn a_stop_tells_of_its_grace() {
    let node = TestNode::start();
    let pod = node.pod("grace").host_network().run();
    let patient = pod.container(["/probe", "term", "0"]).run();
    patient.wait_log("ready");
    patient.stop(30).unwrap();
    let of_it = of_container(&node, &patient);
    assert!(steps(&of_it[2]).contains("grace") && !steps(&of_it[2]).contains("kill"), "{of_it:?}");

    let stubborn = pod.container(["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done"]).run();
    stubborn.wait_log("ready");
    stubborn.stop(1).unwrap();
    let of_it = of_container(&node, &stubborn);
    let stop = of_it[2]["steps"].as_array().unwrap();
    let took = |name: &str| stop.iter().find(|step| step["name"] == name).unwrap()["elapsed_us"].as_u64().unwrap();
    assert!(took("grace") >= 900_000 && steps(&of_it[2]).contains("kill"), "{stop:?}");

    // One that ends by itself was not stopped, and a pod on the host's network has none of its own.
    let ended = pod.run(["true"]);
    ended.wait_exited();
    assert_eq!(names(&of_container(&node, &ended)), ["CreateContainer", "StartContainer"]);
    assert!(!steps(&of_pod(&node, &pod)[0]).contains("network"));
    node.finish();
}

#[test]
fn a_person_sees_where_the_time_went() {
    let node = TestNode::start();
    let pod = node.pod("web").host_network().run();
    let container = pod.run(["sleep", "100000"]);
    let aril = |arguments: &[&str]| {
        let output = node.aril(arguments.iter().copied()).output().expect("run aril");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let drawn = aril(&["inspect", "--timeline", "web"]);
    for word in
        ["pod web", "RunPodSandbox", "sandbox", "CreateContainer", "rootfs", "StartContainer", "exec", "█", "s\n"]
    {
        assert!(drawn.contains(word), "{word:?} is not in\n{drawn}");
    }
    assert!(!drawn.contains('\x1b') && drawn.lines().all(|line| line.chars().count() <= 80), "{drawn}");

    let told: Value = serde_json::from_str(&aril(&["inspect", "--timeline", &container.id, "-o", "json"])).unwrap();
    assert_eq!((&told[0]["kind"], &told[1]["kind"]), (&"pod".into(), &"container".into()));
    assert_eq!(told[1]["timeline"].as_array().unwrap(), &of_container(&node, &container));

    let trace: Value = serde_json::from_str(&aril(&["inspect", "--timeline=chrome", &container.id])).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert!(complete.iter().any(|event| event["name"] == "shim/rootfs"));
    for event in complete {
        assert!(event["ts"].is_u64() && event["dur"].is_u64() && event["pid"].is_u64() && event["tid"].is_u64());
    }
    let refused = node.aril(["inspect", "--timeline", "nothing-like-it"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    node.finish();
}
