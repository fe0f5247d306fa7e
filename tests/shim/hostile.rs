//! A peer that keeps no rule: it is cut off, and nobody else notices.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use aril::sys::socket;
use aril::wire::codec::{IN_MEMFD, MAX_PACKET_BYTES, Outgoing};
use aril::wire::pb;
use aril::wire::pb::request::Body;
use aril::wire::socket_path;

use crate::pod::{TestPod, eventually};

/// A connection without a client, blocking.
fn connect(pod: &TestPod) -> OwnedFd {
    let dir = File::open(pod.run_dir()).unwrap();
    socket::connect(&socket_path(dir.as_fd())).unwrap()
}

fn send(socket: &OwnedFd, body: Body) {
    Outgoing::new(&pb::Request { id: 1, body: Some(body) }, Vec::new()).unwrap().send(socket.as_fd()).unwrap();
}

fn hello(socket: &OwnedFd) {
    send(socket, Body::Hello(pb::Hello { version: 1 }));
    assert!(socket::receive(socket.as_fd(), &mut [0; 1024]).unwrap().0 > 0);
}

fn is_cut_off(socket: &OwnedFd) -> bool {
    match socket::receive(socket.as_fd(), &mut [0; MAX_PACKET_BYTES]) {
        Ok((len, _)) => len == 0,
        Err(e) => e.raw_os_error() == Some(104),
    }
}

#[tokio::test]
async fn malformed_packets_end_only_their_connection() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", pod.shim.pid())).unwrap().count();
    let before = fds();
    let file = tempfile::tempfile().unwrap();
    let packets: [(&[u8], usize); 7] = [
        (&[7], 0),
        (&[0, 0xff, 0xff, 0xff], 0),
        (&[IN_MEMFD], 0),
        (&[IN_MEMFD], 1),
        (&[IN_MEMFD, 1], 1),
        (&[0; MAX_PACKET_BYTES + 1], 0),
        (&[0], 200),
    ];
    for (packet, count) in packets {
        for greeted in [false, true] {
            let socket = connect(&pod);
            if greeted {
                hello(&socket);
            }
            socket::send(socket.as_fd(), packet, &vec![file.as_fd(); count]).unwrap();
            assert!(is_cut_off(&socket), "{:?} with {count} descriptors", &packet[..packet.len().min(8)]);
        }
    }
    let rude = connect(&pod);
    send(&rude, Body::State(pb::State {}));
    assert!(is_cut_off(&rude), "no hello");
    let old = connect(&pod);
    send(&old, Body::Hello(pb::Hello { version: 0 }));
    assert!(is_cut_off(&old), "a version from before the first");
    eventually("all descriptors are closed", || fds() == before).await;
    assert_eq!(pod.exec(&id, "true").await.0, 0);
    pod.finish().await;
}

/// A shim without a descriptor to spare neither spins nor forgets who wants in.
#[tokio::test]
async fn a_shim_out_of_descriptors_lets_connections_wait() {
    let pod = TestPod::start().await;
    let pid = pod.shim.pid();
    let used: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).find(|n| !used.contains(n)).unwrap();
    let limit = |soft: &str| {
        let limit = format!("--nofile={soft}:");
        let done = std::process::Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
        assert!(done.unwrap().success());
    };
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split(' ').skip(12).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
    };
    limit(&free.to_string());
    let waiting = connect(&pod);
    let before = ticks();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(ticks() - before < 5, "{} ticks of a second", ticks() - before);
    limit("512");
    let waiting = tokio::task::spawn_blocking(move || {
        hello(&waiting);
        waiting
    });
    drop(tokio::time::timeout(crate::pod::PATIENCE, waiting).await.expect("never accepted").unwrap());
    pod.finish().await;
}

/// A daemon that asks and never reads is cut off when too much is kept for it.
#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let deaf = connect(&pod);
    hello(&deaf);
    let request = pb::Request { id: 1, body: Some(Body::State(pb::State {})) };
    let packet = Outgoing::new(&request, Vec::new()).unwrap();
    let flood = tokio::task::spawn_blocking(move || (0..1_000_000).find_map(|_| packet.send(deaf.as_fd()).err()));
    let ended = flood.await.unwrap().expect("cut off");
    assert!(matches!(ended.raw_os_error(), Some(32 | 104)), "{ended}");
    assert_eq!(pod.exec(&id, "true").await.0, 0);
    pod.finish().await;
}

/// Requests that mean nothing are answered, each with a reason.
#[tokio::test]
async fn senseless_requests_are_refused() {
    let pod = TestPod::start().await;
    let empty = [
        Body::SetupSandbox(pb::SetupSandbox::default()),
        Body::Create(pb::Create::default()),
        Body::Create(pb::Create { container_id: "0".repeat(64), plan: vec![0xff; 9] }),
        Body::Create(pb::Create { container_id: "0".repeat(64), plan: Vec::new() }),
        Body::Start(pb::Start::default()),
        Body::Signal(pb::Signal::default()),
        Body::Exec(pb::Exec::default()),
        Body::ReopenLog(pb::ReopenLog::default()),
        Body::Update(pb::Update { container_id: "x".repeat(100_000), resources: Vec::new(), oom_score_adj: None }),
        Body::Attach(pb::Attach::default()),
        Body::Resize(pb::Resize { rows: u32::MAX, ..Default::default() }),
        Body::CloseStdin(pb::CloseStdin::default()),
    ];
    for body in empty {
        let name = format!("{body:.40?}");
        let error = pod.shim.call(body, Vec::new()).await.unwrap_err();
        assert!(error.kind().is_some() && !error.to_string().is_empty(), "{name}: {error:?}");
    }
    pod.finish().await;
}
