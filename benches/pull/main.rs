//! `make bench-pull`: what a pull costs, beside containerd, from one registry on loopback.
//!
//! Debian's `docker-registry` serves images made here once ([`images`]). Each round starts every daemon anew in an
//! [`arena`] of its own and pulls, in this order: a large image of 8 layers, the same again, one that shares 7 of
//! those layers, one of a single large layer, one of 60 small layers. Wall time is that of `PullImage`; processor
//! time, memory and bytes written are those of the daemon and what it started.

#[path = "../support/arena.rs"]
#[allow(dead_code)] // what the benchmark of pods needs of it
mod arena;
#[path = "../support/cgroups.rs"]
#[allow(dead_code)]
mod cgroups;
#[path = "../support/channel.rs"]
mod channel;
mod daemon;
mod images;
#[path = "../support/packages.rs"]
mod packages;
#[path = "../support/processes.rs"]
#[allow(dead_code)]
mod processes;
mod registry;
mod report;
mod usage;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::arena::Stage;
use crate::daemon::Daemon;
use crate::registry::Registry;
use crate::report::{Report, Sample};

/// What `--install` brings.
const PACKAGES: &[&str] = &["containerd", "runc", "docker-registry"];

/// A benchmark is a program: what goes wrong is told to a person and ends it.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runtime {
    Aril,
    Containerd,
}

impl Runtime {
    /// As named in the results.
    const fn name(self) -> &'static str {
        match self {
            Runtime::Aril => "aril",
            Runtime::Containerd => "containerd",
        }
    }
}

/// One pull of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    /// As named in the results.
    name: &'static str,
    /// Repository in the registry.
    image: &'static str,
    /// Layers of it that are there already.
    shared: usize,
}

/// In this order: the later ones build on the first.
const STEPS: [Step; 5] = [
    Step { name: "8 layers, 1 GB", image: "eight", shared: 0 },
    Step { name: "again", image: "eight", shared: 8 },
    Step { name: "7 of 8 layers there", image: "seven-shared", shared: 7 },
    Step { name: "1 layer, 500 MB", image: "one", shared: 0 },
    Step { name: "60 layers, 300 MB", image: "sixty", shared: 0 },
];

/// Measures what pulling images costs on aril and on containerd.
#[derive(Debug, Parser)]
#[command(name = "pull")]
struct Args {
    /// Installs the Debian packages containerd, runc and docker-registry where missing
    #[arg(long)]
    install: bool,
    /// Measures only these
    #[arg(long, value_delimiter = ',', value_name = "RUNTIME")]
    only: Vec<Runtime>,
    /// Rounds
    #[arg(short = 'n', default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Makes images of a hundredth of the size
    #[arg(long)]
    small: bool,
    /// The daemon to measure
    #[arg(long, default_value = "target/release/aril")]
    aril: PathBuf,
    /// The shim it shall use
    #[arg(long, default_value = "target/release/aril-shim")]
    shim: PathBuf,
    /// The containerd to measure beside it
    #[arg(long, value_name = "PATH", default_value = "containerd")]
    containerd: PathBuf,
    /// Where the images are kept from one run to the next
    #[arg(long, default_value = "target/bench/registry")]
    registry: PathBuf,
    /// Where the results go
    #[arg(long, default_value = "target/bench/pull.json")]
    output: PathBuf,
    /// Keeps the daemons' logs in this directory
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
    /// Given by `cargo bench`, without meaning
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap_or_default();
    let done = match role.as_str() {
        arena::ENTER => arena::enter(std::env::args_os().skip(2)),
        _ => measure(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err("layers are unpacked by root: run it as root".into());
    }
    let reactor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    reactor.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Whichever comes first, everything the run holds is dropped here, and by that undone.
        tokio::select! {
            done = run(args) => done,
            _ = interrupt.recv() => Err("interrupted".into()),
            _ = terminate.recv() => Err("terminated".into()),
        }
    })
}

async fn run(args: &Args) -> Result<()> {
    if args.install {
        packages::install(PACKAGES)?;
    }
    let scale = if args.small { 100 } else { 1 };
    let content = args.registry.join(if args.small { "small" } else { "full" });
    let unpacked = images::prepare(&content, scale)?;
    let stage = Stage::new(args.keep_logs.clone())?;
    let registry = Registry::start(&content, stage.dir())?;
    let mut report = Report::new(args.rounds);
    let mut chosen = Vec::new();
    for &runtime in Runtime::value_variants().iter().filter(|r| args.only.is_empty() || args.only.contains(r)) {
        match daemon::version(runtime, args) {
            Ok(version) => {
                report.version(runtime, version);
                chosen.push(runtime);
            }
            Err(why) if runtime == Runtime::Aril => return Err(why),
            Err(why) => report.omit(runtime, &why.to_string()),
        }
    }
    for round in 1..=args.rounds {
        for &runtime in &chosen {
            pulls(runtime, args, &stage, &registry, &unpacked, &mut report).await?;
        }
        eprintln!("round {round} of {} done", args.rounds);
    }
    report.print();
    report.write(&args.output)
}

/// One round of one runtime.
async fn pulls(
    runtime: Runtime,
    args: &Args,
    stage: &Stage,
    registry: &Registry,
    unpacked: &images::Unpacked,
    report: &mut Report,
) -> Result<()> {
    let mut daemon = Daemon::start(runtime, args, stage).await?;
    for step in STEPS {
        // What the one before has left to be written is not this one's cost.
        nix::unistd::sync();
        let disk_before = usage::disk_bytes(&daemon.root());
        let before = daemon.usage()?;
        let started = Instant::now();
        daemon.pull(&format!("{}/{}:latest", registry.address(), step.image)).await?;
        let wall = started.elapsed();
        let after = daemon.usage()?;
        let disk = usage::disk_bytes(&daemon.root()).saturating_sub(disk_before);
        report.add(
            runtime,
            step,
            Sample {
                wall,
                cpu: after.cpu.saturating_sub(before.cpu),
                peak_kib: after.peak_kib,
                written_bytes: after.written_bytes.saturating_sub(before.written_bytes),
                disk_bytes: disk,
                unpacked_bytes: unpacked.bytes(step.image, step.shared),
            },
        );
    }
    Ok(())
}

/// The path of a program as the arena's processes will find it.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|e| format!("{}: {e}: build it with `make`", path.display()).into())
}
