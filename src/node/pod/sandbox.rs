//! The sandbox's own life: set up, stop, loss, removal.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tracing::{debug, error, info, warn};

use super::ending::{Exits, NetworkIs, clean_up, limited, read_exits, shut_down, tear_down, wait_for_end};
use super::{Doing, Done, Pod, Reply, answer, answer_all, chain};
use crate::api::cri;
use crate::disk;
use crate::id::{ContainerId, SandboxId};
use crate::net;
use crate::node::error::NodeError;
use crate::node::record::SandboxRecord;
use crate::node::state::{ContainerEvent, SandboxEvent, SandboxState};
use crate::node::timeline::{self, Recorder, micros, timed};
use crate::node::{Node, etc, now};
use crate::plan;
use crate::wire::client::{Events, Shim};
use crate::wire::pb;

/// How long the kernel work of a sandbox may take.
const SET_UP_DEADLINE: Duration = Duration::from_secs(60);

/// What a sandbox is made from.
#[derive(Debug)]
pub(in crate::node) struct Wanted {
    pub plan: plan::Sandbox,
    /// `None`: on the host's.
    pub network: Option<net::Request>,
    pub recorder: Recorder,
}

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
    pub(super) fn begin_set_up(&mut self, wanted: Wanted) {
        self.doing = Doing::SettingUp;
        let (node, record) = (Arc::clone(&self.node), (*self.record).clone());
        self.ops.push(async move { Done::SetUp(Box::new(set_up(node, record, wanted).await)) });
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
            SandboxState::Ready if self.record.unreachable => {
                self.look_for_shim();
                self.resume_removals();
            }
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
        let connected = self.record.network.is_some();
        let mut recorder = Recorder::begin("StopPodSandbox");
        self.ops.push(async move {
            let result = shut_down(&node, &id, shim.as_ref()).await;
            recorder.lap("shim");
            // Nothing of the pod runs any more: its address may go to another.
            if connected && result.is_ok() {
                node.network.teardown(&id).await;
                recorder.lap("network");
            }
            Done::ShutDown(result, recorder)
        });
    }

    pub(super) fn on_shut_down(&mut self, result: Result<Exits, NodeError>, recorder: Recorder) {
        self.doing = Doing::Nothing;
        match result {
            Ok(exits) => {
                let killed = |_: &ContainerId| ContainerEvent::Exited { code: 137, at: now(), oom_killed: false };
                self.end_containers(&exits, killed);
                let record = Arc::make_mut(&mut self.record);
                record.network = None;
                timeline::keep(&mut record.timeline, recorder.end());
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
        let connected = self.record.network.is_some();
        self.ops.push(async move {
            let result = clean_up(&node, &id).await;
            if connected {
                node.network.teardown(&id).await;
            }
            // After the cleanup: whatever it finds running it ends, and may note how.
            Done::Buried(read_exits(&node, &id), result)
        });
    }

    pub(super) fn on_buried(&mut self, exits: &Exits, result: Result<(), NodeError>) {
        self.doing = Doing::Nothing;
        let message = "the pod's shim died".to_owned();
        self.end_containers(exits, |_| ContainerEvent::Lost { at: now(), message: message.clone() });
        Arc::make_mut(&mut self.record).network = None;
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
        // The record of one that was never ready names no network, and there may be one all the same.
        let connected = self.record.network.is_some() || self.node.network.is_connected(&self.record.id);
        let network = if connected { NetworkIs::There } else { NetworkIs::Gone };
        self.ops.push(async move {
            if let Some(events) = events {
                wait_for_end(events).await;
            }
            drop(shim);
            Done::Erased(tear_down(&node, &id, None, network).await)
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

/// Makes a sandbox, or undoes what was made of it.
async fn set_up(node: Arc<Node>, record: SandboxRecord, wanted: Wanted) -> Result<SetUp, SetUpFailed> {
    let id = record.id.clone();
    let network = if wanted.network.is_some() { NetworkIs::There } else { NetworkIs::Gone };
    let mut shim = None;
    match try_set_up(&node, record, wanted, &mut shim).await {
        Ok(done) => Ok(done),
        Err(error) => Err(SetUpFailed { error, left: tear_down(&node, &id, shim.as_ref(), network).await.err() }),
    }
}

async fn try_set_up(
    node: &Arc<Node>,
    mut record: SandboxRecord,
    wanted: Wanted,
    undo: &mut Option<Shim>,
) -> Result<SetUp, NodeError> {
    let Wanted { plan, network, mut recorder } = wanted;
    node.store.make_pod(&record.id)?;
    node.store.save_sandbox(&record)?;
    let run_dir = node.settings.run(&record.id);
    disk::private_dir(&run_dir).map_err(NodeError::io("make directory", &run_dir))?;
    recorder.lap("record");

    // The shim starts while the pod is connected.
    let connected = network.is_some();
    let connect = timed(connect(node, network));
    let ((network, connecting), (spawned, spawning)) =
        tokio::join!(connect, timed(Shim::spawn(&node.spawner, &run_dir)));
    let spawned = spawned.map_err(NodeError::shim("spawn the shim of sandbox", record.id.short()));
    *undo = spawned.as_ref().ok().map(|(shim, _)| shim.clone());
    let network = network.map_err(NodeError::network(record.id.short()))?;
    let (shim, events) = spawned?;
    if connected {
        recorder.span("network", connecting);
        recorder.parts("network", network.steps.iter().map(|(name, elapsed)| (*name, micros(*elapsed))));
    }
    recorder.span("shim", spawning);

    let request = pb::SetupSandbox {
        sandbox_id: record.id.to_string(),
        run_dir: run_dir.to_string_lossy().into_owned(),
        plan: plan.encode_to_vec(),
        shim_cgroup: node.settings.shim_cgroup.clone(),
        log_directory: record.config.log_directory.clone(),
        network_given: false,
    };
    let net::SetUp { namespace, attachment, warnings, steps: _ } = network;
    let set_up = shim.setup_sandbox(request, namespace);
    // The files are written while the shim is at work.
    let write_files = async { etc::write(&node.settings.etc(&record.id), &record.config, &plan, attachment.as_ref()) };
    let set_up = limited("set up sandbox", record.id.short(), SET_UP_DEADLINE, set_up);
    let ((reply, setting_up), (files, writing)) = tokio::join!(timed(set_up), timed(write_files));
    recorder.span("sandbox", setting_up);
    recorder.span("files", writing);
    record.warnings = warnings;
    record.warnings.extend(reply?.warnings);
    record.warnings.extend(files?);
    for warning in &record.warnings {
        // What a machine cannot do it cannot do for any pod: said once, and kept in every record.
        if node.is_new_warning(warning) {
            warn!(sandbox = %record.id, "{warning}");
        }
    }
    record.network = attachment;
    record.state = SandboxState::Ready;
    let operation = recorder.end();
    debug!(sandbox = %record.id, elapsed_us = operation.elapsed_us, steps = ?operation.steps, "sandbox set up");
    timeline::keep(&mut record.timeline, operation);
    node.store.save_sandbox(&record)?;
    Ok(SetUp { record, shim, events })
}

/// Makes the network that is asked for, if one is.
async fn connect(node: &Node, request: Option<net::Request>) -> Result<net::SetUp, net::NetError> {
    match request {
        Some(request) => node.network.setup(request).await,
        None => Ok(net::SetUp { namespace: None, attachment: None, warnings: Vec::new(), steps: Vec::new() }),
    }
}
