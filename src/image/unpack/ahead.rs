//! Buffers filled ahead by other threads, so that hashing, decompressing and writing each have a processor.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::entries::Source;
use super::stream::Tally;

/// Bytes handed on at once: large enough that handing on costs nothing, small enough for a processor's cache.
const BUFFER_BYTES: usize = 256 << 10;
/// Buffers between two threads; the bound of what is read ahead.
const BUFFERS: usize = 3;

/// A stream that is read ahead, in this thread or by another.
pub(in crate::image) struct Ahead {
    upstream: Upstream,
    /// Counts and hashes buffers as they arrive here.
    tally: Option<(Tally, u64)>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

type Filled = io::Result<Vec<u8>>;

enum Upstream {
    Here(Box<dyn Read + Send>),
    Thread { filled: Receiver<Filled>, spent: SyncSender<Vec<u8>> },
}

impl Ahead {
    /// Reads from `stream` in the calling thread, a buffer at a time.
    pub fn here(stream: impl Read + Send + 'static) -> Self {
        Self::of(Upstream::Here(Box::new(stream)))
    }

    /// Reads `stream` in a thread of its own; where there is none to be had, in the calling one. The thread ends
    /// with the stream, or with the first buffer that nobody wants any more.
    pub fn thread(name: &str, stream: impl Read + Send + 'static) -> Self {
        let mut stream: Box<dyn Read + Send> = Box::new(stream);
        Self::spawn(name, move |buffer| fill(&mut *stream, buffer))
    }

    /// Counts and hashes what arrives; more than `most` bytes are an error.
    pub fn tallied(mut self, most: u64) -> (Self, Tally) {
        let tally = Tally::default();
        self.tally = Some((tally.clone(), most));
        (self, tally)
    }

    /// Moves the reading, and the hashing with it, to a thread of its own.
    pub fn onto_thread(mut self, name: &str) -> Self {
        Self::spawn(name, move |buffer| {
            self.advance()?;
            // No copy: the buffers change places.
            std::mem::swap(buffer, &mut self.current);
            Ok(())
        })
    }

    fn spawn(name: &str, fill: impl FnMut(&mut Vec<u8>) -> io::Result<()> + Send + 'static) -> Self {
        let (filled_in, filled) = sync_channel::<Filled>(BUFFERS);
        let (spent, spent_out) = sync_channel::<Vec<u8>>(BUFFERS + 2);
        let (work_in, work) = sync_channel::<Box<dyn FnMut(&mut Vec<u8>) -> io::Result<()> + Send>>(1);
        let run = move || {
            let Ok(mut fill) = work.recv() else { return };
            loop {
                let mut buffer: Vec<u8> = spent_out.try_recv().unwrap_or_default();
                let result = fill(&mut buffer);
                let is_last = result.is_err() || buffer.is_empty();
                if filled_in.send(result.map(|()| buffer)).is_err() || is_last {
                    return;
                }
            }
        };
        match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
            Ok(_) => {
                // The thread waits for it; that it died already would show as the end of its buffers.
                work_in.send(Box::new(fill)).ok();
                Self::of(Upstream::Thread { filled, spent })
            }
            Err(_) => Self::of(Upstream::Here(Box::new(Filling { fill, buffer: Vec::new(), at: 0 }))),
        }
    }

    fn of(upstream: Upstream) -> Self {
        Self { upstream, tally: None, current: Vec::new(), at: 0, ended: false }
    }

    /// Takes the next buffer; an empty one is the end.
    fn advance(&mut self) -> io::Result<()> {
        self.at = 0;
        let mut buffer = std::mem::take(&mut self.current);
        if self.ended {
            return Ok(());
        }
        match &mut self.upstream {
            Upstream::Here(stream) => fill(stream, &mut buffer)?,
            Upstream::Thread { filled, spent } => {
                if buffer.capacity() > 0 {
                    // Full or gone: then the buffer is freed.
                    spent.try_send(buffer).ok();
                }
                buffer = match filled.recv() {
                    Ok(filled) => filled?,
                    Err(_) => return Err(io::Error::other("a thread of the pipeline died")),
                };
            }
        }
        self.ended = buffer.is_empty();
        if let Some((tally, most)) = &self.tally {
            tally.add(&buffer, *most)?;
        }
        self.current = buffer;
        Ok(())
    }

    /// At most `most` bytes, as many as are at hand; none at the end.
    fn take_piece(&mut self, most: usize) -> io::Result<std::ops::Range<usize>> {
        if self.at == self.current.len() {
            self.advance()?;
        }
        let start = self.at;
        self.at += most.min(self.current.len() - start);
        Ok(start..self.at)
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.take_piece(buffer.len())?;
        buffer[..piece.len()].copy_from_slice(&self.current[piece.clone()]);
        Ok(piece.len())
    }
}

impl Source for Ahead {
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            let piece = self.take_piece(usize::try_from(bytes).unwrap_or(usize::MAX))?;
            if piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes -= piece.len() as u64;
        }
        Ok(())
    }

    fn piece<'a>(&'a mut self, _: &'a mut [u8], most: usize) -> io::Result<&'a [u8]> {
        let piece = self.take_piece(most)?;
        Ok(&self.current[piece])
    }
}

/// What a thread would have done, done when it is needed.
struct Filling<F> {
    fill: F,
    buffer: Vec<u8>,
    at: usize,
}

impl<F: FnMut(&mut Vec<u8>) -> io::Result<()>> Read for Filling<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            self.at = 0;
            (self.fill)(&mut self.buffer)?;
        }
        let read = into.len().min(self.buffer.len() - self.at);
        into[..read].copy_from_slice(&self.buffer[self.at..self.at + read]);
        self.at += read;
        Ok(read)
    }
}

/// Fills a buffer to the brim; shorter or empty only at the end of the stream.
fn fill(stream: &mut dyn Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.resize(BUFFER_BYTES, 0);
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer.truncate(filled);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn text() -> Vec<u8> {
        (0..1_000_003_u32).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[test]
    fn every_arrangement_hands_on_the_same_bytes() {
        let digest = crate::id::Digest::sha256(Sha256::digest(text()).into());
        let plain = || io::Cursor::new(text());
        let arrangements: [(Ahead, Tally); 4] = [
            Ahead::here(plain()).tallied(u64::MAX),
            Ahead::thread("read", plain()).tallied(u64::MAX),
            {
                let (ahead, tally) = Ahead::thread("read", plain()).tallied(u64::MAX);
                (ahead.onto_thread("hash"), tally)
            },
            {
                let (ahead, tally) = Ahead::here(plain()).tallied(u64::MAX);
                (ahead.onto_thread("hash").onto_thread("again"), tally)
            },
        ];
        for (mut ahead, tally) in arrangements {
            ahead.skip(1000).unwrap();
            let mut rest = Vec::new();
            ahead.read_to_end(&mut rest).unwrap();
            assert!(rest == text()[1000..]);
            assert_eq!((tally.bytes(), tally.digest()), (text().len() as u64, digest.clone()));
            assert_eq!(ahead.read(&mut [0]).unwrap(), 0);
            assert!(ahead.skip(1).is_err());
        }
    }

    #[test]
    fn errors_and_bounds_come_through() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut ahead = Ahead::thread("read", io::Cursor::new(text()).chain(Broken)).onto_thread("hand on");
        assert_eq!(ahead.read_to_end(&mut Vec::new()).unwrap_err().to_string(), "broken");
        let (ahead, _) = Ahead::thread("read", io::Cursor::new(text())).tallied(1000);
        assert!(ahead.onto_thread("hash").read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn threads_end_when_nobody_wants_their_bytes() {
        struct Endless(Arc<AtomicBool>);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                Ok(buffer.len())
            }
        }
        impl Drop for Endless {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let ended = Arc::new(AtomicBool::new(false));
        let mut ahead = Ahead::thread("read", Endless(Arc::clone(&ended))).onto_thread("hand on");
        ahead.skip(1 << 20).unwrap();
        drop(ahead);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !ended.load(Ordering::Acquire) {
            assert!(std::time::Instant::now() < end, "the thread lives on");
            std::thread::yield_now();
        }
    }
}
