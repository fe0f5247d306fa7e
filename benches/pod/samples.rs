//! Durations by runtime and operation, and what is said about them.

use std::time::Duration;

use crate::Runtime;

/// The operations, named as in the results.
pub mod op {
    pub const RUN: &str = "RunPodSandbox";
    pub const CREATE: &str = "CreateContainer";
    pub const START: &str = "StartContainer";
    pub const EXEC: &str = "ExecSync";
    pub const STOP: &str = "StopContainer";
    pub const REMOVE: &str = "RemoveContainer";
    pub const STOP_POD: &str = "StopPodSandbox";
    pub const REMOVE_POD: &str = "RemovePodSandbox";
    /// Sums over the operations of the same pod.
    pub const UP: &str = "run+create+start";
    pub const DOWN: &str = "stop+remove";
    pub const WHOLE: &str = "all";

    /// Every row of a runtime, in the order of the table.
    pub const ALL: &[&str] = &[RUN, CREATE, START, UP, EXEC, STOP, REMOVE, STOP_POD, REMOVE_POD, DOWN, WHOLE];
}

/// What the calls of one pod's life took.
#[derive(Debug, Default, Clone)]
pub struct Pod(Vec<(&'static str, Duration)>);

impl Pod {
    pub fn push(&mut self, op: &'static str, took: Duration) {
        self.0.push((op, took));
    }

    /// One operation, or the sum of those that `op` names together; none if one is missing.
    fn get(&self, op: &str) -> Option<Duration> {
        let parts: &[&str] = match op {
            op::UP => &[op::RUN, op::CREATE, op::START],
            op::DOWN => &[op::STOP_POD, op::REMOVE_POD],
            op::WHOLE => return (!self.0.is_empty()).then(|| self.0.iter().map(|(_, took)| *took).sum()),
            _ => return self.0.iter().find(|(name, _)| *name == op).map(|(_, took)| *took),
        };
        parts.iter().map(|part| self.get(part)).sum()
    }
}

/// All pods of all runtimes.
#[derive(Debug, Default)]
pub struct Samples(Vec<(Runtime, Pod)>);

/// One operation of one runtime, over all its pods.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub n: usize,
    pub min: Duration,
    pub p50: Duration,
    pub p99: Duration,
}

impl Samples {
    pub fn add(&mut self, runtime: Runtime, pod: Pod) {
        self.0.push((runtime, pod));
    }

    /// None if no pod of `runtime` has the operation.
    pub fn summary(&self, runtime: Runtime, op: &str) -> Option<Summary> {
        let mut took: Vec<Duration> =
            self.0.iter().filter(|(whose, _)| *whose == runtime).filter_map(|(_, pod)| pod.get(op)).collect();
        took.sort_unstable();
        Some(Summary { n: took.len(), min: *took.first()?, p50: *percentile(&took, 50)?, p99: *percentile(&took, 99)? })
    }
}

/// The smallest value that `percent` of all values do not exceed (nearest rank).
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<&Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?)
}
