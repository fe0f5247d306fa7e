//! Images: references, archives, layers, and the store that keeps them.
//!
//! Owns `<root>/layers` and `<root>/images`:
//!
//! ```text
//! layers/<diff ID>/fs           a layer's files, shared by every image that has the layer
//! layers/<diff ID>/layer.json   what it is and occupies
//! layers/<diff ID>/files.zst    its files with their hashes, to find damage
//! images/<image ID>.json        an image: names, manifest, configuration, its layers
//! ```
//!
//! A layer's directory is named by the digits of its diff ID; the rare layer that depends on the layers below it, by
//! those of its chain ID. What is being made is called `tmp-…` and becomes visible by one rename, after `syncfs`; so a
//! power cut leaves an image whole or absent. Compressed blobs are not kept.
//!
//! Never: follows a link of an archive, believes a size, name or digest before it was checked, or lets an image choose
//! anything on the host. Lookups are answered from memory. All methods that change something block and belong on a
//! blocking thread.
//!
//! Follows the OCI image specification 1.1 (layouts, manifests, layers) and the archives of `docker save`.

mod archive;
mod config;
mod error;
mod import;
mod layers;
mod limits;
mod manifest;
mod pull;
mod record;
mod reference;
pub mod registry;
mod stack;
mod stage;
mod store;
#[cfg(test)]
mod tests;
mod unpack;
mod verify;

pub use config::ImageConfig;
pub use error::{ImageError, StoreError, UnpackError};
pub use limits::Limits;
pub use pull::{LayerProgress, LayerState, Phase, Progress, PullError, Puller, Pulling};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    Blob, Credentials, RawManifest, RegistryClient, RegistryError, RegistryErrorKind, RegistrySettings, Repository,
    Resolved,
};
pub use store::{Hold, Image, Store, Usage};
pub use verify::{Verified, VerifiedLayer};
