//! The metrics of ListPodSandboxMetrics, under the names and with the labels that cAdvisor gave them: kubelet hands them
//! on at `/metrics/cadvisor` as they are, so dashboards made for cAdvisor go on working.
//!
//! CRI has whole numbers only: seconds are whole seconds, rounded down; elsewhere ([`Metric::each`]) they have fractions.
//! A metric that the kernel does not count, or a limit that is not set and has no number for it, has no value.

use std::fmt;
use std::slice::from_ref;

use crate::api::cri::{self, MetricType};
use crate::node::{Disk, Filesystem, FullContainer, FullPod, Interface, Stall};

/// The labels of every metric, in the order of their values.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// One metric.
pub struct Metric {
    /// As cAdvisor calls it.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
    kind: MetricType,
    /// Beside [`LABELS`].
    labels: &'static [&'static str],
    source: Source,
}

/// Where a metric's values come from.
enum Source {
    /// One for each container that has it.
    Container(fn(&FullContainer) -> Option<u64>),
    /// Several for each container, told apart by the metric's own labels.
    Labelled(fn(&FullContainer) -> Values),
    /// One for each interface of each pod.
    Interface(fn(&Interface) -> u64),
}

/// Values with those labels that tell them apart.
type Values = Vec<(Vec<String>, u64)>;

use MetricType::{Counter, Gauge};
use Source::{Container, Interface as OfInterface, Labelled};

const fn metric(name: &'static str, kind: MetricType, source: Source, help: &'static str) -> Metric {
    Metric { name, help, kind, labels: &[], source }
}

const fn labelled(
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    values: fn(&FullContainer) -> Values,
    help: &'static str,
) -> Metric {
    Metric { name, help, kind, labels, source: Labelled(values) }
}

const fn interface(name: &'static str, value: fn(&Interface) -> u64, help: &'static str) -> Metric {
    Metric { name, help, kind: Counter, labels: &["interface"], source: OfInterface(value) }
}

/// Everything that can be told.
#[rustfmt::skip] // a table: one metric, one entry
const METRICS: [Metric; 56] = [
    // CPU.
    labelled("container_cpu_usage_seconds_total", Counter, &["cpu"],
        |c| one("total", c.numbers.cgroup.usage.cpu_ns), "CPU time used, in seconds."),
    metric("container_cpu_user_seconds_total", Counter, Container(|c| c.details.cpu_user_ns),
        "CPU time used by programs, in seconds."),
    metric("container_cpu_system_seconds_total", Counter, Container(|c| c.details.cpu_system_ns),
        "CPU time used by the kernel for programs, in seconds."),
    metric("container_cpu_cfs_periods_total", Counter, Container(|c| c.details.periods),
        "Periods of the CPU quota that went by."),
    metric("container_cpu_cfs_throttled_periods_total", Counter, Container(|c| c.details.throttled_periods),
        "Periods of the CPU quota in which it was used up."),
    metric("container_cpu_cfs_throttled_seconds_total", Counter, Container(|c| c.details.throttled_ns),
        "How long the container waited for the next period of its CPU quota, in seconds."),
    metric("container_spec_cpu_period", Gauge, Container(|c| c.details.cpu_period_us),
        "Length of a period of the CPU quota, in microseconds."),
    metric("container_spec_cpu_quota", Gauge, Container(|c| c.details.cpu_quota_us),
        "CPU time in each period, in microseconds; absent without a quota."),
    metric("container_spec_cpu_shares", Gauge, Container(cpu_shares),
        "The container's part of CPUs that are all in use; 1024 are the usual."),
    // Memory.
    metric("container_memory_usage_bytes", Gauge, Container(|c| c.numbers.cgroup.usage.memory_bytes),
        "Memory in use, with caches, in bytes."),
    metric("container_memory_working_set_bytes", Gauge, Container(|c| c.numbers.cgroup.usage.working_set_bytes),
        "Memory in use less the caches not used lately, in bytes."),
    metric("container_memory_rss", Gauge, Container(|c| c.numbers.cgroup.usage.rss_bytes),
        "Anonymous memory, in bytes."),
    metric("container_memory_cache", Gauge, Container(|c| c.details.cache_bytes), "Page cache, in bytes."),
    metric("container_memory_kernel_usage", Gauge, Container(|c| c.details.kernel_bytes),
        "Memory of the kernel for the container, in bytes."),
    metric("container_memory_mapped_file", Gauge, Container(|c| c.details.mapped_bytes),
        "Files mapped into the memory of processes, in bytes."),
    metric("container_memory_swap", Gauge, Container(|c| c.numbers.cgroup.usage.swap_bytes), "Swap in use, in bytes."),
    metric("container_memory_max_usage_bytes", Gauge, Container(|c| c.details.peak_bytes),
        "The most memory that was in use, in bytes."),
    metric("container_memory_failcnt", Counter, Container(|c| c.details.limit_hits),
        "How often memory reached its limit."),
    labelled("container_memory_failures_total", Counter, &["failure_type", "scope"], memory_failures,
        "Page faults, by whether they waited for a disk (pgmajfault) and by whose they are."),
    metric("container_oom_events_total", Counter, Container(|c| c.details.oom_kills),
        "Processes killed for want of memory."),
    metric("container_spec_memory_limit_bytes", Gauge, Container(memory_limit),
        "The limit of memory, in bytes; 0: none."),
    metric("container_spec_memory_reservation_limit_bytes", Gauge, Container(|c| c.details.reservation_bytes),
        "Memory the container is to keep when memory is short, in bytes; 0: none."),
    metric("container_spec_memory_swap_limit_bytes", Gauge, Container(swap_limit),
        "The limit of swap as the kernel has it, in bytes; with cgroup v1 memory is part of it; 0: none."),
    labelled("container_hugetlb_usage_bytes", Gauge, &["pagesize"],
        |c| c.details.huge.iter().map(|h| (vec![h.size.clone()], h.bytes)).collect(), "Huge pages in use, in bytes."),
    labelled("container_hugetlb_max_usage_bytes", Gauge, &["pagesize"],
        |c| c.details.huge.iter().filter_map(|h| Some((vec![h.size.clone()], h.peak_bytes?))).collect(),
        "The most huge pages that were in use, in bytes; only cgroup v1 counts them."),
    // Pressure.
    metric("container_pressure_cpu_waiting_seconds_total", Counter,
        Container(|c| c.numbers.cgroup.usage.cpu_pressure.map(|p| nanoseconds(p.some))),
        "How long some tasks waited for a CPU, in seconds."),
    metric("container_pressure_cpu_stalled_seconds_total", Counter,
        Container(|c| c.numbers.cgroup.usage.cpu_pressure.map(|p| nanoseconds(p.full))),
        "How long all tasks waited for a CPU, in seconds."),
    metric("container_pressure_memory_waiting_seconds_total", Counter,
        Container(|c| c.numbers.cgroup.usage.memory_pressure.map(|p| nanoseconds(p.some))),
        "How long some tasks waited for memory, in seconds."),
    metric("container_pressure_memory_stalled_seconds_total", Counter,
        Container(|c| c.numbers.cgroup.usage.memory_pressure.map(|p| nanoseconds(p.full))),
        "How long all tasks waited for memory, in seconds."),
    metric("container_pressure_io_waiting_seconds_total", Counter,
        Container(|c| c.numbers.cgroup.usage.io_pressure.map(|p| nanoseconds(p.some))),
        "How long some tasks waited for disks, in seconds."),
    metric("container_pressure_io_stalled_seconds_total", Counter,
        Container(|c| c.numbers.cgroup.usage.io_pressure.map(|p| nanoseconds(p.full))),
        "How long all tasks waited for disks, in seconds."),
    // Disks.
    labelled("container_blkio_device_usage_total", Counter, &["device", "major", "minor", "operation"], operations,
        "Bytes moved to and from a disk, by operation."),
    labelled("container_fs_reads_bytes_total", Counter, &["device"], |c| bytes(c, "Read"),
        "Bytes read from a disk."),
    labelled("container_fs_reads_total", Counter, &["device"], |c| requests(c, "Read"),
        "Requests to read from a disk."),
    labelled("container_fs_writes_bytes_total", Counter, &["device"], |c| bytes(c, "Write"),
        "Bytes written to a disk."),
    labelled("container_fs_writes_total", Counter, &["device"], |c| requests(c, "Write"),
        "Requests to write to a disk."),
    labelled("container_fs_limit_bytes", Gauge, &["device"], |c| filesystem(c, |f| f.bytes),
        "Size of the filesystem the container writes to, in bytes."),
    labelled("container_fs_usage_bytes", Gauge, &["device"],
        |c| c.numbers.written.map_or_else(Vec::new, |w| filesystem(c, |_| w.bytes)),
        "What the container has written over its image, in bytes."),
    labelled("container_fs_inodes_total", Gauge, &["device"], |c| filesystem(c, |f| f.inodes),
        "How many files the filesystem the container writes to has room for."),
    labelled("container_fs_inodes_free", Gauge, &["device"], |c| filesystem(c, |f| f.inodes_free),
        "How many more files the filesystem the container writes to has room for."),
    // Processes.
    metric("container_processes", Gauge, Container(|c| c.processes.count), "Processes in the container."),
    metric("container_threads", Gauge, Container(|c| c.numbers.cgroup.usage.tasks), "Threads in the container."),
    metric("container_threads_max", Gauge, Container(threads_max), "How many threads there may be; 0: any number."),
    metric("container_file_descriptors", Gauge, Container(|c| c.processes.descriptors),
        "Descriptors that the processes have open."),
    metric("container_sockets", Gauge, Container(|c| c.processes.sockets), "Sockets that the processes have open."),
    labelled("container_ulimits_soft", Gauge, &["ulimit"], |c| one("max_open_files", c.processes.open_files_limit),
        "Soft limits of the first process."),
    metric("container_start_time_seconds", Gauge,
        Container(|c| u64::try_from(c.numbers.record.state.started_at()).ok()),
        "When the container started, in seconds since 1970."),
    metric("container_last_seen", Gauge, Container(|c| u64::try_from(c.numbers.cgroup.at).ok()),
        "When the container was last looked at, in seconds since 1970."),
    // Network, of the pod.
    interface("container_network_receive_bytes_total", |i| i.received.bytes, "Bytes received."),
    interface("container_network_receive_packets_total", |i| i.received.packets, "Packets received."),
    interface("container_network_receive_packets_dropped_total", |i| i.received.dropped,
        "Packets received that there was no room for."),
    interface("container_network_receive_errors_total", |i| i.received.errors, "Packets received that were damaged."),
    interface("container_network_transmit_bytes_total", |i| i.sent.bytes, "Bytes sent."),
    interface("container_network_transmit_packets_total", |i| i.sent.packets, "Packets sent."),
    interface("container_network_transmit_packets_dropped_total", |i| i.sent.dropped,
        "Packets to be sent that there was no room for."),
    interface("container_network_transmit_errors_total", |i| i.sent.errors, "Packets that could not be sent."),
];

/// Every metric there is.
#[must_use]
pub fn all() -> &'static [Metric] {
    &METRICS
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metric").field(&self.name).finish()
    }
}

impl Metric {
    /// Whether it only grows.
    #[must_use]
    pub fn is_counter(&self) -> bool {
        self.kind == Counter
    }

    /// What times are told in; where they come from they are in nanoseconds.
    fn is_in_seconds(&self) -> bool {
        self.name.ends_with("_seconds") || self.name.ends_with("_seconds_total") || self.name == "container_last_seen"
    }

    /// Tells each value of a pod and its containers with its labels; seconds have their fractions.
    #[allow(clippy::cast_precision_loss)] // a float is what is wanted
    pub fn each(&self, pod: &FullPod, mut tell: impl FnMut(&[(&str, &str)], f64)) {
        let mut tell = |base: &[&str; LABELS.len()], own: &[String], value: u64| {
            let own = self.labels.iter().copied().zip(own.iter().map(String::as_str));
            let labels: Vec<(&str, &str)> = LABELS.into_iter().zip(base.iter().copied()).chain(own).collect();
            tell(&labels, if self.is_in_seconds() { value as f64 / SECOND as f64 } else { value as f64 });
        };
        let metadata = pod.record.config.metadata.as_ref();
        let (namespace, name) = metadata.map(|m| (m.namespace.as_str(), m.name.as_str())).unwrap_or_default();
        if let OfInterface(value) = self.source {
            let base = ["POD", &pod.cgroup_path, "", pod.record.id.as_str(), namespace, name];
            let interfaces = pod.network.iter().flat_map(|(_, interfaces)| interfaces);
            return interfaces.for_each(|i| tell(&base, from_ref(&i.name), value(i)));
        }
        for full in &pod.containers {
            let record = &full.numbers.record;
            let container = record.config.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
            let base = [container, &full.cgroup_path, &record.image_name, record.id.as_str(), namespace, name];
            match self.source {
                Container(value) => value(full).into_iter().for_each(|value| tell(&base, &[], value)),
                Labelled(values) => values(full).iter().for_each(|(own, value)| tell(&base, own, *value)),
                OfInterface(_) => {}
            }
        }
    }
}

/// Names, texts and labels of all metrics.
pub(super) fn descriptors() -> Vec<cri::MetricDescriptor> {
    let descriptor = |metric: &Metric| cri::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: LABELS.iter().chain(metric.labels).map(|&label| label.to_owned()).collect(),
    };
    METRICS.iter().map(descriptor).collect()
}

/// A pod's metrics and those of its containers.
pub(super) fn pod(pod: &FullPod) -> cri::PodSandboxMetrics {
    let metadata = pod.record.config.metadata.clone().unwrap_or_default();
    // As cAdvisor called what was the pod's own.
    let id = pod.record.id.as_str();
    let base = ["POD", &pod.cgroup_path, "", id, &metadata.namespace, &metadata.name];
    let mut metrics = Vec::new();
    if let Some((at, interfaces)) = &pod.network {
        for metric in &METRICS {
            let OfInterface(value) = metric.source else { continue };
            metrics.extend(interfaces.iter().map(|i| told(metric, *at, &base, from_ref(&i.name), value(i))));
        }
    }
    cri::PodSandboxMetrics {
        pod_sandbox_id: id.to_owned(),
        metrics,
        container_metrics: pod.containers.iter().map(|c| container(c, &metadata)).collect(),
    }
}

fn container(full: &FullContainer, pod: &cri::PodSandboxMetadata) -> cri::ContainerMetrics {
    let record = &full.numbers.record;
    let at = full.numbers.cgroup.at;
    let id = record.id.as_str();
    let base = [record.name().0, &full.cgroup_path, &record.image_name, id, &pod.namespace, &pod.name];
    let mut metrics = Vec::with_capacity(METRICS.len());
    for metric in &METRICS {
        match metric.source {
            Container(value) => metrics.extend(value(full).map(|value| told(metric, at, &base, &[], value))),
            Labelled(values) => {
                metrics.extend(values(full).iter().map(|(labels, value)| told(metric, at, &base, labels, *value)));
            }
            OfInterface(_) => {}
        }
    }
    cri::ContainerMetrics { container_id: id.to_owned(), metrics }
}

fn told(metric: &Metric, at: i64, base: &[&str; LABELS.len()], labels: &[String], value: u64) -> cri::Metric {
    let base = base.iter().map(|&label| label.to_owned());
    let value = if metric.is_in_seconds() { value / SECOND } else { value };
    cri::Metric {
        name: metric.name.to_owned(),
        timestamp: at,
        metric_type: metric.kind.into(),
        label_values: base.chain(labels.iter().cloned()).collect(),
        value: Some(cri::UInt64Value { value }),
    }
}

fn nanoseconds(stall: Stall) -> u64 {
    stall.total_us.saturating_mul(1000)
}

fn one(label: &str, value: Option<u64>) -> Values {
    value.map(|value| (vec![label.to_owned()], value)).into_iter().collect()
}

/// As asked for, where v2 knows only what was made of it.
fn cpu_shares(container: &FullContainer) -> Option<u64> {
    let asked = container.numbers.record.resources.as_ref().and_then(|r| u64::try_from(r.cpu_shares).ok());
    container.details.cpu_shares.map(|shares| asked.filter(|asked| *asked > 0).unwrap_or(shares))
}

fn memory_limit(container: &FullContainer) -> Option<u64> {
    let usage = &container.numbers.cgroup.usage;
    usage.memory_bytes.map(|_| usage.limit_bytes.unwrap_or(0))
}

/// Swap that is not counted has no limit either.
fn swap_limit(container: &FullContainer) -> Option<u64> {
    container.numbers.cgroup.usage.memory_bytes.map(|_| container.details.swap_limit_bytes.unwrap_or(0))
}

fn threads_max(container: &FullContainer) -> Option<u64> {
    container.numbers.cgroup.usage.tasks.map(|_| container.details.tasks_max.unwrap_or(0))
}

fn memory_failures(container: &FullContainer) -> Values {
    let details = &container.details;
    let values = [
        ("pgfault", "container", details.page_faults.0),
        ("pgfault", "hierarchy", details.page_faults.1),
        ("pgmajfault", "container", details.major_page_faults.0),
        ("pgmajfault", "hierarchy", details.major_page_faults.1),
    ];
    let value =
        |(kind, scope, value): (&str, &str, Option<u64>)| Some((vec![kind.to_owned(), scope.to_owned()], value?));
    values.into_iter().filter_map(value).collect()
}

fn named_disks(container: &FullContainer) -> impl Iterator<Item = (&Disk, &String)> {
    container.details.disks.iter().zip(&container.disk_names)
}

fn bytes(container: &FullContainer, operation: &str) -> Values {
    named_disks(container).filter_map(|(disk, name)| Some((vec![name.clone()], of(&disk.bytes, operation)?))).collect()
}

fn requests(container: &FullContainer, operation: &str) -> Values {
    named_disks(container)
        .filter_map(|(disk, name)| Some((vec![name.clone()], of(&disk.requests, operation)?)))
        .collect()
}

fn of(counters: &[(String, u64)], operation: &str) -> Option<u64> {
    counters.iter().find(|(counted, _)| counted == operation).map(|(_, value)| *value)
}

/// Every operation of every disk.
fn operations(container: &FullContainer) -> Values {
    let of_disk = |(disk, name): (&Disk, &String)| -> Values {
        let numbers = [disk.major, disk.minor].map(|number| number.to_string());
        let labels = |operation: &String| [from_ref(name), &numbers, from_ref(operation)].concat();
        disk.bytes.iter().map(|(operation, value)| (labels(operation), *value)).collect()
    };
    named_disks(container).flat_map(of_disk).collect()
}

fn filesystem(container: &FullContainer, value: impl Fn(&Filesystem) -> u64) -> Values {
    container.filesystem.iter().map(|f| (vec![f.device.clone()], value(f))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::status::tests::{container_record, sandbox_record};
    use super::*;
    use crate::node::{ContainerNumbers, Counted, Details, Huge, Pressure, Processes, Usage, Written};

    fn full(usage: Usage, details: Details) -> FullPod {
        let numbers = ContainerNumbers {
            record: Arc::new(container_record()),
            cgroup: Counted { at: 7_000_000_001, usage, nano_cores: None },
            written: Some(Written { bytes: 5, inodes: 1, at: 1 }),
        };
        let filesystem = Filesystem { device: "/dev/vda".into(), bytes: 1 << 40, inodes: 10, inodes_free: 9 };
        let container = FullContainer {
            numbers,
            cgroup_path: "/k/pod/aril-c".into(),
            disk_names: details.disks.iter().map(|_| "/dev/vda".to_owned()).collect(),
            details,
            processes: Processes {
                count: Some(1),
                descriptors: Some(3),
                sockets: Some(2),
                open_files_limit: Some(1024),
            },
            filesystem: Some(Arc::new(filesystem)),
        };
        let eth0 = Interface { name: "eth0".into(), ..Interface::default() };
        FullPod {
            record: Arc::new(sandbox_record()),
            cgroup_path: "/k/pod".into(),
            network: Some((9, vec![eth0])),
            containers: vec![container],
        }
    }

    fn everything() -> FullPod {
        let pressure =
            Some(Pressure { some: Stall { total_us: 2_999_999, ..Stall::default() }, ..Pressure::default() });
        let usage = Usage {
            cpu_ns: Some(1_999_999_999),
            memory_bytes: Some(1),
            working_set_bytes: Some(1),
            rss_bytes: Some(1),
            swap_bytes: Some(1),
            tasks: Some(1),
            cpu_pressure: pressure,
            memory_pressure: pressure,
            io_pressure: pressure,
            ..Usage::default()
        };
        let number = Some(1);
        let operations = || vec![("Read".to_owned(), 11), ("Write".to_owned(), 12)];
        let details = Details {
            cpu_user_ns: number,
            cpu_system_ns: number,
            periods: number,
            throttled_periods: number,
            throttled_ns: number,
            cpu_period_us: number,
            cpu_quota_us: number,
            cpu_shares: number,
            cache_bytes: number,
            kernel_bytes: number,
            mapped_bytes: number,
            limit_hits: number,
            peak_bytes: number,
            page_faults: (number, number),
            major_page_faults: (number, number),
            reservation_bytes: number,
            swap_limit_bytes: number,
            oom_kills: number,
            tasks_max: number,
            huge: vec![Huge { size: "2MB".into(), bytes: 1, peak_bytes: number }],
            disks: vec![Disk { major: 254, minor: 0, bytes: operations(), requests: operations() }],
        };
        full(usage, details)
    }

    fn all(pod: &cri::PodSandboxMetrics) -> impl Iterator<Item = &cri::Metric> {
        pod.metrics.iter().chain(pod.container_metrics.iter().flat_map(|c| &c.metrics))
    }

    #[test]
    fn names_are_unique_and_described() {
        let described = descriptors();
        let names: BTreeSet<_> = described.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names.len(), METRICS.len());
        for descriptor in &described {
            assert!(descriptor.name.starts_with("container_") && descriptor.help.ends_with('.'), "{descriptor:?}");
            let keys: BTreeSet<_> = descriptor.label_keys.iter().collect();
            assert_eq!(keys.len(), descriptor.label_keys.len(), "{descriptor:?}");
        }
    }

    #[test]
    fn every_metric_has_a_value_with_as_many_labels_as_described() {
        let told = pod(&everything());
        for descriptor in descriptors() {
            let mut values = all(&told).filter(|m| m.name == descriptor.name).peekable();
            assert!(values.peek().is_some(), "{} has no value", descriptor.name);
            for metric in values {
                assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{metric:?}");
                assert!(metric.value.is_some() && metric.timestamp > 0, "{metric:?}");
            }
        }
    }

    #[test]
    fn labels_say_whose_the_number_is() {
        let told = pod(&everything());
        let find = |name: &str| all(&told).find(|m| m.name == name).unwrap();
        let usage = find("container_cpu_usage_seconds_total");
        let (id, sandbox) = ("c".repeat(64), "a".repeat(64));
        assert_eq!(usage.label_values, ["c", "/k/pod/aril-c", "busybox:latest", &id, "", "p", "total"]);
        // Whole seconds.
        assert_eq!(usage.value.unwrap().value, 1);
        assert_eq!(find("container_pressure_io_waiting_seconds_total").value.unwrap().value, 2);
        assert_eq!(find("container_last_seen").value.unwrap().value, 7);
        let received = find("container_network_receive_bytes_total");
        assert_eq!(received.label_values, ["POD", "/k/pod", "", &sandbox, "", "p", "eth0"]);
        let moved = find("container_blkio_device_usage_total");
        assert_eq!(moved.label_values[6..], ["/dev/vda", "254", "0", "Read"]);
        assert_eq!(find("container_fs_writes_total").value.unwrap().value, 12);
    }

    #[test]
    fn what_is_not_counted_has_no_value_and_no_limit_is_0() {
        let usage = Usage { memory_bytes: Some(1), tasks: Some(1), ..Usage::default() };
        let told = pod(&full(usage, Details::default()));
        let value = |name: &str| all(&told).find(|m| m.name == name).map(|m| m.value.unwrap().value);
        for none in ["container_cpu_usage_seconds_total", "container_spec_cpu_quota", "container_hugetlb_usage_bytes"] {
            assert_eq!(value(none), None, "{none}");
        }
        for limit in
            ["container_spec_memory_limit_bytes", "container_spec_memory_swap_limit_bytes", "container_threads_max"]
        {
            assert_eq!(value(limit), Some(0), "{limit}");
        }
    }

    #[test]
    fn elsewhere_the_same_is_told_with_fractions() {
        let everything = everything();
        let told = pod(&everything);
        let mut count = 0;
        for metric in super::all() {
            let expected: Vec<&cri::Metric> = all(&told).filter(|m| m.name == metric.name).collect();
            let mut values = Vec::new();
            metric.each(&everything, |labels, value| {
                values.push((labels.iter().map(|(_, value)| (*value).to_owned()).collect::<Vec<_>>(), value));
            });
            assert_eq!(values.len(), expected.len(), "{metric:?}");
            for ((labels, value), expected) in values.iter().zip(expected) {
                assert_eq!(*labels, expected.label_values, "{metric:?}");
                assert_eq!(value.floor(), expected.value.unwrap().value as f64, "{metric:?}");
                count += 1;
            }
        }
        assert!(count > METRICS.len());
        let of = |name: &str| {
            let mut found = 0.0;
            METRICS.iter().find(|m| m.name == name).unwrap().each(&everything, |_, value| found = value);
            found
        };
        assert_eq!(of("container_cpu_usage_seconds_total"), 1.999_999_999);
        assert_eq!(of("container_pressure_io_waiting_seconds_total"), 2.999_999);
    }
}
