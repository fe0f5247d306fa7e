//! Pseudo-terminals by descriptor: ioctl_tty(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{cvt, cvt_fd};

/// Unlocks the terminal behind the master `master` and opens its other side, whatever is mounted at `/dev/pts`.
///
/// # Errors
/// `ENOTTY` if `master` is none, else as `TIOCGPTPEER` in ioctl_tty(2).
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call; `master` is open.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    cvt(libc::c_long::from(ret))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    cvt_fd(libc::c_long::from(ret))
}

/// Makes `terminal` the controlling terminal of the calling session leader.
///
/// # Errors
/// `EPERM` if the caller leads no session or the terminal belongs to another.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a plain number; `terminal` is open.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    cvt(libc::c_long::from(ret)).map(drop)
}

/// Sets the size of the terminal in characters.
///
/// # Errors
/// `ENOTTY` if it is none.
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call; `terminal` is open.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    cvt(libc::c_long::from(ret)).map(drop)
}

/// The size of the terminal in rows and columns.
///
/// # Errors
/// `ENOTTY` if it is none.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills one winsize, which outlives the call; `terminal` is open.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    cvt(libc::c_long::from(ret))?;
    Ok((size.ws_row, size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn both_sides_of_a_new_terminal() {
        let master = std::fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
        let peer = open_peer(master.as_fd()).unwrap();
        set_size(master.as_fd(), 40, 132).unwrap();
        assert_eq!(size(peer.as_fd()).unwrap(), (40, 132));
        nix::unistd::write(&peer, b"x").unwrap();
        let mut byte = [0];
        nix::unistd::read(&master, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_file_is_no_terminal() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
