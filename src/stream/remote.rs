//! Exec and attach: a process's streams over a connection.
//!
//! A session lasts as long as its connection and no longer. When the process has ended, what it wrote is sent on, then
//! how it ended, and the client closes.

use std::pin::pin;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::link::{Link, LinkError, Opened};
use super::outlet::{Outlet, Parcel};
use super::spdy::{status, value};
use super::{Backend, Pipe, Pipes, Request, Resize, Session, Stdio, Tail, limits, websocket};

/// What closes the input of a terminal: the character its line discipline takes for the end.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// The longest message about a terminal's size.
const SIZE_BYTES: usize = 1024;

/// How a client is told how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdicts {
    /// A sentence if something failed, else nothing.
    Text,
    /// A `Status` of Kubernetes, in any case.
    Json,
}

/// What was agreed on with a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub verdicts: Verdicts,
    /// It has a stream for sizes of its terminal.
    pub resizes: bool,
    /// Streams have fixed numbers and need not be made.
    pub channels: bool,
}

/// The streams of a session, as the client numbers them.
#[derive(Debug, Default)]
struct Streams {
    stdin: Option<Opened>,
    stdout: Option<Opened>,
    stderr: Option<Opened>,
    error: Option<Opened>,
    resize: Option<Opened>,
}

impl Streams {
    fn place(&mut self, kind: &str) -> Option<&mut Option<Opened>> {
        Some(match kind {
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "error" => &mut self.error,
            "resize" => &mut self.resize,
            _ => return None,
        })
    }

    /// The numbers that channels have.
    fn channels(link: &mut Link, stdio: Stdio) -> Self {
        let mut channel = |id: u32, wanted: bool| wanted.then(|| link.channel(id));
        Self {
            stdin: channel(0, stdio.stdin),
            stdout: channel(1, stdio.stdout),
            stderr: channel(2, stdio.stderr),
            error: channel(3, true),
            resize: channel(4, stdio.tty),
        }
    }

    fn are_all_there(&self, stdio: Stdio, manner: Manner) -> bool {
        let is = |there: &Option<Opened>, wanted: bool| there.is_some() || !wanted;
        is(&self.stdin, stdio.stdin)
            && is(&self.stdout, stdio.stdout)
            && is(&self.stderr, stdio.stderr)
            && is(&self.error, true)
            && is(&self.resize, stdio.tty && manner.resizes)
    }
}

/// Serves one client until its session is over.
pub(super) async fn serve<B: Backend>(
    backend: &B,
    request: Request,
    manner: Manner,
    mut link: Link,
    mut newcomers: mpsc::Receiver<Opened>,
    outlet: Arc<Outlet>,
) {
    let (Request::Exec { stdio, .. } | Request::Attach { stdio, .. }) = request else { return };
    let fixed = manner.channels.then(|| Streams::channels(&mut link, stdio));
    let mut reading = pin!(link.run());
    let session = async {
        let streams = match fixed {
            Some(streams) => streams,
            None => timeout(limits::STREAMS_MADE, gather(&mut newcomers, &outlet, stdio, manner)).await.ok()?,
        };
        // Any further ones are refused.
        drop(newcomers);
        // Clients that use channels have no other sign that somebody is there.
        if manner.channels
            && let Some(first) = streams.stdout.as_ref().or(streams.stderr.as_ref())
        {
            outlet.all(first.id, Parcel::of(b"")).await.ok()?;
        }
        attend(backend, request, manner, streams, &outlet).await;
        Some(())
    };
    tokio::select! {
        gone = &mut reading => return told(gone),
        () = outlet.idle(limits::IDLE) => return debug!("a session for a client was silent too long"),
        done = session => if done.is_none() {
            return debug!("a client did not make the streams of its session");
        }
    }
    outlet.close(websocket::NORMAL).await;
    // To close first would cut off what is still on its way.
    match timeout(limits::LINGER, reading).await {
        Ok(gone) => told(gone),
        Err(_) => outlet.shut_down().await,
    }
}

fn told(gone: Result<(), LinkError>) {
    if let Err(e) = gone {
        debug!(error = %e, "a connection for streams broke");
    }
}

/// Waits until the client has made all streams of its session.
async fn gather(newcomers: &mut mpsc::Receiver<Opened>, outlet: &Outlet, stdio: Stdio, manner: Manner) -> Streams {
    let mut streams = Streams::default();
    while !streams.are_all_there(stdio, manner) {
        let Some(opened) = newcomers.recv().await else { break };
        let id = opened.id;
        match value(&opened.headers, "streamtype").and_then(|kind| streams.place(kind)) {
            Some(place @ None) => {
                *place = Some(opened);
                outlet.accept(id).await;
            }
            _ => outlet.reset(id, status::REFUSED_STREAM).await,
        }
    }
    streams
}

/// Runs the session and says how it ended.
async fn attend<B: Backend>(backend: &B, request: Request, manner: Manner, streams: Streams, outlet: &Outlet) {
    let ids: Vec<u32> = [&streams.stdin, &streams.stdout, &streams.stderr, &streams.resize]
        .into_iter()
        .filter_map(|stream| stream.as_ref().map(|stream| stream.id))
        .collect();
    let error = streams.error.as_ref().map(|stream| stream.id);
    let ended = match backend.begin(request).await {
        Ok(session) => run(session, streams, outlet).await,
        Err(reason) => Err(reason),
    };
    for id in ids {
        outlet.end(id).await;
    }
    if let Some(error) = error {
        let verdict = verdict(&ended, manner.verdicts);
        if !verdict.is_empty() {
            // The reader notices if the client is gone.
            outlet.all(error, Parcel::of(verdict.as_bytes())).await.ok();
        }
        outlet.end(error).await;
    }
}

/// What a client is told of the end, as kubelet's own server words it.
fn verdict(ended: &Result<i32, String>, verdicts: Verdicts) -> String {
    let status: Value = match (ended, verdicts) {
        (Ok(0), Verdicts::Text) => return String::new(),
        (Ok(code), Verdicts::Text) => return format!("command terminated with exit code {code}"),
        (Err(reason), Verdicts::Text) => return reason.clone(),
        (Ok(0), Verdicts::Json) => json!({ "metadata": {}, "status": "Success" }),
        (Ok(code), Verdicts::Json) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        (Err(reason), Verdicts::Json) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "InternalError",
            "message": reason,
            "details": { "causes": [{ "message": reason }] },
            "code": 500,
        }),
    };
    status.to_string()
}

async fn run<S: Session>(mut session: S, streams: Streams, outlet: &Outlet) -> Result<i32, String> {
    let Pipes { stdin, stdout, stderr, terminal, resize, lasts_as_its_streams, ends_with_input } = session.pipes();
    let terminal = terminal.map(Arc::new);
    let is_terminal = terminal.is_some();
    let stdin = stdin.map(Arc::new).or_else(|| terminal.clone());
    let has_output = stdout.is_some() || stderr.is_some() || is_terminal;
    let (told, tail) = Tail::new();
    let (to_stdout, to_stderr) = (streams.stdout.as_ref(), streams.stderr.as_ref());
    let output = async {
        tokio::join!(
            pump(stdout.as_ref(), to_stdout, outlet, tail.clone()),
            pump(stderr.as_ref(), to_stderr, outlet, tail.clone()),
            pump(terminal.as_deref(), to_stdout, outlet, tail.clone()),
        );
    };
    let (mut output, mut input) = (pin!(output), pin!(feed(streams.stdin, stdin, is_terminal, has_output)));
    let mut resizing = pin!(resizes(streams.resize, resize));
    let (mut is_fed, mut is_drained) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = session.wait() => break ended,
            () = &mut output, if !is_drained => {
                is_drained = true;
                if lasts_as_its_streams && has_output {
                    break Ok(0);
                }
            }
            fed = &mut input, if !is_fed => {
                is_fed = true;
                let is_over = match fed {
                    Fed::None => false,
                    Fed::All => ends_with_input || (lasts_as_its_streams && !has_output),
                    Fed::Unread => lasts_as_its_streams && !has_output,
                };
                if is_over {
                    break Ok(0);
                }
            }
            () = &mut resizing => {}
        }
    };
    if !is_drained {
        // The receivers are in `output`.
        told.send(Some(Instant::now())).ok();
        output.await;
    }
    ended
}

/// How a process's input ended.
enum Fed {
    /// There was none.
    None,
    /// The client sent all.
    All,
    /// The process wants no more, or is gone.
    Unread,
}

/// Takes what the client sends to the process, until either wants no more.
async fn feed(input: Option<Opened>, stdin: Option<Arc<Pipe>>, is_terminal: bool, has_output: bool) -> Fed {
    let (Some(mut input), Some(stdin)) = (input, stdin) else { return Fed::None };
    let unread = async {
        match is_terminal || has_output {
            // Output tells of the end, and a client whose input nobody takes may still leave by ending it.
            true => std::future::pending().await,
            false => stdin.unread().await,
        }
    };
    let fed = async {
        let mut is_read = true;
        while let Some(piece) = input.input.recv().await {
            // What comes once the process has closed it is dropped.
            is_read = is_read && stdin.write_all(&piece.bytes).await.is_ok();
        }
        if is_terminal {
            // A terminal that is gone needs no end.
            stdin.write_all(END_OF_TRANSMISSION).await.ok();
        }
        Fed::All
    };
    tokio::select! {
        fed = fed => fed,
        () = unread => Fed::Unread,
    }
}

/// Takes what the process writes to the client, as fast as that one reads; without a stream for it, to nobody.
async fn pump(pipe: Option<&Pipe>, stream: Option<&Opened>, outlet: &Outlet, mut tail: Tail) {
    let Some(pipe) = pipe else { return };
    while tail.more(pipe).await {
        // Only while there is something to read is there memory for it.
        let mut parcel = Parcel::new();
        loop {
            match pipe.try_read(parcel.room()) {
                Ok(None) => break,
                Ok(Some(0)) | Err(_) => return,
                Ok(Some(length)) => {
                    match stream {
                        // The reader notices that the client is gone, and ends all.
                        Some(stream) if outlet.data(stream.id, &mut parcel, length).await.is_err() => return,
                        Some(_) => {}
                        None => tokio::task::yield_now().await,
                    }
                    if !tail.took(length) {
                        return;
                    }
                }
            }
        }
    }
}

/// Changes the terminal's size whenever the client says so; never over.
async fn resizes(stream: Option<Opened>, resize: Option<Resize>) {
    if let (Some(mut stream), Some(resize)) = (stream, resize) {
        let mut pending = Vec::new();
        while let Some(piece) = stream.input.recv().await {
            pending.extend_from_slice(&piece.bytes);
            drop(piece);
            let (size, rest) = last_size(&pending);
            pending = pending.split_off(pending.len() - rest);
            if let Some((rows, cols)) = size {
                resize(rows, cols).await;
            }
            if pending.len() > SIZE_BYTES {
                // No size is that long; whatever it is, it is not for us.
                break;
            }
        }
    }
    std::future::pending().await
}

/// The last whole size among JSON objects (rows, columns), and how many bytes at the end are not yet one.
fn last_size(bytes: &[u8]) -> (Option<(u16, u16)>, usize) {
    let mut objects = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    let (mut size, mut used) = (None, 0);
    while let Some(Ok(object)) = objects.next() {
        used = objects.byte_offset();
        let side = |name: &str| object.get(name).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
        if let (Some(rows), Some(cols)) = (side("Height"), side("Width")) {
            size = Some((rows, cols));
        }
    }
    let rest = bytes[used..].iter().skip_while(|byte| byte.is_ascii_whitespace()).count();
    (size, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_however_they_come() {
        assert_eq!(last_size(b"{\"Width\":80,\"Height\":24}\n"), (Some((24, 80)), 0));
        assert_eq!(last_size(b"{\"Width\":1,\"Height\":2}{\"Width\":3,\"Height\":4}{\"Wi"), (Some((4, 3)), 4));
        assert_eq!(last_size(b"{\"Width\":99999999,\"Height\":2}"), (None, 0));
        assert_eq!(last_size(b"[]\n17 \"x\""), (None, 0));
        assert_eq!(last_size(b"nonsense").0, None);
    }

    #[test]
    fn verdicts_are_those_clients_know() {
        assert_eq!(verdict(&Ok(0), Verdicts::Text), "");
        assert_eq!(verdict(&Ok(7), Verdicts::Text), "command terminated with exit code 7");
        assert_eq!(verdict(&Err("no".to_owned()), Verdicts::Text), "no");
        assert_eq!(verdict(&Ok(0), Verdicts::Json), r#"{"metadata":{},"status":"Success"}"#);
        let failed: Value = serde_json::from_str(&verdict(&Ok(137), Verdicts::Json)).unwrap();
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "137" }));
        let failed: Value = serde_json::from_str(&verdict(&Err("no".to_owned()), Verdicts::Json)).unwrap();
        assert_eq!((&failed["status"], &failed["message"]), (&json!("Failure"), &json!("no")));
    }
}
