//! Many things, often, and at once.

use std::time::{Duration, Instant};

use aril::api::cri::{CreateContainerRequest, RunPodSandboxRequest};
use tonic::Status;

use crate::support::{Container, PATIENCE, TestNode, read_proc, wait_for};

/// The shim of a container: its first process's parent.
fn shim_of(container: &Container<'_>) -> i32 {
    let stat = read_proc(container.init_pid(), "stat");
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Memory that a process has written to, in KiB. (Unwritten memory is shared with whoever runs the same program.)
fn written_kib(pid: i32) -> u64 {
    let text = read_proc(pid, "smaps_rollup");
    let line = text.lines().find_map(|l| l.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn sessions_leave_nothing_in_shim_and_daemon() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let shim = shim_of(&container);
    let picture =
        || (descriptors(shim), descriptors(node.daemon_pid()), written_kib(shim), written_kib(node.daemon_pid()));
    for _ in 0..20 {
        container.exec(["true"]);
    }
    std::thread::sleep(Duration::from_secs(1));
    let before = picture();
    for i in 0..200 {
        assert_eq!(container.exec(["sh", "-c", "echo x; exit 3"]).code, 3, "exec {i}");
    }
    // The last session's own are closed a moment after its answer.
    let settled = || Some(picture()).filter(|p| (p.0, p.1) <= (before.0, before.1));
    let after = wait_for("as few descriptors as before", PATIENCE, settled);
    assert!(after.2 <= before.2 + 300, "the shim grew from {} to {} KiB", before.2, after.2);
    assert!(after.3 <= before.3 + 4096, "the daemon grew from {} to {} KiB", before.3, after.3);
    node.finish();
}

#[test]
fn twenty_pods_at_once_come_and_go() {
    let node = TestNode::start();
    std::thread::scope(|scope| {
        for i in 0..20 {
            let node = &node;
            scope.spawn(move || {
                let pod = node.run_pod(&format!("p{i}"));
                let container = pod.run(["/probe", "term", "0"]);
                container.wait_log("ready");
                assert_eq!(container.sh("echo $((6*7))"), "42");
                container.stop(10).unwrap();
                assert_eq!(container.status().exit_code, 0);
                pod.stop().unwrap();
                pod.remove().unwrap();
            });
        }
    });
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn thirty_containers_in_one_pod() {
    let node = TestNode::start();
    let pod = node.run_pod("crowd");
    let all: Vec<Container<'_>> = (0..30).map(|_| pod.sleeper()).collect();
    node.kill_daemon();
    node.restart();
    assert!(all.iter().all(|c| c.sh("echo here") == "here"));
    let start = Instant::now();
    pod.stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    node.finish();
}

#[test]
fn a_call_given_up_by_its_client_is_joined_by_the_next() {
    let node = TestNode::start();
    for limit_us in [100, 500, 1_000, 2_000, 5_000, 10_000, 20_000] {
        let limit = Duration::from_micros(limit_us);
        let builder = node.pod(&format!("given-up-{limit_us}"));
        let request = RunPodSandboxRequest { config: Some(builder.config.clone()), ..Default::default() };
        // Whether it was in time is no matter.
        drop(node.cri().runtime(|mut c| async move {
            let given_up = |_| Err(Status::cancelled("given up"));
            tokio::time::timeout(limit, c.run_pod_sandbox(request)).await.unwrap_or_else(given_up)
        }));
        let pod = builder.run();
        let builder = pod.container(["sleep", "100000"]);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(builder.config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        drop(node.cri().runtime(|mut c| async move {
            let given_up = |_| Err(Status::cancelled("given up"));
            tokio::time::timeout(limit, c.create_container(request)).await.unwrap_or_else(given_up)
        }));
        let container = builder.run();
        assert_eq!(container.sh("echo works"), "works");
        assert_eq!((node.pod_ids().len(), node.container_ids().len()), (1, 1), "after {limit:?}");
        pod.remove().unwrap();
    }
    node.finish();
}

#[test]
fn output_faster_than_any_disk_stays_whole() {
    let node = TestNode::start();
    let pod = node.run_pod("flood");
    let containers: Vec<Container<'_>> = (0..4).map(|_| pod.run(["/probe", "flood", "50000", "200"])).collect();
    for container in &containers {
        assert_eq!(container.wait_exited().exit_code, 0);
        let lines = container.log_lines();
        assert!(lines.len() == 50_000 && lines.iter().all(|l| l.content.len() == 200), "{} lines", lines.len());
    }
    node.finish();
}

#[test]
fn removal_during_everything() {
    let node = TestNode::start();
    for round in 0..5 {
        let pod = node.run_pod(&format!("busy-{round}"));
        let container = pod.run(["sh", "-c", "while true; do echo x; done"]);
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| container.try_exec(["sleep", "100"], 0))).collect();
            let stopping = scope.spawn(|| container.stop(30));
            std::thread::sleep(Duration::from_millis(50));
            pod.remove().unwrap();
            drop(stopping.join().unwrap());
            for call in calls {
                drop(call.join().unwrap());
            }
        });
        wait_for("the end of its processes", PATIENCE, || container.pids().is_empty().then_some(()));
        // Logs of a busy loop are large.
        std::fs::remove_dir_all(&pod.config.log_directory).unwrap();
    }
    node.finish();
}
