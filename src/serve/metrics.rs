//! The endpoint for Prometheus, if one is asked for: a place that is taken now may be free later, and keeps no pod waiting.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use aril::config::MetricsAddress;
use aril::metrics::{Listener, serve};
use aril::node::Node;

use super::listener::Bound;

/// How often it is tried to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// The endpoint, until it is told to end.
#[must_use = "it is served until this ends"]
pub struct Metrics(Option<(oneshot::Sender<()>, JoinHandle<()>)>);

/// Serves the numbers at `address` from now on, or as soon as that can be had.
pub fn begin(node: &Arc<Node>, address: Option<&MetricsAddress>) -> Metrics {
    let Some(address) = address.cloned() else { return Metrics(None) };
    let (end, ended) = oneshot::channel();
    Metrics(Some((end, tokio::spawn(run(Arc::clone(node), address, ended)))))
}

impl Metrics {
    /// Ends all connections and takes the socket's file away.
    pub async fn end(self) {
        let Some((end, task)) = self.0 else { return };
        drop(end);
        // It ends at once, however it does.
        task.await.ok();
    }
}

async fn run(node: Arc<Node>, address: MetricsAddress, mut ended: oneshot::Receiver<()>) {
    let mut is_told = false;
    let (listener, file) = loop {
        match listen(&address).await {
            Ok(listening) => break listening,
            Err(e) if !is_told => error!(error = %e, "metrics not served yet"),
            Err(_) => {}
        }
        is_told = true;
        tokio::select! {
            _ = &mut ended => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    };
    match &address {
        MetricsAddress::Tcp(address) if !address.ip().to_canonical().is_loopback() => {
            warn!(%address, "serving metrics to whoever reaches this address, without a password and not encrypted");
        }
        MetricsAddress::Tcp(address) => info!(%address, "serving metrics"),
        MetricsAddress::Unix(path) => info!(address = %path.display(), "serving metrics"),
    }
    tokio::select! {
        _ = &mut ended => {}
        () = serve(node, listener) => {}
    }
    if let Some(file) = file {
        file.remove();
    }
}

async fn listen(address: &MetricsAddress) -> Result<(Listener, Option<Bound>), Box<dyn Error + Send + Sync>> {
    Ok(match address {
        MetricsAddress::Tcp(address) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|e| format!("listen on {address} (metrics.address): {e}"))?;
            (Listener::Tcp(listener), None)
        }
        MetricsAddress::Unix(path) => {
            let bound = Bound::new(path, "metrics.address")?;
            (Listener::Unix(bound.listener()?), Some(bound))
        }
    })
}
