//! The driver's calls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tracing::{info, warn};

use super::super::{Attachment, Driver, INTERFACE, Leftover, Live, Namespace, NetError, Request};
use super::book::{Book, Found};
use super::chain::{self, Chain};
use super::config::{self, Loaded};
use super::plugin::{Budget, Target, Verb};
use super::request::{self, Capabilities};
use super::turns::Turn;
use super::{Cni, NAME, lock, result, template};
use crate::id::SandboxId;

/// How long GC waits for a moment in which no pod is connected or disconnected.
const GC_PATIENCE: Duration = Duration::from_secs(2);
/// How long no GC is asked of plugins one of which has hung: every time all pods would wait for it.
const GC_PAUSE: Duration = Duration::from_secs(6 * 3600);

impl Driver for Cni {
    fn name(&self) -> &'static str {
        NAME
    }

    fn needs_path(&self) -> bool {
        true
    }

    fn status(&self) -> Result<(), NetError> {
        self.readiness()
    }

    fn validate(&self, request: &Request) -> Result<(), NetError> {
        request::args(request)?;
        let list = self.load()?.list;
        request::check(request, &list, self.settings.ports_elsewhere).map(drop)
    }

    fn setup(&self, request: &Request, namespace: Namespace<'_>) -> Result<Attachment, NetError> {
        let path = path_of(namespace)?;
        let budget = self.plugins.budget(Verb::Add);
        let _turn = self.turn(&request.id, budget)?;
        lock(&self.current).insert(request.id.clone());
        self.undo_former(&request.id, budget)?;
        let args = request::args(request)?;
        let list = self.load()?.list;
        let warnings = request::check(request, &list, self.settings.ports_elsewhere)?;
        let list = chain::pin(&self.plugins, list, budget)?;
        let capabilities = capabilities(Some(request))?;
        let book = Book { list, request: Some(request.clone()), args, result: None, is_complete: false };
        self.books.begin(&request.id, &book)?;
        let target = Target { id: &request.id, namespace: &path, args: &book.args };
        let result = match self.beside_sync(&request.id, || self.chain(&book, target, &capabilities, budget).add()) {
            Ok(result) => result,
            Err(stopped) => {
                // DEL can do more with it, and does what it must without.
                if let Some(partial) = stopped.partial
                    && let Err(e) = self.books.end(&request.id, &partial, false)
                {
                    warn!(sandbox = %request.id, error = %e, "the result of CNI plugins could not be kept");
                }
                return Err(stopped.error);
            }
        };
        self.books.end(&request.id, &result, true)?;
        let mut attachment = self.attachment(&book, &result, request)?;
        attachment.warnings = warnings;
        Ok(attachment)
    }

    fn check(&self, id: &SandboxId, namespace: Namespace<'_>) -> Result<(), NetError> {
        let path = path_of(namespace)?;
        let budget = self.plugins.budget(Verb::Check);
        let _turn = self.turn(id, budget)?;
        let lost = |reason: String| NetError::NotReady { reason: format!("CNI CHECK of sandbox {id}: {reason}") };
        let book = match self.books.find(id)? {
            Found::Book(book) => book,
            Found::Nothing => return Err(lost("it was never connected".to_owned())),
            Found::Damaged(reason) => return Err(lost(format!("what ADD did is lost: {reason}"))),
        };
        let Some(result) = book.result.as_deref() else {
            return Err(lost("its ADD did not end well".to_owned()));
        };
        if !book.is_complete {
            // Rebuilt from the pod's record: it lacks what plugins compare, and would only prove that.
            return Ok(());
        }
        let capabilities = capabilities(book.request.as_ref())?;
        let target = Target { id, namespace: &path, args: &book.args };
        self.chain(&book, target, &capabilities, budget).check(result)
    }

    fn teardown(&self, id: &SandboxId, namespace: Option<Namespace<'_>>) -> Vec<Leftover> {
        let budget = self.plugins.budget(Verb::Del);
        let _turn = match self.turn(id, budget) {
            Ok(turn) => turn,
            Err(e) => return vec![leftover(id, e)],
        };
        lock(&self.current).remove(id);
        let path = namespace.and_then(|n| n.path).map(|path| path.display().to_string());
        self.delete(id, &path.unwrap_or_default(), budget)
    }

    fn known(&self) -> Result<Vec<SandboxId>, NetError> {
        self.books.ids()
    }

    fn reconcile(&self, live: &[Live]) -> Vec<Leftover> {
        let mut left = Vec::new();
        let budget = self.plugins.budget(Verb::Gc);
        for sandbox in live {
            left.extend(self.mend(sandbox, budget).err().map(|e| leftover(&sandbox.id, e)));
        }
        left.extend(self.collect_garbage(live, budget));
        left
    }

    fn set_pod_cidr(&self, cidr: &str) -> Result<(), NetError> {
        let ranges = template::ranges(cidr)?;
        *lock(&self.pod_cidr) = Some(ranges.join(","));
        match &self.settings.template {
            Some(path) => template::install(path, &self.settings.config_dir, &ranges, self.plugins.trust()),
            None => Ok(()),
        }
    }

    fn describe(&self) -> serde_json::Value {
        let mut about = json!({
            "driver": NAME,
            "config_dir": self.settings.config_dir,
            "plugin_dirs": self.settings.plugin_dirs,
            "pod_cidr": *lock(&self.pod_cidr),
            "pods": self.books.ids().map(|ids| ids.len()).unwrap_or_default(),
        });
        let described = self.load().and_then(|loaded| {
            let path = loaded.path;
            let list = chain::pin(&self.plugins, loaded.list, self.plugins.budget(Verb::Version))?;
            let programs: BTreeMap<&str, Option<std::path::PathBuf>> =
                chain::programs(&list).map(|kind| (kind, self.plugins.find(kind).ok())).collect();
            Ok(json!({
                "file": path,
                "name": list.name,
                "cni_version": list.version().as_str(),
                "plugins": list.plugins.iter().map(|p| &p.kind).collect::<Vec<_>>(),
                "programs": programs,
            }))
        });
        match described {
            Ok(network) => about["network"] = network,
            Err(e) => about["error"] = json!(e.to_string()),
        }
        about
    }
}

impl Cni {
    pub(super) fn load(&self) -> Result<Loaded, NetError> {
        Ok(config::load(&self.settings.config_dir, self.plugins.trust())?)
    }

    /// The turn of a sandbox, if it comes in time.
    fn turn(&self, id: &SandboxId, budget: Budget) -> Result<Turn<'_>, NetError> {
        let turn = budget.left().ok().and_then(|left| self.turns.take(id, left));
        let reason = || format!("an earlier operation on the CNI network of sandbox {} has not ended", id.short());
        turn.ok_or_else(|| NetError::NotReady { reason: reason() })
    }

    fn chain<'a>(
        &'a self,
        book: &'a Book,
        target: Target<'a>,
        capabilities: &'a Capabilities,
        budget: Budget,
    ) -> Chain<'a> {
        let (target, capabilities) = (Some(target), Some(capabilities));
        Chain { plugins: &self.plugins, list: &book.list, target, capabilities, budget }
    }

    fn attachment(&self, book: &Book, raw: &RawValue, request: &Request) -> Result<Attachment, NetError> {
        result::attachment(raw, &book.list.name, &request.ports).map_err(|reason| {
            let last = book.list.plugins.last().map(|p| p.kind.clone()).unwrap_or_default();
            NetError::Plugin { plugin: last, network: book.list.name.clone(), step: "ADD", reason }
        })
    }

    /// Has plugins run while the intent is synced: that takes as long as a disk does, and they take longer. What they
    /// write themselves reaches the disk no sooner, unless they sync it.
    fn beside_sync<T>(&self, id: &SandboxId, run: impl FnOnce() -> T) -> T {
        let sync = || {
            if let Err(e) = self.books.sync(id) {
                warn!(sandbox = %id, error = %e, "a power cut may lose what CNI ADD was called with");
            }
        };
        std::thread::scope(|scope| {
            if std::thread::Builder::new().name("net sync".to_owned()).spawn_scoped(scope, sync).is_err() {
                sync();
            }
            run()
        })
    }

    /// ADD must not follow ADD: whatever is left of a former one goes first.
    fn undo_former(&self, id: &SandboxId, budget: Budget) -> Result<(), NetError> {
        match self.delete(id, "", budget).into_iter().next() {
            None => Ok(()),
            Some(left) => Err(NetError::Taken {
                what: format!("the network of sandbox {id}"),
                owner: format!("what is left of a former one ({}: {})", left.what, left.reason),
            }),
        }
    }

    /// DEL by the book; the book goes if nothing is left.
    fn delete(&self, id: &SandboxId, path: &str, budget: Budget) -> Vec<Leftover> {
        let book = match self.books.find(id) {
            Ok(Found::Nothing) => return Vec::new(),
            Ok(Found::Book(book)) => *book,
            Ok(Found::Damaged(reason)) => match self.replace(id, &reason, budget) {
                Ok(book) => book,
                Err(e) => return vec![leftover(id, e)],
            },
            Err(e) => return vec![leftover(id, e)],
        };
        let capabilities = match capabilities(book.request.as_ref()) {
            Ok(capabilities) => capabilities,
            Err(e) => return vec![leftover(id, e)],
        };
        let start = Instant::now();
        let target = Target { id, namespace: path, args: &book.args };
        let mut left = self.chain(&book, target, &capabilities, budget).del(&book);
        if left.is_empty() {
            left.extend(self.books.remove(id).err().map(|e| leftover(id, e)));
        }
        info!(sandbox = %id, elapsed = ?start.elapsed(), left = left.len(), "CNI network deleted");
        left
    }

    /// A book in place of a damaged one, with the configuration of now: the best guess there is.
    fn replace(&self, id: &SandboxId, reason: &str, budget: Budget) -> Result<Book, NetError> {
        warn!(sandbox = %id, error = reason, "what CNI ADD did is lost; the configuration of now takes its place");
        let list = chain::pin(&self.plugins, self.load()?.list, budget)?;
        let book = Book { list, request: None, args: request::bare_args(id), result: None, is_complete: false };
        self.books.set_aside(id)?;
        self.books.begin(id, &book)?;
        self.books.sync(id)?;
        Ok(book)
    }

    /// A book for a living sandbox whose own is missing or damaged, from its record.
    fn mend(&self, sandbox: &Live, budget: Budget) -> Result<(), NetError> {
        let Some(_turn) = self.turns.try_take(&sandbox.id) else { return Ok(()) };
        let why = match self.books.find(&sandbox.id)? {
            Found::Book(_) => return Ok(()),
            Found::Nothing => "is missing".to_owned(),
            Found::Damaged(reason) => {
                self.books.set_aside(&sandbox.id)?;
                reason
            }
        };
        warn!(sandbox = %sandbox.id, error = why, "what CNI ADD did is lost; it is rebuilt from the pod's record");
        let list = chain::pin(&self.plugins, self.load()?.list, budget)?;
        let result = result::rebuilt(&sandbox.attachment, list.version()).map_err(unwritable)?;
        let request = Request {
            id: sandbox.id.clone(),
            name: String::new(),
            namespace: String::new(),
            uid: String::new(),
            ports: sandbox.attachment.ports.clone(),
            bandwidth: super::super::Bandwidth::default(),
            dns: super::super::Dns::default(),
            ips: Vec::new(),
            mac: String::new(),
            cgroup_parent: String::new(),
            annotations: BTreeMap::new(),
        };
        let args = request::bare_args(&sandbox.id);
        let book = Book { list, request: Some(request), args, result: None, is_complete: false };
        self.books.begin(&sandbox.id, &book)?;
        self.books.sync(&sandbox.id)?;
        self.books.end(&sandbox.id, &result, false)
    }

    /// GC of the network of now, in a moment when nothing else goes on; if there is none, another time.
    fn collect_garbage(&self, live: &[Live], budget: Budget) -> Vec<Leftover> {
        let list = self.load().and_then(|loaded| chain::pin(&self.plugins, loaded.list, budget));
        let Ok(list) = list else { return Vec::new() };
        let text = list.to_json().map(|raw| raw.get().to_owned()).unwrap_or_default();
        let has_hung = lock(&self.hung_gc).as_ref().is_some_and(|(of, at)| *of == text && at.elapsed() < GC_PAUSE);
        let has_gc = !list.disable_gc && list.version() >= super::Version::V1_1_0 && !has_hung;
        let all = if has_gc { self.turns.try_all(GC_PATIENCE) } else { None };
        let Some(_all) = all else { return Vec::new() };
        let mut valid: BTreeSet<SandboxId> =
            live.iter().filter(|l| l.attachment.network == list.name).map(|l| l.id.clone()).collect();
        valid.extend(lock(&self.current).iter().cloned());
        let attachments: Vec<_> =
            valid.iter().map(|id| json!({ "containerID": id.as_str(), "ifname": INTERFACE })).collect();
        match to_raw_value(&attachments) {
            Ok(valid) => {
                let chain = Chain { plugins: &self.plugins, list: &list, target: None, capabilities: None, budget };
                chain.gc(&valid).unwrap_or_else(|left| {
                    *lock(&self.hung_gc) = Some((text, Instant::now()));
                    left
                })
            }
            Err(e) => vec![Leftover { what: "CNI GC".to_owned(), reason: e.to_string() }],
        }
    }
}

fn capabilities(request: Option<&Request>) -> Result<Capabilities, NetError> {
    request.map_or_else(|| Ok(Capabilities::new()), |request| request::capabilities(request).map_err(unwritable))
}

fn unwritable(e: serde_json::Error) -> NetError {
    NetError::Invalid { field: "annotations".to_owned(), reason: format!("cannot be written as JSON: {e}") }
}

fn leftover(id: &SandboxId, e: NetError) -> Leftover {
    Leftover { what: format!("CNI network of sandbox {id}"), reason: e.to_string() }
}

fn path_of(namespace: Namespace<'_>) -> Result<String, NetError> {
    namespace.path.and_then(|path| path.to_str()).map(str::to_owned).ok_or_else(|| NetError::Invalid {
        field: "namespace".to_owned(),
        reason: "CNI plugins need it by a path on the host".to_owned(),
    })
}
