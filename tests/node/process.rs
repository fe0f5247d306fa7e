//! How a container's process begins, what it is given, and how it ends.

use std::time::{Duration, Instant};

use aril::api::cri::{ContainerState, NamespaceMode, Signal as CriSignal};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Options, PATIENCE, TestNode, process_alive, read_proc, wait_for};

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
fn command_and_arguments_replace_those_of_the_image() {
    let node = TestNode::start();
    let pod = node.run_pod("command");
    let run = |command: &[&str], args: &[&str]| {
        let builder = pod.container(command.iter().copied());
        let container = builder.with(|c| c.args = args.iter().map(|a| (*a).to_owned()).collect()).run();
        container.wait_exited();
        container.log()
    };
    assert!(run(&[], &[]).contains("\"arguments\":[\"/probe\",\"report\"]"));
    assert_eq!(run(&[], &["say", "from args"]), "from args\n");
    assert_eq!(run(&["echo"], &["a", "b"]), "a b\n");
    assert_eq!(run(&["echo", "alone"], &[]), "alone\n");
    node.finish();
}

#[test]
fn the_environment_is_the_images_and_the_requests() {
    let node = TestNode::start();
    let pod = node.pod("env").with(|c| c.hostname = "host-of-env".to_owned()).run();
    let report = pod.container(["x"]).env("A", "1").env("B", "two words\nand lines").env("A", "2").report();
    let environment = strings(&report["environment"]);
    assert_eq!(environment.iter().filter(|e| e.starts_with("A=")).collect::<Vec<_>>(), [&"A=2"]);
    assert!(environment.contains(&"B=two words\nand lines"));
    assert!(environment.contains(&"HOSTNAME=host-of-env"));
    assert!(environment.contains(&"HOME=/root"), "{environment:?}");
    assert!(environment.iter().any(|e| e.starts_with("PATH=/")));
    assert!(!environment.iter().any(|e| e.starts_with("CARGO") || e.starts_with("ARIL")), "{environment:?}");
    node.finish();
}

#[test]
fn the_working_directory_is_made_if_it_is_not_there() {
    let node = TestNode::start();
    let pod = node.run_pod("cwd");
    let report = |dir: &str| pod.container(["x"]).with(|c| c.working_dir = dir.to_owned()).report()["cwd"].clone();
    assert_eq!(report(""), "/");
    assert_eq!(report("/tmp"), "/tmp");
    assert_eq!(report("/made/for/it"), "/made/for/it");
    node.finish();
}

/// The daemon and its shims raise their own limit; programs that use select(2) must not inherit that.
#[test]
fn open_files_are_limited_as_for_the_daemon_when_it_started() {
    let node = TestNode::with(Options { open_files: 300, ..Options::default() });
    let limits = |pid: i32| {
        let text = read_proc(pid, "limits");
        let line = text.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap();
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(u64::MAX));
        (numbers.next(), numbers.next())
    };
    for pod in [node.run_pod("own"), node.pod("shared").namespaces(|n| n.pid = NamespaceMode::Pod.into()).run()] {
        let container = pod.sleeper();
        for pid in [node.daemon_pid(), kernel_parent(container.init_pid())] {
            let (soft, hard) = limits(pid);
            assert!(soft == hard && soft > Some(300), "{soft:?} of {hard:?} open files");
        }
        assert_eq!(limits(container.init_pid()).0, Some(300));
        assert_eq!(container.sh("ulimit -Sn"), "300");
        assert_eq!(container.sh("ulimit -Hn"), limits(container.init_pid()).1.unwrap().to_string());
    }
    node.finish();
}

fn kernel_parent(pid: i32) -> i32 {
    let stat = read_proc(pid, "stat");
    stat.rsplit_once(')').unwrap().1.split(' ').nth(2).unwrap().parse().unwrap()
}

#[test]
fn what_the_image_says_is_the_default() {
    let node = TestNode::start();
    let image = node.import("configured");
    let pod = node.run_pod("configured");
    let container = pod.container([]).image(&image).run();
    container.wait_log("ready");
    assert_eq!(container.sh("readlink /proc/1/cwd"), "/srv/work");
    let started = Instant::now();
    // It only tells of the signal, so it is killed in the end; but the first is the image's.
    container.stop(1).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(container.log().contains("signal 10"), "{}", container.log());
    node.finish();
}

#[test]
fn exit_codes_and_signals_are_told() {
    let node = TestNode::start();
    let pod = node.run_pod("codes");
    for code in [0, 1, 42, 255] {
        assert_eq!(pod.script(&format!("exit {code}")).0, code);
    }
    // Process 1 is deaf to its own signals, so a child aborts.
    assert_eq!(pod.script("/probe abort; exit $?").0, 134);
    let container = pod.sleeper();
    container.kill(Signal::SIGKILL);
    let status = container.wait_exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    node.finish();
}

#[test]
fn children_left_behind_are_reaped_and_end_with_the_container() {
    let node = TestNode::start();
    let container = node.run(["/probe", "orphan", "2", "then", "stubborn"]);
    container.wait_log("ready");
    let pids = container.pids();
    assert_eq!(pids.len(), 3, "{pids:?}");
    container.kill(Signal::SIGKILL);
    container.wait_exited();
    assert!(pids.iter().all(|&p| !process_alive(p)));
    node.finish();
}

#[test]
fn stop_sends_term_and_waits_no_longer_than_needed() {
    let node = TestNode::start();
    let container = node.run(["/probe", "term", "7"]);
    container.wait_log("ready");
    let start = Instant::now();
    container.stop(30).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!((container.state(), container.status().exit_code), (ContainerState::ContainerExited, 7));
    node.finish();
}

#[test]
fn stop_kills_what_does_not_obey_after_its_grace() {
    let node = TestNode::start();
    let container = node.run(["/probe", "stubborn"]);
    container.wait_log("ready");
    let start = Instant::now();
    container.stop(2).unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(container.status().exit_code, 137);
    node.finish();
}

#[test]
fn stop_without_grace_kills_at_once() {
    let node = TestNode::start();
    let container = node.run(["/probe", "stubborn"]);
    container.wait_log("ready");
    let start = Instant::now();
    container.stop(0).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(container.status().exit_code, 137);
    node.finish();
}

#[test]
fn a_second_stop_shortens_the_first_and_signals_once() {
    let node = TestNode::start();
    let container = node.run(["/probe", "signals"]);
    container.wait_log("ready");
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| container.stop(60).unwrap());
        container.wait_log("signal 15");
        container.stop(1).unwrap();
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(container.log().matches("signal 15").count(), 1);
    node.finish();
}

#[test]
fn the_stop_signal_may_be_asked_for() {
    let node = TestNode::start();
    let container = node.run_pod("signal").container(["/probe", "signals"]);
    let container = container.with(|c| c.stop_signal = CriSignal::Sigusr2.into()).run();
    container.wait_log("ready");
    assert_eq!(container.status().stop_signal(), CriSignal::Sigusr2);
    container.stop(1).unwrap();
    assert!(container.log().contains("signal 12") && !container.log().contains("signal 15"), "{}", container.log());
    node.finish();
}

#[test]
fn one_slow_stop_delays_no_other_call() {
    let node = TestNode::start();
    let (stubborn, other) = (node.run(["/probe", "stubborn"]), node.run_pod("other").sleeper());
    stubborn.wait_log("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| stubborn.stop(5).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        assert_eq!(stubborn.state(), ContainerState::ContainerRunning);
        assert_eq!(stubborn.exec(["echo", "still"]).stdout, "still\n");
        assert_eq!(other.exec(["echo", "here"]).stdout, "here\n");
        assert_eq!(node.container_ids().len(), 2);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        stubborn.stop(0).unwrap();
    });
    node.finish();
}

#[test]
fn without_stdin_there_is_its_end() {
    let node = TestNode::start();
    let container = node.run(["/probe", "cat"]);
    assert_eq!(container.wait_exited().exit_code, 0);
    assert_eq!(container.log(), "eof\n");
    node.finish();
}

#[test]
fn with_stdin_the_process_waits_for_input() {
    let node = TestNode::start();
    let container = node.run_pod("stdin").container(["/probe", "cat"]).with(|c| c.stdin = true).run();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(container.state(), ContainerState::ContainerRunning);
    container.stop(0).unwrap();
    node.finish();
}

#[test]
fn a_terminal_is_all_three_streams() {
    let node = TestNode::start();
    let container = node.run_pod("tty").container(["/probe", "tty", "then", "err", "one", "then", "report"]);
    let container = container.with(|c| c.tty = true).run();
    assert_eq!(container.wait_exited().exit_code, 0);
    let lines = container.log_lines();
    assert!(lines.iter().all(|l| l.stream == "stdout"), "a terminal has one stream");
    for fd in 0..3 {
        assert!(lines.iter().any(|l| l.content.starts_with(&format!("tty {fd} "))), "{lines:?}");
    }
    let report = lines.iter().find(|l| l.content.contains("\"descriptors\"")).unwrap();
    assert!(report.content.contains("0 /dev/pts/0"), "{}", report.content);
    node.finish();
}

#[test]
fn the_processes_of_a_container_have_three_descriptors() {
    let node = TestNode::start();
    let pod = node.run_pod("descriptors");
    let container = pod.sleeper();
    for report in [pod.container(["x"]).report(), container.report()] {
        let open = strings(&report["descriptors"]);
        let numbers: Vec<&str> = open.iter().filter_map(|d| d.split(' ').next()).collect();
        assert_eq!(numbers, ["0", "1", "2"], "{open:?}");
        assert_eq!(report["signals_blocked"], "0000000000000000");
        // SIGPIPE, by the probe's own language.
        assert_eq!(report["signals_ignored"], "0000000000001000");
        assert_eq!(report["umask"], "0022");
    }
    node.finish();
}

#[test]
fn a_crash_loop_leaves_nothing() {
    let node = TestNode::start();
    let pod = node.run_pod("loop");
    for attempt in 0..10 {
        let container = pod.container(["sh", "-c", "exit 1"]);
        let container = container.with(|c| c.metadata.as_mut().unwrap().attempt = attempt).run();
        assert_eq!(container.wait_exited().exit_code, 1);
        container.remove().unwrap();
    }
    wait_for("an empty list", PATIENCE, || node.container_ids().is_empty().then_some(()));
    node.finish();
}
