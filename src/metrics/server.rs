//! Who may ask, how, and for how long.
//!
//! One request a connection: a client that says nothing, sends nonsense or does not read costs a descriptor and a few
//! kilobytes for some seconds. When there are too many, the oldest goes, so that whoever comes with a request is served.
//!
//! Follows RFC 9110 for methods and statuses.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::text::Format;
use crate::node::Node;

/// Clients at a time.
const CONNECTIONS: usize = 32;
/// How long a client has to say what it wants.
const HEAD: Duration = Duration::from_secs(5);
/// Bytes of a request's head: the least that hyper takes.
const HEAD_BYTES: usize = 8 << 10;
/// How long a client may take for all of it.
const WHOLE: Duration = Duration::from_secs(30);
/// How long a client may read nothing.
const STALL: Duration = Duration::from_secs(5);
/// How long nobody is let in after that failed, which means that descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the numbers are.
const PATH: &str = "/metrics";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A listening socket of either kind.
#[derive(Debug)]
pub enum Listener {
    /// On loopback, or wherever the configuration wants it.
    Tcp(TcpListener),
    /// A file.
    Unix(UnixListener),
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves the numbers of a node; never over. Dropping the future ends all connections.
pub async fn serve(node: Arc<Node>, listener: Listener) {
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                oldest.retain(|connection| !connection.is_finished());
                if oldest.len() >= CONNECTIONS
                    && let Some(oldest) = oldest.pop_front()
                {
                    oldest.abort();
                }
                oldest.push_back(connections.spawn(connection(Arc::clone(&node), stream)));
            }
            Err(error) => {
                warn!(%error, "nobody could be let in for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(node: Arc<Node>, stream: Box<dyn Connection>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let response = answer(&node, request.method(), request.uri().path(), request.headers());
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
    server.max_buf_size(HEAD_BYTES).max_headers(64);
    match timeout(WHOLE, server.serve_connection(TokioIo::new(stream), answer)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a request for metrics broke off"),
        Err(_) => debug!("a request for metrics took too long"),
    }
}

fn answer(node: &Arc<Node>, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text).map_err(|never: Infallible| match never {}).boxed_unsync());
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    };
    if path != PATH {
        return plain(StatusCode::NOT_FOUND, "there is nothing here; the numbers are at /metrics\n");
    }
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    let mut response = match *method {
        Method::GET => Response::new(body(Arc::clone(node), format)),
        Method::HEAD => Response::new(Full::default().map_err(|never: Infallible| match never {}).boxed_unsync()),
        _ => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are the methods there are\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

/// The page, piece by piece as the client reads it: no page is ever in memory as a whole.
fn body(node: Arc<Node>, format: Format) -> Body {
    let (sender, pieces) = mpsc::channel::<io::Result<Frame<Bytes>>>(1);
    let send = async move |piece: String| match timeout(STALL, sender.reserve()).await {
        Ok(Ok(place)) => {
            place.send(Ok(Frame::data(Bytes::from(piece))));
            true
        }
        Ok(Err(_)) => false,
        Err(_) => {
            debug!("a client for metrics did not read");
            false
        }
    };
    tokio::spawn(super::write(node, format, send));
    StreamBody::new(ReceiverStream::new(pieces)).boxed_unsync()
}
