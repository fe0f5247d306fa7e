//! One repository for the time of one pull: what a tag means, manifests, and the way to its blobs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::Uri;
use http::{Method, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::id::Digest;
use crate::image::reference::Reference;
use crate::image::registry::RegistrySettings;
use crate::image::registry::blob::Blob;
use crate::image::registry::error::{RegistryError, RegistryErrorKind as Kind, clean};
use crate::image::registry::peer::{Answer, Ask, Follow, Peer, content_length};
use crate::image::registry::plan::Plan;
use crate::image::registry::token::{Gate, is_challenge};

/// The documents we can read, the newest kinds first.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One host that may be asked.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub peer: Peer,
    gate: Gate,
    /// Found out of order during this pull: asked last from then on.
    pub dead: AtomicBool,
    /// Found to send whole blobs where parts are asked for.
    pub no_ranges: AtomicBool,
}

impl Endpoint {
    pub fn new(peer: Peer, gate: Gate) -> Self {
        Self { peer, gate, dead: AtomicBool::new(false), no_ranges: AtomicBool::new(false) }
    }
}

/// A repository at its registry and the mirrors of it, with the credentials of one pull.
///
/// Cheap to clone. Connections, and what was found out about hosts, last as long as the last clone.
#[derive(Debug, Clone)]
pub struct Repository(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reference: Reference,
    endpoints: Vec<Arc<Endpoint>>,
    settings: RegistrySettings,
    deliveries: Mutex<Deliveries>,
}

/// Which hosts sent bytes of a blob, and of which of them it is not taken any more.
#[derive(Debug, Default)]
struct Deliveries(HashMap<Digest, Vec<Delivery>>);

#[derive(Debug)]
struct Delivery {
    endpoint: Arc<Endpoint>,
    is_bad: bool,
}

impl Delivery {
    /// Whether this host was found to send wrong bytes.
    fn is_bad_of(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.is_bad && Arc::ptr_eq(&self.endpoint, endpoint)
    }
}

impl Deliveries {
    fn of(&self, digest: &Digest) -> &[Delivery] {
        self.0.get(digest).map_or(&[], Vec::as_slice)
    }
}

/// What a tag or digest stands for at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Its media type, without parameters; empty if the registry named none that is known.
    pub media_type: String,
    /// Its size in bytes, if the registry said so. Not verified.
    pub size: Option<u64>,
}

/// A manifest or index as the registry sent it, its digest verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// The document, byte for byte.
    pub bytes: Bytes,
    /// Its media type, without parameters; empty if the registry named none that is known.
    pub media_type: String,
    /// The SHA-256 of `bytes`.
    pub digest: Digest,
}

/// What a host must be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Content by its digest, which anybody may deliver.
    Content,
    /// The meaning of a tag, for which the host's word is taken.
    Meaning,
}

impl Repository {
    pub(super) fn new(reference: Reference, endpoints: Vec<Arc<Endpoint>>, settings: RegistrySettings) -> Self {
        Self(Arc::new(Inner { reference, endpoints, settings, deliveries: Mutex::default() }))
    }

    /// Asks what the reference's digest or tag stands for, without fetching it: one HEAD request, or a GET where the
    /// registry has no HEAD.
    ///
    /// With credentials it also says whether they are good for this repository.
    ///
    /// # Errors
    /// [`RegistryError`] of the last host asked.
    pub async fn resolve(&self) -> Result<Resolved, RegistryError> {
        let reference = &self.0.reference;
        let what = format!("the manifest of {}", self.short());
        let mut plan = self.plan(self.need())?;
        loop {
            let endpoint = plan.endpoint();
            match self.head(&endpoint, &what).await {
                Ok(Some(resolved)) => return Ok(resolved),
                Ok(None) => break,
                Err(e) => plan.failed(e).await?,
            }
        }
        tracing::debug!(image = %reference, "registry answered HEAD without a digest, fetching the manifest");
        let RawManifest { bytes, media_type, digest } = self.manifest().await?;
        Ok(Resolved { digest, media_type, size: Some(bytes.len() as u64) })
    }

    async fn head(&self, endpoint: &Endpoint, what: &str) -> Result<Option<Resolved>, RegistryError> {
        let uri = self.manifest_uri(endpoint, &self.target())?;
        let answer = self.request(endpoint, Method::HEAD, uri, &accept(), what).await?;
        let status = answer.response.status();
        if matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED | StatusCode::BAD_REQUEST) {
            return Ok(None);
        }
        if status != StatusCode::OK {
            return Err(endpoint.peer.refusal(answer, what).await);
        }
        let headers = answer.response.headers();
        let Some(digest) = headers.get(CONTENT_DIGEST).and_then(|v| v.to_str().ok()?.parse::<Digest>().ok()) else {
            return Ok(None);
        };
        if let Some(wanted) = self.0.reference.digest().filter(|wanted| **wanted != digest) {
            return Err(mismatch(&answer.from, what, &digest, wanted));
        }
        Ok(Some(Resolved { digest, media_type: media_type(headers), size: content_length(headers) }))
    }

    /// Fetches the manifest or index that the reference's digest, or else its tag, stands for.
    ///
    /// # Errors
    /// [`RegistryError`] of the last host asked; of kind `Limit` for more bytes than
    /// [`RegistrySettings::manifest_bytes`], `Mismatch` for other bytes than the digest promised.
    pub async fn manifest(&self) -> Result<RawManifest, RegistryError> {
        let what = format!("the manifest of {}", self.short());
        self.document(&self.target(), self.0.reference.digest(), None, self.need(), &what).await
    }

    /// Fetches a document that another one names by digest and size: a manifest of an index.
    ///
    /// # Errors
    /// As [`Self::manifest`]; also of kind `Mismatch` if the size is another.
    pub async fn manifest_at(&self, digest: &Digest, size: u64) -> Result<RawManifest, RegistryError> {
        let what = format!("the manifest {digest} of {}", self.0.reference.repository());
        self.document(digest.as_str(), Some(digest), Some(size), Need::Content, &what).await
    }

    async fn document(
        &self,
        target: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
        need: Need,
        what: &str,
    ) -> Result<RawManifest, RegistryError> {
        let most = self.0.settings.manifest_bytes;
        if size.is_some_and(|size| size > most) {
            let text = format!("{what} has more than {most} bytes, the most that is accepted");
            return Err(RegistryError::new(Kind::Limit, text));
        }
        let mut plan = self.plan(need)?;
        loop {
            let endpoint = plan.endpoint();
            match self.document_at(&endpoint, target, digest, size, what).await {
                Ok(document) => return Ok(document),
                Err(e) => plan.failed(e).await?,
            }
        }
    }

    async fn document_at(
        &self,
        endpoint: &Endpoint,
        target: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
        what: &str,
    ) -> Result<RawManifest, RegistryError> {
        let uri = self.manifest_uri(endpoint, target)?;
        let answer = self.request(endpoint, Method::GET, uri, &accept(), what).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(endpoint.peer.refusal(answer, what).await);
        }
        let headers = answer.response.headers();
        let media_type = media_type(headers);
        let promised = headers.get(CONTENT_DIGEST).and_then(|v| v.to_str().ok()?.parse::<Digest>().ok());
        let from = answer.from.clone();
        let bytes = endpoint.peer.body(answer, what, self.0.settings.manifest_bytes).await?;
        let actual = Digest::sha256(Sha256::digest(&bytes).into());
        // The registry's own word about a tag's manifest counts too: it finds transfers that were cut or changed.
        if let Some(wanted) = digest.or(promised.as_ref()).filter(|wanted| **wanted != actual) {
            return Err(mismatch(&from, what, &actual, wanted));
        }
        if size.is_some_and(|size| size != bytes.len() as u64) {
            let text = format!("{from} sent {} bytes as {what}, not {}", bytes.len(), size.unwrap_or_default());
            return Err(RegistryError::new(Kind::Mismatch, text));
        }
        Ok(RawManifest { bytes, media_type, digest: actual })
    }

    /// A blob, or the part of it in `range`; `size` is that of the whole, by its descriptor. Sends nothing yet.
    #[must_use]
    pub fn blob(&self, digest: &Digest, size: u64, range: Option<Range<u64>>) -> Blob {
        Blob::new(self.clone(), digest.clone(), size, range)
    }

    /// Fetches a whole blob that is small, like an image's configuration; digest and size are verified.
    ///
    /// # Errors
    /// [`RegistryError`]; of kind `Limit` if `size` is above `most`, `Mismatch` for other bytes than promised.
    pub async fn small_blob(&self, digest: &Digest, size: u64, most: u64) -> Result<Bytes, RegistryError> {
        let what = self.blob_name(digest);
        if size > most {
            let text = format!("{what} has {size} bytes, more than the {most} that are accepted");
            return Err(RegistryError::new(Kind::Limit, text));
        }
        loop {
            let mut blob = self.blob(digest, size, None);
            let mut all = Vec::new();
            while let Some(chunk) = blob.chunk().await? {
                all.extend_from_slice(&chunk);
            }
            let actual = Digest::sha256(Sha256::digest(&all).into());
            if actual == *digest {
                return Ok(all.into());
            }
            if !self.distrust(digest) {
                return Err(mismatch(self.0.reference.registry(), &what, &actual, digest));
            }
        }
    }

    /// Takes the blob no more from the hosts that have sent bytes of it, which were not those of its digest. Returns
    /// whether there is another host to ask.
    #[must_use]
    pub fn distrust(&self, digest: &Digest) -> bool {
        let mut deliveries = self.deliveries();
        for delivery in deliveries.0.get_mut(digest).into_iter().flatten() {
            let host = &delivery.endpoint.peer.host.authority;
            tracing::warn!(host, blob = %digest, "registry host sent other bytes than those of the digest");
            delivery.is_bad = true;
        }
        let bad = deliveries.of(digest);
        self.0.endpoints.iter().filter(|e| e.peer.host.pull).any(|e| !bad.iter().any(|bad| bad.is_bad_of(e)))
    }

    /// Remembers who sends bytes of a blob.
    pub(super) fn delivers(&self, endpoint: &Arc<Endpoint>, digest: &Digest) {
        let mut deliveries = self.deliveries();
        let by_now = deliveries.0.entry(digest.clone()).or_default();
        if !by_now.iter().any(|delivery| Arc::ptr_eq(&delivery.endpoint, endpoint)) {
            by_now.push(Delivery { endpoint: Arc::clone(endpoint), is_bad: false });
        }
    }

    fn deliveries(&self) -> MutexGuard<'_, Deliveries> {
        self.0.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reference this was opened for.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.0.reference
    }

    pub(super) fn settings(&self) -> &RegistrySettings {
        &self.0.settings
    }

    pub(super) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}", self.0.reference.repository())
    }

    /// The hosts that a blob may come from.
    pub(super) fn blob_plan(&self, digest: &Digest) -> Result<Plan, RegistryError> {
        let bad: Vec<Arc<Endpoint>> = {
            let deliveries = self.deliveries();
            deliveries.of(digest).iter().filter(|d| d.is_bad).map(|d| Arc::clone(&d.endpoint)).collect()
        };
        let able = |e: &&Arc<Endpoint>| e.peer.host.pull && !bad.iter().any(|bad| Arc::ptr_eq(bad, e));
        match Plan::new(self.0.endpoints.iter().filter(able).cloned()) {
            Some(plan) => Ok(plan),
            None if bad.is_empty() => self.plan(Need::Content),
            None => {
                let what = self.blob_name(digest);
                let text = format!("every host for {} sent {what} damaged or forged", self.0.reference.registry());
                Err(RegistryError::new(Kind::Mismatch, text))
            }
        }
    }

    /// Asks one host for a blob, with credentials where it wants them.
    pub(super) async fn request_blob(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Answer, RegistryError> {
        let uri = self.uri(endpoint, &format!("blobs/{digest}"))?;
        self.request(endpoint, Method::GET, uri, headers, &self.blob_name(digest)).await
    }

    /// Sends a request; a 401 is answered once, with credentials or a new token.
    async fn request(
        &self,
        endpoint: &Endpoint,
        method: Method,
        uri: Uri,
        headers: &[(HeaderName, HeaderValue)],
        what: &str,
    ) -> Result<Answer, RegistryError> {
        let Endpoint { peer, gate, .. } = endpoint;
        let sent = gate.authorization(peer).await?;
        let ask = |authorization| Ask {
            what,
            method: method.clone(),
            uri: uri.clone(),
            headers,
            authorization,
            form: None,
            follow: Follow::Everywhere,
        };
        let answer = peer.send(ask(sent.as_ref())).await?;
        // A challenge of a host that a redirect led to is none of the registry's.
        let own = uri.authority().is_some_and(|a| a.as_str() == answer.from);
        if !own || !is_challenge(answer.response.status(), answer.response.headers()) {
            return Ok(answer);
        }
        match gate.answer(peer, &answer, sent.as_ref()).await? {
            Some(better) => peer.send(ask(Some(&better))).await,
            None => Ok(answer),
        }
    }

    fn plan(&self, need: Need) -> Result<Plan, RegistryError> {
        let able = |e: &&Arc<Endpoint>| e.peer.host.pull && (need == Need::Content || e.peer.host.resolve);
        Plan::new(self.0.endpoints.iter().filter(able).cloned()).ok_or_else(|| {
            let (registry, directory) = (self.0.reference.registry(), self.0.settings.config_dir.display());
            let work = if need == Need::Meaning { "say what a tag means" } else { "be pulled from" };
            let text = format!("no host for {registry} may {work}; see its hosts.toml in {directory}");
            RegistryError::new(Kind::Config, text)
        })
    }

    fn need(&self) -> Need {
        if self.0.reference.digest().is_some() { Need::Content } else { Need::Meaning }
    }

    /// What the registry is asked for: the digest, which wins over the tag.
    fn target(&self) -> String {
        let reference = &self.0.reference;
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        }
    }

    fn short(&self) -> String {
        let target = self.target();
        let separator = if target.contains(':') { '@' } else { ':' };
        format!("{}{separator}{target}", self.0.reference.repository())
    }

    fn manifest_uri(&self, endpoint: &Endpoint, target: &str) -> Result<Uri, RegistryError> {
        self.uri(endpoint, &format!("manifests/{target}"))
    }

    fn uri(&self, endpoint: &Endpoint, rest: &str) -> Result<Uri, RegistryError> {
        let reference = &self.0.reference;
        endpoint.peer.uri(reference.registry(), reference.repository(), rest)
    }
}

fn accept() -> [(HeaderName, HeaderValue); 1] {
    [(header::ACCEPT, HeaderValue::from_static(ACCEPT))]
}

/// The media type of an answer if it is one we asked for; anything else says nothing about the document.
fn media_type(headers: &header::HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let bare = text.split(';').next().unwrap_or_default().trim();
    if ACCEPT.split(", ").any(|known| known == bare) { bare.to_owned() } else { String::new() }
}

fn mismatch(from: &str, what: &str, actual: &Digest, wanted: &Digest) -> RegistryError {
    let text = format!("{} sent {what} with digest {actual}, not {wanted}: it is damaged or forged", clean(from));
    RegistryError::new(Kind::Mismatch, text)
}
