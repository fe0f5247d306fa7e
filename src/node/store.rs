//! The records on disk: written, read back after a restart, removed last.
//!
//! A record needs to survive the daemon, not a power cut: that one ends every workload, and the
//! recovery after a reboot finds either the old or the new record of each object.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::erase::erase;
use super::record::{ContainerRecord, SandboxRecord, VERSION};
use super::settings::{Settings, file_name};
use super::state::ContainerState;
use crate::disk::{self, Durability};
use crate::id::{ContainerId, SandboxId};

/// Why records could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on one of our own files failed.
    #[error("{step} {path}")]
    Io {
        /// What was tried ("write").
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two daemons would share one directory.
    #[error("{root} is in use by the aril daemon with pid {pid}: stop it, or give this one another --root")]
    Locked {
        /// The directory.
        root: PathBuf,
        /// As the other one wrote it down; "unknown" if it did not get that far.
        pid: String,
    },
    /// Written by a later version of this program.
    #[error("record {path} has version {version}, this aril knows {VERSION}: start the newer aril again")]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl StoreError {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { step, path, source }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let kind = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Io { source, .. } if kind(source))
    }
}

/// A sandbox found on disk.
#[derive(Debug)]
pub enum Found {
    /// Whole.
    Pod {
        /// Its record.
        sandbox: Box<SandboxRecord>,
        /// Those of its containers that could be read.
        containers: Vec<ContainerRecord>,
    },
    /// There is no record of it, or one that could not be read: only to be removed.
    Ruin(SandboxId),
}

/// The records of one node, and the lock on them.
#[derive(Debug)]
pub struct Store {
    settings: Settings,
    _lock: Flock<File>,
}

impl Store {
    /// Makes the directories and takes the lock.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another daemon has it, else [`StoreError::Io`].
    pub fn open(settings: &Settings) -> Result<Self, StoreError> {
        let (root, state) = (&settings.root, &settings.state);
        for dir in [root, &settings.pods(), &settings.containers(), &settings.empty(), state, &settings.runs()] {
            disk::private_dir(dir).map_err(StoreError::io("make directory", dir))?;
        }
        let lock = lock(settings)?;
        Ok(Self { settings: settings.clone(), _lock: lock })
    }

    /// Writes a sandbox's record.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the record is then as it was.
    pub fn save_sandbox(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        save(&self.settings.sandbox_record(&record.id), record)
    }

    /// Writes a container's record.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the record is then as it was.
    pub fn save_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        save(&self.settings.container_record(&record.sandbox, &record.id), record)
    }

    /// Writes a copy of a container's record into its directory, for [`Store::load`] to fall back on.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn save_copy(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        save(&self.settings.container_copy(&record.id), record)
    }

    /// Whether a container's record was damaged beyond repair.
    #[must_use]
    pub fn is_lost(&self, id: &str) -> bool {
        self.settings.damaged().join(format!("{id}.json")).exists()
    }

    /// Makes the directories of a sandbox.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn make_pod(&self, id: &SandboxId) -> Result<(), StoreError> {
        for dir in [self.settings.container_records(id), self.settings.etc(id)] {
            disk::private_dir(&dir).map_err(StoreError::io("make directory", &dir))?;
        }
        Ok(())
    }

    /// Removes a container's writable layer, then its record. Repeating it is fine.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the record is then still there.
    pub fn erase_container(&self, sandbox: &SandboxId, id: &ContainerId) -> Result<(), StoreError> {
        let dir = self.settings.container(id);
        erase(&dir).map_err(StoreError::io("remove directory", &dir))?;
        remove_file(&self.settings.container_record(sandbox, id))
    }

    /// Removes all of a sandbox from the disk, its record last. Repeating it is fine.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the record is then still there.
    pub fn erase_sandbox(&self, id: &SandboxId) -> Result<(), StoreError> {
        for container in self.container_ids(id)? {
            self.erase_container(id, &container)?;
        }
        for dir in [self.settings.run(id), self.settings.container_records(id), self.settings.etc(id)] {
            erase(&dir).map_err(StoreError::io("remove directory", &dir))?;
        }
        remove_file(&self.settings.sandbox_record(id))?;
        let dir = self.settings.pod(id);
        erase(&dir).map_err(StoreError::io("remove directory", &dir))
    }

    /// Every sandbox there is something of, on either directory tree.
    ///
    /// Records that cannot be read are moved to `<root>/damaged` with a warning.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a directory cannot be read, [`StoreError::Newer`] for a record of a
    /// later version: then nothing was changed.
    pub fn load(&self) -> Result<Vec<Found>, StoreError> {
        let mut ids: Vec<SandboxId> = children(&self.settings.pods())?;
        ids.extend(children::<SandboxId>(&self.settings.runs())?);
        ids.sort_unstable();
        ids.dedup();
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let path = self.settings.sandbox_record(&id);
            match self.read::<SandboxRecord>(&path, |r| (r.version, r.id == id))? {
                Some(sandbox) => {
                    let containers = self.load_containers(&id)?;
                    found.push(Found::Pod { sandbox: Box::new(sandbox), containers });
                }
                None => found.push(Found::Ruin(id)),
            }
        }
        Ok(found)
    }

    /// Removes writable layers whose container is not among `known`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sweep_containers(&self, known: impl Fn(&ContainerId) -> bool) -> Result<(), StoreError> {
        for id in children::<ContainerId>(&self.settings.containers())? {
            if !known(&id) {
                let dir = self.settings.container(&id);
                erase(&dir).map_err(StoreError::io("remove directory", &dir))?;
            }
        }
        Ok(())
    }

    fn load_containers(&self, sandbox: &SandboxId) -> Result<Vec<ContainerRecord>, StoreError> {
        let mut found = Vec::new();
        for id in self.container_ids(sandbox)? {
            let path = self.settings.container_record(sandbox, &id);
            let whole = |r: &ContainerRecord| (r.version, r.id == id && r.sandbox == *sandbox);
            match self.read::<ContainerRecord>(&path, whole)? {
                Some(record) => found.push(record),
                None => found.extend(self.restore(sandbox, &id)?),
            }
        }
        Ok(found)
    }

    /// A container whose record was damaged, from the copy made with it: whoever has its shim knows how far it has come.
    fn restore(&self, sandbox: &SandboxId, id: &ContainerId) -> Result<Option<ContainerRecord>, StoreError> {
        let copy = fs::read(self.settings.container_copy(id)).ok();
        let copy = copy.and_then(|bytes| serde_json::from_slice::<ContainerRecord>(&bytes).ok());
        let whole = |r: &ContainerRecord| r.version == VERSION && r.id == *id && r.sandbox == *sandbox;
        let Some(mut record) = copy.filter(whole) else { return Ok(None) };
        record.state = ContainerState::Created { pid: 0 };
        record.warnings.push("its record was damaged, and was restored as it was at its creation".to_owned());
        self.save_container(&record)?;
        remove_file(&self.settings.damaged().join(format!("{id}.json")))?;
        warn!(container = %id, "restored the record from the copy made at the container's creation");
        Ok(Some(record))
    }

    fn container_ids(&self, sandbox: &SandboxId) -> Result<Vec<ContainerId>, StoreError> {
        let dir = self.settings.container_records(sandbox);
        let names = entries(&dir)?;
        Ok(names.iter().filter_map(|n| n.strip_suffix(".json")?.parse().ok()).collect())
    }

    /// The record at `path`; none if there is none or it had to be set aside.
    fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        check: impl Fn(&T) -> (u32, bool),
    ) -> Result<Option<T>, StoreError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io("read", path)(e)),
        };
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        // Its form may differ in any way, so its version is looked at alone.
        if let Ok(Version { version }) = serde_json::from_slice(&bytes)
            && version > VERSION
        {
            return Err(StoreError::Newer { path: path.to_owned(), version });
        }
        let problem = match serde_json::from_slice::<T>(&bytes) {
            Ok(record) if check(&record).1 => return Ok(Some(record)),
            Ok(_) => "it is of another object".to_owned(),
            Err(e) => e.to_string(),
        };
        self.set_aside(path, &problem)?;
        Ok(None)
    }

    fn set_aside(&self, path: &Path, problem: &str) -> Result<(), StoreError> {
        let dir = self.settings.damaged();
        disk::private_dir(&dir).map_err(StoreError::io("make directory", &dir))?;
        let place = dir.join(file_name(path).unwrap_or("record"));
        // A sandbox's record is named after its kind only: its directory tells which.
        let place = match path.parent().and_then(file_name) {
            Some(parent) if parent != "containers" => dir.join(format!("{parent}.json")),
            _ => place,
        };
        fs::rename(path, &place).map_err(StoreError::io("set aside", path))?;
        warn!(record = %path.display(), kept = %place.display(), error = problem,
            "set aside a damaged record");
        Ok(())
    }
}

/// How long the lock on the records may still be held by what a killed daemon left.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Waits a little for a lock that is about to be free: a child that the last daemon had just cloned when it was killed
/// holds it until its execve.
fn patiently(mut file: File) -> Result<Flock<File>, File> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((held, _)) if Instant::now() >= end => return Err(held),
            Err((held, _)) => file = held,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lock(settings: &Settings) -> Result<Flock<File>, StoreError> {
    let path = settings.lock();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    let mut lock = patiently(file).map_err(|mut file| {
        let mut pid = String::new();
        // Only to name it: whoever holds the lock may be just about to write its pid.
        file.read_to_string(&mut pid).ok();
        let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
        StoreError::Locked { root: settings.root.clone(), pid }
    })?;
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(StoreError::io("write", &path))?;
    Ok(lock)
}

fn save<T: Serialize>(path: &Path, record: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).map_err(io::Error::from).map_err(StoreError::io("encode", path))?;
    disk::write_atomic(path, &bytes, Durability::Process).map_err(StoreError::io("write", path))
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Names in a directory that are text; none if the directory is not there.
fn entries(dir: &Path) -> Result<Vec<String>, StoreError> {
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("read directory", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.map_err(StoreError::io("read directory", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Entries of a directory of ours that are named by an id; others are none of our business.
fn children<T: std::str::FromStr>(dir: &Path) -> Result<Vec<T>, StoreError> {
    Ok(entries(dir)?.iter().filter_map(|name| name.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{container, container_id, sandbox, sandbox_id};
    use super::*;

    fn store(dir: &Path) -> (Store, Settings) {
        let settings = Settings::new(dir.join("root"), dir.join("state"), "/nonexistent".into());
        (Store::open(&settings).unwrap(), settings)
    }

    fn saved(store: &Store) {
        store.make_pod(&sandbox_id('a')).unwrap();
        store.save_sandbox(&sandbox('a')).unwrap();
        store.save_container(&container('a', 'c')).unwrap();
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = store(dir.path());
        saved(&store);
        let found = store.load().unwrap();
        let [Found::Pod { sandbox: s, containers }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((&**s, &containers[..]), (&sandbox('a'), &[container('a', 'c')][..]));
    }

    #[test]
    fn a_second_daemon_learns_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, settings) = store(dir.path());
        let error = Store::open(&settings).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_its_sandbox_a_ruin() {
        let dir = tempfile::tempdir().unwrap();
        let (store, settings) = store(dir.path());
        saved(&store);
        fs::write(settings.sandbox_record(&sandbox_id('a')), b"{\"version\":1,").unwrap();
        assert!(matches!(&store.load().unwrap()[..], [Found::Ruin(id)] if *id == sandbox_id('a')));
        assert!(settings.damaged().join(format!("{}.json", sandbox_id('a'))).exists());
    }

    #[test]
    fn a_damaged_container_leaves_the_sandbox_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, settings) = store(dir.path());
        saved(&store);
        let path = settings.container_record(&sandbox_id('a'), &container_id('c'));
        fs::write(&path, serde_json::to_vec(&container('a', 'd')).unwrap()).unwrap();
        assert!(matches!(&store.load().unwrap()[..], [Found::Pod { containers, .. }] if containers.is_empty()));
        assert!(settings.damaged().join(file_name(&path).unwrap()).exists());
    }

    #[test]
    fn a_damaged_container_is_restored_from_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (store, settings) = store(dir.path());
        saved(&store);
        disk::private_dir(&settings.container(&container_id('c'))).unwrap();
        store.save_copy(&container('a', 'c')).unwrap();
        let path = settings.container_record(&sandbox_id('a'), &container_id('c'));
        for _ in 0..2 {
            fs::write(&path, b"{").unwrap();
            let found = store.load().unwrap();
            let [Found::Pod { containers, .. }] = &found[..] else { panic!("{found:?}") };
            assert_eq!(containers[0].config, container('a', 'c').config);
            assert_eq!(containers[0].state, ContainerState::Created { pid: 0 });
            assert!(!store.is_lost(container_id('c').as_str()));
        }
        fs::write(&path, b"{").unwrap();
        fs::write(settings.container_copy(&container_id('c')), b"{").unwrap();
        assert!(matches!(&store.load().unwrap()[..], [Found::Pod { containers, .. }] if containers.is_empty()));
        assert!(store.is_lost(container_id('c').as_str()));
    }

    #[test]
    fn a_record_of_a_later_version_stops_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (store, settings) = store(dir.path());
        saved(&store);
        let path = settings.sandbox_record(&sandbox_id('a'));
        fs::write(&path, b"{\"version\":2}").unwrap();
        assert!(matches!(store.load(), Err(StoreError::Newer { version: 2, .. })));
        assert!(path.exists());
    }

    #[test]
    fn directories_without_a_record_are_ruins_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, settings) = store(dir.path());
        fs::create_dir(settings.run(&sandbox_id('b'))).unwrap();
        fs::create_dir(settings.pods().join("lost+found")).unwrap();
        fs::create_dir(settings.containers().join("lost+found")).unwrap();
        fs::create_dir_all(settings.container(&container_id('d')).join("upper/x")).unwrap();
        assert!(matches!(&store.load().unwrap()[..], [Found::Ruin(id)] if *id == sandbox_id('b')));
        store.sweep_containers(|_| false).unwrap();
        assert!(!settings.container(&container_id('d')).exists());
        assert!(settings.containers().join("lost+found").exists());
    }

    #[test]
    fn erasing_a_sandbox_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, settings) = store(dir.path());
        saved(&store);
        fs::create_dir_all(settings.container(&container_id('c')).join("upper")).unwrap();
        fs::create_dir_all(settings.exits(&sandbox_id('a'))).unwrap();
        for _ in 0..2 {
            store.erase_sandbox(&sandbox_id('a')).unwrap();
        }
        assert!(store.load().unwrap().is_empty());
        assert!(!settings.container(&container_id('c')).exists());
    }
}
