//! The end of a pod: its processes, its cgroups, its files.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::KILL_DEADLINE;
use crate::id::{ContainerId, SandboxId};
use crate::node::Node;
use crate::node::error::{NodeError, STUCK};
use crate::node::state::ContainerEvent;
use crate::wire::client::{Events, Shim, WireError};
use crate::wire::pb;

/// How long a shim that said goodbye may take to be gone.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// Exit records found on disk, by container.
pub(in crate::node) type Exits = HashMap<ContainerId, ContainerEvent>;

/// A call to a shim with a deadline.
pub(super) async fn limited<T>(
    step: &'static str,
    object: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, WireError>>,
) -> Result<T, NodeError> {
    match timeout(limit, call).await {
        Ok(result) => result.map_err(NodeError::shim(step, object)),
        Err(_) => Err(NodeError::Deadline { step, object: object.to_owned(), limit, hint: STUCK }),
    }
}

/// Waits until a shim that was told to end has done so.
pub(super) async fn wait_for_end(mut events: Events) {
    let end = async { while events.recv().await.is_some() {} };
    if timeout(GOODBYE_DEADLINE, end).await.is_err() {
        warn!("a shim that was told to end is still there");
    }
}

/// Ends all that runs in the pod. Returns how its containers ended.
pub(in crate::node) async fn shut_down(node: &Node, id: &SandboxId, shim: Option<&Shim>) -> Result<Exits, NodeError> {
    let found = match shim {
        Some(shim) => Some(shim.clone()),
        // There may be one nobody is connected to; the cleanup would leave its pod alone.
        None => Shim::connect(&node.settings.run(id)).await.ok().map(|(shim, _)| shim),
    };
    let gone = match found {
        None => true,
        Some(shim) => {
            let request = pb::request::Body::Shutdown(pb::Shutdown {});
            match timeout(KILL_DEADLINE, shim.call(request, Vec::new())).await {
                Ok(Ok(_)) => false,
                Ok(Err(WireError::Gone)) => true,
                Ok(Err(e)) => return Err(NodeError::shim("stop sandbox", id.short())(e)),
                Err(_) => {
                    let object = id.short().to_owned();
                    return Err(NodeError::Deadline {
                        step: "stop sandbox",
                        object,
                        limit: KILL_DEADLINE,
                        hint: STUCK,
                    });
                }
            }
        }
    };
    if gone {
        clean_up(node, id).await?;
    }
    Ok(read_exits(node, id))
}

/// What is to become of a sandbox's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum NetworkIs {
    /// Not there.
    Gone,
    /// Perhaps there: taken away on the way.
    There,
    /// Perhaps there, and nobody should wait until it is taken away.
    Later,
}

/// Removes all of a sandbox, whatever there is of it: processes, cgroups, network, files, its record last.
/// Repeating it is fine.
pub(in crate::node) async fn tear_down(
    node: &Arc<Node>,
    id: &SandboxId,
    shim: Option<&Shim>,
    network: NetworkIs,
) -> Result<(), NodeError> {
    if node.settings.run(id).exists() {
        shut_down(node, id, shim).await?;
    }
    match network {
        NetworkIs::Gone => {}
        NetworkIs::There => node.network.teardown(id).await,
        NetworkIs::Later => node.network.abandon(id),
    }
    let (node, id) = (Arc::clone(node), id.clone());
    let erase = tokio::task::spawn_blocking(move || node.store.erase_sandbox(&id).map_err(NodeError::from));
    erase.await.unwrap_or_else(|e| {
        let source = io::Error::other(e);
        Err(NodeError::Io { step: "remove", path: "sandbox".into(), source })
    })
}

/// Has the cgroups of a pod without a shim killed and removed.
pub(in crate::node) async fn clean_up(node: &Node, id: &SandboxId) -> Result<(), NodeError> {
    let run_dir = node.settings.run(id);
    if !run_dir.exists() {
        return Ok(());
    }
    let program = &node.settings.shim;
    let mut command = tokio::process::Command::new(program);
    command.arg("cleanup").arg(&run_dir).env_clear().current_dir("/").kill_on_drop(true);
    command.stdin(std::process::Stdio::null());
    let Ok(output) = timeout(KILL_DEADLINE, command.output()).await else {
        let object = id.short().to_owned();
        return Err(NodeError::Deadline { step: "clean up sandbox", object, limit: KILL_DEADLINE, hint: STUCK });
    };
    let output = output.map_err(NodeError::io("run", program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let source = io::Error::other(format!("{}: {}", output.status, said.trim()));
    Err(NodeError::Io { step: "clean up", path: run_dir, source })
}

/// The exit records the shim left, as events.
pub(in crate::node) fn read_exits(node: &Node, id: &SandboxId) -> Exits {
    #[derive(serde::Deserialize)]
    struct Record {
        code: i32,
        finished_at: i64,
        #[serde(default)]
        oom_killed: bool,
    }
    let Ok(list) = std::fs::read_dir(node.settings.exits(id)) else { return Exits::new() };
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let container = name.strip_suffix(".json")?.parse::<ContainerId>().ok()?;
        let bytes = std::fs::read(entry.path()).ok()?;
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(Record { code, finished_at: at, oom_killed }) => {
                Some((container, ContainerEvent::Exited { code, at, oom_killed }))
            }
            Err(e) => {
                warn!(sandbox = %id, %container, error = %e, "exit record not readable");
                None
            }
        }
    };
    list.flatten().filter_map(read).collect()
}
