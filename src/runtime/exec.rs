//! The last steps before `execve`, the same for a container's first process and for an exec session.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::Uid;

use super::cgroup::Entry;
use super::dev::{self, Terminal};
use super::error::{Doing, StepError};
use super::init::{self, Stdio3};
use super::pod::Pod;
use super::stages::fail;
use super::{credentials, user};
use crate::plan::init_report::Body;
use crate::plan::{self, Ready};
use crate::sys::path::make_dirs_in_root;
use crate::sys::process::{cloexec_from, reset_signals, set_stdio};
use crate::sys::tty;

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The streams a process gets.
pub(super) enum Stdio<'a> {
    Terminal(&'a Terminal),
    Files(&'a Stdio3),
}

/// The working directory: opened inside the root, entered, and checked to be inside.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Still to be entered, as the user who may (a network filesystem can shut out root).
    pending: Option<OwnedFd>,
}

impl Directory {
    /// Makes the directory if it is missing.
    pub(super) fn prepare(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, StepError> {
        let path = if path.is_empty() { "/" } else { path };
        make_dirs_in_root(root, Path::new(path), Mode::from_bits_truncate(0o755))
            .doing(|| format!("open working directory {path}"))
    }

    pub(super) fn enter(root: BorrowedFd<'_>, path: &str) -> Result<Self, StepError> {
        let directory = Self::prepare(root, path)?;
        match nix::unistd::fchdir(&directory) {
            Ok(()) => Ok(Self { pending: None }),
            Err(Errno::EACCES | Errno::EPERM) => Ok(Self { pending: Some(directory) }),
            Err(e) => Err(e).doing(|| format!("enter working directory {path}")),
        }
    }

    /// Enters what could not be entered before, and makes sure that the directory is one of the container.
    fn settle(&mut self, path: &str) -> Result<(), StepError> {
        let what = || format!("enter working directory {path}");
        if let Some(directory) = self.pending.take() {
            nix::unistd::fchdir(&directory).doing(what)?;
        }
        match nix::unistd::getcwd() {
            Ok(cwd) if cwd.is_absolute() => Ok(()),
            Ok(_) => Err(StepError::new(Errno::EXDEV, format!("{}, which is outside the container", what()))),
            Err(e) => Err(e).doing(what),
        }
    }
}

/// Puts the streams at 0, 1 and 2, owned by the user so that `/dev/stdout` can be opened again.
pub(super) fn set_streams(streams: &Stdio<'_>, null: BorrowedFd<'_>, uid: u32) -> Result<(), StepError> {
    let what = || "set the standard streams".to_owned();
    let own = |fd: BorrowedFd<'_>| match nix::unistd::fchown(fd, Some(Uid::from_raw(uid)), None) {
        // A read-only or foreign filesystem keeps its owner, and a socket's cannot be changed.
        Ok(()) | Err(Errno::EROFS | Errno::EPERM | Errno::EINVAL) => Ok(()),
        Err(e) => Err(e),
    };
    match streams {
        Stdio::Terminal(terminal) => {
            let peer = terminal.peer.as_fd();
            own(peer).doing(what)?;
            tty::set_controlling(peer).doing(|| "make the terminal the controlling one".to_owned())?;
            (0..=2).try_for_each(|number| set_stdio(peer, number)).doing(what)
        }
        Stdio::Files(stdio) => {
            for (number, fd) in [(0, &stdio.stdin), (1, &stdio.stdout), (2, &stdio.stderr)] {
                if let Some(fd) = fd {
                    own(fd.as_fd()).doing(what)?;
                }
                set_stdio(fd.as_ref().map_or(null, AsFd::as_fd), number).doing(what)?;
            }
            Ok(())
        }
    }
}

/// Becomes the user, with nothing of ours left to inherit.
pub(super) fn assume_identity(
    process: &plan::Process,
    user: &plan::ResolvedUser,
    directory: &mut Directory,
) -> Result<(), StepError> {
    cloexec_from(3).doing(|| "mark descriptors close-on-exec".to_owned())?;
    credentials::assume(process, user)?;
    directory.settle(&process.cwd)?;
    nix::sys::stat::umask(Mode::from_bits_truncate(process.umask.unwrap_or(0o022)));
    reset_signals().doing(|| "reset signals".to_owned())
}

/// Executes the workload's program; returns why that was not possible.
pub(super) fn become_workload(process: &plan::Process, user: &plan::ResolvedUser) -> StepError {
    let Some(program) = process.args.first().filter(|p| !p.is_empty()) else {
        return StepError::new(Errno::EINVAL, "start a container without a command");
    };
    let mut env = process.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let (Ok(args), Ok(env)) = (c_strings(&process.args), c_strings(&env)) else {
        return StepError::new(Errno::EINVAL, format!("start {program:?}: an argument or variable holds a NUL"));
    };
    let path = process.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let errno = execute(program, path, &args, &env);
    let what = match errno {
        Errno::ENOENT if !program.contains('/') => format!("start {program:?}, not found in PATH {path}"),
        Errno::ENOEXEC => format!("start {program:?}, which is no program for this machine and no script"),
        _ => format!("start {program:?}"),
    };
    StepError::new(errno, what)
}

/// As execvp(3): a name without a slash is looked for in each directory of PATH.
fn execute(program: &str, path: &str, args: &[CString], env: &[CString]) -> Errno {
    if program.contains('/') {
        return execute_one(program, args, env);
    }
    let mut denied = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match execute_one(&format!("{dir}/{program}"), args, env) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => denied = Some(Errno::EACCES),
            other => return other,
        }
    }
    denied.unwrap_or(Errno::ENOENT)
}

fn execute_one(path: &str, args: &[CString], env: &[CString]) -> Errno {
    let Ok(path) = CString::new(path) else { return Errno::EINVAL };
    match nix::unistd::execve(&path, args, env) {
        Err(errno) => errno,
    }
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    texts.iter().map(|t| CString::new(OsStr::new(t).as_bytes())).collect()
}

/// An exec session's process: joins a running container and becomes its program, without waiting.
pub(super) struct Session<'a> {
    pub pod: &'a Pod,
    pub process: &'a plan::Process,
    /// Known for the container's own user; else looked up in the container.
    pub user: Option<&'a plan::ResolvedUser>,
    pub container: BorrowedFd<'a>,
    pub entry: &'a Entry,
    pub channel: OwnedFd,
    pub stdio: Stdio3,
}

impl Session<'_> {
    /// Never returns.
    pub(super) fn run(mut self) -> ! {
        nix::sys::prctl::set_name(c"aril-exec").ok();
        match self.prepare() {
            Ok(user) => {
                let error = become_workload(self.process, &user);
                fail(&self.channel, "exec", &error)
            }
            Err((step, error)) => fail(&self.channel, step, &error),
        }
    }

    fn prepare(&mut self) -> Result<plan::ResolvedUser, (&'static str, StepError)> {
        let step = |name| move |e| (name, e);
        nix::sys::stat::umask(Mode::empty());
        nix::unistd::setsid().doing(|| "begin a session".to_owned()).map_err(step("session"))?;
        self.entry.enter().doing(|| "enter the container's cgroup".to_owned()).map_err(step("cgroup"))?;
        let mut warnings = Vec::new();
        let score = self.process.oom_score_adj.unwrap_or(0);
        credentials::set_oom_score(self.pod.proc(), score, &mut warnings).map_err(step("limits"))?;
        credentials::set_limits(self.process, self.pod.open_files(), &mut warnings).map_err(step("limits"))?;
        self.join().map_err(step("namespaces"))?;
        let root = open_root().map_err(step("namespaces"))?;
        let user = match self.user {
            Some(user) => user.clone(),
            None => {
                let wanted = self.process.user.clone().unwrap_or_default();
                user::resolve(root.as_fd(), &wanted).map_err(step("user"))?
            }
        };
        let mut directory = Directory::enter(root.as_fd(), &self.process.cwd).map_err(step("working directory"))?;
        self.set_streams(&root, &user).map_err(step("standard streams"))?;
        assume_identity(self.process, &user, &mut directory).map_err(step("identity"))?;
        Ok(user)
    }

    fn join(&self) -> Result<(), StepError> {
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP;
        setns(self.container, all).doing(|| "join the container's namespaces".to_owned())
    }

    fn set_streams(&self, root: &OwnedFd, user: &plan::ResolvedUser) -> Result<(), StepError> {
        if !self.process.tty {
            return set_streams(&Stdio::Files(&self.stdio), self.pod.null(), user.uid);
        }
        let pts = dev::find_pts(root.as_fd())?;
        let terminal = dev::open_terminal(pts.as_fd(), self.process)?;
        let ready = Ready { user: Some(user.clone()), ..Ready::default() };
        init::report(self.channel.as_fd(), Body::Ready(ready), Some(terminal.master.as_fd()))
            .doing(|| "hand the terminal over".to_owned())?;
        set_streams(&Stdio::Terminal(&terminal), self.pod.null(), user.uid)
    }
}

fn open_root() -> Result<OwnedFd, StepError> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::openat(AT_FDCWD, "/", flags, Mode::empty()).doing(|| "open the container's root".to_owned())
}
