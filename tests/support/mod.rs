//! What the suites that drive the real daemon stand on.
//!
//! [`TestNode`] is one daemon with directories, cgroup parent, mount and network namespace of its own.
//! [`Pod`] and [`Container`] are handles on what CRI made in it. [`TestNode::finish`] removes all pods and
//! fails on anything left behind; a node dropped by a panic cleans up without judging.

#[path = "../../rootfs-fixtures/fixtures/mod.rs"]
#[allow(dead_code)]
mod fixtures;

mod client;
mod container;
mod docker_registry;
pub mod events;
mod images;
mod kernel;
mod logs;
pub mod network;
mod node;
mod pod;
pub mod prometheus;
pub mod registry;
mod residue;
pub mod stats;
pub mod streams;
mod token_server;

pub use client::Cri;
pub use container::{Container, ContainerBuilder, Output};
pub use docker_registry::{DockerRegistry, Manner, PASSWORD, USER};
pub use images::{Entry, custom_image, fixture, layer};
pub use kernel::{below, cgroup_of, hierarchies, kill, namespace, pids_in_cgroup, process_alive, read_proc};
pub use logs::{LogLine, text};
pub use node::{Options, TestNode};
pub use pod::{Pod, PodBuilder};
pub use residue::remove_cgroups;

use std::time::{Duration, Instant};

use tonic::{Code, Status};

/// Long enough for anything that is not stuck, on two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again every few milliseconds until `probe` has an answer.
///
/// # Panics
/// Names what was waited for when it has none after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    within(limit, probe).unwrap_or_else(|| panic!("{what}: not within {limit:?}"))
}

/// As [`wait_for`], with `None` when time is up.
pub fn within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The error of a request that must be refused: of this code, one short sentence that names all of `words`.
///
/// # Panics
/// If it was not refused, or not like that.
pub fn refused<T>(result: Result<T, Status>, code: Code, words: &[&str]) -> Status {
    let Err(status) = result else { panic!("not refused; {code:?} expected") };
    let message = status.message();
    assert_eq!(status.code(), code, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not named in: {message}");
    }
    assert!(!message.is_empty() && message.len() < 500 && !message.contains('\n'), "not a sentence: {message:?}");
    assert!(message.matches("failed to").count() < 2, "a chain of failures: {message}");
    status
}
