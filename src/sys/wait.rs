//! Ended children: waitid(2), whatever signal ended them.

use std::io;
use std::mem::MaybeUninit;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its pid, free for others from now on.
    pub pid: i32,
    /// Its exit status, or 128 + the number of the signal that killed it (real-time signals too).
    pub code: i32,
}

/// Reaps one child that has ended; `None` if none has, or there are no children.
///
/// # Errors
/// As waitid(2); `EINTR` is not told.
pub fn reap() -> io::Result<Option<Ended>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: waitid writes at most one siginfo_t to `info`, which outlives the call.
        let ret = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) };
        if ret == 0 {
            break;
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINTR) => {}
            e if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            e => return Err(e),
        }
    }
    // SAFETY: zeroed is a valid siginfo_t (plain numbers), and waitid at most wrote over it.
    let info = unsafe { info.assume_init() };
    // SAFETY: after waitid the pid field is set, or 0 from the zeroing when no child has ended.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: for a reaped child the status field is set.
    let status = unsafe { info.si_status() };
    let code = if info.si_code == libc::CLD_EXITED { status } else { 128 + status };
    Ok(Some(Ended { pid, code }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Other tests have children too, so a process of its own is asked: this test's executable, run for the test below.
    #[test]
    fn every_kind_of_end_is_told() {
        let exe = std::env::current_exe().unwrap();
        let name = "sys::wait::tests::reaps_its_children";
        let output = Command::new(exe).args(["--exact", name]).env("ARIL_TEST_REAP", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    // `reap` waits for them: that is what is tested.
    #[allow(clippy::zombie_processes)]
    fn reaps_its_children() {
        if std::env::var_os("ARIL_TEST_REAP").is_none() {
            return;
        }
        assert_eq!(reap().unwrap(), None);
        for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("kill -40 $$", 168)] {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let ended = loop {
                if let Some(ended) = reap().unwrap() {
                    break ended;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            };
            assert_eq!(ended, Ended { pid: child.id().cast_signed(), code });
        }
    }
}
