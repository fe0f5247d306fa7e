//! The little of networking that is not netlink: loopback, and filters of sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::cvt;

/// Sets the loopback interface of the caller's network namespace up; the kernel gives it 127.0.0.1 and ::1.
///
/// # Errors
/// As netdevice(7).
pub fn loopback_up() -> io::Result<()> {
    let handle = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    name[0] = b'l'.cast_signed();
    name[1] = b'o'.cast_signed();
    let up = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(i16::MAX);
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: up } };
    // SAFETY: SIOCSIFFLAGS reads one ifreq with its flags set, which outlives the call; `handle` is an open socket.
    let ret = unsafe { libc::ioctl(handle.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    cvt(libc::c_long::from(ret)).map(drop)
}

/// A test of a packet: a number in it, in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Sixteen bits.
    Short {
        /// Where, in bytes.
        at: u32,
        /// What it must be.
        is: u16,
    },
    /// Thirty-two bits.
    Long {
        /// Where, in bytes.
        at: u32,
        /// The number it is compared with.
        is: u32,
        /// Whether it must be that, or anything else.
        equal: bool,
    },
}

/// Has a socket receive only packets that pass all tests (up to 100), in place of an earlier filter. The others are
/// dropped before anybody is woken.
///
/// # Errors
/// As setsockopt(2), `SO_ATTACH_FILTER`.
pub fn take_only(socket: BorrowedFd<'_>, tests: &[Test]) -> io::Result<()> {
    const LOAD_SHORT: u16 = 0x28;
    const LOAD_LONG: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let plain = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut program = Vec::new();
    for (number, test) in (1..).zip(tests) {
        // The program ends in "take it" and "drop it".
        let rest = tests.len().checked_sub(number).and_then(|rest| u8::try_from(2 * rest + 1).ok());
        let rest = rest.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // The filter reads numbers as they are on a wire.
        let (load, at, is, equal) = match *test {
            Test::Short { at, is } => (LOAD_SHORT, at, is.to_be().into(), true),
            Test::Long { at, is, equal } => (LOAD_LONG, at, is.to_be(), equal),
        };
        let (jt, jf) = if equal { (0, rest) } else { (rest, 0) };
        program.extend([plain(load, at), libc::sock_filter { code: JUMP_EQUAL, jt, jf, k: is }]);
    }
    program.extend([plain(RETURN, u32::MAX), plain(RETURN, 0)]);
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default();
    // SAFETY: `filter` and the `len` instructions it points at outlive the call, which only reads them and keeps a copy;
    // `length` is the structure's size; `socket` is open.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    cvt(libc::c_long::from(ret)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn only_what_passes_all_tests_is_received() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let tests = [Test::Short { at: 0, is: 7 }, Test::Long { at: 4, is: 9, equal: false }];
        take_only(receiver.as_fd(), &tests).unwrap();
        let packet = |short: u16, long: u32| [&short.to_ne_bytes()[..], &[0; 2], &long.to_ne_bytes()].concat();
        for (short, long, passes) in [(7, 8, true), (7, 9, false), (8, 8, false), (7 << 8, 8, false)] {
            sender.send(&packet(short, long)).ok();
            assert_eq!(receiver.recv(&mut [0; 16]).is_ok(), passes, "{short} {long}");
        }
        // Too short for a test.
        sender.send(&[7]).ok();
        assert!(receiver.recv(&mut [0; 16]).is_err());
        take_only(receiver.as_fd(), &[Test::Long { at: 4, is: 9, equal: true }]).unwrap();
        sender.send(&packet(1, 9)).unwrap();
        assert_eq!(receiver.recv(&mut [0; 16]).unwrap(), 8);
    }
}
