//! The syscalls of one container.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use aril::sys::process::{Cloned, SingleThreaded, clone_process, exit_now, pidfd_signal, set_stdio};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::Result;
use crate::cgroups::hierarchies;
use crate::client::{CPU_SHARES, MEMORY_LIMIT_BYTES, OOM_SCORE_ADJ, READY, WORKLOAD};

/// What every container may use: v1 rules, after "deny all".
const DEVICES: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 136:* rwm",
    "c 5:2 rwm",
];

const NODES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What stays the same from pod to pod.
pub struct Machine {
    dir: PathBuf,
    lower: PathBuf,
    /// v1 hierarchies: entered by writing to a file.
    v1: Vec<PathBuf>,
    /// The v2 hierarchy: born into.
    unified: Option<PathBuf>,
    pod: String,
    own_pid_namespace: File,
    proof: SingleThreaded,
}

/// A container whose first process exists.
pub struct Container {
    pidfd: OwnedFd,
    /// Closes with the child's execve.
    channel: UnixStream,
    output: File,
}

impl Machine {
    /// Makes the one layer that all containers share.
    pub fn prepare(dir: &Path, cgroup: &str, busybox: &[u8]) -> Result<Machine> {
        let lower = dir.join("lower");
        for name in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(lower.join(name))?;
        }
        fs::write(lower.join("bin/busybox"), busybox)?;
        fs::set_permissions(lower.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
        for applet in ["sh", "mkfifo", "true"] {
            symlink("busybox", lower.join("bin").join(applet))?;
        }
        let is_v2 = |dir: &PathBuf| dir.join("cgroup.controllers").exists();
        let (v2, v1): (Vec<_>, Vec<_>) = hierarchies().into_iter().partition(is_v2);
        Ok(Machine {
            lower,
            v1,
            unified: v2.into_iter().next(),
            pod: format!("{cgroup}/pod"),
            own_pid_namespace: File::open("/proc/self/ns/pid")?,
            proof: SingleThreaded::check()?,
            dir: dir.to_owned(),
        })
    }

    pub fn make_pod(&self) -> Result<()> {
        fs::create_dir(self.dir.join("pod"))?;
        self.make_cgroups("")
    }

    fn make_cgroups(&self, below_pod: &str) -> Result<()> {
        for hierarchy in self.v1.iter().chain(&self.unified) {
            let dir = hierarchy.join(&self.pod[1..]).join(below_pod);
            fs::create_dir(&dir)?;
            if hierarchy.ends_with("cpuset") {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    fs::write(dir.join(file), fs::read(dir.join("..").join(file))?)?;
                }
            }
        }
        Ok(())
    }

    fn limit(&self) -> Result<()> {
        let file = |controller: &str, name: &str| -> Option<PathBuf> {
            let hierarchy = self.v1.iter().find(|dir| dir.join(name).exists() || dir.ends_with(controller))?;
            Some(hierarchy.join(&self.pod[1..]).join("container").join(name))
        };
        let set = |path: Option<PathBuf>, value: &str| path.map_or(Ok(()), |path| fs::write(path, value));
        set(file("cpu", "cpu.shares"), &CPU_SHARES.to_string())?;
        set(file("memory", "memory.limit_in_bytes"), &MEMORY_LIMIT_BYTES.to_string())?;
        set(file("devices", "devices.deny"), "a *:* rwm")?;
        for rule in DEVICES {
            set(file("devices", "devices.allow"), rule)?;
        }
        Ok(())
    }

    /// Everything up to the point where only execve is left.
    pub fn create(&self) -> Result<Container> {
        self.make_cgroups("container")?;
        self.limit()?;
        for name in ["upper", "work", "root"] {
            fs::create_dir(self.dir.join("pod").join(name))?;
        }
        let (entries, unified) = self.entries()?;
        let (mut ours, theirs) = UnixStream::pair()?;
        let (output, their_output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
        let born = clone_process(self.proof, bits(namespaces), unified.as_ref().map(AsFd::as_fd))?;
        let Cloned::Parent { pidfd, .. } = born else {
            die(&self.become_container(&entries, theirs, their_output.as_fd()));
        };
        drop((theirs, their_output));
        ours.read_exact(&mut [0])?;
        Ok(Container { pidfd, channel: ours, output: output.into() })
    }

    /// What a process enters its cgroups with: `tasks` of v1, the directory of v2.
    fn entries(&self) -> Result<(Vec<File>, Option<File>)> {
        let container = |hierarchy: &PathBuf| hierarchy.join(&self.pod[1..]).join("container");
        let tasks = |hierarchy| File::options().write(true).open(container(hierarchy).join("tasks"));
        let entries = self.v1.iter().map(tasks).collect::<io::Result<_>>()?;
        let unified = self.unified.as_ref().map(|hierarchy| File::open(container(hierarchy))).transpose()?;
        Ok((entries, unified))
    }

    /// The child: the container's root around it, then the word to go, then the workload.
    fn become_container(
        &self,
        entries: &[File],
        mut channel: UnixStream,
        output: BorrowedFd<'_>,
    ) -> Result<Infallible> {
        enter(entries)?;
        self.mount_root()?;
        fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ.to_string())?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        set_stdio(null.as_fd(), 0)?;
        set_stdio(output, 1)?;
        set_stdio(output, 2)?;
        let args: Vec<CString> =
            WORKLOAD.iter().map(|&arg| CString::new(arg)).collect::<std::result::Result<_, _>>()?;
        channel.write_all(&[1])?;
        channel.read_exact(&mut [0])?;
        Ok(nix::unistd::execve(&args[0], &args, &[c"PATH=/bin"])?)
    }

    fn mount_root(&self) -> Result<()> {
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        let device = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let pod = self.dir.join("pod");
        let root = pod.join("root");
        let overlay = format!(
            "volatile,lowerdir={},upperdir={},workdir={}",
            self.lower.display(),
            pod.join("upper").display(),
            pod.join("work").display()
        );
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        new_mount("overlay", &root, MsFlags::empty(), &overlay)?;
        new_mount("proc", &root.join("proc"), quiet, "")?;
        new_mount("sysfs", &root.join("sys"), quiet | MsFlags::MS_RDONLY, "")?;
        let dev = root.join("dev");
        new_mount("tmpfs", &dev, MsFlags::MS_NOSUID, "mode=755,size=65536k")?;
        for (name, major, minor) in NODES {
            mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(*major, *minor))?;
        }
        for name in ["pts", "mqueue", "shm"] {
            fs::create_dir(dev.join(name))?;
        }
        new_mount("devpts", &dev.join("pts"), device, "newinstance,ptmxmode=0666,mode=0620")?;
        new_mount("mqueue", &dev.join("mqueue"), quiet, "")?;
        new_mount("tmpfs", &dev.join("shm"), quiet, "mode=1777,size=65536k")?;
        symlink("pts/ptmx", dev.join("ptmx"))?;
        nix::unistd::chdir(&root)?;
        // The old root ends up on top of the new one and is taken away from there.
        nix::unistd::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(nix::unistd::chdir("/")?)
    }

    /// Runs `program` in the container and waits until it has succeeded.
    pub fn exec(&self, container: &Container, program: &CStr) -> Result<()> {
        let (entries, unified) = self.entries()?;
        let (output, their_output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // Only children of the caller are born into a PID namespace, never the caller itself.
        setns(&container.pidfd, CloneFlags::CLONE_NEWPID)?;
        let born = clone_process(self.proof, 0, unified.as_ref().map(AsFd::as_fd))?;
        let Cloned::Parent { pidfd, .. } = born else {
            die(&become_session(container, &entries, their_output.as_fd(), program));
        };
        setns(&self.own_pid_namespace, CloneFlags::CLONE_NEWPID)?;
        drop(their_output);
        // All of its output, up to its end.
        File::from(output).read_to_end(&mut Vec::new())?;
        await_success(&pidfd)
    }

    pub fn remove(&self) -> Result<()> {
        self.remove_cgroups("container")?;
        for name in ["upper", "work", "root"] {
            fs::remove_dir_all(self.dir.join("pod").join(name))?;
        }
        Ok(())
    }

    pub fn stop_pod(&self) -> Result<()> {
        self.remove_cgroups("")
    }

    pub fn remove_pod(&self) -> Result<()> {
        Ok(fs::remove_dir(self.dir.join("pod"))?)
    }

    fn remove_cgroups(&self, below_pod: &str) -> Result<()> {
        for hierarchy in self.v1.iter().chain(&self.unified) {
            fs::remove_dir(hierarchy.join(&self.pod[1..]).join(below_pod))?;
        }
        Ok(())
    }
}

impl Container {
    /// Returns once the workload's program runs.
    pub fn start(&mut self) -> Result<()> {
        self.channel.write_all(&[1])?;
        match self.channel.read(&mut [0])? {
            0 => Ok(()),
            _ => Err("the floor's child spoke out of turn".into()),
        }
    }

    pub fn await_ready(&mut self) -> Result<()> {
        let mut word = vec![0; READY.len()];
        self.output.read_exact(&mut word)?;
        if word == READY.as_bytes() { Ok(()) } else { Err("the floor's workload said something else".into()) }
    }

    pub fn stop(&self) -> Result<()> {
        pidfd_signal(self.pidfd.as_fd(), nix::sys::signal::Signal::SIGTERM as i32)?;
        await_success(&self.pidfd)
    }
}

fn become_session(
    container: &Container,
    entries: &[File],
    output: BorrowedFd<'_>,
    program: &CStr,
) -> Result<Infallible> {
    enter(entries)?;
    setns(&container.pidfd, CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)?;
    set_stdio(output, 1)?;
    set_stdio(output, 2)?;
    Ok(nix::unistd::execve(program, &[program], &[c"PATH=/bin"])?)
}

/// Moves the caller, which has one thread, into each v1 cgroup.
fn enter(mut entries: &[File]) -> io::Result<()> {
    while let Some((mut entry, rest)) = entries.split_first() {
        entry.write_all(b"0")?;
        entries = rest;
    }
    Ok(())
}

fn new_mount(fstype: &str, target: &Path, flags: MsFlags, options: &str) -> Result<()> {
    let mounted = mount(Some(fstype), target, Some(fstype), flags, Some(options));
    mounted.map_err(|error| format!("mount {fstype} on {}: {error}", target.display()).into())
}

fn await_success(pidfd: &OwnedFd) -> Result<()> {
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(format!("a process of the floor ended with {other:?}").into()),
    }
}

fn bits(flags: CloneFlags) -> u64 {
    u64::from(flags.bits().cast_unsigned())
}

/// The end of a child that did not become another program.
fn die(result: &Result<Infallible>) -> ! {
    if let Err(error) = result {
        eprintln!("bench: the floor's child: {error}");
    }
    exit_now(1)
}
