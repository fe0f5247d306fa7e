//! A pod for one test: a shim, a root filesystem, a cgroup of its own.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aril::plan::{self, mount::Kind, namespaces::Source};
use aril::wire::client::{Events, Shim};
use aril::wire::pb;
use aril::wire::session::ExecStdio;
use aril::wire::spawn::Spawner;
use prost::Message;
use tempfile::TempDir;

pub const SHIM: &str = env!("CARGO_BIN_EXE_aril-shim");
/// No step of any test takes longer, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(30);

static SERIAL: AtomicU32 = AtomicU32::new(1);

fn serial() -> u32 {
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

/// One copy of the program for all tests.
pub fn spawner() -> &'static Spawner {
    static SPAWNER: OnceLock<Spawner> = OnceLock::new();
    SPAWNER.get_or_init(|| Spawner::new(Path::new(SHIM), Path::new("/tmp")).unwrap())
}

pub struct TestPod {
    pub shim: Shim,
    pub events: Events,
    pub cgroup: String,
    /// The test has killed the shim.
    pub killed: bool,
    exits: HashMap<String, pb::Exit>,
    dir: Option<TempDir>,
}

impl TestPod {
    pub async fn start() -> Self {
        Self::start_in(None).await
    }

    /// In a network namespace that is given.
    pub async fn start_in(network: Option<OwnedFd>) -> Self {
        let sandbox = plan::Sandbox {
            hostname: "test-pod".into(),
            new_net: true,
            new_ipc: true,
            new_uts: true,
            shm_size_bytes: 1 << 20,
            ..plan::Sandbox::default()
        };
        Self::start_with(sandbox, network).await
    }

    /// With a PID namespace shared by its containers.
    pub async fn start_shared() -> Self {
        let shared = plan::Sandbox { shared_pid: true, new_ipc: true, ..plan::Sandbox::default() };
        Self::start_with(shared, None).await
    }

    async fn start_with(mut sandbox: plan::Sandbox, network: Option<OwnedFd>) -> Self {
        let dir = tempfile::Builder::new().prefix("aril-shim-test-").tempdir().unwrap();
        make_rootfs(&dir.path().join("rootfs"));
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        let cgroup = format!("/aril-shim-test-{}-{}", std::process::id(), serial());
        sandbox.cgroup_parent.clone_from(&cgroup);
        if sandbox.shared_pid {
            sandbox.init_cgroup = format!("{cgroup}/init");
        }
        let run_dir = dir.path().join("run");
        let (shim, events) = Shim::spawn(spawner(), &run_dir).await.unwrap();
        let setup = pb::SetupSandbox {
            sandbox_id: new_id(),
            run_dir: run_dir.to_str().unwrap().into(),
            plan: sandbox.encode_to_vec(),
            shim_cgroup: format!("{cgroup}-shims"),
            log_directory: dir.path().join("logs").to_str().unwrap().into(),
            ..pb::SetupSandbox::default()
        };
        shim.setup_sandbox(setup, network).await.unwrap();
        Self { shim, events, cgroup, killed: false, exits: HashMap::new(), dir: Some(dir) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().unwrap().path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.path(&format!("logs/{}/0.log", &id[..12]))
    }

    pub fn log(&self, id: &str) -> String {
        fs::read_to_string(self.log_path(id)).unwrap()
    }

    /// The text of the log's lines, without times and tags.
    pub fn output(&self, id: &str) -> Vec<String> {
        self.log(id).lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned()).collect()
    }

    /// A new container of this command: its id and plan.
    pub fn container(&self, args: &[&str]) -> (String, plan::Container) {
        let id = new_id();
        let upper = self.path(&format!("upper-{}", &id[..12]));
        let work = self.path(&format!("work-{}", &id[..12]));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let plan = plan::Container {
            rootfs: Some(plan::Rootfs {
                lower: vec![path(self.path("rootfs"))],
                upper: path(upper),
                work: path(work),
                ..plan::Rootfs::default()
            }),
            mounts: mounts(),
            namespaces: Some(plan::Namespaces {
                pid: Source::New.into(),
                cgroup: Source::New.into(),
                ..plan::Namespaces::default()
            }),
            cgroup: Some(plan::Cgroup { path: format!("{}/{}", self.cgroup, &id[..12]), ..plan::Cgroup::default() }),
            process: Some(process(args)),
            stdio: Some(plan::Stdio { log_path: path(self.log_path(&id)), ..plan::Stdio::default() }),
            ..plan::Container::default()
        };
        (id, plan)
    }

    /// Creates and starts a container of this shell script.
    pub async fn run(&mut self, script: &str) -> String {
        let (id, plan) = self.container(&["/bin/sh", "-c", script]);
        self.shim.create(&id, &plan).await.unwrap();
        self.shim.start(&id).await.unwrap();
        id
    }

    /// Waits until a container's exit is told.
    pub async fn exit(&mut self, id: &str) -> pb::Exit {
        while !self.exits.contains_key(id) {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("no exit was told");
            if let pb::event::Body::Exited(exited) = event.expect("the shim is gone") {
                self.exits.insert(exited.container_id, exited.exit.unwrap());
            }
        }
        self.exits[id].clone()
    }

    /// The next warning.
    pub async fn warning(&mut self) -> String {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("no warning came");
            if let pb::event::Body::Warning(warning) = event.expect("the shim is gone") {
                return warning.message;
            }
        }
    }

    /// Runs a script in a container: its exit code and what it wrote.
    pub async fn exec(&self, id: &str, script: &str) -> (i32, String) {
        self.exec_args(id, &["/bin/sh", "-c", script]).await
    }

    /// Runs a program in a container: its exit code and what it wrote.
    pub async fn exec_args(&self, id: &str, args: &[&str]) -> (i32, String) {
        let (read, write) = nix::unistd::pipe().unwrap();
        let stdio = ExecStdio { stdin: None, stderr: Some(write.try_clone().unwrap()), stdout: Some(write) };
        let process =
            plan::Process { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..plan::Process::default() };
        let mut session = self.shim.exec(id, &format!("e{}", serial()), &process, true, stdio).await.unwrap();
        let output = read_all(read);
        let code = session.wait().await.unwrap();
        (code, output.await.unwrap())
    }

    /// Every process of the pod but the shim.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for dir in self.cgroup_dirs(&self.cgroup) {
            collect_pids(&dir, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn cgroup_dirs(&self, cgroup: &str) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let dirs = cgroups.map(|line| format!("{}{}", line.split(' ').nth(4).unwrap(), cgroup));
        dirs.map(PathBuf::from).filter(|dir| dir.exists()).collect()
    }

    /// Shuts the pod down and looks for leftovers.
    pub async fn finish(mut self) {
        tokio::time::timeout(PATIENCE, self.shim.shutdown()).await.unwrap().unwrap();
        self.check_gone().await;
    }

    /// Nothing but records and logs is left of the pod.
    pub async fn check_gone(&mut self) {
        while tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("the shim stays").is_some() {}
        let pid = self.shim.pid();
        eventually("the shim is reaped", || !Path::new(&format!("/proc/{pid}")).exists()).await;
        assert_eq!(self.cgroup_dirs(&self.cgroup), Vec::<PathBuf>::new(), "cgroups are left");
        let shims = format!("{}-shims", self.cgroup);
        if self.killed {
            // The next one to end would remove it.
            self.cgroup_dirs(&shims).iter().for_each(|dir| fs::remove_dir(dir).unwrap());
        }
        assert_eq!(self.cgroup_dirs(&shims), Vec::<PathBuf>::new(), "the cgroup of shims is left");
        let dir = self.dir.take().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "mounts are left: {mounts}");
        let mut left: Vec<_> = fs::read_dir(dir.path().join("run"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["exits", "shim.log"]);
        assert_eq!(fs::read_to_string(dir.path().join("run/shim.log")).unwrap(), "");
    }
}

impl Drop for TestPod {
    /// A failed test leaves nothing either.
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let pid = nix::unistd::Pid::from_raw(self.shim.pid());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
            let log = fs::read_to_string(dir.path().join("run/shim.log")).unwrap_or_default();
            eprintln!("the shim's log: {log:?}");
            for _ in 0..100 {
                if Command::new(SHIM).arg("cleanup").arg(dir.path().join("run")).status().unwrap().success() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // Of shims that were shut down the last one removes it; this one was killed.
            for shims in self.cgroup_dirs(&format!("{}-shims", self.cgroup)) {
                while fs::remove_dir(&shims).is_err() && Path::new(&format!("/proc/{pid}")).exists() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(procs.lines().map(|line| line.parse::<i32>().unwrap()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), pids);
        }
    }
}

/// Waits until it is so.
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "never so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Everything until the end of a pipe or terminal.
pub fn read_all(fd: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 65536]);
        // A terminal ends with EIO.
        while let Ok(n @ 1..) = nix::unistd::read(&fd, &mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    })
}

/// Reads until the text has come.
pub async fn read_until(fd: &OwnedFd, text: &str) -> String {
    let fd = fd.try_clone().unwrap();
    let text = text.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let (mut all, mut buffer) = (String::new(), [0; 4096]);
        while !all.contains(&text) {
            let n = nix::unistd::read(&fd, &mut buffer).unwrap();
            assert!(n > 0, "ended before {text:?}: {all:?}");
            all.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        all
    });
    tokio::time::timeout(PATIENCE, read).await.expect("the text never came").unwrap()
}

pub fn write_all(fd: &OwnedFd, text: &str) {
    assert_eq!(nix::unistd::write(fd, text.as_bytes()).unwrap(), text.len());
}

pub fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

pub fn process(args: &[&str]) -> plan::Process {
    // The capabilities containers usually have.
    let caps = 0xa804_25fb;
    plan::Process {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "MARK=container".into()],
        cwd: "/".into(),
        capabilities: Some(plan::Capabilities {
            bounding: caps,
            effective: caps,
            permitted: caps,
            ..Default::default()
        }),
        oom_score_adj: Some(100),
        ..plan::Process::default()
    }
}

fn mounts() -> Vec<plan::Mount> {
    let fs = |target: &str, fstype: &str, options: &[&str]| plan::Mount {
        kind: Kind::Filesystem.into(),
        target: target.into(),
        source: fstype.into(),
        fstype: fstype.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..plan::Mount::default()
    };
    let of = |kind: Kind, target: &str| plan::Mount { kind: kind.into(), target: target.into(), ..Default::default() };
    vec![
        fs("/proc", "proc", &[]),
        of(Kind::Dev, "/dev"),
        fs("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        fs("/tmp", "tmpfs", &["mode=1777"]),
    ]
}

fn new_id() -> String {
    format!("{:032x}{:024x}{:08x}", std::process::id(), 0, serial()).chars().rev().collect()
}

fn make_rootfs(root: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("install busybox-static");
    for applet in
        ["sh", "cat", "echo", "sleep", "setsid", "id", "kill", "seq", "head", "stty", "dd", "yes", "true", "wc"]
    {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").unwrap();
}
