//! A container's streams: pipes or a terminal on one side, the log and attached clients on the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read};

use super::attach::{Input, Place, Taps};
use super::log::{Clock, Splitter, Stream};
use super::logfile::LogFile;
use super::poll::{Source, Watch};
use crate::plan;
use crate::runtime::Stdio3;
use crate::sys::tty;
use crate::wire::codec::MAX_PACKET_BYTES;

/// Room for one read, as much as the longest packet.
///
/// So much is allocated that it comes straight from the kernel: its pages are zero without having been touched, and
/// those no read has reached yet take no memory. A pod of few words keeps a page or two of it.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    const ALLOCATED_BYTES: usize = 256 * 1024;

    /// The room.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0[..MAX_PACKET_BYTES]
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; Self::ALLOCATED_BYTES])
    }
}

/// Scratch space shared by all containers of the pod.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What was just read.
    pub buffer: Buffer,
    /// Lines on their way to a log.
    pub batch: Vec<u8>,
    /// Tells the time.
    pub clock: Clock,
}

/// Our end of one output.
#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    stream: Stream,
    lines: Splitter,
    /// Not watched, because a client has to catch up.
    paused: bool,
}

impl Output {
    fn source(&self, place: &Place<'_>) -> Source {
        match self.stream {
            Stream::Stdout => Source::Stdout(place.container),
            Stream::Stderr => Source::Stderr(place.container),
        }
    }
}

/// The terminal of a container.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    /// Held while the container runs: a terminal nobody has open hangs up, and a container may close it and come back.
    peer: Option<OwnedFd>,
}

/// All streams of one container.
#[derive(Debug)]
pub struct Streams {
    outputs: Vec<Output>,
    terminal: Option<Terminal>,
    log: Option<LogFile>,
    /// Its input.
    pub input: Input,
    /// Clients at its outputs.
    pub taps: Taps,
    stdin: bool,
    stdin_once: bool,
}

impl Streams {
    /// Makes the pipes of a container: our ends and, for [`crate::runtime::Pod::create`], its own. With a terminal
    /// there are none; [`Streams::set_terminal`] follows.
    ///
    /// # Errors
    /// As pipe2(2).
    pub fn new(stdio: &plan::Stdio, tty: bool, log: Option<LogFile>) -> io::Result<(Self, Stdio3)> {
        let mut streams = Self {
            outputs: Vec::new(),
            terminal: None,
            log,
            input: Input::default(),
            taps: Taps::default(),
            stdin: stdio.stdin,
            stdin_once: stdio.stdin_once,
        };
        let mut theirs = Stdio3 { stdin: None, stdout: None, stderr: None };
        if tty {
            return Ok((streams, theirs));
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (fd, end) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(&fd)?;
            streams.outputs.push(Output { fd, stream, lines: Splitter::new(stream), paused: false });
            match stream {
                Stream::Stdout => theirs.stdout = Some(end),
                Stream::Stderr => theirs.stderr = Some(end),
            }
        }
        if stdio.stdin {
            let (end, fd) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(&fd)?;
            streams.input = Input::new(Some(fd), stdio.stdin_once);
            theirs.stdin = Some(end);
        }
        Ok((streams, theirs))
    }

    /// Watches the pipes.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, place: &mut Place<'_>) -> io::Result<()> {
        self.outputs.iter().try_for_each(|out| place.poller.add(&out.fd, out.source(place), Watch::Read))
    }

    /// The container's terminal has been made; takes its master over.
    ///
    /// # Errors
    /// As dup(2), epoll_ctl(2).
    pub fn set_terminal(&mut self, place: &mut Place<'_>, master: OwnedFd) -> io::Result<()> {
        set_nonblocking(&master)?;
        let peer = Some(tty::open_peer(master.as_fd())?);
        let out = Output {
            fd: master.try_clone()?,
            stream: Stream::Stdout,
            lines: Splitter::new(Stream::Stdout),
            paused: false,
        };
        place.poller.add(&out.fd, out.source(place), Watch::Read)?;
        self.outputs.push(out);
        if self.stdin {
            // A terminal has no end of input to give, so the first client's leaving does not end it.
            self.input = Input::new(Some(master.try_clone()?), false);
        }
        self.terminal = Some(Terminal { master, peer });
        Ok(())
    }

    /// Whether there is a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Whether the first client's leaving ends the input.
    #[must_use]
    pub fn stdin_once(&self) -> bool {
        self.stdin_once
    }

    /// Sets the terminal's size; `None` without a terminal.
    #[must_use]
    pub fn resize(&self, rows: u16, cols: u16) -> Option<io::Result<()>> {
        self.terminal.as_ref().map(|terminal| tty::set_size(terminal.master.as_fd(), rows, cols))
    }

    /// The log file, if the container has one.
    pub fn log(&mut self) -> Option<&mut LogFile> {
        self.log.as_mut()
    }

    /// Something to read at `stream`: takes one read's worth.
    pub fn readable(&mut self, place: &mut Place<'_>, stream: Stream, scratch: &mut Scratch) {
        self.read_once(place, stream, scratch);
        if self.taps.blocked(stream)
            && let Some(out) = self.outputs.iter_mut().find(|out| out.stream == stream)
        {
            out.paused = true;
            place.poller.remove(&out.fd);
        }
    }

    /// Clients may have caught up: goes on reading where they have.
    pub fn resume(&mut self, place: &mut Place<'_>) {
        for out in self.outputs.iter_mut().filter(|out| out.paused && !self.taps.blocked(out.stream)) {
            out.paused = false;
            // Should it not be watched again, it is still read when the container ends.
            place.poller.add(&out.fd, out.source(place), Watch::Read).ok();
        }
    }

    /// Reads once; false: nothing there now, or the stream has ended.
    fn read_once(&mut self, place: &mut Place<'_>, stream: Stream, scratch: &mut Scratch) -> bool {
        let Some(at) = self.outputs.iter().position(|out| out.stream == stream) else { return false };
        let Scratch { buffer, batch, clock } = scratch;
        let buffer = buffer.bytes();
        match read(&self.outputs[at].fd, buffer) {
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            Ok(0) | Err(_) => {
                self.end(place, at, scratch);
                false
            }
            Ok(n) => {
                if let Some(log) = &mut self.log {
                    self.outputs[at].lines.push(&buffer[..n], &clock.stamp(), batch, log);
                }
                self.taps.tee(place, stream, &buffer[..n]);
                true
            }
        }
    }

    fn end(&mut self, place: &mut Place<'_>, at: usize, scratch: &mut Scratch) {
        let mut out = self.outputs.swap_remove(at);
        place.poller.remove(&out.fd);
        if let Some(log) = &mut self.log {
            out.lines.finish(&scratch.clock.stamp(), &mut scratch.batch, log);
        }
    }

    /// The container's first process has ended: reads what is there without waiting for slow clients. True once all
    /// outputs have ended; until then call again when something is readable.
    pub fn drain(&mut self, place: &mut Place<'_>, scratch: &mut Scratch) -> bool {
        if let Some(terminal) = &mut self.terminal {
            terminal.peer = None;
        }
        self.input.close(place);
        for stream in [Stream::Stdout, Stream::Stderr] {
            // A pipe or terminal holds little, but a writer that survives could fill it for ever.
            for _ in 0..256 {
                if !self.read_once(place, stream, scratch) {
                    break;
                }
            }
        }
        for out in self.outputs.iter_mut().filter(|out| out.paused) {
            out.paused = false;
            place.poller.add(&out.fd, out.source(place), Watch::Read).ok();
        }
        self.outputs.is_empty()
    }

    /// Ends the outputs, whoever may still write to them, and closes the log.
    pub fn finish(&mut self, place: &mut Place<'_>, scratch: &mut Scratch) {
        while !self.outputs.is_empty() {
            self.end(place, 0, scratch);
        }
        self.taps.finish(place);
        self.terminal = None;
    }

    /// Closes the log; nothing is written to it any more.
    pub fn end_log(&mut self) {
        self.log = None;
    }

    /// Lets go of everything.
    pub fn close(&mut self, place: &mut Place<'_>) {
        self.input.close(place);
        self.taps.clear(place);
        self.outputs.drain(..).for_each(|out| place.poller.remove(&out.fd));
        self.terminal = None;
        self.log = None;
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
