//! What a node has in the kernel and on disk, and how to find what should no longer be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::kernel;

/// A picture of everything that pods could leave.
#[derive(Default)]
pub struct Before {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    files: BTreeSet<String>,
    network: BTreeSet<String>,
    /// Descriptors of the daemon by what they are.
    descriptors: BTreeMap<String, usize>,
}

impl Before {
    /// The picture of now.
    pub fn look(holder: i32, daemon: i32, cgroup_parent: &str, directory: &Path) -> Self {
        Self {
            processes: ours(holder, cgroup_parent)
                .into_iter()
                .filter(|pid| ![holder, daemon].contains(pid))
                .map(describe)
                .collect(),
            mounts: mounts(holder, directory),
            cgroups: cgroups(cgroup_parent),
            files: files(directory),
            network: network(holder),
            descriptors: descriptors(daemon),
        }
    }
}

/// One line for each thing that is there now and was not before.
pub fn difference(before: &Before, now: &Before) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, old, new) in [
        ("process", &before.processes, &now.processes),
        ("mount", &before.mounts, &now.mounts),
        ("cgroup", &before.cgroups, &now.cgroups),
        ("file", &before.files, &now.files),
        ("network", &before.network, &now.network),
    ] {
        lines.extend(new.difference(old).map(|thing| format!("{kind}: {thing}")));
    }
    for (kind, &count) in &now.descriptors {
        let was = before.descriptors.get(kind).copied().unwrap_or(0);
        if count > was {
            lines.push(format!("descriptors of the daemon: {count} of {kind}, {was} before"));
        }
    }
    lines
}

/// What is left of processes and cgroups when no daemon runs.
pub fn without_daemon(holder: &Child, cgroup_parent: &str) -> Vec<String> {
    let holder = i32::try_from(holder.id()).expect("a pid");
    let processes = ours(holder, cgroup_parent).into_iter().filter(|&pid| pid != holder).map(describe);
    processes.chain(cgroups(cgroup_parent)).collect()
}

/// Processes of the node: those in its mount namespace (daemon and shims) and those in its cgroups.
fn ours(holder: i32, cgroup_parent: &str) -> Vec<i32> {
    let mount_namespace = kernel::namespace(holder, "mnt");
    let in_cgroup = |pid| {
        let text = kernel::read_proc(pid, "cgroup");
        // A whole component: one node's name may begin with another's.
        text.lines().any(|l| l.split(':').nth(2).is_some_and(|p| Path::new(p).starts_with(cgroup_parent)))
    };
    let is_ours = |&pid: &i32| kernel::namespace(pid, "mnt") == mount_namespace || in_cgroup(pid);
    kernel::processes().into_iter().filter(is_ours).collect()
}

fn describe(pid: i32) -> String {
    let command = kernel::read_proc(pid, "cmdline").replace('\0', " ");
    let cgroup = kernel::read_proc(pid, "cgroup");
    let cgroup = cgroup.lines().last().unwrap_or_default();
    format!("{pid} {} [{}] in {cgroup}", kernel::read_proc(pid, "comm").trim(), command.trim())
}

/// Mounts in the node's namespace, and the machine's that lie in the node's directory.
fn mounts(holder: i32, directory: &Path) -> BTreeSet<String> {
    let points =
        |text: &str| -> Vec<String> { text.lines().filter_map(|l| l.split(' ').nth(4).map(str::to_owned)).collect() };
    let directory = directory.display().to_string();
    let host = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let host = points(&host).into_iter().filter(|p| p.starts_with(&directory)).map(|p| format!("{p} on the machine"));
    points(&kernel::read_proc(holder, "mountinfo")).into_iter().chain(host).collect()
}

fn cgroups(parent: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for hierarchy in kernel::hierarchies() {
        kernel::below(&hierarchy.mount.join(&parent[1..]), &mut |path| {
            found.insert(path.display().to_string());
        });
        let shims = hierarchy.mount.join(format!("{}-shims", &parent[1..]));
        if shims.exists() {
            found.insert(shims.display().to_string());
        }
    }
    found
}

/// What the network's drivers keep while there is no pod.
const BOOKS: &[&str] = &[
    "state/network",
    "state/network/bridge",
    "state/network/bridge/leases",
    "state/network/bridge/ports",
    "state/network/bridge/ranges.json",
    "root/network/pod-cidr",
];

/// The daemon's own files, but for what images consist of.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![directory.join("root"), directory.join("state")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(directory).expect("a path below").display().to_string();
            // A damaged record is kept for a person to look at, the log of a daemon that was brought up likewise.
            if ["root/layers", "root/images", "root/damaged", "state/serve.log"].contains(&name.as_str()) {
                continue;
            }
            // Books of all pods: what is in them must go, they stay.
            if BOOKS.contains(&name.as_str()) {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    open.push(path);
                }
                continue;
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                open.push(path);
            }
            found.insert(name);
        }
    }
    found
}

/// Interfaces of the node's network but for the bridge itself, and whatever in the packet filter is some pod's: elements
/// of sets and maps, chains of CNI plugins.
fn network(holder: i32) -> BTreeSet<String> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new("nsenter")
            .args(["--target", &holder.to_string(), "--net", "--", program])
            .args(arguments)
            .output()
            .expect("run nsenter");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let links = run("ip", &["-o", "link"]);
    let name = |line: &str| line.split(": ").nth(1).map(|name| name.split('@').next().unwrap_or(name).to_owned());
    let links = links.lines().filter_map(name).filter(|name| !["lo", "aril0"].contains(&name.as_str()));
    let rules = run("nft", &["list", "ruleset"]);
    let is_pods = |line: &&str| line.contains("elements") || line.contains("CNI-");
    let rules = rules.lines().map(str::trim).filter(is_pods).map(|line| format!("nftables: {line}"));
    links.map(|name| format!("interface {name}")).chain(rules).collect()
}

fn descriptors(pid: i32) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        // "socket:[12345]": the kind, without the number.
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_insert(0) += 1;
    }
    counts
}

/// Ends every process of the node but the holder of its namespaces.
pub fn kill_all(holder: i32, cgroup_parent: &str) {
    let start = Instant::now();
    loop {
        let left: Vec<i32> = ours(holder, cgroup_parent).into_iter().filter(|&pid| pid != holder).collect();
        if left.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return;
        }
        left.into_iter().for_each(|pid| kernel::kill(pid, Signal::SIGKILL));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the node's cgroups from every hierarchy.
pub fn remove_cgroups(parent: &str) {
    for hierarchy in kernel::hierarchies() {
        let top = hierarchy.mount.join(&parent[1..]);
        // A cgroup that is still busy is told of by whoever looks for residue.
        kernel::below(&top, &mut |path| drop(fs::remove_dir(path)));
        fs::remove_dir(&top).ok();
    }
}
