//! The server: HTTP/2 on the unix socket, one task a connection.
//!
//! Not tonic's own. That one answers `CANCELLED` where a client's time has passed, and where it is told to end it waits
//! for clients that only keep a connection open. Requests are still taken apart and routed by tonic.
//!
//! Follows RFC 9113, section 6.8, for the way a connection ends.

use std::pin::pin;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing::{debug, warn};

use super::call::{Calls, Gateway};

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
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, routes.clone(), stopping.clone()));
                }
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // What has ended is forgotten.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    // Without a connection there is no receiver, and nobody to tell.
    stop.send(true).ok();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all_ended).await.is_err() {
        warn!(limit = ?DRAIN, connections = connections.len(), "requests still under way were dropped");
    }
}

/// Serves one client until it goes, or until `stopping` is true and its requests are over.
async fn connection(stream: UnixStream, routes: Routes, mut stopping: watch::Receiver<bool>) {
    let calls = Calls::default();
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), Gateway::new(routes, calls.clone())));
    let stopped = async {
        // An error means that the server is gone, which is an end too.
        stopping.wait_for(|&stop| stop).await.map(drop).unwrap_or(());
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
