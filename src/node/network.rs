//! What is asked about the network of pods.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Node;
use super::error::NodeError;
use crate::net::Network;

/// How long a shim may take to hand a namespace over.
const NAMESPACE_DEADLINE: Duration = Duration::from_secs(10);

impl Node {
    /// The network of the pods.
    #[must_use]
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Keeps the address range that kubelet gives the pods of this node; empty changes nothing.
    ///
    /// # Errors
    /// [`NodeError::Network`] naming the field if it is none.
    ///
    /// Source: CRI v1 `UpdateRuntimeConfig`.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<(), NodeError> {
        self.network.set_pod_cidr(cidr).await.map_err(NodeError::about_network)
    }

    /// Opens the network namespace of a sandbox that is up: the host's, if it has none of its own.
    ///
    /// # Errors
    /// [`NodeError::NoSandbox`]; [`NodeError::Refused`] if it is not up; [`NodeError::Shim`].
    pub async fn network_namespace(&self, id: &str) -> Result<OwnedFd, Arc<NodeError>> {
        let sandbox = self.sandbox(id)?;
        let Some(shim) = self.index.shim(&sandbox.id) else {
            let (id, state) = (sandbox.id.short().to_owned(), sandbox.state_name());
            let operation = "enter its network";
            return Err(NodeError::Refused { object: "sandbox", id, state, operation }.into());
        };
        let step = "open the network namespace of sandbox";
        let object = sandbox.id.short();
        match timeout(NAMESPACE_DEADLINE, shim.network_namespace()).await {
            Ok(result) => result.map_err(|e| NodeError::shim(step, object)(e).into()),
            Err(_) => {
                let (object, limit) = (object.to_owned(), NAMESPACE_DEADLINE);
                Err(NodeError::Deadline { step, object, limit, hint: "" }.into())
            }
        }
    }

    /// Takes away what all pods shared of the network: bridges, tables, books. Returns what is still there, one sentence
    /// each.
    ///
    /// # Errors
    /// [`NodeError::Network`] while a pod is connected.
    pub async fn reset_network(&self) -> Result<Vec<String>, NodeError> {
        let left = self.network.reset().await.map_err(NodeError::about_network)?;
        Ok(left.into_iter().map(|left| format!("{}: {}", left.what, left.reason)).collect())
    }
}
