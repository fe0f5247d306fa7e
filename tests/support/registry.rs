//! A registry and a token server of our own on loopback, which misbehave when told to.
//!
//! Used by unit tests and by those against a real daemon alike, so it names nothing of either. Each server has a
//! thread of its own and ends with its handle.
//!
//! ```ignore
//! let registry = Registry::start();
//! let digest = registry.add_blob("a/b", b"…");
//! registry.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(1000));
//! assert_eq!(registry.seen("GET", "/blobs/").len(), 2);
//! ```

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// `sha256:…` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

// What a server does wrong.

/// What happens to a request instead of its answer.
#[derive(Debug, Clone)]
pub enum Misdeed {
    /// Another status, with these headers and this body.
    Status(u16, Vec<(String, String)>, String),
    /// 307 to there.
    Redirect(String),
    /// The first bytes, then nothing; the connection stays open.
    StallAfter(usize),
    /// The first bytes, then the end of the connection.
    TruncateAfter(usize),
    /// So many bytes at a time, with a pause before each.
    Trickle(usize, Duration),
    /// A body of chunks that never ends.
    Endless,
    /// One byte of the body is another.
    Garble,
    /// More bytes than there are, announced as such.
    Longer(usize),
    /// Fewer bytes than there are, announced as such.
    Shorter(usize),
    /// Another body, under the headers of the right one.
    Body(Vec<u8>),
    /// The right answer with this header added or replaced; an empty value removes it.
    Header(String, String),
    /// The whole blob, whatever range was asked for, and no word about ranges.
    NoRanges,
    /// The whole blob, whatever range was asked for, and the word that there are ranges.
    FalseRanges,
    /// A part that begins elsewhere than asked.
    WrongRange,
    /// Never an answer.
    Silence,
}

#[derive(Debug)]
struct Rule {
    method: String,
    part: String,
    left: usize,
    misdeed: Misdeed,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
    /// What was posted.
    pub body: String,
}

impl Seen {
    /// The value of a header; empty if it was not sent.
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).map(|v| v.to_str().unwrap_or_default());
        value.unwrap_or_default().to_owned()
    }
}

// Certificates.

/// A certificate with its key, in PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// A certificate authority of our own.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), certificate }
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.certificate
    }

    /// A certificate for these names and addresses, or for a client of that name.
    pub fn sign(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }
}

/// One certificate that is its own authority, as many private registries have it.
pub fn self_signed(names: &[&str]) -> Identity {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    Identity { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn acceptor(identity: &Identity, clients: Option<&str>) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}

// Tokens.

/// How a token server treats its visitors.
#[derive(Debug, Clone)]
pub struct TokenPolicy {
    /// User names with their passwords; without any, everybody gets a token.
    pub users: Vec<(String, String)>,
    /// Refresh tokens that are good.
    pub identities: Vec<String>,
    /// `expires_in`, and how long the registry takes a token. `None`: nothing is said, and they last.
    pub seconds: Option<u64>,
    /// Whether only POST is understood.
    pub post_only: bool,
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self { users: Vec::new(), identities: Vec::new(), seconds: Some(300), post_only: false }
    }
}

#[derive(Debug, Default)]
struct Issued {
    count: usize,
    /// Tokens with their scope and end.
    good: HashMap<String, (String, Option<Instant>)>,
}

/// A server that gives out tokens, and the registries' memory of them.
#[derive(Debug)]
pub struct TokenServer {
    server: Server,
    issued: Arc<Mutex<Issued>>,
}

impl TokenServer {
    pub fn start(policy: TokenPolicy) -> Self {
        Self::with_tls(policy, None)
    }

    /// One that speaks TLS.
    pub fn with_tls(policy: TokenPolicy, identity: Option<&Identity>) -> Self {
        let issued = Arc::new(Mutex::new(Issued::default()));
        let book = Arc::clone(&issued);
        let tls = identity.map(|identity| acceptor(identity, None));
        let server = Server::start(tls, move |seen| token_answer(&policy, &book, seen));
        Self { server, issued }
    }

    /// Where tokens are to be had.
    pub fn realm(&self) -> String {
        self.server.url("/token")
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.server.address.to_string()
    }

    /// How many tokens were given out.
    pub fn issued(&self) -> usize {
        lock(&self.issued).count
    }

    /// Makes all tokens given out so far worthless.
    pub fn revoke(&self) {
        lock(&self.issued).good.clear();
    }

    pub fn misbehave(&self, method: &str, part: &str, times: usize, misdeed: Misdeed) {
        self.server.misbehave(method, part, times, misdeed);
    }

    /// The requests that came, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.server.shared).seen.clone()
    }
}

fn token_answer(policy: &TokenPolicy, book: &Mutex<Issued>, seen: &Seen) -> Reply {
    let post = seen.method == "POST";
    if !seen.target.starts_with("/token") {
        return Reply::error(404, "NOT_FOUND");
    }
    if !post && policy.post_only {
        return Reply::error(405, "UNSUPPORTED");
    }
    let query = if post { seen.body.as_str() } else { seen.target.split_once('?').map_or("", |(_, query)| query) };
    let fields = decode_form(query);
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap_or_default();
    let known = |user: &str, password: &str| policy.users.iter().any(|(u, p)| u == user && p == password);
    let fine = match (post, field("grant_type").as_str()) {
        (true, "refresh_token") => policy.identities.contains(&field("refresh_token")),
        (true, "password") => known(&field("username"), &field("password")),
        (true, _) => return Reply::json(400, r#"{"error":"unsupported_grant_type"}"#.to_owned()),
        (false, _) => match basic_of(seen) {
            Some((user, password)) => known(&user, &password),
            None => policy.users.is_empty() && policy.identities.is_empty(),
        },
    };
    if !fine {
        return Reply::json(401, r#"{"details":"incorrect username or password"}"#.to_owned());
    }
    let scopes: Vec<String> = fields.into_iter().filter(|(n, _)| n == "scope").map(|(_, v)| v).collect();
    let mut book = lock(book);
    book.count += 1;
    let token = format!("token-{}", book.count);
    let until = policy.seconds.map(|s| Instant::now() + Duration::from_secs(s));
    book.good.insert(token.clone(), (scopes.join(" "), until));
    let name = if post { "access_token" } else { "token" };
    let life = policy.seconds.map(|s| format!(",\"expires_in\":{s}")).unwrap_or_default();
    Reply::json(200, format!("{{\"{name}\":\"{token}\"{life}}}"))
}

fn basic_of(seen: &Seen) -> Option<(String, String)> {
    let bytes = STANDARD.decode(seen.header("authorization").strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Fields of a query or form, decoded.
pub fn decode_form(text: &str) -> Vec<(String, String)> {
    let part = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| (part(n), part(v))).collect()
}

// The registry.

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub enum Access {
    #[default]
    Everybody,
    /// This user with this password.
    Basic(String, String),
    /// Whoever has a token of the server, which is named like this in the challenge.
    Bearer { realm: String, issued: Tokens },
    /// Whoever sends exactly this `Authorization`.
    Exactly(String),
}

/// The memory of a token server, for registries that trust it.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<Mutex<Issued>>);

impl Access {
    /// Tokens of that server.
    pub fn tokens_of(server: &TokenServer) -> Self {
        Self::Bearer { realm: server.realm(), issued: Tokens(Arc::clone(&server.issued)) }
    }
}

/// What a registry is made like.
#[derive(Debug, Default)]
pub struct Options {
    pub access: Access,
    /// TLS with this certificate.
    pub identity: Option<Identity>,
    /// Only clients with a certificate of this authority (PEM).
    pub clients: Option<String>,
}

#[derive(Debug, Default)]
struct Content {
    /// By repository and digest.
    blobs: HashMap<(String, String), Bytes>,
    /// By repository and tag or digest: media type and document.
    manifests: HashMap<(String, String), (String, Bytes)>,
}

/// A registry on a loopback port of its own.
#[derive(Debug)]
pub struct Registry {
    server: Server,
    content: Arc<Mutex<Content>>,
}

impl Registry {
    /// One that speaks plain HTTP and lets everybody in.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let content = Arc::new(Mutex::new(Content::default()));
        let held = Arc::clone(&content);
        let Options { access, identity, clients } = options;
        let tls = identity.map(|identity| acceptor(&identity, clients.as_deref()));
        let server = Server::start(tls, move |seen| registry_answer(&access, &held, seen));
        Self { server, content }
    }

    /// Host and port, as in a reference.
    pub fn host(&self) -> String {
        self.server.address.to_string()
    }

    pub fn port(&self) -> u16 {
        self.server.address.port()
    }

    /// The address of a path on it.
    pub fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// Stores a blob; its digest.
    pub fn add_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let key = (repository.to_owned(), digest.clone());
        lock(&self.content).blobs.insert(key, Bytes::copy_from_slice(bytes));
        digest
    }

    /// Stores a document under its digest and, if given, a tag; its digest.
    pub fn add_manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let document = (media_type.to_owned(), Bytes::copy_from_slice(bytes));
        let mut content = lock(&self.content);
        for name in [Some(digest.as_str()), tag].into_iter().flatten() {
            content.manifests.insert((repository.to_owned(), name.to_owned()), document.clone());
        }
        digest
    }

    /// Stores an image of a configuration and layers with their media types; the digest of its manifest.
    pub fn add_image(&self, repository: &str, tag: &str, config: &[u8], layers: &[(&str, &[u8])]) -> String {
        let descriptor = |media_type: &str, bytes: &[u8]| {
            let digest = self.add_blob(repository, bytes);
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
        };
        let layers: Vec<String> = layers.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG, config),
            layers.join(",")
        );
        self.add_manifest(repository, Some(tag), OCI_MANIFEST, manifest.as_bytes())
    }

    /// Does wrong to the next `times` requests with this method (`*`: any) whose path and query contain `part`.
    pub fn misbehave(&self, method: &str, part: &str, times: usize, misdeed: Misdeed) {
        self.server.misbehave(method, part, times, misdeed);
    }

    /// Behaves from now on.
    pub fn behave(&self) {
        lock(&self.server.shared).rules.clear();
    }

    /// The requests that came, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.server.shared).seen.clone()
    }

    /// Those with this method (`*`: any) whose path and query contain `part`.
    pub fn seen(&self, method: &str, part: &str) -> Vec<Seen> {
        let fits = |s: &Seen| (method == "*" || s.method == method) && s.target.contains(part);
        self.requests().into_iter().filter(fits).collect()
    }

    /// Forgets the requests that came.
    pub fn forget(&self) {
        lock(&self.server.shared).seen.clear();
    }
}

fn registry_answer(access: &Access, content: &Mutex<Content>, seen: &Seen) -> Reply {
    let path = seen.target.split('?').next().unwrap_or_default();
    // Whatever comes before the last `v2`: mirrors serve below paths of their own.
    let inside = path.split_once("/v2/").map_or_else(|| path.trim_start_matches('/'), |(_, rest)| rest);
    let kinds = ["/manifests/", "/blobs/"];
    let parts =
        kinds.iter().find_map(|kind| inside.split_once(kind).map(|(repository, name)| (*kind, repository, name)));
    let (kind, repository, name) = parts.unwrap_or(("", "", ""));
    if let Some(refusal) = refuse(access, repository, seen) {
        return refusal;
    }
    let content = lock(content);
    let key = (repository.to_owned(), name.to_owned());
    match kind {
        "/manifests/" => match content.manifests.get(&key) {
            Some((media_type, bytes)) => Reply::new(200, bytes.clone())
                .with("content-type", media_type)
                .with("docker-content-digest", &digest_of(bytes)),
            None => Reply::error(404, "MANIFEST_UNKNOWN"),
        },
        "/blobs/" => match content.blobs.get(&key) {
            Some(bytes) => blob_reply(bytes, &seen.header("range")),
            None => Reply::error(404, "BLOB_UNKNOWN"),
        },
        _ => Reply::json(200, "{}".to_owned()),
    }
}

fn blob_reply(bytes: &Bytes, range: &str) -> Reply {
    let size = bytes.len();
    let whole = || Reply::new(200, bytes.clone()).with("accept-ranges", "bytes");
    let reply = match range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) {
        None => whole(),
        Some((first, last)) => {
            let first: usize = first.parse().unwrap_or(0);
            let last = last.parse().unwrap_or(size).min(size.saturating_sub(1));
            if first > last {
                return Reply::error(416, "RANGE_INVALID").with("content-range", &format!("bytes */{size}"));
            }
            let part = format!("bytes {first}-{last}/{size}");
            Reply::new(206, bytes.slice(first..=last)).with("content-range", &part)
        }
    };
    Reply { whole: Some(bytes.clone()), ..reply.with("content-type", "application/octet-stream") }
}

fn refuse(access: &Access, repository: &str, seen: &Seen) -> Option<Reply> {
    let sent = seen.header("authorization");
    let no = |challenge: &str| Some(Reply::error(401, "UNAUTHORIZED").with("www-authenticate", challenge));
    match access {
        Access::Everybody => None,
        Access::Exactly(wanted) if *wanted == sent => None,
        Access::Exactly(_) => Some(Reply::error(401, "UNAUTHORIZED")),
        Access::Basic(user, password) => match basic_of(seen) {
            Some((u, p)) if u == *user && p == *password => None,
            _ => no("Basic realm=\"tests\""),
        },
        Access::Bearer { realm, issued } => {
            let scope = format!("repository:{repository}:pull");
            let issued = lock(&issued.0);
            let known = sent.strip_prefix("Bearer ").and_then(|token| issued.good.get(token));
            let fine = known.is_some_and(|(s, until)| s.contains(&scope) && until.is_none_or(|u| u > Instant::now()));
            let error = if sent.is_empty() { "" } else { ",error=\"invalid_token\"" };
            let challenge = format!("Bearer realm=\"{realm}\",service=\"tests\",scope=\"{scope}\"{error}");
            if fine { None } else { no(&challenge) }
        }
    }
}

// The server below both.

/// An answer, before anything is done to it.
#[derive(Debug, Clone)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    /// All of what `body` may be a part of.
    whole: Option<Bytes>,
}

impl Reply {
    fn new(status: u16, body: Bytes) -> Self {
        Self { status, headers: Vec::new(), body, whole: None }
    }

    fn json(status: u16, text: String) -> Self {
        Self::new(status, text.into()).with("content-type", "application/json")
    }

    fn error(status: u16, code: &str) -> Self {
        let message = code.to_lowercase().replace('_', " ");
        Self::json(status, format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        if !value.is_empty() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

#[derive(Debug, Default)]
struct Shared {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    is_tls: bool,
    shared: Arc<Mutex<Shared>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(tls: Option<tokio_rustls::TlsAcceptor>, answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let is_tls = tls.is_some();
        let (state, answer): (_, Handler) = (Arc::clone(&shared), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, tls, state, answer) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, is_tls, shared, stop: Some(stop), thread: Some(thread) }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }

    fn misbehave(&self, method: &str, part: &str, times: usize, misdeed: Misdeed) {
        let rule = Rule { method: method.to_owned(), part: part.to_owned(), left: times, misdeed };
        lock(&self.shared).rules.push(rule);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    shared: Arc<Mutex<Shared>>,
    answer: Handler,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let (tls, shared, answer) = (tls.clone(), Arc::clone(&shared), Arc::clone(&answer));
        tokio::spawn(async move {
            match tls {
                None => serve(tcp, shared, answer).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(tcp).await {
                        serve(stream, shared, answer).await;
                    }
                }
            }
        });
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + 'static, shared: Arc<Mutex<Shared>>, answer: Handler) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (shared, answer) = (Arc::clone(&shared), Arc::clone(&answer));
        async move { Ok::<_, Infallible>(respond(request, &shared, &answer).await) }
    });
    // A client that goes away in the middle is what many tests are about.
    let server = hyper::server::conn::http1::Builder::new();
    server.serve_connection(TokioIo::new(io), service).await.ok();
}

async fn respond(request: Request<Incoming>, shared: &Mutex<Shared>, answer: &Handler) -> Response<Script> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let seen = Seen {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let misdeed = {
        let mut shared = lock(shared);
        shared.seen.push(seen.clone());
        let fits =
            |r: &&mut Rule| r.left > 0 && (r.method == "*" || r.method == seen.method) && seen.target.contains(&r.part);
        shared.rules.iter_mut().find(fits).map(|rule| {
            rule.left -= 1;
            rule.misdeed.clone()
        })
    };
    let reply = answer(&seen);
    let is_head = seen.method == "HEAD";
    let (reply, script, length) = match misdeed {
        None => {
            let (body, length) = (reply.body.clone(), reply.body.len());
            (reply, Script::all(body), Some(length))
        }
        Some(misdeed) => spoil(reply, misdeed).await,
    };
    let mut response = Response::new(if is_head { Script::default() } else { script });
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap();
    for (name, value) in &reply.headers {
        let name: http::HeaderName = name.parse().unwrap();
        response.headers_mut().append(name, value.parse().unwrap());
    }
    if let Some(length) = length.filter(|_| !response.headers().contains_key("content-length")) {
        response.headers_mut().insert("content-length", length.into());
    }
    response
}

/// The answer as the misdeed has it: head, body, and the length that is announced.
async fn spoil(reply: Reply, misdeed: Misdeed) -> (Reply, Script, Option<usize>) {
    let body = reply.body.clone();
    let length = Some(body.len());
    let plain = |reply: Reply| {
        let (body, length) = (reply.body.clone(), reply.body.len());
        (reply, Script::all(body), Some(length))
    };
    match misdeed {
        Misdeed::Status(status, headers, text) => {
            let reply = Reply { headers, ..Reply::new(status, text.into()) };
            plain(reply)
        }
        Misdeed::Redirect(to) => plain(Reply::new(307, Bytes::new()).with("location", &to)),
        Misdeed::StallAfter(n) => {
            let script = Script::of([Step::Bytes(body.slice(..n.min(body.len()))), Step::Forever]);
            (reply, script, length)
        }
        Misdeed::TruncateAfter(n) => {
            let script = Script::of([
                Step::Bytes(body.slice(..n.min(body.len()))),
                // What is not on the wire yet would be lost with the connection.
                Step::Pause(Duration::from_millis(50)),
                Step::Abort,
            ]);
            (reply, script, length)
        }
        Misdeed::Trickle(n, pause) => {
            let pieces = body.chunks(n).map(Bytes::copy_from_slice);
            let script = Script::of(pieces.flat_map(|piece| [Step::Pause(pause), Step::Bytes(piece)]));
            (reply, script, length)
        }
        Misdeed::Endless => (reply, Script::of([Step::Endless]), None),
        Misdeed::Garble => {
            let mut bytes = body.to_vec();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
            plain(Reply { body: bytes.into(), ..reply })
        }
        Misdeed::Longer(n) => {
            let bytes = [body.as_ref(), &vec![0; n]].concat();
            plain(Reply { body: bytes.into(), ..reply })
        }
        Misdeed::Shorter(n) => plain(Reply { body: body.slice(..body.len().saturating_sub(n)), ..reply }),
        Misdeed::Body(bytes) => plain(Reply { body: bytes.into(), ..reply }),
        Misdeed::Header(name, value) => plain(reply.with(&name, &value)),
        Misdeed::NoRanges => {
            let whole = reply.whole.clone().unwrap_or(body);
            let reply = Reply { status: 200, body: whole, ..reply };
            plain(reply.with("content-range", "").with("accept-ranges", ""))
        }
        Misdeed::FalseRanges => {
            let whole = reply.whole.clone().unwrap_or(body);
            let reply = Reply { status: 200, body: whole, ..reply };
            plain(reply.with("content-range", "").with("accept-ranges", "bytes"))
        }
        Misdeed::WrongRange => plain(reply.with("content-range", "bytes 1-2/3")),
        Misdeed::Silence => std::future::pending().await,
    }
}

#[derive(Debug)]
enum Step {
    Bytes(Bytes),
    Pause(Duration),
    Endless,
    Forever,
    Abort,
}

/// A body that does as it is told.
#[derive(Debug, Default)]
struct Script {
    steps: VecDeque<Step>,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Script {
    fn all(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::default() } else { Self::of([Step::Bytes(bytes)]) }
    }

    fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), sleep: None }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                match sleep.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.sleep = None,
                }
            }
            match self.steps.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Bytes(mut bytes)) => {
                    // In pieces, so that nobody relies on getting everything at once.
                    let piece = bytes.split_to(bytes.len().min(64 << 10));
                    if !bytes.is_empty() {
                        self.steps.push_front(Step::Bytes(bytes));
                    }
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Some(Step::Pause(time)) => self.sleep = Some(Box::pin(tokio::time::sleep(time))),
                Some(Step::Endless) => {
                    self.steps.push_front(Step::Endless);
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 64 << 10])))));
                }
                Some(Step::Forever) => {
                    self.steps.push_front(Step::Forever);
                    return Poll::Pending;
                }
                Some(Step::Abort) => return Poll::Ready(Some(Err(std::io::Error::other("told to break off")))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
