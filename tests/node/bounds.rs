//! What one client takes is not taken from others: connections to the socket, ports that stand still.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use aril::api::cri::VersionRequest;

use super::streaming::{forward, pair, spdy, start};
use crate::support::streams::Spdy;
use crate::support::{Container, PATIENCE, Pod, TestNode, wait_for};

/// In `cri::server`.
const CONNECTIONS: usize = 1024;

#[test]
fn connections_that_say_nothing_make_room_for_new_ones() {
    let node = TestNode::start();
    let mut idle: Vec<UnixStream> =
        (0..CONNECTIONS + 100).map(|_| UnixStream::connect(node.socket()).unwrap()).collect();
    // A client of its own, so a new connection.
    let output = node.aril(["version"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.cri().runtime(|mut c| async move { c.version(VersionRequest::default()).await }).unwrap();
    wait_for("no more connections than there may be", PATIENCE, || {
        (node.daemon_size().0 < CONNECTIONS + 100).then_some(())
    });
    // The oldest is closed, after what HTTP/2 begins and ends with; the newest is not.
    idle[0].set_read_timeout(Some(PATIENCE)).unwrap();
    idle[0].read_to_end(&mut Vec::new()).unwrap();
    let last = idle.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = last.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(idle);
    node.finish();
}

/// A pod with a port that takes nothing, 8081, and one that echoes, 8080.
fn ports(node: &TestNode) -> (Pod<'_>, Container<'_>) {
    let pod = node.run_pod("ports");
    let echo = pod.run(["nc", "-ll", "-p", "8080", "-e", "cat"]);
    pod.run(["nc", "-ll", "-p", "8081", "-e", "sleep", "100000"]);
    wait_for("the listeners", PATIENCE, || {
        let all = echo.sh("netstat -ltn");
        [":8080 ", ":8081 "].iter().all(|port| all.contains(port)).then_some(())
    });
    (pod, echo)
}

fn echoes(client: &mut Spdy, data: u32, word: &str) {
    client.send(data, word.as_bytes());
    client.expect(data, word);
}

#[test]
fn a_port_that_takes_nothing_is_given_up_where_others_wait() {
    let node = start();
    let (pod, _) = ports(&node);
    let mut client = spdy(&node, &forward(&node, &pod, vec![]), "portforward.k8s.io");
    let (_, echo) = pair(&mut client, "8080", "1");
    echoes(&mut client, echo, "before ");
    let (error, stuck) = pair(&mut client, "8081", "2");
    // Until nothing more is read from this connection: the frame that was cut short is sent whole.
    let sent = client.fill(stuck);
    assert!(sent > 256 << 10, "{sent}");
    let begun = Instant::now();
    client.finish_frame();
    client.send(echo, b"after");
    client.expect(echo, "before after");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    let reason = String::from_utf8(client.read_to_end(error)).unwrap();
    assert!(reason.contains("port 8081 took nothing for 10s"), "{reason}");
    assert_eq!(client.resets, [stuck]);
    client.hang_up();
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn a_port_that_takes_nothing_alone_is_waited_for() {
    let node = start();
    let (pod, _) = ports(&node);
    let mut client = spdy(&node, &forward(&node, &pod, vec![]), "portforward.k8s.io");
    let (_, stuck) = pair(&mut client, "8081", "1");
    client.fill(stuck);
    assert!(!client.read_until(Duration::from_secs(12), |c| !c.resets.is_empty()), "nobody waited behind it");
    client.hang_up();
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn whoever_keeps_windows_fills_no_queue() {
    let node = start();
    let (pod, _) = ports(&node);
    let mut client = spdy(&node, &forward(&node, &pod, vec![]), "portforward.k8s.io");
    client.keep_windows(64 << 10);
    let (_, echo) = pair(&mut client, "8080", "1");
    let (_, stuck) = pair(&mut client, "8081", "2");
    let (mut window, mut sent) = (64 << 10, 0);
    while window > 0 {
        client.send(stuck, &vec![0; window]);
        sent += window;
        client.read_until(Duration::from_secs(2), |c| c.opened.get(&stuck).is_some_and(|&opened| opened == sent));
        window = (64 << 10) + client.opened.get(&stuck).copied().unwrap_or(0) - sent;
    }
    // The kernel's buffers took some of it, and 64 KiB wait; nobody else does.
    assert!(sent > 64 << 10);
    let begun = Instant::now();
    echoes(&mut client, echo, "at once");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(client.resets.is_empty());
    client.hang_up();
    pod.remove().unwrap();
    node.finish();
}
