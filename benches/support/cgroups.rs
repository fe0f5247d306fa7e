//! The benchmark's own cgroups, in every hierarchy.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const ROOT: &str = "/sys/fs/cgroup";

/// The mount points of all cgroup hierarchies.
pub fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.procs").exists() {
        return vec![ROOT.into()];
    }
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    // Links name the same hierarchy twice ("cpu", "cpuacct" → "cpu,cpuacct").
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// Makes `path` and its ancestors in one hierarchy; a v1 cpuset is given what its parent has, or
/// nobody could enter it.
pub fn make(hierarchy: &Path, path: &str) -> io::Result<()> {
    let mut dir = hierarchy.to_owned();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let parent = dir.clone();
        dir.push(name);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.ends_with("cpuset") {
                fs::write(dir.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Kills whoever is in the cgroup or below and removes it, within two seconds.
pub fn clear(cgroup: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match remove(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => kill_all(cgroup),
            Ok(()) => return Ok(()),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn kill_all(cgroup: &Path) {
    for child in children(cgroup) {
        kill_all(&child);
    }
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

/// Removes an empty cgroup and those below it.
///
/// # Errors
/// `EBUSY` while somebody is in one of them.
pub fn remove(cgroup: &Path) -> io::Result<()> {
    for child in children(cgroup) {
        remove(&child)?;
    }
    fs::remove_dir(cgroup)
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}
