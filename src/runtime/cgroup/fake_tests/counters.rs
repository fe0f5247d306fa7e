//! Counters, as both versions have them.

use super::*;

#[test]
fn v2_counters_are_read_file_by_file() {
    let (fake, cgroup) = v2_container();
    fake.set("pod/ctr/cpu.stat", "usage_usec 1234\nuser_usec 1000\n");
    fake.set("pod/ctr/memory.current", "10000\n");
    fake.set("pod/ctr/memory.stat", "anon 3000\nfile 6000\ninactive_file 4000\npgfault 12\npgmajfault 1\n");
    fake.set("pod/ctr/memory.swap.current", "77\n");
    fake.set("pod/ctr/pids.current", "5\n");
    for (name, total) in [("cpu", 1), ("memory", 2), ("io", 3)] {
        let text = format!("some avg10=0.50 avg60=0.00 avg300=0.00 total={total}\n");
        fake.set(&format!("pod/ctr/{name}.pressure"), &text);
    }
    let pressure =
        |total_us| Some(Pressure { some: Stall { avg10: 0.5, total_us, ..Stall::default() }, ..Pressure::default() });
    let mut reader = cgroup.hierarchies().reader();
    let told = Usage {
        cpu_ns: Some(1_234_000),
        memory_bytes: Some(10_000),
        working_set_bytes: Some(6000),
        rss_bytes: Some(3000),
        swap_bytes: Some(77),
        swap_limit_bytes: None,
        limit_bytes: None,
        page_faults: Some(12),
        major_page_faults: Some(1),
        tasks: Some(5),
        cpu_pressure: pressure(1),
        memory_pressure: pressure(2),
        io_pressure: pressure(3),
    };
    assert_eq!(reader.usage("/pod/ctr", true), Some(told));
    fake.set("pod/ctr/memory.max", "20000\n");
    fake.set("pod/ctr/memory.swap.max", "1000\n");
    fake.set("pod/ctr/cpu.stat", "usage_usec 2000\n");
    let later =
        Usage { limit_bytes: Some(20_000), swap_limit_bytes: Some(1000), cpu_ns: Some(2_000_000), tasks: None, ..told };
    assert_eq!(reader.usage("/pod/ctr", false), Some(later));
    assert_eq!(reader.usage("/pod/absent", true), None);
    assert_eq!(reader.usage("/pod/../pod/ctr", true), None);
}

#[test]
fn v1_counters_are_read_from_their_hierarchies() {
    let (cpu, memory, pids) = (Fake::v1(&["cpuacct", "cpu"]), Fake::v1(&["memory"]), Fake::v1(&["pids"]));
    let unified = Fake::v2();
    let all = hierarchies(&[&cpu, &memory, &pids, &unified]);
    for fake in [&cpu, &memory, &pids, &unified] {
        fake.cgroup("pod");
        fake.cgroup("pod/ctr");
    }
    cpu.set("pod/ctr/cpuacct.usage", "123456789\n");
    memory.set("pod/ctr/memory.usage_in_bytes", "10000\n");
    memory.set("pod/ctr/memory.stat", "rss 1\ntotal_rss 3000\ntotal_inactive_file 4000\n");
    pids.set("pod/ctr/pids.current", "5\n");
    unified.set("pod/ctr/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\n");
    let usage = all.reader().usage("/pod/ctr", true).unwrap();
    assert_eq!((usage.cpu_ns, usage.memory_bytes, usage.tasks), (Some(123_456_789), Some(10_000), Some(5)));
    assert_eq!((usage.working_set_bytes, usage.rss_bytes, usage.swap_bytes), (Some(6000), Some(3000), None));
    // Of v2, beside v1, come the numbers that v1 has not.
    assert_eq!(usage.cpu_pressure.unwrap().some.total_us, 8);
    // One hierarchy that lost the cgroup costs its numbers alone.
    fs::remove_dir_all(memory.path("pod/ctr")).unwrap();
    let usage = all.reader().usage("/pod/ctr", true).unwrap();
    assert_eq!((usage.cpu_ns, usage.memory_bytes, usage.working_set_bytes), (Some(123_456_789), None, None));
}

#[test]
fn damaged_counters_cost_themselves_alone() {
    let (fake, cgroup) = v2_container();
    let huge = "anon_thp 1\n".repeat(100_000);
    fake.set("pod/ctr/memory.current", "10000\n");
    for damaged in ["", "\n", "-1\n", "99999999999999999999999\n", "x\0y", "usage_usec\n", huge.as_str()] {
        fake.set("pod/ctr/cpu.stat", damaged);
        fake.set("pod/ctr/memory.stat", damaged);
        fake.set("pod/ctr/pids.current", damaged);
        fake.set("pod/ctr/cpu.pressure", damaged);
        let usage = cgroup.hierarchies().reader().usage("/pod/ctr", true).unwrap();
        let told = Usage { memory_bytes: Some(10_000), working_set_bytes: usage.working_set_bytes, ..Usage::default() };
        assert_eq!(usage, told, "{:?}", &damaged[..damaged.len().min(30)]);
    }
    fs::write(fake.path("pod/ctr/cpu.stat"), b"usage_usec 7\nuser_usec \xff\n").unwrap();
    assert_eq!(cgroup.hierarchies().reader().usage("/pod/ctr", true).unwrap().cpu_ns, None);
    // A directory where a file should be.
    fs::remove_file(fake.path("pod/ctr/cpu.stat")).unwrap();
    fs::create_dir(fake.path("pod/ctr/cpu.stat")).unwrap();
    assert!(cgroup.hierarchies().reader().usage("/pod/ctr", true).is_some());
}

#[test]
fn details_of_v2_are_read_file_by_file() {
    let (fake, cgroup) = v2_container();
    for (file, text) in [
        ("cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n"),
        ("cpu.max", "20000 100000\n"),
        ("memory.stat", "file 6000\nfile_mapped 50\nkernel 70\npgfault 12\npgmajfault 1\n"),
        ("memory.events", "low 0\nhigh 0\nmax 8\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ("memory.peak", "90000\n"),
        ("memory.low", "4096\n"),
        ("memory.swap.max", "8192\n"),
        ("pids.max", "max\n"),
        ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
    ] {
        fake.set(&format!("pod/ctr/{file}"), text);
    }
    let details = cgroup.hierarchies().reader().details("/pod/ctr");
    assert_eq!((details.cpu_user_ns, details.cpu_system_ns), (Some(5000), Some(4000)));
    assert_eq!((details.periods, details.throttled_periods, details.throttled_ns), (Some(3), Some(2), Some(7000)));
    assert_eq!((details.cpu_quota_us, details.cpu_period_us), (Some(20_000), Some(100_000)));
    assert_eq!((details.cpu_shares, details.kernel_bytes, details.peak_bytes), (Some(1024), Some(70), Some(90_000)));
    assert_eq!((details.limit_hits, details.oom_kills, details.tasks_max), (Some(8), Some(1), None));
    assert_eq!((details.reservation_bytes, details.swap_limit_bytes), (Some(4096), Some(8192)));
    assert_eq!((details.disks.len(), details.page_faults.0), (1, Some(12)));
    fake.set("pod/ctr/cpu.max", "max 50000\n");
    let details = cgroup.hierarchies().reader().details("/pod/ctr");
    assert_eq!((details.cpu_quota_us, details.cpu_period_us), (None, Some(50_000)));
    assert_eq!(cgroup.hierarchies().reader().details("/pod/absent"), Details::default());
}

#[test]
fn details_of_v1_are_read_from_their_hierarchies() {
    let fake = Fake::v1(&["cpu", "cpuacct", "memory", "pids", "blkio"]);
    let all = hierarchies(&[&fake]);
    fake.cgroup("pod");
    for (file, text) in [
        ("cpuacct.usage_user", "5\n"),
        ("cpuacct.usage_sys", "4\n"),
        ("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 7\n"),
        ("memory.stat", "pgfault 1\ntotal_pgfault 2\ntotal_cache 6000\ntotal_mapped_file 50\n"),
        ("memory.failcnt", "8\n"),
        ("memory.max_usage_in_bytes", "90000\n"),
        ("memory.kmem.usage_in_bytes", "70\n"),
        ("pids.max", "100\n"),
        ("blkio.throttle.io_service_bytes_recursive", "Total 0\n"),
        ("blkio.bfq.io_service_bytes_recursive", "8:16 Read 5\n8:16 Total 5\nTotal 5\n"),
    ] {
        fake.set(&format!("pod/{file}"), text);
    }
    let details = all.reader().details("/pod");
    assert_eq!((details.cpu_user_ns, details.cpu_system_ns, details.throttled_ns), (Some(5), Some(4), Some(7)));
    // As the files are before anybody sets a limit: no quota, the usual shares, nothing kept, no limit.
    assert_eq!((details.cpu_quota_us, details.cpu_shares), (None, Some(1024)));
    assert_eq!((details.reservation_bytes, details.swap_limit_bytes), (Some(0), None));
    assert_eq!((details.limit_hits, details.oom_kills, details.tasks_max), (Some(8), Some(2), Some(100)));
    assert_eq!((details.page_faults, details.peak_bytes), ((Some(1), Some(2)), Some(90_000)));
    assert_eq!((details.disks[0].major, details.disks[0].minor), (8, 16));
}
