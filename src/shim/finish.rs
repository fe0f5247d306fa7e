//! The end of a container: its exit told, its log complete, its cgroup gone.
//!
//! The order matters to those who watch: when the exit is told, the log is complete and the record on disk; out-of-memory
//! kills are read while the cgroup is there.

use std::time::Duration;

use super::attach::Place;
use super::connection::ReplyTo;
use super::container::{Container, DRAIN_DEADLINE, Phase, no_container};
use super::exit::{self, START_FAILED};
use super::failure::Failure;
use super::log::Stream;
use super::poll::{Key, Timer};
use super::server::Server;
use crate::plan;
use crate::runtime::cgroup::{Cgroup, CgroupError};
use crate::wire::pb;

/// Between two tries to remove a cgroup whose processes are still dying.
pub const SWEEP_PAUSE: Duration = Duration::from_millis(2);
/// After this many tries, some seconds, processes count as unkillable.
pub const SWEEP_TRIES: u32 = 2500;

/// Something whose cgroup is to be removed.
#[derive(Debug)]
pub struct Sweeping {
    /// Which.
    pub key: Key,
    /// How often it was tried.
    pub tries: u32,
}

impl Server {
    /// A container's first process has been reaped.
    pub fn container_ended(&mut self, key: Key, code: i32) {
        let finished_at = exit::now();
        // What it said last.
        self.channel_ready(key);
        self.end_channel(key);
        self.timers.clear(Timer::Container(key));
        let Some(cgroup) = self.containers.get(&key).and_then(Container::cgroup) else { return };
        let oom_killed = cgroup.oom_kills() > 0;
        // Its PID namespace took most with it; not those of a shared one.
        if let Err(e) = cgroup.kill() {
            self.warn_of(key, e.to_string());
        }
        let Some(container) = self.containers.get_mut(&key) else { return };
        let starting = match &mut container.phase {
            Phase::Creating(to) => {
                let to = *to;
                return self.create_failed(key, to, code);
            }
            Phase::Starting(waiting) => Some(std::mem::take(waiting)),
            _ => None,
        };
        let mut end = pb::Exit { code, finished_at, oom_killed, message: String::new() };
        if starting.is_some() {
            let failure = container.failure.get_or_insert_with(|| died_early(container.pid, "executed", code));
            end.code = START_FAILED;
            end.message = failure.message().to_owned();
        }
        container.phase = Phase::Exiting(end, starting.unwrap_or_default());
        self.timers.set(Timer::Container(key), DRAIN_DEADLINE);
        self.drain(key);
    }

    /// A container that never came to be leaves nothing.
    fn create_failed(&mut self, key: Key, to: ReplyTo, code: i32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        container.streams.close(&mut place);
        let pid = container.pid;
        let failure = container.failure.take().unwrap_or_else(|| died_early(pid, "ready", code));
        container.failure = Some(failure);
        // Whoever waits for its creation or deletion is answered when its cgroup is gone.
        container.phase = Phase::Failed(to);
        self.sweep(key);
    }

    /// Reads the rest of an ended container's output.
    pub fn drain(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        if container.streams.drain(&mut place, &mut self.scratch) {
            self.finish(key);
        }
    }

    /// Nothing more is read of its output: tells the exit to disk, then to the daemons.
    pub fn finish(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Phase::Exiting(end, starting) = &mut container.phase else { return };
        let (end, starting) = (end.clone(), std::mem::take(starting));
        self.timers.clear(Timer::Container(key));
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        container.streams.finish(&mut place, &mut self.scratch);
        container.phase = Phase::Exited(end.clone());
        let id = container.id.clone();
        let failure = container.failure.clone();
        self.tell_notes(key);
        if let Some(sandbox) = &self.sandbox
            && let Err(e) = exit::write_record(&sandbox.exits, &id, &end)
        {
            self.warn(id.as_str(), format!("write exit record of container {id}: {e}"));
        }
        // One that was starting has said why it did not run.
        for (to, failure) in starting.into_iter().zip(std::iter::repeat(failure)) {
            if let Some(failure) = failure {
                self.reply(to, failure.into_reply(), Vec::new());
            }
        }
        self.event(pb::event::Body::Exited(pb::Exited { container_id: id.to_string(), exit: Some(end) }));
        self.sweep(key);
    }

    /// Has a container's cgroup removed once what is urgent has been done.
    fn sweep(&mut self, key: Key) {
        self.sweeping.push(Sweeping { key, tries: 0 });
    }

    /// Removes the cgroups of ended containers. Those still busy are tried again when `Timer::Sweep` falls due; only
    /// then with `again`.
    pub fn sweep_cgroups(&mut self, again: bool) {
        for mut sweeping in std::mem::take(&mut self.sweeping) {
            if sweeping.tries > 0 && !again {
                self.sweeping.push(sweeping);
                continue;
            }
            let Some(container) = self.containers.get(&sweeping.key) else { continue };
            match container.cgroup().map_or(Ok(()), Cgroup::remove) {
                Err(CgroupError::Busy { .. }) if sweeping.tries < SWEEP_TRIES => {
                    sweeping.tries += 1;
                    self.sweeping.push(sweeping);
                    self.timers.set(Timer::Sweep, SWEEP_PAUSE);
                }
                done => self.swept(sweeping.key, done.err()),
            }
        }
    }

    /// A container's cgroup is gone, or cannot be removed.
    fn swept(&mut self, key: Key, error: Option<CgroupError>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let deleting = std::mem::take(&mut container.deleting);
        let never_was =
            if let Phase::Failed(to) = container.phase { Some((to, container.failure.take())) } else { None };
        if error.is_none()
            && let Some(sandbox) = &mut self.sandbox
        {
            // What remains of it takes no descriptors: dead containers are kept for long.
            container.init.take().inspect(|init| sandbox.book.strike(init.cgroup.path()));
            container.streams.end_log();
            container.process = plan::Process::default();
        }
        if never_was.is_some() || (error.is_none() && !deleting.is_empty()) {
            self.forget(key);
        }
        if let Some((to, Some(failure))) = never_was {
            self.reply(to, failure.into_reply(), Vec::new());
        }
        if let (Some(e), true) = (&error, deleting.is_empty()) {
            self.warn_of(key, e.to_string());
        }
        for to in deleting {
            match &error {
                None => self.done(to),
                Some(e) => self.reply(to, Failure::from(e.clone()).into_reply(), Vec::new()),
            }
        }
    }

    /// Drops a container with everything the shim holds of it.
    fn forget(&mut self, key: Key) {
        if let Some(mut container) = self.containers.remove(&key) {
            let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
            container.streams.close(&mut place);
            self.timers.clear(Timer::Container(key));
        }
        self.forget_sessions(key);
    }

    /// Deletes a container, killing it first if `force`; the reply comes when its cgroup is gone.
    ///
    /// # Errors
    /// [`Failure`] if it runs and is not to be killed, or cannot be.
    pub fn delete(&mut self, to: ReplyTo, request: &pb::Delete) -> Result<(), Failure> {
        let Some(key) = self.find(&request.container_id) else {
            self.done(to);
            return Ok(());
        };
        let Some(container) = self.containers.get_mut(&key) else { return Err(no_container(&request.container_id)) };
        if !container.ended() {
            if !request.force {
                let (id, phase) = (&container.id, container.phase.name());
                return Err(Failure::refused(format!("container {id} is {phase}; stop it first")));
            }
            container.kill()?;
        }
        container.deleting.push(to);
        let exited = matches!(container.phase, Phase::Exited(_));
        // Unless it is being removed already.
        if exited && !self.sweeping.iter().any(|sweeping| sweeping.key == key) {
            self.sweep(key);
        }
        Ok(())
    }

    /// Something to read from a container.
    pub fn output_ready(&mut self, key: Key, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if matches!(container.phase, Phase::Exiting(..)) {
            return self.drain(key);
        }
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        container.streams.readable(&mut place, stream, &mut self.scratch);
        self.tell_notes(key);
    }

    /// Passes on what a container's log has to say.
    fn tell_notes(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Some(note) = container.streams.log().and_then(super::logfile::LogFile::take_note) {
            self.warn_of(key, note);
        }
    }

    fn warn_of(&mut self, key: Key, message: String) {
        let id = self.containers.get(&key).map(|container| container.id.to_string()).unwrap_or_default();
        self.warn(&id, message);
    }
}

impl Container {
    /// Kills everything in it.
    ///
    /// # Errors
    /// [`CgroupError`]; its first process has got the signal all the same.
    pub fn kill(&self) -> Result<(), CgroupError> {
        // It may not have entered its cgroup yet.
        self.kill_first();
        self.cgroup().map_or(Ok(()), Cgroup::kill)
    }
}

fn died_early(pid: i32, before: &str, code: i32) -> Failure {
    let how = if code > 128 { format!("was killed by signal {}", code - 128) } else { format!("exited with {code}") };
    let message = format!(
        "the container's first process {pid} {how} before it was {before}; look for an out-of-memory kill of it"
    );
    Failure::new(pb::error::Kind::Internal, message)
}
