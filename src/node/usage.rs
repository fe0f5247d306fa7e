//! What images and containers occupy, and who uses which image: for people who look for space.
//!
//! What a container wrote is counted by walking its writable layer, so this is nothing for every second; kubelet's
//! figures come from the store's books and from what [`super::stats`] counted before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Node;
use super::record::ContainerRecord;
use super::stats::occupied;
use crate::id::{ContainerId, Digest};
use crate::image::Image;

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
            let written_bytes = occupied(&self.settings.container(&record.id).join("upper")).bytes;
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

#[cfg(test)]
mod tests {
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
}
