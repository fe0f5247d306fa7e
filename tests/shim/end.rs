//! The pod's end, by request and by accident.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aril::plan::namespaces::Source;
use aril::wire::client::{Shim, WireError};
use aril::wire::session::Streams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pod::{SHIM, TestPod, eventually, read_all};

#[tokio::test]
async fn shutdown_leaves_nothing_of_a_busy_pod() {
    let mut pod = TestPod::start().await;
    for _ in 0..3 {
        let id = pod.run("trap '' TERM; setsid sleep 1000 & (setsid sleep 1000 &); yes").await;
        assert_eq!(pod.exec(&id, "setsid sleep 1000 >/dev/null 2>&1 &").await.0, 0);
    }
    let (id, plan) = pod.container(&["/bin/true"]);
    pod.shim.create(&id, &plan).await.unwrap();
    pod.finish().await;
}

/// What outlives its SIGKILL keeps the shim from ending, not from answering.
#[tokio::test]
async fn a_shutdown_that_waits_keeps_nobody_waiting() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    // Only v1 has processes that can be frozen in one cgroup and counted in another; on v2 the wait is a short one.
    let freezer = Path::new("/sys/fs/cgroup/freezer").join(format!("frozen-{}", std::process::id()));
    let memory = format!("/sys/fs/cgroup/memory{}/{}/cgroup.procs", pod.cgroup, &id[..12]);
    let mut stuck = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let is_v1 = freezer.parent().unwrap().exists();
    if is_v1 {
        std::fs::create_dir(&freezer).unwrap();
        std::fs::write(freezer.join("cgroup.procs"), stuck.id().to_string()).unwrap();
        std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
        std::fs::write(memory, stuck.id().to_string()).unwrap();
    }
    let (other, _events) = Shim::connect(&pod.run_dir()).await.unwrap();
    let shim = pod.shim.clone();
    let shutdown = tokio::spawn(async move { shim.shutdown().await });
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    while is_v1 && started.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        other.state().await.unwrap();
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!is_v1 || !shutdown.is_finished());
    if is_v1 {
        std::fs::write(freezer.join("freezer.state"), "THAWED").unwrap();
    }
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    shutdown.await.unwrap().unwrap();
    if is_v1 {
        std::fs::remove_dir(&freezer).unwrap();
    }
    assert!(slowest < Duration::from_millis(1500), "an answer took {slowest:?}");
    pod.check_gone().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_has_a_reaper_and_ends() {
    let mut pod = TestPod::start_shared().await;
    let script = "echo $$; (sleep 0.1 &); sleep 1000";
    let (id, mut plan) = pod.container(&["/bin/sh", "-c", script]);
    plan.namespaces.as_mut().unwrap().pid = Source::Sandbox.into();
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    eventually("it says its pid", || pod.log(&id).ends_with('\n')).await;
    assert_ne!(pod.output(&id), ["1"]);
    assert!(pod.shim.state().await.unwrap().init_pid > 0);
    // Its end takes what it left with it, though the namespace goes on.
    pod.shim.signal(&id, 9, false).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    eventually("only the pod init is left", || pod.pids().len() == 1).await;
    pod.finish().await;
}

/// The daemon finds a shim dead: what it kept is killed and removed, more than once without harm.
#[tokio::test]
async fn a_dead_shim_is_cleaned_up_after() {
    let mut pod = TestPod::start().await;
    let running = pod.run("setsid sleep 1000 & sleep 1000").await;
    let (held, plan) = pod.container(&["/bin/sleep", "1000"]);
    let held_pid = pod.shim.create(&held, &plan).await.unwrap().pid;
    assert_ne!(running, held);
    let cleanup = |pod: &TestPod| Command::new(SHIM).arg("cleanup").arg(pod.run_dir()).output().unwrap();
    let refused = cleanup(&pod);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("alive"), "{refused:?}");
    kill(Pid::from_raw(pod.shim.pid()), Signal::SIGKILL).unwrap();
    assert!(pod.events.recv().await.is_none());
    assert!(matches!(pod.shim.start(&held).await, Err(WireError::Gone)));
    assert!(matches!(Shim::connect(&pod.run_dir()).await, Err(WireError::Gone)));
    // What was only held has nobody to wait for.
    let gone = || match std::fs::read_to_string(format!("/proc/{held_pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    eventually("the held process ends", gone).await;
    for _ in 0..2 {
        let output = cleanup(&pod);
        assert!(output.status.success(), "{output:?}");
    }
    pod.killed = true;
    pod.check_gone().await;
}

/// A process that waits holds nothing of the shim open but its channel.
#[tokio::test]
async fn a_held_process_keeps_nothing_open() {
    let mut pod = TestPod::start_shared().await;
    let other = pod.run("sleep 1000").await;
    let client = pod.shim.attach(&other, Streams { stdout: true, ..Streams::default() }).await.unwrap();
    let (held, plan) = pod.container(&["/bin/true"]);
    let held_pid = pod.shim.create(&held, &plan).await.unwrap().pid;
    for pid in [held_pid, pod.shim.state().await.unwrap().init_pid] {
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 4, "of process {pid}");
    }
    // So the end of another container's output reaches its clients.
    pod.shim.delete(&other, true).await.unwrap();
    assert_eq!(read_all(client.stdout.unwrap()).await.unwrap(), "");
    pod.finish().await;
}

#[tokio::test]
async fn a_shim_that_was_never_set_up_ends_with_its_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (shim, events) = Shim::spawn(crate::pod::spawner(), dir.path()).await.unwrap();
    let pid = shim.pid();
    drop((shim, events));
    eventually("it is gone and reaped", || !Path::new(&format!("/proc/{pid}")).exists()).await;
}

/// Neither the daemon's terminal nor an impatient system ends a shim.
#[tokio::test]
async fn a_shim_ignores_polite_signals() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE] {
        kill(Pid::from_raw(pod.shim.pid()), signal).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(pod.exec(&id, "true").await.0, 0);
    // The workload has none of this from its parent.
    let status = pod.exec_args(&id, &["/bin/cat", "/proc/self/status"]).await.1;
    for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    pod.finish().await;
}

/// In every hierarchy, once it is quiet.
#[tokio::test]
async fn a_shim_moves_out_of_everybodys_cgroup() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let home = format!("{}-shims", pod.cgroup);
    let pid = pod.shim.pid();
    let cgroups = || std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    eventually("it is at home", || cgroups().lines().all(|line| line.ends_with(&home))).await;
    // Its children are where they belong all the same.
    assert_eq!(pod.exec(&id, "true").await.0, 0);
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", pod.pids()[0])).unwrap();
    assert!(own.lines().all(|line| line.contains(&format!("{}/", pod.cgroup))), "{own}");
    pod.finish().await;
}

#[tokio::test]
async fn a_failed_setup_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (shim, mut events) = Shim::spawn(crate::pod::spawner(), dir.path()).await.unwrap();
    let sysctl = aril::plan::Sysctl { name: "kernel.no_such_thing".into(), value: "1".into() };
    let plan = aril::plan::Sandbox { sysctls: vec![sysctl], new_ipc: true, ..Default::default() };
    let run_dir = dir.path().to_str().unwrap().to_owned();
    let setup =
        aril::wire::pb::SetupSandbox { run_dir, plan: prost::Message::encode_to_vec(&plan), ..Default::default() };
    assert!(shim.setup_sandbox(setup, None).await.unwrap_err().kind().is_some());
    assert!(!shim.state().await.unwrap().setup);
    assert!(matches!(Shim::connect(dir.path()).await, Err(WireError::Gone)));
    drop(shim);
    assert!(events.recv().await.is_none());
}

/// The shim's own processes are out of reach of everybody else, and hold nothing they need not.
#[tokio::test]
async fn a_shim_keeps_to_itself() {
    let mut pod = TestPod::start().await;
    let proc = format!("/proc/{}", pod.shim.pid());
    let stat = std::fs::read_to_string(format!("{proc}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, pod.shim.pid().to_string(), "a session of its own");
    assert_eq!(std::fs::read_link(format!("{proc}/cwd")).unwrap(), Path::new("/"));
    assert_eq!(std::fs::read(format!("{proc}/environ")).unwrap(), b"");
    let exe = std::fs::read_link(format!("{proc}/exe")).unwrap();
    assert!(exe.to_str().unwrap().starts_with("/memfd:aril-shim"), "{exe:?}");
    let count = || std::fs::read_dir(format!("{proc}/fd")).unwrap().count();
    let before = count();
    for delete in [true, false] {
        for _ in 0..5 {
            let id = pod.run("exit 0").await;
            pod.exit(&id).await;
            if delete {
                pod.shim.delete(&id, false).await.unwrap();
            }
        }
        // Dead containers that are kept take none either.
        eventually("no descriptors are left", || count() == before).await;
    }
    pod.finish().await;
}

/// What a pod has been through leaves no trace in its shim's memory.
#[tokio::test]
async fn a_shim_does_not_grow() {
    let mut pod = TestPod::start().await;
    let rollup = format!("/proc/{}/smaps_rollup", pod.shim.pid());
    let private_kib = || -> u64 {
        let text = std::fs::read_to_string(&rollup).unwrap();
        let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let mut before = u64::MAX;
    for round in 0..3 {
        let id = pod.run("seq 20000; sleep 1000").await;
        for _ in 0..60 {
            assert_eq!(pod.exec_args(&id, &["/bin/true"]).await.0, 0);
        }
        pod.shim.delete(&id, true).await.unwrap();
        if round == 0 {
            before = private_kib();
        }
    }
    let after = private_kib();
    assert!(after <= before + 64, "from {before} to {after} KiB");
    pod.finish().await;
}
