//! A layer being made: a directory `tmp-…` beside the finished ones.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::unistd::syncfs;

use super::error::StoreError;
use super::record::{Dependence, LayerRecord};
use super::store::lock;
use super::unpack::{self, Contents};
use crate::id::Digest;

/// What the names of unfinished things start with.
pub(super) const PREFIX: &str = "tmp-";

/// The list of a layer's files, beside them.
pub(super) const FILES: &str = "files.zst";

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A directory that is removed with all in it unless it is committed.
#[derive(Debug)]
pub(super) struct Stage {
    path: PathBuf,
    committed: bool,
}

/// A fresh name for something unfinished in `dir`.
pub(super) fn temporary(dir: &Path) -> PathBuf {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{PREFIX}{}-{serial}", std::process::id()))
}

impl Stage {
    /// Makes an empty stage in the directory of layers.
    pub fn new(layers_dir: &Path) -> Result<Self, StoreError> {
        let path = temporary(layers_dir);
        let made = fs::DirBuilder::new().mode(0o755).create(&path);
        made.map_err(|e| StoreError::io("make directory", &path, e))?;
        let stage = Self { path, committed: false };
        let fs_path = stage.fs_path();
        // What a root directory is where the layer does not say; the umask must not have a say either.
        fs::create_dir(&fs_path)
            .and_then(|()| fs::set_permissions(&fs_path, fs::Permissions::from_mode(0o755)))
            .map_err(|e| StoreError::io("make directory", &fs_path, e))?;
        Ok(stage)
    }

    /// Where the layer's files go.
    pub fn fs_path(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Opens where the layer's files go.
    pub fn open_fs(&self) -> Result<OwnedFd, StoreError> {
        open(&self.fs_path())
    }

    /// Measures the layer and writes down what it is, and the list of its files. Nothing is synced.
    pub fn describe(
        &self,
        diff_id: &Digest,
        dependence: Dependence,
        contents: Contents,
    ) -> Result<LayerRecord, StoreError> {
        let list = self.path.join(FILES);
        let occupied = unpack::write_files(self.open_fs()?, contents, &list)
            .map_err(|e| StoreError::io("write the list of files", list, e))?;
        let record = LayerRecord::new(diff_id.clone(), occupied, dependence);
        let path = self.path.join("layer.json");
        record.write(&path).map_err(|e| StoreError::io("write", path, e))?;
        Ok(record)
    }

    /// Where all of it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the layer visible as `path`, which must not exist. After an error it is as it was.
    pub fn commit(&mut self, path: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, path).map_err(|e| StoreError::io("rename to", path, e))?;
        self.committed = true;
        Ok(())
    }
}

/// Tells whether what is written from now on came to the disk.
///
/// The kernel writes back when it likes, and tells of a failure once to each open file that is older than it: a file
/// opened after somebody else was told learns nothing. So one is opened before the first byte, and remembers.
#[derive(Debug)]
pub(super) struct WriteBack {
    dir: PathBuf,
    file: File,
    /// Syncing again would succeed, though the bytes are gone.
    failed: Mutex<Option<Errno>>,
}

impl WriteBack {
    /// Begins to watch the file system of a directory.
    pub fn watch(dir: &Path) -> Result<Arc<Self>, StoreError> {
        let file = File::open(dir).map_err(|e| StoreError::io("open", dir, e))?;
        Ok(Arc::new(Self { dir: dir.to_owned(), file, failed: Mutex::default() }))
    }

    /// Writes all to the disk; an error once, an error ever after. Blocks.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mut failed = lock(&self.failed);
        if failed.is_none() {
            *failed = syncfs(&self.file).err();
        }
        failed.map_or(Ok(()), |errno| Err(StoreError::io("write to the disk what is below", &self.dir, errno.into())))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "half-made layer not removed");
        }
    }
}

/// Opens a directory of the store.
pub(super) fn open(path: &Path) -> Result<OwnedFd, StoreError> {
    File::open(path).map(Into::into).map_err(|e| StoreError::io("open", path, e))
}

/// Removes a directory of the store with all in it.
pub(super) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(StoreError::io("remove", path, io::ErrorKind::InvalidInput.into()));
    };
    let name = CString::new(name.as_bytes()).map_err(|e| StoreError::io("remove", path, e.into()))?;
    let parent = open(parent)?;
    unpack::remove(parent.as_fd(), &name, &mut 0).map_err(|e| StoreError::io("remove", path, e.into()))
}
