//! The commands for people, spoken over the daemon's socket like any other CRI client's.
//!
//! Owns the command line, the terminal and the words. Keeps no state and knows nothing that the daemon does not tell,
//! but for two things of its own on a pod: that it was made for one container ([`find::OWN_POD`]), and where its
//! logs go ([`find::LOG_DIRECTORY`]). Errors are one sentence; exit codes are 0, 1, 2 for wrong use, and for
//! `run`, `start -a`, `attach` and `exec` the program's own, or 125 to 127.

mod about;
pub mod args;
mod attach;
mod connect;
pub mod credentials;
mod doctor;
mod error;
mod events;
mod exec;
mod find;
mod foreground;
mod forward;
mod image;
mod inspect;
mod list;
pub mod logfile;
mod login;
mod logs;
mod network;
mod output;
pub mod parse;
mod prune;
mod pull;
mod remove;
mod request;
mod run;
mod session;
mod system;
mod terminal;
pub mod time;
pub mod timeline;
mod verify;

use std::io;

use clap::CommandFactory;

use self::args::{Cli, Command, Global, ImageCommand, NetworkCommand, Output, PodCommand, SystemCommand};
use self::connect::Daemon;
pub use self::error::CliError;
use crate::config::{Config, Overrides};

/// What flags and `ARIL_*` variables say of the configuration.
#[must_use]
pub fn overrides(global: &Global) -> Overrides {
    let path = |flag: &Option<std::path::PathBuf>, variable: &str| {
        let from_environment = || std::env::var_os(variable).filter(|v| !v.is_empty()).map(Into::into);
        flag.clone().or_else(from_environment)
    };
    Overrides {
        file: global.config.clone(),
        root: path(&global.root, "ARIL_ROOT"),
        state: path(&global.state, "ARIL_STATE"),
        socket: path(&global.socket, "ARIL_SOCKET"),
        ..Overrides::default()
    }
}

/// Runs any command but `serve` to its end, tells of an error, and gives the exit code.
#[must_use]
pub fn main(cli: &Cli) -> u8 {
    let running = matches!(cli.command, Command::Run(_) | Command::Exec(_));
    match dispatch(cli) {
        Ok(code) => code,
        Err(e) => {
            if !e.is_silent() {
                output::complain(&e.to_string());
            }
            e.code(running)
        }
    }
}

/// Tells of an error that came before any command could.
pub fn complain(message: &str) {
    output::complain(message);
}

fn dispatch(cli: &Cli) -> Result<u8, CliError> {
    if let Command::Completion(args) = &cli.command {
        let mut script = Vec::new();
        clap_complete::generate(args.shell, &mut Cli::command(), "aril", &mut script);
        return output::write(&mut io::stdout().lock(), &script).map(|()| 0);
    }
    let config = Config::load(&overrides(&cli.global)).map_err(|e| CliError::Usage(e.to_string()))?;
    if let Command::Doctor = cli.command {
        // Without the runtime below: some probes want a process with a single thread.
        return doctor::doctor(&config, cli.global.output);
    }
    // What these two keep is the caller's, and no daemon is asked.
    match &cli.command {
        Command::Login(args) => return login::login(args).map(|()| 0),
        Command::Logout(args) => return login::logout(args).map(|()| 0),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::io("start the event loop", e))?;
    let result = runtime.block_on(with_daemon(cli, &config));
    // A thread may still be reading standard input; it must not keep the program.
    runtime.shutdown_background();
    result
}

async fn with_daemon(cli: &Cli, config: &Config) -> Result<u8, CliError> {
    let output = cli.global.output;
    let connected = match &cli.command {
        // What is about images finds them on the disk, whether a daemon was there before or not.
        Command::Run(_)
        | Command::Create(_)
        | Command::Pod(PodCommand::Create(_))
        | Command::Pull(_)
        | Command::Image(_)
        | Command::System(SystemCommand::Reset(_)) => Daemon::connect_or_start(config, &cli.global).await,
        _ => Daemon::connect(config, &cli.global).await,
    };
    if let Command::Version = cli.command {
        return about::version(connected, output).await.map(|()| 0);
    }
    // A socket alone does not say where its daemon keeps its records.
    let named = overrides(&cli.global);
    let is_empty = || (named.socket.is_none() || named.root.is_some()) && !config.has_pods();
    match (&cli.command, &connected) {
        // Nothing is there, and that is no error: the daemon that `run` brings up ends with the last pod.
        (Command::Pods | Command::Pod(PodCommand::Ls), Err(CliError::NoDaemon { .. })) if is_empty() => {
            return list::no_pods(output).map(|()| 0);
        }
        (Command::Ps(args), Err(CliError::NoDaemon { .. })) if is_empty() => {
            return list::no_containers(args, output).map(|()| 0);
        }
        (Command::System(SystemCommand::Stop), Err(CliError::NoDaemon { .. })) => {
            return output::print("no daemon runs\n").map(|()| 0);
        }
        _ => {}
    }
    let daemon = &mut connected?;
    match &cli.command {
        Command::Run(args) => return run::run(daemon, args, output).await,
        Command::Exec(args) => return exec::exec(daemon, args).await,
        Command::Attach(args) => return attach::attach(daemon, args).await,
        Command::Start(args) if args.attach || args.interactive => return attach::start(daemon, args).await,
        other => act(daemon, other, output).await?,
    }
    Ok(0)
}

/// Commands whose exit code says no more than whether they succeeded.
async fn act(daemon: &mut Daemon, command: &Command, output: Output) -> Result<(), CliError> {
    match command {
        Command::Create(args) => run::create(daemon, &args.container, output).await,
        Command::Pods | Command::Pod(PodCommand::Ls) => list::pods(daemon, output).await,
        Command::Pod(PodCommand::Create(args)) => run::create_pod(daemon, args, output).await,
        Command::Ps(args) => list::ps(daemon, args, output).await,
        Command::Logs(args) => logs::logs(daemon, args).await,
        Command::Events(args) => events::events(daemon, args, output).await,
        Command::PortForward(args) => forward::forward(daemon, args).await,
        Command::Inspect(args) => inspect::inspect(daemon, args, output).await,
        Command::Start(args) => remove::start(daemon, &args.targets).await,
        Command::Stop(args) | Command::Pod(PodCommand::Stop(args)) => remove::stop(daemon, args).await,
        Command::Kill(args) => remove::kill(daemon, args).await,
        Command::Rm(args) | Command::Pod(PodCommand::Rm(args)) => remove::rm(daemon, args).await,
        Command::Pull(args) | Command::Image(ImageCommand::Pull(args)) => pull::pull(daemon, args, output).await,
        Command::Image(ImageCommand::Prune(args)) => prune::prune(daemon, args, output).await,
        Command::Image(ImageCommand::Df) => prune::df(daemon, output).await,
        Command::Image(ImageCommand::Verify(args)) => verify::verify(daemon, &args.images, output).await,
        Command::Image(ImageCommand::Import(args)) => image::import(daemon, args, output).await,
        Command::Image(ImageCommand::Ls) => image::ls(daemon, output).await,
        Command::Image(ImageCommand::Rm(args)) => image::rm(daemon, args).await,
        Command::Image(ImageCommand::Inspect(args)) => inspect::images(daemon, &args.images, output).await,
        Command::Network(NetworkCommand::Ls) => network::ls(daemon, output).await,
        Command::Network(NetworkCommand::Inspect(args)) => network::inspect(daemon, &args.drivers, output).await,
        Command::System(SystemCommand::Reset(args)) => system::reset(daemon, args, output).await,
        Command::System(SystemCommand::Stop) => system::stop(daemon, output).await,
        Command::Info => about::info(daemon, output).await,
        // Dealt with before.
        Command::Serve(_)
        | Command::Run(_)
        | Command::Exec(_)
        | Command::Attach(_)
        | Command::Version
        | Command::Doctor
        | Command::Login(_)
        | Command::Logout(_)
        | Command::Completion(_) => Ok(()),
    }
}
