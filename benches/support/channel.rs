//! How clients reach a daemon.

use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// A channel to a unix socket; connects with the first call.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The address only fills the request's authority.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}
