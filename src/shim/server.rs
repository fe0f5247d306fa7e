//! The loop: waits for descriptors and deadlines, and gives each what it is for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::attach::Place;
use super::connection::{Connection, ReplyTo};
use super::container::Container;
use super::failure::Failure;
use super::finish::Sweeping;
use super::home::Home;
use super::log::Stream;
use super::poll::{Key, Poller, Ready, Source, Timer, Timers, Watch};
use super::sandbox::Sandbox;
use super::session::Session;
use super::shutdown::Ending;
use super::stdio::Scratch;
use crate::runtime::Pod;
use crate::sys::{memory, wait};
use crate::wire::codec::{Outgoing, PacketError};
use crate::wire::pb;

/// How long after a request memory is given back, so that many in a row share one time.
const TRIM_AFTER: Duration = Duration::from_secs(2);

/// Everything the shim knows.
#[derive(Debug)]
pub struct Server {
    /// Descriptors.
    pub poller: Poller,
    /// Deadlines.
    pub timers: Timers,
    /// The runtime's side of the pod.
    pub pod: Pod,
    /// `None` until it is set up.
    pub sandbox: Option<Sandbox>,
    /// What was done less well than it should since the start.
    pub warnings: Vec<String>,
    /// By key.
    pub containers: BTreeMap<Key, Container>,
    /// Exec sessions by key.
    pub sessions: BTreeMap<Key, Session>,
    /// Containers whose cgroup is to be removed.
    pub sweeping: Vec<Sweeping>,
    /// Sessions whose cgroup is to be removed.
    pub sweeping_sessions: Vec<Sweeping>,
    /// Space for reading and logging.
    pub scratch: Scratch,
    /// A shutdown under way.
    pub ending: Option<Ending>,
    /// Where the shim itself belongs.
    pub home: Home,
    connections: BTreeMap<Key, Connection>,
    /// Connections found broken, to be closed when nothing uses them.
    lost: Vec<Key>,
    signals: SignalFd,
}

impl Server {
    /// A server for the daemon at the other end of `socket`. Blocks the signals it takes by descriptor.
    ///
    /// # Errors
    /// As epoll_create1(2), signalfd(2).
    pub fn new(pod: Pod, socket: OwnedFd, warnings: Vec<String>) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        let signals = take_signals()?;
        poller.add(&signals, Source::Signals, Watch::Read)?;
        let first = Connection::new(&mut poller, socket)?;
        Ok(Self {
            poller,
            timers: Timers::default(),
            pod,
            sandbox: None,
            warnings,
            containers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sweeping: Vec::new(),
            sweeping_sessions: Vec::new(),
            scratch: Scratch::default(),
            ending: None,
            home: Home::default(),
            connections: BTreeMap::from([(first.key(), first)]),
            lost: Vec::new(),
            signals,
        })
    }

    /// Serves until the pod is shut down, or its daemon is lost before it was set up.
    ///
    /// # Errors
    /// As epoll_wait(2); nothing can be done then.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            for ready in self.poller.wait(self.timers.next())? {
                self.dispatch(ready);
            }
            for timer in self.timers.due() {
                self.due(timer);
            }
            self.sweep_cgroups(false);
            self.sweep_sessions(false);
            self.close_lost();
            if self.finish_shutdown() || (self.sandbox.is_none() && self.connections.is_empty()) {
                return Ok(());
            }
        }
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.source {
            Source::Signals => self.signalled(),
            Source::Listener => self.accept(),
            Source::Connection(key) => self.connection_ready(key, ready),
            Source::Channel(key) => self.channel_ready(key),
            Source::ExecChannel(key) => self.exec_channel_ready(key),
            Source::Stdout(key) => self.output_ready(key, Stream::Stdout),
            Source::Stderr(key) => self.output_ready(key, Stream::Stderr),
            Source::Stdin(key) => self.with_streams(key, |container, place, _| {
                container.streams.input.target_ready(place);
            }),
            Source::Inlet(key, client) => self.with_streams(key, |container, place, scratch| {
                container.streams.input.inlet_ready(place, client, scratch.buffer.bytes());
            }),
            Source::Tap(key, client) => self.with_streams(key, |container, place, _| {
                container.streams.taps.ready(place, client);
                container.after_taps(place);
            }),
        }
    }

    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Container(key) => self.container_overdue(key),
            Timer::Tap(key, client) => self.with_streams(key, |container, place, _| {
                container.streams.taps.drop_client(place, client);
                container.after_taps(place);
            }),
            Timer::Sweep => {
                self.sweep_cgroups(true);
                self.sweep_sessions(true);
            }
            Timer::Shutdown => self.shutdown_overdue(),
            Timer::Home => self.at_home(),
            Timer::Accept => self.accept_again(),
            Timer::Trim => {
                self.scratch.batch = Vec::new();
                memory::trim();
            }
        }
    }

    fn with_streams(&mut self, key: Key, act: impl FnOnce(&mut Container, &mut Place<'_>, &mut Scratch)) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        act(container, &mut place, &mut self.scratch);
    }

    /// Children may have ended. The other signals are taken to be ignored: nobody but the daemon ends a shim.
    fn signalled(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        // An error would come again; the next signal tries again.
        while let Ok(Some(ended)) = wait::reap() {
            if let Some(key) = self.session_of_pid(ended.pid) {
                self.session_ended(key, ended.code);
            } else if let Some(key) = self.container_of_pid(ended.pid) {
                self.container_ended(key, ended.code);
            } else if let Some(sandbox) = &mut self.sandbox
                && sandbox.init_pid == Some(ended.pid)
            {
                sandbox.init_pid = None;
                self.event(pb::event::Body::InitExited(pb::InitExited { code: ended.code }));
            }
            // Else an orphan of the pod that nobody asks for.
        }
    }

    fn container_of_pid(&self, pid: i32) -> Option<Key> {
        self.containers.iter().find(|(_, c)| c.pid == pid && !c.ended()).map(|(key, _)| *key)
    }

    /// The container with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Key> {
        self.containers.iter().find(|(_, container)| container.id.as_str() == id).map(|(key, _)| *key)
    }

    /// A new connection.
    pub fn connected(&mut self, socket: OwnedFd) {
        // One that cannot be watched is closed at once; the daemon tries again.
        if let Ok(connection) = Connection::new(&mut self.poller, socket) {
            self.connections.insert(connection.key(), connection);
        }
    }

    fn connection_ready(&mut self, key: Key, ready: Ready) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if ready.writable && connection.flush(&self.poller).is_err() {
            return self.lost.push(key);
        }
        if !ready.readable {
            return;
        }
        // One request at a time: a busy daemon must not keep others waiting.
        match connection.receive(self.scratch.buffer.bytes()) {
            Ok((request, fds)) => self.received(key, request, fds),
            Err(e) if e.would_block() => {}
            Err(PacketError::Socket { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.lost.push(key),
        }
    }

    fn received(&mut self, key: Key, request: pb::Request, fds: Vec<OwnedFd>) {
        self.timers.set_if_none(Timer::Trim, TRIM_AFTER);
        self.home.stay_awake();
        let Some(connection) = self.connections.get_mut(&key) else { return };
        match (&request.body, connection.version) {
            (Some(pb::request::Body::Hello(hello)), _) => match crate::wire::common_version(hello.version) {
                Some(version) => {
                    connection.version = Some(version);
                    self.hello(ReplyTo { connection: key, id: request.id }, version);
                }
                None => self.lost.push(key),
            },
            (_, Some(_)) => self.request(ReplyTo { connection: key, id: request.id }, request.body, fds),
            // No hello.
            (_, None) => self.lost.push(key),
        }
    }

    /// Answers a request, unless whoever asked is gone.
    pub fn reply(&mut self, to: ReplyTo, body: pb::reply::Body, fds: Vec<OwnedFd>) {
        let reply = pb::packet::Body::Reply(pb::Reply { id: to.id, body: Some(body) });
        self.send(to.connection, &pb::Packet { body: Some(reply) }, fds);
    }

    /// Answers that it is done.
    pub fn done(&mut self, to: ReplyTo) {
        self.reply(to, pb::reply::Body::Done(pb::Done {}), Vec::new());
    }

    /// Tells every daemon.
    pub fn event(&mut self, body: pb::event::Body) {
        let packet = pb::Packet { body: Some(pb::packet::Body::Event(pb::Event { body: Some(body) })) };
        let keys: Vec<_> = self.connections.iter().filter(|(_, c)| c.version.is_some()).map(|(key, _)| *key).collect();
        for key in keys {
            self.send(key, &packet, Vec::new());
        }
    }

    /// Tells every daemon what should be known about a container, or with an empty id about the shim.
    pub fn warn(&mut self, container: &str, message: String) {
        self.event(pb::event::Body::Warning(pb::Warning { container_id: container.to_owned(), message }));
    }

    fn send(&mut self, key: Key, packet: &pb::Packet, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let sent = Outgoing::new(packet, fds)
            .map_err(|e| Failure::invalid(e.to_string()))
            .and_then(|packet| connection.send(&self.poller, packet).map_err(|e| Failure::io("send", &e)));
        if sent.is_err() {
            self.lost.push(key);
        }
    }

    /// Closes all connections.
    pub fn hang_up(&mut self) {
        for connection in std::mem::take(&mut self.connections).into_values() {
            connection.close(&self.poller);
        }
    }

    fn close_lost(&mut self) {
        while let Some(key) = self.lost.pop() {
            if let Some(connection) = self.connections.remove(&key) {
                connection.close(&self.poller);
                self.kill_sessions_of(key);
            }
        }
    }
}

impl Container {
    /// Its attached clients have changed.
    fn after_taps(&mut self, place: &mut Place<'_>) {
        if self.ended() {
            self.streams.taps.finish(place);
        } else {
            self.streams.resume(place);
        }
    }
}

/// From now on these signals come by descriptor. Children get theirs reset by the runtime.
fn take_signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}
