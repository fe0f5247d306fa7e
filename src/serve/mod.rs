//! `aril serve`: the daemon's life, from its settings to the last answer.
//!
//! Opens the node before the socket: whoever can connect finds every pod that survived. Ends on SIGTERM or SIGINT
//! without touching a workload: shims and containers go on, and the next daemon finds them.

mod listener;
mod metrics;
mod notify;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;
use tracing::level_filters::LevelFilter;

use aril::cli::args::{Global, ServeArgs};
use aril::config::{Config, LogFormat, LogLevel};
use aril::image::Reference;
use aril::net;
use aril::node::{Node, Settings};
use aril::sys::{memory, process};
use aril::{cli, cri, observe};

use self::listener::Bound;

/// A daemon for as long as its pods live waits so long for the next pod…
const IDLE: Duration = Duration::from_secs(2);
/// … and so long for the first, which may be gone again before the next glance.
const IDLE_AT_FIRST: Duration = Duration::from_secs(10);
/// After this, what only the start needed is given back.
const SETTLED: Duration = Duration::from_millis(500);
/// How often what the allocator keeps of freed memory is given back. After thousands of short calls and sessions the
/// little that lives on lies between much that does not, and keeps it.
const TIDY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(200);

/// Serves until told to end.
///
/// # Errors
/// What keeps the daemon from starting, or from going on, in one sentence.
pub fn serve(global: &Global, args: &ServeArgs) -> Result<(), Box<dyn Error>> {
    let mut overrides = cli::overrides(global);
    overrides.log_level = args.log_level;
    overrides.log_format = args.log_format;
    let config = Config::load(&overrides)?;
    observe::init(level(config.log_level), config.log_format == LogFormat::Json)?;
    if args.own_session {
        // Fails only for the leader of a process group, and then there is one already.
        nix::unistd::setsid().ok();
    }
    // As many as pods need; containers get what this process was started with.
    let open_files = process::raise_open_files()?;
    let shim = config.find_shim(std::env::current_exe().ok().as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .thread_name("aril")
        .enable_all()
        .build()?;
    let result = runtime.block_on(run(&config, settings(&config, shim, open_files)?, args.exit_when_idle));
    // What still runs after the drain waits for shims; they do without us.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn run(config: &Config, settings: Settings, exit_when_idle: bool) -> Result<(), Box<dyn Error>> {
    let node = Node::open(settings).await?;
    let bound = Bound::new(&config.socket, "--socket")?;
    let (end, ended) = watch::channel(false);
    let until_told = {
        let mut ended = ended.clone();
        // An error means that the sender is gone, which is an end too.
        async move { ended.wait_for(|&e| e).await.map(drop).unwrap_or(()) }
    };
    let metrics = metrics::begin(&node, config.metrics.address.as_ref());
    let serving = cri::serve(Arc::clone(&node), bound.listener()?, config.streams, until_told);
    let (pods, containers) = node.counts();
    info!(pid = std::process::id(), pods, containers, socket = %config.socket.display(), "daemon ready");
    notify::tell("READY=1");
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        // The start is over; what fails here costs a few pages.
        memory::give_back().ok();
        loop {
            tokio::time::sleep(TIDY).await;
            memory::trim();
        }
    });
    let end_when_due = async {
        let reason = tokio::select! {
            reason = told_to_end() => reason?,
            () = idle(&node), if exit_when_idle => "no pod is left",
        };
        info!(reason, "daemon ending");
        notify::tell("STOPPING=1");
        // Nobody new finds us from here on; the next daemon may take the place.
        bound.remove();
        // The receiver lives in `serving`, which then lets answers under way finish.
        end.send(true).ok();
        // Whoever asks twice is in a hurry.
        let reason = told_to_end().await?;
        info!(reason, "daemon ending at once");
        Ok::<(), Box<dyn Error>>(())
    };
    tokio::select! {
        () = serving => {}
        result = end_when_due => result?,
    }
    metrics.end().await;
    Ok(())
}

fn settings(config: &Config, shim: PathBuf, open_files: (u64, u64)) -> Result<Settings, Box<dyn Error>> {
    let pinned: Result<Vec<Reference>, _> = config.pinned_images.iter().map(|name| name.parse()).collect();
    Ok(Settings {
        network: net::Settings {
            wanted: config.network.clone(),
            ..net::Settings::new(config.root.join("network"), config.state.join("network"))
        },
        root: config.root.clone(),
        state: config.state.clone(),
        shim,
        cgroup_parent: config.cgroup_parent.clone(),
        shim_cgroup: config.shim_cgroup.clone(),
        shm_size_bytes: config.shm_size_bytes,
        registry_config_dir: config.registry_config_dir.clone(),
        image_pull_progress_timeout: config.image_pull_progress_timeout,
        pinned_images: pinned.map_err(|e| format!("pinned_images: {e}"))?,
        open_files: Some(open_files),
    })
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Waits for SIGTERM or SIGINT; tells which.
async fn told_to_end() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

/// Waits until there has been no pod, and nothing to do, for a while.
async fn idle(node: &Node) {
    let mut patience = IDLE_AT_FIRST;
    let mut without = Duration::ZERO;
    while without < patience {
        tokio::time::sleep(GLANCE).await;
        if node.is_idle() {
            without += GLANCE;
            continue;
        }
        without = Duration::ZERO;
        if node.counts().0 > 0 {
            patience = IDLE;
        }
    }
}
