//! aril's own Node service: what people need beside CRI.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::batches::Streamed;
use super::error::{image_store, import, invalid, status as error};
use super::pull::PullStream;
use super::{Service, events, network, session, tunnel};
use crate::api::node::{attach_request, exec_request, tunnel_request, *};
use crate::api::service::node::node_server::Node;
use crate::image;
use crate::node::{self, SessionConfig, Streams};

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
        let _at_work = self.node.at_work();
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

    type PullImageStream = PullStream;

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullStream> {
        super::pull::for_people(&self.node, request.into_inner()).map(Response::new)
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let RemoveImageRequest { reference, force } = request.into_inner();
        let node = Arc::clone(&self.node);
        let removed = tokio::task::spawn_blocking(move || remove(&node, &reference, force)).await;
        removed.map_err(|e| Status::internal(e.to_string()))?.map(Response::new)
    }

    async fn verify_image(&self, request: Request<VerifyImageRequest>) -> Answer<VerifyImageResponse> {
        let VerifyImageRequest { reference } = request.into_inner();
        let _at_work = self.node.at_work();
        let images = self.node.images().clone();
        let wanted = reference.clone();
        let verified = tokio::task::spawn_blocking(move || images.verify(&wanted)).await;
        let verified = verified.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| image_store(&e))?;
        let Some(verified) = verified else {
            return Err(Status::not_found(format!("no image is called {reference:?}; see `aril image ls`")));
        };
        let layer = |layer: image::VerifiedLayer| VerifiedLayer {
            key: layer.key,
            diff_id: layer.diff_id.to_string(),
            files: layer.files,
            bytes: layer.bytes,
            faults: layer.faults,
        };
        let layers = verified.layers.into_iter().map(layer).collect();
        Ok(Response::new(VerifyImageResponse { id: verified.id.to_string(), layers }))
    }

    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Answer<DiskUsageResponse> {
        let node = Arc::clone(&self.node);
        let usage = tokio::task::spawn_blocking(move || node.disk_usage()).await;
        let (images, containers) = usage.map_err(|e| Status::internal(e.to_string()))?;
        let image = |usage: node::ImageUsage| ImageUsage {
            id: usage.image.id.to_string(),
            tags: usage.image.repo_tags.clone(),
            digests: usage.image.repo_digests.clone(),
            size_bytes: usage.image.size_bytes,
            own_bytes: usage.own_bytes,
            pinned: self.node.is_pinned(&usage.image),
            containers: usage.containers.iter().map(ToString::to_string).collect(),
        };
        let container = |usage: node::ContainerUsage| ContainerUsage {
            id: usage.record.id.to_string(),
            name: usage.record.name().0.to_owned(),
            running: usage.record.state.is_running(),
            written_bytes: usage.written_bytes,
        };
        Ok(Response::new(DiskUsageResponse {
            images: images.into_iter().map(image).collect(),
            containers: containers.into_iter().map(container).collect(),
            images_bytes: self.node.images().usage().used_bytes,
        }))
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
        let ExecStart { container_id, command, tty, stdin, size, env, working_dir, user } = start;
        let size = size.map(|size| session::size(&size)).unwrap_or_default();
        let config = SessionConfig { command, tty, stdin, size, env, working_dir, user };
        let session = self.node.exec(&container_id, config).await.map_err(|e| error(&e))?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(session::exec(session, input, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TunnelStream = ReceiverStream<Result<TunnelResponse, Status>>;

    async fn tunnel(&self, request: Request<Streaming<TunnelRequest>>) -> Answer<Self::TunnelStream> {
        let mut input = request.into_inner();
        let Some(tunnel_request::Body::Start(start)) = input.message().await?.and_then(|m| m.body) else {
            return Err(invalid("start", "missing: the first message says where to"));
        };
        let TunnelStart { pod_sandbox_id, port } = start;
        let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| invalid("port", "is none"))?;
        let connection = self.node.connect(&pod_sandbox_id, port).await.map_err(|e| error(&e))?;
        let name = format!("port {port} of sandbox {}", pod_sandbox_id.chars().take(12).collect::<String>());
        let (sender, receiver) = mpsc::channel(tunnel::BACKLOG);
        tokio::spawn(tunnel::serve(connection, input, sender, name));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type EventsStream = Streamed<Event>;

    async fn events(&self, request: Request<EventsRequest>) -> Answer<Self::EventsStream> {
        let EventsRequest { follow, since } = request.into_inner();
        let reader = self.node.read_events();
        let wanted = move |event: &node::Event| (event.at >= since).then(|| events::summary(event));
        Ok(Response::new(match follow {
            true => Box::pin(events::follow(reader, self.stopping.clone(), wanted)),
            false => events::kept(reader, wanted),
        }))
    }

    async fn list_networks(&self, _: Request<ListNetworksRequest>) -> Answer<ListNetworksResponse> {
        Ok(Response::new(network::list(&self.node).await))
    }

    async fn inspect_network(&self, request: Request<InspectNetworkRequest>) -> Answer<InspectNetworkResponse> {
        network::inspect(&self.node, &request.get_ref().driver).await.map(Response::new)
    }

    async fn list_network_pods(&self, _: Request<ListNetworkPodsRequest>) -> Answer<ListNetworkPodsResponse> {
        Ok(Response::new(network::pods(&self.node)))
    }

    async fn system_reset(&self, _: Request<SystemResetRequest>) -> Answer<SystemResetResponse> {
        network::reset(&self.node).await.map(Response::new)
    }

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        let settings = self.node.settings();
        let (pods, containers) = self.node.counts();
        let network = self.node.network().status().await;
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
            network_driver: network.driver.to_owned(),
            network_problem: network.problem.unwrap_or_default(),
        }))
    }
}

/// Takes one name from an image, and the image with its last one; by its id the image.
fn remove(node: &node::Node, reference: &str, force: bool) -> Result<RemoveImageResponse, Status> {
    let Some(image) = node.images().get(reference) else {
        return Err(Status::not_found(format!("no image has the name or id {reference:?}; see `aril image ls`")));
    };
    let id = image.id.to_string();
    let name = node.images().name(reference);
    if let Some(name) = name {
        // A digest alone is a name; beside tags, or a tag beside it, it goes with the last of those.
        let is_tag = image.repo_tags.contains(&name);
        let others = image.repo_tags.iter().chain(if is_tag { &[][..] } else { &image.repo_digests[..] });
        if others.clone().any(|other| *other != name) {
            node.images().untag(&name).map_err(|e| image_store(&e))?;
            return Ok(RemoveImageResponse { id, names: vec![name], removed: false });
        }
    } else if image.repo_tags.len() > 1 && !force {
        let names = image.repo_tags.join(", ");
        let message = format!("image {reference} is called {names}; remove one of the names, or all with -f");
        return Err(Status::failed_precondition(message));
    }
    if let Some(container) = node.containers_of(&image.id).first()
        && !force
    {
        let (id, name) = (container.id.short(), container.name().0);
        let message = format!("container {name} ({id}) uses image {reference}; remove it first, or the image with -f");
        return Err(Status::failed_precondition(message));
    }
    node.images().remove(&id).map_err(|e| image_store(&e))?;
    let names = image.repo_tags.iter().chain(&image.repo_digests).cloned().collect();
    Ok(RemoveImageResponse { id, names, removed: true })
}
