//! Events of pods and containers.

use aril::api::cri::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use tonic::{Code, Status, Streaming};

use super::Cri;

/// What a short test writes for CRI's long names.
pub use ContainerEventType::{
    ContainerCreatedEvent as CREATED, ContainerDeletedEvent as DELETED, ContainerStartedEvent as STARTED,
    ContainerStoppedEvent as STOPPED,
};

/// Somebody who follows `GetContainerEvents`.
pub struct Events {
    cri: Cri,
    stream: Streaming<ContainerEventResponse>,
}

impl Events {
    /// Begins with what the daemon keeps.
    pub fn follow(cri: Cri) -> Self {
        let stream = cri.runtime(|mut c| async move { c.get_container_events(GetEventsRequest {}).await });
        Self { stream: stream.expect("follow events"), cri }
    }

    /// The next event, or why there is none.
    pub fn try_next(&mut self) -> Result<ContainerEventResponse, Status> {
        let next = self.cri.limited(self.stream.message())?;
        next.ok_or_else(|| Status::new(Code::Unknown, "the stream ended without a word"))
    }

    /// The next event, which must come.
    pub fn next(&mut self) -> ContainerEventResponse {
        self.try_next().unwrap_or_else(|e| panic!("the next event: {e}"))
    }

    /// The next events, by type and id.
    pub fn take(&mut self, count: usize) -> Vec<(ContainerEventType, String)> {
        (0..count).map(|_| self.next()).map(|e| (e.container_event_type(), e.container_id)).collect()
    }
}
