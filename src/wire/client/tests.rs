use super::*;
use crate::wire::session::ExecStdio;
use pb::reply::Body as Reply;
use pb::request::Body as Request;

/// A shim played by the test: blocking, on a thread of its own.
struct Peer {
    socket: OwnedFd,
}

impl Peer {
    fn next(&self) -> (pb::Request, Vec<OwnedFd>) {
        receive(self.socket.as_fd(), &mut vec![0; MAX_PACKET_BYTES]).unwrap()
    }

    fn send(&self, body: pb::packet::Body, fds: Vec<OwnedFd>) {
        let packet = pb::Packet { body: Some(body) };
        Outgoing::new(&packet, fds).unwrap().send(self.socket.as_fd()).unwrap();
    }

    fn reply(&self, id: u64, body: Reply, fds: Vec<OwnedFd>) {
        self.send(pb::packet::Body::Reply(pb::Reply { id, body: Some(body) }), fds);
    }

    fn event(&self, body: pb::event::Body) {
        self.send(pb::packet::Body::Event(pb::Event { body: Some(body) }), Vec::new());
    }
}

/// A client and the thread of a peer that has said hello with this version.
async fn connected(
    version: u32,
    play: impl FnOnce(Peer) + Send + 'static,
) -> (Result<(Shim, Events), WireError>, std::thread::JoinHandle<()>) {
    let (ours, theirs) = socket::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let peer = Peer { socket: theirs };
        let (hello, _) = peer.next();
        assert!(matches!(hello.body, Some(Request::Hello(_))));
        peer.reply(hello.id, Reply::Hello(pb::HelloReply { version, shim_version: String::new(), pid: 42 }), vec![]);
        play(peer);
    });
    (Shim::over(ours).await, thread)
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let (shim, thread) = connected(1, |peer| {
        let mut requests: Vec<_> = (0..8).map(|_| peer.next().0).collect();
        requests.reverse();
        for request in requests {
            let Some(Request::Start(start)) = request.body else { panic!("{request:?}") };
            let pid = start.container_id.parse().unwrap();
            peer.reply(request.id, Reply::Start(pb::StartReply { started_at: 1, pid }), vec![]);
        }
    })
    .await;
    let (shim, _events) = shim.unwrap();
    assert_eq!(shim.pid(), 42);
    let calls: Vec<_> = (0..8)
        .map(|n| {
            let shim = shim.clone();
            tokio::spawn(async move { (n, shim.start(&n.to_string()).await.unwrap().pid) })
        })
        .collect();
    for call in calls {
        let (asked, got) = call.await.unwrap();
        assert_eq!(asked, got);
    }
    thread.join().unwrap();
}

#[tokio::test]
async fn a_lost_shim_ends_every_call_and_the_events() {
    let (shim, thread) = connected(1, |peer| {
        peer.event(pb::event::Body::InitExited(pb::InitExited { code: 3 }));
        peer.next();
        peer.next();
    })
    .await;
    let (shim, mut events) = shim.unwrap();
    let (a, b) = tokio::join!(shim.start("a"), shim.reopen_log("b"));
    assert!(matches!((a, b), (Err(WireError::Gone), Err(WireError::Gone))));
    assert!(matches!(shim.state().await, Err(WireError::Gone)));
    assert!(matches!(events.recv().await, Some(pb::event::Body::InitExited(pb::InitExited { code: 3 }))));
    assert!(events.recv().await.is_none());
    // A shim that is told to shut down may be gone before it answers.
    shim.shutdown().await.unwrap();
    thread.join().unwrap();
}

#[tokio::test]
async fn an_error_reply_keeps_its_parts() {
    let (shim, thread) = connected(1, |peer| {
        let (request, _) = peer.next();
        let message = "exec /bin/nope: ENOENT".to_owned();
        let kind = pb::error::Kind::Invalid.into();
        peer.reply(request.id, Reply::Error(pb::Error { kind, step: "exec".into(), errno: 2, message }), vec![]);
    })
    .await;
    let (shim, _events) = shim.unwrap();
    let e = shim.start("c").await.unwrap_err();
    assert_eq!(e.kind(), Some(pb::error::Kind::Invalid));
    assert_eq!(e.to_string(), "exec /bin/nope: ENOENT");
    thread.join().unwrap();
}

#[tokio::test]
async fn a_tty_session_has_its_pty_before_its_end() {
    let (shim, thread) = connected(1, |peer| {
        let (request, fds) = peer.next();
        assert!(matches!(&request.body, Some(Request::Exec(exec)) if exec.stdin && !exec.stdout && !exec.stderr));
        assert_eq!(fds.len(), 1);
        let pty = std::fs::File::open("/dev/null").unwrap();
        peer.reply(request.id, Reply::ExecStarted(pb::ExecStarted { pid: 9 }), vec![pty.into()]);
        peer.reply(request.id, Reply::Exec(pb::ExecReply { code: 7 }), vec![]);
    })
    .await;
    let (shim, _events) = shim.unwrap();
    let process = plan_with_tty();
    let stdin = Some(std::fs::File::open("/dev/null").unwrap().into());
    let stdio = ExecStdio { stdin, ..ExecStdio::default() };
    let mut session = shim.exec("c", "e", &process, false, stdio).await.unwrap();
    assert!(session.pty().await.is_some());
    assert_eq!(session.wait().await.unwrap(), 7);
    thread.join().unwrap();
}

fn plan_with_tty() -> crate::plan::Process {
    crate::plan::Process { tty: true, ..Default::default() }
}

#[tokio::test]
async fn versions_without_overlap_are_refused() {
    let (shim, thread) = connected(0, |_| {}).await;
    assert!(matches!(shim, Err(WireError::Version { theirs: 0 })));
    thread.join().unwrap();
}

#[tokio::test]
async fn a_malformed_packet_loses_the_shim() {
    let (shim, thread) = connected(1, |peer| {
        socket::send(peer.socket.as_fd(), &[9, 9, 9], &[]).unwrap();
        // Keep our side open: it is the client that hangs up.
        assert_eq!(socket::receive(peer.socket.as_fd(), &mut [0; 64]).map(|(len, _)| len).unwrap_or(0), 0);
    })
    .await;
    let (shim, mut events) = shim.unwrap();
    assert!(events.recv().await.is_none());
    assert!(matches!(shim.state().await, Err(WireError::Gone)));
    drop(shim);
    thread.join().unwrap();
}

#[tokio::test]
async fn without_a_socket_the_shim_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Shim::connect(dir.path()).await, Err(WireError::Gone)));
    assert!(matches!(Shim::connect(&dir.path().join("absent")).await, Err(WireError::Gone)));
    // A listener that is gone.
    let name = dir.path().join(crate::wire::SOCKET_NAME);
    drop(socket::listen(name.to_str().unwrap()).unwrap());
    assert!(matches!(Shim::connect(dir.path()).await, Err(WireError::Gone)));
}
