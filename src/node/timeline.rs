//! Where the time of an operation went: its steps, measured where they are taken.
//!
//! A step costs one look at the monotonic clock, and some bytes in a record that is written anyway. What is written down
//! is known before that: so the last writing of a record is no step of the operation it tells of.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::now;
use super::state::Nanos;
use crate::observe::metrics;

/// So many operations are kept of an object; each of the usual ones happens once.
const MAX_OPERATIONS: usize = 8;

/// What was done to an object, and what of it took how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// CRI's name ("RunPodSandbox").
    pub operation: Cow<'static, str>,
    /// When it began, in nanoseconds since the epoch.
    pub at: Nanos,
    /// Microseconds in all.
    pub elapsed_us: u64,
    /// By their beginnings. Those that are taken side by side overlap.
    pub steps: Vec<Step>,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done; part of another step after that one's name and a slash ("shim/rootfs").
    pub name: Cow<'static, str>,
    /// Microseconds from the operation's beginning.
    pub start_us: u64,
    /// Microseconds.
    pub elapsed_us: u64,
}

/// An operation under way.
#[derive(Debug)]
pub struct Recorder {
    operation: &'static str,
    at: Nanos,
    begun: Instant,
    /// When the last step ended.
    last: Instant,
    steps: Vec<Step>,
}

/// When something began and ended.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    from: Instant,
    to: Instant,
}

/// Measures a future from its first poll to its end.
pub async fn timed<T>(future: impl Future<Output = T>) -> (T, Span) {
    let from = Instant::now();
    let value = future.await;
    (value, Span { from, to: Instant::now() })
}

impl Recorder {
    /// Begins now.
    #[must_use]
    pub fn begin(operation: &'static str) -> Self {
        let begun = Instant::now();
        Self { operation, at: now(), begun, last: begun, steps: Vec::new() }
    }

    /// Whether no step has been taken yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.steps.is_empty()
    }

    /// A step that began with the end of the last one, and ends now.
    pub fn lap(&mut self, name: &'static str) {
        let from = self.last;
        self.span(name, Span { from, to: Instant::now() });
    }

    /// A step that was taken beside others.
    pub fn span(&mut self, name: &'static str, span: Span) {
        let start_us = micros(span.from.duration_since(self.begun));
        // So that what lies inside of something in time does so in numbers.
        let elapsed_us = micros(span.to.duration_since(self.begun)).saturating_sub(start_us);
        self.steps.push(Step { name: Cow::Borrowed(name), start_us, elapsed_us });
        self.last = self.last.max(span.to);
    }

    /// The parts of the step `name`, told by whoever took it, in their order: they are laid end to end at its end.
    pub fn parts<S: AsRef<str>>(&mut self, name: &'static str, parts: impl IntoIterator<Item = (S, u64)>) {
        let Some(at) = self.steps.iter().rposition(|step| step.name == name) else { return };
        let parts: Vec<(S, u64)> = parts.into_iter().collect();
        let (mut start_us, whole_us) = (self.steps[at].start_us, self.steps[at].elapsed_us);
        let sum_us = parts.iter().fold(0_u64, |sum, (_, elapsed_us)| sum.saturating_add(*elapsed_us));
        // Rounded down each, they are never more than the whole; a clock may differ all the same.
        start_us += whole_us.saturating_sub(sum_us);
        let end_us = self.steps[at].start_us + whole_us;
        let place = |(part, elapsed_us): (S, u64)| {
            let elapsed_us = elapsed_us.min(end_us - start_us);
            let step = Step { name: format!("{name}/{}", part.as_ref()).into(), start_us, elapsed_us };
            start_us += elapsed_us;
            step
        };
        let parts: Vec<Step> = parts.into_iter().map(place).collect();
        self.steps.splice(at + 1..at + 1, parts);
    }

    /// The operation as it is by now; it is counted, too.
    #[must_use]
    pub fn end(mut self) -> Operation {
        let elapsed_us = micros(self.begun.elapsed());
        self.steps.shrink_to_fit();
        self.steps.iter().for_each(|step| metrics::step(self.operation, &step.name, step.elapsed_us));
        Operation { operation: Cow::Borrowed(self.operation), at: self.at, elapsed_us, steps: self.steps }
    }
}

/// Keeps an operation with those before it.
pub fn keep(timeline: &mut Vec<Operation>, operation: Operation) {
    if timeline.len() >= MAX_OPERATIONS {
        timeline.remove(0);
    }
    timeline.push(operation);
}

/// Whole microseconds.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_lie_within_their_operation() {
        let mut recorder = Recorder::begin("Test");
        tokio::time::sleep(Duration::from_millis(2)).await;
        recorder.lap("first");
        let sleep = |ms| timed(tokio::time::sleep(Duration::from_millis(ms)));
        let (((), long), ((), short)) = tokio::join!(sleep(4), sleep(2));
        recorder.span("long", long);
        recorder.span("short", short);
        recorder.lap("last");
        let operation = recorder.end();
        let names: Vec<&str> = operation.steps.iter().map(|step| &*step.name).collect();
        assert_eq!(names, ["first", "long", "short", "last"]);
        for step in &operation.steps {
            assert!(step.start_us + step.elapsed_us <= operation.elapsed_us, "{operation:?}");
        }
        let [first, long, short, last] = &operation.steps[..] else { panic!("{operation:?}") };
        assert!(first.elapsed_us >= 2000 && long.elapsed_us >= 4000 && short.elapsed_us < long.elapsed_us);
        assert!(long.start_us >= first.elapsed_us && last.start_us >= long.start_us + long.elapsed_us);
    }

    #[test]
    fn parts_are_laid_at_the_end_of_their_step_and_never_outgrow_it() {
        let mut recorder = Recorder::begin("Test");
        let from = recorder.begun + Duration::from_micros(100);
        recorder.span("shim", Span { from, to: from + Duration::from_micros(50) });
        recorder.span("other", Span { from, to: from });
        recorder.parts("shim", [("a", 10), ("b", 20)]);
        recorder.parts("other", [("c", 5)]);
        recorder.parts("absent", [("d", 5)]);
        let placed: Vec<_> = recorder.steps.iter().map(|step| (&*step.name, step.start_us, step.elapsed_us)).collect();
        assert_eq!(
            placed,
            [("shim", 100, 50), ("shim/a", 120, 10), ("shim/b", 130, 20), ("other", 100, 0), ("other/c", 100, 0)]
        );
    }

    #[test]
    fn so_many_operations_are_kept() {
        let mut timeline = Vec::new();
        for _ in 0..MAX_OPERATIONS + 3 {
            keep(&mut timeline, Recorder::begin("Test").end());
        }
        assert_eq!(timeline.len(), MAX_OPERATIONS);
    }
}
