//! Pods connected by CNI plugins, sick ones among them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aril::api::node::InspectNetworkRequest;

use crate::support::network::{node_with, not_ready};
use crate::support::{PATIENCE, TestNode, wait_for};

/// The configuration for CNI with plugins of the node's own.
const FAULTY: &str =
    "network.driver = \"cni\"\nnetwork.cni_plugin_dirs = [\"{node}/plugins\"]\nnetwork.cni_timeout_seconds = 2\n";

/// A plugin that connects nobody, and does as the files beside it say: `fail-del` holds how many DELs fail, `hang` the
/// name of the pod whose DEL hangs.
fn fault_plugin(node: &TestNode) -> PathBuf {
    let dir = node.path("plugins");
    std::fs::create_dir_all(&dir).unwrap();
    let script = format!(
        r#"#!/bin/sh
here={0}
echo "$CNI_COMMAND $CNI_CONTAINERID" >>$here/calls
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}}' ;;
ADD)
    case $CNI_ARGS in *K8S_POD_NAME=refused*)
        echo '{{"cniVersion":"1.0.0","code":11,"msg":"the switch is on fire"}}'
        exit 1 ;;
    *K8S_POD_NAME=lazy*)
        sleep 2
        touch $here/late ;;
    esac
    echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"'$CNI_NETNS'"}}],"ips":[{{"address":"192.0.2.9/24","interface":0}}]}}' ;;
DEL)
    left=$(cat $here/fail-del 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then
        echo $((left - 1)) >$here/fail-del
        echo '{{"cniVersion":"1.0.0","code":11,"msg":"the lease office is closed"}}'
        exit 1
    fi
    hang=$(cat $here/hang 2>/dev/null || true)
    case $CNI_ARGS in *K8S_POD_NAME="${{hang:-nobody-at-all}}"*) exec sleep 4 ;; esac ;;
esac
"#,
        dir.display()
    );
    let plugin = dir.join("fault");
    std::fs::write(&plugin, script).unwrap();
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = node.path("net.d");
    std::fs::create_dir_all(&config).unwrap();
    let list = r#"{"cniVersion":"1.0.0","name":"faulty","plugins":[{"type":"fault"}]}"#;
    std::fs::write(config.join("10-fault.conflist"), list).unwrap();
    dir
}

/// How often the plugin was called with this command for a pod.
fn calls(dir: &Path, command: &str, pod: &str) -> usize {
    let calls = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    calls.lines().filter(|line| *line == format!("{command} {pod}")).count()
}

/// Sentences about what is left of networks.
fn leftovers(node: &TestNode) -> Vec<String> {
    let request = InspectNetworkRequest { driver: "cni".to_owned() };
    node.cri().node(|mut c| async move { c.inspect_network(request).await }).unwrap().leftovers
}

#[test]
fn a_plugin_that_refuses_is_named_and_nothing_is_left() {
    let node = node_with(FAULTY);
    let dir = fault_plugin(&node);
    let error = node.pod("refused").try_run().err().expect("the plugin refuses");
    for part in ["set up the network of sandbox", "fault", "the switch is on fire"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert!(node.pod_ids().is_empty());
    let adds = std::fs::read_to_string(dir.join("calls")).unwrap();
    let id = adds.lines().find_map(|line| line.strip_prefix("ADD ")).expect("an ADD");
    assert_eq!(calls(&dir, "DEL", id), 1, "{adds}");
    node.finish();
}

#[test]
fn what_a_plugin_leaves_is_tried_again_and_holds_up_nobody() {
    let node = node_with(FAULTY);
    let dir = fault_plugin(&node);
    let pod = node.run_pod("sticky");
    assert_eq!(pod.status().network.unwrap().ip, "192.0.2.9");
    assert!(node.path(format!("netns/aril-{}", &pod.id[..12])).exists(), "plugins want a path");
    std::fs::write(dir.join("fail-del"), "2").unwrap();
    pod.stop().unwrap();
    pod.remove().unwrap();
    assert!(node.pod_ids().is_empty());
    let left = leftovers(&node);
    assert!(left.len() == 1 && left[0].contains("the lease office is closed"), "{left:?}");
    // Also by a daemon that never knew the pod.
    node.kill_daemon();
    node.restart();
    wait_for("the last of it to go", PATIENCE, || leftovers(&node).is_empty().then_some(()));
    assert_eq!(calls(&dir, "DEL", &pod.id), 3);
    node.finish();
}

#[test]
fn a_plugin_that_hangs_costs_its_deadline_once_and_other_pods_go_on() {
    let node = node_with(FAULTY);
    let dir = fault_plugin(&node);
    let pod = node.run_pod("sick");
    let other = node.run_pod("well");
    std::fs::write(dir.join("hang"), "sick").unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| pod.stop());
        wait_for("the plugin to hang", PATIENCE, || (calls(&dir, "DEL", &pod.id) > 0).then_some(()));
        let meanwhile = Instant::now();
        node.run_pod("new");
        other.stop().unwrap();
        assert_eq!(node.pod_ids().len(), 3);
        assert!(meanwhile.elapsed() < Duration::from_millis(1500), "others waited {:?}", meanwhile.elapsed());
        stop.join().unwrap().unwrap();
    });
    let stopped = begun.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&stopped), "{stopped:?}");
    let begun = Instant::now();
    pod.remove().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "the removal waited, too: {:?}", begun.elapsed());
    assert_eq!(leftovers(&node).len(), 1);
    std::fs::remove_file(dir.join("hang")).unwrap();
    wait_for("the last of it to go", PATIENCE, || leftovers(&node).is_empty().then_some(()));
    node.finish();
}

#[test]
fn a_daemon_killed_while_a_plugin_works_leaves_it_to_the_next() {
    let node = node_with(FAULTY);
    let dir = fault_plugin(&node);
    std::fs::write(dir.join("hang"), "sick").unwrap();
    let pod = node.run_pod("sick");
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| pod.stop());
        wait_for("the plugin to hang", PATIENCE, || (calls(&dir, "DEL", &pod.id) > 0).then_some(()));
        node.kill_daemon();
        drop(stop.join());
    });
    std::fs::remove_file(dir.join("hang")).unwrap();
    node.restart();
    pod.stop().unwrap();
    assert!(pod.status().network.unwrap().ip.is_empty());
    node.finish();
}

#[test]
fn the_network_is_ready_once_there_is_a_configuration() {
    let node = node_with(FAULTY);
    let (reason, message) = not_ready(&node).expect("no CNI configuration");
    assert!(reason == "NetworkPluginNotReady" && message.contains("net.d"), "{reason}: {message}");
    let error = node.pod("p").try_run().err().expect("no network");
    assert!(error.message().contains("set up the network of sandbox"), "{error}");
    fault_plugin(&node);
    wait_for("NetworkReady", PATIENCE, || not_ready(&node).is_none().then_some(()));
    node.run_pod("p");
    node.finish();
}

#[test]
fn a_plugin_that_outlives_its_daemon_connects_nobody() {
    let node = node_with(FAULTY);
    let dir = fault_plugin(&node);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| node.pod("lazy").try_run().map(drop));
        let begun = || std::fs::read_to_string(dir.join("calls")).is_ok_and(|calls| calls.contains("ADD "));
        wait_for("the plugin's ADD", PATIENCE, || begun().then_some(()));
        node.kill_daemon();
        run.join().unwrap().unwrap_err();
    });
    node.restart();
    let id = std::fs::read_to_string(dir.join("calls")).unwrap();
    let id = id.lines().find_map(|line| line.strip_prefix("ADD ")).unwrap().to_owned();
    wait_for("its DEL", PATIENCE, || (calls(&dir, "DEL", &id) > 0).then_some(()));
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!dir.join("late").exists(), "it went on after DEL");
    assert!(node.pod_ids().is_empty() && leftovers(&node).is_empty());
    node.finish();
}
