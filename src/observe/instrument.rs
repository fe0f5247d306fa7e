//! What is counted with: numbers that any thread adds to and nobody waits for.
//!
//! Adding is one or two atomic operations. Reading takes no lock either, so a scrape holds nobody up; what is read of one
//! histogram may be a moment apart.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of a histogram's buckets, in nanoseconds: from a list answered from memory to the pull of a huge image.
pub const BOUNDS: [u64; 20] = {
    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;
    const S: u64 = 1_000_000_000;
    [
        100 * US,
        250 * US,
        500 * US,
        MS,
        2_500 * US,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        S,
        2_500 * MS,
        5 * S,
        10 * S,
        30 * S,
        60 * S,
        120 * S,
        300 * S,
    ]
};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Nothing counted yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// What was counted.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// One of those that a [`Gauge`] counts, until it is dropped.
#[derive(Debug)]
#[must_use = "it is counted as long as this lives"]
pub struct Held(&'static Gauge);

impl Gauge {
    /// There is none yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one until the returned value is dropped.
    pub fn hold(&'static self) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }

    /// How many there are.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long something took, sorted into the buckets of [`BOUNDS`] and one beyond them.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// What a histogram held when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// How many took at most so long, for each of [`BOUNDS`].
    pub within: [u64; BOUNDS.len()],
    /// How many there were.
    pub count: u64,
    /// How long all of them took together.
    pub sum: Duration,
}

impl Histogram {
    /// Sorts one in.
    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|bound| *bound < ns);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What is in it.
    #[must_use]
    pub fn read(&self) -> Distribution {
        let mut count = 0;
        let mut within = [0; BOUNDS.len()];
        for (at, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if let Some(within) = within.get_mut(at) {
                *within = count;
            }
        }
        Distribution { within, count, sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

/// Instruments told apart by a key, at most `N` of them: made when a key first comes, found without a lock from then on.
#[derive(Debug)]
pub struct Family<K, M, const N: usize> {
    slots: [OnceLock<Box<(K, M)>>; N],
    /// Of all keys that came when there was no place left.
    rest: OnceLock<Box<M>>,
}

impl<K, M: Default, const N: usize> Family<K, M, N> {
    /// Without a key yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: [const { OnceLock::new() }; N], rest: OnceLock::new() }
    }

    /// The instrument of the key that `is_it` knows, made for `key` if there is none. What comes when all places are
    /// taken shares one.
    pub fn of(&self, is_it: impl Fn(&K) -> bool, key: impl Fn() -> K) -> &M {
        for slot in &self.slots {
            // Another thread may take the place for another key.
            let (found, instrument) = &**slot.get_or_init(|| Box::new((key(), M::default())));
            if is_it(found) {
                return instrument;
            }
        }
        self.rest.get_or_init(Box::default)
    }

    /// Every instrument there is; the shared one last, without a key.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&K>, &M)> {
        let named = self.slots.iter().map_while(|slot| slot.get()).map(|entry| (Some(&entry.0), &entry.1));
        named.chain(self.rest.get().map(|rest| (None, &**rest)))
    }
}

impl<K, M: Default, const N: usize> Default for Family<K, M, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_come_into_the_buckets_that_hold_them() {
        let histogram = Histogram::default();
        for us in [0, 100, 101, 2_500, 400_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        histogram.observe(Duration::ZERO);
        let read = histogram.read();
        assert_eq!((read.within[0], read.within[1], read.within[3], read.within[4]), (3, 4, 4, 5));
        // One took longer than the last bound.
        assert_eq!((read.within[BOUNDS.len() - 1], read.count), (5, 6));
        assert_eq!(read.sum, Duration::from_micros(400_002_701));
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn what_is_held_counts_until_it_goes() {
        static GAUGE: Gauge = Gauge::new();
        let (one, two) = (GAUGE.hold(), GAUGE.hold());
        assert_eq!(GAUGE.get(), 2);
        drop(one);
        assert_eq!(GAUGE.get(), 1);
        drop(two);
        assert_eq!(GAUGE.get(), 0);
    }

    #[test]
    fn a_family_is_bounded_and_loses_nothing() {
        static FAMILY: Family<usize, Counter, 8> = Family::new();
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                scope.spawn(move || {
                    for i in 0..10_000 {
                        let key = (i + thread) % 12;
                        FAMILY.of(|k| *k == key, || key).add(1);
                    }
                });
            }
        });
        let all: Vec<(Option<usize>, u64)> =
            FAMILY.iter().map(|(key, counter)| (key.copied(), counter.get())).collect();
        assert_eq!(all.len(), 9);
        assert_eq!(all.iter().map(|(_, count)| count).sum::<u64>(), 40_000);
        let mut keys: Vec<usize> = all.iter().filter_map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!((keys.len(), all[8].0), (8, None));
    }

    #[test]
    fn recording_costs_well_under_a_microsecond() {
        static FAMILY: Family<&str, Histogram, 64> = Family::new();
        const TIMES: u32 = 2_000;
        let keys = ["persist", "connect", "spawn shim", "set up", "mounts", "cgroups", "start"];
        // The best of many short tries: what others do on the machine meanwhile is not what this costs.
        let best = (0..50).map(|_| {
            let begun = std::time::Instant::now();
            for i in 0..TIMES {
                let key = keys[i as usize % keys.len()];
                FAMILY.of(|k| *k == key, || key).observe(Duration::from_nanos(i.into()));
            }
            begun.elapsed() / TIMES
        });
        let best = best.min().unwrap();
        assert!(best < Duration::from_micros(1), "{best:?}");
    }
}
