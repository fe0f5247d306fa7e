//! Kernel parameters, written through the shim's own procfs handle.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::error::{Doing, StepError};
use crate::plan;
use crate::sys::path::open_proc;

/// Writes each parameter, as the namespaces of the calling process show it.
///
/// Which ones a pod may set was decided when the plan was made; here only the path is kept inside `/proc/sys`.
pub(super) fn write_all(proc: BorrowedFd<'_>, sysctls: &[plan::Sysctl]) -> Result<(), StepError> {
    sysctls.iter().try_for_each(|s| write(proc, s))
}

fn write(proc: BorrowedFd<'_>, sysctl: &plan::Sysctl) -> Result<(), StepError> {
    let what = || format!("set sysctl {}", sysctl.name);
    let path = path_of(&sysctl.name).ok_or_else(|| StepError::new(Errno::EINVAL, what()))?;
    let file = open_proc(proc, &path, OFlag::O_WRONLY).doing(what)?;
    std::fs::File::from(file).write_all(sysctl.value.as_bytes()).doing(|| format!("{} to {:?}", what(), sysctl.value))
}

/// `a.b.c` or, where a part has dots of its own, `a/b/c.d`: both spellings of sysctl.d(5).
fn path_of(name: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = if name.contains('/') { name.split('/').collect() } else { name.split('.').collect() };
    let clean = |part: &&str| !part.is_empty() && *part != ".." && *part != "." && !part.contains('\0');
    if !parts.iter().all(clean) {
        return None;
    }
    Some(Path::new("sys").join(parts.iter().collect::<PathBuf>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_and_no_way_out() {
        assert_eq!(path_of("net.ipv4.ip_forward").unwrap(), Path::new("sys/net/ipv4/ip_forward"));
        assert_eq!(path_of("net/ipv4/conf/eth0.1/rp_filter").unwrap(), Path::new("sys/net/ipv4/conf/eth0.1/rp_filter"));
        for bad in ["", "..", "kernel/../../self/mem", "/kernel/x", "a..b", "a\0b"] {
            assert_eq!(path_of(bad), None, "{bad:?}");
        }
    }
}
