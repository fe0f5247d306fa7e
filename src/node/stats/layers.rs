//! What containers have written: counted in the background, when somebody asks and the last count is old.
//!
//! One thread at a time counts one layer after the other and ends with the last. A layer is not counted again before
//! [`REST`] is over, nor before twenty times as long as the counting took: however large layers are, they cost a
//! twentieth of a core's time at most. Layers of containers that have ended are counted once more and then never.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::super::record::ContainerRecord;
use super::super::settings::Settings;
use super::super::state::Nanos;
use super::walk::{Occupied, occupied};
use crate::id::ContainerId;

/// How long a count is good.
const REST: Duration = Duration::from_secs(10);
/// How many times as long as the counting took.
const REST_FACTOR: u32 = 20;
/// How long who asks first waits for a count: most layers are small.
pub(super) const SHORTLY: Duration = Duration::from_millis(100);
/// The same for who asks for everything.
pub(super) const PATIENT: Duration = Duration::from_secs(2);
/// As in `samples`.
const SLACK: usize = 64;

/// What a container has written over its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes, as `du` counts them.
    pub bytes: u64,
    /// Files, directories and the like.
    pub inodes: u64,
    /// When it was counted.
    pub at: Nanos,
}

/// The counts of all layers that were asked about.
#[derive(Debug, Default)]
pub(super) struct Layers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    counted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<ContainerId, Layer>,
    queue: VecDeque<Job>,
    is_counting: bool,
}

#[derive(Debug, Default)]
struct Layer {
    written: Option<Written>,
    /// When it may be counted again; `None`: it is in the queue, or never.
    due: Option<Instant>,
    /// It was counted after its container's end.
    is_final: bool,
}

#[derive(Debug)]
struct Job {
    id: ContainerId,
    upper: PathBuf,
    has_ended: bool,
}

impl Layers {
    /// Has the layers counted whose count is old. Returns at once, but for `patience` if one was never counted. Blocks.
    pub fn count(&self, settings: &Settings, containers: &[Arc<ContainerRecord>], patience: Duration) {
        let now = Instant::now();
        let mut state = self.0.lock();
        let mut is_first = false;
        for record in containers {
            let has_ended = !record.state.is_alive();
            let known = state.known.get(&record.id);
            is_first |= known.is_none_or(|layer| layer.written.is_none());
            let is_due = known.is_none_or(|layer| {
                layer.due.is_some_and(|due| due <= now || (has_ended && !layer.is_final)) && !layer.is_final
            });
            if is_due {
                state.known.entry(record.id.clone()).or_default().due = None;
                let upper = settings.container(&record.id).join("upper");
                state.queue.push_back(Job { id: record.id.clone(), upper, has_ended });
            }
        }
        if !state.queue.is_empty() && !state.is_counting {
            state.is_counting = true;
            self.0.start(&mut state);
        }
        if is_first {
            let missing = |state: &mut State| {
                let is_missing = |c: &Arc<ContainerRecord>| state.known.get(&c.id).is_some_and(|l| l.written.is_none());
                state.is_counting && containers.iter().any(is_missing)
            };
            drop(self.0.counted.wait_timeout_while(state, patience, missing).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The last count of a container's layer.
    pub fn get(&self, id: &ContainerId) -> Option<Written> {
        self.0.lock().known.get(id)?.written
    }

    /// Forgets the layers of containers that `exists` does not know, if there are many more kept than `count`.
    pub fn prune(&self, count: usize, exists: impl Fn(&ContainerId) -> bool) {
        let mut state = self.0.lock();
        if state.known.len() > count + SLACK {
            state.known.retain(|id, _| exists(id));
            state.known.shrink_to_fit();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The maps are whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, state: &mut State) {
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("layers".to_owned()).spawn(move || shared.run());
        if let Err(error) = started {
            warn!(error = %error, "no thread to count what containers have written");
            state.give_up();
        }
    }

    /// Counts until the queue is empty.
    fn run(&self) {
        loop {
            let mut state = self.lock();
            let Some(job) = state.queue.pop_front() else {
                state.is_counting = false;
                state.queue.shrink_to_fit();
                break;
            };
            drop(state);
            let began = Instant::now();
            let Occupied { bytes, inodes } = occupied(&job.upper);
            let end = Instant::now();
            let written = Written { bytes, inodes, at: super::super::now() };
            let rest = (end - began).saturating_mul(REST_FACTOR).max(REST);
            // Who removed the container meanwhile has it forgotten.
            if let Some(layer) = self.lock().known.get_mut(&job.id) {
                *layer = Layer { written: Some(written), due: end.checked_add(rest), is_final: job.has_ended };
            }
            self.counted.notify_all();
        }
        self.counted.notify_all();
    }
}

impl State {
    fn give_up(&mut self) {
        self.is_counting = false;
        for job in std::mem::take(&mut self.queue) {
            if let Some(layer) = self.known.get_mut(&job.id) {
                layer.due = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::record::tests::container;
    use super::super::super::state::{ContainerState, Exit, Reason};
    use super::*;

    fn settings(dir: &tempfile::TempDir) -> Settings {
        Settings::new(dir.path().to_owned(), dir.path().join("run"), "/shim".into())
    }

    fn running(settings: &Settings) -> Arc<ContainerRecord> {
        let mut record = container('a', 'c');
        record.state = ContainerState::Running { pid: 1, started_at: 1 };
        fs::create_dir_all(settings.container(&record.id).join("upper")).unwrap();
        Arc::new(record)
    }

    /// As if the rest were over.
    fn age(layers: &Layers, id: &ContainerId) {
        layers.0.lock().known.get_mut(id).unwrap().due = Some(Instant::now());
    }

    fn counted(layers: &Layers, settings: &Settings, record: &Arc<ContainerRecord>, inodes: u64) {
        let end = Instant::now() + Duration::from_secs(30);
        while layers.get(&record.id).is_none_or(|w| w.inodes != inodes) {
            assert!(Instant::now() < end, "{:?}", layers.get(&record.id));
            layers.count(settings, std::slice::from_ref(record), SHORTLY);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_layer_is_counted_when_asked_and_not_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, layers) = (settings(&dir), Layers::default());
        let record = running(&settings);
        assert_eq!(layers.get(&record.id), None);
        counted(&layers, &settings, &record, 0);
        fs::write(settings.container(&record.id).join("upper/file"), vec![1; 10_000]).unwrap();
        layers.count(&settings, std::slice::from_ref(&record), SHORTLY);
        assert!(layers.0.lock().queue.is_empty(), "not due");
        assert_eq!(layers.get(&record.id).unwrap().inodes, 0);
        age(&layers, &record.id);
        counted(&layers, &settings, &record, 1);
        assert!(layers.get(&record.id).unwrap().bytes >= 10_000);
    }

    #[test]
    fn an_ended_containers_layer_is_counted_once_more() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, layers) = (settings(&dir), Layers::default());
        let record = running(&settings);
        counted(&layers, &settings, &record, 0);
        let file = settings.container(&record.id).join("upper/file");
        fs::write(&file, "1").unwrap();
        let mut ended = (*record).clone();
        let exit = Exit { started_at: 1, finished_at: 2, code: 0, reason: Reason::Completed, message: String::new() };
        ended.state = ContainerState::Exited(exit);
        let ended = Arc::new(ended);
        counted(&layers, &settings, &ended, 1);
        age(&layers, &ended.id);
        layers.count(&settings, std::slice::from_ref(&ended), SHORTLY);
        assert!(layers.0.lock().queue.is_empty() && layers.0.lock().known[&ended.id].is_final);
    }

    #[test]
    fn the_gone_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, layers) = (settings(&dir), Layers::default());
        let record = running(&settings);
        counted(&layers, &settings, &record, 0);
        layers.prune(1, |_| false);
        assert!(layers.get(&record.id).is_some(), "few are kept");
        for _ in 0..SLACK + 2 {
            let id = ContainerId::from_random(rand_bytes(&layers));
            layers.0.lock().known.insert(id, Layer::default());
        }
        layers.prune(1, |id| *id == record.id);
        assert_eq!(layers.0.lock().known.len(), 1);
    }

    fn rand_bytes(layers: &Layers) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[0] = u8::try_from(layers.0.lock().known.len()).unwrap();
        bytes
    }
}
