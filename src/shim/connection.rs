//! A daemon's connection, seen from the shim.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::poll::{Key, Poller, Source, Watch};
use crate::wire::codec::{self, Outgoing, PacketError};
use crate::wire::pb;

/// Most bytes kept for a daemon that does not read; with more it is cut off. It will come back and ask for the state.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// Most packets kept for it, as they may hold descriptors.
const MAX_QUEUED: usize = 1024;

/// Whom a reply goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// The connection the request came on.
    pub connection: Key,
    /// The request's id.
    pub id: u64,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    socket: OwnedFd,
    /// The version agreed on; `None`: no hello yet.
    pub version: Option<u32>,
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
}

impl Connection {
    /// Takes a non-blocking socket over.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn new(poller: &mut Poller, socket: OwnedFd) -> io::Result<Self> {
        let key = poller.key();
        poller.add(&socket, Source::Connection(key), Watch::Read)?;
        Ok(Self { key, socket, version: None, queue: VecDeque::new(), queued_bytes: 0 })
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// The next request, if one is there.
    ///
    /// # Errors
    /// As [`codec::receive`].
    pub fn receive(&self, buffer: &mut [u8]) -> Result<(pb::Request, Vec<OwnedFd>), PacketError> {
        codec::receive(self.socket.as_fd(), buffer)
    }

    /// Sends a packet, or keeps it until there is room.
    ///
    /// # Errors
    /// As sendmsg(2); `ENOBUFS` when too much is kept. The connection is then of no use.
    pub fn send(&mut self, poller: &Poller, packet: Outgoing) -> io::Result<()> {
        if self.queue.is_empty() {
            match packet.send(self.socket.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    poller.change(&self.socket, Source::Connection(self.key), Watch::ReadWrite)?;
                }
                done => return done,
            }
        }
        self.queued_bytes += packet.len();
        self.queue.push_back(packet);
        if self.queued_bytes > MAX_QUEUED_BYTES || self.queue.len() > MAX_QUEUED {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        Ok(())
    }

    /// There is room again.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        while let Some(packet) = self.queue.front() {
            match packet.send(self.socket.as_fd()) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
            self.queued_bytes -= packet.len();
            self.queue.pop_front();
        }
        poller.change(&self.socket, Source::Connection(self.key), Watch::Read)
    }

    /// Closes it.
    pub fn close(self, poller: &Poller) {
        poller.remove(&self.socket);
        // A cloned child that has not executed yet may hold a copy; the daemon must see the end now.
        nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.socket), nix::sys::socket::Shutdown::Both)
            .ok();
    }
}
