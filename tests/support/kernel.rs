//! What the kernel says, to be held against what CRI says.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A file of `/proc/<pid>`; empty once the process is gone.
pub fn read_proc(pid: i32, name: &str) -> String {
    fs::read(format!("/proc/{pid}/{name}")).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

/// The identity of a namespace (`mnt`, `net`, …) of a process; empty once it is gone.
pub fn namespace(pid: i32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).map(|p| p.display().to_string()).unwrap_or_default()
}

/// All processes there are, without zombies.
pub fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("read /proc");
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| process_alive(pid)).collect()
}

/// Whether the process exists and has not ended (a zombie has).
pub fn process_alive(pid: i32) -> bool {
    let stat = read_proc(pid, "stat");
    // The name in parentheses may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
}

/// The processes whose cgroup path holds `text` in some hierarchy.
pub fn pids_in_cgroup(text: &str) -> Vec<i32> {
    processes().into_iter().filter(|&pid| read_proc(pid, "cgroup").contains(text)).collect()
}

/// Sends a signal to a process that belongs to a test.
pub fn kill(pid: i32, signal: Signal) {
    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        // It was about to end anyway.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => panic!("kill {pid} with {signal}: {e}"),
    }
}

/// One mounted cgroup hierarchy.
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its v1 controllers; empty: v2.
    pub controllers: Vec<String>,
}

/// All mounted cgroup hierarchies.
pub fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read /proc/self/mounts");
    let mut found = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let controllers = match fields[2] {
            "cgroup2" => Vec::new(),
            "cgroup" => fields[3].split(',').map(str::to_owned).collect(),
            _ => continue,
        };
        found.push(Hierarchy { mount: PathBuf::from(fields[1]), controllers });
    }
    found
}

/// The directory of a process's cgroup in the hierarchy that has `controller`.
///
/// # Panics
/// If the process is gone or no hierarchy has the controller.
pub fn cgroup_of(pid: i32, controller: &str) -> PathBuf {
    let text = read_proc(pid, "cgroup");
    let of = |wanted: &dyn Fn(&str) -> bool| {
        text.lines().find_map(|l| {
            let mut parts = l.splitn(3, ':').skip(1);
            wanted(parts.next()?).then(|| parts.next().unwrap_or_default().trim_start_matches('/').to_owned())
        })
    };
    let hierarchies = hierarchies();
    let has = |list: &[String]| list.iter().any(|c| c == controller);
    if let Some(v1) = hierarchies.iter().find(|h| has(&h.controllers)) {
        let path = of(&|names| names.split(',').any(|n| n == controller));
        return v1.mount.join(path.unwrap_or_else(|| panic!("pid {pid} is in no {controller} cgroup")));
    }
    let v2 = hierarchies.iter().find(|h| h.controllers.is_empty());
    let v2 = v2.unwrap_or_else(|| panic!("no cgroup hierarchy has {controller}"));
    v2.mount.join(of(&str::is_empty).unwrap_or_else(|| panic!("pid {pid} is in no cgroup")))
}

/// Calls `visit` for each directory below `top`, deepest first.
pub fn below(top: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            below(&entry.path(), visit);
            visit(&entry.path());
        }
    }
}
