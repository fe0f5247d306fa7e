//! One daemon with everything of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aril::api::cri::{
    ListContainersRequest, ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest, VersionRequest,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tonic::Status;

use super::images::{fixture, scratch};
use super::residue::{self, Before};
use super::{Container, Cri, PATIENCE, Pod, PodBuilder, kernel, wait_for, within};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// What a node may be given beside the defaults.
#[derive(Default)]
pub struct Options {
    /// More lines of the configuration file; `{node}` in them is the node's directory.
    pub config: String,
    /// Size of a filesystem of its own for the root directory, as tmpfs has it; empty: none.
    pub root_size: &'static str,
    /// Environment of the daemon.
    pub environment: Vec<(&'static str, String)>,
    /// Soft limit of open files of the daemon; 0: the tests' own.
    pub open_files: u32,
}

/// A daemon, with directories, cgroup parent, mount and network namespace of its own.
///
/// The namespaces outlive the daemon, as a machine's would: a process that does nothing holds them.
pub struct TestNode {
    directory: TempDir,
    serial: u32,
    options: Options,
    holder: Child,
    daemon: Mutex<Option<Child>>,
    executor: Arc<tokio::runtime::Runtime>,
    cri: Mutex<Cri>,
    before: Mutex<Before>,
    finished: bool,
}

impl TestNode {
    /// A node with the probe image, ready for calls.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// As [`start`](Self::start).
    pub fn with(options: Options) -> Self {
        require_root();
        let directory = scratch();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let executor = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("start an executor for the client");
        let executor = Arc::new(executor);
        let cri = Mutex::new(Cri::new(&executor, &directory.path().join("aril.sock")));
        let node = Self {
            directory,
            serial,
            options,
            holder: holder(),
            daemon: Mutex::new(None),
            executor,
            cri,
            before: Mutex::default(),
            finished: false,
        };
        node.prepare();
        node.restart();
        node.import("probe");
        node.take_stock();
        node
    }

    fn prepare(&self) {
        for hierarchy in kernel::hierarchies() {
            fs::create_dir(hierarchy.mount.join(&self.cgroup_parent()[1..])).expect("create the pods' cgroup");
        }
        fs::create_dir(self.path("logs")).expect("create the log directory");
        if !self.options.root_size.is_empty() {
            fs::create_dir(self.path("root")).expect("create the root directory");
            let size = format!("size={},mode=0700", self.options.root_size);
            let status =
                self.inside("mount").args(["-t", "tmpfs", "-o", &size, "root"]).arg(self.path("root")).status();
            assert!(status.expect("run mount").success(), "mount a filesystem for the root directory");
        }
        let config = format!(
            "cgroup_parent = \"{0}\"\nshim_cgroup = \"{0}-shims\"\nshim = \"{1}\"\nregistry_config_dir = \"{2}\"\n\
             network.netns_dir = \"{3}\"\nnetwork.cni_config_dir = \"{4}\"\n{5}",
            self.cgroup_parent(),
            env!("CARGO_BIN_EXE_aril-shim"),
            self.path("certs.d").display(),
            self.path("netns").display(),
            self.path("net.d").display(),
            self.options.config.replace("{node}", &self.directory.path().display().to_string())
        );
        fs::write(self.path("config.toml"), config).expect("write the configuration");
    }

    /// Starts a daemon where the last one was, and waits until it answers.
    pub fn restart(&self) {
        let mut running = self.daemon();
        assert!(running.is_none(), "the daemon runs already");
        *running = Some(self.spawn_daemon());
        *lock(&self.cri) = Cri::new(&self.executor, &self.socket());
        wait_for("the daemon's first answer", PATIENCE, || {
            let ended = running.as_mut().and_then(|d| d.try_wait().expect("wait for the daemon"));
            assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{}", self.daemon_log());
            self.cri().runtime(|mut c| async move { c.version(VersionRequest::default()).await }).ok()
        });
    }

    fn spawn_daemon(&self) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).expect("open the log");
        let mut command = match self.options.open_files {
            0 => self.inside(env!("CARGO_BIN_EXE_aril")),
            soft => {
                let mut command = self.inside("prlimit");
                command.arg(format!("--nofile={soft}:")).arg(env!("CARGO_BIN_EXE_aril"));
                command
            }
        };
        command.arg("--config").arg(self.path("config.toml"));
        command.arg("--root").arg(self.path("root")).arg("--state").arg(self.path("state"));
        command.arg("--socket").arg(self.socket()).arg("serve");
        command.envs(self.options.environment.iter().map(|(k, v)| (k, v)));
        let streams = (log.try_clone().expect("duplicate the log"), log);
        command.stdin(Stdio::null()).stdout(streams.0).stderr(streams.1).spawn().expect("start the daemon")
    }

    /// A command in the node's namespaces.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net", "--", program]);
        command
    }

    /// Does something in the node's network namespace, where its daemon can reach what is started by it.
    pub fn in_network<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.holder_pid());
        let enter_and_act = || {
            let network = File::open(path).expect("open the network namespace");
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
            act()
        };
        // A thread alone can be in another network, and those it starts with it.
        std::thread::scope(|scope| scope.spawn(enter_and_act).join()).expect("act in the network namespace")
    }

    /// A socket on loopback of the node's network namespace.
    pub fn listen(&self) -> std::net::TcpListener {
        self.in_network(|| std::net::TcpListener::bind("127.0.0.1:0").expect("listen on loopback"))
    }

    /// The `aril` command of a person on this node.
    pub fn aril<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.inside(env!("CARGO_BIN_EXE_aril"));
        command.arg("--config").arg(self.path("config.toml")).arg("--socket").arg(self.socket());
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// SIGKILL, as the worst end a daemon can have.
    pub fn kill_daemon(&self) {
        let mut daemon = self.daemon().take().expect("a daemon runs");
        daemon.kill().expect("kill the daemon");
        daemon.wait().expect("reap the daemon");
    }

    /// SIGTERM, and the way it ended.
    pub fn stop_daemon(&self) -> ExitStatus {
        let mut daemon = self.daemon().take().expect("a daemon runs");
        kernel::kill(pid(&daemon), Signal::SIGTERM);
        wait_for("the daemon's end after SIGTERM", PATIENCE, || daemon.try_wait().expect("wait for the daemon"))
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> i32 {
        pid(self.daemon().as_ref().expect("a daemon runs"))
    }

    /// What the daemon wrote so far.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// The process that holds the node's namespaces.
    pub fn holder_pid(&self) -> i32 {
        pid(&self.holder)
    }

    /// A path in the node's own directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.path("aril.sock")
    }

    /// The cgroup above all pods.
    pub fn cgroup_parent(&self) -> String {
        format!("/aril-test-{}-{}", std::process::id(), self.serial)
    }

    /// A connection to the daemon of now.
    pub fn cri(&self) -> Cri {
        lock(&self.cri).clone()
    }

    /// Imports an image of the catalogue and returns its first reference.
    pub fn import(&self, name: &str) -> String {
        self.import_file(&fixture(name))
    }

    /// Imports an archive and returns its first reference.
    pub fn import_file(&self, path: &Path) -> String {
        let images = self.cri().import(path).unwrap_or_else(|e| panic!("import {}: {e}", path.display()));
        images[0].references[0].clone()
    }

    /// A pod as kubelet would ask for it, to be changed before it is run.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// Runs such a pod.
    pub fn run_pod(&self, name: &str) -> Pod<'_> {
        self.pod(name).run()
    }

    /// Runs one container in a pod of its own.
    pub fn run<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> Container<'_> {
        self.run_pod("only").run(command)
    }

    /// The ids of all pods.
    pub fn pod_ids(&self) -> Vec<String> {
        let all = ListPodSandboxRequest::default();
        let answer = self.cri().runtime(|mut c| async move { c.list_pod_sandbox(all).await });
        answer.expect("list pods").items.into_iter().map(|p| p.id).collect()
    }

    /// The ids of all containers.
    pub fn container_ids(&self) -> Vec<String> {
        let all = ListContainersRequest::default();
        let answer = self.cri().runtime(|mut c| async move { c.list_containers(all).await });
        answer.expect("list containers").containers.into_iter().map(|c| c.id).collect()
    }

    /// Stops and removes a pod.
    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri().runtime(|mut c| async move { c.stop_pod_sandbox(stop).await })?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri().runtime(|mut c| async move { c.remove_pod_sandbox(remove).await })?;
        Ok(())
    }

    /// Removes every pod and fails on anything that is left of them.
    pub fn assert_clean(&self) {
        self.remove_all_pods();
        let mut left = Vec::new();
        // Shims end by themselves once they are told to, a moment after the answer.
        let clean = within(PATIENCE, || {
            left = residue::difference(&lock(&self.before), &self.look());
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind:\n{}", left.join("\n"));
    }

    /// Stops and removes every pod.
    pub fn remove_all_pods(&self) {
        for id in self.pod_ids() {
            self.remove_pod(&id).unwrap_or_else(|e| panic!("remove pod {id}: {e}"));
        }
    }

    /// [`assert_clean`](Self::assert_clean), then the daemon must end well and leave nothing either.
    pub fn finish(mut self) {
        if self.daemon().is_none() {
            self.restart();
        }
        self.assert_clean();
        let status = self.stop_daemon();
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.daemon_log());
        let parent = self.cgroup_parent();
        let left = residue::without_daemon(&self.holder, &parent);
        assert!(left.is_empty(), "left behind by the daemon:\n{}", left.join("\n"));
        self.tear_down();
        self.finished = true;
    }

    /// What there is now belongs to the node, and is not left by anything.
    pub fn take_stock(&self) {
        *lock(&self.before) = self.look();
    }

    /// How many descriptors and threads the daemon has.
    pub fn daemon_size(&self) -> (usize, usize) {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", self.daemon_pid())).map_or(0, Iterator::count);
        (count("fd"), count("task"))
    }

    fn look(&self) -> Before {
        Before::look(self.holder_pid(), self.daemon_pid(), &self.cgroup_parent(), self.directory.path())
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        lock(&self.daemon)
    }

    fn tear_down(&mut self) {
        if let Some(mut daemon) = self.daemon().take() {
            // Errors mean that it is gone, which is what is wanted.
            daemon.kill().ok();
            daemon.wait().ok();
        }
        residue::kill_all(self.holder_pid(), &self.cgroup_parent());
        residue::remove_cgroups(&self.cgroup_parent());
        residue::remove_cgroups(&format!("{}-shims", self.cgroup_parent()));
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if std::thread::panicking() {
            let log = self.daemon_log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("-- the daemon's last lines:");
            tail.iter().rev().for_each(|l| eprintln!("{l}"));
        }
        self.tear_down();
    }
}

/// Ends a suite that is to be skipped; without root and without that word it fails.
fn require_root() {
    if std::env::var_os("SKIP_ROOT").is_some_and(|v| v == "1") {
        eprintln!("the tests against a real daemon are skipped: SKIP_ROOT=1");
        // None of them can do anything, and libtest knows no other way to say so.
        #[allow(clippy::exit)]
        std::process::exit(0);
    }
    assert!(nix::unistd::geteuid().is_root(), "needs root; SKIP_ROOT=1 skips these tests");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a pid")
}

/// A process in a new network namespace and a new mount namespace whose mounts are shared with
/// nobody but the mount namespaces made below it. It ends with the test.
fn holder() -> Child {
    let script = "mount --make-rshared / && busybox ip link set lo up && echo ready && exec cat";
    let mut holder = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start unshare");
    let mut line = String::new();
    let output: File = std::os::fd::OwnedFd::from(holder.stdout.take().expect("a pipe")).into();
    BufReader::new(output).read_line(&mut line).expect("hear from the namespace holder");
    assert_eq!(line, "ready\n", "the namespaces of the node were not made");
    holder
}
