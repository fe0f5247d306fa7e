//! What comes from a client: bytes to streams.
//!
//! Each stream's input waits in a queue of its own for whoever takes it. If a queue is full, or all of them together
//! hold too much, nothing more is read: Kubernetes' clients have no other way to be told to wait. Then the connection is
//! only watched for its end; and where others wait behind, a stream that takes nothing for long is given up if it is
//! one of many ([`Link::give_up_stalled`]). Clients that keep windows are told what was taken, so that none of their
//! streams fills its queue.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// A piece of a stream's input. It is taken when it is dropped.
#[derive(Debug)]
pub(super) struct Piece {
    pub bytes: Bytes,
    _room: [OwnedSemaphorePermit; 2],
    _taken: Option<Taken>,
}

/// Tells of a piece that was taken: stream and bytes.
#[derive(Debug)]
struct Taken(mpsc::UnboundedSender<(u32, usize)>, u32, usize);

impl Drop for Taken {
    fn drop(&mut self) {
        // A connection that is gone needs no room.
        self.0.send((self.1, self.2)).ok();
    }
}

/// Why a stream ends before both sides have ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// The client wants no more of it.
    ByClient,
    /// What came on it was not taken, and held up others.
    Stalled,
}

/// A stream a client began.
#[derive(Debug)]
pub(super) struct Opened {
    pub id: u32,
    pub headers: Headers,
    /// Its input; ends with it.
    pub input: mpsc::Receiver<Piece>,
    /// Told if it is over, in either direction, before its time.
    pub reset: oneshot::Receiver<Reset>,
    /// One of those there are, until nobody deals with the stream any more; a client that resets it gains none.
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Inlet {
    input: Option<mpsc::Sender<Piece>>,
    reset: oneshot::Sender<Reset>,
    room: Arc<Semaphore>,
}

impl Inlet {
    /// Whether somebody takes what comes.
    fn is_open(&self) -> bool {
        self.input.as_ref().is_some_and(|input| !input.is_closed())
    }
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
    /// What was taken, of clients that keep windows.
    taken: mpsc::UnboundedReceiver<(u32, usize)>,
    tell_taken: mpsc::UnboundedSender<(u32, usize)>,
    gives_up_stalled: bool,
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
        let (tell_taken, taken) = mpsc::unbounded_channel();
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
            taken,
            tell_taken,
            gives_up_stalled: false,
        };
        (link, streams)
    }

    /// Has streams that nobody takes from for long reset, once what is for others waits behind them.
    pub fn give_up_stalled(&mut self) {
        self.gives_up_stalled = true;
    }

    /// A stream that is there from the start.
    pub fn channel(&mut self, id: u32) -> Opened {
        self.open(id, Headers::new(), None)
    }

    fn open(&mut self, id: u32, headers: Headers, place: Option<OwnedSemaphorePermit>) -> Opened {
        self.outlet.begin(id);
        let (input, theirs) = mpsc::channel(limits::PIECES);
        let (reset, told) = oneshot::channel();
        let room = Arc::new(Semaphore::new(limits::STREAM_BYTES));
        self.inlets.insert(id, Inlet { input: Some(input), reset, room });
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
            tokio::select! {
                readable = self.half.readable() => readable?,
                Some((id, bytes)) = self.taken.recv() => {
                    self.outlet.taken(id, bytes).await;
                    continue;
                }
            }
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
                if !self.deliver(id, bytes).await {
                    return Ok(false);
                }
                if fin {
                    self.end(id);
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
                    inlet.reset.send(Reset::ByClient).ok();
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
        let length = bytes.len();
        // Whenever it is dropped: what nobody takes is taken at once.
        let taken = self.outlet.keeps_windows().then(|| Taken(self.tell_taken.clone(), id, length));
        let Some(inlet) = self.inlets.get(&id).filter(|inlet| inlet.is_open()) else { return true };
        let (Some(input), own) = (inlet.input.clone(), Arc::clone(&inlet.room)) else { return true };
        if bytes.is_empty() {
            return true;
        }
        let bytes = if length < SMALL_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes };
        // What is read at a time is less.
        let cost = u32::try_from(length.min(limits::STREAM_BYTES)).unwrap_or(u32::MAX);
        let all = Arc::clone(&self.room);
        let is_own_turn = AtomicBool::new(true);
        let put = async {
            // Errors would mean closed semaphores; nobody closes them.
            let Ok(own) = own.acquire_many_owned(cost).await else { return };
            is_own_turn.store(false, Ordering::Relaxed);
            let Ok(all) = all.acquire_many_owned(cost).await else { return };
            is_own_turn.store(true, Ordering::Relaxed);
            // Who does not listen any more misses nothing.
            input.send(Piece { bytes, _room: [own, all], _taken: taken }).await.ok();
        };
        let mut put = pin!(async {
            tokio::select! {
                () = put => {}
                // Waiting for room that another stream holds is not for a stream that nobody listens to.
                () = input.closed() => {}
            }
        });
        loop {
            let waiting = input.capacity();
            match while_there(&self.half, timeout(limits::STALL, &mut put)).await {
                None => return false,
                Some(Ok(())) => return true,
                Some(Err(_)) => {}
            }
            // If this one is stuck it took nothing meanwhile; else the one that holds most of what there is for all.
            let stuck = match is_own_turn.load(Ordering::Relaxed) {
                true => (input.capacity() == waiting).then_some(id),
                false => self.fullest(),
            };
            if let Some(stuck) = stuck
                && self.gives_up_stalled
                && self.inlets.values().filter(|inlet| inlet.is_open()).count() > 1
            {
                self.give_up(stuck).await;
            }
        }
    }

    fn fullest(&self) -> Option<u32> {
        self.inlets.iter().min_by_key(|(_, inlet)| inlet.room.available_permits()).map(|(id, _)| *id)
    }

    async fn give_up(&mut self, id: u32) {
        self.outlet.lift(id);
        if let Some(inlet) = self.inlets.remove(&id) {
            self.outlet.reset(id, spdy::status::FLOW_CONTROL_ERROR).await;
            // Who has dropped the stream need not know.
            inlet.reset.send(Reset::Stalled).ok();
        }
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
