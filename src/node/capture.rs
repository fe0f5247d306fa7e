//! The output of an ExecSync, kept up to its end or to a limit, within a budget that the node has for all of them.
//!
//! A little of each stream is always kept. For more, the capture takes from the budget; if there is none left it stops
//! reading for a while, so that the process waits like any that writes to a slow reader. What is not freed in time is
//! not waited for, as everybody might wait for everybody: then the rest is read and dropped, as beyond the limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::stream::Pipe;

/// How much of each stream of an ExecSync is kept; the rest is read and dropped.
pub const OUTPUT_LIMIT_BYTES: usize = 16 << 20;
/// How much all ExecSyncs of the node may keep beside what each may in any case.
const BUDGET_BYTES: usize = 128 << 20;
/// What is taken from the budget at a time.
const UNIT_BYTES: usize = 64 << 10;
/// What a stream may keep in any case.
const FREE_BYTES: usize = 16 << 10;
/// How long a stream waits for others to give back.
const PATIENCE: Duration = Duration::from_secs(2);

/// The node's memory for output.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self::of(BUDGET_BYTES)
    }
}

impl Budget {
    fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT_BYTES)))
    }

    /// How long reading what is in a pipe may take because of it.
    pub fn delay(&self) -> Duration {
        if self.0.available_permits() == 0 { PATIENCE } else { Duration::ZERO }
    }
}

/// A stream read to its end. Its progress survives a dropped future.
pub(super) struct Capture {
    stream: Pipe,
    /// What was kept; at most the limit.
    pub bytes: Vec<u8>,
    /// Read, and not yet kept or dropped.
    pending: Vec<u8>,
    limit: usize,
    /// How long `bytes` may get before more must be taken from the budget.
    room: usize,
    budget: Budget,
    held: Vec<OwnedSemaphorePermit>,
}

impl Capture {
    pub fn new(stream: Pipe, budget: &Budget) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            pending: Vec::new(),
            limit: OUTPUT_LIMIT_BYTES,
            room: FREE_BYTES,
            budget: budget.clone(),
            held: Vec::new(),
        }
    }

    pub async fn read_to_end(&mut self) {
        loop {
            self.keep_pending().await;
            match self.stream.read().await {
                Ok(chunk) if !chunk.is_empty() => self.pending = chunk,
                // A pipe does not fail otherwise than by ending.
                _ => return,
            }
        }
    }

    async fn keep_pending(&mut self) {
        let wanted = (self.bytes.len() + self.pending.len()).min(self.limit);
        while self.room < wanted {
            // An error would mean a closed budget; nobody closes it.
            match timeout(PATIENCE, Arc::clone(&self.budget.0).acquire_owned()).await {
                Ok(Ok(permit)) => {
                    self.held.push(permit);
                    self.room += UNIT_BYTES;
                }
                _ => self.limit = self.room,
            }
            if self.limit == self.room {
                break;
            }
        }
        let kept = self.pending.len().min(self.limit - self.bytes.len());
        self.bytes.extend_from_slice(&self.pending[..kept]);
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn write(theirs: std::os::fd::OwnedFd, bytes: usize) {
        let writer = Pipe::new(theirs).unwrap();
        writer.write_all(&vec![b'x'; bytes]).await.unwrap();
    }

    #[tokio::test]
    async fn output_beyond_the_limit_is_read_and_dropped() {
        let (ours, theirs) = Pipe::from_process().unwrap();
        let mut capture = Capture { limit: 10, ..Capture::new(ours, &Budget::default()) };
        tokio::join!(write(theirs, 200_000), capture.read_to_end());
        assert_eq!(capture.bytes, b"xxxxxxxxxx");
    }

    #[tokio::test]
    async fn output_without_a_budget_waits_for_it() {
        let budget = Budget::of(2 * UNIT_BYTES);
        let capture = || {
            let (ours, theirs) = Pipe::from_process().unwrap();
            (Capture::new(ours, &budget), theirs)
        };
        let (mut first, theirs) = capture();
        tokio::join!(write(theirs, 100_000), first.read_to_end());
        assert_eq!((first.bytes.len(), budget.delay()), (100_000, PATIENCE));
        // What is always kept needs none.
        let (mut small, theirs) = capture();
        tokio::join!(write(theirs, FREE_BYTES), small.read_to_end());
        assert_eq!(small.bytes.len(), FREE_BYTES);
        let (mut second, theirs) = capture();
        let give_back = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(first);
        };
        tokio::join!(write(theirs, 100_000), second.read_to_end(), give_back);
        assert_eq!(second.bytes.len(), 100_000);
        // Not given back: the rest is dropped, and the writer still comes to its end.
        let (mut third, theirs) = capture();
        tokio::join!(write(theirs, 500_000), third.read_to_end());
        assert_eq!(third.bytes.len(), FREE_BYTES);
    }

    #[tokio::test]
    async fn what_was_read_while_waiting_is_not_lost() {
        let budget = Budget::of(0);
        let (ours, theirs) = Pipe::from_process().unwrap();
        let mut capture = Capture::new(ours, &budget);
        let interrupted = async { timeout(Duration::from_millis(100), capture.read_to_end()).await.is_err() };
        let (_, interrupted) = tokio::join!(write(theirs, 40_000), interrupted);
        assert!(interrupted);
        budget.0.add_permits(1);
        capture.read_to_end().await;
        assert_eq!(capture.bytes.len(), 40_000);
    }
}
