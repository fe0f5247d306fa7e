//! Where the node keeps what: the one place that knows the directory layout.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::id::{ContainerId, SandboxId};
use crate::image::Reference;
use crate::net;

/// All that a node must be told. Validated by `config`; every field has a meaning of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What survives a reboot (`/var/lib/aril`): images, records, writable layers. Absolute.
    pub root: PathBuf,
    /// What a reboot ends (`/run/aril`): the shims' run directories. Absolute.
    pub state: PathBuf,
    /// The `aril-shim` program. Absolute.
    pub shim: PathBuf,
    /// Parent of the cgroups of pods that name none, from the root of each hierarchy ("/aril").
    pub cgroup_parent: String,
    /// The cgroup all shims live in ("/aril-shims").
    pub shim_cgroup: String,
    /// Size of a pod's `/dev/shm`.
    pub shm_size_bytes: u64,
    /// Where registries have their `hosts.toml`. Absolute.
    pub registry_config_dir: PathBuf,
    /// How long a pull may wait for the next byte.
    pub image_pull_progress_timeout: Duration,
    /// Images that no garbage collection may take.
    pub pinned_images: Vec<Reference>,
    /// The limits of open files of every container, soft and hard; `None`: those shims are started with.
    pub open_files: Option<(u64, u64)>,
    /// The network of pods.
    pub network: net::Settings,
}

impl Settings {
    /// Settings with the usual cgroups (`/aril`, `/aril-shims`) and 64 MiB of `/dev/shm` a pod.
    #[must_use]
    pub fn new(root: PathBuf, state: PathBuf, shim: PathBuf) -> Self {
        Self {
            network: net::Settings::new(root.join("network"), state.join("network")),
            root,
            state,
            shim,
            cgroup_parent: "/aril".to_owned(),
            shim_cgroup: "/aril-shims".to_owned(),
            shm_size_bytes: 64 << 20,
            registry_config_dir: PathBuf::from("/etc/aril/certs.d"),
            image_pull_progress_timeout: Duration::from_secs(60),
            pinned_images: Vec::new(),
            open_files: None,
        }
    }

    /// `<root>/pods`: one directory a sandbox.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `<root>/pods/<id>`.
    #[must_use]
    pub fn pod(&self, id: &SandboxId) -> PathBuf {
        self.pods().join(id.as_str())
    }

    /// The sandbox's record.
    #[must_use]
    pub fn sandbox_record(&self, id: &SandboxId) -> PathBuf {
        self.pod(id).join("sandbox.json")
    }

    /// The copy of a container's record that is made with the container, for when the record is damaged.
    #[must_use]
    pub fn container_copy(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("record.json")
    }

    /// Records of the sandbox's containers.
    #[must_use]
    pub fn container_records(&self, id: &SandboxId) -> PathBuf {
        self.pod(id).join("containers")
    }

    /// One container's record.
    #[must_use]
    pub fn container_record(&self, sandbox: &SandboxId, id: &ContainerId) -> PathBuf {
        self.container_records(sandbox).join(format!("{id}.json"))
    }

    /// `hosts`, `hostname` and `resolv.conf` of the pod.
    #[must_use]
    pub fn etc(&self, id: &SandboxId) -> PathBuf {
        self.pod(id).join("etc")
    }

    /// `<root>/containers`: one directory a container.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// `<root>/containers/<id>`: `upper`, `work` and the OCI spec as it was compiled.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// The OCI runtime spec a container was made from.
    #[must_use]
    pub fn container_spec(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("spec.json")
    }

    /// `<state>/pods`.
    #[must_use]
    pub fn runs(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// The run directory of a sandbox's shim: its socket and exit records.
    #[must_use]
    pub fn run(&self, id: &SandboxId) -> PathBuf {
        self.runs().join(id.as_str())
    }

    /// Exit records that the sandbox's shim wrote.
    #[must_use]
    pub fn exits(&self, id: &SandboxId) -> PathBuf {
        self.run(id).join("exits")
    }

    /// A directory that stays empty: the lowest of an overlay that would else have only one.
    #[must_use]
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// Where records go that could not be read.
    #[must_use]
    pub fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// Held by the daemon that owns `root`.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// The name of `path` as text; none if it has none or it is not UTF-8.
pub(super) fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
