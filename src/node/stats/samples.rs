//! CPU time of late, from readings of the past.
//!
//! Of each object two readings are kept. A new one takes the place of the newer once that is [`WINDOW`] old, and the rate
//! is counted from the older: so it is never of less than a window, how often anybody asks, and whoever asks rarely gets
//! the rate since he asked last.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time a rate is counted over.
const WINDOW: Duration = Duration::from_millis(500);
/// Objects that may be kept beyond those there are before it is looked which are gone.
const SLACK: usize = 64;

/// Readings of objects of one kind.
#[derive(Debug)]
pub(super) struct Samples<K>(Mutex<HashMap<K, History>>);

#[derive(Debug)]
struct History {
    older: Sample,
    newer: Sample,
}

/// One reading of a counter that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub at: Instant,
    pub cpu_ns: u64,
}

/// What else a rate depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How long the counter has been growing, for who asks first.
    pub age: Duration,
    /// How many CPUs there are: nothing uses more.
    pub cpus: u64,
}

impl<K> Default for Samples<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Samples<K> {
    /// CPU time of late in billionths of a core, with a new reading; the reading is kept.
    pub fn rate(&self, key: &K, new: Sample, bounds: Bounds) -> u64 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since_start = nano_cores(new.cpu_ns, bounds.age, bounds.cpus);
        let Some(history) = all.get_mut(key) else {
            all.insert(key.clone(), History { older: new, newer: new });
            return since_start;
        };
        history.rate(new, bounds.cpus).unwrap_or(since_start)
    }

    /// Forgets the objects that `exists` does not know, if there are many more kept than `count`.
    pub fn prune(&self, count: usize, exists: impl Fn(&K) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > count + SLACK {
            all.retain(|key, _| exists(key));
            all.shrink_to_fit();
        }
    }
}

impl History {
    /// `None`: no reading is old enough.
    fn rate(&mut self, new: Sample, cpus: u64) -> Option<u64> {
        let age = new.at.saturating_duration_since(self.newer.at);
        if new.cpu_ns < self.newer.cpu_ns && !age.is_zero() {
            // It cannot have become less: it is another counter.
            *self = Self { older: new, newer: new };
            return None;
        }
        if age >= WINDOW {
            *self = Self { older: self.newer, newer: new };
        }
        let elapsed = new.at.saturating_duration_since(self.older.at);
        (elapsed >= WINDOW).then(|| nano_cores(new.cpu_ns.saturating_sub(self.older.cpu_ns), elapsed, cpus))
    }
}

/// CPU time over time. What was used before the clock began, or was counted a moment later, is no more than all CPUs.
fn nano_cores(cpu_ns: u64, elapsed: Duration, cpus: u64) -> u64 {
    let elapsed_ns = elapsed.as_nanos();
    if elapsed_ns == 0 {
        return 0;
    }
    let rate = u128::from(cpu_ns) * 1_000_000_000 / elapsed_ns;
    u64::try_from(rate).unwrap_or(u64::MAX).min(cpus.saturating_mul(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CORE: u64 = 1_000_000_000;

    fn bounds(age_ms: u64) -> Bounds {
        Bounds { age: Duration::from_millis(age_ms), cpus: 4 }
    }

    /// Asks at each of these times a counter that grows by a core from `started_ms` on.
    fn rates(samples: &Samples<u8>, from: Instant, times_ms: &[u64]) -> Vec<u64> {
        let ask = |&ms: &u64| {
            let new = Sample { at: from + Duration::from_millis(ms), cpu_ns: ms * 1_000_000 };
            samples.rate(&1, new, bounds(ms))
        };
        times_ms.iter().map(ask).collect()
    }

    #[test]
    fn the_first_answer_is_since_the_start() {
        let new = Sample { at: Instant::now(), cpu_ns: 3 * CORE };
        assert_eq!(Samples::default().rate(&1, new, bounds(6000)), CORE / 2);
        assert_eq!(Samples::default().rate(&1, new, bounds(0)), 0);
        // What was used before the clock began.
        assert_eq!(Samples::default().rate(&1, new, bounds(1)), 4 * CORE);
    }

    #[test]
    fn two_who_ask_at_their_own_pace_both_get_the_rate() {
        let times: Vec<u64> = (1..100).flat_map(|i| [i * 100, i * 100 + i % 7]).collect();
        assert!(rates(&Samples::default(), Instant::now(), &times).iter().all(|&r| r == CORE));
    }

    #[test]
    fn a_rate_is_of_late() {
        let (samples, from) = (Samples::default(), Instant::now());
        rates(&samples, from, &[1000, 2000]);
        let ask = |ms, cpu_ms: u64| {
            let new = Sample { at: from + Duration::from_millis(ms), cpu_ns: cpu_ms * 1_000_000 };
            samples.rate(&1, new, bounds(ms))
        };
        // Idle since.
        assert_eq!(ask(3000, 2000), 0);
        // Asked again at once, it is still counted over the last window.
        assert_eq!(ask(3001, 2001), 999_000);
        assert_eq!(ask(4000, 4000), 2 * CORE);
    }

    #[test]
    fn a_counter_that_fell_begins_anew() {
        let (samples, at) = (Samples::default(), Instant::now());
        rates(&samples, at, &[1000, 2000]);
        let new = Sample { at: at + Duration::from_secs(3), cpu_ns: 5 };
        assert_eq!(samples.rate(&1, new, bounds(10_000)), 0);
        let new = Sample { at: at + Duration::from_secs(4), cpu_ns: CORE };
        assert_eq!(samples.rate(&1, new, bounds(10_000)), CORE - 5);
    }

    #[test]
    fn the_gone_are_forgotten_once_they_are_many() {
        let samples = Samples::default();
        let new = Sample { at: Instant::now(), cpu_ns: 1 };
        for key in 0..1000 {
            samples.rate(&key, new, bounds(1));
            samples.prune(2, |k| *k < 2);
        }
        assert!(samples.0.lock().unwrap().len() <= 2 + SLACK + 1);
    }

    proptest! {
        #[test]
        fn no_reading_makes_a_rate_odd(readings in prop::collection::vec((any::<u64>(), 0u64..3000), 1..50)) {
            let (samples, from) = (Samples::default(), Instant::now());
            for (cpu_ns, ms) in readings {
                let new = Sample { at: from + Duration::from_millis(ms), cpu_ns };
                prop_assert!(samples.rate(&1, new, bounds(ms)) <= 4 * CORE);
            }
        }
    }
}
