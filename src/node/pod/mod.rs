//! One pod: the task that owns a sandbox and its containers.
//!
//! The task waits for four things: commands, what the shim reports, operations of its own that
//! end, and deadlines. It never waits inside any of them, so a container that will not stop delays
//! nothing else in its pod. Each change is persisted, acted upon, then published; lists read what
//! was published and never ask the task. A caller that goes away changes nothing: what it asked
//! for is finished or undone here.

mod container;
mod create;
mod ending;
mod ops;
mod reunion;
mod sandbox;
mod stop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, warn};

use self::container::{Entry, Removed, Started, Updated};
use self::create::Creation;
use self::ending::Exits;
use self::ops::Ops;
use self::sandbox::SetUp;
use super::Node;
use super::error::NodeError;
use super::record::SandboxRecord;
use super::recover::Found;
use super::state::SandboxEvent;
use super::timeline::Recorder;
use crate::api::cri;
use crate::id::{ContainerId, SandboxId};
use crate::wire::client::{Events, Shim};
use crate::wire::pb;

pub(super) use self::container::Entry as ContainerEntry;
pub(super) use self::ending::{NetworkIs, clean_up, read_exits, shut_down, tear_down};
pub(super) use self::sandbox::Wanted;

/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// Where an answer goes. Several callers may get the same error.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Arc<NodeError>>>;

/// What a pod's task is asked for.
#[derive(Debug)]
pub(super) enum Command {
    Run { config: Box<cri::PodSandboxConfig>, handler: String, reply: Reply<SandboxId> },
    Stop { reply: Reply<()> },
    Remove { reply: Reply<()> },
    Update { request: Box<cri::UpdatePodSandboxResourcesRequest>, reply: Reply<()> },
    CreateContainer { config: Box<cri::ContainerConfig>, reply: Reply<ContainerId> },
    StartContainer { id: ContainerId, reply: Reply<()> },
    StopContainer { id: ContainerId, grace: Duration, reply: Reply<()> },
    RemoveContainer { id: ContainerId, reply: Reply<()> },
    UpdateContainer { id: ContainerId, resources: Box<cri::LinuxContainerResources>, reply: Reply<()> },
}

/// How an operation ended.
#[derive(Debug)]
enum Done {
    SetUp(Box<Result<SetUp, sandbox::SetUpFailed>>),
    /// None: the shim is gone.
    Found(Option<Box<Found>>),
    ShutDown(Result<Exits, NodeError>, Recorder),
    Buried(Exits, Result<(), NodeError>),
    Erased(Result<(), NodeError>),
    Created(ContainerId, Box<Creation>),
    Started(ContainerId, Started, Recorder),
    Signalled(ContainerId, Result<(), NodeError>),
    Removed(ContainerId, Removed),
    Updated(ContainerId, Updated),
}

/// The operation on the sandbox itself that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    SettingUp,
    ShuttingDown,
    Burying,
    Erasing,
    /// All is gone; the task ends.
    Finished,
}

/// The state of one pod's task.
#[derive(Debug)]
pub(super) struct Pod {
    node: Arc<Node>,
    record: Arc<SandboxRecord>,
    shim: Option<Shim>,
    events: Option<Events>,
    containers: BTreeMap<ContainerId, Entry>,
    ops: Ops<Done>,
    doing: Doing,
    runners: Vec<Reply<SandboxId>>,
    stoppers: Vec<Reply<()>>,
    removers: Vec<Reply<()>>,
}

impl Pod {
    /// A sandbox that is to be made.
    pub fn new(node: Arc<Node>, record: SandboxRecord, wanted: Wanted, reply: Reply<SandboxId>) -> Self {
        let mut pod = Self::at_rest(node, Arc::new(record), None, Vec::new());
        pod.runners.push(reply);
        pod.begin_set_up(wanted);
        pod
    }

    /// A sandbox as recovery found it: published, and what was under way goes on.
    pub fn recovered(
        node: Arc<Node>,
        record: Arc<SandboxRecord>,
        shim: Option<(Shim, Events)>,
        containers: Vec<ContainerEntry>,
    ) -> Self {
        let mut pod = Self::at_rest(node, record, shim, containers);
        // In the order things end: a sandbox after its containers.
        pod.containers.values().for_each(|entry| pod.node.index.publish_container(Arc::clone(&entry.record)));
        pod.publish();
        pod.resume();
        pod
    }

    fn at_rest(
        node: Arc<Node>,
        record: Arc<SandboxRecord>,
        shim: Option<(Shim, Events)>,
        containers: Vec<ContainerEntry>,
    ) -> Self {
        let (shim, events) = shim.unzip();
        Self {
            node,
            record,
            shim,
            events,
            containers: containers.into_iter().map(|entry| (entry.record.id.clone(), entry)).collect(),
            ops: Ops::default(),
            doing: Doing::Nothing,
            runners: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
        }
    }

    /// Serves the pod until it is removed.
    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        while self.doing != Doing::Finished {
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                // First, so that an operation that ends finds all that the shim said before.
                event = next_event(&mut self.events) => self.on_event(event),
                done = self.ops.next() => self.on_done(done),
                Some(command) = commands.recv() => self.on_command(command),
                () = sleep_until(deadline) => self.on_deadline(),
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Run { config, handler, reply } => self.join_run(&config, &handler, reply),
            Command::Stop { reply } => self.stop(reply),
            Command::Remove { reply } => self.remove(reply),
            Command::Update { request, reply } => answer(reply, self.update(*request)),
            Command::CreateContainer { config, reply } => self.create_container(*config, reply),
            Command::StartContainer { id, reply } => self.start_container(&id, reply),
            Command::StopContainer { id, grace, reply } => self.stop_container(&id, grace, reply),
            Command::RemoveContainer { id, reply } => self.remove_container(&id, reply),
            Command::UpdateContainer { id, resources, reply } => self.update_container(&id, *resources, reply),
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::SetUp(result) => self.on_set_up(*result),
            Done::Found(found) => self.on_found(found.map(|found| *found)),
            Done::ShutDown(result, recorder) => self.on_shut_down(result, recorder),
            Done::Buried(exits, result) => self.on_buried(&exits, result),
            Done::Erased(result) => self.on_erased(result),
            Done::Created(id, creation) => self.on_created(&id, *creation),
            Done::Started(id, started, recorder) => self.on_started(&id, started, recorder),
            Done::Signalled(id, result) => self.on_signalled(&id, result),
            Done::Removed(id, removed) => self.on_removed(&id, removed),
            Done::Updated(id, updated) => self.on_updated(&id, updated),
        }
    }

    fn on_event(&mut self, event: Option<pb::event::Body>) {
        use pb::event::Body;
        match event {
            Some(Body::Exited(exited)) => self.on_exited(&exited),
            // Its PID namespace is gone, and with it every container. In a stop this is what was wanted.
            Some(Body::InitExited(init)) if self.record.state.is_ready() => {
                warn!(sandbox = %self.record.id, code = init.code, "pod init ended, stopping the sandbox");
                self.begin_shut_down();
            }
            Some(Body::InitExited(_)) => {}
            Some(Body::Warning(w)) => {
                warn!(sandbox = %self.record.id, container = w.container_id, "shim warned: {}", w.message);
            }
            None => {
                self.events = None;
                self.on_shim_gone();
            }
        }
    }

    /// Applies an event to the sandbox, persists and publishes. An event that does not fit is a
    /// flaw of this program: it is logged and changes nothing.
    fn transition(&mut self, event: &SandboxEvent) {
        match self.record.state.apply(event) {
            Ok(state) if state == self.record.state => {}
            Ok(state) => {
                Arc::make_mut(&mut self.record).state = state;
                self.save();
                self.publish();
            }
            Err(refused) => error!(sandbox = %self.record.id, error = %refused, "sandbox event refused"),
        }
    }

    /// A record that cannot be written now is written at the next change; after a restart the
    /// shim knows better anyway.
    fn save(&self) {
        if let Err(e) = self.node.store.save_sandbox(&self.record) {
            warn!(sandbox = %self.record.id, error = %chain(&e), "sandbox record not written");
        }
    }

    fn publish(&self) {
        let shim = self.record.state.is_ready().then(|| self.shim.clone()).flatten();
        self.node.index.publish_sandbox(Arc::clone(&self.record), shim);
    }

    fn refused(&self, operation: &'static str) -> NodeError {
        let id = self.record.id.short().to_owned();
        NodeError::Refused { object: "sandbox", id, state: self.record.state_name(), operation }
    }
}

/// Gives an answer to somebody who may be gone.
fn answer<T>(reply: Reply<T>, result: Result<T, NodeError>) {
    reply.send(result.map_err(Arc::new)).ok();
}

/// Gives all of them the same answer.
fn answer_all<T: Clone>(replies: &mut Vec<Reply<T>>, result: Result<T, &Arc<NodeError>>) {
    for reply in replies.drain(..) {
        reply.send(result.clone().map_err(Arc::clone)).ok();
    }
}

/// An error with its causes, as one sentence.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += ": ";
        // An errno is known by its name, not by its number.
        text += &match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            Some(errno) => nix::errno::Errno::from_raw(errno).to_string(),
            None => cause.to_string(),
        };
        source = cause.source();
    }
    text
}

async fn next_event(events: &mut Option<Events>) -> Option<pb::event::Body> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_errno() {
        let error = NodeError::io("write", "/x")(std::io::Error::from_raw_os_error(28));
        assert_eq!(chain(&error), "write /x: ENOSPC: No space left on device");
    }
}
