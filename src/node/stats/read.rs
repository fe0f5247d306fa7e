//! The reading itself, on a thread of its own: containers, pods and what belongs to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::record::{ContainerRecord, SandboxRecord};
use super::super::state::Nanos;
use super::super::{Node, now, spec};
use super::layers::SHORTLY;
use super::samples::{Bounds, Sample};
use super::{ContainerNumbers, Counted, PodNumbers, interfaces};
use crate::id::SandboxId;
use crate::runtime::cgroup::{Hierarchies, Reader, Usage};

/// Containers or pods that are not worth a thread.
const PART: usize = 100;
/// Threads of one request, however long the list.
const MAX_THREADS: usize = 4;

/// The containers that run and whose cgroup is there.
pub(super) fn containers(
    node: &Node,
    hierarchies: &Hierarchies,
    wanted: &[Arc<ContainerRecord>],
) -> Vec<ContainerNumbers> {
    let sandboxes: HashMap<SandboxId, Arc<SandboxRecord>> =
        node.sandboxes().into_iter().map(|s| (s.id.clone(), s)).collect();
    let running: Vec<_> = wanted.iter().filter(|c| c.state.is_running()).cloned().collect();
    node.stats.layers.count(&node.settings, &running, SHORTLY);
    let numbers = in_parts(&running, node.stats.cpus(), |part| {
        let mut reader = hierarchies.reader();
        let numbers = part.iter().filter_map(|record| {
            let parent = cgroup_parent(node, sandboxes.get(&record.sandbox)?)?;
            container(node, &mut reader, &parent, Arc::clone(record), false)
        });
        numbers.collect()
    });
    prune(node);
    numbers
}

/// The pods that are ready.
pub(super) fn pods(node: &Node, hierarchies: &Hierarchies, wanted: &[Arc<SandboxRecord>]) -> Vec<PodNumbers> {
    let parents = Parents::of(node);
    let mut running = running(node);
    let ready = wanted.iter().filter(|s| s.state.is_ready());
    let ready: Vec<_> = ready.map(|s| (Arc::clone(s), running.remove(&s.id).unwrap_or_default())).collect();
    let asked: Vec<_> = ready.iter().flat_map(|(_, own)| own).cloned().collect();
    node.stats.layers.count(&node.settings, &asked, SHORTLY);
    let numbers = in_parts(&ready, node.stats.cpus(), |part| {
        let mut reader = hierarchies.reader();
        part.iter().filter_map(|(sandbox, own)| pod(node, &mut reader, &parents, Arc::clone(sandbox), own)).collect()
    });
    prune(node);
    numbers
}

/// Does a long list's work on several threads, its parts in their order.
fn in_parts<T: Sync, R: Send>(items: &[T], cpus: u64, work: impl Fn(&[T]) -> Vec<R> + Sync) -> Vec<R> {
    let most = usize::try_from(cpus).unwrap_or(1).clamp(1, MAX_THREADS);
    let size = items.len().div_ceil((items.len() / PART).clamp(1, most)).max(1);
    let mut parts = items.chunks(size);
    let first = parts.next().unwrap_or_default();
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = parts
            .map(|part| (part, std::thread::Builder::new().name("stats".to_owned()).spawn_scoped(scope, || work(part))))
            .collect();
        let mut results = work(first);
        for (part, thread) in others {
            results.extend(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // There can be no more threads.
                Err(_) => work(part),
            });
        }
        results
    })
}

/// All containers that run, by their pod.
pub(super) fn running(node: &Node) -> HashMap<SandboxId, Vec<Arc<ContainerRecord>>> {
    let mut running: HashMap<_, Vec<_>> = HashMap::new();
    for record in node.containers().into_iter().filter(|c| c.state.is_running()) {
        running.entry(record.sandbox.clone()).or_default().push(record);
    }
    running
}

/// A container in its pod's cgroup `parent`; with the number of its tasks if `tasks`.
pub(super) fn container(
    node: &Node,
    reader: &mut Reader,
    parent: &str,
    record: Arc<ContainerRecord>,
    tasks: bool,
) -> Option<ContainerNumbers> {
    let usage = reader.usage(&format!("{parent}/aril-{}", record.id), tasks)?;
    let at = now();
    let age = since(record.state.started_at(), at);
    let rate = |sample| node.stats.containers.rate(&record.id, sample, Bounds { age, cpus: node.stats.cpus() });
    let cgroup = counted(at, usage, rate);
    let written = node.stats.layers.get(&record.id);
    Some(ContainerNumbers { record, cgroup, written })
}

fn pod(
    node: &Node,
    reader: &mut Reader,
    parents: &Parents,
    record: Arc<SandboxRecord>,
    containers: &[Arc<ContainerRecord>],
) -> Option<PodNumbers> {
    let parent = cgroup_parent(node, &record)?;
    let is_own = parents.is_own(&parent, &record);
    let numbers = containers.iter().filter_map(|c| container(node, reader, &parent, Arc::clone(c), !is_own));
    let containers: Vec<_> = numbers.collect();
    let whole = if is_own { reader.usage(&parent, true) } else { None };
    let usage = whole.unwrap_or_else(|| {
        // The first process of a pod with one PID namespace has a cgroup beside those of the containers.
        let init = reader.usage(&format!("{parent}/aril-{}", record.id), true);
        let parts = containers.iter().map(|c| c.cgroup.usage).chain(init);
        parts.reduce(|sum, part| sum.plus(&part)).unwrap_or_default()
    });
    let at = now();
    let age = since(record.created_at, at);
    let rate = |sample| node.stats.pods.rate(&record.id, sample, Bounds { age, cpus: node.stats.cpus() });
    let cgroup = counted(at, usage, rate);
    Some(PodNumbers { network: network(node, &record), cgroup, containers, record })
}

fn counted(at: Nanos, usage: Usage, rate: impl FnOnce(Sample) -> u64) -> Counted {
    let sample = usage.cpu_ns.map(|cpu_ns| Sample { at: Instant::now(), cpu_ns });
    Counted { at, usage, nano_cores: sample.map(rate) }
}

/// The shim is in its pod's network namespace. On the host's network nothing is the pod's own.
pub(super) fn network(node: &Node, record: &SandboxRecord) -> Option<(Nanos, Vec<interfaces::Interface>)> {
    if spec::host_network(&record.config) {
        return None;
    }
    let pid = node.shim_pid(&record.id)?;
    let all = interfaces::of_process(pid)?;
    // A shim that has ended meanwhile may have lent its number to somebody else.
    (node.shim_pid(&record.id) == Some(pid)).then(|| (now(), all))
}

fn since(start: Nanos, now: Nanos) -> Duration {
    Duration::from_nanos(u64::try_from(now.saturating_sub(start)).unwrap_or(0))
}

pub(super) fn cgroup_parent(node: &Node, sandbox: &SandboxRecord) -> Option<String> {
    // It was checked when the sandbox was made.
    spec::cgroup_parent(&sandbox.config, &node.defaults).ok()
}

pub(super) fn prune(node: &Node) {
    let (sandboxes, containers) = node.counts();
    node.stats.containers.prune(containers, |id| node.index.has_container(id));
    node.stats.layers.prune(containers, |id| node.index.has_container(id));
    node.stats.pods.prune(sandboxes, |id| node.index.has_sandbox(id));
}

/// Which cgroups are above the containers of one pod alone. kubelet gives each pod one; others may put all theirs below
/// the same.
#[derive(Debug, Default)]
struct Parents {
    /// Whose they are, by the pod's uid, which several attempts of one pod share; `None`: several pods'.
    users: BTreeMap<String, Option<String>>,
}

impl Parents {
    fn of(node: &Node) -> Self {
        let mut parents = Self::default();
        for sandbox in node.sandboxes() {
            if let Some(parent) = cgroup_parent(node, &sandbox) {
                parents.add(parent, uid(&sandbox));
            }
        }
        parents.users.insert(node.defaults.cgroup_parent.trim_end_matches('/').to_owned(), None);
        parents
    }

    fn add(&mut self, parent: String, uid: &str) {
        self.users
            .entry(parent)
            .and_modify(|user| {
                if user.as_deref() != Some(uid) {
                    *user = None;
                }
            })
            .or_insert_with(|| Some(uid.to_owned()));
    }

    fn is_own(&self, parent: &str, sandbox: &SandboxRecord) -> bool {
        // '0' is the character after '/'.
        let below = format!("{parent}/")..format!("{parent}0");
        !parent.is_empty()
            && self.users.get(parent).is_some_and(|user| user.as_deref() == Some(uid(sandbox)))
            && self.users.range(below).next().is_none()
    }
}

fn uid(sandbox: &SandboxRecord) -> &str {
    sandbox.config.metadata.as_ref().map_or("", |m| m.uid.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::sandbox;
    use super::*;

    #[test]
    fn every_part_is_worked_on_and_in_order() {
        for (length, cpus) in [(0, 2), (1, 2), (250, 1), (250, 2), (1003, 64), (401, 4)] {
            let items: Vec<usize> = (0..length).collect();
            let threads = std::sync::Mutex::new(std::collections::HashSet::new());
            let results = in_parts(&items, cpus, |part| {
                threads.lock().unwrap().insert(std::thread::current().id());
                part.to_vec()
            });
            assert_eq!(results, items);
            assert!(threads.into_inner().unwrap().len() <= MAX_THREADS.min(usize::try_from(cpus).unwrap()));
        }
    }

    #[test]
    fn a_cgroup_is_a_pods_own_if_no_other_pod_is_in_it_or_below() {
        let record = sandbox('a');
        let own = uid(&record).to_owned();
        let is_own = |parents: &[(&str, &str)]| {
            let mut all = Parents::default();
            for (parent, uid) in parents {
                all.add((*parent).to_owned(), uid);
            }
            all.is_own("/k/pod", &record)
        };
        assert!(is_own(&[("/k/pod", &own)]));
        assert!(is_own(&[("/k/pod", &own), ("/k/pod", &own), ("/k/pod2", "x"), ("/k/pod-1", "x"), ("/k", "x")]));
        assert!(!is_own(&[("/k/pod", &own), ("/k/pod", "x")]));
        assert!(!is_own(&[("/k/pod", &own), ("/k/pod/x", "x")]));
        assert!(!is_own(&[("/k/pod", "x"), ("/k/pod", &own)]));
        assert!(!is_own(&[]));
    }
}
