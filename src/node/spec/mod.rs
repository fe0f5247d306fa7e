//! CRI config → OCI runtime spec, and → the plan of a sandbox.
//!
//! Owns what Kubernetes means by a pod's and a container's fields: which namespaces, mounts, user,
//! rights and limits they come to. Pure: no file, clock or process is looked at; what has to be
//! known of the machine comes in as [`Defaults`] and a device lookup. Every text that could end up
//! in a path, a file or a process is checked here, and an error names the CRI field. What this
//! version does not do is refused by name, never ignored.
//!
//! Follows CRI v1 (`proto/cri.proto`) and the OCI runtime spec.

mod capability;
mod check;
mod container;
mod device;
mod error;
mod mount;
mod namespace;
mod network;
mod process;
mod resource;
mod sandbox;
mod security;
mod signal;
mod user;

pub use container::{container_spec, log_path};
pub use device::HostDevice;
pub use error::{Kind, SpecError};
pub use network::{hosts, network};
use nix::errno::Errno;
pub use process::{exec_process, exec_session};
pub use resource::update;
pub use sandbox::{cgroup_parent, host_network, sandbox_plan};
pub use signal::{image_signal, signal_number};

use crate::api::cri;
use crate::id::{ContainerId, Digest};

/// What holds for every container of this machine and this configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The machine's hostname: `HOSTNAME` of pods without one of their own.
    pub hostname: String,
    /// Cgroup below which pods go whose `cgroup_parent` is empty; absolute.
    pub cgroup_parent: String,
    /// The daemon's own bounding set, bit n for capability n: the most a container can have.
    pub capabilities: u64,
    /// Device rules are enforced: without, a container that can make device nodes can use every device.
    pub device_rules: bool,
    /// AppArmor is enabled in the kernel.
    pub apparmor: bool,
    /// SELinux is enabled in the kernel.
    pub selinux: bool,
    /// Swap is accounted for (`memory.memsw.*` or `memory.swap.*` exist).
    pub swap: bool,
    /// The kernel can make a mount read-only with all below it (mount_setattr, Linux 5.12).
    pub recursive_read_only: bool,
    /// Size of a pod's `/dev/shm`.
    pub shm_size_bytes: u64,
    /// The limits of open files of every container, soft and hard; `None`: those of whoever starts it.
    pub open_files: Option<(u64, u64)>,
    /// Lets processes of pods with a network of their own use ports below 1024 and ping without
    /// a capability.
    pub unprivileged_ports: bool,
}

impl Default for Defaults {
    /// A machine without LSMs where the daemon has every capability there is.
    fn default() -> Self {
        Self {
            hostname: "localhost".to_owned(),
            cgroup_parent: "/aril".to_owned(),
            capabilities: (1 << 41) - 1,
            device_rules: true,
            apparmor: false,
            selinux: false,
            swap: true,
            recursive_read_only: true,
            shm_size_bytes: 64 << 20,
            open_files: None,
            unprivileged_ports: true,
        }
    }
}

/// What the image says about its containers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Image<'a> {
    /// `USER`: empty, `uid`, `name`, or either with `:gid` or `:group`.
    pub user: &'a str,
    /// `ENV`, in order.
    pub env: &'a [(String, String)],
    /// `ENTRYPOINT`.
    pub entrypoint: &'a [String],
    /// `CMD`.
    pub cmd: &'a [String],
    /// `WORKDIR`.
    pub working_dir: &'a str,
    /// `STOPSIGNAL`.
    pub stop_signal: &'a str,
}

/// Host paths made for one container and its pod; all absolute.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// Layer directories, uppermost first.
    pub layers: Vec<String>,
    /// Directory of what the container writes.
    pub upper: String,
    /// overlayfs' scratch directory, beside `upper`.
    pub work: String,
    /// The pod's `/etc/hosts`.
    pub hosts: String,
    /// The pod's `/etc/hostname`.
    pub hostname: String,
    /// The pod's `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// An image that a container has as a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Which of the container's mounts it is.
    pub mount: usize,
    /// The image.
    pub id: Digest,
    /// Its layers' directories, uppermost first, and below them an empty one: overlay wants two.
    pub layers: Vec<String>,
}

/// Finds device nodes of the host: for a node itself; for a directory all nodes below it, however
/// deep, each with its path as seen through the directory asked for. `ENODEV` for anything else.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Result<Vec<HostDevice>, Errno>;

/// One container to be described.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The new container.
    pub id: &'a ContainerId,
    /// As given to RunPodSandbox, already accepted by [`sandbox_plan`].
    pub sandbox: &'a cri::PodSandboxConfig,
    /// As given to CreateContainer.
    pub config: &'a cri::ContainerConfig,
    /// The image's own settings.
    pub image: Image<'a>,
    /// Where its files are.
    pub paths: &'a Paths,
    /// The images of `config.mounts` that name one.
    pub image_volumes: &'a [ImageVolume],
    /// The machine.
    pub defaults: &'a Defaults,
    /// The machine's devices.
    pub devices: Lookup<'a>,
}

impl std::fmt::Debug for Input<'_> {
    /// Leaves out the config, which carries the environment.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("id", &self.id).field("paths", &self.paths).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
