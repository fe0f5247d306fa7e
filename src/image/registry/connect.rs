//! Connections to one configured host and to where it sends us: TCP, proxies, TLS, and addresses that are off limits.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::HeaderValue;
use http::uri::{Scheme, Uri};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::image::registry::error::chain;
use crate::image::registry::hosts::{Host, Transport, host_of, is_loopback};
use crate::image::registry::tls::{self, Roots, TlsSettings};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("its address {0} is off limits for a host that a registry names")]
    Forbidden(IpAddr),
    #[error("connecting took longer than {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("{0}")]
    Tcp(String),
    #[error("{0}")]
    Files(String),
    #[error("{error}; {}", tls::remedy(error, *is_stranger))]
    Tls { error: rustls::Error, is_stranger: bool },
    #[error("the TLS handshake broke off: {0}")]
    Handshake(String),
    #[error("{0}")]
    Proxy(String),
}

/// Proxies by target, as in `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
pub(super) struct Proxies(Matcher);

impl Proxies {
    /// As the environment says.
    pub fn from_env() -> Self {
        Self(Matcher::from_env())
    }

    #[cfg(test)]
    pub fn of(http: &str, https: &str, no: &str) -> Self {
        Self(Matcher::builder().http(http.to_owned()).https(https.to_owned()).no(no.to_owned()).build())
    }
}

impl fmt::Debug for Proxies {
    /// Says nothing, as a proxy's address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

/// Makes connections for one [`Host`]: to itself, and to the token servers and storage it names.
#[derive(Debug, Clone)]
pub(super) struct Connector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    authority: String,
    either: bool,
    /// Set once a host of [`Transport::Either`] has turned out to speak plain HTTP.
    plain: AtomicBool,
    dial_timeout: Duration,
    settings: TlsSettings,
    roots: Arc<Roots>,
    proxies: Arc<Proxies>,
    /// For the configured host, on whatever port.
    tls: OnceCell<Configured>,
    /// For all others.
    strangers_tls: OnceCell<Configured>,
}

struct Configured(TlsConnector);

impl fmt::Debug for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Configured")
    }
}

/// Travels with each answer: how it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub over_tls: bool,
}

impl Connector {
    pub fn new(host: &Host, roots: Arc<Roots>, proxies: Arc<Proxies>) -> Self {
        let dial_timeout = host.dial_timeout;
        Self(Arc::new(Inner {
            authority: host.authority.clone(),
            either: host.transport == Transport::Either,
            plain: AtomicBool::new(false),
            // Zero means no limit in Go, where the file comes from; there must be one.
            dial_timeout: if dial_timeout.is_zero() { Duration::from_secs(30) } else { dial_timeout },
            settings: TlsSettings::of(host),
            roots,
            proxies,
            tls: OnceCell::new(),
            strangers_tls: OnceCell::new(),
        }))
    }

    /// What a proxy for plain requests has to be told; one for TLS is told when the tunnel is made.
    pub fn proxy_authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme() != Some(&Scheme::HTTP) {
            return None;
        }
        let mut value = self.0.proxy_for(uri)?.basic_auth()?.clone();
        value.set_sensitive(true);
        Some(value)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Inner {
    async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let own = uri.authority().is_some_and(|a| a.as_str().eq_ignore_ascii_case(&self.authority));
        if !own {
            self.check_foreign(host)?;
        }
        if uri.scheme() != Some(&Scheme::HTTPS) || (own && self.plain.load(Ordering::Relaxed)) {
            let (tcp, proxied) = self.tcp(uri, own).await?;
            return Ok(Stream { kind: Kind::Plain(tcp), proxied });
        }
        // What is configured for one host, trust above all, is for none that it names.
        let is_stranger = !host_of(&self.authority).eq_ignore_ascii_case(host_of(host));
        let tls = if is_stranger {
            self.strangers_tls.get_or_try_init(|| self.configure(TlsSettings::of_strangers())).await?
        } else {
            self.tls.get_or_try_init(|| self.configure(self.settings.clone())).await?
        };
        let (tcp, _) = self.tcp(uri, own).await?;
        match handshake(&tls.0, host, tcp).await {
            Ok(kind) => Ok(Stream { kind, proxied: false }),
            // Not TLS, by an entry that leaves it open: spoken to again, plainly.
            Err(ConnectError::Handshake(_) | ConnectError::Tls { error: rustls::Error::InvalidMessage(_), .. })
                if own && self.either =>
            {
                let (tcp, proxied) = self.tcp(uri, own).await?;
                self.plain.store(true, Ordering::Relaxed);
                Ok(Stream { kind: Kind::Plain(tcp), proxied })
            }
            Err(ConnectError::Tls { error, .. }) => Err(ConnectError::Tls { error, is_stranger }),
            Err(e) => Err(e),
        }
    }

    async fn configure(&self, settings: TlsSettings) -> Result<Configured, ConnectError> {
        let roots = Arc::clone(&self.roots);
        let made = tokio::task::spawn_blocking(move || tls::configure(&settings, &roots)).await;
        let config = made.map_err(|e| ConnectError::Files(e.to_string()))?.map_err(ConnectError::Files)?;
        Ok(Configured(TlsConnector::from(Arc::new(config))))
    }

    /// The connection, and whether a proxy for plain requests is at its other end.
    async fn tcp(&self, uri: &Uri, own: bool) -> Result<(TcpStream, bool), ConnectError> {
        let proxy = self.proxy_for(uri);
        let resolver = Guarded { guard: (!own && proxy.is_none()).then(|| self.guard()) };
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(60)));
        let limit = self.dial_timeout;
        let late = move |_| ConnectError::Timeout(limit);
        let Some(proxy) = proxy else {
            let io = tokio::time::timeout(limit, connector.call(uri.clone())).await.map_err(late)?;
            return Ok((io.map_err(refused)?.into_inner(), false));
        };
        let address = proxy.uri().clone();
        let shown = address.authority().map_or("", |a| a.as_str().rsplit('@').next().unwrap_or_default()).to_owned();
        if address.scheme() != Some(&Scheme::HTTP) {
            return Err(ConnectError::Proxy(format!("the proxy {shown} is not one of http://, which alone is spoken")));
        }
        let failed =
            |e: &(dyn std::error::Error + 'static)| ConnectError::Proxy(format!("proxy {shown}: {}", chain(e)));
        if uri.scheme() == Some(&Scheme::HTTPS) {
            let mut tunnel = Tunnel::new(address, connector);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            let io = tokio::time::timeout(limit, tunnel.call(uri.clone())).await.map_err(late)?;
            return Ok((io.map_err(|e| failed(&e))?.into_inner(), false));
        }
        let io = tokio::time::timeout(limit, connector.call(address)).await.map_err(late)?;
        Ok((io.map_err(|e| failed(&e))?.into_inner(), true))
    }

    fn proxy_for(&self, uri: &Uri) -> Option<hyper_util::client::proxy::matcher::Intercept> {
        // What is on this machine is not behind a proxy, whatever NO_PROXY lacks.
        let authority = uri.authority()?.as_str();
        if is_loopback(authority) { None } else { self.proxies.0.intercept(uri) }
    }

    fn guard(&self) -> Guard {
        Guard { loopback_allowed: is_loopback(&self.authority) }
    }

    fn check_foreign(&self, host: &str) -> Result<(), ConnectError> {
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(ip) if self.guard().forbids(ip) => Err(ConnectError::Forbidden(ip)),
            _ => Ok(()),
        }
    }
}

async fn handshake(tls: &TlsConnector, host: &str, tcp: TcpStream) -> Result<Kind, ConnectError> {
    let plain = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(plain.to_owned()).map_err(|e| ConnectError::Handshake(e.to_string()))?;
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.connect(name, tcp)).await {
        Err(_) => Err(ConnectError::Timeout(HANDSHAKE_TIMEOUT)),
        Ok(Ok(stream)) => Ok(Kind::Tls(Box::new(stream))),
        Ok(Err(e)) => Err(match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => ConnectError::Tls { error: error.clone(), is_stranger: false },
            None => ConnectError::Handshake(e.to_string()),
        }),
    }
}

fn refused(e: impl std::error::Error + 'static) -> ConnectError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(error) = cause {
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(ConnectError::Forbidden(ip)) = inside.and_then(|inner| inner.downcast_ref()) {
            return ConnectError::Forbidden(*ip);
        }
        cause = error.source();
    }
    ConnectError::Tcp(chain(&e))
}

/// Where a registry may not send us: what answers there trusts whoever is on this machine or link.
#[derive(Debug, Clone, Copy)]
struct Guard {
    /// A registry on this machine may well have its token server there too.
    loopback_allowed: bool,
}

impl Guard {
    fn forbids(self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let special = match ip {
            // Link-local holds the metadata services of most clouds; two have addresses of their own.
            IpAddr::V4(v4) => {
                let of_clouds = [[100, 100, 100, 200], [168, 63, 129, 16]];
                v4.is_link_local() || v4.is_broadcast() || of_clouds.contains(&v4.octets())
            }
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
        };
        special || ip.is_multicast() || ((ip.is_loopback() || ip.is_unspecified()) && !self.loopback_allowed)
    }
}

/// Resolves names, leaving out what the guard forbids.
#[derive(Debug, Clone)]
struct Guarded {
    guard: Option<Guard>,
}

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.guard;
        Box::pin(async move {
            let all: Vec<SocketAddr> = GaiResolver::new().call(name).await?.collect();
            let allowed = |a: &SocketAddr| !guard.is_some_and(|g| g.forbids(a.ip()));
            let fine: Vec<SocketAddr> = all.iter().copied().filter(allowed).collect();
            match (all.first(), fine.is_empty()) {
                (Some(first), true) => Err(io::Error::other(ConnectError::Forbidden(first.ip()))),
                _ => Ok(fine.into_iter()),
            }
        })
    }
}

/// An open connection.
pub(super) struct Stream {
    kind: Kind,
    proxied: bool,
}

enum Kind {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("tls", &matches!(self.kind, Kind::Tls(_))).finish_non_exhaustive()
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let over_tls = matches!(self.kind, Kind::Tls(_));
        Connected::new().proxy(self.proxied).extra(Arrival { over_tls })
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Kind::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Kind::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Kind::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(tcp) => tcp.is_write_vectored(),
            Kind::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Kind::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Kind::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_trust_the_machine_are_off_limits() {
        let strict = Guard { loopback_allowed: false };
        let local = Guard { loopback_allowed: true };
        for (address, far, near) in [
            ("169.254.169.254", true, true),
            ("::ffff:169.254.169.254", true, true),
            ("100.100.100.200", true, true),
            ("168.63.129.16", true, true),
            ("fe80::1", true, true),
            ("fd00:ec2::254", true, true),
            ("224.0.0.1", true, true),
            ("255.255.255.255", true, true),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("0.0.0.0", true, false),
            ("::", true, false),
            ("10.0.0.1", false, false),
            ("192.168.1.1", false, false),
            ("93.184.216.34", false, false),
            ("2001:db8::1", false, false),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!((strict.forbids(ip), local.forbids(ip)), (far, near), "{address}");
        }
    }
}
