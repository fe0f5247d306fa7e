//! One host of a registry: requests to it, redirects it sends us along, and bounds on what it answers.
//!
//! HTTP/1.1 alone: each transfer has a connection of its own, so one that stalls is dropped without touching others,
//! and no window shared by all of them limits their speed.
//!
//! A redirect is followed without `Authorization` and without the headers of `hosts.toml` as soon as it leaves the
//! host; never from TLS to plain HTTP; never to an address that [`super::connect`] forbids.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::image::registry::connect::{Arrival, ConnectError, Connector, Proxies};
use crate::image::registry::credentials::Secret;
use crate::image::registry::error::{Detail, RegistryError, RegistryErrorKind as Kind, chain, clean, explain};
use crate::image::registry::hosts::{Host, Transport};
use crate::image::registry::tls::Roots;

/// Redirects followed for one request.
const REDIRECTS: usize = 5;
/// Header lines of one answer, and bytes of them; the latter is also how much is read at once.
const HEADERS: usize = 100;
const BUFFER: usize = 128 << 10;
/// Bytes of a refusal's body that are read to explain it, and how long that may take.
const REFUSAL_BYTES: usize = 16 << 10;
const REFUSAL_TIME: Duration = Duration::from_secs(5);
/// How many stretches of the no-progress time a document may take in all, if it comes drop by drop.
const DOCUMENT_STRETCHES: u32 = 3;
/// Bytes of an address we are sent to.
const URI_BYTES: usize = 16 << 10;

/// One host, with its connections. Dropping it closes them.
#[derive(Debug)]
pub(super) struct Peer {
    pub host: Host,
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
    /// How long nothing may come.
    patience: Duration,
}

/// A request: what for, in words, and where.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// What is asked for: "the manifest of library/busybox:latest".
    pub what: &'a str,
    pub method: Method,
    pub uri: Uri,
    /// Sent to whoever answers in the end.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Sent to this host alone.
    pub authorization: Option<&'a Secret>,
    /// A form to post, which may hold a password.
    pub form: Option<Secret>,
    pub follow: Follow,
}

/// Which redirects are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Everywhere,
    /// Only on the host that was asked, or from there to TLS on it: requests that carry credentials for a token server.
    SameHost,
}

/// An answer and who gave it.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response<Incoming>,
    /// Host and port that answered, after redirects.
    pub from: String,
    pub over_tls: bool,
}

impl Peer {
    pub fn new(host: Host, roots: Arc<Roots>, proxies: Arc<Proxies>, patience: Duration) -> Self {
        let connector = Connector::new(&host, roots, proxies);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(8)
            .http1_max_headers(HEADERS)
            .http1_max_buf_size(BUFFER)
            .build(connector.clone());
        Self { host, client, connector, patience }
    }

    /// The address of something in a repository of this host. `registry` is the one of the reference.
    pub fn uri(&self, registry: &str, repository: &str, rest: &str) -> Result<Uri, RegistryError> {
        let path = format!("{}/{repository}/{rest}", self.host.path);
        let query = if self.host.is_proxy_of(registry) { format!("?ns={registry}") } else { String::new() };
        let scheme = if self.host.transport == Transport::Http { "http" } else { "https" };
        format!("{scheme}://{}{path}{query}", self.host.authority)
            .parse()
            .map_err(|_| RegistryError::new(Kind::Config, format!("{}{path} is no address", self.host.authority)))
    }

    /// Sends a request and follows where it leads. Any status that is no redirect is an answer.
    pub async fn send(&self, ask: Ask<'_>) -> Result<Answer, RegistryError> {
        let mut uri = ask.uri.clone();
        for _ in 0..=REDIRECTS {
            let from = uri.authority().map_or("", Authority::as_str).to_owned();
            let response = self.send_once(&ask, &uri).await?;
            let over_tls = response.extensions().get::<Arrival>().is_some_and(|a| a.over_tls);
            if !is_redirect(response.status()) || ask.form.is_some() {
                return Ok(Answer { response, from, over_tls });
            }
            let next = self.redirect(&response, &uri, over_tls).map_err(|reason| {
                RegistryError::new(Kind::Protocol, format!("{from} answered {} with a redirect {reason}", ask.what))
            })?;
            if ask.follow == Follow::SameHost && !is_as_safe(&uri, &next) {
                let to = next.authority().map_or("", Authority::as_str);
                let text = format!("{from} answered {} with a redirect to another host, {}", ask.what, clean(to));
                return Err(RegistryError::new(Kind::Protocol, text));
            }
            uri = next;
        }
        let text = format!("{} answered {} with more than {REDIRECTS} redirects", self.host.authority, ask.what);
        Err(RegistryError::new(Kind::Protocol, text))
    }

    async fn send_once(&self, ask: &Ask<'_>, uri: &Uri) -> Result<Response<Incoming>, RegistryError> {
        let own = is_as_safe(&ask.uri, uri);
        let mut request = Request::new(Full::new(Bytes::from(
            ask.form.as_ref().map_or_else(String::new, |form| form.reveal().to_owned()),
        )));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("aril/", env!("CARGO_PKG_VERSION"))));
        if ask.form.is_some() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, form);
        }
        for (name, value) in ask.headers {
            headers.append(name.clone(), value.clone());
        }
        if own {
            self.add_own(headers, ask, uri)?;
        }
        if let Some(value) = self.connector.proxy_authorization(uri) {
            headers.insert(header::PROXY_AUTHORIZATION, value);
        }
        let name = uri.authority().map_or("", Authority::as_str);
        match tokio::time::timeout(self.patience, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(broken(name, ask.what, &e)),
            Err(_) => {
                let waited = self.patience.as_secs_f32();
                let text = format!("{name} gave no answer to the request for {} within {waited} s", ask.what);
                Err(RegistryError::new(Kind::Unavailable, text))
            }
        }
    }

    /// What only the host that was asked may see.
    fn add_own(&self, headers: &mut HeaderMap, ask: &Ask<'_>, uri: &Uri) -> Result<(), RegistryError> {
        // A token server on another host gets no headers meant for the registry.
        if uri.authority().is_some_and(|a| a.as_str().eq_ignore_ascii_case(&self.host.authority)) {
            for (name, value) in &self.host.header {
                headers.append(name.clone(), value.clone());
            }
        }
        if let Some(secret) = ask.authorization {
            let mut value = HeaderValue::try_from(secret.reveal()).map_err(|_| {
                let text = "the credentials have characters that cannot be sent; give them anew";
                RegistryError::new(Kind::Config, text)
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(())
    }

    /// Where a redirect leads. The error continues "answered … with a redirect".
    fn redirect(&self, response: &Response<Incoming>, from: &Uri, over_tls: bool) -> Result<Uri, String> {
        let location = response.headers().get(header::LOCATION).ok_or("to nowhere")?;
        let text = location.to_str().map_err(|_| "to what is no address")?;
        let next = resolve(from, text).ok_or_else(|| format!("to what is no address: {}", clean(text)))?;
        // A loopback registry of which nobody knew whether it speaks TLS is written https, and calls itself http.
        let own = next.authority() == from.authority() && self.host.transport == Transport::Either;
        if own && !over_tls {
            let mut parts = next.into_parts();
            parts.scheme = from.scheme().cloned();
            return Uri::from_parts(parts).map_err(|e| e.to_string());
        }
        if over_tls && next.scheme() != Some(&Scheme::HTTPS) {
            return Err(format!("from TLS to plain HTTP at {}", next.authority().map_or("", Authority::as_str)));
        }
        Ok(next)
    }

    /// Reads a document to its end: up to `most` bytes, in a time in which even a slow line brings one.
    pub async fn body(&self, answer: Answer, what: &str, most: u64) -> Result<Bytes, RegistryError> {
        let Answer { response, from, .. } = answer;
        let too_large = || {
            RegistryError::new(
                Kind::Limit,
                format!("{from}: {what} has more than {most} bytes, the most that is accepted"),
            )
        };
        let promised = content_length(response.headers());
        if promised.is_some_and(|n| n > most) {
            return Err(too_large());
        }
        let mut body = response.into_body();
        let mut all = BytesMut::new();
        let deadline = tokio::time::Instant::now() + DOCUMENT_STRETCHES * self.patience;
        loop {
            let until = deadline.min(tokio::time::Instant::now() + self.patience);
            let frame = tokio::time::timeout_at(until, body.frame()).await.map_err(|_| {
                let text = format!("{from} sent {} bytes of {what} and is too slow with the rest", all.len());
                RegistryError::new(Kind::Unavailable, text)
            })?;
            match frame {
                None => return Ok(all.freeze()),
                Some(Err(e)) => return Err(interrupted(&from, what, &e)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        if (all.len() + data.len()) as u64 > most {
                            return Err(too_large());
                        }
                        all.extend_from_slice(data);
                    }
                }
            }
        }
    }

    /// The error for an answer that refuses.
    pub async fn refusal(&self, answer: Answer, what: &str) -> RegistryError {
        let Answer { response, from, .. } = answer;
        let (status, headers) = (response.status(), response.headers().clone());
        // Errors are shown to whoever had an image pulled, who need not be allowed to read what a host answers that a
        // registry of his own named.
        let is_own = from.eq_ignore_ascii_case(&self.host.authority);
        let said = match tokio::time::timeout(REFUSAL_TIME, beginning(response.into_body())).await {
            Ok(bytes) if is_own => explain(&bytes),
            _ => String::new(),
        };
        refused(status, &headers, &from, what, &said)
    }
}

/// As much of a body as it takes to explain a refusal.
async fn beginning(mut body: Incoming) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        let room = REFUSAL_BYTES - bytes.len();
        bytes.extend_from_slice(&data[..data.len().min(room)]);
        if bytes.len() >= REFUSAL_BYTES {
            break;
        }
    }
    bytes
}

fn refused(status: StatusCode, headers: &HeaderMap, from: &str, what: &str, said: &str) -> RegistryError {
    let text = |advice: &str| {
        format!("{from} answered {} to the request for {what}{}; {advice}", status.as_u16(), Detail(said))
    };
    match status {
        StatusCode::NOT_FOUND => RegistryError::new(Kind::NotFound, text("check the name, the tag and the registry")),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::new(Kind::Unauthorized, text("check the credentials, and what they are allowed to"))
        }
        StatusCode::TOO_MANY_REQUESTS => {
            RegistryError::new(Kind::RateLimited, text("try again later, or log in")).retry_after(retry_after(headers))
        }
        StatusCode::REQUEST_TIMEOUT => RegistryError::new(Kind::Unavailable, text("try again")),
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => {
            RegistryError::new(Kind::Protocol, text("is it a registry?"))
        }
        s if s.is_server_error() => RegistryError::new(Kind::Unavailable, text("try again, or see the registry's log"))
            .retry_after(retry_after(headers)),
        _ => RegistryError::new(Kind::Protocol, text("is it a registry?")),
    }
}

/// `Retry-After`: seconds, or a date, which may have passed.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok().or(Some(Duration::ZERO)),
    }
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether what may be shown at `from` may be shown at `to`: the same host, or the same by TLS instead of without.
fn is_as_safe(from: &Uri, to: &Uri) -> bool {
    let is_upgrade = from.scheme() == Some(&Scheme::HTTP)
        && to.scheme() == Some(&Scheme::HTTPS)
        && from.host().map(str::to_ascii_lowercase) == to.host().map(str::to_ascii_lowercase)
        && ((port(from), port(to)) == (80, 443) || port(from) == port(to));
    is_upgrade || same_host(from, to)
}

/// Same scheme, host and port.
fn same_host(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme()
        && a.host().map(str::to_ascii_lowercase) == b.host().map(str::to_ascii_lowercase)
        && port(a) == port(b)
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 })
}

/// The address that a `Location` means, seen from `base`; `None` if it is none that can be gone to.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let text = location.split('#').next().unwrap_or_default();
    if text.is_empty() || text.len() > URI_BYTES {
        return None;
    }
    let (scheme, authority) = (base.scheme()?.clone(), base.authority()?.clone());
    let uri: Uri = if text.starts_with("//") {
        format!("{scheme}:{text}").parse().ok()?
    } else if text.starts_with('/') {
        with_path(scheme, authority, text)?
    } else if text.starts_with('?') {
        with_path(scheme, authority, &format!("{}{text}", base.path()))?
    } else if text.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        text.parse().ok()?
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        with_path(scheme, authority, &format!("{directory}/{text}"))?
    };
    let spoken = matches!(uri.scheme_str(), Some("http" | "https"));
    (spoken && uri.authority().is_some_and(is_sound)).then_some(uri)
}

/// Whether it is a host with a port, if any, that is one. A user in an address would be credentials that a stranger chose.
pub(super) fn is_sound(authority: &Authority) -> bool {
    let (host, text) = (authority.host(), authority.as_str());
    !host.is_empty() && text.starts_with(host) && (text.len() == host.len() || authority.port_u16().is_some())
}

fn with_path(scheme: Scheme, authority: Authority, path: &str) -> Option<Uri> {
    let path: PathAndQuery = path.parse().ok()?;
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()
}

/// The error of a request that got no answer.
fn broken(name: &str, what: &str, error: &hyper_util::client::legacy::Error) -> RegistryError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<ConnectError>() {
            return unconnected(name, what, e);
        }
        if let Some(e) = e.downcast_ref::<hyper::Error>() {
            return if e.is_parse_too_large() {
                let text =
                    format!("{name}: the header of the answer to the request for {what} is larger than is accepted");
                RegistryError::new(Kind::Limit, text)
            } else if e.is_parse() {
                let text = format!("{name} answered the request for {what} with what is not HTTP: {}", chain(e));
                RegistryError::new(Kind::Protocol, text)
            } else {
                interrupted(name, what, e)
            };
        }
        cause = e.source();
    }
    RegistryError::new(Kind::Unavailable, format!("{name}: request {what}: {}", chain(error)))
}

fn unconnected(name: &str, what: &str, error: &ConnectError) -> RegistryError {
    let kind = match error {
        ConnectError::Tls { .. } => Kind::Tls,
        ConnectError::Files(_) => Kind::Config,
        ConnectError::Forbidden(_) => Kind::Protocol,
        ConnectError::Timeout(_) | ConnectError::Tcp(_) | ConnectError::Handshake(_) | ConnectError::Proxy(_) => {
            Kind::Unavailable
        }
    };
    let advice = match error {
        ConnectError::Timeout(_) | ConnectError::Tcp(_) => {
            "; check the name, the network, and whether the registry is up"
        }
        _ => "",
    };
    RegistryError::new(kind, format!("connect to {name} for {what}: {error}{advice}"))
}

/// The error of a connection that broke while an answer was on its way.
pub(super) fn interrupted(name: &str, what: &str, error: &hyper::Error) -> RegistryError {
    RegistryError::new(
        Kind::Unavailable,
        format!("{name}: the connection broke off while it sent {what}: {}", chain(error)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_as_browsers_do() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/b?sig=%2F", Some("https://cdn.example/b?sig=%2F")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/b?c", Some("https://r.example:5000/b?c")),
            ("b/c", Some("https://r.example:5000/v2/a/blobs/b/c")),
            ("?z", Some("https://r.example:5000/v2/a/blobs/x?z")),
            ("http://h/#frag", Some("http://h/")),
            ("", None),
            ("#x", None),
            ("file:///etc/passwd", None),
            ("gopher://h/", None),
            ("https://user:pw@h/", None),
            ("https:///x", None),
            ("https://h:x/", None),
            ("\u{1}", None),
        ] {
            let got = resolve(&base, location).map(|u| u.to_string());
            assert_eq!(got.as_deref(), expected, "{location:?}");
        }
        assert_eq!(resolve(&base, &format!("/{}", "x".repeat(URI_BYTES))), None);
    }

    #[test]
    fn hosts_are_the_same_by_scheme_name_and_port() {
        let same = |a: &str, b: &str| same_host(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(same("http://a", "http://a:80"));
        assert!(!same("https://a", "http://a"));
        assert!(!same("https://a", "https://a:444"));
        assert!(!same("https://a", "https://a.b"));
    }

    #[test]
    fn credentials_may_go_over_to_tls_on_the_same_host() {
        let safe = |a: &str, b: &str| is_as_safe(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(safe("http://a/x", "https://A/y"));
        assert!(safe("http://a:80", "https://a:443"));
        assert!(safe("http://a:5000", "https://a:5000"));
        assert!(safe("https://a", "https://a"));
        assert!(!safe("https://a", "http://a"));
        assert!(!safe("http://a", "https://a.b"));
        assert!(!safe("http://a", "https://a:8443"));
    }

    #[test]
    fn what_a_request_carries_is_not_shown() {
        let (uri, secret) = (Uri::from_static("http://a/"), Secret::new("password=hunter2"));
        let (method, follow) = (Method::POST, Follow::SameHost);
        let ask = Ask {
            what: "x",
            method,
            uri,
            headers: &[],
            authorization: Some(&secret),
            form: Some(secret.clone()),
            follow,
        };
        assert!(!format!("{ask:?}").contains("hunter2"));
    }

    #[test]
    fn refusals_have_kinds() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(" 7 "));
        for (status, kind, transient) in [
            (404, Kind::NotFound, false),
            (401, Kind::Unauthorized, false),
            (403, Kind::Unauthorized, false),
            (429, Kind::RateLimited, true),
            (500, Kind::Unavailable, true),
            (503, Kind::Unavailable, true),
            (408, Kind::Unavailable, true),
            (501, Kind::Protocol, false),
            (400, Kind::Protocol, false),
            (206, Kind::Protocol, false),
        ] {
            let error = refused(StatusCode::from_u16(status).unwrap(), &headers, "h", "x", "said so");
            assert_eq!((error.kind(), error.is_transient()), (kind, transient), "{status}");
            assert!(error.to_string().starts_with(&format!("h answered {status} to the request for x: said so; ")));
        }
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        for (date, least, most) in
            [(SystemTime::now() + Duration::from_secs(20), 15, 20), (SystemTime::UNIX_EPOCH, 0, 0)]
        {
            headers.insert(header::RETRY_AFTER, httpdate::fmt_http_date(date).parse().unwrap());
            let wait = retry_after(&headers).unwrap().as_secs();
            assert!((least..=most).contains(&wait), "{date:?}: {wait}");
        }
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("tomorrow"));
        assert_eq!(retry_after(&headers), None);
    }
}
