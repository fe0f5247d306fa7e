//! Pulls, as both services offer them: kubelet waits for the end, people watch.
//!
//! A caller that goes away drops its interest, and the last one ends the pull.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::error::invalid;
use crate::api::cri::{AuthConfig, PullImageRequest as CriRequest};
use crate::api::node::{
    LayerProgress, PullImageRequest, PullImageResponse, PullProgress, PulledImage, RegistryLogin, layer_progress,
    pull_image_response, pull_progress,
};
use crate::image::{
    Credentials, Image, ImageError, LayerState, Phase, Progress, PullError, Pulling, Reference, RegistryErrorKind,
    UnpackError,
};
use crate::node::Node;

/// Messages to a client that may wait. Progress that it is too slow for is passed over.
const BACKLOG: usize = 4;

/// What people get while an image is pulled.
pub(super) type PullStream = Pin<Box<dyn Stream<Item = Result<PullImageResponse, Status>> + Send>>;

/// CRI's PullImage: waits for the end and tells the image.
pub(super) async fn for_kubelet(node: &Node, request: CriRequest) -> Result<Arc<Image>, Status> {
    let CriRequest { image, auth, .. } = request;
    let reference = match image {
        Some(spec) if !spec.image.is_empty() => spec.image,
        _ => return Err(invalid("image.image", "missing")),
    };
    let (_, pulling) = begin(node, &reference, auth.as_ref())?;
    pulling.finish().await.map_err(|e| status(&reference, &e, Caller::Kubelet))
}

/// The same with progress; the image comes last.
pub(super) fn for_people(node: &Node, request: PullImageRequest) -> Result<PullStream, Status> {
    let PullImageRequest { reference, login } = request;
    let login = login.map(|login| {
        let RegistryLogin { username, password, identity_token, server_address } = login;
        AuthConfig { username, password, identity_token, server_address, ..AuthConfig::default() }
    });
    let (full, pulling) = begin(node, &reference, login.as_ref())?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let at_work = node.at_work();
    tokio::spawn(async move {
        let _at_work = at_work;
        let result = tokio::select! {
            result = watch(pulling, &sender) => result,
            // Whoever watched has gone, and with this the interest in the pull.
            () = sender.closed() => return,
        };
        let last = match result {
            Ok(image) => Ok(PullImageResponse { body: Some(pull_image_response::Body::Image(pulled(&image, &full))) }),
            Err(e) => Err(status(&reference, &e, Caller::Person)),
        };
        sender.send(last).await.ok();
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn begin(node: &Node, reference: &str, auth: Option<&AuthConfig>) -> Result<(Reference, Pulling), Status> {
    let parsed: Reference = reference.parse().map_err(|e| Status::invalid_argument(format!("pull: {e}")))?;
    let credentials = Credentials::from_auth_config(auth)
        .map_err(|e| Status::invalid_argument(format!("pull {reference}: credentials: {e}")))?;
    let pulling = node.puller().pull(parsed.clone(), credentials);
    Ok((parsed, pulling))
}

/// Passes progress on until the end.
async fn watch(
    pulling: Pulling,
    sender: &mpsc::Sender<Result<PullImageResponse, Status>>,
) -> Result<Arc<Image>, PullError> {
    let mut progress = pulling.progress();
    let end = pulling.finish();
    tokio::pin!(end);
    loop {
        tokio::select! {
            // What is known last is told, too, where it is complete.
            biased;
            result = &mut end => return result,
            changed = progress.changed() => {
                if changed.is_err() {
                    return end.await;
                }
                let body = Some(pull_image_response::Body::Progress(message(&progress.borrow_and_update())));
                // A client that does not keep up gets the next state.
                sender.try_send(Ok(PullImageResponse { body })).ok();
            }
        }
    }
}

fn message(progress: &Progress) -> PullProgress {
    let phase = match progress.phase {
        Phase::Resolving => pull_progress::Phase::Resolving,
        Phase::Layers => pull_progress::Phase::Layers,
        Phase::Committing | Phase::Done => pull_progress::Phase::Committing,
    };
    let layer = |layer: &crate::image::LayerProgress| LayerProgress {
        digest: layer.digest.to_string(),
        state: match layer.state {
            LayerState::Waiting => layer_progress::State::Waiting,
            LayerState::Downloading => layer_progress::State::Downloading,
            LayerState::Unpacked => layer_progress::State::Unpacked,
            LayerState::Present => layer_progress::State::Present,
        }
        .into(),
        done_bytes: layer.done_bytes,
        total_bytes: layer.total_bytes,
    };
    PullProgress { phase: phase.into(), layers: progress.layers.iter().map(layer).collect() }
}

fn pulled(image: &Image, reference: &Reference) -> PulledImage {
    PulledImage {
        id: image.id.to_string(),
        references: image.repo_tags.iter().chain(&image.repo_digests).cloned().collect(),
        size_bytes: image.size_bytes,
        reference: reference.to_string(),
    }
}

/// For whom an error is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Kubelet,
    Person,
}

/// The answer to a pull that failed. kubelet looks at nothing but the beginning of a message, and that only where the
/// code is `Unknown`: so a registry that is out of reach is told like that.
fn status(reference: &str, error: &PullError, caller: Caller) -> Status {
    let text = format!("pull {reference}: {error}");
    match code(error) {
        Code::Unavailable if caller == Caller::Kubelet => Status::unknown(format!("RegistryUnavailable: {text}")),
        code => Status::new(code, text),
    }
}

/// gRPC's word for what went wrong.
fn code(error: &PullError) -> Code {
    match error {
        PullError::Registry(e) => match e.kind() {
            RegistryErrorKind::NotFound => Code::NotFound,
            RegistryErrorKind::Unauthorized => Code::Unauthenticated,
            RegistryErrorKind::RateLimited | RegistryErrorKind::Unavailable => Code::Unavailable,
            // Somebody has to change something: at the registry, or in our configuration.
            RegistryErrorKind::Tls
            | RegistryErrorKind::Protocol
            | RegistryErrorKind::Limit
            | RegistryErrorKind::Config
            | RegistryErrorKind::NoRanges => Code::FailedPrecondition,
            RegistryErrorKind::Mismatch => Code::DataLoss,
        },
        PullError::Image(e) if is_damaged(e) => Code::DataLoss,
        PullError::Image(e) => match super::error::import(e).code() {
            // The request was right; what the registry gave is not.
            Code::InvalidArgument => Code::FailedPrecondition,
            code => code,
        },
        PullError::Died => Code::Internal,
    }
}

/// Whether what came is not what its digest or size promised.
fn is_damaged(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::DigestMismatch { .. }
            | ImageError::SizeMismatch { .. }
            | ImageError::Unpack { source: UnpackError::Mismatch { .. } | UnpackError::Damaged { .. }, .. }
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_bad_image_is_told_apart_from_a_full_disk() {
        let unpack = |source| PullError::Image(Arc::new(ImageError::Unpack { layer: "l".to_owned(), source }));
        for (error, expected) in [
            (unpack(UnpackError::DiskFull { path: "/x".into() }), Code::ResourceExhausted),
            (unpack(UnpackError::Damaged { reason: "cut short".to_owned() }), Code::DataLoss),
            (unpack(UnpackError::Entry { entry: "../x".to_owned(), reason: "it leads out" }), Code::FailedPrecondition),
            (PullError::Died, Code::Internal),
        ] {
            for caller in [Caller::Kubelet, Caller::Person] {
                let status = status("busybox", &error, caller);
                assert_eq!(status.code(), expected);
                assert!(status.message().starts_with("pull busybox: "), "{status}");
            }
        }
    }

    #[test]
    fn progress_is_passed_on_as_it_is() {
        let digest: crate::id::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let layer =
            |state| crate::image::LayerProgress { digest: digest.clone(), state, done_bytes: 1, total_bytes: 2 };
        let states = [LayerState::Waiting, LayerState::Downloading, LayerState::Unpacked, LayerState::Present];
        let told = message(&Progress { phase: Phase::Layers, layers: states.map(layer).to_vec() });
        assert_eq!(told.phase(), pull_progress::Phase::Layers);
        assert_eq!(told.layers.iter().map(LayerProgress::state).map(|s| s as i32).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!((told.layers[1].done_bytes, told.layers[1].total_bytes), (1, 2));
    }
}
