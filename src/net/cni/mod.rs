//! The driver `cni`: networks by plugins of other projects, as the CNI specification 1.1 describes.
//!
//! A configuration list is read from a directory at each use, and its plugins are executed one after the other, in the
//! daemon's own network namespace, each with a deadline. Never keeps a network's configuration, chooses an address or
//! touches an interface itself; a pod's loopback is up before it comes here.
//!
//! What ADD is called with is written down before ([`book`]), so that DEL undoes just that: after a restart, a reboot,
//! or a change of the configuration.

mod book;
mod chain;
pub mod config;
mod driver;
mod error;
mod exec;
pub mod list;
mod orphan;
mod plugin;
mod request;
mod result;
mod status;
mod template;
#[cfg(test)]
mod tests;
mod trust;
mod turns;
mod version;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::book::Books;
use self::plugin::Plugins;
use self::status::Last;
use self::turns::Turns;
use super::NetError;
use crate::id::SandboxId;

pub use self::error::{ConfigError, Failure};
pub use self::plugin::Deadlines;
pub use self::version::Version;

/// The driver's name.
pub const NAME: &str = "cni";

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of configuration lists.
    pub config_dir: PathBuf,
    /// Directories of plugins, in the order they are searched.
    pub plugin_dirs: Vec<PathBuf>,
    /// The driver's own directory; must survive a reboot, as the leases of plugins do.
    pub books: PathBuf,
    /// A file that becomes a configuration once kubelet tells the range of the node's pods ([`template`]).
    pub template: Option<PathBuf>,
    /// Host ports are not refused when no plugin declares them, because the network serves them without being asked
    /// (Cilium in place of kube-proxy).
    pub ports_elsewhere: bool,
    /// How long plugins may take.
    pub deadlines: Deadlines,
}

impl Settings {
    /// The places where everybody looks: `/etc/cni/net.d`, `/opt/cni/bin` and Debian's `/usr/lib/cni`.
    #[must_use]
    pub fn new(books: PathBuf) -> Self {
        Self {
            config_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            books,
            template: None,
            ports_elsewhere: false,
            deadlines: Deadlines::default(),
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct Cni {
    settings: Settings,
    plugins: Plugins,
    books: Books,
    turns: Turns,
    /// Sandboxes set up by this process: a list of living ones may have been made before they were.
    current: Mutex<HashSet<SandboxId>>,
    pod_cidr: Mutex<Option<String>>,
    last_status: Mutex<Last>,
    /// The list whose GC has hung last, as text, and when.
    hung_gc: Mutex<Option<(String, Instant)>>,
}

impl Cni {
    /// Opens the driver's books, and ends what an earlier daemon of theirs has left running; nothing is run.
    ///
    /// # Errors
    /// [`NetError::Io`] if their directory cannot be made or read.
    pub fn open(settings: Settings) -> Result<Self, NetError> {
        orphan::end(&settings.books);
        Ok(Self {
            plugins: Plugins::new(settings.plugin_dirs.clone(), settings.books.clone(), settings.deadlines),
            books: Books::open(settings.books.clone())?,
            turns: Turns::default(),
            current: Mutex::default(),
            pod_cidr: Mutex::default(),
            last_status: Mutex::default(),
            hung_gc: Mutex::default(),
            settings,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
