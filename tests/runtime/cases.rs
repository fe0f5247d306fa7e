//! What a container looks like from inside, and what may not be.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;

use aril::plan::mount::Kind;
use aril::plan::namespaces::Source;
use aril::plan::{self, Propagation};
use aril::runtime::{InitMessage, Stdio3};
use aril::sys::process::pidfd_signal;

use crate::support::{TestPod, bind, capabilities, filesystem, receive, remove, wait_exit};

type Case = fn();

pub const ALL: &[(&str, Case)] = &[
    ("output_and_exit_code", output_and_exit_code),
    ("own_pid_namespace_and_hostname", own_pid_namespace_and_hostname),
    ("pod_init_reaps_and_is_pid_one", pod_init_reaps_and_is_pid_one),
    ("pid_namespace_of_another_container", pid_namespace_of_another_container),
    ("exec_joins_everything", exec_joins_everything),
    ("exec_in_an_ended_container_fails", exec_in_an_ended_container_fails),
    ("only_the_standard_descriptors", only_the_standard_descriptors),
    ("user_groups_and_home", user_groups_and_home),
    ("the_user_is_the_images_whatever_hides_its_files", the_user_is_the_images_whatever_hides_its_files),
    ("capabilities_are_exact", capabilities_are_exact),
    ("no_new_privs_is_set", no_new_privs_is_set),
    ("terminal_is_the_console", terminal_is_the_console),
    ("readonly_root_with_writable_volume", readonly_root_with_writable_volume),
    ("masked_and_readonly_paths", masked_and_readonly_paths),
    ("shared_memory_is_the_pods", shared_memory_is_the_pods),
    ("host_mount_table_is_untouched", host_mount_table_is_untouched),
    ("missing_program_is_named", missing_program_is_named),
    ("no_program_at_all", no_program_at_all),
    ("working_directory_cannot_leave", working_directory_cannot_leave),
    ("links_for_proc_and_dev_are_refused", links_for_proc_and_dev_are_refused),
    ("mounts_through_links_stay_inside", mounts_through_links_stay_inside),
    ("nothing_is_mounted_inside_proc", nothing_is_mounted_inside_proc),
    ("sysctls_of_the_pod", sysctls_of_the_pod),
    ("a_held_container_dies_with_its_channel", a_held_container_dies_with_its_channel),
    ("cgroup_is_visible_and_read_only", cgroup_is_visible_and_read_only),
    ("a_bidirectional_mount_needs_a_shared_source", a_bidirectional_mount_needs_a_shared_source),
    ("default_devices", default_devices),
    ("the_hosts_null_device_is_out_of_reach", the_hosts_null_device_is_out_of_reach),
    ("files_are_masked_below_the_hosts_devices", files_are_masked_below_the_hosts_devices),
    ("large_environment_and_arguments", large_environment_and_arguments),
];

fn the_hosts_null_device_is_out_of_reach() {
    let mode = || nix::sys::stat::stat("/dev/null").unwrap().st_mode;
    let (before, mut pod) = (mode(), TestPod::start(plan::Sandbox::default()));
    let stat = "busybox stat -Lc '%t:%T %a' /proc/self/fd/0";
    let script = format!("{stat}; busybox chmod 777 /proc/self/fd/0 && {stat}");
    let plan = pod.script(&script);
    assert_eq!(pod.run(&plan).stdout, "1:3 666\n1:3 777\n");
    let plan = pod.script("sleep 100");
    let (init, ..) = pod.start_container(&plan, None);
    assert_eq!(pod.exec(&init, &script).stdout, "1:3 777\n1:3 777\n");
    pidfd_signal(init.pidfd.as_fd(), libc::SIGKILL).unwrap();
    wait_exit(&init);
    remove(&init);
    assert_eq!(mode(), before);
}

fn files_are_masked_below_the_hosts_devices() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan =
        pod.script("cat /etc/group; [ -c /etc/group ] && [ -c /proc/uptime ] && [ -c /dev/null ] && echo masked");
    plan.mounts.retain(|mount| mount.target != "/dev");
    plan.mounts.push(bind(std::path::Path::new("/dev"), "/dev"));
    plan.masked_paths = vec!["/etc/group".into(), "/proc/uptime".into()];
    assert_eq!(pod.run(&plan).stdout, "masked\n");
}

fn own_net() -> plan::Sandbox {
    plan::Sandbox {
        hostname: "pod-host".into(),
        new_net: true,
        new_ipc: true,
        new_uts: true,
        shm_size_bytes: 1 << 20,
        ..Default::default()
    }
}

fn output_and_exit_code() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let plan = pod.script("echo out; echo err >&2; exit 7");
    let outcome = pod.run(&plan);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (7, "out\nerr\n"));
}

fn own_pid_namespace_and_hostname() {
    let mut pod = TestPod::start(own_net());
    let plan = pod.script("echo $$; hostname; ls /sys/class/net; cat /proc/net/route");
    let outcome = pod.run(&plan);
    assert!(outcome.stdout.starts_with("1\npod-host\nlo\n"), "{}", outcome.stdout);
}

fn pod_init_reaps_and_is_pid_one() {
    let mut pod = TestPod::start(plan::Sandbox { shared_pid: true, ..own_net() });
    let mut plan =
        pod.script("(sleep 0.1 &) ; sleep 0.4; cat /proc/1/comm; ls -d /proc/[0-9]* | cat; ls /proc/1/root/ 2>&1");
    plan.namespaces = Some(plan::Namespaces { pid: Source::Sandbox.into(), ..Default::default() });
    let outcome = pod.run(&plan);
    assert!(outcome.stdout.starts_with("aril-pod-init\n"), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains("etc"), "the pod init shows a root: {}", outcome.stdout);
}

fn pid_namespace_of_another_container() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let first = pod.script("sleep 100");
    let (first, _, _out) = pod.start_container(&first, None);
    let mut second = pod.script("cat /proc/1/cmdline");
    second.namespaces = Some(plan::Namespaces { pid: Source::Target.into(), ..Default::default() });
    let (second, _, mut out) = pod.start_container(&second, Some(&first));
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "sleep\u{0}100\u{0}");
    wait_exit(&second);
    remove(&second);
    pidfd_signal(first.pidfd.as_fd(), libc::SIGKILL).unwrap();
    assert_eq!(wait_exit(&first), 137);
    remove(&first);
}

fn exec_joins_everything() {
    let mut pod = TestPod::start(own_net());
    let plan = pod.script("touch /tmp/mark; sleep 100");
    let (init, _, _out) = pod.start_container(&plan, None);
    let script = "while ! ls /tmp/mark >/dev/null 2>&1; do :; done; hostname; \
                  for ns in pid mnt net ipc uts cgroup; do [ $(readlink /proc/1/ns/$ns) = $(readlink /proc/self/ns/$ns) ] || echo $ns; done; \
                  cat /proc/self/cgroup | grep -v ':/exec-1$' | grep -v ':/$'; exit 3";
    let outcome = pod.exec(&init, script);
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("pod-host\n", 3));
    pidfd_signal(init.pidfd.as_fd(), libc::SIGKILL).unwrap();
    wait_exit(&init);
    remove(&init);
}

fn exec_in_an_ended_container_fails() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let plan = pod.script("exit 0");
    let (init, _, _out) = pod.start_container(&plan, None);
    wait_exit(&init);
    let process = plan::Process { args: vec!["true".into()], ..Default::default() };
    let target = aril::runtime::ExecTarget { pidfd: init.pidfd.as_fd(), cgroup: &init.cgroup, user: None };
    let error = pod.pod.exec("x", &target, &process, Stdio3::default()).unwrap_err();
    assert_eq!(error.errno(), Some(nix::errno::Errno::ESRCH), "{error}");
    remove(&init);
}

fn only_the_standard_descriptors() {
    let _kept = fs::File::open("/etc/passwd").unwrap();
    let mut pod = TestPod::start(own_net());
    // `ls` itself opens the directory it lists, as the lowest free number.
    let plan = pod.script("exec ls /proc/self/fd");
    assert_eq!(pod.run(&plan).stdout, "0\n1\n2\n3\n");
    let plan = pod.script("sleep 100");
    let (init, _, _out) = pod.start_container(&plan, None);
    assert_eq!(pod.exec(&init, "exec ls /proc/self/fd").stdout, "0\n1\n2\n3\n");
    pidfd_signal(init.pidfd.as_fd(), libc::SIGKILL).unwrap();
    wait_exit(&init);
    remove(&init);
}

fn user_groups_and_home() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan = pod.script("id -u; id -g; id -G; echo $HOME; echo again >/dev/stdout");
    let user =
        plan::User { spec: "web".into(), additional_gids: vec![77], merge_image_groups: true, ..Default::default() };
    plan.process.as_mut().unwrap().user = Some(user);
    let outcome = pod.run(&plan);
    assert_eq!(outcome.stdout, "33\n44\n44 50 77\n/var/www\nagain\n");
    assert_eq!((outcome.user.uid, outcome.user.groups), (33, vec![44, 50, 77]));
}

fn the_user_is_the_images_whatever_hides_its_files() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let file = pod.path("other");
    fs::write(&file, "web:x:1:1:::\n").unwrap();
    let user = plan::User { spec: "web:logs".into(), merge_image_groups: true, ..Default::default() };
    let script = "id -u; id -g; echo $HOME; cat /etc/passwd";
    let mut plan = pod.script(script);
    plan.process.as_mut().unwrap().user = Some(user.clone());
    plan.masked_paths = vec!["/etc/passwd".into(), "/etc/group".into()];
    assert_eq!(pod.run(&plan).stdout, "33\n50\n/var/www\n");
    let mut plan = pod.script(script);
    plan.process.as_mut().unwrap().user = Some(user);
    plan.mounts.push(bind(&file, "/etc/passwd"));
    assert_eq!(pod.run(&plan).stdout, "33\n50\n/var/www\nweb:x:1:1:::\n");
}

fn capabilities_are_exact() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let script = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status";
    let mut plan = pod.script(script);
    plan.process.as_mut().unwrap().capabilities = Some(capabilities(0x400));
    let expect = |inh, prm, eff, bnd, amb: u64| {
        format!(
            "CapInh:\t{inh:016x}\nCapPrm:\t{prm:016x}\nCapEff:\t{eff:016x}\nCapBnd:\t{bnd:016x}\nCapAmb:\t{amb:016x}\n"
        )
    };
    assert_eq!(pod.run(&plan).stdout, expect(0, 0x400, 0x400, 0x400, 0));
    let mut plan = pod.script(script);
    let process = plan.process.as_mut().unwrap();
    process.user = Some(plan::User { uid: Some(33), ..Default::default() });
    process.capabilities = Some(plan::Capabilities { ambient: 0x400, ..capabilities(0x400) });
    assert_eq!(pod.run(&plan).stdout, expect(0x400, 0x400, 0x400, 0x400, 0x400));
    let mut plan = pod.script(script);
    plan.process.as_mut().unwrap().capabilities = None;
    assert_eq!(pod.run(&plan).stdout, expect(0, 0, 0, 0, 0));
}

fn no_new_privs_is_set() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan = pod.script("grep NoNewPrivs /proc/self/status");
    plan.process.as_mut().unwrap().no_new_privs = true;
    assert_eq!(pod.run(&plan).stdout, "NoNewPrivs:\t1\n");
}

fn terminal_is_the_console() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan =
        pod.script("[ -t 0 ] && [ -t 1 ] && [ -c /dev/console ] && echo yes >/dev/console; readlink /proc/self/fd/0");
    let process = plan.process.as_mut().unwrap();
    process.tty = true;
    (process.tty_rows, process.tty_cols) = (40, 100);
    let (init, _) = pod.pod.create(&plan, None, Stdio3::default()).unwrap();
    let InitMessage::Ready { pty: Some(pty), .. } = receive(&init) else { panic!("no terminal") };
    assert_eq!(aril::sys::tty::size(pty.as_fd()).unwrap(), (40, 100));
    init.release().unwrap();
    let mut text = Vec::new();
    // A master whose other side is closed reads as EIO.
    fs::File::from(pty).read_to_end(&mut text).unwrap_err();
    assert_eq!(String::from_utf8(text).unwrap(), "yes\r\n/dev/pts/0\r\n");
    assert_eq!(wait_exit(&init), 0);
    remove(&init);
}

fn readonly_root_with_writable_volume() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let volume = pod.path("volume");
    fs::create_dir(&volume).unwrap();
    let mut plan = pod.script("touch /x; touch /data/y && ls /data; touch /ro/z");
    plan.rootfs.as_mut().unwrap().readonly = true;
    plan.mounts.push(bind(&volume, "/data"));
    plan.mounts.push(plan::Mount { attr_set: aril::sys::mount::attr::RDONLY, ..bind(&volume, "/ro") });
    let outcome = pod.run(&plan);
    assert_eq!(outcome.stdout, "touch: /x: Read-only file system\ny\ntouch: /ro/z: Read-only file system\n");
}

fn masked_and_readonly_paths() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    fs::create_dir(pod.layer().join("secret")).unwrap();
    fs::write(pod.layer().join("secret/key"), "k").unwrap();
    let mut plan =
        pod.script("ls /secret | cat; cat /etc/group; cat /etc/passwd >/dev/null && touch /etc/new; touch /secret/x");
    plan.masked_paths = vec!["/secret".into(), "/etc/group".into(), "/not/there".into()];
    plan.readonly_paths = vec!["/etc".into()];
    let outcome = pod.run(&plan);
    assert_eq!(outcome.stdout, "touch: /etc/new: Read-only file system\ntouch: /secret/x: Read-only file system\n");
}

fn shared_memory_is_the_pods() {
    let mut pod = TestPod::start(own_net());
    let shm = plan::Mount { kind: Kind::SandboxShm.into(), target: "/dev/shm".into(), ..Default::default() };
    let mut writer = pod.script("echo hello >/dev/shm/x");
    writer.mounts.push(shm.clone());
    let mut reader = pod.script("cat /dev/shm/x; mount | grep /dev/shm");
    reader.mounts.push(shm);
    assert_eq!(pod.run(&writer).code, 0);
    let outcome = pod.run(&reader);
    assert!(outcome.stdout.starts_with("hello\n"), "{}", outcome.stdout);
    assert!(
        outcome.stdout.contains("nosuid,nodev,noexec") && outcome.stdout.contains("size=1024k"),
        "{}",
        outcome.stdout
    );
}

fn host_mount_table_is_untouched() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut pod = TestPod::start(own_net());
    let plan = pod.script("sleep 100");
    let (init, _, _out) = pod.start_container(&plan, None);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    let inside = fs::read_to_string(format!("/proc/{}/mountinfo", init.pid)).unwrap();
    assert!(!inside.contains("/var/lib") && !inside.contains("ext4"), "the host shows inside: {inside}");
    pidfd_signal(init.pidfd.as_fd(), libc::SIGKILL).unwrap();
    wait_exit(&init);
    remove(&init);
}

fn missing_program_is_named() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan = pod.script("");
    plan.process.as_mut().unwrap().args = vec!["no-such-program".into()];
    let (step, message) = pod.fails(&plan);
    assert_eq!(step, "exec");
    assert_eq!(message, "start \"no-such-program\", not found in PATH /bin: ENOENT (No such file or directory)");
    plan.process.as_mut().unwrap().args = vec!["/etc/passwd".into()];
    let plan = plan::Container { rootfs: pod.script("").rootfs, ..plan };
    assert!(pod.fails(&plan).1.contains("EACCES"));
}

fn no_program_at_all() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan = pod.script("");
    plan.process.as_mut().unwrap().args.clear();
    assert_eq!(pod.fails(&plan).0, "exec");
}

fn working_directory_cannot_leave() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    for number in 3..40 {
        let mut plan = pod.script("true");
        plan.process.as_mut().unwrap().cwd = format!("/proc/self/fd/{number}");
        let (step, message) = pod.fails(&plan);
        assert_eq!(step, "working directory", "{message}");
    }
    let mut plan = pod.script("cd .; exec readlink /proc/self/cwd");
    plan.process.as_mut().unwrap().cwd = "/made/on/demand".into();
    assert_eq!(pod.run(&plan).stdout, "/made/on/demand\n");
}

fn links_for_proc_and_dev_are_refused() {
    for name in ["proc", "sys"] {
        let mut pod = TestPodIn::new();
        std::os::unix::fs::symlink("/tmp", pod.0.layer().join(name)).unwrap();
        let plan = pod.0.script("true");
        let (step, message) = pod.0.fails(&plan);
        assert_eq!(step, "mounts", "{message}");
        fs::remove_file(pod.0.layer().join(name)).unwrap();
    }
}

/// One pod for a case that changes the image between containers.
struct TestPodIn(TestPod);

impl TestPodIn {
    fn new() -> Self {
        Self(TestPod::start(plan::Sandbox::default()))
    }
}

fn mounts_through_links_stay_inside() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let volume = pod.path("volume");
    fs::create_dir(&volume).unwrap();
    let outside = pod.path("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, pod.layer().join("escape")).unwrap();
    std::os::unix::fs::symlink("/tmp", pod.layer().join("inner")).unwrap();
    let mut plan = pod.script("touch /inner/v/file; ls /tmp/v");
    plan.mounts.push(bind(&volume, "/inner/v"));
    assert_eq!(pod.run(&plan).stdout, "file\n");
    let mut plan = pod.script("true");
    plan.mounts.push(bind(&volume, "/escape/v"));
    let (step, _) = pod.fails(&plan);
    assert_eq!(step, "mounts");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

fn nothing_is_mounted_inside_proc() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let file = pod.path("fake");
    fs::write(&file, "").unwrap();
    let mut plan = pod.script("true");
    plan.mounts.push(bind(&file, "/proc/self/status"));
    assert!(pod.fails(&plan).1.contains("procfs"));
    let mut plan = pod.script("cat /proc/uptime");
    plan.mounts.push(bind(&file, "/proc/uptime"));
    assert_eq!(pod.run(&plan).stdout, "");
    // The path asked for says nothing about where it leads.
    for (link, to) in [("uptime", "/proc/self/status"), ("proc-link", "/proc"), ("stat", "/proc/version")] {
        std::os::unix::fs::symlink(to, pod.layer().join(link)).unwrap();
    }
    for target in ["/uptime", "/stat", "/proc-link/version"] {
        let mut plan = pod.script("true");
        plan.mounts.push(bind(&file, target));
        assert!(pod.fails(&plan).1.contains("procfs"), "{target}");
    }
}

fn sysctls_of_the_pod() {
    let set = |name: &str, value: &str| plan::Sysctl { name: name.into(), value: value.into() };
    let mut pod = TestPod::start(plan::Sandbox {
        sysctls: vec![set("net.ipv4.ip_unprivileged_port_start", "77"), set("kernel.shm_rmid_forced", "1")],
        ..own_net()
    });
    let plan = pod.script("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced");
    assert_eq!(pod.run(&plan).stdout, "77\n1\n");
}

fn a_held_container_dies_with_its_channel() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let plan = pod.script("sleep 100");
    let (mut init, _) = pod.pod.create(&plan, None, Stdio3::default()).unwrap();
    assert!(matches!(receive(&init), InitMessage::Ready { .. }));
    init.channel = aril::sys::socket::pair().unwrap().0;
    assert_eq!(wait_exit(&init), 1);
    remove(&init);
}

fn cgroup_is_visible_and_read_only() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let script = "cat /proc/self/cgroup | grep -v ':/$'; cat /sys/fs/cgroup/memory/tasks /sys/fs/cgroup/tasks 2>/dev/null | grep -c 1; \
                  touch /sys/fs/cgroup/x 2>&1; mkdir /sys/fs/cgroup/memory/x 2>&1; echo 1 >/sys/fs/cgroup/memory/cgroup.procs";
    let mut plan = pod.script(script);
    plan.mounts.push(plan::Mount {
        kind: Kind::Cgroup.into(),
        target: "/sys/fs/cgroup".into(),
        attr_set: aril::sys::mount::attr::RDONLY | aril::sys::mount::attr::NOSUID,
        ..Default::default()
    });
    let outcome = pod.run(&plan);
    assert_eq!(outcome.stdout.matches("Read-only").count(), 3, "{}", outcome.stdout);
    assert!(outcome.stdout.starts_with('2') || outcome.stdout.starts_with('1'), "{}", outcome.stdout);
}

fn a_bidirectional_mount_needs_a_shared_source() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let set = |flags| nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    use nix::mount::MsFlags;
    set(MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    let mut pod = TestPod::start(plan::Sandbox::default());
    let volume = pod.path("volume");
    fs::create_dir(&volume).unwrap();
    let shared = plan::Mount { propagation: Propagation::Shared.into(), need_peer: true, ..bind(&volume, "/data") };
    let mut plan = pod.script("mount -t tmpfs none /data && touch /data/inside");
    plan.mounts.push(shared);
    let (step, message) = pod.fails(&plan);
    assert!(step == "sources" && message.contains("make-rshared"), "{message}");
    set(MsFlags::MS_REC | MsFlags::MS_SHARED);
    let plan = plan::Container { rootfs: pod.script("").rootfs, ..plan };
    assert_eq!(pod.run(&plan).code, 0);
    assert!(volume.join("inside").exists(), "the container's mount did not reach the host");
    nix::mount::umount(&volume).unwrap();
}

fn default_devices() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan = pod.script(
        "cd /dev; for d in null zero full random urandom tty fuse; do [ -c $d ] || echo no $d; done; \
        echo x >null; [ -e ptmx ] && [ -e fd/0 ] && [ -e stdout ] && echo links",
    );
    plan.devices = vec![plan::Device {
        path: "/dev/fuse".into(),
        kind: "c".into(),
        major: 10,
        minor: 229,
        file_mode: 0o666,
        ..Default::default()
    }];
    assert_eq!(pod.run(&plan).stdout, "links\n");
}

fn large_environment_and_arguments() {
    let mut pod = TestPod::start(plan::Sandbox::default());
    let mut plan = pod.script("echo ${#BIG}");
    plan.process.as_mut().unwrap().env.push(format!("BIG={}", "x".repeat(100_000)));
    plan.mounts.push(filesystem("/scratch", "tmpfs"));
    assert_eq!(pod.run(&plan).stdout, "100000\n");
}
