//! Memory of a daemon and of what it keeps running for its pods.

use std::time::Duration;

use tokio::time::sleep;

use crate::arena::Stage;
use crate::processes::Process;
use crate::report::Report;
use crate::runtimes::{Daemon, Host};
use crate::samples::Pod;
use crate::{Result, Runtime};

/// One reading.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub pods: usize,
    pub daemon_pss_kib: u64,
    /// Everything beside the daemon and the workloads (shims, pause processes), divided by `pods`.
    pub per_pod_pss_kib: f64,
}

/// Starts a daemon for this alone and reads its memory idle and at each number of pods.
pub async fn measure(runtime: Runtime, stage: &Stage, host: &Host, steps: &[usize], report: &mut Report) -> Result<()> {
    let mut daemon = Daemon::start(runtime, stage, host, "memory").await?;
    settle().await;
    report.memory(runtime, read(&daemon, 0));
    let mut steps: Vec<usize> = steps.iter().copied().filter(|pods| *pods > 0).collect();
    steps.sort_unstable();
    let mut up = Vec::new();
    for pods in steps {
        while up.len() < pods {
            up.push(daemon.client.up(&mut Pod::default()).await?);
        }
        settle().await;
        report.memory(runtime, read(&daemon, pods));
    }
    for pod in &up {
        daemon.client.down(pod, &mut Pod::default()).await?;
    }
    eprintln!("memory of {} read", runtime.name());
    Ok(())
}

/// Lets what a start leaves to be done behind its answer be done.
async fn settle() {
    sleep(Duration::from_millis(500)).await;
}

fn read(daemon: &Daemon, pods: usize) -> Reading {
    let mut reading = Reading { pods, daemon_pss_kib: 0, per_pod_pss_kib: 0.0 };
    let mut beside = 0;
    for process in daemon.arena.family() {
        let pss = process.pss_kib().unwrap_or(0);
        if Some(process.pid) == daemon.arena.daemon() {
            reading.daemon_pss_kib += pss;
        } else if !Process::is_workload(&process) {
            beside += pss;
        }
    }
    if pods > 0 {
        // Exact below 2^52 KiB.
        reading.per_pod_pss_kib =
            u32::try_from(beside).map_or(f64::INFINITY, f64::from) / f64::from(u32::try_from(pods).unwrap_or(u32::MAX));
    }
    reading
}
