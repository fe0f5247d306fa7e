//! A container that runs while we look on: its streams are ours, our signals are its.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Streaming};

use super::connect::Daemon;
use super::error::CliError;
use super::exec::exit_code;
use super::inspect;
use super::logfile::{Entry, LogFile, Stream};
use super::logs;
use super::output;
use super::run;
use super::session::{self, Input, Received, Sending, Shown, Signals};
use super::terminal::{self, Raw};
use crate::api::cri;
use crate::api::node::{AttachRequest, AttachStart, StreamResponse, attach_request};

/// How often a container is asked about whose streams are silent: a child may keep them open after its end.
const QUESTION: Duration = Duration::from_millis(250);
/// So long an ended container's output may still be on its way to us.
const DRAIN: Duration = Duration::from_millis(200);
/// So many signals that ask for an end, and we leave though the container goes on.
const PATIENCE: u32 = 3;
/// So long a container has to end by a signal before the person is told what else there is.
const HINT: Duration = Duration::from_secs(1);

/// How it ended for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit code.
    Exited(i32),
    /// It goes on; the person typed the detach keys.
    Left,
    /// It goes on; this signal was one too many.
    GivenUp(i32),
    /// It never ran; this signal came before.
    NotBegun(i32),
}

/// Which of a container's streams are ours, besides what it writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    /// What is typed here is passed on.
    pub(super) interactive: bool,
    /// It has a terminal.
    pub(super) tty: bool,
}

impl End {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => exit_code(code),
            Self::Left => 0,
            Self::GivenUp(number) | Self::NotBegun(number) => exit_code(128 + number),
        }
    }
}

/// Joins the container's streams, starts it, and stays until it ends or the person leaves. `name` is for the hint.
pub(super) async fn run(
    daemon: &mut Daemon,
    id: &str,
    name: &str,
    streams: Streams,
    signals: &mut Signals,
) -> Result<End, CliError> {
    let begin = async {
        let joined = join(daemon, id, streams).await?;
        run::start(daemon, id).await?;
        Ok::<_, CliError>(joined)
    };
    let (sending, responses) = tokio::select! {
        begun = begin => begun?,
        number = session::asked_to_end(&mut signals.asked, 1) => return Ok(End::NotBegun(number)),
    };
    let raw = raw(streams)?;
    // A program that has ended already reads nothing.
    sending.running.send(()).ok();
    let mut watch = Watch {
        daemon,
        id,
        signals: &mut signals.arrivals,
        detached: sending.detached,
        responses: Some(responses),
        shown: Shown::default(),
        replay: Replay::Closed,
    };
    let mut asked = signals.asked.clone();
    let hint = async {
        session::asked_to_end(&mut asked, 1).await;
        tokio::time::sleep(HINT).await;
        output::remark(&hint(name));
        std::future::pending::<Result<End, CliError>>().await
    };
    // Beside each other: whatever the daemon does not answer, the person can leave.
    let end = tokio::select! {
        end = watch.until_end() => end,
        end = hint => end,
        number = session::asked_to_end(&mut signals.asked, PATIENCE) => Ok(End::GivenUp(number)),
    };
    drop(raw);
    end
}

/// Joins the streams of a container that runs, and stays until it ends or the person leaves. What it wrote before is
/// not shown, and a signal is a way to leave.
pub(super) async fn attach(
    daemon: &mut Daemon,
    id: &str,
    streams: Streams,
    signals: &mut Signals,
) -> Result<End, CliError> {
    let (sending, responses) = tokio::select! {
        joined = join(daemon, id, streams) => joined?,
        number = session::asked_to_end(&mut signals.asked, 1) => return Ok(End::GivenUp(number)),
    };
    let raw = raw(streams)?;
    // One that has ended meanwhile reads nothing.
    sending.running.send(()).ok();
    // As long as the sender is there, none arrives.
    let (_silent, mut no_signals) = mpsc::channel(1);
    let mut watch = Watch {
        daemon,
        id,
        signals: &mut no_signals,
        detached: sending.detached,
        responses: Some(responses),
        shown: Shown::default(),
        replay: Replay::Never,
    };
    let end = tokio::select! {
        end = watch.until_end() => end,
        number = session::asked_to_end(&mut signals.asked, 1) => Ok(End::GivenUp(number)),
    };
    drop(raw);
    end
}

/// The terminal's keys as they are typed, if they are the container's.
fn raw(streams: Streams) -> Result<Option<Raw>, CliError> {
    (streams.tty && streams.interactive).then(Raw::enter).transpose()
}

fn hint(name: &str) -> String {
    format!(
        "{name} got the signal and goes on; `aril rm -f {name}` kills and removes it, a third Ctrl-C here leaves it \
         running"
    )
}

/// What is sent to a container once it is joined, and what comes from it.
struct Joined {
    detached: mpsc::Receiver<()>,
    running: oneshot::Sender<()>,
}

async fn join(
    daemon: &Daemon,
    id: &str,
    Streams { interactive, tty }: Streams,
) -> Result<(Joined, Streaming<StreamResponse>), CliError> {
    let start = AttachStart { container_id: id.to_owned(), stdin: interactive, stdout: true, stderr: !tty };
    let first = AttachRequest { body: Some(attach_request::Body::Start(start)) };
    let Sending { requests, detached, running } = session::send(first, interactive, tty)?;
    let size = terminal::size().filter(|_| tty).map(|size| AttachRequest::from(Input::Resize(size)));
    let requests = WithSize { size, requests, first_sent: false };
    Ok((Joined { detached, running }, daemon.streams().attach(requests).await?.into_inner()))
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
    signals: &'a mut mpsc::Receiver<i32>,
    detached: mpsc::Receiver<()>,
    /// None once the other side sends no more.
    responses: Option<Streaming<StreamResponse>>,
    shown: Shown,
    /// What the log has beyond what was shown, once there is nothing else.
    replay: Replay,
}

/// Whether the log takes over where the streams stopped.
#[derive(Debug)]
enum Replay {
    /// Not: it began before us.
    Never,
    /// It will, if need be.
    Closed,
    Open(Rest),
}

impl Watch<'_> {
    async fn until_end(&mut self) -> Result<End, CliError> {
        let replayed = self.is_replayed();
        let mut question = tokio::time::interval(QUESTION);
        loop {
            let ask = tokio::select! {
                biased;
                Some(number) = self.signals.recv() => {
                    // It may end this very moment.
                    inspect::signal(self.daemon, self.id, number).await?;
                    false
                }
                Some(()) = self.detached.recv() => return Ok(End::Left),
                ended = show(&mut self.responses, &mut self.shown, replayed) => ended?,
                _ = question.tick() => true,
            };
            if !ask {
                continue;
            }
            let code = self.exit_code().await?;
            if code.is_some() {
                self.drain().await?;
            }
            if code.is_some() || self.responses.is_none() {
                self.show_rest().await?;
            }
            if let Some(code) = code {
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

    fn is_replayed(&self) -> bool {
        !matches!(self.replay, Replay::Never)
    }

    /// Shows what is still on its way.
    async fn drain(&mut self) -> Result<(), CliError> {
        let replayed = self.is_replayed();
        let rest = async {
            while self.responses.is_some() {
                show(&mut self.responses, &mut self.shown, replayed).await?;
            }
            Ok(())
        };
        tokio::time::timeout(DRAIN, rest).await.unwrap_or(Ok(()))
    }

    /// Shows what the log has beyond what was shown.
    async fn show_rest(&mut self) -> Result<(), CliError> {
        if let Replay::Closed = self.replay {
            let status = logs::status(self.daemon, self.id).await?;
            // A pod of somebody else may keep no log of it; then what was shown is all there is.
            let Ok(path) = logs::log_path(&status) else { return Ok(()) };
            self.replay = Replay::Open(Rest::open(&path, self.shown)?);
        }
        match &mut self.replay {
            Replay::Open(rest) => rest.show(),
            Replay::Never | Replay::Closed => Ok(()),
        }
    }
}

/// Shows the next piece of output; true when there will be no more of it.
/// If the log is `replayed` it makes up for what we missed.
async fn show(
    responses: &mut Option<Streaming<StreamResponse>>,
    shown: &mut Shown,
    replayed: bool,
) -> Result<bool, CliError> {
    let Some(stream) = responses else { return std::future::pending().await };
    match session::show_next(stream, shown).await? {
        Received::Output => return Ok(false),
        Received::Exit(_) | Received::End => {}
        // It ended before we were joined to it, or we read too slowly: the log has the rest.
        Received::Broken(status) if matches!(status.code(), Code::FailedPrecondition | Code::ResourceExhausted) => {
            if status.code() == Code::ResourceExhausted && !replayed {
                return Err(status.into());
            }
        }
        Received::Broken(status) => return Err(status.into()),
    }
    *responses = None;
    Ok(true)
}

/// A log of which the beginning was shown already.
#[derive(Debug)]
struct Rest {
    log: LogFile,
    /// Bytes of standard output and of standard error to be passed over.
    skip: [u64; 2],
}

impl Rest {
    fn open(log: &Path, shown: Shown) -> Result<Self, CliError> {
        let log = LogFile::open(log).map_err(|e| CliError::io(format!("open log {}", log.display()), e))?;
        Ok(Self { log, skip: [shown.stdout, shown.stderr] })
    }

    /// Shows what there is now.
    fn show(&mut self) -> Result<(), CliError> {
        let Self { log, skip } = self;
        log.read(|_, entry| {
            let piece = unseen(&entry, skip);
            match entry.stream {
                Stream::Stdout => output::write(&mut std::io::stdout().lock(), &piece),
                Stream::Stderr => output::write(&mut std::io::stderr().lock(), &piece),
            }
        })
    }
}

/// What of an entry was not shown yet, as the container wrote it.
fn unseen(entry: &Entry<'_>, skip: &mut [u64; 2]) -> Vec<u8> {
    let end: &[u8] = if entry.ends { b"\n" } else { b"" };
    let mut piece = [entry.bytes, end].concat();
    let left = &mut skip[usize::from(entry.stream == Stream::Stderr)];
    let seen = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
    *left -= seen as u64;
    piece.drain(..seen);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_not_shown_again() {
        let mut skip = [6, 0];
        let lines = [
            "2026-01-01T00:00:01Z stdout F abc",
            "2026-01-01T00:00:01Z stderr F err",
            "2026-01-01T00:00:01Z stdout P defg",
            "2026-01-01T00:00:01Z stdout F h",
        ];
        let rest: Vec<Vec<u8>> = lines.iter().map(|l| unseen(&Entry::parse(l.as_bytes()), &mut skip)).collect();
        assert_eq!(rest, [&b""[..], b"err\n", b"fg", b"h\n"]);
    }
}
