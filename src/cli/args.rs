//! The command line as clap parses it. Nothing is decided here; see the modules named like the commands.

mod image;
mod make;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub use self::image::{
    ImageCommand, ImageNames, ImageRmArgs, ImportArgs, LoginArgs, LogoutArgs, PruneArgs, PullArgs, VerifyArgs,
};
pub use self::make::{ContainerArgs, CreateArgs, Network, PidMode, PullPolicy, RunArgs, SandboxArgs};
use super::events::EventsArgs;
use super::parse;
use super::time;
use super::timeline::Form;
use crate::config::{LogFormat, LogLevel};

/// Runs containers: as a Kubernetes node's container runtime (CRI), and from a shell.
#[derive(Debug, Parser)]
#[command(name = "aril", version, max_term_width = 100)]
#[allow(missing_docs)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Default, Args)]
#[allow(missing_docs)]
pub struct Global {
    /// Configuration file [default: /etc/aril/config.toml if it is there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Directory for images and records; also ARIL_ROOT [default: /var/lib/aril]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// Directory for what a reboot ends; also ARIL_STATE [default: /run/aril]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub state: Option<PathBuf>,
    /// The daemon's socket; also ARIL_SOCKET [default: STATE/aril.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub socket: Option<PathBuf>,
    /// How to print results
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub output: Output,
}

/// Whom the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Columns for people
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// JSON for programs
    Json,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    /// Run the daemon
    Serve(ServeArgs),
    /// Run a command in a new container
    Run(RunArgs),
    /// Make a container without starting it
    Create(CreateArgs),
    /// Make, list, stop and remove pods
    #[command(subcommand)]
    Pod(PodCommand),
    /// List pods
    Pods,
    /// List containers
    Ps(PsArgs),
    /// Run a command in a running container
    Exec(ExecArgs),
    /// Join the streams of a running container
    Attach(AttachArgs),
    /// Print what a container wrote
    Logs(LogsArgs),
    /// Print what happens to pods and containers
    Events(EventsArgs),
    /// Lead ports of this machine into a pod, whatever network it has, until Ctrl-C
    PortForward(PortForwardArgs),
    /// Show all that is known about containers, pods or images
    Inspect(InspectArgs),
    /// Start containers that were made but not started
    Start(StartArgs),
    /// Stop containers, or pods with all their containers
    Stop(StopArgs),
    /// Send a signal to the first processes of containers
    Kill(KillArgs),
    /// Remove containers, or pods with all their containers
    Rm(RmArgs),
    /// Pull images from their registries
    Pull(PullArgs),
    /// Keep a password for a registry
    Login(LoginArgs),
    /// Forget the password of a registry
    Logout(LogoutArgs),
    /// Work with images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Print the versions of this program and of the daemon
    Version,
    /// Look at the networks that pods are connected to
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Look after this machine
    #[command(subcommand)]
    System(SystemCommand),
    /// Show what the daemon is, where it keeps what, and what it runs
    Info,
    /// Say what this machine offers, what is missing, and what to do about it
    Doctor,
    /// Print a completion script
    Completion(CompletionArgs),
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ServeArgs {
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    pub log_level: Option<LogLevel>,
    /// text or json
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    pub log_format: Option<LogFormat>,
    /// End when the last pod is gone
    #[arg(long)]
    pub exit_when_idle: bool,
    /// Leave the caller's session, so that its terminal's signals do not arrive
    #[arg(long, hide = true)]
    pub own_session: bool,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum PodCommand {
    /// Make an empty pod for `aril run --pod`
    Create(PodCreateArgs),
    /// List pods
    Ls,
    /// Stop pods with all their containers
    Stop(StopArgs),
    /// Remove pods with all their containers
    Rm(RmArgs),
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct PodCreateArgs {
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Name of the pod
    pub name: String,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Print the ids alone
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal; Ctrl-P Ctrl-Q leaves it and ends the command
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; KEY alone takes this shell's value
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", action = ArgAction::Append, value_parser = parse::env)]
    pub env: Vec<(String, String)>,
    /// User and group, by number or name [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse::user)]
    pub user: Option<parse::User>,
    /// Directory to start in [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Container: name, POD/NAME, or the beginning of its id
    pub container: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct AttachArgs {
    /// Pass standard input on, to a container made with -i; on a terminal Ctrl-P Ctrl-Q leaves it running
    #[arg(short, long)]
    pub interactive: bool,
    /// Container: name, POD/NAME, or the beginning of its id
    pub container: String,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct StartArgs {
    /// Show what it writes, pass signals on, and end with its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// The same, and pass standard input on, to a container made with -i
    #[arg(short, long)]
    pub interactive: bool,
    #[command(flatten)]
    pub targets: Targets,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct LogsArgs {
    /// Go on printing what is written
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only what is younger: an age (10m, 2h30m) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = time::parse_since)]
    pub since: Option<time::Since>,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Container: name, POD/NAME, or the beginning of its id
    pub container: String,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct PortForwardArgs {
    /// Pod: name, or the beginning of its id
    pub pod: String,
    /// Port here, 0 for any, and port in the pod [default of ADDRESS: 127.0.0.1]
    #[arg(required = true, value_name = "[ADDRESS:]LOCAL:REMOTE", value_parser = parse::forward)]
    pub ports: Vec<parse::Forward>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct InspectArgs {
    /// Only draw where the time of its operations went; =chrome writes it for chrome://tracing and Perfetto
    #[arg(long, value_name = "FORM", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "bars")]
    pub timeline: Option<Form>,
    /// Names, or beginnings of ids, of containers, pods or images
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Targets {
    /// Names or beginnings of ids
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct StopArgs {
    /// How long to wait before killing, in seconds or like 1m30s
    #[arg(short = 't', long = "time", value_name = "SECONDS", default_value = "10", value_parser = time::parse_duration)]
    pub grace: Duration,
    #[command(flatten)]
    pub targets: Targets,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct KillArgs {
    /// By name or number
    #[arg(short, long, default_value = "KILL", value_parser = parse::signal)]
    pub signal: i32,
    #[command(flatten)]
    pub targets: Targets,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct RmArgs {
    /// Kill what still runs
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub targets: Targets,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum NetworkCommand {
    /// List the networks there are, by their drivers
    Ls,
    /// Show all that is known about networks, and the pods connected to them
    Inspect(NetworkNames),
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct NetworkNames {
    /// Drivers [default: the next pod's]
    #[arg(value_name = "DRIVER")]
    pub drivers: Vec<String>,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum SystemCommand {
    /// Remove all pods, and what aril has on this machine for them: bridges, tables, leases, logs
    Reset(ResetArgs),
    /// End the daemon; pods go on, and the next daemon finds them
    Stop,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ResetArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Also if containers run: stop them
    #[arg(long)]
    pub stop: bool,
    /// Images, too
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct CompletionArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    LogLevel::parse(text).ok_or_else(|| "use error, warn, info, debug or trace".to_owned())
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    LogFormat::parse(text).ok_or_else(|| "use text or json".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_after_the_image_belong_to_its_command() {
        let Command::Run(run) = parse("aril run --rm -it -e A=1 --memory 64m busybox ls -l --rm").command else {
            panic!("no run");
        };
        assert!(run.rm && run.container.interactive && run.container.tty);
        assert_eq!(run.container.image, "busybox");
        assert_eq!(run.container.command, ["ls", "-l", "--rm"]);
        assert_eq!(run.container.env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(run.container.memory, Some(64 << 20));
    }

    #[test]
    fn exec_passes_flags_of_the_command() {
        let Command::Exec(exec) = parse("aril exec -i web sh -c true").command else { panic!("no exec") };
        assert!(exec.interactive && !exec.tty);
        assert_eq!((exec.container.as_str(), exec.command.len()), ("web", 3));
        assert!(Cli::try_parse_from(["aril", "exec", "web"]).is_err());
    }

    #[test]
    fn global_flags_go_anywhere() {
        assert_eq!(parse("aril ps -o json").global.output, Output::Json);
        assert_eq!(parse("aril --socket /x image ls").global.socket, Some("/x".into()));
    }

    #[test]
    fn what_cannot_be_together_is_refused() {
        for line in ["aril pull", "aril pull --creds me x", "aril run --pull maybe x"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        for line in ["aril run --pod p --hostname h busybox", "aril run --memory much x"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        assert!(Cli::try_parse_from(["aril", "run", "--pod", "p", "busybox"]).is_ok());
    }
}
