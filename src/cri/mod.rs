//! The gRPC services: CRI v1's RuntimeService and ImageService, and aril's own Node, on one socket.
//!
//! Owns the translation between messages and the node's terms, and nothing else: no state, no
//! decision. An RPC that is not there says so by name with `Unimplemented`. One function maps
//! errors to codes ([`error::status`]).
//!
//! NetworkReady is reported as it is: where the network's driver can connect no pod it is false and says why. Pods on the
//! host's network run all the same.
//!
//! Follows CRI v1 (`proto/cri.proto`) and `proto/aril.proto`.

mod batches;
mod call;
mod error;
mod events;
mod filter;
mod images;
mod info;
mod metrics;
mod network;
mod people;
mod pull;
mod runtime;
mod server;
mod session;
mod stats;
mod status;
mod streaming;
mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tracing::info;

use crate::api::service::cri::image_service_server::ImageServiceServer;
use crate::api::service::cri::runtime_service_server::RuntimeServiceServer;
use crate::api::service::node::node_server::NodeServer;
use crate::node::Node;

pub use self::metrics::{Metric, all as metrics_of_pods};

/// The largest message taken, as with kubelet's client.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// All three services of one node.
#[derive(Debug, Clone)]
struct Service {
    node: Arc<Node>,
    streams: Arc<streaming::Server>,
    /// Becomes true when the daemon ends.
    stopping: watch::Receiver<bool>,
}

/// Serves requests on `listener` until `shutdown` ends; then those under way get ten seconds, and clients that have
/// none are let go at once.
///
/// Streams of Exec, Attach and PortForward are served at `streams`, from the first of them on; they end with the
/// serving. Workloads are not touched. Needs a tokio runtime with time and I/O.
pub async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    streams: SocketAddr,
    shutdown: impl Future<Output = ()> + Send,
) {
    let streams = Arc::new(streaming::Server::new(Arc::clone(&node), streams));
    let (stop, stopping) = watch::channel(false);
    let service = Service { node, streams, stopping };
    let runtime = RuntimeServiceServer::new(service.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let images = ImageServiceServer::new(service.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let people = NodeServer::new(service).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let shutdown = async move {
        shutdown.await;
        info!("stopping, workloads go on");
        stop.send_replace(true);
    };
    server::serve(Routes::new(runtime).add_service(images).add_service(people), listener, shutdown).await;
}
