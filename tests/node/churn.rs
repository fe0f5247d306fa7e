//! Ten thousand clients of the streaming server that leave at any moment.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aril::api::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use aril::stream::spdy;

use crate::support::streams::{Spdy, Url, WebSocket};
use crate::support::{Container, PATIENCE, Pod, TestNode, read_proc, wait_for, within};

const SESSIONS: usize = 10_000;
/// Until buffers, threads and allocators are as large as they get.
const WARM_UP: usize = 1_500;
const CLIENTS: u64 = 6;

/// Numbers that look random, and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exec,
    Attach,
    Forward,
}

/// How far a client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    NeverComes,
    InItsRequest,
    BeforeTheAnswer,
    Upgraded,
    SomeStreams,
    InAFrame,
    InTheData,
    AfterTheEnd,
}

/// How many of a hundred leave there. Few do with a token unused: it is kept for a minute, and only so many are.
const STAGES: [(Stage, usize); 8] = [
    (Stage::NeverComes, 1),
    (Stage::InItsRequest, 2),
    (Stage::BeforeTheAnswer, 15),
    (Stage::Upgraded, 15),
    (Stage::SomeStreams, 15),
    (Stage::InAFrame, 15),
    (Stage::InTheData, 15),
    (Stage::AfterTheEnd, 22),
];

fn stage(dice: &mut Dice) -> Stage {
    let mut at = dice.below(100);
    for (stage, share) in STAGES {
        if at < share {
            return stage;
        }
        at -= share;
    }
    unreachable!("the shares are a hundred");
}

/// What the clients come for.
struct Place<'n> {
    node: &'n TestNode,
    pod: Pod<'n>,
    /// Reads its input, says what it reads.
    echo: Container<'n>,
    /// Does so for everyone who connects to port 8080.
    server: Container<'n>,
}

impl<'n> Place<'n> {
    fn new(node: &'n TestNode, name: &str) -> Self {
        let pod = node.run_pod(name);
        let echo = pod.container(["cat"]).with(|c| c.stdin = true).run();
        let server = pod.run(["nc", "-ll", "-p", "8080", "-e", "cat"]);
        wait_for("the listener", PATIENCE, || server.sh("netstat -ltn").contains(":8080").then_some(()));
        Self { node, pod, echo, server }
    }

    fn shim(&self) -> i32 {
        let stat = read_proc(self.echo.init_pid(), "stat");
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn processes(&self) -> usize {
        self.echo.pids().len() + self.server.pids().len()
    }

    fn exec(&self, command: &[&str], tty: bool) -> String {
        let request = ExecRequest {
            container_id: self.echo.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        self.node.cri().runtime(|mut c| async move { c.exec(request).await }).unwrap().url
    }

    fn url(&self, kind: Kind, stage: Stage, dice: &mut Dice) -> String {
        match kind {
            Kind::Exec if stage == Stage::AfterTheEnd => {
                self.exec(dice.one(&[&["true"], &["false"], &["/none"]]), false)
            }
            Kind::Exec => self.exec(dice.one(&[&["cat"], &["yes"], &["true"]]), dice.below(8) == 0),
            Kind::Attach => {
                let container_id = self.echo.id.clone();
                let request =
                    AttachRequest { container_id, stdin: dice.below(2) == 0, tty: false, stdout: true, stderr: true };
                self.node.cri().runtime(|mut c| async move { c.attach(request).await }).unwrap().url
            }
            Kind::Forward => {
                let request = PortForwardRequest { pod_sandbox_id: self.pod.id.clone(), port: vec![8080] };
                self.node.cri().runtime(|mut c| async move { c.port_forward(request).await }).unwrap().url
            }
        }
    }

    /// One client, from its URL to where it leaves.
    fn client(&self, dice: &mut Dice) {
        let kind = dice.one(&[Kind::Exec, Kind::Exec, Kind::Attach, Kind::Forward]);
        let stage = stage(dice);
        let url = self.url(kind, stage, dice);
        let is_spdy = dice.below(2) == 0;
        match stage {
            Stage::NeverComes => {}
            Stage::InItsRequest | Stage::BeforeTheAnswer => {
                let url = Url::parse(&url);
                let head = head(&url, kind, is_spdy);
                let length = if stage == Stage::BeforeTheAnswer { head.len() } else { dice.below(head.len()) };
                let mut connection = TcpStream::connect(&url.authority).unwrap();
                connection.write_all(&head.as_bytes()[..length]).unwrap();
            }
            _ if is_spdy => by_spdy(&url, kind, stage, dice),
            _ => by_websocket(&url, kind, stage, dice),
        }
    }
}

fn protocol(kind: Kind) -> &'static str {
    if kind == Kind::Forward { "portforward.k8s.io" } else { "v4.channel.k8s.io" }
}

fn head(url: &Url, kind: Kind, is_spdy: bool) -> String {
    let (path, host, protocol) = (&url.path, &url.authority, protocol(kind));
    if is_spdy {
        return format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n"
        );
    }
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

fn by_spdy(url: &str, kind: Kind, stage: Stage, dice: &mut Dice) {
    let mut client = Spdy::open(url, protocol(kind));
    let kinds: &[&str] =
        if kind == Kind::Forward { &["error", "data"] } else { &["error", "stdin", "stdout", "stderr"] };
    let count = match stage {
        Stage::Upgraded => return,
        Stage::SomeStreams => dice.below(kinds.len() + 1),
        _ => kinds.len(),
    };
    let port = dice.one(&["8080", "8080", "81"]);
    let streams: Vec<u32> = kinds[..count]
        .iter()
        .map(|kind| client.stream(&[("streamType", kind), ("port", port), ("requestID", "1")]))
        .collect();
    match stage {
        Stage::InAFrame if dice.below(2) == 0 => {
            client.send_raw(&[&spdy::data_head(streams[1], 100_000, false)[..], b"and then"].concat());
        }
        // A stream that begins with a control frame cut off.
        Stage::InAFrame => client.send_raw(&b"\x80\x03\x00\x01\x00\x00\x00\x40\x00\x00\x00\x09"[..dice.below(12) + 1]),
        Stage::InTheData => {
            // What is not read by anybody, and what is not read by us.
            client.try_send(streams[1], &vec![b'x'; dice.below(200_000)]).ok();
            client.read_until(Duration::from_millis(dice.next() % 20), |c| !c.received.is_empty());
        }
        Stage::AfterTheEnd => {
            client.finish(streams[1]);
            // An attachment goes on with a container that reads for ever, unless its input is what ends it.
            let limit = if kind == Kind::Attach { Duration::from_millis(10) } else { PATIENCE };
            let ended = client.read_until(limit, |c| c.ended.contains(&streams[0]));
            assert!(ended || kind == Kind::Attach, "{kind:?} has no end");
        }
        _ => {}
    }
    client.hang_up();
}

fn by_websocket(url: &str, kind: Kind, stage: Stage, dice: &mut Dice) {
    let newest = if kind == Kind::Forward { "" } else { "v5.channel.k8s.io" };
    let mut client = WebSocket::open(url, dice.one(&["v4.channel.k8s.io", newest]));
    match stage {
        Stage::Upgraded => {}
        Stage::SomeStreams => client.send(b"\0"),
        Stage::InAFrame => {
            client.send_raw(&b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00mask\0some"[..dice.below(19) + 1])
        }
        Stage::InTheData => {
            client.try_send(&vec![0; dice.below(200_000)]).ok();
            if kind != Kind::Attach {
                client.receive();
            }
        }
        _ if kind == Kind::Exec => assert!(client.receive_all().contains_key(&3)),
        // To say goodbye is the only end these have.
        _ => drop(client.close()),
    }
}

/// What must be as before once all are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    descriptors: Vec<usize>,
    threads: Vec<usize>,
    processes: Vec<usize>,
    /// Written by the daemon and by each shim.
    memory_kib: Vec<u64>,
}

impl Picture {
    fn take(places: &[Place<'_>]) -> Self {
        let daemon = places[0].node.daemon_pid();
        let ours: Vec<i32> = [daemon].into_iter().chain(places.iter().map(Place::shim)).collect();
        let count = |what: &str| {
            let entries = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
            ours.iter().map(entries).collect()
        };
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            processes: places.iter().map(Place::processes).collect(),
            memory_kib: ours.iter().map(|&pid| written_kib(pid)).collect(),
        }
    }

    /// Memory aside.
    fn is_no_more_than(&self, other: &Self) -> bool {
        let no_more = |a: &[usize], b: &[usize]| a.iter().zip(b).all(|(a, b)| a <= b);
        no_more(&self.descriptors, &other.descriptors)
            && no_more(&self.threads, &other.threads)
            && no_more(&self.processes, &other.processes)
    }
}

fn written_kib(pid: i32) -> u64 {
    let text = read_proc(pid, "smaps_rollup");
    let line = text.lines().find_map(|l| l.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn churn(places: &[Place<'_>], sessions: usize, seed: u64) {
    let done = AtomicUsize::new(0);
    places[0].node.in_network(|| {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (done, mut dice) = (&done, Dice(seed + client));
                scope.spawn(move || {
                    while done.fetch_add(1, Ordering::Relaxed) < sessions {
                        places[dice.below(places.len())].client(&mut dice);
                    }
                });
            }
        });
    });
}

/// Waits until all that is not memory is as little as in `before`, or at least does not change any more.
fn settled(places: &[Place<'_>], before: Option<&Picture>) -> Picture {
    let mut last = Picture::take(places);
    let mut since = Instant::now();
    wait_for("the end of all sessions", PATIENCE, || {
        let now = Picture::take(places);
        if (&now.descriptors, &now.threads, &now.processes) != (&last.descriptors, &last.threads, &last.processes) {
            since = Instant::now();
        }
        last = now;
        match before {
            Some(before) => last.is_no_more_than(before),
            None => since.elapsed() > Duration::from_secs(2),
        }
        .then_some(())
    });
    last
}

#[test]
fn ten_thousand_sessions_leave_nothing() {
    let node = super::streaming::start();
    let places = ["one", "two"].map(|name| Place::new(&node, name));
    churn(&places, WARM_UP, 1);
    let before = settled(&places, None);
    let start = Instant::now();
    churn(&places, SESSIONS, 1000);
    eprintln!("{SESSIONS} sessions in {:?}", start.elapsed());
    let mut after = settled(&places, Some(&before));
    // The daemon gives back what it has freed a little later.
    let is_as_small = |after: &Picture| {
        let grown =
            after.memory_kib.iter().zip(&before.memory_kib).map(|(after, before)| after.saturating_sub(*before));
        grown.zip([4096, 200, 200]).all(|(grown, most)| grown < most)
    };
    let small = within(PATIENCE, || {
        after = settled(&places, Some(&before));
        is_as_small(&after).then_some(())
    });
    eprintln!("before: {before:?}\nafter:  {after:?}");
    assert!(small.is_some(), "memory: {before:?} before, {after:?} after");
    assert!(!node.daemon_log().contains("panicked"), "{}", node.daemon_log());
    // Both serve as ever.
    for place in &places {
        assert_eq!(place.echo.sh("echo alive"), "alive");
    }
    node.finish();
}
