//! Clients at a container's streams.
//!
//! A client gets a pipe for each stream. Output is written to a client's pipe as it is read; what does not fit waits
//! in memory, and the container's output is not read on until it is gone or [`PATIENCE`] is over, after which the
//! client is dropped. So a slow client slows a container by a moment, and never stops its log.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read, write};

use super::log::Stream;
use super::poll::{Key, Poller, Source, Timer, Timers, Watch};

/// How long one read's worth of output may wait for a client.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Most output kept for a client once the container has ended and its output is read out without waiting.
const MAX_REST_BYTES: usize = 256 * 1024;
/// Most clients at one container.
pub const MAX_CLIENTS: usize = 64;

/// The shim's loop and the container a set of clients belongs to.
#[derive(Debug)]
pub struct Place<'a> {
    /// Watches their pipes.
    pub poller: &'a mut Poller,
    /// Ends their patience.
    pub timers: &'a mut Timers,
    /// The container.
    pub container: Key,
}

/// Both ends of a pipe, ours non-blocking.
fn pipe_with(ours: impl Fn(&(OwnedFd, OwnedFd)) -> &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(ours(&ends), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(ends)
}

/// One client's copy of one output.
#[derive(Debug)]
struct Tap {
    key: Key,
    stream: Stream,
    pipe: OwnedFd,
    /// What did not fit into the pipe.
    rest: Vec<u8>,
}

enum Written {
    All,
    /// So many bytes.
    Part(usize),
    Gone,
}

impl Tap {
    fn write(&self, data: &[u8]) -> Written {
        let mut done = 0;
        while done < data.len() {
            match write(&self.pipe, &data[done..]) {
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Written::Part(done),
                Err(_) => return Written::Gone,
            }
        }
        Written::All
    }
}

/// All clients at a container's outputs.
#[derive(Debug, Default)]
pub struct Taps(Vec<Tap>);

impl Taps {
    /// Adds a client: what it is to read from.
    ///
    /// # Errors
    /// As pipe2(2); `EUSERS` if there are [`MAX_CLIENTS`].
    pub fn add(&mut self, place: &mut Place<'_>, stream: Stream) -> io::Result<OwnedFd> {
        if self.0.len() >= MAX_CLIENTS {
            return Err(Errno::EUSERS.into());
        }
        let (theirs, pipe) = pipe_with(|ends| &ends.1)?;
        let key = place.poller.key();
        // Nothing to be told but that the client is gone.
        place.poller.add(&pipe, Source::Tap(place.container, key), Watch::Hangup)?;
        self.0.push(Tap { key, stream, pipe, rest: Vec::new() });
        Ok(theirs)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives all clients at `stream` what was read from it.
    pub fn tee(&mut self, place: &mut Place<'_>, stream: Stream, data: &[u8]) {
        let mut gone = Vec::new();
        for tap in self.0.iter_mut().filter(|tap| tap.stream == stream) {
            let written = if tap.rest.is_empty() { tap.write(data) } else { Written::Part(0) };
            match written {
                Written::All => {}
                Written::Part(n) if tap.rest.len() + data.len() - n <= MAX_REST_BYTES => {
                    if tap.rest.is_empty() {
                        let source = Source::Tap(place.container, tap.key);
                        // Without the watch, patience ends it.
                        place.poller.change(&tap.pipe, source, Watch::Write).ok();
                        place.timers.set(Timer::Tap(place.container, tap.key), PATIENCE);
                    }
                    tap.rest.extend_from_slice(&data[n..]);
                }
                Written::Part(_) | Written::Gone => gone.push(tap.key),
            }
        }
        gone.into_iter().for_each(|key| self.drop_client(place, key));
    }

    /// Whether a client at `stream` has not taken all it was given.
    #[must_use]
    pub fn blocked(&self, stream: Stream) -> bool {
        self.0.iter().any(|tap| tap.stream == stream && !tap.rest.is_empty())
    }

    /// A client's pipe has room, or nobody at its other end.
    pub fn ready(&mut self, place: &mut Place<'_>, key: Key) {
        let Some(tap) = self.0.iter_mut().find(|tap| tap.key == key) else { return };
        if tap.rest.is_empty() {
            // It is only watched for hang-up now.
            return self.drop_client(place, key);
        }
        match tap.write(&tap.rest) {
            Written::All => {
                tap.rest = Vec::new();
                place.timers.clear(Timer::Tap(place.container, key));
                place.poller.change(&tap.pipe, Source::Tap(place.container, key), Watch::Hangup).ok();
            }
            Written::Part(n) => drop(tap.rest.drain(..n)),
            Written::Gone => self.drop_client(place, key),
        }
    }

    /// Drops a client.
    pub fn drop_client(&mut self, place: &mut Place<'_>, key: Key) {
        if let Some(at) = self.0.iter().position(|tap| tap.key == key) {
            let tap = self.0.swap_remove(at);
            place.timers.clear(Timer::Tap(place.container, key));
            place.poller.remove(&tap.pipe);
        }
    }

    /// The output has ended: drops the clients that have it all; the others once they do.
    pub fn finish(&mut self, place: &mut Place<'_>) {
        let done: Vec<_> = self.0.iter().filter(|tap| tap.rest.is_empty()).map(|tap| tap.key).collect();
        done.into_iter().for_each(|key| self.drop_client(place, key));
    }

    /// Drops all clients.
    pub fn clear(&mut self, place: &mut Place<'_>) {
        let all: Vec<_> = self.0.iter().map(|tap| tap.key).collect();
        all.into_iter().for_each(|key| self.drop_client(place, key));
    }
}

/// A container's input and the clients that feed it.
#[derive(Debug, Default)]
pub struct Input {
    /// The writing end of the container's input, non-blocking; `None`: closed, or never there.
    target: Option<OwnedFd>,
    /// Close it when the last client of the first ones has gone.
    once: bool,
    /// What did not fit into it; nothing more is read from clients meanwhile.
    rest: Vec<u8>,
    inlets: Vec<(Key, OwnedFd)>,
}

impl Input {
    /// Into `target`. `once`: it ends with the first client.
    #[must_use]
    pub fn new(target: Option<OwnedFd>, once: bool) -> Self {
        Self { target, once, rest: Vec::new(), inlets: Vec::new() }
    }

    /// Adds a client: what it is to write into. Without an input, writing there fails with `EPIPE`.
    ///
    /// # Errors
    /// As pipe2(2); `EUSERS` if there are [`MAX_CLIENTS`].
    pub fn add(&mut self, place: &mut Place<'_>) -> io::Result<OwnedFd> {
        if self.inlets.len() >= MAX_CLIENTS {
            return Err(Errno::EUSERS.into());
        }
        let (inlet, theirs) = pipe_with(|ends| &ends.0)?;
        if self.target.is_some() {
            let key = place.poller.key();
            if self.rest.is_empty() {
                place.poller.add(&inlet, Source::Inlet(place.container, key), Watch::Read)?;
            }
            self.inlets.push((key, inlet));
        }
        Ok(theirs)
    }

    /// A client has written something, or ended its input. `buffer` is scratch space.
    pub fn inlet_ready(&mut self, place: &mut Place<'_>, key: Key, buffer: &mut [u8]) {
        if !self.rest.is_empty() {
            // Another client filled the input since this was told.
            return;
        }
        let Some(at) = self.inlets.iter().position(|(other, _)| *other == key) else { return };
        match read(&self.inlets[at].1, buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                let (_, inlet) = self.inlets.swap_remove(at);
                place.poller.remove(&inlet);
                if self.once && self.inlets.is_empty() {
                    self.close(place);
                }
            }
            Ok(n) => {
                self.rest.extend_from_slice(&buffer[..n]);
                self.flush(place);
                if !self.rest.is_empty() {
                    self.pause(place);
                }
            }
        }
    }

    /// The container's input has room again.
    pub fn target_ready(&mut self, place: &mut Place<'_>) {
        self.flush(place);
        if self.rest.is_empty() {
            self.resume(place);
        }
    }

    fn flush(&mut self, place: &mut Place<'_>) {
        let Some(target) = &self.target else { return self.rest.clear() };
        while !self.rest.is_empty() {
            match write(target, &self.rest) {
                Ok(n) => drop(self.rest.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The container closed it.
                Err(_) => return self.close(place),
            }
        }
        self.rest = Vec::new();
    }

    fn pause(&mut self, place: &mut Place<'_>) {
        self.inlets.iter().for_each(|(_, inlet)| place.poller.remove(inlet));
        let Some(target) = &self.target else { return };
        if place.poller.add(target, Source::Stdin(place.container), Watch::Write).is_err() {
            // It could not be told when to go on.
            self.close(place);
        }
    }

    fn resume(&mut self, place: &mut Place<'_>) {
        if let Some(target) = &self.target {
            place.poller.remove(target);
        }
        for (key, inlet) in &self.inlets {
            // A client that cannot be watched is one that says nothing.
            place.poller.add(inlet, Source::Inlet(place.container, *key), Watch::Read).ok();
        }
    }

    /// Ends the container's input for good.
    pub fn close(&mut self, place: &mut Place<'_>) {
        self.rest = Vec::new();
        if let Some(target) = self.target.take() {
            place.poller.remove(&target);
        }
        for (_, inlet) in self.inlets.drain(..) {
            place.poller.remove(&inlet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        poller: Poller,
        timers: Timers,
    }

    impl Bench {
        fn new() -> Self {
            Self { poller: Poller::new().unwrap(), timers: Timers::default() }
        }

        fn place(&mut self) -> Place<'_> {
            Place { poller: &mut self.poller, timers: &mut self.timers, container: 7 }
        }

        /// The one source that is ready now.
        fn ready(&mut self) -> Option<Source> {
            let soon = std::time::Instant::now() + Duration::from_millis(5);
            self.poller.wait(Some(soon)).unwrap().first().map(|ready| ready.source)
        }
    }

    fn read_some(fd: &OwnedFd) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 20];
        let n = read(fd, &mut buffer).unwrap();
        buffer.truncate(n);
        buffer
    }

    #[test]
    fn each_client_gets_its_stream() {
        let (mut bench, mut taps) = (Bench::new(), Taps::default());
        let out = taps.add(&mut bench.place(), Stream::Stdout).unwrap();
        let err = taps.add(&mut bench.place(), Stream::Stderr).unwrap();
        taps.tee(&mut bench.place(), Stream::Stdout, b"out");
        taps.tee(&mut bench.place(), Stream::Stderr, b"err");
        assert_eq!((read_some(&out), read_some(&err)), (b"out".to_vec(), b"err".to_vec()));
        drop(out);
        let Some(Source::Tap(7, key)) = bench.ready() else { panic!("hang-up is told") };
        taps.ready(&mut bench.place(), key);
        assert_eq!(taps.0.len(), 1);
        taps.finish(&mut bench.place());
        assert_eq!(read_some(&err), b"");
    }

    #[test]
    fn a_slow_client_blocks_then_catches_up_or_is_dropped() {
        let (mut bench, mut taps) = (Bench::new(), Taps::default());
        let client = taps.add(&mut bench.place(), Stream::Stdout).unwrap();
        let chunk: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        taps.tee(&mut bench.place(), Stream::Stdout, &chunk);
        assert!(taps.blocked(Stream::Stdout) && !taps.blocked(Stream::Stderr));
        assert!(bench.timers.next().is_some());
        assert_eq!(bench.ready(), None);
        let mut got = read_some(&client);
        let Some(Source::Tap(_, key)) = bench.ready() else { panic!("room is told") };
        taps.ready(&mut bench.place(), key);
        assert!(!taps.blocked(Stream::Stdout));
        assert!(bench.timers.next().is_none());
        got.extend(read_some(&client));
        assert_eq!(got, chunk);
        // The end of the output with something left: all of it, then the end.
        taps.tee(&mut bench.place(), Stream::Stdout, &chunk);
        taps.finish(&mut bench.place());
        let mut got = read_some(&client);
        taps.ready(&mut bench.place(), key);
        taps.finish(&mut bench.place());
        got.extend(read_some(&client));
        assert_eq!(got, chunk);
        assert_eq!(read_some(&client), b"");
    }

    #[test]
    fn what_is_kept_for_a_client_is_bounded() {
        let (mut bench, mut taps) = (Bench::new(), Taps::default());
        let _client = taps.add(&mut bench.place(), Stream::Stdout).unwrap();
        for _ in 0..(MAX_REST_BYTES / 65_536 + 2) {
            taps.tee(&mut bench.place(), Stream::Stdout, &[0; 65_536]);
        }
        assert!(taps.is_empty());
        assert!(bench.timers.next().is_none());
    }

    #[test]
    fn input_flows_and_ends_with_the_first_client_if_once() {
        for once in [false, true] {
            let (mut bench, mut buffer) = (Bench::new(), [0; 64]);
            let (container, target) = pipe_with(|ends| &ends.1).unwrap();
            let mut input = Input::new(Some(target), once);
            let client = input.add(&mut bench.place()).unwrap();
            write(&client, b"hello").unwrap();
            let Some(Source::Inlet(7, key)) = bench.ready() else { panic!("input is told") };
            input.inlet_ready(&mut bench.place(), key, &mut buffer);
            assert_eq!(read_some(&container), b"hello");
            drop(client);
            input.inlet_ready(&mut bench.place(), key, &mut buffer);
            assert_eq!(input.target.is_none(), once);
            let late = input.add(&mut bench.place()).unwrap();
            assert_eq!(write(&late, b"x").err(), once.then_some(Errno::EPIPE));
        }
    }

    #[test]
    fn a_container_that_does_not_read_stops_its_clients() {
        let (mut bench, mut buffer) = (Bench::new(), vec![0; 16 * 1024]);
        let (container, target) = pipe_with(|ends| &ends.1).unwrap();
        let mut input = Input::new(Some(target), true);
        let client = input.add(&mut bench.place()).unwrap();
        fcntl(&client, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let (mut done, mut got, mut client) = (0, Vec::new(), Some(client));
        while got.len() < sent.len() {
            if let Some(fd) = &client {
                done += write(fd, &sent[done..]).unwrap_or(0);
                if done == sent.len() {
                    client = None;
                }
            }
            match bench.ready() {
                Some(Source::Inlet(_, key)) => input.inlet_ready(&mut bench.place(), key, &mut buffer),
                Some(Source::Stdin(7)) => input.target_ready(&mut bench.place()),
                Some(other) => panic!("{other:?}"),
                // Both sides wait for the container.
                None => got.extend(read_some(&container)),
            }
            assert!(input.rest.len() <= buffer.len());
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn two_clients_that_write_at_once_wait_for_the_container_both() {
        let (mut bench, mut buffer) = (Bench::new(), vec![0; 128 * 1024]);
        let (_container, target) = pipe_with(|ends| &ends.1).unwrap();
        let mut input = Input::new(Some(target), false);
        let clients = [(); 3].map(|()| input.add(&mut bench.place()).unwrap());
        for client in &clients {
            assert_eq!(write(client, &[0; 64 * 1024]), Ok(64 * 1024));
        }
        let keys: Vec<_> = input.inlets.iter().map(|(key, _)| *key).collect();
        // The events of all of them were told together.
        keys.into_iter().for_each(|key| input.inlet_ready(&mut bench.place(), key, &mut buffer));
        assert!(input.target.is_some());
        assert_eq!((input.inlets.len(), input.rest.len()), (3, 64 * 1024));
    }

    #[test]
    fn a_container_that_closed_its_input_ends_its_clients() {
        let (mut bench, mut buffer) = (Bench::new(), [0; 64]);
        let (container, target) = pipe_with(|ends| &ends.1).unwrap();
        let mut input = Input::new(Some(target), false);
        let client = input.add(&mut bench.place()).unwrap();
        drop(container);
        write(&client, b"x").unwrap();
        let Some(Source::Inlet(_, key)) = bench.ready() else { panic!("input is told") };
        input.inlet_ready(&mut bench.place(), key, &mut buffer);
        assert_eq!(write(&client, b"x"), Err(Errno::EPIPE));
    }
}
