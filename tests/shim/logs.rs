//! The log: its form, its rotation, what it survives.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::pod::{TestPod, eventually};

#[tokio::test]
async fn lines_streams_and_pieces() {
    let mut pod = TestPod::start().await;
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; printf end";
    let script = script.replace("tr ", "/bin/busybox tr ");
    let id = pod.run(&script).await;
    pod.exit(&id).await;
    let log = pod.log(&id);
    let mut lines: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    for line in &lines {
        assert!(line[0].len() == 30 && line[0].ends_with('Z') && line[0].as_bytes()[10] == b'T', "{line:?}");
    }
    // The two streams are read one by one, so only each one's order is certain.
    lines.sort_by_key(|line| line[1] == "stderr");
    let short: Vec<_> = lines.iter().map(|line| (line[1], line[2], line[3].len())).collect();
    assert_eq!(
        short,
        [("stdout", "F", 3), ("stdout", "P", 16384), ("stdout", "F", 3616), ("stdout", "P", 3), ("stderr", "F", 3)]
    );
    pod.finish().await;
}

/// kubelet renames, then asks to reopen; at full speed nothing is lost or torn.
#[tokio::test]
async fn rotation_at_speed_loses_nothing() {
    const LINES: usize = 300_000;
    let mut pod = TestPod::start().await;
    let id = pod.run(&format!("seq {LINES}")).await;
    let path = pod.log_path(&id);
    let mut rotated = 0;
    while pod.shim.state().await.unwrap().containers[0].exit.is_none() && rotated < 50 {
        fs::rename(&path, path.with_extension(format!("log.{rotated}"))).unwrap();
        if pod.shim.reopen_log(&id).await.is_err() {
            // It has just ended; the log goes back to its place.
            fs::rename(path.with_extension(format!("log.{rotated}")), &path).unwrap();
            break;
        }
        assert!(path.exists(), "the new file is there at once");
        rotated += 1;
    }
    assert_eq!(pod.exit(&id).await.code, 0);
    assert!(rotated > 2, "only rotated {rotated} times");
    let mut next = 1;
    let parts = (0..rotated).map(|n| path.with_extension(format!("log.{n}"))).chain([path.clone()]);
    for part in parts {
        for line in fs::read_to_string(part).unwrap().lines() {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words[1..], ["stdout", "F", &next.to_string()], "{line}");
            next += 1;
        }
    }
    assert_eq!(next, LINES + 1);
    pod.finish().await;
}

#[tokio::test]
async fn no_link_is_written_through() {
    let mut pod = TestPod::start().await;
    let victim = pod.path("victim");
    fs::write(&victim, "").unwrap();
    let (id, plan) = pod.container(&["/bin/echo", "x"]);
    fs::create_dir_all(pod.log_path(&id).parent().unwrap()).unwrap();
    symlink(&victim, pod.log_path(&id)).unwrap();
    let error = pod.shim.create(&id, &plan).await.unwrap_err();
    assert!(error.to_string().contains("ELOOP"), "{error}");
    // Planted between two rotations: the old file stays in use.
    let id = pod.run("echo one; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo two").await;
    eventually("the first line is logged", || pod.log(&id).contains("one")).await;
    let kept = pod.path("kept");
    fs::rename(pod.log_path(&id), &kept).unwrap();
    symlink(&victim, pod.log_path(&id)).unwrap();
    assert!(pod.shim.reopen_log(&id).await.is_err());
    assert_eq!(pod.exec(&id, "echo > /tmp/go").await.0, 0);
    pod.exit(&id).await;
    assert_eq!(fs::read_to_string(&victim).unwrap(), "");
    assert_eq!(fs::read_to_string(kept).unwrap().lines().count(), 2);
    pod.finish().await;
}

#[tokio::test]
async fn without_a_log_path_output_is_discarded() {
    let mut pod = TestPod::start().await;
    let (id, mut plan) = pod.container(&["/bin/sh", "-c", "seq 100000; exit 3"]);
    plan.stdio.as_mut().unwrap().log_path.clear();
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 3);
    assert!(!pod.log_path(&id).exists());
    pod.finish().await;
}

/// A small filesystem for logs, as full as it can be.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Self {
        fs::create_dir(at).unwrap();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=256k")).unwrap();
        Self(at)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_stops_no_container() {
    let mut pod = TestPod::start().await;
    let at = pod.path("logs/small");
    let disk = SmallDisk::mount(&at);
    let script = "seq 100000; echo > /tmp/full; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo after; exit 4";
    let (id, mut plan) = pod.container(&["/bin/sh", "-c", script]);
    let log = at.join("0.log");
    plan.stdio.as_mut().unwrap().log_path = log.to_str().unwrap().into();
    pod.shim.create(&id, &plan).await.unwrap();
    pod.shim.start(&id).await.unwrap();
    let told = pod.warning().await;
    assert!(told.contains("ENOSPC"), "{told}");
    assert_eq!(pod.exec(&id, "while [ ! -e /tmp/full ]; do sleep 0.02; done").await.0, 0);
    fs::rename(&log, at.join("old")).unwrap();
    let whole = fs::read_to_string(at.join("old")).unwrap();
    assert!(whole.ends_with('\n'), "no line is torn");
    fs::remove_file(at.join("old")).unwrap();
    pod.shim.reopen_log(&id).await.unwrap();
    assert_eq!(pod.exec(&id, "echo > /tmp/go").await.0, 0);
    assert_eq!(pod.exit(&id).await.code, 4);
    assert!(fs::read_to_string(&log).unwrap().ends_with(" stdout F after\n"));
    drop(disk);
    pod.finish().await;
}
