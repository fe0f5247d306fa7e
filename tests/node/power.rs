//! Daemons killed and disks filled in the middle of pulls.

use std::time::Duration;

use tonic::Code;

use crate::pulls::{list, pull, remove, used};
use crate::support::{DockerRegistry, Options, TestNode, refused};

/// Bytes that hardly compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A layer of these files.
fn layer<'a>(files: impl IntoIterator<Item = (String, &'a [u8])>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// A layer that takes a while: many small files and a large one.
fn busy_layer(number: u64) -> Vec<u8> {
    let (small, large) = (noise(3000, number), noise(6 << 20, number + 100));
    let many = (0..400).map(|n| (format!("layer-{number}-{n}"), small.as_slice()));
    layer(many.chain([(format!("large-{number}"), large.as_slice())]))
}

fn unfinished(node: &TestNode) -> Vec<String> {
    // The store may be on a file system that only the node sees.
    let mut ls = node.inside("ls");
    let listed =
        ls.arg("-A").args(["layers", "images"].map(|dir| node.path("root").join(dir))).output().expect("run ls");
    let names = String::from_utf8(listed.stdout).expect("names of the store");
    names.lines().filter(|name| name.starts_with("tmp-") || name.starts_with('.')).map(str::to_owned).collect()
}

#[track_caller]
fn assert_sound(node: &TestNode) {
    let verified = node.aril(["image", "verify"]).output().expect("run aril image verify");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[test]
fn a_daemon_killed_in_the_middle_of_pulls_starts_without_the_half_made() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    let layers: Vec<Vec<u8>> = (0..6).map(busy_layer).collect();
    registry.publish_layers("registry.example/first:1", &layers[..4]);
    registry.publish_layers("registry.example/second:1", &layers[2..]);
    registry.stand_in(&node, "registry.example");
    let mut interrupted = 0;
    for round in 0..6 {
        let mut pulls: Vec<_> = ["registry.example/first:1", "registry.example/second:1"]
            .map(|name| {
                node.aril(["pull", "--quiet", name])
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null())
                    .spawn()
                    .expect("run aril pull")
            })
            .into();
        std::thread::sleep(Duration::from_millis(40 + 160 * round));
        node.kill_daemon();
        for pull in &mut pulls {
            interrupted += usize::from(!pull.wait().expect("wait for aril pull").success());
        }
        node.restart();
        assert_eq!(unfinished(&node), [""; 0], "round {round}");
        assert_sound(&node);
        for image in list(&node).iter().filter(|image| image.repo_tags.iter().any(|tag| tag.starts_with("registry."))) {
            remove(&node, &image.id);
        }
    }
    assert!(interrupted > 0, "every pull was done before the daemon was killed");
    for name in ["registry.example/first:1", "registry.example/second:1"] {
        pull(&node, name).expect("a pull after it all");
    }
    assert_sound(&node);
    assert_eq!(unfinished(&node), [""; 0]);
    node.finish();
}

#[test]
fn a_full_disk_fails_one_pull_and_gives_the_space_back() {
    // 64 MiB are kept free.
    let node = TestNode::with(Options { root_size: "112m", ..Options::default() });
    let registry = DockerRegistry::start(&node);
    let block = vec![7; 1 << 20];
    // Small on the way, large on the disk.
    let swelling = |name: &str, blocks: usize| layer((0..blocks).map(|n| (format!("{name}-{n}"), block.as_slice())));
    registry.publish_layers("registry.example/fits:1", &[swelling("a", 8)]);
    registry.publish_layers("registry.example/large:1", &[swelling("b", 8), swelling("c", 60)]);
    registry.publish_layers("registry.example/fits:2", &[swelling("d", 8)]);
    registry.stand_in(&node, "registry.example");
    pull(&node, "registry.example/fits:1").expect("a pull with room");
    let before = (list(&node), used(&node));
    let refusal =
        refused(pull(&node, "registry.example/large:1"), Code::ResourceExhausted, &["no space is left below"]);
    assert!(refusal.message().contains("free some and try again"), "{refusal}");
    assert_eq!((list(&node), used(&node)), before);
    crate::support::wait_for("the space to come back", crate::support::PATIENCE, || {
        unfinished(&node).is_empty().then_some(())
    });
    pull(&node, "registry.example/fits:2").expect("a pull with room again");
    assert_sound(&node);
    node.finish();
}
