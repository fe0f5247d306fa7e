//! Which cgroup hierarchies this host has, from `/proc/self/mountinfo`.
//!
//! A v1 hierarchy carries one or more controllers, or only a name (`name=systemd`); where a controller is
//! mounted is the host's choice. A v2 hierarchy may stand beside them with the controllers that v1 left over
//! ("hybrid"). A mount point may be covered by a later mount and a hierarchy mounted twice, so every
//! candidate is opened and compared with what mountinfo said about it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, major, minor};

use super::error::CgroupError;
use super::file;

/// Longest mountinfo read; a host with leaked mounts has tens of thousands of lines of 100 bytes.
const MAX_MOUNTINFO_BYTES: u64 = 64 << 20;
/// v1 controllers number about a dozen, named hierarchies are rare.
const MAX_HIERARCHIES: usize = 32;

/// How the host uses cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Only v1 hierarchies.
    V1,
    /// v1 hierarchies, and a v2 hierarchy beside them.
    Hybrid,
    /// One v2 hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    label: String,
    controllers: Vec<String>,
    v2: bool,
    mount_point: PathBuf,
    root: OwnedFd,
}

impl Hierarchy {
    /// "unified", or the v1 controllers as the kernel writes them ("cpu,cpuacct", "name=systemd").
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The controllers it carries; on v2 those available at its root. Named hierarchies have none.
    #[must_use]
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Whether this is the v2 hierarchy.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.v2
    }

    /// Host path of its root, for messages and for showing it in a container.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Its root directory (`O_PATH`).
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// "memory:/a/b": how messages name a cgroup of this hierarchy.
    pub(super) fn object(&self, relative: &str) -> String {
        format!("{}:/{relative}", self.label)
    }
}

/// A hierarchy to be used, by its mount point: what [`Hierarchies::from_mounts`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Host path.
    pub mount_point: PathBuf,
    /// v1: its controllers, or "name=…"; `None` for v2.
    pub v1: Option<Vec<String>>,
}

/// All hierarchies of the host, their roots held open. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    all: Arc<Vec<Hierarchy>>,
    version: Version,
    tracking: usize,
}

impl Hierarchies {
    /// Finds the hierarchies of this mount namespace.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`] if there is none; [`CgroupError::Kernel`] if `/proc` is not readable.
    pub fn detect() -> Result<Self, CgroupError> {
        let fail = |errno| CgroupError::kernel("read", "/proc/self/mountinfo".to_owned(), errno);
        let mountinfo = File::open("/proc/self/mountinfo").map_err(|e| fail(errno_of(&e)))?;
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in BufReader::new(mountinfo.take(MAX_MOUNTINFO_BYTES)).split(b'\n') {
            let line = line.map_err(|e| fail(errno_of(&e)))?;
            let Some(candidate) = Candidate::parse(&line) else { continue };
            let known = found.iter().any(|h| candidate.same_hierarchy(h));
            if !known
                && found.len() < MAX_HIERARCHIES
                && let Some(h) = candidate.open()
            {
                found.push(h);
            }
        }
        Self::new(found)
    }

    /// Uses the hierarchies mounted at these places, without looking at mountinfo.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`] if the list is empty; [`CgroupError::Kernel`] if one does not open.
    pub fn from_mounts(mounts: &[Mounted]) -> Result<Self, CgroupError> {
        let open_one = |m: &Mounted| {
            let root = open_root(&m.mount_point).map_err(|errno| {
                CgroupError::kernel("open cgroup hierarchy", m.mount_point.display().to_string(), errno)
            })?;
            Ok(hierarchy(root, m.mount_point.clone(), m.v1.clone()))
        };
        Self::new(mounts.iter().map(open_one).collect::<Result<_, CgroupError>>()?)
    }

    fn new(all: Vec<Hierarchy>) -> Result<Self, CgroupError> {
        let version = match (all.iter().any(|h| h.v2), all.iter().any(|h| !h.v2)) {
            (true, true) => Version::Hybrid,
            (true, false) => Version::V2,
            (false, true) => Version::V1,
            (false, false) => return Err(CgroupError::NoHierarchy),
        };
        // v2 kills and lists a whole subtree at once; a v1 hierarchy that limits nothing disturbs least.
        let tracking = all
            .iter()
            .position(|h| h.v2)
            .or_else(|| all.iter().position(|h| h.controllers.is_empty()))
            .or_else(|| all.iter().position(|h| h.controllers.iter().any(|c| c == "freezer")))
            .unwrap_or(0);
        Ok(Self { all: Arc::new(all), version, tracking })
    }

    /// v1, hybrid or v2.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Each hierarchy, in the order of mountinfo.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.all.iter()
    }

    /// The hierarchy that carries a controller ("memory").
    #[must_use]
    pub fn carrying(&self, controller: &str) -> Option<&Hierarchy> {
        self.position(controller).map(|i| &self.all[i])
    }

    pub(super) fn position(&self, controller: &str) -> Option<usize> {
        self.all.iter().position(|h| h.controllers.iter().any(|c| c == controller))
    }

    /// The number of the v2 hierarchy.
    pub(super) fn unified(&self) -> Option<usize> {
        self.all.iter().position(|h| h.v2)
    }

    /// The number of the hierarchy in which processes are listed, killed and tracked.
    pub(super) fn tracking(&self) -> usize {
        self.tracking
    }

    pub(super) fn get(&self, index: usize) -> &Hierarchy {
        &self.all[index]
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

/// A cgroup mount as mountinfo shows it.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    device: (u64, u64),
    mount_point: PathBuf,
    v1: Option<Vec<String>>,
}

impl Candidate {
    /// A line of mountinfo, if it is about cgroups: see proc_pid_mountinfo(5).
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let v2 = match right.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let super_options = right.nth(1)?;
        let left: Vec<&str> = left.split(' ').collect();
        let (device, mount_point) = (left.get(2)?, left.get(4)?);
        let (major, minor) = device.split_once(':')?;
        Some(Self {
            device: (major.parse().ok()?, minor.parse().ok()?),
            mount_point: PathBuf::from(unescape(mount_point)),
            v1: (!v2).then(|| v1_controllers(super_options)),
        })
    }

    fn same_hierarchy(&self, other: &Hierarchy) -> bool {
        match &self.v1 {
            None => other.v2,
            Some(controllers) => !other.v2 && label(Some(controllers)) == other.label,
        }
    }

    /// Opens it, unless something else is mounted over it.
    fn open(self) -> Option<Hierarchy> {
        let root = open_root(&self.mount_point).ok()?;
        let device = fstat(&root).ok()?.st_dev;
        ((major(device), minor(device)) == self.device).then(|| hierarchy(root, self.mount_point, self.v1))
    }
}

/// What of a v1 hierarchy's superblock options names its controllers.
fn v1_controllers(options: &str) -> Vec<String> {
    const FLAGS: [&str; 8] =
        ["rw", "ro", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "favordynmods", "none"];
    options.split(',').filter(|o| !FLAGS.contains(o) && !o.starts_with("release_agent=")).map(str::to_owned).collect()
}

fn label(v1: Option<&[String]>) -> String {
    v1.map_or_else(|| "unified".to_owned(), |controllers| controllers.join(","))
}

fn hierarchy(root: OwnedFd, mount_point: PathBuf, v1: Option<Vec<String>>) -> Hierarchy {
    let label = label(v1.as_deref());
    let v2 = v1.is_none();
    let controllers = match v1 {
        Some(all) => all.into_iter().filter(|c| !c.starts_with("name=")).collect(),
        None => file::read(&root, "cgroup.controllers")
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
    };
    Hierarchy { label, controllers, v2, mount_point, root }
}

fn open_root(path: &Path) -> nix::Result<OwnedFd> {
    file::retry(|| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()))
}

/// Undoes the octal escapes (`\040`) of mountinfo.
fn unescape(field: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'\\').then(|| octal(bytes.get(at + 1..at + 4)?)).flatten();
        out.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(out)
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0u8, |n, d| {
        let d = d.checked_sub(b'0').filter(|d| *d < 8)?;
        n.checked_mul(8)?.checked_add(d)
    })
}

fn errno_of(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_lines_name_their_controllers() {
        let line = b"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let c = Candidate::parse(line).unwrap();
        assert_eq!(c.v1.unwrap(), ["cpu", "cpuacct"]);
        assert_eq!((c.device, c.mount_point), ((0, 29), PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")));
        let line = b"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd";
        assert_eq!(Candidate::parse(line).unwrap().v1.unwrap(), ["name=systemd"]);
    }

    #[test]
    fn the_v2_line_has_no_controllers() {
        let line = b"41 31 0:38 / /mnt/a\\040b rw,relatime - cgroup2 cgroup2 rw,nsdelegate";
        let c = Candidate::parse(line).unwrap();
        assert_eq!((c.v1, c.mount_point), (None, PathBuf::from("/mnt/a b")));
    }

    #[test]
    fn other_and_broken_lines_are_passed_over() {
        for line in [
            &b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"[..],
            b"",
            b" - cgroup",
            b"1 2 x:y / /a rw - cgroup cgroup rw,cpu",
            b"\xff\xfe - cgroup2 c rw",
            b"1 2 0:1 - cgroup2 c rw",
        ] {
            assert_eq!(Candidate::parse(line), None, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn escapes_are_undone_and_half_ones_kept() {
        assert_eq!(unescape("a\\040b\\134c\\04"), "a b\\c\\04");
        assert_eq!(unescape("\\999\\777"), "\\999\\777");
    }

    fn mounted(dir: &Path, v1: Option<&[&str]>) -> Mounted {
        Mounted { mount_point: dir.to_owned(), v1: v1.map(|c| c.iter().map(|c| (*c).to_owned()).collect()) }
    }

    #[test]
    fn the_version_follows_from_what_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu hugetlb\n").unwrap();
        let (v1, v2) = (mounted(dir.path(), Some(&["memory"])), mounted(dir.path(), None));
        let version = |mounts: &[Mounted]| Hierarchies::from_mounts(mounts).map(|h| h.version());
        assert_eq!(version(std::slice::from_ref(&v1)), Ok(Version::V1));
        assert_eq!(version(std::slice::from_ref(&v2)), Ok(Version::V2));
        assert_eq!(version(&[v1.clone(), v2.clone()]), Ok(Version::Hybrid));
        assert_eq!(version(&[]), Err(CgroupError::NoHierarchy));
        let h = Hierarchies::from_mounts(&[v1, v2]).unwrap();
        assert_eq!(h.carrying("memory").unwrap().label(), "memory");
        assert_eq!(h.carrying("hugetlb").unwrap().label(), "unified");
        assert!(h.carrying("pids").is_none());
        assert_eq!(h.tracking(), 1);
    }

    #[test]
    fn without_v2_a_hierarchy_that_limits_nothing_tracks() {
        let dir = tempfile::tempdir().unwrap();
        let all = [&["memory"][..], &["freezer"], &["name=systemd"]].map(|c| mounted(dir.path(), Some(c)));
        assert_eq!(Hierarchies::from_mounts(&all).unwrap().tracking(), 2);
        assert_eq!(Hierarchies::from_mounts(&all[..2]).unwrap().tracking(), 1);
        assert_eq!(Hierarchies::from_mounts(&all[..1]).unwrap().tracking(), 0);
    }

    #[test]
    fn this_host_is_detected() {
        let h = Hierarchies::detect().unwrap();
        assert!(h.carrying("memory").is_some());
        assert_eq!(h.iter().filter(|h| h.is_v2()).count(), usize::from(h.version() != Version::V1));
    }
}
