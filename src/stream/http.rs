//! One connection: from its request to the end of its session.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::debug;

use super::link::Link;
use super::negotiate::{Agreed, Refusal, agree};
use super::outlet::{Framing, Outlet};
use super::remote::{Manner, Verdicts};
use super::token::Book;
use super::{Backend, Request, forward, limits, remote};

/// What all connections share.
#[derive(Debug)]
pub(super) struct Desk<B> {
    pub backend: Arc<B>,
    pub book: Arc<Book>,
    pub sessions: Arc<Semaphore>,
}

/// A request that was granted.
struct Granted {
    request: Request,
    agreed: Agreed,
    upgrade: OnUpgrade,
    /// Ports that the URL names, for clients that have no other way.
    ports: Vec<u16>,
    _place: OwnedSemaphorePermit,
}

/// Answers the request of a connection, and makes of it what was asked for; none if nothing was granted.
pub(super) async fn receive<B: Backend>(desk: &Desk<B>, connection: TcpStream) -> Option<impl Future<Output = ()>> {
    let granted = Mutex::new(None);
    let answer = service_fn(|request| {
        let response = match grant(desk, request) {
            Ok((yes, response)) => {
                *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(yes);
                response
            }
            Err(refusal) => refuse(refusal),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits::HANDSHAKE);
    server.max_buf_size(limits::HEAD_BYTES).max_headers(64);
    let served = server.serve_connection(TokioIo::new(connection), answer).with_upgrades();
    match timeout(limits::HANDSHAKE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => debug!(error = %e, "a request for streams was none"),
        Err(_) => debug!("a request for streams took too long"),
    }
    let granted = granted.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let backend = Arc::clone(&desk.backend);
    let Granted { request, agreed, upgrade, ports, _place } = granted;
    let upgraded = timeout(limits::HANDSHAKE, upgrade).await.ok()?.ok()?;
    Some(async move {
        let _place = _place;
        serve(backend, request, agreed, ports, upgraded).await;
    })
}

fn grant<B>(desk: &Desk<B>, mut asked: hyper::Request<Incoming>) -> Result<(Granted, Response<Full<Bytes>>), Refusal> {
    let plain = |status, reason: &str| Refusal { status, reason: reason.to_owned(), headers: Vec::new() };
    let mut parts = asked.uri().path().trim_start_matches('/').split('/');
    let (Some(kind), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(plain(StatusCode::NOT_FOUND, "there is nothing of that name"));
    };
    if !matches!(*asked.method(), Method::GET | Method::POST) {
        return Err(plain(StatusCode::METHOD_NOT_ALLOWED, "GET and POST are the methods there are"));
    }
    let Ok(place) = Arc::clone(&desk.sessions).try_acquire_owned() else {
        let mut refusal = plain(StatusCode::TOO_MANY_REQUESTS, "there are too many sessions; end some first");
        refusal.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
        return Err(refusal);
    };
    let fits = |request: &Request| match request {
        Request::Exec { .. } => kind == "exec",
        Request::Attach { .. } => kind == "attach",
        Request::PortForward { .. } => kind == "portforward",
    };
    let request = desk.book.take(token, Instant::now(), fits);
    let request = request.ok_or_else(|| {
        plain(StatusCode::NOT_FOUND, "the token is unknown, was used, or is older than a minute; ask for another URL")
    })?;
    let is_forward = matches!(request, Request::PortForward { .. });
    let (agreed, headers) = agree(is_forward, asked.method(), asked.headers())?;
    let ports = ports(asked.uri().query().unwrap_or_default());
    let upgrade = hyper::upgrade::on(&mut asked);
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok((Granted { request, agreed, upgrade, ports, _place: place }, response))
}

/// Every `port=` of a query that is one.
fn ports(query: &str) -> Vec<u16> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    // Several may share a value; no encoding changes digits and commas.
    let ports = values.flat_map(|value| value.split(',')).filter_map(|port| port.parse().ok());
    ports.filter(|port| *port != 0).take(limits::STREAMS / 2).collect()
}

fn refuse(refusal: Refusal) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(refusal.reason + "\n"));
    *response.status_mut() = refusal.status;
    response.headers_mut().extend(refusal.headers.into_iter().map(|(name, value)| (Some(name), value)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn serve<B: Backend>(backend: Arc<B>, request: Request, agreed: Agreed, asked: Vec<u16>, upgraded: Upgraded) {
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
    let connection = parts.io.into_inner();
    // It only makes small packets wait; without that it is slower, not wrong.
    connection.set_nodelay(true).ok();
    let (reader, writer) = connection.into_split();
    let framing = agreed.framing;
    let outlet = Arc::new(Outlet::new(writer, framing));
    let (link, newcomers) = Link::new(reader, parts.read_buf, &outlet, framing, agreed.version() >= 5);
    let channels = matches!(framing, Framing::Channels { .. });
    match request {
        Request::PortForward { sandbox, ports } => {
            let ports = channels.then_some(if ports.is_empty() { asked } else { ports });
            forward::serve(backend, sandbox, ports, link, newcomers, outlet).await;
        }
        request => {
            let verdicts = if agreed.version() >= 4 { Verdicts::Json } else { Verdicts::Text };
            let manner = Manner { verdicts, resizes: agreed.version() >= 3, channels };
            remote::serve(&*backend, request, manner, link, newcomers, outlet).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_from_the_query() {
        assert_eq!(ports("port=80&x=1&port=443,8080"), [80, 443, 8080]);
        assert_eq!(ports("port=0&port=65536&port=&ports=1"), [] as [u16; 0]);
        assert_eq!(ports(&"port=1&".repeat(1000)).len(), limits::STREAMS / 2);
    }
}
