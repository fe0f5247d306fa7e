//! One blob from the registry into a pipe, in order; over several connections where one does not fill the pipe.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::pipe::Feed;
use super::source::{Source, Transfer};
use crate::id::Digest;
use crate::image::registry::{RegistryError, RegistryErrorKind};
use crate::observe::metrics::DOWNLOADED;

/// Bytes of one part when a blob is fetched over several connections.
const PART_BYTES: u32 = 4 << 20;
/// Bytes of the blocks that a part is gathered in, however small the chunks it comes in.
const BLOCK_BYTES: usize = 128 << 10;
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
                // No room to fetch ahead: others have it.
                return self.rest(pump).await;
            };
            let (blocks, room) = match part.whole().await {
                // It said that it has ranges, and sends all of the blob whatever it is asked for.
                Err(e) if e.kind() == RegistryErrorKind::NoRanges => {
                    drop(ahead);
                    return self.rest(pump).await;
                }
                whole => whole?,
            };
            for bytes in blocks {
                if !pump.send(bytes).await {
                    return Ok(false);
                }
            }
            drop(room);
        }
        Ok(true)
    }

    /// What is left, over one connection, as at the start.
    async fn rest<F: FnMut(u64) + Send>(&self, pump: &mut Pump<'_, F>) -> Result<bool, RegistryError> {
        let mut rest = self.source.rest(&self.digest, self.size, pump.sent);
        while let Some(bytes) = rest.chunk().await? {
            if !pump.send(bytes).await {
                return Ok(false);
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
                let mut blocks = Blocks::default();
                while let Some(bytes) = transfer.chunk().await? {
                    blocks.add(&bytes);
                }
                Ok((blocks.end(), room))
            });
            ahead.push_back(Part { task });
            *next = end;
        }
    }
}

/// A part being fetched; given up when dropped.
struct Part {
    task: JoinHandle<Result<(Vec<Bytes>, OwnedSemaphorePermit), RegistryError>>,
}

impl Part {
    /// Its bytes, and the room that they take up until they are sent.
    async fn whole(mut self) -> Result<(Vec<Bytes>, OwnedSemaphorePermit), RegistryError> {
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

/// Gathers chunks of any size in blocks of one, each of which is freed for itself.
#[derive(Debug, Default)]
struct Blocks {
    full: Vec<Bytes>,
    last: BytesMut,
}

impl Blocks {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.last.capacity() == 0 {
                self.last = BytesMut::with_capacity(BLOCK_BYTES);
            }
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.last.len()));
            self.last.extend_from_slice(now);
            if self.last.len() == BLOCK_BYTES {
                self.full.push(std::mem::take(&mut self.last).freeze());
            }
            bytes = later;
        }
    }

    fn end(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            self.full.push(self.last.freeze());
        }
        self.full
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
        DOWNLOADED.add(length);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_any_size_take_up_their_bytes_and_no_more() {
        let all: Vec<u8> = (0..400_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        for size in [1, 7, BLOCK_BYTES - 1, BLOCK_BYTES, 300_000, all.len()] {
            let mut blocks = Blocks::default();
            for chunk in all.chunks(size) {
                blocks.add(chunk);
            }
            let blocks = blocks.end();
            assert_eq!(blocks.len(), all.len().div_ceil(BLOCK_BYTES), "{size}");
            assert!(blocks.concat() == all, "{size}");
        }
        assert!(Blocks::default().end().is_empty());
    }
}
