//! Errors to gRPC codes: the one place that knows.

use tonic::{Code, Status};

use crate::image::{ImageError, StoreError, UnpackError};
use crate::node::{ErrorKind, NodeError, chain};
use crate::observe::metrics;

/// The answer to a request that failed: a code and one sentence with all causes. Here it is counted, too.
pub(super) fn status(error: &NodeError) -> Status {
    let code = match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Exists => Code::AlreadyExists,
        ErrorKind::Refused => Code::FailedPrecondition,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Deadline => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Internal => Code::Internal,
    };
    metrics::failed(&error.failed_step());
    Status::new(code, chain(error))
}

/// An image that could not be imported. These errors tell their causes themselves.
pub(super) fn import(error: &ImageError) -> Status {
    let code = match error {
        ImageError::Store(e) => store_code(e),
        ImageError::Unpack { source: UnpackError::DiskFull { .. }, .. } => Code::ResourceExhausted,
        ImageError::Unpack { source: UnpackError::System { .. }, .. } => Code::Internal,
        // It is the archive that is wrong, or the way to it.
        _ => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}

/// An image that could not be removed.
pub(super) fn image_store(error: &StoreError) -> Status {
    Status::new(store_code(error), error.to_string())
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::DiskFull { .. } => Code::ResourceExhausted,
        StoreError::Io { .. } => Code::Internal,
        StoreError::LayerGone { .. } => Code::Unavailable,
    }
}

/// A request that cannot be right.
pub(super) fn invalid(field: &str, problem: &str) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// An RPC there is not.
pub(super) fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not implemented by this version of aril"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_clients_know() {
        let cases = [
            (NodeError::NoContainer("x".into()), Code::NotFound),
            (NodeError::NoImage("x".into()), Code::NotFound),
            (NodeError::Ambiguous { objects: "containers", prefix: "a".into(), count: 2 }, Code::InvalidArgument),
            (
                NodeError::Refused { object: "container", id: "x".into(), state: "exited", operation: "start it" },
                Code::FailedPrecondition,
            ),
            (
                NodeError::Deadline { step: "kill", object: "x".into(), limit: std::time::Duration::ZERO, hint: "" },
                Code::DeadlineExceeded,
            ),
            (NodeError::Gone { object: "sandbox", id: "x".into() }, Code::Unavailable),
        ];
        for (error, code) in cases {
            assert_eq!(status(&error).code(), code, "{error}");
        }
    }
}
