//! What is counted of a cgroup beside its [`Usage`](super::Usage), and the limits as the kernel has them: for monitoring,
//! which asks rarely and for everything.

use super::file;
use super::path::CgroupPath;
use super::stats::{Reader, Source, V1_UNLIMITED, pairs};
use super::v2::cpu_weight;

/// One reading. `None`: no hierarchy of this host counts it, or there is no such limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// CPU time of programs, in nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// CPU time of the kernel for them, in nanoseconds.
    pub cpu_system_ns: Option<u64>,
    /// Periods of the CPU quota in which anything ran.
    pub periods: Option<u64>,
    /// Those in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// How long it had to wait for the next period, in nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Length of a period, in microseconds.
    pub cpu_period_us: Option<u64>,
    /// CPU time in each period, in microseconds.
    pub cpu_quota_us: Option<u64>,
    /// Its part of the CPUs in shares of v1, of which 1024 are the usual.
    pub cpu_shares: Option<u64>,
    /// Page cache.
    pub cache_bytes: Option<u64>,
    /// Memory of the kernel.
    pub kernel_bytes: Option<u64>,
    /// Files in the address spaces of processes.
    pub mapped_bytes: Option<u64>,
    /// How often it was at its limit.
    pub limit_hits: Option<u64>,
    /// The most memory it had.
    pub peak_bytes: Option<u64>,
    /// Page faults in it, and with all below it.
    pub page_faults: (Option<u64>, Option<u64>),
    /// The same of those that had to wait for a disk.
    pub major_page_faults: (Option<u64>, Option<u64>),
    /// Memory it is to keep when memory is short; 0: none.
    pub reservation_bytes: Option<u64>,
    /// The limit of swap as the kernel has it: on v1 memory is part of it.
    pub swap_limit_bytes: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// The most tasks it may have.
    pub tasks_max: Option<u64>,
    /// Of each size of huge pages.
    pub huge: Vec<Huge>,
    /// Of each disk.
    pub disks: Vec<Disk>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Huge {
    /// "2MB".
    pub size: String,
    /// In use.
    pub bytes: u64,
    /// The most there were; only v1 knows.
    pub peak_bytes: Option<u64>,
}

/// What one disk did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Number of its driver.
    pub major: u32,
    /// Its own number.
    pub minor: u32,
    /// Bytes by operation ("Read", "Write", …).
    pub bytes: Vec<(String, u64)>,
    /// Requests by operation.
    pub requests: Vec<(String, u64)>,
}

/// Disks of one cgroup that are told of.
const MAX_DISKS: usize = 1000;

/// What v2 calls them in io.stat, and what v1 does.
const V2_OPERATIONS: [(&str, &str, bool); 6] = [
    ("rbytes", "Read", true),
    ("wbytes", "Write", true),
    ("dbytes", "Discard", true),
    ("rios", "Read", false),
    ("wios", "Write", false),
    ("dios", "Discard", false),
];

impl Reader {
    /// Reads all that is counted of a cgroup but its usage. What is not there is `None`, be it the cgroup.
    pub fn details(&mut self, path: &str) -> Details {
        let mut details = Details::default();
        let Ok(path) = CgroupPath::parse(path) else { return details };
        self.cpu_times(&path, &mut details);
        self.cpu_limits(&path, &mut details);
        self.memory_details(&path, &mut details);
        if let Some(pids) = self.hierarchies.source("pids") {
            details.tasks_max = self.number(pids.index, &path, "pids.max");
        }
        self.huge(&path, &mut details);
        self.disks(&path, &mut details);
        details
    }

    fn cpu_times(&mut self, path: &CgroupPath, details: &mut Details) {
        match self.hierarchies.source("cpuacct").or_else(|| self.unified()) {
            Some(Source { index, v2: false }) => {
                details.cpu_user_ns = self.number(index, path, "cpuacct.usage_user");
                details.cpu_system_ns = self.number(index, path, "cpuacct.usage_sys");
            }
            Some(Source { index, v2: true }) => {
                for (key, number) in self.text(index, path, "cpu.stat").into_iter().flat_map(pairs) {
                    match key {
                        "user_usec" => details.cpu_user_ns = number.checked_mul(1000),
                        "system_usec" => details.cpu_system_ns = number.checked_mul(1000),
                        _ => {}
                    }
                }
            }
            None => {}
        }
    }

    fn unified(&self) -> Option<Source> {
        self.hierarchies.unified().map(|index| Source { index, v2: true })
    }

    fn cpu_limits(&mut self, path: &CgroupPath, details: &mut Details) {
        let Some(Source { index, v2 }) = self.hierarchies.source("cpu") else { return };
        for (key, number) in self.text(index, path, "cpu.stat").into_iter().flat_map(pairs) {
            match key {
                "nr_periods" => details.periods = Some(number),
                "nr_throttled" => details.throttled_periods = Some(number),
                "throttled_time" => details.throttled_ns = Some(number),
                "throttled_usec" => details.throttled_ns = number.checked_mul(1000),
                _ => {}
            }
        }
        if v2 {
            if let Some((quota, period)) = self.text(index, path, "cpu.max").and_then(|text| text.split_once(' ')) {
                details.cpu_quota_us = quota.parse().ok();
                details.cpu_period_us = period.trim_end().parse().ok();
            }
            details.cpu_shares = self.number(index, path, "cpu.weight").map(shares);
        } else {
            // -1 is no quota, and no number without a sign.
            details.cpu_quota_us = self.number(index, path, "cpu.cfs_quota_us");
            details.cpu_period_us = self.number(index, path, "cpu.cfs_period_us");
            details.cpu_shares = self.number(index, path, "cpu.shares");
        }
    }

    fn memory_details(&mut self, path: &CgroupPath, details: &mut Details) {
        let Some(Source { index, v2 }) = self.hierarchies.source("memory") else { return };
        let keyed = |text: Option<&str>, key: &str| text.and_then(|text| super::keyed(text, key));
        if v2 {
            fill_v2(self.text(index, path, "memory.stat").unwrap_or_default(), details);
            details.limit_hits = keyed(self.text(index, path, "memory.events"), "max");
            details.oom_kills = keyed(self.text(index, path, "memory.events"), "oom_kill");
            details.peak_bytes = self.number(index, path, "memory.peak");
            details.reservation_bytes = self.number(index, path, "memory.low");
            details.swap_limit_bytes = self.number(index, path, "memory.swap.max");
        } else {
            fill_v1(self.text(index, path, "memory.stat").unwrap_or_default(), details);
            details.limit_hits = self.number(index, path, "memory.failcnt");
            details.oom_kills = keyed(self.text(index, path, "memory.oom_control"), "oom_kill");
            details.peak_bytes = self.number(index, path, "memory.max_usage_in_bytes");
            details.kernel_bytes = self.number(index, path, "memory.kmem.usage_in_bytes");
            let reservation = self.number(index, path, "memory.soft_limit_in_bytes");
            details.reservation_bytes = reservation.map(|bytes| if bytes < V1_UNLIMITED { bytes } else { 0 });
            let swap = self.number(index, path, "memory.memsw.limit_in_bytes");
            details.swap_limit_bytes = swap.filter(|bytes| *bytes < V1_UNLIMITED);
        }
    }

    fn huge(&mut self, path: &CgroupPath, details: &mut Details) {
        let Some(Source { index, v2 }) = self.hierarchies.source("hugetlb") else { return };
        for size in huge_page_sizes() {
            let usage = if v2 { "current" } else { "usage_in_bytes" };
            let Some(bytes) = self.number(index, path, &format!("hugetlb.{size}.{usage}")) else { continue };
            let peak_bytes = match v2 {
                true => None,
                false => self.number(index, path, &format!("hugetlb.{size}.max_usage_in_bytes")),
            };
            details.huge.push(Huge { size, bytes, peak_bytes });
        }
    }

    fn disks(&mut self, path: &CgroupPath, details: &mut Details) {
        if let Some(Source { index, .. }) = self.hierarchies.source("io") {
            details.disks = disks_v2(self.text(index, path, "io.stat").unwrap_or_default());
        } else if let Some(Source { index, .. }) = self.hierarchies.source("blkio") {
            // Whichever the disks' scheduler keeps.
            for policy in ["throttle", "bfq"] {
                let file = |what: &str| format!("blkio.{policy}.{what}_recursive");
                disks_v1(self.text(index, path, &file("io_service_bytes")), &mut details.disks, true);
                disks_v1(self.text(index, path, &file("io_serviced")), &mut details.disks, false);
                if !details.disks.is_empty() {
                    break;
                }
            }
        }
    }
}

/// On v1 the names with `total_` include the cgroups below.
fn fill_v1(text: &str, details: &mut Details) {
    for (key, number) in pairs(text) {
        match key {
            "total_cache" => details.cache_bytes = Some(number),
            "total_mapped_file" => details.mapped_bytes = Some(number),
            "pgfault" => details.page_faults.0 = Some(number),
            "pgmajfault" => details.major_page_faults.0 = Some(number),
            "total_pgfault" => details.page_faults.1 = Some(number),
            "total_pgmajfault" => details.major_page_faults.1 = Some(number),
            _ => {}
        }
    }
}

fn fill_v2(text: &str, details: &mut Details) {
    // Linux has had the sum since 5.18; before, it is that of its larger parts.
    let (mut sum, mut parts) = (None, None);
    for (key, number) in pairs(text) {
        match key {
            "file" => details.cache_bytes = Some(number),
            "file_mapped" => details.mapped_bytes = Some(number),
            "pgfault" => details.page_faults = (Some(number), Some(number)),
            "pgmajfault" => details.major_page_faults = (Some(number), Some(number)),
            "kernel" => sum = Some(number),
            "slab" | "kernel_stack" | "pagetables" | "percpu" => {
                parts = Some(number.saturating_add(parts.unwrap_or(0)))
            }
            _ => {}
        }
    }
    details.kernel_bytes = sum.or(parts);
}

/// The least shares that make this weight; of several, 1024 if it is among them.
fn shares(weight: u64) -> u64 {
    if cpu_weight(1024) == weight {
        return 1024;
    }
    let (mut low, mut high) = (2, 262_144);
    while low < high {
        let middle = u64::midpoint(low, high);
        if cpu_weight(middle) < weight { low = middle + 1 } else { high = middle }
    }
    low
}

/// The sizes of this kernel as the names of files have them ("2MB").
fn huge_page_sizes() -> Vec<String> {
    let Ok(dir) = std::fs::File::open("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = file::children(&dir).unwrap_or_default();
    let mut kilobytes: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()).collect();
    kilobytes.sort_unstable();
    kilobytes.into_iter().map(huge_page_name).collect()
}

fn huge_page_name(kilobytes: u64) -> String {
    match kilobytes {
        1_048_576.. => format!("{}GB", kilobytes >> 20),
        1024.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    }
}

/// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
fn disks_v2(text: &str) -> Vec<Disk> {
    let disk = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = device(words.next()?)?;
        let mut disk = Disk { major, minor, ..Disk::default() };
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            let Some((_, operation, is_bytes)) = V2_OPERATIONS.iter().find(|(word, ..)| *word == key) else { continue };
            let counters = if *is_bytes { &mut disk.bytes } else { &mut disk.requests };
            counters.push(((*operation).to_owned(), number.parse().ok()?));
        }
        // A disk that does not count has its number alone.
        (!disk.bytes.is_empty() || !disk.requests.is_empty()).then_some(disk)
    };
    text.lines().filter_map(disk).take(MAX_DISKS).collect()
}

/// "8:0 Read 1", one operation a line; the last line is a sum without a disk.
fn disks_v1(text: Option<&str>, disks: &mut Vec<Disk>, is_bytes: bool) {
    for line in text.unwrap_or_default().lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some((major, minor)), Some(operation), Some(number)) =
            (words.next().and_then(device), words.next(), words.next().and_then(|n| n.parse::<u64>().ok()))
        else {
            continue;
        };
        // Sums of the others.
        if matches!(operation, "Total") {
            continue;
        }
        let known = disks.iter().position(|disk| (disk.major, disk.minor) == (major, minor));
        let index = known.unwrap_or(disks.len());
        if known.is_none() {
            if disks.len() == MAX_DISKS {
                continue;
            }
            disks.push(Disk { major, minor, ..Disk::default() });
        }
        let counters = if is_bytes { &mut disks[index].bytes } else { &mut disks[index].requests };
        counters.push((operation.to_owned(), number));
    }
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_found_for_every_weight() {
        assert_eq!([1, 100].map(shares), [2, 1024]);
        for weight in 1..=10_000 {
            let least = shares(weight);
            assert!(cpu_weight(least) >= weight && (least == 2 || least == 1024 || cpu_weight(least - 1) < weight));
        }
    }

    #[test]
    fn disks_of_both_versions_come_to_the_same() {
        let v2 = disks_v2("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0 \nx:y rbytes=1\n");
        let operations = |read, write, discard| {
            vec![("Read".to_owned(), read), ("Write".to_owned(), write), ("Discard".to_owned(), discard)]
        };
        let disk = Disk { major: 254, minor: 0, bytes: operations(1, 2, 0), requests: operations(3, 4, 0) };
        assert_eq!(v2, std::slice::from_ref(&disk));
        let mut v1 = Vec::new();
        disks_v1(Some("254:0 Read 1\n254:0 Write 2\n254:0 Discard 0\n254:0 Total 3\nTotal 3\n"), &mut v1, true);
        disks_v1(Some("254:0 Read 3\n254:0 Write 4\n254:0 Discard 0\n254:0 x\n\n"), &mut v1, false);
        assert_eq!(v1, [disk]);
    }

    #[test]
    fn kernel_memory_is_a_sum_where_there_is_none() {
        let mut details = Details::default();
        fill_v2("file 5\nkernel 100\nslab 60\nfile_mapped 3\npgfault 7\n", &mut details);
        assert_eq!((details.kernel_bytes, details.cache_bytes, details.mapped_bytes), (Some(100), Some(5), Some(3)));
        assert_eq!(details.page_faults, (Some(7), Some(7)));
        fill_v2("kernel_stack 10\nslab 60\n", &mut details);
        assert_eq!(details.kernel_bytes, Some(70));
        fill_v1("pgfault 1\ntotal_pgfault 2\n", &mut details);
        assert_eq!(details.page_faults, (Some(1), Some(2)));
    }

    #[test]
    fn huge_pages_have_the_names_of_their_files() {
        assert_eq!([64, 2048, 1_048_576].map(huge_page_name), ["64KB", "2MB", "1GB"]);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[a-zA-Z_ =0-9:.\\n-]{0,300}") {
            let mut details = Details::default();
            fill_v1(&text, &mut details);
            fill_v2(&text, &mut details);
            disks_v2(&text);
            disks_v1(Some(&text), &mut details.disks, true);
        }
    }
}
