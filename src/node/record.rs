//! What is kept on disk of each sandbox and container: small JSON files a person can read.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::state::{ContainerState, Nanos, SandboxState};
use super::timeline::Operation;
use crate::api::cri;
use crate::id::{ContainerId, Digest, SandboxId};
use crate::net;

/// The form of the records written here. A record of a later form is left alone.
pub const VERSION: u32 = 1;

/// What cannot be asked how it is.
const UNREACHABLE: &str = "out of reach, as its shim does not answer,";

/// A sandbox as it is on disk, in memory and in every list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Its id.
    pub id: SandboxId,
    /// Where it is in its life.
    pub state: SandboxState,
    /// When RunPodSandbox was accepted; never 0.
    pub created_at: Nanos,
    /// As asked for.
    pub runtime_handler: String,
    /// Set by UpdatePodSandboxResources; informative, the pod's cgroup is kubelet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<cri::LinuxContainerResources>,
    /// As `overhead`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<cri::LinuxContainerResources>,
    /// How it is connected; `None` on the host's network, with loopback alone, and once it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<net::Attachment>,
    /// What was done less well than asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was done to it, and what of that took how long.
    #[serde(rename = "operations", default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Operation>,
    /// Its shim has not answered since the daemon started: `state` is what was known last. Never on disk.
    #[serde(skip)]
    pub unreachable: bool,
    /// The request, byte for byte.
    #[serde(with = "shared")]
    pub config: Arc<cri::PodSandboxConfig>,
}

impl SandboxRecord {
    /// What may exist once: name, uid, namespace and attempt.
    #[must_use]
    pub fn name(&self) -> String {
        sandbox_name(&self.config)
    }

    /// Its state in one word for people.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        let stands = matches!(self.state, SandboxState::Ready | SandboxState::Stopping);
        if self.unreachable && stands { UNREACHABLE } else { self.state.name() }
    }
}

/// What may exist once of sandboxes: name, uid, namespace and attempt.
#[must_use]
pub fn sandbox_name(config: &cri::PodSandboxConfig) -> String {
    let m = config.metadata.clone().unwrap_or_default();
    // None of the first three may contain a slash in Kubernetes; elsewhere a clash is only refused.
    format!("{}/{}/{}/{}", m.name, m.uid, m.namespace, m.attempt)
}

/// A container as it is on disk, in memory and in every list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Its id.
    pub id: ContainerId,
    /// The sandbox it lives in.
    pub sandbox: SandboxId,
    /// Where it is in its life.
    pub state: ContainerState,
    /// When CreateContainer was accepted; never 0.
    pub created_at: Nanos,
    /// The image's config digest.
    pub image_id: Digest,
    /// The image by a name a person would know it by.
    pub image_name: String,
    /// Keys of the image's layers, uppermost first: they must stay while the container is.
    pub layers: Vec<String>,
    /// Images it has as volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<ImageVolume>,
    /// Absolute; empty: output is discarded.
    pub log_path: String,
    /// Sent by a plain stop; a Linux signal number.
    pub stop_signal: i32,
    /// Who the first process became; known once it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Limits in force: those asked for at creation, and updates since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<cri::LinuxContainerResources>,
    /// What was done less well than asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was done to it, and what of that took how long.
    #[serde(rename = "operations", default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Operation>,
    /// As [`SandboxRecord::unreachable`].
    #[serde(skip)]
    pub unreachable: bool,
    /// The request, byte for byte.
    #[serde(with = "shared")]
    pub config: Arc<cri::ContainerConfig>,
}

impl ContainerRecord {
    /// What may exist once in a sandbox: name and attempt.
    #[must_use]
    pub fn name(&self) -> (&str, u32) {
        container_name(&self.config)
    }

    /// Its state in one word for people.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        if self.is_unknown() { UNREACHABLE } else { self.state.name() }
    }

    /// Whether it may have come to another state meanwhile.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.unreachable && self.state.is_alive()
    }

    /// All layers that must stay while the container is.
    #[must_use]
    pub fn held_layers(&self) -> Vec<String> {
        let volumes = self.image_volumes.iter().flat_map(|v| &v.layers);
        self.layers.iter().chain(volumes).cloned().collect()
    }
}

/// An image as a volume of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Which of the config's mounts it is.
    pub mount: usize,
    /// The image's config digest.
    pub image_id: Digest,
    /// Keys of the image's layers, uppermost first.
    pub layers: Vec<String>,
}

/// What may exist once of a sandbox's containers: name and attempt.
#[must_use]
pub fn container_name(config: &cri::ContainerConfig) -> (&str, u32) {
    config.metadata.as_ref().map_or(("", 0), |m| (m.name.as_str(), m.attempt))
}

/// Numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All groups, with `gid`.
    pub groups: Vec<u32>,
}

/// A request is shared by all that look at it and written like the thing itself.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, s: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, s)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(d).map(Arc::new)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A sandbox id out of one digit.
    pub fn sandbox_id(digit: char) -> SandboxId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    /// A container id out of one digit.
    pub fn container_id(digit: char) -> ContainerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    /// A ready sandbox.
    pub fn sandbox(digit: char) -> SandboxRecord {
        let metadata = cri::PodSandboxMetadata {
            name: format!("pod-{digit}"),
            uid: "u".into(),
            namespace: "n".into(),
            attempt: 0,
        };
        SandboxRecord {
            version: VERSION,
            id: sandbox_id(digit),
            state: SandboxState::Ready,
            created_at: 1,
            runtime_handler: String::new(),
            overhead: None,
            resources: None,
            network: None,
            warnings: Vec::new(),
            timeline: Vec::new(),
            unreachable: false,
            config: Arc::new(cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }),
        }
    }

    /// A created container in [`sandbox`].
    pub fn container(sandbox: char, digit: char) -> ContainerRecord {
        let metadata = cri::ContainerMetadata { name: format!("container-{digit}"), attempt: 0 };
        ContainerRecord {
            version: VERSION,
            id: container_id(digit),
            sandbox: sandbox_id(sandbox),
            state: ContainerState::Created { pid: 7 },
            created_at: 1,
            image_id: Digest::sha256([1; 32]),
            image_name: "docker.io/library/busybox:latest".into(),
            layers: vec!["l1".into()],
            image_volumes: Vec::new(),
            log_path: String::new(),
            stop_signal: 15,
            user: None,
            resources: None,
            warnings: Vec::new(),
            timeline: Vec::new(),
            unreachable: false,
            config: Arc::new(cri::ContainerConfig { metadata: Some(metadata), ..Default::default() }),
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        let mut record = container('a', 'c');
        Arc::make_mut(&mut record.config).envs = vec![cri::KeyValue { key: "K".into(), value: vec![0, 255] }];
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<ContainerRecord>(&text).unwrap(), record);

        let record = sandbox('a');
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<SandboxRecord>(&text).unwrap(), record);
    }

    #[test]
    fn names_tell_attempts_apart() {
        let record = sandbox('a');
        let mut config = (*record.config).clone();
        assert_eq!(record.name(), sandbox_name(&config));
        config.metadata.as_mut().unwrap().attempt = 1;
        assert_ne!(record.name(), sandbox_name(&config));
    }
}
