//! `aril port-forward`: real connections into pods of every kind of network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::network::{ask, hear};
use crate::support::{PATIENCE, TestNode, kill, wait_for};

/// The command, and where it listens, in the order of the ports.
struct Forwarding {
    command: Child,
    output: BufReader<ChildStdout>,
    listens: Vec<SocketAddr>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // After a panic it still runs; else this finds nobody.
        self.command.kill().ok();
        self.command.wait().ok();
    }
}

impl Forwarding {
    fn start(node: &TestNode, pod: &str, ports: &[&str]) -> Self {
        let mut command = node.aril([&["port-forward", pod], ports].concat());
        let mut command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(command.stdout.take().unwrap());
        let listens = ports.iter().map(|port| {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            let (here, there) =
                line.trim_end().strip_prefix("forwarding ").expect(&line).split_once(" -> ").expect(&line);
            let remote = port.rsplit(':').next().unwrap();
            assert_eq!(there, format!("{pod}:{remote}"));
            here.parse().expect(&line)
        });
        let listens = listens.collect();
        Self { command, output, listens }
    }

    /// Waits for its end: the exit code and what it complained of.
    fn end(mut self) -> (Option<i32>, String) {
        let status = wait_for("the end of port-forward", PATIENCE, || self.command.try_wait().unwrap());
        let (mut rest, mut errors) = (String::new(), String::new());
        self.output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "nothing but the ports is told");
        self.command.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.code(), errors)
    }

    /// As Ctrl-C does.
    fn interrupt(self) -> (Option<i32>, String) {
        kill(i32::try_from(self.command.id()).unwrap(), Signal::SIGINT);
        self.end()
    }
}

fn ok(node: &TestNode, arguments: &[&str]) {
    let output = node.aril(arguments.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn fails(node: &TestNode, arguments: &[&str]) -> (Option<i32>, String) {
    let output = node.aril(arguments.iter().copied()).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A pod in which `script` runs.
fn run(node: &TestNode, name: &str, network: &str, script: &str) {
    let flags = ["run", "-d", "--name", name, "--network", network, "--entrypoint", "sh", "probe", "-c", script];
    ok(node, &flags);
}

/// A connection from the node's own network.
fn dial(node: &TestNode, to: SocketAddr) -> TcpStream {
    let stream = node.in_network(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn ports_lead_into_pods_of_every_network() {
    let node = TestNode::start();
    for (network, port) in [("pod", 80), ("none", 80), ("host", 8099)] {
        let serve = format!(
            "mkdir -p /a /b; echo {network} >/a/word; echo second >/b/word;
             httpd -p 127.0.0.1:{port} -h /a; exec httpd -f -p 127.0.0.1:{} -h /b",
            port + 1
        );
        run(&node, network, network, &serve);
        let ports = [format!("0:{port}"), format!("127.0.0.1:18080:{}", port + 1), format!("[::1]:0:{port}")];
        let forwarding = Forwarding::start(&node, network, &ports.each_ref().map(String::as_str));
        let [first, second, sixth] = forwarding.listens[..] else { panic!("three ports") };
        assert!(first.ip().is_loopback() && first.port() != 0 && sixth.is_ipv6());
        assert_eq!(second, "127.0.0.1:18080".parse().unwrap());
        assert_eq!(hear(&node, first), network);
        assert_eq!(hear(&node, second), "second");
        assert_eq!(hear(&node, sixth), network);
        // Many at once, while others that say nothing are open too.
        let idle: Vec<TcpStream> = (0..8).map(|_| dial(&node, first)).collect();
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..16).map(|_| scope.spawn(|| ask(&node, first).unwrap())).collect();
            asking.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), network));
        });
        drop(idle);
        let (code, errors) = forwarding.interrupt();
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        assert!(ask(&node, first).is_err(), "nobody listens any more");
        ok(&node, &["rm", "-f", network]);
    }
    node.finish();
}

#[test]
fn each_direction_ends_by_itself() {
    let node = TestNode::start();
    run(&node, "echo", "none", "while :; do nc -l -p 7 -e cat; done");
    let forwarding = Forwarding::start(&node, "echo", &["0:7"]);
    // The client's end reaches the pod, which still sends what it has: more than all buffers on the way.
    let sent: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
    let back = wait_for("an echo", PATIENCE, || {
        let mut stream = dial(&node, forwarding.listens[0]);
        let mut writer = stream.try_clone().unwrap();
        let mut back = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
            stream.read_to_end(&mut back).ok();
        });
        // It may not have listened yet.
        (!back.is_empty()).then_some(back)
    });
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    forwarding.interrupt();
    ok(&node, &["rm", "-f", "echo"]);

    // The pod's end reaches the client, which still sends: here the server is this test, on the host's network.
    run(&node, "host", "host", "exec sleep 1000");
    let server = node.listen();
    let forwarding = Forwarding::start(&node, "host", &[&format!("0:{}", server.local_addr().unwrap().port())]);
    let mut client = dial(&node, forwarding.listens[0]);
    let (mut connection, _) = server.accept().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(b"no more from me").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "no more from me");
    client.write_all(b"but from me").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    connection.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "but from me");
    let (code, errors) = forwarding.interrupt();
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    ok(&node, &["rm", "-f", "host"]);
    node.finish();
}

#[test]
fn one_connection_that_fails_is_named_and_the_others_go_on() {
    let node = TestNode::start();
    run(&node, "web", "pod", "mkdir /a; echo here >/a/word; exec httpd -f -p 80 -h /a");
    let forwarding = Forwarding::start(&node, "web", &["0:80", "0:9"]);
    assert_eq!(hear(&node, forwarding.listens[0]), "here");
    // A connection that nobody reads from fills its own buffers alone.
    let stuck = dial(&node, forwarding.listens[0]);
    let mut refused = dial(&node, forwarding.listens[1]);
    let mut nothing = Vec::new();
    refused.read_to_end(&mut nothing).ok();
    assert!(nothing.is_empty());
    let peer = refused.local_addr().unwrap();
    assert_eq!(ask(&node, forwarding.listens[0]).unwrap(), "here");
    drop(stuck);
    let (code, errors) = forwarding.interrupt();
    assert_eq!(code, Some(0));
    assert!(errors.contains(&format!("{peer} -> web:9: ")) && errors.contains("does anything listen"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    ok(&node, &["rm", "-f", "web"]);
    node.finish();
}

#[test]
fn what_leads_nowhere_is_refused() {
    let node = TestNode::start();
    let (code, error) = fails(&node, &["port-forward", "nobody", "0:80"]);
    assert!(code == Some(1) && error.contains("nobody"), "{error}");
    for wrong in ["80:0", "http", "1:2:3", "0:65536", "-1:80", "127.0.0.1:0:", ""] {
        let (code, error) = fails(&node, &["port-forward", "web", "--", wrong]);
        assert!(code == Some(2) && error.contains("REMOTE"), "{wrong}: {error}");
    }
    run(&node, "web", "none", "exec httpd -f -p 80");
    let taken = node.listen();
    let (code, error) =
        fails(&node, &["port-forward", "web", "0:80", &format!("{}:80", taken.local_addr().unwrap().port())]);
    assert!(code == Some(1) && error.contains("EADDRINUSE") && error.contains("listen on 127.0.0.1:"), "{error}");

    // When the pod goes, so does what leads to it.
    let forwarding = Forwarding::start(&node, "web", &["0:80"]);
    ok(&node, &["rm", "-f", "web"]);
    drop(dial(&node, forwarding.listens[0]));
    let (code, error) = forwarding.end();
    assert!(code == Some(1) && error.contains("sandbox"), "{error}");
    node.finish();
}
