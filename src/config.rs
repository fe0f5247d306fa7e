//! Raw file, flags and environment become one validated [`Config`], built once when `aril` starts.
//!
//! Every key has a default, so no file is needed. A key that is not known is refused with the nearest one
//! that is, and so is a value of the wrong kind: a typing error never becomes a silent default.
//! Precedence: flag, `ARIL_*` variable, file, default.

mod file;
mod keys;
mod metrics;
mod network;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::metrics::{Metrics, MetricsAddress};
use crate::settings::Network;

/// Where the file is looked for when no `--config` names one.
pub const DEFAULT_FILE: &str = "/etc/aril/config.toml";

/// Where the shim is below the prefix that `aril` is installed in.
const LIBEXEC_SHIM: &str = "libexec/aril/aril-shim";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines are written: those of this level and graver ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Everything `aril` can be told, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What outlives a reboot: layers, images, records. Absolute.
    pub root: PathBuf,
    /// What a reboot ends: sockets, run directories of shims. Absolute.
    pub state: PathBuf,
    /// Where the daemon listens and the commands connect. Absolute.
    pub socket: PathBuf,
    /// The shim to run, if the file names one. Absolute.
    pub shim: Option<PathBuf>,
    /// The cgroup of pods that ask for none ("/aril").
    pub cgroup_parent: String,
    /// The cgroup that all shims live in ("/aril-shims").
    pub shim_cgroup: String,
    /// Size of a pod's `/dev/shm`.
    pub shm_size_bytes: u64,
    /// Images that are never pruned, by any form of their names.
    pub pinned_images: Vec<String>,
    /// Where registries have their `hosts.toml`. Absolute.
    pub registry_config_dir: PathBuf,
    /// How long a pull may wait for the next byte.
    pub image_pull_progress_timeout: Duration,
    /// The network of pods.
    pub network: Network,
    /// Where Exec, Attach and PortForward are served; port 0: one of the kernel's choice.
    pub streams: SocketAddr,
    /// The numbers for Prometheus.
    pub metrics: Metrics,
    /// Threads of the daemon that serve requests.
    pub worker_threads: usize,
    /// See [`LogLevel`].
    pub log_level: LogLevel,
    /// See [`LogFormat`].
    pub log_format: LogFormat,
}

/// What flags and environment say; `None` leaves the word to the file.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Overrides {
    pub file: Option<PathBuf>,
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub log_level: Option<LogLevel>,
    pub log_format: Option<LogFormat>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("read configuration {}: {source}; name another with --config", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{}:{line}: {message}", file.display())]
    Syntax { file: PathBuf, line: usize, message: String },
    #[error("{}:{line}: no key is called `{key}`; the nearest is `{nearest}`", file.display())]
    UnknownKey { file: PathBuf, line: usize, key: String, nearest: &'static str },
    #[error("{}:{line}: `{key}` wants {wants}", file.display())]
    Value { file: PathBuf, line: usize, key: &'static str, wants: &'static str },
    #[error("{what} {} is not an absolute path; begin it with /", path.display())]
    Relative { what: &'static str, path: PathBuf },
    #[error(
        "metrics.address {0} is in reach of other machines, which could read the names of all pods and images there; set \
         metrics.allow_remote = true if they may, or serve on 127.0.0.1"
    )]
    Exposed(SocketAddr),
}

/// Why no shim can be run.
#[derive(Debug, thiserror::Error)]
#[error("no aril-shim found at {}; install it there or name it with `shim` in {DEFAULT_FILE}", list(tried))]
pub struct NoShim {
    /// Where it was looked for.
    pub tried: Vec<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or ")
}

impl Default for Config {
    fn default() -> Self {
        Raw::default().finish()
    }
}

impl Config {
    /// Reads the file (that of `overrides`, else [`DEFAULT_FILE`] if it is there) and lays the overrides on top.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and line.
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut raw = match &overrides.file {
            Some(file) => file::read(file)?,
            None => match file::read(Path::new(DEFAULT_FILE)) {
                // The default file need not exist; one that was asked for must.
                Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Raw::default(),
                other => other?,
            },
        };
        raw.lay_over(overrides);
        let config = raw.finish();
        for (what, path) in [("root", &config.root), ("state", &config.state), ("socket", &config.socket)] {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { what, path: path.clone() });
            }
        }
        match config.metrics.exposed() {
            Some(address) => Err(ConfigError::Exposed(address)),
            None => Ok(config),
        }
    }

    /// Whether there are records of pods, of whatever state. What cannot be looked at may be there.
    #[must_use]
    pub fn has_pods(&self) -> bool {
        match std::fs::read_dir(self.root.join("pods")) {
            Ok(mut list) => list.next().is_some(),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        }
    }

    /// The shim's program: the configured one, else beside `executable`, else in `libexec` of its prefix or `/usr`.
    ///
    /// # Errors
    /// [`NoShim`] with all places tried.
    pub fn find_shim(&self, executable: Option<&Path>) -> Result<PathBuf, NoShim> {
        let tried: Vec<PathBuf> = match &self.shim {
            // Named but absent is an error of its own: running another one instead would surprise.
            Some(named) => vec![named.clone()],
            None => {
                let directory = executable.and_then(Path::parent);
                let beside = directory.map(|dir| dir.join("aril-shim"));
                let own = directory.and_then(Path::parent).map(|prefix| prefix.join(LIBEXEC_SHIM));
                let usual = Path::new("/usr").join(LIBEXEC_SHIM);
                beside.into_iter().chain(own.filter(|own| *own != usual)).chain([usual]).collect()
            }
        };
        match tried.iter().find(|path| path.is_file()) {
            Some(found) => Ok(found.clone()),
            None => Err(NoShim { tried }),
        }
    }
}

/// What has been said so far.
#[derive(Debug, Default)]
struct Raw {
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    socket: Option<PathBuf>,
    shim: Option<PathBuf>,
    cgroup_parent: Option<String>,
    shim_cgroup: Option<String>,
    shm_size_bytes: Option<u64>,
    pinned_images: Option<Vec<String>>,
    registry_config_dir: Option<PathBuf>,
    image_pull_progress_timeout_seconds: Option<u64>,
    network: Network,
    stream_address: Option<IpAddr>,
    stream_port: Option<u16>,
    metrics: Metrics,
    worker_threads: Option<usize>,
    log_level: Option<LogLevel>,
    log_format: Option<LogFormat>,
}

impl Raw {
    fn lay_over(&mut self, o: &Overrides) {
        // A state directory given by flag moves the socket along, past the file's word.
        if o.state.is_some() {
            self.socket = None;
        }
        let path = |mine: &mut Option<PathBuf>, theirs: &Option<PathBuf>| {
            if theirs.is_some() {
                mine.clone_from(theirs);
            }
        };
        path(&mut self.root, &o.root);
        path(&mut self.state, &o.state);
        path(&mut self.socket, &o.socket);
        self.log_level = o.log_level.or(self.log_level);
        self.log_format = o.log_format.or(self.log_format);
    }

    fn finish(self) -> Config {
        let state = self.state.unwrap_or_else(|| PathBuf::from("/run/aril"));
        Config {
            root: self.root.unwrap_or_else(|| PathBuf::from("/var/lib/aril")),
            socket: self.socket.unwrap_or_else(|| state.join("aril.sock")),
            state,
            shim: self.shim,
            cgroup_parent: self.cgroup_parent.unwrap_or_else(|| "/aril".to_owned()),
            shim_cgroup: self.shim_cgroup.unwrap_or_else(|| "/aril-shims".to_owned()),
            shm_size_bytes: self.shm_size_bytes.unwrap_or(64 << 20),
            pinned_images: self.pinned_images.unwrap_or_default(),
            registry_config_dir: self.registry_config_dir.unwrap_or_else(|| PathBuf::from("/etc/aril/certs.d")),
            image_pull_progress_timeout: Duration::from_secs(self.image_pull_progress_timeout_seconds.unwrap_or(60)),
            network: self.network,
            streams: SocketAddr::new(
                self.stream_address.unwrap_or(Ipv4Addr::LOCALHOST.into()),
                self.stream_port.unwrap_or(0),
            ),
            metrics: self.metrics,
            worker_threads: self.worker_threads.unwrap_or(2),
            log_level: self.log_level.unwrap_or_default(),
            log_format: self.log_format.unwrap_or_default(),
        }
    }
}

impl LogLevel {
    /// The level of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }
}

impl LogFormat {
    /// The format of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}
