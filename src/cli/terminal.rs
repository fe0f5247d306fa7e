//! The caller's terminal: raw while a session lasts, as it was before afterwards.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::termios::{self, LocalFlags, SetArg, Termios};

use super::error::CliError;
use crate::api::node::TtySize;
use crate::sys;

/// Raw mode of standard input; dropping it restores what was.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Every key goes to the other side as it is typed; nothing is echoed here.
    pub(super) fn enter() -> Result<Self, CliError> {
        let stdin = io::stdin();
        let failed = |e: nix::Error| CliError::io("make the terminal raw", e.into());
        let before = termios::tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0).ok();
    }
}

/// Standard input without echo, for a password; dropping it restores what was.
#[derive(Debug)]
pub(super) struct Silent(Termios);

impl Silent {
    pub(super) fn enter() -> Result<Self, CliError> {
        let stdin = io::stdin();
        let failed = |e: nix::Error| CliError::io("make the terminal silent", e.into());
        let before = termios::tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &silent).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0).ok();
    }
}

/// Refuses `-t` where standard input is no terminal.
pub(super) fn require() -> Result<(), CliError> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(CliError::Usage("standard input is no terminal; leave out -t".to_owned()))
}

/// The size of the terminal, if standard output or input is one that knows it.
pub(super) fn size() -> Option<TtySize> {
    let known = sys::tty::size(io::stdout().as_fd()).or_else(|_| sys::tty::size(io::stdin().as_fd()));
    let (rows, cols) = known.ok().filter(|&(rows, cols)| rows > 0 && cols > 0)?;
    Some(TtySize { rows: rows.into(), cols: cols.into() })
}

/// Looks for the detach keys, Ctrl-P Ctrl-Q, in what is typed.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    /// A Ctrl-P is held back until the next key tells what it meant.
    held: bool,
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

impl DetachKeys {
    /// What of `typed` is to be passed on, and whether the person wants to leave.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (self.held, key) {
                (true, CTRL_Q) => return (passed, true),
                (true, CTRL_P) => passed.push(CTRL_P),
                (false, CTRL_P) => self.held = true,
                (true, _) => {
                    self.held = false;
                    passed.extend([CTRL_P, key]);
                }
                (false, _) => passed.push(key),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_p_ctrl_q_leaves() {
        assert_eq!(DetachKeys::default().pass(b"ab\x10\x11c"), (b"ab".to_vec(), true));
        let mut keys = DetachKeys::default();
        assert_eq!(keys.pass(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.pass(b"\x11"), (Vec::new(), true));
    }

    #[test]
    fn a_ctrl_p_that_means_something_else_arrives() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.pass(b"\x10"), (Vec::new(), false));
        assert_eq!(keys.pass(b"x\x11"), (b"\x10x\x11".to_vec(), false));
        assert_eq!(keys.pass(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
    }
}
