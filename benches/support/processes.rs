//! Who runs in an arena, read from `/proc`.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Carried in the environment of the workloads, so that they are told from what runs them.
pub const WORKLOAD_MARK: &str = "ARIL_BENCH_ROLE=workload";

#[derive(Debug, Clone)]
pub struct Process {
    pub pid: i32,
    parent: i32,
    mount_namespace: PathBuf,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, second, may hold blanks and parentheses; the parent is the second field after it.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let mount_namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
        Some(Process { pid, parent, mount_namespace })
    }

    /// Whether it, or an ancestor whose environment it kept, was started as the pod's workload.
    pub fn is_workload(&self) -> bool {
        let environ = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == WORKLOAD_MARK.as_bytes())
    }

    /// Its proportional share of the memory it maps; none if it is gone.
    pub fn pss_kib(&self) -> Option<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// CPU seconds, its own and those of children that it has waited for; none if it is gone.
    #[allow(dead_code)] // not every benchmark adds them up like this
    pub fn cpu(&self) -> Option<(f64, f64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // utime, stime, cutime and cstime (proc(5)), in hundredths.
        let fields: Vec<f64> =
            stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(4).flat_map(str::parse).collect();
        let [user, system, children_user, children_system] = fields[..] else { return None };
        Some(((user + system) / 100.0, (children_user + children_system) / 100.0))
    }

    /// Whether it has ended; a zombie has.
    pub fn is_gone(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
    }

    pub fn kill(&self) {
        // Gone already is as good.
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).ok();
    }
}

/// The mount namespace of a process, as its link in `/proc` reads.
pub fn mount_namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// Every process in `namespace` and every descendant of one, whatever namespace that is in.
pub fn family(namespace: &PathBuf) -> Vec<Process> {
    let mut others: Vec<Process> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect();
    let (mut family, rest): (Vec<_>, Vec<_>) = others.drain(..).partition(|p| p.mount_namespace == *namespace);
    others = rest;
    // A pass adds the children of those found so far.
    loop {
        let (children, rest): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|p| family.iter().any(|member| member.pid == p.parent));
        if children.is_empty() {
            return family;
        }
        family.extend(children);
        others = rest;
    }
}
