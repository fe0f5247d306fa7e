//! The daemon, its shims and the kernel together, through CRI.
//!
//! Each test has a node of its own ([`support::TestNode`]) and ends with `finish`, which fails on any process,
//! mount, cgroup, file or descriptor left behind. Needs root; `SKIP_ROOT=1` skips the suite and says so.

// The helpers of tests are tests too; and `assert_eq!(ids, [id.clone()])` reads as what it means.
#![allow(clippy::unwrap_used, clippy::cloned_ref_to_slice_refs)]

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

mod attach;
mod bad_input;
mod bounds;
mod churn;
mod cli;
mod events;
mod exec;
mod foreground;
mod hostile;
mod hostile_registry;
mod image_cli;
mod image_volumes;
mod images;
mod lifecycle;
mod lists;
mod logs;
mod metrics;
mod mounts;
mod namespaces;
mod network;
mod network_cli;
mod network_cni;
mod network_ports;
mod port_forward;
mod power;
mod process;
mod prometheus;
mod pulls;
mod resources;
mod restart;
mod security;
mod sick;
mod speed;
mod stats;
mod streaming;
mod stress;
mod timeline;
mod wire;
