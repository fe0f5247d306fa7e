//! The shim: one per pod, parent and reaper of all its processes, keeper of their output and exits.
//!
//! One thread, one loop ([`server`]). A daemon tells it what to do over [`crate::wire`]; daemons come and go, and the
//! pod with its logs and exit records does not depend on them:
//!
//! ```text
//!            spawned                SetupSandbox              Shutdown
//!  (nothing) ───────► waiting ──────────────────► serving ───────────────► all killed, cgroups removed, gone
//!                        └── daemon lost ──► gone    │ ▲
//!                                                    └─┘ daemon lost, another connects
//! ```
//!
//! It owns: the containers ([`container`], their end in [`finish`]), exec sessions ([`session`]), their streams
//! ([`stdio`], [`log`], [`logfile`], [`attach`]), the pod's list of cgroups ([`sandbox`]), its own place ([`home`]). It never knows Kubernetes,
//! never runs a helper program, and never waits: every step that takes time is an event or a deadline of the loop.
//!
//! Invariants: an exit is told only when the log is complete and the record on disk; a cgroup is written down before it
//! is made; a daemon that does not read is cut off instead of being waited for; nothing a daemon sends ends the shim.
//!
//! The log follows the CRI logging format as kubelet reads it.

pub mod attach;
pub mod cleanup;
pub mod connection;
pub mod container;
pub mod exit;
pub mod failure;
pub mod finish;
pub mod home;
pub mod log;
pub mod logfile;
pub mod poll;
pub mod request;
pub mod sandbox;
pub mod server;
pub mod session;
pub mod shutdown;
pub mod stdio;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};

use crate::runtime::Pod;
use crate::sys::process;

/// So that a pod is killed long before its keeper.
const OOM_SCORE_ADJ: i32 = -999;

const USAGE: &str = "\
usage: aril-shim RUN_DIR            keeps one pod; started by the daemon, with its socket as standard input
       aril-shim cleanup RUN_DIR    removes what a dead shim left behind
       aril-shim --version";

/// The program `aril-shim`.
#[must_use]
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.skip(1).collect();
    let result = match args.as_slice() {
        [version] if version == "--version" => {
            println!("aril-shim {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        [command, run_dir] if command == "cleanup" => cleanup::cleanup(Path::new(run_dir)).map_err(|e| e.to_string()),
        [_run_dir] => serve().map_err(|e| format!("aril-shim: {e}")),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    let at = |step: &'static str| move |e: io::Error| format!("{step}: {e}");
    let socket = take_socket().map_err(|e| format!("standard input is no socket of a daemon: {e}"))?;
    // Inherited descriptors are nobody's here, and must reach no container.
    process::cloexec_from(3).map_err(at("close inherited descriptors"))?;
    // A daemon's terminal and process group are not the pod's.
    nix::unistd::setsid()
        .map(drop)
        .or_else(|e| if e == Errno::EPERM { Ok(()) } else { Err(e) })
        .map_err(errno_at("setsid"))?;
    umask(Mode::from_bits_truncate(0o022));
    nix::sys::prctl::set_name(c"aril-shim").map_err(errno_at("set the process name"))?;
    let pod = Pod::start().map_err(|e| e.to_string())?;
    let warnings = pod.protect(OOM_SCORE_ADJ).map_err(|e| e.to_string())?;
    let mut server = server::Server::new(pod, socket, warnings).map_err(at("start the loop"))?;
    server.run().map_err(at("wait for events"))?;
    server.hang_up();
    server.leave_home();
    Ok(())
}

fn errno_at(step: &'static str) -> impl Fn(Errno) -> String {
    move |e| format!("{step}: {e:?}")
}

/// The connection to the daemon that started us, moved away from where children look for their input.
fn take_socket() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    if getsockopt(&stdin, sockopt::SockType)? != SockType::SeqPacket {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = stdin.as_fd().try_clone_to_owned()?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    process::set_stdio(null.as_fd(), 0)?;
    Ok(socket)
}
