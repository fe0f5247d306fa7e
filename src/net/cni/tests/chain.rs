//! What plugins get, in which order, and what stays on disk.

use std::fs;

use serde_json::json;

use super::kit::{Kit, RESULT, good, request};
use crate::net::{Attachment, Bandwidth, Driver, Live, NetError, Ports, Protocol, Request};

fn live(request: &Request, attachment: &Attachment) -> Live {
    Live { id: request.id.clone(), attachment: attachment.clone() }
}

#[test]
fn plugins_run_forwards_and_backwards_with_the_result_of_those_before() {
    let second = RESULT.replace("10.0.0.5", "10.0.0.6");
    let second = format!("[ $CNI_COMMAND = ADD ] && echo '{second}'; exit 0");
    let kit = Kit::new(&[("one", &good()), ("two", &second)]);
    let attachment = kit.setup(&request(1)).unwrap();
    assert_eq!(attachment.addresses[0].ip.to_string(), "10.0.0.6");
    assert_eq!((attachment.network.as_str(), attachment.mac.as_str()), ("pods", "02:00:00:00:00:01"));
    assert_eq!(attachment.routes[0].via.unwrap().to_string(), "10.0.0.1");
    assert!(kit.json("one.ADD").get("prevResult").is_none());
    assert_eq!(kit.json("two.ADD")["prevResult"], serde_json::from_str::<serde_json::Value>(RESULT).unwrap());
    kit.check(&request(1)).unwrap();
    assert_eq!(kit.json("one.CHECK")["prevResult"]["ips"][0]["address"], "10.0.0.6/24");
    assert_eq!(kit.driver.known().unwrap(), [request(1).id]);
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.json("one.DEL")["prevResult"]["ips"][0]["address"], "10.0.0.6/24");
    assert_eq!(kit.calls(), ["one ADD", "two ADD", "one CHECK", "two CHECK", "two DEL", "one DEL"]);
    assert_eq!(kit.driver.known().unwrap(), []);
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.calls(), Vec::<String>::new(), "nothing is deleted twice");
}

#[test]
fn the_environment_is_cleared_and_says_whose_pod_it_is() {
    let kit = Kit::new(&[("one", &good())]);
    kit.setup(&request(7)).unwrap();
    let id = request(7).id;
    let env = kit.read("one.ADD.env");
    for line in [
        "CNI_COMMAND=ADD",
        &format!("CNI_CONTAINERID={id}"),
        "CNI_IFNAME=eth0",
        "CNI_NETNS=/run/netns/x",
        &format!("CNI_PATH={}", kit.path("bin").display()),
        &format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};\
             K8S_POD_UID=u-1"
        ),
    ] {
        assert!(env.lines().any(|l| l == line), "{line} is missing in:\n{env}");
    }
    let names: Vec<&str> = env.lines().filter_map(|l| l.split('=').next()).collect();
    let of_the_shell = ["PWD", "_", "SHLVL", "OLDPWD"];
    assert!(
        names
            .iter()
            .all(|n| n.starts_with("CNI_") || ["PATH", "ARIL_CNI_BOOKS"].contains(n) || of_the_shell.contains(n)),
        "{names:?}"
    );
    kit.teardown(&request(7));
    assert!(kit.read("one.DEL.env").lines().any(|l| l == "CNI_NETNS="), "a namespace that is gone is empty");
}

#[test]
fn capabilities_reach_those_who_declare_them() {
    let kit = Kit::new(&[("one", &good()), ("two", &good())]);
    kit.configure(
        r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
            {"type":"one","big":123456789012345678901234567890,"capabilities":{"portMappings":true,"bandwidth":false}},
            {"type":"two","capabilities":{"bandwidth":true,"dns":true,"io.kubernetes.cri.pod-annotations":true},
             "cni.dev/own":1}]}"#,
    );
    let port =
        Ports { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip: "127.0.0.1".parse().ok() };
    let mut asked = request(1);
    asked.ports = vec![port];
    asked.bandwidth = Bandwidth { ingress: Some(1_000_000_000), egress: None };
    asked.dns.servers = vec!["10.96.0.10".to_owned()];
    asked.annotations.insert("a/b".to_owned(), "c".to_owned());
    let attachment = kit.setup(&asked).unwrap();
    assert_eq!((attachment.ports, attachment.warnings), (asked.ports.clone(), Vec::new()));
    let one = kit.json("one.ADD");
    let ports = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}]);
    assert_eq!(one["runtimeConfig"], json!({ "portMappings": ports }));
    assert!(one.get("capabilities").is_none());
    assert!(kit.read("one.ADD").contains("123456789012345678901234567890"), "other fields are as they were written");
    let two = kit.json("two.ADD");
    assert_eq!(two["runtimeConfig"]["bandwidth"], json!({"ingressRate": 1_000_000_000, "ingressBurst": 100_000_000}));
    assert_eq!(two["runtimeConfig"]["dns"]["servers"], json!(["10.96.0.10"]));
    assert_eq!(two["runtimeConfig"]["io.kubernetes.cri.pod-annotations"], json!({"a/b": "c"}));
    assert!(two["runtimeConfig"].get("portMappings").is_none() && two.get("cni.dev/own").is_none());
    kit.teardown(&asked);
    assert_eq!(kit.json("one.DEL")["runtimeConfig"], json!({ "portMappings": ports }));
}

#[test]
fn what_nobody_declares_is_refused_or_warned_of() {
    let kit = Kit::new(&[("one", &good())]);
    let mut asked = request(1);
    asked.ports = vec![Ports { protocol: Protocol::Tcp, container_port: 80, host_port: 80, host_ip: None }];
    for result in [kit.driver.validate(&asked), kit.setup(&asked).map(drop)] {
        let error = result.unwrap_err();
        assert!(matches!(error, NetError::Unsupported { .. }));
        assert!(error.to_string().starts_with("port_mappings: no plugin of CNI network pods declares"), "{error}");
    }
    asked.ports.clear();
    asked.ips = vec!["10.0.0.9".parse().unwrap()];
    assert!(kit.driver.validate(&asked).unwrap_err().to_string().starts_with("ips: "));
    asked.ips.clear();
    asked.bandwidth.egress = Some(5);
    kit.driver.validate(&asked).unwrap();
    let warnings = kit.setup(&asked).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("bandwidth"), "{warnings:?}");
    assert_eq!(kit.calls(), ["one ADD"], "nothing ran for what was refused");
}

#[test]
fn values_that_would_end_their_pair_are_refused() {
    let kit = Kit::new(&[("one", &good())]);
    for (name, uid) in [("a;K8S_POD_NAME=b", "u"), ("a=b", "u"), ("a", "u\n"), ("a", ";")] {
        let asked = Request { name: name.to_owned(), uid: uid.to_owned(), ..request(1) };
        assert!(matches!(kit.driver.validate(&asked), Err(NetError::Invalid { .. })), "{name:?} {uid:?}");
        assert!(kit.setup(&asked).is_err());
    }
    assert_eq!(kit.calls(), Vec::<String>::new());
}

#[test]
fn del_uses_what_add_used_whatever_the_configuration_is_by_then() {
    let mut kit = Kit::new(&[("one", &good()), ("two", &good())]);
    kit.setup(&request(1)).unwrap();
    kit.configure(r#"{"cniVersion":"0.4.0","name":"other","plugins":[{"type":"two","new":true}]}"#);
    kit.reopen();
    assert_eq!(kit.driver.known().unwrap(), [request(1).id]);
    kit.calls();
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.calls(), ["two DEL", "one DEL"]);
    let input = kit.json("two.DEL");
    assert_eq!((input["name"].as_str(), input["cniVersion"].as_str()), (Some("pods"), Some("1.0.0")));
    assert!(input.get("new").is_none() && input["prevResult"].is_object());
}

#[test]
fn before_0_4_0_there_is_no_check_and_del_gets_no_result() {
    let kit = Kit::with("0.3.1", "", &[("one", &good())]);
    kit.setup(&request(1)).unwrap();
    kit.check(&request(1)).unwrap();
    kit.teardown(&request(1));
    assert_eq!(kit.calls(), ["one ADD", "one DEL"]);
    assert!(kit.json("one.DEL").get("prevResult").is_none());
}

#[test]
fn check_can_be_switched_off_and_fails_with_the_first_plugin() {
    let bad = format!("[ $CNI_COMMAND = CHECK ] && echo '{{\"code\":100,\"msg\":\"gone\"}}' && exit 1; {}", good());
    let kit = Kit::new(&[("one", &bad), ("two", &good())]);
    kit.setup(&request(1)).unwrap();
    kit.calls();
    let error = kit.check(&request(1)).unwrap_err().to_string();
    assert_eq!(error, "CNI plugin one of network pods, CHECK: gone (code 100)");
    assert_eq!(kit.calls(), ["one CHECK"]);
    assert!(kit.check(&request(2)).unwrap_err().to_string().contains("never connected"));
    let kit = Kit::with("1.0.0", "\"disableCheck\":\"true\",", &[("one", &bad)]);
    kit.setup(&request(1)).unwrap();
    kit.check(&request(1)).unwrap();
}

#[test]
fn a_list_is_run_with_the_highest_version_that_all_its_plugins_speak() {
    let speaks = |versions: &str| {
        format!("[ $CNI_COMMAND = VERSION ] && echo '{{\"supportedVersions\":[{versions}]}}' && exit 0; {}", good())
    };
    let kit = Kit::with(
        "0.4.0",
        "\"cniVersions\":[\"0.3.1\",\"1.0.0\",\"1.1.0\",\"2.0.0\"],",
        &[("one", &speaks("\"0.4.0\",\"1.0.0\",\"1.1.0\"")), ("two", &speaks("\"0.3.1\",\"0.4.0\",\"1.0.0\""))],
    );
    kit.setup(&request(1)).unwrap();
    assert_eq!(kit.json("one.ADD")["cniVersion"], "1.0.0");
    assert_eq!(kit.calls(), ["one VERSION", "two VERSION", "one ADD", "two ADD"]);
    kit.setup(&request(2)).unwrap();
    assert_eq!(kit.calls(), ["one ADD", "two ADD"], "versions are asked for once");
    kit.plugin("two", &speaks("\"0.1.0\""));
    let error = kit.setup(&request(3)).unwrap_err().to_string();
    assert!(error.contains("plugin two of CNI network pods speaks none"), "{error}");
    assert!(kit.driver.status().is_err());
}

#[test]
fn gc_hears_of_those_alive() {
    let mut kit = Kit::with("1.1.0", "", &[("one", &good()), ("two", &good())]);
    let attachments: Vec<Attachment> = (1..=3).map(|n| kit.setup(&request(n)).unwrap()).collect();
    kit.reopen();
    let fourth = kit.setup(&request(4)).unwrap();
    kit.calls();
    // The fourth was set up after somebody looked which ones are alive.
    let left = kit.driver.reconcile(&[live(&request(2), &attachments[1])]);
    assert_eq!(left, []);
    // Others are torn down one by one, with what is still there of their namespaces.
    assert_eq!(kit.calls(), ["one GC", "two GC"]);
    assert_eq!(kit.driver.known().unwrap().len(), 4);
    let valid = kit.json("two.GC")["cni.dev/valid-attachments"].clone();
    let of = |n: u8| json!({"containerID": request(n).id.as_str(), "ifname": "eth0"});
    assert_eq!(valid, json!([of(2), of(4)]));
    assert_eq!(fourth.network, "pods");
}

#[test]
fn gc_is_called_only_where_the_list_has_it() {
    for (version, keys) in [("1.0.0", ""), ("1.1.0", "\"disableGC\":true,")] {
        let kit = Kit::with(version, keys, &[("one", &good())]);
        assert_eq!(kit.driver.reconcile(&[]), []);
        assert_eq!(kit.calls(), Vec::<String>::new(), "{version} {keys}");
    }
    let kit = Kit::with("1.1.0", "", &[("one", "echo '{\"code\":7,\"msg\":\"no\"}'; exit 1"), ("two", "exit 0")]);
    let left = kit.driver.reconcile(&[]);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].what, "CNI GC by one of network pods");
    assert_eq!(kit.calls(), ["one GC", "two GC"]);
}

#[test]
fn lost_books_of_living_pods_are_rebuilt_and_del_works_with_them() {
    let mut kit = Kit::new(&[("one", &good())]);
    let attachment = kit.setup(&request(1)).unwrap();
    kit.setup(&request(2)).unwrap();
    kit.reopen();
    let book = |n: u8| format!("books/{}.json", request(n).id);
    fs::remove_file(kit.path(&book(1))).unwrap();
    fs::write(kit.path(&book(2)), "{ half").unwrap();
    let both = [live(&request(1), &attachment), live(&request(2), &attachment)];
    assert_eq!(kit.driver.reconcile(&both), []);
    assert_eq!(kit.read(&format!("books/damaged/{}.json", request(2).id)), "{ half");
    kit.calls();
    kit.check(&request(1)).unwrap();
    for number in [1, 2] {
        assert_eq!(kit.teardown(&request(number)), []);
        let input = kit.json("one.DEL");
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.0.0.5/24");
        assert_eq!(input["prevResult"]["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]));
    }
    assert_eq!(kit.calls(), ["one DEL", "one DEL"]);
}

#[test]
fn a_damaged_book_of_a_dead_pod_is_moved_aside_and_the_configuration_of_now_is_used() {
    let mut kit = Kit::new(&[("one", &good())]);
    kit.setup(&request(1)).unwrap();
    kit.reopen();
    let book = format!("books/{}.json", request(1).id);
    fs::write(kit.path(&book), "").unwrap();
    kit.calls();
    fs::rename(kit.path("net.d"), kit.path("away")).unwrap();
    let left = kit.teardown(&request(1));
    assert!(left.len() == 1 && left[0].reason.contains("no CNI configuration"), "{left:?}");
    assert_eq!(kit.driver.known().unwrap(), [request(1).id], "it is tried again");
    fs::rename(kit.path("away"), kit.path("net.d")).unwrap();
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.calls(), ["one DEL"]);
    assert!(kit.path("books/damaged").exists() && kit.driver.known().unwrap().is_empty());
}

#[test]
fn status_says_what_is_missing() {
    let kit = Kit::new(&[("one", &good()), ("portmap", &good())]);
    kit.driver.status().unwrap();
    fs::remove_file(kit.path("bin/portmap")).unwrap();
    let error = kit.driver.status().unwrap_err();
    assert!(matches!(error, NetError::NotReady { .. }));
    let (error, dir) = (error.to_string(), kit.path("bin").display().to_string());
    assert!(
        error.contains("plugin portmap") && error.contains(&dir) && error.contains("containernetworking-plugins"),
        "{error}"
    );
    fs::remove_file(kit.path("net.d/10-test.conflist")).unwrap();
    let error = kit.driver.status().unwrap_err().to_string();
    assert!(error.contains(&format!("no CNI configuration in {}", kit.path("net.d").display())), "{error}");
    kit.configure(r#"{"cniVersion":"0.2.0","name":"pods","plugins":[{"type":"one"}]}"#);
    assert!(kit.driver.status().unwrap_err().to_string().contains("0.2.0 is too old"));
}

#[test]
fn plugins_are_asked_for_their_status_once_in_a_while() {
    let unwell =
        format!("[ $CNI_COMMAND = STATUS ] && echo '{{\"code\":50,\"msg\":\"no daemon\"}}' && exit 1; {}", good());
    let kit = Kit::with("1.1.0", "", &[("one", &unwell)]);
    for _ in 0..3 {
        let error = kit.driver.status().unwrap_err().to_string();
        assert!(error.contains("CNI plugin one of network pods, STATUS: no daemon (code 50"), "{error}");
    }
    let asked = kit.calls().iter().filter(|call| *call == "one STATUS").count();
    assert_eq!(asked, 1);
    let kit = Kit::new(&[("one", &unwell)]);
    kit.driver.status().unwrap();
}

#[test]
fn describing_names_file_version_and_programs() {
    let kit = Kit::new(&[("one", &good())]);
    let about = kit.driver.describe();
    assert_eq!(about["network"]["name"], "pods");
    assert_eq!(about["network"]["cni_version"], "1.0.0");
    assert_eq!(about["network"]["programs"]["one"], kit.path("bin/one").display().to_string());
    kit.configure("{");
    assert!(kit.driver.describe()["error"].as_str().unwrap().contains("10-test.conflist"));
}
