//! The one place where a process takes on its identity: groups, ids, capabilities, no_new_privs, limits.

use std::collections::HashSet;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid};

use super::error::{Doing, StepError};
use crate::plan;
use crate::sys::path::open_proc;
use crate::sys::process::set_rlimit;

/// Resource limits. A hard limit that may not be raised is lowered to what is allowed, with a warning. `open_files`,
/// soft and hard, are for a process that names none: the shim's own are not the workload's.
pub(super) fn set_limits(
    process: &plan::Process,
    open_files: (u64, u64),
    warnings: &mut Vec<String>,
) -> Result<(), StepError> {
    let (soft, hard) = open_files;
    if soft < hard && !process.rlimits.iter().any(|limit| limit.resource == libc::RLIMIT_NOFILE) {
        let what = || format!("set the limit of open files back to {soft}");
        set_rlimit(libc::RLIMIT_NOFILE, soft, hard).doing(what)?;
    }
    for limit in &process.rlimits {
        match set_rlimit(limit.resource, limit.soft, limit.hard) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => warnings.push(format!(
                "resource limit {} stays as it is: raising it to {} needs CAP_SYS_RESOURCE, which this host lacks",
                limit.resource, limit.hard
            )),
            other => other.doing(|| format!("set resource limit {} to {}", limit.resource, limit.hard))?,
        }
    }
    Ok(())
}

/// The score the kernel's OOM killer adds. Without `CAP_SYS_RESOURCE` it cannot be lowered: a warning, no failure.
pub(super) fn set_oom_score(proc: BorrowedFd<'_>, score: i32, warnings: &mut Vec<String>) -> Result<(), StepError> {
    let what = || format!("set oom_score_adj to {score}");
    let file = open_proc(proc, Path::new("self/oom_score_adj"), OFlag::O_WRONLY).doing(what)?;
    match std::fs::File::from(file).write_all(score.to_string().as_bytes()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            warnings.push(format!("oom_score_adj stays above {score}: lowering it needs CAP_SYS_RESOURCE"));
            Ok(())
        }
        other => other.doing(what),
    }
}

/// Becomes `user` with exactly the capabilities of `process`, in the order the kernel demands: the bounding set while
/// `CAP_SETPCAP` is there, ids while `CAP_SETUID` is, the rest from what `PR_SET_KEEPCAPS` kept; and reads it back.
pub(super) fn assume(process: &plan::Process, user: &plan::ResolvedUser) -> Result<(), StepError> {
    let wanted = process.capabilities.unwrap_or_default();
    drop_bounding(wanted.bounding)?;
    nix::sys::prctl::set_keepcaps(true).doing(|| "keep capabilities over the change of user".to_owned())?;
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&groups).doing(|| format!("set {} supplementary groups", groups.len()))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setresgid(gid, gid, gid).doing(|| format!("become group {gid}"))?;
    nix::unistd::setresuid(uid, uid, uid).doing(|| format!("become user {uid}"))?;
    nix::sys::prctl::set_keepcaps(false).doing(|| "stop keeping capabilities".to_owned())?;
    set_capabilities(&wanted)?;
    if process.no_new_privs {
        nix::sys::prctl::set_no_new_privs().doing(|| "set no_new_privs".to_owned())?;
    }
    verify(process, user)
}

/// The capabilities the kernel knows, lowest first.
fn known() -> impl Iterator<Item = (u32, Capability)> {
    caps::all().into_iter().map(|c| (u32::from(c.index()), c))
}

/// The members of a bit set.
fn members(bits: u64) -> HashSet<Capability> {
    known().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, c)| c).collect()
}

fn caps_error(what: String) -> impl FnOnce(caps::errors::CapsError) -> StepError {
    // The crate tells the errno only inside a sentence; EPERM is the one there is.
    move |_| StepError::new(Errno::EPERM, what)
}

fn drop_bounding(keep: u64) -> Result<(), StepError> {
    for cap in superfluous(keep) {
        caps::drop(None, CapSet::Bounding, cap).map_err(caps_error(format!("drop {cap} from the bounding set")))?;
    }
    Ok(())
}

/// What is in the bounding set beside `keep`. One the kernel is too old to know cannot be; asking is cheaper than dropping.
fn superfluous(keep: u64) -> impl Iterator<Item = Capability> {
    known()
        .filter(move |(n, cap)| keep >> n & 1 == 0 && caps::has_cap(None, CapSet::Bounding, *cap).unwrap_or(false))
        .map(|(_, cap)| cap)
}

fn set_capabilities(wanted: &plan::Capabilities) -> Result<(), StepError> {
    let held = caps::read(None, CapSet::Permitted).map_err(caps_error("read capabilities".to_owned()))?;
    // What the daemon itself was not given cannot be passed on; "privileged" means all there is.
    let permitted: HashSet<_> = members(wanted.permitted).intersection(&held).copied().collect();
    let effective: HashSet<_> = members(wanted.effective).intersection(&permitted).copied().collect();
    let inheritable: HashSet<_> =
        members(wanted.inheritable | wanted.ambient).intersection(&permitted).copied().collect();
    let ambient: HashSet<_> = members(wanted.ambient).intersection(&permitted).copied().collect();
    // Inheritable before permitted shrinks, ambient last: it must be in both.
    let set = |set: CapSet, value: &HashSet<Capability>| {
        caps::set(None, set, value).map_err(caps_error(format!("set {set:?} capabilities")))
    };
    set(CapSet::Effective, &effective)?;
    set(CapSet::Permitted, &permitted)?;
    set(CapSet::Inheritable, &inheritable)?;
    if !ambient.is_empty() {
        set(CapSet::Ambient, &ambient)?;
    }
    Ok(())
}

/// A process that is not who it should be must not start. Each call reads one number, all of
/// them take 30 µs in a debug build; `/proc/self/status` would say it all, but is out of reach here.
fn verify(process: &plan::Process, user: &plan::ResolvedUser) -> Result<(), StepError> {
    let wanted = process.capabilities.unwrap_or_default();
    let ids = nix::unistd::getresuid().doing(|| "read back user ids".to_owned())?;
    let gids = nix::unistd::getresgid().doing(|| "read back group ids".to_owned())?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let held: HashSet<u32> =
        nix::unistd::getgroups().doing(|| "read back groups".to_owned())?.into_iter().map(Gid::as_raw).collect();
    let bound = nix::sys::prctl::get_no_new_privs().doing(|| "read back no_new_privs".to_owned())?;
    let effective = caps::read(None, CapSet::Effective).map_err(caps_error("read back capabilities".to_owned()))?;
    let inheritable = caps::read(None, CapSet::Inheritable).map_err(caps_error("read back capabilities".to_owned()))?;
    let right = (ids.real, ids.effective, ids.saved) == (uid, uid, uid)
        && (gids.real, gids.effective, gids.saved) == (gid, gid, gid)
        && held == user.groups.iter().copied().collect()
        && (bound || !process.no_new_privs)
        && effective.is_subset(&members(wanted.effective))
        && inheritable.is_subset(&members(wanted.inheritable | wanted.ambient))
        && superfluous(wanted.bounding).next().is_none();
    if right { Ok(()) } else { Err(StepError::new(Errno::EPERM, "verify the identity just taken on")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_that_was_not_taken_on_is_found_out() {
        let ids = nix::unistd::getresuid().unwrap();
        let user = plan::ResolvedUser {
            uid: ids.effective.as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: nix::unistd::getgroups().unwrap().into_iter().map(Gid::as_raw).collect(),
            home: String::new(),
        };
        let all = u64::MAX;
        let capabilities =
            plan::Capabilities { bounding: all, effective: all, permitted: all, inheritable: all, ambient: all };
        let process = plan::Process { capabilities: Some(capabilities), ..plan::Process::default() };
        assert!(verify(&process, &user).is_ok());
        let one_more = user.groups.iter().copied().chain([4_242_424]).collect();
        for wrong in [
            plan::ResolvedUser { uid: user.uid + 1, ..user.clone() },
            plan::ResolvedUser { gid: user.gid + 1, ..user.clone() },
            plan::ResolvedUser { groups: one_more, ..user.clone() },
        ] {
            assert!(verify(&process, &wrong).is_err(), "{wrong:?}");
        }
        let bounding = plan::Capabilities { bounding: 0, ..capabilities };
        let privileges = !nix::sys::prctl::get_no_new_privs().unwrap();
        for wrong in [
            plan::Process { capabilities: Some(bounding), ..process.clone() },
            plan::Process { no_new_privs: privileges, ..process.clone() },
        ] {
            assert!(verify(&wrong, &user).is_err(), "{wrong:?}");
        }
    }
}
