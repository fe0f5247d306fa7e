//! Which host is asked next, how often, and after what pause.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::image::registry::error::{RegistryError, RegistryErrorKind as Kind};
use crate::image::registry::repository::Endpoint;

/// Attempts at a host after which another is asked, where there is another, and at the last one.
const WITH_OTHERS: u32 = 2;
const LAST: u32 = 5;
/// Failed attempts over all hosts, those after which something had come included.
const TOTAL: u32 = 40;
/// Bytes that must have come since the last failure for it not to count.
const PROGRESS: u64 = 256 << 10;
/// The first pause; each further one is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a host that says `Retry-After` is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The hosts for one request, and what has happened to it.
#[derive(Debug)]
pub(super) struct Plan {
    endpoints: Vec<Arc<Endpoint>>,
    at: usize,
    failures: u32,
    total: u32,
    earlier: Vec<RegistryError>,
}

impl Plan {
    /// Asks the given hosts in their order; those that were found dead come last. There must be at least one.
    pub fn new(endpoints: impl Iterator<Item = Arc<Endpoint>>) -> Option<Self> {
        let (dead, alive): (Vec<_>, Vec<_>) = endpoints.partition(|e| e.dead.load(Ordering::Relaxed));
        let endpoints: Vec<_> = alive.into_iter().chain(dead).collect();
        (!endpoints.is_empty()).then_some(Self { endpoints, at: 0, failures: 0, total: 0, earlier: Vec::new() })
    }

    /// Whom to ask now.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.endpoints[self.at])
    }

    /// Takes a failure in and waits until the next attempt is due.
    ///
    /// # Errors
    /// The failure, if there is no further attempt.
    pub async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let pause = self.next(error)?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Something came: the next failure is a first one again.
    pub fn progress(&mut self, bytes: u64) {
        if bytes >= PROGRESS {
            self.failures = 0;
        }
    }

    fn next(&mut self, error: RegistryError) -> Result<Duration, RegistryError> {
        self.failures += 1;
        self.total += 1;
        let is_last = self.at + 1 == self.endpoints.len();
        let most = if is_last { LAST } else { WITH_OTHERS };
        let asked = error.wait().unwrap_or_default();
        let again = error.is_transient() && self.failures < most && asked <= PATIENCE;
        // Our own files are wrong: to go on with another host would be to ignore them.
        if self.total >= TOTAL || error.kind() == Kind::Config {
            return Err(error.after(&self.earlier));
        }
        if again {
            tracing::debug!(error = %error, failures = self.failures, "registry request failed, trying again");
            return Ok(asked.max(pause(self.failures)));
        }
        if matches!(error.kind(), Kind::Unavailable | Kind::Tls) {
            self.endpoints[self.at].dead.store(true, Ordering::Relaxed);
        }
        if is_last {
            return Err(error.after(&self.earlier));
        }
        tracing::debug!(error = %error, "registry host given up, asking the next");
        self.earlier.push(error);
        self.at += 1;
        self.failures = 0;
        Ok(Duration::ZERO)
    }
}

/// Between half and all of a time that doubles: clients that failed together do not come back together.
fn pause(failures: u32) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE);
    let random = RandomState::new().hash_one(failures) % 512;
    full.mul_f64(0.5 + f64::from(u16::try_from(random).unwrap_or_default()) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        for (failures, most) in [(1, 100), (2, 200), (3, 400), (7, 6400), (8, 10_000), (40, 10_000)] {
            let pause = pause(failures);
            let most = Duration::from_millis(most);
            assert!(pause >= most / 2 && pause <= most, "{failures}: {pause:?}");
        }
        let several: std::collections::HashSet<Duration> = (0..20).map(|_| pause(5)).collect();
        assert!(several.len() > 1);
    }
}
