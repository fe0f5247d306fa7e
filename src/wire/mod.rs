//! What daemon and shim say to each other: messages, their packets, and the daemon's side of the talk.
//!
//! One message is one `SOCK_SEQPACKET` packet with descriptors beside it ([`codec`]); the messages are those of
//! `proto/shim.proto` ([`pb`]). Every request carries an id and has one last reply with that id; events come
//! unasked. What a peer sends is never trusted to be well formed: a bad packet closes the connection and nothing else.

use std::os::fd::{AsRawFd, BorrowedFd};

#[cfg(feature = "daemon")]
pub mod client;
pub mod codec;
#[cfg(feature = "daemon")]
pub mod session;
#[cfg(feature = "daemon")]
pub mod spawn;

/// The messages, generated from `proto/shim.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/aril.shim.v1.rs"));
}

/// The highest protocol version this build speaks.
pub const VERSION: u32 = 1;

/// The lowest protocol version this build speaks.
pub const LOWEST_VERSION: u32 = 1;

/// The shim's socket, in the pod's run directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// Where a panicking shim says why, in the pod's run directory.
pub const LOG_NAME: &str = "shim.log";

/// The folder of exit records, in the pod's run directory: `<container-id>.json`.
pub const EXITS_NAME: &str = "exits";

/// The list of cgroups the shim made or was about to make, in the pod's run directory.
pub const CGROUPS_NAME: &str = "cgroups";

/// A path to the socket in the run directory `dir` that is short enough for a socket address, whatever the
/// directory's own path. Good in the calling process while `dir` is open.
#[must_use]
pub fn socket_path(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd())
}

/// The version two sides speak together: the lower of their highest, if both still know it.
#[must_use]
pub fn common_version(theirs: u32) -> Option<u32> {
    let version = theirs.min(VERSION);
    (version >= LOWEST_VERSION).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_side_decides_until_it_is_too_old() {
        assert_eq!(common_version(VERSION), Some(VERSION));
        assert_eq!(common_version(u32::MAX), Some(VERSION));
        assert_eq!(common_version(LOWEST_VERSION - 1), None);
    }
}
