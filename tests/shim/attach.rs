//! Clients at a container's streams, with and without a terminal.

use std::time::Duration;

use aril::wire::session::Streams;

use crate::pod::{TestPod, eventually, read_all, read_until, write_all};

const OUTPUT: Streams = Streams { stdin: false, stdout: true, stderr: true };
const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true };

#[tokio::test]
async fn input_feeds_a_shell_and_ends_once() {
    let mut pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/sh"]);
    let stdio = plan.stdio.as_mut().unwrap();
    (stdio.stdin, stdio.stdin_once) = (true, true);
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    let client = pod.shim.attach(&id, ALL).await.unwrap();
    let (stdin, stdout, stderr) = (client.stdin.unwrap(), client.stdout.unwrap(), client.stderr.unwrap());
    write_all(&stdin, "echo hello; echo oops >&2\n");
    read_until(&stdout, "hello\n").await;
    read_until(&stderr, "oops\n").await;
    // The end of the first client's input is the end of the shell.
    drop(stdin);
    assert_eq!(pod.exit(&id).await.code, 0);
    assert_eq!(read_all(stdout).await.unwrap(), "");
    assert_eq!(pod.log(&id).lines().count(), 2);
    pod.finish().await;
}

#[tokio::test]
async fn several_clients_see_what_comes_from_now_on() {
    let mut pod = TestPod::start().await;
    let id = pod.run("echo before; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo after; exit 1").await;
    eventually("the first line is logged", || pod.log(&id).contains("before")).await;
    let one = pod.shim.attach(&id, OUTPUT).await.unwrap();
    let two = pod.shim.attach(&id, OUTPUT).await.unwrap();
    let gone = pod.shim.attach(&id, OUTPUT).await.unwrap();
    drop(gone);
    assert_eq!(pod.exec(&id, "echo > /tmp/go").await.0, 0);
    assert_eq!(pod.exit(&id).await.code, 1);
    for client in [one, two] {
        assert_eq!(read_all(client.stdout.unwrap()).await.unwrap(), "after\n");
        assert_eq!(read_all(client.stderr.unwrap()).await.unwrap(), "");
    }
    assert!(pod.shim.attach(&id, OUTPUT).await.is_err());
    pod.finish().await;
}

/// A client that takes nothing is dropped, and the log is complete.
#[tokio::test]
async fn a_slow_client_is_dropped() {
    let mut pod = TestPod::start().await;
    let (id, plan) = pod.container(&["/bin/seq", "200000"]);
    pod.shim.create(&id, &plan).await.unwrap();
    let slow = pod.shim.attach(&id, OUTPUT).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 0);
    assert_eq!(pod.output(&id).len(), 200_000);
    let got = read_all(slow.stdout.unwrap()).await.unwrap();
    assert!(got.starts_with("1\n2\n") && got.len() < 1_000_000);
    pod.finish().await;
}

/// One that reads gets everything, from the first byte if it attached before the start.
#[tokio::test]
async fn a_reading_client_gets_everything() {
    let mut pod = TestPod::start().await;
    let (id, plan) = pod.container(&["/bin/seq", "200000"]);
    pod.shim.create(&id, &plan).await.unwrap();
    let client = pod.shim.attach(&id, OUTPUT).await.unwrap();
    let all = read_all(client.stdout.unwrap());
    pod.shim.start(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 0);
    assert_eq!(all.await.unwrap().lines().count(), 200_000);
    pod.finish().await;
}

#[tokio::test]
async fn a_container_has_a_terminal() {
    let mut pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/sh", "-c", "stty size; read line; stty size; echo got $line; exit 8"]);
    plan.stdio.as_mut().unwrap().stdin = true;
    let process = plan.process.as_mut().unwrap();
    (process.tty, process.tty_rows, process.tty_cols) = (true, 24, 80);
    pod.shim.create(&id, &plan).await.unwrap();
    let client = pod.shim.attach(&id, ALL).await.unwrap();
    let (stdin, stdout) = (client.stdin.unwrap(), client.stdout.unwrap());
    assert_eq!(read_all(client.stderr.unwrap()).await.unwrap(), "", "a terminal has one output");
    pod.shim.start(&id).await.unwrap();
    read_until(&stdout, "24 80").await;
    pod.shim.resize(&id, "", 40, 120).await.unwrap();
    write_all(&stdin, "hello\n");
    let rest = read_all(stdout).await.unwrap();
    assert!(rest.contains("40 120\r\n") && rest.contains("got hello\r\n"), "{rest:?}");
    assert_eq!(pod.exit(&id).await.code, 8);
    // Raw, as the terminal gave it.
    let log = pod.log(&id);
    assert!(log.split_inclusive('\n').all(|line| line.contains(" stdout F ") && line.ends_with("\r\n")), "{log:?}");
    pod.finish().await;
}

#[tokio::test]
async fn input_is_closed_by_request() {
    let mut pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/cat"]);
    plan.stdio.as_mut().unwrap().stdin = true;
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    let first = pod.shim.attach(&id, ALL).await.unwrap();
    write_all(first.stdin.as_ref().unwrap(), "one\n");
    read_until(first.stdout.as_ref().unwrap(), "one\n").await;
    // Not `once`: the next client goes on.
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = pod.shim.attach(&id, ALL).await.unwrap();
    write_all(second.stdin.as_ref().unwrap(), "two\n");
    read_until(second.stdout.as_ref().unwrap(), "two\n").await;
    pod.shim.close_stdin(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 0);
    assert_eq!(pod.output(&id), ["one", "two"]);
    pod.finish().await;
}
