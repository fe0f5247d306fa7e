//! What is mounted where, how, and who sees it.

use std::fs;
use std::os::unix::fs::symlink;

use aril::api::cri::MountPropagation;
use tonic::Code;

use crate::support::{Pod, TestNode, refused};

/// A directory of the node that is a shared mount of its own, as kubelet's volumes lie below one.
fn shared_mount(node: &TestNode) -> std::path::PathBuf {
    let path = node.path("volume");
    fs::create_dir(&path).unwrap();
    for arguments in [vec!["-t", "tmpfs", "volume"], vec!["--make-rshared"]] {
        assert!(node.inside("mount").args(arguments).arg(&path).status().unwrap().success());
    }
    path
}

/// Mounts a tmpfs with one file below a path of the node, or unmounts it.
fn submount(node: &TestNode, path: &std::path::Path) {
    let script = format!("mkdir -p {0} && mount -t tmpfs sub {0} && echo there > {0}/file", path.display());
    assert!(node.inside("sh").args(["-c", &script]).status().unwrap().success());
}

fn privileged_pod(node: &TestNode) -> Pod<'_> {
    node.pod("privileged").linux(|l| l.security_context.as_mut().unwrap().privileged = true).run()
}

fn unmount(node: &TestNode, path: &std::path::Path) {
    assert!(node.inside("umount").arg("-R").arg(path).status().unwrap().success(), "unmount {}", path.display());
}

#[test]
fn a_volume_is_read_and_written() {
    let node = TestNode::start();
    let volume = node.path("data");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("from-node"), "hello").unwrap();
    let pod = node.run_pod("volume");
    let (one, two) = (
        pod.container(["sleep", "100000"]).mount(&volume, "/deep/inside/data").run(),
        pod.container(["sleep", "100000"]).mount(&volume, "/data").run(),
    );
    assert_eq!(one.sh("cat /deep/inside/data/from-node"), "hello");
    one.sh("echo answer > /deep/inside/data/from-one");
    assert_eq!(two.sh("cat /data/from-one"), "answer");
    assert_eq!(fs::read_to_string(volume.join("from-one")).unwrap(), "answer\n");
    node.finish();
}

#[test]
fn a_file_is_mounted_over_a_file() {
    let node = TestNode::start();
    let file = node.path("passwd");
    fs::write(&file, "someone:x:5:5::/:/bin/sh\n").unwrap();
    let container =
        node.run_pod("file").container(["sleep", "100000"]).mount(&file, "/etc/passwd").mount(&file, "/new/file");
    let container = container.run();
    assert_eq!(container.sh("cat /etc/passwd"), "someone:x:5:5::/:/bin/sh");
    assert_eq!(container.sh("stat -c %F /new/file"), "regular file");
    node.finish();
}

#[test]
fn a_read_only_volume_is_read_only_itself_alone() {
    let node = TestNode::start();
    let volume = shared_mount(&node);
    submount(&node, &volume.join("sub"));
    let pod = node.run_pod("ro");
    let plain = pod.container(["sleep", "100000"]).mount_with(&volume, "/data", |m| m.readonly = true).run();
    let output = plain.exec(["touch", "/data/file"]);
    assert!(output.code != 0 && output.stderr.contains("Read-only file system"), "{output:?}");
    plain.sh("touch /data/sub/file");

    let recursive = pod.container(["sleep", "100000"]);
    let recursive =
        recursive.mount_with(&volume, "/data", |m| (m.readonly, m.recursive_read_only) = (true, true)).run();
    let output = recursive.exec(["touch", "/data/sub/file"]);
    assert!(output.code != 0 && output.stderr.contains("Read-only file system"), "{output:?}");
    assert!(recursive.status().mounts.iter().any(|m| m.recursive_read_only && m.readonly));
    plain.stop(0).unwrap();
    recursive.stop(0).unwrap();
    unmount(&node, &volume);
    node.finish();
}

#[test]
fn recursive_read_only_wants_private_and_read_only() {
    let node = TestNode::start();
    let volume = shared_mount(&node);
    let pod = node.run_pod("rro");
    let wrong = [
        (false, MountPropagation::PropagationPrivate),
        (true, MountPropagation::PropagationHostToContainer),
        (true, MountPropagation::PropagationBidirectional),
    ];
    for (readonly, propagation) in wrong {
        let container = pod.container(["true"]).mount_with(&volume, "/data", |m| {
            (m.readonly, m.recursive_read_only) = (readonly, true);
            m.propagation = propagation.into();
        });
        refused(container.try_create(), Code::InvalidArgument, &["recursive"]);
    }
    unmount(&node, &volume);
    node.finish();
}

#[test]
fn a_private_mount_propagates_nowhere() {
    let node = TestNode::start();
    let volume = shared_mount(&node);
    let container = node.run_pod("private").container(["sleep", "100000"]);
    let container = container.mount_propagating(&volume, "/v", MountPropagation::PropagationPrivate).run();
    submount(&node, &volume.join("later"));
    assert_ne!(container.exec(["cat", "/v/later/file"]).code, 0);
    container.stop(0).unwrap();
    unmount(&node, &volume);
    node.finish();
}

#[test]
fn a_slave_mount_sees_what_the_node_mounts() {
    let node = TestNode::start();
    let volume = shared_mount(&node);
    let container = privileged_pod(&node).container(["sleep", "100000"]).security(|s| s.privileged = true);
    let container = container.mount_propagating(&volume, "/v", MountPropagation::PropagationHostToContainer).run();
    submount(&node, &volume.join("later"));
    assert_eq!(container.sh("cat /v/later/file"), "there");
    container.sh("mkdir /v/back && mount -t tmpfs back /v/back && touch /v/back/file");
    assert!(!node.inside("test").arg("-e").arg(volume.join("back/file")).status().unwrap().success());
    assert_eq!(container.status().mounts[0].propagation(), MountPropagation::PropagationHostToContainer);
    container.stop(0).unwrap();
    unmount(&node, &volume);
    node.finish();
}

#[test]
fn a_shared_mount_goes_both_ways() {
    let node = TestNode::start();
    let volume = shared_mount(&node);
    let container = privileged_pod(&node).container(["sleep", "100000"]).security(|s| s.privileged = true);
    let container = container.mount_propagating(&volume, "/v", MountPropagation::PropagationBidirectional).run();
    submount(&node, &volume.join("later"));
    assert_eq!(container.sh("cat /v/later/file"), "there");
    container.sh("mkdir /v/back && mount -t tmpfs back /v/back && touch /v/back/file");
    assert!(node.inside("test").arg("-e").arg(volume.join("back/file")).status().unwrap().success());
    container.sh("umount /v/back");
    container.stop(0).unwrap();
    unmount(&node, &volume);
    node.finish();
}

#[test]
fn bidirectional_wants_a_shared_source() {
    let node = TestNode::start();
    let volume = shared_mount(&node);
    assert!(node.inside("mount").arg("--make-rprivate").arg(&volume).status().unwrap().success());
    let container = node.run_pod("shared").container(["true"]);
    let container = container.mount_propagating(&volume, "/v", MountPropagation::PropagationBidirectional);
    let error = container.try_run().err().expect("refused");
    assert!(error.message().contains("shared"), "{}", error.message());
    unmount(&node, &volume);
    node.finish();
}

#[test]
fn a_missing_volume_is_made_as_a_directory() {
    let node = TestNode::start();
    let missing = node.path("not/yet/there");
    let container = node.run_pod("missing").container(["sleep", "100000"]).mount(&missing, "/data").run();
    container.sh("touch /data/file");
    assert!(missing.join("file").exists());
    node.finish();
}

#[test]
fn a_symlinked_volume_is_what_it_points_to() {
    let node = TestNode::start();
    fs::create_dir(node.path("real")).unwrap();
    fs::write(node.path("real/file"), "found").unwrap();
    symlink("real", node.path("link")).unwrap();
    let container = node.run_pod("link").container(["sleep", "100000"]).mount(&node.path("link"), "/data").run();
    assert_eq!(container.sh("cat /data/file"), "found");
    node.finish();
}

#[test]
fn a_mount_over_a_parent_comes_before_its_children() {
    let node = TestNode::start();
    for name in ["outer", "inner"] {
        fs::create_dir(node.path(name)).unwrap();
        fs::write(node.path(name).join("name"), name).unwrap();
    }
    let container = node.run_pod("depth").container(["sleep", "100000"]);
    let container = container.mount(&node.path("inner"), "/a/b/c").mount(&node.path("outer"), "/a").run();
    assert_eq!(container.sh("cat /a/name /a/b/c/name"), "outerinner");
    node.finish();
}

#[test]
fn the_mounts_of_a_container_are_its_own() {
    let node = TestNode::start();
    let before = crate::support::read_proc(node.holder_pid(), "mountinfo");
    let container = node.run_pod("own").sleeper();
    assert_eq!(crate::support::read_proc(node.holder_pid(), "mountinfo"), before);
    // What of the node's mounts can be seen: none.
    let inside = container.sh("cat /proc/self/mountinfo");
    assert!(
        !inside.contains("/aril.sock") && !inside.lines().any(|l| l.contains(" / / ") && l.contains("ext4")),
        "{inside}"
    );
    assert!(!inside.contains("shared:") && !inside.contains("master:"), "{inside}");
    node.finish();
}

#[test]
fn proc_sys_and_dev_are_as_a_container_expects() {
    let node = TestNode::start();
    let container = node.run_pod("system").sleeper();
    for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"] {
        assert_eq!(container.sh(&format!("stat -c '%F %a' {path}")), "character special file 666", "{path}");
    }
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        assert_eq!(container.sh(&format!("readlink /dev/{link}")), format!("/proc/self/{target}"));
    }
    assert_eq!(container.sh("readlink /dev/ptmx; ls /dev/pts/ptmx"), "pts/ptmx\n/dev/pts/ptmx");
    assert_eq!(container.sh("stat -f -c %T /dev/mqueue /dev/shm /proc /sys 2>/dev/null | wc -l"), "4");
    for path in ["/sys/file", "/proc/sys/kernel/hostname", "/sys/fs/cgroup/file"] {
        assert_ne!(container.exec(["sh", "-c", &format!(": >> {path}")]).code, 0, "{path}");
    }
    assert!(container.sh("ls /sys/fs/cgroup").lines().count() > 1);
    node.finish();
}

#[test]
fn bad_mounts_are_refused_by_name() {
    let node = TestNode::start();
    let pod = node.run_pod("bad");
    let volume = node.path("");
    for (target, word) in [
        ("", "container_path"),
        ("relative", "container_path"),
        ("/", "container_path"),
        ("/proc", "/proc"),
        ("/proc/sys", "/proc"),
        ("/nul\0l", "container_path"),
    ] {
        refused(pod.container(["true"]).mount(&volume, target).try_create(), Code::InvalidArgument, &[word]);
    }
    refused(
        pod.container(["true"]).mount(std::path::Path::new("relative"), "/data").try_create(),
        Code::InvalidArgument,
        &["host_path"],
    );
    refused(
        pod.container(["true"]).mount(std::path::Path::new(""), "/data").try_create(),
        Code::InvalidArgument,
        &["host_path"],
    );
    assert!(node.container_ids().is_empty());
    node.finish();
}
