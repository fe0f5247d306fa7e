//! File by file on trees of plain files, which take any value and keep it to be looked at: v2 with controllers, v1 with
//! other mounts than this host's. What only a kernel can answer is in `root_tests`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::plan;

mod counters;

/// Plain files in the place of a mounted hierarchy.
struct Fake {
    dir: TempDir,
    v1: Option<Vec<String>>,
}

const V2_FILES: [(&str, &str); 16] = [
    ("cgroup.controllers", "cpu cpuset hugetlb io memory pids\n"),
    ("cgroup.subtree_control", ""),
    ("cgroup.procs", ""),
    ("cgroup.kill", ""),
    ("cpu.weight", "100\n"),
    ("cpu.max", "max 100000\n"),
    ("cpu.max.burst", "0\n"),
    ("cpuset.cpus", "\n"),
    ("cpuset.mems", "\n"),
    ("memory.max", "max\n"),
    ("memory.swap.max", "max\n"),
    ("memory.low", "0\n"),
    ("memory.high", "max\n"),
    ("memory.current", "4096\n"),
    ("pids.max", "max\n"),
    ("hugetlb.2MB.max", "max\n"),
];

const V1_FILES: [(&str, &str); 14] = [
    ("tasks", ""),
    ("cgroup.procs", ""),
    ("cpu.shares", "1024\n"),
    ("cpu.cfs_quota_us", "-1\n"),
    ("cpu.cfs_period_us", "100000\n"),
    ("cpu.cfs_burst_us", "0\n"),
    ("memory.limit_in_bytes", "9223372036854771712\n"),
    ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
    ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
    ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ("pids.max", "max\n"),
    ("hugetlb.2MB.limit_in_bytes", "9223372036854771712\n"),
    ("hugetlb.2MB.rsvd.limit_in_bytes", "9223372036854771712\n"),
    ("devices.allow", ""),
];

impl Fake {
    fn v2() -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap(), v1: None };
        fake.cgroup("");
        fake
    }

    fn v1(controllers: &[&str]) -> Self {
        let v1 = Some(controllers.iter().map(|c| (*c).to_owned()).collect());
        let fake = Self { dir: tempfile::tempdir().unwrap(), v1 };
        fake.cgroup("");
        fake
    }

    /// A cgroup with all its files, as a kernel makes them.
    fn cgroup(&self, relative: &str) {
        let dir = self.path(relative);
        fs::create_dir_all(&dir).unwrap();
        let files = if self.v1.is_some() { &V1_FILES[..] } else { &V2_FILES };
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    fn set(&self, relative: &str, text: &str) {
        fs::write(self.path(relative), text).unwrap();
    }

    fn says(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).unwrap().trim_end().to_owned()
    }

    fn mounted(&self) -> Mounted {
        Mounted { mount_point: self.path(""), v1: self.v1.clone() }
    }
}

fn hierarchies(fakes: &[&Fake]) -> Hierarchies {
    Hierarchies::from_mounts(&fakes.iter().map(|f| f.mounted()).collect::<Vec<_>>()).unwrap()
}

fn limits(f: impl FnOnce(&mut plan::Resources)) -> plan::Resources {
    let mut r = plan::Resources::default();
    f(&mut r);
    r
}

/// A v2 hierarchy and `/pod/ctr` in it.
fn v2_container() -> (Fake, Cgroup) {
    let fake = Fake::v2();
    fake.cgroup("pod");
    fake.cgroup("pod/ctr");
    let cgroup = Cgroup::create(&hierarchies(&[&fake]), "/pod/ctr").unwrap();
    (fake, cgroup)
}

#[test]
fn v2_controllers_are_enabled_above_and_not_inside() {
    let fake = Fake::v2();
    fake.cgroup("pod");
    fake.cgroup("pod/ctr");
    fake.set("cgroup.subtree_control", "cpu cpuset hugetlb io memory pids\n");
    fake.set("pod/cgroup.subtree_control", "cpu memory\n");
    Cgroup::create(&hierarchies(&[&fake]), "/pod/ctr").unwrap();
    assert_eq!(fake.says("cgroup.subtree_control"), "cpu cpuset hugetlb io memory pids");
    assert_eq!(fake.says("pod/cgroup.subtree_control"), "+cpuset +hugetlb +io +pids");
    assert_eq!(fake.says("pod/ctr/cgroup.subtree_control"), "");
}

#[test]
fn v2_enables_only_what_the_host_has() {
    let fake = Fake::v2();
    fake.set("cgroup.controllers", "memory rdma misc pids\n");
    fake.cgroup("ctr");
    Cgroup::create(&hierarchies(&[&fake]), "/ctr").unwrap();
    assert_eq!(fake.says("cgroup.subtree_control"), "+memory +pids");
}

#[test]
fn v2_names_the_cgroup_that_hands_nothing_down() {
    let fake = Fake::v2();
    fake.cgroup("pod/ctr");
    // No cgroup.subtree_control in /pod, as if the kernel said ENOENT for a controller.
    let e = Cgroup::create(&hierarchies(&[&fake]), "/pod/ctr").unwrap_err();
    assert_eq!(e.errno(), Some(Errno::ENOENT));
    assert!(e.to_string().contains("cgroup unified:/pod "), "{e}");
}

#[test]
fn v2_limits_file_by_file() {
    let (fake, cgroup) = v2_container();
    let warnings = cgroup
        .apply(&limits(|r| {
            (r.cpu_shares, r.cpu_quota_us, r.cpu_period_us) = (Some(1024), Some(50_000), Some(200_000));
            r.cpu_burst_us = Some(10_000);
            (r.cpuset_cpus, r.cpuset_mems) = (Some("0-1".to_owned()), Some("0".to_owned()));
            (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(100 << 20), Some(150 << 20));
            r.memory_reservation_bytes = Some(10 << 20);
            r.pids_limit = Some(64);
            r.hugepages = vec![plan::HugepageLimit { page_size: "2MB".to_owned(), limit_bytes: 2 << 20 }];
            r.unified.insert("memory.high".to_owned(), "99614720".to_owned());
        }))
        .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for (name, value) in [
        ("cpu.weight", "100"),
        ("cpu.max", "50000 200000"),
        ("cpu.max.burst", "10000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.max", "104857600"),
        ("memory.swap.max", "52428800"),
        ("memory.low", "10485760"),
        ("memory.high", "99614720"),
        ("pids.max", "64"),
        ("hugetlb.2MB.max", "2097152"),
    ] {
        assert_eq!(fake.says(&format!("pod/ctr/{name}")), value, "{name}");
    }
}

#[test]
fn v2_keeps_the_half_of_cpu_max_that_is_not_given() {
    let (fake, cgroup) = v2_container();
    let cpu_max = |quota, period| {
        cgroup.apply(&limits(|r| (r.cpu_quota_us, r.cpu_period_us) = (quota, period))).unwrap();
        fake.says("pod/ctr/cpu.max")
    };
    assert_eq!(cpu_max(Some(30_000), None), "30000 100000");
    assert_eq!(cpu_max(None, Some(50_000)), "30000 50000");
    assert_eq!(cpu_max(Some(-1), None), "max 50000");
    assert_eq!(cpu_max(Some(0), None), "max 50000");
}

#[test]
fn v2_swap_is_what_is_left_of_both() {
    let (fake, cgroup) = v2_container();
    let apply = |memory, both| cgroup.apply(&limits(|r| (r.memory_limit_bytes, r.memory_swap_bytes) = (memory, both)));
    let now = || (fake.says("pod/ctr/memory.max"), fake.says("pod/ctr/memory.swap.max"));
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    apply(Some(1000 << 10), Some(1000 << 10)).unwrap();
    assert_eq!(now(), pair("1024000", "0"));
    apply(None, Some(1_024_001)).unwrap();
    assert_eq!(now(), pair("1024000", "1"));
    apply(Some(8192), Some(-1)).unwrap();
    assert_eq!(now(), pair("8192", "max"));
    apply(Some(8192), None).unwrap();
    assert_eq!(now(), pair("8192", "max"));
    apply(Some(-1), None).unwrap();
    assert_eq!(now(), pair("max", "max"));
    for (memory, both) in [(None, Some(8192)), (Some(-1), Some(8192)), (Some(8192), Some(8191)), (None, Some(-2))] {
        assert!(matches!(apply(memory, both), Err(CgroupError::Value { .. })), "{memory:?} {both:?}");
    }
    assert_eq!(now(), pair("max", "max"));
}

#[test]
fn v2_memory_in_use_is_not_cut_off() {
    let (fake, cgroup) = v2_container();
    fake.set("pod/ctr/memory.current", "1000000\n");
    fake.set("pod/ctr/memory.reclaim", "");
    let e = cgroup.apply(&limits(|r| (r.cpu_shares, r.memory_limit_bytes) = (Some(2), Some(400_000)))).unwrap_err();
    let told = CgroupError::BelowUsage { path: "/pod/ctr".to_owned(), limit_bytes: 400_000, usage_bytes: 1_000_000 };
    assert_eq!(e, told);
    // It tried to give caches back first.
    assert_eq!(fake.says("pod/ctr/memory.reclaim"), "600000");
    assert_eq!(fake.says("pod/ctr/memory.max"), "max");
    assert_eq!(fake.says("pod/ctr/cpu.weight"), "100");
}

#[test]
fn v2_without_swap_counting_warns() {
    let (fake, cgroup) = v2_container();
    fs::remove_file(fake.path("pod/ctr/memory.swap.max")).unwrap();
    let apply = |both| cgroup.apply(&limits(|r| (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(8192), both)));
    assert_eq!(apply(Some(8192)).unwrap().len(), 0);
    assert!(apply(Some(16384)).unwrap()[0].contains("swap"));
}

#[test]
fn v2_hostile_unified_files_are_refused() {
    let (fake, cgroup) = v2_container();
    let apply =
        |name: &str, value: &str| cgroup.apply(&limits(|r| drop(r.unified.insert(name.to_owned(), value.to_owned()))));
    let long = format!("memory.{}", "x".repeat(200));
    for name in [
        "",
        ".",
        "..",
        "/",
        "memory.high/..",
        "../memory.high",
        "../../cgroup.procs",
        "cgroup.procs",
        "cgroup.kill",
        "cgroup.freeze",
        "cgroup.subtree_control",
        "cgroup.type",
        "memory",
        "memory.",
        ".memory",
        "memory..high",
        "Memory.high",
        "memory.high\n",
        "memory.h\0igh",
        "tasks",
        "rdma.max",
        &long,
    ] {
        assert!(matches!(apply(name, "1"), Err(CgroupError::Value { .. })), "{name:?}");
    }
    for value in ["1\n2", "\0", &"1".repeat(5000)] {
        assert!(matches!(apply("memory.high", value), Err(CgroupError::Value { .. })), "{value:?}");
    }
    assert_eq!(apply("memory.nonsense", "1").unwrap_err().errno(), Some(Errno::ENOENT));
    assert_eq!(fake.says("pod/ctr/memory.high"), "max");
    // A controller that is not handed down to this cgroup.
    fake.set("pod/ctr/cgroup.controllers", "cpu pids\n");
    assert!(apply("memory.high", "1").unwrap_err().to_string().contains("not enabled"));
}

#[test]
fn v2_a_refused_file_puts_the_others_back() {
    let (fake, cgroup) = v2_container();
    let e = cgroup.apply(&limits(|r| {
        (r.cpu_shares, r.pids_limit, r.cpuset_cpus) = (Some(4096), Some(9), Some("1".to_owned()));
        r.unified.insert("memory.high".to_owned(), "5".to_owned());
        r.unified.insert("memory.zzz".to_owned(), "5".to_owned());
    }));
    assert!(e.unwrap_err().to_string().contains("memory.zzz of cgroup unified:/pod/ctr: ENOENT"));
    for (name, value) in [("cpu.weight", "100"), ("pids.max", "max"), ("cpuset.cpus", ""), ("memory.high", "max")] {
        assert_eq!(fake.says(&format!("pod/ctr/{name}")), value, "{name}");
    }
}

#[test]
fn v2_kills_by_one_write_and_counts_oom_kills() {
    let (fake, cgroup) = v2_container();
    assert_eq!(cgroup.oom_kills(), 0);
    fake.set("pod/ctr/memory.events", "low 0\nhigh 0\nmax 7\noom 4\noom_kill 3\noom_group_kill 1\n");
    assert_eq!(cgroup.oom_kills(), 3);
    cgroup.kill().unwrap();
    assert_eq!(fake.says("pod/ctr/cgroup.kill"), "1");
    assert!(cgroup.entry().unwrap().unified().is_some());
    let tracker = cgroup.tracker("exec").unwrap();
    assert!(fake.path("pod/ctr/exec").is_dir());
    tracker.remove().unwrap();
    assert!(!fake.path("pod/ctr/exec").exists());
}

#[test]
fn v2_device_rules_are_not_accepted_silently() {
    let (_fake, cgroup) = v2_container();
    let deny = plan::DeviceRule { allow: false, kind: "a".to_owned(), major: -1, minor: -1, access: "rwm".to_owned() };
    assert!(cgroup.allow_devices(&[]).unwrap().is_empty());
    assert!(cgroup.allow_devices(&[deny]).unwrap()[0].contains("not enforced"));
}

#[test]
fn v1_limits_file_by_file_on_co_mounted_controllers() {
    let both = Fake::v1(&["cpu", "cpuacct"]);
    let rest = Fake::v1(&["memory", "pids", "hugetlb"]);
    for fake in [&both, &rest] {
        fake.cgroup("pod");
        fake.cgroup("pod/ctr");
    }
    let cgroup = Cgroup::create(&hierarchies(&[&both, &rest]), "/pod/ctr").unwrap();
    assert_eq!(cgroup.hierarchies().version(), Version::V1);
    let warnings = cgroup
        .apply(&limits(|r| {
            (r.cpu_shares, r.cpu_quota_us, r.cpu_period_us) = (Some(300), Some(50_000), Some(200_000));
            r.cpu_burst_us = Some(7);
            (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(8192), Some(16384));
            r.memory_reservation_bytes = Some(4096);
            r.pids_limit = Some(64);
            r.hugepages = vec![plan::HugepageLimit { page_size: "2MB".to_owned(), limit_bytes: 2 << 20 }];
        }))
        .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for (name, value) in [
        ("cpu.shares", "300"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_period_us", "200000"),
        ("cpu.cfs_burst_us", "7"),
    ] {
        assert_eq!(both.says(&format!("pod/ctr/{name}")), value, "{name}");
    }
    for (name, value) in [
        ("memory.limit_in_bytes", "8192"),
        ("memory.memsw.limit_in_bytes", "16384"),
        ("memory.soft_limit_in_bytes", "4096"),
        ("pids.max", "64"),
        ("hugetlb.2MB.limit_in_bytes", "2097152"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "2097152"),
    ] {
        assert_eq!(rest.says(&format!("pod/ctr/{name}")), value, "{name}");
    }
    assert_eq!(cgroup.oom_kills(), 2);
    cgroup.entry().unwrap().enter().unwrap();
    assert_eq!((both.says("pod/ctr/tasks"), rest.says("pod/ctr/tasks")), ("0".to_owned(), "0".to_owned()));
}

#[test]
fn v1_absent_controllers_are_told() {
    let fake = Fake::v1(&["cpuacct"]);
    fake.cgroup("ctr");
    let cgroup = Cgroup::create(&hierarchies(&[&fake]), "/ctr").unwrap();
    let warnings = cgroup
        .apply(&limits(|r| {
            (r.cpu_shares, r.memory_limit_bytes, r.pids_limit) = (Some(2), Some(8192), Some(5));
            r.cpuset_cpus = Some("0".to_owned());
            r.hugepages = vec![plan::HugepageLimit { page_size: "2MB".to_owned(), limit_bytes: 0 }];
        }))
        .unwrap();
    let told = |name: &str| warnings.iter().any(|w| w.contains(&format!("the {name} controller")));
    for name in ["cpu", "memory", "pids", "cpuset", "hugetlb"] {
        assert!(told(name), "{name}: {warnings:?}");
    }
    assert!(cgroup.apply(&plan::Resources::default()).unwrap().is_empty());
    let unified = cgroup.apply(&limits(|r| drop(r.unified.insert("memory.high".to_owned(), "1".to_owned()))));
    assert!(unified.unwrap_err().to_string().contains("no cgroup v2 hierarchy"));
    assert_eq!(cgroup.oom_kills(), 0);
}

#[test]
fn v1_without_swap_counting_limits_memory_alone() {
    let fake = Fake::v1(&["memory"]);
    fake.cgroup("ctr");
    fs::remove_file(fake.path("ctr/memory.memsw.limit_in_bytes")).unwrap();
    let cgroup = Cgroup::create(&hierarchies(&[&fake]), "/ctr").unwrap();
    let warnings =
        cgroup.apply(&limits(|r| (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(8192), Some(8192)))).unwrap();
    assert!(warnings[0].contains("swap"), "{warnings:?}");
    assert_eq!(fake.says("ctr/memory.limit_in_bytes"), "8192");
}

#[test]
fn v1_cpusets_are_filled_from_the_top() {
    let fake = Fake::v1(&["cpuset"]);
    for path in ["", "a", "a/b", "a/b/c"] {
        fake.cgroup(path);
        for name in ["cpuset.cpus", "cpuset.mems"] {
            fake.set(format!("{path}/{name}").trim_start_matches('/'), "\n");
        }
    }
    let h = hierarchies(&[&fake]);
    let e = Cgroup::create(&h, "/a/b/c").unwrap_err();
    assert_eq!(e.errno(), Some(Errno::ENODATA), "{e}");
    fake.set("cpuset.cpus", "0-3\n");
    fake.set("cpuset.mems", "0\n");
    fake.set("a/cpuset.cpus", "1-2\n");
    Cgroup::create(&h, "/a/b/c").unwrap();
    let cpus = |path: &str| fake.says(&format!("{path}/cpuset.cpus"));
    let mems = |path: &str| fake.says(&format!("{path}/cpuset.mems"));
    assert_eq!((cpus("a"), cpus("a/b"), cpus("a/b/c")), ("1-2".into(), "1-2".into(), "1-2".into()));
    assert_eq!((mems("a"), mems("a/b"), mems("a/b/c")), ("0".into(), "0".into(), "0".into()));
}

#[test]
fn v1_alone_kills_by_signal_and_tracks_where_nothing_is_limited() {
    let memory = Fake::v1(&["memory"]);
    let named = Fake::v1(&["name=systemd"]);
    for fake in [&memory, &named] {
        fake.cgroup("ctr");
    }
    let cgroup = Cgroup::create(&hierarchies(&[&memory, &named]), "/ctr").unwrap();
    assert_eq!(cgroup.places().map(|p| p.0).collect::<Vec<_>>(), ["memory", "systemd"]);
    let tracker = cgroup.tracker("exec").unwrap();
    assert!(named.path("ctr/exec").is_dir() && !memory.path("ctr/exec").exists());
    named.cgroup("ctr/exec");
    tracker.entry().unwrap().enter().unwrap();
    assert_eq!((named.says("ctr/exec/tasks"), memory.says("ctr/tasks")), ("0".to_owned(), "0".to_owned()));
    assert_eq!(named.says("ctr/tasks"), "");
    let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    named.set("ctr/exec/cgroup.procs", &format!("{}\n0\n", child.id()));
    assert_eq!(cgroup.pids().unwrap(), [i32::try_from(child.id()).unwrap()]);
    cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn values_that_make_no_sense_are_refused_before_anything_is_written() {
    let (fake, cgroup) = v2_container();
    for bad in [
        limits(|r| r.cpu_shares = Some(-1)),
        limits(|r| r.cpu_quota_us = Some(-2)),
        limits(|r| r.cpu_period_us = Some(-1)),
        limits(|r| r.cpu_burst_us = Some(i64::MIN)),
        limits(|r| r.memory_limit_bytes = Some(-2)),
        limits(|r| r.pids_limit = Some(-2)),
        limits(|r| r.cpuset_cpus = Some("0\n1".to_owned())),
        limits(|r| r.cpuset_cpus = Some("../x".to_owned())),
        limits(|r| r.cpuset_mems = Some("0,".repeat(3000))),
        limits(|r| (r.cpu_shares, r.memory_limit_bytes, r.memory_swap_bytes) = (Some(4), Some(2), Some(1))),
    ] {
        assert!(matches!(cgroup.apply(&bad), Err(CgroupError::Value { .. })), "{bad:?}");
    }
    assert_eq!(fake.says("pod/ctr/cpu.weight"), "100");
}

#[test]
fn a_failed_create_takes_back_what_it_made() {
    let good = Fake::v1(&["memory"]);
    let bad = Fake::v1(&["pids"]);
    fs::write(bad.path("pod"), "a file in the way").unwrap();
    let e = Cgroup::create(&hierarchies(&[&good, &bad]), "/pod/ctr").unwrap_err();
    assert!(e.to_string().contains("make cgroup pids:/pod/ctr: ENOTDIR"), "{e}");
    assert!(!good.path("pod").exists());
}
