//! Unix `SOCK_SEQPACKET` sockets that carry packets and descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};

/// The most descriptors one packet may carry.
pub const MAX_FDS: usize = 16;

/// Two connected sockets.
///
/// # Errors
/// As socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// A listening socket bound at `path` (at most 107 bytes; a `/proc/self/fd/N/name` path keeps it short).
///
/// # Errors
/// `EADDRINUSE` if the path exists, else as bind(2) and listen(2).
pub fn listen(path: &str) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::new(16)?)?;
    Ok(socket)
}

/// The next connection of a listening socket, non-blocking; `None` if there is none now.
///
/// # Errors
/// As accept4(2).
pub fn accept(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match nix::sys::socket::accept4(socket.as_raw_fd(), flags) {
        // SAFETY: accept4 just made this descriptor; nothing else owns it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// `ENOENT` without a file, `ECONNREFUSED` without a listener, else as connect(2).
pub fn connect(path: &str) -> io::Result<OwnedFd> {
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// The user id of the process that connected (`SO_PEERCRED`).
///
/// # Errors
/// As getsockopt(2).
pub fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(nix::sys::socket::getsockopt(&socket, sockopt::PeerCredentials)?.uid())
}

/// Sends one packet. Never raises `SIGPIPE`.
///
/// # Errors
/// `EAGAIN` when a non-blocking socket is full, `EMSGSIZE` when the packet is larger than the send buffer, `EPIPE`.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let data = [IoSlice::new(packet)];
    nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one packet into `buffer`: its length and the descriptors beside it. Length 0: the peer closed.
///
/// # Errors
/// `EAGAIN` when there is none now, `EMSGSIZE` for a packet larger than `buffer` or with more than [`MAX_FDS`]
/// descriptors (which are closed), else as recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([libc::c_int; MAX_FDS]);
    let mut data = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = nix::sys::socket::recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags)?;
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let len = message.bytes;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel just installed these descriptors for this message; nothing else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if truncated {
        mem::drop(fds);
        return Err(Errno::EMSGSIZE.into());
    }
    Ok((len, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn packets_keep_their_borders_and_descriptors() {
        let (a, b) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(a.as_fd(), b"one", &[file.as_fd(), file.as_fd()]).unwrap();
        send(a.as_fd(), b"two", &[]).unwrap();
        let mut buffer = [0; 16];
        let (len, fds) = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..len], fds.len()), (&b"one"[..], 2));
        let (len, fds) = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..len], fds.len()), (&b"two"[..], 0));
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn a_packet_too_large_is_an_error_not_a_piece() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[1; 100], &[]).unwrap();
        assert_eq!(receive(b.as_fd(), &mut [0; 10]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn the_peer_is_known() {
        let (a, _b) = pair().unwrap();
        assert_eq!(peer_uid(a.as_fd()).unwrap(), nix::unistd::getuid().as_raw());
    }
}
