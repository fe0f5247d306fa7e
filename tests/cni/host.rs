//! A machine of the test's own: one thread with a network and a mount namespace, and empty directories where plugins
//! keep their state.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aril::id::SandboxId;
use aril::net::cni::{Cni, Deadlines, Settings};
use aril::net::{Bandwidth, Dns, Namespace, Request, namespace};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// The machine; it is gone with the thread it was made on.
pub struct Host {
    directory: TempDir,
}

/// Does something on a machine of its own.
///
/// # Panics
/// Without root, unless `SKIP_ROOT=1` skips it.
pub fn on_a_host(act: impl FnOnce(&Host) + Send) {
    if std::env::var_os("SKIP_ROOT").is_some_and(|v| v == "1") {
        eprintln!("the tests with CNI plugins are skipped: SKIP_ROOT=1");
        return;
    }
    assert!(nix::unistd::geteuid().is_root(), "needs root; SKIP_ROOT=1 skips these tests");
    assert!(Path::new(PLUGINS).join("bridge").exists(), "needs containernetworking-plugins: tests/setup installs it");
    // What the thread enters, nobody else is in; the programs it starts are there with it.
    std::thread::scope(|scope| {
        let run = || {
            let host = Host::new();
            act(&host);
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("make namespaces");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("keep mounts to ourselves");
        for place in ["/run", "/var/lib"] {
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).expect("cover the machine's state");
        }
        // A namespace's own /sys: bridges are told of there.
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("mount a sysfs of the namespace");
        fs::create_dir("/run/netns").expect("make a place for namespaces");
        let host = Self { directory };
        host.run("ip", &["link", "set", "lo", "up"]);
        for name in ["net.d", "bin"] {
            fs::create_dir(host.path(name)).expect("make a directory");
        }
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration of the machine.
    pub fn configure(&self, text: &str) {
        fs::write(self.path("net.d/10-test.conflist"), text).expect("write the configuration");
    }

    /// Puts a script before Debian's plugin of the same name.
    pub fn plugin(&self, kind: &str, script: &str) {
        // Under another name first: a child of another test may have a file open that was just written.
        let fresh = self.path(&format!("bin/.{kind}"));
        fs::write(&fresh, script).expect("write a plugin");
        fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).expect("make it executable");
        fs::rename(&fresh, self.path(&format!("bin/{kind}"))).expect("put it in its place");
    }

    pub fn remove_plugin(&self, kind: &str) {
        fs::remove_file(self.path(&format!("bin/{kind}"))).expect("remove a plugin");
    }

    /// A driver with the books of the one before.
    pub fn driver(&self) -> Cni {
        Cni::open(Settings {
            config_dir: self.path("net.d"),
            plugin_dirs: vec![self.path("bin"), PLUGINS.into()],
            books: self.path("books"),
            template: None,
            ports_elsewhere: false,
            deadlines: Deadlines::default(),
        })
        .expect("open the driver")
    }

    /// What a program of the machine prints.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {text}{error}");
        text
    }

    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("run {program}: {e}"))
    }

    /// Everything the machine's network consists of, to be compared.
    pub fn picture(&self) -> String {
        let links = self.run("ip", &["-o", "link"]);
        let names: Vec<&str> =
            links.lines().filter_map(|l| l.split(": ").nth(1)).map(|n| n.split('@').next().unwrap_or(n)).collect();
        let leases: Vec<String> = files(Path::new("/var/lib/cni"));
        let rules = self.run("iptables-save", &[]);
        let rules: Vec<&str> = rules.lines().filter(|l| l.starts_with("-A")).collect();
        format!("links {names:?}\nfiles {leases:?}\nrules {rules:#?}\nbooks {:?}", files(&self.path("books")))
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Of the last address that was given, and of who may give one.
        let is_lease = !path.to_string_lossy().contains("last_reserved_ip") && !path.ends_with("lock");
        if path.is_dir() {
            found.extend(files(&path));
        } else if is_lease {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

/// A pod's network namespace, pinned as the daemon does it.
pub struct PodNamespace {
    fd: OwnedFd,
    path: PathBuf,
}

impl PodNamespace {
    pub fn new(name: &str) -> Self {
        let path = Path::new("/run/netns").join(name);
        File::create(&path).expect("make a place for the namespace");
        let fd = namespace::create().expect("make a network namespace");
        let source = PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()));
        let none: Option<&str> = None;
        mount(Some(&source), &path, none, MsFlags::MS_BIND, none).expect("pin the namespace");
        Self { fd, path }
    }

    pub fn get(&self) -> Namespace<'_> {
        Namespace { fd: self.fd(), path: Some(&self.path) }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Does something in it.
    pub fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        namespace::inside(self.fd(), act).expect("enter the pod's namespace")
    }

    /// As a reboot or a killed pod leaves it: gone.
    pub fn unpin(self) -> io::Result<()> {
        nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH)?;
        fs::remove_file(&self.path)
    }
}

/// A pod that asks for nothing.
pub fn request(number: u8) -> Request {
    Request {
        id: SandboxId::from_random([number; 32]),
        name: format!("pod-{number}"),
        namespace: "default".to_owned(),
        uid: format!("uid-{number}"),
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        dns: Dns::default(),
        ips: Vec::new(),
        mac: String::new(),
        cgroup_parent: String::new(),
        annotations: std::collections::BTreeMap::new(),
    }
}
