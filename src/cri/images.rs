//! CRI's ImageService, over the store of images.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::batches::{self, Streamed};
use super::error::{image_store, invalid};
use super::{Service, info, stats};
use crate::api::cri::{self, *};
use crate::api::service::cri::image_service_server::ImageService;
use crate::image;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: self.listed(request.into_inner().filter) }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let ImageStatusRequest { image, verbose } = request.into_inner();
        let reference = named(image)?;
        // An image that is not here is no error: kubelet asks to find out.
        let Some(found) = self.node.images().get(&reference) else {
            return Ok(Response::new(ImageStatusResponse::default()));
        };
        let info = if verbose { info::image(&found) } else { Default::default() };
        Ok(Response::new(ImageStatusResponse { image: Some(self.message(&found)), info }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        // As with every other call, the image is its id.
        let image = super::pull::for_kubelet(&self.node, request.into_inner()).await?;
        Ok(Response::new(PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let reference = named(request.into_inner().image)?;
        let images = self.node.images().clone();
        let removed = tokio::task::spawn_blocking(move || images.remove(&reference)).await;
        // That there was none is as good as having removed it.
        removed.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| image_store(&e))?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let usage = self.node.images().usage();
        let filesystem = FilesystemUsage {
            timestamp: usage.timestamp_ns,
            fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
            used_bytes: Some(UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(UInt64Value { value: usage.inodes_used }),
        };
        // Images and writable layers are on one filesystem, which is what kubelet compares.
        let written = self.node.written().await;
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![filesystem],
            container_filesystems: vec![stats::filesystem(written, &usage.mountpoint)],
        }))
    }

    type StreamImagesStream = Streamed<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = self.listed(request.into_inner().filter).into_iter();
        Ok(Response::new(batches::stream(images, |images| StreamImagesResponse { images })))
    }
}

impl Service {
    /// The images a filter wants: all, or the one of that name.
    fn listed(&self, filter: Option<ImageFilter>) -> Vec<cri::Image> {
        let wanted = filter.and_then(|filter| filter.image).unwrap_or_default();
        let images: Vec<Arc<image::Image>> = match wanted.image.as_str() {
            "" => self.node.images().list(),
            reference => self.node.images().get(reference).into_iter().collect(),
        };
        images.iter().map(|image| self.message(image)).collect()
    }

    /// An image as CRI shows it.
    fn message(&self, image: &image::Image) -> cri::Image {
        let (uid, username) = user(&image.config.user);
        cri::Image {
            id: image.id.to_string(),
            repo_tags: image.repo_tags.clone(),
            repo_digests: image.repo_digests.clone(),
            size: image.size_bytes,
            uid,
            username,
            spec: None,
            pinned: self.node.is_pinned(image),
        }
    }
}

fn named(image: Option<ImageSpec>) -> Result<String, Status> {
    match image {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(invalid("image.image", "missing")),
    }
}

/// The user part of `USER`, as a number or else as a name. kubelet decides runAsNonRoot by it, so only what a
/// container would take for a number is one: digits alone, and not the highest, which is the kernel's "no id".
fn user(text: &str) -> (Option<Int64Value>, String) {
    let user = text.split(':').next().unwrap_or_default();
    let digits = !user.is_empty() && user.bytes().all(|b| b.is_ascii_digit());
    match user.parse::<u32>() {
        Ok(value) if digits && value != u32::MAX => (Some(Int64Value { value: value.into() }), String::new()),
        _ => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        assert_eq!(user("0"), (Some(Int64Value { value: 0 }), String::new()));
        assert_eq!(user("1000:5"), (Some(Int64Value { value: 1000 }), String::new()));
        assert_eq!(user("www:www"), (None, "www".to_owned()));
        assert_eq!(user(""), (None, String::new()));
        // A number that no kernel knows is nobody's, least of all root's.
        for odd in ["4294967296", "4294967295", "+0", "-1", " 0", "0x0", "0 "] {
            assert_eq!(user(odd), (None, odd.to_owned()));
        }
        assert_eq!(user("0000"), (Some(Int64Value { value: 0 }), String::new()));
    }
}
