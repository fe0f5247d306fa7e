//! What the shim holds of its pod, and from which it clones the pod's processes.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::cgroup::{Cgroup, Entry, Hierarchies};
use super::dev::Null;
use super::error::{Doing, InStep, RuntimeError, StepError};
use super::exec::Session;
use super::init::{Init, Stdio3};
use super::pod_init::{self, PodInit};
use super::stages::Context;
use super::{credentials, oom, sysctl};
use crate::plan;
use crate::plan::namespaces::Source;
use crate::sys::mount::{FsContext, attach, attr, clone_mount};
use crate::sys::net::loopback_up;
use crate::sys::process::{Cloned, SingleThreaded, clone_process, pidfd_open, pidfd_signal, raise_open_files};
use crate::sys::socket;

/// The namespaces the shim was started in.
#[derive(Debug)]
pub(super) struct HostNamespaces {
    pub net: OwnedFd,
    pub ipc: OwnedFd,
    pub uts: OwnedFd,
    pub cgroup: OwnedFd,
}

/// A pod, seen from its shim. The shim's own process is in the pod's network, IPC and UTS namespaces.
#[derive(Debug)]
pub struct Pod {
    proof: SingleThreaded,
    /// The host's procfs, verified; the only one ever written to.
    proc: OwnedFd,
    /// What stands for streams nobody wants.
    null: Null,
    host: HostNamespaces,
    /// The shim itself: the way back into its own PID namespace.
    own_pidfd: OwnedFd,
    /// Children are born into another PID namespace until that way has been taken.
    astray: Cell<bool>,
    /// The limits of open files, soft and hard, that the shim was started with.
    open_files: (u64, u64),
    hierarchies: Hierarchies,
    run_dir: PathBuf,
    shm: Option<SharedMemory>,
    init: Option<PodInit>,
}

/// The pod's `/dev/shm`.
#[derive(Debug)]
struct SharedMemory {
    mount: OwnedFd,
    /// Where it had to be attached on the host: kernels before 6.15 copy no detached mount.
    attached_at: Option<PathBuf>,
}

/// A running container, for an exec session to join.
#[derive(Debug)]
pub struct ExecTarget<'a> {
    /// Its first process.
    pub pidfd: BorrowedFd<'a>,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
    /// The user the session runs as; `None`: `Process.user`, looked up in the container.
    pub user: Option<&'a plan::ResolvedUser>,
}

impl Pod {
    /// Takes the calling process, which must have one thread, as the shim of a pod to be: non-dumpable, subreaper, and
    /// with the host's namespaces at hand.
    ///
    /// # Errors
    /// [`RuntimeError::Step`] or [`RuntimeError::Cgroup`] naming what the host lacks.
    pub fn start() -> Result<Self, RuntimeError> {
        const STEP: &str = "start of the shim";
        let proof = SingleThreaded::check().doing(|| "verify that the shim has one thread".to_owned()).in_step(STEP)?;
        nix::sys::prctl::set_dumpable(false).doing(|| "become non-dumpable".to_owned()).in_step(STEP)?;
        nix::sys::prctl::set_child_subreaper(true).doing(|| "become a subreaper".to_owned()).in_step(STEP)?;
        let own_pid = nix::unistd::getpid().as_raw();
        Ok(Self {
            proof,
            proc: open_proc_root().in_step(STEP)?,
            null: Null::make().in_step(STEP)?,
            host: HostNamespaces {
                net: open_namespace("net").in_step(STEP)?,
                ipc: open_namespace("ipc").in_step(STEP)?,
                uts: open_namespace("uts").in_step(STEP)?,
                cgroup: open_namespace("cgroup").in_step(STEP)?,
            },
            own_pidfd: pidfd_open(own_pid).doing(|| "open a pidfd of the shim".to_owned()).in_step(STEP)?,
            astray: Cell::new(false),
            open_files: raise_open_files().doing(|| "raise the limit of open files".to_owned()).in_step(STEP)?,
            hierarchies: Hierarchies::detect()?,
            run_dir: PathBuf::from("/"),
            shm: None,
            init: None,
        })
    }

    /// Makes the pod's namespaces and what lives in them, and joins the network namespace that is given. Once, before
    /// any container.
    ///
    /// # Errors
    /// [`RuntimeError`] naming the step; the shim should end then, and with it goes what was made.
    pub fn setup(
        &mut self,
        plan: &plan::Sandbox,
        run_dir: &Path,
        network: Option<OwnedFd>,
    ) -> Result<Vec<String>, RuntimeError> {
        run_dir.clone_into(&mut self.run_dir);
        self.make_namespaces(plan, network).in_step("namespaces")?;
        sysctl::write_all(self.proc(), &plan.sysctls).in_step("sysctls")?;
        if plan.shm_size_bytes > 0 {
            self.shm = Some(self.make_shm(plan.shm_size_bytes).in_step("shared memory")?);
        }
        if plan.shared_pid {
            self.init = Some(pod_init::clone(self, &plan.init_cgroup)?);
        }
        Ok(Vec::new())
    }

    /// Sets the shim's own OOM score; where that is not allowed, says so.
    ///
    /// # Errors
    /// [`RuntimeError::Step`] if it cannot be written for another reason.
    pub fn protect(&self, score: i32) -> Result<Vec<String>, RuntimeError> {
        let mut warnings = Vec::new();
        credentials::set_oom_score(self.proc(), score, &mut warnings).in_step("oom_score_adj of the shim")?;
        Ok(warnings)
    }

    /// Gives every process of a container this OOM score; where that is not allowed, says so.
    ///
    /// # Errors
    /// [`RuntimeError`] if a process cannot be reached for another reason than its end.
    pub fn set_oom_score(&self, cgroup: &Cgroup, score: i32) -> Result<Vec<String>, RuntimeError> {
        oom::set_all(self.proc(), cgroup, score)
    }

    /// The pod init's pid in the shim's PID namespace, if the pod has one.
    #[must_use]
    pub fn init_pid(&self) -> Option<i32> {
        self.init.as_ref().map(|i| i.pid)
    }

    /// The cgroup of the pod init, if the pod has one.
    #[must_use]
    pub fn init_cgroup(&self) -> Option<&Cgroup> {
        self.init.as_ref().map(|i| &i.cgroup)
    }

    /// The limits of open files the shim was started with: soft, which containers get, and hard, which is its own now.
    #[must_use]
    pub fn open_files(&self) -> (u64, u64) {
        self.open_files
    }

    /// The host's cgroup hierarchies.
    #[must_use]
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Clones a container's first process, which prepares everything and then waits to be released. Returns at once;
    /// the process reports over [`Init::channel`].
    ///
    /// `target` is the first process of the container whose PID namespace is to be shared, where the plan says so.
    ///
    /// # Errors
    /// [`RuntimeError`]; nothing is left then.
    pub fn create(
        &self,
        plan: &plan::Container,
        target: Option<BorrowedFd<'_>>,
        stdio: Stdio3,
    ) -> Result<(Init, Vec<String>), RuntimeError> {
        let process = plan.process.as_ref().ok_or_else(|| RuntimeError::Plan("the plan has no process".to_owned()))?;
        let wanted = plan.cgroup.clone().unwrap_or_default();
        let cgroup = Cgroup::create(&self.hierarchies, &wanted.path)?;
        let made = self.create_in(&cgroup, &wanted, plan, process, target, stdio);
        match made {
            Ok((pid, pidfd, channel, warnings)) => Ok((Init { pid, pidfd, channel, cgroup }, warnings)),
            Err(e) => {
                // The first error is the one to tell; what stays is found by the record of cgroups.
                cgroup.remove().ok();
                Err(e)
            }
        }
    }

    fn create_in(
        &self,
        cgroup: &Cgroup,
        wanted: &plan::Cgroup,
        plan: &plan::Container,
        process: &plan::Process,
        target: Option<BorrowedFd<'_>>,
        stdio: Stdio3,
    ) -> Result<(i32, OwnedFd, OwnedFd, Vec<String>), RuntimeError> {
        let mut warnings = cgroup.apply(&wanted.resources.clone().unwrap_or_default())?;
        warnings.extend(cgroup.allow_devices(&wanted.devices)?);
        let entry = cgroup.entry()?;
        let (ours, theirs) = channel()?;
        let pid_source = plan.namespaces.clone().unwrap_or_default().pid();
        match self.clone_in(pid_source, target, &entry)? {
            Cloned::Child => {
                drop(ours);
                Context::new(self, plan, process, (cgroup, &entry), theirs, stdio).run()
            }
            Cloned::Parent { pid, pidfd } => Ok((pid, pidfd, ours, warnings)),
        }
    }

    /// Clones an exec session's process into a running container. It does not wait to be released; with a terminal it
    /// reports it first. `name` names the session's tracking cgroup.
    ///
    /// # Errors
    /// [`RuntimeError`]; `ESRCH` inside if the container has ended.
    pub fn exec(
        &self,
        name: &str,
        target: &ExecTarget<'_>,
        process: &plan::Process,
        stdio: Stdio3,
    ) -> Result<Init, RuntimeError> {
        let tracker = target.cgroup.tracker(name)?;
        let made = self.exec_in(&tracker, target, process, stdio);
        match made {
            Ok((pid, pidfd, channel)) => Ok(Init { pid, pidfd, channel, cgroup: tracker }),
            Err(e) => {
                tracker.remove().ok();
                Err(e)
            }
        }
    }

    fn exec_in(
        &self,
        tracker: &Cgroup,
        target: &ExecTarget<'_>,
        process: &plan::Process,
        stdio: Stdio3,
    ) -> Result<(i32, OwnedFd, OwnedFd), RuntimeError> {
        let entry = tracker.entry()?;
        let (ours, theirs) = channel()?;
        match self.clone_in(Source::Target, Some(target.pidfd), &entry)? {
            Cloned::Child => {
                drop(ours);
                let (user, container) = (target.user, target.pidfd);
                Session { pod: self, process, user, container, entry: &entry, channel: theirs, stdio }.run()
            }
            Cloned::Parent { pid, pidfd } => Ok((pid, pidfd, ours)),
        }
    }

    /// Clones into a PID namespace: the shim points its children there for one clone and takes that back.
    pub(super) fn clone_in(
        &self,
        pid: Source,
        target: Option<BorrowedFd<'_>>,
        entry: &Entry,
    ) -> Result<Cloned, RuntimeError> {
        const STEP: &str = "clone";
        let what = || "clone a process".to_owned();
        self.come_back()?;
        let join = match pid {
            Source::New => {
                let flags = u64::from(libc::CLONE_NEWPID.cast_unsigned());
                return clone_process(self.proof, flags, entry.unified()).doing(what).in_step(STEP);
            }
            Source::Host => return clone_process(self.proof, 0, entry.unified()).doing(what).in_step(STEP),
            Source::Sandbox => self.init.as_ref().map(|i| i.pidfd.as_fd()),
            Source::Target => target,
        };
        let join = join.ok_or_else(|| RuntimeError::Plan("the PID namespace to join is not there".to_owned()))?;
        setns(join, CloneFlags::CLONE_NEWPID).doing(|| "join the PID namespace".to_owned()).in_step(STEP)?;
        let cloned = clone_process(self.proof, 0, entry.unified()).doing(what).in_step(STEP);
        if matches!(cloned, Ok(Cloned::Child)) {
            return cloned;
        }
        self.astray.set(true);
        match (self.come_back(), cloned) {
            (Ok(()), cloned) => cloned,
            (Err(e), Ok(Cloned::Parent { pidfd, .. })) => {
                // Nobody will know of the child. ESRCH: it has ended.
                pidfd_signal(pidfd.as_fd(), libc::SIGKILL).ok();
                Err(e)
            }
            (Err(e), _) => Err(e),
        }
    }

    /// Points the shim's children to its own PID namespace again, if they are not.
    fn come_back(&self) -> Result<(), RuntimeError> {
        if self.astray.get() {
            setns(&self.own_pidfd, CloneFlags::CLONE_NEWPID)
                .doing(|| "return to the shim's PID namespace".to_owned())
                .in_step("clone")?;
            self.astray.set(false);
        }
        Ok(())
    }

    /// The network namespace the pod's processes live in.
    ///
    /// # Errors
    /// [`RuntimeError::Step`] as open(2).
    pub fn network_namespace(&self) -> Result<OwnedFd, RuntimeError> {
        // The shim is in it.
        open_namespace("net").in_step("network namespace")
    }

    fn make_namespaces(&self, plan: &plan::Sandbox, network: Option<OwnedFd>) -> Result<(), StepError> {
        let mut new = CloneFlags::empty();
        let new_net = plan.new_net && network.is_none();
        new.set(CloneFlags::CLONE_NEWNET, new_net);
        new.set(CloneFlags::CLONE_NEWIPC, plan.new_ipc);
        new.set(CloneFlags::CLONE_NEWUTS, plan.new_uts);
        if !new.is_empty() {
            unshare(new).doing(|| "make the pod's namespaces".to_owned())?;
        }
        if let Some(network) = network {
            setns(network, CloneFlags::CLONE_NEWNET).doing(|| "join the pod's network namespace".to_owned())?;
        }
        if new_net {
            loopback_up().doing(|| "set the pod's loopback interface up".to_owned())?;
        }
        if plan.new_uts && !plan.hostname.is_empty() {
            nix::unistd::sethostname(&plan.hostname).doing(|| format!("set hostname {}", plan.hostname))?;
        }
        Ok(())
    }

    fn make_shm(&self, size_bytes: u64) -> Result<SharedMemory, StepError> {
        let what = || "mount the pod's shared memory".to_owned();
        let context = FsContext::open(c"tmpfs").doing(what)?;
        context.set_string(c"source", c"shm").doing(what)?;
        context.set_string(c"mode", c"1777").doing(what)?;
        let size = std::ffi::CString::new(size_bytes.to_string()).map_err(|_| StepError::new(Errno::EINVAL, what()))?;
        context.set_string(c"size", &size).doing(what)?;
        let mount = context.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC).doing(what)?;
        if clone_mount(mount.as_fd(), c"", false).is_ok() {
            return Ok(SharedMemory { mount, attached_at: None });
        }
        let place = self.run_dir.join("shm");
        crate::disk::private_dir(&place).doing(what)?;
        attach(mount.as_fd(), open_dir(&place).doing(what)?.as_fd()).doing(what)?;
        Ok(SharedMemory { mount, attached_at: Some(place) })
    }

    pub(super) fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    pub(super) fn null(&self) -> BorrowedFd<'_> {
        self.null.file.as_fd()
    }

    pub(super) fn host(&self) -> &HostNamespaces {
        &self.host
    }

    pub(super) fn shm(&self) -> Option<BorrowedFd<'_>> {
        self.shm.as_ref().map(|s| s.mount.as_fd())
    }

    /// A directory of the host that a new root may be attached on, unseen by the host.
    pub(super) fn attach_place(&self) -> nix::Result<OwnedFd> {
        open_dir(&self.run_dir)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        if let Some(place) = &self.attached_at {
            // Nothing can be done about a failure here; the daemon's reconciliation looks for it too.
            umount2(place, MntFlags::MNT_DETACH).ok();
        }
    }
}

fn open_dir(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn open_namespace(name: &str) -> Result<OwnedFd, StepError> {
    let path = format!("/proc/self/ns/{name}");
    Ok(File::open(&path).doing(|| format!("open {path}"))?.into())
}

fn open_proc_root() -> Result<OwnedFd, StepError> {
    let what = || "open /proc".to_owned();
    let proc = open_dir(Path::new("/proc")).doing(what)?;
    if fstatfs(&proc).doing(what)?.filesystem_type() == PROC_SUPER_MAGIC {
        Ok(proc)
    } else {
        Err(StepError::new(Errno::ENODEV, "verify that /proc is a procfs"))
    }
}

/// Two ends of a process's channel, the shim's first and non-blocking.
pub(super) fn channel() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    let what = || "make a channel to the new process".to_owned();
    let (ours, theirs) = socket::pair().doing(what).in_step("clone")?;
    nix::fcntl::fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(what).in_step("clone")?;
    Ok((ours, theirs))
}
