//! Requests and images that are wrong: one clear sentence, the right code, nothing left, nobody disturbed.

use std::os::unix::fs::PermissionsExt;

use aril::api::cri::{
    ContainerState, CreateContainerRequest, ImageSpec, ImageStatusRequest, KeyValue, PodSandboxStatusRequest,
    RunPodSandboxRequest,
};
use serde_json::json;
use tonic::Code;

use crate::support::{Entry, Options, TestNode, custom_image, pids_in_cgroup, refused};

#[test]
fn malformed_ids_are_never_found() {
    let node = TestNode::start();
    let container = node.run(["sleep", "100000"]);
    for id in ["", "..", "../..", "/", "A", "0123/45", &"0".repeat(65), "\0", "%00", " "] {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let pod = node.cri().runtime(|mut c| async move { c.pod_sandbox_status(request).await });
        let strange = container.called(id);
        for code in
            [pod.unwrap_err().code(), strange.try_status().unwrap_err().code(), strange.start().unwrap_err().code()]
        {
            assert!([Code::NotFound, Code::InvalidArgument].contains(&code), "{id:?}: {code:?}");
        }
        // To stop or remove what cannot exist may succeed, but does nothing.
        drop((strange.stop(0), strange.remove()));
    }
    assert_eq!(container.sh("echo alive"), "alive");
    node.finish();
}

#[test]
fn a_request_without_its_parts_is_refused() {
    let node = TestNode::start();
    let empty = RunPodSandboxRequest::default();
    refused(
        node.cri().runtime(|mut c| async move { c.run_pod_sandbox(empty).await }),
        Code::InvalidArgument,
        &["config"],
    );
    refused(node.pod("x").with(|c| c.metadata = None).try_run(), Code::InvalidArgument, &["metadata"]);
    refused(node.pod("").try_run(), Code::InvalidArgument, &["name"]);
    let pod = node.run_pod("parts");
    let request = CreateContainerRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    refused(
        node.cri().runtime(|mut c| async move { c.create_container(request).await }),
        Code::InvalidArgument,
        &["config"],
    );
    refused(pod.container(["true"]).with(|c| c.metadata = None).try_create(), Code::InvalidArgument, &["metadata"]);
    refused(pod.container(["true"]).with(|c| c.image = None).try_create(), Code::InvalidArgument, &["image"]);
    node.finish();
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let node = TestNode::start();
    let pod = node.run_pod("image");
    refused(pod.container(["true"]).image("example.com/none:1").try_create(), Code::NotFound, &["example.com/none:1"]);
    let request = ImageStatusRequest {
        image: Some(ImageSpec { image: "example.com/none:1".to_owned(), ..Default::default() }),
        verbose: false,
    };
    let status = node.cri().images(|mut c| async move { c.image_status(request).await }).unwrap();
    assert!(status.image.is_none());
    assert!(pod.container(["true"]).image("UPPER case//:").try_create().is_err());
    assert!(node.container_ids().is_empty());
    node.finish();
}

#[test]
fn a_pod_that_is_not_there_is_named() {
    let node = TestNode::start();
    let pod = node.run_pod("gone");
    let builder = pod.container(["true"]);
    pod.remove().unwrap();
    refused(builder.try_create(), Code::NotFound, &[&pod.id[..12]]);
    node.finish();
}

/// Starts what cannot start: the error names the program and the errno, and the container has ended.
fn fails_to_start(node: &TestNode, image: &str, command: &[&str], words: &[&str]) {
    let pod = node.run_pod("start");
    let container = pod.container(command.iter().copied()).image(image);
    let (error, container) = match container.try_create() {
        Ok(container) => (container.start().expect_err("nothing to run"), Some(container)),
        Err(e) => (e, None),
    };
    for word in words {
        assert!(error.message().contains(word), "{word:?} is not named in: {}", error.message());
    }
    assert!(error.message().len() < 400, "{}", error.message());
    if let Some(container) = container {
        let status = container.wait_exited();
        assert_eq!(status.exit_code, 128, "{status:?}");
        assert!(["StartError", "ContainerCannotRun"].contains(&status.reason.as_str()), "{status:?}");
        assert!(status.message.contains(words[0]), "{}", status.message);
        assert!(pids_in_cgroup(&container.id).is_empty());
        container.remove().unwrap();
    }
    assert!(pod.is_ready());
    pod.remove().unwrap();
}

#[test]
fn a_program_that_cannot_run_is_named() {
    let node = TestNode::start();
    fails_to_start(&node, "probe", &["/no/such/program"], &["/no/such/program", "ENOENT"]);
    fails_to_start(&node, "probe", &["no-such-program"], &["no-such-program"]);
    fails_to_start(&node, "probe", &["/etc/passwd"], &["/etc/passwd", "EACCES"]);
    fails_to_start(&node, "probe", &["/tmp"], &["/tmp", "EACCES"]);
    let scratch = node.import("scratch");
    fails_to_start(&node, &scratch, &["sh", "-c", "true"], &["sh"]);
    node.finish();
}

#[test]
fn a_file_of_no_known_format_is_named() {
    let node = TestNode::start();
    let entries = [Entry::File("text", 0o755, b"just words\n"), Entry::File("orphan", 0o755, b"#!/no/interpreter\n")];
    let image = node.import_file(&custom_image(&node.path(""), "formats", &json!({}), &entries));
    fails_to_start(&node, &image, &["/text"], &["/text", "ENOEXEC"]);
    fails_to_start(&node, &image, &["/orphan"], &["/orphan", "ENOENT"]);
    let pod = node.run_pod("none");
    refused(pod.container([]).image(&image).try_create(), Code::InvalidArgument, &["command"]);
    node.finish();
}

#[test]
fn more_environment_than_the_kernel_takes_is_an_error() {
    let node = TestNode::start();
    let pod = node.run_pod("large");
    let one = pod.container(["true"]).env("LARGE", &"x".repeat(3 << 20));
    refused(one.try_create(), Code::InvalidArgument, &["envs[0]"]);
    let many = (0..40).fold(pod.container(["true"]), |c, i| c.env(&format!("LARGE_{i}"), &"x".repeat(100_000)));
    let error = many.try_run().err().expect("too large");
    assert!(error.message().contains("E2BIG"), "{}", error.message());
    assert_eq!(pod.script("echo fine"), (0, "fine\n".to_owned()));
    node.finish();
}

#[test]
fn malformed_environment_is_refused() {
    let node = TestNode::start();
    let pod = node.run_pod("env");
    for (key, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
        refused(pod.container(["true"]).env(key, value).try_create(), Code::InvalidArgument, &["envs"]);
    }
    let pair = KeyValue { key: "A".to_owned(), value: vec![0xff, 0xfe] };
    let bytes = pod.container(["true"]).with(|c| c.envs.push(pair)).try_create();
    drop(bytes.map(|c| c.id));
    refused(
        pod.container(["true"]).with(|c| c.working_dir = "a\0b".to_owned()).try_create(),
        Code::InvalidArgument,
        &["working_dir"],
    );
    refused(pod.container(["a\0b"]).try_create(), Code::InvalidArgument, &["command"]);
    node.finish();
}

#[test]
fn odd_names_and_hostnames_are_no_paths() {
    let node = TestNode::start();
    for name in ["../../etc", "a/b", "\u{202e}", "x\ny"] {
        if let Ok(pod) = node.pod(name).try_run() {
            pod.remove().unwrap();
        }
    }
    for hostname in ["a\nb", "a b\0", &"x".repeat(65)] {
        refused(
            node.pod("h").with(|c| c.hostname = hostname.to_owned()).try_run(),
            Code::InvalidArgument,
            &["hostname"],
        );
    }
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn a_cgroup_that_vanished_hinders_no_removal() {
    let node = TestNode::start();
    let pod = node.run_pod("vanished");
    let container = pod.run(["true"]);
    container.wait_exited();
    for hierarchy in crate::support::hierarchies() {
        let mut dirs = Vec::new();
        crate::support::below(&hierarchy.mount.join(&node.cgroup_parent()[1..]), &mut |p| dirs.push(p.to_owned()));
        dirs.iter().for_each(|d| drop(std::fs::remove_dir(d)));
    }
    container.remove().unwrap();
    pod.remove().unwrap();
    node.finish();
}

#[test]
fn a_full_disk_is_told_and_forgotten() {
    let node = TestNode::with(Options { root_size: "48m", ..Options::default() });
    let pod = node.run_pod("full");
    let steady = pod.sleeper();
    let (root, filler) = (node.path("root").display().to_string(), node.path("root/filler").display().to_string());
    let fill = format!("cat /dev/zero > {filler}; df {root}");
    node.inside("sh").args(["-c", &fill]).stderr(std::process::Stdio::null()).output().unwrap();
    let error = pod.container(["true"]).try_create().err().expect("no space");
    assert_eq!(error.code(), Code::ResourceExhausted, "{}", error.message());
    assert!(error.message().contains("ENOSPC"), "{}", error.message());
    assert!(node.pod("more").try_run().is_err());
    assert_eq!(steady.sh("echo fine"), "fine");
    assert!(node.inside("rm").arg(&filler).status().unwrap().success());
    assert_eq!(pod.script("echo again"), (0, "again\n".to_owned()));
    node.finish();
}

#[test]
fn directories_and_socket_are_roots_alone() {
    let node = TestNode::start();
    let mode = |name: &str| std::fs::metadata(node.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("root"), mode("state"), mode("aril.sock")), (0o700, 0o700, 0o600));
    node.finish();
}

#[test]
fn a_container_that_was_created_and_never_started_is_removed() {
    let node = TestNode::start();
    let container = node.run_pod("created").container(["true"]).create();
    container.stop(5).unwrap();
    assert!([ContainerState::ContainerCreated, ContainerState::ContainerExited].contains(&container.state()));
    container.remove().unwrap();
    node.finish();
}
