//! What could not be taken away of a network: one small file a sandbox, kept until a later try succeeds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Leftover;
use crate::disk::{self, Durability};
use crate::id::SandboxId;

/// How long after a failed try the next one is, doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Longer than any try takes.
const TAKEN: Duration = Duration::from_secs(3600);

/// As on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Empty: whichever knows the sandbox.
    driver: String,
    left: Vec<Leftover>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    pause: Duration,
    due: Instant,
}

/// The book of leftovers.
#[derive(Debug)]
pub(super) struct Leftovers {
    dir: PathBuf,
    entries: Mutex<BTreeMap<SandboxId, Entry>>,
}

impl Leftovers {
    /// Reads the book. Everything in it is due at once.
    pub fn open(dir: PathBuf) -> Self {
        let mut entries = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if disk::is_temporary(&name.to_string_lossy()) {
                // A daemon was killed while it wrote.
                std::fs::remove_file(entry.path()).unwrap_or_else(|e| warn!(error = %e, "half a note not removed"));
                continue;
            }
            let Some(id) = name.to_str().and_then(|n| n.strip_suffix(".json")?.parse::<SandboxId>().ok()) else {
                continue;
            };
            let record = std::fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            // That there is one says enough: a teardown needs the id alone.
            let record = record.unwrap_or_else(|| Record { version: 1, driver: String::new(), left: Vec::new() });
            entries.insert(id, Entry { record, pause: FIRST_PAUSE, due: Instant::now() });
        }
        Self { dir, entries: Mutex::new(entries) }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a teardown that is due now.
    pub fn hand_over(&self, id: &SandboxId, driver: &str) {
        let record = Record { version: 1, driver: driver.to_owned(), left: Vec::new() };
        self.keep(id, &record);
        self.entries().insert(id.clone(), Entry { record, pause: FIRST_PAUSE, due: Instant::now() });
    }

    /// What cannot be written down is tried again all the same, as long as this daemon lives.
    fn keep(&self, id: &SandboxId, record: &Record) {
        let written = serde_json::to_vec(record).map_err(std::io::Error::from).and_then(|bytes| {
            disk::private_dir(&self.dir)?;
            disk::write_atomic(&self.path(id), &bytes, Durability::Process)
        });
        if let Err(e) = written {
            warn!(sandbox = %id, error = %e, "what was left of the network not written down");
        }
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Notes how a teardown ended: with nothing left the sandbox is struck.
    pub fn note(&self, id: &SandboxId, driver: &str, left: Vec<Leftover>) {
        let mut entries = self.entries();
        if left.is_empty() {
            if let Some(entry) = entries.remove(id) {
                if !entry.record.left.is_empty() {
                    info!(sandbox = %id, "what was left of the network is gone");
                }
                if let Err(e) = std::fs::remove_file(self.path(id)) {
                    warn!(sandbox = %id, error = %e, "note of what was left not removed, the next start tries again");
                }
            }
            return;
        }
        let record = Record { version: 1, driver: driver.to_owned(), left };
        let pause = match entries.get(id) {
            Some(entry) if !entry.record.left.is_empty() => (entry.pause * 2).min(LONGEST_PAUSE),
            _ => {
                let what: Vec<String> = record.left.iter().map(|l| format!("{}: {}", l.what, l.reason)).collect();
                warn!(sandbox = %id, left = what.join("; "), "network not wholly taken away, it is tried again");
                FIRST_PAUSE
            }
        };
        if entries.get(id).is_none_or(|entry| entry.record != record) {
            self.keep(id, &record);
        }
        entries.insert(id.clone(), Entry { record, pause, due: Instant::now() + pause });
    }

    /// Takes those whose turn it is, at most so many, with the driver that was asked. Nobody gets them again before
    /// [`note`](Self::note) was told how it went.
    pub fn due(&self, most: usize) -> Vec<(SandboxId, String)> {
        let now = Instant::now();
        let mut entries = self.entries();
        let mut due: Vec<(&SandboxId, &mut Entry)> = entries.iter_mut().filter(|(_, e)| e.due <= now).collect();
        // Who has waited longest, so that many sick ones leave room for others.
        due.sort_by_key(|(_, entry)| entry.due);
        due.into_iter().take(most).map(take).collect()
    }

    /// As [`due`](Self::due), whether it is their turn or not.
    pub fn take_all(&self) -> Vec<(SandboxId, String)> {
        self.entries().iter_mut().map(take).collect()
    }

    /// When it is somebody's turn.
    pub fn next(&self) -> Option<Instant> {
        self.entries().values().map(|entry| entry.due).min()
    }

    /// Whether something is left of a sandbox.
    pub fn has(&self, id: &SandboxId) -> bool {
        self.entries().contains_key(id)
    }

    /// All of it.
    pub fn list(&self) -> Vec<(SandboxId, Vec<Leftover>)> {
        self.entries().iter().map(|(id, entry)| (id.clone(), entry.record.left.clone())).collect()
    }
}

fn take((id, entry): (&SandboxId, &mut Entry)) -> (SandboxId, String) {
    entry.due = Instant::now() + TAKEN;
    (id.clone(), entry.record.driver.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SandboxId {
        "a".repeat(64).parse().unwrap()
    }

    fn left() -> Vec<Leftover> {
        vec![Leftover { what: "lease 10.88.0.7".into(), reason: "EIO".into() }]
    }

    #[test]
    fn a_leftover_waits_longer_each_time_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let book = Leftovers::open(dir.path().join("leftovers"));
        assert!(book.next().is_none());
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            let before = Instant::now();
            book.note(&id(), "cni", left());
            let pause = book.next().unwrap() - before;
            assert!(pause >= last.min(LONGEST_PAUSE) && pause <= LONGEST_PAUSE + Duration::from_secs(1), "{pause:?}");
            last = pause;
        }
        assert!(book.due(9).is_empty() && book.has(&id()));

        let book = Leftovers::open(dir.path().join("leftovers"));
        assert!(book.due(0).is_empty());
        assert_eq!(book.due(9), [(id(), "cni".to_owned())]);
        assert!(book.due(9).is_empty(), "it is being tried");
        assert_eq!(book.list(), [(id(), left())]);
        book.note(&id(), "cni", Vec::new());
        assert!(book.list().is_empty());
        assert!(Leftovers::open(dir.path().join("leftovers")).take_all().is_empty());
    }

    #[test]
    fn a_damaged_note_still_says_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{}.json", id())), b"{").unwrap();
        std::fs::write(dir.path().join("README"), b"").unwrap();
        let half = dir.path().join(format!(".{}.json.1.0.tmp", id()));
        std::fs::write(&half, b"{").unwrap();
        assert_eq!(Leftovers::open(dir.path().to_owned()).due(9), [(id(), String::new())]);
        assert!(!half.exists(), "half a note is left");
    }
}
