//! The server: HTTP/2 on the unix socket, one task a connection.
//!
//! Not tonic's own. That one answers `CANCELLED` where a client's time has passed, and where it is told to end it waits
//! for clients that only keep a connection open. Requests are still taken apart and routed by tonic.
//!
//! There are [`CONNECTIONS`] at most. For one more the oldest without a request is ended, as at the daemon's end; gRPC's
//! clients make a new one with their next request. Where all are at work, the new one is closed.
//!
//! Follows RFC 9113, section 6.8, for the way a connection ends.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tonic::service::Routes;
use tracing::{debug, warn};

use super::call::{Calls, Gateway};

/// Clients at a time. kubelet has a few connections, each session of a person one.
const CONNECTIONS: usize = 1024;

/// Between two warnings that there are too many.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// What a client may send of one request before it is read. The data of a session nobody reads stays there.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same for all requests of a connection: sixteen sessions nobody reads must not hold up the seventeenth request.
const CONNECTION_WINDOW_BYTES: u32 = 17 * STREAM_WINDOW_BYTES;

/// How long requests under way may take to end once the daemon is told to.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a client without requests may take to say goodbye. One that reads answers at once.
const GOODBYE: Duration = Duration::from_millis(250);

/// After a connection could not be accepted: what was short may have come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` ends; then connections without requests end at once, and the others with their last one.
pub(super) async fn serve(routes: Routes, listener: UnixListener, shutdown: impl Future<Output = ()> + Send) {
    let routes = routes.prepare();
    let (stop, stopping) = watch::channel(false);
    let mut clients = Clients::default();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => clients.add(stream, &routes, &stopping),
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = clients.leave(), if !clients.connections.is_empty() => {}
        }
    }
    let mut connections = clients.connections;
    drop(listener);
    // Without a connection there is no receiver, and nobody to tell.
    stop.send(true).ok();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all_ended).await.is_err() {
        warn!(limit = ?DRAIN, connections = connections.len(), "requests still under way were dropped");
    }
}

/// All connections there are.
#[derive(Debug, Default)]
struct Clients {
    connections: JoinSet<()>,
    /// Those not asked to end, the oldest first: its serial number, requests, and what asks it.
    staying: BTreeMap<u64, (Id, Calls, watch::Sender<bool>)>,
    last: u64,
    warned: Option<Instant>,
}

impl Clients {
    fn add(&mut self, stream: UnixStream, routes: &Routes, stopping: &watch::Receiver<bool>) {
        if self.staying.len() >= CONNECTIONS && !self.end_oldest_idle() {
            if self.warned.is_none_or(|at| at.elapsed() > WARNING_PAUSE) {
                self.warned = Some(Instant::now());
                warn!(limit = CONNECTIONS, "connection refused: all there may be are at work");
            }
            return;
        }
        let (calls, (leave, leaving)) = (Calls::default(), watch::channel(false));
        let task = connection(stream, routes.clone(), calls.clone(), stopping.clone(), leaving);
        let id = self.connections.spawn(task).id();
        self.last += 1;
        self.staying.insert(self.last, (id, calls, leave));
    }

    /// False if every one has a request under way, or too many are on their way out already.
    fn end_oldest_idle(&mut self) -> bool {
        let oldest = self.staying.iter().find(|(_, (_, calls, _))| calls.is_none()).map(|(serial, _)| *serial);
        let is_room = self.connections.len() < 2 * CONNECTIONS;
        let Some((_, _, leave)) = oldest.filter(|_| is_room).and_then(|serial| self.staying.remove(&serial)) else {
            return false;
        };
        debug!("connection without requests ended: there are too many");
        // One that has just gone needs not be told.
        leave.send(true).ok();
        true
    }

    /// Waits until one has ended, and forgets it.
    async fn leave(&mut self) {
        let ended = match self.connections.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => return,
        };
        self.staying.retain(|_, (id, ..)| *id != ended);
    }
}

/// Serves one client until it goes, or until `stopping` or `leaving` is true and its requests are over.
async fn connection(
    stream: UnixStream,
    routes: Routes,
    calls: Calls,
    mut stopping: watch::Receiver<bool>,
    mut leaving: watch::Receiver<bool>,
) {
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), Gateway::new(routes, calls.clone())));
    let stopped = async {
        // An error means that the server is gone, which is an end too.
        tokio::select! {
            _ = stopping.wait_for(|&stop| stop) => {}
            _ = leaving.wait_for(|&leave| leave) => {}
        }
    };
    tokio::select! {
        result = &mut served => return log(result),
        () = stopped => {}
    }
    // Tells the client, asks it for a sign that it heard, and closes after its last answer.
    served.as_mut().graceful_shutdown();
    let over = async {
        loop {
            calls.none().await;
            tokio::time::sleep(GOODBYE).await;
            if calls.is_none() {
                break;
            }
        }
    };
    tokio::select! {
        result = &mut served => log(result),
        // It only holds the connection, or never said what it wants.
        () = over => debug!("connection of a silent client closed"),
    }
}

fn log(result: hyper::Result<()>) {
    if let Err(error) = result {
        debug!(%error, "connection broke off");
    }
}
