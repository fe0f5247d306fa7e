//! The daemon's own process, by the names that Prometheus' client libraries give these numbers.
//!
//! Source: proc(5), getrusage(2), getrlimit(2).

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

use super::text::{Metric, Page, float};

const CPU: Metric = Metric::counter("process_cpu_seconds_total", "CPU time the daemon has used.");
const RESIDENT: Metric = Metric::gauge("process_resident_memory_bytes", "Memory of the daemon that is in RAM.");
const VIRTUAL: Metric = Metric::gauge("process_virtual_memory_bytes", "Address space of the daemon.");
const OPEN: Metric = Metric::gauge("process_open_fds", "Descriptors the daemon has open.");
const MAX: Metric = Metric::gauge("process_max_fds", "Descriptors the daemon may have open.");
const THREADS: Metric = Metric::gauge("process_threads", "Threads of the daemon.");
const START: Metric = Metric::gauge("process_start_time_seconds", "When the daemon started, in seconds since 1970.");

/// Tells what the kernel knows of this process; what it does not tell is left out.
pub(super) fn write(page: &mut Page, started_at_ns: i64) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        page.single(&CPU, float(micros.unsigned_abs()) / 1e6);
    }
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').map(|n| n.parse::<u64>().ok());
    let page_size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| u64::try_from(n).ok());
    if let (Some(Some(total)), Some(Some(resident)), Some(size)) = (pages.next(), pages.next(), page_size) {
        page.single(&VIRTUAL, float(total * size));
        page.single(&RESIDENT, float(resident * size));
    }
    if let Some(open) = entries("/proc/self/fd") {
        // Not the one it was read by.
        page.single(&OPEN, float(open.saturating_sub(1)));
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        page.single(&MAX, float(soft));
    }
    if let Some(threads) = entries("/proc/self/task") {
        page.single(&THREADS, float(threads));
    }
    page.single(&START, float(started_at_ns.unsigned_abs()) / 1e9);
}

fn entries(directory: &str) -> Option<u64> {
    u64::try_from(fs::read_dir(directory).ok()?.count()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::text::Format;
    use super::*;

    #[test]
    fn a_process_is_told_whole() {
        let mut page = Page::new(Format::Prometheus);
        write(&mut page, 1_500_000_000);
        let value = |name: &str| -> f64 {
            let line = page.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {}", page.text)).parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        assert_eq!(value("process_start_time_seconds"), 1.5);
    }
}
