//! How shims are started: from one sealed copy of their program, shared by all of them.
//!
//! The copy is a memfd that nobody can write any more, so the file a container sees as `/proc/self/exe` of a process
//! entering it is never one of the host's. One copy means one set of pages for all shims. Where the kernel forbids
//! executing memfds (`vm.memfd_noexec`), a file without a name, open only for reading, takes its place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::io::Interest;

use super::LOG_NAME;
use super::client::watch;
use crate::sys::{process, socket};

/// Starts shims.
#[derive(Debug)]
pub struct Spawner {
    program: OwnedFd,
}

impl Spawner {
    /// Copies the shim's program at `shim_path`, once. `copy_dir` must be on a filesystem programs may be executed
    /// from; it is only used where memfds may not.
    ///
    /// # Errors
    /// As open(2), memfd_create(2), write(2).
    pub fn new(shim_path: &Path, copy_dir: &Path) -> io::Result<Self> {
        let mut source = File::open(shim_path)?;
        let program = match sealed_copy(&mut source) {
            // vm.memfd_noexec=2 answers EACCES; older kernels have no memfds at all.
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EACCES | nix::libc::ENOSYS)) => {
                nameless_copy(&mut source, copy_dir)?
            }
            other => other?,
        };
        Ok(Self { program })
    }

    /// Starts a shim: the connection to it and the process.
    pub(super) fn spawn(&self, run_dir: &Path) -> io::Result<(OwnedFd, Child)> {
        let (ours, theirs) = socket::pair()?;
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(run_dir.join(LOG_NAME))?;
        // No pre_exec: without it the standard library uses posix_spawn, which copies no page tables.
        let child = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .arg0("aril-shim")
            .arg(run_dir)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()?;
        Ok((ours, child))
    }
}

/// Waits for a shim to end, so that it leaves no zombie; it is never killed from here.
pub(super) async fn reap(mut child: Child) {
    let pid = child.id().cast_signed();
    if let Ok(pidfd) = process::pidfd_open(pid)
        && let Ok(pidfd) = watch(pidfd, Interest::READABLE)
    {
        // Either way it has ended, or the wait below is the only thing left to try.
        pidfd.readable().await.map(drop).ok();
    }
    tokio::task::spawn_blocking(move || child.wait().map(drop).ok()).await.ok();
}

/// Executable whatever `vm.memfd_noexec` has as its default; Linux 6.3, not yet named in nix.
const MFD_EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);

/// How often sealing is tried while a page is held by somebody, once at the daemon's start.
const SEAL_TRIES: u32 = 20;
const SEAL_PAUSE: Duration = Duration::from_millis(10);

fn sealed_copy(source: &mut File) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memfd = match memfd_create(c"aril-shim", flags | MFD_EXEC) {
        // Before Linux 6.3 the flag is unknown and every memfd can be executed.
        Err(Errno::EINVAL) => memfd_create(c"aril-shim", flags)?,
        other => other?,
    };
    let mut file = File::from(memfd);
    io::copy(source, &mut file)?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    let mut tries = 0;
    // A page that somebody holds cannot be sealed, and the kernel's own scanners hold any page for a moment.
    while let Err(e) = fcntl(&file, FcntlArg::F_ADD_SEALS(seals)) {
        tries += 1;
        if e != Errno::EBUSY || tries == SEAL_TRIES {
            return Err(e.into());
        }
        std::thread::sleep(SEAL_PAUSE);
    }
    Ok(file.into())
}

fn nameless_copy(source: &mut File, dir: &Path) -> io::Result<OwnedFd> {
    let mut file =
        OpenOptions::new().read(true).write(true).mode(0o700).custom_flags(nix::libc::O_TMPFILE).open(dir)?;
    io::copy(source, &mut file)?;
    // What is open for writing cannot be executed.
    let program = File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))?;
    Ok(program.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &OwnedFd) -> bool {
        loop {
            match Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())).status() {
                // A child of another test has the file open for writing until it executes its own program.
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                ended => return ended.unwrap().success(),
            }
        }
    }

    #[test]
    fn a_sealed_copy_runs_and_cannot_be_written() {
        let program = sealed_copy(&mut File::open("/bin/true").unwrap()).unwrap();
        assert!(run(&program));
        assert_eq!(nix::unistd::write(&program, b"x"), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(&program, 0), Err(Errno::EPERM));
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let mut again = OpenOptions::new().write(true).open(path).unwrap();
        assert!(io::copy(&mut &b"x"[..], &mut again).is_err());
    }

    #[test]
    fn a_nameless_copy_runs_and_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let program = nameless_copy(&mut File::open("/bin/true").unwrap(), dir.path()).unwrap();
        assert!(run(&program));
        assert_eq!(nix::unistd::write(&program, b"x"), Err(Errno::EBADF));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        assert_eq!(
            Spawner::new(Path::new("/nonexistent"), Path::new("/tmp")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
