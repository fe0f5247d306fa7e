//! Stopping a container: its signal, the grace, then SIGKILL.
//!
//! One stop a container, whoever and how many ask for it. The signal is sent once; a later call
//! can only shorten the grace.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::container::Doing;
use super::ending::limited;
use super::{Done, KILL_DEADLINE, Pod, Reply, answer, answer_all};
use crate::id::ContainerId;
use crate::node::error::{NodeError, STUCK};
use crate::node::timeline::Recorder;

/// How long a shim may take to send a signal.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);
/// The longest grace there is; a longer one would overflow the clock.
const LONGEST_GRACE: Duration = Duration::from_secs(3600 * 24 * 365);
const SIGKILL: i32 = 9;

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The stop signal was sent; SIGKILL follows at the deadline.
    Asked,
    /// SIGKILL was sent; at the deadline the stop has failed.
    Killed,
}

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stop {
    step: Step,
    deadline: Instant,
    waiters: Vec<Reply<()>>,
    /// Until it has ended.
    recorder: Option<Recorder>,
}

impl Stop {
    fn new(now: Instant, grace: Duration) -> Self {
        let (step, wait) = match grace {
            Duration::ZERO => (Step::Killed, KILL_DEADLINE),
            grace => (Step::Asked, grace.min(LONGEST_GRACE)),
        };
        let recorder = Some(Recorder::begin("StopContainer"));
        Self { step, deadline: now + wait, waiters: Vec::new(), recorder }
    }

    /// A later call: shortens the grace, never lengthens it, and asks for no second signal.
    fn join(&mut self, now: Instant, grace: Duration) {
        if self.step == Step::Asked {
            self.deadline = self.deadline.min(now + grace.min(LONGEST_GRACE));
        }
    }

    /// A step has been taken.
    fn lap(&mut self, name: &'static str) {
        self.recorder.iter_mut().for_each(|recorder| recorder.lap(name));
    }

    /// The container has ended: what the stop took, once.
    pub(super) fn ended(&mut self) -> Option<Recorder> {
        self.lap(match self.step {
            Step::Asked => "grace",
            Step::Killed => "kill",
        });
        self.recorder.take()
    }

    /// What is due at `now`.
    fn due(&mut self, now: Instant) -> Due {
        match self.step {
            _ if now < self.deadline => Due::Nothing,
            Step::Asked => {
                self.lap("grace");
                self.step = Step::Killed;
                self.deadline = now + KILL_DEADLINE;
                Due::Kill
            }
            Step::Killed => Due::Failure,
        }
    }
}

/// See [`Stop::due`].
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Kill,
    Failure,
}

impl Pod {
    pub(super) fn stop_container(&mut self, id: &ContainerId, grace: Duration, reply: Reply<()>) {
        let now = Instant::now();
        let Some(entry) = self.containers.get_mut(id) else { return answer(reply, Ok(())) };
        if let Some(stop) = &mut entry.stop {
            stop.join(now, grace);
            return stop.waiters.push(reply);
        }
        // While it starts there is a process that may be its program already.
        let starting = matches!(entry.doing, Doing::Starting(_));
        if !entry.record.state.is_running() && !starting {
            return answer(reply, Ok(()));
        }
        let mut stop = Stop::new(now, grace);
        stop.waiters.push(reply);
        let kill = stop.step == Step::Killed;
        let signal = if kill { SIGKILL } else { entry.record.stop_signal };
        entry.stop = Some(stop);
        self.send_signal(id, signal, kill);
    }

    fn send_signal(&mut self, id: &ContainerId, signal: i32, all: bool) {
        // Without a shim the loss of it is under way, which ends the container and this stop.
        let Some(shim) = self.shim.clone() else { return };
        debug!(container = %id, signal, all, "signal sent");
        let id = id.clone();
        self.ops.push(async move {
            let call = shim.signal(id.as_str(), signal, all);
            let result = limited("stop container", id.short(), SIGNAL_DEADLINE, call).await;
            Done::Signalled(id, result)
        });
    }

    pub(super) fn on_signalled(&mut self, id: &ContainerId, result: Result<(), NodeError>) {
        use crate::wire::client::WireError;
        match result {
            // Its end will be reported.
            Ok(()) => {
                // Of the first signal; the time after a kill is the kill's.
                if let Some(stop) = self.containers.get_mut(id).and_then(|entry| entry.stop.as_mut())
                    && stop.recorder.as_ref().is_some_and(Recorder::is_new)
                {
                    stop.lap("signal");
                }
            }
            Err(NodeError::Shim { source: WireError::Gone, .. }) => {}
            Err(e) => self.fail_stop(id, e),
        }
    }

    /// The container has ended, or is being removed: whoever waits for that is told.
    pub(super) fn end_stop(&mut self, id: &ContainerId) {
        if let Some(entry) = self.containers.get_mut(id)
            && !entry.record.state.is_alive()
            && let Some(mut stop) = entry.stop.take()
        {
            answer_all(&mut stop.waiters, Ok(()));
        }
    }

    fn fail_stop(&mut self, id: &ContainerId, error: NodeError) {
        if let Some(mut stop) = self.containers.get_mut(id).and_then(|entry| entry.stop.take()) {
            answer_all(&mut stop.waiters, Err(&Arc::new(error)));
        }
    }

    /// When something is due next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.containers.values().filter_map(|entry| Some(entry.stop.as_ref()?.deadline)).min()
    }

    pub(super) fn on_deadline(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, entry) in &mut self.containers {
            match entry.stop.as_mut().map_or(Due::Nothing, |stop| stop.due(now)) {
                Due::Nothing => {}
                what => due.push((id.clone(), what)),
            }
        }
        for (id, what) in due {
            if what == Due::Kill {
                self.send_signal(&id, SIGKILL, true);
            } else {
                let object = id.short().to_owned();
                let error = NodeError::Deadline { step: "kill container", object, limit: KILL_DEADLINE, hint: STUCK };
                self.fail_stop(&id, error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn no_grace_kills_at_once() {
        let stop = Stop::new(Instant::now(), Duration::ZERO);
        assert_eq!(stop.step, Step::Killed);
    }

    #[test]
    fn the_grace_ends_in_a_kill_and_the_kill_in_an_error() {
        let begin = Instant::now();
        let mut stop = Stop::new(begin, 2 * SECOND);
        assert_eq!(stop.due(begin + SECOND), Due::Nothing);
        assert_eq!(stop.due(begin + 2 * SECOND), Due::Kill);
        assert_eq!(stop.due(begin + 3 * SECOND), Due::Nothing);
        assert_eq!(stop.due(begin + 2 * SECOND + KILL_DEADLINE), Due::Failure);
    }

    #[test]
    fn a_later_call_only_shortens() {
        let begin = Instant::now();
        let mut stop = Stop::new(begin, 10 * SECOND);
        stop.join(begin, 100 * SECOND);
        assert_eq!(stop.deadline, begin + 10 * SECOND);
        stop.join(begin + SECOND, SECOND);
        assert_eq!(stop.deadline, begin + 2 * SECOND);
        stop.join(begin + SECOND, Duration::ZERO);
        assert_eq!(stop.due(begin + SECOND), Due::Kill);
        let deadline = stop.deadline;
        stop.join(begin + SECOND, Duration::ZERO);
        assert_eq!(stop.deadline, deadline, "a killed one has its time to die");
    }

    #[test]
    fn an_endless_grace_is_a_long_one() {
        assert_eq!(Stop::new(Instant::now(), Duration::MAX).step, Step::Asked);
    }
}
