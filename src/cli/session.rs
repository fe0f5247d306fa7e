//! Streams between this terminal and a process in a container.
//!
//! Input is read on a thread of its own, which ends with the program: a read from a terminal cannot be cancelled.
//! Input and output are pumped apart, so that a process that reads nothing still gets its output shown.

use std::io::{self, Read};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::error::CliError;
use super::output;
use super::terminal::{self, DetachKeys};
use crate::api::node::stream_response::Body;
use crate::api::node::{AttachRequest, CloseStdin, ExecRequest, StreamResponse, TtySize, attach_request, exec_request};

/// What goes to the process.
#[derive(Debug)]
pub(super) enum Input {
    Bytes(Vec<u8>),
    Resize(TtySize),
    End,
}

/// The two requests carry the same input, in messages of their own.
macro_rules! carries_input {
    ($request:ident, $body:ident) => {
        impl From<Input> for $request {
            fn from(input: Input) -> Self {
                let body = match input {
                    Input::Bytes(bytes) => $body::Body::Stdin(bytes),
                    Input::Resize(size) => $body::Body::Resize(size),
                    Input::End => $body::Body::CloseStdin(CloseStdin {}),
                };
                Self { body: Some(body) }
            }
        }
    };
}

carries_input!(AttachRequest, attach_request);
carries_input!(ExecRequest, exec_request);

/// The sending half: its requests, and the news that the person typed the detach keys.
#[derive(Debug)]
pub(super) struct Sending<R> {
    pub(super) requests: ReceiverStream<R>,
    pub(super) detached: mpsc::Receiver<()>,
    /// Told once the process runs: before, nothing is read that then had nowhere to go.
    pub(super) running: oneshot::Sender<()>,
}

/// Sends `first`, and once the process runs standard input if `interactive`, and terminal sizes if `tty`.
pub(super) fn send<R>(first: R, interactive: bool, tty: bool) -> Result<Sending<R>, CliError>
where
    R: From<Input> + Send + 'static,
{
    let (requests, receiver) = mpsc::channel(8);
    // The channel is new and has room.
    requests.try_send(first).ok();
    let (detach, detached) = mpsc::channel(1);
    let resizes = signal(SignalKind::window_change()).map_err(|e| CliError::io("listen for SIGWINCH", e))?;
    let (running, runs) = oneshot::channel();
    tokio::spawn(async move {
        if runs.await.is_err() {
            return;
        }
        let typed = if interactive { Some(read_stdin()) } else { None };
        let pump = pump(&requests, typed, resizes, tty);
        // A process that has ended makes sending fail and the pump return.
        if pump.await {
            detach.send(()).await.ok();
        }
    });
    Ok(Sending { requests: ReceiverStream::new(receiver), detached, running })
}

/// Sends until nothing is left to be sent; tells whether the person wants to leave.
async fn pump<R: From<Input>>(
    requests: &mpsc::Sender<R>,
    mut typed: Option<mpsc::Receiver<Vec<u8>>>,
    mut resizes: tokio::signal::unix::Signal,
    tty: bool,
) -> bool {
    let mut keys = DetachKeys::default();
    loop {
        let input = tokio::select! {
            bytes = next(&mut typed) => match bytes {
                Some(bytes) if tty => {
                    let (pass, leave) = keys.pass(&bytes);
                    if leave {
                        return true;
                    }
                    if pass.is_empty() {
                        continue;
                    }
                    Input::Bytes(pass)
                }
                Some(bytes) => Input::Bytes(bytes),
                None => {
                    typed = None;
                    Input::End
                }
            },
            Some(()) = resizes.recv(), if tty => match terminal::size() {
                Some(size) => Input::Resize(size),
                None => continue,
            },
            () = requests.closed() => return false,
        };
        if requests.send(input.into()).await.is_err() {
            return false;
        }
    }
}

/// The next input; never, if there is none to come.
async fn next(typed: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match typed {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 14];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that hung up is an end of input too.
                Ok(0) | Err(_) => return,
                Ok(count) if sender.blocking_send(buffer[..count].to_vec()).is_err() => return,
                Ok(_) => {}
            }
        }
    });
    receiver
}

/// What came of waiting for output.
#[derive(Debug)]
pub(super) enum Received {
    /// Shown.
    Output,
    /// The process's exit code: the last message of an exec session.
    Exit(i32),
    /// The other side sends no more.
    End,
    /// The connection broke, or the daemon refused.
    Broken(Status),
}

/// How much of each stream was shown, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) stdout: u64,
    pub(super) stderr: u64,
}

/// Waits for one message and shows it.
pub(super) async fn show_next(from: &mut Streaming<StreamResponse>, shown: &mut Shown) -> Result<Received, CliError> {
    let message = match from.message().await {
        Ok(Some(message)) => message,
        Ok(None) => return Ok(Received::End),
        Err(status) => return Ok(Received::Broken(status)),
    };
    match message.body {
        Some(Body::Stdout(bytes)) => {
            output::write(&mut io::stdout().lock(), &bytes)?;
            shown.stdout += bytes.len() as u64;
        }
        Some(Body::Stderr(bytes)) => {
            output::write(&mut io::stderr().lock(), &bytes)?;
            shown.stderr += bytes.len() as u64;
        }
        Some(Body::ExitCode(code)) => return Ok(Received::Exit(code)),
        // A kind of message younger than this program.
        None => {}
    }
    Ok(Received::Output)
}

/// The signals a person or a supervisor sends to a command in the foreground.
#[derive(Debug)]
pub(super) struct Signals {
    /// Their numbers, to be passed on.
    pub(super) arrivals: mpsc::Receiver<i32>,
    /// How many asked for an end, and the number of the last of those.
    pub(super) asked: watch::Receiver<(u32, i32)>,
}

impl Signals {
    /// Listens from now on; until the program ends no signal does anything by itself.
    pub(super) fn listen() -> Result<Self, CliError> {
        let (sender, arrivals) = mpsc::channel(16);
        let (ask, asked) = watch::channel((0, 0));
        let ask = std::sync::Arc::new(ask);
        for (kind, is_end) in [
            (SignalKind::interrupt(), true),
            (SignalKind::terminate(), true),
            (SignalKind::quit(), true),
            (SignalKind::hangup(), false),
            (SignalKind::user_defined1(), false),
            (SignalKind::user_defined2(), false),
        ] {
            let mut signals = signal(kind).map_err(|e| CliError::io("listen for signals", e))?;
            let (sender, ask) = (sender.clone(), std::sync::Arc::clone(&ask));
            let number = kind.as_raw_value();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if is_end {
                        ask.send_modify(|(count, last)| (*count, *last) = (*count + 1, number));
                    }
                    // Whoever waits for an answer takes none now; what was counted counts all the same.
                    sender.try_send(number).ok();
                }
            });
        }
        Ok(Self { arrivals, asked })
    }
}

/// Waits until `count` signals asked for an end; the number of the last.
pub(super) async fn asked_to_end(asked: &mut watch::Receiver<(u32, i32)>, count: u32) -> i32 {
    match asked.wait_for(|asked| asked.0 >= count).await {
        Ok(asked) => asked.1,
        // Nobody listens any more: the program is ending.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_message_goes_first() {
        let first = AttachRequest::from(Input::Bytes(b"a".to_vec()));
        let mut sending = send(first.clone(), false, false).unwrap();
        let next = tokio_stream::StreamExt::next(&mut sending.requests).await;
        assert_eq!(next, Some(first));
    }

    #[tokio::test]
    async fn typed_detach_keys_end_the_pump_and_are_not_sent() {
        let (requests, mut sent) = mpsc::channel::<ExecRequest>(8);
        let (typing, typed) = mpsc::channel(4);
        let resizes = signal(SignalKind::window_change()).unwrap();
        typing.send(b"a\x10\x11".to_vec()).await.unwrap();
        assert!(pump(&requests, Some(typed), resizes, true).await);
        assert!(sent.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_end_of_input_is_passed_on() {
        let (requests, mut sent) = mpsc::channel::<ExecRequest>(8);
        let (typing, typed) = mpsc::channel(4);
        typing.send(b"\x10\x11".to_vec()).await.unwrap();
        drop(typing);
        let resizes = signal(SignalKind::window_change()).unwrap();
        let pump = tokio::spawn(async move { pump(&requests, Some(typed), resizes, false).await });
        assert_eq!(sent.recv().await, Some(Input::Bytes(b"\x10\x11".to_vec()).into()));
        assert_eq!(sent.recv().await, Some(Input::End.into()));
        drop(sent);
        assert!(!pump.await.unwrap());
    }
}
