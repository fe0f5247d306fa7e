//! The network as a person at a shell has it: addresses, ports, networks, and the way back to a clean machine.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::Value;

use crate::support::TestNode;
use crate::support::network::{ask, hear, node_with};

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
    assert_eq!((&pods[0]["name"], &pods[0]["namespace"]), (&"web".into(), &"default".into()));
    for shown in [ok(&node, &["network", "inspect"]), ok(&node, &["network", "ls", "-o", "wide"])] {
        let line = shown.lines().find(|line| line.starts_with("bridge") && line.contains("web")).expect(&shown);
        assert!(line.contains(&ip) && line.contains(&node.pod_ids()[0][..12]), "{line}");
    }
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
fn a_pod_has_its_own_network_unless_another_is_asked_for() {
    let node = TestNode::start();
    let links = |flags: &[&str]| {
        let all = [&["run", "--rm"], flags, &["--entrypoint", "sh", "probe", "-c", "ip addr"]].concat();
        let output = aril(&node, &all);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for usual in [&[][..], &["--network", "pod"]] {
        let links = links(usual);
        assert!(links.contains("127.0.0.1") && links.contains("eth0"), "{links}");
    }
    let alone = links(&["--network", "none"]);
    assert!(alone.contains("127.0.0.1") && !alone.contains("eth0"), "{alone}");
    ok(&node, &["pod", "create", "usual"]);
    ok(&node, &["pod", "create", "--network", "none", "alone"]);
    ok(&node, &["create", "--name", "made", "probe", "true"]);
    let pods = json(&node, &["pods"]);
    let ips = |name: &str| {
        let pod = pods.as_array().unwrap().iter().find(|pod| pod["name"] == name).expect(name);
        pod["ips"].as_array().map_or(0, Vec::len)
    };
    assert!(ips("usual") > 0 && ips("made") > 0 && ips("alone") == 0, "{pods}");
    // The bridge is up by now, and seen by whoever is on this machine's network.
    let host = links(&["--network", "host"]);
    assert!(host.contains("aril0"), "{host}");
    ok(&node, &["rm", "-f", "usual", "alone", "made"]);
    node.finish();
}

#[test]
fn a_pod_that_cannot_be_connected_says_so_and_runs() {
    let node = node_with("network.driver = \"none\"\n");
    for (command, network, told) in [
        (&["run", "--rm", "--entrypoint", "true", "probe"][..], &[][..], true),
        (&["run", "--rm", "--entrypoint", "true", "probe"], &["--network", "none"], false),
        (&["run", "--rm", "--entrypoint", "true", "probe"], &["--network", "host"], false),
        (&["create", "--name", "made", "probe"], &[], true),
        (&["pod", "create", "empty"], &[], true),
    ] {
        let (name, flags) = command.split_last().unwrap();
        let all = [flags, network, &[*name]].concat();
        let output = aril(&node, &all);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{all:?}: {error}");
        let warned = error.contains("warning: pod") && error.contains("loopback") && error.contains("network.driver");
        assert_eq!(warned, told, "{all:?}: {error}");
    }
    ok(&node, &["rm", "-f", "made", "empty"]);
    node.finish();
}

#[test]
fn published_ports_carry_traffic() {
    let node = TestNode::start();
    let own = node.inside("ip").args(["address", "add", "192.0.2.1/32", "dev", "lo"]).status().unwrap();
    assert!(own.success());
    let script =
        "mkdir -p /a /b; echo first >/a/word; echo second >/b/word; httpd -p 80 -h /a; exec httpd -f -p 81 -h /b";
    let flags = ["-p", "18080-18081:80-81", "-p", "127.0.0.1:18082:80", "--entrypoint", "sh"];
    ok(&node, &[&["run", "-d", "--name", "web"], &flags[..], &["probe", "-c", script]].concat());
    for host in ["127.0.0.1", "192.0.2.1"] {
        for (port, word) in [(18080, "first"), (18081, "second")] {
            assert_eq!(hear(&node, SocketAddr::new(host.parse().unwrap(), port)), word, "{host}:{port}");
        }
    }
    assert_eq!(hear(&node, "127.0.0.1:18082".parse().unwrap()), "first");
    assert!(ask(&node, "192.0.2.1:18082".parse().unwrap()).is_err(), "it was published on loopback alone");
    let error = fails(&node, &["run", "--rm", "-p", "18081:80", "probe", "true"]);
    assert!(error.contains("18081"), "{error}");
    ok(&node, &["rm", "-f", "web"]);
    assert!(ask(&node, "127.0.0.1:18080".parse().unwrap()).is_err());
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
    assert!(error.contains("1 container is running") && error.contains("--stop"), "{error}");
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

#[test]
fn host_ports_are_listed_and_one_leads_to_one_port() {
    let node = TestNode::start();
    let error = fails(&node, &["run", "-d", "-p", "18082:80", "-p", "18082:81", "probe"]);
    assert!(error.contains("--publish") && error.contains("18082"), "{error}");
    let error = fails(&node, &["run", "-d", "-p", "::1:18082:80", "probe"]);
    assert!(error.contains("[::1]:18082:80"), "{error}");
    assert!(node.pod_ids().is_empty());
    serve(&node, "web", &["-p", "18082:80", "-p", "127.0.0.1:18083:80/udp"]);
    let ports = &json(&node, &["pods"])[0]["ports"];
    assert_eq!(*ports, serde_json::json!(["18082:80/tcp", "127.0.0.1:18083:80/udp"]));
    assert!(ok(&node, &["pods", "-o", "wide"]).contains("18082:80/tcp,127.0.0.1:18083:80/udp"));
    ok(&node, &["rm", "-f", "web"]);
    node.finish();
}

#[test]
fn name_servers_and_names_reach_the_container() {
    let node = TestNode::start();
    let script = "cat /etc/resolv.conf; cat /etc/hosts";
    let flags = [
        "--dns",
        "192.0.2.53",
        "--dns-search",
        "a.example",
        "--add-host",
        "db:192.0.2.7",
        "--add-host",
        "six:[fd00::7]",
    ];
    let all = [&["run", "--rm"], &flags[..], &["--entrypoint", "sh", "probe", "-c", script]].concat();
    let told = ok(&node, &all);
    assert!(told.starts_with("search a.example\nnameserver 192.0.2.53\n"), "{told}");
    assert!(told.contains("localhost") && told.ends_with("192.0.2.7\tdb\nfd00::7\tsix\n"), "{told}");
    node.finish();
}
