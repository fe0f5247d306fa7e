//! One end of a pipe or a terminal, read and written without blocking.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How much is read at once; a pipe holds 64 KiB.
pub const CHUNK_BYTES: usize = 32 * 1024;

/// How long output is waited for once the process has ended: children of it may hold its streams for ever.
const DRAIN: Duration = Duration::from_millis(250);

/// … and how much of it is taken on then: what the process itself wrote is in its streams already, which hold less.
const REST_BYTES: usize = 1 << 20;

/// A descriptor that tells when it is ready.
#[derive(Debug)]
pub struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Takes over a pipe's end or the master of a pty. Needs a tokio runtime.
    ///
    /// # Errors
    /// As fcntl(2), epoll_ctl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let interest = match flags & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => Interest::READABLE,
            OFlag::O_WRONLY => Interest::WRITABLE,
            _ => Interest::READABLE | Interest::WRITABLE,
        };
        let interest = interest | Interest::ERROR;
        watch(fd, interest).map(Self)
    }

    /// A pipe: our reading end, and the writing end for a process.
    ///
    /// # Errors
    /// As pipe(2).
    pub fn from_process() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = io::pipe()?;
        Ok((Self::new(reader.into())?, writer.into()))
    }

    /// A pipe: our writing end, and the reading end for a process.
    ///
    /// # Errors
    /// As pipe(2).
    pub fn to_process() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = io::pipe()?;
        Ok((Self::new(writer.into())?, reader.into()))
    }

    /// Reads what is there, at most [`CHUNK_BYTES`]; nothing at the end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As read(2). That a terminal's last user is gone is its end, not an error.
    pub async fn read(&self) -> io::Result<Vec<u8>> {
        loop {
            self.readable().await?;
            let mut chunk = vec![0; CHUNK_BYTES];
            if let Some(n) = self.try_read(&mut chunk)? {
                chunk.truncate(n);
                return Ok(chunk);
            }
        }
    }

    /// Waits until there may be something to read, or the end.
    ///
    /// # Errors
    /// If the runtime is going down.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// Reads what is there into `room`; 0 at the end, `None` if there is nothing yet.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn try_read(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.try_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, room)?)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => Ok(Some(0)),
            result => result.map(Some),
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// As write(2); `EPIPE` once nobody reads any more.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?));
            bytes = &bytes[write.await?..];
        }
        Ok(())
    }
}

impl Pipe {
    /// Waits until nobody will read any more what is written to a pipe.
    pub async fn unread(&self) {
        // An error means that the runtime is going down, which is an end too.
        self.0.ready(Interest::ERROR).await.map(drop).unwrap_or(());
    }
}

/// How long to go on with the output of a process: all of what it wrote, and not for ever.
///
/// Only output that does not come is waited for with a limit. Who takes it has all the time there is.
#[derive(Debug, Clone)]
pub struct Tail {
    ended: watch::Receiver<Option<Instant>>,
    rest: usize,
}

impl Tail {
    /// Of a process that has ended when the sender says so.
    #[must_use]
    pub fn new() -> (watch::Sender<Option<Instant>>, Self) {
        let (told, ended) = watch::channel(None);
        (told, Self { ended, rest: REST_BYTES })
    }

    /// Waits until there may be something to read; `false` if the process has ended and nothing came for a moment.
    pub async fn more(&mut self, pipe: &Pipe) -> bool {
        let over = async {
            // An error would mean that nobody waits for the process: that is no end.
            match self.ended.wait_for(Option::is_some).await.map(|at| *at) {
                Ok(Some(at)) => sleep_until(at + DRAIN).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            // What is there goes before the end.
            biased;
            readable = pipe.readable() => readable.is_ok(),
            () = over => false,
        }
    }

    /// Counts what was taken; `false` if that is more than the process can have left.
    pub fn took(&mut self, bytes: usize) -> bool {
        if self.ended.borrow().is_some() {
            self.rest = self.rest.saturating_sub(bytes);
        }
        self.rest > 0
    }
}

/// Registers a descriptor with the runtime.
// Deprecated because a type may close its descriptor behind the runtime's back: an `OwnedFd` cannot.
#[allow(deprecated)]
fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_in_comes_out_and_ends() {
        let (ours, theirs) = Pipe::from_process().unwrap();
        let writer = Pipe::new(theirs).unwrap();
        writer.write_all(b"hello").await.unwrap();
        drop(writer);
        assert_eq!(ours.read().await.unwrap(), b"hello");
        assert_eq!(ours.read().await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_writer_hears_that_nobody_reads_any_more() {
        let (writer, theirs) = Pipe::to_process().unwrap();
        writer.write_all(b"x").await.unwrap();
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, writer.unread()).await.is_err());
        drop(theirs);
        tokio::time::timeout(soon * 100, writer.unread()).await.unwrap();
    }

    #[tokio::test]
    async fn more_than_a_pipe_holds_waits_for_the_reader() {
        let (writer, theirs) = Pipe::to_process().unwrap();
        let reader = Pipe::new(theirs).unwrap();
        let sent = vec![7u8; 300_000];
        let (written, read) = tokio::join!(
            async {
                let result = writer.write_all(&sent).await;
                drop(writer);
                result
            },
            async {
                let mut total = 0;
                loop {
                    let chunk = reader.read().await.unwrap();
                    if chunk.is_empty() {
                        break total;
                    }
                    total += chunk.len();
                }
            }
        );
        written.unwrap();
        assert_eq!(read, 300_000);
    }
}
