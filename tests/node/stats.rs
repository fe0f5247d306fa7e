//! What pods and containers use, beside what the kernel says.

use std::time::Duration;

use aril::api::cri::{ContainerStats, ContainerStatsFilter, ImageFsInfoRequest, PodSandboxStatsFilter};
use tonic::Code;

use crate::support::network::{address, hear, server};
use crate::support::stats::{self, number};
use crate::support::{Container, PATIENCE, TestNode, refused, wait_for};

const CORE: u64 = 1_000_000_000;

fn cpu_ns(stats: &ContainerStats) -> u64 {
    number(stats.cpu.unwrap().usage_core_nano_seconds)
}

/// CPU time by the container's own cgroup.
fn kernel_cpu_ns(container: &Container<'_>) -> u64 {
    let text = container.cgroup("cpuacct", "cpuacct.usage", "cpu.stat");
    let v2 = text.lines().find_map(|l| l.strip_prefix("usage_usec ")).map(|us| us.parse::<u64>().unwrap() * 1000);
    v2.unwrap_or_else(|| text.parse().unwrap())
}

#[test]
fn a_burner_shows_as_what_it_may_burn() {
    let node = TestNode::start();
    let pod = node.run_pod("burn");
    let burner = pod.container(["/probe", "spin", "100000000"]);
    let burner = burner.resources(|r| (r.cpu_period, r.cpu_quota) = (20_000, 6_000)).run();
    let idle = pod.sleeper();
    // 0.3 of a core, give or take what a busy machine does not grant.
    let is_near = |cores: u64| (CORE / 10..CORE * 4 / 10).contains(&cores);
    let rate = || {
        let stats = stats::container(&node, &burner.id).unwrap();
        number(stats.cpu.unwrap().usage_nano_cores)
    };
    wait_for("the burner's rate", PATIENCE, || {
        // Between those who ask often there is one who asks rarely.
        std::thread::sleep(Duration::from_millis(700));
        Some((0..20).map(|_| rate()).collect::<Vec<_>>()).filter(|rates| rates.iter().all(|&r| is_near(r)))
    });
    assert!(number(stats::container(&node, &idle.id).unwrap().cpu.unwrap().usage_nano_cores) < CORE / 20);

    let before = kernel_cpu_ns(&burner);
    let told = cpu_ns(&stats::container(&node, &burner.id).unwrap());
    let after = kernel_cpu_ns(&burner);
    assert!((before..=after).contains(&told), "{before} {told} {after}");
    let whole = stats::pod(&node, &pod.id).unwrap().linux.unwrap();
    assert!(number(whole.cpu.unwrap().usage_core_nano_seconds) >= after);
    // Nobody asked before: it is since the pod was made.
    assert!((1..CORE).contains(&number(whole.cpu.unwrap().usage_nano_cores)), "{:?}", whole.cpu);
    // Two that run, and their processes.
    assert_eq!((whole.containers.len(), number(whole.process.unwrap().process_count)), (2, 2));
    node.finish();
}

#[test]
fn memory_is_what_was_touched() {
    let node = TestNode::start();
    let limit = 256 << 20;
    let pod = node.run_pod("memory");
    let container = pod.container(["/probe", "alloc", "50000000", "then", "sleep", "100000000"]);
    let container = container.resources(|r| r.memory_limit_in_bytes = limit).run();
    container.wait_log("allocated");
    let stats = stats::container(&node, &container.id).unwrap();
    let memory = stats.memory.unwrap();
    let (rss, working_set) = (number(memory.rss_bytes), number(memory.working_set_bytes));
    assert!((50_000_000..60_000_000).contains(&rss), "{memory:?}");
    assert!((rss..70_000_000).contains(&working_set) && number(memory.usage_bytes) >= working_set, "{memory:?}");
    assert_eq!(number(memory.available_bytes), limit.unsigned_abs() - working_set);
    assert!(number(memory.page_faults) > 10_000 && memory.timestamp > 0, "{memory:?}");
    let attributes = stats.attributes.unwrap();
    assert_eq!((attributes.id, attributes.metadata), (container.id.clone(), container.config.metadata.clone()));

    let whole = stats::pod(&node, &pod.id).unwrap();
    assert_eq!(whole.attributes.unwrap().metadata, pod.config.metadata);
    let whole = whole.linux.unwrap();
    assert!(number(whole.memory.unwrap().rss_bytes) >= 50_000_000, "{:?}", whole.memory);
    assert_eq!(whole.containers[0].attributes.as_ref().unwrap().id, container.id);
    // Where the kernel counts how long processes wait, it is told.
    let v2 =
        crate::support::hierarchies().iter().any(|h| h.controllers.is_empty() && h.mount.join("cpu.pressure").exists());
    assert_eq!((stats.cpu.unwrap().psi.is_some(), stats.io.is_some(), memory.psi.is_some()), (v2, v2, v2));
    node.finish();
}

#[test]
fn pods_that_share_a_cgroup_are_told_apart() {
    let node = TestNode::start();
    let shared = |name: &str| node.pod(name).linux(|l| l.cgroup_parent = String::new()).run();
    let (a, b) = (shared("a"), shared("b"));
    let big = a.run(["/probe", "alloc", "40000000", "then", "sleep", "100000000"]);
    let (_small, _smaller) = (b.sleeper(), b.sleeper());
    big.wait_log("allocated");
    let of = |id: &str| stats::pod(&node, id).unwrap().linux.unwrap();
    assert!(number(of(&a.id).memory.unwrap().rss_bytes) >= 40_000_000);
    assert!(number(of(&b.id).memory.unwrap().rss_bytes) < 20_000_000);
    assert_eq!(number(of(&a.id).process.unwrap().process_count), 1);
    assert_eq!(number(of(&b.id).process.unwrap().process_count), 2);
    node.finish();
}

#[test]
fn what_a_container_writes_is_counted_until_it_is_removed() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let size = 8 << 20;
    container.sh("head -c 8388608 /dev/zero >/big && sync");
    let written = || {
        let layer = stats::container(&node, &container.id).unwrap().writable_layer?;
        Some((number(layer.used_bytes), number(layer.inodes_used), layer.timestamp))
    };
    let (bytes, inodes, at) = wait_for("the first count", PATIENCE, written);
    assert!((size..size + 1_000_000).contains(&bytes) && inodes >= 1, "{bytes} {inodes}");
    let info = || node.cri().images(|mut c| async move { c.image_fs_info(ImageFsInfoRequest {}).await }).unwrap();
    let (layers, images) = (info().container_filesystems.remove(0), info().image_filesystems.remove(0));
    assert_eq!((layers.fs_id.clone(), number(layers.used_bytes)), (images.fs_id, bytes));
    let layer = stats::container(&node, &container.id).unwrap().writable_layer.unwrap();
    assert_eq!(layer.fs_id, layers.fs_id);
    container.sh("rm /big");
    let (_, fewer, later) = wait_for("the count without the file", PATIENCE, || written().filter(|w| w.0 < size));
    assert!(fewer < inodes && later > at, "{fewer} {later}");
    node.finish();
}

#[test]
fn traffic_is_counted_by_interface() {
    let node = TestNode::start();
    let (a, b) = (node.run_pod("a"), node.run_pod("b"));
    let host = node.pod("host").host_network().run();
    let _server = server(&a, 80, "hello");
    let eth0 = |id: &str| {
        let network = stats::pod(&node, id).unwrap().linux.unwrap().network.unwrap();
        assert!(network.timestamp > 0);
        let eth0 = network.default_interface.unwrap();
        assert_eq!(eth0.name, "eth0");
        (number(eth0.rx_bytes), number(eth0.tx_bytes))
    };
    let before = (eth0(&a.id), eth0(&b.id));
    for _ in 0..5 {
        hear(&node, std::net::SocketAddr::new(address(&a), 80));
    }
    let after = (eth0(&a.id), eth0(&b.id));
    // Five connections, each of more than three packets a way.
    assert!(after.0.0 > before.0.0 + 5 * 3 * 50 && after.0.1 > before.0.1 + 5 * 3 * 50, "{before:?} {after:?}");
    assert!(after.1.0 - before.1.0 < after.0.0 - before.0.0, "{before:?} {after:?}");
    // What the host's interfaces carry is nobody's own.
    assert_eq!(stats::pod(&node, &host.id).unwrap().linux.unwrap().network, None);
    node.finish();
}

#[test]
fn lists_are_of_those_that_run_and_pass_the_filter() {
    let node = TestNode::start();
    let labelled = |app: &str| node.pod(app).with(|c| drop(c.labels.insert("app".to_owned(), app.to_owned()))).run();
    let (web, db) = (labelled("web"), labelled("db"));
    let run = |pod: &crate::support::Pod<'_>, tier: &str| {
        let container = pod.container(["sleep", "100000"]);
        container.with(|c| drop(c.labels.insert("tier".to_owned(), tier.to_owned()))).run().id
    };
    let (front, back) = (run(&web, "front"), run(&db, "back"));
    let created = web.container(["sleep", "100000"]).create();
    let ended = web.run(["true"]);
    ended.wait_exited();

    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(stats::containers(&node, None), sorted(vec![front.clone(), back.clone()]));
    let filter = |id: &str, sandbox: &str, tier: &str| {
        let label_selector = (!tier.is_empty()).then(|| ("tier".to_owned(), tier.to_owned())).into_iter().collect();
        Some(ContainerStatsFilter { id: id.to_owned(), pod_sandbox_id: sandbox.to_owned(), label_selector })
    };
    assert_eq!(stats::containers(&node, filter(&front[..20], "", "")), [front.clone()]);
    assert_eq!(stats::containers(&node, filter("", &db.id, "")), [back.clone()]);
    assert_eq!(stats::containers(&node, filter("", "", "front")), [front.clone()]);
    assert!(stats::containers(&node, filter(&front, &db.id, "")).is_empty());
    assert!(stats::containers(&node, filter(&ended.id, "", "")).is_empty());
    assert_eq!(stats::pods(&node, None), sorted(vec![web.id.clone(), db.id.clone()]));
    let filter = |id: &str, app: &str| {
        let label_selector = (!app.is_empty()).then(|| ("app".to_owned(), app.to_owned())).into_iter().collect();
        Some(PodSandboxStatsFilter { id: id.to_owned(), label_selector })
    };
    assert_eq!(stats::pods(&node, filter(&web.id[..20], "")), [web.id.clone()]);
    assert_eq!(stats::pods(&node, filter("", "db")), [db.id.clone()]);
    assert!(stats::pods(&node, filter(&web.id, "db")).is_empty());

    // One by one it is said what is the matter.
    refused(stats::container(&node, "feed"), Code::NotFound, &["feed"]);
    refused(stats::pod(&node, "feed"), Code::NotFound, &["feed"]);
    refused(stats::container(&node, &ended.id), Code::FailedPrecondition, &["exited"]);
    refused(stats::container(&node, &created.id), Code::FailedPrecondition, &["created"]);
    web.stop().unwrap();
    refused(stats::pod(&node, &web.id), Code::FailedPrecondition, &["stopped"]);
    refused(stats::container(&node, &front), Code::FailedPrecondition, &["exited"]);
    assert_eq!((stats::pods(&node, None), stats::containers(&node, None)), (vec![db.id.clone()], vec![back]));
    node.finish();
}

#[test]
fn counters_outlive_the_daemon() {
    let node = TestNode::start();
    let pod = node.run_pod("restart");
    let container = pod.run(["/probe", "spin", "500", "then", "sleep", "100000000"]);
    let read = || stats::container(&node, &container.id).unwrap();
    wait_for("some CPU time", PATIENCE, || Some(read()).filter(|s| cpu_ns(s) >= CORE / 20));
    let (before, whole) = (read(), stats::pod(&node, &pod.id).unwrap().linux.unwrap());
    node.kill_daemon();
    node.restart();
    let (after, whole_after) = (read(), stats::pod(&node, &pod.id).unwrap().linux.unwrap());
    assert!(cpu_ns(&after) >= cpu_ns(&before));
    let cpu = |pod: &aril::api::cri::LinuxPodSandboxStats| number(pod.cpu.unwrap().usage_core_nano_seconds);
    assert!(cpu(&whole_after) >= cpu(&whole) && cpu(&whole) >= cpu_ns(&before));
    // Since its start it has used less than a core.
    assert!(number(after.cpu.unwrap().usage_nano_cores) < CORE, "{:?}", after.cpu);
    let eth0 = |pod: &aril::api::cri::LinuxPodSandboxStats| {
        number(pod.network.clone().unwrap().default_interface.unwrap().rx_bytes)
    };
    assert!(eth0(&whole_after) >= eth0(&whole));
    node.finish();
}
