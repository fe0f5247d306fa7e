//! Port-forward: connections into a pod's network.
//!
//! Over SPDY a client makes two streams for each connection, one for bytes and one for what went wrong, which carry the
//! same number and port. Over channels the ports are known from the start, and each is one connection.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::debug;

use super::link::{Link, Opened, Piece, Reset};
use super::outlet::{Outlet, Parcel};
use super::spdy::{Headers, status, value};
use super::{Backend, limits, websocket};

/// How long a connection may be in the making.
const CONNECT: Duration = Duration::from_secs(30);

/// How long a client may send nothing to a pod that has said all it will; most have no more to say, and do not say so.
const HALF_OPEN: Duration = Duration::from_secs(60);

/// A stream whose counterpart is not there yet.
#[derive(Debug)]
struct Half {
    stream: Opened,
    is_data: bool,
    port: u16,
    since: Instant,
}

/// Serves one client until it goes away.
pub(super) async fn serve<B: Backend>(
    backend: Arc<B>,
    sandbox: String,
    ports: Option<Vec<u16>>,
    mut link: Link,
    newcomers: mpsc::Receiver<Opened>,
    outlet: Arc<Outlet>,
) {
    // One port that takes nothing is not to hold up all the others.
    link.give_up_stalled();
    let channels = ports.map(|ports| channels(&mut link, &ports));
    let forwarding = async {
        // Whatever is under way ends with this.
        let mut tasks = JoinSet::new();
        match channels {
            None => pairs(&backend, &sandbox, newcomers, &outlet, &mut tasks).await,
            Some(channels) => {
                for (port, data, error) in channels {
                    // The first bytes of each channel say which port it is.
                    for id in [data.id, error.id] {
                        if outlet.all(id, Parcel::of(&port.to_le_bytes())).await.is_err() {
                            return;
                        }
                    }
                    tasks.spawn(connection(Arc::clone(&backend), sandbox.clone(), port, data, error, outlet.clone()));
                }
                while tasks.join_next().await.is_some() {}
            }
        }
    };
    let mut reading = pin!(link.run());
    tokio::select! {
        gone = &mut reading => return if let Err(e) = gone {
            debug!(error = %e, "a connection for ports broke");
        },
        () = outlet.idle(limits::IDLE) => return debug!("a connection for ports was silent too long"),
        () = forwarding => {}
    }
    outlet.close(websocket::NORMAL).await;
    if timeout(limits::LINGER, reading).await.is_err() {
        outlet.shut_down().await;
    }
}

fn channels(link: &mut Link, ports: &[u16]) -> Vec<(u16, Opened, Opened)> {
    let numbered = (0..).step_by(2).zip(ports);
    numbered.map(|(id, &port)| (port, link.channel(id), link.channel(id + 1))).collect()
}

/// Brings streams together and connects them; ends with the newcomers.
async fn pairs<B: Backend>(
    backend: &Arc<B>,
    sandbox: &str,
    mut newcomers: mpsc::Receiver<Opened>,
    outlet: &Arc<Outlet>,
    tasks: &mut JoinSet<()>,
) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    loop {
        let oldest = halves.values().map(|half| half.since).min().unwrap_or_else(Instant::now);
        let stream = tokio::select! {
            stream = newcomers.recv() => stream,
            Some(_) = tasks.join_next() => continue,
            () = sleep_until((oldest + limits::STREAMS_MADE).into()), if !halves.is_empty() => {
                for half in halves.extract_if(|_, half| half.since.elapsed() >= limits::STREAMS_MADE) {
                    outlet.reset(half.1.stream.id, status::CANCEL).await;
                }
                continue;
            }
        };
        let Some(stream) = stream else { return };
        let id = stream.id;
        let Some((is_data, port, request)) = purpose(id, &stream.headers) else {
            outlet.reset(id, status::PROTOCOL_ERROR).await;
            continue;
        };
        match halves.remove(&request) {
            None => {
                halves.insert(request, Half { stream, is_data, port, since: Instant::now() });
                outlet.accept(id).await;
            }
            Some(other) if other.is_data != is_data && other.port == port => {
                outlet.accept(id).await;
                let (data, error) = if is_data { (stream, other.stream) } else { (other.stream, stream) };
                let (backend, outlet) = (Arc::clone(backend), Arc::clone(outlet));
                tasks.spawn(connection(backend, sandbox.to_owned(), port, data, error, outlet));
            }
            Some(other) => {
                outlet.reset(id, status::PROTOCOL_ERROR).await;
                halves.insert(request, other);
            }
        }
    }
}

/// Whether a stream is for data, of which port, of which request.
fn purpose(id: u32, headers: &Headers) -> Option<(bool, u16, String)> {
    let is_data = match value(headers, "streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let port = value(headers, "port")?.parse().ok().filter(|port| *port != 0)?;
    let request = match value(headers, "requestid") {
        Some(request) if request.len() <= 64 => request.to_owned(),
        Some(_) => return None,
        // Old clients give none, but make the stream for data right after the one for errors.
        None => format!("stream {}", if is_data { id.saturating_sub(2) } else { id }),
    };
    Some((is_data, port, request))
}

/// One connection, from its making to the end of both directions, or until the client wants no more of it.
async fn connection<B: Backend>(
    backend: Arc<B>,
    sandbox: String,
    port: u16,
    data: Opened,
    mut error: Opened,
    outlet: Arc<Outlet>,
) {
    let id = data.id;
    // Clients have nothing to say there.
    error.input.close();
    let is_stalled = AtomicBool::new(false);
    let mut reset = pin!(reset(data.reset, &is_stalled));
    let made = tokio::select! {
        made = timeout(CONNECT, backend.connect(&sandbox, port)) => Some(made),
        () = &mut reset => None,
    };
    let timed_out = |_| Err(format!("port {port} did not answer within {}s", CONNECT.as_secs()));
    match made.map(|made| made.unwrap_or_else(timed_out)) {
        Some(Ok(connection)) => {
            let told = || stalled(port, &is_stalled);
            both_ways(connection, data.input, reset, [id, error.id], &outlet, told).await;
        }
        Some(Err(reason)) => {
            // The reader notices if the client is gone.
            outlet.all(error.id, Parcel::of(reason.as_bytes())).await.ok();
            end([id, error.id], &outlet).await;
        }
        None => forget([id, error.id], &outlet, stalled(port, &is_stalled)).await,
    }
}

/// Ends when a stream is reset. One that is merely closed is no reason to stop.
async fn reset(told: oneshot::Receiver<Reset>, is_stalled: &AtomicBool) {
    match told.await {
        Ok(why) => is_stalled.store(why == Reset::Stalled, Ordering::Relaxed),
        Err(_) => std::future::pending().await,
    }
}

/// What a client is told of a port that was given up.
fn stalled(port: u16, is_stalled: &AtomicBool) -> Option<String> {
    let limit = limits::STALL.as_secs();
    let reason = || format!("port {port} took nothing for {limit}s while others waited behind it");
    is_stalled.load(Ordering::Relaxed).then(reason)
}

async fn end([data, error]: [u32; 2], outlet: &Outlet) {
    outlet.end(data).await;
    outlet.end(error).await;
}

/// As [`end`], of a connection whose data is over already; `reason` says why, if that was not the client's wish.
async fn forget([data, error]: [u32; 2], outlet: &Outlet, reason: Option<String>) {
    outlet.forget(data);
    if let Some(reason) = reason {
        // The reader notices if the client is gone.
        outlet.all(error, Parcel::of(reason.as_bytes())).await.ok();
    }
    outlet.end(error).await;
}

/// Each direction ends by itself, and the other goes on: the client's until nothing comes any more.
///
/// The stream for errors ends with what the pod sends. Clients wait for that before they close their side.
async fn both_ways(
    connection: TcpStream,
    input: mpsc::Receiver<Piece>,
    mut reset: Pin<&mut impl Future<Output = ()>>,
    streams: [u32; 2],
    outlet: &Outlet,
    stalled: impl Fn() -> Option<String>,
) {
    // It only makes small packets wait; without that it is slower, not wrong.
    connection.set_nodelay(true).ok();
    let (reader, writer) = connection.into_split();
    let taken = AtomicU64::new(0);
    let mut there = pin!(there(input, writer, &taken));
    let mut is_over = false;
    {
        let mut back = pin!(back(reader, reset.as_mut(), streams[0], outlet));
        loop {
            tokio::select! {
                is_reset = &mut back => {
                    match is_reset {
                        true => forget(streams, outlet, stalled()).await,
                        false => end(streams, outlet).await,
                    }
                    // A client that cannot say that it has no more to send is over with the pod.
                    if is_reset || is_over || !outlet.has_ends() {
                        return;
                    }
                    break;
                }
                () = &mut there, if !is_over => is_over = true,
            }
        }
    }
    loop {
        let before = taken.load(Ordering::Relaxed);
        tokio::select! {
            () = &mut there => return,
            () = &mut reset => return,
            () = sleep(HALF_OPEN) => if taken.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// Takes what the client sends to the pod, and its end; counts what was `taken`.
async fn there(mut input: mpsc::Receiver<Piece>, mut writer: OwnedWriteHalf, taken: &AtomicU64) {
    while let Some(piece) = input.recv().await {
        if writer.write_all(&piece.bytes).await.is_err() {
            break;
        }
        taken.fetch_add(1, Ordering::Relaxed);
    }
    // One that is gone is closed.
    writer.shutdown().await.ok();
}

/// Takes what the pod sends to the client, until its end, or the client's `reset`: then it is true.
///
/// A frame once begun is sent whole even so: others come behind it on the same connection.
async fn back(reader: OwnedReadHalf, mut reset: Pin<&mut impl Future<Output = ()>>, id: u32, outlet: &Outlet) -> bool {
    loop {
        tokio::select! {
            biased;
            () = &mut reset => return true,
            readable = reader.readable() => if readable.is_err() {
                return false;
            }
        }
        // Only while there is something to read is there memory for it.
        let mut parcel = Parcel::new();
        loop {
            match reader.try_read(parcel.room()) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => return false,
                Ok(length) => {
                    if outlet.data(id, &mut parcel, length).await.is_err() {
                        return false;
                    }
                    if poll_once(reset.as_mut()).await {
                        return true;
                    }
                }
            }
        }
    }
}

/// Whether something is over already.
async fn poll_once(mut future: Pin<&mut impl Future<Output = ()>>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_brought_together_by_number() {
        let purpose = |id: u32, headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            purpose(id, &headers)
        };
        let data = purpose(3, &[("streamtype", "data"), ("port", "80"), ("requestid", "7")]);
        assert_eq!(data, Some((true, 80, "7".to_owned())));
        let (error, data) = (
            purpose(1, &[("streamtype", "error"), ("port", "80")]).unwrap(),
            purpose(3, &[("streamtype", "data"), ("port", "80")]).unwrap(),
        );
        assert_eq!(error.2, data.2);
        for wrong in ["0", "65536", "-1", "http", ""] {
            assert_eq!(purpose(1, &[("streamtype", "data"), ("port", wrong)]), None, "{wrong}");
        }
        assert_eq!(purpose(1, &[("streamtype", "stdin"), ("port", "80")]), None);
        assert_eq!(purpose(1, &[("port", "80")]), None);
    }
}
