//! What `cri` asks of the node, in the node's own terms.
//!
//! Every id may be the beginning of one, if it fits one object only. Dropping any of these futures
//! cancels nothing but the waiting; ExecSync is the exception, see [`super::exec`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::error::NodeError;
use super::events::EventReader;
use super::index::Reservation;
use super::pod::{Command, Pod, Reply, Wanted};
use super::record::{ContainerRecord, SandboxRecord, VERSION, sandbox_name};
use super::state::SandboxState;
use super::timeline::Recorder;
use super::{Node, now, spec};
use crate::api::cri;
use crate::id::{ContainerId, SandboxId};
use crate::wire::client::Shim;

/// Handlers there are: the default has no name, or the runtime's.
const HANDLERS: [&str; 2] = ["", "aril"];

/// How often a name is asked for that others keep taking and giving back.
const ROUNDS: usize = 100;

/// Several callers may get the same error.
type Result<T> = std::result::Result<T, Arc<NodeError>>;

impl Node {
    /// Makes a sandbox, or joins the making of it, or finds it made.
    ///
    /// # Errors
    /// If the config is refused, the name is another sandbox's, or the kernel refuses; then nothing is left of it.
    ///
    /// Source: CRI v1 `RunPodSandbox`.
    pub async fn run_sandbox(self: &Arc<Self>, config: cri::PodSandboxConfig, handler: &str) -> Result<SandboxId> {
        if !HANDLERS.contains(&handler) {
            let problem = format!("no runtime handler is called {handler:?}: leave it empty, or \"aril\"");
            return Err(NodeError::invalid("runtime_handler", problem).into());
        }
        let mut recorder = Recorder::begin("RunPodSandbox");
        let id = self.new_sandbox_id()?;
        let plan = spec::sandbox_plan(&id, &config, &self.defaults).map_err(NodeError::from)?;
        let network = spec::network(&id, &config, &self.defaults).map_err(NodeError::from)?;
        let name = sandbox_name(&config);
        recorder.lap("plan");
        // Each round means that a sandbox of this name went away meanwhile.
        for _ in 0..ROUNDS {
            let (reply, answer) = oneshot::channel();
            match self.index.reserve(&name, &id) {
                Reservation::New(commands) => {
                    let record = SandboxRecord {
                        version: VERSION,
                        id,
                        state: SandboxState::Creating,
                        created_at: now(),
                        runtime_handler: handler.to_owned(),
                        overhead: None,
                        resources: None,
                        network: None,
                        warnings: Vec::new(),
                        timeline: Vec::new(),
                        unreachable: false,
                        config: Arc::new(config),
                    };
                    let pod = Pod::new(Arc::clone(self), record, Wanted { plan, network, recorder }, reply);
                    tokio::spawn(pod.run(commands));
                    return answer.await.unwrap_or_else(|_| Err(gone("sandbox", &name)));
                }
                Reservation::Taken(commands) => {
                    let handler = handler.to_owned();
                    commands.send(Command::Run { config: Box::new(config.clone()), handler, reply }).ok();
                    if let Ok(result) = answer.await {
                        return result;
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
        Err(gone("sandbox", &name))
    }

    /// Ends all that runs in a sandbox. An unknown one is stopped.
    ///
    /// # Errors
    /// If a process of it cannot be killed.
    ///
    /// Source: CRI v1 `StopPodSandbox`.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let Some(sandbox) = self.index.sandbox(id)? else { return Ok(()) };
        self.ask(&sandbox.id, |reply| Command::Stop { reply }).await.unwrap_or(Ok(()))
    }

    /// Stops a sandbox and removes all of it. An unknown one is removed.
    ///
    /// # Errors
    /// If a process of it cannot be killed or a file not removed; it is then still there.
    ///
    /// Source: CRI v1 `RemovePodSandbox`.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let Some(sandbox) = self.index.sandbox(id)? else { return Ok(()) };
        self.ask(&sandbox.id, |reply| Command::Remove { reply }).await.unwrap_or(Ok(()))
    }

    /// Keeps the resources of a pod for whoever asks; its cgroup is kubelet's.
    ///
    /// # Errors
    /// [`NodeError::NoSandbox`], or the record cannot be written.
    ///
    /// Source: CRI v1 `UpdatePodSandboxResources`.
    pub async fn update_sandbox(&self, request: cri::UpdatePodSandboxResourcesRequest) -> Result<()> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let request = Box::new(request);
        let answer = self.ask(&sandbox.id, |reply| Command::Update { request, reply }).await;
        answer.unwrap_or_else(|| Err(gone("sandbox", sandbox.id.short())))
    }

    /// One sandbox.
    ///
    /// # Errors
    /// [`NodeError::NoSandbox`], [`NodeError::Ambiguous`].
    pub fn sandbox(&self, id: &str) -> Result<Arc<SandboxRecord>> {
        Ok(self.index.sandbox(id)?.ok_or_else(|| NodeError::NoSandbox(id.to_owned()))?)
    }

    /// Every sandbox, by id.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<SandboxRecord>> {
        self.index.sandboxes()
    }

    /// The process that serves a sandbox while it is up.
    #[must_use]
    pub fn shim_pid(&self, id: &SandboxId) -> Option<i32> {
        self.index.shim(id).map(|shim| shim.pid())
    }

    /// Makes a container in a ready sandbox, or joins the making of it, or finds it made.
    ///
    /// # Errors
    /// If the config is refused, the image is not here, the name is another container's, or the kernel refuses; then
    /// nothing is left of it.
    ///
    /// Source: CRI v1 `CreateContainer`.
    pub async fn create_container(&self, sandbox: &str, config: cri::ContainerConfig) -> Result<ContainerId> {
        let sandbox = self.sandbox(sandbox)?;
        let config = Box::new(config);
        let answer = self.ask(&sandbox.id, |reply| Command::CreateContainer { config, reply }).await;
        answer.unwrap_or_else(|| Err(gone("sandbox", sandbox.id.short())))
    }

    /// Starts a created container; returns once its program runs.
    ///
    /// # Errors
    /// If it is not created, or its program cannot be executed: it has exited then.
    ///
    /// Source: CRI v1 `StartContainer`.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let id = container.id.clone();
        let answer = self.ask(&container.sandbox, |reply| Command::StartContainer { id, reply }).await;
        answer.unwrap_or_else(|| Err(gone("container", container.id.short())))
    }

    /// Stops a container: its stop signal, up to `grace`, then SIGKILL.
    ///
    /// Returns once its end is recorded. Zero `grace` kills at once. One that does not run, or that nobody knows, is
    /// stopped. A repeated call sends no second signal; it can shorten the grace.
    ///
    /// # Errors
    /// If it cannot be killed.
    ///
    /// Source: CRI v1 `StopContainer`.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let Some(container) = self.index.container(id)? else { return Ok(()) };
        let id = container.id.clone();
        let stop = self.ask(&container.sandbox, |reply| Command::StopContainer { id, grace, reply });
        stop.await.unwrap_or(Ok(()))
    }

    /// Removes a container, killing it first. An unknown one is removed. Its log is not touched.
    ///
    /// # Errors
    /// If it cannot be killed or a file not removed; it is then still there.
    ///
    /// Source: CRI v1 `RemoveContainer`.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let Some(container) = self.index.container(id)? else { return Ok(()) };
        let id = container.id.clone();
        let remove = self.ask(&container.sandbox, |reply| Command::RemoveContainer { id, reply });
        remove.await.unwrap_or(Ok(()))
    }

    /// Changes the limits of a container; what `resources` leaves out stays.
    ///
    /// # Errors
    /// If a limit is malformed or the kernel refuses it: the old ones hold then.
    ///
    /// Source: CRI v1 `UpdateContainerResources`.
    pub async fn update_container(&self, id: &str, resources: cri::LinuxContainerResources) -> Result<()> {
        let container = self.container(id)?;
        let (id, resources) = (container.id.clone(), Box::new(resources));
        let update = self.ask(&container.sandbox, |reply| Command::UpdateContainer { id, resources, reply });
        update.await.unwrap_or_else(|| Err(gone("container", container.id.short())))
    }

    /// Has a running container's log opened anew, after somebody renamed it.
    ///
    /// # Errors
    /// If it does not run, or the file cannot be opened: the old one stays in use then.
    ///
    /// Source: CRI v1 `ReopenContainerLog`.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let (container, shim) = self.running(id, "reopen its log")?;
        let reopened = shim.reopen_log(container.id.as_str()).await;
        reopened.map_err(|e| NodeError::shim("reopen the log of container", container.id.short())(e).into())
    }

    /// One container.
    ///
    /// # Errors
    /// [`NodeError::NoContainer`], [`NodeError::Ambiguous`].
    pub fn container(&self, id: &str) -> Result<Arc<ContainerRecord>> {
        Ok(self.index.container(id)?.ok_or_else(|| NodeError::NoContainer(id.to_owned()))?)
    }

    /// Every container, by id.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<ContainerRecord>> {
        self.index.containers()
    }

    /// Every container of a sandbox, by id.
    #[must_use]
    pub fn containers_in(&self, sandbox: &SandboxId) -> Vec<Arc<ContainerRecord>> {
        self.index.containers_in(sandbox)
    }

    /// Reads what happens to pods and containers, from what is kept of it on.
    ///
    /// Source: CRI v1 `GetContainerEvents`.
    #[must_use]
    pub fn read_events(&self) -> EventReader {
        self.index.read_events()
    }

    /// The OCI spec a container was made from, as JSON; none if its file is gone.
    #[must_use]
    pub fn oci_spec(&self, id: &ContainerId) -> Option<String> {
        std::fs::read_to_string(self.settings.container_spec(id)).ok()
    }

    /// A running container and the shim to talk to about it.
    pub(super) fn running(&self, id: &str, operation: &'static str) -> Result<(Arc<ContainerRecord>, Shim)> {
        let container = self.container(id)?;
        let shim = self.index.shim(&container.sandbox);
        match shim.filter(|_| container.state.is_running()) {
            Some(shim) => Ok((container, shim)),
            None => {
                let (id, state) = (container.id.short().to_owned(), container.state_name());
                Err(NodeError::Refused { object: "container", id, state, operation }.into())
            }
        }
    }

    /// A container whose first process is there, if only held before its program, and the shim to talk to about it.
    pub(super) fn alive(&self, id: &str, operation: &'static str) -> Result<(Arc<ContainerRecord>, Shim)> {
        let container = self.container(id)?;
        match self.index.shim(&container.sandbox) {
            Some(shim) if matches!(container.state, super::state::ContainerState::Created { .. }) => {
                Ok((container, shim))
            }
            _ => self.running(id, operation),
        }
    }

    /// Has a pod's task do something; none if the pod went away meanwhile.
    async fn ask<T>(&self, sandbox: &SandboxId, command: impl FnOnce(Reply<T>) -> Command) -> Option<Result<T>> {
        let commands: mpsc::UnboundedSender<Command> = self.index.commands(sandbox)?;
        let (reply, answer) = oneshot::channel();
        commands.send(command(reply)).ok()?;
        answer.await.ok()
    }
}

fn gone(object: &'static str, id: &str) -> Arc<NodeError> {
    Arc::new(NodeError::Gone { object, id: id.to_owned() })
}
