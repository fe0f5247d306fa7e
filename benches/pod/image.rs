//! The images that all daemons run: fixtures made here, or archives given.

#[path = "../../rootfs-fixtures/fixtures/mod.rs"]
mod fixtures;

use std::path::{Path, PathBuf};

use crate::{Args, Result};

/// An archive and what the image in it is called.
#[derive(Debug)]
pub struct Image {
    pub path: PathBuf,
    pub name: String,
}

#[derive(Debug)]
pub struct Images {
    pub busybox: Image,
    /// What containerd runs in every sandbox.
    pub pause: Image,
}

/// Makes both images below `dir`, except for an archive that was given.
pub fn prepare(args: &Args, dir: &Path) -> Result<Images> {
    let image = |given: &Option<PathBuf>, name: &str| -> Result<Image> {
        let fixture = fixtures::catalogue().into_iter().find(|image| image.name == name);
        let reference = fixture.and_then(|image| image.references.first().copied());
        let path = match given {
            Some(archive) => archive.clone(),
            None => fixtures::write(dir, &[name])?.remove(0),
        };
        Ok(Image { path, name: reference.ok_or("the fixtures lack an image")?.to_owned() })
    };
    Ok(Images { busybox: image(&args.busybox, "busybox")?, pause: image(&args.pause, "pause")? })
}
