//! One container: from its create to the exit of its first process.
//!
//! ```text
//!           Ready            Start          Executed         reaped          outputs ended
//! Creating ───────► Created ───────► Starting ──────► Running ──────► Exiting ─────────────► Exited
//!    │                 └────────────────┴── reaped ──────────────────────▲
//!    └── Failed, deadline; reaped ──► Failed ── cgroup removed ──► gone, as if it had never been
//! ```
//!
//! The exit of the first process moves a container on from every phase; what the process said before is read first, so
//! a program that ended at once has still been started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use prost::Message;

use super::attach::Place;
use super::connection::ReplyTo;
use super::exit;
use super::failure::Failure;
use super::logfile::LogFile;
use super::poll::{Key, Source, Timer, Watch};
use super::server::Server;
use super::stdio::Streams;
use crate::id::ContainerId;
use crate::plan;
use crate::runtime::cgroup::Cgroup;
use crate::runtime::{Init, InitMessage};
use crate::sys::process::pidfd_signal;
use crate::wire::pb;
use crate::wire::pb::error::Kind;

/// How long building a container may take.
pub const CREATE_DEADLINE: Duration = Duration::from_secs(60);
/// How long an execve may take.
pub const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long output may come after the first process has ended and everything else was killed.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Where a container is in its life.
#[derive(Debug)]
pub enum Phase {
    /// Its first process builds it.
    Creating(ReplyTo),
    /// Held right before its exec.
    Created,
    /// Let go, not yet executed; all who asked for it are told.
    Starting(Vec<ReplyTo>),
    /// It executes.
    Running,
    /// The first process has ended; output is still to come. The start's replies wait if that has failed.
    Exiting(pb::Exit, Vec<ReplyTo>),
    /// All is over and on disk.
    Exited(pb::Exit),
    /// It could not be built; told once its cgroup is gone.
    Failed(ReplyTo),
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// CRI's id.
    pub id: ContainerId,
    /// Where it is in its life.
    pub phase: Phase,
    /// Of its first process, in the shim's PID namespace.
    pub pid: i32,
    /// Its first process and its cgroup; `None` once both are gone.
    pub init: Option<Init>,
    /// Its streams.
    pub streams: Streams,
    /// The process as planned, from which exec sessions inherit.
    pub process: plan::Process,
    /// Who it runs as, once it is ready.
    pub user: plan::ResolvedUser,
    /// Nanoseconds since the epoch, 0: not started.
    pub started_at: i64,
    /// What was done less well than asked, until its create is answered.
    pub warnings: Vec<String>,
    /// Why it was not created or started.
    pub failure: Option<Failure>,
    /// Who waits for its deletion.
    pub deleting: Vec<ReplyTo>,
    /// The channel has said all there is to say.
    pub channel_ended: bool,
    /// How long its cgroup and its clone took.
    pub cloned_in: Duration,
}

impl Container {
    /// Its cgroup, while it is there.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.init.as_ref().map(|init| &init.cgroup)
    }

    /// Sends its first process a signal; one that has ended needs none.
    ///
    /// # Errors
    /// As pidfd_send_signal(2).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let Some(init) = &self.init else { return Ok(()) };
        match pidfd_signal(init.pidfd.as_fd(), signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Kills its first process, whether or not it has entered its cgroup yet.
    pub fn kill_first(&self) {
        if let Some(init) = &self.init {
            kill_first(init);
        }
    }

    /// Whether its first process has been reaped.
    #[must_use]
    pub fn ended(&self) -> bool {
        matches!(self.phase, Phase::Exiting(..) | Phase::Exited(_) | Phase::Failed(_))
    }

    /// As the daemon is told.
    #[must_use]
    pub fn state(&self) -> pb::ContainerState {
        use pb::container_state::Status;
        let (status, exit) = match &self.phase {
            Phase::Creating(_) | Phase::Failed(_) => (Status::Creating, None),
            Phase::Created | Phase::Starting(_) => (Status::Created, None),
            // Not over before its log is complete.
            Phase::Running | Phase::Exiting(..) => (Status::Running, None),
            Phase::Exited(exit) => (Status::Exited, Some(exit.clone())),
        };
        pb::ContainerState {
            container_id: self.id.to_string(),
            status: status.into(),
            pid: self.pid,
            started_at: self.started_at,
            exit,
            user: self.user.encode_to_vec(),
        }
    }
}

impl Server {
    /// Starts to build a container; the reply comes when it is ready.
    ///
    /// # Errors
    /// [`Failure`]; nothing is left then.
    pub fn create(&mut self, to: ReplyTo, request: pb::Create) -> Result<(), Failure> {
        let id: ContainerId = request.container_id.parse().map_err(|e| Failure::invalid(format!("{e}")))?;
        if self.find(id.as_str()).is_some() {
            return Err(Failure::refused(format!("container {id} exists already; delete it first")));
        }
        let sandbox = self.sandbox.as_mut().ok_or_else(|| Failure::refused("the sandbox is not set up yet"))?;
        let plan = plan::Container::decode(request.plan.as_slice())
            .map_err(|e| Failure::invalid(format!("plan of container {id}: {e}")))?;
        let process = plan.process.clone().unwrap_or_default();
        let stdio = plan.stdio.clone().unwrap_or_default();
        let log = match stdio.log_path.as_str() {
            "" => None,
            path => Some(LogFile::open(&sandbox.log_directory, path)?),
        };
        let (streams, theirs) =
            Streams::new(&stdio, process.tty, log).map_err(|e| Failure::io("make the pipes of the container", &e))?;
        if let Some(cgroup) = &plan.cgroup {
            sandbox.book.add(self.pod.hierarchies(), &cgroup.path)?;
        }
        let target = self.pid_target(&plan)?;
        let begun = Instant::now();
        let (init, warnings) = self.pod.create(&plan, target, theirs)?;
        let key = self.poller.key();
        let container = Container {
            id,
            phase: Phase::Creating(to),
            pid: init.pid,
            init: Some(init),
            streams,
            process,
            user: plan::ResolvedUser::default(),
            started_at: 0,
            warnings,
            failure: None,
            deleting: Vec::new(),
            channel_ended: false,
            cloned_in: begun.elapsed(),
        };
        self.adopt(key, container);
        Ok(())
    }

    /// The first process of the running container whose PID namespace is to be shared, if one is named.
    fn pid_target(&self, plan: &plan::Container) -> Result<Option<BorrowedFd<'_>>, Failure> {
        let id = plan.namespaces.as_ref().map_or("", |namespaces| &namespaces.pid_target);
        if id.is_empty() {
            return Ok(None);
        }
        let container = self.find(id).and_then(|key| self.containers.get(&key)).ok_or_else(|| no_container(id))?;
        if !matches!(container.phase, Phase::Running) {
            let phase = container.phase.name();
            return Err(Failure::refused(format!("container {id}, whose PID namespace is wanted, is {phase}")));
        }
        Ok(container.init.as_ref().map(|init| init.pidfd.as_fd()))
    }

    fn adopt(&mut self, key: Key, mut container: Container) {
        let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
        let watched = container.streams.watch(&mut place).and_then(|()| match &container.init {
            Some(init) => place.poller.add(&init.channel, Source::Channel(key), Watch::Read),
            None => Ok(()),
        });
        if let Err(e) = watched {
            // It is cloned already: its end answers the request.
            container.failure = Some(Failure::io("watch the container", &e));
            container.kill_first();
        }
        self.timers.set(Timer::Container(key), CREATE_DEADLINE);
        self.containers.insert(key, container);
    }

    /// Lets a created container run, or joins who did; the reply comes when it executes.
    ///
    /// # Errors
    /// [`Failure`] if it is not created, or its process cannot be told. Of kind `REFUSED` it says nothing about how the
    /// container fares.
    pub fn start(&mut self, to: ReplyTo, id: &str) -> Result<(), Failure> {
        let key = self.find(id).ok_or_else(|| no_container(id))?;
        let Some(container) = self.containers.get_mut(&key) else { return Err(no_container(id)) };
        if let Phase::Starting(waiting) = &mut container.phase {
            if container.failure.is_none() {
                waiting.push(to);
                return Ok(());
            }
            return Err(Failure::refused(format!(
                "container {id} could not be started, and its process {pid}, which was killed, has not ended yet; see \
                 what it waits for, a storage or network volume for one",
                pid = container.pid
            )));
        }
        if matches!(container.phase, Phase::Running) {
            // Whoever asked before is gone; the state machine of the daemon refuses a real second start.
            let reply = pb::StartReply { started_at: container.started_at, pid: container.pid };
            self.reply(to, pb::reply::Body::Start(reply), Vec::new());
            return Ok(());
        }
        if !matches!(container.phase, Phase::Created) {
            return Err(Failure::refused(format!("container {id} is {}, not created", container.phase.name())));
        }
        let Some(init) = &container.init else { return Err(no_container(id)) };
        init.release().map_err(|e| Failure::io("let the container's first process run", &e))?;
        container.phase = Phase::Starting(vec![to]);
        self.timers.set(Timer::Container(key), START_DEADLINE);
        Ok(())
    }

    /// Reads what a container's first process has to say.
    pub fn channel_ready(&mut self, key: Key) {
        while let Some(container) = self.containers.get_mut(&key)
            && !container.channel_ended
            && let Some(init) = &container.init
        {
            match init.receive() {
                Ok(None) => return,
                Ok(Some(message)) => self.heard(key, message),
                Err(e) => {
                    container.failure.get_or_insert(e.into());
                    container.kill_first();
                    self.end_channel(key);
                }
            }
        }
    }

    fn heard(&mut self, key: Key, message: InitMessage) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match message {
            InitMessage::Ready { user, warnings, steps, pty } => {
                container.user = user;
                if let Some(master) = pty {
                    let mut place = Place { poller: &mut self.poller, timers: &mut self.timers, container: key };
                    if let Err(e) = container.streams.set_terminal(&mut place, master) {
                        container.failure = Some(Failure::io("take the container's terminal over", &e));
                        container.kill_first();
                        return;
                    }
                }
                self.ready(key, warnings, steps);
            }
            InitMessage::Failed { step, errno, message } => {
                container.failure.get_or_insert(Failure::of_init(step, errno, message));
                self.end_channel(key);
            }
            InitMessage::Executed => {
                self.executed(key);
                self.end_channel(key);
            }
        }
    }

    fn ready(&mut self, key: Key, more: Vec<String>, steps: Vec<(String, u64)>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let mut warnings = std::mem::take(&mut container.warnings);
        warnings.extend(more);
        let Phase::Creating(to) = container.phase else { return };
        container.phase = Phase::Created;
        self.timers.clear(Timer::Container(key));
        let cloned_in_us = u64::try_from(container.cloned_in.as_micros()).unwrap_or(u64::MAX);
        let steps = std::iter::once(("clone".to_owned(), cloned_in_us)).chain(steps);
        let steps = steps.map(|(name, elapsed_us)| pb::Step { name, elapsed_us }).collect();
        let user = container.user.encode_to_vec();
        let reply = pb::CreateReply { pid: container.pid, user, warnings, steps };
        self.reply(to, pb::reply::Body::Create(reply), Vec::new());
    }

    /// Its exec has succeeded, or it was killed before: then its end comes next.
    fn executed(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.failure.is_some() || !matches!(container.phase, Phase::Starting(_)) {
            return;
        }
        let Phase::Starting(waiting) = std::mem::replace(&mut container.phase, Phase::Running) else { return };
        container.started_at = exit::now();
        self.timers.clear(Timer::Container(key));
        let reply = pb::StartReply { started_at: container.started_at, pid: container.pid };
        waiting.into_iter().for_each(|to| self.reply(to, pb::reply::Body::Start(reply), Vec::new()));
    }

    /// Nothing more is read from a container's first process.
    pub fn end_channel(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if !std::mem::replace(&mut container.channel_ended, true)
            && let Some(init) = &container.init
        {
            self.poller.remove(&init.channel);
        }
    }

    /// A container's timer: its create, its start or its output takes too long.
    pub fn container_overdue(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (doing, step, limit) = match container.phase {
            Phase::Creating(_) => (
                "build",
                container.init.as_ref().and_then(Init::step).unwrap_or_else(|| "clone".to_owned()),
                CREATE_DEADLINE,
            ),
            Phase::Starting(_) => ("execute the program of", "exec".to_owned(), START_DEADLINE),
            Phase::Exiting(..) => return self.finish(key),
            Phase::Created | Phase::Running | Phase::Exited(_) | Phase::Failed(_) => return,
        };
        let message = format!(
            "{doing} container {id}: step {step:?} was not done after {limit:?}, so process {pid} was killed; see what it \
             waits for, a storage or network volume for one",
            id = container.id,
            pid = container.pid
        );
        let failure = Failure::new(Kind::Deadline, message).errno(libc::ETIMEDOUT).step(step);
        container.failure.get_or_insert(failure);
        container.kill_first();
    }
}

impl Phase {
    /// For people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating(_) => "being created",
            Self::Created => "created",
            Self::Starting(_) => "starting",
            Self::Running => "running",
            Self::Exiting(..) | Self::Exited(_) => "exited",
            Self::Failed(_) => "being taken apart after it could not be created",
        }
    }
}

/// The answer when there is no such container.
#[must_use]
pub fn no_container(id: &str) -> Failure {
    let id: String = id.chars().take(80).collect();
    Failure::not_found(format!("container {id:?} is not in this pod"))
}

/// Kills a first process, whether or not it has entered its cgroup yet.
pub fn kill_first(init: &Init) {
    // ESRCH: it has ended.
    pidfd_signal(init.pidfd.as_fd(), libc::SIGKILL).ok();
}
