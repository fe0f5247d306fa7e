//! Exec, Attach and PortForward, by both protocols.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use aril::api::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use tonic::{Code, Status};

use crate::support::streams::{Spdy, Url, WebSocket, request, spdy_request, verdict};
use crate::support::{Container, PATIENCE, Pod, TestNode, process_alive, read_proc, refused, wait_for};

const V4: &str = "v4.channel.k8s.io";

/// A node whose streaming server listens already, so that it is not taken for something left behind.
pub(super) fn start() -> TestNode {
    let node = TestNode::start();
    let pod = node.run_pod("first");
    let container = pod.sleeper();
    node.cri().runtime(|mut c| async move { c.exec(exec_request(&container.id, &["true"])).await }).unwrap();
    pod.remove().unwrap();
    node.take_stock();
    node
}

fn exec_request(container: &str, command: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    }
}

fn try_exec(node: &TestNode, request: ExecRequest) -> Result<String, Status> {
    Ok(node.cri().runtime(|mut c| async move { c.exec(request).await })?.url)
}

fn exec(node: &TestNode, container: &Container<'_>, command: &[&str], change: impl FnOnce(&mut ExecRequest)) -> String {
    let mut request = exec_request(&container.id, command);
    change(&mut request);
    try_exec(node, request).unwrap()
}

fn attach(node: &TestNode, container: &Container<'_>, tty: bool) -> String {
    let container_id = container.id.clone();
    let request = AttachRequest { container_id, stdin: true, stdout: true, stderr: !tty, tty };
    node.cri().runtime(|mut c| async move { c.attach(request).await }).unwrap().url
}

pub(super) fn forward(node: &TestNode, pod: &Pod<'_>, port: Vec<i32>) -> String {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port };
    node.cri().runtime(|mut c| async move { c.port_forward(request).await }).unwrap().url
}

pub(super) fn spdy(node: &TestNode, url: &str, protocol: &str) -> Spdy {
    node.in_network(|| Spdy::open(url, protocol))
}

fn websocket(node: &TestNode, url: &str, protocol: &str) -> WebSocket {
    node.in_network(|| WebSocket::open(url, protocol))
}

fn status_of(node: &TestNode, url: &str) -> u16 {
    node.in_network(|| spdy_request(&Url::parse(url), V4).0)
}

#[test]
fn output_and_exit_code_come_back_by_every_version() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let script = ["sh", "-c", "printf out; printf err >&2; exit 5"];
    for version in [V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let mut client = spdy(&node, &exec(&node, &container, &script, |_| {}), version);
        let [error, stdout, stderr] = client.streams(["error", "stdout", "stderr"]);
        assert_eq!(client.read_to_end(stdout), b"out", "{version}");
        assert_eq!(client.read_to_end(stderr), b"err", "{version}");
        let told = client.read_to_end(error);
        match version {
            V4 => assert_eq!(verdict(&told), Ok(5)),
            _ => assert_eq!(String::from_utf8_lossy(&told), "command terminated with exit code 5"),
        }
    }
    let mut client = spdy(&node, &exec(&node, &container, &["true"], |r| r.stderr = false), V4);
    let [error, stdout] = client.streams(["error", "stdout"]);
    assert_eq!(client.read_to_end(stdout), b"");
    assert_eq!(verdict(&client.read_to_end(error)), Ok(0));
    let mut client = spdy(&node, &exec(&node, &container, &["/no/such/program"], |r| r.stderr = false), V4);
    let [error, _] = client.streams(["error", "stdout"]);
    let reason = verdict(&client.read_to_end(error));
    assert!(reason.as_ref().is_err_and(|e| e.contains("/no/such/program")), "{reason:?}");
    node.finish();
}

#[test]
fn websockets_carry_the_same() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let script = ["sh", "-c", "printf out; printf err >&2; exit 5"];
    for version in ["v5.channel.k8s.io", V4, "channel.k8s.io", ""] {
        let channels = websocket(&node, &exec(&node, &container, &script, |_| {}), version).receive_all();
        assert_eq!((&channels[&1][..], &channels[&2][..]), (&b"out"[..], &b"err"[..]), "{version}");
        match version.strip_prefix('v') {
            Some(_) => assert_eq!(verdict(&channels[&3]), Ok(5)),
            None => assert_eq!(channels[&3], b"command terminated with exit code 5"),
        }
    }
    let mut client = websocket(&node, &exec(&node, &container, &script, |_| {}), "v4.base64.channel.k8s.io");
    let mut messages = Vec::new();
    while let Some(message) = client.receive() {
        messages.push(String::from_utf8(message).unwrap());
    }
    assert!(messages.contains(&"1b3V0".to_owned()) && messages.contains(&"2ZXJy".to_owned()), "{messages:?}");
    // Input, and its end, which version 5 alone can tell.
    let mut client = websocket(&node, &exec(&node, &container, &["wc", "-c"], |r| r.stdin = true), "v5.channel.k8s.io");
    client.send(&[&[0][..], &vec![b'x'; 300_000]].concat());
    client.send(&[255, 0]);
    assert_eq!(client.receive_all()[&1], b"300000\n");
    let url = exec(&node, &container, &["head", "-n", "1"], |r| r.stdin = true);
    let mut client = websocket(&node, &url, "base64.channel.k8s.io");
    client.send(b"0aGVsbG8K");
    let mut texts = Vec::new();
    while let Some(message) = client.receive() {
        texts.push(String::from_utf8(message).unwrap());
    }
    assert!(texts.contains(&"1aGVsbG8K".to_owned()), "{texts:?}");
    // Who closes is answered, as RFC 6455 wants it.
    assert!(websocket(&node, &exec(&node, &container, &["sleep", "5555"], |_| {}), V4).close());
    node.finish();
}

#[test]
fn input_flows_and_ends() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let url = exec(&node, &container, &["sh", "-c", "cat; echo end"], |r| r.stdin = true);
    let mut client = spdy(&node, &url, V4);
    let [error, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]);
    client.send(stdin, b"hello ");
    client.expect(stdout, "hello ");
    client.ping(7);
    assert!(client.read_until(PATIENCE, |c| c.pongs == [7]));
    client.send(stdin, b"world ");
    client.finish(stdin);
    assert_eq!(client.read_to_end(stdout), b"hello world end\n");
    assert_eq!(verdict(&client.read_to_end(error)), Ok(0));
    // More than any buffer on the way holds.
    let url = exec(&node, &container, &["wc", "-c"], |r| r.stdin = true);
    let mut client = spdy(&node, &url, V4);
    let [_, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]);
    let chunk = vec![b'x'; 1 << 20];
    (0..16).for_each(|_| client.send(stdin, &chunk));
    client.finish(stdin);
    assert_eq!(client.read_to_end(stdout), b"16777216\n");
    node.finish();
}

#[test]
fn a_terminal_has_a_size_and_one_output() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let url = exec(&node, &container, &["sh"], |r| (r.stdin, r.tty, r.stderr) = (true, true, false));
    let mut client = spdy(&node, &url, V4);
    let [error, stdin, stdout, resize] = client.streams(["error", "stdin", "stdout", "resize"]);
    client.send(resize, b"{\"Width\":132,\"Height\":43}\n");
    wait_for("the size", PATIENCE, || {
        client.send(stdin, b"stty size\n");
        client.read_until(Duration::from_millis(200), |c| c.text(stdout).contains("43 132")).then_some(())
    });
    client.send(stdin, b"test -t 2 && echo still-a-terminal; exit 3\n");
    assert!(String::from_utf8_lossy(&client.read_to_end(stdout)).contains("still-a-terminal"));
    assert_eq!(verdict(&client.read_to_end(error)), Ok(3));
    node.finish();
}

#[test]
fn attach_gives_what_is_new_and_again_after_a_restart() {
    let node = start();
    let pod = node.run_pod("attach");
    let shell = pod.container(["sh"]).with(|c| (c.stdin, c.stdin_once) = (true, true)).run();
    let mut client = spdy(&node, &attach(&node, &shell, false), V4);
    let [_, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]);
    client.send(stdin, b"echo one; echo two >&2\n");
    client.expect(stdout, "one\n");
    // Who is there for the output alone does not end the input.
    let mut watcher = websocket(&node, &attach(&node, &shell, false), V4);
    assert_eq!(watcher.receive().unwrap(), [1]);
    client.send(stdin, b"echo three\n");
    assert_eq!(watcher.receive().unwrap(), b"\x01three\n");

    let talker = pod.container(["sh", "-c", "while sleep 0.1; do echo tick; done"]).run();
    talker.wait_log("tick");
    node.kill_daemon();
    drop((client, watcher));
    node.restart();
    let url = attach(&node, &talker, false);
    // The new daemon listens from now on.
    node.take_stock();
    let mut client = spdy(&node, &url, V4);
    let [error, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]);
    client.expect(stdout, "tick\ntick\n");
    // Input that can come again: to end it is to leave.
    client.finish(stdin);
    client.read_to_end(stdout);
    assert_eq!(verdict(&client.read_to_end(error)), Ok(0));
    assert_eq!(talker.status().exit_code, 0);
    assert!(process_alive(talker.init_pid()));
    drop(client);
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn whoever_only_gives_input_hears_of_the_end() {
    let node = start();
    let pod = node.run_pod("input");
    let shell = pod.container(["sh"]).with(|c| c.stdin = true).run();
    let request =
        AttachRequest { container_id: shell.id.clone(), stdin: true, stdout: false, stderr: false, tty: false };
    let url = node.cri().runtime(|mut c| async move { c.attach(request).await }).unwrap().url;
    let mut client = spdy(&node, &url, V4);
    let [error, stdin] = client.streams(["error", "stdin"]);
    client.send(stdin, b"echo here >&2; sleep 1; exit 7\n");
    assert_eq!(verdict(&client.read_to_end(error)), Ok(0));
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn a_client_that_goes_away_ends_what_it_began() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let init = container.init_pid();
    let only_init = || (container.pids() == [init]).then_some(());
    let url = exec(&node, &container, &["sh", "-c", "echo ready; sleep 7777 & exec sleep 8888"], |r| r.stdin = true);
    let mut client = spdy(&node, &url, V4);
    let [_, _, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]);
    client.expect(stdout, "ready");
    client.hang_up();
    wait_for("the end of the session", PATIENCE, only_init);
    // Also while what it sent is not read by anybody.
    let url = exec(&node, &container, &["sleep", "9999"], |r| r.stdin = true);
    let mut client = spdy(&node, &url, V4);
    let [_, stdin, ..] = client.streams(["error", "stdin", "stdout", "stderr"]);
    wait_for("its process", PATIENCE, || (container.pids().len() == 2).then_some(()));
    client.fill(stdin);
    client.hang_up();
    wait_for("the end of the session", PATIENCE, only_init);
    node.finish();
}

#[test]
fn whoever_reads_slowly_holds_up_nobody() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let before = resident_kib(node.daemon_pid());
    let flood = ["sh", "-c", "yes 0123456789 | head -c 200000000"];
    let slow: Vec<Spdy> = (0..8)
        .map(|_| {
            let mut client = spdy(&node, &exec(&node, &container, &flood, |_| {}), V4);
            client.streams(["error", "stdout", "stderr"]);
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let grown = resident_kib(node.daemon_pid()).saturating_sub(before);
    assert!(grown < 32 << 10, "the daemon grew by {grown} KiB");
    let asked = Instant::now();
    assert_eq!(container.exec(["echo", "alive"]).stdout, "alive\n");
    container.stop(0).unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    drop(slow);
    node.finish();
}

fn resident_kib(pid: i32) -> u64 {
    let status = read_proc(pid, "status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn all_output_arrives_however_late_it_is_read() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    for windows in [false, true] {
        let url = exec(&node, &container, &["sh", "-c", "yes 0123456789 | head -c 20000000"], |_| {});
        let mut client = spdy(&node, &url, V4);
        if windows {
            client.keep_windows(1000);
        }
        let [error, stdout, _] = client.streams(["error", "stdout", "stderr"]);
        std::thread::sleep(Duration::from_millis(300));
        if windows {
            assert!(!client.read_until(Duration::from_millis(300), |c| c.text(stdout).len() > 1000));
            assert_eq!(client.received[&stdout].len(), 1000);
            client.open_window(stdout, 100_000_000);
            client.open_window(error, 1000);
        }
        assert_eq!(client.read_to_end(stdout).len(), 20_000_000);
        assert_eq!(verdict(&client.read_to_end(error)), Ok(0));
    }
    node.finish();
}

#[test]
fn a_token_is_good_once_and_for_what_it_was_given() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let url = exec(&node, &container, &["true"], |_| {});
    assert_eq!(status_of(&node, &url.replace("/exec/", "/attach/")), 404);
    assert_eq!(status_of(&node, &(url.clone() + "/x")), 404);
    assert_eq!(status_of(&node, &url), 101);
    assert_eq!(status_of(&node, &url), 404);
    let (start, _) = url.rsplit_once('/').unwrap();
    assert_eq!(status_of(&node, &format!("{start}/{}", "0".repeat(32))), 404);
    assert_eq!(status_of(&node, start), 404);
    let version = |headers: &[(&str, &str)]| {
        let url = exec(&node, &container, &["true"], |_| {});
        node.in_network(|| request(&Url::parse(&url), "POST", headers).0)
    };
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    assert_eq!(version(&upgrade), 400);
    assert_eq!(version(&[&upgrade[..], &[("X-Stream-Protocol-Version", "v9.channel.k8s.io")]].concat()), 403);
    assert_eq!(version(&[]), 400);
    // Not a word of tokens in the log.
    let (_, token) = url.rsplit_once('/').unwrap();
    assert!(!node.daemon_log().contains(token));
    node.finish();
}

#[test]
fn what_cannot_be_is_refused_by_the_call() {
    let node = start();
    let pod = node.run_pod("refusals");
    let sleeper = pod.sleeper();
    let id = sleeper.id.as_str();
    let refuse = |change: &dyn Fn(&mut ExecRequest)| {
        let mut request = exec_request(id, &["true"]);
        change(&mut request);
        try_exec(&node, request)
    };
    refused(refuse(&|r| r.tty = true), Code::InvalidArgument, &["stderr"]);
    refused(refuse(&|r| (r.stdout, r.stderr) = (false, false)), Code::InvalidArgument, &["stdout"]);
    refused(refuse(&|r| r.container_id.clear()), Code::InvalidArgument, &["container_id"]);
    refused(refuse(&|r| r.cmd.clear()), Code::InvalidArgument, &["cmd"]);
    refused(refuse(&|r| r.container_id = "0".repeat(64)), Code::NotFound, &[]);
    let created = pod.container(["true"]).create();
    refused(try_exec(&node, exec_request(&created.id, &["true"])), Code::FailedPrecondition, &[&created.id[..12]]);
    let forward = |id: &str, port: i32| {
        let request = PortForwardRequest { pod_sandbox_id: id.to_owned(), port: vec![port] };
        node.cri().runtime(|mut c| async move { c.port_forward(request).await })
    };
    refused(forward(&pod.id, 65_536), Code::InvalidArgument, &["port"]);
    let many = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80; 129] };
    refused(node.cri().runtime(|mut c| async move { c.port_forward(many).await }), Code::InvalidArgument, &["port"]);
    refused(forward("", 80), Code::InvalidArgument, &["pod_sandbox_id"]);
    refused(forward(&"0".repeat(64), 80), Code::NotFound, &[]);
    pod.stop().unwrap();
    refused(forward(&pod.id, 80), Code::FailedPrecondition, &[&pod.id[..12]]);
    node.finish();
}

#[test]
fn ports_of_a_pod_are_forwarded() {
    let node = start();
    for host_network in [false, true] {
        let builder = node.pod(if host_network { "host" } else { "own" });
        let pod = if host_network { builder.host_network().run() } else { builder.run() };
        let echo = pod.container(["nc", "-ll", "-p", "8080", "-e", "cat"]).run();
        wait_for("the listener", PATIENCE, || echo.sh("netstat -ltn").contains(":8080").then_some(()));
        let mut client = spdy(&node, &forward(&node, &pod, vec![]), "portforward.k8s.io");
        let mut pairs = Vec::new();
        for request in ["1", "2"] {
            let common = [("port", "8080"), ("requestID", request)];
            let error = client.stream(&[&[("streamType", "error")][..], &common].concat());
            client.finish(error);
            pairs.push((error, client.stream(&[&[("streamType", "data")][..], &common].concat())));
        }
        for (_, data) in pairs.clone() {
            client.send(data, format!("over stream {data}").as_bytes());
            client.expect(data, &format!("over stream {data}"));
        }
        for (error, data) in pairs {
            client.send(data, b" and out");
            client.finish(data);
            assert_eq!(client.read_to_end(data), format!("over stream {data} and out").into_bytes());
            assert_eq!(client.read_to_end(error), b"");
        }
        // Nobody listens there.
        let error = client.stream(&[("streamType", "error"), ("port", "81"), ("requestID", "3")]);
        let data = client.stream(&[("streamType", "data"), ("port", "81"), ("requestID", "3")]);
        let reason = String::from_utf8(client.read_to_end(error)).unwrap();
        assert!(reason.contains("port 81") && reason.contains("refused"), "{reason}");
        client.read_to_end(data);

        let mut channels = websocket(&node, &forward(&node, &pod, vec![8080]), V4);
        let port = 8080u16.to_le_bytes();
        assert_eq!(channels.receive().unwrap(), [0, port[0], port[1]]);
        assert_eq!(channels.receive().unwrap(), [1, port[0], port[1]]);
        channels.send(b"\0hello");
        assert_eq!(channels.receive().unwrap(), b"\0hello");
        pod.remove().unwrap();
    }
    node.finish();
}

/// The streams of a connection to a port: for errors, for data.
pub(super) fn pair(client: &mut Spdy, port: &str, request: &str) -> (u32, u32) {
    let kind = |kind| [("streamType", kind), ("port", port), ("requestID", request)];
    (client.stream(&kind("error")), client.stream(&kind("data")))
}

#[test]
fn a_connection_given_up_by_either_side_leaves_the_others_whole() {
    let node = start();
    let pod = node.run_pod("ports");
    let listeners = [("8080", "cat", ""), ("8081", "yes", "0123456789"), ("8082", "echo", "bye")];
    let servers = listeners.map(|(port, program, word)| {
        let command = ["nc", "-ll", "-p", port, "-e", program, word];
        pod.container(command.into_iter().filter(|word| !word.is_empty())).run()
    });
    wait_for("the listeners", PATIENCE, || {
        let all = servers[0].sh("netstat -ltn");
        listeners.iter().all(|(port, ..)| all.contains(&format!(":{port} "))).then_some(())
    });
    let mut client = spdy(&node, &forward(&node, &pod, vec![]), "portforward.k8s.io");
    // The pod has said all: a client waits for the end of errors before it closes its side.
    let (error, data) = pair(&mut client, "8082", "1");
    assert_eq!(client.read_to_end(data), b"bye\n");
    assert_eq!(client.read_to_end(error), b"");
    // The client has had enough of a flood while much of it is on its way.
    let (_, echo) = pair(&mut client, "8080", "2");
    client.send(echo, b"before ");
    client.expect(echo, "before ");
    let (error, flood) = pair(&mut client, "8081", "3");
    std::thread::sleep(Duration::from_millis(500));
    client.reset(flood);
    client.send(echo, b"after");
    client.expect(echo, "before after");
    assert_eq!(client.read_to_end(error), b"");
    assert!(client.text(flood).starts_with("0123456789\n0123456789\n"));
    client.hang_up();
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn streams_given_up_make_no_room_for_more() {
    let node = start();
    let pod = node.run_pod("flood");
    let mut client = spdy(&node, &forward(&node, &pod, vec![]), "portforward.k8s.io");
    for i in 0..2000 {
        let request = i.to_string();
        let half = client.stream(&[("streamType", "data"), ("port", "80"), ("requestID", &request)]);
        client.reset(half);
    }
    client.ping(1);
    assert!(client.read_until(PATIENCE, |c| c.pongs == [1]));
    assert!(client.resets.len() >= 1700, "{} of 2000 streams were refused", client.resets.len());
    client.hang_up();
    // A session has its streams; those beyond them are refused, and hold up nothing.
    let container = pod.sleeper();
    let url = exec(&node, &container, &["cat"], |r| r.stdin = true);
    let mut client = spdy(&node, &url, V4);
    let [_, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]);
    client.send(stdin, b"one");
    client.expect(stdout, "one");
    let more: Vec<u32> = (0..20).map(|_| client.stream(&[("streamType", "resize")])).collect();
    client.send(stdin, b"two");
    client.expect(stdout, "onetwo");
    assert_eq!(client.resets, more);
    client.hang_up();
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn nobody_can_leave_anything_behind() {
    let node = start();
    let pod = node.run_pod("drops");
    let container = pod.sleeper();
    let init = container.init_pid();
    let before = node.daemon_size().0;
    let mut open: Vec<Spdy> = Vec::new();
    for i in 0..100u64 {
        // Anything but random would do as well, so it can be repeated.
        let dice = (i * 2_654_435_761) >> 7;
        let url = match dice % 3 {
            0 => forward(&node, &pod, vec![]),
            1 => attach(&node, &container, false),
            _ => exec(&node, &container, &["sleep", "5555"], |r| r.stdin = true),
        };
        if dice % 11 == 0 {
            // Came and left before it said anything.
            node.in_network(|| std::net::TcpStream::connect(Url::parse(&url).authority).unwrap());
            continue;
        }
        let protocol = if dice % 3 == 0 { "portforward.k8s.io" } else { V4 };
        let mut client = spdy(&node, &url, protocol);
        let kinds = ["error", "stdin", "stdout", "stderr"];
        for kind in &kinds[..usize::try_from(dice % 5).unwrap()] {
            client.stream(&[("streamType", kind), ("port", "80"), ("requestID", "1")]);
        }
        if dice % 7 == 0 {
            client.send_raw(b"\x80\x03\x00\x01\x00\xff\xff\xff");
        }
        open.push(client);
        if open.len() > 20 {
            drop(open.swap_remove(usize::try_from(dice).unwrap() % 20));
        }
    }
    drop(open);
    wait_for("descriptors as before", PATIENCE, || (node.daemon_size().0 <= before).then_some(()));
    wait_for("no process of theirs", PATIENCE, || (container.pids() == [init]).then_some(()));
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn who_breaks_the_rules_is_told_and_let_go() {
    let node = start();
    let container = node.run(["sleep", "100000"]);
    let url = exec(&node, &container, &["sleep", "5555"], |_| {});
    let (status, _, mut connection, _) = node.in_network(|| spdy_request(&Url::parse(&url), V4));
    assert_eq!(status, 101);
    // A control frame of 16 MiB.
    connection.write_all(b"\x80\x03\x00\x01\x00\xff\xff\xff").unwrap();
    let mut told = Vec::new();
    connection.read_to_end(&mut told).unwrap();
    assert_eq!(told[..4], *b"\x80\x03\x00\x07", "GOAWAY: {told:?}");
    // A head of more than is ever needed.
    let url = Url::parse(&exec(&node, &container, &["true"], |_| {}));
    let long = "x".repeat(100_000);
    let status = node.in_network(|| request(&url, "POST", &[("X-Long", &long)]).0);
    assert_eq!(status, 431);
    node.finish();
}
