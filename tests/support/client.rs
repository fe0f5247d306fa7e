//! CRI and `aril.v1` over the socket, blocking, every call with a limit.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aril::api::node::{ImportImageRequest, ImportedImage};
use aril::api::service::cri::image_service_client::ImageServiceClient;
use aril::api::service::cri::runtime_service_client::RuntimeServiceClient;
use aril::api::service::node::node_client::NodeClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

/// Longer than any call a test makes may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to one daemon.
#[derive(Clone)]
pub struct Cri {
    executor: Arc<Runtime>,
    channel: Channel,
}

impl Cri {
    /// A connection that is made with the first call.
    pub fn new(executor: &Arc<Runtime>, socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let _context = executor.enter();
        let channel = Endpoint::from_static("http://aril").connect_with_connector_lazy(connector);
        Self { executor: Arc::clone(executor), channel }
    }

    /// One call of the runtime service.
    pub fn runtime<T, F>(&self, call: impl FnOnce(RuntimeServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        self.wait(call(client))
    }

    /// One call of the image service.
    pub fn images<T, F>(&self, call: impl FnOnce(ImageServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.wait(call(ImageServiceClient::new(self.channel.clone())))
    }

    /// One call of what `aril` offers beside CRI.
    pub fn node<T, F>(&self, call: impl FnOnce(NodeClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.wait(call(NodeClient::new(self.channel.clone())))
    }

    /// Imports an archive.
    pub fn import(&self, path: &Path) -> Result<Vec<ImportedImage>, Status> {
        let request = ImportImageRequest { path: path.display().to_string(), reference: String::new() };
        Ok(self.node(|mut c| async move { c.import_image(request).await })?.images)
    }

    fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        self.limited(call).map(Response::into_inner)
    }

    /// Waits for what a daemon has to say.
    pub(super) fn limited<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let limited = async { tokio::time::timeout(LIMIT, call).await };
        let late = |_| Err(Status::new(Code::Unknown, format!("no answer within {LIMIT:?}")));
        self.executor.block_on(limited).unwrap_or_else(late)
    }

    /// All messages of a stream that ends.
    pub fn all<T>(&self, mut stream: Streaming<T>) -> Result<Vec<T>, Status> {
        self.limited(async {
            let mut all = Vec::new();
            while let Some(message) = stream.message().await? {
                all.push(message);
            }
            Ok(all)
        })
    }
}
