//! A shim that did not answer when the daemon started is asked again until it does, or is gone.

use std::sync::Arc;

use tracing::info;

use super::ending::read_exits;
use super::{Doing, Done, Pod};
use crate::id::ContainerId;
use crate::node::now;
use crate::node::recover::{Found, complete, find_again, missed};
use crate::node::state::SandboxState;

impl Pod {
    pub(super) fn look_for_shim(&mut self) {
        let known = self.containers.keys().cloned().collect();
        let search = find_again(Arc::clone(&self.node), self.record.id.clone(), known);
        self.ops.push(async move { Done::Found(search.await.map(Box::new)) });
    }

    pub(super) fn on_found(&mut self, found: Option<Found>) {
        let stands = matches!(self.record.state, SandboxState::Ready | SandboxState::Stopping);
        if self.doing != Doing::Nothing || !stands {
            // It is being ended, by a connection of its own.
            return;
        }
        Arc::make_mut(&mut self.record).unreachable = false;
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for entry in self.containers.values_mut() {
            Arc::make_mut(&mut entry.record).unreachable = false;
        }
        let Some((shim, events, state)) = found else {
            return self.on_shim_gone();
        };
        info!(sandbox = %self.record.id, "the shim answers again");
        self.shim = Some(shim);
        self.events = Some(events);
        self.publish();
        let exits = read_exits(&self.node, &self.record.id);
        for id in ids {
            self.publish_container(&id);
            let Some(entry) = self.containers.get_mut(&id) else { continue };
            let seen = state.containers.iter().find(|c| c.container_id == id.as_str());
            complete(Arc::make_mut(&mut entry.record), seen);
            for event in missed(&entry.record.state, seen, exits.get(&id), now()) {
                self.apply(&id, &event);
            }
        }
        if self.record.state == SandboxState::Stopping {
            // A stop that failed because it did not answer.
            self.begin_shut_down();
        }
    }
}
