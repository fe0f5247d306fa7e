//! What the shim holds of the sandbox itself, and the list of cgroups that outlives it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, umask};
use prost::Message;

use super::connection::ReplyTo;
use super::failure::Failure;
use super::poll::{Source, Timer, Watch};
use super::server::Server;
use crate::disk::{self, Durability};
use crate::plan;
use crate::runtime::cgroup::{Cgroup, Hierarchies};
use crate::sys::socket;
use crate::wire::{CGROUPS_NAME, EXITS_NAME, SOCKET_NAME, pb, socket_path};

/// How long connections wait that cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The sandbox, once it is set up.
#[derive(Debug)]
pub struct Sandbox {
    /// The run directory, held open.
    pub run_dir: OwnedFd,
    /// Where exit records go.
    pub exits: PathBuf,
    /// Below which logs are; may be empty.
    pub log_directory: String,
    /// The cgroups made.
    pub book: Book,
    /// The pod init's pid, while it lives.
    pub init_pid: Option<i32>,
    listener: OwnedFd,
}

/// The cgroups made for the pod, one a line, each written down before it is made.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    lines: Vec<String>,
}

impl Book {
    /// An empty one at this path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, lines: Vec::new() }
    }

    /// Writes a cgroup down that is about to be made.
    ///
    /// # Errors
    /// [`Failure`]; then it must not be made.
    pub fn add(&mut self, hierarchies: &Hierarchies, path: &str) -> Result<(), Failure> {
        let line = Cgroup::record(hierarchies, path)?;
        if self.lines.contains(&line) {
            return Ok(());
        }
        self.append(&line).map_err(|e| Failure::io("write the pod's cgroup down", &e))?;
        self.lines.push(line);
        Ok(())
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        file.write_all(format!("{line}\n").as_bytes())
    }

    /// Strikes a cgroup that is gone. One with cgroups made above it stays, as they may still be there.
    pub fn strike(&mut self, path: &str) {
        let before = self.lines.len();
        self.lines.retain(|line| line != path);
        if self.lines.len() != before {
            // A line too many does no harm.
            disk::write_atomic(&self.path, self.text().as_bytes(), Durability::Process).ok();
        }
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}

impl Server {
    /// Sets the sandbox up, in the network namespace among `fds` if the request says that it is given.
    ///
    /// # Errors
    /// [`Failure`]; nothing is left then, and the shim ends with its daemon.
    pub fn setup(&mut self, to: ReplyTo, request: &pb::SetupSandbox, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.sandbox.is_some() {
            return Err(Failure::refused("the sandbox is set up already"));
        }
        let run_path = Path::new(&request.run_dir);
        if !run_path.is_absolute() {
            return Err(Failure::invalid(format!("run directory {:?}: not absolute", request.run_dir)));
        }
        let plan = plan::Sandbox::decode(request.plan.as_slice())
            .map_err(|e| Failure::invalid(format!("plan of the sandbox: {e}")))?;
        let network = fds.into_iter().next().filter(|_| request.network_given);
        if network.is_none() && request.network_given {
            return Err(Failure::invalid("network_given: no descriptor came with the request"));
        }
        let failed = |what: &'static str| move |e| Failure::io(what, &e);
        let run_dir = open_dir(run_path).map_err(failed("open the run directory"))?;
        let exits = run_path.join(EXITS_NAME);
        disk::private_dir(&exits).map_err(failed("make the directory of exit records"))?;
        let listener = listen(&run_dir).map_err(failed("listen on the shim's socket"))?;
        self.poller.add(&listener, Source::Listener, Watch::Read).map_err(failed("watch the shim's socket"))?;
        let book = Book::new(run_path.join(CGROUPS_NAME));
        let log_directory = request.log_directory.clone();
        self.sandbox = Some(Sandbox { run_dir, exits, log_directory, book, init_pid: None, listener });
        let made = self.make_sandbox(&plan, run_path, network);
        if made.is_err() {
            self.undo_setup();
        }
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.extend(made?);
        let init_pid = self.pod.init_pid();
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.init_pid = init_pid;
        }
        let reply = pb::SetupReply { init_pid: init_pid.unwrap_or(0), warnings };
        self.reply(to, pb::reply::Body::SetupSandbox(reply), Vec::new());
        self.go_home(&request.shim_cgroup);
        Ok(())
    }

    fn make_sandbox(
        &mut self,
        plan: &plan::Sandbox,
        run_path: &Path,
        network: Option<OwnedFd>,
    ) -> Result<Vec<String>, Failure> {
        if let Some(sandbox) = &mut self.sandbox
            && !plan.init_cgroup.is_empty()
        {
            sandbox.book.add(self.pod.hierarchies(), &plan.init_cgroup)?;
        }
        Ok(self.pod.setup(plan, run_path, network)?)
    }

    /// Takes back what a failed setup has made: the shim is as if just started, and ends with its daemon.
    fn undo_setup(&mut self) {
        if let Err(failure) = self.remove_rest() {
            self.warn("", failure.message().to_owned());
        }
        if let Some(sandbox) = self.sandbox.take() {
            self.poller.remove(&sandbox.listener);
        }
    }

    /// A daemon connects.
    pub fn accept(&mut self) {
        while let Some(sandbox) = &self.sandbox {
            let connection = match socket::accept(sandbox.listener.as_fd()) {
                Ok(Some(connection)) => connection,
                Ok(None) => return,
                Err(_) => {
                    // No descriptor is free, or no memory; the connection would be told of again and again.
                    self.poller.remove(&sandbox.listener);
                    return self.timers.set(Timer::Accept, ACCEPT_PAUSE);
                }
            };
            let own = nix::unistd::geteuid().as_raw();
            if socket::peer_uid(connection.as_fd()).is_ok_and(|uid| uid == own) {
                self.connected(connection);
            }
        }
    }

    /// Connections could not be accepted a moment ago.
    pub fn accept_again(&mut self) {
        let Some(sandbox) = &self.sandbox else { return };
        if self.poller.add(&sandbox.listener, Source::Listener, Watch::Read).is_err() {
            self.timers.set(Timer::Accept, ACCEPT_PAUSE);
        }
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Listens in the run directory, with a socket only our own user can connect to.
fn listen(run_dir: &OwnedFd) -> io::Result<OwnedFd> {
    match nix::unistd::unlinkat(run_dir, SOCKET_NAME, nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = socket::listen(&socket_path(run_dir.as_fd()));
    umask(before);
    listener
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_keeps_what_may_still_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cgroups");
        let mut book = Book::new(path.clone());
        for line in ["/pods/a\tunified:/pods", "/pods/b", "/pods/c"] {
            book.append(line).unwrap();
            book.lines.push(line.to_owned());
        }
        book.strike("/pods/b");
        book.strike("/pods/a");
        book.strike("/pods/unknown");
        assert_eq!(book.text(), "/pods/a\tunified:/pods\n/pods/c\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), book.text());
    }

    #[test]
    fn the_socket_is_private_and_replaces_a_stale_one() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let run_dir = open_dir(&deep).unwrap();
        for _ in 0..2 {
            let listener = listen(&run_dir).unwrap();
            assert_eq!(std::fs::metadata(deep.join(SOCKET_NAME)).unwrap().permissions().mode() & 0o777, 0o600);
            let _connection = socket::connect(&socket_path(run_dir.as_fd())).unwrap();
            let accepted = socket::accept(listener.as_fd()).unwrap().unwrap();
            assert_eq!(socket::peer_uid(accepted.as_fd()).unwrap(), nix::unistd::geteuid().as_raw());
        }
    }
}
