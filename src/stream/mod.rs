//! Streams for CRI's clients: exec, attach and port-forward over HTTP, upgraded to SPDY/3.1 or WebSocket.
//!
//! So far the formats: [`spdy`] and [`websocket`], which do no I/O.

pub mod spdy;
pub mod websocket;
