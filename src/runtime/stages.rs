//! Everything a container's first process does between its birth and `execve`, in the order the kernel demands.
//!
//! The order is the security property, so it is one table. The process runs on a copy of the shim's single thread;
//! what fails travels back over the channel as (step, errno, sentence), because nothing can be logged from here.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use super::cgroup::{Cgroup, Entry};
use super::dev::{self, Dev, Terminal};
use super::error::{Doing, StepError};
use super::exec::{self, Stdio};
use super::init::{self, Stdio3};
use super::mounts::CgroupCopy;
use super::pod::Pod;
use super::{credentials, masks, mounts, rootfs, sources, sysctl, user};
use crate::plan::init_report::Body;
use crate::plan::mount::Kind;
use crate::plan::namespaces::Source;
use crate::plan::{self, Failure, Ready, StepTime};
use crate::sys::net::loopback_up;
use crate::sys::process::{close_all_but, exit_now};

/// A process that prepares a container is named by this and the step it is in.
const STEP_PREFIX: &str = "aril:";

/// The step a process is in that prepares a container, or the start of its name; `None` if it is in none.
pub(super) fn step_of(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().strip_prefix(STEP_PREFIX)?.to_owned())
}

/// What the steps hand on.
pub(super) struct Context<'a> {
    pub pod: &'a Pod,
    pub plan: &'a plan::Container,
    pub process: &'a plan::Process,
    pub cgroup: &'a Cgroup,
    pub entry: &'a Entry,
    pub channel: OwnedFd,
    pub stdio: Stdio3,
    sources: Vec<Option<OwnedFd>>,
    cgroups: Vec<CgroupCopy>,
    root: Option<OwnedFd>,
    dev: Option<Dev>,
    terminal: Option<Terminal>,
    user: plan::ResolvedUser,
    directory: exec::Directory,
    warnings: Vec<String>,
}

impl<'a> Context<'a> {
    /// In this order, each for the reason beside it.
    #[allow(clippy::type_complexity)]
    const STEPS: [(&'static str, fn(&mut Self) -> Result<(), StepError>); 18] = [
        ("cgroup", Self::enter_cgroup),   // before the cgroup namespace, whose root this becomes
        ("namespaces", Self::namespaces), // with the capabilities of the host still held
        ("sources", Self::open_sources),  // while the host's mounts are in reach
        ("rootfs", Self::open_rootfs),    // then a mount namespace of our own
        ("image volumes", Self::open_images), // in that namespace, where the root will lie
        ("root", Self::attach_root),      // before what is mounted in it
        ("user", Self::resolve_user),     // by the image's own files, before mounts and masks hide them
        ("mounts", Self::mount_all),      // in the order of the plan
        ("devices", Self::make_devices),  // on the /dev just mounted
        ("terminal", Self::open_terminal), // from our own devpts; /dev/console after /dev is ours
        ("masks", Self::mask_paths),      // over everything mounted before
        ("sysctls", Self::write_sysctls), // through the host's procfs, which the pivot takes away
        ("limits", Self::set_limits),     // oom_score_adj too goes through the host's procfs
        ("pivot_root", Self::pivot),      // from here the host's tree is unreachable
        ("read-only root", Self::readonly), // when every mount point has been made
        ("working directory", Self::enter_directory),
        ("standard streams", Self::set_streams), // ids are still those that may give them away
        ("identity", Self::assume_identity),     // last: what it takes away was needed above
    ];

    pub(super) fn new(
        pod: &'a Pod,
        plan: &'a plan::Container,
        process: &'a plan::Process,
        cgroup: (&'a Cgroup, &'a Entry),
        channel: OwnedFd,
        stdio: Stdio3,
    ) -> Self {
        Self {
            pod,
            plan,
            process,
            cgroup: cgroup.0,
            entry: cgroup.1,
            channel,
            stdio,
            sources: Vec::new(),
            cgroups: Vec::new(),
            root: None,
            dev: None,
            terminal: None,
            user: plan::ResolvedUser::default(),
            directory: exec::Directory::default(),
            warnings: Vec::new(),
        }
    }

    /// Walks the table, reports, waits and becomes the workload; never returns.
    pub(super) fn run(mut self) -> ! {
        let mut times = Vec::with_capacity(Self::STEPS.len());
        for (name, step) in Self::STEPS {
            // What a step that hangs is told by, to the shim and to whoever looks at the machine.
            let shown = CString::new(format!("{STEP_PREFIX}{name}")).unwrap_or_default();
            nix::sys::prctl::set_name(&shown).ok();
            let started = Instant::now();
            if let Err(e) = step(&mut self) {
                fail(&self.channel, name, &e);
            }
            let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            times.push(StepTime { name: name.to_owned(), elapsed_us });
        }
        nix::sys::prctl::set_name(c"aril-init").ok();
        let ready = Ready { user: Some(self.user.clone()), warnings: std::mem::take(&mut self.warnings), steps: times };
        let pty = self.terminal.as_ref().map(|t| t.master.as_fd());
        // It may wait for long: no pipe, socket or terminal of the shim may stay open for it once it is ready.
        let kept: Vec<_> = pty.into_iter().chain([self.channel.as_fd()]).collect();
        let told = close_all_but(&kept).and_then(|()| init::report(self.channel.as_fd(), Body::Ready(ready), pty));
        // Only the shim may keep the master, or the session would never see its end.
        if told.and_then(|()| close_all_but(&[self.channel.as_fd()])).is_err() {
            exit_now(1);
        }
        if !init::wait_release(self.channel.as_fd()) {
            exit_now(1);
        }
        let error = exec::become_workload(self.process, &self.user);
        fail(&self.channel, "exec", &error)
    }

    fn root(&self) -> Result<&OwnedFd, StepError> {
        self.root.as_ref().ok_or_else(|| StepError::new(Errno::EINVAL, "use the root before it is mounted"))
    }

    fn enter_cgroup(&mut self) -> Result<(), StepError> {
        nix::sys::stat::umask(Mode::empty());
        nix::unistd::setsid().doing(|| "begin a session".to_owned())?;
        self.entry.enter().doing(|| format!("enter cgroup {}", self.cgroup.path()))
    }

    fn namespaces(&mut self) -> Result<(), StepError> {
        let ns = self.plan.namespaces.clone().unwrap_or_default();
        let host = self.pod.host();
        let mut new = CloneFlags::empty();
        for (source, flag, of_host, name) in [
            (ns.net(), CloneFlags::CLONE_NEWNET, &host.net, "network"),
            (ns.ipc(), CloneFlags::CLONE_NEWIPC, &host.ipc, "IPC"),
            (ns.uts(), CloneFlags::CLONE_NEWUTS, &host.uts, "UTS"),
            (ns.cgroup(), CloneFlags::CLONE_NEWCGROUP, &host.cgroup, "cgroup"),
        ] {
            match source {
                // The shim lives in the pod's namespaces, and this process was born in them.
                Source::Sandbox => {}
                Source::New => new |= flag,
                Source::Host => setns(of_host, flag).doing(|| format!("join the host's {name} namespace"))?,
                Source::Target => {
                    return Err(StepError::new(Errno::EINVAL, format!("target the {name} namespace of a container")));
                }
            }
        }
        if !new.is_empty() {
            unshare(new).doing(|| "make new namespaces".to_owned())?;
        }
        if ns.net() == Source::New {
            loopback_up().doing(|| "set the loopback interface up".to_owned())?;
        }
        if ns.uts() == Source::New && !self.plan.hostname.is_empty() {
            nix::unistd::sethostname(&self.plan.hostname).doing(|| format!("set hostname {}", self.plan.hostname))?;
        }
        Ok(())
    }

    fn open_sources(&mut self) -> Result<(), StepError> {
        self.sources = self.plan.mounts.iter().map(sources::open).collect::<Result<_, _>>()?;
        if let Some(mount) = self.plan.mounts.iter().find(|m| m.kind() == Kind::Cgroup) {
            self.cgroups = mounts::copy_cgroups(mount, self.cgroup)?;
        }
        Ok(())
    }

    fn open_rootfs(&mut self) -> Result<(), StepError> {
        let rootfs = self.plan.rootfs.as_ref().ok_or_else(|| StepError::new(Errno::EINVAL, "find the plan's root"))?;
        let root = rootfs::open(rootfs)?;
        let rules = self.plan.cgroup.as_ref().map_or(&[][..], |cgroup| &cgroup.devices);
        if self.cgroup.directory("devices").is_none() && rootfs::denies_devices(rules) {
            rootfs::refuse_devices(root.as_fd())?;
        }
        unshare(CloneFlags::CLONE_NEWNS).doing(|| "make a mount namespace".to_owned())?;
        rootfs::isolate()?;
        self.root = Some(root);
        Ok(())
    }

    fn open_images(&mut self) -> Result<(), StepError> {
        for (i, mount) in self.plan.mounts.iter().enumerate().filter(|(_, m)| m.kind() == Kind::Image) {
            self.sources[i] = Some(rootfs::image(mount, self.place()?.as_fd())?);
        }
        Ok(())
    }

    fn attach_root(&mut self) -> Result<(), StepError> {
        rootfs::attach_at(self.root()?.as_fd(), self.place()?.as_fd())
    }

    /// Where mounts can be attached that nobody is to find.
    fn place(&self) -> Result<OwnedFd, StepError> {
        self.pod.attach_place().doing(|| "open the pod's run directory".to_owned())
    }

    fn mount_all(&mut self) -> Result<(), StepError> {
        let sources = std::mem::take(&mut self.sources);
        for (mount, source) in self.plan.mounts.iter().zip(&sources) {
            let root = self.root()?.as_fd();
            match (mount.kind(), source) {
                (Kind::Bind | Kind::Image, Some(source)) => mounts::bind(root, mount, source.as_fd())?,
                (Kind::Bind | Kind::Image, None) => {
                    return Err(StepError::new(Errno::EINVAL, format!("find the source of {}", mount.target)));
                }
                (Kind::Filesystem, _) => drop(mounts::filesystem(root, mount)?),
                (Kind::SandboxShm, _) => {
                    let shm = self.pod.shm().ok_or_else(|| {
                        StepError::new(Errno::ENODEV, "mount the pod's shared memory, which it has none of")
                    })?;
                    mounts::shared_memory(root, mount, shm)?;
                }
                (Kind::Cgroup, _) => mounts::cgroups(root, mount, &self.cgroups)?,
                (Kind::Dev, _) => self.dev = Some(dev::mount(root, mount)?),
            }
        }
        Ok(())
    }

    fn make_devices(&mut self) -> Result<(), StepError> {
        dev::make_nodes(self.root()?.as_fd(), &self.plan.devices)
    }

    fn open_terminal(&mut self) -> Result<(), StepError> {
        if !self.process.tty {
            return Ok(());
        }
        let no_dev = || StepError::new(Errno::ENOTTY, "open a terminal: the container has no /dev of ours");
        let dev = self.dev.as_ref().ok_or_else(no_dev)?;
        let terminal = dev::open_terminal(dev.pts.as_fd(), self.process)?;
        dev::mount_console(dev, &terminal)?;
        self.terminal = Some(terminal);
        Ok(())
    }

    fn mask_paths(&mut self) -> Result<(), StepError> {
        masks::make_readonly(self.root()?.as_fd(), &self.plan.readonly_paths)?;
        masks::mask(self.root()?.as_fd(), &self.plan.masked_paths, self.dev.as_ref())
    }

    fn resolve_user(&mut self) -> Result<(), StepError> {
        let wanted = self.process.user.clone().unwrap_or_default();
        self.user = user::resolve(self.root()?.as_fd(), &wanted)?;
        Ok(())
    }

    fn write_sysctls(&mut self) -> Result<(), StepError> {
        sysctl::write_all(self.pod.proc(), &self.plan.sysctls)
    }

    fn set_limits(&mut self) -> Result<(), StepError> {
        // Always written: the shim's own score is not the workload's.
        let score = self.process.oom_score_adj.unwrap_or(0);
        credentials::set_oom_score(self.pod.proc(), score, &mut self.warnings)?;
        credentials::set_limits(self.process, self.pod.open_files(), &mut self.warnings)
    }

    fn pivot(&mut self) -> Result<(), StepError> {
        rootfs::pivot(self.root()?.as_fd())
    }

    fn readonly(&mut self) -> Result<(), StepError> {
        if self.plan.rootfs.as_ref().is_some_and(|r| r.readonly) {
            // Made now, or a read-only root could not get it.
            exec::Directory::prepare(self.root()?.as_fd(), &self.process.cwd)?;
            rootfs::make_readonly(self.root()?.as_fd())?;
        }
        Ok(())
    }

    fn enter_directory(&mut self) -> Result<(), StepError> {
        let root = self.root()?.as_fd();
        self.directory = exec::Directory::enter(root, &self.process.cwd)?;
        Ok(())
    }

    fn set_streams(&mut self) -> Result<(), StepError> {
        let streams = match &self.terminal {
            Some(terminal) => Stdio::Terminal(terminal),
            None => Stdio::Files(&self.stdio),
        };
        exec::set_streams(&streams, self.pod.null(), self.user.uid)
    }

    fn assume_identity(&mut self) -> Result<(), StepError> {
        exec::assume_identity(self.process, &self.user, &mut self.directory)
    }
}

/// Tells the shim and ends.
pub(super) fn fail(channel: &OwnedFd, step: &str, error: &StepError) -> ! {
    let failure = Failure { step: step.to_owned(), errno: error.errno as i32, message: error.to_string() };
    if init::report(channel.as_fd(), Body::Failure(failure), None).is_err() {
        // The shim is gone; whoever reads stderr may still learn it.
        writeln!(std::io::stderr(), "aril: {step}: {error}").ok();
    }
    exit_now(if error.errno == Errno::ENOENT { 127 } else { 126 })
}
