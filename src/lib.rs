//! aril: Kubernetes CRI calls turned into pods, directly on Linux namespaces and cgroups.

#[cfg(feature = "daemon")]
pub mod api;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod compile;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod cri;
pub mod disk;
pub mod id;
#[cfg(feature = "daemon")]
pub mod image;
#[cfg(feature = "daemon")]
pub mod net;
#[cfg(feature = "daemon")]
pub mod node;
#[cfg(feature = "daemon")]
pub mod observe;
pub mod plan;
pub mod runtime;
pub mod shim;
pub mod sys;
pub mod wire;
