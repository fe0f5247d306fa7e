//! The registry client: manifests and blobs from OCI distribution and Docker v2 registries.
//!
//! [`RegistryClient`] lives as long as the daemon and holds next to nothing: tokens that are still good, and the
//! system's certificate authorities once a pull needed them. [`Repository`] lives for one pull: the hosts that
//! `hosts.toml` names for the reference, and their connections. [`Blob`] is one transfer.
//!
//! ```text
//! repository, blob   what is asked for: manifests by tag and digest, blobs by pieces, resumed
//! plan               which host next, how often, after what pause
//! token, challenge   401 → Basic, or a token from the realm; tokens by host, repository and credentials
//! peer               one host: requests, redirects, bounds on answers
//! connect, tls       TCP, proxies, TLS, addresses that are off limits
//! hosts, credentials hosts.toml; whose credentials go where
//! ```
//!
//! Never: sends credentials to another host than theirs (see [`Credentials`]), goes from TLS to plain HTTP because a
//! registry says so, reads more of an answer than its bound, or waits without a deadline. A document is given out after
//! its digest was verified; blobs are hashed by whoever reads them, as that is where they are unpacked.
//!
//! Follows the OCI distribution specification 1.1, Docker's token authentication, and containerd's `hosts.toml`.

mod blob;
mod challenge;
mod connect;
mod credentials;
mod error;
mod hosts;
mod peer;
mod plan;
mod repository;
#[cfg(test)]
mod tests;
mod tls;
mod token;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use blob::Blob;
pub use credentials::Credentials;
pub use error::{RegistryError, RegistryErrorKind};
pub use repository::{RawManifest, Repository, Resolved};

use crate::image::reference::Reference;
use crate::image::registry::connect::Proxies;
use crate::image::registry::peer::Peer;
use crate::image::registry::repository::Endpoint;
use crate::image::registry::tls::Roots;
use crate::image::registry::token::{Gate, Tokens};

/// What a client is told.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// Where the directories of `hosts.toml` are, one a registry.
    pub config_dir: PathBuf,
    /// How long an answer or a transfer may stand still before it is dropped and tried again.
    pub progress_timeout: Duration,
    /// Bytes of one manifest or index.
    pub manifest_bytes: u64,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            config_dir: PathBuf::from("/etc/aril/certs.d"),
            progress_timeout: Duration::from_secs(60),
            manifest_bytes: crate::image::Limits::default().manifest_bytes,
        }
    }
}

/// The way to all registries. Cheap to clone; reads, connects and loads nothing before the first pull.
#[derive(Debug, Clone)]
pub struct RegistryClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: RegistrySettings,
    tokens: Arc<Tokens>,
    roots: Arc<Roots>,
    proxies: OnceLock<Arc<Proxies>>,
}

impl RegistryClient {
    /// A client for the daemon's life.
    #[must_use]
    pub fn new(settings: RegistrySettings) -> Self {
        let (tokens, roots, proxies) = (Arc::default(), Arc::default(), OnceLock::new());
        Self(Arc::new(Shared { settings, tokens, roots, proxies }))
    }

    /// A client that uses these proxies instead of those in the environment.
    #[cfg(test)]
    fn with_proxies(settings: RegistrySettings, proxies: Proxies) -> Self {
        let client = Self::new(settings);
        client.0.proxies.set(Arc::new(proxies)).expect("nothing was opened yet");
        client
    }

    /// Prepares a pull: reads which hosts serve the reference. Connects to none of them yet.
    ///
    /// # Errors
    /// Of kind `Config`, if the registry's `hosts.toml` cannot be read.
    pub async fn open(&self, reference: &Reference, credentials: &Credentials) -> Result<Repository, RegistryError> {
        let shared = &self.0;
        let registry = reference.registry().to_owned();
        let directory = shared.settings.config_dir.clone();
        let read = tokio::task::spawn_blocking(move || hosts::load(&directory, &registry)).await;
        let hosts =
            read.map_err(|e| RegistryError::new(RegistryErrorKind::Config, format!("read hosts.toml: {e}")))??;
        let proxies = shared.proxies.get_or_init(|| Arc::new(Proxies::from_env()));
        let endpoint = |host: hosts::Host| {
            let proof = credentials.for_endpoint(reference.registry(), &host.authority);
            let gate = Gate::new(&host.authority, reference.repository(), proof, Arc::clone(&shared.tokens));
            let patience = shared.settings.progress_timeout;
            let peer = Peer::new(host, Arc::clone(&shared.roots), Arc::clone(proxies), patience);
            Arc::new(Endpoint::new(peer, gate))
        };
        let endpoints = hosts.into_iter().map(endpoint).collect();
        Ok(Repository::new(reference.clone(), endpoints, shared.settings.clone()))
    }
}
