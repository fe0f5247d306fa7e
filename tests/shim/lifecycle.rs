//! Create, start, signals, exits and their records.

use std::fs;

use aril::plan;
use aril::wire::client::{Shim, WireError};
use aril::wire::pb;
use aril::wire::pb::container_state::Status;
use aril::wire::pb::error::Kind;

use crate::pod::{TestPod, eventually};

fn kind<T: std::fmt::Debug>(result: Result<T, WireError>) -> Kind {
    result.unwrap_err().kind().unwrap()
}

#[tokio::test]
async fn a_network_namespace_that_is_given_is_the_pods() {
    let given = std::thread::spawn(|| aril::net::namespace::create().unwrap()).join().unwrap();
    let inode = |fd: &std::os::fd::OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
    let wanted = inode(&given);
    let mut pod = TestPod::start_in(Some(given)).await;
    assert_eq!(inode(&pod.shim.network_namespace().await.unwrap()), wanted);
    let container = pod.run("readlink /proc/self/ns/net").await;
    pod.exit(&container).await;
    assert_eq!(pod.output(&container), [format!("net:[{wanted}]")]);
    pod.finish().await;

    let pod = TestPod::start().await;
    let own = inode(&pod.shim.network_namespace().await.unwrap());
    assert_ne!(own, inode(&std::fs::File::open("/proc/self/ns/net").unwrap().into()));
    assert_ne!(own, wanted);
    pod.finish().await;
}

#[tokio::test]
async fn a_container_is_built_runs_and_ends() {
    let mut pod = TestPod::start().await;
    let (id, plan) = pod.container(&["/bin/sh", "-c", "echo $MARK $(cat /proc/sys/kernel/hostname); exit 7"]);
    let created = pod.shim.create(&id, &plan).await.unwrap();
    assert!(created.pid > 0 && created.steps.iter().any(|(name, _)| name == "pivot_root"), "{created:?}");
    assert_eq!((created.user.uid, created.user.gid), (0, 0));
    assert_eq!(kind(pod.shim.create(&id, &plan).await), Kind::Refused);
    let state = pod.shim.state().await.unwrap();
    assert_eq!(
        (state.setup, state.containers[0].status(), state.containers[0].pid),
        (true, Status::Created, created.pid)
    );

    let started = pod.shim.start(&id).await.unwrap();
    assert_eq!(started.pid, created.pid);
    let exit = pod.exit(&id).await;
    assert_eq!((exit.code, exit.oom_killed, exit.message.as_str()), (7, false, ""));
    assert!(exit.finished_at >= started.started_at);
    assert_eq!(pod.output(&id), ["container test-pod"]);

    let record = fs::read_to_string(pod.run_dir().join(format!("exits/{id}.json"))).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let expected = serde_json::json!({
        "version": 1, "container_id": id, "code": 7, "finished_at": exit.finished_at, "oom_killed": false,
    });
    assert_eq!(record, expected);
    assert_eq!(kind(pod.shim.start(&id).await), Kind::Refused);
    assert_eq!(kind(pod.shim.reopen_log(&id).await), Kind::Refused);
    // A signal to what has ended is no error, as stopping it is none.
    pod.shim.signal(&id, 15, false).await.unwrap();
    pod.shim.delete(&id, false).await.unwrap();
    pod.shim.delete(&id, false).await.unwrap();
    assert!(pod.shim.state().await.unwrap().containers.is_empty());
    pod.finish().await;
}

#[tokio::test]
async fn signals_reach_the_first_process_or_all() {
    let mut pod = TestPod::start().await;
    let id = pod.run("trap 'exit 9' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done").await;
    eventually("the traps are set", || pod.log(&id).contains("ready")).await;
    pod.shim.signal(&id, 1, false).await.unwrap();
    eventually("the signal is handled", || pod.log(&id).contains("hup")).await;
    assert_eq!(kind(pod.shim.signal(&id, 0, false).await), Kind::Invalid);
    assert_eq!(kind(pod.shim.signal(&id, 65, true).await), Kind::Invalid);
    assert_eq!(kind(pod.shim.signal("unknown", 15, true).await), Kind::NotFound);
    pod.shim.signal(&id, 15, false).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 9);

    let id = pod.run("sleep 1000 & sleep 1000").await;
    pod.shim.signal(&id, 9, true).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.finish().await;
}

#[tokio::test]
async fn what_cannot_start_says_why_and_is_an_exit() {
    let mut pod = TestPod::start().await;
    for (args, part) in [(["/bin/nope"], "ENOENT"), (["/etc/passwd"], "EACCES"), (["nope"], "ENOENT")] {
        let (id, plan) = pod.container(&args);
        pod.shim.create(&id, &plan).await.unwrap();
        let error = pod.shim.start(&id).await.unwrap_err();
        assert_eq!(error.kind(), Some(Kind::Invalid), "{error}");
        assert!(error.to_string().contains(part) && error.to_string().contains(args[0]), "{error}");
        let exit = pod.exit(&id).await;
        assert_eq!((exit.code, exit.message), (128, error.to_string()));
    }
    pod.finish().await;
}

#[tokio::test]
async fn what_cannot_be_built_leaves_nothing() {
    let pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/true"]);
    plan.process.as_mut().unwrap().user = Some(plan::User { spec: "nobody-here".into(), ..plan::User::default() });
    assert_eq!(kind(pod.shim.create(&id, &plan).await), Kind::Invalid);
    let (id, mut plan) = pod.container(&["/bin/true"]);
    plan.rootfs.as_mut().unwrap().lower = vec!["/nonexistent".into()];
    let error = pod.shim.create(&id, &plan).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    let (id, mut plan) = pod.container(&["/bin/true"]);
    plan.stdio.as_mut().unwrap().log_path = "/etc/aril-test.log".into();
    assert_eq!(kind(pod.shim.create(&id, &plan).await), Kind::Invalid);
    let (_, plan) = pod.container(&["/bin/true"]);
    assert_eq!(kind(pod.shim.create("../../etc/passwd", &plan).await), Kind::Invalid);
    assert!(pod.shim.state().await.unwrap().containers.is_empty());
    assert!(pod.pids().is_empty());
    pod.finish().await;
}

#[tokio::test]
async fn a_created_container_is_deleted_or_killed() {
    let mut pod = TestPod::start().await;
    let (id, plan) = pod.container(&["/bin/true"]);
    pod.shim.create(&id, &plan).await.unwrap();
    assert_eq!(kind(pod.shim.delete(&id, false).await), Kind::Refused);
    pod.shim.delete(&id, true).await.unwrap();
    assert!(pod.pids().is_empty());
    let (id, plan) = pod.container(&["/bin/true"]);
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.signal(&id, 9, false).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.finish().await;
}

#[tokio::test]
async fn a_daemon_that_comes_back_finds_all_as_it_was() {
    let mut pod = TestPod::start().await;
    let running = pod.run("while :; do echo line; sleep 0.01; done").await;
    let exiting = pod.run("sleep 0.3; exit 5").await;
    let (shim, events) = Shim::connect(&pod.run_dir()).await.unwrap();
    // Two daemons at a time: both are told.
    let pid = pod.shim.pid();
    assert_eq!(shim.pid(), pid);
    assert_eq!(pod.exit(&exiting).await.code, 5);
    let first = std::mem::replace(&mut pod.shim, shim);
    pod.events = events;
    drop(first);
    let early = pod.events.recv().await.unwrap();
    assert!(matches!(early, pb::event::Body::Exited(exited) if exited.container_id == exiting));

    // None for a while.
    let lines = |pod: &TestPod| pod.output(&running).len();
    let (run_dir, before) = (pod.run_dir(), lines(&pod));
    pod.shim = {
        let (stand_in, _) = Shim::connect(&run_dir).await.unwrap();
        drop(std::mem::replace(&mut pod.shim, stand_in.clone()));
        stand_in
    };
    eventually("the log goes on", || lines(&pod) > before + 3).await;
    let (shim, events) = Shim::connect(&run_dir).await.unwrap();
    (pod.shim, pod.events) = (shim, events);
    let mut state = pod.shim.state().await.unwrap().containers;
    state.sort_by_key(|container| container.started_at);
    // Whoever asked for the start may not have heard the answer.
    assert_eq!(pod.shim.start(&running).await.unwrap().started_at, state[0].started_at);
    assert_eq!((state[0].container_id.as_str(), state[0].status()), (running.as_str(), Status::Running));
    assert_eq!((state[1].container_id.as_str(), state[1].status()), (exiting.as_str(), Status::Exited));
    assert_eq!(state[1].exit.as_ref().unwrap().code, 5);
    pod.finish().await;
}

#[tokio::test]
async fn limits_are_updated_and_refused() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let limits = plan::Resources { memory_limit_bytes: Some(64 << 20), pids_limit: Some(50), ..Default::default() };
    pod.shim.update(&id, &limits, None).await.unwrap();
    let wrong = plan::Resources { cpuset_cpus: Some("nonsense".into()), ..Default::default() };
    assert_eq!(kind(pod.shim.update(&id, &wrong, None).await), Kind::Invalid);
    pod.shim.signal(&id, 9, true).await.unwrap();
    pod.exit(&id).await;
    assert_eq!(kind(pod.shim.update(&id, &limits, None).await), Kind::Refused);
    pod.finish().await;
}

#[tokio::test]
async fn memory_above_the_limit_is_told_as_such() {
    let mut pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/sh", "-c", "x=$(yes | head -c 200000000); echo ${#x}"]);
    let limits =
        plan::Resources { memory_limit_bytes: Some(16 << 20), memory_swap_bytes: Some(16 << 20), ..Default::default() };
    plan.cgroup.as_mut().unwrap().resources = Some(limits);
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    let exit = pod.exit(&id).await;
    assert!(exit.oom_killed, "{exit:?}");
    pod.finish().await;
}
