//! The kernel floor: the raw work of one container, with nothing around it.
//!
//! A small process of its own (cloning from a big one costs page tables) that a line on its input
//! takes through one pod: cgroups in every hierarchy with limits and device rules, a clone into
//! new namespaces, overlay, `/proc`, `/dev` and `/sys`, pivot_root, execve; an exec session;
//! SIGTERM and wait; removal. Nothing is recorded, logged, checked or recovered, and nobody is
//! asked over a socket: a runtime cannot be faster than this.

mod container;

use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, io};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use self::container::Machine;
use crate::Result;
use crate::arena::{Arena, Stage};
use crate::samples::{Pod, op};

/// The first argument that makes this program the floor.
pub const ROLE: &str = "kernel-floor";

/// Where a static busybox is, by distribution.
const BUSYBOX: &[&str] = &["/bin/busybox", "/usr/bin/busybox"];

/// The running floor process.
#[derive(Debug)]
pub struct Floor {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
    // Dropped last: kills what the process left in its cgroups.
    _arena: Arena,
}

impl Floor {
    pub fn start(stage: &Stage) -> Result<Floor> {
        let arena = Arena::new(stage, "floor")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).arg(&arena.dir).arg(&arena.cgroup).process_group(0).kill_on_drop(true);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().ok_or("the floor has no input")?;
        let output = process.stdout.take().ok_or("the floor has no output")?;
        Ok(Floor { input, output: BufReader::new(output).lines(), _process: process, _arena: arena })
    }

    /// One pod from its start to its removal.
    pub async fn pod(&mut self) -> Result<Pod> {
        self.input.write_all(b"pod\n").await?;
        let mut pod = Pod::default();
        for &op in OPS {
            let line = self.output.next_line().await?.ok_or("the floor ended")?;
            pod.push(op, Duration::from_nanos(line.parse()?));
        }
        Ok(pod)
    }
}

/// The operations in the order in which the floor reports them.
const OPS: &[&str] = &[op::RUN, op::CREATE, op::START, op::EXEC, op::STOP, op::REMOVE, op::STOP_POD, op::REMOVE_POD];

/// The floor process: a pod for every line read, a line of nanoseconds for every operation.
pub fn serve(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    let dir = args.next().ok_or("the floor needs a directory")?;
    let cgroup = args.next().and_then(|arg| arg.into_string().ok()).ok_or("the floor needs a cgroup")?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let busybox = BUSYBOX.iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.ok_or("there is no busybox: apt-get install busybox-static")?;
    let machine = Machine::prepare(dir.as_ref(), &cgroup, &busybox)?;
    for line in io::stdin().lock().lines() {
        line?;
        let mut took = Vec::new();
        pod(&machine, &mut took)?;
        let mut output = io::stdout().lock();
        for duration in took {
            writeln!(output, "{}", duration.as_nanos())?;
        }
        output.flush()?;
    }
    Ok(())
}

/// One pod's life; `took` gets a duration for each of [`OPS`].
fn pod(machine: &Machine, took: &mut Vec<Duration>) -> Result<()> {
    let mut start = Instant::now();
    let mut lap = |took: &mut Vec<Duration>| {
        took.push(start.elapsed());
        start = Instant::now();
    };
    machine.make_pod()?;
    lap(took);
    let mut container = machine.create()?;
    lap(took);
    container.start()?;
    lap(took);
    container.await_ready()?;
    lap(&mut Vec::new());
    machine.exec(&container, c"/bin/true")?;
    lap(took);
    container.stop()?;
    lap(took);
    machine.remove()?;
    lap(took);
    machine.stop_pod()?;
    lap(took);
    machine.remove_pod()?;
    lap(took);
    Ok(())
}
