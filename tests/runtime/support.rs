//! A pod of the calling process, busybox as its image, and what came out of its containers.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aril::plan::mount::Kind;
use aril::plan::namespaces::Source;
use aril::plan::{self, Propagation};
use aril::runtime::{ExecTarget, Init, InitMessage, Pod, Stdio3};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// All capabilities there are on this kernel generation.
pub const ALL_CAPS: u64 = (1 << 41) - 1;

/// The pod of one case, with directories of its own; everything is gone when it is dropped.
pub struct TestPod {
    pub pod: Pod,
    pub dir: tempfile::TempDir,
    pub cgroup: String,
    serial: u32,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub user: plan::ResolvedUser,
}

impl TestPod {
    pub fn start(sandbox: plan::Sandbox) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = dir.path().join("run");
        fs::create_dir(&run).expect("run directory");
        let cgroup = format!("/aril-test-runtime-{}", std::process::id());
        let mut pod = Pod::start().expect("start");
        let sandbox = plan::Sandbox { init_cgroup: format!("{cgroup}/init"), ..sandbox };
        pod.setup(&sandbox, &run, None).expect("set the pod up");
        let test = Self { pod, dir, cgroup, serial: 0 };
        test.fill_image();
        test
    }

    /// The one layer of the test image.
    pub fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fill_image(&self) {
        let layer = self.layer();
        for dir in ["bin", "etc", "tmp"] {
            fs::create_dir_all(layer.join(dir)).expect("image directory");
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
        for applet in
            ["sh", "cat", "id", "ls", "sleep", "true", "hostname", "readlink", "touch", "mount", "grep", "env"]
        {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).expect("applet");
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/var/www:/bin/sh\n")
            .expect("passwd");
        fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:44:\nlogs:x:50:web\n").expect("group");
    }

    /// A container of the test image that runs a shell script, with the mounts every container has.
    pub fn script(&mut self, script: &str) -> plan::Container {
        self.serial += 1;
        let serial = self.serial;
        let (upper, work) = (self.path(&format!("upper{serial}")), self.path(&format!("work{serial}")));
        fs::create_dir(&upper).expect("upper");
        fs::create_dir(&work).expect("work");
        let text = |p: &Path| p.to_str().expect("UTF-8").to_owned();
        plan::Container {
            rootfs: Some(plan::Rootfs {
                lower: vec![text(&self.layer())],
                upper: text(&upper),
                work: text(&work),
                ..Default::default()
            }),
            mounts: vec![
                filesystem("/proc", "proc"),
                plan::Mount { kind: Kind::Dev.into(), target: "/dev".into(), ..Default::default() },
                filesystem("/sys", "sysfs"),
            ],
            namespaces: Some(plan::Namespaces {
                pid: Source::New.into(),
                cgroup: Source::New.into(),
                ..Default::default()
            }),
            cgroup: Some(plan::Cgroup { path: format!("{}/c{serial}", self.cgroup), ..Default::default() }),
            process: Some(plan::Process {
                args: vec!["sh".into(), "-c".into(), script.into()],
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                capabilities: Some(capabilities(ALL_CAPS)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Creates, starts and waits.
    pub fn run(&self, plan: &plan::Container) -> Outcome {
        let (init, user, mut out) = self.start_container(plan, None);
        let mut stdout = String::new();
        out.read_to_string(&mut stdout).expect("read output");
        let code = wait_exit(&init);
        remove(&init);
        Outcome { code, stdout, user }
    }

    /// The sentence of a create or start that must fail.
    pub fn fails(&self, plan: &plan::Container) -> (String, String) {
        let (init, _) = self.pod.create(plan, None, Stdio3::default()).expect("clone");
        let failure = match receive(&init) {
            InitMessage::Failed { step, message, .. } => (step, message),
            InitMessage::Ready { .. } => {
                init.release().expect("release");
                match receive(&init) {
                    InitMessage::Failed { step, message, .. } => (step, message),
                    other => panic!("started: {other:?}"),
                }
            }
            InitMessage::Executed => panic!("ended without a word"),
        };
        wait_exit(&init);
        remove(&init);
        failure
    }

    /// Creates and starts; `target` is a container whose PID namespace is joined.
    pub fn start_container(&self, plan: &plan::Container, target: Option<&Init>) -> (Init, plan::ResolvedUser, File) {
        let (read, write) = pipe();
        let stdio = Stdio3 { stdin: None, stdout: Some(write.try_clone().expect("dup")), stderr: Some(write) };
        let target = target.map(|t| t.pidfd.as_fd());
        let (init, warnings) = self.pod.create(plan, target, stdio).expect("create");
        assert!(warnings.is_empty(), "{warnings:?}");
        let user = match receive(&init) {
            InitMessage::Ready { user, .. } => user,
            other => panic!("not ready: {other:?}"),
        };
        init.release().expect("release");
        match receive(&init) {
            InitMessage::Executed => (init, user, read),
            other => panic!("not executed: {other:?}"),
        }
    }

    /// Runs a script in a running container as its root.
    pub fn exec(&self, init: &Init, script: &str) -> Outcome {
        let (mut read, write) = pipe();
        let process = plan::Process {
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            capabilities: Some(capabilities(ALL_CAPS)),
            ..Default::default()
        };
        let target = ExecTarget { pidfd: init.pidfd.as_fd(), cgroup: &init.cgroup, user: None };
        let stdio = Stdio3 { stdin: None, stdout: Some(write.try_clone().expect("dup")), stderr: Some(write) };
        let session = self.pod.exec("exec-1", &target, &process, stdio).expect("exec");
        let mut stdout = String::new();
        read.read_to_string(&mut stdout).expect("read output");
        let code = wait_exit(&session);
        session.cgroup.remove().expect("remove tracking cgroup");
        Outcome { code, stdout, user: plan::ResolvedUser::default() }
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        if let Some(init) = self.pod.init_cgroup() {
            init.kill().ok();
            nix::sys::wait::waitpid(None, None).ok();
            init.remove().ok();
        }
        if let Ok(cgroup) = aril::runtime::cgroup::Cgroup::open(self.pod.hierarchies(), &self.cgroup) {
            cgroup.kill().ok();
            let deadline = Instant::now() + Duration::from_secs(2);
            while cgroup.remove().is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

pub fn capabilities(bits: u64) -> plan::Capabilities {
    plan::Capabilities { bounding: bits, effective: bits, permitted: bits, ..Default::default() }
}

pub fn filesystem(target: &str, fstype: &str) -> plan::Mount {
    plan::Mount {
        kind: Kind::Filesystem.into(),
        target: target.into(),
        source: fstype.into(),
        fstype: fstype.into(),
        ..Default::default()
    }
}

pub fn bind(source: &Path, target: &str) -> plan::Mount {
    plan::Mount {
        kind: Kind::Bind.into(),
        source: source.to_str().expect("UTF-8").into(),
        target: target.into(),
        recursive: true,
        propagation: Propagation::Private.into(),
        ..Default::default()
    }
}

pub fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    (read.into(), write)
}

pub fn receive(init: &Init) -> InitMessage {
    let mut fds = [PollFd::new(init.channel.as_fd(), PollFlags::POLLIN)];
    assert!(poll(&mut fds, 10_000u16).expect("poll") > 0, "nothing heard for ten seconds");
    init.receive().expect("a report").expect("after poll")
}

/// Reaps the process: its exit code, or 128 + signal.
pub fn wait_exit(init: &Init) -> i32 {
    match waitid(Id::PIDFd(init.pidfd.as_fd()), WaitPidFlag::WEXITED).expect("wait") {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("{other:?}"),
    }
}

/// Removes the container's cgroup, which its dying processes may hold a moment.
pub fn remove(init: &Init) {
    init.cgroup.kill().expect("kill the rest");
    let deadline = Instant::now() + Duration::from_secs(2);
    while let Err(e) = init.cgroup.remove() {
        assert!(Instant::now() < deadline, "{e}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
