//! The metrics that kubelet hands on, by the names that cAdvisor gave them.

use std::collections::{BTreeMap, BTreeSet};

use aril::api::cri::{
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, Metric, PodSandboxMetrics,
    StreamPodSandboxMetricsRequest,
};

use crate::support::{TestNode, cgroup_of, read_proc, stats};

/// What Kubernetes' suite expects of every runtime.
const NAMES: [&str; 56] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
];

fn listed(node: &TestNode) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    let answer = node.cri().runtime(|mut c| async move { c.list_pod_sandbox_metrics(request).await });
    answer.expect("list metrics").pod_metrics
}

/// By name, with the labels that are the metric's own behind it.
fn values(metrics: &[Metric]) -> BTreeMap<String, u64> {
    let key = |m: &Metric| [&[m.name.clone()], &m.label_values[6..]].concat().join(" ");
    metrics.iter().map(|m| (key(m), stats::number(m.value))).collect()
}

#[test]
fn every_metric_is_described_and_has_a_true_value() {
    let node = TestNode::start();
    let pod = node.run_pod("metrics");
    let container = pod.container(["sleep", "100000"]).resources(|r| {
        (r.cpu_period, r.cpu_quota, r.cpu_shares) = (100_000, 20_000, 1024);
        (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (64 << 20, 64 << 20);
    });
    let container = container.run();
    container.sh("head -c 2000000 /dev/zero >/big; sync");
    let request = ListMetricDescriptorsRequest {};
    let described = node.cri().runtime(|mut c| async move { c.list_metric_descriptors(request).await }).unwrap();
    let labels: BTreeMap<_, _> =
        described.descriptors.iter().map(|d| (d.name.as_str(), (d.label_keys.len(), d.help.as_str()))).collect();
    assert_eq!(labels.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from(NAMES));
    assert!(labels.values().all(|(keys, help)| *keys >= 6 && !help.is_empty()));

    let all = listed(&node);
    assert_eq!(all.len(), 1);
    let (of_pod, of_container) = (&all[0].metrics, &all[0].container_metrics[0]);
    assert_eq!((&all[0].pod_sandbox_id, &of_container.container_id), (&pod.id, &container.id));
    for metric in of_pod.iter().chain(&of_container.metrics) {
        assert_eq!(metric.label_values.len(), labels[metric.name.as_str()].0, "{metric:?}");
        assert!(metric.timestamp > 0 && metric.label_values[4] == "test" && metric.label_values[5] == "metrics");
    }
    let told: BTreeSet<_> = of_pod.iter().chain(&of_container.metrics).map(|m| m.name.as_str()).collect();
    let pid = container.init_pid();
    let has = |controller: &str, file: &str| cgroup_of(pid, controller).join(file).exists();
    for name in NAMES.iter().filter(|name| !told.contains(**name)) {
        let excused = match *name {
            // No disk may have counted.
            n if n.contains("blkio") || n.contains("_fs_reads") || n.contains("_fs_writes") => true,
            n if n.contains("hugetlb") => !has("hugetlb", "hugetlb.2MB.max_usage_in_bytes"),
            n if n.contains("pressure") => !has("", "cpu.pressure"),
            "container_memory_max_usage_bytes" => !has("memory", "memory.max_usage_in_bytes"),
            _ => false,
        };
        assert!(excused, "{name} has no value");
    }

    let values = values(&of_container.metrics);
    for (name, value) in [
        ("container_spec_cpu_period", 100_000),
        ("container_spec_cpu_quota", 20_000),
        ("container_spec_cpu_shares", 1024),
        ("container_spec_memory_limit_bytes", 64 << 20),
        ("container_spec_memory_reservation_limit_bytes", 0),
        ("container_oom_events_total", 0),
        ("container_processes", 1),
        ("container_threads", 1),
    ] {
        assert_eq!(values[name], value, "{name}");
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(values["container_file_descriptors"], descriptors as u64);
    assert!(values["container_sockets"] <= values["container_file_descriptors"]);
    let limits = read_proc(pid, "limits");
    let open_files = limits.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap();
    let soft: u64 = open_files.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(values["container_ulimits_soft max_open_files"], soft);
    let started = u64::try_from(container.status().started_at).unwrap() / 1_000_000_000;
    assert_eq!(values["container_start_time_seconds"], started);
    assert!(values["container_last_seen"] >= started);
    assert!(values["container_memory_failures_total pgfault container"] > 0);
    assert!(values["container_memory_max_usage_bytes"] >= values["container_memory_rss"]);
    let of = |name: &str| *values.iter().find(|(key, _)| key.starts_with(name)).unwrap_or_else(|| panic!("{name}")).1;
    assert!((2_000_000..3_000_000).contains(&of("container_fs_usage_bytes ")), "{values:?}");
    assert!(of("container_fs_limit_bytes ") > of("container_fs_usage_bytes "));
    assert!(of("container_fs_inodes_total ") >= of("container_fs_inodes_free "));
    assert!(of_pod.iter().any(|m| m.name == "container_network_receive_bytes_total" && m.label_values[6] == "eth0"));
    node.finish();
}

#[test]
fn metrics_are_of_pods_that_are_up_and_containers_that_run() {
    let node = TestNode::start();
    let (up, down) = (node.run_pod("up"), node.run_pod("down"));
    let host = node.pod("host").host_network().run();
    let (running, ended) = (up.sleeper(), up.run(["true"]));
    let _other = down.sleeper();
    ended.wait_exited();
    down.stop().unwrap();
    let all = listed(&node);
    let ids: BTreeSet<_> = all.iter().map(|m| m.pod_sandbox_id.clone()).collect();
    assert_eq!(ids, BTreeSet::from([up.id.clone(), host.id.clone()]));
    let of_up = all.iter().find(|m| m.pod_sandbox_id == up.id).unwrap();
    assert_eq!(of_up.container_metrics.iter().map(|c| c.container_id.clone()).collect::<Vec<_>>(), [running.id]);
    // What the host's interfaces carry is nobody's own.
    assert!(all.iter().find(|m| m.pod_sandbox_id == host.id).unwrap().metrics.is_empty());
    let request = StreamPodSandboxMetricsRequest {};
    let streamed =
        node.cri().runtime(|mut c| async move { stats::all(c.stream_pod_sandbox_metrics(request).await).await });
    let streamed = streamed.unwrap().into_iter().flat_map(|m| m.pod_sandbox_metrics);
    assert_eq!(streamed.map(|m| m.pod_sandbox_id).collect::<BTreeSet<_>>(), ids);
    node.finish();
}
