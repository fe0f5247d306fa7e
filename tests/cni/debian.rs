//! Debian's plugins, chained as in a cluster.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use aril::net::{Bandwidth, Driver, Ports, Protocol, Request};

use crate::host::{Host, PodNamespace, on_a_host, request};

const FULL: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.91.0.0/24"}], [{"subnet": "fd91::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    {"type": "firewall"}
  ]
}"#;

fn with_everything(number: u8) -> Request {
    let port = Ports { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
    Request {
        ports: vec![port],
        bandwidth: Bandwidth { ingress: Some(100_000_000), egress: Some(50_000_000) },
        ..request(number)
    }
}

/// Answers one connection on port 80 of the pod with "pod".
fn serve_one(pod: &PodNamespace) -> std::thread::JoinHandle<()> {
    let listener = pod.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).expect("listen in the pod"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.write_all(b"pod").expect("answer");
    })
}

fn ask(address: IpAddr, port: u16) -> String {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(5))
        .unwrap_or_else(|e| panic!("connect to {address}:{port}: {e}"));
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("hear from the pod");
    text
}

fn assert_reached(address: IpAddr, port: u16, pod: &PodNamespace, host: &Host) {
    let server = serve_one(pod);
    assert_eq!(ask(address, port), "pod", "{}", host.picture());
    server.join().expect("serve");
}

/// What `ip` shows in the pod.
fn inside_ip(pod: &PodNamespace, host: &Host, arguments: &[&str]) -> String {
    pod.inside(|| host.run("ip", arguments))
}

/// The machine once a pod was there: what all pods share (the bridge, the chains of rules) is made for the first one
/// and stays.
fn used(host: &Host, driver: &dyn Driver) -> String {
    let pod = PodNamespace::new("first");
    driver.setup(&with_everything(9), pod.get()).expect("connect a first pod");
    assert_eq!(driver.teardown(&request(9).id, Some(pod.get())), []);
    let picture = host.picture();
    assert!(!picture.contains("10.91.0.") && !picture.contains("veth"), "{picture}");
    picture
}

#[test]
fn a_full_chain_connects_a_pod_and_leaves_nothing() {
    on_a_host(|host| {
        host.configure(FULL);
        let driver = host.driver();
        driver.status().expect("ready");
        let before = used(host, &driver);
        let pod = PodNamespace::new("one");
        let attachment = driver.setup(&with_everything(1), pod.get()).expect("connect a pod");
        let addresses: Vec<String> = attachment.addresses.iter().map(|a| format!("{}/{}", a.ip, a.prefix)).collect();
        let shown = inside_ip(&pod, host, &["addr", "show", "dev", "eth0"]);
        assert!(addresses.len() == 2 && addresses.iter().all(|a| shown.contains(a)), "{addresses:?}\n{shown}");
        assert!(shown.contains(&attachment.mac), "{shown}");
        assert!(inside_ip(&pod, host, &["route"]).contains("default via 10.91.0.1"));
        assert_reached(attachment.addresses[0].ip, 80, &pod, host);
        assert_reached([10, 91, 0, 1].into(), 8080, &pod, host);
        assert_reached(Ipv4Addr::LOCALHOST.into(), 8080, &pod, host);
        let shaped = host.run("tc", &["qdisc"]);
        assert!(shaped.matches("tbf").count() == 2 && shaped.contains("rate 100Mbit"), "{shaped}");
        assert_eq!(driver.teardown(&request(1).id, Some(pod.get())), []);
        assert_eq!(host.picture(), before);
        assert_eq!(driver.teardown(&request(1).id, Some(pod.get())), [], "twice is as good as once");
        assert_eq!(driver.known().expect("read the books"), []);
    });
}

/// Without host ports: portmap 1.1 looks for the rules of one family in the tables of both.
#[test]
fn check_finds_what_is_missing_and_nothing_else() {
    on_a_host(|host| {
        host.configure(FULL);
        let driver = host.driver();
        let pod = PodNamespace::new("one");
        let asked = Request { ports: Vec::new(), ..with_everything(1) };
        let attachment = driver.setup(&asked, pod.get()).expect("connect a pod");
        driver.check(&request(1).id, pod.get()).expect("all is as ADD left it");
        let address = format!("{}/24", attachment.addresses[0].ip);
        inside_ip(&pod, host, &["addr", "del", &address, "dev", "eth0"]);
        let error = driver.check(&request(1).id, pod.get()).expect_err("an address is gone").to_string();
        assert!(error.starts_with("CNI plugin bridge of network pods, CHECK: "), "{error}");
        assert_eq!(driver.teardown(&request(1).id, Some(pod.get())), []);
    });
}

/// Namespaces and rules are gone, the configuration is another one; the leases are still there.
#[test]
fn after_a_reboot_del_does_what_the_books_say() {
    on_a_host(|host| {
        host.configure(FULL);
        let driver = host.driver();
        let pods = [PodNamespace::new("one"), PodNamespace::new("two")];
        driver.setup(&with_everything(1), pods[0].get()).expect("connect a pod");
        driver.setup(&request(2), pods[1].get()).expect("connect a pod");
        assert!(host.picture().contains("/networks/pods/10.91.0.3"), "{}", host.picture());
        drop(driver);
        host.configure(r#"{"cniVersion":"1.0.0","name":"new","plugins":[{"type":"ptp"}]}"#);
        pods.into_iter().for_each(|pod| pod.unpin().expect("unpin a namespace"));
        for table in ["filter", "nat"] {
            for all in ["-F", "-X"] {
                host.run("iptables", &["-t", table, all]);
            }
        }
        let driver = host.driver();
        let known = driver.known().expect("read the books");
        assert_eq!(known.len(), 2);
        known.iter().for_each(|id| assert_eq!(driver.teardown(id, None), []));
        let picture = host.picture();
        assert!(!picture.contains("10.91.0.") && picture.contains("books []"), "{picture}");
    });
}

/// Each plugin in turn cannot do its part; what those before it did goes away.
#[test]
fn a_chain_that_breaks_anywhere_leaves_nothing() {
    on_a_host(|host| {
        host.configure(FULL);
        let driver = host.driver();
        let before = used(host, &driver);
        for broken in ["portmap", "bandwidth", "firewall"] {
            host.plugin(
                broken,
                "#!/bin/sh\n[ $CNI_COMMAND != ADD ] || { echo '{\"code\":100,\"msg\":\"broken\"}'; exit 1; }\n",
            );
            let pod = PodNamespace::new(broken);
            let error = driver.setup(&with_everything(1), pod.get()).expect_err("one is broken").to_string();
            assert_eq!(error, format!("CNI plugin {broken} of network pods, ADD: broken (code 100)"));
            host.remove_plugin(broken);
            assert_eq!(driver.teardown(&request(1).id, Some(pod.get())), []);
            assert_eq!(host.picture(), before, "{broken}");
        }
    });
}

#[test]
fn no_address_left_is_said_in_the_plugins_words() {
    on_a_host(|host| {
        host.configure(
            r#"{"cniVersion":"0.4.0","name":"small","plugins":[{"type":"bridge","bridge":"cni1","isGateway":true,
                "ipam":{"type":"host-local","subnet":"10.92.0.0/30"}}]}"#,
        );
        let driver = host.driver();
        let (one, two) = (PodNamespace::new("one"), PodNamespace::new("two"));
        driver.setup(&request(1), one.get()).expect("connect the only pod there is room for");
        let error = driver.setup(&request(2), two.get()).expect_err("there is no room").to_string();
        assert!(
            error.contains("CNI plugin bridge of network small, ADD") && error.contains("no IP addresses"),
            "{error}"
        );
        assert_eq!(driver.teardown(&request(2).id, Some(two.get())), []);
        assert_eq!(driver.teardown(&request(1).id, Some(one.get())), []);
        assert!(!host.picture().contains("10.92.0."), "{}", host.picture());
        driver.setup(&request(2), two.get()).expect("there is room again");
        assert_eq!(driver.teardown(&request(2).id, Some(two.get())), []);
    });
}

#[test]
fn pods_are_connected_side_by_side() {
    on_a_host(|host| {
        host.configure(FULL);
        let driver = host.driver();
        let pods: Vec<PodNamespace> = (1..=8).map(|n| PodNamespace::new(&n.to_string())).collect();
        let mut addresses: Vec<IpAddr> = std::thread::scope(|scope| {
            let connect = |(number, pod): (u8, _)| {
                let driver = &driver;
                let pod: &PodNamespace = pod;
                scope.spawn(move || driver.setup(&request(number), pod.get()).expect("connect a pod").addresses[0].ip)
            };
            let threads: Vec<_> = (1..).zip(&pods).map(connect).collect();
            threads.into_iter().map(|thread| thread.join().expect("connect a pod")).collect()
        });
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 8, "{addresses:?}");
        for (number, pod) in (1..).zip(&pods) {
            assert_eq!(driver.teardown(&request(number).id, Some(pod.get())), []);
        }
        assert!(!host.picture().contains("10.91.0."), "{}", host.picture());
    });
}

#[test]
fn a_version_the_plugins_do_not_speak_is_told_before_a_pod_fails() {
    on_a_host(|host| {
        host.configure(&FULL.replace("\"1.0.0\"", "\"0.4.0\", \"cniVersions\": [\"1.1.0\", \"1.0.0\"]"));
        let driver = host.driver();
        driver.status().expect("ready");
        let highest = driver.describe()["network"]["cni_version"].clone();
        // Debian's plugins may be of any release.
        assert!(highest == "1.0.0" || highest == "1.1.0", "{highest}");
        host.plugin("portmap", "#!/bin/sh\necho '{\"supportedVersions\":[\"0.1.0\",\"0.2.0\"]}'\n");
        host.configure(FULL);
        let error = driver.status().expect_err("one plugin is too old").to_string();
        assert!(error.contains("plugin portmap") && error.contains("does not speak CNI 1.0.0"), "{error}");
    });
}

/// What is aril's own of an ADD and DEL by two plugins that do nothing, printed; half a second would be a mistake.
#[test]
fn our_own_share_of_an_add_is_small() {
    on_a_host(|host| {
        let result = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.0.0.5/24","interface":0}]}"#;
        host.configure(r#"{"cniVersion":"1.0.0","name":"idle","plugins":[{"type":"idle"},{"type":"idle"}]}"#);
        host.plugin("idle", &format!("#!/bin/sh\necho '{result}'\n"));
        let driver = host.driver();
        let pod = PodNamespace::new("one");
        let program = host.path("bin/idle");
        let (mut adds, mut dels, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..100 {
            let start = Instant::now();
            driver.setup(&request(number), pod.get()).expect("connect a pod");
            adds.push(start.elapsed());
            let start = Instant::now();
            assert_eq!(driver.teardown(&request(number).id, Some(pod.get())), []);
            dels.push(start.elapsed());
            let start = Instant::now();
            for _ in 0..2 {
                host.try_run(program.to_str().expect("a path"), &[]);
            }
            bare.push(start.elapsed());
        }
        let median = |all: &mut Vec<Duration>| {
            all.sort_unstable();
            all[all.len() / 2]
        };
        let (add, del, bare) = (median(&mut adds), median(&mut dels), median(&mut bare));
        println!("medians: ADD {add:?}, DEL {del:?}, both programs alone {bare:?}");
        assert!(add < bare + Duration::from_millis(500), "ADD {add:?}, both programs alone {bare:?}");
    });
}
