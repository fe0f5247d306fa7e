//! The gRPC services: CRI v1's RuntimeService and ImageService, and aril's own Node, on one socket.
//!
//! Owns the translation between messages and the node's terms, and nothing else: no state, no
//! decision. An RPC that is not there says so by name with `Unimplemented`. One function maps
//! errors to codes ([`error::status`]).
//!
//! NetworkReady is reported as it is: pods have the host's network or a network namespace with
//! loopback alone, so it is false and says why. Pods on the host's network run all the same.
//!
//! Follows CRI v1 (`proto/cri.proto`) and `proto/aril.proto`.

mod error;
mod filter;
mod images;
mod info;
mod people;
mod pull;
mod runtime;
mod session;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tracing::{info, warn};

use crate::api::service::cri::image_service_server::ImageServiceServer;
use crate::api::service::cri::runtime_service_server::RuntimeServiceServer;
use crate::api::service::node::node_server::NodeServer;
use crate::node::Node;

/// The largest message taken, as with kubelet's client.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// What a client may send of one request before it is read. The data of a session nobody reads stays there.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same for all requests of a connection: sixteen sessions nobody reads must not hold up the seventeenth request.
const CONNECTION_WINDOW_BYTES: u32 = 17 * STREAM_WINDOW_BYTES;

/// How long requests under way may take to end once the daemon is told to.
const DRAIN: Duration = Duration::from_secs(10);

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
#[error("serve the socket")]
pub struct ServeError {
    #[from]
    source: tonic::transport::Error,
}

/// All three services of one node.
#[derive(Debug, Clone)]
struct Service {
    node: Arc<Node>,
}

/// Serves requests on `listener` until `shutdown` ends; then those under way get ten seconds.
///
/// Workloads are not touched. Needs a tokio runtime with time and I/O.
///
/// # Errors
/// [`ServeError`] if the transport fails.
pub async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let service = Service { node };
    let runtime = RuntimeServiceServer::new(service.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let images = ImageServiceServer::new(service.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let people = NodeServer::new(service).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let (told, stopping) = oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        info!("stopping, workloads go on");
        // The other side is only gone if the server has ended by itself.
        told.send(()).ok();
    };
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(runtime)
        .add_service(images)
        .add_service(people)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown);
    let too_late = async {
        match stopping.await {
            Ok(()) => tokio::time::sleep(DRAIN).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server => Ok(result?),
        () = too_late => {
            warn!(limit = ?DRAIN, "requests still under way were dropped");
            Ok(())
        }
    }
}
