//! The daemon may die at any moment; nothing else notices.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aril::api::cri::{ContainerState, PodSandboxState};
use nix::sys::signal::Signal;

use crate::support::{
    Container, PATIENCE, Pod, TestNode, kill, namespace, pids_in_cgroup, process_alive, read_proc, wait_for,
};

/// The shim of a container: its first process's parent.
fn shim_of(container: &Container<'_>) -> i32 {
    let stat = read_proc(container.init_pid(), "stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[1].parse().unwrap()
}

/// When a process began, as the kernel counts it: the same pid with the same time is the same process.
fn birth(pid: i32) -> String {
    let stat = read_proc(pid, "stat");
    stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').nth(19).unwrap_or_default().to_owned()).unwrap_or_default()
}

#[test]
fn an_exit_while_the_daemon_is_down_is_told_when_it_is_back() {
    let node = TestNode::start();
    let container = node.run(["sleep", "1000"]);
    node.kill_daemon();
    container.kill(Signal::SIGKILL);
    node.restart();
    let status = container.wait_exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    node.finish();
}

#[test]
fn everything_told_is_as_before() {
    let node = TestNode::start();
    let map = [("k".to_owned(), "v \n\u{1} é".to_owned())];
    let pod = node.pod("same").with(|c| (c.labels, c.annotations) = (map.clone().into(), map.clone().into())).run();
    let running = pod.container(["sleep", "1000"]).resources(|r| r.memory_limit_in_bytes = 50 << 20);
    let running = running.with(|c| c.annotations = map.clone().into()).mount(&node.path("data"), "/data").run();
    let exited = pod.run(["sh", "-c", "exit 9"]);
    exited.wait_exited();
    let created = pod.container(["true"]).create();
    let stopped = node.run_pod("stopped");
    stopped.stop().unwrap();

    let picture = || {
        let containers = [&running, &exited, &created].map(Container::status);
        (pod.status(), stopped.status(), containers, node.pod_ids().len(), node.container_ids().len())
    };
    let before = picture();
    for _ in 0..2 {
        node.kill_daemon();
        node.restart();
        assert_eq!(picture(), before);
    }
    created.start().unwrap();
    assert_eq!(created.wait_exited().exit_code, 0);
    node.finish();
}

#[test]
fn a_workload_goes_on_and_is_driven_as_before() {
    let node = TestNode::start();
    let container = node.run(["sh", "-c", "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done"]);
    container.wait_log("line 3");
    let (pid, born) = (container.init_pid(), birth(container.init_pid()));
    node.kill_daemon();
    std::thread::sleep(Duration::from_millis(500));
    node.restart();
    assert_eq!((container.init_pid(), birth(pid)), (pid, born));
    assert_eq!(container.sh("echo still"), "still");
    let old = container.log_path().with_extension("old");
    fs::rename(container.log_path(), &old).unwrap();
    container.reopen_log().unwrap();
    container.update(|r| r.memory_limit_in_bytes = 70 << 20).unwrap();
    container.stop(0).unwrap();
    let all = fs::read_to_string(&old).unwrap() + &fs::read_to_string(container.log_path()).unwrap();
    assert!(all.lines().enumerate().all(|(i, l)| l.ends_with(&format!(" F line {i}"))), "lines are missing");
    node.finish();
}

#[test]
fn new_containers_fit_into_an_old_pod() {
    let node = TestNode::start();
    let pod = node.run_pod("old");
    let first = pod.sleeper();
    node.kill_daemon();
    node.restart();
    let second = pod.sleeper();
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace(first.init_pid(), name), namespace(second.init_pid(), name), "{name}");
    }
    first.sh("echo shared > /dev/shm/file");
    assert_eq!(second.sh("cat /dev/shm/file"), "shared");
    node.finish();
}

#[test]
fn a_daemon_told_to_end_leaves_the_workloads() {
    let node = TestNode::start();
    let container = node.run(["sleep", "1000"]);
    let pid = container.init_pid();
    assert!(node.stop_daemon().success());
    assert!(process_alive(pid) && !node.socket().exists());
    node.restart();
    assert_eq!((container.state(), container.init_pid()), (ContainerState::ContainerRunning, pid));
    node.finish();
}

#[test]
fn a_second_daemon_is_refused_and_disturbs_nothing() {
    let node = TestNode::start();
    let container = node.run(["sleep", "1000"]);
    let second =
        node.aril(["--root"]).arg(node.path("root")).arg("--state").arg(node.path("state")).arg("serve").output();
    let second = second.unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("another") || text.contains("already") || text.contains("in use"), "{text}");
    assert_eq!(container.sh("echo fine"), "fine");
    node.finish();
}

/// A shim that is stuck when the daemon starts costs its pod nothing for good.
#[test]
fn a_shim_that_answers_late_is_found_again() {
    let node = TestNode::start();
    let (pod, lost) = (node.run_pod("late"), node.run_pod("lost"));
    let (goes_on, ends, dies) = (pod.sleeper(), pod.sleeper(), lost.sleeper());
    let fine = node.run_pod("other").sleeper();
    let (shim, lost_shim) = (shim_of(&goes_on), shim_of(&dies));
    node.kill_daemon();
    kill(shim, Signal::SIGSTOP);
    kill(lost_shim, Signal::SIGSTOP);
    ends.kill(Signal::SIGKILL);
    node.restart();
    for (pod, container) in [(&pod, &goes_on), (&pod, &ends), (&lost, &dies)] {
        assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
        assert_eq!(container.state(), ContainerState::ContainerUnknown);
    }
    let refusal = goes_on.try_exec(["true"], 1).unwrap_err();
    assert!(refusal.message().contains("does not answer"), "{}", refusal.message());
    assert_eq!(fine.sh("echo fine"), "fine");
    kill(shim, Signal::SIGCONT);
    kill(lost_shim, Signal::SIGKILL);
    wait_for("the pod to be ready again", PATIENCE, || pod.is_ready().then_some(()));
    assert_eq!((goes_on.state(), goes_on.sh("echo again")), (ContainerState::ContainerRunning, "again".to_owned()));
    assert_eq!(ends.wait_exited().exit_code, 137);
    assert_eq!(pod.sleeper().sh("echo new"), "new");
    dies.wait_exited();
    wait_for("the end of the other", PATIENCE, || pids_in_cgroup(&dies.id).is_empty().then_some(()));
    assert!(!lost.is_ready());
    node.finish();
}

#[test]
fn a_killed_shim_ends_its_pod_and_no_other() {
    let node = TestNode::start();
    let (pod, other) = (node.run_pod("sick"), node.run_pod("other"));
    let (container, fine) = (pod.sleeper(), other.sleeper());
    kill(shim_of(&container), Signal::SIGKILL);
    let status = container.wait_exited();
    assert_ne!(status.exit_code, 0);
    wait_for("the pod's end", PATIENCE, || (!pod.is_ready()).then_some(()));
    wait_for("the end of its processes", PATIENCE, || pids_in_cgroup(&container.id).is_empty().then_some(()));
    assert_eq!(fine.sh("echo fine"), "fine");
    assert!(other.is_ready());
    node.finish();
}

#[test]
fn a_shim_killed_while_the_daemon_is_down_is_found_out() {
    let node = TestNode::start();
    let (pod, fine) = (node.run_pod("sick"), node.run_pod("other").sleeper());
    let container = pod.sleeper();
    let shim = shim_of(&container);
    node.kill_daemon();
    kill(shim, Signal::SIGKILL);
    node.restart();
    assert_ne!(container.wait_exited().exit_code, 0);
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    assert_eq!(fine.sh("echo fine"), "fine");
    node.finish();
}

#[test]
fn after_a_reboot_all_has_ended_and_can_be_removed() {
    let node = TestNode::start();
    let pod = node.run_pod("before");
    let container = pod.container(["sleep", "1000"]).with(|c| drop(c.labels.insert("a".into(), "b".into()))).run();
    let (labels, shim) = (container.status().labels, shim_of(&container));
    node.kill_daemon();
    // What a reboot does: no process, no cgroup, an empty state directory.
    kill(shim, Signal::SIGKILL);
    for pid in pids_in_cgroup(&container.id) {
        kill(pid, Signal::SIGKILL);
    }
    wait_for("the end", PATIENCE, || pids_in_cgroup(&container.id).is_empty().then_some(()));
    crate::support::remove_cgroups(&node.cgroup_parent());
    fs::remove_dir_all(node.path("state")).unwrap();
    node.restart();
    let status = container.wait_exited();
    assert!(status.exit_code != 0 && status.labels == labels, "{status:?}");
    assert!(!pod.is_ready());
    assert_eq!(node.run_pod("after").sleeper().sh("echo new"), "new");
    node.finish();
}

/// All files of the daemon whose path holds `text`.
fn records(node: &TestNode, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![node.path("root/pods"), node.path("state/pods")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() && entry.path().display().to_string().contains(text) {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_container_with_a_damaged_record_goes_on_and_is_known_as_before() {
    let node = TestNode::start();
    let pod = node.run_pod("damaged");
    let (container, fine) = (pod.sleeper(), pod.sleeper());
    let created = pod.container(["sleep", "1000"]).create();
    let (before, pid) = (container.status(), container.init_pid());
    for garbage in [&b""[..], b"{", b"\0\0"] {
        node.kill_daemon();
        for container in [&container, &created] {
            let record = records(&node, &format!("containers/{}.json", container.id)).pop().expect("a record");
            fs::write(&record, garbage).unwrap();
        }
        node.restart();
        assert_eq!(fine.sh("echo fine"), "fine");
        assert_eq!((container.status(), container.init_pid()), (before.clone(), pid));
        assert_eq!(container.sh("echo on"), "on");
        assert_eq!(created.state(), ContainerState::ContainerCreated);
    }
    created.start().unwrap();
    created.stop(0).unwrap();
    node.finish();
}

#[test]
fn a_container_of_which_nothing_is_left_but_itself_is_not_killed() {
    let node = TestNode::start();
    let pod = node.run_pod("damaged");
    let (container, fine) = (pod.run(["sh", "-c", "echo kept >/file; sleep 1000"]), pod.sleeper());
    container.sh("cat /file");
    let pid = container.init_pid();
    node.kill_daemon();
    let copy = node.path(format!("root/containers/{}/record.json", container.id));
    for record in records(&node, &format!("containers/{}.json", container.id)).into_iter().chain([copy]) {
        assert!(record.exists());
        fs::write(record, "{").unwrap();
    }
    for _ in 0..2 {
        node.restart();
        assert!(container.try_status().is_err() && process_alive(pid));
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/root/file")).unwrap(), "kept\n");
        assert!(node.daemon_log().contains("runs on, unseen"));
        assert_eq!(fine.sh("echo fine"), "fine");
        node.kill_daemon();
    }
    node.restart();
    pod.stop().unwrap();
    assert!(!process_alive(pid));
    pod.remove().unwrap();
    // What is left of its files goes with the next start.
    node.kill_daemon();
    node.restart();
    node.finish();
}

#[test]
fn a_damaged_record_of_a_pod_harms_no_other() {
    let node = TestNode::start();
    let (pod, fine) = (node.run_pod("damaged"), node.run_pod("fine").sleeper());
    let container = pod.sleeper();
    node.kill_daemon();
    for record in records(&node, &pod.id).into_iter().filter(|r| r.ends_with("sandbox.json")) {
        fs::write(record, "not json").unwrap();
    }
    node.restart();
    assert_eq!(fine.sh("echo fine"), "fine");
    if let Ok(status) = pod.try_status() {
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    }
    pod.stop().unwrap();
    pod.remove().unwrap();
    wait_for("the end of its processes", PATIENCE, || pids_in_cgroup(&container.id).is_empty().then_some(()));
    node.finish();
}

#[test]
fn a_create_cut_short_is_finished_by_its_retry() {
    let node = TestNode::start();
    for wait_ms in [0, 1, 2, 4, 8, 16, 32] {
        let builder = node.pod(&format!("cut-{wait_ms}"));
        let retry = builder.clone();
        std::thread::scope(|scope| {
            let call = scope.spawn(move || builder.try_run().map(|p| p.id));
            std::thread::sleep(Duration::from_millis(wait_ms));
            node.kill_daemon();
            drop(call.join());
        });
        node.restart();
        let pod = retry.run();
        assert_eq!(node.pod_ids(), [pod.id.clone()], "after {wait_ms} ms");
        let builder = pod.container(["sleep", "1000"]);
        let retry = builder.clone();
        std::thread::scope(|scope| {
            let call = scope.spawn(move || builder.try_create().map(|c| c.id));
            std::thread::sleep(Duration::from_millis(wait_ms));
            node.kill_daemon();
            drop(call.join());
        });
        node.restart();
        let container = retry.create();
        assert_eq!(node.container_ids(), [container.id.clone()], "after {wait_ms} ms");
        container.start().unwrap();
        assert_eq!(container.sh("echo works"), "works");
        node.remove_all_pods();
    }
    node.finish();
}

/// One round of a pod's life; an error is the daemon's death in the middle of it.
fn life(node: &TestNode, round: u32) -> Result<(), tonic::Status> {
    let pod: Pod<'_> = node.pod(&format!("storm-{round}")).try_run()?;
    let container = pod.container(["/probe", "term", "0"]).try_run()?;
    container.try_exec(["echo", "x"], 5)?;
    container.stop(5)?;
    container.remove()?;
    pod.stop()?;
    pod.remove()
}

/// What CRI says of every container must be what the kernel says.
fn assert_agreement(node: &TestNode) {
    for id in node.container_ids() {
        let alive = !pids_in_cgroup(&id).is_empty();
        let request = aril::api::cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let answer = node.cri().runtime(|mut c| async move { c.container_status(request).await });
        let state = answer.expect("a status").status.unwrap().state();
        let says_alive = match state {
            // Created: its process is held before execve, or was not made before the daemon's death.
            ContainerState::ContainerCreated => alive,
            state => state == ContainerState::ContainerRunning,
        };
        assert_eq!(says_alive, alive, "container {id} is {state:?}");
    }
}

/// Ends the clients with the test, also when it panics.
#[derive(Default)]
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn twenty_deaths_at_random_moments_leave_no_trace() {
    let node = TestNode::start();
    let steady = node.run_pod("steady").sleeper();
    let (pid, born) = (steady.init_pid(), birth(steady.init_pid()));
    let done = Done::default();
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    eprintln!("seed {seed}");
    std::thread::scope(|scope| {
        for client in 0..2 {
            let (node, done) = (&node, Arc::clone(&done.0));
            scope.spawn(move || {
                let mut round = client * 1_000_000;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    // A dead daemon, or one that was just killed; the next round is another pod.
                    if life(node, round).is_err() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        let _end = done;
        let mut random = seed | 1;
        for _ in 0..20 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 150));
            node.kill_daemon();
            node.restart();
            assert_eq!(steady.state(), ContainerState::ContainerRunning);
        }
    });
    assert_eq!((steady.init_pid(), birth(pid)), (pid, born));
    assert_agreement(&node);
    node.kill_daemon();
    node.restart();
    assert_agreement(&node);
    node.finish();
}
