//! Lists cost nothing and wait for nobody.

use std::time::{Duration, Instant};

use aril::api::cri::{ListContainersRequest, ListPodSandboxRequest};
use nix::sys::signal::Signal;

use crate::support::{TestNode, kill, read_proc};

/// The median of 50 lists of everything.
fn list_time(node: &TestNode) -> Duration {
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let start = Instant::now();
            let cri = node.cri();
            cri.runtime(|mut c| async move { c.list_pod_sandbox(ListPodSandboxRequest::default()).await }).unwrap();
            cri.runtime(|mut c| async move { c.list_containers(ListContainersRequest::default()).await }).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn lists_are_answered_from_memory() {
    let node = TestNode::start();
    for i in 0..20 {
        let pod = node.pod(&format!("p{i}")).host_network().run();
        (0..3).for_each(|_| drop(pod.container(["true"]).create()));
    }
    // A built-for-debugging daemon on a busy machine; what is measured is that it touches no file and no shim.
    let time = list_time(&node);
    assert!(time < Duration::from_millis(50), "{time:?}");
    node.finish();
}

#[test]
fn a_pod_that_hangs_delays_no_list_and_no_other_pod() {
    let node = TestNode::start();
    let (sick, fine) = (node.run_pod("sick").sleeper(), node.run_pod("fine").sleeper());
    let stat = read_proc(sick.init_pid(), "stat");
    let shim: i32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    kill(shim, Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| sick.try_exec(["true"], 20));
        std::thread::sleep(Duration::from_millis(200));
        assert!(list_time(&node) < Duration::from_millis(100));
        let start = Instant::now();
        assert_eq!(sick.status().id, sick.id);
        assert_eq!(fine.sh("echo fine"), "fine");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        kill(shim, Signal::SIGCONT);
        assert_eq!(hanging.join().unwrap().unwrap().code, 0);
    });
    node.finish();
}
