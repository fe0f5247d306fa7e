//! What lists and statuses are answered from: an immutable picture of every object.
//!
//! The pods' tasks publish into it; readers take shared pointers out of it. The lock is held for
//! pointer copies only, never across an await or a system call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;

use super::error::NodeError;
use super::events::{EventKind, EventReader, Events, Told};
use super::pod::Command;
use super::record::{ContainerRecord, SandboxRecord};
use super::state::SandboxState;
use crate::id::{ContainerId, SandboxId};
use crate::wire::client::Shim;

/// How to reach a pod.
#[derive(Debug)]
struct Pod {
    name: String,
    commands: mpsc::UnboundedSender<Command>,
    /// None until it is ready: a sandbox in the making is nobody's business.
    sandbox: Option<Arc<SandboxRecord>>,
    /// What was told of the sandbox.
    told: Told,
    shim: Option<Shim>,
    /// Those shown of this pod, by id.
    containers: Vec<Arc<ContainerRecord>>,
}

impl Pod {
    fn position(&self, id: &ContainerId) -> Result<usize, usize> {
        self.containers.binary_search_by(|container| container.id.cmp(id))
    }

    fn insert(&mut self, record: Arc<ContainerRecord>) {
        match self.position(&record.id) {
            Ok(place) => self.containers[place] = record,
            Err(place) => self.containers.insert(place, record),
        }
    }

    fn remove(&mut self, id: &ContainerId) {
        if let Ok(place) = self.position(id) {
            self.containers.remove(place);
        }
    }

    /// Tells what happened to the sandbox or one of its containers, with the pod as it is now.
    fn tell(&self, events: &Events, kind: EventKind, container: Option<&Arc<ContainerRecord>>) {
        // A pod in the making is nobody's business.
        if let Some(sandbox) = &self.sandbox {
            events.tell(kind, container.cloned(), Arc::clone(sandbox), self.containers.clone());
        }
    }
}

#[derive(Debug, Default)]
struct Maps {
    pods: BTreeMap<SandboxId, Pod>,
    names: HashMap<String, SandboxId>,
    containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
}

/// The picture of the node.
#[derive(Debug, Default)]
pub(super) struct Index {
    maps: RwLock<Maps>,
    /// Told under the lock on the maps, so in the order of the changes.
    events: Arc<Events>,
}

/// Who answers for a name.
#[derive(Debug)]
pub(super) enum Reservation {
    /// The name was free and is the caller's now: it has to start the pod's task.
    New(mpsc::UnboundedReceiver<Command>),
    /// Somebody has it: ask there.
    Taken(mpsc::UnboundedSender<Command>),
}

impl Index {
    // A panic while the lock is held leaves maps that are whole: each change is one insertion.
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `name` for `id`, or tells who has it.
    pub fn reserve(&self, name: &str, id: &SandboxId) -> Reservation {
        let mut maps = self.write();
        if let Some(pod) = maps.names.get(name).and_then(|id| maps.pods.get(id)) {
            return Reservation::Taken(pod.commands.clone());
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        maps.names.insert(name.to_owned(), id.clone());
        let pod = Pod {
            name: name.to_owned(),
            commands,
            sandbox: None,
            told: Told::default(),
            shim: None,
            containers: Vec::new(),
        };
        maps.pods.insert(id.clone(), pod);
        Reservation::New(receiver)
    }

    /// Takes a pod for known that a previous daemon has told of: what differs from it is news.
    pub fn recall(&self, sandbox: Arc<SandboxRecord>, containers: Vec<Arc<ContainerRecord>>) {
        let mut maps = self.write();
        let maps = &mut *maps;
        let Some(pod) = maps.pods.get_mut(&sandbox.id) else { return };
        let stood = Told::of_sandbox(Told::default(), &SandboxState::Ready);
        pod.told = Told::of_sandbox(stood, &sandbox.state);
        pod.sandbox = Some(sandbox);
        for container in containers {
            maps.containers.insert(container.id.clone(), Arc::clone(&container));
            pod.insert(container);
        }
    }

    /// Shows a sandbox as it is now.
    pub fn publish_sandbox(&self, record: Arc<SandboxRecord>, shim: Option<Shim>) {
        if let Some(pod) = self.write().pods.get_mut(&record.id) {
            let told = Told::of_sandbox(pod.told, &record.state);
            let news = std::mem::replace(&mut pod.told, told).until(told);
            pod.sandbox = Some(record);
            pod.shim = shim;
            news.for_each(|kind| pod.tell(&self.events, kind, None));
        }
    }

    /// Shows a container as it is now.
    pub fn publish_container(&self, record: Arc<ContainerRecord>) {
        let mut maps = self.write();
        let now = Told::of_container(&record.state);
        let before = maps.containers.insert(record.id.clone(), Arc::clone(&record));
        let before = before.map(|record| Told::of_container(&record.state)).unwrap_or_default();
        if let Some(pod) = maps.pods.get_mut(&record.sandbox) {
            pod.insert(Arc::clone(&record));
            before.until(now).for_each(|kind| pod.tell(&self.events, kind, Some(&record)));
        }
    }

    /// Shows a container no more.
    pub fn withdraw_container(&self, id: &ContainerId) {
        let mut maps = self.write();
        let Some(record) = maps.containers.remove(id) else { return };
        if let Some(pod) = maps.pods.get_mut(&record.sandbox) {
            withdraw(pod, &self.events, &record);
        }
    }

    /// Forgets a pod with its containers and frees its name.
    pub fn withdraw_pod(&self, id: &SandboxId) {
        let mut maps = self.write();
        let Some(mut pod) = maps.pods.remove(id) else { return };
        if maps.names.get(&pod.name) == Some(id) {
            maps.names.remove(&pod.name);
        }
        for record in pod.containers.clone() {
            maps.containers.remove(&record.id);
            withdraw(&mut pod, &self.events, &record);
        }
        pod.told.until_gone().for_each(|kind| pod.tell(&self.events, kind, None));
    }

    /// What happens from now on, and what is kept of what happened.
    pub fn read_events(&self) -> EventReader {
        self.events.read()
    }

    /// What has to be done about events for as long as the node is there.
    pub fn attend_events(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.events).attend()
    }

    /// Every sandbox shown.
    pub fn sandboxes(&self) -> Vec<Arc<SandboxRecord>> {
        self.read().pods.values().filter_map(|pod| pod.sandbox.clone()).collect()
    }

    /// Every container shown.
    pub fn containers(&self) -> Vec<Arc<ContainerRecord>> {
        self.read().containers.values().cloned().collect()
    }

    /// Every container shown of a sandbox, by id.
    pub fn containers_in(&self, id: &SandboxId) -> Vec<Arc<ContainerRecord>> {
        self.read().pods.get(id).map(|pod| pod.containers.clone()).unwrap_or_default()
    }

    /// The sandbox whose id is or starts with `id`; none if there is none.
    ///
    /// # Errors
    /// [`NodeError::Ambiguous`].
    pub fn sandbox(&self, id: &str) -> Result<Option<Arc<SandboxRecord>>, NodeError> {
        let maps = self.read();
        if let Ok(whole) = id.parse::<SandboxId>() {
            return Ok(maps.pods.get(&whole).and_then(|pod| pod.sandbox.clone()));
        }
        let shown = maps.pods.iter().filter_map(|(id, pod)| Some((id.as_str(), pod.sandbox.as_ref()?)));
        find("sandboxes", id, shown).map(Option::<&Arc<_>>::cloned)
    }

    /// The container whose id is or starts with `id`; none if there is none.
    ///
    /// # Errors
    /// [`NodeError::Ambiguous`].
    pub fn container(&self, id: &str) -> Result<Option<Arc<ContainerRecord>>, NodeError> {
        let maps = self.read();
        if let Ok(whole) = id.parse::<ContainerId>() {
            return Ok(maps.containers.get(&whole).cloned());
        }
        find("containers", id, maps.containers.iter().map(|(id, c)| (id.as_str(), c))).map(Option::<&Arc<_>>::cloned)
    }

    /// Whether a sandbox is known, shown or not.
    pub fn has_sandbox(&self, id: &SandboxId) -> bool {
        self.read().pods.contains_key(id)
    }

    /// Whether a container is shown.
    pub fn has_container(&self, id: &ContainerId) -> bool {
        self.read().containers.contains_key(id)
    }

    /// Where a pod takes its commands.
    pub fn commands(&self, id: &SandboxId) -> Option<mpsc::UnboundedSender<Command>> {
        self.read().pods.get(id).map(|pod| pod.commands.clone())
    }

    /// The shim of a sandbox while it has one.
    pub fn shim(&self, id: &SandboxId) -> Option<Shim> {
        self.read().pods.get(id).and_then(|pod| pod.shim.clone())
    }

    /// How many pods have a shim.
    pub fn shims(&self) -> usize {
        self.read().pods.values().filter(|pod| pod.shim.is_some()).count()
    }

    /// How many sandboxes and containers are shown.
    pub fn counts(&self) -> (usize, usize) {
        let maps = self.read();
        (maps.pods.values().filter(|pod| pod.sandbox.is_some()).count(), maps.containers.len())
    }
}

/// Takes a container out of its pod and tells that it is gone.
fn withdraw(pod: &mut Pod, events: &Events, record: &Arc<ContainerRecord>) {
    for kind in Told::of_container(&record.state).until_gone() {
        if kind == EventKind::Deleted {
            pod.remove(&record.id);
        }
        pod.tell(events, kind, Some(record));
    }
}

/// The one of `all` whose id starts with `prefix`. The empty prefix is nobody's.
fn find<'a, T>(
    objects: &'static str,
    prefix: &str,
    all: impl Iterator<Item = (&'a str, T)>,
) -> Result<Option<T>, NodeError> {
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut fitting = all.filter(|(id, _)| id.starts_with(prefix));
    let first = fitting.next();
    match fitting.count() {
        0 => Ok(first.map(|(_, object)| object)),
        more => Err(NodeError::Ambiguous { objects, prefix: prefix.to_owned(), count: more + 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{container, container_id, sandbox, sandbox_id};
    use super::*;

    fn index() -> Index {
        let index = Index::default();
        for digit in ['a', 'b'] {
            let record = sandbox(digit);
            assert!(matches!(index.reserve(&record.name(), &record.id), Reservation::New(_)));
            index.publish_sandbox(Arc::new(record), None);
        }
        index.publish_container(Arc::new(container('a', 'c')));
        index.publish_container(Arc::new(container('b', 'd')));
        index
    }

    #[test]
    fn a_name_is_given_once_and_freed_with_its_pod() {
        let index = index();
        let name = sandbox('a').name();
        assert!(matches!(index.reserve(&name, &sandbox_id('e')), Reservation::Taken(_)));
        index.withdraw_pod(&sandbox_id('a'));
        assert!(matches!(index.reserve(&name, &sandbox_id('e')), Reservation::New(_)));
        assert_eq!(index.counts(), (1, 1), "its containers went with it, the new one is not shown yet");
    }

    #[test]
    fn a_sandbox_in_the_making_is_not_shown() {
        let index = Index::default();
        index.reserve("n", &sandbox_id('a'));
        assert!(index.sandboxes().is_empty());
        assert!(index.sandbox(sandbox_id('a').as_str()).unwrap().is_none());
    }

    #[test]
    fn half_an_id_is_enough_if_it_fits_one() {
        let index = index();
        assert_eq!(index.container("ccc").unwrap().unwrap().id, container_id('c'));
        assert_eq!(index.sandbox(sandbox_id('b').as_str()).unwrap().unwrap().id, sandbox_id('b'));
        assert!(index.container("f").unwrap().is_none());
        assert!(index.container("").unwrap().is_none());
    }

    #[test]
    fn half_an_id_that_fits_two_is_refused() {
        let ids = [("ab", 1), ("ac", 2), ("b", 3)];
        let error = find("sandboxes", "a", ids.into_iter()).unwrap_err().to_string();
        assert!(error.contains("2 sandboxes"), "{error}");
        assert_eq!(find("sandboxes", "b", ids.into_iter()).unwrap(), Some(3));
    }
}
