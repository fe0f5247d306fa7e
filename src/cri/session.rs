//! Streams between a gRPC client and a process: bounded both ways, ended by either side.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::error::status as error;
use crate::api::node::{AttachRequest, ExecRequest, StreamResponse, TtySize};
use crate::api::node::{attach_request, exec_request, stream_response};
use crate::node::{Attachment, Resizer, Session};
use crate::stream::{CHUNK_BYTES, Pipe, Tail};

/// What closes the input of a terminal: the character its line discipline takes for the end.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

type Sender = mpsc::Sender<Result<StreamResponse, Status>>;

/// What a client sends once a session is under way.
enum Input {
    Bytes(Vec<u8>),
    Resize(u16, u16),
    Close,
    /// A message this version does not know.
    Nothing,
}

impl From<ExecRequest> for Input {
    fn from(request: ExecRequest) -> Self {
        use exec_request::Body;
        match request.body {
            Some(Body::Stdin(bytes)) => Self::Bytes(bytes),
            Some(Body::Resize(tty)) => size(&tty).into(),
            Some(Body::CloseStdin(_)) => Self::Close,
            Some(Body::Start(_)) | None => Self::Nothing,
        }
    }
}

impl From<AttachRequest> for Input {
    fn from(request: AttachRequest) -> Self {
        use attach_request::Body;
        match request.body {
            Some(Body::Stdin(bytes)) => Self::Bytes(bytes),
            Some(Body::Resize(tty)) => size(&tty).into(),
            Some(Body::CloseStdin(_)) => Self::Close,
            Some(Body::Start(_)) | None => Self::Nothing,
        }
    }
}

impl From<(u16, u16)> for Input {
    fn from((rows, cols): (u16, u16)) -> Self {
        Self::Resize(rows, cols)
    }
}

/// Rows and columns, as many as a terminal can have.
pub(super) fn size(size: &TtySize) -> (u16, u16) {
    let clamped = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    (clamped(size.rows), clamped(size.cols))
}

/// Serves an exec session until its process has ended; the exit code goes last. A client that goes
/// away takes the session with it.
pub(super) async fn exec(mut session: Session, input: Streaming<ExecRequest>, sender: Sender) {
    let resizer = session.resizer();
    let terminal = session.terminal.take().map(Arc::new);
    let stdin = session.stdin.take().map(Arc::new).or_else(|| terminal.clone());
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let input = feed(input, stdin, terminal.is_some(), resizer);
    let (told, tail) = Tail::new();
    let output = async {
        tokio::join!(
            pump(stdout.as_ref(), stream_response::Body::Stdout, &sender, tail.clone()),
            pump(stderr.as_ref(), stream_response::Body::Stderr, &sender, tail.clone()),
            pump(terminal.as_deref(), stream_response::Body::Stdout, &sender, tail.clone()),
        );
    };
    tokio::pin!(input, output);
    let (mut is_fed, mut is_drained) = (false, false);
    let code = loop {
        tokio::select! {
            code = session.wait() => break code,
            () = sender.closed() => return,
            () = &mut output, if !is_drained => is_drained = true,
            () = &mut input, if !is_fed => is_fed = true,
        }
    };
    if !is_drained {
        // The receivers are in `output`, which ends at once if the client is gone.
        told.send(Some(Instant::now())).ok();
        output.await;
    }
    let last = match code {
        Ok(code) => Ok(StreamResponse { body: Some(stream_response::Body::ExitCode(code)) }),
        Err(e) => Err(error(&e)),
    };
    sender.send(last).await.ok();
}

/// Serves an attachment until the container's output ends or the client goes away.
pub(super) async fn attach(attachment: Attachment, input: Streaming<AttachRequest>, sender: Sender) {
    let resizer = attachment.resizer();
    let Attachment { stdin, stdout, stderr, .. } = attachment;
    let has_output = stdout.is_some() || stderr.is_some();
    let stdin = stdin.map(Arc::new);
    let for_nobody = {
        let stdin = stdin.clone().filter(|_| !has_output);
        async move {
            match stdin {
                Some(stdin) => stdin.unread().await,
                None => std::future::pending().await,
            }
        }
    };
    let input = feed(input, stdin, false, resizer);
    // Of an attachment the end of its streams is the only end.
    let (_told, tail) = Tail::new();
    let output = async {
        tokio::join!(
            pump(stdout.as_ref(), stream_response::Body::Stdout, &sender, tail.clone()),
            pump(stderr.as_ref(), stream_response::Body::Stderr, &sender, tail.clone()),
        );
    };
    tokio::pin!(input, output, for_nobody);
    let mut is_fed = false;
    loop {
        tokio::select! {
            () = sender.closed() => return,
            () = &mut output, if has_output => return,
            () = &mut for_nobody => return,
            () = &mut input, if !is_fed => {
                is_fed = true;
                if !has_output {
                    return;
                }
            }
        }
    }
}

/// Takes what the client sends to the process, until either wants no more.
async fn feed<T>(mut input: Streaming<T>, stdin: Option<Arc<Pipe>>, is_terminal: bool, resizer: Resizer)
where
    Input: From<T>,
{
    let mut stdin = stdin;
    // A client that ends its side of the stream has no more input, as one that says so.
    while let Ok(Some(message)) = input.message().await {
        match Input::from(message) {
            Input::Bytes(bytes) => {
                if let Some(stream) = &stdin
                    && stream.write_all(&bytes).await.is_err()
                {
                    stdin = None;
                }
            }
            Input::Resize(rows, cols) => resizer.resize(rows, cols).await,
            Input::Close => close(&mut stdin, is_terminal).await,
            Input::Nothing => {}
        }
    }
    close(&mut stdin, is_terminal).await;
}

async fn close(stdin: &mut Option<Arc<Pipe>>, is_terminal: bool) {
    if let Some(stream) = stdin.take()
        && is_terminal
    {
        // A terminal that is gone needs no end.
        stream.write_all(END_OF_TRANSMISSION).await.ok();
    }
}

/// Takes what the process writes to the client, as fast as that one reads.
async fn pump(stream: Option<&Pipe>, body: impl Fn(Vec<u8>) -> stream_response::Body, sender: &Sender, mut tail: Tail) {
    let Some(stream) = stream else { return };
    while tail.more(stream).await {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = match stream.try_read(&mut chunk) {
            Ok(None) => continue,
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(length)) => length,
        };
        chunk.truncate(length);
        if sender.send(Ok(StreamResponse { body: Some(body(chunk)) })).await.is_err() || !tail.took(length) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sizes_are_those_a_terminal_can_have() {
        assert_eq!(size(&TtySize { rows: 24, cols: 80 }), (24, 80));
        assert_eq!(size(&TtySize { rows: u32::MAX, cols: 0 }), (u16::MAX, 0));
    }

    #[tokio::test]
    async fn output_goes_to_the_client_in_order_and_ends() {
        let (ours, theirs) = Pipe::from_process().unwrap();
        let process = Pipe::new(theirs).unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let write = async {
            for word in ["one", "two"] {
                process.write_all(word.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(process);
        };
        let read = async {
            let mut all = Vec::new();
            while let Some(Ok(StreamResponse { body: Some(stream_response::Body::Stderr(bytes)) })) =
                receiver.recv().await
            {
                all.extend(bytes);
            }
            all
        };
        let pump = async {
            let (_told, tail) = Tail::new();
            pump(Some(&ours), stream_response::Body::Stderr, &sender, tail).await;
            drop(sender);
        };
        let ((), (), all) = tokio::join!(write, pump, read);
        assert_eq!(all, b"onetwo");
    }

    #[tokio::test]
    async fn output_of_an_ended_process_waits_for_a_client_that_pauses() {
        let (ours, theirs) = Pipe::from_process().unwrap();
        let process = Pipe::new(theirs).unwrap();
        process.write_all(&[b'x'; 60_000]).await.unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let (told, tail) = Tail::new();
        told.send(Some(Instant::now())).unwrap();
        let read = async {
            let mut length = 0;
            tokio::time::sleep(Duration::from_millis(600)).await;
            while let Some(Ok(StreamResponse { body: Some(stream_response::Body::Stdout(bytes)) })) =
                receiver.recv().await
            {
                length += bytes.len();
            }
            length
        };
        let pump = async {
            pump(Some(&ours), stream_response::Body::Stdout, &sender, tail).await;
            drop(sender);
        };
        // A child holds the stream.
        assert_eq!(tokio::join!(pump, read).1, 60_000);
        drop(process);
    }
}
