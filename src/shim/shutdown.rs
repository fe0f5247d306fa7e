//! The end of the pod: everything killed, its cgroups removed, the shim gone.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::connection::ReplyTo;
use super::failure::Failure;
use super::finish::SWEEP_PAUSE;
use super::poll::Timer;
use super::server::Server;
use crate::runtime::cgroup::{CgroupError, SWEEP_PATIENCE, sweep};
use crate::wire::pb::error::Kind;
use crate::wire::{CGROUPS_NAME, SOCKET_NAME};

/// Between two tries to remove cgroups that were busy twice.
const LATER_PAUSE: Duration = Duration::from_millis(20);
/// How long killed processes may take to end.
const DEADLINE: Duration = Duration::from_secs(10);

/// A shutdown under way.
#[derive(Debug)]
pub struct Ending {
    /// Who waits for it.
    waiting: Vec<ReplyTo>,
    /// The cgroup that could not be removed last, as processes are in it.
    busy: Option<CgroupError>,
}

impl Server {
    /// Kills everything; the reply comes last of all.
    pub fn shutdown(&mut self, to: ReplyTo) {
        match &mut self.ending {
            Some(ending) => ending.waiting.push(to),
            None => self.ending = Some(Ending { waiting: vec![to], busy: None }),
        }
        let failed: Vec<_> = self
            .containers
            .values()
            .filter(|container| !container.ended())
            .filter_map(|container| container.kill().err().map(|e| (container.id.to_string(), e.to_string())))
            .collect();
        failed.into_iter().for_each(|(id, message)| self.warn(&id, message));
        if let Some(pid) = self.sandbox.as_ref().and_then(|sandbox| sandbox.init_pid) {
            // Not reaped yet, so the pid is its own.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        self.timers.set(Timer::Shutdown, DEADLINE);
    }

    /// Something outlives its SIGKILL.
    pub fn shutdown_overdue(&mut self) {
        let Some(Ending { waiting, busy }) = self.ending.take() else { return };
        let left = self.containers.values().filter(|container| !container.ended());
        let left: Vec<_> = left.map(|container| container.pid.to_string()).collect();
        let failure = match busy.filter(|_| left.is_empty()) {
            Some(e) => Failure::from(e),
            None => Failure::new(
                Kind::Deadline,
                format!(
                    "shut the pod down: processes {} do not end {DEADLINE:?} after SIGKILL; they may wait for a storage \
                     device",
                    left.join(", ")
                ),
            ),
        };
        for to in waiting {
            self.reply(to, failure.clone().into_reply(), Vec::new());
        }
    }

    /// Once nothing of the pod runs, removes what is left of it. True: the shim has nothing more to do.
    pub fn finish_shutdown(&mut self) -> bool {
        let alive = self.containers.values().any(|container| !container.ended())
            || self.sandbox.as_ref().is_some_and(|sandbox| sandbox.init_pid.is_some());
        if self.ending.is_none() || alive {
            return false;
        }
        let keys: Vec<_> = self.containers.keys().copied().collect();
        // Exits still waiting for output.
        keys.into_iter().for_each(|key| self.finish(key));
        let result = match self.remove_cgroups(Duration::ZERO) {
            Err(e @ CgroupError::Busy { .. }) => {
                // Most are gone a moment later.
                let again = self.ending.as_mut().is_some_and(|ending| ending.busy.replace(e).is_some());
                self.timers.set(Timer::Sweep, if again { LATER_PAUSE } else { SWEEP_PAUSE });
                return false;
            }
            removed => removed.map_err(Failure::from).and_then(|()| self.remove_files()),
        };
        let Some(Ending { waiting, .. }) = self.ending.take() else { return false };
        self.timers.clear(Timer::Shutdown);
        let over = result.is_ok();
        for to in waiting {
            match &result {
                Ok(()) => self.done(to),
                Err(failure) => self.reply(to, failure.clone().into_reply(), Vec::new()),
            }
        }
        over
    }

    /// Removes what is left of the pod once nothing runs in it, waiting for it: of use while there is nothing else to do.
    ///
    /// # Errors
    /// [`Failure`]; to be tried again.
    pub fn remove_rest(&self) -> Result<(), Failure> {
        self.remove_cgroups(SWEEP_PATIENCE)?;
        self.remove_files()
    }

    fn remove_cgroups(&self, patience: Duration) -> Result<(), CgroupError> {
        self.sandbox.as_ref().map_or(Ok(()), |sandbox| sweep(self.pod.hierarchies(), &sandbox.book.text(), patience))
    }

    fn remove_files(&self) -> Result<(), Failure> {
        let Some(sandbox) = &self.sandbox else { return Ok(()) };
        for name in [CGROUPS_NAME, SOCKET_NAME] {
            match unlinkat(&sandbox.run_dir, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(Failure::io(&format!("remove {name}"), &e.into())),
            }
        }
        Ok(())
    }
}
