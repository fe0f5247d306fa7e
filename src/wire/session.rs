//! Requests by name: what [`Shim::call`] can do, typed.

use std::os::fd::OwnedFd;

use prost::Message;

use super::client::{Pending, Shim, WireError};
use super::pb;
use super::pb::reply::Body as Reply;
use super::pb::request::Body as Request;
use crate::plan;

/// The ends of the pipes an exec session's process gets; an absent one is `/dev/null`. All absent with a tty.
#[derive(Debug, Default)]
pub struct ExecStdio {
    /// Read by the process.
    pub stdin: Option<OwnedFd>,
    /// Written by the process.
    pub stdout: Option<OwnedFd>,
    /// Written by the process.
    pub stderr: Option<OwnedFd>,
}

/// Which streams of a container to attach to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams {
    /// Its input.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its error output; with a tty there is none.
    pub stderr: bool,
}

/// Pipes to the streams asked for.
#[derive(Debug, Default)]
pub struct Attached {
    /// To be written; closing it ends this client's input.
    pub stdin: Option<OwnedFd>,
    /// To be read.
    pub stdout: Option<OwnedFd>,
    /// To be read.
    pub stderr: Option<OwnedFd>,
}

/// A container after create.
#[derive(Debug)]
pub struct Created {
    /// Of its first process, in the shim's PID namespace.
    pub pid: i32,
    /// Who it runs as.
    pub user: plan::ResolvedUser,
    /// What was done less well than asked.
    pub warnings: Vec<String>,
    /// What took how long, in microseconds, in order.
    pub steps: Vec<(String, u64)>,
}

/// An exec session under way.
#[derive(Debug)]
pub struct ExecSession {
    started: Option<Pending>,
    ended: Pending,
}

impl ExecSession {
    /// The master of a session's pty, once there is one; `None` if the session ended without (then
    /// [`ExecSession::wait`] says why) or was not asked to have a tty.
    pub async fn pty(&mut self) -> Option<OwnedFd> {
        let (_, fds) = self.started.take()?.await.ok()?.ok()?;
        fds.into_iter().next()
    }

    /// The exit code of the session's first process, 128 + signal number if killed.
    ///
    /// # Errors
    /// As [`Shim::call`]; also why it did not start.
    pub async fn wait(&mut self) -> Result<i32, WireError> {
        match (&mut self.ended).await.unwrap_or(Err(WireError::Gone))? {
            (Reply::Exec(reply), _) => Ok(reply.code),
            _ => Err(WireError::Unexpected { request: "exec" }),
        }
    }
}

impl Shim {
    async fn done(&self, body: Request, request: &'static str) -> Result<Vec<OwnedFd>, WireError> {
        match self.call(body, Vec::new()).await? {
            (Reply::Done(_), fds) => Ok(fds),
            _ => Err(WireError::Unexpected { request }),
        }
    }

    /// Sets the sandbox up, once, before anything else, in this network namespace if one is given.
    ///
    /// # Errors
    /// As [`Shim::call`], like all that follow.
    pub async fn setup_sandbox(
        &self,
        mut request: pb::SetupSandbox,
        network: Option<OwnedFd>,
    ) -> Result<pb::SetupReply, WireError> {
        request.network_given = network.is_some();
        match self.call(Request::SetupSandbox(request), network.into_iter().collect()).await? {
            (Reply::SetupSandbox(reply), _) => Ok(reply),
            _ => Err(WireError::Unexpected { request: "setup_sandbox" }),
        }
    }

    /// The network namespace of the pod.
    ///
    /// # Errors
    /// As [`Shim::call`]; [`pb::error::Kind::Unsupported`] by a shim that is too old.
    pub async fn network_namespace(&self) -> Result<OwnedFd, WireError> {
        let request = "network_namespace";
        let fds = self.done(Request::NetworkNamespace(pb::NetworkNamespace {}), request).await?;
        fds.into_iter().next().ok_or(WireError::Unexpected { request })
    }

    /// Builds a container; its process waits right before its exec.
    ///
    /// # Errors
    /// As [`Shim::call`]; nothing of the container is left then.
    pub async fn create(&self, container_id: &str, plan: &plan::Container) -> Result<Created, WireError> {
        let request = pb::Create { container_id: container_id.to_owned(), plan: plan.encode_to_vec() };
        let (Reply::Create(reply), _) = self.call(Request::Create(request), Vec::new()).await? else {
            return Err(WireError::Unexpected { request: "create" });
        };
        let user = plan::ResolvedUser::decode(reply.user.as_slice());
        Ok(Created {
            pid: reply.pid,
            user: user.map_err(|_| WireError::Unexpected { request: "create" })?,
            warnings: reply.warnings,
            steps: reply.steps.into_iter().map(|step| (step.name, step.elapsed_us)).collect(),
        })
    }

    /// Lets a created container run; returns once it executes.
    ///
    /// # Errors
    /// As [`Shim::call`]; after a failed exec the container has exited with code 128.
    pub async fn start(&self, container_id: &str) -> Result<pb::StartReply, WireError> {
        let request = pb::Start { container_id: container_id.to_owned() };
        match self.call(Request::Start(request), Vec::new()).await? {
            (Reply::Start(reply), _) => Ok(reply),
            _ => Err(WireError::Unexpected { request: "start" }),
        }
    }

    /// Sends a signal to a container's first process, or to all of its processes.
    ///
    /// # Errors
    /// As [`Shim::call`]; none if it has exited.
    pub async fn signal(&self, container_id: &str, signal: i32, all: bool) -> Result<(), WireError> {
        let request = pb::Signal { container_id: container_id.to_owned(), signal, all };
        self.done(Request::Signal(request), "signal").await.map(drop)
    }

    /// Starts one more process in a running container. `exec_id` must be new. `process` counts as a whole, or with
    /// `inherit` only its args, cwd, user and tty, and its env beside the container's.
    ///
    /// # Errors
    /// As [`Shim::call`]; why the process did not start is told by [`ExecSession::wait`].
    pub async fn exec(
        &self,
        container_id: &str,
        exec_id: &str,
        process: &plan::Process,
        inherit: bool,
        stdio: ExecStdio,
    ) -> Result<ExecSession, WireError> {
        let request = pb::Exec {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: process.encode_to_vec(),
            inherit,
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
        };
        let fds = [stdio.stdin, stdio.stdout, stdio.stderr].into_iter().flatten().collect();
        let (started, ended) = self.call_early(Request::Exec(request), fds).await?;
        Ok(ExecSession { started: process.tty.then_some(started), ended })
    }

    /// Kills an exec session with all it started (`signal` 0), or sends a signal to its first process.
    ///
    /// # Errors
    /// As [`Shim::call`]; none if it is over.
    pub async fn kill_exec(&self, exec_id: &str, signal: i32) -> Result<(), WireError> {
        let request = pb::KillExec { exec_id: exec_id.to_owned(), signal };
        self.done(Request::KillExec(request), "kill_exec").await.map(drop)
    }

    /// Frees what the shim holds of a container, killing it first if `force`.
    ///
    /// # Errors
    /// As [`Shim::call`]; none if it is unknown.
    pub async fn delete(&self, container_id: &str, force: bool) -> Result<(), WireError> {
        let request = pb::Delete { container_id: container_id.to_owned(), force };
        self.done(Request::Delete(request), "delete").await.map(drop)
    }

    /// Closes a container's log file and opens what its path names now.
    ///
    /// # Errors
    /// As [`Shim::call`]; the old file stays in use then.
    pub async fn reopen_log(&self, container_id: &str) -> Result<(), WireError> {
        let request = pb::ReopenLog { container_id: container_id.to_owned() };
        self.done(Request::ReopenLog(request), "reopen_log").await.map(drop)
    }

    /// Changes a container's limits; what is absent stays. Returns warnings.
    ///
    /// # Errors
    /// As [`Shim::call`]; the old limits hold then.
    pub async fn update(
        &self,
        container_id: &str,
        resources: &plan::Resources,
        oom_score_adj: Option<i32>,
    ) -> Result<Vec<String>, WireError> {
        let container_id = container_id.to_owned();
        let request = pb::Update { container_id, resources: resources.encode_to_vec(), oom_score_adj };
        match self.call(Request::Update(request), Vec::new()).await? {
            (Reply::Update(reply), _) => Ok(reply.warnings),
            _ => Err(WireError::Unexpected { request: "update" }),
        }
    }

    /// What the shim holds.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn state(&self) -> Result<pb::StateReply, WireError> {
        match self.call(Request::State(pb::State {}), Vec::new()).await? {
            (Reply::State(reply), _) => Ok(reply),
            _ => Err(WireError::Unexpected { request: "state" }),
        }
    }

    /// Joins streams of a running container.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn attach(&self, container_id: &str, streams: Streams) -> Result<Attached, WireError> {
        let Streams { stdin, stdout, stderr } = streams;
        let request = pb::Attach { container_id: container_id.to_owned(), stdin, stdout, stderr };
        let mut fds = self.done(Request::Attach(request), "attach").await?.into_iter();
        let mut take = |wanted: bool| if wanted { fds.next() } else { None };
        Ok(Attached { stdin: take(stdin), stdout: take(stdout), stderr: take(stderr) })
    }

    /// Sets the size of a container's tty, or with `exec_id` of an exec session's.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn resize(&self, container_id: &str, exec_id: &str, rows: u16, cols: u16) -> Result<(), WireError> {
        let (container_id, exec_id) = (container_id.to_owned(), exec_id.to_owned());
        let request = pb::Resize { container_id, exec_id, rows: rows.into(), cols: cols.into() };
        self.done(Request::Resize(request), "resize").await.map(drop)
    }

    /// Ends a container's input.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn close_stdin(&self, container_id: &str) -> Result<(), WireError> {
        let request = pb::CloseStdin { container_id: container_id.to_owned() };
        self.done(Request::CloseStdin(request), "close_stdin").await.map(drop)
    }

    /// Kills everything in the pod, removes its cgroups and ends the shim.
    ///
    /// # Errors
    /// As [`Shim::call`]; then the shim is still there. None if it was gone already.
    pub async fn shutdown(&self) -> Result<(), WireError> {
        match self.done(Request::Shutdown(pb::Shutdown {}), "shutdown").await {
            Ok(_) | Err(WireError::Gone) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
