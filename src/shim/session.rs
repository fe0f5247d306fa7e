//! Exec sessions: one more process in a running container, and all it starts.
//!
//! Each session has a cgroup of its own below the container's, so that it can be killed as a whole however its processes
//! detach. The reply comes when the first process ends. What it left running goes on, like any process of the
//! container, until the container ends or the session is killed.

use std::os::fd::{AsFd, OwnedFd};

use prost::Message;

use super::connection::ReplyTo;
use super::container::{Container, Phase, kill_first, no_container};
use super::failure::Failure;
use super::finish::{SWEEP_PAUSE, SWEEP_TRIES, Sweeping};
use super::poll::{Key, Source, Timer, Watch};
use super::server::Server;
use crate::plan;
use crate::runtime::cgroup::CgroupError;
use crate::runtime::{ExecTarget, Init, InitMessage, Stdio3};
use crate::sys::process::pidfd_signal;
use crate::wire::pb;

/// Most sessions at a time in one container, with those that left processes behind: one container's must not take
/// those of its neighbours.
const MAX_SESSIONS: usize = 1024;
/// Most of them in all containers of the pod, where there are descriptors enough.
const MAX_SESSIONS_OF_POD: usize = 8192;
/// A session holds about four descriptors; half of all stays for containers, logs and clients.
const DESCRIPTORS_PER_SESSION: u64 = 8;
/// How many sessions that left processes behind are looked at whenever another one ends.
const LINGERING_TRIES: usize = 4;

/// One exec session.
#[derive(Debug)]
pub struct Session {
    id: String,
    container: Key,
    init: Init,
    /// Who waits for its first process; `None`: told.
    reply: Option<ReplyTo>,
    /// The terminal's master, to resize it.
    pty: Option<OwnedFd>,
    failure: Option<Failure>,
    channel_ended: bool,
    /// Its first process has been reaped.
    ended: bool,
    /// Who waits for its whole tree to be gone.
    killers: Vec<ReplyTo>,
}

impl Server {
    /// Starts an exec session; the reply comes when its first process ends.
    ///
    /// # Errors
    /// [`Failure`]; nothing is left then.
    pub fn exec(&mut self, to: ReplyTo, request: pb::Exec, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let key = self.find(&request.container_id).ok_or_else(|| no_container(&request.container_id))?;
        let Some(container) = self.containers.get(&key) else { return Err(no_container(&request.container_id)) };
        if !matches!(container.phase, Phase::Running) {
            let (id, phase) = (&container.id, container.phase.name());
            return Err(Failure::refused(format!("container {id} is {phase}, not running")));
        }
        self.admit(key, &request.exec_id)?;
        let process = plan::Process::decode(request.process.as_slice())
            .map_err(|e| Failure::invalid(format!("process of exec session {}: {e}", request.exec_id)))?;
        let process = container.complete(process, request.inherit);
        let stdio = stdio_of(&request, process.tty, fds)?;
        let session = self.poller.key();
        let Some(init) = &container.init else { return Err(no_container(&request.container_id)) };
        let target = ExecTarget {
            pidfd: init.pidfd.as_fd(),
            cgroup: &init.cgroup,
            user: process.user.is_none().then_some(&container.user),
        };
        let init = self.pod.exec(&format!("exec-{session}"), &target, &process, stdio)?;
        let session_of = Session {
            id: request.exec_id,
            container: key,
            init,
            reply: Some(to),
            pty: None,
            failure: None,
            channel_ended: false,
            ended: false,
            killers: Vec::new(),
        };
        // Only a terminal is waited for; all else it has to say is read when it ends.
        if process.tty && self.poller.add(&session_of.init.channel, Source::ExecChannel(session), Watch::Read).is_err()
        {
            kill_first(&session_of.init);
        }
        self.sessions.insert(session, session_of);
        Ok(())
    }

    fn admit(&self, container: Key, exec_id: &str) -> Result<(), Failure> {
        if exec_id.is_empty() || exec_id.len() > 128 {
            return Err(Failure::invalid("an exec session wants an id of 1 to 128 bytes"));
        }
        if self.sessions.values().filter(|session| session.container == container).count() >= MAX_SESSIONS {
            let message = format!("the container has {MAX_SESSIONS} exec sessions already; end some first");
            return Err(Failure::refused(message));
        }
        let (_, descriptors) = self.pod.open_files();
        let most =
            usize::try_from(descriptors / DESCRIPTORS_PER_SESSION).unwrap_or(usize::MAX).min(MAX_SESSIONS_OF_POD);
        if self.sessions.len() >= most {
            return Err(Failure::refused(format!("the pod has {most} exec sessions already; end some first")));
        }
        if self.sessions.values().any(|session| session.id == exec_id) {
            return Err(Failure::refused(format!("exec session {exec_id:?} exists already")));
        }
        Ok(())
    }

    /// Reads what a session's first process has to say.
    pub fn exec_channel_ready(&mut self, key: Key) {
        while let Some(session) = self.sessions.get_mut(&key)
            && !session.channel_ended
        {
            match session.init.receive() {
                Ok(None) => return,
                Ok(Some(InitMessage::Ready { pty: Some(master), .. })) => self.exec_started(key, master),
                Ok(Some(InitMessage::Ready { .. })) => {}
                Ok(Some(InitMessage::Failed { step, errno, message })) => {
                    session.failure.get_or_insert(Failure::of_init(step, errno, message));
                    session.end_channel(&self.poller);
                }
                Ok(Some(InitMessage::Executed)) => session.end_channel(&self.poller),
                Err(e) => {
                    session.failure.get_or_insert(e.into());
                    session.end_channel(&self.poller);
                    kill_first(&session.init);
                }
            }
        }
    }

    fn exec_started(&mut self, key: Key, master: OwnedFd) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        match master.try_clone() {
            Ok(copy) => {
                session.pty = Some(master);
                if let Some(to) = session.reply {
                    let started = pb::ExecStarted { pid: session.init.pid };
                    self.reply(to, pb::reply::Body::ExecStarted(started), vec![copy]);
                }
            }
            Err(e) => {
                session.failure = Some(Failure::io("hand out the terminal", &e));
                kill_first(&session.init);
            }
        }
    }

    /// A session's first process has been reaped.
    pub fn session_ended(&mut self, key: Key, code: i32) {
        self.exec_channel_ready(key);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.end_channel(&self.poller);
        session.ended = true;
        session.pty = None;
        let container = self.containers.get(&session.container);
        let reply = match (session.failure.take(), container.filter(|container| container.ended())) {
            (Some(_), Some(container)) => {
                let message = format!("container {} ended while the exec session was starting", container.id);
                Failure::refused(message).into_reply()
            }
            (Some(failure), None) => failure.into_reply(),
            (None, _) => pb::reply::Body::Exec(pb::ExecReply { code }),
        };
        if let Some(to) = session.reply.take() {
            self.reply(to, reply, Vec::new());
        }
        self.sweeping_sessions.push(Sweeping { key, tries: 0 });
    }

    /// Removes the cgroups of ended sessions in which nothing runs; `again` as for [`Server::sweep_cgroups`].
    pub fn sweep_sessions(&mut self, again: bool) {
        if self.sweeping_sessions.is_empty() {
            return;
        }
        let all = std::mem::take(&mut self.sweeping_sessions);
        let (now, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|sweeping| again || sweeping.tries == 0);
        self.sweeping_sessions = later;
        let waits = |key: &Key| now.iter().chain(&self.sweeping_sessions).any(|sweeping| sweeping.key == *key);
        let lingering = self.sessions.iter().filter(|(key, session)| session.ended && !waits(key));
        let lingering: Vec<_> =
            lingering.map(|(key, _)| Sweeping { key: *key, tries: 0 }).take(LINGERING_TRIES).collect();
        for sweeping in now.into_iter().chain(lingering) {
            self.sweep_session(sweeping);
        }
    }

    fn sweep_session(&mut self, mut sweeping: Sweeping) {
        let Some(session) = self.sessions.get_mut(&sweeping.key) else { return };
        if !session.ended {
            return;
        }
        let error = match session.init.cgroup.remove() {
            // What it left running goes on.
            Err(CgroupError::Busy { .. }) if session.killers.is_empty() => return,
            Err(CgroupError::Busy { .. }) if sweeping.tries < SWEEP_TRIES => {
                sweeping.tries += 1;
                self.sweeping_sessions.push(sweeping);
                return self.timers.set(Timer::Sweep, SWEEP_PAUSE);
            }
            done => done.err(),
        };
        let killers = std::mem::take(&mut session.killers);
        // If it cannot be removed now, it goes with the container's cgroup.
        self.sessions.remove(&sweeping.key);
        for to in killers {
            match &error {
                None => self.done(to),
                Some(e) => self.reply(to, Failure::from(e.clone()).into_reply(), Vec::new()),
            }
        }
    }

    /// Kills a session as a whole (`signal` 0; the reply comes when all of it is gone), or signals its first process.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be signalled.
    pub fn kill_exec(&mut self, to: ReplyTo, request: &pb::KillExec) -> Result<(), Failure> {
        let found = self.sessions.iter_mut().find(|(_, session)| session.id == request.exec_id);
        let Some((key, session)) = found else {
            self.done(to);
            return Ok(());
        };
        if request.signal == 0 {
            session.kill()?;
            session.killers.push(to);
            if session.ended {
                self.sweeping_sessions.push(Sweeping { key: *key, tries: 0 });
            }
            return Ok(());
        }
        if !session.ended {
            super::request::check_signal(request.signal)?;
            pidfd_signal(session.init.pidfd.as_fd(), request.signal)
                .map_err(|e| Failure::io("signal the exec session", &e))?;
        }
        self.done(to);
        Ok(())
    }

    /// The daemon that asked for these sessions is gone, and nobody waits for them any more.
    pub fn kill_sessions_of(&mut self, connection: Key) {
        for session in self.sessions.values() {
            if session.reply.is_some_and(|to| to.connection == connection) {
                // What cannot be killed now ends with the container.
                session.kill().ok();
            }
        }
    }

    /// Sets the size of a session's terminal.
    ///
    /// # Errors
    /// [`Failure`] if there is no such session, or it has none.
    pub fn resize_session(&self, exec_id: &str, rows: u16, cols: u16) -> Result<(), Failure> {
        let session = self.sessions.values().find(|session| session.id == exec_id);
        let session = session.ok_or_else(|| Failure::not_found(format!("exec session {exec_id:?} is not running")))?;
        let pty = session.pty.as_ref().ok_or_else(|| Failure::refused("the exec session has no terminal"))?;
        crate::sys::tty::set_size(pty.as_fd(), rows, cols).map_err(|e| Failure::io("resize the terminal", &e))
    }

    /// The session whose first process this is.
    #[must_use]
    pub fn session_of_pid(&self, pid: i32) -> Option<Key> {
        self.sessions.iter().find(|(_, session)| session.init.pid == pid && !session.ended).map(|(key, _)| *key)
    }

    /// The container is gone with its cgroup, and so are its sessions.
    pub fn forget_sessions(&mut self, container: Key) {
        let ended = |session: &Session| session.container == container && session.ended;
        let killers: Vec<_> =
            self.sessions.values_mut().filter(|s| ended(s)).flat_map(|s| std::mem::take(&mut s.killers)).collect();
        self.sessions.retain(|_, session| !ended(session));
        killers.into_iter().for_each(|to| self.done(to));
    }
}

impl Session {
    fn kill(&self) -> Result<(), CgroupError> {
        // It may not have entered its cgroup yet.
        if !self.ended {
            kill_first(&self.init);
        }
        self.init.cgroup.kill()
    }

    fn end_channel(&mut self, poller: &super::poll::Poller) {
        if !self.channel_ended {
            self.channel_ended = true;
            poller.remove(&self.init.channel);
        }
    }
}

impl Container {
    /// Fills a session's process from the container's own; no user means the container's.
    fn complete(&self, asked: plan::Process, inherit: bool) -> plan::Process {
        let mut process = if inherit {
            let cwd = if asked.cwd.is_empty() { self.process.cwd.clone() } else { asked.cwd };
            plan::Process {
                args: asked.args,
                cwd,
                tty: asked.tty,
                tty_rows: asked.tty_rows,
                tty_cols: asked.tty_cols,
                user: asked.user,
                env: merged(&self.process.env, asked.env, asked.tty),
                ..self.process.clone()
            }
        } else {
            asked
        };
        if process.capabilities.is_none() {
            process.capabilities = self.process.capabilities;
        }
        if process.rlimits.is_empty() {
            process.rlimits.clone_from(&self.process.rlimits);
        }
        process
    }
}

/// The container's variables with those of a session in place of or behind them; a terminal has a type.
fn merged(own: &[String], asked: Vec<String>, tty: bool) -> Vec<String> {
    fn key(entry: &str) -> &str {
        entry.split('=').next().unwrap_or(entry)
    }
    let asked_keys: std::collections::BTreeSet<String> = asked.iter().map(|entry| key(entry).to_owned()).collect();
    let kept = own.iter().filter(|entry| !asked_keys.contains(key(entry))).cloned();
    let mut all: Vec<String> = kept.chain(asked).collect();
    if tty && !all.iter().any(|entry| key(entry) == "TERM") {
        all.push("TERM=xterm".to_owned());
    }
    all
}

fn stdio_of(request: &pb::Exec, tty: bool, fds: Vec<OwnedFd>) -> Result<Stdio3, Failure> {
    let wanted = [request.stdin, request.stdout, request.stderr];
    if tty && !fds.is_empty() {
        return Err(Failure::invalid("an exec session with a terminal takes no descriptors"));
    }
    if !tty && wanted.iter().filter(|wanted| **wanted).count() != fds.len() {
        return Err(Failure::invalid("an exec session's descriptors are not those announced"));
    }
    let mut fds = fds.into_iter();
    let [stdin, stdout, stderr] = wanted.map(|wanted| if wanted { fds.next() } else { None });
    Ok(Stdio3 { stdin, stdout, stderr })
}
