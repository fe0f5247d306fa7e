//! CRI log files.

use std::fs;
use std::time::Duration;

use aril::api::cri::ContainerState;
use tonic::Code;

use crate::support::{PATIENCE, TestNode, refused, text, wait_for};

#[test]
fn both_streams_line_by_line() {
    let node = TestNode::start();
    let container = node.run(["sh", "-c", "echo one; echo two >&2; printf '\\nunfinished'"]);
    container.wait_exited();
    let lines = container.log_lines();
    let of = |stream: &str| {
        lines.iter().filter(|l| l.stream == stream).map(|l| (l.tag.clone(), l.content.clone())).collect::<Vec<_>>()
    };
    let line = |tag: &str, content: &str| (tag.to_owned(), content.to_owned());
    assert_eq!(of("stdout"), [line("F", "one"), line("F", ""), line("P", "unfinished")]);
    assert_eq!(of("stderr"), [line("F", "two")]);
    let mut times: Vec<&str> = lines.iter().map(|l| l.time.as_str()).collect();
    times.sort_unstable();
    assert_eq!(times, lines.iter().map(|l| l.time.as_str()).collect::<Vec<_>>());
    node.finish();
}

#[test]
fn a_long_line_is_cut_in_parts() {
    let node = TestNode::start();
    let container = node.run(["/probe", "flood", "2", "40000"]);
    container.wait_exited();
    let lines = container.log_lines();
    let shape: Vec<(&str, usize)> = lines.iter().map(|l| (l.tag.as_str(), l.content.len())).collect();
    let one = [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384)];
    assert_eq!(shape, [one, one].concat());
    assert_eq!(text(&lines, "stdout"), format!("{0}\n{0}\n", "x".repeat(40000)));
    node.finish();
}

#[test]
fn bytes_are_kept_as_they_are() {
    let node = TestNode::start();
    let container = node.run(["sh", "-c", "printf '\\000\\001\\377 \\303\\251\\r\\n'"]);
    container.wait_exited();
    let bytes = fs::read(container.log_path()).unwrap();
    assert!(bytes.ends_with(b" stdout F \x00\x01\xff \xc3\xa9\r\n"), "{bytes:?}");
    node.finish();
}

#[test]
fn the_log_is_whole_once_the_exit_is_told() {
    let node = TestNode::start();
    let container = node.run(["/probe", "flood", "20000", "100"]);
    container.wait_exited();
    assert_eq!(container.log_lines().len(), 20_000);
    node.finish();
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file() {
    let node = TestNode::start();
    let container = node.run(["sh", "-c", "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done"]);
    container.wait_log("line 2");
    let (path, old) = (container.log_path(), container.log_path().with_extension("old"));
    fs::rename(&path, &old).unwrap();
    container.reopen_log().unwrap();
    assert!(path.exists(), "the new file is there when the call returns");
    let size = fs::metadata(&old).unwrap().len();
    wait_for("lines in the new file", PATIENCE, || (container.log_lines().len() > 3).then_some(()));
    assert_eq!(fs::metadata(&old).unwrap().len(), size);
    container.stop(0).unwrap();
    let all = fs::read_to_string(&old).unwrap() + &fs::read_to_string(&path).unwrap();
    for (i, line) in all.lines().enumerate() {
        assert!(line.ends_with(&format!(" F line {i}")), "{line}");
    }
    node.finish();
}

#[test]
fn only_a_running_containers_log_is_reopened() {
    let node = TestNode::start();
    let pod = node.run_pod("states");
    let created = pod.container(["true"]).create();
    refused(created.reopen_log(), Code::FailedPrecondition, &[]);
    created.start().unwrap();
    created.wait_exited();
    refused(created.reopen_log(), Code::FailedPrecondition, &[]);
    refused(created.called(&"0".repeat(64)).reopen_log(), Code::NotFound, &[]);
    node.finish();
}

#[test]
fn without_a_log_path_output_is_discarded() {
    let node = TestNode::start();
    let container = node.run_pod("quiet").container(["/probe", "flood", "1000", "1000"]);
    let container = container.with(|c| c.log_path = String::new()).run();
    assert_eq!(container.wait_exited().exit_code, 0);
    node.finish();
}

#[test]
fn a_full_disk_stops_the_log_but_not_the_container() {
    let node = TestNode::start();
    let disk = node.path("small");
    fs::create_dir(&disk).unwrap();
    let mount = node.inside("mount").args(["-t", "tmpfs", "-o", "size=64k", "small"]).arg(&disk).status();
    assert!(mount.unwrap().success());
    let pod = node.pod("full").with(|c| c.log_directory = disk.display().to_string()).run();
    let script = "/probe flood 3000 1000; echo done > /dev/shm/done; sleep 100000";
    let container = pod.container(["sh", "-c", script]).run();
    wait_for("the end of the output", PATIENCE, || {
        (container.exec(["cat", "/dev/shm/done"]).stdout == "done\n").then_some(())
    });
    assert_eq!(container.state(), ContainerState::ContainerRunning);
    container.stop(0).unwrap();
    pod.remove().unwrap();
    assert!(node.inside("umount").arg(&disk).status().unwrap().success());
    node.finish();
}

#[test]
fn a_log_is_never_opened_through_a_link() {
    let node = TestNode::start();
    let pod = node.run_pod("link");
    let victim = node.path("victim");
    fs::write(&victim, "untouched").unwrap();
    let builder = pod.container(["echo", "evil"]);
    let path = pod.log_path(&builder.config.log_path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    match builder.try_run() {
        Ok(container) => drop(container.wait_exited()),
        Err(e) => assert!(e.message().contains("log"), "{}", e.message()),
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    node.finish();
}

#[test]
fn log_paths_that_leave_the_directory_are_refused() {
    let node = TestNode::start();
    let pod = node.run_pod("paths");
    for path in ["../escape.log", "/etc/escape.log", "a/../../escape.log", "a\0b"] {
        let container = pod.container(["true"]).with(|c| c.log_path = path.to_owned());
        refused(container.try_create(), Code::InvalidArgument, &["log_path"]);
    }
    let container = pod.container(["echo", "nested"]).with(|c| c.log_path = "dir/0.log".to_owned()).run();
    container.wait_exited();
    assert_eq!(container.log(), "nested\n");
    node.finish();
}

#[test]
fn a_slow_disk_reader_is_no_matter() {
    let node = TestNode::start();
    // Twice the capacity of a pipe, written before anything could have been read by the daemon.
    let container = node.run(["sh", "-c", "/probe flood 130 1000; sleep 100000"]);
    node.kill_daemon();
    std::thread::sleep(Duration::from_millis(300));
    node.restart();
    wait_for("all lines", PATIENCE, || (container.log_lines().len() == 130).then_some(()));
    node.finish();
}
