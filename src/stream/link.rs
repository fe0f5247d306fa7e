//! What comes from a client: bytes to streams.
//!
//! Each stream's input waits in a queue of its own for whoever takes it. If a queue is full, or all of them together
//! hold too much, nothing more is read: SPDY's clients have no other way to be told to wait. Then the connection is
//! only watched for its end.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::limits;
use super::outlet::{Framing, Outlet};
use super::spdy::{self, Frame, Headers, SpdyError};
use super::websocket::{self, Event, WebSocketError};

/// How much is read at a time.
const READ_BYTES: usize = 64 << 10;
/// Below this a piece is copied, so that it does not keep all that was read with it.
const SMALL_BYTES: usize = 8 << 10;
/// How often a client that is made to wait is looked at.
const GLANCE: Duration = Duration::from_millis(250);
/// New streams that nobody has looked at.
const NEWCOMERS: usize = 8;
/// Of `v5.channel.k8s.io`: the input of the channel named in the next byte is over.
const CLOSE_CHANNEL: u32 = 255;

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("read from the client: {0}")]
    Io(#[from] io::Error),
    #[error("the client sent {0}")]
    Spdy(#[from] SpdyError),
    #[error("the client sent {0}")]
    WebSocket(#[from] WebSocketError),
    #[error("the client began stream {0}, which was not the next of its own")]
    Order(u32),
    #[error("the client sent base64 that is none")]
    Base64,
}

/// A piece of a stream's input.
#[derive(Debug)]
pub(super) struct Piece {
    pub bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// A stream a client began.
#[derive(Debug)]
pub(super) struct Opened {
    pub id: u32,
    pub headers: Headers,
    /// Its input; ends with it.
    pub input: mpsc::Receiver<Piece>,
    /// Told if the client wants no more of it, in either direction.
    pub reset: oneshot::Receiver<()>,
    /// One of those there are, until nobody deals with the stream any more; a client that resets it gains none.
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Inlet {
    input: Option<mpsc::Sender<Piece>>,
    reset: oneshot::Sender<()>,
}

#[derive(Debug)]
enum Wire {
    Spdy(spdy::Decoder),
    Tunnel { outer: websocket::Decoder, inner: spdy::Decoder, input: BytesMut },
    Channels { outer: websocket::Decoder, message: Message, base64: bool, closes: bool },
}

/// The message that is coming in.
#[derive(Debug, Default)]
struct Message {
    channel: Option<u32>,
    /// Fewer than four digits of base64.
    carry: Vec<u8>,
}

/// The reading side of a connection.
#[derive(Debug)]
pub(super) struct Link {
    half: OwnedReadHalf,
    input: BytesMut,
    wire: Wire,
    outlet: Arc<Outlet>,
    inlets: HashMap<u32, Inlet>,
    newcomers: mpsc::Sender<Opened>,
    last: u32,
    room: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Link {
    /// Reads on after `input`. `closes`: channels can be closed. New streams of SPDY come out of the receiver.
    pub fn new(
        half: OwnedReadHalf,
        input: Bytes,
        outlet: &Arc<Outlet>,
        framing: Framing,
        closes: bool,
    ) -> (Self, mpsc::Receiver<Opened>) {
        let (newcomers, streams) = mpsc::channel(NEWCOMERS);
        let wire = match framing {
            Framing::Spdy => Wire::Spdy(spdy::Decoder::default()),
            Framing::Tunnel => {
                Wire::Tunnel { outer: Default::default(), inner: Default::default(), input: BytesMut::new() }
            }
            Framing::Channels { base64 } => {
                Wire::Channels { outer: Default::default(), message: Message::default(), base64, closes }
            }
        };
        let link = Self {
            half,
            input: BytesMut::from(&input[..]),
            wire,
            outlet: Arc::clone(outlet),
            inlets: HashMap::new(),
            newcomers,
            last: 0,
            room: Arc::new(Semaphore::new(limits::INPUT_BYTES)),
            places: Arc::new(Semaphore::new(limits::STREAMS)),
        };
        (link, streams)
    }

    /// A stream that is there from the start.
    pub fn channel(&mut self, id: u32) -> Opened {
        self.open(id, Headers::new(), None)
    }

    fn open(&mut self, id: u32, headers: Headers, place: Option<OwnedSemaphorePermit>) -> Opened {
        self.outlet.begin(id);
        let (input, theirs) = mpsc::channel(limits::PIECES);
        let (reset, told) = oneshot::channel();
        self.inlets.insert(id, Inlet { input: Some(input), reset });
        Opened { id, headers, input: theirs, reset: told, _place: place }
    }

    /// Reads until the client is gone. To be dropped only if nothing more is to be sent.
    ///
    /// # Errors
    /// [`LinkError`] if it breaks the rules; it has been told then.
    pub async fn run(&mut self) -> Result<(), LinkError> {
        let result = self.read().await;
        if let Err(LinkError::Spdy(_) | LinkError::WebSocket(_) | LinkError::Order(_) | LinkError::Base64) = &result {
            self.outlet.give_up(self.last).await;
        }
        result
    }

    async fn read(&mut self) -> Result<(), LinkError> {
        loop {
            while let Some(goes_on) = self.step().await? {
                if !goes_on {
                    return Ok(());
                }
            }
            if self.input.is_empty() {
                // Who says nothing for hours needs no memory.
                self.input = BytesMut::new();
            }
            self.half.readable().await?;
            self.input.reserve(READ_BYTES);
            match self.half.try_read_buf(&mut self.input) {
                Ok(0) => return Ok(()),
                Ok(_) => self.outlet.touch(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Does what the next frame says; `None` if more must be read first, `false` if the client is gone.
    async fn step(&mut self) -> Result<Option<bool>, LinkError> {
        // Frames of a few bytes may cost a thousand times that to inflate: others have their turn between them.
        tokio::task::coop::consume_budget().await;
        let event = match &mut self.wire {
            Wire::Spdy(decoder) => {
                let Some(frame) = decoder.decode(&mut self.input)? else { return Ok(None) };
                return self.frame(frame).await.map(Some);
            }
            Wire::Tunnel { outer, inner, input } => {
                if let Some(frame) = inner.decode(input)? {
                    return self.frame(frame).await.map(Some);
                }
                outer.decode(&mut self.input)?
            }
            Wire::Channels { outer, .. } => outer.decode(&mut self.input)?,
        };
        match event {
            None => Ok(None),
            Some(Event::Close) => {
                // It wants the same in return, and not to be waited for.
                timeout(GLANCE, self.outlet.close(websocket::NORMAL)).await.ok();
                Ok(Some(false))
            }
            Some(Event::Ping(bytes)) => {
                self.outlet.pong(&bytes).await;
                Ok(Some(true))
            }
            Some(Event::Data { bytes, first, last }) => match &mut self.wire {
                Wire::Tunnel { input, .. } => {
                    input.extend_from_slice(&bytes);
                    Ok(Some(true))
                }
                _ => self.piece_of_message(bytes, first, last).await.map(Some),
            },
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<bool, LinkError> {
        match frame {
            Frame::SynStream { id, headers, fin } => return self.begin(id, headers, fin).await,
            Frame::Data { id, bytes, fin } => {
                let taken = bytes.len();
                if !self.deliver(id, bytes).await {
                    return Ok(false);
                }
                if fin {
                    self.end(id);
                } else {
                    self.outlet.taken(id, taken).await;
                }
            }
            Frame::SynReply { id, fin } | Frame::Headers { id, fin } => {
                if fin {
                    self.end(id);
                }
            }
            Frame::Reset { id, .. } => {
                self.outlet.lift(id);
                if let Some(inlet) = self.inlets.remove(&id) {
                    // Who has dropped the stream need not know.
                    inlet.reset.send(()).ok();
                }
            }
            // Those with even numbers would be answers to ours.
            Frame::Ping(id) if id % 2 == 1 => self.outlet.ping(id).await,
            Frame::Settings { initial_window: Some(bytes) } => self.outlet.open_window(None, bytes),
            Frame::WindowUpdate { id, delta } => self.outlet.open_window(Some(id), delta),
            Frame::Ping(_) | Frame::Settings { .. } | Frame::GoAway => {}
        }
        Ok(true)
    }

    async fn begin(&mut self, id: u32, headers: Headers, fin: bool) -> Result<bool, LinkError> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(LinkError::Order(id));
        }
        self.last = id;
        if self.inlets.len() >= limits::STREAMS {
            self.inlets.retain(|_, inlet| !inlet.reset.is_closed());
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.outlet.reset(id, spdy::status::REFUSED_STREAM).await;
            return Ok(true);
        };
        let opened = self.open(id, headers, Some(place));
        if fin {
            self.end(id);
        }
        match while_there(&self.half, self.newcomers.send(opened)).await {
            // Nobody waits for streams any more.
            Some(Err(_)) => self.outlet.reset(id, spdy::status::REFUSED_STREAM).await,
            Some(Ok(())) => {}
            None => return Ok(false),
        }
        Ok(true)
    }

    async fn piece_of_message(&mut self, mut bytes: Bytes, first: bool, last: bool) -> Result<bool, LinkError> {
        let Wire::Channels { message, base64, closes, .. } = &mut self.wire else { return Ok(true) };
        if first {
            *message = Message::default();
        }
        let channel = match message.channel {
            Some(channel) => channel,
            None if bytes.is_empty() => return Ok(true),
            None => {
                let number = bytes.get_u8();
                let channel = if *base64 { number.wrapping_sub(b'0') } else { number };
                *message.channel.insert(channel.into())
            }
        };
        if *base64 {
            message.carry.extend_from_slice(&bytes);
            let whole = if last { message.carry.len() } else { message.carry.len() / 4 * 4 };
            let digits: Vec<u8> = message.carry.drain(..whole).collect();
            bytes = STANDARD.decode(digits).map_err(|_| LinkError::Base64)?.into();
        }
        if *closes && channel == CLOSE_CHANNEL {
            for closed in bytes {
                self.end(closed.into());
            }
            return Ok(true);
        }
        Ok(self.deliver(channel, bytes).await)
    }

    /// Puts bytes into a stream's queue; waits if it is full. `false` if the client is gone.
    async fn deliver(&mut self, id: u32, bytes: Bytes) -> bool {
        // What nobody takes is dropped.
        let Some(input) = self.inlets.get(&id).and_then(|inlet| inlet.input.clone()) else { return true };
        if bytes.is_empty() || input.is_closed() {
            return true;
        }
        let bytes = if bytes.len() < SMALL_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes };
        let cost = u32::try_from(bytes.len().min(limits::INPUT_BYTES)).unwrap_or(u32::MAX);
        let put = async {
            // An error would mean a closed semaphore; nobody closes it.
            if let Ok(room) = Arc::clone(&self.room).acquire_many_owned(cost).await {
                // Who does not listen any more misses nothing.
                input.send(Piece { bytes, _room: room }).await.ok();
            }
        };
        let put = async {
            tokio::select! {
                () = put => {}
                // Waiting for room that another stream holds is not for a stream that nobody listens to.
                () = input.closed() => {}
            }
        };
        while_there(&self.half, put).await.is_some()
    }

    fn end(&mut self, id: u32) {
        if let Some(inlet) = self.inlets.get_mut(&id) {
            inlet.input = None;
        }
    }
}

/// Waits for something while nothing is read; `None` if the client goes away meanwhile.
async fn while_there<T>(half: &OwnedReadHalf, wait: impl Future<Output = T>) -> Option<T> {
    let mut wait = pin!(wait);
    loop {
        match timeout(GLANCE, &mut wait).await {
            Ok(done) => return Some(done),
            Err(_) => match timeout(Duration::ZERO, half.ready(Interest::READABLE)).await {
                Ok(Ok(ready)) if ready.is_read_closed() => return None,
                Ok(Err(_)) => return None,
                _ => {}
            },
        }
    }
}
