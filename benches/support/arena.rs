//! Where a runtime is measured: its own mount namespace, directory and cgroup.
//!
//! The mount namespace gives every daemon an empty `/run` (shims and OCI runtimes keep state there
//! at fixed paths) and lets all its mounts go with its last process. Dropping an [`Arena`] kills
//! whatever lives in it and removes what it left, so that any way out of the benchmark is clean.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::processes::{self, Process};
use crate::{Result, cgroups};

/// The first argument that makes this program enter an arena and become the one that follows.
pub const ENTER: &str = "enter-arena";
/// The second one: whether the arena has a network of its own.
const OWN_NETWORK: &str = "own-network";
const HOST_NETWORK: &str = "host-network";

/// Hidden in arenas with a network of their own.
pub const CNI_BOOKS: &str = "/var/lib/cni";

/// What all arenas share: a directory and a cgroup, named by the benchmark's pid.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    cgroup: String,
    keep_logs: Option<PathBuf>,
    /// Whether [`CNI_BOOKS`] was made for this run.
    made_books: bool,
}

impl Stage {
    pub fn new(keep_logs: Option<PathBuf>) -> Result<Stage> {
        let pid = std::process::id();
        // Where runtimes keep their data, not in `/tmp`: that one's part of the disk may be worn out by builds.
        let dir = PathBuf::from(format!("/var/lib/aril-bench-{pid}"));
        fs::create_dir(&dir).map_err(|e| format!("create {}: {e}", dir.display()))?;
        // ext4 then gives each arena a region of its own: making a file costs up to 60 times as much in one where
        // thousands were deleted in the last minutes. Other file systems know no such thing.
        Command::new("chattr").arg("+T").arg(&dir).stderr(Stdio::null()).status().ok();
        // Something to mount on.
        let made_books = fs::create_dir(CNI_BOOKS).is_ok();
        Ok(Stage { dir, cgroup: format!("/aril-bench-{pid}"), keep_logs, made_books })
    }
}

impl Stage {
    /// For what all arenas share.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for hierarchy in cgroups::hierarchies() {
            cgroups::remove(&hierarchy.join(&self.cgroup[1..])).ok();
        }
        if self.made_books {
            fs::remove_dir(CNI_BOOKS).ok();
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("bench: {} is left: {error}", self.dir.display());
        }
    }
}

/// One daemon and all it starts.
#[derive(Debug)]
pub struct Arena {
    pub dir: PathBuf,
    /// Below which its pods' cgroups are, in every hierarchy; made, and ready to be entered.
    pub cgroup: String,
    /// Whether it has a network namespace of its own, as the machine that its pods are connected to.
    own_network: bool,
    daemon: Option<Child>,
    mount_namespace: Option<PathBuf>,
    keep_logs: Option<PathBuf>,
}

impl Arena {
    pub fn new(stage: &Stage, name: &str) -> Result<Arena> {
        let dir = stage.dir.join(name);
        fs::create_dir(&dir).map_err(|e| format!("create {}: {e}", dir.display()))?;
        let cgroup = format!("{}/{name}", stage.cgroup);
        let keep_logs = stage.keep_logs.as_ref().map(|dir| dir.join(format!("{name}.log")));
        let arena = Arena { dir, cgroup, own_network: false, daemon: None, mount_namespace: None, keep_logs };
        for hierarchy in cgroups::hierarchies() {
            cgroups::make(&hierarchy, &arena.cgroup).map_err(|e| format!("create cgroup {}: {e}", arena.cgroup))?;
        }
        Ok(arena)
    }

    /// Gives it a network of its own: loopback, and what its daemon makes.
    #[must_use]
    #[allow(dead_code)] // not every benchmark has pods
    pub fn with_network(mut self) -> Arena {
        self.own_network = true;
        self
    }

    /// A command that runs in the arena's namespaces once it is spawned.
    fn command(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ENTER).arg(if self.own_network { OWN_NETWORK } else { HOST_NETWORK }).arg(program);
        Ok(command)
    }

    /// Starts a program that is spoken to over its standard streams.
    #[allow(dead_code)] // as `with_network`
    pub fn piped(&self, program: &Path) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::from(self.command(program)?);
        command.process_group(0).kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }

    /// Starts the daemon; its output goes to `daemon.log` in the arena's directory.
    pub fn start(&mut self, program: &Path, args: &[OsString]) -> Result<()> {
        let log = File::create(self.dir.join("daemon.log"))?;
        let mut command = self.command(program)?;
        command.args(args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A ctrl-c is for the benchmark, which then ends the daemon.
        let mut child = command.process_group(0).spawn()?;
        let result = self.await_entry(&mut child);
        self.daemon = Some(child);
        result
    }

    /// Until the child is in its own mount namespace.
    fn await_entry(&mut self, child: &mut Child) -> Result<()> {
        let ours = processes::mount_namespace(std::process::id());
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let namespace = processes::mount_namespace(child.id());
            if namespace.is_some() && namespace != ours {
                self.mount_namespace = namespace;
                return Ok(());
            }
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(format!("the daemon did not start: {}", self.log_tail()).into());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Fails, with the end of its log, once the daemon has exited.
    pub fn check_daemon(&mut self) -> Result<()> {
        match self.daemon.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(format!("the daemon ended ({status}): {}", self.log_tail()).into()),
            _ => Ok(()),
        }
    }

    /// The daemon's pid; none before it is started.
    pub fn daemon(&self) -> Option<i32> {
        self.daemon.as_ref().and_then(|child| i32::try_from(child.id()).ok())
    }

    /// The daemon and all processes it started, directly or not.
    pub fn family(&self) -> Vec<Process> {
        self.mount_namespace.as_ref().map(processes::family).unwrap_or_default()
    }

    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Asks the daemon to end, so that it may take leave of its own files, then kills the rest.
    fn kill_all(&mut self) {
        if let Some(pid) = self.daemon() {
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && self.check_daemon().is_ok() && self.daemon.is_some() {
            thread::sleep(Duration::from_millis(5));
        }
        // What is killed may just have started something, so until nobody is found; and one on its
        // way out is no longer found by its namespace, so until all that were found are gone.
        let mut killed = Vec::new();
        for _ in 0..1000 {
            let found = self.family();
            found.iter().for_each(Process::kill);
            killed.extend(found.clone());
            killed.retain(|process: &Process| !process.is_gone());
            if found.is_empty() && killed.is_empty() {
                break;
            }
            if let Some(daemon) = &mut self.daemon {
                daemon.try_wait().ok();
            }
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait().ok();
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.kill_all();
        for hierarchy in cgroups::hierarchies() {
            let cgroup = hierarchy.join(&self.cgroup[1..]);
            if let Err(error) = cgroups::clear(&cgroup) {
                eprintln!("bench: {} is left: {error}", cgroup.display());
            }
        }
        if let Some(kept) = &self.keep_logs {
            fs::create_dir_all(kept.parent().unwrap_or(kept)).ok();
            fs::copy(self.dir.join("daemon.log"), kept).ok();
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("bench: {} is left: {error}", self.dir.display());
        }
    }
}

/// In the new process: moves into a mount namespace made ready and becomes the program named.
pub fn enter(mut command: impl Iterator<Item = OsString>) -> Result<()> {
    let own_network = command.next().is_some_and(|word| word == OWN_NETWORK);
    let program = command.next().ok_or("no program to start in the arena")?;
    // Should the benchmark be killed, its daemons go too.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
    hide_unified_controllers()?;
    if own_network {
        unshare(CloneFlags::CLONE_NEWNET)?;
        aril::sys::net::loopback_up()?;
        // Where the plugins' callers keep their books, whatever they are told.
        if Path::new(CNI_BOOKS).exists() {
            mount(Some("tmpfs"), CNI_BOOKS, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0700"))?;
        }
    }
    Err(Command::new(&program).args(command).exec().into())
}

/// Makes the v2 hierarchy of a hybrid host look as if it had no controllers, which it does not have
/// where hugetlb was left to it by accident; crun refuses such hosts otherwise.
fn hide_unified_controllers() -> Result<()> {
    let controllers = Path::new(cgroups::ROOT).join("unified/cgroup.controllers");
    if controllers.exists() {
        let empty = Path::new("/run/no-controllers");
        File::create(empty)?;
        mount(Some(empty), &controllers, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}
