//! What is made: containers and the pods they are in.

use clap::{ArgAction, Args, ValueEnum};

use crate::cli::parse;

/// What a new container is to be; shared by `run` and `create`.
#[derive(Debug, Clone, Default, Args)]
#[allow(missing_docs)]
pub struct ContainerArgs {
    /// Name of the container, and of the pod made for it [default: made from the image's]
    #[arg(long)]
    pub name: Option<String>,
    /// Put the container into this pod instead of one of its own
    #[arg(long, value_name = "POD", conflicts_with_all = ["network", "publish", "hostname", "pid", "dns", "dns_search", "add_host"])]
    pub pod: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal; Ctrl-P Ctrl-Q leaves it running
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; KEY alone takes this shell's value
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", action = ArgAction::Append, value_parser = parse::env)]
    pub env: Vec<(String, String)>,
    /// Mount a directory or file of this machine
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro|:rw]", action = ArgAction::Append, value_parser = parse::volume)]
    pub volumes: Vec<parse::Volume>,
    /// User and group, by number or name
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse::user)]
    pub user: Option<parse::User>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run this instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Memory limit, like 64m or 1.5g
    #[arg(short, long, value_name = "SIZE", value_parser = parse::size)]
    pub memory: Option<i64>,
    /// How many processors' time it may use, like 0.5
    #[arg(long, value_name = "NUMBER", value_parser = parse::cpus)]
    pub cpus: Option<parse::Cpus>,
    /// Lift all restrictions; the container is as strong as root on this machine
    #[arg(long)]
    pub privileged: bool,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Whether to ask the image's registry
    #[arg(long, value_enum, default_value_t)]
    pub pull: PullPolicy,
    /// Image to run
    pub image: String,
    /// Command and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// What a new pod is to be.
#[derive(Debug, Clone, Default, Args)]
#[allow(missing_docs)]
pub struct SandboxArgs {
    /// The pod's network
    #[arg(long, value_enum, default_value_t)]
    pub network: Network,
    /// Lead a port of this machine, or as many in a row, to the pod
    #[arg(short, long, value_name = "[IP:]PORT:PORT[/tcp|/udp|/sctp]", action = ArgAction::Append, value_parser = parse::publish)]
    pub publish: Vec<parse::Publish>,
    /// The pod's processes: each container's own, shared in the pod, or this machine's
    #[arg(long, value_enum, default_value_t)]
    pub pid: PidMode,
    /// Host name inside [default: the pod's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Ask this name server instead of this machine's
    #[arg(long, value_name = "ADDRESS", action = ArgAction::Append)]
    pub dns: Vec<std::net::IpAddr>,
    /// Look names up in this domain, too
    #[arg(long, value_name = "DOMAIN", requires = "dns", action = ArgAction::Append, value_parser = parse::domain)]
    pub dns_search: Vec<String>,
    /// Give an address a name, in /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", action = ArgAction::Append, value_parser = parse::host_entry)]
    pub add_host: Vec<(String, std::net::IpAddr)>,
}

/// When an image is pulled before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PullPolicy {
    /// Where it is not here
    #[default]
    Missing,
    /// In any case, so that it is as new as the registry's
    Always,
    /// Not at all
    Never,
}

/// Where a pod's network comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Network {
    /// Its own, with an address that this machine and other pods reach
    #[default]
    Pod,
    /// Its own with loopback alone
    None,
    /// This machine's network
    Host,
}

/// Which processes a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PidMode {
    /// Its own
    #[default]
    Container,
    /// Those of its pod
    Pod,
    /// All of this machine
    Host,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct RunArgs {
    /// Remove the container, and the pod made for it, when it ends
    #[arg(long)]
    pub rm: bool,
    /// Print the container's id and leave it running
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub container: ContainerArgs,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct CreateArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
}
