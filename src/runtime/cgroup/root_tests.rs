//! On the real hierarchies of this host, as root, in cgroups of our own that are removed again.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::plan;

/// A cgroup below `/aril-test-<pid>-<name>`; everything below that is killed and removed at the end.
struct Bench {
    h: Hierarchies,
    top: String,
}

impl Bench {
    fn new(name: &str) -> Self {
        Self { h: Hierarchies::detect().unwrap(), top: format!("/aril-test-{}-{name}", std::process::id()) }
    }

    fn create(&self, below: &str) -> Cgroup {
        Cgroup::create(&self.h, &format!("{}{below}", self.top)).unwrap()
    }

    fn exists(&self, label: &str, below: &str) -> bool {
        let h = self.h.iter().find(|h| h.label() == label).unwrap();
        h.mount_point().join(&self.top[1..]).join(below).exists()
    }

    fn nothing_left(&self) {
        for h in self.h.iter() {
            let path = h.mount_point().join(&self.top[1..]);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        sweep(&self.h, &self.top, SWEEP_PATIENCE).ok();
    }
}

/// A process born inside on v1: its parent, a thread of ours that ends at once, entered by itself. On v2 threads
/// cannot be elsewhere than their process, so there the child is moved, before it becomes `program`.
fn inside(cgroup: &Cgroup, program: &[&str]) -> Child {
    let mut child = inside_v1(cgroup, &[&["/bin/sh", "-c", "read -r go && exec \"$@\"", "sh"], program].concat());
    if let Some(unified) = cgroup.hierarchies.unified() {
        file::write(cgroup.dir(unified).unwrap(), "cgroup.procs", &child.id().to_string()).unwrap();
    }
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    child.stdin = Some(stdin);
    child
}

fn inside_v1(cgroup: &Cgroup, program: &[&str]) -> Child {
    std::thread::scope(|scope| {
        let born = scope.spawn(|| {
            cgroup.entry().unwrap().enter().unwrap();
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            command.spawn().unwrap()
        });
        born.join().unwrap()
    })
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn remove_soon(cgroup: &Cgroup) {
    eventually("the cgroup stays busy", || match cgroup.remove() {
        Ok(()) => true,
        Err(CgroupError::Busy { .. }) => false,
        Err(e) => panic!("{e}"),
    });
}

#[test]
fn made_everywhere_entered_killed_and_removed() {
    let bench = Bench::new("life");
    let cgroup = bench.create("/pod/ctr");
    for h in bench.h.iter() {
        assert!(bench.exists(h.label(), "pod/ctr"), "{}", h.label());
    }
    let mut child = inside(&cgroup, &["/bin/sleep", "1000"]);
    let pid = i32::try_from(child.id()).unwrap();
    let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in membership.lines() {
        assert!(line.ends_with(cgroup.path()), "{line}");
    }
    assert_eq!(cgroup.pids().unwrap(), [pid]);
    assert!(matches!(cgroup.remove(), Err(CgroupError::Busy { .. })));
    cgroup.kill().unwrap();
    child.wait().unwrap();
    remove_soon(&cgroup);
    bench.nothing_left();
    // Once more is no error.
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(cgroup.pids().unwrap().is_empty());
}

/// What a control file of a cgroup says.
fn says(cgroup: &Cgroup, controller: &str, name: &str) -> String {
    file::read(cgroup.directory(controller).unwrap(), name).unwrap().trim_end().to_owned()
}

fn limits(f: impl FnOnce(&mut plan::Resources)) -> plan::Resources {
    let mut r = plan::Resources::default();
    f(&mut r);
    r
}

#[test]
fn limits_reach_the_kernel() {
    let bench = Bench::new("limits");
    let cgroup = bench.create("/ctr");
    let warnings = cgroup
        .apply(&limits(|r| {
            r.cpu_shares = Some(512);
            r.cpu_quota_us = Some(50_000);
            r.cpu_period_us = Some(200_000);
            r.cpuset_cpus = Some("0".to_owned());
            r.cpuset_mems = Some("0".to_owned());
            r.memory_limit_bytes = Some(64 << 20);
            r.memory_swap_bytes = Some(128 << 20);
            r.memory_reservation_bytes = Some(32 << 20);
            r.pids_limit = Some(77);
        }))
        .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for (controller, name, value) in [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "200000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("pids", "pids.max", "77"),
    ] {
        assert_eq!(says(&cgroup, controller, name), value, "{name}");
    }
    cgroup.apply(&limits(|r| (r.pids_limit, r.cpu_quota_us) = (Some(-1), Some(-1)))).unwrap();
    assert_eq!(says(&cgroup, "pids", "pids.max"), "max");
    assert_eq!(says(&cgroup, "cpu", "cpu.cfs_quota_us"), "-1");
    assert_eq!(says(&cgroup, "cpu", "cpu.shares"), "512");
    cgroup.remove().unwrap();
    bench.nothing_left();
}

#[test]
fn memory_and_swap_grow_and_shrink_together() {
    let bench = Bench::new("memsw");
    let cgroup = bench.create("/ctr");
    let both =
        |memory: i64, swap: i64| limits(|r| (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(memory), Some(swap)));
    for (memory, swap) in [(64, 64), (256, 512), (512, 512), (32, 128), (128, 128), (16, 16)] {
        cgroup.apply(&both(memory << 20, swap << 20)).unwrap();
        assert_eq!(says(&cgroup, "memory", "memory.limit_in_bytes"), (memory << 20).to_string());
        assert_eq!(says(&cgroup, "memory", "memory.memsw.limit_in_bytes"), (swap << 20).to_string());
    }
    let unlimited = "9223372036854771712";
    cgroup.apply(&limits(|r| r.memory_limit_bytes = Some(-1))).unwrap();
    assert_eq!(says(&cgroup, "memory", "memory.limit_in_bytes"), unlimited);
    assert_eq!(says(&cgroup, "memory", "memory.memsw.limit_in_bytes"), unlimited);
    // Memory alone above memory plus swap: refused, and nothing changed.
    cgroup.apply(&both(16 << 20, 16 << 20)).unwrap();
    let e = cgroup.apply(&limits(|r| (r.pids_limit, r.memory_limit_bytes) = (Some(5), Some(32 << 20)))).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::EINVAL));
    assert!(e.to_string().contains("memory.limit_in_bytes") && e.to_string().contains("EINVAL"), "{e}");
    assert_eq!(says(&cgroup, "memory", "memory.limit_in_bytes"), (16 << 20).to_string());
    cgroup.remove().unwrap();
}

#[test]
fn a_refused_limit_leaves_all_as_they_were() {
    let bench = Bench::new("undo");
    let cgroup = bench.create("/ctr");
    let first = limits(|r| {
        (r.cpu_shares, r.cpu_quota_us, r.cpu_period_us) = (Some(300), Some(20_000), Some(100_000));
        (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(64 << 20), Some(64 << 20));
        r.cpuset_cpus = Some("0".to_owned());
    });
    cgroup.apply(&first).unwrap();
    let files = [
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("cpuset", "cpuset.cpus"),
        ("pids", "pids.max"),
    ];
    let before = files.map(|(c, f)| says(&cgroup, c, f));
    // Everything is possible but the last: more pids than the kernel has.
    let e = cgroup
        .apply(&limits(|r| {
            (r.cpu_shares, r.cpu_quota_us, r.cpu_period_us) = (Some(400), Some(40_000), Some(50_000));
            (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(128 << 20), Some(128 << 20));
            r.cpuset_cpus = Some("0-1".to_owned());
            r.pids_limit = Some(i64::MAX);
        }))
        .unwrap_err();
    assert_eq!(e.errno(), Some(Errno::EINVAL), "{e}");
    assert_eq!(files.map(|(c, f)| says(&cgroup, c, f)), before);
    // A CPU the machine does not have.
    let e = cgroup.apply(&limits(|r| r.cpuset_cpus = Some("5000".to_owned()))).unwrap_err();
    assert!(e.to_string().contains("choose from those"), "{e}");
    cgroup.remove().unwrap();
}

#[test]
fn memory_in_use_is_not_cut_off() {
    let bench = Bench::new("below");
    let cgroup = bench.create("/ctr");
    // A shell that holds 20 MB in a variable, and says when.
    let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo; read -r y; echo ${#x}";
    let mut child = inside(&cgroup, &["/bin/sh", "-c", script]);
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut out, &mut [0]).unwrap();
    let e = cgroup.apply(&limits(|r| {
        (r.memory_limit_bytes, r.memory_swap_bytes) = (Some(1 << 20), Some(1 << 20));
    }));
    let e = e.unwrap_err();
    assert_eq!(e.errno(), Some(Errno::EBUSY), "{e}");
    assert!(e.to_string().contains("higher limit"), "{e}");
    assert_eq!(says(&cgroup, "memory", "memory.limit_in_bytes"), "9223372036854771712");
    assert_eq!(cgroup.oom_kills(), 0);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().code().is_some());
    remove_soon(&cgroup);
}

#[test]
fn too_many_pids_are_refused_by_the_kernel() {
    let bench = Bench::new("pids");
    let cgroup = bench.create("/ctr");
    cgroup.apply(&limits(|r| r.pids_limit = Some(2))).unwrap();
    let mut child = inside(&cgroup, &["/bin/sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000 & wait"]);
    // The shell is one, so the second sleep cannot be born; a shell that cannot fork ends.
    child.wait().unwrap();
    assert!(says(&cgroup, "pids", "pids.events").trim() != "max 0");
    cgroup.kill().unwrap();
    remove_soon(&cgroup);
}

#[test]
fn an_oom_kill_is_counted() {
    let bench = Bench::new("oom");
    let cgroup = bench.create("/ctr");
    assert_eq!(cgroup.oom_kills(), 0);
    let both = Some(4 << 20);
    cgroup.apply(&limits(|r| (r.memory_limit_bytes, r.memory_swap_bytes) = (both, both))).unwrap();
    let mut child = inside(&cgroup, &["/bin/sh", "-c", "x=$(head -c 50000000 /dev/zero | tr '\\0' x)"]);
    child.wait().unwrap();
    assert!(cgroup.oom_kills() >= 1);
    remove_soon(&cgroup);
}

#[test]
fn hugepages_sit_where_their_controller_is() {
    let bench = Bench::new("huge");
    let cgroup = bench.create("/pod/ctr");
    let page = |page_size: &str| plan::HugepageLimit { page_size: page_size.to_owned(), limit_bytes: 4 << 20 };
    let Some(h) = bench.h.carrying("hugetlb") else {
        let warnings = cgroup.apply(&limits(|r| r.hugepages = vec![page("2MB")])).unwrap();
        assert!(warnings[0].contains("hugetlb"), "{warnings:?}");
        return;
    };
    let name = if h.is_v2() { "hugetlb.2MB.max" } else { "hugetlb.2MB.limit_in_bytes" };
    assert!(cgroup.apply(&limits(|r| r.hugepages = vec![page("2MB")])).unwrap().is_empty());
    assert_eq!(says(&cgroup, "hugetlb", name), (4 << 20).to_string());
    let warnings = cgroup.apply(&limits(|r| r.hugepages = vec![page("7MB")])).unwrap();
    assert!(warnings[0].contains("7MB"), "{warnings:?}");
    for bad in ["", "MB", "2", "2mb", "2TB", "../2MB", "2MB.max\n", "-2MB"] {
        assert!(cgroup.apply(&limits(|r| r.hugepages = vec![page(bad)])).is_err(), "{bad:?}");
    }
    // The container's own processes do not stand in the way.
    let mut child = inside(&cgroup, &["/bin/sleep", "1000"]);
    cgroup.apply(&limits(|r| r.hugepages = vec![page("2MB")])).unwrap();
    cgroup.kill().unwrap();
    child.wait().unwrap();
    remove_soon(&cgroup);
    bench.nothing_left();
}

#[test]
fn device_rules_take_effect() {
    let bench = Bench::new("devices");
    let cgroup = bench.create("/ctr");
    let rule = |allow, kind: &str, major, minor, access: &str| plan::DeviceRule {
        allow,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    let warnings = cgroup
        .allow_devices(&[
            rule(false, "a", -1, -1, "rwm"),
            rule(true, "c", -1, -1, "m"),
            rule(true, "c", 1, 3, "rwm"),
            rule(true, "c", 136, -1, "rw"),
        ])
        .unwrap();
    if bench.h.carrying("devices").is_none() {
        assert!(warnings[0].contains("not enforced"));
        return;
    }
    assert_eq!(says(&cgroup, "devices", "devices.list"), "c *:* m\nc 1:3 rwm\nc 136:* rw");
    let status = |file: &str| inside(&cgroup, &["/bin/sh", "-c", &format!("true < {file}")]).wait().unwrap().code();
    assert_eq!(status("/dev/null"), Some(0));
    assert_ne!(status("/dev/zero"), Some(0));
    remove_soon(&cgroup);
}

#[test]
fn a_tree_is_killed_and_removed_as_a_whole() {
    let bench = Bench::new("tree");
    let cgroup = bench.create("/ctr");
    let inner = bench.create("/ctr/a/b");
    let script = "sleep 1000 & (sleep 1000 & sleep 1000) & wait";
    let mut children = [inside(&cgroup, &["/bin/sh", "-c", script]), inside(&inner, &["/bin/sh", "-c", script])];
    eventually("the sleepers do not start", || cgroup.pids().unwrap().len() >= 8);
    assert!(inner.pids().unwrap().len() >= 4);
    assert!(matches!(cgroup.remove(), Err(CgroupError::Busy { .. })));
    cgroup.kill().unwrap();
    for child in &mut children {
        child.wait().unwrap();
    }
    remove_soon(&cgroup);
    bench.nothing_left();
}

#[test]
fn without_cgroup_kill_a_tree_is_killed_too() {
    let bench = Bench::new("slow");
    let cgroup = bench.create("/ctr");
    // Children that make children for as long as they live.
    let script = "while :; do sleep 0.01 & sleep 0.01 & wait; done";
    let mut children = [(); 3].map(|()| inside(&cgroup, &["/bin/sh", "-c", script]));
    std::thread::sleep(Duration::from_millis(30));
    cgroup.kill_one_by_one(bench.h.tracking()).unwrap();
    for child in &mut children {
        child.wait().unwrap();
    }
    remove_soon(&cgroup);
}

#[test]
fn a_tracker_holds_one_session() {
    let bench = Bench::new("track");
    let cgroup = bench.create("/ctr");
    let mut workload = inside(&cgroup, &["/bin/sleep", "1000"]);
    let tracker = cgroup.tracker("exec-1").unwrap();
    let mut session = inside(&tracker, &["/bin/sleep", "1000"]);
    let membership = std::fs::read_to_string(format!("/proc/{}/cgroup", session.id())).unwrap();
    let tracking = bench.h.get(bench.h.tracking());
    for line in membership.lines() {
        let here = line.starts_with("0::") == tracking.is_v2() && (tracking.is_v2() || line.contains(tracking.label()));
        let path = if here { tracker.path() } else { cgroup.path() };
        assert!(line.ends_with(path), "{line}");
    }
    assert_eq!(cgroup.pids().unwrap().len(), 2);
    assert_eq!(tracker.pids().unwrap().len(), 1);
    tracker.kill().unwrap();
    session.wait().unwrap();
    remove_soon(&tracker);
    assert!(workload.try_wait().unwrap().is_none());
    // A tracker forgotten is removed with the container's.
    cgroup.tracker("exec-2").unwrap();
    cgroup.kill().unwrap();
    workload.wait().unwrap();
    remove_soon(&cgroup);
    bench.nothing_left();
}

#[test]
fn of_the_cgroups_above_only_those_made_are_removed_with_the_last() {
    let bench = Bench::new("made");
    // Somebody made the pods' cgroup in one hierarchy and not in the others.
    let theirs = bench.h.get(0).mount_point().join(&bench.top[1..]);
    std::fs::create_dir(&theirs).unwrap();
    let first = bench.create("/pod/ctr");
    let second = bench.create("/pod/other");
    first.remove().unwrap();
    let label = bench.h.get(1).label();
    assert!(bench.exists(label, "pod/other") && !bench.exists(label, "pod/ctr"));
    // The second found everything made, perhaps in another process, and still is the one that cleans up.
    Cgroup::open(&bench.h, second.path()).unwrap().remove().unwrap();
    assert!(theirs.exists() && !theirs.join("pod").exists());
    assert!(!bench.exists(label, ""));
    std::fs::remove_dir(&theirs).unwrap();
    bench.nothing_left();
}

#[test]
fn neighbours_that_come_and_go_do_not_disturb_each_other() {
    let bench = Bench::new("race");
    std::thread::scope(|scope| {
        for n in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for _ in 0..25 {
                    bench.create(&format!("/pod/{n}")).remove().unwrap();
                }
            });
        }
    });
    bench.nothing_left();
}

#[test]
fn a_record_is_swept() {
    let bench = Bench::new("sweep");
    let (first, second) = (format!("{}/pod/a", bench.top), format!("{}/pod/b", bench.top));
    let mut record = Cgroup::record(&bench.h, &first).unwrap();
    let a = Cgroup::create(&bench.h, &first).unwrap();
    record += "\n";
    record += &Cgroup::record(&bench.h, &second).unwrap();
    let b = Cgroup::create(&bench.h, &second).unwrap();
    // One that was written down and never made.
    record += &format!("\n{}/pod/c\n", bench.top);
    let mut children = [inside(&a, &["/bin/sleep", "1000"]), inside(&b, &["/bin/sleep", "1000"])];
    sweep(&bench.h, &record, SWEEP_PATIENCE).unwrap();
    for child in &mut children {
        child.wait().unwrap();
    }
    bench.nothing_left();
    sweep(&bench.h, &record, SWEEP_PATIENCE).unwrap();
    for bad in ["/", "relative", "/..", "/a\tb"] {
        assert!(sweep(&bench.h, bad, SWEEP_PATIENCE).is_err(), "{bad:?}");
    }
}

#[test]
fn what_is_gone_is_told_by_name() {
    let bench = Bench::new("gone");
    let path = format!("{}/ctr", bench.top);
    assert_eq!(Cgroup::open(&bench.h, &path).unwrap_err().errno(), Some(Errno::ENOENT));
    let cgroup = bench.create("/ctr");
    Cgroup::open(&bench.h, &path).unwrap().remove().unwrap();
    let e = cgroup.apply(&limits(|r| r.pids_limit = Some(5))).unwrap_err();
    assert!(e.to_string().contains("pids.max of cgroup pids:/aril-test-"), "{e}");
    assert!(cgroup.entry().is_err());
    cgroup.kill().unwrap();
    assert!(cgroup.pids().unwrap().is_empty());
    cgroup.remove().unwrap();
    for bad in ["", "/", "../x", "/a/../b", "/cgroup.procs", "x"] {
        assert!(matches!(Cgroup::create(&bench.h, bad), Err(CgroupError::Path { .. })), "{bad:?}");
        assert!(matches!(Cgroup::open(&bench.h, bad), Err(CgroupError::Path { .. })), "{bad:?}");
    }
    assert!(matches!(cgroup.signal_all(0), Err(CgroupError::Value { .. })));
    sweep(&bench.h, &bench.top, SWEEP_PATIENCE).unwrap();
    bench.nothing_left();
}

#[test]
fn strays_in_one_hierarchy_are_killed_too() {
    let bench = Bench::new("stray");
    let cgroup = bench.create("/ctr");
    // In all v1 hierarchies, but not where processes are tracked.
    let mut child = inside_v1(&cgroup, &["/bin/sleep", "1000"]);
    cgroup.kill_everywhere().unwrap();
    child.wait().unwrap();
    remove_soon(&cgroup);
    bench.nothing_left();
}

/// Played twice: by the test, and as a process of its own that the test starts, with the cgroup's path.
#[test]
fn a_process_enters_every_hierarchy_by_itself() {
    const PATH: &str = "ARIL_TEST_ENTER";
    if let Ok(path) = std::env::var(PATH) {
        let cgroup = Cgroup::open(&Hierarchies::detect().unwrap(), &path).unwrap();
        cgroup.entry().unwrap().enter_all().unwrap();
        // Only this thread on v1, as `enter` says.
        for line in std::fs::read_to_string("/proc/thread-self/cgroup").unwrap().lines() {
            assert!(line.ends_with(&path), "{line}");
        }
        return;
    }
    let bench = Bench::new("self");
    let cgroup = bench.create("/ctr");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "runtime::cgroup::root_tests::a_process_enters_every_hierarchy_by_itself"])
        .env(PATH, cgroup.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    remove_soon(&cgroup);
    bench.nothing_left();
}

/// The v2 hierarchy of this host, taken as the only one: what it carries is little, but the kernel's rules are all there.
fn v2_only() -> Option<Hierarchies> {
    let unified = Hierarchies::detect().unwrap().iter().find(|h| h.is_v2())?.mount_point().to_owned();
    let h = Hierarchies::from_mounts(&[Mounted { mount_point: unified, v1: None }]).unwrap();
    (!h.get(0).controllers().is_empty()).then_some(h)
}

#[test]
fn on_real_v2_controllers_come_from_above_and_processes_forbid_them() {
    let Some(h) = v2_only() else { return };
    let bench = Bench { h: h.clone(), top: format!("/aril-test-{}-v2", std::process::id()) };
    let controller = h.get(0).controllers()[0].clone();
    let cgroup = bench.create("/pod/ctr");
    assert!(says(&cgroup, &controller, "cgroup.controllers").contains(&controller));
    assert_eq!(says(&cgroup, &controller, "cgroup.subtree_control"), "");
    // A cgroup with processes cannot be a parent, and is named.
    let busy = bench.create("/busy");
    let mut child = inside(&busy, &["/bin/sleep", "1000"]);
    let e = Cgroup::create(&h, &format!("{}/busy/ctr", bench.top)).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::EBUSY));
    assert!(e.to_string().contains(&format!("unified:{}/busy ", bench.top)), "{e}");
    assert!(e.to_string().contains("processes of its own"), "{e}");
    assert!(!bench.exists("unified", "busy/ctr"));
    // Trackers below one with processes are possible all the same: they need no controllers.
    let tracker = busy.tracker("exec").unwrap();
    let mut session = inside(&tracker, &["/bin/sleep", "1000"]);
    busy.kill().unwrap();
    child.wait().unwrap();
    session.wait().unwrap();
    remove_soon(&busy);
    cgroup.remove().unwrap();
    bench.nothing_left();
}

#[test]
fn beside_v1_a_parent_with_processes_costs_only_the_v2_limits() {
    let bench = Bench::new("beside");
    if bench.h.version() != Version::Hybrid || !bench.h.carrying("hugetlb").is_some_and(Hierarchy::is_v2) {
        return;
    }
    let parent = bench.create("/pod");
    let mut child = inside(&parent, &["/bin/sleep", "1000"]);
    let cgroup = bench.create("/pod/ctr");
    let warnings = cgroup
        .apply(&limits(|r| {
            r.pids_limit = Some(5);
            r.hugepages = vec![plan::HugepageLimit { page_size: "2MB".to_owned(), limit_bytes: 0 }];
        }))
        .unwrap();
    assert!(warnings[0].contains("EBUSY") && warnings[0].contains("not applied"), "{warnings:?}");
    assert_eq!(says(&cgroup, "pids", "pids.max"), "5");
    // The unified map is explicit: there the same is an error.
    let e = cgroup.apply(&limits(|r| drop(r.unified.insert("hugetlb.2MB.max".to_owned(), "0".to_owned()))));
    assert_eq!(e.unwrap_err().errno(), Some(Errno::EBUSY));
    let e = cgroup.apply(&limits(|r| drop(r.unified.insert("memory.high".to_owned(), "1".to_owned()))));
    assert!(e.unwrap_err().to_string().contains("does not carry its controller"));
    parent.kill().unwrap();
    child.wait().unwrap();
    remove_soon(&parent);
    bench.nothing_left();
}

#[test]
fn a_reader_follows_its_cgroup() {
    let bench = Bench::new("meter");
    let cgroup = bench.create("/ctr");
    cgroup.apply(&limits(|r| r.memory_limit_bytes = Some(256 << 20))).unwrap();
    let mut reader = cgroup.hierarchies().reader();
    let mut read = || reader.usage(cgroup.path(), true);
    let before = read().unwrap();
    assert_eq!((before.tasks, before.limit_bytes), (Some(0), Some(256 << 20)));
    let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo; read -r y; echo ${#x}";
    let mut child = inside(&cgroup, &["/bin/sh", "-c", script]);
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut out, &mut [0]).unwrap();
    let during = read().unwrap();
    assert!(during.rss_bytes.unwrap() > 10 << 20, "{during:?}");
    assert!(during.working_set_bytes.unwrap() > 10 << 20, "{during:?}");
    assert!(during.memory_bytes >= during.working_set_bytes, "{during:?}");
    assert!(during.cpu_ns.unwrap() > 1_000_000 && during.cpu_ns > before.cpu_ns, "{during:?}");
    assert!(during.page_faults.unwrap() > 1000, "{during:?}");
    assert_eq!(during.tasks, Some(1));
    drop(child.stdin.take());
    child.wait().unwrap();
    remove_soon(&cgroup);
    assert_eq!(read(), None);
}
