//! The endpoint for Prometheus: what it tells, and that nobody can hurt the daemon by it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::pulls::pull;
use crate::support::prometheus::{self, Page, ask, dial, get, limited, scrape, scrape_socket};
use crate::support::{DockerRegistry, Options, PATIENCE, TestNode, wait_for};

const SECONDS: &str = "aril_cri_request_duration_seconds_count";

fn served() -> TestNode {
    let config = format!("[metrics]\naddress = \"{}\"\n", prometheus::TCP);
    TestNode::with(Options { config, ..Options::default() })
}

fn requests(page: &Page, rpc: &str, code: &str) -> f64 {
    page.value(SECONDS, &[("rpc", rpc), ("code", code)])
}

#[test]
fn numbers_follow_what_pods_do() {
    let node = served();
    let before = scrape(&node);
    for (name, expected) in [("aril_shims", 0.0), ("aril_exec_sessions_open", 0.0), ("aril_images", 1.0)] {
        assert_eq!(before.get(name, &[]), Some(expected), "{name}");
    }
    assert_eq!(before.get("aril_pods", &[("state", "ready")]), Some(0.0));
    assert!(before.value("aril_image_unpacked_bytes_total", &[]) > 0.0);
    assert!(before.value("aril_image_store_bytes", &[]) > 0.0 && before.value("aril_image_layers", &[]) > 0.0);
    assert_eq!(before.get("aril_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));

    let pod = node.run_pod("web");
    let container = pod.sleeper();
    let absent = pod.container(["/no-such-program"]).create();
    assert!(absent.start().is_err());
    pod.run(["true"]).wait_exited();
    assert_eq!(container.exec(["true"]).code, 0);
    let page = scrape(&node);
    assert_eq!(page.get("aril_pods", &[("state", "ready")]), Some(1.0));
    assert_eq!(page.get("aril_containers", &[("state", "running")]), Some(1.0));
    assert_eq!(page.get("aril_containers", &[("state", "exited")]), Some(2.0));
    assert_eq!(page.get("aril_shims", &[]), Some(1.0));
    assert_eq!((requests(&page, "RunPodSandbox", "OK"), requests(&page, "CreateContainer", "OK")), (1.0, 3.0));
    assert_eq!(requests(&page, "StartContainer", "OK"), 2.0);
    let failed: f64 = page.all(SECONDS).iter().filter(|(labels, _)| is_failed_start(labels)).map(|(_, n)| n).sum();
    assert_eq!(failed, 1.0);
    let steps = page.all("aril_errors_total");
    let is_start = |labels: &[(String, String)]| labels[0].1.starts_with("start container");
    assert!(steps.iter().any(|(labels, count)| is_start(labels) && *count == 1.0), "{steps:?}");
    // One of IPv4, one of IPv6.
    let used = page.all("aril_network_addresses_in_use");
    assert!(used.len() == 2 && used.iter().all(|(_, count)| *count == 1.0), "{used:?}");
    assert!(page.all("aril_network_addresses").iter().all(|(_, count)| *count > 1000.0));
    assert_eq!(page.get("aril_network_pods", &[("driver", "bridge")]), Some(1.0));
    let steps =
        |operation, step| page.value("aril_step_duration_seconds_count", &[("operation", operation), ("step", step)]);
    assert_eq!((steps("RunPodSandbox", "shim"), steps("RunPodSandbox", "network")), (1.0, 1.0));
    assert_eq!((steps("CreateContainer", "shim/rootfs"), steps("StartContainer", "exec")), (3.0, 3.0));
    let took = page.value("aril_cri_request_duration_seconds_sum", &[("rpc", "RunPodSandbox"), ("code", "OK")]);
    assert!((0.0005..60.0).contains(&took), "{took}");

    pod.stop().unwrap();
    let page = scrape(&node);
    assert_eq!(page.get("aril_pods", &[("state", "stopped")]), Some(1.0));
    assert_eq!(
        (page.get("aril_shims", &[]), page.get("aril_network_pods", &[("driver", "bridge")])),
        (Some(0.0), Some(0.0))
    );
    pod.remove().unwrap();
    let page = scrape(&node);
    assert_eq!(
        (page.get("aril_pods", &[("state", "stopped")]), requests(&page, "RemovePodSandbox", "OK")),
        (Some(0.0), 1.0)
    );
    node.finish();
}

fn is_failed_start(labels: &[(String, String)]) -> bool {
    let is = |name: &str, value: &str| labels.iter().any(|(n, v)| n == name && v == value);
    is("rpc", "StartContainer") && !is("code", "OK")
}

#[test]
fn what_is_under_way_is_told_while_it_is() {
    let node = served();
    let container = node.run_pod("busy").sleeper();
    let mut events = crate::support::events::Events::follow(node.cri());
    events.take(1);
    assert_eq!(scrape(&node).get("aril_cri_streams_open", &[("rpc", "GetContainerEvents")]), Some(1.0));
    drop(events);
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| container.exec(["sleep", "2"]));
        wait_for("the exec", PATIENCE, || {
            let page = scrape(&node);
            let labels = [("rpc", "ExecSync")];
            let (open, calls) =
                (page.value("aril_exec_sessions_open", &[]), page.value("aril_cri_requests_in_flight", &labels));
            ((open, calls) == (1.0, 1.0)).then_some(())
        });
        assert_eq!(sleeping.join().unwrap().code, 0);
    });
    wait_for("the end of both", PATIENCE, || {
        let page = scrape(&node);
        let ended = page.value("aril_cri_streams_ended_total", &[("rpc", "GetContainerEvents"), ("code", "Canceled")]);
        let open = page.value("aril_cri_streams_open", &[("rpc", "GetContainerEvents")]);
        let execs = page.value("aril_exec_sessions_open", &[]);
        ((ended, open, execs) == (1.0, 0.0, 0.0)).then_some(())
    });
    assert_eq!(requests(&scrape(&node), "ExecSync", "OK"), 1.0);
    node.finish();
}

#[test]
fn pulls_are_counted_by_how_they_ended() {
    let node = served();
    let registry = DockerRegistry::start(&node);
    registry.publish("test-1");
    registry.stand_in(&node, "gcr.io");
    let before = scrape(&node);
    assert_eq!(before.get("aril_image_downloaded_bytes_total", &[]), Some(0.0));
    pull(&node, "gcr.io/k8s-staging-cri-tools/test-image-1:latest").unwrap();
    assert!(pull(&node, "gcr.io/k8s-staging-cri-tools/test-image-1:absent").is_err());
    let page = scrape(&node);
    let count = |result| page.value("aril_image_pull_duration_seconds_count", &[("result", result)]);
    assert_eq!((count("ok"), count("not_found"), count("canceled")), (1.0, 1.0, 0.0));
    assert!(page.value("aril_image_downloaded_bytes_total", &[]) > 0.0);
    let unpacked = |page: &Page| page.value("aril_image_unpacked_bytes_total", &[]);
    assert!(unpacked(&page) > unpacked(&before));
    assert_eq!(page.get("aril_image_pulls_in_flight", &[]), Some(0.0));
    drop(registry);
    node.finish();
}

#[test]
fn a_socket_is_roots_and_replaced_and_removed() {
    let config = "[metrics]\naddress = \"unix://{node}/run/metrics.sock\"\n".to_owned();
    let node = TestNode::with(Options { config, ..Options::default() });
    let path = node.path("run/metrics.sock");
    assert_eq!(scrape_socket(&node, "run/metrics.sock").get("aril_images", &[]), Some(1.0));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // A dead daemon's.
    node.kill_daemon();
    assert!(path.exists());
    node.restart();
    scrape_socket(&node, "run/metrics.sock");
    assert!(node.stop_daemon().success());
    assert!(!path.exists());
    // What is no socket stays, and so does what it leads to; the daemon runs, and has it when the way is free.
    let elsewhere = node.path("elsewhere.sock");
    let other = UnixListener::bind(&elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    node.restart();
    wait_for("the complaint", PATIENCE, || node.daemon_log().contains("metrics not served yet").then_some(()));
    assert!(node.daemon_log().contains("metrics.sock is there and no socket"), "{}", node.daemon_log());
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    fs::remove_file(&path).unwrap();
    scrape_socket(&node, "run/metrics.sock");
    drop(other);
    node.finish();
}

#[test]
fn both_formats_are_read_and_head_has_none() {
    let node = served();
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let open = ask(limited(dial(&node)), &get(accept));
    assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    let open = Page::parse(&open.body, true);
    let plain = scrape(&node);
    let base = |(name, kind): (&String, &String)| match kind.as_str() {
        "counter" => name.trim_end_matches("_total").to_owned(),
        _ => name.clone(),
    };
    let names = |page: &Page| page.kinds.iter().map(base).collect::<BTreeSet<String>>();
    assert_eq!(names(&open), names(&plain));
    let head = ask(limited(dial(&node)), "HEAD /metrics HTTP/1.1\r\nHost: node\r\n\r\n");
    assert!(head.status == 200 && head.body.is_empty() && head.head.contains("text/plain; version=0.0.4"), "{head:?}");
    node.finish();
}

#[test]
fn whoever_asks_for_something_else_is_told_so() {
    let node = served();
    let status = |request: &str| ask(limited(dial(&node)), request).status;
    let post = ask(limited(dial(&node)), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nxx");
    assert!(post.status == 405 && post.head.to_lowercase().contains("allow: get, head"), "{post:?}");
    assert_eq!(status("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), 405);
    for path in ["/", "/metrics/", "/metrics/../etc/passwd", "/debug/pprof", "//metrics"] {
        assert_eq!(status(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")), 404, "{path}");
    }
    assert_eq!(status("GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"), 200);
    assert_eq!(status("GET /metrics HTTP/1.0\r\n\r\n"), 200);
    let long = format!("GET /metrics?{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
    assert!((400..500).contains(&status(&long)));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    assert!((400..500).contains(&status(&many)));
    assert_eq!(status("\x16\x03\x01\x02nonsense\r\n\r\n"), 400);
    node.finish();
}

#[test]
fn clients_that_stall_cost_nobody_anything() {
    let node = served();
    scrape(&node);
    let before = node.daemon_size().0;
    let begun = Instant::now();
    // A head that never ends, and answers that nobody reads.
    let mut slow = dial(&node);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x").unwrap();
    let mut unread = dial(&node);
    unread.write_all(get("text/plain").as_bytes()).unwrap();
    let mut crowd = Vec::new();
    for i in 0..1000 {
        let mut one = node.in_network(|| std::net::TcpStream::connect(prometheus::TCP)).expect("connect");
        if i % 2 == 0 {
            // It may have been sent away already.
            one.write_all(b"GET /metrics").ok();
        }
        crowd.push(one);
    }
    // All of them at once keep nobody from the numbers, nor from pods.
    assert_eq!(scrape(&node).get("aril_images", &[]), Some(1.0));
    let pod = node.pod("meanwhile").host_network().run();
    pod.remove().unwrap();
    assert!(node.daemon_size().0 < before + 64, "{} descriptors, {before} before", node.daemon_size().0);
    drop(crowd);
    // Who says nothing is sent away.
    let mut slower = limited(dial(&node));
    slower.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    let waiting = Instant::now();
    slower.read_to_end(&mut Vec::new()).ok();
    assert!(waiting.elapsed() < Duration::from_secs(30), "{:?} of {:?}", waiting.elapsed(), begun.elapsed());
    drop((slow, unread));
    wait_for("the end of all connections", PATIENCE, || (node.daemon_size().0 <= before).then_some(()));
    node.finish();
}

#[test]
fn a_place_that_is_taken_keeps_no_pod_waiting() {
    let config = format!("[metrics]\naddress = \"{}\"\n", prometheus::TCP);
    let node = TestNode::with(Options { config, ..Options::default() });
    scrape(&node);
    assert!(node.stop_daemon().success());
    let taken =
        wait_for("the port", PATIENCE, || node.in_network(|| std::net::TcpListener::bind(prometheus::TCP)).ok());
    node.restart();
    node.pod("runs").host_network().run().remove().unwrap();
    wait_for("the complaint", PATIENCE, || node.daemon_log().contains("metrics not served yet").then_some(()));
    drop(taken);
    assert_eq!(scrape(&node).get("aril_images", &[]), Some(1.0));
    node.finish();
}

/// A file of the package.
fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Names of metrics in a text, without what histograms put behind theirs.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| ["aril_", "process_"].iter().any(|start| word.starts_with(start)));
    let base =
        |word: &str| ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end)).map(str::to_owned);
    ours.map(|word| base(word).unwrap_or_else(|| word.to_owned())).collect()
}

#[test]
fn documents_and_dashboard_name_what_there_is() {
    let node = served();
    let pod = node.run_pod("web");
    pod.run(["true"]).wait_exited();
    assert!(pod.container(["/no-such-program"]).create().start().is_err());
    assert!(pull(&node, "127.0.0.1:1/absent:1").is_err());
    crate::support::events::Events::follow(node.cri()).take(1);
    let page = wait_for("the end of the stream", PATIENCE, || {
        Some(scrape(&node)).filter(|page| !page.all("aril_cri_streams_ended_total").is_empty())
    });
    let document = file("docs/monitoring.md");
    let row = |line: &str| -> Option<(String, String, BTreeSet<String>)> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _] = cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let is_known = ["counter", "gauge", "histogram"].contains(&kind);
        is_known.then(|| (name.to_owned(), kind.to_owned(), labels.filter(|label| !label.is_empty()).collect()))
    };
    let table: Vec<_> = document.lines().filter_map(row).collect();
    let documented: BTreeMap<_, _> = table.iter().map(|(name, kind, _)| (name.clone(), kind.clone())).collect();
    assert_eq!(documented.len(), table.len(), "a metric comes twice");
    let (of_pods, served): (BTreeMap<_, _>, BTreeMap<_, _>) =
        page.kinds.clone().into_iter().partition(|(name, _)| name.starts_with("container_"));
    assert_eq!(documented, served);
    for (name, _, labels) in &table {
        let told = page.labels(name);
        let labels: BTreeSet<&str> = labels.iter().map(String::as_str).collect();
        // Without a failure there is no series of it.
        assert!(
            told == labels || told.is_empty() && name == "aril_scrape_failures_total",
            "{name}: {told:?}, {labels:?}"
        );
    }

    let dashboard: serde_json::Value = serde_json::from_str(&file("packaging/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let shown = names(&targets.map(|target| target["expr"].as_str().unwrap()).collect::<Vec<_>>().join(" "));
    assert_eq!(shown, served.keys().cloned().collect());
    let asked = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten().map(|t| t["expr"].to_string());
    let asked: String = asked.collect::<Vec<_>>().join(" ");
    let words = asked.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut words = words.filter(|word| word.starts_with("container_")).peekable();
    assert!(words.peek().is_some());
    words.for_each(|word| assert!(of_pods.contains_key(word), "{word}"));
    // What alerts ask for is there, too.
    let asked = names(&document).into_iter().filter(|name| name.starts_with("aril_"));
    let unknown: Vec<_> = asked.filter(|name| !served.contains_key(name)).collect();
    assert_eq!(unknown, [] as [String; 0]);
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn containers_are_told_as_kubelet_tells_them() {
    let node = served();
    let name = "we\"ird\\name,={}";
    let pod = node.pod("web").with(|c| c.metadata.as_mut().unwrap().namespace = name.to_owned()).run();
    let container = pod.container(["/probe", "spin", "100000000"]).run();
    let page = wait_for("the CPU time", PATIENCE, || {
        let page = scrape(&node);
        let used: f64 = page.all("container_cpu_usage_seconds_total").iter().map(|(_, value)| value).sum();
        // Less than a second, and not nothing.
        (used > 0.0).then_some(page)
    });
    let of = |labels: &[(String, String)], label: &str| labels.iter().find(|(n, _)| n == label).unwrap().1.clone();
    let all = page.all("container_memory_usage_bytes");
    let [(labels, used)] = &all[..] else { panic!("{all:?}") };
    assert!(*used > 0.0);
    assert_eq!(
        (of(labels, "namespace"), of(labels, "pod"), of(labels, "name")),
        (name.into(), "web".into(), container.id.clone())
    );
    assert!(
        !of(labels, "container").is_empty()
            && of(labels, "image").contains("probe")
            && of(labels, "id").starts_with('/')
    );
    let network = page.all("container_network_receive_bytes_total");
    assert!(
        network.iter().any(|(labels, _)| of(labels, "interface") == "eth0" && of(labels, "pod") == "web"),
        "{network:?}"
    );

    // Every name kubelet knows is here, and no other.
    let request = aril::api::cri::ListMetricDescriptorsRequest::default();
    let known =
        node.cri().runtime(|mut c| async move { c.list_metric_descriptors(request).await }).unwrap().descriptors;
    let mut known: Vec<String> = known.into_iter().map(|descriptor| descriptor.name).collect();
    known.sort_unstable();
    let told: Vec<String> = page.kinds.keys().filter(|name| name.starts_with("container_")).cloned().collect();
    assert_eq!(told, known);
    let accept = "application/openmetrics-text;version=1.0.0";
    let open = Page::parse(&ask(limited(dial(&node)), &get(accept)).body, true);
    assert_eq!(open.kinds["container_memory_failcnt"], "unknown");
    assert_eq!(open.kinds["container_cpu_usage_seconds"], "counter");
    pod.remove().unwrap();
    assert!(scrape(&node).all("container_memory_usage_bytes").is_empty());
    node.finish();
}
