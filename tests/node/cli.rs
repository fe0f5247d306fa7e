//! The `aril` command, as a person or a script uses it.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::termios::{Termios, tcgetattr};
use serde_json::Value;

use crate::support::{PATIENCE, TestNode, kill, pids_in_cgroup, process_alive, wait_for};

/// A node that has busybox too: the probe image has an entry point.
fn start() -> TestNode {
    let node = TestNode::start();
    node.import("busybox");
    node
}

fn aril(node: &TestNode, arguments: &[&str]) -> Output {
    node.aril(arguments.iter().copied()).output().expect("run aril")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The stdout of a command that must succeed.
fn ok(node: &TestNode, arguments: &[&str]) -> String {
    let output = aril(node, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(node: &TestNode, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    serde_json::from_str(&ok(node, &all)).expect("JSON")
}

#[test]
fn run_shows_the_output_and_ends_like_the_program() {
    let node = start();
    let output = aril(&node, &["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(7), "out\n".into(), "err\n".into())
    );
    assert_eq!(
        aril(&node, &["run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).status.code(),
        Some(137)
    );
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn run_tells_why_it_did_not() {
    let node = start();
    for (arguments, code, word) in [
        (vec!["run", "--rm", "busybox", "/no/such"], 127, "/no/such"),
        (vec!["run", "--rm", "busybox", "/etc/passwd"], 126, "/etc/passwd"),
        (vec!["run", "--rm", "--pull", "never", "no-such-image", "true"], 125, "no-such-image"),
    ] {
        let output = aril(&node, &arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(word) && told.lines().count() == 1, "{told}");
    }
    assert_eq!(aril(&node, &["run"]).status.code(), Some(2));
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn run_passes_input_and_options_on() {
    let node = start();
    let mut command = node.aril(["run", "--rm", "-i", "busybox", "cat"]);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through\n").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "through\n");

    let data = node.path("data").display().to_string();
    std::fs::create_dir(&data).unwrap();
    let volume = format!("{data}:/data");
    let script = "echo $A $(id -u) $(pwd) $(hostname); touch /data/made";
    let options = [
        "run",
        "--rm",
        "-e",
        "A=1",
        "-u",
        "5",
        "-w",
        "/tmp",
        "--hostname",
        "h",
        "-v",
        &volume,
        "busybox",
        "sh",
        "-c",
        script,
    ];
    std::os::unix::fs::chown(&data, Some(5), Some(5)).unwrap();
    assert_eq!(ok(&node, &options), "1 5 /tmp h\n");
    assert!(node.path("data/made").exists());
    node.finish();
}

#[test]
fn a_detached_container_is_listed_asked_stopped_and_removed() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "web", "busybox", "sh", "-c", "echo started; exec sleep 1000"]);
    let listed = json(&node, &["ps"]);
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["name"], &listed[0]["image"]),
        (1, &"web".into(), &"busybox".into())
    );
    assert!(ok(&node, &["ps"]).contains("web"));
    assert_eq!(json(&node, &["pods"]).as_array().unwrap().len(), 1);
    // It may not have come so far yet.
    wait_for("what it writes", PATIENCE, || Some(ok(&node, &["logs", "web"])).filter(|log| log == "started\n"));
    assert_eq!(ok(&node, &["exec", "web", "echo", "inside"]), "inside\n");
    assert_eq!(aril(&node, &["exec", "web", "sh", "-c", "exit 9"]).status.code(), Some(9));
    let told = json(&node, &["inspect", "web"]);
    assert!(told.to_string().contains("web") && told[0]["info"]["pid"].as_i64() > Some(0), "{told}");
    let shown = ok(&node, &["inspect", "web"]);
    let first: Vec<_> = shown.lines().take(3).map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(first, ["kind", "id", "state"], "{shown}");
    ok(&node, &["stop", "web"]);
    assert!(json(&node, &["ps"]).as_array().unwrap().is_empty());
    assert_eq!(json(&node, &["ps", "--all"]).as_array().unwrap().len(), 1);
    ok(&node, &["rm", "web"]);
    assert!(node.pod_ids().is_empty() && node.container_ids().is_empty());
    node.finish();
}

/// What is on the other side of `aril`'s terminal: a person.
pub struct Person {
    terminal: OwnedFd,
    /// Keeps the terminal's settings to look at after the command has ended.
    pub side: OwnedFd,
    aril: std::process::Child,
    seen: String,
}

impl Person {
    fn sits_down(node: &TestNode, arguments: &[&str]) -> Self {
        Self::runs(&mut node.aril(arguments.iter().copied()))
    }

    pub fn runs(command: &mut Command) -> Self {
        let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&size, None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let aril = command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        Self { terminal: pty.master, side: pty.slave, aril, seen: String::new() }
    }

    pub fn types(&self, keys: &str) {
        assert_eq!(nix::unistd::write(&self.terminal, keys.as_bytes()).unwrap(), keys.len());
    }

    /// Waits for the text, and forgets all before its end; what came before it.
    pub fn sees(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let mut ready = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            assert!(Instant::now() < end, "{text:?} is not in {:?}", self.seen);
            if poll(&mut ready, 100_u16).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let n = nix::unistd::read(&self.terminal, &mut buffer).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        }
        let rest = self.seen.split_off(self.seen.find(text).unwrap() + text.len());
        let seen = std::mem::replace(&mut self.seen, rest);
        seen[..seen.len() - text.len()].to_owned()
    }

    fn resizes(&self, rows: u16, cols: u16) {
        aril::sys::tty::set_size(self.terminal.as_fd(), rows, cols).unwrap();
        // The kernel tells the terminal's foreground group, which a child of a test is not in.
        kill(i32::try_from(self.aril.id()).unwrap(), Signal::SIGWINCH);
    }

    pub fn leaves(mut self, before: &Termios) -> Option<i32> {
        let status = wait_for("the end of the command", PATIENCE, || self.aril.try_wait().unwrap());
        assert_eq!(tcgetattr(&self.side).unwrap(), *before, "the terminal is left as it was found");
        status.code()
    }
}

#[test]
fn a_person_works_at_a_terminal() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "shell", "busybox", "sleep", "1000"]);
    for arguments in [&["exec", "-it", "shell", "sh"][..], &["run", "-it", "--rm", "--name", "own", "busybox", "sh"]] {
        let mut person = Person::sits_down(&node, arguments);
        let before = tcgetattr(&person.side).unwrap();
        person.sees("# ");
        person.types("tty; busybox stty size; echo a$((1 + 1))b\r");
        person.sees("/dev/");
        person.sees("24 80");
        person.sees("a2b");
        person.resizes(50, 132);
        // The new size comes a moment later.
        person.types("until [ \"$(busybox stty size)\" = '50 132' ]; do sleep 0.05; done; echo resized$((1 + 1))\r");
        person.sees("resized2");
        // Ctrl-C ends the program in the container and not the command here.
        person.types("sleep 1000; echo slept$?\r");
        std::thread::sleep(std::time::Duration::from_millis(300));
        person.types("\u{3}");
        person.types("\recho code$?; echo alive$((1 + 1))\r");
        person.sees("alive2");
        person.types("exit 7\r");
        assert_eq!(person.leaves(&before), Some(7), "{arguments:?}");
    }
    assert_eq!(json(&node, &["ps", "--all"]).as_array().unwrap().len(), 1);
    ok(&node, &["rm", "-f", "shell"]);
    node.finish();
}

#[test]
fn a_command_may_be_somebody_else_somewhere_else() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "x", "-e", "A=1", "-e", "B=2", "busybox", "sleep", "1000"]);
    let script = "echo $A $B $C $(id -u):$(id -g) $(pwd) ${TERM:-none}";
    assert_eq!(ok(&node, &["exec", "x", "sh", "-c", script]), "1 2 0:0 / none\n");
    let options = ["exec", "-e", "B=3", "-e", "C=4", "-u", "5:6", "-w", "/tmp", "x", "sh", "-c", script];
    assert_eq!(ok(&node, &options), "1 3 4 5:6 /tmp none\n");
    assert_eq!(text(&aril(&node, &["exec", "-t", "x", "sh", "-c", "echo $TERM"]).stdout).trim(), "xterm");
    let refused = aril(&node, &["exec", "-w", "tmp", "x", "true"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("working_dir"), "{}", text(&refused.stderr));
    ok(&node, &["rm", "-f", "x"]);
    node.finish();
}

#[test]
fn what_cannot_be_is_told_with_its_reason() {
    let node = start();
    let junk = node.path("junk");
    std::fs::write(&junk, "no tar at all\n".repeat(100)).unwrap();
    let junk = junk.display().to_string();
    for (arguments, words) in [
        (&["run", "-d", "--rm", "busybox", "true"][..], "nobody stays to remove it"),
        (&["run", "--rm", "-v", "/no/such:/x", "busybox", "true"], "/no/such of -v; make it first"),
        (&["image", "import", &junk], "no tar archive"),
    ] {
        let output = aril(&node, arguments);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(words) && told.lines().count() == 1, "{told}");
    }
    assert_eq!(aril(&node, &["run", "--name", "three", "busybox", "sh", "-c", "exit 3"]).status.code(), Some(3));
    assert!(ok(&node, &["ps", "-a"]).contains("exited (3)"));
    let listed = json(&node, &["ps", "-a"]);
    assert_eq!((&listed[0]["exit_code"], &listed[0]["reason"]), (&3.into(), &"Error".into()));
    assert_eq!(ok(&node, &["ps", "-aq"]).trim(), listed[0]["id"].as_str().unwrap());
    assert!(ok(&node, &["help", "run"]).contains("--rm"));
    ok(&node, &["rm", "three"]);
    node.finish();
}

#[test]
fn a_container_is_killed_by_the_signal_of_choice() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "x", "busybox", "sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.05; done"]);
    // The trap is set a moment after the start; until then the first process of a namespace gets no such signal.
    let ended = wait_for("the end of the container", PATIENCE, || {
        aril(&node, &["kill", "-s", "USR1", "x"]);
        let listed = json(&node, &["ps", "-a"]);
        (listed[0]["state"] == "exited").then(|| listed[0]["exit_code"].clone())
    });
    assert_eq!(ended, 9);
    let refused = aril(&node, &["kill", "x"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("does not run"), "{}", text(&refused.stderr));
    ok(&node, &["rm", "x"]);
    ok(&node, &["run", "-d", "--name", "x", "busybox", "sleep", "1000"]);
    ok(&node, &["kill", "x"]);
    wait_for("the end of the container", PATIENCE, || ok(&node, &["ps", "-a"]).contains("exited (137)").then_some(()));
    ok(&node, &["rm", "x"]);
    node.finish();
}

#[test]
fn logs_are_followed_to_the_end() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "talk", "busybox", "sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.2; done"]);
    assert_eq!(ok(&node, &["logs", "-f", "talk"]), "1\n2\n3\n4\n");
    assert_eq!(ok(&node, &["logs", "-n", "2", "talk"]), "3\n4\n");
    ok(&node, &["rm", "talk"]);
    node.finish();
}

#[test]
fn images_are_listed_and_removed() {
    let node = start();
    let path = crate::support::fixture("scratch").display().to_string();
    ok(&node, &["image", "import", &path]);
    assert!(ok(&node, &["image", "ls"]).contains("scratch-probe"));
    assert_eq!(json(&node, &["image", "ls"]).as_array().unwrap().len(), 3);
    ok(&node, &["image", "rm", "scratch-probe"]);
    assert_eq!(json(&node, &["image", "ls"]).as_array().unwrap().len(), 2);
    let missing = aril(&node, &["image", "import", "/no/such/archive.tar"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains("/no/such/archive.tar"));
    node.finish();
}

#[test]
fn it_tells_what_it_is_and_what_the_machine_offers() {
    let node = start();
    assert!(ok(&node, &["version"]).contains(env!("CARGO_PKG_VERSION")));
    assert!(json(&node, &["info"]).to_string().contains(&node.path("root").display().to_string()));
    let doctor = aril(&node, &["doctor"]);
    assert!(text(&doctor.stdout).to_lowercase().contains("cgroup"), "{}", text(&doctor.stdout));
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&node, &["completion", shell]).contains("aril"));
    }
    node.finish();
}

#[test]
fn without_a_daemon_it_says_how_to_start_one() {
    let node = start();
    let refused = |arguments: &[&str]| {
        let output = with_places(&node, arguments).output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("aril serve") && told.contains("aril.sock") && told.lines().count() == 1, "{told}");
    };
    let listed = |arguments: &[&str]| {
        let output = with_places(&node, arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    node.kill_daemon();
    [&["logs", "x"][..], &["rm", "x"], &["info"]].into_iter().for_each(refused);
    // The daemon that `aril run` brings up ends with the last pod: that there are none then is no error.
    assert!(listed(&["ps"]).starts_with("CONTAINER ID") && listed(&["pods"]).starts_with("POD ID"));
    assert_eq!(listed(&["ps", "-q"]), "");
    for list in [&["ps", "-a", "-o", "json"][..], &["pods", "-o", "json"], &["pod", "ls", "-o", "json"]] {
        assert_eq!(listed(list), "[]\n");
    }
    // Of a socket alone nobody knows whose records belong to it.
    assert_eq!(aril(&node, &["ps"]).status.code(), Some(1));
    // What is there cannot be told without a daemon.
    node.restart();
    let made = node.run_pod("there");
    node.kill_daemon();
    [&["ps"][..], &["pods"], &["logs", "x"]].into_iter().for_each(refused);
    node.restart();
    made.remove().unwrap();
    node.finish();
}

#[test]
fn a_daemon_is_stopped_by_a_command_and_its_pods_go_on() {
    let node = start();
    ok(&node, &["run", "-d", "--name", "on", "busybox", "sleep", "1000"]);
    let before = json(&node, &["inspect", "on"])[0]["info"]["pid"].as_i64().unwrap();
    let pid = node.daemon_pid();
    let told = ok(&node, &["system", "stop"]);
    assert!(told.contains(&pid.to_string()) && told.contains("1 pod)"), "{told}");
    assert!(!process_alive(pid) && process_alive(i32::try_from(before).unwrap()));
    assert_eq!(ok(&node, &["system", "stop"]), "no daemon runs\n");
    // Its parent still has to hear of it.
    node.kill_daemon();
    node.restart();
    assert_eq!(json(&node, &["inspect", "on"])[0]["info"]["pid"].as_i64().unwrap(), before);
    ok(&node, &["rm", "-f", "on"]);
    node.finish();
}

/// The command with root, state and socket of the node: it may bring a daemon up.
fn with_places(node: &TestNode, arguments: &[&str]) -> Command {
    let mut command = node.aril(["--root"]);
    command.arg(node.path("root")).arg("--state").arg(node.path("state")).args(arguments);
    command
}

#[test]
fn run_brings_a_daemon_up_for_as_long_as_its_pods_live() {
    let node = start();
    assert!(node.stop_daemon().success());
    let output = with_places(&node, &["run", "-d", "--name", "alone", "busybox", "sleep", "1000"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let info = with_places(&node, &["info", "--output", "json"]).output().unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let daemon = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    assert!(process_alive(daemon));
    assert!(with_places(&node, &["rm", "--force", "alone"]).status().unwrap().success());
    wait_for("the end of a daemon without pods", PATIENCE, || (!process_alive(daemon)).then_some(()));
    node.finish();
}

#[test]
fn images_are_taken_in_and_listed_without_a_daemon_at_first() {
    let node = TestNode::start();
    assert!(node.stop_daemon().success());
    let path = crate::support::fixture("busybox").display().to_string();
    let output = with_places(&node, &["image", "import", &path]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let info = with_places(&node, &["info", "--output", "json"]).output().unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let daemon = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    kill(daemon, Signal::SIGTERM);
    wait_for("the end of the daemon", PATIENCE, || (!process_alive(daemon)).then_some(()));
    let output = with_places(&node, &["image", "ls"]).output().unwrap();
    assert!(text(&output.stdout).contains("busybox"), "{}", text(&output.stderr));
    let info = with_places(&node, &["info", "--output", "json"]).output().unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let daemon = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    kill(daemon, Signal::SIGTERM);
    wait_for("the end of the daemon", PATIENCE, || (!process_alive(daemon)).then_some(()));
    node.finish();
}

#[test]
fn a_name_is_removed_before_its_image() {
    let node = start();
    let path = crate::support::fixture("busybox").display().to_string();
    ok(&node, &["image", "import", "--name", "other:1", &path]);
    let images = json(&node, &["image", "ls"]);
    let named = |image: &&Value| image["tags"].to_string().contains("other:1");
    let image = images.as_array().unwrap().iter().find(named).unwrap();
    let id = image["id"].as_str().unwrap();
    let refused = |arguments: &[&str], words: &[&str]| {
        let output = aril(&node, arguments);
        let told = text(&output.stderr);
        assert!(!output.status.success() && words.iter().all(|word| told.contains(word)), "{told}");
    };
    ok(&node, &["run", "-d", "--name", "user", "busybox", "sleep", "1000"]);
    refused(&["image", "rm", id], &["other:1", "busybox:latest", "-f"]);
    assert_eq!(ok(&node, &["image", "rm", "other:1"]), "untagged docker.io/library/other:1\n");
    for name in ["registry.k8s.io/e2e-test-images/busybox:1.29-2", "busybox:1"] {
        ok(&node, &["image", "rm", name]);
    }
    refused(&["image", "rm", "busybox"], &["user", "-f"]);
    refused(&["image", "rm", "other:1"], &["no image", "other:1"]);
    ok(&node, &["rm", "-f", "user"]);
    let told = ok(&node, &["image", "rm", "busybox"]);
    assert!(told.contains("untagged docker.io/library/busybox:latest\n") && told.contains("\nremoved "), "{told}");
    assert!(!json(&node, &["image", "ls"]).to_string().contains(id));
    // Both at once, though a container uses it.
    for name in ["busybox", "other:1"] {
        ok(&node, &["image", "import", "--name", name, &path]);
    }
    ok(&node, &["run", "-d", "--name", "user", "busybox", "sleep", "1000"]);
    ok(&node, &["image", "rm", "-f", id]);
    assert_eq!(ok(&node, &["exec", "user", "echo", "on"]), "on\n");
    ok(&node, &["rm", "-f", "user"]);
    node.finish();
}

#[test]
fn an_interrupted_run_passes_the_signal_on() {
    let node = start();
    let mut command = node.aril(["run", "--rm", "probe", "term", "3"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("its process", PATIENCE, || (pids_in_cgroup(&node.cgroup_parent()).len() == 1).then_some(()));
    let mut first = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    kill(i32::try_from(child.id()).unwrap(), Signal::SIGTERM);
    let status = wait_for("the end of aril run", PATIENCE, || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
    assert!(node.pod_ids().is_empty());
    node.finish();
}
