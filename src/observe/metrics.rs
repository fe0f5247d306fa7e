//! What the daemon counts of its own work, beside its requests ([`super::rpc`]).
//!
//! One set a process, as it is the process that is watched: whoever does a piece of work counts it where he does it. What
//! can be seen from the state of pods, images or networks is not counted here but looked at when somebody asks.

use std::time::{Duration, Instant};

use super::instrument::{Counter, Family, Gauge, Held, Histogram};

/// Kinds of errors that are told apart; the rest share one.
const STEPS: usize = 96;

/// How pulls ended.
pub static PULLS: Family<&'static str, Histogram, 16> = Family::new();

/// Pulls under way.
pub static PULLS_UNDER_WAY: Gauge = Gauge::new();

/// Bytes of layers' blobs that came from registries.
pub static DOWNLOADED: Counter = Counter::new();

/// Bytes of layers that were written to the disk.
pub static UNPACKED: Counter = Counter::new();

/// Exec sessions that run, with streams or without.
pub static EXEC_SESSIONS: Gauge = Gauge::new();

/// Clients of the streaming server that are served.
pub static STREAMING_SESSIONS: Gauge = Gauge::new();

/// Events that were gone before a client had read them.
pub static EVENTS_LOST: Counter = Counter::new();

/// Requests that failed, by the step that did.
static ERRORS: Family<Box<str>, Counter, STEPS> = Family::new();

/// How long the steps of operations took. Steps of a shim's are named by it, and a shim may be of another version.
static TIMELINE: Family<(&'static str, Box<str>), Histogram, STEPS> = Family::new();

/// Counts a step of an operation that has ended.
pub fn step(operation: &'static str, step: &str, elapsed_us: u64) {
    let is_it = |(o, s): &(&'static str, Box<str>)| **s == *step && *o == operation;
    TIMELINE.of(is_it, || (operation, step.into())).observe(Duration::from_micros(elapsed_us));
}

/// How long steps took, by operation and step; without them all further ones.
pub fn steps() -> impl Iterator<Item = (Option<(&'static str, &'static str)>, &'static Histogram)> {
    TIMELINE.iter().map(|(key, took)| (key.map(|(operation, step)| (*operation, &**step)), took))
}

/// Counts a request that failed at this step.
pub fn failed(step: &str) {
    ERRORS.of(|known| **known == *step, || step.into()).add(1);
}

/// How many requests failed at which step; without a name those of all further ones.
pub fn failures() -> impl Iterator<Item = (Option<&'static str>, u64)> {
    ERRORS.iter().map(|(step, count)| (step.map(|step| &**step), count.get()))
}

/// A pull under way.
#[derive(Debug)]
#[must_use = "it is under way as long as this lives"]
pub struct Pull {
    begun: Instant,
    result: &'static str,
    _under_way: Held,
}

impl Pull {
    /// It begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), result: "canceled", _under_way: PULLS_UNDER_WAY.hold() }
    }

    /// It has ended like this; without this word nobody wanted it any more.
    pub fn end(mut self, result: &'static str) {
        self.result = result;
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        PULLS.of(|known| *known == self.result, || self.result).observe(self.begun.elapsed());
    }
}
