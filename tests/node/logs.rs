//! CRI log files.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use aril::api::cri::ContainerState;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::support::{Container, PATIENCE, TestNode, refused, text, wait_for};

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
fn a_full_disk_stops_the_log_but_not_the_container_until_there_is_room() {
    // Time, stream and tag, and the line's end.
    const BESIDE: usize = 30 + 8 + 2 + 1;
    let node = TestNode::start();
    let disk = node.path("small");
    fs::create_dir(&disk).unwrap();
    let mount = node.inside("mount").args(["-t", "tmpfs", "-o", "size=256k", "small"]).arg(&disk).status();
    assert!(mount.unwrap().success());
    let in_disk = |script: &str| {
        let status = node.inside("sh").args(["-c", script]).current_dir("/").env("DISK", &disk).status();
        assert!(status.unwrap().success(), "{script}");
    };
    in_disk("head -c 196608 /dev/zero >$DISK/ballast");
    let pod = node.pod("full").with(|c| c.log_directory = disk.display().to_string()).run();
    let script = "/probe flood 3000 1000; echo > /dev/shm/done; while [ ! -e /dev/shm/go ]; do sleep 0.02; done; \
                  echo after; sleep 100000";
    let container = pod.container(["sh", "-c", script]).run();
    // Nobody waits for the disk.
    wait_for("the end of the output", PATIENCE, || {
        (container.exec(["cat", "/dev/shm/done"]).stdout == "\n").then_some(())
    });
    assert_eq!(container.state(), ContainerState::ContainerRunning);
    in_disk("rm $DISK/ballast");
    assert_eq!(container.exec(["touch", "/dev/shm/go"]).code, 0);
    let told = wait_for("word of what was lost", PATIENCE, || {
        node.daemon_log().lines().find(|line| line.contains("is written again")).map(str::to_owned)
    });
    let lost: usize = told.split("; ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    // Whole lines, then what came after; and everything is either there or counted.
    in_disk(&format!("cp $DISK/{} $DISK/../kept.log", container.config.log_path));
    let kept = fs::read_to_string(node.path("kept.log")).unwrap();
    let lines: Vec<&str> = kept.lines().collect();
    let (last, whole) = lines.split_last().unwrap();
    assert!(last.ends_with(" stdout F after") && !whole.is_empty(), "{last}");
    assert!(whole.iter().all(|line| line.len() + 1 == BESIDE + 1000));
    assert_eq!(whole.len() * (BESIDE + 1000) + lost, 3000 * (BESIDE + 1000));
    assert!(node.daemon_log().contains("ENOSPC; output is lost until it succeeds"));
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

/// As kubelet does; false once the container runs no more, with the file back at its place.
fn rotate(container: &Container<'_>, old: &Path) -> bool {
    let path = container.log_path();
    fs::rename(&path, old).unwrap();
    if let Err(e) = container.reopen_log() {
        assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
        fs::rename(old, &path).unwrap();
        return false;
    }
    true
}

#[test]
fn rotation_every_moment_at_full_speed_loses_nothing() {
    const LINES: usize = 800_000;
    let node = TestNode::start();
    let begun = Instant::now();
    let container = node.run(["sh", "-c", &format!("seq {LINES} & seq {LINES} >&2; wait")]);
    let path = container.log_path();
    let mut files = Vec::new();
    while container.state() == ContainerState::ContainerRunning {
        let old = path.with_extension(format!("log.{:06}", files.len()));
        if !rotate(&container, &old) {
            break;
        }
        files.push(old);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(container.wait_exited().exit_code, 0);
    let took = begun.elapsed();
    files.push(path);
    assert!(files.len() > 3, "only rotated {} times", files.len() - 1);
    let (mut next, mut bytes, mut time) = ([1, 1], 0, String::new());
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        bytes += text.len();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [at, stream, "F", number] = words[..] else { panic!("{line}") };
            let next = &mut next[usize::from(stream == "stderr")];
            assert_eq!(number.parse(), Ok(*next), "{}: {line}", file.display());
            *next += 1;
            assert!(at >= time.as_str(), "{line} after {time}");
            at.clone_into(&mut time);
        }
    }
    assert_eq!(next, [LINES + 1, LINES + 1]);
    eprintln!("{} files, {:.1} MB/s", files.len(), bytes as f64 / 1e6 / took.as_secs_f64());
    node.finish();
}

fn aril(node: &TestNode, arguments: &[&str]) -> Vec<u8> {
    let output = node.aril(arguments.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_person_follows_a_log_across_rotations() {
    const ROUNDS: usize = 6;
    let node = TestNode::start();
    let script = format!(
        "r=0; while [ $r -lt {ROUNDS} ]; do seq $((r*1000)) $((r*1000+999)); \
         while [ ! -e /dev/shm/$r ]; do sleep 0.02; done; r=$((r+1)); done; echo end"
    );
    let container = node.run(["sh", "-c", &script]);
    let mut command = node.aril(["logs", "-f", "--timestamps", "--since", "1h", &container.id]);
    let mut command = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(command.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (mut middle, mut last) = (String::new(), String::new());
    for round in 0..ROUNDS {
        for number in round * 1000..(round + 1) * 1000 {
            let line = printed.next().unwrap();
            let (time, text) = line.split_once(' ').unwrap();
            assert_eq!(text, number.to_string());
            assert!(time.ends_with('Z') && time >= last.as_str(), "{line}");
            time.clone_into(&mut last);
            if number == ROUNDS * 1000 - 500 {
                time.clone_into(&mut middle);
            }
        }
        if round < ROUNDS - 1 {
            // While the next lines are written.
            assert_eq!(container.exec(["touch", &format!("/dev/shm/{round}")]).code, 0);
            assert!(rotate(&container, &container.log_path().with_extension(format!("log.{round}"))));
        }
    }
    // Of the file there is now: the last lines, those since a time, both, and with their times.
    let of_file = aril(&node, &["logs", &container.id]);
    let text = String::from_utf8(of_file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let now = |arguments: &[&str]| {
        let all = aril(&node, &[&["logs"], arguments, &[container.id.as_str()]].concat());
        String::from_utf8(all).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(now(&["--tail", "3"]), lines[lines.len() - 3..]);
    assert_eq!(now(&["--tail", "100000"]), lines);
    assert_eq!(now(&["--tail", "0"]), [] as [&str; 0]);
    let since = now(&["--since", &middle]);
    assert!(!since.is_empty() && lines.ends_with(&since.iter().map(String::as_str).collect::<Vec<_>>()), "{since:?}");
    assert_eq!(now(&["--since", &middle, "--tail", "2"]), lines[lines.len() - 2..]);
    assert_eq!(now(&["--since", "2200-01-01T00:00:00Z"]), [] as [&str; 0]);
    let with_time = now(&["--tail", "1", "--timestamps"]);
    assert_eq!(with_time, [format!("{last} {}", ROUNDS * 1000 - 1)]);
    // It ends with the container.
    container.exec(["touch", &format!("/dev/shm/{}", ROUNDS - 1)]);
    assert!(printed.next().unwrap().ends_with(" end"));
    assert_eq!(printed.next(), None);
    assert!(wait_for("the end of aril logs", PATIENCE, || command.try_wait().unwrap()).success());
    node.finish();
}

#[test]
fn a_person_gets_every_byte_as_it_was_written() {
    let node = TestNode::start();
    // A program has lines of all lengths and no end of the last.
    let container = node.run(["head", "-c", "300001", "/probe"]);
    container.wait_exited();
    let printed = aril(&node, &["logs", &container.id]);
    assert_eq!(printed.len(), 300_001);
    let again = node.run_pod("again").run(["sh", "-c", "head -c 300001 /probe | sha256sum"]);
    again.wait_exited();
    let digest: String = Sha256::digest(&printed).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(again.log().split(' ').next(), Some(digest.as_str()));
    node.finish();
}
