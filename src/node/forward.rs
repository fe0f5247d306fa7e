//! Connections into pods.

use std::sync::Arc;

use nix::errno::Errno;
use tokio::net::TcpStream;

use super::Node;
use super::error::NodeError;
use super::record::{ContainerRecord, SandboxRecord};
use crate::net::dial;

impl Node {
    /// Connects to a port of localhost as a sandbox sees it: by IPv4, else by IPv6.
    ///
    /// # Errors
    /// As [`network_namespace`](Self::network_namespace); [`NodeError::Connect`].
    ///
    /// Source: CRI v1 `PortForward`.
    pub async fn connect(&self, sandbox: &str, port: u16) -> Result<TcpStream, Arc<NodeError>> {
        let namespace = self.network_namespace(sandbox).await?;
        dial::localhost(namespace, port).await.map_err(|source| {
            let hint = match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ECONNREFUSED) => "; does anything listen there?",
                _ => "",
            };
            NodeError::Connect { port, sandbox: sandbox.chars().take(12).collect(), hint, source }.into()
        })
    }

    /// A sandbox one can connect into.
    ///
    /// # Errors
    /// [`NodeError::NoSandbox`]; [`NodeError::Refused`] if it is not up.
    pub fn sandbox_up(&self, id: &str) -> Result<Arc<SandboxRecord>, Arc<NodeError>> {
        let sandbox = self.sandbox(id)?;
        if self.index.shim(&sandbox.id).is_none() {
            let (id, state) = (sandbox.id.short().to_owned(), sandbox.state_name());
            return Err(NodeError::Refused { object: "sandbox", id, state, operation: "connect into it" }.into());
        }
        Ok(sandbox)
    }

    /// A container in which something can be run, and to whose streams one can be joined.
    ///
    /// # Errors
    /// [`NodeError::NoContainer`]; [`NodeError::Refused`] if it does not run.
    pub fn container_up(&self, id: &str, operation: &'static str) -> Result<Arc<ContainerRecord>, Arc<NodeError>> {
        self.running(id, operation).map(|(container, _)| container)
    }
}
