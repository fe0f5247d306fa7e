//! Everything there is to tell of pods, for monitoring: asked for rarely, so it may cost some system calls a container.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statvfs::statvfs;

use super::super::Node;
use super::super::record::{ContainerRecord, SandboxRecord};
use super::super::state::{ContainerState, Nanos};
use super::layers::PATIENT;
use super::read::{cgroup_parent, container, network, prune, running};
use super::{ContainerNumbers, interfaces};
use crate::runtime::cgroup::{Cgroup, Details, Hierarchies, Reader};

/// Processes of one container whose descriptors are counted; past them they are not told.
const MAX_PROCESSES: usize = 5000;
/// Descriptors of one container.
const MAX_DESCRIPTORS: u64 = 1_000_000;
/// Longest mountinfo read.
const MAX_MOUNTINFO_BYTES: u64 = 16 << 20;

/// All that is known of a pod.
#[derive(Debug)]
pub struct FullPod {
    /// Whose numbers they are.
    pub record: Arc<SandboxRecord>,
    /// The cgroup above its containers.
    pub cgroup_path: String,
    /// As in [`PodNumbers`](super::PodNumbers).
    pub network: Option<(Nanos, Vec<interfaces::Interface>)>,
    /// Of those that run.
    pub containers: Vec<FullContainer>,
}

/// All that is known of a container.
#[derive(Debug)]
pub struct FullContainer {
    /// What lists tell, too, with its tasks.
    pub numbers: ContainerNumbers,
    /// Its cgroup, from the root of each hierarchy.
    pub cgroup_path: String,
    /// What else its cgroup counts.
    pub details: Details,
    /// The names of the disks in `details`, in the same order.
    pub disk_names: Vec<String>,
    /// Its processes.
    pub processes: Processes,
    /// The filesystem it writes to.
    pub filesystem: Option<Arc<Filesystem>>,
}

/// The processes of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many there are; zombies are not among them.
    pub count: Option<u64>,
    /// Descriptors they have open.
    pub descriptors: Option<u64>,
    /// Those of them that are sockets.
    pub sockets: Option<u64>,
    /// How many the first process may have open; `None` too if any number.
    pub open_files_limit: Option<u64>,
}

/// A filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// What it is on ("/dev/vda1").
    pub device: String,
    /// Its size.
    pub bytes: u64,
    /// How many files it has room for; 0: as many as fit.
    pub inodes: u64,
    /// How many more.
    pub inodes_free: u64,
}

/// The pods that are ready.
pub(super) fn pods(node: &Node, hierarchies: &Hierarchies) -> Vec<FullPod> {
    let mut containers = running(node);
    let all: Vec<_> = containers.values().flatten().cloned().collect();
    node.stats.layers.count(&node.settings, &all, PATIENT);
    let mut source = Source {
        node,
        hierarchies,
        reader: hierarchies.reader(),
        filesystem: filesystem(&node.settings.root).map(Arc::new),
        disks: HashMap::new(),
    };
    let ready = node.sandboxes().into_iter().filter(|s| s.state.is_ready());
    let pods = ready.filter_map(|record| {
        let cgroup_path = cgroup_parent(node, &record)?;
        let own = containers.remove(&record.id).unwrap_or_default();
        let containers = own.into_iter().filter_map(|c| source.container(&cgroup_path, c)).collect();
        Some(FullPod { network: network(node, &record), cgroup_path, containers, record })
    });
    let pods = pods.collect();
    prune(node);
    pods
}

/// What all containers are read with.
struct Source<'a> {
    node: &'a Node,
    hierarchies: &'a Hierarchies,
    reader: Reader,
    filesystem: Option<Arc<Filesystem>>,
    /// Names of disks by their numbers.
    disks: HashMap<(u32, u32), String>,
}

impl Source<'_> {
    fn container(&mut self, parent: &str, record: Arc<ContainerRecord>) -> Option<FullContainer> {
        let cgroup_path = format!("{parent}/aril-{}", record.id);
        let first = match record.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        };
        let numbers = container(self.node, &mut self.reader, parent, record, true)?;
        let details = self.reader.details(&cgroup_path);
        let disk_names = details.disks.iter().map(|disk| self.disk_name(disk.major, disk.minor)).collect();
        let pids = Cgroup::open(self.hierarchies, &cgroup_path).and_then(|cgroup| cgroup.pids()).ok();
        let processes = pids.map_or_else(Processes::default, |pids| processes(&pids, first));
        Some(FullContainer {
            numbers,
            cgroup_path,
            details,
            disk_names,
            processes,
            filesystem: self.filesystem.clone(),
        })
    }

    fn disk_name(&mut self, major: u32, minor: u32) -> String {
        let name = || {
            let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
            Some(format!("/dev/{}", link.file_name()?.to_str()?))
        };
        self.disks.entry((major, minor)).or_insert_with(|| name().unwrap_or_default()).clone()
    }
}

/// Looks at processes of which any may end meanwhile. `first` is asked for its limit if it is among them.
fn processes(pids: &[i32], first: Option<i32>) -> Processes {
    let mut told = Processes { count: u64::try_from(pids.len()).ok(), ..Processes::default() };
    told.open_files_limit = first.filter(|pid| pids.contains(pid)).and_then(open_files_limit);
    if pids.len() > MAX_PROCESSES {
        return told;
    }
    let (mut descriptors, mut sockets) = (0, 0);
    for pid in pids {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut dir) = Dir::open(format!("/proc/{pid}/fd").as_str(), flags, Mode::empty()) else { continue };
        let names: Vec<_> = dir.iter().map_while(Result::ok).map(|entry| entry.file_name().to_owned()).collect();
        for name in names.iter().filter(|name| !name.to_bytes().starts_with(b".")) {
            descriptors += 1;
            let link = readlinkat(&dir, name.as_c_str());
            sockets += u64::from(link.is_ok_and(|link| link.as_encoded_bytes().starts_with(b"socket:")));
        }
        if descriptors > MAX_DESCRIPTORS {
            return told;
        }
    }
    (told.descriptors, told.sockets) = (Some(descriptors), Some(sockets));
    told
}

fn open_files_limit(pid: i32) -> Option<u64> {
    let mut text = String::with_capacity(2048);
    File::open(format!("/proc/{pid}/limits")).ok()?.take(16 << 10).read_to_string(&mut text).ok()?;
    soft_open_files(&text)
}

/// "Max open files            1024                 4096                 files": proc_pid_limits(5).
fn soft_open_files(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn filesystem(root: &Path) -> Option<Filesystem> {
    let stat = statvfs(root).ok()?;
    let number = fstatat(nix::fcntl::AT_FDCWD, root, AtFlags::empty()).ok()?.st_dev;
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let mut mounts = String::new();
    File::open("/proc/self/mountinfo").ok()?.take(MAX_MOUNTINFO_BYTES).read_to_string(&mut mounts).ok()?;
    Some(Filesystem {
        device: device(&mounts, &format!("{major}:{minor}"))?.to_owned(),
        bytes: stat.blocks().checked_mul(stat.fragment_size())?,
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// What the filesystem with this number was mounted from: proc_pid_mountinfo(5).
fn device<'a>(mounts: &'a str, number: &str) -> Option<&'a str> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
    line.split_once(" - ")?.1.split(' ').nth(1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn this_process_is_counted() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = processes(&[pid], Some(pid));
        let held: Vec<_> = (0..20).map(|_| UnixStream::pair().unwrap()).collect();
        let during = processes(&[pid, i32::MAX], Some(pid));
        // Other tests open and close some of their own.
        assert!(during.sockets.unwrap() >= 40 && during.descriptors >= during.sockets, "{before:?} {during:?}");
        assert_eq!(during.count, Some(2));
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(during.open_files_limit, Some(soft));
        assert_eq!(processes(&[i32::MAX], Some(pid)).open_files_limit, None, "it is somebody else's");
        drop(held);
    }

    #[test]
    fn limits_are_numbers_or_none() {
        assert_eq!(
            soft_open_files("Max processes 1 2 x\nMax open files            1024      4096    files\n"),
            Some(1024)
        );
        for text in ["", "Max open files", "Max open files   unlimited  unlimited files"] {
            assert_eq!(soft_open_files(text), None);
        }
    }

    #[test]
    fn the_device_of_a_filesystem_is_where_it_was_mounted_from() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n30 22 0:29 / /tmp rw - tmpfs tmpfs rw\n";
        assert_eq!(device(mounts, "8:1"), Some("/dev/sda1"));
        assert_eq!(device(mounts, "0:29"), Some("tmpfs"));
        assert_eq!(device(mounts, "8:2"), None);
        assert!(filesystem(Path::new("/proc")).is_some());
    }
}
