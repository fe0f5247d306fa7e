//! Who may change what decides which programs run as root.
//!
//! Whoever writes a configuration or a plugin is root on this machine in effect. What *everybody* may write is refused.
//! A file or directory that belongs to another user only gets a warning: the usual archive of plugins, unpacked as root,
//! leaves its makers' user id on `/opt/cni/bin`, and some installers give both directories to a user of their own.

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::warn;

/// What was warned of already.
#[derive(Debug, Default)]
pub(super) struct Trust {
    warned: Mutex<HashSet<PathBuf>>,
}

impl Trust {
    /// Whether everybody can write it; warns, once a path, if another user can.
    pub(super) fn is_everybodys(&self, path: &Path, meta: &Metadata) -> bool {
        let everybody = meta.mode() & 0o002 != 0;
        let another = meta.uid() != 0 || (meta.mode() & 0o020 != 0 && meta.gid() != 0);
        if another && !everybody {
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.len() < 1000 && warned.insert(path.to_owned()) {
                let path = path.display();
                warn!(%path, uid = meta.uid(), "a user other than root can change what CNI runs as root: chown root it");
            }
        }
        everybody
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_what_everybody_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::default();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        for (mode, everybodys) in [(0o644, false), (0o600, false), (0o666, true), (0o664, false), (0o602, true)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(trust.is_everybodys(&path, &path.metadata().unwrap()), everybodys, "{mode:o}");
        }
        let tmp = Path::new("/tmp");
        assert!(trust.is_everybodys(tmp, &tmp.metadata().unwrap()), "a sticky directory is everybody's too");
    }
}
