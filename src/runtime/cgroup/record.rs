//! What was made, written down so that another process can remove it: one line for each cgroup, its path.
//!
//! Cgroups made above it need no line: see [`super::tree`].

use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::detect::Hierarchies;
use super::error::CgroupError;
use super::path::CgroupPath;
use super::{Cgroup, tree};

/// How long [`sweep`] may wait for the killed processes of each cgroup where waiting does no harm.
pub const SWEEP_PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);
/// Longest record read: more lines than a pod has containers.
const MAX_LINES: usize = 16_384;

impl Cgroup {
    /// The line to write down before [`Cgroup::create`] of this path, for [`sweep`]. It is one line: paths have no
    /// control characters.
    ///
    /// # Errors
    /// [`CgroupError::Path`] as [`Cgroup::create`].
    pub fn record(_: &Hierarchies, path: &str) -> Result<String, CgroupError> {
        CgroupPath::parse(path).map(|path| path.as_str().to_owned())
    }
}

/// Kills and removes every cgroup of a record, the last line first. Does the same again without harm.
///
/// Waits for the processes of each to go as long as `patience` says: not at all for a loop that must not wait and tries
/// again. All lines are tried, whatever becomes of the others.
///
/// # Errors
/// The first error of a line: [`CgroupError::Busy`] if processes outlive their SIGKILL, [`CgroupError::Path`] for a
/// line that is none of ours.
pub fn sweep(h: &Hierarchies, record: &str, patience: Duration) -> Result<(), CgroupError> {
    let lines: Vec<&str> = record.lines().filter(|l| !l.is_empty()).take(MAX_LINES).collect();
    let mut first = Ok(());
    for line in lines.iter().rev() {
        first = first.and(sweep_line(h, line, patience));
    }
    first
}

fn sweep_line(h: &Hierarchies, line: &str, patience: Duration) -> Result<(), CgroupError> {
    let cgroup = match Cgroup::open(h, line) {
        // Gone, or never made: what was made above may still be there.
        Err(e) if e.errno() == Some(Errno::ENOENT) => {
            let path = CgroupPath::parse(line)?;
            h.iter().for_each(|h| tree::prune(h, &path));
            return Ok(());
        }
        cgroup => cgroup?,
    };
    let mut waited = Duration::ZERO;
    loop {
        cgroup.kill_everywhere()?;
        match cgroup.remove() {
            Err(CgroupError::Busy { .. }) if waited < patience => {
                thread::sleep(PAUSE);
                waited += PAUSE;
            }
            done => return done,
        }
    }
}
