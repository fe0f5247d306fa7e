//! Errors to gRPC codes: the one place that knows.

use tonic::{Code, Status};

use crate::image::{ImageError, StoreError, UnpackError};
use crate::node::spec::Kind as SpecKind;
use crate::node::{NodeError, ShimErrorKind as ShimKind, WireError, chain};

/// The answer to a request that failed: a code and one sentence with all causes.
pub(super) fn status(error: &NodeError) -> Status {
    let code = match error {
        NodeError::NoSandbox(_) | NodeError::NoContainer(_) | NodeError::NoImage(_) => Code::NotFound,
        NodeError::Ambiguous { .. } | NodeError::Invalid { .. } | NodeError::Compile(_) => Code::InvalidArgument,
        NodeError::Unsupported { .. } => Code::Unimplemented,
        NodeError::Spec(e) => match e.kind() {
            SpecKind::InvalidArgument => Code::InvalidArgument,
            SpecKind::Unimplemented => Code::Unimplemented,
        },
        NodeError::Exists { .. } => Code::AlreadyExists,
        NodeError::Refused { .. } => Code::FailedPrecondition,
        NodeError::Store(e) if e.is_full() => Code::ResourceExhausted,
        NodeError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::ResourceExhausted,
        NodeError::Store(_) | NodeError::Io { .. } => Code::Internal,
        NodeError::Images(e) => store_code(e),
        NodeError::Shim { source, .. } => shim_code(source),
        NodeError::Deadline { .. } => Code::DeadlineExceeded,
        NodeError::Gone { .. } => Code::Unavailable,
    };
    Status::new(code, chain(error))
}

fn shim_code(error: &WireError) -> Code {
    match error {
        WireError::Gone => Code::Unavailable,
        WireError::Shim { kind, .. } => match kind {
            ShimKind::Internal => Code::Internal,
            ShimKind::NotFound => Code::NotFound,
            ShimKind::Refused => Code::FailedPrecondition,
            ShimKind::Invalid => Code::InvalidArgument,
            ShimKind::Deadline => Code::DeadlineExceeded,
            ShimKind::NoSpace => Code::ResourceExhausted,
            ShimKind::Unsupported => Code::Unimplemented,
        },
        _ => Code::Internal,
    }
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
    fn every_cause_is_told_in_one_sentence() {
        let source = WireError::Shim {
            kind: ShimKind::Refused,
            step: "exec".into(),
            errno: 2,
            message: "exec \"/x\": ENOENT, is it in the image?".into(),
        };
        let error = NodeError::Shim { step: "start container", object: "abc".into(), source };
        let status = status(&error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "start container of abc: exec \"/x\": ENOENT, is it in the image?");
    }

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
            (NodeError::Shim { step: "s", object: "x".into(), source: WireError::Gone }, Code::Unavailable),
        ];
        for (error, code) in cases {
            assert_eq!(status(&error).code(), code, "{error}");
        }
    }
}
