//! Limits, as the kernel has them.

use aril::api::cri::LinuxContainerResources;
use tonic::Code;

use crate::support::{Container, PATIENCE, TestNode, cgroup_of, refused, wait_for};

fn memory(container: &Container<'_>) -> String {
    container.cgroup("memory", "memory.limit_in_bytes", "memory.max")
}

fn shares(container: &Container<'_>) -> String {
    container.cgroup("cpu", "cpu.shares", "cpu.weight")
}

fn quota(container: &Container<'_>) -> String {
    let text = container.cgroup("cpu", "cpu.cfs_quota_us", "cpu.max");
    text.split(' ').next().unwrap().to_owned()
}

fn some_limits(r: &mut LinuxContainerResources) {
    (r.cpu_period, r.cpu_quota, r.cpu_shares) = (50_000, 25_000, 512);
    (r.memory_limit_in_bytes, r.cpuset_cpus, r.cpuset_mems) = (64 << 20, "0".to_owned(), "0".to_owned());
}

#[test]
fn limits_are_in_the_containers_cgroup() {
    let node = TestNode::start();
    let container = node.run_pod("limits").container(["sleep", "100000"]).resources(some_limits).run();
    assert_eq!(memory(&container), (64 << 20).to_string());
    assert_eq!(quota(&container), "25000");
    assert!(["512", "20"].contains(&shares(&container).as_str()), "{}", shares(&container));
    assert_eq!(container.cgroup("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    let told = container.status().resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_period), (64 << 20, 25_000, 50_000));
    assert_eq!((told.cpu_shares, told.cpuset_cpus.as_str()), (512, "0"));
    node.finish();
}

#[test]
fn limits_are_updated_while_it_runs() {
    let node = TestNode::start();
    let container = node.run_pod("update").container(["sleep", "100000"]).resources(some_limits).run();
    container.update(|r| (r.memory_limit_in_bytes, r.cpu_quota, r.cpu_period) = (128 << 20, 50_000, 50_000)).unwrap();
    assert_eq!((memory(&container), quota(&container)), ((128 << 20).to_string(), "50000".to_owned()));
    // What was not named stays.
    assert!(["512", "20"].contains(&shares(&container).as_str()));
    container.update(|r| r.memory_limit_in_bytes = 32 << 20).unwrap();
    assert_eq!(memory(&container), (32 << 20).to_string());
    let told = container.status().resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares), (32 << 20, 50_000, 512));
    node.finish();
}

/// In each process there is, in what they start, and in what is executed from now on.
#[test]
fn the_oom_score_is_updated_in_every_process() {
    let node = TestNode::start();
    let container = node.run_pod("score").container(["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let container = container.resources(|r| r.oom_score_adj = 800).run();
    container.sh("sleep 1000 >/dev/null 2>&1 &");
    let pids = wait_for("four processes", PATIENCE, || Some(container.pids()).filter(|p| p.len() == 4));
    let scores = || -> Vec<String> {
        pids.iter().map(|&pid| crate::support::read_proc(pid, "oom_score_adj").trim().to_owned()).collect()
    };
    assert_eq!(scores(), ["800"; 4]);
    let told = || container.status().resources.unwrap().linux.unwrap().oom_score_adj;
    for score in [950, 800] {
        container.update(|r| r.oom_score_adj = score).unwrap();
        assert_eq!(scores(), vec![score.to_string(); 4]);
        assert_eq!(container.sh("cat /proc/self/oom_score_adj"), score.to_string());
        assert_eq!(told(), score);
    }
    // Not named, it stays.
    container.update(|r| r.cpu_shares = 100).unwrap();
    assert_eq!((told(), scores()), (800, vec!["800".to_owned(); 4]));
    refused(container.update(|r| r.oom_score_adj = 1001), Code::InvalidArgument, &["oom_score_adj"]);
    node.finish();
}

#[test]
fn limits_are_updated_before_it_runs() {
    let node = TestNode::start();
    let container = node.run_pod("early").container(["sleep", "100000"]).resources(some_limits).create();
    container.update(|r| r.memory_limit_in_bytes = 96 << 20).unwrap();
    container.start().unwrap();
    assert_eq!(memory(&container), (96 << 20).to_string());
    node.finish();
}

#[test]
fn an_impossible_update_is_refused_and_changes_nothing() {
    let node = TestNode::start();
    let container = node.run_pod("bad").container(["sleep", "100000"]).resources(some_limits).run();
    let error = container.update(|r| (r.memory_limit_in_bytes, r.cpuset_cpus) = (80 << 20, "999".to_owned())).err();
    assert!(error.expect("refused").message().contains("cpuset"));
    assert_eq!(memory(&container), (64 << 20).to_string());
    assert_eq!(container.status().resources.unwrap().linux.unwrap().memory_limit_in_bytes, 64 << 20);
    for wrong in ["x", "0-", "1,,2", "0\n"] {
        refused(container.update(|r| r.cpuset_cpus = wrong.to_owned()), Code::InvalidArgument, &["cpuset_cpus"]);
    }
    node.finish();
}

#[test]
fn a_container_over_its_memory_is_oom_killed() {
    let node = TestNode::start();
    let container = node.run_pod("oom").container(["/probe", "alloc", "200000000"]);
    let limit = 30 << 20;
    let container =
        container.resources(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (limit, limit)).run();
    let status = container.wait_exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.finish();
}

#[test]
fn a_child_over_the_memory_is_told_of_too() {
    let node = TestNode::start();
    let container = node.run_pod("oom").container(["sh", "-c", "/probe alloc 200000000; exit 0"]);
    let limit = 30 << 20;
    let container =
        container.resources(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (limit, limit)).run();
    assert_eq!(container.wait_exited().reason, "OOMKilled");
    node.finish();
}

#[test]
fn the_pods_cgroup_is_not_touched() {
    let node = TestNode::start();
    let pod = node.run_pod("above");
    let container = pod.container(["sleep", "100000"]).resources(some_limits).run();
    let own = cgroup_of(container.init_pid(), "memory");
    let parent = own.parent().unwrap();
    let limit = |dir: &std::path::Path| {
        let file = ["memory.limit_in_bytes", "memory.max"].map(|f| dir.join(f)).into_iter().find(|f| f.exists());
        std::fs::read_to_string(file.unwrap()).unwrap()
    };
    assert_ne!(limit(parent), limit(&own));
    assert!(
        parent.ends_with(pod.config.linux.as_ref().unwrap().cgroup_parent.trim_start_matches('/')),
        "{}",
        own.display()
    );
    node.finish();
}

#[test]
fn every_process_is_in_every_cgroup_of_its_container() {
    let node = TestNode::start();
    let container = node.run_pod("all").sleeper();
    container.sh("sleep 4321 >/dev/null 2>&1 &");
    let pids = wait_for("two processes", PATIENCE, || Some(container.pids()).filter(|p| p.len() == 2));
    for pid in pids {
        for line in crate::support::read_proc(pid, "cgroup").lines() {
            assert!(line.contains(&container.id), "pid {pid}: {line}");
        }
    }
    node.finish();
}

#[test]
fn the_number_of_processes_is_limited_where_it_is_asked() {
    let node = TestNode::start();
    let container = node.run_pod("pids").container(["sleep", "100000"]);
    let container = container.resources(|r| drop(r.unified.insert("pids.max".to_owned(), "8".to_owned())));
    match container.try_run() {
        // cgroup v1 has no unified files: refused by name rather than ignored.
        Err(e) => assert!(e.message().contains("unified"), "{}", e.message()),
        Ok(container) => {
            assert_eq!(container.cgroup("pids", "pids.max", "pids.max"), "8");
            assert_ne!(container.exec(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait"]).code, 0);
        }
    }
    node.finish();
}

#[test]
fn nonsense_is_refused() {
    let node = TestNode::start();
    let pod = node.run_pod("nonsense");
    type Change = fn(&mut LinuxContainerResources);
    let cases: [(&str, Change); 5] = [
        ("cpu_shares", |r| r.cpu_shares = -5),
        ("cpu_period", |r| r.cpu_period = -5),
        ("memory_limit_in_bytes", |r| r.memory_limit_in_bytes = -7),
        ("oom_score_adj", |r| r.oom_score_adj = 1001),
        ("cpuset_cpus", |r| r.cpuset_cpus = "zero".to_owned()),
    ];
    for (field, change) in cases {
        refused(pod.container(["true"]).resources(change).try_create(), Code::InvalidArgument, &[field]);
    }
    let parent = node.pod("parent").linux(|l| l.cgroup_parent = "/a/../../b".to_owned()).try_run();
    refused(parent, Code::InvalidArgument, &["cgroup_parent"]);
    node.finish();
}
