//! From a plan to a process: what the kernel is asked to do for a pod.
//!
//! A [`Pod`] is what the shim holds of the pod: its namespaces, its shared memory, its pod init. From it a container's
//! first process ([`Pod::create`]) and exec sessions ([`Pod::exec`]) are cloned. The child walks an ordered table of
//! steps ([`stages`]) by itself, reports over a socket of its own ([`Init`]) and becomes the workload when released:
//!
//! ```text
//!  shim ── clone3 ──► child: cgroup · namespaces · sources · rootfs · user · mounts · masks · pivot · limits · identity
//!   │                   │ Ready (user, pty)            ▲
//!   │◄──────────────────┘                              │
//!   └── release (one byte) ────────────────────────────┘ execve ──► workload
//! ```
//!
//! Invariants: the process that clones has one thread; a container's mounts exist only in its own mount namespace; no
//! path below a container's root is resolved but inside that root and used but by descriptor; every descriptor is
//! close-on-exec. Nothing here knows of Kubernetes, tokio or gRPC.
//!
//! Follows the OCI runtime specification 1.2, config-linux; namespaces(7), mount_setattr(2), openat2(2).

pub mod cgroup;

mod credentials;
mod dev;
mod error;
mod exec;
mod init;
mod masks;
mod mounts;
mod oom;
mod pod;
mod pod_init;
mod rootfs;
mod sources;
mod stages;
mod sysctl;
mod user;

pub use error::{RuntimeError, StepError};
pub use init::{Init, InitMessage, Stdio3};
pub use pod::{ExecTarget, Pod};
