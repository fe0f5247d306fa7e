//! Who may use a driver now: any number of pods' calls at the same time, or one that must be alone.
//!
//! Who wants to be alone may say for how long newcomers wait for that: then a steady stream of pods cannot keep it from
//! its turn for ever, and one call that hangs cannot make it keep all pods waiting.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Calls about single pods.
    shared: usize,
    /// Somebody is alone.
    taken: bool,
    /// Those who wait to be alone; newcomers let them go first.
    waiting: usize,
}

/// Beside others, until it is dropped.
#[derive(Debug)]
pub(super) struct Shared<'a>(&'a Gate);

/// Alone, until it is dropped.
#[derive(Debug)]
pub(super) struct Alone<'a>(&'a Gate);

impl Gate {
    /// Waits while somebody is alone, or waits for it.
    pub fn shared(&self) -> Shared<'_> {
        let mut state = self.state();
        while state.taken || state.waiting > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.shared += 1;
        Shared(self)
    }

    /// The right to be alone, once those who are at work have ended; `None` if that takes longer than `patience`.
    /// Newcomers wait meanwhile.
    pub fn alone(&self, patience: Duration) -> Option<Alone<'_>> {
        let until = Instant::now() + patience;
        let mut state = self.state();
        state.waiting += 1;
        while state.taken || state.shared > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
        if state.taken || state.shared > 0 {
            drop(state);
            self.changed.notify_all();
            return None;
        }
        state.taken = true;
        Some(Alone(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.0.state().shared -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.state().taken = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn several_are_beside_each_other_and_one_is_alone() {
        let gate = Gate::default();
        let two = (gate.shared(), gate.shared());
        assert!(gate.alone(Duration::ZERO).is_none() && gate.alone(Duration::from_millis(20)).is_none());
        drop(two);
        let alone = gate.alone(Duration::ZERO).unwrap();
        assert!(gate.alone(Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(gate.shared()));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(alone);
            waiter.join().unwrap();
        });
    }

    #[test]
    fn a_steady_stream_lets_one_be_alone() {
        let (gate, over) = (Gate::default(), AtomicBool::new(false));
        let others = || {
            while !over.load(Ordering::SeqCst) {
                let _shared = gate.shared();
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        std::thread::scope(|scope| {
            // So many that a moment with nobody at work hardly comes by itself.
            (0..16).for_each(|_| drop(scope.spawn(others)));
            std::thread::sleep(Duration::from_millis(50));
            let alone = gate.alone(LONG);
            over.store(true, Ordering::SeqCst);
            assert!(alone.is_some());
        });
        assert!(gate.alone(Duration::ZERO).is_some());
    }

    #[test]
    fn one_that_hangs_costs_newcomers_no_more_than_the_patience() {
        let gate = Gate::default();
        let hung = gate.shared();
        std::thread::scope(|scope| {
            let wanting = scope.spawn(|| gate.alone(Duration::from_millis(300)).is_none());
            while gate.state().waiting == 0 {
                std::thread::yield_now();
            }
            drop(gate.shared());
            assert!(wanting.join().unwrap(), "somebody was at work");
        });
        drop(hung);
    }
}
