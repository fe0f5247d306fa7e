//! The first process of a shared PID namespace: it reaps what its siblings leave, and does nothing else.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::cgroup::{Cgroup, Entry};
use super::error::{Doing, InStep, RuntimeError, StepError};
use super::init;
use super::pod::{Pod, channel};
use super::{credentials, rootfs};
use crate::plan::init_report::Body;
use crate::plan::namespaces::Source;
use crate::plan::{self, Failure, Ready};
use crate::sys::mount::{FsContext, attr};
use crate::sys::process::{Cloned, close_all_but, exit_now, set_stdio};
use crate::sys::socket;

/// A pod's init process.
#[derive(Debug)]
pub(super) struct PodInit {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: Cgroup,
}

/// Clones the pod init and waits until it has shut itself in.
pub(super) fn clone(pod: &Pod, cgroup_path: &str) -> Result<PodInit, RuntimeError> {
    let cgroup = Cgroup::create(pod.hierarchies(), cgroup_path)?;
    let entry = cgroup.entry()?;
    let (ours, theirs) = channel()?;
    match pod.clone_in(Source::New, None, &entry)? {
        Cloned::Child => {
            drop(ours);
            run(pod, &entry, &theirs)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            wait_ready(&ours)?;
            Ok(PodInit { pid, pidfd, cgroup })
        }
    }
}

/// How long the pod's init may take. The shim waits for it, which nobody notices: the pod has nothing else yet.
const PATIENCE_MS: u16 = 5_000;

/// Waits, bounded: nothing the process does first can take long.
fn wait_ready(channel: &OwnedFd) -> Result<(), RuntimeError> {
    use nix::poll::{PollFd, PollFlags, poll};
    use prost::Message;
    let what = || "hear from the pod's init".to_owned();
    let lost = || RuntimeError::Lost { after: "pod init".to_owned() };
    let ready =
        poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PATIENCE_MS).doing(what).in_step("pod init")?;
    if ready == 0 {
        return Err(StepError::new(Errno::ETIMEDOUT, what())).in_step("pod init");
    }
    let mut buffer = [0; 1024];
    let (len, _) = socket::receive(channel.as_fd(), &mut buffer).doing(what).in_step("pod init")?;
    match plan::InitReport::decode(&buffer[..len]).ok().and_then(|r| r.body) {
        Some(Body::Ready(_)) => Ok(()),
        Some(Body::Failure(f)) => Err(RuntimeError::Plan(format!("pod init: {}", f.message))),
        None => Err(lost()),
    }
}

fn run(pod: &Pod, entry: &Entry, channel: &OwnedFd) -> ! {
    let report = match shut_in(pod, entry) {
        Ok(()) => Body::Ready(Ready::default()),
        Err(e) => Body::Failure(Failure { step: String::new(), errno: e.errno as i32, message: e.to_string() }),
    };
    let failed = matches!(report, Body::Failure(_));
    // It never executes anything, so nothing would be closed for it.
    let closed = close_all_but(&[channel.as_fd()]).is_ok();
    if init::report(channel.as_fd(), report, None).is_err() || failed || !closed {
        exit_now(1);
    }
    reap_for_ever()
}

/// Leaves the pod's containers nothing to find in this process: no host tree, no descriptors, no capabilities.
fn shut_in(pod: &Pod, entry: &Entry) -> Result<(), StepError> {
    nix::sys::prctl::set_name(c"aril-pod-init").doing(|| "take a name".to_owned())?;
    nix::unistd::setsid().doing(|| "begin a session".to_owned())?;
    entry.enter().doing(|| "enter the pod init's cgroup".to_owned())?;
    credentials::set_oom_score(pod.proc(), -998, &mut Vec::new())?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "ask to end with the shim".to_owned())?;
    (0..=2).try_for_each(|n| set_stdio(pod.null(), n)).doing(|| "close the standard streams".to_owned())?;
    let context = FsContext::open(c"tmpfs").doing(|| "make an empty root".to_owned())?;
    let root = context
        .mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
        .doing(|| "make an empty root".to_owned())?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).doing(|| "make a mount namespace".to_owned())?;
    rootfs::isolate()?;
    let place = pod.attach_place().doing(|| "open the pod's run directory".to_owned())?;
    rootfs::attach_at(root.as_fd(), place.as_fd())?;
    rootfs::pivot(root.as_fd())?;
    let nobody = plan::ResolvedUser { uid: 0, gid: 0, groups: Vec::new(), home: String::new() };
    credentials::assume(&plan::Process { no_new_privs: true, ..Default::default() }, &nobody)?;
    SigSet::all().thread_set_mask().doing(|| "block signals".to_owned())
}

/// The kernel ends this process, and with it the namespace, by `SIGKILL` from outside; no other signal reaches it.
fn reap_for_ever() -> ! {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    loop {
        // A failure would only be an interruption.
        child.wait().ok();
        while !matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    }
}
