//! What happened to pods and containers, in one order for all readers.
//!
//! The picture that lists are answered from ([`super::index`]) tells each change it shows, under its own lock: so events
//! come in the order of the changes, and each tells the pod as it was at that moment. An event is a few pointers to
//! records that are immutable anyway; messages are made of it when somebody reads.
//!
//! Events are kept for late readers for [`KEPT_FOR`], at most [`MAX_EVENTS`] and [`MAX_BYTES`] of them. A reader is
//! a place in that log and owns no queue: one that is too slow is told how many it lost, and holds nobody up. The log
//! is in memory only. What happened while the daemon was dead is told once after its start.

use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use super::now;
use super::record::{ContainerRecord, SandboxRecord};
use super::state::{ContainerState, Exit, Nanos, SandboxState};
use super::timeline::{Operation, Step};
use crate::observe::metrics::EVENTS_LOST;

/// How long events are kept, as containerd does.
pub const KEPT_FOR: Duration = Duration::from_secs(5 * 60);
/// How many events are kept.
pub const MAX_EVENTS: usize = 4096;
/// What all events kept may hold in memory, by an estimate on the high side.
pub const MAX_BYTES: usize = 8 << 20;

/// Old events may stay a part of that time longer: they are not worth waking up for one by one.
const SWEEPS: u32 = 30;
/// How much larger than its encoding a message is in memory.
const UNPACKED: usize = 3;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// It is there.
    Created,
    /// It runs; a sandbox does from its creation on.
    Started,
    /// It has ended.
    Stopped,
    /// It is gone.
    Deleted,
}

/// One thing that happened.
#[derive(Debug)]
pub struct Event {
    /// When it was told, in nanoseconds since the epoch; no two events have the same, and it never goes back.
    pub at: Nanos,
    /// What happened.
    pub kind: EventKind,
    /// To which container; `None`: to the sandbox.
    pub container: Option<Arc<ContainerRecord>>,
    /// The sandbox, as it was then.
    pub sandbox: Arc<SandboxRecord>,
    /// All containers of the sandbox there were then.
    pub containers: Vec<Arc<ContainerRecord>>,
}

/// What has been told of an object, as can be seen from its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Told {
    created: bool,
    started: bool,
    stopped: bool,
}

impl Told {
    pub fn of_container(state: &ContainerState) -> Self {
        let ended = |exit: &Exit| Self { created: true, started: exit.started_at != 0, stopped: true };
        match state {
            ContainerState::Creating => Self::default(),
            ContainerState::Created { .. } => Self { created: true, ..Self::default() },
            ContainerState::Running { .. } => Self { created: true, started: true, stopped: false },
            ContainerState::Exited(exit) | ContainerState::Removing { exit: Some(exit), .. } => ended(exit),
            // Its end is still to come.
            ContainerState::Removing { exit: None, started_at } => {
                Self { created: true, started: *started_at != 0, stopped: false }
            }
        }
    }

    /// A sandbox that never was ready is shown only if it could not be undone, as stopped.
    pub fn of_sandbox(before: Self, state: &SandboxState) -> Self {
        match state {
            SandboxState::Creating => before,
            SandboxState::Ready | SandboxState::Stopping => Self { created: true, started: true, stopped: false },
            SandboxState::NotReady { .. } | SandboxState::Removing => {
                Self { created: true, started: before.started, stopped: true }
            }
        }
    }

    /// What is to be told when `self` becomes `now`. Nothing is started after its end.
    pub fn until(self, now: Self) -> impl Iterator<Item = EventKind> {
        let created = (now.created && !self.created).then_some(EventKind::Created);
        let started = (now.started && !self.started && !self.stopped).then_some(EventKind::Started);
        let stopped = (now.stopped && !self.stopped).then_some(EventKind::Stopped);
        created.into_iter().chain(started).chain(stopped)
    }

    /// What is to be told when it goes: whatever ran has ended before.
    pub fn until_gone(self) -> impl Iterator<Item = EventKind> {
        let stopped = (self.started && !self.stopped).then_some(EventKind::Stopped);
        stopped.into_iter().chain([EventKind::Deleted])
    }
}

/// Something the log holds, however many events point to it.
#[derive(Debug)]
struct Held {
    events: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Log {
    events: VecDeque<(Instant, Arc<Event>)>,
    /// How many events have left the log.
    gone: u64,
    /// By address: what is held stays where it is.
    held: HashMap<usize, Held>,
    bytes: usize,
    last_at: Nanos,
}

impl Log {
    fn push(&mut self, mut event: Event) {
        event.at = event.at.max(self.last_at + 1);
        self.last_at = event.at;
        self.account(&event, true);
        self.events.push_back((Instant::now(), Arc::new(event)));
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES && self.events.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, event)) = self.events.pop_front() {
            self.gone += 1;
            self.account(&event, false);
        }
    }

    fn expire(&mut self, now: Instant, kept_for: Duration) {
        while self.events.front().is_some_and(|(since, _)| now.duration_since(*since) >= kept_for) {
            self.pop();
        }
        if self.events.is_empty() {
            // What a busy hour needed is given back.
            (self.events, self.held) = Default::default();
        }
    }

    /// The number the next event will have.
    fn end(&self) -> u64 {
        self.gone + self.events.len() as u64
    }

    /// Counts what an event holds when it comes, and takes it off when it goes.
    fn account(&mut self, event: &Event, comes: bool) {
        let own = size_of::<Event>() + size_of::<(Instant, Arc<Event>)>() + event.containers.len() * size_of::<usize>();
        self.bytes = if comes { self.bytes + own } else { self.bytes - own };
        let sandbox = &event.sandbox;
        self.count(Arc::as_ptr(sandbox).addr(), comes, || sandbox_bytes(sandbox));
        self.count(Arc::as_ptr(&sandbox.config).addr(), comes, || message_bytes(&*sandbox.config));
        for container in event.containers.iter().chain(&event.container) {
            self.count(Arc::as_ptr(container).addr(), comes, || container_bytes(container));
            self.count(Arc::as_ptr(&container.config).addr(), comes, || message_bytes(&*container.config));
        }
    }

    fn count(&mut self, key: usize, comes: bool, bytes: impl FnOnce() -> usize) {
        if comes {
            let total = &mut self.bytes;
            let held = self.held.entry(key).or_insert_with(|| {
                let bytes = bytes() + size_of::<(usize, Held)>();
                *total += bytes;
                Held { events: 0, bytes }
            });
            held.events += 1;
        } else if let Some(held) = self.held.get_mut(&key) {
            held.events -= 1;
            if held.events == 0 {
                self.bytes -= held.bytes;
                self.held.remove(&key);
            }
        }
    }
}

fn message_bytes<M: Message>(message: &M) -> usize {
    size_of::<M>() + UNPACKED * message.encoded_len()
}

fn sandbox_bytes(record: &SandboxRecord) -> usize {
    let texts: usize = record.warnings.iter().map(|text| size_of::<String>() + text.len()).sum();
    // Addresses and a result of CNI take less.
    let network = record.network.as_ref().map_or(0, |_| 2048);
    size_of::<SandboxRecord>() + record.id.as_str().len() + texts + network + timeline_bytes(&record.timeline)
}

fn timeline_bytes(timeline: &[Operation]) -> usize {
    let steps = timeline.iter().flat_map(|operation| &operation.steps);
    size_of_val(timeline) + steps.map(|step| size_of::<Step>() + step.name.len()).sum::<usize>()
}

fn container_bytes(record: &ContainerRecord) -> usize {
    let text = |text: &String| size_of::<String>() + text.len();
    let layers: usize = record.layers.iter().chain(record.image_volumes.iter().flat_map(|v| &v.layers)).map(text).sum();
    let volumes = record.image_volumes.len() * 128;
    let steps = timeline_bytes(&record.timeline);
    let texts: usize =
        record.warnings.iter().map(text).sum::<usize>() + record.log_path.len() + record.image_name.len();
    let resources = record.resources.as_ref().map_or(0, message_bytes);
    let groups = record.user.as_ref().map_or(0, |user| user.groups.len() * size_of::<u32>());
    // Three ids, and what an exit has to say.
    size_of::<ContainerRecord>() + 3 * 72 + 128 + layers + volumes + steps + texts + resources + groups
}

/// The events of one node.
#[derive(Debug)]
pub(super) struct Events {
    log: Mutex<Log>,
    /// How many events there ever were.
    news: watch::Sender<u64>,
    kept_for: Duration,
}

impl Default for Events {
    fn default() -> Self {
        Self::keeping(KEPT_FOR)
    }
}

impl Events {
    fn keeping(kept_for: Duration) -> Self {
        Self { log: Mutex::default(), news: watch::Sender::new(0), kept_for }
    }

    // A panic while the lock is held may leave numbers wrong, never events: reading goes on.
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all readers, those of the next minutes included.
    pub fn tell(
        &self,
        kind: EventKind,
        container: Option<Arc<ContainerRecord>>,
        sandbox: Arc<SandboxRecord>,
        containers: Vec<Arc<ContainerRecord>>,
    ) {
        let mut log = self.log();
        log.push(Event { at: now(), kind, container, sandbox, containers });
        let end = log.end();
        drop(log);
        self.news.send_replace(end);
    }

    /// Forgets what is old, for as long as the node is there.
    pub async fn attend(self: Arc<Self>) {
        let mut news = self.news.subscribe();
        loop {
            let oldest = self.log().events.front().map(|(since, _)| *since);
            match oldest {
                Some(since) => {
                    let due = (since + self.kept_for).max(Instant::now() + self.kept_for / SWEEPS);
                    tokio::time::sleep_until(due).await;
                    self.log().expire(Instant::now(), self.kept_for);
                }
                // Fails never: the sender is ours.
                None if news.changed().await.is_ok() => {}
                None => return,
            }
        }
    }

    /// A reader of all events that are kept, and those to come.
    pub fn read(self: &Arc<Self>) -> EventReader {
        let news = self.news.subscribe();
        let log = self.log();
        let (next, end) = (log.gone, log.end());
        drop(log);
        EventReader { events: Arc::clone(self), news, next, begun_at: end }
    }
}

/// Events left the log before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} events were lost, as this reader took them too slowly: at most {MAX_EVENTS} are kept, for {} minutes; list \
     what there is, then follow again",
    KEPT_FOR.as_secs() / 60
)]
pub struct EventsLost {
    /// How many.
    pub count: u64,
}

/// Someone's place in the events.
#[derive(Debug)]
pub struct EventReader {
    events: Arc<Events>,
    news: watch::Receiver<u64>,
    next: u64,
    /// What there was when the reading began ends here.
    begun_at: u64,
}

impl EventReader {
    /// The next event; waits for it.
    ///
    /// # Errors
    /// [`EventsLost`]; reading goes on after what was lost.
    pub async fn next(&mut self) -> Result<Arc<Event>, EventsLost> {
        loop {
            self.news.borrow_and_update();
            if let Some(event) = self.take()? {
                return Ok(event);
            }
            if self.news.changed().await.is_err() {
                // Cannot be: the sender is in the events, which are held here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next event there was when the reading began; none after the last of them.
    ///
    /// # Errors
    /// As [`EventReader::next`].
    pub fn next_kept(&mut self) -> Result<Option<Arc<Event>>, EventsLost> {
        if self.next < self.begun_at { self.take() } else { Ok(None) }
    }

    fn take(&mut self) -> Result<Option<Arc<Event>>, EventsLost> {
        let log = self.events.log();
        let Some(place) = self.next.checked_sub(log.gone) else {
            let count = log.gone - self.next;
            self.next = log.gone;
            EVENTS_LOST.add(count);
            return Err(EventsLost { count });
        };
        let event = usize::try_from(place).ok().and_then(|place| log.events.get(place));
        let event = event.map(|(_, event)| Arc::clone(event));
        self.next += u64::from(event.is_some());
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{container, sandbox};
    use super::*;
    use crate::node::state::ContainerEvent;

    fn tell(events: &Events, sandbox: &Arc<SandboxRecord>, kind: EventKind) {
        events.tell(kind, None, Arc::clone(sandbox), Vec::new());
    }

    fn exit(state: &ContainerState) -> ContainerState {
        state.apply(&ContainerEvent::Exited { code: 0, at: 9, oom_killed: false }).unwrap()
    }

    fn kinds(before: &ContainerState, after: &ContainerState) -> Vec<EventKind> {
        Told::of_container(before).until(Told::of_container(after)).collect()
    }

    #[test]
    fn each_step_is_told_once_and_in_order() {
        use EventKind::{Created, Deleted, Started, Stopped};
        let created = ContainerState::Created { pid: 1 };
        let running = ContainerState::Running { pid: 1, started_at: 5 };
        let removing = running.apply(&ContainerEvent::RemoveRequested).unwrap();
        assert_eq!(kinds(&ContainerState::Creating, &created), [Created]);
        assert_eq!(kinds(&created, &running), [Started]);
        assert_eq!(kinds(&running, &exit(&running)), [Stopped]);
        assert_eq!(kinds(&created, &exit(&running)), [Started, Stopped], "both missed");
        assert_eq!(kinds(&created, &exit(&created)), [Stopped], "killed before its start");
        assert_eq!(kinds(&running, &removing), []);
        assert_eq!(kinds(&removing, &exit(&removing)), [Stopped]);
        assert_eq!(kinds(&exit(&created), &exit(&running)), [], "nothing starts after its end");
        let gone = |state: &ContainerState| Told::of_container(state).until_gone().collect::<Vec<_>>();
        assert_eq!(gone(&removing), [Stopped, Deleted]);
        assert_eq!(gone(&exit(&removing)), [Deleted]);
        assert_eq!(gone(&created), [Deleted]);
    }

    #[tokio::test]
    async fn readers_get_one_order_and_late_ones_what_is_kept() {
        let events = Arc::new(Events::default());
        let record = Arc::new(sandbox('a'));
        let mut early = events.read();
        for _ in 0..100 {
            tell(&events, &record, EventKind::Created);
        }
        let mut late = events.read();
        tell(&events, &record, EventKind::Deleted);
        let mut last_at = 0;
        for _ in 0..101 {
            let (one, other) = (early.next().await.unwrap(), late.next().await.unwrap());
            assert!(Arc::ptr_eq(&one, &other) && one.at > last_at);
            last_at = one.at;
        }
        let mut kept = events.read();
        assert_eq!(std::iter::from_fn(|| kept.next_kept().unwrap()).count(), 101);
        tell(&events, &record, EventKind::Created);
        assert!(kept.next_kept().unwrap().is_none() && kept.next().await.is_ok());
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_what_it_lost() {
        let events = Arc::new(Events::default());
        let record = Arc::new(sandbox('a'));
        let mut reader = events.read();
        for _ in 0..MAX_EVENTS + 7 {
            tell(&events, &record, EventKind::Created);
        }
        let lost = reader.next().await.unwrap_err();
        assert_eq!(lost.count, 7);
        assert!(lost.to_string().starts_with("7 events were lost"), "{lost}");
        for _ in 0..MAX_EVENTS {
            reader.next().await.unwrap();
        }
        assert!(tokio::time::timeout(Duration::from_millis(5), reader.next()).await.is_err());
    }

    #[test]
    fn bytes_are_bounded_whatever_the_events_are_about() {
        let events = Events::default();
        for i in 0..1000 {
            let mut record = sandbox('a');
            let mut config = (*record.config).clone();
            config.annotations.insert("long".to_owned(), "x".repeat(100_000 + i));
            record.config = Arc::new(config);
            tell(&events, &Arc::new(record), EventKind::Created);
            assert!(events.log().bytes <= MAX_BYTES);
        }
        assert!(events.log().events.len() < 40, "{}", events.log().events.len());
    }

    #[test]
    fn what_is_shared_counts_once_and_all_is_taken_off() {
        let mut log = Log::default();
        let (pod, containers) = (Arc::new(sandbox('a')), vec![Arc::new(container('a', 'c'))]);
        let event = || Event {
            at: 0,
            kind: EventKind::Started,
            container: containers.first().cloned(),
            sandbox: Arc::clone(&pod),
            containers: containers.clone(),
        };
        log.push(event());
        let first = log.bytes;
        log.push(event());
        assert!(log.bytes < first + 400, "{first} {}", log.bytes);
        log.expire(Instant::now() + KEPT_FOR, KEPT_FOR);
        assert_eq!((log.bytes, log.gone, log.events.len(), log.held.len()), (0, 2, 0, 0));
    }

    #[tokio::test]
    async fn old_events_are_forgotten() {
        let events = Arc::new(Events::keeping(Duration::from_millis(30)));
        let attending = tokio::spawn(Arc::clone(&events).attend());
        for _ in 0..2 {
            let mut reader = events.read();
            tell(&events, &Arc::new(sandbox('a')), EventKind::Created);
            assert!(reader.next().await.is_ok());
            while !events.log().events.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(events.read().next_kept().unwrap().is_none());
        }
        attending.abort();
    }
}
