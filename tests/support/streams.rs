//! Clients of the streaming server: SPDY/3.1 and WebSocket, as simple as clients can be.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aril::stream::spdy::{self, Decoder, Deflater, Frame};
use aril::stream::websocket;
use bytes::BytesMut;
use serde_json::Value;

use super::PATIENCE;

/// A URL of the server, taken apart.
pub struct Url {
    /// Host and port.
    pub authority: String,
    /// From the slash on.
    pub path: String,
}

impl Url {
    /// # Panics
    /// If it is none with http and a numeric address.
    pub fn parse(url: &str) -> Self {
        let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is not absolute"));
        let (authority, path) = rest.split_once('/').unwrap_or_else(|| panic!("{url} has no path"));
        Self { authority: authority.to_owned(), path: format!("/{path}") }
    }
}

/// Sends a request and reads the head of its answer: the status, the head, and the connection with what came behind.
pub fn request(url: &Url, method: &str, headers: &[(&str, &str)]) -> (u16, String, TcpStream, Vec<u8>) {
    let mut connection = TcpStream::connect(&url.authority).expect("connect to the streaming server");
    connection.set_read_timeout(Some(PATIENCE)).expect("limit reads");
    connection.set_nodelay(true).expect("send at once");
    let mut text = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", url.path, url.authority);
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    connection.write_all((text + "\r\n").as_bytes()).expect("send the request");
    let mut got = Vec::new();
    let end = loop {
        let mut chunk = [0; 4096];
        let n = connection.read(&mut chunk).expect("read the answer");
        assert!(n > 0, "the server hung up: {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&chunk[..n]);
        if let Some(at) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let rest = got.split_off(end);
    let head = String::from_utf8(got).expect("a head of text");
    if head.starts_with("HTTP/1.1 101 ") {
        // Clients look at the first line of that name alone.
        let connection =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("connection: ").map(str::to_owned));
        assert_eq!(connection.as_deref(), Some("upgrade"), "{head}");
    }
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), connection, rest)
}

/// Asks for SPDY and one of these protocols.
pub fn spdy_request(url: &Url, protocols: &str) -> (u16, String, TcpStream, Vec<u8>) {
    let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocols)];
    request(url, "POST", &headers)
}

/// A connection that speaks SPDY/3.1.
pub struct Spdy {
    connection: TcpStream,
    deflater: Deflater,
    decoder: Decoder,
    input: BytesMut,
    next: u32,
    /// What came on each stream.
    pub received: HashMap<u32, Vec<u8>>,
    /// Streams the server has closed or reset.
    pub ended: Vec<u32>,
    /// Numbers of answered pings.
    pub pongs: Vec<u32>,
    /// Streams the server has reset.
    pub resets: Vec<u32>,
    /// By how many bytes the server has opened windows.
    pub opened: HashMap<u32, usize>,
    /// What a frame lacks.
    cut_short: Vec<u8>,
}

impl Spdy {
    /// Upgrades a connection.
    pub fn open(url: &str, protocol: &str) -> Self {
        let (status, head, connection, rest) = spdy_request(&Url::parse(url), protocol);
        assert_eq!(status, 101, "{head}");
        assert!(head.contains(&format!("x-stream-protocol-version: {protocol}")), "{head}");
        Self {
            connection,
            deflater: Deflater::default(),
            decoder: Decoder::default(),
            input: BytesMut::from(&rest[..]),
            next: 1,
            received: HashMap::new(),
            ended: Vec::new(),
            pongs: Vec::new(),
            resets: Vec::new(),
            opened: HashMap::new(),
            cut_short: Vec::new(),
        }
    }

    /// Begins a stream.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let mut out = Vec::new();
        self.deflater.syn_stream(id, headers, false, &mut out);
        self.send_raw(&out);
        id
    }

    /// The streams of a session with these kinds.
    pub fn streams<const N: usize>(&mut self, kinds: [&str; N]) -> [u32; N] {
        kinds.map(|kind| self.stream(&[("streamType", kind)]))
    }

    /// Bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.connection.write_all(bytes).expect("send to the streaming server");
    }

    /// Data, in one frame.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) {
        self.try_send(stream, bytes).expect("send to the streaming server");
    }

    /// As [`send`](Self::send).
    pub fn try_send(&mut self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        self.connection.write_all(&[&spdy::data_head(stream, bytes.len(), false)[..], bytes].concat())
    }

    /// The end of a stream's data.
    pub fn finish(&mut self, stream: u32) {
        self.send_raw(&spdy::data_head(stream, 0, true));
    }

    /// Wants no more of a stream.
    pub fn reset(&mut self, stream: u32) {
        let mut out = Vec::new();
        spdy::reset(stream, spdy::status::CANCEL, &mut out);
        self.send_raw(&out);
    }

    /// Asks whether anybody is there.
    pub fn ping(&mut self, id: u32) {
        let mut out = Vec::new();
        spdy::ping(id, &mut out);
        self.send_raw(&out);
    }

    /// Says how wide windows are.
    pub fn keep_windows(&mut self, bytes: u32) {
        let mut out = Vec::new();
        spdy::settings(bytes, &mut out);
        self.send_raw(&out);
    }

    /// Opens a stream's window further.
    pub fn open_window(&mut self, stream: u32, bytes: u32) {
        let mut out = Vec::new();
        spdy::window_update(stream, bytes, &mut out);
        self.send_raw(&out);
    }

    /// Reads until `done`, at most for `limit`; `false` if that was not reached, or the server hung up.
    pub fn read_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut chunk = vec![0; 256 << 10];
        loop {
            while let Some(frame) = self.decoder.decode(&mut self.input).expect("frames of SPDY/3.1") {
                self.take(frame);
            }
            if done(self) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.connection.set_read_timeout(Some(left)).expect("limit reads");
            match self.connection.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return false,
                // A read with a limit is, when a process goes on that was stopped.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => panic!("read from the streaming server: {e}"),
            }
        }
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Data { id, bytes, fin } => {
                assert!(!self.ended.contains(&id), "data on stream {id} after its end");
                self.received.entry(id).or_default().extend_from_slice(&bytes);
                if fin {
                    self.ended.push(id);
                }
            }
            Frame::Reset { id, .. } => {
                self.ended.push(id);
                self.resets.push(id);
            }
            Frame::Ping(id) => self.pongs.push(id),
            Frame::WindowUpdate { id, delta } => {
                *self.opened.entry(id).or_default() += usize::try_from(delta).expect("a small number");
            }
            Frame::SynReply { .. } | Frame::Settings { .. } => {}
            other => panic!("not from a server: {other:?}"),
        }
    }

    /// Waits for the end of a stream, and takes what came on it.
    pub fn read_to_end(&mut self, stream: u32) -> Vec<u8> {
        assert!(self.read_until(PATIENCE, |c| c.ended.contains(&stream)), "stream {stream} does not end");
        self.received.remove(&stream).unwrap_or_default()
    }

    /// Waits until this came on a stream.
    pub fn expect(&mut self, stream: u32, text: &str) {
        let holds = |c: &Self| c.text(stream).contains(text);
        assert!(self.read_until(PATIENCE, holds), "{text:?} is not in {:?}", self.text(stream));
    }

    /// What came on a stream so far.
    pub fn text(&self, stream: u32) -> String {
        String::from_utf8_lossy(self.received.get(&stream).map_or(&[][..], |bytes| bytes)).into_owned()
    }

    /// Sends until nothing more is taken; how much was. The last frame may lack its end.
    pub fn fill(&mut self, stream: u32) -> usize {
        const PIECE: usize = 64 << 10;
        self.connection.set_write_timeout(Some(Duration::from_millis(500))).expect("limit writes");
        let frame = [&spdy::data_head(stream, PIECE, false)[..], &[0; PIECE]].concat();
        for sent in 0.. {
            let mut left = &frame[..];
            while !left.is_empty() {
                match self.connection.write(left) {
                    Ok(taken) => left = &left[taken..],
                    Err(_) => {
                        self.cut_short = left.to_vec();
                        return sent * PIECE;
                    }
                }
            }
        }
        unreachable!("it takes for ever")
    }

    /// Sends the end of a frame that [`fill`](Self::fill) could not.
    pub fn finish_frame(&mut self) {
        self.connection.set_write_timeout(Some(PATIENCE)).expect("limit writes");
        let rest = std::mem::take(&mut self.cut_short);
        self.send_raw(&rest);
    }

    /// Hangs up, the hard way: with what was not read.
    pub fn hang_up(self) {}
}

/// What a `Status` of Kubernetes says: the exit code, or the message of a failure.
pub fn verdict(json: &[u8]) -> Result<i32, String> {
    let status: Value = serde_json::from_slice(json).unwrap_or_else(|e| panic!("{e}: {json:?}"));
    if status["status"] == "Success" {
        return Ok(0);
    }
    assert_eq!(status["status"], "Failure");
    if status["reason"] != "NonZeroExitCode" {
        return Err(status["message"].as_str().expect("a message").to_owned());
    }
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["reason"], "ExitCode");
    Ok(cause["message"].as_str().and_then(|code| code.parse().ok()).expect("an exit code"))
}

/// A connection that speaks WebSocket.
pub struct WebSocket {
    connection: TcpStream,
    input: Vec<u8>,
}

impl WebSocket {
    /// Upgrades a connection; an empty protocol asks for none.
    pub fn open(url: &str, protocol: &str) -> Self {
        let mut headers = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        if !protocol.is_empty() {
            headers.push(("Sec-WebSocket-Protocol", protocol));
        }
        let (status, head, connection, input) = request(&Url::parse(url), "GET", &headers);
        assert_eq!(status, 101, "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Self { connection, input }
    }

    /// A message.
    pub fn send(&mut self, message: &[u8]) {
        self.try_send(message).expect("send to the streaming server");
    }

    /// Bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.connection.write_all(bytes).expect("send to the streaming server");
    }

    /// As [`send`](Self::send).
    pub fn try_send(&mut self, message: &[u8]) -> io::Result<()> {
        let mut room = [0; 16];
        let used = websocket::put_head(&mut room, false, message.len());
        let head = &mut room[16 - used..];
        head[1] |= 0x80;
        // A mask of zeros changes nothing.
        self.connection.write_all(&[&*head, &[0; 4], message].concat())
    }

    /// Says that nothing more comes; tells whether the server does, too.
    pub fn close(mut self) -> bool {
        self.connection.write_all(&[0x88, 0x80, 0, 0, 0, 0]).expect("send to the streaming server");
        self.connection.read_to_end(&mut self.input).expect("read from the streaming server");
        while let Some((kind, _)) = self.frame() {
            if kind == 8 {
                return true;
            }
        }
        false
    }

    /// The next message; none at the end.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((kind, payload)) = self.frame() {
                match kind {
                    8 => return None,
                    9 | 10 => {}
                    _ => return Some(payload),
                }
                continue;
            }
            let mut chunk = [0; 65536];
            match self.connection.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                // As above.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => panic!("read from the streaming server: {e}"),
            }
        }
    }

    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (first, second) = (*self.input.first()?, *self.input.get(1)?);
        assert!(first & 0x80 != 0 && second & 0x80 == 0, "not from a server: {first:x} {second:x}");
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        let (head, length) = match second {
            126 => (4, number(self.input.get(2..4)?)),
            127 => (10, number(self.input.get(2..10)?)),
            short => (2, short.into()),
        };
        let payload = self.input.get(head..head + length)?.to_vec();
        self.input.drain(..head + length);
        Some((first & 0x0f, payload))
    }

    /// All messages until the end, by channel.
    pub fn receive_all(&mut self) -> HashMap<u8, Vec<u8>> {
        let mut channels: HashMap<u8, Vec<u8>> = HashMap::new();
        while let Some(message) = self.receive() {
            channels.entry(message[0]).or_default().extend_from_slice(&message[1..]);
        }
        channels
    }
}
