//! `aril port-forward`: ports of this machine that lead into a pod, whatever network it has.
//!
//! Each connection is one call with a channel of its own: one that nobody reads from holds up no other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::args::PortForwardArgs;
use super::connect::Daemon;
use super::error::CliError;
use super::find::{Objects, pod_name};
use super::output;
use super::parse::Forward;
use super::session::Signals;
use crate::api::cri::PodSandboxState;
use crate::api::node::{TunnelRequest, TunnelResponse, TunnelStart, tunnel_request, tunnel_response};

/// Connections at a time; more wait to be accepted.
const MOST: usize = 256;
/// After a connection could not be accepted: what was short may have come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of one message.
const PIECE_BYTES: usize = 64 << 10;

/// Where a port leads.
#[derive(Debug, Clone)]
struct Goal {
    daemon: Daemon,
    sandbox: String,
    pod: String,
    port: u16,
}

/// Forwards until a signal comes or the pod is no more.
pub(super) async fn forward(daemon: &mut Daemon, args: &PortForwardArgs) -> Result<(), CliError> {
    let objects = Objects::fetch(daemon).await?;
    let pod = objects.pod(&args.pod)?;
    if pod.state() != PodSandboxState::SandboxReady {
        return Err(CliError::Failed(format!("pod {} is stopped; nothing leads into it any more", args.pod)));
    }
    let mut signals = Signals::listen()?;
    let (gone, mut is_gone) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(MOST));
    // All or none: whoever reads the first line may rely on the others.
    let mut listeners = Vec::new();
    for ports in &args.ports {
        listeners.push((listen(ports).await?, ports.remote));
    }
    for (listener, port) in listeners {
        let here = listener.local_addr().map_err(|e| CliError::io("ask for the port", e))?;
        let goal = Goal { daemon: daemon.clone(), sandbox: pod.id.clone(), pod: pod_name(pod).to_owned(), port };
        output::print(&format!("forwarding {here} -> {}:{port}\n", goal.pod))?;
        tokio::spawn(accept(listener, goal, Arc::clone(&places), gone.clone()));
    }
    tokio::select! {
        Some(_) = signals.arrivals.recv() => Ok(()),
        Some(status) = is_gone.recv() => Err(CliError::Daemon(status)),
    }
}

async fn listen(ports: &Forward) -> Result<TcpListener, CliError> {
    let address = SocketAddr::new(ports.address, ports.local);
    let advice = "choose another port, or 0 for any";
    TcpListener::bind(address).await.map_err(|e| CliError::io(format!("listen on {address} ({advice})"), e))
}

/// Leads every connection to its goal; tells `gone` once there is none.
async fn accept(listener: TcpListener, goal: Goal, places: Arc<Semaphore>, gone: mpsc::Sender<Status>) {
    // It is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (connection, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                output::complain(&format!("accept a connection: {e}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (goal, gone) = (goal.clone(), gone.clone());
        tokio::spawn(async move {
            let _place = place;
            let Err(status) = carry(connection, &goal).await else { return };
            if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) {
                // Somebody may have told already.
                gone.try_send(status).ok();
                return;
            }
            let Goal { pod, port, .. } = &goal;
            output::complain(&format!("{peer} -> {pod}:{port}: {}", CliError::from(status)));
        });
    }
}

/// One connection, from its making to the end of both directions.
async fn carry(connection: TcpStream, goal: &Goal) -> Result<(), Status> {
    // It only makes small packets wait; without that it is slower, not wrong.
    connection.set_nodelay(true).ok();
    let start = TunnelStart { pod_sandbox_id: goal.sandbox.clone(), port: goal.port.into() };
    let (requests, receiver) = mpsc::channel(2);
    // The channel is new and has room.
    requests.try_send(TunnelRequest { body: Some(tunnel_request::Body::Start(start)) }).ok();
    let responses = goal.daemon.streams().tunnel(ReceiverStream::new(receiver)).await?.into_inner();
    let (reader, writer) = connection.into_split();
    tokio::try_join!(there(reader, requests), back(responses, writer)).map(drop)
}

/// Takes what the client sends to the pod; the end of the requests is its end.
async fn there(mut reader: OwnedReadHalf, requests: mpsc::Sender<TunnelRequest>) -> Result<(), Status> {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = tokio::select! {
            read = reader.read_buf(&mut piece) => read,
            // The call is over, and the other direction knows why.
            () = requests.closed() => return Ok(()),
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // A client that hangs up is no failure of the tunnel, but there is nobody left to carry for.
            Err(_) => return Err(Status::cancelled("the client hung up")),
        }
        let message = TunnelRequest { body: Some(tunnel_request::Body::Data(piece)) };
        if requests.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// Takes what the pod sends to the client, and its end.
async fn back(mut responses: Streaming<TunnelResponse>, mut writer: OwnedWriteHalf) -> Result<(), Status> {
    while let Some(message) = responses.message().await? {
        match message.body {
            Some(tunnel_response::Body::Data(bytes)) => {
                writer.write_all(&bytes).await.map_err(|_| Status::cancelled("the client hung up"))?;
            }
            // A client that is gone is closed.
            Some(tunnel_response::Body::End(_)) => writer.shutdown().await.unwrap_or(()),
            // A kind of message younger than this program.
            None => {}
        }
    }
    Ok(())
}
