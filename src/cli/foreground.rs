//! A container that runs while we look on: its streams are ours, our signals are its.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Streaming};

use super::args::ContainerArgs;
use super::connect::Daemon;
use super::error::CliError;
use super::exec::exit_code;
use super::inspect;
use super::logfile::{LogFile, Stream};
use super::logs;
use super::output;
use super::run;
use super::session::{self, Input, Received, Sending, Shown};
use super::terminal::{self, Raw};
use crate::api::cri;
use crate::api::node::{AttachRequest, AttachStart, StreamResponse, attach_request};
use crate::sys;

/// How often a container is asked about whose streams are silent: a child may keep them open after its end.
const QUESTION: Duration = Duration::from_millis(250);
/// So long an ended container's output may still be on its way to us.
const DRAIN: Duration = Duration::from_millis(200);
/// So many of these signals, and we leave though the container goes on.
const PATIENCE: u32 = 3;

/// How it ended for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit code.
    Exited(i32),
    /// It goes on.
    Left,
}

impl End {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => exit_code(code),
            Self::Left => 0,
        }
    }
}

/// Joins the container's streams, starts it, and stays until it ends or the person leaves.
pub(super) async fn run(daemon: &mut Daemon, id: &str, args: &ContainerArgs) -> Result<End, CliError> {
    let signals = session::signals()?;
    let (detached, responses) = attach(daemon, id, args).await?;
    run::start(daemon, id).await?;
    let raw = if args.tty && args.interactive { Some(Raw::enter()?) } else { None };
    let mut watch = Watch { daemon, id, signals, detached, responses: Some(responses), shown: Shown::default() };
    let end = watch.until_end().await;
    let shown = watch.shown;
    drop(raw);
    if let Ok(End::Exited(_)) = end {
        let path = logs::log_path(&logs::status(daemon, id).await?);
        // A pod of somebody else may keep no log of it; then what was shown is all there is.
        if let Ok(path) = path {
            show_rest(&path, shown)?;
        }
    }
    end
}

async fn attach(
    daemon: &mut Daemon,
    id: &str,
    args: &ContainerArgs,
) -> Result<(oneshot::Receiver<()>, Streaming<StreamResponse>), CliError> {
    let start = AttachStart { container_id: id.to_owned(), stdin: args.interactive, stdout: true, stderr: !args.tty };
    let first = AttachRequest { body: Some(attach_request::Body::Start(start)) };
    let Sending { requests, detached } = session::send(first, args.interactive, args.tty)?;
    let size = terminal::size().filter(|_| args.tty).map(|size| AttachRequest::from(Input::Resize(size)));
    let requests = WithSize { size, requests, first_sent: false };
    Ok((detached, daemon.node.attach(requests).await?.into_inner()))
}

/// The requests, with the terminal's size right behind the first.
struct WithSize {
    size: Option<AttachRequest>,
    requests: tokio_stream::wrappers::ReceiverStream<AttachRequest>,
    first_sent: bool,
}

impl tokio_stream::Stream for WithSize {
    type Item = AttachRequest;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<AttachRequest>> {
        if self.first_sent
            && let Some(size) = self.size.take()
        {
            return std::task::Poll::Ready(Some(size));
        }
        self.first_sent = true;
        std::pin::Pin::new(&mut self.requests).poll_next(context)
    }
}

/// What is waited for while the container runs.
struct Watch<'a> {
    daemon: &'a mut Daemon,
    id: &'a str,
    signals: mpsc::Receiver<i32>,
    detached: oneshot::Receiver<()>,
    /// None once the other side sends no more.
    responses: Option<Streaming<StreamResponse>>,
    shown: Shown,
}

impl Watch<'_> {
    async fn until_end(&mut self) -> Result<End, CliError> {
        let mut received = 0;
        let mut question = tokio::time::interval(QUESTION);
        loop {
            let ask = tokio::select! {
                biased;
                Some(number) = self.signals.recv() => {
                    received += 1;
                    if received >= PATIENCE {
                        return Ok(End::Left);
                    }
                    self.forward(number).await?;
                    false
                }
                Ok(()) = &mut self.detached => return Ok(End::Left),
                ended = show(&mut self.responses, &mut self.shown) => ended?,
                _ = question.tick() => true,
            };
            if ask && let Some(code) = self.exit_code().await? {
                self.drain().await?;
                return Ok(End::Exited(code));
            }
        }
    }

    /// The exit code, if it has ended.
    async fn exit_code(&mut self) -> Result<Option<i32>, CliError> {
        let status = logs::status(self.daemon, self.id).await?;
        match status.state() {
            cri::ContainerState::ContainerExited => Ok(Some(status.exit_code)),
            cri::ContainerState::ContainerUnknown => {
                Err(CliError::Failed(format!("the daemon lost sight of container {}", output::short(self.id))))
            }
            cri::ContainerState::ContainerCreated | cri::ContainerState::ContainerRunning => Ok(None),
        }
    }

    /// Shows what is still on its way.
    async fn drain(&mut self) -> Result<(), CliError> {
        let rest = async {
            while self.responses.is_some() {
                show(&mut self.responses, &mut self.shown).await?;
            }
            Ok(())
        };
        tokio::time::timeout(DRAIN, rest).await.unwrap_or(Ok(()))
    }

    /// Sends the container's first process the signal we got.
    async fn forward(&mut self, number: i32) -> Result<(), CliError> {
        let Some(pid) = inspect::pid(self.daemon, self.id).await? else { return Ok(()) };
        // Opened before looking again: if the container still runs then, the descriptor is its process's.
        let Ok(pidfd) = sys::process::pidfd_open(pid) else { return Ok(()) };
        if inspect::pid(self.daemon, self.id).await? == Some(pid) {
            use std::os::fd::AsFd;
            // It may end this very moment.
            sys::process::pidfd_signal(pidfd.as_fd(), number).ok();
        }
        Ok(())
    }
}

/// Shows the next piece of output; true when there will be no more of it.
async fn show(responses: &mut Option<Streaming<StreamResponse>>, shown: &mut Shown) -> Result<bool, CliError> {
    let Some(stream) = responses else { return std::future::pending().await };
    match session::show_next(stream, shown).await? {
        Received::Output => return Ok(false),
        Received::Exit(_) | Received::End => {}
        // It ended before we were joined to it, or we read too slowly: the log has the rest.
        Received::Broken(status) if matches!(status.code(), Code::FailedPrecondition | Code::ResourceExhausted) => {}
        Received::Broken(status) => return Err(status.into()),
    }
    *responses = None;
    Ok(true)
}

/// Shows what the log has beyond what was shown.
fn show_rest(log: &Path, shown: Shown) -> Result<(), CliError> {
    let mut skip = [shown.stdout, shown.stderr];
    let failed = |e| CliError::io(format!("read log {}", log.display()), e);
    let mut rest: Result<(), CliError> = Ok(());
    let mut log = LogFile::open(log).map_err(failed)?;
    log.read(|_, entry| {
        let end: &[u8] = if entry.ends { b"\n" } else { b"" };
        let piece = [entry.bytes, end].concat();
        let left = &mut skip[usize::from(entry.stream == Stream::Stderr)];
        let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
        *left -= skipped as u64;
        if skipped < piece.len() && rest.is_ok() {
            rest = match entry.stream {
                Stream::Stdout => output::write(&mut std::io::stdout().lock(), &piece[skipped..]),
                Stream::Stderr => output::write(&mut std::io::stderr().lock(), &piece[skipped..]),
            };
        }
        Ok::<(), std::io::Error>(())
    })
    .map_err(failed)?;
    rest
}
