//! What goes to a client: whole frames, one after the other, as fast as it reads.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Mutex, Notify};

use super::spdy::{self, Deflater, Windows};
use super::{limits, websocket};

/// Room in front of a parcel for the longest heads: a WebSocket's and SPDY's.
const HEAD: usize = 24;

/// How bytes of several streams share a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// SPDY/3.1.
    Spdy,
    /// SPDY/3.1 in messages of a WebSocket.
    Tunnel,
    /// Messages of a WebSocket, the stream's number in front.
    Channels {
        /// As text, both number and bytes.
        base64: bool,
    },
}

/// Bytes on their way, with room for heads in front, so that both go out in one piece.
pub(super) struct Parcel(Vec<u8>);

impl Parcel {
    /// With room for [`limits::OUTPUT_BYTES`].
    pub fn new() -> Self {
        Self(vec![0; HEAD + limits::OUTPUT_BYTES])
    }

    /// With these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self([&[0; HEAD], bytes].concat())
    }

    /// Where to put them.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.0[HEAD..]
    }

    fn len(&self) -> usize {
        self.0.len() - HEAD
    }
}

#[derive(Debug)]
struct Writer {
    half: OwnedWriteHalf,
    deflater: Deflater,
}

/// The writing side of a connection, shared by all its streams.
#[derive(Debug)]
pub(super) struct Outlet {
    framing: Framing,
    // An asynchronous lock, held while the client is waited for: it is the queue of all who have something to send.
    writer: Mutex<Writer>,
    windows: StdMutex<Windows>,
    opened: Notify,
    activity: AtomicU64,
    /// The last message was sent.
    is_closed: AtomicBool,
}

impl Outlet {
    pub fn new(half: OwnedWriteHalf, framing: Framing) -> Self {
        let writer = Mutex::new(Writer { half, deflater: Deflater::default() });
        Self {
            framing,
            writer,
            windows: StdMutex::default(),
            opened: Notify::new(),
            activity: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Sends the first `length` bytes of a parcel on a stream. Dropping the future breaks the connection.
    ///
    /// # Errors
    /// As send(2).
    pub async fn data(&self, stream: u32, parcel: &mut Parcel, length: usize) -> io::Result<()> {
        let is_tunnel = match self.framing {
            Framing::Channels { base64 } => return self.message(stream, parcel, length, base64).await,
            framing => framing == Framing::Tunnel,
        };
        let mut sent = 0;
        while sent < length {
            let now = self.window(stream, length - sent).await;
            let at = HEAD + sent;
            // What stands there has been sent.
            let mut start = at - 8;
            parcel.0[start..at].copy_from_slice(&spdy::data_head(stream, now, false));
            if is_tunnel {
                start -= websocket::put_head(&mut parcel.0[..start], false, now + 8);
            }
            self.write(&parcel.0[start..at + now]).await?;
            sent += now;
        }
        Ok(())
    }

    /// Sends all of a parcel.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub async fn all(&self, stream: u32, mut parcel: Parcel) -> io::Result<()> {
        let length = parcel.len();
        self.data(stream, &mut parcel, length).await
    }

    async fn message(&self, stream: u32, parcel: &mut Parcel, length: usize, base64: bool) -> io::Result<()> {
        let number = u8::try_from(stream).unwrap_or(u8::MAX);
        if base64 {
            let text = STANDARD.encode(&parcel.0[HEAD..HEAD + length]);
            let mut out = [&[0; HEAD], text.as_bytes()].concat();
            out[HEAD - 1] = b'0' + number.min(9);
            let start = HEAD - 1 - websocket::put_head(&mut out[..HEAD - 1], true, text.len() + 1);
            return self.write(&out[start..]).await;
        }
        parcel.0[HEAD - 1] = number;
        let start = HEAD - 1 - websocket::put_head(&mut parcel.0[..HEAD - 1], false, length + 1);
        self.write(&parcel.0[start..HEAD + length]).await
    }

    /// Whether it can be said that a stream has ended.
    pub fn has_ends(&self) -> bool {
        !matches!(self.framing, Framing::Channels { .. })
    }

    /// Nothing more is sent on a stream. Channels cannot say so.
    pub async fn end(&self, stream: u32) {
        self.windows().end(stream);
        self.control(|_, out| out.extend(spdy::data_head(stream, 0, true))).await;
    }

    /// The client wants no more of a stream: what is under way to it waits for no window.
    pub fn lift(&self, stream: u32) {
        self.windows().lift(stream);
        self.opened.notify_waiters();
    }

    /// Nothing more is sent on a stream, and nobody waits to be told.
    pub fn forget(&self, stream: u32) {
        self.windows().end(stream);
    }

    /// Agrees to a stream.
    pub async fn accept(&self, stream: u32) {
        self.control(|deflater, out| deflater.syn_reply(stream, out)).await;
    }

    /// Ends a stream both ways.
    pub async fn reset(&self, stream: u32, status: u32) {
        self.windows().end(stream);
        self.control(|_, out| spdy::reset(stream, status, out)).await;
    }

    /// Answers a ping.
    pub async fn ping(&self, id: u32) {
        self.control(|_, out| spdy::ping(id, out)).await;
    }

    /// Says that the rules were broken.
    pub async fn give_up(&self, last: u32) {
        self.control(|_, out| spdy::go_away(last, 1, out)).await;
        self.close(websocket::PROTOCOL_ERROR).await;
    }

    /// Ends the messages of a WebSocket, once.
    pub async fn close(&self, code: u16) {
        if self.framing != Framing::Spdy && !self.is_closed.swap(true, Ordering::Relaxed) {
            let mut out = Vec::new();
            websocket::close(code, &mut out);
            // One that is gone needs no end.
            self.write(&out).await.ok();
        }
    }

    /// Answers a WebSocket's ping.
    pub async fn pong(&self, bytes: &[u8]) {
        let mut out = Vec::new();
        websocket::pong(bytes, &mut out);
        // The reader notices if the client is gone.
        self.write(&out).await.ok();
    }

    /// Closes the connection's writing side.
    pub async fn shut_down(&self) {
        // One that is gone is closed.
        self.writer.lock().await.half.shutdown().await.ok();
    }

    /// Whether the client wants to hear of what is taken.
    pub fn keeps_windows(&self) -> bool {
        self.windows().are_kept()
    }

    /// A stream's input was taken; who keeps windows is told.
    pub async fn taken(&self, stream: u32, bytes: usize) {
        if bytes > 0 && self.windows().are_kept() {
            let delta = u32::try_from(bytes).unwrap_or(u32::MAX);
            self.control(|_, out| spdy::window_update(stream, delta, out)).await;
        }
    }

    /// A stream begins.
    pub fn begin(&self, stream: u32) {
        self.windows().begin(stream);
    }

    /// The client opens windows: one stream's further, or all from the start.
    pub fn open_window(&self, stream: Option<u32>, bytes: u32) {
        let mut windows = self.windows();
        match stream {
            Some(stream) => windows.open(stream, bytes),
            None => windows.set_initial(bytes),
        }
        drop(windows);
        self.opened.notify_waiters();
    }

    async fn window(&self, stream: u32, wanted: usize) -> usize {
        loop {
            let opened = self.opened.notified();
            let taken = self.windows().take(stream, wanted);
            if taken > 0 {
                return taken;
            }
            opened.await;
        }
    }

    async fn control(&self, put: impl FnOnce(&mut Deflater, &mut Vec<u8>)) {
        if !self.has_ends() {
            return;
        }
        let mut writer = self.writer.lock().await;
        let mut out = vec![0; websocket::HEAD_BYTES];
        put(&mut writer.deflater, &mut out);
        let (start, length) = (websocket::HEAD_BYTES, out.len() - websocket::HEAD_BYTES);
        let head = match self.framing {
            Framing::Tunnel => websocket::put_head(&mut out[..start], false, length),
            _ => 0,
        };
        self.touch();
        // The reader notices if the client is gone.
        writer.half.write_all(&out[start - head..]).await.ok();
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.writer.lock().await.half.write_all(bytes).await?;
        self.touch();
        Ok(())
    }

    /// Something was sent or came.
    pub fn touch(&self) {
        self.activity.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until nothing was sent and nothing came for `limit`, or a little longer.
    pub async fn idle(&self, limit: Duration) {
        const GLANCES: u32 = 8;
        let mut quiet = 0;
        while quiet < GLANCES {
            let before = self.activity.load(Ordering::Relaxed);
            tokio::time::sleep(limit / GLANCES).await;
            quiet = if self.activity.load(Ordering::Relaxed) == before { quiet + 1 } else { 0 };
        }
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
