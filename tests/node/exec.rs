//! ExecSync.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::support::{PATIENCE, TestNode, pids_in_cgroup, process_alive, read_proc, refused, wait_for};

#[test]
fn output_and_exit_code_come_back() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let output = container.exec(["sh", "-c", "printf out; printf err >&2; exit 5"]);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (5, "out", "err"));
    assert_eq!(container.exec(["true"]).code, 0);
    assert_eq!(container.exec(["sh", "-c", "kill -9 $$"]).code, 137);
    node.finish();
}

#[test]
fn it_is_in_all_namespaces_and_cgroups_of_its_container() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let init = container.init_pid();
    let report = container.report();
    for (name, value) in report["namespaces"].as_object().unwrap() {
        assert_eq!(value.as_str().unwrap(), crate::support::namespace(init, name), "{name}");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| container.try_exec(["sleep", "2"], 0).unwrap());
        let second = wait_for("its process", PATIENCE, || container.pids().into_iter().find(|&p| p != init));
        for (mine, its) in read_proc(second, "cgroup").lines().zip(read_proc(init, "cgroup").lines()) {
            assert!(mine.starts_with(its), "{mine} is not below {its}");
        }
    });
    node.finish();
}

#[test]
fn what_cannot_run_is_told_in_a_sentence() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    // As a shell has it: 127 not found, 126 not executable; or an error that names it.
    for (program, code) in [("/no/such/program", 127), ("no-such-program", 127), ("/etc/passwd", 126)] {
        match container.try_exec([program], 10) {
            Ok(output) => assert_eq!(output.code, code, "{output:?}"),
            Err(e) => assert!(e.message().contains(program), "{}", e.message()),
        }
    }
    refused(container.try_exec([], 10), Code::InvalidArgument, &["cmd"]);
    refused(container.try_exec(["a\0b"], 10), Code::InvalidArgument, &["cmd"]);
    node.finish();
}

#[test]
fn it_wants_a_running_container() {
    let node = TestNode::start();
    let pod = node.run_pod("states");
    let created = pod.container(["sleep", "100000"]).create();
    refused(created.try_exec(["true"], 1), Code::FailedPrecondition, &[&created.id[..12]]);
    let exited = pod.run(["true"]);
    exited.wait_exited();
    refused(exited.try_exec(["true"], 1), Code::FailedPrecondition, &[&exited.id[..12]]);
    refused(exited.called(&"0".repeat(64)).try_exec(["true"], 1), Code::NotFound, &[]);
    node.finish();
}

#[test]
fn at_its_limit_the_whole_tree_is_killed() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let init = container.init_pid();
    let script = "sleep 71 & (setsid sleep 72 &) ; (setsid sh -c 'sleep 73 & exec sleep 74' &) ; sleep 75";
    let start = Instant::now();
    refused(container.try_exec(["sh", "-c", script], 1), Code::DeadlineExceeded, &[]);
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    wait_for("only the first process", PATIENCE, || (container.pids() == [init]).then_some(()));
    assert_eq!(container.exec(["echo", "alive"]).stdout, "alive\n");
    node.finish();
}

#[test]
fn what_ignores_term_is_killed_at_the_limit_too() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    refused(container.try_exec(["/probe", "stubborn"], 1), Code::DeadlineExceeded, &[]);
    wait_for("only the first process", PATIENCE, || (container.pids().len() == 1).then_some(()));
    node.finish();
}

#[test]
fn a_background_child_holding_the_pipe_does_not_hang_it() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let start = Instant::now();
    let output = container.try_exec(["sh", "-c", "echo before; sleep 333 & exit 3"], 30).unwrap();
    assert_eq!((output.code, output.stdout.as_str()), (3, "before\n"));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    node.finish();
}

#[test]
fn output_is_capped_and_the_process_still_ends() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let before = resident_kib(node.daemon_pid());
    let output = container.try_exec(["/probe", "flood", "60000", "999"], 50).unwrap();
    // A little less than 16 MiB: the answer must fit into a message of that size.
    let cap = 16 << 20;
    assert!(output.code == 0 && output.stdout.len() <= cap && output.stdout.len() > cap - 65536);
    let grown = resident_kib(node.daemon_pid()).saturating_sub(before);
    assert!(grown < 128 << 10, "the daemon grew by {grown} KiB");
    node.finish();
}

fn resident_kib(pid: i32) -> u64 {
    let status = read_proc(pid, "status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn it_ends_with_the_daemon_however_that_ends() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let init = container.init_pid();
    for told in [true, false] {
        let mut client = node.aril(["exec", &container.id, "sh", "-c", "sleep 1000; true"]);
        let mut client =
            client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for("its processes", PATIENCE, || (container.pids().len() == 3).then_some(()));
        if told {
            assert!(node.stop_daemon().success());
        } else {
            node.kill_daemon();
        }
        wait_for("only the first process", PATIENCE, || (container.pids() == [init]).then_some(()));
        assert!(!client.wait().unwrap().success());
        node.restart();
    }
    node.finish();
}

#[test]
fn a_client_that_hangs_up_ends_it() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let init = container.init_pid();
    let request = aril::api::cri::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: vec!["sleep".to_owned(), "4444".to_owned()],
        timeout: 0,
    };
    let gone = node.cri().runtime(|mut c| async move {
        let call = c.exec_sync(request);
        match tokio::time::timeout(Duration::from_millis(500), call).await {
            Ok(answer) => answer,
            Err(_) => Err(tonic::Status::cancelled("hung up")),
        }
    });
    assert_eq!(gone.unwrap_err().code(), Code::Cancelled);
    wait_for("the end of the session", PATIENCE, || (container.pids() == [init]).then_some(()));
    node.finish();
}

#[test]
fn stopping_the_container_ends_it() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| container.try_exec(["sleep", "100000"], 0));
        wait_for("its process", PATIENCE, || (container.pids().len() == 2).then_some(()));
        container.stop(0).unwrap();
        let answer = call.join().unwrap();
        assert!(answer.is_err() || answer.unwrap().code == 137);
    });
    assert!(pids_in_cgroup(&container.id).iter().all(|&p| !process_alive(p)));
    node.finish();
}

#[test]
fn many_at_once() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    std::thread::scope(|scope| {
        for i in 0..20 {
            let container = &container;
            scope.spawn(move || {
                let text = i.to_string();
                assert_eq!(container.exec(["echo", &text]).stdout, format!("{text}\n"));
            });
        }
    });
    node.finish();
}
