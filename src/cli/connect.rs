//! The daemon as a command sees it: connect, or bring one up.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::args::Global;
use super::error::CliError;
use crate::api::service::cri::image_service_client::ImageServiceClient;
use crate::api::service::cri::runtime_service_client::RuntimeServiceClient;
use crate::api::service::node::node_client::NodeClient;
use crate::config::Config;

/// As large as the daemon's answers get; the protocol's customary limit.
const MESSAGE_LIMIT: usize = 16 << 20;

/// How long a daemon may take to come up: after a crash it first looks after every pod it finds.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A connection, with a client for each service on it.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    socket: PathBuf,
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    pub(super) node: NodeClient<Channel>,
}

impl Daemon {
    /// Connects to the daemon of `config`.
    pub(super) async fn connect(config: &Config, global: &Global) -> Result<Self, CliError> {
        let socket = &config.socket;
        let refused = |e| CliError::connect(socket, e, start_command(global));
        // Tried by itself first: the transport would hide the errno.
        drop(UnixStream::connect(socket).await.map_err(refused)?);
        let channel = channel(socket);
        Ok(Self {
            socket: socket.clone(),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            node: NodeClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        })
    }

    /// A connection of its own, for one session's streams: input that a container does not read fills the window of
    /// the connection it is sent on, and whatever else is sent there waits behind it.
    pub(super) fn streams(&self) -> NodeClient<Channel> {
        NodeClient::new(channel(&self.socket)).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Connects; if nobody listens, starts a daemon that lives as long as its pods do.
    pub(super) async fn connect_or_start(config: &Config, global: &Global) -> Result<Self, CliError> {
        match Self::connect(config, global).await {
            Err(CliError::NoDaemon { .. }) => {}
            other => return other,
        }
        let (mut child, log) = start(config, global)?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            match Self::connect(config, global).await {
                Err(CliError::NoDaemon { .. }) => {}
                other => return other,
            }
            let ended = child.try_wait().map_err(|e| CliError::io("wait for the daemon", e))?;
            // Two commands may start one each; the slower one's ends, and the other's is as good.
            if let Some(status) = ended
                && let Err(CliError::NoDaemon { .. }) = Self::connect(config, global).await
            {
                return Err(CliError::Failed(format!(
                    "the daemon ended while starting ({status}): {}; its log is {}",
                    last_line(&log),
                    log.display()
                )));
            }
            if Instant::now() > deadline {
                let seconds = START_DEADLINE.as_secs();
                return Err(CliError::Failed(format!(
                    "the daemon was started but does not listen on {} after {seconds} s; look into {}",
                    config.socket.display(),
                    log.display()
                )));
            }
        }
    }
}

/// Connects with the first request.
fn channel(socket: &Path) -> Channel {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never looked up; over a unix socket `localhost` is what everyone sends.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// Starts `aril serve` in a session of its own; gives back where it logs.
fn start(config: &Config, global: &Global) -> Result<(Child, PathBuf), CliError> {
    let private = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.state);
    private.map_err(|e| CliError::io(format!("make directory {}", config.state.display()), e))?;
    let log = config.state.join("serve.log");
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(|e| CliError::io(format!("open log {}", log.display()), e))?;
    let program = std::env::current_exe().map_err(|e| CliError::io("find the program itself", e))?;
    let mut command = Command::new(program);
    command.args(["serve", "--exit-when-idle", "--own-session"]);
    // The paths as they were understood here, whatever they came from.
    for (flag, path) in [("--root", &config.root), ("--state", &config.state), ("--socket", &config.socket)] {
        command.arg(flag).arg(path);
    }
    if let Some(file) = &global.config {
        command.arg("--config").arg(absolute(file)?);
    }
    let child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(file))
        .spawn()
        .map_err(|e| CliError::io("start the daemon", e))?;
    Ok((child, log))
}

/// `path`, seen from wherever a process goes.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|e| CliError::io(format!("find {}", path.display()), e))
}

/// The command line that would start the daemon this command looked for.
fn start_command(global: &Global) -> String {
    let mut words: Vec<OsString> = vec!["aril".into(), "serve".into()];
    for (flag, path) in [
        ("--config", &global.config),
        ("--root", &global.root),
        ("--state", &global.state),
        ("--socket", &global.socket),
    ] {
        if let Some(path) = path {
            words.push(flag.into());
            words.push(path.into());
        }
    }
    words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The last thing a log says.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_daemon_the_remedy_names_the_same_places() {
        let global = Global { state: Some("/nowhere/s".into()), ..Default::default() };
        let config = Config { socket: "/nowhere/s/aril.sock".into(), ..Config::default() };
        let error = Daemon::connect(&config, &global).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "no daemon listens on /nowhere/s/aril.sock (ENOENT); start one with `aril serve --state /nowhere/s`, or let `aril run` bring one up"
        );
    }
}
