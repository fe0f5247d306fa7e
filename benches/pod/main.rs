//! `make bench`: what one pod costs, side by side.
//!
//! Measures the same pod on the kernel itself ([`floor`]), on aril and on containerd with runc
//! and with crun, through one CRI client with one configuration, in rounds that take turns so
//! that a busy moment of the machine hits everyone alike. Prints a table and writes
//! `target/bench/pod.json`.
//!
//! Everyone runs in an [`arena`] of its own: mount namespace, directory, cgroup. All of it is
//! given back at the end, also after an error, a panic or a ctrl-c.

#[path = "../support/arena.rs"]
mod arena;
#[path = "../support/cgroups.rs"]
mod cgroups;
#[path = "../support/channel.rs"]
mod channel;
mod client;
mod floor;
mod image;
mod memory;
#[path = "../support/packages.rs"]
mod packages;
mod plugins;
#[path = "../support/processes.rs"]
mod processes;
mod report;
mod runtimes;
mod samples;
mod streams;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::arena::Stage;
use crate::report::Report;
use crate::runtimes::{Contestant, Host};
use crate::samples::Samples;

/// What `--install` brings.
const PACKAGES: &[&str] = &["containerd", "runc", "crun", "busybox-static", "containernetworking-plugins", "iptables"];

/// A benchmark is a program: what goes wrong is told to a person and ends it.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// The raw syscalls of one container.
    Floor,
    Aril,
    ContainerdRunc,
    ContainerdCrun,
    /// The built-in network.
    ArilBridge,
    /// The plugins alone, each run as CNI has it.
    CniPlugins,
    ArilCni,
    ContainerdRuncCni,
    ContainerdCrunCni,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The memory of daemons and of what they keep running.
    Memory,
    /// Pods from start to removal.
    Pods,
    /// Exec, port-forward, logs, and calls where there is much.
    Streams,
}

/// What the pods of a runtime are connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Host,
    Bridge,
    Cni,
}

impl Network {
    const fn name(self) -> &'static str {
        match self {
            Network::Host => "host",
            Network::Bridge => "bridge",
            Network::Cni => "cni",
        }
    }
}

impl Runtime {
    /// As named in the results.
    const fn name(self) -> &'static str {
        match self {
            Runtime::Floor => "floor",
            Runtime::Aril => "aril",
            Runtime::ContainerdRunc => "containerd-runc",
            Runtime::ContainerdCrun => "containerd-crun",
            Runtime::ArilBridge => "aril-bridge",
            Runtime::CniPlugins => "cni-plugins",
            Runtime::ArilCni => "aril-cni",
            Runtime::ContainerdRuncCni => "containerd-runc-cni",
            Runtime::ContainerdCrunCni => "containerd-crun-cni",
        }
    }

    const fn network(self) -> Network {
        match self {
            Runtime::Floor | Runtime::Aril | Runtime::ContainerdRunc | Runtime::ContainerdCrun => Network::Host,
            Runtime::ArilBridge => Network::Bridge,
            Runtime::CniPlugins | Runtime::ArilCni | Runtime::ContainerdRuncCni | Runtime::ContainerdCrunCni => {
                Network::Cni
            }
        }
    }

    const fn is_aril(self) -> bool {
        matches!(self, Runtime::Aril | Runtime::ArilBridge | Runtime::ArilCni)
    }
}

/// Measures what one pod costs on aril, on containerd and on the kernel alone.
#[derive(Debug, Parser)]
#[command(name = "pod")]
struct Args {
    /// Installs the Debian packages of the peers (containerd, runc, crun, the CNI plugins) where missing
    #[arg(long)]
    install: bool,
    /// Measures only these
    #[arg(long, value_delimiter = ',', value_name = "RUNTIME")]
    only: Vec<Runtime>,
    /// Measures only this; all of it if not given
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    part: Vec<Part>,
    /// Pods per runtime
    #[arg(short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    iterations: u32,
    /// Numbers of pods at which memory is read; "0" for the idle daemon only
    #[arg(long, value_delimiter = ',', value_name = "PODS", default_value = "1,20,100")]
    memory: Vec<usize>,
    /// Floor and aril (on the host's network and on its bridge) only, five pods, and fails if a pod's start takes 50 ms or a row is missing
    #[arg(long)]
    smoke: bool,
    /// The daemon to measure
    #[arg(long, default_value = "target/release/aril")]
    aril: PathBuf,
    /// The shim it shall use
    #[arg(long, default_value = "target/release/aril-shim")]
    shim: PathBuf,
    /// Archive of an image to take as docker.io/library/busybox:latest; made when not given
    #[arg(long)]
    busybox: Option<PathBuf>,
    /// Archive of an image to take as registry.k8s.io/pause:3.10, for containerd; made when not given
    #[arg(long)]
    pause: Option<PathBuf>,
    /// Where the results go
    #[arg(long, default_value = "target/bench/pod.json")]
    output: PathBuf,
    /// Keeps the daemons' logs in this directory
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
    /// Given by `cargo bench`, without meaning
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn wants(&self, runtime: Runtime) -> bool {
        let named = self.only.is_empty() || self.only.contains(&runtime);
        named && (!self.smoke || matches!(runtime, Runtime::Floor | Runtime::Aril | Runtime::ArilBridge))
    }

    fn does(&self, part: Part) -> bool {
        if self.smoke { part != Part::Streams } else { self.part.is_empty() || self.part.contains(&part) }
    }

    fn iterations(&self) -> u32 {
        if self.smoke { self.iterations.min(5) } else { self.iterations }
    }

    fn memory(&self) -> &[usize] {
        if self.smoke { &[1] } else { &self.memory }
    }
}

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap_or_default();
    let done = match role.as_str() {
        arena::ENTER => arena::enter(std::env::args_os().skip(2)),
        floor::ROLE => floor::serve(std::env::args_os().skip(2)),
        plugins::ROLE => plugins::serve(std::env::args_os().skip(2)),
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
        return Err("containers are made by root: run it as root".into());
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
    let stage = Stage::new(args.keep_logs.clone())?;
    let host = Host {
        aril: args.aril.clone(),
        shim: args.shim.clone(),
        images: image::prepare(args, &stage.dir().join("images"))?,
    };
    let mut report = Report::new(args.iterations());
    let chosen = choose(args, &host, &mut report)?;
    let on_host = |r: &&Runtime| **r != Runtime::Floor && r.network() == Network::Host;
    for &runtime in chosen.iter().filter(on_host).filter(|_| args.does(Part::Memory)) {
        memory::measure(runtime, &stage, &host, args.memory(), &mut report).await?;
    }
    for &runtime in chosen.iter().filter(on_host).filter(|_| args.does(Part::Streams)) {
        streams::measure(runtime, &stage, &host, &mut report).await?;
    }
    if args.does(Part::Pods) {
        let samples = time(&chosen, &stage, &host, args.iterations()).await?;
        report.rows(&chosen, &samples);
    }
    report.print();
    report.write(&args.output)?;
    if args.smoke { report.check_smoke(&chosen) } else { Ok(()) }
}

/// Those wanted that this machine can run; a peer that is not installed leaves a line.
fn choose(args: &Args, host: &Host, report: &mut Report) -> Result<Vec<Runtime>> {
    let mut chosen = Vec::new();
    for &runtime in Runtime::value_variants().iter().filter(|r| args.wants(**r)) {
        match runtimes::version(runtime, host) {
            Ok(version) => {
                report.version(runtime, version);
                chosen.push(runtime);
            }
            Err(why) if matches!(runtime, Runtime::Aril | Runtime::ArilBridge) => return Err(why),
            Err(why) => report.omit(runtime, &why.to_string()),
        }
    }
    if chosen.is_empty() { Err("nothing to measure".into()) } else { Ok(chosen) }
}

/// Pods one after the other, in rounds that take turns.
///
/// Within its turn a runtime is warm, as on a node that starts several pods; one pod before each
/// turn is not counted.
async fn time(chosen: &[Runtime], stage: &Stage, host: &Host, iterations: u32) -> Result<Samples> {
    const ROUNDS: u32 = 5;
    let mut contestants = Vec::new();
    for &runtime in chosen {
        contestants.push((runtime, Contestant::start(runtime, stage, host).await?));
    }
    let mut samples = Samples::default();
    for round in 0..ROUNDS {
        let pods = (iterations * (round + 1)) / ROUNDS - (iterations * round) / ROUNDS;
        for (runtime, contestant) in &mut contestants {
            contestant.pod().await?;
            for _ in 0..pods {
                samples.add(*runtime, contestant.pod().await?);
            }
        }
        eprintln!("round {} of {ROUNDS} done", round + 1);
    }
    Ok(samples)
}
