//! What a cgroup's processes have used, read again and again.
//!
//! A [`Meter`] opens the files once. A reading is then one pread(2) for each, without a look-up and without an open, because
//! a node reads the meters of all its containers every few seconds.

use std::os::fd::OwnedFd;

use super::detect::Hierarchy;
use super::file::{self, retry};
use super::{Cgroup, keyed};

/// One reading. `None`: no hierarchy of this host counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// The memory limit that holds; `None` too if there is none.
    pub limit_bytes: Option<u64>,
    /// Page faults since it was made.
    pub page_faults: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_page_faults: Option<u64>,
    /// Processes and threads in it and below it.
    pub tasks: Option<u64>,
}

/// The open files of one cgroup's counters.
#[derive(Debug)]
pub struct Meter {
    cpu: Option<Counter>,
    memory: Option<Counter>,
    memory_stat: Option<Counter>,
    swap: Option<Counter>,
    limit: Option<Counter>,
    tasks: Option<Counter>,
    /// What memory.stat calls things.
    words: &'static Words,
}

#[derive(Debug)]
struct Counter {
    file: OwnedFd,
    v2: bool,
}

#[derive(Debug)]
struct Words {
    inactive_file: &'static str,
    rss: &'static str,
    swap: Option<&'static str>,
    limit: Option<&'static str>,
    page_faults: &'static str,
    major_page_faults: &'static str,
}

/// On v1 the names with `total_` include the cgroups below, as all numbers of v2 do.
const V1_WORDS: Words = Words {
    inactive_file: "total_inactive_file",
    rss: "total_rss",
    swap: Some("total_swap"),
    limit: Some("hierarchical_memory_limit"),
    page_faults: "total_pgfault",
    major_page_faults: "total_pgmajfault",
};

const V2_WORDS: Words = Words {
    inactive_file: "inactive_file",
    rss: "anon",
    swap: None,
    limit: None,
    page_faults: "pgfault",
    major_page_faults: "pgmajfault",
};

/// memory.stat has some 60 lines.
const MAX_BYTES: usize = 16 << 10;

/// v1's way to say that there is no limit: the largest number of whole pages.
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

impl Cgroup {
    /// Opens its counters; those this host does not have are left out.
    #[must_use]
    pub fn meter(&self) -> Meter {
        let find = |controller: &str, v1: Option<&str>, v2: Option<&str>| {
            let index = self.hierarchies.position(controller)?;
            self.counter(index, self.hierarchies.get(index), v1, v2)
        };
        // cpu.stat is in every v2 cgroup, with the controller and without.
        let unified = |h: usize| self.counter(h, self.hierarchies.get(h), None, Some("cpu.stat"));
        let memory_stat = find("memory", Some("memory.stat"), Some("memory.stat"));
        Meter {
            cpu: find("cpuacct", Some("cpuacct.usage"), None).or_else(|| self.hierarchies.unified().and_then(unified)),
            memory: find("memory", Some("memory.usage_in_bytes"), Some("memory.current")),
            words: if memory_stat.as_ref().is_some_and(|c| c.v2) { &V2_WORDS } else { &V1_WORDS },
            memory_stat,
            swap: find("memory", None, Some("memory.swap.current")),
            limit: find("memory", None, Some("memory.max")),
            tasks: find("pids", Some("pids.current"), Some("pids.current")),
        }
    }

    fn counter(&self, index: usize, h: &Hierarchy, v1: Option<&str>, v2: Option<&str>) -> Option<Counter> {
        let name = if h.is_v2() { v2? } else { v1? };
        Some(Counter { file: file::open_read(self.dir(index)?, name).ok()?, v2: h.is_v2() })
    }
}

impl Meter {
    /// Reads all counters. The numbers are of one moment as far as the kernel's are.
    #[must_use]
    pub fn read(&self) -> Usage {
        let mut buffer = [0; MAX_BYTES];
        let mut usage = Usage {
            cpu_ns: self.cpu.as_ref().and_then(|c| c.cpu_ns(&mut buffer)),
            memory_bytes: number(self.memory.as_ref(), &mut buffer),
            swap_bytes: number(self.swap.as_ref(), &mut buffer),
            limit_bytes: number(self.limit.as_ref(), &mut buffer),
            tasks: number(self.tasks.as_ref(), &mut buffer),
            ..Usage::default()
        };
        if let Some(text) = self.memory_stat.as_ref().and_then(|c| c.text(&mut buffer)) {
            self.words.fill(text, &mut usage);
        }
        usage
    }
}

impl Words {
    fn fill(&self, text: &str, usage: &mut Usage) {
        usage.rss_bytes = keyed(text, self.rss);
        usage.page_faults = keyed(text, self.page_faults);
        usage.major_page_faults = keyed(text, self.major_page_faults);
        let inactive = keyed(text, self.inactive_file).unwrap_or(0);
        usage.working_set_bytes = usage.memory_bytes.map(|all| all.saturating_sub(inactive));
        if let Some(word) = self.swap {
            usage.swap_bytes = keyed(text, word);
        }
        if let Some(word) = self.limit {
            usage.limit_bytes = keyed(text, word).filter(|limit| *limit < V1_UNLIMITED);
        }
    }
}

fn number(counter: Option<&Counter>, buffer: &mut [u8]) -> Option<u64> {
    // "max" is no number, and no limit.
    counter?.text(buffer)?.trim_end().parse().ok()
}

impl Counter {
    fn cpu_ns(&self, buffer: &mut [u8]) -> Option<u64> {
        let text = self.text(buffer)?;
        if self.v2 { keyed(text, "usage_usec")?.checked_mul(1000) } else { text.trim_end().parse().ok() }
    }

    /// What the file says now; `None` once the cgroup is removed.
    fn text<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a str> {
        let mut length = 0;
        while length < buffer.len() {
            let offset = i64::try_from(length).ok()?;
            match retry(|| nix::sys::uio::pread(&self.file, &mut buffer[length..], offset)) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(_) => return None,
            }
            // These files are one record each, which a read returns whole if it fits.
            if buffer[length - 1] == b'\n' {
                break;
            }
        }
        std::str::from_utf8(&buffer[..length]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_words() {
        let text = "cache 9\ninactive_file 1\nhierarchical_memory_limit 9223372036854771712\ntotal_rss 5\ntotal_swap 2\n\
                    total_pgfault 7\ntotal_pgmajfault 3\ntotal_inactive_file 40\n";
        let mut usage = Usage { memory_bytes: Some(100), ..Usage::default() };
        V1_WORDS.fill(text, &mut usage);
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
        V1_WORDS.fill("hierarchical_memory_limit 4096\n", &mut usage);
        assert_eq!(usage.limit_bytes, Some(4096));
    }

    #[test]
    fn a_working_set_is_never_negative() {
        let mut usage = Usage { memory_bytes: Some(10), ..Usage::default() };
        V2_WORDS.fill("anon 3\ninactive_file 40\n", &mut usage);
        assert_eq!((usage.working_set_bytes, usage.rss_bytes), (Some(0), Some(3)));
    }
}
