//! Events to messages, and the streams that carry them.
//!
//! A stream reads the node's log of events at its client's pace; what a client does not take stays there, or is lost to
//! it, which it is told with `DATA_LOSS`. When the daemon ends streams do at once, with `UNAVAILABLE`.

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::batches::Streamed;
use super::status;
use crate::api::cri::{ContainerEventResponse, ContainerEventType};
use crate::api::node;
use crate::node::{Event, EventKind, EventReader, EventsLost};

/// Messages that may wait for one client: what it does not take stays in the log.
const BACKLOG: usize = 1;

/// Passes on what happens until the client goes, is too slow, or the daemon ends.
pub(super) fn follow<M: Send + 'static>(
    mut reader: EventReader,
    mut stopping: watch::Receiver<bool>,
    message: impl Fn(&Event) -> Option<M> + Send + Sync + 'static,
) -> ReceiverStream<Result<M, Status>> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let pass_on = async {
            loop {
                let told = match reader.next().await {
                    Ok(event) => message(&event).map(Ok),
                    Err(lost) => Some(Err(lost_status(&lost))),
                };
                let Some(told) = told else { continue };
                let is_last = told.is_err();
                if sender.send(told).await.is_err() || is_last {
                    return;
                }
            }
        };
        tokio::select! {
            () = pass_on => return,
            // There may be nothing to tell for long.
            () = sender.closed() => return,
            // An error means that the server is gone, which is an end too.
            _ = stopping.wait_for(|&stop| stop) => {}
        }
        let end = Status::unavailable("the daemon ends, pods go on: list what there is, then follow again");
        sender.try_send(Err(end)).ok();
    });
    ReceiverStream::new(receiver)
}

/// Passes on what is kept, then ends.
pub(super) fn kept<M: Send + 'static>(
    mut reader: EventReader,
    message: impl Fn(&Event) -> Option<M> + Send + 'static,
) -> Streamed<M> {
    let events = std::iter::from_fn(move || reader.next_kept().transpose());
    let messages = events.filter_map(move |event| match event {
        Ok(event) => message(&event).map(Ok),
        Err(lost) => Some(Err(lost_status(&lost))),
    });
    Box::pin(tokio_stream::iter(messages))
}

fn lost_status(lost: &EventsLost) -> Status {
    Status::data_loss(lost.to_string())
}

/// An event in CRI's words: with all of its pod as it was at that moment.
pub(super) fn response(event: &Event) -> ContainerEventResponse {
    ContainerEventResponse {
        container_id: subject(event).to_owned(),
        container_event_type: match event.kind {
            EventKind::Created => ContainerEventType::ContainerCreatedEvent,
            EventKind::Started => ContainerEventType::ContainerStartedEvent,
            EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
            EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
        }
        .into(),
        created_at: event.at,
        pod_sandbox_status: Some(status::sandbox_status(&event.sandbox)),
        containers_statuses: event.containers.iter().map(|container| status::container_status(container)).collect(),
    }
}

/// An event for people.
pub(super) fn summary(event: &Event) -> node::Event {
    use node::event::Kind;
    let pod = event.sandbox.config.metadata.clone().unwrap_or_default();
    let mut summary = node::Event {
        at: event.at,
        kind: match event.kind {
            EventKind::Created => Kind::Created,
            EventKind::Started => Kind::Started,
            EventKind::Stopped => Kind::Stopped,
            EventKind::Deleted => Kind::Deleted,
        }
        .into(),
        pod_sandbox_id: event.sandbox.id.to_string(),
        pod: pod.name,
        namespace: pod.namespace,
        ..node::Event::default()
    };
    match &event.container {
        Some(container) => {
            let exit = status::exit(container);
            summary.container_id = container.id.to_string();
            summary.container = container.name().0.to_owned();
            summary.image.clone_from(&container.image_name);
            summary.exit_code = exit.map_or(0, |exit| exit.code);
            summary.reason = exit.map(|exit| exit.reason.as_str().to_owned()).unwrap_or_default();
            summary.labels.clone_from(&container.config.labels);
        }
        None => summary.labels.clone_from(&event.sandbox.config.labels),
    }
    summary
}

/// The id of what it happened to; a sandbox counts as a container here.
fn subject(event: &Event) -> &str {
    event.container.as_ref().map_or(event.sandbox.id.as_str(), |container| container.id.as_str())
}
