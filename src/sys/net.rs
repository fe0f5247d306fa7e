//! The little of networking a pod needs before any driver: its loopback.

use std::io;
use std::os::fd::AsRawFd;

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
