//! What the node counted to CRI's messages.

use std::path::Path;

use tonic::Status;

use super::error::status as error;
use super::{Service, filter, metrics};
use crate::api::cri;
use crate::node::{ContainerNumbers, Counted, Interface, PodNumbers, Pressure, Stall, Written};

impl Service {
    /// A path on the filesystem that images are on and containers write to, as ImageFsInfo names it.
    pub(super) fn root(&self) -> &Path {
        &self.node.settings().root
    }

    /// What the containers use that pass the filter and run.
    pub(super) async fn stats_of_containers(
        &self,
        wanted: Option<&cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, Status> {
        let mut containers = self.node.containers();
        containers.retain(|record| filter::container_stats(wanted, record));
        let numbers = self.node.numbers_of_containers(containers).await.map_err(|e| error(&e))?;
        Ok(numbers.iter().map(|numbers| container(numbers, self.root())).collect())
    }

    /// What the pods use that pass the filter and are ready.
    pub(super) async fn stats_of_pods(
        &self,
        wanted: Option<&cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, Status> {
        let mut sandboxes = self.node.sandboxes();
        sandboxes.retain(|record| filter::sandbox_stats(wanted, record));
        let numbers = self.node.numbers_of_pods(sandboxes).await.map_err(|e| error(&e))?;
        Ok(numbers.iter().map(|numbers| sandbox(numbers, self.root())).collect())
    }

    /// The metrics of all pods that are ready.
    pub(super) async fn metrics(&self) -> Result<Vec<cri::PodSandboxMetrics>, Status> {
        let pods = self.node.full_numbers().await.map_err(|e| error(&e))?;
        Ok(pods.iter().map(metrics::pod).collect())
    }
}

/// A container's numbers. `root` is a path on the filesystem that containers write to.
pub(super) fn container(numbers: &ContainerNumbers, root: &Path) -> cri::ContainerStats {
    let ContainerNumbers { record, cgroup, written } = numbers;
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: Some(cpu(cgroup)),
        memory: Some(memory(cgroup)),
        writable_layer: written.map(|written| filesystem(written, root)),
        swap: swap(cgroup),
        io: io(cgroup),
    }
}

/// A pod's numbers, with those of its containers.
pub(super) fn sandbox(numbers: &PodNumbers, root: &Path) -> cri::PodSandboxStats {
    let PodNumbers { record, cgroup, network: traffic, containers } = numbers;
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: Some(cpu(cgroup)),
            memory: Some(memory(cgroup)),
            network: traffic.as_ref().map(|(at, interfaces)| {
                let default = record.network.as_ref().map(|network| network.interface.as_str());
                network(*at, interfaces, default)
            }),
            process: cgroup
                .usage
                .tasks
                .map(|count| cri::ProcessUsage { timestamp: cgroup.at, process_count: value(Some(count)) }),
            containers: containers.iter().map(|numbers| container(numbers, root)).collect(),
            io: io(cgroup),
        }),
        windows: None,
    }
}

/// What was written to a filesystem.
pub(super) fn filesystem(written: Written, root: &Path) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: written.at,
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: root.to_string_lossy().into_owned() }),
        used_bytes: value(Some(written.bytes)),
        inodes_used: value(Some(written.inodes)),
    }
}

fn cpu(counted: &Counted) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: counted.at,
        usage_core_nano_seconds: value(counted.usage.cpu_ns),
        usage_nano_cores: value(counted.nano_cores),
        psi: psi(counted.usage.cpu_pressure),
    }
}

fn memory(counted: &Counted) -> cri::MemoryUsage {
    let usage = &counted.usage;
    let available = usage.limit_bytes.zip(usage.working_set_bytes).map(|(limit, used)| limit.saturating_sub(used));
    cri::MemoryUsage {
        timestamp: counted.at,
        working_set_bytes: value(usage.working_set_bytes),
        available_bytes: value(available),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: psi(usage.memory_pressure),
    }
}

fn swap(counted: &Counted) -> Option<cri::SwapUsage> {
    let used = counted.usage.swap_bytes?;
    let available = counted.usage.swap_limit_bytes.map(|limit| limit.saturating_sub(used));
    Some(cri::SwapUsage {
        timestamp: counted.at,
        swap_available_bytes: value(available),
        swap_usage_bytes: value(Some(used)),
    })
}

fn io(counted: &Counted) -> Option<cri::IoUsage> {
    let psi = psi(counted.usage.io_pressure)?;
    Some(cri::IoUsage { timestamp: counted.at, psi: Some(psi) })
}

fn psi(pressure: Option<Pressure>) -> Option<cri::PsiStats> {
    let data = |stall: Stall| cri::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    pressure.map(|pressure| cri::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) })
}

fn network(at: i64, interfaces: &[Interface], default: Option<&str>) -> cri::NetworkUsage {
    let usage = |interface: &Interface| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(Some(interface.received.bytes)),
        rx_errors: value(Some(interface.received.errors)),
        tx_bytes: value(Some(interface.sent.bytes)),
        tx_errors: value(Some(interface.sent.errors)),
    };
    let is_default = |interface: &&Interface| Some(interface.name.as_str()) == default;
    cri::NetworkUsage {
        timestamp: at,
        default_interface: interfaces.iter().find(is_default).map(usage),
        interfaces: interfaces.iter().filter(|interface| !is_default(interface)).map(usage).collect(),
    }
}

fn value(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::status::tests::{container_record, sandbox_record};
    use super::*;
    use crate::node::Usage;

    fn counted(usage: Usage) -> Counted {
        Counted { at: 7, usage, nano_cores: Some(5) }
    }

    #[test]
    fn what_is_not_counted_is_absent_and_not_zero() {
        let numbers = ContainerNumbers {
            record: Arc::new(container_record()),
            cgroup: Counted { nano_cores: None, ..counted(Usage::default()) },
            written: None,
        };
        let stats = container(&numbers, Path::new("/r"));
        assert_eq!((stats.writable_layer, stats.swap, stats.io), (None, None, None));
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.usage_core_nano_seconds, cpu.usage_nano_cores, cpu.psi), (None, None, None));
        let memory = stats.memory.unwrap();
        assert_eq!((memory.timestamp, memory.usage_bytes, memory.available_bytes), (7, None, None));
    }

    #[test]
    fn available_is_what_the_limit_leaves() {
        let usage = Usage {
            working_set_bytes: Some(30),
            limit_bytes: Some(100),
            swap_bytes: Some(7),
            swap_limit_bytes: Some(5),
            ..Usage::default()
        };
        assert_eq!(memory(&counted(usage)).available_bytes, value(Some(70)));
        let over = Usage { working_set_bytes: Some(101), ..usage };
        assert_eq!(memory(&counted(over)).available_bytes, value(Some(0)));
        let swap = swap(&counted(usage)).unwrap();
        assert_eq!((swap.swap_available_bytes, swap.swap_usage_bytes), (value(Some(0)), value(Some(7))));
    }

    #[test]
    fn the_interface_with_the_pods_address_stands_apart() {
        let mut record = sandbox_record();
        let named = |name: &str| Interface { name: name.to_owned(), ..Interface::default() };
        let of = |record: &crate::node::SandboxRecord, names: &[&str]| {
            let numbers = PodNumbers {
                record: Arc::new(record.clone()),
                cgroup: counted(Usage::default()),
                network: Some((9, names.iter().map(|name| named(name)).collect())),
                containers: Vec::new(),
            };
            let network = sandbox(&numbers, Path::new("/r")).linux.unwrap().network.unwrap();
            let others: Vec<String> = network.interfaces.into_iter().map(|i| i.name).collect();
            (network.default_interface.map(|i| i.name), others.join(" "))
        };
        assert_eq!(of(&record, &["tunl0"]), (None, "tunl0".to_owned()));
        let attachment = serde_json::json!({"driver": "d", "network": "n", "interface": "eth0", "addresses": []});
        record.network = Some(serde_json::from_value(attachment).unwrap());
        assert_eq!(of(&record, &["tunl0", "eth0", "net1"]), (Some("eth0".to_owned()), "tunl0 net1".to_owned()));
    }

    #[test]
    fn pressure_is_told_in_nanoseconds() {
        let stall = Stall { avg10: 1.5, total_us: 3, ..Stall::default() };
        let told = psi(Some(Pressure { some: stall, full: Stall { total_us: u64::MAX, ..stall } })).unwrap();
        assert_eq!((told.some.unwrap().total, told.full.unwrap().total), (3000, u64::MAX));
    }
}
