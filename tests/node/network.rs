//! Pods on networks of their own: addresses, names, and what becomes of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aril::api::cri::{DnsConfig, NetworkConfig, RuntimeConfig, UpdateRuntimeConfigRequest};
use tonic::{Code, Status};

use crate::support::network::{address, hear, node_with, not_ready, server, with_port};
use crate::support::{Pod, TestNode, namespace};

fn set_pod_cidr(node: &TestNode, cidr: &str) -> Result<(), Status> {
    let network_config = Some(NetworkConfig { pod_cidr: cidr.to_owned() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    node.cri().runtime(|mut c| async move { c.update_runtime_config(request).await }).map(drop)
}

#[test]
fn a_pod_has_an_address_that_its_containers_share() {
    let node = TestNode::start();
    let pod = node.pod("web").with(|c| c.hostname = "web-0".to_owned()).run();
    let ip = address(&pod);
    assert!(!ip.is_loopback() && !ip.is_unspecified(), "{ip}");
    let (a, b) = (
        pod.sleeper(),
        pod.container(["sleep", "100000"])
            .with(|c| {
                c.metadata.as_mut().unwrap().name = "second".to_owned();
            })
            .run(),
    );
    for container in [&a, &b] {
        assert!(container.sh("ip addr show eth0").contains(&format!("inet {ip}/")));
        let hosts = container.sh("cat /etc/hosts");
        assert!(hosts.contains("localhost") && hosts.lines().any(|l| l == format!("{ip}\tweb-0")), "{hosts}");
        assert_eq!(container.sh("cat /etc/hostname"), "web-0");
    }
    assert_eq!(namespace(a.init_pid(), "net"), namespace(b.init_pid(), "net"));
    assert_ne!(namespace(a.init_pid(), "net"), namespace(node.holder_pid(), "net"));
    // Who needs no right to take a low port: as in every runtime with a network of the pod's own.
    assert_eq!(a.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0");

    pod.stop().unwrap();
    let network = pod.status().network.unwrap();
    assert!(network.ip.is_empty() && network.additional_ips.is_empty(), "{network:?}");
    node.finish();
}

#[test]
fn pods_and_their_host_reach_each_other() {
    let node = TestNode::start();
    let (a, b) = (node.run_pod("a"), node.run_pod("b"));
    let _server = server(&a, 80, "hello-from-a");
    let to = SocketAddr::new(address(&a), 80);
    assert_eq!(hear(&node, to), "hello-from-a");
    let client = b.sleeper();
    assert_eq!(client.sh(&format!("wget -q -O - http://{to}/word")), "hello-from-a");
    // The way out is there, whatever is behind it.
    assert!(client.sh("ip route").contains("default via"));
    node.finish();
}

#[test]
fn deaths_in_the_middle_of_connecting_and_disconnecting_leave_nothing() {
    let node = TestNode::start();
    let steady = node.run_pod("steady");
    let (_server, ip) = (server(&steady, 80, "steady"), address(&steady));
    let mut random = 12345_u64;
    for round in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_micros(random >> 33 & 0x3fff);
        std::thread::scope(|scope| {
            for i in 0..3 {
                let node = &node;
                scope.spawn(move || {
                    let pod = node.pod(&format!("p{round}-{i}")).try_run()?;
                    pod.stop()?;
                    pod.remove()
                });
            }
            std::thread::sleep(wait);
            node.kill_daemon();
        });
        node.restart();
        assert_eq!(address(&steady), ip);
    }
    assert_eq!(hear(&node, SocketAddr::new(ip, 80)), "steady");
    node.finish();
}

#[test]
fn two_hundred_pods_at_once_have_addresses_of_their_own() {
    let node = TestNode::start();
    let mut addresses = BTreeSet::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|t| {
                let node = &node;
                scope.spawn(move || {
                    let pods: Vec<Pod<'_>> = (0..10).map(|i| node.run_pod(&format!("p{t}-{i}"))).collect();
                    pods.iter().map(address).collect::<Vec<_>>()
                })
            })
            .collect();
        for thread in threads {
            addresses.extend(thread.join().unwrap());
        }
    });
    assert_eq!(addresses.len(), 200);
    let ids = node.pod_ids();
    std::thread::scope(|scope| {
        for ids in ids.chunks(10) {
            let node = &node;
            scope.spawn(move || ids.iter().for_each(|id| node.remove_pod(id).unwrap()));
        }
    });
    node.finish();
}

#[test]
fn without_a_network_there_is_loopback_and_host_ports_are_refused() {
    let node = TestNode::start();
    assert_eq!(not_ready(&node), None);
    node.finish();

    let node = node_with("network.driver = \"none\"\n");
    let (reason, message) = not_ready(&node).expect("no network");
    assert!(reason == "NetworkPluginNotReady" && message.contains("configuration"), "{reason}: {message}");
    let pod = node.run_pod("alone");
    assert_eq!(pod.status().network.unwrap().ip, "");
    let container = pod.sleeper();
    assert_eq!(container.sh("ip -o link | wc -l"), "1");
    assert!(container.sh("cat /etc/hosts").contains("127.0.1.1"));
    let error = with_port(node.pod("web"), 80, 8080).try_run().err().expect("no host ports");
    assert_eq!(error.code(), Code::Unimplemented, "{error}");
    assert!(error.message().contains("port_mappings"), "{error}");
    // On the host's network a container's port is the host's port already.
    with_port(node.pod("host"), 80, 80).host_network().run();
    node.finish();
}

#[test]
fn kubelets_range_is_checked_and_kept() {
    let node = TestNode::start();
    for wrong in ["10.0.0.0", "pods", "10.1.0.0/16,10.2.0.0/16"] {
        let error = set_pod_cidr(&node, wrong).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{wrong}: {error}");
        assert!(error.message().contains("pod_cidr"), "{error}");
    }
    set_pod_cidr(&node, "10.244.7.0/24").unwrap();
    let in_range = |pod: &Pod<'_>| address(pod).to_string().starts_with("10.244.7.");
    let pod = node.run_pod("a");
    assert!(in_range(&pod), "{}", address(&pod));
    node.kill_daemon();
    node.restart();
    let other = node.run_pod("b");
    assert!(in_range(&other) && in_range(&pod));
    node.finish();
}

#[test]
fn name_servers_are_the_pods_or_the_hosts_but_for_its_loopback() {
    let node = TestNode::start();
    let host = node.path("resolv.conf");
    std::fs::write(&host, "search a.example\nnameserver 127.0.0.1\nnameserver 192.0.2.53\n").unwrap();
    let bound = node.inside("mount").args(["--bind"]).arg(&host).arg("/etc/resolv.conf").status().unwrap();
    assert!(bound.success());
    let read = |pod: &Pod<'_>| pod.sleeper().sh("cat /etc/resolv.conf");
    let plain = node.run_pod("plain");
    assert_eq!(read(&plain), "search a.example\nnameserver 192.0.2.53");
    assert!(node.daemon_log().contains("name server 127.0.0.1 of the host"), "{}", node.daemon_log());
    let on_host = node.pod("host").host_network().run();
    assert_eq!(read(&on_host), std::fs::read_to_string(&host).unwrap().trim_end());
    let dns = DnsConfig { servers: vec!["127.0.0.1".into()], searches: vec!["b.example".into()], options: Vec::new() };
    let own = node.pod("own").with(|c| c.dns_config = Some(dns)).run();
    assert_eq!(read(&own), "search b.example\nnameserver 127.0.0.1");
    let unbound = node.inside("umount").arg("/etc/resolv.conf").status().unwrap();
    assert!(unbound.success());
    node.finish();
}

#[test]
fn limits_on_traffic_that_are_none_are_refused_by_name() {
    let node = TestNode::start();
    for wrong in ["10", "2P", "fast"] {
        let annotation = "kubernetes.io/ingress-bandwidth";
        let pod = node.pod("p").with(|c| drop(c.annotations.insert(annotation.to_owned(), wrong.to_owned())));
        let error = pod.try_run().err().expect("no limit");
        assert!(error.code() == Code::InvalidArgument && error.message().contains(annotation), "{error}");
    }
    node.finish();
}

#[test]
fn addresses_outlive_the_daemon() {
    let node = TestNode::start();
    let pod = node.run_pod("web");
    let _server = server(&pod, 80, "still-here");
    let before = pod.status();
    let to = SocketAddr::new(address(&pod), 80);
    node.kill_daemon();
    assert_eq!(hear(&node, to), "still-here");
    for _ in 0..2 {
        node.restart();
        assert_eq!(pod.status(), before);
        assert_eq!(hear(&node, to), "still-here");
        let other = node.run_pod("another");
        assert_ne!(address(&other), address(&pod));
        node.remove_pod(&other.id).unwrap();
        node.kill_daemon();
    }
    node.restart();
    node.finish();
}

#[test]
fn what_others_take_away_comes_back_before_the_next_look() {
    let node = TestNode::start();
    let pod = with_port(node.pod("web"), 80, 8080).run();
    let _server = server(&pod, 80, "hello");
    let published: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let itself = SocketAddr::new(address(&pod), 80);
    assert_eq!((hear(&node, published), hear(&node, itself)), ("hello".to_owned(), "hello".to_owned()));
    let commands =
        [&["nft", "flush", "ruleset"][..], &["ip", "link", "del", "aril0"], &["ip", "link", "set", "aril0", "down"]];
    for command in commands.into_iter().cycle().take(6) {
        assert!(node.inside(command[0]).args(&command[1..]).status().unwrap().success());
        let begun = Instant::now();
        assert_eq!((hear(&node, published), hear(&node, itself)), ("hello".to_owned(), "hello".to_owned()));
        // The driver looks by itself every ten seconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{command:?}: {:?}", begun.elapsed());
    }
    assert_eq!(not_ready(&node), None);
    node.finish();
}
