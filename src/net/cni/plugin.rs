//! Finds plugins and calls them: environment, deadline, and what their answers mean.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tracing::debug;

use super::super::INTERFACE;
use super::error::{Failure, one_line, quoted};
use super::exec::{Ended, Run};
use super::orphan;
use super::trust::Trust;
use super::version::Version;
use crate::id::SandboxId;

/// Programs of Debian's `containernetworking-plugins`.
const DEBIAN: &[&str] = &[
    "bandwidth",
    "bridge",
    "dhcp",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tuning",
    "vlan",
    "vrf",
];
/// Where plugins look for `iptables` and the like if the daemon itself has no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// CNI's code for "the container is unknown", after which DEL has nothing to do.
pub(super) const UNKNOWN_CONTAINER: u32 = 3;

/// What a plugin is asked to do, with how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// How long each call of a plugin may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// ADD: 60 s. Some plugins wait for a controller to hand out an address; kubelet waits four minutes for a sandbox,
    /// and who waits is one pod on a thread of its own.
    pub add: Duration,
    /// DEL: 30 s. It goes on with the next plugin, and kubelet waits two minutes for a stop.
    pub del: Duration,
    /// CHECK: 15 s.
    pub check: Duration,
    /// GC: 15 s. No pod is connected meanwhile.
    pub gc: Duration,
    /// STATUS and VERSION: 5 s. Somebody waits for the node's status.
    pub status: Duration,
    /// ADD and DEL, all plugins of a list together, with what comes before them: 80 s. With what else may hold up a stop
    /// that is less than the two minutes that kubelet waits for one.
    pub total: Duration,
    /// The same for CHECK, GC and STATUS: 30 s.
    pub total_of_others: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            add: seconds(60),
            del: seconds(30),
            check: seconds(15),
            gc: seconds(15),
            status: seconds(5),
            total: seconds(80),
            total_of_others: seconds(30),
        }
    }
}

impl Deadlines {
    fn of(&self, verb: Verb) -> Duration {
        match verb {
            Verb::Add => self.add,
            Verb::Del => self.del,
            Verb::Check => self.check,
            Verb::Gc => self.gc,
            Verb::Status | Verb::Version => self.status,
        }
    }
}

/// The time that one operation has, whatever number of plugins it calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    begun: Instant,
    total: Duration,
}

impl Budget {
    /// From now on.
    pub(super) fn new(total: Duration) -> Self {
        Self { begun: Instant::now(), total }
    }

    /// What is left of it.
    ///
    /// # Errors
    /// [`Failure::Late`] if that is nothing.
    pub(super) fn left(&self) -> Result<Duration, Failure> {
        let left = self.total.saturating_sub(self.begun.elapsed());
        if left.is_zero() { Err(Failure::Late(self.total)) } else { Ok(left) }
    }
}

/// The pod a call is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub id: &'a SandboxId,
    /// Where its namespace is; empty if it is gone.
    pub namespace: &'a str,
    /// CNI_ARGS.
    pub args: &'a str,
}

/// The programs of some directories.
#[derive(Debug)]
pub(super) struct Plugins {
    dirs: Vec<PathBuf>,
    /// Whom they work for; see [`orphan`].
    books: PathBuf,
    search_path: String,
    deadlines: Deadlines,
    trust: Trust,
    /// What programs said of their versions, while their files stay the same.
    versions: Mutex<HashMap<PathBuf, Answer>>,
    /// How long one that did not say is not asked again.
    pub(super) silence: Duration,
}

/// What a program said of its versions.
#[derive(Debug, Clone)]
struct Answer {
    /// Of this state of its file.
    of: Stamp,
    versions: Spoken,
    /// When it is asked again, if it did not answer.
    good_until: Option<Instant>,
}

/// See [`Plugins::silence`].
const SILENCE: Duration = Duration::from_secs(30);

/// Tells one state of a file from another.
type Stamp = (u64, u64, i64, i64, u64);

/// Versions a plugin says it speaks; `None`: it does not say.
type Spoken = Option<Vec<Version>>;

/// An error as plugins write it.
#[derive(Deserialize)]
struct Complaint {
    code: Option<u32>,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Supported {
    supported_versions: Vec<String>,
}

impl Plugins {
    pub(super) fn new(dirs: Vec<PathBuf>, books: PathBuf, deadlines: Deadlines) -> Self {
        let search_path = std::env::var("PATH").ok().filter(|p| !p.is_empty()).unwrap_or_else(|| PATH.to_owned());
        Self {
            dirs,
            books,
            search_path,
            deadlines,
            trust: Trust::default(),
            versions: Mutex::default(),
            silence: SILENCE,
        }
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The file of a plugin.
    ///
    /// # Errors
    /// [`Failure::Unusable`], with where it was searched and what to install.
    pub(super) fn find(&self, kind: &str) -> Result<PathBuf, Failure> {
        self.locate(kind).map(|(path, _)| path)
    }

    fn locate(&self, kind: &str) -> Result<(PathBuf, Stamp), Failure> {
        for dir in &self.dirs {
            let path = dir.join(kind);
            let Ok(meta) = fs::metadata(&path) else { continue };
            if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
                continue;
            }
            let everybodys = |path: &Path| {
                Failure::Unusable(format!("{} can be written by everybody: chmod o-w it", path.display()))
            };
            if self.trust.is_everybodys(&path, &meta) {
                return Err(everybodys(&path));
            }
            if fs::metadata(dir).is_ok_and(|meta| self.trust.is_everybodys(dir, &meta)) {
                return Err(everybodys(dir));
            }
            return Ok((path, (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size())));
        }
        Err(Failure::Unusable(self.absence(kind)))
    }

    fn absence(&self, kind: &str) -> String {
        let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let remedy = if DEBIAN.contains(&kind) {
            "Debian has it in containernetworking-plugins".to_owned()
        } else {
            format!("the network's installer should put it into {}", dirs.first().map_or("one", String::as_str))
        };
        format!("no program of that name in {}; {remedy}", dirs.join(", "))
    }

    /// Calls a plugin and returns what it wrote, unless it failed.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn call(
        &self,
        kind: &str,
        verb: Verb,
        target: Option<Target<'_>>,
        input: &[u8],
        budget: Budget,
    ) -> Result<Vec<u8>, Failure> {
        let program = self.find(kind)?;
        self.run(&program, verb, target, input, budget)
    }

    fn run(
        &self,
        program: &Path,
        verb: Verb,
        target: Option<Target<'_>>,
        input: &[u8],
        budget: Budget,
    ) -> Result<Vec<u8>, Failure> {
        let start = Instant::now();
        let environment = self.environment(verb, target);
        let (own, left) = (self.deadlines.of(verb), budget.left()?);
        let ended = Run { program, environment: &environment, input, limit: own.min(left) }.wait();
        let ended = ended.map_err(|failure| match failure {
            Failure::Deadline(_) if left < own => Failure::Late(budget.total),
            other => other,
        })?;
        let (path, step) = (program.display(), verb.as_str());
        debug!(%path, step, elapsed = ?start.elapsed(), log = quoted(&ended.log), "CNI plugin ended");
        if ended.status.success() { Ok(ended.output) } else { Err(complaint(&ended)) }
    }

    fn environment(&self, verb: Verb, target: Option<Target<'_>>) -> Vec<(&'static str, String)> {
        let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let mut all = vec![
            ("CNI_COMMAND", verb.as_str().to_owned()),
            ("CNI_PATH", dirs.join(":")),
            ("PATH", self.search_path.clone()),
            (orphan::MARK, self.books.display().to_string()),
        ];
        if let Some(target) = target {
            all.push(("CNI_CONTAINERID", target.id.as_str().to_owned()));
            all.push(("CNI_NETNS", target.namespace.to_owned()));
            all.push(("CNI_IFNAME", INTERFACE.to_owned()));
            all.push(("CNI_ARGS", target.args.to_owned()));
        }
        all
    }

    /// The versions a plugin says it speaks; `None` if it does not say, and then it is taken to speak what is asked of
    /// it. Asked once for each state of its file; one that did not answer is asked again after a while.
    ///
    /// # Errors
    /// [`Failure::Unusable`] if it is not there.
    pub(super) fn versions(&self, kind: &str, budget: Budget) -> Result<Spoken, Failure> {
        let (path, stamp) = self.locate(kind)?;
        let known = self.versions.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
        if let Some(answer) = known
            && answer.of == stamp
            && answer.good_until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(answer.versions);
        }
        let answer = self.run(&path, Verb::Version, None, br#"{"cniVersion":"1.1.0"}"#, budget);
        if matches!(answer, Err(Failure::Late(_))) {
            // It had not the time that it may take.
            return Ok(None);
        }
        let versions = answer.ok().and_then(|answer| serde_json::from_slice::<Supported>(&answer).ok());
        let versions: Spoken =
            versions.map(|s| s.supported_versions.iter().filter_map(|v| Version::known(v)).collect());
        let good_until = versions.is_none().then(|| Instant::now() + self.silence);
        let answer = Answer { of: stamp, versions: versions.clone(), good_until };
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).insert(path, answer);
        Ok(versions)
    }

    /// The time for an operation of this kind.
    pub(super) fn budget(&self, verb: Verb) -> Budget {
        Budget::new(match verb {
            Verb::Add | Verb::Del => self.deadlines.total,
            Verb::Check | Verb::Gc | Verb::Status | Verb::Version => self.deadlines.total_of_others,
        })
    }
}

/// What a plugin that failed had to say.
fn complaint(ended: &Ended) -> Failure {
    let said = if ended.output.iter().all(u8::is_ascii_whitespace) { &ended.log } else { &ended.output };
    if let Ok(complaint) = serde_json::from_slice::<Complaint>(said)
        && let Some(code) = complaint.code
    {
        return Failure::Refused { code, text: complaint.sentence(code) };
    }
    let how = match (ended.status.code(), ended.status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, signal) => {
            let signal = signal.and_then(|s| nix::sys::signal::Signal::try_from(s).ok());
            format!("was ended by {}", signal.map_or("a signal", |s| s.as_str()))
        }
    };
    Failure::Broken(format!("{how} and said {}", quoted(said)))
}

impl Complaint {
    /// Message and details in one sentence; the code where it says more than they do.
    fn sentence(&self, code: u32) -> String {
        let (message, details) = (one_line(&self.msg, 400), one_line(&self.details, 400));
        let mut text = match (message.is_empty(), details.is_empty() || message.contains(&details)) {
            (false, true) => message,
            (false, false) => format!("{message}: {details}"),
            (true, false) => details,
            (true, true) => "no reason given".to_owned(),
        };
        let meaning = match code {
            1 => "the plugin does not speak this cniVersion",
            2 => "a field of the configuration is not supported",
            3 => "the container is unknown",
            7 => "the configuration is invalid",
            11 => "try again later",
            50 => "the plugin is not available",
            51 => "the plugin is not available, and pods may have limited connectivity",
            _ => "",
        };
        if meaning.is_empty() {
            text.push_str(&format!(" (code {code})"));
        } else {
            text.push_str(&format!(" (code {code}: {meaning})"));
        }
        text
    }
}
