//! What happens to every request before and after tonic sees it: its client's deadline is kept, and it is counted.
//!
//! A deadline holds for the whole answer, streams included. When it has passed, what worked on the answer is dropped,
//! and the client gets DEADLINE_EXCEEDED: as trailers, or as the only headers if there were none yet.
//!
//! Follows gRPC over HTTP/2: Timeout in Request-Headers, Trailers-Only in Response-Headers.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Frame, Incoming};
use tokio::sync::watch;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::observe::rpc::{self, Call};

const TIMEOUT: &str = "grpc-timeout";
const STATUS: &str = "grpc-status";

/// Digits of a timeout's number, at most.
const MAX_DIGITS: usize = 8;

type Answering = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

/// All services, as one connection sees them.
#[derive(Debug)]
pub(super) struct Gateway {
    routes: Routes,
    calls: Calls,
}

impl Gateway {
    /// Counts every request in `calls` until its answer is sent.
    pub(super) fn new(routes: Routes, calls: Calls) -> Self {
        Self { routes, calls }
    }
}

impl hyper::service::Service<Request<Incoming>> for Gateway {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let under_way = self.calls.begin();
        let call = rpc::at(request.uri().path()).begin();
        let timeout = match timeout(request.headers()) {
            Ok(timeout) => timeout,
            Err(status) => {
                let refused = Answer::of(status.into_http::<Body>(), None, under_way, call);
                return Box::pin(std::future::ready(Ok(refused)));
            }
        };
        // Taken before anything is done: the client's clock runs already.
        let mut deadline = timeout.map(|limit| Deadline { limit, sleep: Box::pin(tokio::time::sleep(limit)) });
        // A router is ready at any time.
        let answer = self.routes.clone().call(request);
        Box::pin(async move {
            let response = match &mut deadline {
                None => answer.await?,
                Some(Deadline { limit, sleep }) => tokio::select! {
                    biased;
                    response = answer => response?,
                    () = sleep => exceeded(*limit).into_http(),
                },
            };
            Ok(Answer::of(response, deadline, under_way, call))
        })
    }
}

/// When a client stops waiting.
struct Deadline {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
}

/// An answer's body, which ends by its deadline.
pub(super) struct Answer {
    body: Body,
    deadline: Option<Deadline>,
    under_way: UnderWay,
    call: Call,
}

impl Answer {
    fn of(response: Response<Body>, deadline: Option<Deadline>, under_way: UnderWay, mut call: Call) -> Response<Self> {
        ended(&mut call, response.headers());
        response.map(|body| Self { body, deadline, under_way, call })
    }
}

/// Counts how it ended, if this says so: the only headers of an answer, or the trailers behind a body.
fn ended(call: &mut Call, headers: &HeaderMap) {
    if let Some(status) = headers.get(STATUS) {
        call.end(status.as_bytes());
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let ready @ Poll::Ready(_) = Pin::new(&mut this.body).poll_frame(context) {
            if let Poll::Ready(Some(Ok(frame))) = &ready
                && let Some(trailers) = frame.trailers_ref()
            {
                ended(&mut this.call, trailers);
            }
            return ready;
        }
        let Some(Deadline { limit, sleep }) = &mut this.deadline else { return Poll::Pending };
        std::task::ready!(sleep.as_mut().poll(context));
        let mut trailers = HeaderMap::new();
        let told = exceeded(*limit).add_header(&mut trailers);
        ended(&mut this.call, &trailers);
        // Whoever writes the stream learns that nobody reads it.
        this.body = Body::empty();
        this.deadline = None;
        Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn exceeded(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("the {limit:?} that the client gave this call have passed"))
}

/// The time a client gives a request: up to eight digits and a unit. Without one there is no limit.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let malformed = || Status::internal(format!("malformed {TIMEOUT} {value:?}: not up to eight digits and a unit"));
    let (unit, digits) = value.as_bytes().split_last().ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return Err(malformed());
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Ok(Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(malformed()),
    }))
}

/// How many requests of a connection are under way.
#[derive(Debug, Clone)]
pub(super) struct Calls(Arc<watch::Sender<usize>>);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Calls {
    fn begin(&self) -> UnderWay {
        self.0.send_modify(|count| *count += 1);
        UnderWay(self.clone())
    }

    /// Whether all that began have ended.
    pub(super) fn is_none(&self) -> bool {
        *self.0.borrow() == 0
    }

    /// Waits until all that began have ended.
    pub(super) async fn none(&self) {
        // Cannot fail: the sender is ours.
        self.0.subscribe().wait_for(|&count| count == 0).await.map(drop).unwrap_or(());
    }
}

/// Counts until it is dropped.
#[derive(Debug)]
struct UnderWay(Calls);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::HeaderValue;
    use http_body_util::BodyExt;
    use tonic::Code;

    use super::*;

    fn parsed(text: &str) -> Result<Option<Duration>, Code> {
        let headers =
            HeaderMap::from_iter([(TIMEOUT.parse().unwrap(), HeaderValue::from_bytes(text.as_bytes()).unwrap())]);
        timeout(&headers).map_err(|status| status.code())
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1n", Duration::from_nanos(1)),
            ("20u", Duration::from_micros(20)),
            ("300m", Duration::from_millis(300)),
            ("0S", Duration::ZERO),
            ("00000007M", Duration::from_secs(420)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(parsed(text), Ok(Some(expected)), "{text}");
        }
        assert!(timeout(&HeaderMap::new()).unwrap().is_none());
        for text in ["", "m", "5", "+5m", "-5m", " 5m", "5 m", "5ms", "5s", "5h", "123456789n", "0x5m", "5é", "1.5S"] {
            assert_eq!(parsed(text), Err(Code::Internal), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_ends_by_its_deadline_and_its_writer_hears_of_it() {
        let (writer, messages) = tokio::sync::mpsc::channel::<Bytes>(1);
        let messages = tokio_stream::StreamExt::map(tokio_stream::wrappers::ReceiverStream::new(messages), |bytes| {
            Ok::<_, Status>(Frame::data(bytes))
        });
        let calls = Calls::default();
        let limit = Duration::from_millis(30);
        let mut answer = Answer {
            body: Body::new(http_body_util::StreamBody::new(messages)),
            deadline: Some(Deadline { limit, sleep: Box::pin(tokio::time::sleep(limit)) }),
            under_way: calls.begin(),
            call: rpc::at("/none").begin(),
        };
        let begun = Instant::now();
        writer.send(Bytes::from_static(b"first")).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "4");
        assert!(begun.elapsed() >= limit);
        assert!(writer.is_closed() && answer.frame().await.is_none());
        assert!(!calls.is_none());
        drop(answer);
        calls.none().await;
    }
}
