//! `aril attach`, and `aril start` with streams: by pipes, and by a person at a terminal.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use nix::sys::termios::tcgetattr;

use super::cli::Person;
use crate::support::{PATIENCE, TestNode, kill, wait_for};

fn start() -> TestNode {
    let node = TestNode::start();
    node.import("busybox");
    node
}

fn ok(node: &TestNode, arguments: &[&str]) {
    let output = node.aril(arguments.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn fails(node: &TestNode, arguments: &[&str], code: i32, words: &[&str]) {
    let output = node.aril(arguments.iter().copied()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    words.iter().for_each(|word| assert!(error.contains(word), "{arguments:?}: {error}"));
}

fn piped(node: &TestNode, arguments: &[&str]) -> Child {
    let mut command = node.aril(arguments.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn reads(from: &mut impl Read, text: &str) {
    let mut seen = vec![0; text.len()];
    from.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), text);
}

/// Exit code, and the rest of what it wrote.
fn end(mut command: Child) -> (Option<i32>, String, String) {
    let status = wait_for("the end of the command", PATIENCE, || command.try_wait().unwrap());
    let (mut out, mut err) = (String::new(), String::new());
    command.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    command.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (status.code(), out, err)
}

#[test]
fn input_and_both_outputs_are_joined_and_the_exit_code_told() {
    let node = start();
    let script = "echo before; while read line; do echo got $line; echo beside >&2; [ $line = end ] && exit 7; done";
    ok(&node, &["run", "-d", "-i", "--name", "x", "busybox", "sh", "-c", script]);
    let mut looker = piped(&node, &["attach", "x"]);
    let mut typist = piped(&node, &["attach", "-i", "x"]);
    // The first may not be joined yet when the other is: until it sees a line, more are sent.
    let mut input = typist.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    reads(typist.stdout.as_mut().unwrap(), "got one\n");
    std::thread::sleep(std::time::Duration::from_millis(500));
    input.write_all(b"end\n").unwrap();
    let (code, out, err) = end(typist);
    assert_eq!((code, out.as_str(), err.as_str()), (Some(7), "got end\n", "beside\nbeside\n"));
    let mut seen = String::new();
    looker.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert!(seen.ends_with("got end\n") && !seen.contains("before"), "{seen}");
    assert_eq!(wait_for("its end", PATIENCE, || looker.try_wait().unwrap()).code(), Some(7));
    fails(&node, &["attach", "x"], 1, &["does not run", "aril logs x"]);
    ok(&node, &["rm", "x"]);
    node.finish();
}

#[test]
fn who_leaves_leaves_the_container_running() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "x", "busybox", "sh", "-c", "while :; do echo tick; sleep 0.05; done"]);
    let mut looker = piped(&node, &["attach", "x"]);
    reads(looker.stdout.as_mut().unwrap(), "tick\ntick\n");
    kill(i32::try_from(looker.id()).unwrap(), Signal::SIGINT);
    let (code, _, err) = end(looker);
    assert!(code == Some(130) && err.contains("left x running"), "{code:?} {err}");
    ok(&node, &["exec", "x", "true"]);
    fails(&node, &["attach", "-i", "x"], 2, &["made without -i"]);
    fails(&node, &["attach", "nobody"], 1, &["nobody"]);
    ok(&node, &["rm", "-f", "x"]);

    // At a terminal by the keys, and back again.
    ok(&node, &["run", "-d", "-it", "--name", "t", "busybox", "sh"]);
    fails(&node, &["attach", "-i", "t"], 2, &["terminal", "leave out -i"]);
    for round in 0..2 {
        let mut command = node.aril(["attach", "-i", "t"]);
        let mut person = Person::runs(&mut command);
        let before = tcgetattr(&person.side).unwrap();
        person.types(&format!("\recho hello-$((40+{round}))\r"));
        person.sees(&format!("hello-{}", 40 + round));
        person.types("\x10\x11");
        person.sees("left t running");
        assert_eq!(person.leaves(&before), Some(0));
    }
    ok(&node, &["rm", "-f", "t"]);
    node.finish();
}

#[test]
fn a_container_is_started_with_its_streams() {
    let node = start();
    ok(&node, &["create", "--name", "out", "busybox", "sh", "-c", "echo first; echo other >&2; exit 3"]);
    fails(&node, &["attach", "out"], 1, &["not started", "aril start -a out"]);
    let (code, out, err) = end(piped(&node, &["start", "-a", "out"]));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(3), "first\n", "other\n"));
    fails(&node, &["start", "-a", "out"], 1, &["has run and ended"]);

    ok(&node, &["create", "-i", "--name", "in", "busybox", "sh", "-c", "wc -c; exit 4"]);
    let mut command = piped(&node, &["start", "-ai", "in"]);
    command.stdin.take().unwrap().write_all(&vec![b'x'; 1_000_000]).unwrap();
    let (code, out, _) = end(command);
    assert_eq!((code, out.as_str()), (Some(4), "1000000\n"));

    // Signals are the container's, as with run.
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    ok(&node, &["create", "--name", "sig", "busybox", "sh", "-c", script]);
    let mut command = piped(&node, &["start", "-a", "sig"]);
    reads(command.stdout.as_mut().unwrap(), "ready\n");
    fails(&node, &["start", "-a", "sig"], 1, &["runs already", "aril attach sig"]);
    kill(i32::try_from(command.id()).unwrap(), Signal::SIGTERM);
    assert_eq!(end(command).0, Some(5));
    fails(&node, &["start", "-a", "out", "in"], 2, &["one container"]);
    ok(&node, &["rm", "out", "in", "sig"]);
    node.finish();
}
