//! Host ports of pods.

use std::net::SocketAddr;

use aril::api::node::{InspectNetworkRequest, ListNetworksRequest, SystemResetRequest};
use tonic::Code;

use crate::support::TestNode;
use crate::support::network::{address, ask, hear, server, with_port};

#[test]
fn a_host_port_leads_to_its_pod_and_is_one_pods_at_a_time() {
    let node = TestNode::start();
    let own = node.inside("ip").args(["address", "add", "192.0.2.1/32", "dev", "lo"]).status().unwrap();
    assert!(own.success());
    let pod = with_port(node.pod("web"), 80, 8080).run();
    let _server = server(&pod, 80, "hello");
    for host in ["127.0.0.1:8080", "192.0.2.1:8080"] {
        assert_eq!(hear(&node, host.parse().unwrap()), "hello", "{host}");
    }
    let other = with_port(node.pod("other"), 81, 8080).try_run().err().expect("the port is taken");
    assert_eq!(other.code(), Code::FailedPrecondition, "{other}");
    assert!(other.message().contains("8080") && other.message().contains("set up the network"), "{other}");
    assert_eq!(node.pod_ids(), [pod.id.clone()], "nothing is left of the other");
    assert_eq!(ask(&node, "127.0.0.1:8080".parse().unwrap()).unwrap(), "hello");

    pod.stop().unwrap();
    assert!(ask(&node, "127.0.0.1:8080".parse().unwrap()).is_err(), "the port leads nowhere any more");
    let other = with_port(node.pod("other"), 81, 8080).run();
    let _server = server(&other, 81, "other");
    assert_eq!(hear(&node, "127.0.0.1:8080".parse().unwrap()), "other");
    node.finish();
}

#[test]
fn addresses_and_ports_outlive_the_daemon() {
    let node = TestNode::start();
    let pod = with_port(node.pod("web"), 80, 8080).run();
    let _server = server(&pod, 80, "still-here");
    let before = pod.status();
    node.kill_daemon();
    assert_eq!(hear(&node, "127.0.0.1:8080".parse().unwrap()), "still-here");
    for _ in 0..2 {
        node.restart();
        assert_eq!(pod.status(), before);
        assert_eq!(hear(&node, SocketAddr::new(address(&pod), 80)), "still-here");
        let taken = with_port(node.pod("other"), 80, 8080).try_run().err().expect("the port is still taken");
        assert!(taken.message().contains("8080"), "{taken}");
        let other = node.run_pod("another");
        assert_ne!(address(&other), address(&pod));
        node.remove_pod(&other.id).unwrap();
        node.kill_daemon();
    }
    node.restart();
    node.finish();
}

#[test]
fn a_person_sees_the_networks_and_resets_them_without_pods() {
    let node = TestNode::start();
    let pod = with_port(node.pod("web"), 80, 8080).run();
    let list = node.cri().node(|mut c| async move { c.list_networks(ListNetworksRequest {}).await }).unwrap();
    let chosen: Vec<_> = list.networks.iter().filter(|n| n.chosen).collect();
    assert!(matches!(chosen[..], [n] if n.driver == "bridge" && n.pods == 1 && n.problem.is_empty()), "{list:?}");
    let inspect = |driver: &str| {
        let request = InspectNetworkRequest { driver: driver.to_owned() };
        node.cri().node(|mut c| async move { c.inspect_network(request).await })
    };
    let details = inspect("").unwrap();
    assert_eq!(details.pods[0].id, pod.id);
    assert!(details.pods[0].addresses[0].starts_with(&format!("{}/", address(&pod))));
    assert_eq!(details.pods[0].ports, ["8080:80/tcp"]);
    assert!(details.details.starts_with('{'), "{}", details.details);
    assert_eq!(inspect("carrier-pigeon").unwrap_err().code(), Code::NotFound);
    let reset = || node.cri().node(|mut c| async move { c.system_reset(SystemResetRequest {}).await });
    assert_eq!(reset().unwrap_err().code(), Code::FailedPrecondition);
    node.remove_all_pods();
    assert!(reset().unwrap().left.is_empty());
    let links = node.inside("ip").args(["-o", "link"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&links.stdout).lines().count(), 1, "only loopback is left");
    // And it comes back with the next pod.
    assert!(address(&node.run_pod("next")).is_ipv4());
    node.finish();
}
