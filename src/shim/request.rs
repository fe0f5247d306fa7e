//! Requests of the daemon, one by one.

use std::os::fd::OwnedFd;

use nix::unistd::pipe2;
use prost::Message;

use super::attach::Place;
use super::connection::ReplyTo;
use super::container::{Container, Phase, no_container};
use super::failure::Failure;
use super::log::Stream;
use super::server::Server;
use crate::plan;
use crate::wire::pb;
use crate::wire::pb::error::Kind;
use crate::wire::pb::request::Body;

/// Greatest signal number.
const MAX_SIGNAL: i32 = 64;

impl Server {
    /// Answers a hello.
    pub fn hello(&mut self, to: ReplyTo, version: u32) {
        let reply = pb::HelloReply {
            version,
            shim_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: nix::unistd::getpid().as_raw(),
        };
        self.reply(to, pb::reply::Body::Hello(reply), Vec::new());
    }

    /// Does what is asked, or starts to; what fails at once is answered at once.
    pub fn request(&mut self, to: ReplyTo, body: Option<Body>, fds: Vec<OwnedFd>) {
        let result = match body {
            Some(Body::SetupSandbox(request)) => self.setup(to, &request, fds),
            Some(Body::Create(request)) => self.create(to, request),
            Some(Body::Start(request)) => self.start(to, &request.container_id),
            Some(Body::Signal(request)) => self.signal(to, &request),
            Some(Body::Exec(request)) => self.exec(to, request, fds),
            Some(Body::KillExec(request)) => self.kill_exec(to, &request),
            Some(Body::Delete(request)) => self.delete(to, &request),
            Some(Body::ReopenLog(request)) => self.reopen_log(to, &request.container_id),
            Some(Body::Update(request)) => self.update(to, &request),
            Some(Body::State(_)) => {
                self.state(to);
                Ok(())
            }
            Some(Body::Attach(request)) => self.attach(to, &request),
            Some(Body::Resize(request)) => self.resize(to, &request),
            Some(Body::CloseStdin(request)) => self.close_stdin(to, &request.container_id),
            Some(Body::NetworkNamespace(_)) => self.network_namespace(to),
            Some(Body::Shutdown(_)) => {
                self.shutdown(to);
                Ok(())
            }
            Some(Body::Hello(_)) | None => {
                Err(Failure::new(Kind::Unsupported, "this shim does not know the request; it is older than its daemon"))
            }
        };
        if let Err(failure) = result {
            self.reply(to, failure.into_reply(), Vec::new());
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        let key = self.find(id).ok_or_else(|| no_container(id))?;
        self.containers.get_mut(&key).ok_or_else(|| no_container(id))
    }

    fn signal(&mut self, to: ReplyTo, request: &pb::Signal) -> Result<(), Failure> {
        check_signal(request.signal)?;
        let container = self.container(&request.container_id)?;
        match container.phase {
            Phase::Creating(_) => {
                let (id, phase) = (&container.id, container.phase.name());
                return Err(Failure::refused(format!("container {id} is {phase}; wait for it, or delete it")));
            }
            Phase::Exiting(..) | Phase::Exited(_) | Phase::Failed(_) => {}
            _ if request.all && request.signal == libc::SIGKILL => container.kill()?,
            _ if request.all => {
                container.cgroup().map_or(Ok(0), |cgroup| cgroup.signal_all(request.signal))?;
            }
            _ => container.signal(request.signal).map_err(|e| Failure::io("signal the container", &e))?,
        }
        self.done(to);
        Ok(())
    }

    fn reopen_log(&mut self, to: ReplyTo, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        if container.ended() {
            return Err(Failure::refused(format!("container {id} is {}; its log is closed", container.phase.name())));
        }
        if let Some(log) = container.streams.log() {
            log.reopen()?;
        }
        self.done(to);
        Ok(())
    }

    fn update(&mut self, to: ReplyTo, request: &pb::Update) -> Result<(), Failure> {
        let resources = plan::Resources::decode(request.resources.as_slice())
            .map_err(|e| Failure::invalid(format!("resources of container {}: {e}", request.container_id)))?;
        let key = self.find(&request.container_id).ok_or_else(|| no_container(&request.container_id))?;
        let Some(container) = self.containers.get_mut(&key) else { return Err(no_container(&request.container_id)) };
        if !matches!(container.phase, Phase::Created | Phase::Starting(_) | Phase::Running) {
            let (id, phase) = (&container.id, container.phase.name());
            return Err(Failure::refused(format!("container {id} is {phase}; it has no limits to update")));
        }
        let mut warnings = Vec::new();
        if let Some(init) = &container.init {
            warnings.extend(init.cgroup.apply(&resources)?);
            // kubelet names the score in every update.
            if let Some(score) = request.oom_score_adj.filter(|score| container.process.oom_score_adj != Some(*score)) {
                warnings.extend(self.pod.set_oom_score(&init.cgroup, score)?);
                container.process.oom_score_adj = Some(score);
            }
        }
        self.reply(to, pb::reply::Body::Update(pb::UpdateReply { warnings }), Vec::new());
        Ok(())
    }

    fn state(&mut self, to: ReplyTo) {
        let reply = pb::StateReply {
            containers: self.containers.values().map(Container::state).collect(),
            init_pid: self.sandbox.as_ref().and_then(|sandbox| sandbox.init_pid).unwrap_or(0),
            setup: self.sandbox.is_some(),
        };
        self.reply(to, pb::reply::Body::State(reply), Vec::new());
    }

    fn attach(&mut self, to: ReplyTo, request: &pb::Attach) -> Result<(), Failure> {
        let key = self.find(&request.container_id).ok_or_else(|| no_container(&request.container_id))?;
        let Some(container) = self.containers.get_mut(&key) else { return Err(no_container(&request.container_id)) };
        if !matches!(container.phase, Phase::Created | Phase::Starting(_) | Phase::Running) {
            let (id, phase) = (&container.id, container.phase.name());
            return Err(Failure::refused(format!("container {id} is {phase}; there is nothing to attach to")));
        }
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        let streams = &mut container.streams;
        let mut ends = Vec::with_capacity(3);
        let mut add = || -> std::io::Result<()> {
            if request.stdin {
                ends.push(streams.input.add(&mut place)?);
            }
            if request.stdout {
                ends.push(streams.taps.add(&mut place, Stream::Stdout)?);
            }
            if request.stderr && streams.has_terminal() {
                // A terminal has one output; the other ends at once.
                ends.push(pipe2(nix::fcntl::OFlag::O_CLOEXEC)?.0);
            } else if request.stderr {
                ends.push(streams.taps.add(&mut place, Stream::Stderr)?);
            }
            Ok(())
        };
        // Ends already made are dropped with the vector, and the clients with them.
        add().map_err(|e| Failure::io("attach to the container", &e))?;
        self.reply(to, pb::reply::Body::Done(pb::Done {}), ends);
        Ok(())
    }

    fn network_namespace(&mut self, to: ReplyTo) -> Result<(), Failure> {
        if self.sandbox.is_none() {
            return Err(Failure::refused("the sandbox is not set up"));
        }
        let namespace = self.pod.network_namespace()?;
        self.reply(to, pb::reply::Body::Done(pb::Done {}), vec![namespace]);
        Ok(())
    }

    fn resize(&mut self, to: ReplyTo, request: &pb::Resize) -> Result<(), Failure> {
        let size = |n: u32| u16::try_from(n).map_err(|_| Failure::invalid(format!("terminal size {n}: above 65535")));
        let (rows, cols) = (size(request.rows)?, size(request.cols)?);
        if request.exec_id.is_empty() {
            let container = self.container(&request.container_id)?;
            let no_terminal = || Failure::refused(format!("container {} has no terminal", request.container_id));
            let resized = container.streams.resize(rows, cols).ok_or_else(no_terminal)?;
            resized.map_err(|e| Failure::io("resize the terminal", &e))?;
        } else {
            self.resize_session(&request.exec_id, rows, cols)?;
        }
        self.done(to);
        Ok(())
    }

    fn close_stdin(&mut self, to: ReplyTo, id: &str) -> Result<(), Failure> {
        let key = self.find(id).ok_or_else(|| no_container(id))?;
        if let Some(container) = self.containers.get_mut(&key) {
            let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
            container.streams.input.close(&mut place);
        }
        self.done(to);
        Ok(())
    }
}

/// Refuses what is no signal.
///
/// # Errors
/// [`Failure`] of kind `INVALID`.
pub fn check_signal(signal: i32) -> Result<(), Failure> {
    if (1..=MAX_SIGNAL).contains(&signal) {
        Ok(())
    } else {
        Err(Failure::invalid(format!("signal {signal}: not in 1 to {MAX_SIGNAL}")))
    }
}
