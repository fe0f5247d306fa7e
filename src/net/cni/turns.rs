//! Who may call plugins now: one operation a sandbox, and no other while GC runs (CNI specification, section 3).

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::id::SandboxId;

/// Pause between attempts to find nobody at work.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Turns {
    busy: Mutex<HashSet<SandboxId>>,
    freed: Condvar,
    all: RwLock<()>,
}

/// The right to work on one sandbox, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    id: SandboxId,
    _shared: RwLockReadGuard<'a, ()>,
}

impl Turns {
    /// Waits until nobody works on this sandbox, nor on all of them, whose work has a deadline; `None` if others of this
    /// sandbox take longer than `patience`.
    pub(super) fn take(&self, id: &SandboxId, patience: Duration) -> Option<Turn<'_>> {
        let until = Instant::now() + patience;
        let shared = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut busy = self.busy();
        while !busy.insert(id.clone()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            busy = self.freed.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(Turn { turns: self, id: id.clone(), _shared: shared })
    }

    /// The right to work on a sandbox if nobody else does.
    pub(super) fn try_take(&self, id: &SandboxId) -> Option<Turn<'_>> {
        let shared = self.all.try_read().ok()?;
        self.busy().insert(id.clone()).then(|| Turn { turns: self, id: id.clone(), _shared: shared })
    }

    /// The right to work on all, if within `patience` there is a moment when nobody works on any. It does not queue:
    /// that would hold up everybody who comes after it for as long as the slowest plugin takes.
    pub(super) fn try_all(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, ()>> {
        let start = Instant::now();
        loop {
            if let Ok(all) = self.all.try_write() {
                return Some(all);
            }
            if start.elapsed() > patience {
                return None;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<SandboxId>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.busy().remove(&self.id);
        self.turns.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_sandbox_is_worked_on_by_one_and_all_by_nobody_else() {
        let turns = Turns::default();
        let (one, two) = (SandboxId::from_random([1; 32]), SandboxId::from_random([2; 32]));
        let first = turns.take(&one, LONG);
        assert!(first.is_some() && turns.take(&one, Duration::from_millis(20)).is_none());
        assert!(turns.try_take(&one).is_none());
        let other = turns.try_take(&two);
        assert!(other.is_some() && turns.try_all(Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(turns.take(&one, LONG)));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop((first, other));
            waiter.join().unwrap();
        });
        let all = turns.try_all(Duration::ZERO);
        assert!(all.is_some() && turns.try_take(&two).is_none());
        drop(all);
        assert!(turns.try_take(&two).is_some());
    }
}
