//! The node against a shim played by a thread: recovery, lifecycle, loss. No privileges needed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::record::tests::{container, container_id, sandbox, sandbox_id};
use super::state::{ContainerState, Reason, SandboxState};
use super::store::Store;
use super::*;
use crate::api::cri;
use crate::sys::socket;
use crate::wire::codec::{MAX_PACKET_BYTES, Outgoing, receive};
use crate::wire::pb;
use pb::container_state::Status;
use pb::reply::Body as Reply;
use pb::request::Body as Request;

/// A node's directories with one ready sandbox on disk.
struct Home {
    dir: tempfile::TempDir,
    settings: Settings,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Its cleanup has nothing to do but to succeed.
        let shim = dir.path().join("aril-shim");
        fs::copy("/bin/true", &shim).unwrap();
        let settings = Settings::new(dir.path().join("root"), dir.path().join("state"), shim);
        let home = Self { dir, settings };
        home.store(|store| {
            store.make_pod(&sandbox_id('a')).unwrap();
            store.save_sandbox(&sandbox('a')).unwrap();
        });
        fs::create_dir_all(home.settings.exits(&sandbox_id('a'))).unwrap();
        home
    }

    fn store<T>(&self, f: impl FnOnce(&Store) -> T) -> T {
        f(&Store::open(&self.settings).unwrap())
    }

    fn save(&self, digit: char, state: ContainerState) {
        self.store(|store| store.save_container(&ContainerRecord { state, ..container('a', digit) }).unwrap());
        fs::create_dir_all(self.settings.container(&container_id(digit)).join("upper")).unwrap();
    }

    /// One life of a daemon.
    fn daemon<F: Future>(&self, life: impl FnOnce(Arc<Node>) -> F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::open(self.settings.clone()).await.unwrap();
            life(node).await
        })
    }

    fn record(&self, digit: char) -> ContainerRecord {
        let text = fs::read(self.settings.container_record(&sandbox_id('a'), &container_id(digit))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

const CREATED: ContainerState = ContainerState::Created { pid: 7 };
const RUNNING: ContainerState = ContainerState::Running { pid: 7, started_at: 5 };

fn seen(digit: char, status: Status) -> pb::ContainerState {
    let started_at = if status == Status::Created { 0 } else { 5 };
    let container_id = container_id(digit).to_string();
    pb::ContainerState { container_id, status: status.into(), pid: 7, started_at, ..Default::default() }
}

/// The shim of sandbox 'a', for one connection.
struct Fake {
    requests: Receiver<Request>,
    thread: JoinHandle<()>,
}

/// Answers one request; false ends the shim.
type Play = fn(&Peer, u64, &Request, Vec<OwnedFd>) -> bool;

struct Peer {
    socket: OwnedFd,
}

impl Peer {
    fn send(&self, body: pb::packet::Body) {
        Outgoing::new(&pb::Packet { body: Some(body) }, vec![]).unwrap().send(self.socket.as_fd()).unwrap();
    }

    fn reply(&self, id: u64, body: Reply) {
        self.send(pb::packet::Body::Reply(pb::Reply { id, body: Some(body) }));
    }

    fn done(&self, id: u64) {
        self.reply(id, Reply::Done(pb::Done {}));
    }

    fn refuse(&self, id: u64, message: &str) {
        let kind = pb::error::Kind::Invalid.into();
        self.reply(id, Reply::Error(pb::Error { kind, step: "exec".into(), errno: 2, message: message.into() }));
    }

    fn exited(&self, container_id: &str, code: i32) {
        let exit = Some(pb::Exit { code, finished_at: 9, ..Default::default() });
        let body = pb::event::Body::Exited(pb::Exited { container_id: container_id.to_owned(), exit });
        self.send(pb::packet::Body::Event(pb::Event { body: Some(body) }));
    }
}

impl Fake {
    fn new(home: &Home, containers: Vec<pb::ContainerState>, play: Play) -> Self {
        let run_dir = home.settings.run(&sandbox_id('a'));
        let listener = listen(&run_dir);
        let (sender, requests) = channel();
        let thread = std::thread::spawn(move || {
            let peer = Peer { socket: accept(&listener) };
            let mut buffer = vec![0; MAX_PACKET_BYTES];
            while let Ok((pb::Request { id, body: Some(body) }, fds)) =
                receive::<pb::Request>(peer.socket.as_fd(), &mut buffer)
            {
                let goes_on = match &body {
                    Request::Hello(_) => {
                        let hello = pb::HelloReply { version: 1, shim_version: String::new(), pid: 42 };
                        peer.reply(id, Reply::Hello(hello));
                        true
                    }
                    Request::State(_) => {
                        let containers = containers.clone();
                        peer.reply(id, Reply::State(pb::StateReply { containers, init_pid: 0, setup: true }));
                        true
                    }
                    other => play(&peer, id, other, fds),
                };
                sender.send(body).ok();
                if !goes_on {
                    break;
                }
            }
        });
        Self { requests, thread }
    }

    /// All that was asked, but for hello and state.
    fn asked(self) -> Vec<Request> {
        self.thread.join().unwrap();
        self.requests.iter().filter(|r| !matches!(r, Request::Hello(_) | Request::State(_))).collect()
    }
}

fn listen(run_dir: &Path) -> OwnedFd {
    let path = run_dir.join(crate::wire::SOCKET_NAME);
    fs::remove_file(&path).ok();
    let dir = fs::File::open(run_dir).unwrap();
    socket::listen(&crate::wire::socket_path(dir.as_fd())).unwrap()
}

fn accept(listener: &OwnedFd) -> OwnedFd {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        if let Some(socket) = socket::accept(listener.as_fd()).unwrap() {
            // This thread waits for packets.
            fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            return socket;
        }
    }
}

/// A shim whose containers do as they are told.
fn obedient(peer: &Peer, id: u64, request: &Request, _: Vec<OwnedFd>) -> bool {
    match request {
        Request::Start(_) => peer.reply(id, Reply::Start(pb::StartReply { started_at: 5, pid: 7 })),
        Request::Signal(signal) => {
            peer.done(id);
            peer.exited(&signal.container_id, 128 + signal.signal);
        }
        Request::Update(_) => peer.reply(id, Reply::Update(pb::UpdateReply::default())),
        Request::Shutdown(_) => {
            peer.done(id);
            return false;
        }
        _ => peer.done(id),
    }
    true
}

/// A shim whose containers die of SIGKILL alone.
fn stubborn(peer: &Peer, id: u64, request: &Request, fds: Vec<OwnedFd>) -> bool {
    match request {
        Request::Signal(signal) if signal.signal != 9 => peer.done(id),
        _ => return obedient(peer, id, request, fds),
    }
    true
}

fn id(digit: char) -> String {
    container_id(digit).to_string()
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = found() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within five seconds");
}

#[test]
fn what_runs_goes_on_and_can_be_stopped() {
    let home = Home::new();
    home.save('c', RUNNING);
    let shim = Fake::new(&home, vec![seen('c', Status::Running)], obedient);
    home.daemon(|node| async move {
        assert_eq!(node.container("cc").unwrap().state, RUNNING);
        node.stop_container(&id('c'), Duration::from_secs(30)).await.unwrap();
        let ContainerState::Exited(exit) = &node.container("cc").unwrap().state else { panic!("not exited") };
        assert_eq!((exit.code, exit.started_at, exit.finished_at), (143, 5, 9));
        // Once more, and one that nobody knows.
        node.stop_container(&id('c'), Duration::ZERO).await.unwrap();
        node.stop_container("ffff", Duration::ZERO).await.unwrap();
    });
    assert!(matches!(home.record('c').state, ContainerState::Exited(_)));
    assert!(matches!(&shim.asked()[..], [Request::Signal(s)] if s.signal == 15 && !s.all));
}

#[test]
fn a_second_stop_shortens_and_signals_no_second_time() {
    let home = Home::new();
    home.save('c', RUNNING);
    let shim = Fake::new(&home, vec![seen('c', Status::Running)], stubborn);
    home.daemon(|node| async move {
        let long = {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.stop_container(&id('c'), Duration::from_secs(600)).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        node.stop_container(&id('c'), Duration::from_millis(50)).await.unwrap();
        long.await.unwrap().unwrap();
    });
    let signals: Vec<(i32, bool)> = shim
        .asked()
        .iter()
        .map(|request| match request {
            Request::Signal(s) => (s.signal, s.all),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(signals, [(15, false), (9, true)]);
}

#[test]
fn a_container_that_will_not_stop_delays_nobody() {
    let home = Home::new();
    home.save('c', RUNNING);
    home.save('d', CREATED);
    let shim = Fake::new(&home, vec![seen('c', Status::Running), seen('d', Status::Created)], stubborn);
    home.daemon(|node| async move {
        let stop = {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.stop_container(&id('c'), Duration::from_secs(600)).await })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        node.start_container(&id('d')).await.unwrap();
        assert_eq!(node.container(&id('d')).unwrap().state, RUNNING);
        // Its caller goes away; the removal ends what is left of it.
        stop.abort();
        node.remove_container(&id('c')).await.unwrap();
        assert!(node.container(&id('c')).is_err());
    });
    assert!(!home.settings.container(&container_id('c')).exists());
    shim.asked();
}

#[test]
fn a_program_that_cannot_be_executed_is_a_start_error() {
    let home = Home::new();
    home.save('c', CREATED);
    let play: Play = |peer, id, request, fds| match request {
        Request::Start(start) => {
            // The end of its init may well be told first.
            peer.exited(&start.container_id, 128);
            peer.refuse(id, "exec \"/x\": ENOENT");
            true
        }
        _ => obedient(peer, id, request, fds),
    };
    let shim = Fake::new(&home, vec![seen('c', Status::Created)], play);
    home.daemon(|node| async move {
        let error = node.start_container(&id('c')).await.unwrap_err();
        assert!(chain(&*error).ends_with("exec \"/x\": ENOENT"), "{error}");
        let ContainerState::Exited(exit) = &node.container("c").unwrap().state else { panic!("not exited") };
        assert_eq!((exit.code, exit.reason, exit.message.as_str()), (128, Reason::StartError, "exec \"/x\": ENOENT"));
        let again = node.start_container(&id('c')).await.unwrap_err();
        assert!(matches!(*again, NodeError::Refused { .. }));
    });
    shim.asked();
}

#[test]
fn a_sandbox_is_stopped_with_all_that_is_in_it_and_then_removed() {
    let home = Home::new();
    home.save('c', RUNNING);
    home.save('d', CREATED);
    let shim = Fake::new(&home, vec![seen('c', Status::Running), seen('d', Status::Created)], obedient);
    home.daemon(|node| async move {
        let sandbox = sandbox_id('a').to_string();
        for _ in 0..2 {
            node.stop_sandbox(&sandbox).await.unwrap();
        }
        assert!(matches!(node.sandbox(&sandbox).unwrap().state, SandboxState::NotReady { .. }));
        for container in node.containers() {
            let ContainerState::Exited(exit) = &container.state else { panic!("{container:?}") };
            assert_eq!((exit.code, exit.reason), (137, Reason::Error));
        }
        let refused = node.create_container(&sandbox, cri::ContainerConfig::default()).await.unwrap_err();
        assert!(matches!(*refused, NodeError::Refused { .. }), "{refused}");
        for _ in 0..2 {
            node.remove_sandbox(&sandbox).await.unwrap();
        }
        assert_eq!(node.counts(), (0, 0));
    });
    assert!(matches!(&shim.asked()[..], [Request::Shutdown(_)]));
    for dir in [home.settings.pods(), home.settings.containers(), home.settings.runs()] {
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "{}", dir.display());
    }
}

#[test]
fn the_death_of_a_shim_ends_its_pod() {
    let home = Home::new();
    home.save('c', RUNNING);
    home.save('d', RUNNING);
    let exit = home.settings.exits(&sandbox_id('a')).join(format!("{}.json", id('d')));
    fs::write(
        exit,
        format!(r#"{{"version":1,"container_id":"{}","code":3,"finished_at":8,"oom_killed":false}}"#, id('d')),
    )
    .unwrap();
    let dies: Play = |_, _, request, _| !matches!(request, Request::ReopenLog(_));
    let shim = Fake::new(&home, vec![seen('c', Status::Running), seen('d', Status::Running)], dies);
    home.daemon(|node| async move {
        node.reopen_log(&id('c')).await.unwrap_err();
        let message = until(|| match &node.sandbox("a").unwrap().state {
            SandboxState::NotReady { message, .. } => Some(message.clone()),
            _ => None,
        })
        .await;
        assert!(message.contains("shim"), "{message}");
        let exits: Vec<(i32, Reason)> = node
            .containers()
            .iter()
            .map(|container| match &container.state {
                ContainerState::Exited(exit) => (exit.code, exit.reason),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(exits, [(255, Reason::Unknown), (3, Reason::Error)]);
        node.remove_sandbox("a").await.unwrap();
    });
    assert!(!home.settings.pod(&sandbox_id('a')).exists());
    shim.asked();
}

#[test]
fn half_made_and_half_removed_containers_are_gone_after_a_restart() {
    let home = Home::new();
    home.save('c', ContainerState::Creating);
    home.save('d', ContainerState::Removing { exit: None, started_at: 0 });
    home.save('e', RUNNING);
    fs::create_dir(home.settings.container(&container_id('f'))).unwrap();
    let strangers = vec![seen('e', Status::Running), seen('b', Status::Running)];
    let shim = Fake::new(&home, strangers, obedient);
    home.daemon(|node| async move {
        until(|| (node.containers().len() == 1).then_some(())).await;
        assert_eq!(node.containers()[0].id, container_id('e'));
    });
    let deleted: Vec<String> = shim
        .asked()
        .into_iter()
        .map(|request| match request {
            Request::Delete(delete) if delete.force => delete.container_id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(deleted, [id('b'), id('c'), id('d')]);
    for digit in ['c', 'd', 'f'] {
        assert!(!home.settings.container(&container_id(digit)).exists(), "{digit}");
    }
    assert!(home.settings.container(&container_id('e')).exists());
}

#[test]
fn after_a_reboot_containers_have_exited_and_their_sandbox_is_not_ready() {
    let home = Home::new();
    home.save('c', RUNNING);
    fs::remove_dir_all(home.settings.run(&sandbox_id('a'))).unwrap();
    home.daemon(|node| async move {
        assert!(matches!(node.sandbox("a").unwrap().state, SandboxState::NotReady { .. }));
        let ContainerState::Exited(exit) = &node.container("c").unwrap().state else { panic!("not exited") };
        assert_eq!((exit.code, exit.reason, exit.started_at), (255, Reason::Unknown, 5));
    });
    assert!(matches!(home.record('c').state, ContainerState::Exited(_)), "and so it is on disk");
}

#[test]
fn a_sandbox_in_the_making_is_undone_and_a_stop_goes_on() {
    let home = Home::new();
    home.store(|store| {
        store.make_pod(&sandbox_id('b')).unwrap();
        store.save_sandbox(&SandboxRecord { state: SandboxState::Creating, ..sandbox('b') }).unwrap();
        store.save_sandbox(&SandboxRecord { state: SandboxState::Stopping, ..sandbox('a') }).unwrap();
    });
    fs::create_dir(home.settings.run(&sandbox_id('b'))).unwrap();
    let shim = Fake::new(&home, vec![], obedient);
    home.daemon(|node| async move {
        assert!(node.sandbox("b").is_err());
        until(|| matches!(node.sandbox("a").unwrap().state, SandboxState::NotReady { .. }).then_some(())).await;
    });
    assert!(matches!(&shim.asked()[..], [Request::Shutdown(_)]));
    assert!(!home.settings.pod(&sandbox_id('b')).exists() && !home.settings.run(&sandbox_id('b')).exists());
}

#[test]
fn limits_are_merged_and_survive() {
    let home = Home::new();
    home.save('c', CREATED);
    let shim = Fake::new(&home, vec![seen('c', Status::Created)], obedient);
    let limits = |shares, limit| cri::LinuxContainerResources {
        cpu_shares: shares,
        memory_limit_in_bytes: limit,
        ..Default::default()
    };
    home.daemon(|node| async move {
        node.update_container(&id('c'), limits(512, 0)).await.unwrap();
        for _ in 0..2 {
            node.update_container(&id('c'), limits(0, 64 << 20)).await.unwrap();
        }
        assert_eq!(node.container("c").unwrap().resources, Some(limits(512, 64 << 20)));
    });
    assert_eq!(home.record('c').resources, Some(limits(512, 64 << 20)));
    assert_eq!(shim.asked().len(), 3);
}

#[test]
fn a_command_gives_its_output_and_code_or_is_killed_at_its_limit() {
    let home = Home::new();
    home.save('c', RUNNING);
    home.save('d', CREATED);
    let play: Play = |peer, id, request, fds| {
        match request {
            Request::Exec(exec) if exec.stdout && exec.stderr && !exec.stdin => {
                let process = <crate::plan::Process as prost::Message>::decode(&exec.process[..]).unwrap();
                if process.args == ["echo"] {
                    nix::unistd::write(&fds[0], b"out").unwrap();
                    nix::unistd::write(&fds[1], b"err").unwrap();
                    // Somebody keeps the pipes: the reply must not wait for their end.
                    std::mem::forget(fds);
                    peer.reply(id, Reply::Exec(pb::ExecReply { code: 3 }));
                }
            }
            Request::KillExec(kill) => {
                assert_eq!(kill.signal, 0);
                peer.done(id);
                // The exec before it: requests are numbered in their order.
                peer.reply(id - 1, Reply::Exec(pb::ExecReply { code: 137 }));
            }
            other => panic!("{other:?}"),
        }
        true
    };
    let shim = Fake::new(&home, vec![seen('c', Status::Running), seen('d', Status::Created)], play);
    home.daemon(|node| async move {
        let output = node.exec_sync("c", &["echo".into()], None).await.unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..], output.exit_code), (&b"out"[..], &b"err"[..], 3));
        let limit = Some(Duration::from_millis(50));
        let late = node.exec_sync("c", &["sleep".into()], limit).await.unwrap_err();
        assert!(matches!(*late, NodeError::Deadline { .. }), "{late}");
        let refused = node.exec_sync("d", &["echo".into()], None).await.unwrap_err();
        assert!(matches!(*refused, NodeError::Refused { .. }), "{refused}");
        assert!(node.exec_sync("c", &[], None).await.is_err());
    });
    assert!(matches!(&shim.asked()[..], [Request::Exec(_), Request::Exec(_), Request::KillExec(_)]));
}

#[test]
fn a_request_that_cannot_be_met_leaves_nothing() {
    let home = Home::new();
    let shim = Fake::new(&home, vec![], obedient);
    home.daemon(|node| async move {
        let image = Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() });
        let config = cri::ContainerConfig { image, ..(*container('a', 'c').config).clone() };
        let error = node.create_container("a", config).await.unwrap_err();
        assert!(matches!(*error, NodeError::NoImage(_)), "{error}");
        assert!(node.containers().is_empty());

        let error = node.run_sandbox(cri::PodSandboxConfig::default(), "").await.unwrap_err();
        assert!(matches!(*error, NodeError::Spec(_)), "{error}");
        let error = node.run_sandbox((*sandbox('a').config).clone(), "kata").await.unwrap_err();
        assert!(matches!(*error, NodeError::Invalid { field: "runtime_handler", .. }), "{error}");
    });
    assert_eq!(fs::read_dir(home.settings.containers()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(home.settings.pods()).unwrap().count(), 1);
    assert!(shim.asked().is_empty());
}

#[test]
fn a_repeated_run_finds_the_sandbox_and_another_config_is_refused() {
    let home = Home::new();
    let shim = Fake::new(&home, vec![], obedient);
    home.daemon(|node| async move {
        let config = (*sandbox('a').config).clone();
        assert_eq!(node.run_sandbox(config.clone(), "").await.unwrap(), sandbox_id('a'));
        let other = cri::PodSandboxConfig { hostname: "other".into(), ..config.clone() };
        let error = node.run_sandbox(other, "").await.unwrap_err();
        assert!(error.to_string().contains("its config is another one"), "{error}");
        node.stop_sandbox("a").await.unwrap();
        let error = node.run_sandbox(config, "").await.unwrap_err();
        assert!(error.to_string().contains("but is stopped"), "{error}");
    });
    shim.asked();
}

#[test]
fn two_daemons_do_not_share_a_root() {
    let home = Home::new();
    fs::remove_dir_all(home.settings.run(&sandbox_id('a'))).unwrap();
    home.daemon(|_node| async {
        let error = Node::open(home.settings.clone()).await.unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    });
    assert!(home.dir.path().exists());
}
