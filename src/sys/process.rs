//! Processes: clone3(2), pidfds, limits, and what must be reset before execve(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;

use super::{cvt, cvt_fd};

/// Proof that the process had one thread when it was made.
///
/// A process that cloned itself from one of several threads may find locks held for ever, so [`clone_process`]
/// wants this. Whoever holds one must not start threads; the shim never does.
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Counts the process's threads.
    ///
    /// # Errors
    /// `EBUSY` if there are several, else as reading `/proc/self/task`.
    pub fn check() -> io::Result<Self> {
        if std::fs::read_dir(Path::new("/proc/self/task"))?.count() == 1 {
            Ok(Self(()))
        } else {
            Err(Errno::EBUSY.into())
        }
    }
}

/// Which side of a [`clone_process`] this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller, with its new child.
    Parent {
        /// The child's pid in the caller's PID namespace.
        pid: i32,
        /// A descriptor of the child (close-on-exec, non-blocking to poll).
        pidfd: OwnedFd,
    },
    /// The child, with a copy of everything.
    Child,
}

/// Clones the calling process: a fork with new namespaces (`CLONE_NEW*` bits in `namespaces`) and, where `cgroup`
/// is a directory of a cgroup v2 hierarchy, born into that cgroup. The child's end is told by `SIGCHLD`.
///
/// # Errors
/// As clone3(2): `EAGAIN` at a process limit, `EBUSY` for a v2 cgroup that takes no processes, `ENOSPC`, `EPERM`.
pub fn clone_process(_proof: SingleThreaded, namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: namespaces | CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(dir.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` is a clone_args of the size told, `pidfd` lives until after the call, and with no CLONE_VM and
    // no stack given the child runs on its own copy of this stack. The caller's proof says that no other thread
    // existed, so no lock in the copy is held by a thread that the copy lacks.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match i32::try_from(cvt(ret)?) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) => {
            // SAFETY: in the parent the kernel stored a new descriptor in `pidfd`; nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
        Err(_) => Err(Errno::EOVERFLOW.into()),
    }
}

/// A descriptor of the process `pid`.
///
/// # Errors
/// `ESRCH` if there is none, else as pidfd_open(2).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: both arguments are plain numbers.
    cvt_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends `signal` to the process behind `pidfd`; 0 only asks whether it could.
///
/// # Errors
/// `ESRCH` once it is gone, `EINVAL` for no signal number, else as pidfd_send_signal(2).
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: `pidfd` is open for the whole call; a null siginfo asks for the one kill(2) would send.
    cvt(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) }).map(drop)
}

/// Makes every descriptor from `first` on close-on-exec.
///
/// # Errors
/// As close_range(2).
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: all arguments are plain numbers; with CLOSE_RANGE_CLOEXEC nothing is closed now.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    cvt(ret).map(drop)
}

/// Closes every descriptor from 3 on but `keep`: for a cloned child that is going to wait, so that nothing its parent
/// closes meanwhile stays open. What owned them must not be used or dropped any more, so the child must end by
/// execve(2) or [`exit_now`].
///
/// # Errors
/// As close_range(2).
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<_> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for next in keep.into_iter().filter(|&fd| fd >= 3).chain([u32::MAX]) {
        if first < next {
            // SAFETY: all arguments are plain numbers; by the rule above nobody uses what is closed.
            cvt(unsafe { libc::syscall(libc::SYS_close_range, first, next - 1, 0) })?;
        }
        first = next.saturating_add(1);
    }
    Ok(())
}

/// Sets one resource limit (`RLIMIT_*` number) of the calling process.
///
/// # Errors
/// `EPERM` to raise a hard limit without `CAP_SYS_RESOURCE`, `EINVAL` for an unknown number or soft above hard.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let old = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `limit` outlives the call and pid 0 is the caller; no old value is asked for.
    cvt(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, old) }).map(drop)
}

/// Raises the soft limit of open files of the calling process to its hard one, which costs nothing to whoever does not
/// use select(2). Returns both as they were, for children that might.
///
/// # Errors
/// As getrlimit(2) and setrlimit(2).
pub fn raise_open_files() -> io::Result<(u64, u64)> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok((soft, hard))
}

/// Gives every signal its default action and unblocks all, as a new program expects.
///
/// # Errors
/// As sigprocmask(2).
pub fn reset_signals() -> io::Result<()> {
    // Handler (0 is the default action), flags, restorer and mask, as the kernel lays them out. Not through glibc,
    // which keeps two signals to itself and starts programs with these ignored.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: reads one kernel sigaction from `default`, which outlives the call; the default action runs no code.
        // KILL and STOP are refused, harmlessly.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>()) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Ends the calling process at once: no destructors, no exit handlers, as a cloned child must.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Puts a descriptor at one of the standard numbers 0 to 2, where it survives execve(2).
///
/// # Errors
/// As dup3(2); `EINVAL` for another number.
pub fn set_stdio(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if !(0..=2).contains(&number) {
        return Err(Errno::EINVAL.into());
    }
    if fd.as_raw_fd() == number {
        // SAFETY: clears close-on-exec on an open descriptor.
        return cvt(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })).map(drop);
    }
    // SAFETY: `fd` is open for the whole call; what was at `number` (0, 1 or 2) is closed, and std never owns those.
    cvt(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_pidfd_signals_and_then_says_gone() {
        let mut child = std::process::Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let pidfd = pidfd_open(child.id().cast_signed()).unwrap();
        pidfd_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(pidfd_signal(pidfd.as_fd(), 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_threaded_process_gets_no_proof() {
        // The test harness runs this on a thread beside its main one.
        assert!(SingleThreaded::check().is_err());
    }
}
