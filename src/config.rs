//! Raw file, flags and environment become one validated [`Config`], built once when `aril` starts.
//!
//! Every key has a default, so no file is needed. A key that is not known is refused with the nearest one
//! that is, and so is a value of the wrong kind: a typing error never becomes a silent default.
//! Precedence: flag, `ARIL_*` variable, file, default.

mod network;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

pub use self::network::Network;

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
            Some(file) => read(file)?,
            None => match read(Path::new(DEFAULT_FILE)) {
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
        Ok(config)
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
            worker_threads: self.worker_threads.unwrap_or(2),
            log_level: self.log_level.unwrap_or_default(),
            log_format: self.log_format.unwrap_or_default(),
        }
    }
}

/// One key of the file: its name, what it wants in words, and how it is taken; `None` refuses the value.
struct Key {
    name: &'static str,
    wants: &'static str,
    take: fn(&mut Raw, &DeValue<'_>) -> Option<()>,
}

const PATH: &str = "an absolute path in quotes";

const KEYS: &[Key] = &[
    Key { name: "root", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.root = Some(p)) },
    Key { name: "state", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.state = Some(p)) },
    Key { name: "socket", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.socket = Some(p)) },
    Key { name: "shim", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.shim = Some(p)) },
    Key {
        name: "cgroup_parent",
        wants: "a cgroup path like \"/aril\", without `..`",
        take: |raw, v| cgroup(v.as_str()?).map(|p| raw.cgroup_parent = Some(p)),
    },
    Key {
        name: "shim_cgroup",
        wants: "a cgroup path like \"/aril-shims\", without `..`",
        take: |raw, v| cgroup(v.as_str()?).map(|p| raw.shim_cgroup = Some(p)),
    },
    Key {
        name: "shm_size_bytes",
        wants: "a whole number from 4096 to 1099511627776",
        take: |raw, v| number(v, 4096..=1 << 40).map(|n| raw.shm_size_bytes = Some(n)),
    },
    Key {
        name: "pinned_images",
        wants: "a list of image names like [\"registry.k8s.io/pause:3.10\"]",
        take: |raw, v| names(v).map(|n| raw.pinned_images = Some(n)),
    },
    Key {
        name: "registry_config_dir",
        wants: PATH,
        take: |raw, v| absolute(v).map(|p| raw.registry_config_dir = Some(p)),
    },
    Key {
        name: "image_pull_progress_timeout_seconds",
        wants: "a whole number from 1 to 3600",
        take: |raw, v| number(v, 1..=3600).map(|n| raw.image_pull_progress_timeout_seconds = Some(n)),
    },
    Key {
        name: "stream_address",
        wants: "an IP address in quotes",
        take: |raw, v| v.as_str()?.parse().ok().map(|ip| raw.stream_address = Some(ip)),
    },
    Key {
        name: "stream_port",
        wants: "a whole number from 0 to 65535",
        take: |raw, v| number(v, 0..=65535).and_then(|n| u16::try_from(n).ok()).map(|n| raw.stream_port = Some(n)),
    },
    Key {
        name: "worker_threads",
        wants: "a whole number from 1 to 64",
        take: |raw, v| number(v, 1..=64).and_then(|n| usize::try_from(n).ok()).map(|n| raw.worker_threads = Some(n)),
    },
    Key {
        name: "log_level",
        wants: "one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
        take: |raw, v| LogLevel::parse(v.as_str()?).map(|l| raw.log_level = Some(l)),
    },
    Key {
        name: "log_format",
        wants: "\"text\" or \"json\"",
        take: |raw, v| LogFormat::parse(v.as_str()?).map(|f| raw.log_format = Some(f)),
    },
];

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

fn absolute(value: &DeValue<'_>) -> Option<PathBuf> {
    value.as_str().map(PathBuf::from).filter(|p| p.is_absolute())
}

fn names(value: &DeValue<'_>) -> Option<Vec<String>> {
    let name = |v: &toml::Spanned<DeValue<'_>>| v.get_ref().as_str().filter(|n| !n.is_empty()).map(str::to_owned);
    value.as_array()?.iter().map(name).collect()
}

fn cgroup(path: &str) -> Option<String> {
    let parts = path.strip_prefix('/')?.split('/');
    let sound = parts.into_iter().all(|part| !matches!(part, "" | "." | ".."));
    sound.then(|| path.to_owned())
}

fn number(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| range.contains(n))
}

fn read(file: &Path) -> Result<Raw, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Raw, ConfigError> {
    let table = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
        file: file.to_owned(),
        line: line_of(text, e.span().map_or(0, |span| span.start)),
        message: one_line(e.message()),
    })?;
    let mut raw = Raw::default();
    for (name, value) in table.get_ref() {
        let (line, name) = (line_of(text, name.span().start), name.get_ref());
        match value.get_ref().as_table().filter(|_| is_table(name)) {
            None => take(&mut raw, (file, line), name, value.get_ref())?,
            Some(table) => {
                for (key, value) in table {
                    let line = line_of(text, key.span().start);
                    take(&mut raw, (file, line), &format!("{name}.{}", key.get_ref()), value.get_ref())?;
                }
            }
        }
    }
    Ok(raw)
}

/// Takes one key by its full name.
fn take(raw: &mut Raw, (file, line): (&Path, usize), name: &str, value: &DeValue<'_>) -> Result<(), ConfigError> {
    let file = file.to_owned();
    let Some(key) = keys().find(|key| key.name == name) else {
        return Err(ConfigError::UnknownKey { file, line, key: name.to_owned(), nearest: nearest(name) });
    };
    let refused = || ConfigError::Value { file, line, key: key.name, wants: key.wants };
    (key.take)(raw, value).ok_or_else(refused)
}

fn keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().chain(network::KEYS)
}

/// Whether there are keys in a table of this name.
fn is_table(name: &str) -> bool {
    keys().any(|key| key.name.split_once('.').is_some_and(|(table, _)| table == name))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(", ")
}

fn nearest(unknown: &str) -> &'static str {
    let plain = unknown.to_ascii_lowercase().replace(['-', '.'], "_").into_bytes();
    const LONGEST: usize = 64;
    let in_table = unknown.contains('.');
    // A shared beginning weighs most: who writes `workers` means `worker_threads`.
    let unlikeness = |name: &&str| {
        let name = name.replace('.', "_");
        let shared = plain.iter().zip(name.as_bytes()).take_while(|(a, b)| a == b).count();
        (distance(&plain, name.as_bytes()) + LONGEST).saturating_sub(shared)
    };
    // Who writes a table's name means a key of it.
    let of_table =
        |name: &&str| !in_table || !unknown.split_once('.').is_some_and(|(t, _)| is_table(t)) || name.contains('.');
    keys().map(|key| key.name).filter(of_table).min_by_key(unlikeness).unwrap_or("root")
}

/// How many letters must be put in, taken out or changed to make `b` of `a`.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        parse(Path::new("/c.toml"), text).map(Raw::finish).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let config = config("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.socket, Path::new("/run/aril/aril.sock"));
        assert_eq!(config.worker_threads, 2);
    }

    #[test]
    fn every_key_is_taken() {
        let text = r#"
            root = "/a"
            state = "/b"
            socket = "/c.sock"
            shim = "/d"
            cgroup_parent = "/kube/pods"
            shim_cgroup = "/kube/shims"
            shm_size_bytes = 1_048_576
            pinned_images = ["pause", "registry.example/tool:1"]
            registry_config_dir = "/e"
            image_pull_progress_timeout_seconds = 5
            stream_address = "::1"
            stream_port = 10010
            worker_threads = 0x4
            log_level = "debug"
            log_format = "json"
            [network]
            driver = "bridge"
            netns_dir = "/f"
            cni_config_dir = "/g"
            cni_plugin_dirs = ["/h", "/i"]
            cni_template = "/j"
            cni_ports_elsewhere = true
            cni_timeout_seconds = 7
            bridge = "br-pods"
            subnets = ["10.1.0.0/16", "fd00:1::/64"]
            mtu = 1400
            isolate = true
            masquerade = false
        "#;
        let expected = Config {
            root: "/a".into(),
            state: "/b".into(),
            socket: "/c.sock".into(),
            shim: Some("/d".into()),
            cgroup_parent: "/kube/pods".into(),
            shim_cgroup: "/kube/shims".into(),
            shm_size_bytes: 1 << 20,
            pinned_images: vec!["pause".into(), "registry.example/tool:1".into()],
            registry_config_dir: "/e".into(),
            image_pull_progress_timeout: Duration::from_secs(5),
            network: Network {
                driver: "bridge".into(),
                netns_dir: "/f".into(),
                cni_config_dir: "/g".into(),
                cni_plugin_dirs: vec!["/h".into(), "/i".into()],
                cni_template: Some("/j".into()),
                cni_ports_elsewhere: true,
                cni_timeout: Some(Duration::from_secs(7)),
                bridge: "br-pods".into(),
                subnets: vec![("10.1.0.0".parse().unwrap(), 16), ("fd00:1::".parse().unwrap(), 64)],
                mtu: 1400,
                isolate: true,
                masquerade: false,
            },
            streams: "[::1]:10010".parse().unwrap(),
            worker_threads: 4,
            log_level: LogLevel::Debug,
            log_format: LogFormat::Json,
        };
        assert_eq!(config(text).unwrap(), expected);
        assert_eq!(text.matches(" = ").count(), keys().count());
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_nearest() {
        assert_eq!(
            config("root = \"/a\"\nlog-levl = \"info\"\n").unwrap_err(),
            "/c.toml:2: no key is called `log-levl`; the nearest is `log_level`"
        );
        assert!(config("[sockets]\nx = 1").unwrap_err().ends_with("the nearest is `socket`"));
        let error = config("\n[network]\ndrivr = \"bridge\"").unwrap_err();
        assert_eq!(error, "/c.toml:3: no key is called `network.drivr`; the nearest is `network.driver`");
        assert!(config("network = 1").unwrap_err().contains("no key is called `network`"));
        assert!(config("workers = 3").unwrap_err().contains("`worker_threads`"));
    }

    #[test]
    fn wrong_values_say_what_is_wanted() {
        for (text, wants) in [
            ("root = 1", "`root` wants an absolute path"),
            ("root = \"here\"", "`root` wants an absolute path"),
            ("worker_threads = 0", "from 1 to 64"),
            ("worker_threads = -1", "from 1 to 64"),
            ("worker_threads = 99999999999999999999", "from 1 to 64"),
            ("stream_address = \"localhost\"", "an IP address"),
            ("stream_port = 65536", "from 0 to 65535"),
            ("log_level = \"loud\"", "one of"),
            ("cgroup_parent = \"/a/../b\"", "cgroup path"),
            ("cgroup_parent = \"/\"", "cgroup path"),
            ("network.driver = \"calico\"", "one of"),
            ("network.bridge = \"a name far too long\"", "name of an interface"),
            ("network.bridge = \"a/b\"", "name of an interface"),
            ("network.subnets = [\"10.0.0.0/8\", \"10.1.0.0/16\"]", "one of IPv4"),
            ("network.subnets = [\"10.0.0.0\"]", "address range"),
            ("network.subnets = []", "address range"),
            ("network.mtu = 100", "from 1280"),
            ("network.isolate = 1", "true or false"),
            ("network.cni_plugin_dirs = [\"bin\"]", "absolute paths"),
            ("pinned_images = \"pause\"", "list of image names"),
            ("pinned_images = [\"pause\", 1]", "list of image names"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with("/c.toml:1: ") && error.contains(wants), "{error}");
        }
    }

    #[test]
    fn a_syntax_error_is_one_line_with_its_place() {
        let error = config("root = \"/a\"\nstate = \n").unwrap_err();
        assert!(error.starts_with("/c.toml:2: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert!(config("root = \"/a\"\nroot = \"/b\"").is_err());
    }

    #[test]
    fn flags_win_and_the_socket_moves_with_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "root = \"/a\"\nsocket = \"/c.sock\"\nlog_level = \"warn\"").unwrap();
        let mut overrides = Overrides { file: Some(file), ..Default::default() };
        assert_eq!(Config::load(&overrides).unwrap().socket, Path::new("/c.sock"));

        overrides.state = Some("/s".into());
        overrides.log_level = Some(LogLevel::Trace);
        let config = Config::load(&overrides).unwrap();
        assert_eq!(config.root, Path::new("/a"));
        assert_eq!(config.socket, Path::new("/s/aril.sock"));
        assert_eq!(config.log_level, LogLevel::Trace);

        overrides.socket = Some("relative.sock".into());
        assert!(Config::load(&overrides).unwrap_err().to_string().contains("absolute"));
    }

    #[test]
    fn a_named_file_must_exist() {
        let overrides = Overrides { file: Some("/nowhere/config.toml".into()), ..Default::default() };
        assert!(Config::load(&overrides).unwrap_err().to_string().starts_with("read configuration /nowhere"));
    }

    #[test]
    fn the_shim_is_found_beside_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let executable = dir.path().join("aril");
        let shim = dir.path().join("aril-shim");
        let mut config = Config::default();
        std::fs::write(&shim, "").unwrap();
        assert_eq!(config.find_shim(Some(&executable)).unwrap(), shim);
        // As it is installed: below the program's own prefix.
        let installed = dir.path().join("libexec/aril/aril-shim");
        std::fs::create_dir_all(installed.parent().unwrap()).unwrap();
        std::fs::write(&installed, "").unwrap();
        let found = config.find_shim(Some(&dir.path().join("bin/aril"))).unwrap();
        assert_eq!(found, installed);
        config.shim = Some(dir.path().join("absent"));
        let error = config.find_shim(Some(&executable)).unwrap_err().to_string();
        assert!(error.contains("absent") && error.contains("`shim`"), "{error}");
    }
}
