//! Which namespaces are shared with whom, and what lives in them.

use aril::api::cri::{NamespaceMode, NamespaceOption};
use nix::sys::signal::Signal;
use serde_json::Value;
use tonic::Code;

use crate::support::{Container, PATIENCE, TestNode, namespace, process_alive, read_proc, refused, wait_for};

fn of(container: &Container<'_>, name: &str) -> String {
    namespace(container.init_pid(), name)
}

fn with_pid(mode: NamespaceMode) -> impl FnOnce(&mut NamespaceOption) {
    move |n| n.pid = mode.into()
}

#[test]
fn by_default_a_pod_shares_all_but_pids_and_mounts() {
    let node = TestNode::start();
    let pod = node.run_pod("default");
    let (one, two) = (pod.sleeper(), pod.sleeper());
    for name in ["net", "ipc", "uts"] {
        assert_eq!(of(&one, name), of(&two, name), "{name}");
        assert_ne!(of(&one, name), namespace(node.holder_pid(), name), "{name}");
    }
    for name in ["pid", "mnt", "cgroup"] {
        assert_ne!(of(&one, name), of(&two, name), "{name}");
        assert_ne!(of(&one, name), namespace(node.holder_pid(), name), "{name}");
    }
    assert_eq!(of(&one, "user"), namespace(node.holder_pid(), "user"));
    node.finish();
}

#[test]
fn two_pods_share_nothing() {
    let node = TestNode::start();
    let (one, two) = (node.run_pod("one").sleeper(), node.run_pod("two").sleeper());
    for name in ["net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        assert_ne!(of(&one, name), of(&two, name), "{name}");
    }
    node.finish();
}

#[test]
fn the_first_process_is_number_one() {
    let node = TestNode::start();
    let pod = node.run_pod("first");
    assert_eq!(pod.container(["x"]).report()["pid"], "1".parse::<i32>().unwrap());
    assert_eq!(pod.sleeper().sh("cat /proc/1/comm"), "sleep");
    node.finish();
}

#[test]
fn a_shared_pid_namespace_has_a_reaper_of_its_own() {
    let node = TestNode::start();
    let pod = node.pod("shared").namespaces(with_pid(NamespaceMode::Pod)).run();
    let (one, two) = (pod.sleeper(), pod.run(["/probe", "stubborn"]));
    assert_eq!(of(&one, "pid"), of(&two, "pid"));
    assert_ne!(of(&one, "pid"), namespace(node.holder_pid(), "pid"));
    assert_ne!(one.sh("cat /proc/1/comm"), "sleep");
    assert!(one.sh("cat /proc/*/comm").contains("probe"));
    // Left to process 1, which must reap it.
    one.sh("(sleep 0.1 &) ; sleep 0.3");
    assert_eq!(one.sh("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ' Z '; true"), "0");
    // The end of one container is not the end of the other.
    one.stop(0).unwrap();
    assert_eq!(two.sh("echo alive"), "alive");
    node.finish();
}

#[test]
fn the_end_of_a_shared_pid_namespace_ends_its_containers() {
    let node = TestNode::start();
    let pod = node.pod("shared").namespaces(with_pid(NamespaceMode::Pod)).run();
    let container = pod.sleeper();
    let inside = of(&container, "pid");
    let reaper = wait_for("the pod's process 1", PATIENCE, || {
        let pids = crate::support::pids_in_cgroup(&node.cgroup_parent());
        pids.into_iter().find(|&p| {
            namespace(p, "pid") == inside && read_proc(p, "status").contains("\t1\n") && p != container.init_pid()
        })
    });
    crate::support::kill(reaper, Signal::SIGKILL);
    assert_eq!(container.wait_exited().exit_code, 137);
    node.finish();
}

#[test]
fn the_nodes_pid_namespace_shows_the_nodes_processes() {
    let node = TestNode::start();
    let pod = node.pod("host-pid").namespaces(with_pid(NamespaceMode::Node)).run();
    let container = pod.sleeper();
    assert_eq!(of(&container, "pid"), namespace(node.holder_pid(), "pid"));
    assert!(container.sh(&format!("cat /proc/{}/comm", node.daemon_pid())).starts_with("aril"));
    // All of it goes, though no namespace ends: a child that left its session too.
    container.sh("setsid sleep 54321 >/dev/null 2>&1 &");
    let pids = container.pids();
    assert!(pids.len() >= 2, "{pids:?}");
    container.stop(0).unwrap();
    wait_for("the end of all processes", PATIENCE, || pids.iter().all(|&p| !process_alive(p)).then_some(()));
    node.finish();
}

#[test]
fn a_debug_container_joins_its_target() {
    let node = TestNode::start();
    let pod = node.run_pod("target");
    let target = pod.run(["/probe", "stubborn"]);
    let join = |c: &mut aril::api::cri::LinuxContainerSecurityContext| {
        let n = c.namespace_options.get_or_insert_default();
        (n.pid, n.target_id) = (NamespaceMode::Target.into(), target.id.clone());
    };
    let debugger = pod.container(["sleep", "100000"]).security(join).run();
    assert_eq!(of(&debugger, "pid"), of(&target, "pid"));
    assert_eq!(debugger.sh("cat /proc/1/comm"), "probe");
    debugger.stop(0).unwrap();
    assert_eq!(target.sh("echo alive"), "alive");

    let elsewhere = node.run_pod("other").container(["true"]).security(join);
    assert!(elsewhere.try_create().is_err());
    node.finish();
}

#[test]
fn the_nodes_network_is_the_daemons() {
    let node = TestNode::start();
    let container = node.pod("host-net").host_network().run().sleeper();
    assert_eq!(of(&container, "net"), namespace(node.daemon_pid(), "net"));
    assert_eq!(
        node.run_pod("own").sleeper().sh("cat /sys/class/net/lo/operstate; ls /sys/class/net"),
        "unknown\neth0\nlo"
    );
    node.finish();
}

#[test]
fn containers_talk_over_the_pods_loopback() {
    let node = TestNode::start();
    let pod = node.run_pod("loopback");
    let server = pod.run(["nc", "-l", "-p", "8080", "-e", "echo", "hello"]);
    let client = pod.sleeper();
    let answer = wait_for("an answer", PATIENCE, || {
        let output = client.exec(["nc", "-w", "1", "127.0.0.1", "8080"]);
        Some(output.stdout).filter(|s| !s.is_empty())
    });
    assert_eq!(answer, "hello\n");
    drop(server);
    node.finish();
}

#[test]
fn ipc_is_the_pods_or_the_nodes() {
    let node = TestNode::start();
    let host = node.pod("host-ipc").namespaces(|n| n.ipc = NamespaceMode::Node.into()).run().sleeper();
    assert_eq!(of(&host, "ipc"), namespace(node.holder_pid(), "ipc"));
    node.finish();
}

#[test]
fn shared_memory_is_shared_in_the_pod_and_with_no_other() {
    let node = TestNode::start();
    let pod = node.run_pod("shm");
    let (one, two, other) = (pod.sleeper(), pod.sleeper(), node.run_pod("other").sleeper());
    one.sh("echo shared > /dev/shm/note");
    assert_eq!(two.sh("cat /dev/shm/note"), "shared");
    assert_ne!(other.exec(["cat", "/dev/shm/note"]).code, 0);
    let line = one.sh("grep ' /dev/shm ' /proc/self/mountinfo");
    for option in ["nosuid", "nodev", "noexec", "tmpfs", "size=65536k", "mode=1777"] {
        assert!(line.contains(option) || option == "mode=1777", "{option}: {line}");
    }
    assert_eq!(one.sh("stat -c %a /dev/shm"), "1777");
    node.finish();
}

#[test]
fn the_hostname_is_the_pods() {
    let node = TestNode::start();
    let before = read_proc(node.holder_pid(), "sys/kernel/hostname");
    let pod = node.pod("hostname").with(|c| c.hostname = "web-0".to_owned()).run();
    let container = pod.sleeper();
    assert_eq!(container.sh("hostname; cat /etc/hostname; echo $HOSTNAME"), "web-0\nweb-0\nweb-0");
    assert!(container.sh("cat /etc/hosts").contains("localhost"));
    assert_eq!(read_proc(node.holder_pid(), "sys/kernel/hostname"), before);
    node.finish();
}

#[test]
fn dns_is_as_asked() {
    let node = TestNode::start();
    let dns = aril::api::cri::DnsConfig {
        servers: vec!["10.10.10.10".to_owned()],
        searches: vec!["a.example".to_owned(), "b.example".to_owned()],
        options: vec!["ndots:8".to_owned()],
    };
    let container = node.pod("dns").with(|c| c.dns_config = Some(dns)).run().sleeper();
    let text = container.sh("cat /etc/resolv.conf");
    for line in ["nameserver 10.10.10.10", "search a.example b.example", "options ndots:8"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    node.finish();
}

#[test]
fn sysctls_are_set_in_the_pod_alone() {
    let node = TestNode::start();
    let of_node = |name: &str| {
        let output = node.inside("cat").arg(format!("/proc/sys/{name}")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let names = ["kernel/shm_rmid_forced", "net/ipv4/ip_no_pmtu_disc", "kernel/msgmax"];
    let before: Vec<String> = names.iter().map(|n| of_node(n)).collect();
    let pod = node
        .pod("sysctl")
        .sysctl("kernel.shm_rmid_forced", "1")
        .sysctl("net.ipv4.ip_no_pmtu_disc", "1")
        .sysctl("net/ipv4/ping_group_range", "0 1000")
        .sysctl("kernel.msgmax", "4096")
        .run();
    let container = pod.sleeper();
    assert_eq!(
        container.sh("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_no_pmtu_disc /proc/sys/kernel/msgmax"),
        "1\n1\n4096"
    );
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ping_group_range"), "0\t1000");
    assert_eq!(names.iter().map(|n| of_node(n)).collect::<Vec<_>>(), before);
    node.finish();
}

#[test]
fn sysctls_of_the_node_are_refused() {
    let node = TestNode::start();
    for name in ["kernel.core_pattern", "vm.swappiness", "kernel.panic", "net.ipv4/../../kernel/core_pattern", ".", ""]
    {
        refused(node.pod("sysctl").sysctl(name, "1").try_run(), Code::InvalidArgument, &["sysctl"]);
    }
    let value = node.pod("value").sysctl("kernel.shm_rmid_forced", "1\n2").try_run();
    refused(value, Code::InvalidArgument, &["kernel.shm_rmid_forced"]);
    let host = node.pod("host").host_network().sysctl("net.ipv4.ip_forward", "1").try_run();
    refused(host, Code::InvalidArgument, &["net.ipv4.ip_forward"]);
    let absent = node.pod("absent").sysctl("net.ipv4.no_such_thing", "1").try_run();
    assert!(absent.is_err_and(|e| e.message().contains("no_such_thing")));
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn the_cgroup_namespace_hides_the_node() {
    let node = TestNode::start();
    let pod = node.run_pod("cgroup");
    let report: Value = pod.container(["x"]).report();
    for line in report["cgroup"].as_array().unwrap() {
        assert!(line.as_str().unwrap().ends_with(":/"), "{line}");
    }
    node.finish();
}
