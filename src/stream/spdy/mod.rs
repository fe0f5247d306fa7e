//! SPDY/3.1 as far as Kubernetes speaks it: bytes to frames and back, without any I/O.
//!
//! Owns the format and its limits, never a socket. What a stranger sends costs at most what [`limits`] says, whatever
//! lengths and counts it claims: frames with data are handed out piece by piece as they come, and only control frames
//! are waited for whole. Priorities and credentials are read over.
//!
//! Follows the draft "SPDY Protocol - Draft 3.1" (chromium.org).

mod dictionary;
mod frame;
mod header;
mod window;

pub use self::dictionary::DICTIONARY;
pub use self::frame::{Decoder, Frame, data_head, go_away, ping, reset, settings, status, window_update};
pub use self::header::{Deflater, Headers, Inflater, value};
pub use self::window::Windows;

/// What a peer may claim.
pub mod limits {
    /// Bytes of a control frame behind its first eight; a frame with data may have as many as the format can say.
    pub const CONTROL_FRAME_BYTES: usize = 16 << 10;
    /// Bytes of a block of headers once it is inflated.
    pub const HEADER_BYTES: usize = 16 << 10;
    /// Headers in one block.
    pub const HEADERS: usize = 64;
    /// Entries of a SETTINGS frame.
    pub const SETTINGS: usize = 64;
}

/// Why a peer's bytes are not SPDY/3.1, or more of it than anybody needs. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpdyError {
    #[error("a control frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes; at most {max} are taken", max = limits::CONTROL_FRAME_BYTES)]
    FrameTooLong(usize),
    #[error("a frame of type {kind} with {length} bytes, which is not its form")]
    Malformed { kind: u16, length: usize },
    #[error("a frame for stream 0")]
    StreamZero,
    #[error("a block of headers that cannot be inflated")]
    Inflate,
    #[error("a block of headers with more than {} bytes", limits::HEADER_BYTES)]
    HeadersTooLong,
    #[error("{0} headers in a block; at most {max} are taken", max = limits::HEADERS)]
    TooManyHeaders(usize),
    #[error("a block of headers that ends early, repeats a name, or has one that is no lower-case ASCII")]
    Header,
}
