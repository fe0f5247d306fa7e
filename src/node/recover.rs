//! Finding the node again after a restart: records on one side, shims on the other.
//!
//! What runs goes on. What ended meanwhile is told by the shim, or by the exit record it left.
//! What was half made is undone, what was half removed is removed. Only directories named by an id
//! of ours, below our own roots, are ever touched. Pods are recovered side by side, so a sick one
//! costs its own deadline only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use super::error::NodeError;
use super::index::Reservation;
use super::pod::{ContainerEntry, NetworkIs, Pod, chain, clean_up, read_exits, shut_down, tear_down};
use super::record::{ContainerRecord, SandboxRecord, User};
use super::state::{ContainerEvent, ContainerState, SandboxEvent, SandboxState};
use super::store;
use super::{Node, now};
use crate::id::{ContainerId, SandboxId};
use crate::plan;
use crate::wire::client::{Events, Shim, WireError};
use crate::wire::pb;

/// How long a shim may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long after a shim has not answered it is asked again; each time twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

type Connection = Option<(Shim, Events)>;

/// A shim that has answered at last, and what it holds.
pub(super) type Found = (Shim, Events, pb::StateReply);

/// Brings back every pod there is a record of and removes what has none.
///
/// # Errors
/// If the records cannot be read at all; a single sick pod is only logged.
pub(super) async fn recover(node: &Arc<Node>) -> Result<(), NodeError> {
    let mut pods = JoinSet::new();
    for found in node.store.load()? {
        let node = Arc::clone(node);
        pods.spawn(async move {
            match found {
                store::Found::Ruin(id) => remove_ruin(&node, &id).await,
                store::Found::Pod { sandbox, containers } => recover_pod(&node, *sandbox, containers).await,
            }
        });
    }
    while let Some(result) = pods.join_next().await {
        if let Err(e) = result {
            error!(error = %e, "recovery of a pod failed");
        }
    }
    // Nobody knows what a container without a record needs, nor which ones there are where the shim does not answer.
    let out_of_reach = node.index.sandboxes().iter().any(|sandbox| sandbox.unreachable);
    let runs_on = |id: &ContainerId| node.forlorn().contains(id) || out_of_reach && node.store.is_lost(id.as_str());
    let known = |id: &ContainerId| matches!(node.index.container(id.as_str()), Ok(Some(_)));
    node.store.sweep_containers(|id| known(id) || runs_on(id))?;
    if !out_of_reach && node.forlorn().is_empty() {
        node.images.collect();
    }
    let (sandboxes, containers) = node.index.counts();
    info!(sandboxes, containers, "node recovered");
    Ok(())
}

async fn remove_ruin(node: &Arc<Node>, id: &SandboxId) {
    match tear_down(node, id, None, NetworkIs::Later).await {
        Ok(()) => info!(sandbox = %id, "removed what was left of a sandbox without a record"),
        Err(e) => warn!(sandbox = %id, error = %chain(&e), "ruin of a sandbox not removed, next start tries again"),
    }
}

async fn recover_pod(node: &Arc<Node>, sandbox: SandboxRecord, containers: Vec<ContainerRecord>) {
    let mut sandbox = Arc::new(sandbox);
    let mut connection = None;
    // As a previous daemon told of it; what was half made it never told of.
    let told: Vec<_> =
        containers.iter().filter(|c| c.state != ContainerState::Creating).cloned().map(Arc::new).collect();
    let told = (Arc::clone(&sandbox), told);
    if let Some(attachment) = &sandbox.network {
        node.network.adopt(&sandbox.id, attachment);
    }
    let mut containers = containers;
    match sandbox.state {
        SandboxState::Creating => return remove_ruin(node, &sandbox.id).await,
        SandboxState::Ready | SandboxState::Stopping => {
            (connection, containers) = reunite(node, &mut sandbox, containers).await;
        }
        SandboxState::NotReady { .. } => bury_rest(node, &sandbox, &mut containers).await,
        SandboxState::Removing => {}
    }
    let entries = containers.into_iter().map(|record| {
        let hold = node.images.hold(&record.held_layers());
        ContainerEntry::new(Arc::new(record), hold)
    });
    let name = sandbox.name();
    let commands = match node.index.reserve(&name, &sandbox.id) {
        Reservation::New(commands) => commands,
        Reservation::Taken(_) => {
            // Two records of one name: both are shown, new requests find the first.
            warn!(sandbox = %sandbox.id, "its name is another sandbox's too");
            match node.index.reserve(&format!("{name}/{}", sandbox.id), &sandbox.id) {
                Reservation::New(commands) => commands,
                Reservation::Taken(_) => return,
            }
        }
    };
    node.index.recall(told.0, told.1);
    let pod = Pod::recovered(Arc::clone(node), sandbox, connection, entries.collect());
    tokio::spawn(pod.run(commands));
}

/// Finds the shim of a sandbox that was up, and what became of its containers.
async fn reunite(
    node: &Arc<Node>,
    sandbox: &mut Arc<SandboxRecord>,
    containers: Vec<ContainerRecord>,
) -> (Connection, Vec<ContainerRecord>) {
    match connect(node, &sandbox.id).await {
        Ok((shim, events, state)) => {
            let containers = reconcile(node, &shim, &state, containers).await;
            (Some((shim, events)), containers)
        }
        Err(NodeError::Shim { source: WireError::Gone, .. }) => {
            let containers = bury(node, sandbox, containers).await;
            (None, containers)
        }
        Err(e) => {
            // Nothing is known, so nothing is changed; stopping the sandbox still works. Its task goes on asking.
            error!(sandbox = %sandbox.id, error = %chain(&e), "shim does not answer, its pod is left as it was");
            Arc::make_mut(sandbox).unreachable = true;
            let mut containers = undo_half_made(node, None, containers).await;
            containers.iter_mut().for_each(|record| record.unreachable = true);
            (None, containers)
        }
    }
}

/// Asks a shim that did not answer until it does, and removes the containers it has that nobody knows. None: it is gone.
pub(super) async fn find_again(node: Arc<Node>, id: SandboxId, known: Vec<ContainerId>) -> Option<Found> {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        match connect(&node, &id).await {
            Ok((shim, events, state)) => {
                delete_strangers(&node, &shim, &state, &known).await;
                return Some((shim, events, state));
            }
            Err(NodeError::Shim { source: WireError::Gone, .. }) => return None,
            Err(e) => {
                pause = (pause * 2).min(LONGEST_PAUSE);
                debug!(sandbox = %id, error = %chain(&e), ?pause, "shim still does not answer");
            }
        }
    }
}

async fn connect(node: &Node, id: &SandboxId) -> Result<Found, NodeError> {
    let run_dir = node.settings.run(id);
    let ask = async {
        let (shim, events) = Shim::connect(&run_dir).await?;
        let state = shim.state().await?;
        // A shim nobody set up holds nothing.
        if state.setup { Ok((shim, events, state)) } else { Err(WireError::Gone) }
    };
    match timeout(ANSWER_DEADLINE, ask).await {
        Ok(result) => result.map_err(NodeError::shim("reach the shim of sandbox", id.short())),
        Err(_) => {
            let object = id.short().to_owned();
            Err(NodeError::Deadline { step: "reach the shim of sandbox", object, limit: ANSWER_DEADLINE, hint: "" })
        }
    }
}

/// Brings containers and the shim's view of them together.
async fn reconcile(
    node: &Arc<Node>,
    shim: &Shim,
    state: &pb::StateReply,
    containers: Vec<ContainerRecord>,
) -> Vec<ContainerRecord> {
    let seen: HashMap<&str, &pb::ContainerState> =
        state.containers.iter().map(|c| (c.container_id.as_str(), c)).collect();
    let known: Vec<ContainerId> = containers.iter().map(|c| c.id.clone()).collect();
    delete_strangers(node, shim, state, &known).await;
    let mut containers = undo_half_made(node, Some(shim), containers).await;
    let exits = containers.first().map(|c| read_exits(node, &c.sandbox)).unwrap_or_default();
    for record in &mut containers {
        complete(record, seen.get(record.id.as_str()).copied());
        let events = missed(&record.state, seen.get(record.id.as_str()).copied(), exits.get(&record.id), now());
        apply(node, record, &events);
    }
    containers
}

/// Removes containers nobody knows: their creation was under way. One whose record was damaged is somebody's, though it
/// cannot be told whose: it runs on until its pod is stopped.
async fn delete_strangers(node: &Node, shim: &Shim, state: &pb::StateReply, known: &[ContainerId]) {
    for stranger in state.containers.iter().filter(|c| !known.iter().any(|id| id.as_str() == c.container_id)) {
        if node.store.is_lost(&stranger.container_id)
            && let Ok(id) = stranger.container_id.parse::<ContainerId>()
        {
            let pid = stranger.pid;
            error!(container = %id, pid, "a container whose record is damaged runs on, unseen, until its pod is stopped");
            node.forlorn().insert(id);
            continue;
        }
        warn!(container = stranger.container_id, "removing a container without a record");
        delete(shim, &stranger.container_id).await;
    }
}

/// Rolls back containers whose creation was under way. One that resists is kept to be removed.
async fn undo_half_made(
    node: &Arc<Node>,
    shim: Option<&Shim>,
    containers: Vec<ContainerRecord>,
) -> Vec<ContainerRecord> {
    let mut kept = Vec::with_capacity(containers.len());
    for mut record in containers {
        if !matches!(record.state, ContainerState::Creating) {
            kept.push(record);
            continue;
        }
        if let Some(shim) = shim {
            delete(shim, record.id.as_str()).await;
        }
        match node.store.erase_container(&record.sandbox, &record.id) {
            Ok(()) => info!(container = %record.id, "undid a half-made container"),
            Err(e) => {
                warn!(container = %record.id, error = %chain(&e), "half-made container not undone");
                apply(node, &mut record, &[ContainerEvent::RemoveRequested]);
                kept.push(record);
            }
        }
    }
    kept
}

async fn delete(shim: &Shim, id: &str) {
    match timeout(ANSWER_DEADLINE, shim.delete(id, true)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => warn!(container = id, error = %chain(&e), "container not removed from its shim"),
        Err(_) => warn!(container = id, "container not removed from its shim in time"),
    }
}

/// The shim died, or the machine was started anew: what is left is killed, ends are recorded.
async fn bury(
    node: &Arc<Node>,
    sandbox: &mut Arc<SandboxRecord>,
    containers: Vec<ContainerRecord>,
) -> Vec<ContainerRecord> {
    let message = "its shim was gone when the daemon started".to_owned();
    if sandbox.state.is_ready() {
        warn!(sandbox = %sandbox.id, "the shim is gone, killing what is left of the pod");
    }
    let cleaned = clean_up(node, &sandbox.id).await;
    let exits = read_exits(node, &sandbox.id);
    let mut containers = undo_half_made(node, None, containers).await;
    for record in &mut containers {
        let lost = ContainerEvent::Lost { at: now(), message: message.clone() };
        let event = exits.get(&record.id).cloned().unwrap_or(lost);
        if record.state.is_alive() {
            apply(node, record, &[event]);
        }
    }
    let state = sandbox.state.apply(&SandboxEvent::Lost { at: now(), message });
    let record = Arc::make_mut(sandbox);
    record.state = state.unwrap_or_else(|_| record.state.clone());
    if record.network.take().is_some() {
        node.network.abandon(&record.id);
    }
    if let Err(e) = node.store.save_sandbox(sandbox) {
        warn!(sandbox = %sandbox.id, error = %chain(&e), "sandbox record not written");
    }
    erase_run_dir(node, &sandbox.id, cleaned);
    containers
}

/// A sandbox that was stopped should have nothing left but records.
async fn bury_rest(node: &Arc<Node>, sandbox: &SandboxRecord, containers: &mut Vec<ContainerRecord>) {
    let run_dir = node.settings.run(&sandbox.id);
    if run_dir.exists() {
        let ended = shut_down(node, &sandbox.id, None).await.map(drop);
        erase_run_dir(node, &sandbox.id, ended);
    }
    if sandbox.network.is_some() {
        node.network.abandon(&sandbox.id);
    }
    *containers = undo_half_made(node, None, std::mem::take(containers)).await;
    for record in containers.iter_mut().filter(|record| record.state.is_alive()) {
        apply(node, record, &[ContainerEvent::Exited { code: 137, at: now(), oom_killed: false }]);
    }
}

/// The run directory stays if it is still needed: the removal of the sandbox tries again.
fn erase_run_dir(node: &Node, id: &SandboxId, ended: Result<(), NodeError>) {
    let erased = ended.and_then(|()| {
        let dir = node.settings.run(id);
        super::erase::erase(&dir).map_err(NodeError::io("remove directory", dir))
    });
    if let Err(e) = erased {
        error!(sandbox = %id, error = %chain(&e), "pod without a shim not cleaned up");
    }
}

/// Applies what happened meanwhile and keeps it.
fn apply(node: &Node, record: &mut ContainerRecord, events: &[ContainerEvent]) {
    let before = record.state.clone();
    for event in events {
        match record.state.apply(event) {
            Ok(state) => record.state = state,
            Err(refused) => error!(container = %record.id, error = %refused, "container event refused"),
        }
    }
    if record.state == before {
        return;
    }
    info!(container = %record.id, from = before.name(), to = record.state.name(), "container changed meanwhile");
    if let Err(e) = node.store.save_container(record) {
        warn!(container = %record.id, error = %chain(&e), "container record not written");
    }
}

/// Completes a restored record by what the shim knows.
pub(super) fn complete(record: &mut ContainerRecord, seen: Option<&pb::ContainerState>) {
    if let (ContainerState::Created { pid: 0 }, Some(seen)) = (&record.state, seen) {
        record.state = ContainerState::Created { pid: seen.pid };
        let user = plan::ResolvedUser::decode(seen.user.as_slice()).ok();
        record.user = user.map(|plan::ResolvedUser { uid, gid, groups, .. }| User { uid, gid, groups });
    }
}

/// What happened to a container while nobody listened. Pure.
pub(super) fn missed(
    state: &ContainerState,
    seen: Option<&pb::ContainerState>,
    exit: Option<&ContainerEvent>,
    at: i64,
) -> Vec<ContainerEvent> {
    use pb::container_state::Status;
    if !state.is_alive() {
        return Vec::new();
    }
    let Some(seen) = seen else {
        let lost = || ContainerEvent::Lost { at, message: "its shim does not know it".to_owned() };
        return vec![exit.cloned().unwrap_or_else(lost)];
    };
    let started = (seen.started_at != 0 && !state.is_running())
        .then_some(ContainerEvent::Started { pid: seen.pid, at: seen.started_at });
    match seen.status() {
        Status::Created | Status::Creating => Vec::new(),
        Status::Running => started.into_iter().collect(),
        Status::Exited => {
            let end = match &seen.exit {
                Some(pb::Exit { message, finished_at, .. }) if !message.is_empty() => {
                    ContainerEvent::StartFailed { at: *finished_at, message: message.clone() }
                }
                Some(pb::Exit { code, finished_at, oom_killed, .. }) => {
                    ContainerEvent::Exited { code: *code, at: *finished_at, oom_killed: *oom_killed }
                }
                None => ContainerEvent::Lost { at, message: "its shim did not see its end".to_owned() },
            };
            started.into_iter().chain([end]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::state::Reason;

    fn seen(status: pb::container_state::Status, started_at: i64, exit: Option<pb::Exit>) -> pb::ContainerState {
        pb::ContainerState { status: status.into(), pid: 9, started_at, exit, ..Default::default() }
    }

    fn after(state: &ContainerState, events: &[ContainerEvent]) -> ContainerState {
        events.iter().fold(state.clone(), |state, event| state.apply(event).unwrap())
    }

    const CREATED: ContainerState = ContainerState::Created { pid: 9 };
    const RUNNING: ContainerState = ContainerState::Running { pid: 9, started_at: 5 };

    #[test]
    fn what_runs_goes_on() {
        use pb::container_state::Status;
        assert!(missed(&RUNNING, Some(&seen(Status::Running, 5, None)), None, 8).is_empty());
        assert!(missed(&CREATED, Some(&seen(Status::Created, 0, None)), None, 8).is_empty());
    }

    #[test]
    fn a_start_whose_record_was_not_written_is_found() {
        let events = missed(&CREATED, Some(&seen(pb::container_state::Status::Running, 5, None)), None, 8);
        assert_eq!(after(&CREATED, &events), RUNNING);
    }

    #[test]
    fn an_exit_meanwhile_is_told_by_the_shim() {
        let exit = pb::Exit { code: 3, finished_at: 7, ..Default::default() };
        let events = missed(&CREATED, Some(&seen(pb::container_state::Status::Exited, 5, Some(exit))), None, 8);
        let ContainerState::Exited(exit) = after(&CREATED, &events) else { panic!("{events:?}") };
        assert_eq!((exit.started_at, exit.finished_at, exit.code, exit.reason), (5, 7, 3, Reason::Error));
    }

    #[test]
    fn a_failed_start_meanwhile_is_one() {
        let exit = pb::Exit { code: 128, finished_at: 7, message: "exec \"/x\": ENOENT".into(), ..Default::default() };
        let events = missed(&CREATED, Some(&seen(pb::container_state::Status::Exited, 0, Some(exit))), None, 8);
        let ContainerState::Exited(exit) = after(&CREATED, &events) else { panic!("{events:?}") };
        assert_eq!(exit.reason, Reason::StartError);
    }

    #[test]
    fn without_the_shim_the_exit_record_tells_and_else_nobody_knows() {
        let exit = ContainerEvent::Exited { code: 0, at: 7, oom_killed: false };
        let ContainerState::Exited(known) = after(&RUNNING, &missed(&RUNNING, None, Some(&exit), 8)) else {
            panic!("not exited")
        };
        assert_eq!((known.code, known.reason), (0, Reason::Completed));
        let ContainerState::Exited(unknown) = after(&RUNNING, &missed(&RUNNING, None, None, 8)) else {
            panic!("not exited")
        };
        assert_eq!((unknown.code, unknown.reason), (255, Reason::Unknown));
    }

    #[test]
    fn what_had_ended_stays() {
        let ended = after(&RUNNING, &[ContainerEvent::Exited { code: 0, at: 7, oom_killed: false }]);
        assert!(missed(&ended, None, None, 8).is_empty());
    }
}
