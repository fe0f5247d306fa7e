//! What the processes of cgroups have used, read again and again.
//!
//! A [`Reader`] goes through any number of cgroups with one buffer. It keeps no file open between readings: a file is
//! opened by its whole path from the root of its hierarchy, which costs a look-up in the kernel's cache, where an open
//! file would cost a page of kernel memory for each counter of each container, read or not.
//!
//! Of a file, what fits into the buffer is read and what is understood is taken: a counter that is not there, or that
//! says something else than it should, is `None`.

use super::detect::Hierarchies;
use super::file::{self, retry};
use super::path::CgroupPath;

/// One reading. `None`: no hierarchy of this host counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all its processes, those that have ended too, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory charged to it, page cache too.
    pub memory_bytes: Option<u64>,
    /// Memory that cannot be given back without work: the charge less the page cache not used lately. What kubelet
    /// evicts by.
    pub working_set_bytes: Option<u64>,
    /// Anonymous memory.
    pub rss_bytes: Option<u64>,
    /// Swap in use.
    pub swap_bytes: Option<u64>,
    /// How much swap it may use; `None` too if there is no limit.
    pub swap_limit_bytes: Option<u64>,
    /// The memory limit that holds; `None` too if there is none.
    pub limit_bytes: Option<u64>,
    /// Page faults since it was made.
    pub page_faults: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_page_faults: Option<u64>,
    /// Processes and threads in it and below it; `None` too if not asked for.
    pub tasks: Option<u64>,
    /// How long its processes waited for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// How long its processes waited for memory.
    pub memory_pressure: Option<Pressure>,
    /// How long its processes waited for disks.
    pub io_pressure: Option<Pressure>,
}

impl Usage {
    /// What two cgroups use together. Pressure cannot be added up: the sum has none. It has a limit if both have.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        Self {
            cpu_ns: sum(self.cpu_ns, other.cpu_ns),
            memory_bytes: sum(self.memory_bytes, other.memory_bytes),
            working_set_bytes: sum(self.working_set_bytes, other.working_set_bytes),
            rss_bytes: sum(self.rss_bytes, other.rss_bytes),
            swap_bytes: sum(self.swap_bytes, other.swap_bytes),
            swap_limit_bytes: both(self.swap_limit_bytes, other.swap_limit_bytes),
            limit_bytes: both(self.limit_bytes, other.limit_bytes),
            page_faults: sum(self.page_faults, other.page_faults),
            major_page_faults: sum(self.major_page_faults, other.major_page_faults),
            tasks: sum(self.tasks, other.tasks),
            cpu_pressure: None,
            memory_pressure: None,
            io_pressure: None,
        }
    }
}

/// How long processes waited for a resource (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one of them waited.
    pub some: Stall,
    /// All of them waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
    /// In all, in microseconds.
    pub total_us: u64,
}

/// Reads the counters of one cgroup after the other.
#[derive(Debug)]
pub struct Reader {
    pub(super) hierarchies: Hierarchies,
    /// `cpuacct` of v1; else every cgroup of v2 counts CPU time, with the controller and without.
    cpuacct: Option<usize>,
    memory: Option<Source>,
    pids: Option<Source>,
    /// The path in a hierarchy of the file being read, with room for the next.
    name: String,
    buffer: Vec<u8>,
}

/// A controller's hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) index: usize,
    pub(super) v2: bool,
}

/// memory.stat has some 60 lines.
const MAX_BYTES: usize = 16 << 10;

/// v1's way to say that there is no limit: the largest number of whole pages, of the largest pages there are.
pub(super) const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

impl Hierarchies {
    /// What reads the counters of cgroups in these hierarchies.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader {
            cpuacct: self.position("cpuacct").filter(|&i| !self.get(i).is_v2()),
            memory: self.source("memory"),
            pids: self.source("pids"),
            hierarchies: self.clone(),
            name: String::new(),
            buffer: vec![0; MAX_BYTES],
        }
    }

    pub(super) fn source(&self, controller: &str) -> Option<Source> {
        self.position(controller).map(|index| Source { index, v2: self.get(index).is_v2() })
    }
}

impl Reader {
    /// Reads a cgroup's counters, those of its tasks if `tasks`. The numbers are of one moment as far as the kernel's
    /// are. `None`: there is no such cgroup.
    pub fn usage(&mut self, path: &str, tasks: bool) -> Option<Usage> {
        let path = CgroupPath::parse(path).ok()?;
        let mut usage = Usage { cpu_ns: self.cpu_ns(&path), ..Usage::default() };
        self.read_memory(&path, &mut usage);
        if usage.cpu_ns.is_none() && usage.memory_bytes.is_none() {
            return None;
        }
        if tasks && let Some(pids) = self.pids {
            usage.tasks = self.number(pids.index, &path, "pids.current");
        }
        if let Some(unified) = self.hierarchies.unified() {
            usage.cpu_pressure = self.pressure(unified, &path, "cpu.pressure");
            // Where one of them is not, for want of PSI or by cgroup.pressure, none is.
            if usage.cpu_pressure.is_some() {
                usage.memory_pressure = self.pressure(unified, &path, "memory.pressure");
                usage.io_pressure = self.pressure(unified, &path, "io.pressure");
            }
        }
        Some(usage)
    }

    fn cpu_ns(&mut self, path: &CgroupPath) -> Option<u64> {
        if let Some(index) = self.cpuacct {
            return self.number(index, path, "cpuacct.usage");
        }
        let unified = self.hierarchies.unified()?;
        super::keyed(self.text(unified, path, "cpu.stat")?, "usage_usec")?.checked_mul(1000)
    }

    fn read_memory(&mut self, path: &CgroupPath, usage: &mut Usage) {
        let Some(Source { index, v2 }) = self.memory else { return };
        if v2 {
            usage.memory_bytes = self.number(index, path, "memory.current");
            if let Some(text) = self.text(index, path, "memory.stat") {
                fill_v2(text, usage);
            }
            usage.limit_bytes = self.number(index, path, "memory.max");
            usage.swap_bytes = self.number(index, path, "memory.swap.current");
            if usage.swap_bytes.is_some() {
                usage.swap_limit_bytes = self.number(index, path, "memory.swap.max");
            }
        } else {
            usage.memory_bytes = self.number(index, path, "memory.usage_in_bytes");
            if let Some(text) = self.text(index, path, "memory.stat") {
                fill_v1(text, usage);
            }
        }
    }

    fn pressure(&mut self, index: usize, path: &CgroupPath, file: &str) -> Option<Pressure> {
        pressure(self.text(index, path, file)?)
    }

    /// A file that is one number. "max" is none, and no limit.
    pub(super) fn number(&mut self, index: usize, path: &CgroupPath, file: &str) -> Option<u64> {
        self.text(index, path, file)?.trim_end().parse().ok()
    }

    /// What a file of the cgroup says now, as far as it fits; `None` if it is not there, or no text.
    pub(super) fn text(&mut self, index: usize, path: &CgroupPath, file: &str) -> Option<&str> {
        self.name.clear();
        self.name.push_str(path.relative());
        self.name.push('/');
        self.name.push_str(file);
        let file = file::open_read(self.hierarchies.get(index).root(), &self.name).ok()?;
        let mut length = 0;
        while length < self.buffer.len() {
            match retry(|| nix::unistd::read(&file, &mut self.buffer[length..])) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(_) => return None,
            }
            // These files are one record each, which a read returns whole if it fits.
            if self.buffer[length - 1] == b'\n' {
                break;
            }
        }
        std::str::from_utf8(&self.buffer[..length]).ok()
    }
}

/// The pairs of a file of "key number" lines.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, number) = line.split_once(' ')?;
        Some((key, number.trim_end().parse().ok()?))
    })
}

/// On v1 the names with `total_` include the cgroups below, as all numbers of v2 do.
fn fill_v1(text: &str, usage: &mut Usage) {
    let mut inactive = 0;
    let mut memory_and_swap = None;
    for (key, number) in pairs(text) {
        match key {
            "total_inactive_file" => inactive = number,
            "total_rss" => usage.rss_bytes = Some(number),
            "total_swap" => usage.swap_bytes = Some(number),
            "total_pgfault" => usage.page_faults = Some(number),
            "total_pgmajfault" => usage.major_page_faults = Some(number),
            "hierarchical_memory_limit" if number < V1_UNLIMITED => usage.limit_bytes = Some(number),
            "hierarchical_memsw_limit" if number < V1_UNLIMITED => memory_and_swap = Some(number),
            _ => {}
        }
    }
    usage.working_set_bytes = usage.memory_bytes.map(|all| all.saturating_sub(inactive));
    // Of memory and swap together, what memory can never take is certain to be left for swap.
    usage.swap_limit_bytes = memory_and_swap.map(|both| both.saturating_sub(usage.limit_bytes.unwrap_or(0)));
}

fn fill_v2(text: &str, usage: &mut Usage) {
    let mut inactive = 0;
    for (key, number) in pairs(text) {
        match key {
            "inactive_file" => inactive = number,
            "anon" => usage.rss_bytes = Some(number),
            "pgfault" => usage.page_faults = Some(number),
            "pgmajfault" => usage.major_page_faults = Some(number),
            _ => {}
        }
    }
    usage.working_set_bytes = usage.memory_bytes.map(|all| all.saturating_sub(inactive));
}

/// A pressure file: "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", and "full" likewise, which older kernels do not
/// have for CPUs.
fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut known = false;
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ')?;
        let stall = stall(rest)?;
        match kind {
            "some" => (pressure.some, known) = (stall, true),
            "full" => pressure.full = stall,
            _ => {}
        }
    }
    known.then_some(pressure)
}

fn stall(text: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=')?;
        let percent = || value.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0);
        match key {
            "avg10" => stall.avg10 = percent()?,
            "avg60" => stall.avg60 = percent()?,
            "avg300" => stall.avg300 = percent()?,
            "total" => stall.total_us = value.parse().ok()?,
            _ => {}
        }
    }
    Some(stall)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn v1_words() {
        let text = "cache 9\ninactive_file 1\nhierarchical_memory_limit 9223372036854771712\n\
                    hierarchical_memsw_limit 9223372036854771712\ntotal_rss 5\ntotal_swap 2\n\
                    total_pgfault 7\ntotal_pgmajfault 3\ntotal_inactive_file 40\n";
        let mut usage = Usage { memory_bytes: Some(100), ..Usage::default() };
        fill_v1(text, &mut usage);
        let told = Usage {
            memory_bytes: Some(100),
            working_set_bytes: Some(60),
            rss_bytes: Some(5),
            swap_bytes: Some(2),
            page_faults: Some(7),
            major_page_faults: Some(3),
            ..Usage::default()
        };
        assert_eq!(usage, told);
        fill_v1("hierarchical_memory_limit 4096\nhierarchical_memsw_limit 12288\n", &mut usage);
        assert_eq!((usage.limit_bytes, usage.swap_limit_bytes), (Some(4096), Some(8192)));
    }

    #[test]
    fn a_working_set_is_never_negative() {
        let mut usage = Usage { memory_bytes: Some(10), ..Usage::default() };
        fill_v2("anon 3\ninactive_file 40\n", &mut usage);
        assert_eq!((usage.working_set_bytes, usage.rss_bytes), (Some(0), Some(3)));
    }

    #[test]
    fn pressure_is_read_with_and_without_the_second_line() {
        let text = "some avg10=0.12 avg60=3.91 avg300=6.44 total=14358651682\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        let told = pressure(text).unwrap();
        assert_eq!(told.some, Stall { avg10: 0.12, avg60: 3.91, avg300: 6.44, total_us: 14_358_651_682 });
        assert_eq!(told.full.total_us, 9);
        assert_eq!(pressure("some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n").unwrap().full, Stall::default());
        for damaged in
            ["", "\n", "some", "some avg10=x total=1\n", "some avg10=NaN\n", "full total=1\n", "some total=-1\n"]
        {
            assert_eq!(pressure(damaged), None, "{damaged:?}");
        }
    }

    #[test]
    fn a_sum_knows_what_one_of_both_knows_and_is_limited_if_both_are() {
        let a = Usage { cpu_ns: Some(u64::MAX), rss_bytes: Some(3), limit_bytes: Some(5), ..Usage::default() };
        let b = Usage { cpu_ns: Some(1), tasks: Some(2), cpu_pressure: Some(Pressure::default()), ..Usage::default() };
        let told = Usage { cpu_ns: Some(u64::MAX), rss_bytes: Some(3), tasks: Some(2), ..Usage::default() };
        assert_eq!(a.plus(&b), told);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[a-z_ =0-9.\\n-]{0,300}") {
            let mut usage = Usage::default();
            fill_v1(&text, &mut usage);
            fill_v2(&text, &mut usage);
            pressure(&text);
        }
    }
}
