//! What images and containers occupy, and who uses which image: for people who look for space.
//!
//! What a container wrote is counted by walking its writable layer, so this is nothing for every second; kubelet's
//! figures come from the store's books.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::Node;
use super::record::ContainerRecord;
use crate::id::{ContainerId, Digest};
use crate::image::Image;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Directories inside each other that are counted; each takes a descriptor.
const DEPTH: usize = 200;

/// One image's part.
#[derive(Debug)]
pub struct ImageUsage {
    /// The image.
    pub image: Arc<Image>,
    /// Bytes of layers that no other image has.
    pub own_bytes: u64,
    /// Containers that were made of it or have it as a volume.
    pub containers: Vec<ContainerId>,
}

/// One container's part.
#[derive(Debug)]
pub struct ContainerUsage {
    /// The container.
    pub record: Arc<ContainerRecord>,
    /// What it wrote, as `du` counts it.
    pub written_bytes: u64,
}

impl Node {
    /// Containers, running or not, that were made of an image or have it as a volume.
    #[must_use]
    pub fn containers_of(&self, image: &Digest) -> Vec<Arc<ContainerRecord>> {
        self.containers().into_iter().filter(|c| uses(c, image)).collect()
    }

    /// What every image and container occupies. Blocks: walks what containers wrote.
    #[must_use]
    pub fn disk_usage(&self) -> (Vec<ImageUsage>, Vec<ContainerUsage>) {
        let containers = self.containers();
        let images = image_usage(&self.images.list(), &containers, |key| self.images.layer_bytes(key));
        let written = |record: Arc<ContainerRecord>| {
            let written_bytes = written(&self.settings.container(&record.id).join("upper"));
            ContainerUsage { record, written_bytes }
        };
        (images, containers.into_iter().map(written).collect())
    }
}

/// Whether a container was made of an image or has it as a volume.
fn uses(record: &ContainerRecord, id: &Digest) -> bool {
    record.image_id == *id || record.image_volumes.iter().any(|v| v.image_id == *id)
}

fn image_usage(
    images: &[Arc<Image>],
    containers: &[Arc<ContainerRecord>],
    bytes: impl Fn(&str) -> u64,
) -> Vec<ImageUsage> {
    let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
    for image in images {
        // An image may have one layer twice.
        for key in image.layers.iter().collect::<BTreeSet<_>>() {
            *owners.entry(key).or_default() += 1;
        }
    }
    let usage = |image: &Arc<Image>| {
        let own: BTreeSet<&String> = image.layers.iter().filter(|key| owners.get(key.as_str()) == Some(&1)).collect();
        ImageUsage {
            image: Arc::clone(image),
            own_bytes: own.into_iter().map(|key| bytes(key)).sum(),
            containers: containers.iter().filter(|c| uses(c, &image.id)).map(|c| c.id.clone()).collect(),
        }
    };
    images.iter().map(usage).collect()
}

/// Bytes below a directory that a container may be writing in: no link is followed, what vanishes is passed over.
fn written(top: &Path) -> u64 {
    let Ok(top) = open(top, DIRECTORY, Mode::empty()) else { return 0 };
    let mut linked = BTreeSet::new();
    let mut bytes = 0;
    let entered = |dir: OwnedFd| {
        let names = names(&dir);
        (dir, names)
    };
    let mut open_dirs = vec![entered(top)];
    while let Some((dir, names)) = open_dirs.last_mut() {
        let Some(name) = names.pop() else {
            open_dirs.pop();
            continue;
        };
        let Ok(stat) = fstatat(&*dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let is_dir = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        if is_dir || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        let sub = (is_dir && open_dirs.len() < DEPTH).then(|| {
            let (dir, _) = open_dirs.last()?;
            openat(dir, name.as_c_str(), DIRECTORY, Mode::empty()).ok()
        });
        if let Some(sub) = sub.flatten() {
            open_dirs.push(entered(sub));
        }
    }
    bytes
}

fn names(dir: &OwnedFd) -> Vec<CString> {
    let Ok(again) = openat(dir, c".", DIRECTORY, Mode::empty()) else { return Vec::new() };
    let Ok(mut dir) = Dir::from_fd(again) else { return Vec::new() };
    let names = dir.iter().filter_map(|entry| Some(entry.ok()?.file_name().to_owned()));
    names.filter(|name| name.as_c_str() != c"." && name.as_c_str() != c"..").collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::record::tests::container;
    use super::*;
    use crate::node::record::ImageVolume;

    fn image(digit: u8, layers: &[&str]) -> Arc<Image> {
        Arc::new(Image {
            id: Digest::sha256([digit; 32]),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size_bytes: 0,
            layers: layers.iter().map(|&l| l.to_owned()).collect(),
            config: crate::image::ImageConfig::default(),
        })
    }

    #[test]
    fn shared_layers_are_nobodys_own() {
        let images = [image(1, &["top1", "base"]), image(2, &["top2", "top2", "base"]), image(3, &["alone"])];
        let mut user = container('a', 'c');
        user.image_volumes = vec![ImageVolume { mount: 0, image_id: Digest::sha256([3; 32]), layers: vec![] }];
        let usage = image_usage(&images, &[Arc::new(user)], |key| key.len() as u64);
        assert_eq!(usage.iter().map(|u| u.own_bytes).collect::<Vec<_>>(), [4, 4, 5]);
        // Made of the first, and with the third as a volume.
        assert_eq!(usage.iter().map(|u| u.containers.len()).collect::<Vec<_>>(), [1, 0, 1]);
    }

    #[test]
    fn written_files_are_counted_once_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("upper");
        fs::create_dir_all(top.join("a/b")).unwrap();
        let before = written(&top);
        fs::write(top.join("a/b/file"), vec![1; 100_000]).unwrap();
        let after = written(&top);
        assert!((100_000..200_000).contains(&(after - before)), "{before} {after}");
        fs::hard_link(top.join("a/b/file"), top.join("again")).unwrap();
        symlink("/usr", top.join("out")).unwrap();
        assert!(written(&top) - after < 10_000);
        assert_eq!(written(&dir.path().join("absent")), 0);
    }
}
