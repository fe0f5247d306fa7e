//! Exec sessions: what they inherit, how they end, how they are killed.

use std::time::{Duration, Instant};

use aril::plan;
use aril::wire::client::Shim;
use aril::wire::pb::error::Kind;
use aril::wire::session::ExecStdio;

use crate::pod::{TestPod, eventually, read_all, read_until, sh, write_all};

fn inherit(script: &str) -> plan::Process {
    plan::Process { args: sh(script), ..plan::Process::default() }
}

#[tokio::test]
async fn a_session_is_like_the_container() {
    let pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/sleep", "1000"]);
    let process = plan.process.as_mut().unwrap();
    process.user = Some(plan::User { spec: "user".into(), merge_image_groups: true, ..plan::User::default() });
    process.cwd = "/tmp".into();
    pod.shim.create(&id, &plan).await.unwrap();
    assert!(
        pod.shim.exec(&id, "early", &inherit("true"), true, ExecStdio::default()).await.unwrap().wait().await.is_err()
    );
    pod.shim.start(&id).await.unwrap();
    let (code, output) = pod.exec(&id, "echo $MARK $HOME; id -u; id -G; echo $PWD; echo err >&2; exit 42").await;
    assert_eq!(code, 42);
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines, ["container /home/user", "1000", "1000 2000", "/tmp", "err"]);
    assert_eq!(pod.exec(&id, "kill -9 $$").await.0, 137);
    assert_eq!(pod.exec(&id, "cat").await.0, 0, "no input is an empty one");

    // As a whole of its own.
    let own = plan::Process {
        args: sh("id -u; echo ${MARK:-none} $X"),
        env: vec!["X=y".into(), "PATH=/bin".into()],
        cwd: "/".into(),
        user: Some(plan::User { uid: Some(7), gid: Some(8), ..plan::User::default() }),
        ..plan::Process::default()
    };
    let (read, write) = nix::unistd::pipe().unwrap();
    let stdio = ExecStdio { stdout: Some(write), ..ExecStdio::default() };
    let mut session = pod.shim.exec(&id, "own", &own, false, stdio).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 0);
    assert_eq!(read_all(read).await.unwrap(), "7\nnone y\n");

    let nope = plan::Process { args: vec!["/nope".into()], ..Default::default() };
    let mut session = pod.shim.exec(&id, "nope", &nope, true, ExecStdio::default()).await.unwrap();
    let error = session.wait().await.unwrap_err();
    assert_eq!(error.kind(), Some(Kind::Invalid), "{error}");
    pod.finish().await;
}

/// One container that takes all sessions it may leaves those of its neighbours alone.
#[tokio::test]
async fn sessions_are_limited_for_each_container() {
    let mut pod = TestPod::start().await;
    let (greedy, other) = (pod.run("sleep 1000").await, pod.run("sleep 1000").await);
    let process = plan::Process { args: vec!["/bin/sleep".into(), "1000".into()], ..plan::Process::default() };
    let mut sessions = Vec::new();
    for n in 0..1024 {
        let exec = pod.shim.exec(&greedy, &format!("greedy-{n}"), &process, true, ExecStdio::default()).await;
        sessions.push(exec.unwrap());
    }
    let mut refused = pod.shim.exec(&greedy, "one-more", &process, true, ExecStdio::default()).await.unwrap();
    let refused = refused.wait().await.unwrap_err();
    assert_eq!(refused.kind(), Some(Kind::Refused), "{refused}");
    assert_eq!(pod.exec(&other, "echo fine").await, (0, "fine\n".to_owned()));
    pod.finish().await;
}

#[tokio::test]
async fn sessions_run_side_by_side() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let started = Instant::now();
    let all = (0..20).map(|n| {
        let (pod, id) = (&pod, &id);
        async move { (n, pod.exec(id, &format!("sleep 0.5; exit {n}")).await.0) }
    });
    let mut codes = Vec::new();
    for task in all.map(Box::pin).collect::<Vec<_>>() {
        codes.push(task);
    }
    for (n, code) in join_all(codes).await {
        assert_eq!(n, code);
    }
    assert!(started.elapsed() < Duration::from_secs(8), "one after the other: {:?}", started.elapsed());
    pod.finish().await;
}

/// Polls all futures together.
async fn join_all<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(value) = std::pin::Pin::new(future).poll(context)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// However its processes detach, killing a session kills them all, and nothing else.
#[tokio::test]
async fn a_whole_session_is_killed() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let before = pod.pids();
    let script = "setsid sh -c 'sleep 1000 & (sleep 1000 &) ; sleep 1000' & (setsid sleep 1000 &); sleep 1000";
    let mut session = pod.shim.exec(&id, "tree", &inherit(script), true, ExecStdio::default()).await.unwrap();
    let other = pod.shim.exec(&id, "other", &inherit("sleep 1000"), true, ExecStdio::default()).await.unwrap();
    eventually("all of them run", || pod.pids().len() >= before.len() + 6).await;
    pod.shim.kill_exec("tree", 0).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 137);
    // Told when all are gone: only the other session is still there.
    assert_eq!(pod.pids().len(), before.len() + 1);
    pod.shim.kill_exec("other", 15).await.unwrap();
    let mut other = other;
    assert_eq!(other.wait().await.unwrap(), 143);
    pod.shim.kill_exec("other", 0).await.unwrap();
    pod.shim.kill_exec("unknown", 0).await.unwrap();
    assert_eq!(pod.pids(), before);
    pod.finish().await;
}

/// What a session leaves running goes on, and can still be killed by the session's name.
#[tokio::test]
async fn what_a_session_leaves_behind_goes_on() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let before = pod.pids();
    let mut session =
        pod.shim.exec(&id, "leaves", &inherit("setsid sleep 1000 & exit 3"), true, ExecStdio::default()).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 3);
    eventually("the first process is gone", || pod.pids().len() == before.len() + 1).await;
    assert_eq!(pod.exec(&id, "true").await.0, 0);
    assert_eq!(pod.pids().len(), before.len() + 1);
    pod.shim.kill_exec("leaves", 0).await.unwrap();
    assert_eq!(pod.pids(), before);
    // And with the container's end.
    let mut session =
        pod.shim.exec(&id, "again", &inherit("setsid sleep 1000 & exit 0"), true, ExecStdio::default()).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 0);
    pod.shim.delete(&id, true).await.unwrap();
    assert!(pod.pids().is_empty());
    pod.finish().await;
}

#[tokio::test]
async fn sessions_end_with_the_connection_that_asked() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let before = pod.pids();
    let (second, _events) = Shim::connect(&pod.run_dir()).await.unwrap();
    let session =
        second.exec(&id, "lost", &inherit("setsid sleep 1000 & sleep 1000"), true, ExecStdio::default()).await.unwrap();
    eventually("it runs", || pod.pids().len() >= before.len() + 2).await;
    drop((session, second));
    eventually("it is killed", || pod.pids() == before).await;
    pod.finish().await;
}

#[tokio::test]
async fn sessions_end_with_their_container() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let (read, write) = nix::unistd::pipe().unwrap();
    let stdio = ExecStdio { stdout: Some(write), ..ExecStdio::default() };
    let mut session = pod.shim.exec(&id, "x", &inherit("echo up; sleep 1000"), true, stdio).await.unwrap();
    read_until(&read, "up").await;
    pod.shim.signal(&id, 9, false).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 137);
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.finish().await;
}

#[tokio::test]
async fn a_session_has_a_terminal() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let process = plan::Process {
        tty: true,
        tty_rows: 30,
        tty_cols: 90,
        ..inherit("stty size; read line; stty size; echo got $line; exit 6")
    };
    let mut session = pod.shim.exec(&id, "tty", &process, true, ExecStdio::default()).await.unwrap();
    let pty = session.pty().await.expect("a terminal");
    read_until(&pty, "30 90").await;
    pod.shim.resize(&id, "tty", 50, 100).await.unwrap();
    write_all(&pty, "hello\n");
    let rest = read_all(pty).await.unwrap();
    assert!(rest.contains("50 100\r\n") && rest.contains("got hello\r\n"), "{rest:?}");
    assert_eq!(session.wait().await.unwrap(), 6);
    assert_eq!(pod.shim.resize(&id, "tty", 1, 1).await.unwrap_err().kind(), Some(Kind::NotFound));
    pod.finish().await;
}

/// A daemonised child that keeps a pipe open does not keep the reply back.
#[tokio::test]
async fn an_inherited_pipe_delays_no_reply() {
    let mut pod = TestPod::start().await;
    let id = pod.run("sleep 1000").await;
    let (read, write) = nix::unistd::pipe().unwrap();
    let stdio = ExecStdio { stdout: Some(write), ..ExecStdio::default() };
    let mut session = pod.shim.exec(&id, "pipe", &inherit("echo hi; setsid sleep 1000 &"), true, stdio).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 0);
    read_until(&read, "hi\n").await;
    pod.shim.kill_exec("pipe", 0).await.unwrap();
    assert_eq!(read_all(read).await.unwrap(), "");
    pod.finish().await;
}
