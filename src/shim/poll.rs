//! What the shim waits for: descriptors by epoll, deadlines by its timeout.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Names an object of the shim for as long as it runs: never given twice.
pub type Key = u32;

/// What a descriptor is, so that an event finds its way.
///
/// An event may be older than the death of its object; keys are never reused, so it then finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The signalfd.
    Signals,
    /// The listening socket.
    Listener,
    /// A daemon's connection.
    Connection(Key),
    /// The channel from a container's init.
    Channel(Key),
    /// The channel from an exec session's first process.
    ExecChannel(Key),
    /// A container's output pipe, or its terminal.
    Stdout(Key),
    /// A container's error pipe.
    Stderr(Key),
    /// The writing end of a container's input.
    Stdin(Key),
    /// An attached client's input: container, client.
    Inlet(Key, Key),
    /// An attached client's copy of the output: container, client.
    Tap(Key, Key),
}

/// Keys stay below this, so that a container's and a client's fit into one epoll datum beside the kind.
const KEY_BITS: u32 = 28;
const KEY_MASK: u64 = (1 << KEY_BITS) - 1;

impl Source {
    fn encode(self) -> u64 {
        let (kind, a, b) = match self {
            Self::Signals => (0, 0, 0),
            Self::Listener => (1, 0, 0),
            Self::Connection(key) => (2, key, 0),
            Self::Channel(key) => (3, key, 0),
            Self::ExecChannel(key) => (4, key, 0),
            Self::Stdout(key) => (5, key, 0),
            Self::Stderr(key) => (6, key, 0),
            Self::Stdin(key) => (7, key, 0),
            Self::Inlet(container, client) => (8, container, client),
            Self::Tap(container, client) => (9, container, client),
        };
        kind << (2 * KEY_BITS) | u64::from(a) << KEY_BITS | u64::from(b)
    }

    fn decode(datum: u64) -> Option<Self> {
        let key = |shift: u32| Key::try_from(datum >> shift & KEY_MASK).ok();
        let (a, b) = (key(KEY_BITS)?, key(0)?);
        Some(match datum >> (2 * KEY_BITS) {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Connection(a),
            3 => Self::Channel(a),
            4 => Self::ExecChannel(a),
            5 => Self::Stdout(a),
            6 => Self::Stderr(a),
            7 => Self::Stdin(a),
            8 => Self::Inlet(a, b),
            9 => Self::Tap(a, b),
            _ => return None,
        })
    }
}

/// Which readiness a source is watched for. Hang-ups and errors are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Both.
    ReadWrite,
    /// Only hang-up and error.
    Hangup,
}

impl Watch {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Self::Hangup => EpollFlags::empty(),
        }
    }
}

/// One source that is ready.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Which.
    pub source: Source,
    /// Something to read, or the end of it.
    pub readable: bool,
    /// Room to write, or nobody to read it.
    pub writable: bool,
}

/// The epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    last_key: Key,
}

/// Most events taken at a time; what is ready beyond comes next time.
const BATCH: usize = 32;

impl Poller {
    /// Makes it.
    ///
    /// # Errors
    /// As epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, last_key: 0 })
    }

    /// A key for a new object.
    pub fn key(&mut self) -> Key {
        // 2^28 objects in one pod's life would take years of execs; then old keys are long gone.
        self.last_key = (self.last_key + 1) & 0x0fff_ffff;
        self.last_key
    }

    /// Starts watching. Level-triggered.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add(&self, fd: impl AsFd, source: Source, watch: Watch) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(watch.flags(), source.encode()))?)
    }

    /// Changes what a watched descriptor is watched for.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn change(&self, fd: impl AsFd, source: Source, watch: Watch) -> io::Result<()> {
        let mut event = EpollEvent::new(watch.flags(), source.encode());
        Ok(self.epoll.modify(fd, &mut event)?)
    }

    /// Stops watching. To be done before a descriptor is closed: a cloned child may hold a copy, and the kernel
    /// would go on telling of it.
    pub fn remove(&self, fd: impl AsFd) {
        // ENOENT: was not watched.
        self.epoll.delete(fd).ok();
    }

    /// Waits until something is ready or `deadline` has come.
    ///
    /// # Errors
    /// As epoll_wait(2), but for `EINTR`, after which nothing is ready.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<Ready>> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut events, timeout(deadline)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let ready = |event: &EpollEvent| {
            let flags = event.events();
            Some(Ready {
                source: Source::decode(event.data())?,
                readable: flags.intersects(EpollFlags::EPOLLIN | gone),
                writable: flags.intersects(EpollFlags::EPOLLOUT | gone),
            })
        };
        Ok(events[..count].iter().filter_map(ready).collect())
    }
}

fn timeout(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: waking before the deadline would only mean to wait again.
    let millis = left.saturating_add(Duration::from_micros(999)).as_millis().min(60_000);
    u16::try_from(millis).map_or(EpollTimeout::MAX, EpollTimeout::from)
}

/// Something to be looked at again at a time. What it means by then is decided by the state of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A container's create or start takes too long, or its output does not end.
    Container(Key),
    /// An attached client takes nothing: container, client.
    Tap(Key, Key),
    /// Cgroups that could not be removed yet.
    Sweep,
    /// The shutdown takes too long.
    Shutdown,
    /// The last request was a while ago: memory it needed can go.
    Trim,
    /// Time to enter the cgroup of shims.
    Home,
    /// Time to accept connections again.
    Accept,
}

/// Deadlines; there are never many.
#[derive(Debug, Default)]
pub struct Timers(Vec<(Instant, Timer)>);

impl Timers {
    /// Sets a timer in `after`, replacing an equal one.
    pub fn set(&mut self, timer: Timer, after: Duration) {
        self.clear(timer);
        self.0.push((Instant::now() + after, timer));
    }

    /// Sets a timer in `after` unless it is set.
    pub fn set_if_none(&mut self, timer: Timer, after: Duration) {
        if !self.0.iter().any(|(_, other)| *other == timer) {
            self.0.push((Instant::now() + after, timer));
        }
    }

    /// Forgets it.
    pub fn clear(&mut self, timer: Timer) {
        self.0.retain(|(_, other)| *other != timer);
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().map(|(at, _)| *at).min()
    }

    /// Takes those due out.
    pub fn due(&mut self) -> Vec<Timer> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let due = self.0.iter().filter(|(at, _)| *at <= now).map(|(_, timer)| *timer).collect();
        self.0.retain(|(at, _)| *at > now);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_trip_through_epoll() {
        for source in [
            Source::Signals,
            Source::Listener,
            Source::Connection(1),
            Source::Channel(2),
            Source::ExecChannel(0x0fff_ffff),
            Source::Stdout(4),
            Source::Stderr(5),
            Source::Stdin(6),
            Source::Inlet(7, 0x0fff_ffff),
            Source::Tap(0x0fff_ffff, 8),
        ] {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(u64::MAX), None);
    }

    #[test]
    fn readiness_and_hangup_are_told() {
        let poller = Poller::new().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        poller.add(&read, Source::Stdout(1), Watch::Read).unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        assert!(poller.wait(soon()).unwrap().is_empty());
        nix::unistd::write(&write, b"x").unwrap();
        assert!(poller.wait(soon()).unwrap()[0].readable);
        poller.change(&read, Source::Stdout(1), Watch::Hangup).unwrap();
        assert!(poller.wait(soon()).unwrap().is_empty());
        drop(write);
        assert!(poller.wait(soon()).unwrap()[0].readable);
        poller.remove(&read);
        assert!(poller.wait(soon()).unwrap().is_empty());
    }

    #[test]
    fn timers_fall_due_once() {
        let mut timers = Timers::default();
        timers.set(Timer::Sweep, Duration::ZERO);
        timers.set(Timer::Sweep, Duration::ZERO);
        timers.set(Timer::Shutdown, Duration::from_secs(100));
        timers.set_if_none(Timer::Shutdown, Duration::ZERO);
        assert_eq!(timers.due(), [Timer::Sweep]);
        assert!(timers.due().is_empty());
        assert!(timers.next().unwrap() > Instant::now());
        timers.clear(Timer::Shutdown);
        assert_eq!(timers.next(), None);
    }
}
