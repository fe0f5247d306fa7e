//! What was made, written down so that another process can remove it.
//!
//! One cgroup is one line: its path, then for each cgroup above that was made for it a tab, the hierarchies it was
//! made in and its path: `/pods/p1/c1<TAB>memory|unified:/pods/p1`. A path alone is a line too. Paths have no
//! control characters, so no path can look like two.

use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::detect::{Hierarchies, Hierarchy};
use super::error::{CgroupError, clipped};
use super::path::CgroupPath;
use super::{Cgroup, file, tree};

/// How long [`sweep`] waits for killed processes to go, for each cgroup.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);
/// Longest record read: more lines than a pod has containers.
const MAX_LINES: usize = 16_384;

/// A cgroup made above another, in some hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    path: CgroupPath,
    labels: Vec<String>,
}

impl Made {
    /// Notes that `relative` was made in the hierarchy `label`; keeps the list outermost first.
    pub(super) fn add(list: &mut Vec<Self>, relative: &str, label: &str) {
        let Ok(path) = CgroupPath::parse(&format!("/{relative}")) else { return };
        if let Some(known) = list.iter_mut().find(|m| m.path == path) {
            known.labels.push(label.to_owned());
            return;
        }
        // Ancestors of one path: the shorter is the outer one.
        let at = list.iter().position(|m| m.path.as_str().len() > path.as_str().len()).unwrap_or(list.len());
        list.insert(at, Self { path, labels: vec![label.to_owned()] });
    }

    fn parse(word: &str) -> Option<Self> {
        let (labels, path) = word.split_once(':')?;
        Some(Self { path: CgroupPath::parse(path).ok()?, labels: labels.split('|').map(str::to_owned).collect() })
    }
}

fn line(path: &CgroupPath, made: &[Made]) -> String {
    made.iter().fold(path.as_str().to_owned(), |mut line, m| {
        for part in ["\t", &m.labels.join("|"), ":", m.path.as_str()] {
            line.push_str(part);
        }
        line
    })
}

fn parse(text: &str) -> Result<(&str, Vec<Made>), CgroupError> {
    let mut words = text.split('\t');
    let path = words.next().unwrap_or("");
    let made = words.map(Made::parse).collect::<Option<Vec<_>>>();
    Ok((path, made.ok_or_else(|| CgroupError::Record { line: clipped(text) })?))
}

impl Cgroup {
    /// The line to write down before [`Cgroup::create`] of this path: says what it is going to make.
    ///
    /// # Errors
    /// [`CgroupError::Path`] as [`Cgroup::create`]; [`CgroupError::Kernel`] if a cgroup above is not accessible.
    pub fn record(h: &Hierarchies, path: &str) -> Result<String, CgroupError> {
        let path = CgroupPath::parse(path)?;
        let mut made = Vec::new();
        for hierarchy in h.iter() {
            for ancestor in path.ancestors().rev() {
                if exists(hierarchy, ancestor)? {
                    break;
                }
                Made::add(&mut made, ancestor, hierarchy.label());
            }
        }
        Ok(line(&path, &made))
    }

    /// The line that describes it: its path and what was made above it. For [`Cgroup::reopen`].
    #[must_use]
    pub fn made(&self) -> String {
        line(&self.path, &self.made)
    }

    /// Opens a cgroup from its line, so that its removal takes away what was made above it too.
    ///
    /// # Errors
    /// [`CgroupError::Record`] if it is no such line, otherwise as [`Cgroup::open`].
    pub fn reopen(h: &Hierarchies, line: &str) -> Result<Self, CgroupError> {
        let (path, made) = parse(line)?;
        Ok(Self { made, ..Self::open(h, path)? })
    }

    /// Removes what was made above, innermost first, where nothing is left in it.
    pub(super) fn remove_made(&self) {
        remove_made(&self.hierarchies, &self.made);
    }
}

fn remove_made(h: &Hierarchies, made: &[Made]) {
    for m in made.iter().rev() {
        for hierarchy in h.iter().filter(|h| m.labels.iter().any(|label| label == h.label())) {
            // Somebody else's cgroups in it keep it; they are not ours to judge.
            tree::remove_dir(hierarchy, m.path.relative()).ok();
        }
    }
}

fn exists(h: &Hierarchy, relative: &str) -> Result<bool, CgroupError> {
    match file::open_dir(h.root(), relative) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(CgroupError::kernel("open cgroup", h.object(relative), errno)),
    }
}

/// Kills and removes every cgroup of a record, the last line first. Does the same again without harm.
///
/// Waits up to two seconds for the processes of each to go. All lines are tried, whatever becomes of the others.
///
/// # Errors
/// The first error of a line: [`CgroupError::Busy`] if processes outlive their SIGKILL,
/// [`CgroupError::Record`] and [`CgroupError::Path`] for a line that is none of ours.
pub fn sweep(h: &Hierarchies, record: &str) -> Result<(), CgroupError> {
    let lines: Vec<&str> = record.lines().filter(|l| !l.is_empty()).take(MAX_LINES).collect();
    let mut first = Ok(());
    for line in lines.iter().rev() {
        first = first.and(sweep_line(h, line));
    }
    first
}

fn sweep_line(h: &Hierarchies, line: &str) -> Result<(), CgroupError> {
    let cgroup = match Cgroup::reopen(h, line) {
        // Gone, or never made: what was made above may still be there.
        Err(e) if e.errno() == Some(Errno::ENOENT) => {
            remove_made(h, &parse(line)?.1);
            return Ok(());
        }
        cgroup => cgroup?,
    };
    let mut waited = Duration::ZERO;
    loop {
        cgroup.kill_everywhere()?;
        match cgroup.remove() {
            Err(CgroupError::Busy { .. }) if waited < PATIENCE => {
                thread::sleep(PAUSE);
                waited += PAUSE;
            }
            done => return done,
        }
    }
}
