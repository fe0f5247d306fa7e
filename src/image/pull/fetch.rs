//! One blob from the registry into a pipe, in order; over several connections where one does not fill the pipe.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::pipe::Feed;
use super::source::{Source, Transfer};
use crate::id::Digest;
use crate::image::registry::RegistryError;

/// Bytes of one part when a blob is fetched over several connections.
const PART_BYTES: u32 = 4 << 20;
/// Parts of one blob fetched ahead.
const PARTS_AHEAD: usize = 3;
/// What must have come over one connection before its speed is judged.
const JUDGED_AFTER: u64 = 4 << 20;
/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 1 << 20;

/// A blob to be fetched.
#[derive(Debug, Clone)]
pub(super) struct Fetch {
    pub source: Arc<dyn Source>,
    pub digest: Digest,
    pub size: u64,
    /// Room for parts fetched ahead, of all blobs together, in bytes.
    pub read_ahead: Arc<Semaphore>,
}

impl Fetch {
    /// Feeds the blob; ends early, without an error, if nobody reads any more. `report` is told how many bytes were taken.
    pub async fn run(self, feed: Feed, report: impl FnMut(u64) + Send) -> Result<(), RegistryError> {
        let mut pump = Pump { feed: &feed, sent: 0, reported: 0, report };
        let is_whole = tokio::select! {
            is_whole = self.pump(&mut pump) => is_whole?,
            () = feed.closed() => false,
        };
        if is_whole {
            feed.end();
        }
        Ok(())
    }

    /// Returns whether all was taken.
    async fn pump<F: FnMut(u64) + Send>(&self, pump: &mut Pump<'_, F>) -> Result<bool, RegistryError> {
        let mut transfer = self.source.blob(&self.digest, self.size, None);
        let mut waited = Duration::ZERO;
        let begin = Instant::now();
        loop {
            let before = Instant::now();
            let Some(bytes) = transfer.chunk().await? else {
                return Ok(true);
            };
            waited += before.elapsed();
            if !pump.send(bytes).await {
                return Ok(false);
            }
            let is_slow = pump.sent >= JUDGED_AFTER && waited > begin.elapsed() / 2;
            let is_worth_it = self.size - pump.sent.min(self.size) > 2 * u64::from(PART_BYTES);
            if is_slow && is_worth_it && transfer.has_ranges() {
                return self.in_parts(transfer, pump).await;
            }
        }
    }

    /// Goes on over several connections: parts are fetched ahead, whole, and sent in order.
    async fn in_parts<F: FnMut(u64) + Send>(
        &self,
        mut first: Box<dyn Transfer>,
        pump: &mut Pump<'_, F>,
    ) -> Result<bool, RegistryError> {
        let mut next = (pump.sent + u64::from(PART_BYTES)).min(self.size);
        first.stop_at(next);
        let mut ahead: VecDeque<Part> = VecDeque::new();
        self.top_up(&mut ahead, &mut next);
        while let Some(bytes) = first.chunk().await? {
            if !pump.send(bytes).await {
                return Ok(false);
            }
        }
        drop(first);
        while pump.sent < self.size {
            self.top_up(&mut ahead, &mut next);
            let Some(part) = ahead.pop_front() else {
                // No room to fetch ahead: others have it. What is left comes as at the start.
                let mut rest = self.source.blob(&self.digest, self.size, Some(pump.sent..self.size));
                while let Some(bytes) = rest.chunk().await? {
                    if !pump.send(bytes).await {
                        return Ok(false);
                    }
                }
                return Ok(true);
            };
            for bytes in part.bytes().await? {
                if !pump.send(bytes).await {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Starts fetching parts while there is room for them.
    fn top_up(&self, ahead: &mut VecDeque<Part>, next: &mut u64) {
        while ahead.len() < PARTS_AHEAD && *next < self.size {
            let Ok(room) = Arc::clone(&self.read_ahead).try_acquire_many_owned(PART_BYTES) else {
                return;
            };
            let end = (*next + u64::from(PART_BYTES)).min(self.size);
            let mut transfer = self.source.blob(&self.digest, self.size, Some(*next..end));
            let task = tokio::spawn(async move {
                let mut chunks = Vec::new();
                while let Some(bytes) = transfer.chunk().await? {
                    chunks.push(bytes);
                }
                Ok(chunks)
            });
            ahead.push_back(Part { task, _room: room });
            *next = end;
        }
    }
}

/// A part being fetched; given up when dropped.
struct Part {
    task: JoinHandle<Result<Vec<Bytes>, RegistryError>>,
    _room: OwnedSemaphorePermit,
}

impl Part {
    async fn bytes(mut self) -> Result<Vec<Bytes>, RegistryError> {
        match (&mut self.task).await {
            Ok(fetched) => fetched,
            Err(died) => match died.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts what goes into the pipe.
struct Pump<'a, F> {
    feed: &'a Feed,
    sent: u64,
    reported: u64,
    report: F,
}

impl<F: FnMut(u64)> Pump<'_, F> {
    async fn send(&mut self, bytes: Bytes) -> bool {
        let length = bytes.len() as u64;
        if !self.feed.send(bytes).await {
            return false;
        }
        self.sent += length;
        if self.sent - self.reported >= REPORT_BYTES {
            self.reported = self.sent;
            (self.report)(self.sent);
        }
        true
    }
}
