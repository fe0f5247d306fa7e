//! A connection into a pod and a stream of messages, each direction ended by itself.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::api::node::{TunnelEnd, TunnelRequest, TunnelResponse, tunnel_request, tunnel_response};

/// Bytes of one message.
const PIECE_BYTES: usize = 64 << 10;

/// Messages to a client that may wait; then the pod waits too.
pub(super) const BACKLOG: usize = 4;

pub(super) type Sender = mpsc::Sender<Result<TunnelResponse, Status>>;

/// Why a tunnel ends before both directions have.
enum Broken {
    /// The client is gone, and with it whoever could be told.
    Client,
    Pod(io::Error),
}

/// Serves until both directions have ended, the connection breaks, or the client goes away. `name` is for its errors.
pub(super) async fn serve(connection: TcpStream, input: Streaming<TunnelRequest>, sender: Sender, name: String) {
    // It only makes small packets wait; without that it is slower, not wrong.
    connection.set_nodelay(true).ok();
    let (reader, writer) = connection.into_split();
    let broken = tokio::select! {
        () = sender.closed() => return,
        both = async { tokio::try_join!(there(input, writer), back(reader, &sender)) } => both.err(),
    };
    if let Some(Broken::Pod(e)) = broken {
        // A client that is gone needs no reason.
        sender.send(Err(Status::aborted(format!("{name}: the connection broke: {e}")))).await.ok();
    }
}

/// Takes what the client sends to the pod, and its end.
async fn there(mut input: Streaming<TunnelRequest>, mut writer: OwnedWriteHalf) -> Result<(), Broken> {
    while let Some(message) = input.message().await.map_err(|_| Broken::Client)? {
        let Some(tunnel_request::Body::Data(bytes)) = message.body else { continue };
        // One that takes no more may still have something to say.
        if writer.write_all(&bytes).await.is_err() {
            return Ok(());
        }
    }
    // One that is gone is closed.
    writer.shutdown().await.ok();
    Ok(())
}

/// Takes what the pod sends to the client, and its end.
async fn back(mut reader: OwnedReadHalf, sender: &Sender) -> Result<(), Broken> {
    let send = async |body| sender.send(Ok(TunnelResponse { body: Some(body) })).await.map_err(|_| Broken::Client);
    loop {
        // Only while there is something to read is there memory for it.
        reader.readable().await.map_err(Broken::Pod)?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        if reader.read_buf(&mut piece).await.map_err(Broken::Pod)? == 0 {
            return send(tunnel_response::Body::End(TunnelEnd {})).await;
        }
        send(tunnel_response::Body::Data(piece)).await?;
    }
}
