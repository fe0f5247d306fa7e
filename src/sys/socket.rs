//! Unix `SOCK_SEQPACKET` sockets that carry packets and descriptors.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt};

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

/// Connects to the socket at `path`, never waiting for a listener that does not accept. The connection blocks.
///
/// # Errors
/// `ENOENT` without a file, `ECONNREFUSED` without a listener, `EAGAIN` if too many wait for it already, else as
/// connect(2).
pub fn connect(path: &str) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
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
/// Not by nix, which forgets the descriptors of a packet that had more than there was room for.
///
/// # Errors
/// `EAGAIN` when there is none now, `EMSGSIZE` for a packet larger than `buffer` or with more than [`MAX_FDS`]
/// descriptors (which are closed), else as recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0_u8; CONTROL_BYTES];
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a msghdr is numbers and pointers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len();
    // SAFETY: `message` points to `data` and `control`, `data` to `buffer`; all are as long as they say and outlive
    // the call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let fds = take_rights(control.get(..message.msg_controllen).unwrap_or_default());
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 || fds.len() > MAX_FDS {
        return Err(Errno::EMSGSIZE.into());
    }
    Ok((len, fds))
}

/// The most descriptors the kernel puts beside one packet (its SCM_MAX_FD).
const KERNEL_MAX_FDS: usize = 253;
/// A control message's length (a word), level and type (an int each).
const HEADER_BYTES: usize = 16;
const CONTROL_BYTES: usize = HEADER_BYTES + (KERNEL_MAX_FDS * size_of::<RawFd>()).next_multiple_of(8);

/// Takes over the descriptors in control messages the kernel has just written.
fn take_rights(mut control: &[u8]) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    while let Some((header, _)) = control.split_first_chunk::<HEADER_BYTES>() {
        let (len, kind) = header.split_at(size_of::<usize>());
        let len = len.try_into().map_or(0, usize::from_ne_bytes);
        let rights = [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_RIGHTS.to_ne_bytes()].concat();
        let Some(body) = control.get(HEADER_BYTES..len) else { break };
        if kind == rights {
            let (numbers, _) = body.as_chunks::<4>();
            // SAFETY: the kernel just installed these descriptors for this message; nothing else owns them.
            fds.extend(numbers.iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(fd)) }));
        }
        control = control.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    fds
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
    fn a_listener_that_accepts_nobody_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let path = path.to_str().unwrap();
        let _listener = listen(path).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match connect(path) {
                Ok(socket) => waiting.push(socket),
                Err(e) => break e,
            }
        };
        assert!(!waiting.is_empty());
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn the_peer_is_known() {
        let (a, _b) = pair().unwrap();
        assert_eq!(peer_uid(a.as_fd()).unwrap(), nix::unistd::getuid().as_raw());
    }

    #[test]
    fn descriptors_too_many_are_closed() {
        let (a, b) = pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        for count in [MAX_FDS + 1, KERNEL_MAX_FDS] {
            send(a.as_fd(), b"x", &vec![writer.as_fd(); count]).unwrap();
            assert_eq!(receive(b.as_fd(), &mut [0; 10]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        }
        send(a.as_fd(), b"x", &[writer.as_fd(); MAX_FDS]).unwrap();
        let received = receive(b.as_fd(), &mut [0; 10]).unwrap();
        assert_eq!(received.1.len(), MAX_FDS);
        // The end of the pipe comes when no copy of its other side is left.
        drop((received, writer));
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
    }
}
