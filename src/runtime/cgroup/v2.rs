//! What only v2 has: controllers that are enabled from above.

use nix::errno::Errno;

use super::detect::Hierarchy;
use super::error::CgroupError;
use super::file;
use super::path::CgroupPath;

/// The controllers whose limits and counters we use.
pub(super) const KNOWN: &[&str] = &["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Enables controllers for `path` in each cgroup above it, the root first, where they are not yet.
///
/// Those the hierarchy does not carry are passed over.
///
/// # Errors
/// `EBUSY` names the cgroup above that has processes of its own: the kernel allows controllers below a cgroup only
/// if it has none. `ENOENT` if a cgroup above does not hand the controller down.
pub(super) fn enable_above(h: &Hierarchy, path: &CgroupPath, wanted: &[&str]) -> Result<(), CgroupError> {
    let wanted: Vec<&str> = wanted.iter().copied().filter(|w| h.controllers().iter().any(|c| c == w)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    enable(h, "", &wanted)?;
    path.ancestors().try_for_each(|ancestor| enable(h, ancestor, &wanted))
}

fn enable(h: &Hierarchy, relative: &str, wanted: &[&str]) -> Result<(), CgroupError> {
    let fail = |errno| CgroupError::Kernel {
        step: "enable controllers below cgroup",
        object: format!("{} ({})", h.object(relative), wanted.join(" ")),
        errno,
        hint: match errno {
            Errno::EBUSY => "; it has processes of its own, which v2 forbids: use a cgroup without as parent",
            Errno::ENOENT => "; a cgroup above does not hand them down",
            Errno::EOPNOTSUPP => "; it is a threaded cgroup",
            _ => "",
        },
    };
    let dir = if relative.is_empty() { None } else { Some(file::open_dir(h.root(), relative).map_err(fail)?) };
    let dir = dir.as_ref().map_or_else(|| h.root(), std::os::fd::AsFd::as_fd);
    let enabled = file::read(dir, "cgroup.subtree_control").map_err(fail)?;
    let missing: Vec<String> =
        wanted.iter().filter(|w| !enabled.split_whitespace().any(|e| e == **w)).map(|w| format!("+{w}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    file::write(dir, "cgroup.subtree_control", &missing.join(" ")).map_err(fail)
}
