//! The sandbox's own life: set up, stop, loss, removal.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::{Doing, Done, KILL_DEADLINE, Pod, Reply, answer, answer_all, chain};
use crate::api::cri;
use crate::disk;
use crate::id::{ContainerId, SandboxId};
use crate::node::error::{NodeError, STUCK};
use crate::node::record::SandboxRecord;
use crate::node::state::{ContainerEvent, SandboxEvent, SandboxState};
use crate::node::{Node, etc, now};
use crate::plan;
use crate::wire::client::{Events, Shim, WireError};
use crate::wire::pb;

/// How long the kernel work of a sandbox may take.
const SET_UP_DEADLINE: Duration = Duration::from_secs(60);
/// How long a shim that said goodbye may take to be gone.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// Exit records found on disk, by container.
pub(in crate::node) type Exits = HashMap<ContainerId, ContainerEvent>;

/// A sandbox that stands.
#[derive(Debug)]
pub(super) struct SetUp {
    record: SandboxRecord,
    shim: Shim,
    events: Events,
}

/// A sandbox that could not be made.
#[derive(Debug)]
pub(super) struct SetUpFailed {
    error: NodeError,
    /// What of it could not be undone.
    left: Option<NodeError>,
}

impl Pod {
    pub(super) fn begin_set_up(&mut self, plan: plan::Sandbox) {
        self.doing = Doing::SettingUp;
        let (node, record) = (Arc::clone(&self.node), (*self.record).clone());
        self.ops.push(async move { Done::SetUp(set_up(node, record, &plan).await) });
    }

    pub(super) fn on_set_up(&mut self, result: Result<SetUp, SetUpFailed>) {
        self.doing = Doing::Nothing;
        match result {
            Ok(SetUp { record, shim, events }) => {
                self.record = Arc::new(record);
                self.shim = Some(shim);
                self.events = Some(events);
                self.publish();
                info!(sandbox = %self.record.id, "sandbox ready");
                answer_all(&mut self.runners, Ok(self.record.id.clone()));
            }
            Err(SetUpFailed { error, left }) => {
                let error = Arc::new(error);
                match left {
                    None => self.finish(),
                    Some(left) => {
                        // Shown as not ready, so that whoever asked for it can remove it.
                        warn!(sandbox = %self.record.id, error = %chain(&left), "half-made sandbox not undone");
                        self.transition(&SandboxEvent::Lost { at: now(), message: chain(&*error) });
                    }
                }
                answer_all(&mut self.runners, Err(&error));
            }
        }
    }

    /// A RunPodSandbox with the name of this one.
    pub(super) fn join_run(&mut self, config: &cri::PodSandboxConfig, handler: &str, reply: Reply<SandboxId>) {
        let exists = |difference| NodeError::Exists {
            object: "sandbox",
            name: self.record.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
            id: self.record.id.short().to_owned(),
            difference,
        };
        if *self.record.config != *config || self.record.runtime_handler != handler {
            return answer(reply, Err(exists("and its config is another one")));
        }
        match self.record.state {
            SandboxState::Ready => answer(reply, Ok(self.record.id.clone())),
            SandboxState::Creating => self.runners.push(reply),
            _ => answer(reply, Err(exists("but is stopped"))),
        }
    }

    /// Goes on with what a previous daemon had begun.
    pub(super) fn resume(&mut self) {
        match self.record.state {
            SandboxState::Stopping => self.begin_shut_down(),
            SandboxState::Removing => self.begin_erase(),
            _ => self.resume_removals(),
        }
    }

    pub(super) fn stop(&mut self, reply: Reply<()>) {
        match self.record.state {
            SandboxState::NotReady { .. } | SandboxState::Removing => answer(reply, Ok(())),
            SandboxState::Creating => answer(reply, Err(self.refused("stop it"))),
            SandboxState::Ready | SandboxState::Stopping => {
                self.stoppers.push(reply);
                self.begin_shut_down();
            }
        }
    }

    pub(super) fn begin_shut_down(&mut self) {
        let stands = matches!(self.record.state, SandboxState::Ready | SandboxState::Stopping);
        if self.doing != Doing::Nothing || !stands {
            return;
        }
        self.transition(&SandboxEvent::StopRequested);
        self.doing = Doing::ShuttingDown;
        let (node, id, shim) = (Arc::clone(&self.node), self.record.id.clone(), self.shim.clone());
        self.ops.push(async move { Done::ShutDown(shut_down(&node, &id, shim.as_ref()).await) });
    }

    pub(super) fn on_shut_down(&mut self, result: Result<Exits, NodeError>) {
        self.doing = Doing::Nothing;
        match result {
            Ok(exits) => {
                let killed = |_: &ContainerId| ContainerEvent::Exited { code: 137, at: now(), oom_killed: false };
                self.end_containers(&exits, killed);
                self.transition(&SandboxEvent::Stopped { at: now() });
                self.erase_run_dir();
                info!(sandbox = %self.record.id, "sandbox stopped");
                answer_all(&mut self.stoppers, Ok(()));
                if !self.removers.is_empty() {
                    self.begin_erase();
                }
            }
            Err(e) => {
                let e = Arc::new(e);
                answer_all(&mut self.stoppers, Err(&e));
                answer_all(&mut self.removers, Err(&e));
            }
        }
    }

    pub(super) fn on_shim_gone(&mut self) {
        let expected = matches!(self.record.state, SandboxState::NotReady { .. } | SandboxState::Removing);
        self.shim = None;
        if expected || self.doing != Doing::Nothing {
            return;
        }
        error!(sandbox = %self.record.id, "the shim died, killing what is left of the pod");
        self.doing = Doing::Burying;
        // From now on nobody gets to talk to it.
        self.node.index.publish_sandbox(Arc::clone(&self.record), None);
        let (node, id) = (Arc::clone(&self.node), self.record.id.clone());
        self.ops.push(async move {
            let result = clean_up(&node, &id).await;
            // After the cleanup: whatever it finds running it ends, and may note how.
            Done::Buried(read_exits(&node, &id), result)
        });
    }

    pub(super) fn on_buried(&mut self, exits: &Exits, result: Result<(), NodeError>) {
        self.doing = Doing::Nothing;
        let message = "the pod's shim died".to_owned();
        self.end_containers(exits, |_| ContainerEvent::Lost { at: now(), message: message.clone() });
        self.transition(&SandboxEvent::Lost { at: now(), message: message.clone() });
        match result {
            Ok(()) => self.erase_run_dir(),
            // The run directory stays: the removal of the sandbox tries again.
            Err(e) => error!(sandbox = %self.record.id, error = %chain(&e), "pod with a dead shim not cleaned up"),
        }
        answer_all(&mut self.stoppers, Ok(()));
        if !self.removers.is_empty() {
            self.begin_erase();
        }
    }

    /// Nothing of the pod runs any more: containers without an exit get one.
    fn end_containers(&mut self, exits: &Exits, otherwise: impl Fn(&ContainerId) -> ContainerEvent) {
        let alive: Vec<ContainerId> =
            self.containers.iter().filter(|(_, e)| e.record.state.is_alive()).map(|(id, _)| id.clone()).collect();
        for id in alive {
            let event = exits.get(&id).cloned().unwrap_or_else(|| otherwise(&id));
            self.apply(&id, &event);
        }
    }

    fn erase_run_dir(&self) {
        let dir = self.node.settings.run(&self.record.id);
        if let Err(e) = crate::node::erase::erase(&dir) {
            warn!(sandbox = %self.record.id, error = %e, "run directory {} not removed", dir.display());
        }
    }

    pub(super) fn remove(&mut self, reply: Reply<()>) {
        self.removers.push(reply);
        match self.record.state {
            SandboxState::Ready | SandboxState::Stopping => self.begin_shut_down(),
            SandboxState::NotReady { .. } | SandboxState::Removing => self.begin_erase(),
            // Nobody but recovery knows its id yet, and that one rolls it back.
            SandboxState::Creating => {}
        }
    }

    fn begin_erase(&mut self) {
        if self.doing != Doing::Nothing {
            return;
        }
        self.transition(&SandboxEvent::RemoveRequested);
        self.doing = Doing::Erasing;
        let (node, id) = (Arc::clone(&self.node), self.record.id.clone());
        let (shim, events) = (self.shim.take(), self.events.take());
        self.ops.push(async move {
            if let Some(events) = events {
                wait_for_end(events).await;
            }
            drop(shim);
            Done::Erased(tear_down(&node, &id, None).await)
        });
    }

    pub(super) fn on_erased(&mut self, result: Result<(), NodeError>) {
        self.doing = Doing::Nothing;
        match result {
            Ok(()) => {
                self.finish();
                info!(sandbox = %self.record.id, "sandbox removed");
                answer_all(&mut self.removers, Ok(()));
            }
            Err(e) => answer_all(&mut self.removers, Err(&Arc::new(e))),
        }
    }

    /// UpdatePodSandboxResources: kept for whoever asks; the pod's cgroup is not ours.
    pub(super) fn update(&mut self, request: cri::UpdatePodSandboxResourcesRequest) -> Result<(), NodeError> {
        let mut record = (*self.record).clone();
        record.overhead = request.overhead.or(record.overhead);
        record.resources = request.resources.or(record.resources);
        self.node.store.save_sandbox(&record)?;
        self.record = Arc::new(record);
        self.publish();
        Ok(())
    }

    fn finish(&mut self) {
        self.node.index.withdraw_pod(&self.record.id);
        self.doing = Doing::Finished;
    }
}

async fn wait_for_end(mut events: Events) {
    let end = async { while events.recv().await.is_some() {} };
    if timeout(GOODBYE_DEADLINE, end).await.is_err() {
        warn!("a shim that was told to end is still there");
    }
}

/// Makes a sandbox, or undoes what was made of it.
async fn set_up(node: Arc<Node>, record: SandboxRecord, plan: &plan::Sandbox) -> Result<SetUp, SetUpFailed> {
    let id = record.id.clone();
    let mut shim = None;
    match try_set_up(&node, record, plan, &mut shim).await {
        Ok(done) => Ok(done),
        Err(error) => Err(SetUpFailed { error, left: tear_down(&node, &id, shim.as_ref()).await.err() }),
    }
}

async fn try_set_up(
    node: &Arc<Node>,
    mut record: SandboxRecord,
    plan: &plan::Sandbox,
    undo: &mut Option<Shim>,
) -> Result<SetUp, NodeError> {
    let begun = Instant::now();
    node.store.make_pod(&record.id)?;
    node.store.save_sandbox(&record)?;
    let run_dir = node.settings.run(&record.id);
    disk::private_dir(&run_dir).map_err(NodeError::io("make directory", &run_dir))?;
    let persisted = begun.elapsed();

    // The shim starts while the files are written.
    let write_files = async { write_etc(&node.settings.etc(&record.id), &record.config, plan) };
    let (spawned, files) = tokio::join!(Shim::spawn(&node.spawner, &run_dir), write_files);
    let (shim, events) = spawned.map_err(NodeError::shim("spawn shim", record.id.short()))?;
    *undo = Some(shim.clone());
    files?;
    let spawned = begun.elapsed();

    let request = pb::SetupSandbox {
        sandbox_id: record.id.to_string(),
        run_dir: run_dir.to_string_lossy().into_owned(),
        plan: plan.encode_to_vec(),
        shim_cgroup: node.settings.shim_cgroup.clone(),
        log_directory: record.config.log_directory.clone(),
    };
    let reply = limited("set up sandbox", record.id.short(), SET_UP_DEADLINE, shim.setup_sandbox(request)).await?;
    for warning in &reply.warnings {
        warn!(sandbox = %record.id, "{warning}");
    }
    record.warnings = reply.warnings;
    record.state = SandboxState::Ready;
    node.store.save_sandbox(&record)?;
    debug!(sandbox = %record.id, ?persisted, ?spawned, elapsed = ?begun.elapsed(), "sandbox set up");
    Ok(SetUp { record, shim, events })
}

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

/// Ends all that runs in the pod. Returns how its containers ended.
pub(in crate::node) async fn shut_down(node: &Node, id: &SandboxId, shim: Option<&Shim>) -> Result<Exits, NodeError> {
    let gone = match shim {
        None => true,
        Some(shim) => {
            let request = pb::request::Body::Shutdown(pb::Shutdown {});
            match timeout(KILL_DEADLINE, shim.call(request, Vec::new())).await {
                Ok(Ok(_)) => false,
                Ok(Err(WireError::Gone)) => true,
                Ok(Err(e)) => return Err(NodeError::shim("stop sandbox", id.short())(e)),
                Err(_) => {
                    let object = id.short().to_owned();
                    return Err(NodeError::Deadline { step: "stop", object, limit: KILL_DEADLINE, hint: STUCK });
                }
            }
        }
    };
    if gone {
        clean_up(node, id).await?;
    }
    Ok(read_exits(node, id))
}

/// Removes all of a sandbox, whatever there is of it: processes, cgroups, files, its record last.
/// Repeating it is fine.
pub(in crate::node) async fn tear_down(node: &Arc<Node>, id: &SandboxId, shim: Option<&Shim>) -> Result<(), NodeError> {
    let run_dir = node.settings.run(id);
    if run_dir.exists() {
        // One that cannot be talked to is left to the cleanup.
        let found = match shim {
            Some(shim) => Some(shim.clone()),
            None => Shim::connect(&run_dir).await.ok().map(|(shim, _)| shim),
        };
        shut_down(node, id, found.as_ref()).await?;
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
        return Err(NodeError::Deadline { step: "clean up", object, limit: KILL_DEADLINE, hint: STUCK });
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

/// The files of `/etc` all containers of the pod see.
fn write_etc(dir: &Path, config: &cri::PodSandboxConfig, plan: &plan::Sandbox) -> Result<(), NodeError> {
    let hostname = if plan.hostname.is_empty() { host_name() } else { plan.hostname.clone() };
    // On the host's network the host's names hold.
    let hosts = if plan.new_net { etc::hosts(&hostname).into_bytes() } else { host_file("/etc/hosts")? };
    let resolv = match &config.dns_config {
        Some(dns) if etc::has_dns(Some(dns)) => etc::resolv_conf(dns).into_bytes(),
        _ => host_file("/etc/resolv.conf")?,
    };
    for (name, bytes) in [("hosts", hosts), ("hostname", format!("{hostname}\n").into_bytes()), ("resolv.conf", resolv)]
    {
        let path = dir.join(name);
        write_public(&path, &bytes).map_err(NodeError::io("write", &path))?;
    }
    Ok(())
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

/// A file of the host's; empty if it has none.
fn host_file(path: &str) -> Result<Vec<u8>, NodeError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(NodeError::io("read", path)),
    }
}

/// Readable by whatever user a container runs as, whatever our own umask.
fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(bytes)
}
