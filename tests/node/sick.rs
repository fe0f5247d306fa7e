//! Containers in a bad way: frozen, starved, killed between two calls.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aril::api::cri::ContainerState;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Container, Entry, PATIENCE, TestNode, cgroup_of, custom_image, wait_for};

/// The file that freezes a container, and what to write to freeze it.
fn freezer(container: &Container<'_>) -> (PathBuf, &'static str) {
    let dir = cgroup_of(container.init_pid(), "freezer");
    let v1 = dir.join("freezer.state");
    if v1.exists() { (v1, "FROZEN") } else { (dir.join("cgroup.freeze"), "1") }
}

#[test]
fn a_frozen_container_is_stopped_and_removed() {
    let node = TestNode::start();
    let (pod, fine) = (node.run_pod("frozen"), node.run_pod("fine").sleeper());
    for remove in [false, true] {
        let container = pod.run(["sh", "-c", "while true; do sleep 0.01; done"]);
        let (file, frozen) = freezer(&container);
        fs::write(file, frozen).unwrap();
        let start = Instant::now();
        if !remove {
            container.stop(1).unwrap();
            assert_eq!(container.status().exit_code, 137);
        }
        container.remove().unwrap();
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        assert_eq!(fine.sh("echo fine"), "fine");
    }
    node.finish();
}

/// A start that hangs in the kernel is one start, whoever asks for it: a second call joins it, and ends no container.
#[test]
fn a_start_under_way_is_joined_also_by_the_next_daemon() {
    let node = TestNode::start();
    let container = node.run_pod("slow").container(["sleep", "100000"]).create();
    let (file, frozen) = freezer(&container);
    let thawed = if frozen == "1" { "0" } else { "THAWED" };
    fs::write(&file, frozen).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| container.start());
        std::thread::sleep(Duration::from_millis(500));
        node.kill_daemon();
        assert!(first.join().unwrap().is_err());
        node.restart();
        assert_eq!(container.state(), ContainerState::ContainerCreated);
        let again = [scope.spawn(|| container.start()), scope.spawn(|| container.start())];
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(container.state(), ContainerState::ContainerCreated);
        fs::write(&file, thawed).unwrap();
        again.into_iter().for_each(|call| call.join().unwrap().unwrap());
    });
    assert_eq!((container.state(), container.sh("echo up")), (ContainerState::ContainerRunning, "up".to_owned()));
    node.finish();
}

#[test]
fn an_exec_in_a_frozen_container_ends_at_its_limit() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let (file, frozen) = freezer(&container);
    fs::write(file, frozen).unwrap();
    let start = Instant::now();
    assert!(container.try_exec(["true"], 1).is_err());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    node.finish();
}

#[test]
fn a_container_with_too_little_memory_to_begin_fails_clearly() {
    let node = TestNode::start();
    let pod = node.run_pod("starved");
    for bytes in [4096, 100 << 10] {
        let container = pod.container(["sleep", "100000"]);
        let container =
            container.resources(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (bytes, bytes));
        let start = Instant::now();
        match container.try_run() {
            Ok(container) => drop(container.remove()),
            Err(e) => assert!(e.message().contains("memory") || e.message().contains("OOM"), "{}", e.message()),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    assert_eq!(pod.script("echo fine"), (0, "fine\n".to_owned()));
    node.finish();
}

#[test]
fn a_process_killed_before_its_start_is_an_exit() {
    let node = TestNode::start();
    let container = node.run_pod("early").container(["sleep", "100000"]).create();
    container.kill(Signal::SIGKILL);
    wait_for("its end", PATIENCE, || container.pids().is_empty().then_some(()));
    // Killed, or failed to start: which is told depends on who is first.
    assert!(container.start().is_err());
    assert!([128, 137].contains(&container.wait_exited().exit_code));
    container.remove().unwrap();
    node.finish();
}

#[test]
fn a_fork_bomb_is_stopped_with_all_its_processes() {
    let node = TestNode::start();
    let pod = node.run_pod("bomb");
    let container = pod.run(["sh", "-c", "for i in $(seq 200); do (while true; do sleep 5; done) & done; wait"]);
    wait_for("many processes", PATIENCE, || (container.pids().len() > 200).then_some(()));
    let start = Instant::now();
    container.stop(0).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(container.pids().is_empty());
    node.finish();
}

#[test]
fn an_import_cut_short_leaves_no_half_image() {
    let node = TestNode::start();
    let layers = || fs::read_dir(node.path("root/layers")).unwrap().count();
    let (before, body) = (layers(), vec![7; 8 << 20]);
    let entries = [Entry::Probe("probe"), Entry::File("large", 0o644, &body)];
    let archive = custom_image(&node.path(""), "large", &json!({"Cmd": ["/probe"]}), &entries);
    for wait_ms in [0, 2, 5, 10, 20, 40, 80] {
        std::thread::scope(|scope| {
            let call = scope.spawn(|| node.cri().import(&archive).is_ok());
            std::thread::sleep(Duration::from_millis(wait_ms));
            node.kill_daemon();
            drop(call.join());
        });
        node.restart();
        let builder = node.run_pod("after").container(["/probe", "stat", "/large"]).image("large");
        match builder.try_run() {
            Ok(container) => {
                container.wait_exited();
                assert!(container.log().contains("/large file 644 0 0 8388608"), "{}", container.log());
                assert_eq!(layers(), before + 1);
            }
            Err(e) => assert!(layers() == before, "after {wait_ms} ms: {}: {} layers", e.message(), layers()),
        }
        node.remove_all_pods();
    }
    node.finish();
}

#[test]
fn a_created_container_outlives_the_daemon_and_starts() {
    let node = TestNode::start();
    let container = node.run_pod("waiting").container(["sleep", "100000"]).create();
    for _ in 0..3 {
        node.kill_daemon();
        node.restart();
        assert_eq!(container.state(), ContainerState::ContainerCreated);
    }
    container.start().unwrap();
    assert_eq!(container.sh("echo fine"), "fine");
    node.finish();
}

#[test]
fn arguments_of_every_kind_arrive() {
    let node = TestNode::start();
    let odd = ["", " ", "a\nb", "\u{1}\u{7f}", "ünï 🦀", "$(x) `y` \\ \" '", "--", "-"];
    let pod = node.run_pod("arguments");
    let sleeper = pod.sleeper();
    for text in odd {
        let container = pod.run(["/probe", "say", text]);
        container.wait_exited();
        assert_eq!(container.log(), format!("{text}\n"));
        assert_eq!(sleeper.exec(["/probe", "say", text]).stdout, format!("{text}\n"));
    }
    node.finish();
}
