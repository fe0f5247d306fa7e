//! Images as volumes: read-only, whole or a directory of them, and there as long as they are used.

use aril::api::cri::{ImageSpec, Mount, RemoveImageRequest};
use serde_json::json;
use tonic::Code;

use crate::support::{ContainerBuilder, Entry, TestNode, custom_image, refused};

fn volume(image: &str, path: &str) -> Mount {
    Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
        ..Mount::default()
    }
}

fn part(image: &str, sub_path: &str, path: &str) -> Mount {
    Mount { image_sub_path: sub_path.to_owned(), ..volume(image, path) }
}

fn with<'n>(builder: ContainerBuilder<'n>, mounts: impl IntoIterator<Item = Mount>) -> ContainerBuilder<'n> {
    builder.with(|c| c.mounts.extend(mounts))
}

/// An image of one layer, with ways out for whoever follows them.
fn data(node: &TestNode) -> String {
    let entries = [
        Entry::Dir("models", 0o755),
        Entry::Dir("models/small", 0o755),
        Entry::File("models/small/weights", 0o644, b"0.5\n"),
        Entry::Link("absolute", "/models"),
        Entry::Link("up", "../../../../../models/small"),
        Entry::Link("host", "/etc"),
        Entry::Probe("probe"),
    ];
    node.import_file(&custom_image(&node.path(""), "data", &json!({}), &entries))
}

#[test]
fn an_image_is_mounted_read_only() {
    let node = TestNode::start();
    data(&node);
    node.import("whiteouts");
    let pod = node.run_pod("whole");
    let mounts = [volume("data", "/data"), volume("whiteouts", "/srv/layered")];
    let container = with(pod.container(["sleep", "100000"]), mounts).run();
    assert_eq!(container.sh("cat /data/models/small/weights; ls /data"), "0.5\nabsolute\nhost\nmodels\nprobe\nup");
    let layered = container.sh("ls /srv/layered/srv; ls /srv/layered/etc/motd /srv/layered/opt 2>&1; true");
    assert!(!layered.contains("below") && layered.contains("above") && layered.contains("No such file"), "{layered}");
    for script in ["touch /data/new", "rm /data/models/small/weights", "chmod 777 /data/models", "touch /srv/layered/x"]
    {
        let output = container.exec(["sh", "-c", script]);
        assert!(output.code != 0 && output.stderr.contains("Read-only file system"), "{script}: {output:?}");
    }
    // Programs in it may be run.
    assert_eq!(container.exec(["/data/probe", "report"]).code, 0);
    // Its device nodes are none.
    assert_ne!(container.exec(["sh", "-c", "echo x > /srv/layered/srv/null"]).code, 0);
    node.finish();
}

#[test]
fn no_container_can_make_an_image_writable_for_others() {
    let node = TestNode::start();
    data(&node);
    let pod = node.pod("strong").linux(|l| l.security_context.get_or_insert_default().privileged = true).run();
    let container =
        with(pod.container(["sleep", "100000"]), [volume("data", "/data"), part("data", "models", "/part")]);
    let container = container.security(|s| s.privileged = true).run();
    for path in ["/data", "/part"] {
        container.exec(["mount", "-o", "remount,rw,bind", path]);
        container.exec(["mount", "-o", "remount,rw", path]);
        let output = container.exec(["touch", &format!("{path}/new")]);
        assert!(output.code != 0 && output.stderr.contains("Read-only file system"), "{path}: {output:?}");
    }
    node.finish();
}

#[test]
fn a_directory_of_an_image_is_found_inside_of_it() {
    let node = TestNode::start();
    data(&node);
    let pod = node.run_pod("part");
    let before = crate::support::read_proc(node.holder_pid(), "mountinfo");
    let mounts = [
        part("data", "models/small", "/a"),
        part("data", "absolute/small", "/b"),
        part("data", "up", "/c"),
        part("probe", "etc", "/image-etc"),
    ];
    let container = with(pod.container(["sleep", "100000"]), mounts).run();
    assert_eq!(container.sh("cat /a/weights /b/weights /c/weights"), "0.5\n0.5\n0.5");
    assert!(container.sh("cat /image-etc/passwd").contains("default-user"));
    assert_eq!(container.sh("grep -c ' /a ' /proc/self/mountinfo"), "1");
    assert_ne!(container.exec(["touch", "/a/new"]).code, 0);
    assert_eq!(crate::support::read_proc(node.holder_pid(), "mountinfo"), before);

    for (sub_path, errno) in [("nowhere", "ENOENT"), ("host", "ENOENT"), ("probe", "ENOTDIR")] {
        let error = with(pod.container(["true"]), [part("data", sub_path, "/x")]).try_create();
        let status = refused(error, Code::InvalidArgument, &[sub_path, "/x", errno]);
        assert!(status.message().starts_with("ImageVolumeMountFailed: "), "{status}");
    }
    node.finish();
}

#[test]
fn image_volumes_that_cannot_be_are_refused() {
    let node = TestNode::start();
    data(&node);
    let pod = node.run_pod("refused");
    for (mount, code, word) in [
        (volume("nothing", "/x"), Code::NotFound, "nothing"),
        (Mount { readonly: false, ..volume("data", "/x") }, Code::InvalidArgument, "readonly"),
        (Mount { host_path: "/etc".to_owned(), ..volume("data", "/x") }, Code::InvalidArgument, "host_path"),
        (part("data", "../..", "/x"), Code::InvalidArgument, "image_sub_path"),
    ] {
        let status = refused(with(pod.container(["true"]), [mount]).try_create(), code, &[word, "mounts[0]"]);
        assert!(status.message().starts_with("ImageVolumeMountFailed: "), "{status}");
    }
    assert!(node.container_ids().is_empty());
    node.finish();
}

#[test]
fn a_volumes_image_is_told_and_kept() {
    let node = TestNode::start();
    let name = data(&node);
    let remove = |image: &str| {
        let request = RemoveImageRequest { image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }) };
        node.cri().images(|mut c| async move { c.remove_image(request).await }).expect("remove an image");
    };
    let pod = node.run_pod("kept");
    let container = with(pod.container(["sleep", "100000"]), [volume(&name, "/data")]).run();
    let told = |c: &crate::support::Container| c.status().mounts[0].image.clone().unwrap();
    let image = told(&container);
    assert!(image.image == name && image.image_ref.starts_with("sha256:"), "{image:?}");
    // The image goes, its files stay as long as they are used: also by a container not started yet, also by the next
    // daemon.
    let waiting =
        with(pod.container(["cat", "/data/models/small/weights"]), [volume(&image.image_ref, "/data")]).create();
    remove(&name);
    let layers = || std::fs::read_dir(node.path("root/layers")).unwrap().count();
    let held = layers();
    node.kill_daemon();
    node.restart();
    assert_eq!(told(&container), image);
    assert_eq!(container.sh("cat /data/models/small/weights"), "0.5");
    waiting.start().unwrap();
    waiting.wait_exited();
    assert_eq!(waiting.log(), "0.5\n");
    container.remove().unwrap();
    assert_eq!(layers(), held, "the other container is still there");
    waiting.remove().unwrap();
    crate::support::wait_for("the layer's end", crate::support::PATIENCE, || (layers() < held).then_some(()));
    node.finish();
}
