//! The network as a person at a shell has it: addresses, ports, networks, and the way back to a clean machine.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::Value;

use crate::support::TestNode;
use crate::support::network::{hear, node_with};

fn aril(node: &TestNode, arguments: &[&str]) -> Output {
    node.aril(arguments.iter().copied()).output().expect("run aril")
}

fn ok(node: &TestNode, arguments: &[&str]) -> String {
    let output = aril(node, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command that must fail says.
fn fails(node: &TestNode, arguments: &[&str]) -> String {
    let output = aril(node, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(node: &TestNode, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    serde_json::from_str(&ok(node, &all)).expect("JSON")
}

/// Runs a server of a word, left running.
fn serve(node: &TestNode, name: &str, flags: &[&str]) {
    let script = format!("mkdir -p /www && echo {name} >/www/word && exec httpd -f -p 80 -h /www");
    let mut all = vec!["run", "-d", "--name", name];
    all.extend(flags);
    all.extend(["--entrypoint", "sh", "probe", "-c", &script]);
    ok(node, &all);
}

#[test]
fn a_pod_is_reached_by_the_address_that_is_told() {
    let node = TestNode::start();
    serve(&node, "web", &["--network", "pod"]);
    let ip = json(&node, &["pods"])[0]["ips"][0].as_str().expect("an address").to_owned();
    assert_eq!(hear(&node, SocketAddr::new(ip.parse().unwrap(), 80)), "web");
    assert!(ok(&node, &["pods"]).contains(&ip));
    assert!(ok(&node, &["inspect", &node.pod_ids()[0]]).contains(&ip));

    let networks = json(&node, &["network", "ls"]);
    let bridge = networks.as_array().unwrap().iter().find(|n| n["driver"] == "bridge").expect("the bridge");
    assert_eq!((&bridge["chosen"], &bridge["pods"]), (&Value::Bool(true), &1.into()));
    assert!(ok(&node, &["network", "ls"]).starts_with("DRIVER"));
    let inspected = json(&node, &["network", "inspect"]);
    let pods = inspected[0]["pods"].as_array().unwrap();
    assert!(pods[0]["addresses"][0].as_str().unwrap().starts_with(&format!("{ip}/")), "{pods:?}");
    assert_eq!(json(&node, &["network", "inspect", "bridge"])[0]["pods"], inspected[0]["pods"]);
    assert!(fails(&node, &["network", "inspect", "token-ring"]).contains("token-ring"));
    ok(&node, &["rm", "-f", "web"]);
    node.finish();
}

#[test]
fn ports_that_lead_nowhere_are_refused() {
    let node = node_with("network.driver = \"none\"\n");
    let error = fails(&node, &["run", "--rm", "-p", "18080:80", "probe", "true"]);
    assert!(error.contains("port"), "{error}");
    for network in ["none", "host"] {
        let error = fails(&node, &["run", "--network", network, "-p", "18081:80", "probe", "true"]);
        assert!(error.contains("--publish") && error.contains(network), "{error}");
    }
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn what_is_not_asked_for_is_not_given() {
    let node = TestNode::start();
    let links = ok(&node, &["run", "--rm", "--entrypoint", "sh", "probe", "-c", "ip addr"]);
    assert!(links.contains("127.0.0.1") && !links.contains("eth0"), "{links}");
    let links = ok(&node, &["run", "--rm", "--network", "pod", "--entrypoint", "sh", "probe", "-c", "ip addr"]);
    assert!(links.contains("eth0"), "{links}");
    node.finish();
}

#[test]
fn a_reset_leaves_a_machine_as_it_was() {
    let node = TestNode::start();
    let rules = || {
        let output =
            node.inside("sh").args(["-c", "ip link 2>/dev/null || busybox ip link; nft list ruleset"]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    serve(&node, "web", &["--network", "pod"]);
    assert!(rules().contains("aril0"), "{}", rules());
    // Not what runs, and not without being told.
    let error = fails(&node, &["system", "reset", "--force"]);
    assert!(error.contains("1 containers are running") && error.contains("--stop"), "{error}");
    let error = fails(&node, &["system", "reset", "--stop"]);
    assert!(error.contains("--force"), "{error}");
    assert_eq!(node.pod_ids().len(), 1);
    let told = json(&node, &["system", "reset", "--stop", "--force"]);
    assert_eq!((&told["pods"], &told["images"], told["left"].as_array().unwrap().len()), (&1.into(), &0.into(), 0));
    assert!(!rules().contains("aril"), "{}", rules());
    assert!(node.pod_ids().is_empty() && ok(&node, &["image", "ls"]).contains("probe"));

    // All is made anew by whoever wants it, and the images go when told.
    serve(&node, "again", &["--network", "pod"]);
    let ip = json(&node, &["pods"])[0]["ips"][0].as_str().expect("an address").to_owned();
    assert_eq!(hear(&node, SocketAddr::new(ip.parse().unwrap(), 80)), "again");
    ok(&node, &["system", "reset", "--stop", "--force", "--all"]);
    assert!(!rules().contains("aril"), "{}", rules());
    assert!(!ok(&node, &["image", "ls"]).contains("probe"));
    node.finish();
}
