//! One container in its pod: start, exit, removal, update.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::ending::limited;
use super::stop::Stop;
use super::{Done, KILL_DEADLINE, Pod, Reply, answer, answer_all, chain};
use crate::api::cri;
use crate::id::ContainerId;
use crate::image::Hold;
use crate::node::error::NodeError;
use crate::node::record::ContainerRecord;
use crate::node::state::{ContainerEvent, ContainerState};
use crate::node::timeline::{self, Recorder};
use crate::node::{now, resources};
use crate::wire::client::{Shim, WireError};
use crate::wire::pb;

/// How long a program may take to begin; it may lie on a slow filesystem.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long the kernel may take to change limits; it may have to reclaim memory.
const UPDATE_DEADLINE: Duration = Duration::from_secs(60);

/// The operation on a container that is under way, with those who wait for it.
#[derive(Debug)]
pub(super) enum Doing {
    Nothing,
    Creating(Vec<Reply<ContainerId>>),
    Starting(Vec<Reply<()>>),
    Removing(Vec<Reply<()>>),
}

/// A container in its pod's task.
#[derive(Debug)]
pub(in crate::node) struct Entry {
    /// As on disk and in the lists.
    pub(in crate::node) record: Arc<ContainerRecord>,
    /// Its image's layers stay while this does.
    _hold: Hold,
    pub(super) doing: Doing,
    pub(super) stop: Option<Stop>,
    /// Its end, which came before the answer to its start.
    early_exit: Option<ContainerEvent>,
}

/// How a start ended.
pub(super) type Started = Result<pb::StartReply, NodeError>;
/// How a removal ended.
pub(super) type Removed = Result<(), NodeError>;

/// How an update ended, and who asked.
#[derive(Debug)]
pub(super) struct Updated {
    resources: Box<cri::LinuxContainerResources>,
    result: Result<Vec<String>, NodeError>,
    reply: Reply<()>,
}

impl Entry {
    /// A container nothing is being done with.
    pub(in crate::node) fn new(record: Arc<ContainerRecord>, hold: Hold) -> Self {
        Self { record, _hold: hold, doing: Doing::Nothing, stop: None, early_exit: None }
    }
}

impl Pod {
    /// Applies an event to a container, persists and publishes; those who wait for its end are told.
    pub(super) fn apply(&mut self, id: &ContainerId, event: &ContainerEvent) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let state = match entry.record.state.apply(event) {
            Ok(state) => state,
            Err(refused) => {
                error!(container = %id, error = %refused, "container event refused");
                return;
            }
        };
        if state == entry.record.state {
            return;
        }
        let was_going = matches!(entry.record.state, ContainerState::Removing { .. });
        let record = Arc::make_mut(&mut entry.record);
        if !state.is_alive()
            && let Some(recorder) = entry.stop.as_mut().and_then(Stop::ended)
        {
            timeline::keep(&mut record.timeline, recorder.end());
        }
        record.state = state;
        if !was_going {
            // How it ended is of no use to whoever goes on with its removal.
            self.save_container(id);
        }
        self.publish_container(id);
        self.end_stop(id);
    }

    /// As [`Pod::save`]: what cannot be written now is at the next change.
    fn save_container(&self, id: &ContainerId) {
        let Some(entry) = self.containers.get(id) else { return };
        if let Err(e) = self.node.store.save_container(&entry.record) {
            warn!(container = %id, error = %chain(&e), "container record not written");
        }
    }

    /// A container in the making is nobody's business yet.
    pub(super) fn publish_container(&self, id: &ContainerId) {
        if let Some(entry) = self.containers.get(id)
            && !matches!(entry.doing, Doing::Creating(_))
        {
            self.node.index.publish_container(Arc::clone(&entry.record));
        }
    }

    pub(super) fn on_exited(&mut self, exited: &pb::Exited) {
        let Ok(id) = exited.container_id.parse::<ContainerId>() else { return };
        let exit = exited.exit.clone().unwrap_or_default();
        info!(container = %id, code = exit.code, oom = exit.oom_killed, "container exited");
        let (code, at, oom_killed) = (exit.code, exit.finished_at, exit.oom_killed);
        let event = ContainerEvent::Exited { code, at, oom_killed };
        match self.containers.get_mut(&id) {
            // The shim has answered the start already: whoever watches learns of that first.
            Some(entry) if matches!(entry.doing, Doing::Starting(_)) => entry.early_exit = Some(event),
            _ => self.apply(&id, &event),
        }
    }

    /// Its end may be told now.
    fn apply_early_exit(&mut self, id: &ContainerId) {
        if let Some(exit) = self.containers.get_mut(id).and_then(|entry| entry.early_exit.take()) {
            self.apply(id, &exit);
        }
    }

    pub(super) fn start_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(entry) = self.containers.get_mut(id) else {
            return answer(reply, Err(NodeError::NoContainer(id.to_string())));
        };
        if let Doing::Starting(waiters) = &mut entry.doing {
            return waiters.push(reply);
        }
        let refused = NodeError::Refused {
            object: "container",
            id: id.short().to_owned(),
            state: entry.record.state_name(),
            operation: "start it",
        };
        let shim = match (&self.shim, &entry.record.state, &entry.doing) {
            (Some(shim), ContainerState::Created { .. }, Doing::Nothing) => shim.clone(),
            _ => return answer(reply, Err(refused)),
        };
        entry.doing = Doing::Starting(vec![reply]);
        let id = id.clone();
        let mut recorder = Recorder::begin("StartContainer");
        self.ops.push(async move {
            let result = limited("start container", id.short(), START_DEADLINE, shim.start(id.as_str())).await;
            recorder.lap("exec");
            Done::Started(id, result, recorder)
        });
    }

    pub(super) fn on_started(&mut self, id: &ContainerId, result: Started, recorder: Recorder) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let mut waiters = match std::mem::replace(&mut entry.doing, Doing::Nothing) {
            Doing::Starting(waiters) => waiters,
            other => {
                entry.doing = other;
                Vec::new()
            }
        };
        timeline::keep(&mut Arc::make_mut(&mut entry.record).timeline, recorder.end());
        match result {
            Ok(pb::StartReply { started_at, pid }) => {
                self.apply(id, &ContainerEvent::Started { pid, at: started_at });
                debug!(container = %id, pid, "container started");
                answer_all(&mut waiters, Ok(()));
            }
            Err(e) => {
                // A shim that is gone says nothing about the container, and neither does a slow one, or one that does
                // not start it now.
                if let NodeError::Shim { source: WireError::Shim { kind, message, .. }, .. } = &e
                    && *kind != pb::error::Kind::Refused
                {
                    let event = ContainerEvent::StartFailed { at: now(), message: message.clone() };
                    self.apply(id, &event);
                }
                answer_all(&mut waiters, Err(&Arc::new(e)));
            }
        }
        self.apply_early_exit(id);
    }

    pub(super) fn remove_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(entry) = self.containers.get_mut(id) else { return answer(reply, Ok(())) };
        match &mut entry.doing {
            Doing::Removing(waiters) => return waiters.push(reply),
            Doing::Nothing => {}
            Doing::Starting(starters) => {
                let (id, state) = (id.short().to_owned(), "being removed");
                let refused = NodeError::Refused { object: "container", id, state, operation: "start it" };
                answer_all(starters, Err(&Arc::new(refused)));
            }
            // Nobody knows its id yet.
            Doing::Creating(_) => {
                let (id, state) = (id.short().to_owned(), entry.record.state_name());
                let operation = "remove it";
                return answer(reply, Err(NodeError::Refused { object: "container", id, state, operation }));
            }
        }
        self.begin_removal(id, vec![reply]);
    }

    /// Goes on with removals a previous daemon had begun.
    pub(super) fn resume_removals(&mut self) {
        let removing = |entry: &Entry| matches!(entry.record.state, ContainerState::Removing { .. });
        let ids: Vec<ContainerId> =
            self.containers.iter().filter(|(_, e)| removing(e)).map(|(id, _)| id.clone()).collect();
        ids.iter().for_each(|id| self.begin_removal(id, Vec::new()));
    }

    fn begin_removal(&mut self, id: &ContainerId, waiters: Vec<Reply<()>>) {
        self.apply(id, &ContainerEvent::RemoveRequested);
        if let Some(entry) = self.containers.get_mut(id) {
            entry.doing = Doing::Removing(waiters);
        }
        let (node, shim) = (Arc::clone(&self.node), self.shim.clone());
        let (sandbox, id) = (self.record.id.clone(), id.clone());
        self.ops.push(async move {
            let result = remove(node, shim, sandbox, id.clone()).await;
            Done::Removed(id, result)
        });
    }

    pub(super) fn on_removed(&mut self, id: &ContainerId, result: Removed) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let mut waiters = match std::mem::replace(&mut entry.doing, Doing::Nothing) {
            Doing::Removing(waiters) => waiters,
            _ => Vec::new(),
        };
        match result {
            Ok(()) => {
                self.containers.remove(id);
                self.node.index.withdraw_container(id);
                debug!(container = %id, "container removed");
                answer_all(&mut waiters, Ok(()));
            }
            Err(e) => {
                if waiters.is_empty() {
                    warn!(container = %id, error = %chain(&e), "container not removed");
                }
                answer_all(&mut waiters, Err(&Arc::new(e)));
            }
        }
    }

    pub(super) fn update_container(
        &mut self,
        id: &ContainerId,
        wanted: cri::LinuxContainerResources,
        reply: Reply<()>,
    ) {
        let Some(entry) = self.containers.get(id) else {
            return answer(reply, Err(NodeError::NoContainer(id.to_string())));
        };
        let (plan, score) = match crate::node::spec::update(&wanted, &self.node.defaults).map_err(NodeError::from) {
            Ok(update) => update,
            Err(e) => return answer(reply, Err(e)),
        };
        let shim = match (&entry.record.state, &self.shim) {
            (ContainerState::Created { .. } | ContainerState::Running { .. }, Some(shim)) => shim.clone(),
            (ContainerState::Exited(_), _) => {
                let resources = Box::new(wanted);
                return self.on_updated(id, Updated { resources, result: Ok(Vec::new()), reply });
            }
            _ => {
                let (id, state) = (id.short().to_owned(), entry.record.state_name());
                let operation = "change its resources";
                return answer(reply, Err(NodeError::Refused { object: "container", id, state, operation }));
            }
        };
        let id = id.clone();
        self.ops.push(async move {
            let call = shim.update(id.as_str(), &plan, score);
            let result = limited("update container", id.short(), UPDATE_DEADLINE, call).await;
            Done::Updated(id, Updated { resources: Box::new(wanted), result, reply })
        });
    }

    pub(super) fn on_updated(&mut self, id: &ContainerId, updated: Updated) {
        let Updated { resources: wanted, result, reply } = updated;
        let Some(entry) = self.containers.get_mut(id) else {
            return answer(reply, Err(NodeError::NoContainer(id.to_string())));
        };
        match result {
            Ok(warnings) => {
                let record = Arc::make_mut(&mut entry.record);
                record.resources = Some(resources::merged(record.resources.as_ref(), &wanted));
                for warning in warnings {
                    warn!(container = %id, "{warning}");
                }
                self.save_container(id);
                self.publish_container(id);
                answer(reply, Ok(()));
            }
            Err(e) => answer(reply, Err(e)),
        }
    }
}

async fn remove(
    node: Arc<crate::node::Node>,
    shim: Option<Shim>,
    sandbox: crate::id::SandboxId,
    id: ContainerId,
) -> Removed {
    // A shim that did not answer this daemon's start may keep the container all the same.
    let shim = match shim {
        Some(shim) => Some(shim),
        None => match Shim::connect(&node.settings.run(&sandbox)).await {
            Ok((shim, _)) => Some(shim),
            Err(WireError::Gone) => None,
            Err(e) => return Err(NodeError::shim("remove container", id.short())(e)),
        },
    };
    if let Some(shim) = shim {
        match limited("remove container", id.short(), KILL_DEADLINE, shim.delete(id.as_str(), true)).await {
            // Without a shim nothing of it runs: the loss of the shim is dealt with elsewhere.
            Ok(()) | Err(NodeError::Shim { source: WireError::Gone, .. }) => {}
            Err(e) => return Err(e),
        }
    }
    erase(&node, sandbox, id).await
}

/// Removes the files of a container, its record last.
pub(super) async fn erase(
    node: &Arc<crate::node::Node>,
    sandbox: crate::id::SandboxId,
    id: ContainerId,
) -> Result<(), NodeError> {
    let node = Arc::clone(node);
    let path = node.settings.container(&id);
    let erase = tokio::task::spawn_blocking(move || node.store.erase_container(&sandbox, &id));
    match erase.await {
        Ok(result) => result.map_err(NodeError::from),
        Err(e) => Err(NodeError::io("remove", path)(std::io::Error::other(e))),
    }
}
