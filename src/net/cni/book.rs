//! What was done for each sandbox, on disk: two files.
//!
//! `<id>.json` is the intent, written before ADD and synced while the first plugins run: the whole configuration list, the request and the
//! arguments. DEL uses these, whatever the configuration is by then, also after a reboot: leases of plugins outlive
//! one. `<id>.result` is ADD's answer; were it lost in a power cut, DEL would still be possible.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::warn;

use super::super::{NetError, Request};
use super::error::one_line;
use super::list::NetworkList;
use crate::disk::{self, Durability};
use crate::id::SandboxId;

/// Version of the files.
const FORMAT: u32 = 1;
/// Longest file, in bytes: a list, a result, and a pod's annotations.
const LONGEST: u64 = 4 << 20;

/// The intent of one ADD.
#[derive(Debug)]
pub(super) struct Book {
    /// The list, with the one version that was used.
    pub list: NetworkList,
    /// What was asked; `None` if that was lost.
    pub request: Option<Request>,
    /// CNI_ARGS.
    pub args: String,
    /// ADD's result, or that of the last plugin that succeeded.
    pub result: Option<Box<RawValue>>,
    /// The result is all of ADD's, so CHECK may be called.
    pub is_complete: bool,
}

#[derive(Serialize, Deserialize)]
struct Intent {
    format: u32,
    args: String,
    request: Option<Request>,
    network: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Outcome {
    complete: bool,
    result: Box<RawValue>,
}

/// What is on disk of a sandbox.
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A whole book.
    Book(Box<Book>),
    /// Something that cannot be read, and why.
    Damaged(String),
}

/// The directory of books.
#[derive(Debug)]
pub(super) struct Books {
    dir: PathBuf,
}

impl Books {
    pub(super) fn open(dir: PathBuf) -> Result<Self, NetError> {
        disk::private_dir(&dir).map_err(failed("make directory", &dir))?;
        for entry in fs::read_dir(&dir).map_err(failed("read directory", &dir))?.flatten() {
            if disk::is_temporary(&entry.file_name().to_string_lossy()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(Self { dir })
    }

    fn intent(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn outcome(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.result"))
    }

    /// Writes the intent: it survives the daemon, and a power cut once [`sync`](Self::sync) has been called.
    pub(super) fn begin(&self, id: &SandboxId, book: &Book) -> Result<(), NetError> {
        let path = self.intent(id);
        let network = book.list.to_json().map_err(io::Error::from).map_err(failed("write", &path))?;
        let intent = Intent { format: FORMAT, args: book.args.clone(), request: book.request.clone(), network };
        write(&path, &intent, Durability::Process)
    }

    /// Has the intent survive a power cut, which leases of plugins may survive.
    pub(super) fn sync(&self, id: &SandboxId) -> Result<(), NetError> {
        for path in [self.intent(id), self.dir.clone()] {
            fs::File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
        }
        Ok(())
    }

    /// Writes what came of it.
    pub(super) fn end(&self, id: &SandboxId, result: &RawValue, complete: bool) -> Result<(), NetError> {
        write(&self.outcome(id), &Outcome { complete, result: result.to_owned() }, Durability::Process)
    }

    pub(super) fn find(&self, id: &SandboxId) -> Result<Found, NetError> {
        let Some(text) = read(&self.intent(id))? else { return Ok(Found::Nothing) };
        let intent: Intent = match serde_json::from_slice(&text) {
            Ok(intent) => intent,
            Err(e) => return Ok(Found::Damaged(one_line(&e.to_string(), 100))),
        };
        if intent.format != FORMAT {
            return Ok(Found::Damaged(format!("its format is {}, this aril knows {FORMAT}", intent.format)));
        }
        let list = match NetworkList::parse(intent.network.get()) {
            Ok(list) => list,
            Err(e) => return Ok(Found::Damaged(e.to_string())),
        };
        let outcome = read(&self.outcome(id))?.and_then(|text| match serde_json::from_slice::<Outcome>(&text) {
            Ok(outcome) => Some(outcome),
            Err(e) => {
                warn!(sandbox = %id, error = %e, "the result of CNI ADD is damaged; DEL goes on without it");
                None
            }
        });
        let is_complete = outcome.as_ref().is_some_and(|o| o.complete);
        let result = outcome.map(|o| o.result);
        Ok(Found::Book(Box::new(Book { list, request: intent.request, args: intent.args, result, is_complete })))
    }

    /// Keeps a damaged book for a person to look at, out of the way.
    pub(super) fn set_aside(&self, id: &SandboxId) -> Result<(), NetError> {
        let aside = self.dir.join("damaged");
        disk::private_dir(&aside).map_err(failed("make directory", &aside))?;
        let path = self.intent(id);
        fs::rename(&path, aside.join(format!("{id}.json"))).map_err(failed("move aside", &path))
    }

    /// The intent last: while it is there, DEL is to be tried.
    pub(super) fn remove(&self, id: &SandboxId) -> Result<(), NetError> {
        for path in [self.outcome(id), self.intent(id)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(failed("remove", &path))?,
            }
        }
        Ok(())
    }

    /// Every sandbox with a book.
    pub(super) fn ids(&self) -> Result<Vec<SandboxId>, NetError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed("read directory", &self.dir))? {
            let name = entry.map_err(failed("read directory", &self.dir))?.file_name();
            ids.extend(name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| n.parse().ok()));
        }
        Ok(ids)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, NetError> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        // One byte of no JSON: it is damaged, and not worth its length.
        Ok(meta) if meta.len() > LONGEST => return Ok(Some(vec![0])),
        _ => {}
    }
    fs::read(path).map(Some).map_err(failed("read", path))
}

fn write(path: &Path, value: &impl Serialize, durability: Durability) -> Result<(), NetError> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::from).map_err(failed("write", path))?;
    disk::write_atomic(path, &bytes, durability).map_err(failed("write", path))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io { step, path, source }
}
