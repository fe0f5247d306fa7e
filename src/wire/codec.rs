//! Messages to packets and back.
//!
//! The first byte of a packet is a tag: [`INLINE`], the message follows; [`IN_MEMFD`], the message is the content of
//! the packet's first descriptor, a memfd whose seals (no more writing, growing, shrinking, sealing) are checked on
//! receipt, so that nobody changes it while it is read. Sizes and counts are bounded; every break of the rules is a
//! [`PacketError::Malformed`], never a panic.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use prost::Message;

use crate::sys::socket;

/// Tag of a packet whose message follows.
pub const INLINE: u8 = 0;
/// Tag of a packet whose message is in its first descriptor.
pub const IN_MEMFD: u8 = 1;
/// Longest packet in bytes, tag included; what is longer goes through a memfd. Small, because a shim keeps a buffer
/// of this size for as long as it lives.
pub const MAX_PACKET_BYTES: usize = 32 * 1024;
/// Longest message in bytes, in a memfd.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// The seals without which a memfd is not read.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// Why no message could be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The socket failed, or would block.
    #[error("{step} of a packet")]
    Socket {
        /// What was tried: "send" or "receive".
        step: &'static str,
        /// As sendmsg(2) or recvmsg(2).
        source: io::Error,
    },
    /// The message could not be put into a memfd.
    #[error("memfd for a message of {bytes} bytes")]
    Memfd {
        /// Its length.
        bytes: usize,
        /// As memfd_create(2) or write(2).
        source: io::Error,
    },
    /// The message is longer than [`MAX_MESSAGE_BYTES`], or has more descriptors than [`socket::MAX_FDS`].
    #[error(
        "message of {bytes} bytes with {fds} descriptors exceeds the protocol's {MAX_MESSAGE_BYTES} bytes or {} descriptors",
        socket::MAX_FDS
    )]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// Descriptors beside it.
        fds: usize,
    },
    /// What came is against the rules; the connection must be closed.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The other side closed the connection.
    #[error("connection closed by the peer")]
    Closed,
}

impl PacketError {
    /// Whether a non-blocking socket had no room or no packet.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A message ready to be sent, as often as the socket is full.
#[derive(Debug)]
pub struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Outgoing {
    /// Encodes `message`; `fds` go beside it.
    ///
    /// # Errors
    /// [`PacketError::TooLarge`], or [`PacketError::Memfd`] for a long message.
    pub fn new(message: &impl Message, mut fds: Vec<OwnedFd>) -> Result<Self, PacketError> {
        let len = message.encoded_len();
        let in_memfd = len >= MAX_PACKET_BYTES;
        if len > MAX_MESSAGE_BYTES || fds.len() + usize::from(in_memfd) > socket::MAX_FDS {
            return Err(PacketError::TooLarge { bytes: len, fds: fds.len() });
        }
        if in_memfd {
            let memfd =
                sealed_memfd(&message.encode_to_vec()).map_err(|source| PacketError::Memfd { bytes: len, source })?;
            fds.insert(0, memfd);
            return Ok(Self { bytes: vec![IN_MEMFD], fds });
        }
        let mut bytes = Vec::with_capacity(1 + len);
        bytes.push(INLINE);
        message.encode(&mut bytes).map_err(|_| PacketError::TooLarge { bytes: len, fds: fds.len() })?;
        Ok(Self { bytes, fds })
    }

    /// Bytes it holds in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a packet has at least its tag.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends it in one packet.
    ///
    /// # Errors
    /// As [`socket::send`]; `EAGAIN` leaves it unsent.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        socket::send(socket, &self.bytes, &fds)
    }
}

/// Receives one message; `buffer` holds [`MAX_PACKET_BYTES`] and is only used meanwhile.
///
/// # Errors
/// [`PacketError::Socket`] (see [`PacketError::would_block`]), [`PacketError::Closed`], [`PacketError::Malformed`].
pub fn receive<M: Message + Default>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(M, Vec<OwnedFd>), PacketError> {
    let (len, fds) = match socket::receive(socket, buffer) {
        Ok((0, _)) => return Err(PacketError::Closed),
        Ok(received) => received,
        Err(e) if e.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
            return Err(PacketError::Malformed("too many bytes or descriptors"));
        }
        Err(e) if e.raw_os_error() == Some(nix::libc::ECONNRESET) => return Err(PacketError::Closed),
        Err(source) => return Err(PacketError::Socket { step: "receive", source }),
    };
    decode(buffer.get(..len).unwrap_or_default(), fds)
}

/// The message of one packet and the descriptors that belong to it.
///
/// # Errors
/// [`PacketError::Malformed`].
pub fn decode<M: Message + Default>(packet: &[u8], mut fds: Vec<OwnedFd>) -> Result<(M, Vec<OwnedFd>), PacketError> {
    let Some((&tag, rest)) = packet.split_first() else {
        return Err(PacketError::Malformed("no tag"));
    };
    let message = match tag {
        INLINE => M::decode(rest),
        IN_MEMFD if !rest.is_empty() => return Err(PacketError::Malformed("bytes beside a memfd")),
        IN_MEMFD if fds.is_empty() => return Err(PacketError::Malformed("memfd announced, none came")),
        IN_MEMFD => M::decode(read_sealed(fds.remove(0))?.as_slice()),
        _ => return Err(PacketError::Malformed("unknown tag")),
    };
    Ok((message.map_err(|_| PacketError::Malformed("not the message expected"))?, fds))
}

/// A memfd holding `bytes`, sealed against any change.
fn sealed_memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create(c"aril-message", flags)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

/// The content of a memfd, which nobody can change any more.
fn read_sealed(fd: OwnedFd) -> Result<Vec<u8>, PacketError> {
    // Anything but a memfd fails here: only shmem and hugetlbfs know seals.
    let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|_| PacketError::Malformed("descriptor is no memfd"))?;
    if !SealFlag::from_bits_retain(seals).contains(SEALS) {
        return Err(PacketError::Malformed("memfd is not sealed"));
    }
    let status = fstat(&fd).map_err(|_| PacketError::Malformed("memfd without status"))?;
    let size = usize::try_from(status.st_size).unwrap_or(usize::MAX);
    if size > MAX_MESSAGE_BYTES {
        return Err(PacketError::Malformed("message too long"));
    }
    let mut bytes = vec![0; size];
    let file = std::fs::File::from(fd);
    file.read_exact_at(&mut bytes, 0).map_err(|_| PacketError::Malformed("memfd shorter than it says"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
