//! `aril run` in the foreground, and a person who wants it to end.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{PATIENCE, TestNode, kill, wait_for};

/// Much more than all buffers and windows on the way to a container.
const INPUT_BYTES: u64 = 50_000_000;

fn start() -> TestNode {
    let node = TestNode::start();
    node.import("busybox");
    node
}

/// A container called x with all that input.
fn with_much_input(node: &TestNode, command: &[&str]) -> Child {
    let path = node.path("input");
    File::create(&path).unwrap().set_len(INPUT_BYTES).unwrap();
    let mut run = node.aril(["run", "--rm", "-i", "--name", "x", "busybox"]);
    run.args(command).stdin(File::open(path).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    run.spawn().unwrap()
}

fn signal(run: &Child, signal: Signal) {
    kill(i32::try_from(run.id()).unwrap(), signal);
}

fn reads(from: &mut impl Read, text: &str) {
    let mut seen = vec![0; text.len()];
    from.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), text);
}

fn exit_code(run: &mut Child) -> Option<i32> {
    wait_for("the end of aril run", PATIENCE, || run.try_wait().unwrap()).code()
}

#[test]
fn all_input_arrives() {
    let node = start();
    let mut run = with_much_input(&node, &["wc", "-c"]);
    assert_eq!(exit_code(&mut run), Some(0));
    reads(run.stdout.as_mut().unwrap(), "50000000\n");
    node.finish();
}

#[test]
fn signals_reach_a_container_that_reads_no_input() {
    let node = start();
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut run = with_much_input(&node, &["sh", "-c", script]);
    reads(run.stdout.as_mut().unwrap(), "ready\n");
    // So that its input fills all there is to fill.
    sleep(Duration::from_millis(500));
    signal(&run, Signal::SIGTERM);
    assert_eq!(exit_code(&mut run), Some(5));
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn a_program_that_ignores_signals_is_left_after_a_hint() {
    let node = start();
    let mut run = with_much_input(&node, &["sh", "-c", "trap '' INT; echo ready; exec sleep 1000"]);
    reads(run.stdout.as_mut().unwrap(), "ready\n");
    signal(&run, Signal::SIGINT);
    let mut told = run.stderr.take().unwrap();
    reads(&mut told, "x got the signal and goes on; `aril rm -f x` kills and removes it");
    for _ in 0..2 {
        signal(&run, Signal::SIGINT);
        sleep(Duration::from_millis(50));
    }
    assert_eq!(exit_code(&mut run), Some(130));
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("left x running; end it with `aril rm -f x`"), "{rest}");
    assert!(node.aril(["rm", "-f", "x"]).output().unwrap().status.success());
    node.finish();
}

#[test]
fn one_can_leave_though_the_daemon_hangs() {
    let node = start();
    let mut run = node.aril(["run", "-i", "--name", "x", "busybox", "sh", "-c", "echo ready; exec cat"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    reads(run.stdout.as_mut().unwrap(), "ready\n");
    kill(node.daemon_pid(), Signal::SIGSTOP);
    run.stdin.as_mut().unwrap().write_all(b"unanswered\n").unwrap();
    sleep(Duration::from_millis(300));
    for _ in 0..3 {
        signal(&run, Signal::SIGINT);
        sleep(Duration::from_millis(50));
    }
    let code = crate::support::within(PATIENCE, || run.try_wait().unwrap());
    kill(node.daemon_pid(), Signal::SIGCONT);
    assert_eq!(code.map(|status| status.code()), Some(Some(130)));
    assert!(node.aril(["rm", "-f", "x"]).output().unwrap().status.success());
    node.finish();
}
