//! How much is done at once: a bound over all pulls, of which none can take so much that another gets nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::image::store::lock;

/// Places for work, shared by all pulls.
#[derive(Debug)]
pub(super) struct Lanes {
    most: usize,
    most_each: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    each: HashMap<u64, usize>,
}

/// A place, while it lives.
#[derive(Debug)]
pub(super) struct Lane {
    lanes: Arc<Lanes>,
    pull: u64,
}

impl Lanes {
    /// `most` places in all, `most_each` for one pull; but each pull gets one, however many there are.
    pub fn new(most: usize, most_each: usize) -> Arc<Self> {
        Arc::new(Self { most, most_each, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Waits for a place.
    pub async fn enter(self: &Arc<Self>, pull: u64) -> Lane {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Before the look, so that a place freed after it is noticed.
            freed.as_mut().enable();
            if self.take(pull) {
                return Lane { lanes: Arc::clone(self), pull };
            }
            freed.await;
        }
    }

    fn take(&self, pull: u64) -> bool {
        let mut taken = lock(&self.taken);
        let own = taken.each.get(&pull).copied().unwrap_or(0);
        let has_room = own == 0 || (own < self.most_each && taken.total < self.most);
        if has_room {
            taken.total += 1;
            *taken.each.entry(pull).or_default() += 1;
        }
        has_room
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut taken = lock(&self.lanes.taken);
        taken.total -= 1;
        if let Some(own) = taken.each.get_mut(&self.pull) {
            *own -= 1;
            if *own == 0 {
                taken.each.remove(&self.pull);
            }
        }
        drop(taken);
        self.lanes.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn is_stuck(lanes: &Arc<Lanes>, pull: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(30), lanes.enter(pull)).await.is_err()
    }

    #[tokio::test]
    async fn a_pull_is_bounded_but_never_without_a_place() {
        let lanes = Lanes::new(3, 2);
        let first = lanes.enter(1).await;
        let second = lanes.enter(1).await;
        assert!(is_stuck(&lanes, 1).await, "two each");
        let _other = lanes.enter(2).await;
        assert!(is_stuck(&lanes, 2).await, "three in all");
        let _late = lanes.enter(3).await;
        let waiting = tokio::spawn({
            let lanes = Arc::clone(&lanes);
            async move { lanes.enter(2).await }
        });
        drop(first);
        drop(second);
        waiting.await.unwrap();
    }
}
