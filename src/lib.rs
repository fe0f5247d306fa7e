//! aril: Kubernetes CRI calls turned into pods, directly on Linux namespaces and cgroups.

#[cfg(feature = "daemon")]
pub mod api;
pub mod disk;
pub mod id;
pub mod plan;
