//! What only v1 has: cpusets that start empty.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::detect::Hierarchy;
use super::error::CgroupError;
use super::file;
use super::path::CgroupPath;

const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Fills the CPUs and memory nodes of a cpuset cgroup, and of those above it, from the next one above that has
/// some. Nobody can enter a v1 cpuset without them (`ENOSPC`), and a new one has none.
pub(super) fn fill_cpuset(h: &Hierarchy, path: &CgroupPath) -> Result<(), CgroupError> {
    CPUSET_FILES.iter().try_for_each(|name| fill(h, path, name))
}

/// From the bottom up until a value is found, then down again: one that is set has all above it set, because the
/// kernel wants a cpuset to be part of the one above.
fn fill(h: &Hierarchy, path: &CgroupPath, name: &str) -> Result<(), CgroupError> {
    let fail = |step, relative: &str, errno| {
        CgroupError::kernel(step, format!("{} of cgroup {}", name, h.object(relative)), errno)
    };
    let mut empty = Vec::new();
    let mut value = None;
    for relative in std::iter::once(path.relative()).chain(path.ancestors().rev()) {
        let dir = file::open_dir(h.root(), relative).map_err(|e| fail("open", relative, e))?;
        let text = file::read(&dir, name).map_err(|e| fail("read", relative, e))?;
        if !text.trim().is_empty() {
            value = Some(text);
            break;
        }
        empty.push((relative, dir));
    }
    if empty.is_empty() {
        return Ok(());
    }
    let value = match value {
        Some(value) => value,
        None => file::read(h.root(), name).map_err(|e| fail("read", "", e))?,
    };
    let value = value.trim();
    if value.is_empty() {
        return Err(fail("read", "", Errno::ENODATA));
    }
    for (relative, dir) in empty.iter().rev() {
        file::write(dir.as_fd(), name, value).map_err(|e| fail("write", relative, e))?;
    }
    Ok(())
}
