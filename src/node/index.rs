//! What lists and statuses are answered from: an immutable picture of every object.
//!
//! The pods' tasks publish into it; readers take shared pointers out of it. The lock is held for
//! pointer copies only, never across an await or a system call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;

use super::error::NodeError;
use super::pod::Command;
use super::record::{ContainerRecord, SandboxRecord};
use crate::id::{ContainerId, SandboxId};
use crate::wire::client::Shim;

/// How to reach a pod.
#[derive(Debug)]
struct Pod {
    name: String,
    commands: mpsc::UnboundedSender<Command>,
    /// None until it is ready: a sandbox in the making is nobody's business.
    sandbox: Option<Arc<SandboxRecord>>,
    shim: Option<Shim>,
}

#[derive(Debug, Default)]
struct Maps {
    pods: BTreeMap<SandboxId, Pod>,
    names: HashMap<String, SandboxId>,
    containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
}

/// The picture of the node.
#[derive(Debug, Default)]
pub(super) struct Index(RwLock<Maps>);

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
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `name` for `id`, or tells who has it.
    pub fn reserve(&self, name: &str, id: &SandboxId) -> Reservation {
        let mut maps = self.write();
        if let Some(pod) = maps.names.get(name).and_then(|id| maps.pods.get(id)) {
            return Reservation::Taken(pod.commands.clone());
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        maps.names.insert(name.to_owned(), id.clone());
        maps.pods.insert(id.clone(), Pod { name: name.to_owned(), commands, sandbox: None, shim: None });
        Reservation::New(receiver)
    }

    /// Shows a sandbox as it is now.
    pub fn publish_sandbox(&self, record: Arc<SandboxRecord>, shim: Option<Shim>) {
        if let Some(pod) = self.write().pods.get_mut(&record.id) {
            pod.sandbox = Some(record);
            pod.shim = shim;
        }
    }

    /// Shows a container as it is now.
    pub fn publish_container(&self, record: Arc<ContainerRecord>) {
        self.write().containers.insert(record.id.clone(), record);
    }

    /// Shows a container no more.
    pub fn withdraw_container(&self, id: &ContainerId) {
        self.write().containers.remove(id);
    }

    /// Forgets a pod with its containers and frees its name.
    pub fn withdraw_pod(&self, id: &SandboxId) {
        let mut maps = self.write();
        if let Some(pod) = maps.pods.remove(id)
            && maps.names.get(&pod.name) == Some(id)
        {
            maps.names.remove(&pod.name);
        }
        maps.containers.retain(|_, c| c.sandbox != *id);
    }

    /// Every sandbox shown.
    pub fn sandboxes(&self) -> Vec<Arc<SandboxRecord>> {
        self.read().pods.values().filter_map(|pod| pod.sandbox.clone()).collect()
    }

    /// Every container shown.
    pub fn containers(&self) -> Vec<Arc<ContainerRecord>> {
        self.read().containers.values().cloned().collect()
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

    /// Where a pod takes its commands.
    pub fn commands(&self, id: &SandboxId) -> Option<mpsc::UnboundedSender<Command>> {
        self.read().pods.get(id).map(|pod| pod.commands.clone())
    }

    /// The shim of a sandbox while it has one.
    pub fn shim(&self, id: &SandboxId) -> Option<Shim> {
        self.read().pods.get(id).and_then(|pod| pod.shim.clone())
    }

    /// How many sandboxes and containers are shown.
    pub fn counts(&self) -> (usize, usize) {
        let maps = self.read();
        (maps.pods.values().filter(|pod| pod.sandbox.is_some()).count(), maps.containers.len())
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
