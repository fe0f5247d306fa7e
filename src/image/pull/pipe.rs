//! Bytes from a task to a thread, bounded, without a copy.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::{Semaphore, mpsc};

/// What a chunk counts for at least: its place in the queue costs memory too, however few bytes come in it.
const LEAST_COST: usize = 4096;

/// Makes a pipe that holds at most `most` bytes, or one chunk if that is more. A small chunk counts as 4 KiB.
pub(super) fn pipe(most: u32) -> (Feed, Intake) {
    let (parts_in, parts) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(most as usize));
    let feed = Feed { parts: parts_in, room: Arc::clone(&room), most };
    (feed, Intake { parts, room, most, current: Bytes::new(), owed: 0, ended: false })
}

/// The task's end. Dropped without [`Feed::end`] it makes the thread's reading fail.
#[derive(Debug)]
pub(super) struct Feed {
    parts: mpsc::UnboundedSender<Part>,
    room: Arc<Semaphore>,
    most: u32,
}

#[derive(Debug)]
enum Part {
    Bytes(Bytes),
    End,
}

/// The thread's end.
#[derive(Debug)]
pub(super) struct Intake {
    parts: mpsc::UnboundedReceiver<Part>,
    room: Arc<Semaphore>,
    most: u32,
    current: Bytes,
    /// Room the current chunk gives back when it is used up.
    owed: u32,
    ended: bool,
}

impl Feed {
    /// Hands bytes on once there is room; false if nobody reads any more.
    pub async fn send(&self, bytes: Bytes) -> bool {
        let Ok(permit) = self.room.acquire_many(cost(&bytes, self.most)).await else {
            return false;
        };
        // Given back by the reader.
        permit.forget();
        // A few bytes of a large buffer would hold on to all of it.
        let bytes = if bytes.len() < LEAST_COST { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.parts.send(Part::Bytes(bytes)).is_ok()
    }

    /// Waits until nobody reads any more.
    pub async fn closed(&self) {
        self.parts.closed().await;
    }

    /// Says that all bytes were sent.
    pub fn end(self) {
        // Nobody reads: nobody is to be told.
        self.parts.send(Part::End).ok();
    }
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            self.room.add_permits(self.owed as usize);
            self.owed = 0;
            match self.parts.blocking_recv() {
                Some(Part::Bytes(bytes)) => {
                    self.owed = cost(&bytes, self.most);
                    self.current = bytes;
                }
                Some(Part::End) => self.ended = true,
                None => return Err(io::Error::other("the transfer was given up")),
            }
        }
        let read = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // Wakes whoever waits for room; the channel closes by itself.
        self.room.close();
    }
}

fn cost(bytes: &Bytes, most: u32) -> u32 {
    u32::try_from(bytes.len().max(LEAST_COST)).unwrap_or(u32::MAX).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn bytes_come_through_in_order_and_bounded() {
        let (feed, mut intake) = pipe(1000);
        assert!(feed.send(Bytes::from(vec![1; 900])).await);
        // No room before somebody reads.
        let second = tokio::time::timeout(Duration::from_millis(50), feed.send(Bytes::from(vec![2; 5000])));
        assert!(second.await.is_err());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            intake.read_to_end(&mut all).map(|_| all)
        });
        assert!(feed.send(Bytes::from(vec![3; 5000])).await);
        assert!(feed.send(Bytes::from_static(b"end")).await);
        feed.end();
        let all = reader.join().unwrap().unwrap();
        assert_eq!(all.len(), 5903);
        assert!(all.starts_with(&[1; 900]) && all.ends_with(b"\x03end"));
    }

    /// A server may send every byte as a chunk of its own.
    #[tokio::test]
    async fn chunks_of_one_byte_are_bounded_too() {
        let (feed, mut intake) = pipe(512 << 10);
        let large = Bytes::from(vec![7; 256 << 10]);
        let mut sent = 0;
        let send = async {
            while feed.send(large.slice(sent..=sent)).await {
                sent += 1;
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(100), send).await.is_err());
        assert_eq!(sent, 128);
        // The buffer they came in is not held by them.
        assert!(large.try_into_mut().is_ok());
        feed.end();
        let read = std::thread::spawn(move || intake.read_to_end(&mut Vec::new()).unwrap());
        assert_eq!(read.join().unwrap(), 128);
    }

    #[tokio::test]
    async fn either_end_notices_that_the_other_is_gone() {
        let (feed, mut intake) = pipe(10);
        assert!(feed.send(Bytes::from_static(b"0123456789")).await);
        let reader = std::thread::spawn(move || intake.read_to_end(&mut Vec::new()).unwrap_err().to_string());
        drop(feed);
        assert!(reader.join().unwrap().contains("given up"));

        let (feed, intake) = pipe(10);
        assert!(feed.send(Bytes::from_static(b"0123456789")).await);
        let (sent, ()) = tokio::join!(feed.send(Bytes::from_static(b"x")), async { drop(intake) });
        assert!(!sent);
        feed.closed().await;
    }
}
