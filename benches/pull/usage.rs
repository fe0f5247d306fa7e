//! What processes have used, from `/proc`, and what a directory occupies.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::processes::Process;

#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Of processor time, also that of children waited for.
    pub cpu: Duration,
    /// The most memory resident since the last reading, over all processes.
    pub peak_kib: u64,
    /// Handed to the disk's cache to be written.
    pub written_bytes: u64,
}

impl Usage {
    /// Adds up these processes, and starts their peaks anew.
    pub fn read(processes: &[Process]) -> Result<Usage> {
        let mut usage = Usage::default();
        for process in processes {
            let dir = format!("/proc/{}", process.pid);
            // One that has ended meanwhile is in its parent's times.
            let (Ok(stat), Ok(status), Ok(io)) = (
                fs::read_to_string(format!("{dir}/stat")),
                fs::read_to_string(format!("{dir}/status")),
                fs::read_to_string(format!("{dir}/io")),
            ) else {
                continue;
            };
            usage.cpu += cpu(&stat).ok_or("/proc/PID/stat is not as expected")?;
            usage.peak_kib += field(&status, "VmHWM:").unwrap_or(0);
            usage.written_bytes += field(&io, "write_bytes:").unwrap_or(0);
            fs::write(format!("{dir}/clear_refs"), "5").ok();
        }
        Ok(usage)
    }
}

/// utime, stime, cutime and cstime: the 12th to 15th field after the name.
fn cpu(stat: &str) -> Option<Duration> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ, which is 100 on every architecture Linux runs on here.
    Some(Duration::from_millis(ticks * 10))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// As `du` counts: blocks, every inode once.
pub fn disk_bytes(dir: &Path) -> u64 {
    fn walk(path: &Path, seen: &mut std::collections::HashSet<(u64, u64)>) -> u64 {
        let Ok(data) = fs::symlink_metadata(path) else { return 0 };
        if !seen.insert((data.dev(), data.ino())) {
            return 0;
        }
        let below = if data.is_dir() { fs::read_dir(path).ok() } else { None };
        let entries = below.into_iter().flatten().flatten();
        data.blocks() * 512 + entries.map(|entry| walk(&entry.path(), seen)).sum::<u64>()
    }
    walk(dir, &mut std::collections::HashSet::new())
}
