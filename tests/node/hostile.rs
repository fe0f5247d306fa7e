//! Images and requests made to break out.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::{Entry, Options, PATIENCE, TestNode, custom_image, refused, wait_for};

/// An image with the probe and these entries, and nothing else.
fn import(node: &TestNode, name: &str, entries: Vec<Entry<'_>>) -> String {
    let mut all = vec![Entry::Probe("probe")];
    all.extend(entries);
    node.import_file(&custom_image(&node.path(""), name, &json!({"Cmd": ["/probe"]}), &all))
}

/// A directory of the node that no container may touch, and the way up to it from anywhere.
fn canary(node: &TestNode) -> (std::path::PathBuf, String) {
    let path = node.path("canary");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("file"), "untouched").unwrap();
    let up = format!("{}{}", "../".repeat(12), path.strip_prefix("/").unwrap().display());
    (path, up)
}

fn assert_untouched(path: &Path) {
    let names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "something was made in the canary directory");
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "untouched");
}

#[test]
fn system_directories_that_are_links_lead_nowhere() {
    for target in ["proc", "sys", "dev", "etc", "dev/pts", "dev/shm"] {
        let node = TestNode::start();
        let (path, up) = canary(&node);
        let mut entries = Vec::new();
        if target.starts_with("dev/") {
            entries.push(Entry::Dir("dev", 0o755));
        }
        entries.push(Entry::Link(target, &up));
        let image = import(&node, "links", entries);
        let builder = node.run_pod("links").container(["/probe", "stubborn"]).image(&image);
        if let Ok(container) = builder.try_run() {
            container.wait_log("ready");
            // Whatever it did instead, these are real.
            let mounts = container.report()["mounts"].to_string();
            assert!(mounts.contains(" /proc "), "/{target}: {mounts}");
            assert!(!mounts.contains("canary"), "/{target}: {mounts}");
        }
        assert_untouched(&path);
        node.finish();
    }
}

#[test]
fn files_the_runtime_mounts_over_may_be_links() {
    let node = TestNode::start();
    let (path, up) = canary(&node);
    let file = format!("{up}/file");
    let entries = vec![
        Entry::Dir("etc", 0o755),
        Entry::Link("etc/hosts", &file),
        Entry::Link("etc/hostname", &file),
        Entry::Link("etc/resolv.conf", "/proc/self/fd/0"),
    ];
    let image = import(&node, "files", entries);
    let builder = node.run_pod("files").container(["/probe", "write", "/etc/hosts", "x"]).image(&image);
    if let Ok(container) = builder.try_run() {
        container.wait_exited();
    }
    assert_untouched(&path);
    node.finish();
}

#[test]
fn device_files_of_the_image_are_not_used() {
    let node = TestNode::start();
    let (path, up) = canary(&node);
    let file = format!("{up}/file");
    let entries = vec![
        Entry::Dir("dev", 0o755),
        Entry::Link("dev/null", &file),
        Entry::Link("dev/console", &file),
        Entry::Link("dev/ptmx", &file),
        Entry::File("secret", 0o644, b"to be masked\n"),
    ];
    let image = import(&node, "devices", entries);
    let builder = node.run_pod("devices").container(["/probe", "stat", "/dev/null", "then", "read", "/secret"]);
    let container =
        builder.image(&image).with(|c| c.tty = true).security(|s| s.masked_paths = vec!["/secret".to_owned()]);
    let container = container.run();
    container.wait_exited();
    let log = container.log();
    assert!(log.contains("/dev/null char 666 0 0 0 1:3"), "{log}");
    assert!(!log.contains("to be masked"), "{log}");
    assert_untouched(&path);
    node.finish();
}

#[test]
fn mount_points_that_are_links_stay_inside() {
    let node = TestNode::start();
    let (path, up) = canary(&node);
    let volume = node.path("volume");
    fs::create_dir(&volume).unwrap();
    let image = import(&node, "points", vec![Entry::Link("data", &up), Entry::Link("loop", "loop")]);
    let pod = node.run_pod("points");
    let builder = pod.container(["/probe", "write", "/data/evil", "x"]).image(&image).mount(&volume, "/data");
    if let Ok(container) = builder.try_run() {
        container.wait_exited();
        assert!(volume.join("evil").exists());
    }
    let made = pod.container(["/probe", "list", "/"]).image(&image).mount(&volume, "/data/new/dir");
    if let Ok(container) = made.try_run() {
        container.wait_exited();
    }
    assert!(pod.container(["/probe"]).image(&image).mount(&volume, "/loop/x").try_run().is_err());
    assert_untouched(&path);
    node.finish();
}

#[test]
fn a_working_directory_is_inside() {
    let node = TestNode::start();
    let (path, up) = canary(&node);
    let image = import(&node, "cwd", vec![Entry::Link("out", &up)]);
    let pod = node.run_pod("cwd");
    let fds = (3..24).flat_map(|fd| [format!("/proc/self/fd/{fd}"), format!("/proc/self/fd/{fd}/../../..")]);
    for dir in fds.chain(["/out".to_owned(), "/proc/self/cwd".to_owned(), "/proc/1/root".to_owned()]) {
        let builder = pod.container(["/probe", "report"]).image(&image).with(|c| c.working_dir.clone_from(&dir));
        let Ok(container) = builder.try_run() else { continue };
        container.wait_exited();
        let report: serde_json::Value = serde_json::from_str(&container.log()).unwrap();
        let cwd = report["cwd"].as_str().unwrap();
        assert!(cwd.starts_with('/') && !cwd.contains("unreachable"), "{dir}: {cwd}");
        assert!(!Path::new(cwd).starts_with(node.path("")) || cwd.contains("canary"), "{dir}: {cwd}");
    }
    assert_untouched(&path);
    node.finish();
}

#[test]
fn an_exec_with_a_replaced_working_directory_is_inside() {
    let node = TestNode::start();
    let container = node.run_pod("swap").container(["sleep", "100000"]).with(|c| c.working_dir = "/work".to_owned());
    let container = container.run();
    container.sh("rmdir /work && ln -s /proc/self/fd/5 /work");
    if let Ok(output) = container.try_exec(["/probe", "report"], 10)
        && output.code == 0
    {
        let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        assert!(!report["cwd"].as_str().unwrap().contains("unreachable"), "{report}");
    }
    node.finish();
}

#[test]
fn the_runtimes_own_program_is_out_of_reach() {
    let node = TestNode::start();
    let before = fs::read(env!("CARGO_BIN_EXE_aril-shim")).unwrap();
    let pod = node.run_pod("self");
    for command in [["/proc/self/exe", "report"], ["/proc/1/exe", "report"]] {
        if let Ok(container) = pod.container(command).try_run() {
            drop(wait_for("its end", PATIENCE, || container.try_status().ok()));
            container.stop(0).unwrap();
        }
    }
    // While sessions come in, the container tries to write to whatever executes them.
    let script = "while true; do for p in /proc/[0-9]*; do { echo x >> $p/exe; } 2>/dev/null; done; done";
    let attacker = pod.run(["sh", "-c", script]);
    for _ in 0..20 {
        attacker.exec(["true"]);
    }
    assert!(fs::read(env!("CARGO_BIN_EXE_aril-shim")).unwrap() == before, "the shim's file was changed");
    node.finish();
}

#[test]
fn the_shim_is_not_seen_from_a_container() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    let seen = container.sh("cat /proc/[0-9]*/comm");
    assert!(!seen.contains("aril"), "{seen}");
    node.finish();
}

#[test]
fn passwd_files_of_any_kind_are_read_with_care() {
    let node = TestNode::start();
    let huge = "x:x:1:1::/:/bin/sh\n".repeat(2 << 20);
    let cases: Vec<(&str, Entry<'_>)> = vec![
        ("huge", Entry::File("etc/passwd", 0o644, huge.as_bytes())),
        ("fifo", Entry::Fifo("etc/passwd")),
        ("directory", Entry::Dir("etc/passwd", 0o755)),
        ("zero", Entry::Link("etc/passwd", "/dev/zero")),
        ("binary", Entry::File("etc/passwd", 0o644, b"\x00\xff:::::\n:\nroot\nnobody:x:99999999999:1::/:\n")),
    ];
    let pod = node.run_pod("passwd");
    for (name, entry) in cases {
        let image = import(&node, name, vec![Entry::Dir("etc", 0o755), entry]);
        let started = std::time::Instant::now();
        let named = pod.container(["/probe"]).image(&image).security(|s| s.run_as_username = "nobody".to_owned());
        assert!(named.try_run().is_err(), "{name}: there is no such user");
        let numbered = pod.container(["/probe"]).image(&image);
        if let Ok(container) = numbered.try_run() {
            container.wait_exited();
        }
        assert!(started.elapsed().as_secs() < 10, "{name}: {:?}", started.elapsed());
    }
    node.finish();
}

#[test]
fn an_images_environment_takes_nothing_from_the_daemon() {
    let node = TestNode::with(Options {
        environment: vec![("SECRET_TOKEN", "from-the-daemon".to_owned())],
        ..Options::default()
    });
    let config = json!({"Cmd": ["/probe"], "Env": ["SECRET_TOKEN", "*", "SECRET_*", "=x", "GOOD=yes"]});
    let path = custom_image(&node.path(""), "env", &config, &[Entry::Probe("probe")]);
    if let Ok(images) = node.cri().import(&path) {
        let builder = node.run_pod("env").container(["/probe", "report"]).image(&images[0].references[0]);
        if let Ok(container) = builder.try_run() {
            container.wait_exited();
            assert!(!container.log().contains("from-the-daemon"));
            assert!(container.log().contains("GOOD=yes"));
        }
    }
    node.finish();
}

#[test]
fn labels_and_annotations_command_nothing() {
    let node = TestNode::start();
    let keys = [
        "io.kubernetes.cri-o.privileged",
        "run.oci.handler",
        "io.containerd.runc.v2.group",
        "aril.privileged",
        "org.opencontainers.runtime",
    ];
    let pod = node
        .pod("data")
        .with(|c| c.annotations = keys.iter().map(|k| ((*k).to_owned(), "true".to_owned())).collect())
        .run();
    let builder = pod
        .container(["x"])
        .with(|c| c.annotations = keys.iter().map(|k| ((*k).to_owned(), "/bin/sh".to_owned())).collect());
    assert_eq!(builder.report()["cap_effective"], "00000000a80425fb");
    node.finish();
}

#[test]
fn kernel_settings_are_not_written_from_a_container() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    for path in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/release_agent",
        "/proc/irq/default_smp_affinity",
    ] {
        assert_ne!(container.exec(["sh", "-c", &format!(": >> {path}")]).code, 0, "{path}");
    }
    let mount = container.exec(["mount", "-t", "tmpfs", "x", "/tmp"]);
    assert_ne!(mount.code, 0);
    let limit = |text: &str| refused(node.pod("x").sysctl(text, "1").try_run(), tonic::Code::InvalidArgument, &[]);
    limit("kernel.core_pattern");
    node.finish();
}
