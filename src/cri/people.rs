//! aril's own Node service: what people need beside CRI.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::error::{import, invalid, status as error};
use super::{Service, session};
use crate::api::node::{attach_request, exec_request, *};
use crate::api::service::node::node_server::Node;
use crate::node::{SessionConfig, Streams};

/// Messages to a client that may wait; then what it is about waits too.
const BACKLOG: usize = 16;

type Answer<T> = Result<Response<T>, Status>;
type Output = ReceiverStream<Result<StreamResponse, Status>>;

#[tonic::async_trait]
impl Node for Service {
    async fn import_image(&self, request: Request<ImportImageRequest>) -> Answer<ImportImageResponse> {
        let ImportImageRequest { path, reference } = request.into_inner();
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err(invalid("path", "not absolute"));
        }
        let images = self.node.images().clone();
        let reference = (!reference.is_empty()).then_some(reference);
        let imported = tokio::task::spawn_blocking(move || images.import(&path, reference.as_deref())).await;
        let imported = imported.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| import(&e))?;
        let images = imported.iter().map(|image| ImportedImage {
            id: image.id.to_string(),
            references: image.repo_tags.iter().chain(&image.repo_digests).cloned().collect(),
            size_bytes: image.size_bytes,
        });
        Ok(Response::new(ImportImageResponse { images: images.collect() }))
    }

    type AttachStream = Output;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Answer<Output> {
        let mut input = request.into_inner();
        let Some(attach_request::Body::Start(start)) = input.message().await?.and_then(|m| m.body) else {
            return Err(invalid("start", "missing: the first message says what to attach to"));
        };
        let AttachStart { container_id, stdin, stdout, stderr } = start;
        let streams = Streams { stdin, stdout, stderr };
        let attachment = self.node.attach(&container_id, streams).await.map_err(|e| error(&e))?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(session::attach(attachment, input, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ExecStream = Output;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answer<Output> {
        let mut input = request.into_inner();
        let Some(exec_request::Body::Start(start)) = input.message().await?.and_then(|m| m.body) else {
            return Err(invalid("start", "missing: the first message says what to run"));
        };
        let ExecStart { container_id, command, tty, stdin, size } = start;
        let size = size.map(|size| session::size(&size)).unwrap_or_default();
        let config = SessionConfig { command, tty, stdin, size };
        let session = self.node.exec(&container_id, config).await.map_err(|e| error(&e))?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(session::exec(session, input, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        let settings = self.node.settings();
        let (pods, containers) = self.node.counts();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().cast_signed(),
            root_dir: settings.root.to_string_lossy().into_owned(),
            state_dir: settings.state.to_string_lossy().into_owned(),
            cgroup_driver: "cgroupfs".to_owned(),
            cgroup_version: crate::node::cgroup_version().to_owned(),
            pods: count(pods),
            containers: count(containers),
            images: count(self.node.images().list().len()),
            started_at: self.node.started_at(),
        }))
    }
}
