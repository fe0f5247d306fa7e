//! `aril image`: what of images can be done without a registry.

use serde::Serialize;

use super::args::{ImageRmArgs, ImportArgs, Output};
use super::connect::{Daemon, absolute};
use super::error::CliError;
use super::output::{self, Rows, short};
use super::remove::each_told;
use crate::api::cri;
use crate::api::node::{ImportImageRequest, ImportedImage, RemoveImageRequest, RemoveImageResponse};

/// An image as programs get it.
#[derive(Debug, Serialize)]
struct Image<'a> {
    id: &'a str,
    tags: &'a [String],
    digests: &'a [String],
    size_bytes: u64,
    pinned: bool,
}

/// `aril image ls`.
pub(super) async fn ls(daemon: &mut Daemon, output: Output) -> Result<(), CliError> {
    let images = daemon.images.list_images(cri::ListImagesRequest::default()).await?.into_inner().images;
    output::print(&match output {
        Output::Json => output::json(&images.iter().map(image).collect::<Vec<_>>())?,
        Output::Table | Output::Wide => table(&images, output == Output::Wide),
    })
}

fn image(from: &cri::Image) -> Image<'_> {
    Image {
        id: &from.id,
        tags: &from.repo_tags,
        digests: &from.repo_digests,
        size_bytes: from.size,
        pinned: from.pinned,
    }
}

/// A line for every tag; an image without one has a line too.
fn table(images: &[cri::Image], wide: bool) -> String {
    let mut headings = vec!["IMAGE", "TAG", "IMAGE ID", "SIZE"];
    if wide {
        headings.extend(["PINNED", "DIGESTS"]);
    }
    let mut lines: Vec<Vec<String>> = Vec::new();
    for image in images {
        let untagged = ["<none>:<none>".to_owned()];
        let tags: &[String] = if image.repo_tags.is_empty() { &untagged } else { &image.repo_tags };
        for tag in tags {
            let (name, tag) = split_tag(tag);
            let mut line =
                vec![name.to_owned(), tag.to_owned(), short(&image.id).to_owned(), output::bytes(image.size)];
            if wide {
                line.extend([if image.pinned { "yes" } else { "no" }.to_owned(), image.repo_digests.join(",")]);
            }
            lines.push(line);
        }
    }
    lines.sort();
    let mut rows = Rows::new(&headings);
    for line in lines {
        rows.add(line);
    }
    rows.text()
}

/// "host:5000/name:tag" → ("host:5000/name", "tag").
fn split_tag(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, ""),
    }
}

/// `aril image import`.
pub(super) async fn import(daemon: &mut Daemon, args: &ImportArgs, output: Output) -> Result<(), CliError> {
    let path = absolute(&args.path)?;
    // The daemon would say the same; asked here the path is the one that was typed.
    std::fs::metadata(&path).map_err(|e| CliError::io(format!("open {}", args.path.display()), e))?;
    let Some(path) = path.to_str() else {
        return Err(CliError::Usage(format!("{} is not UTF-8; rename it", args.path.display())));
    };
    let request = ImportImageRequest { path: path.to_owned(), reference: args.name.clone().unwrap_or_default() };
    let images = daemon.node.import_image(request).await?.into_inner().images;
    output::print(&if output == Output::Json { imported_json(&images)? } else { imported_text(&images) })
}

fn imported_text(images: &[ImportedImage]) -> String {
    let line = |image: &ImportedImage| {
        // Digests say no more than the id; names are what is typed next.
        let names: Vec<&str> = image.references.iter().map(String::as_str).filter(|r| !r.contains('@')).collect();
        let names = if names.is_empty() { "<none>".to_owned() } else { names.join(", ") };
        format!("{names} ({}, {})\n", short(&image.id), output::bytes(image.size_bytes))
    };
    images.iter().map(line).collect()
}

fn imported_json(images: &[ImportedImage]) -> Result<String, CliError> {
    let image = |i: &ImportedImage| serde_json::json!({"id": i.id, "tags": i.references, "size_bytes": i.size_bytes});
    output::json(&images.iter().map(image).collect::<Vec<_>>())
}

/// `aril image rm`.
pub(super) async fn rm(daemon: &Daemon, args: &ImageRmArgs) -> Result<(), CliError> {
    each_told(&args.images, |name| {
        let mut daemon = daemon.clone();
        async move {
            let request = RemoveImageRequest { reference: name.to_owned(), force: args.force };
            Ok(gone(&daemon.node.remove_image(request).await?.into_inner()))
        }
    })
    .await
}

/// A line for each name, and one for the image.
fn gone(answer: &RemoveImageResponse) -> String {
    let names = answer.names.iter().map(|name| format!("untagged {name}\n"));
    let image = answer.removed.then(|| format!("removed {}\n", short(&answer.id)));
    names.chain(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_every_tag() {
        let images = [
            cri::Image {
                id: format!("sha256:{}", "b".repeat(64)),
                repo_tags: vec!["localhost:5000/x:1".into(), "docker.io/library/busybox:latest".into()],
                size: 2048,
                ..Default::default()
            },
            cri::Image { id: "sha256:00".into(), ..Default::default() },
        ];
        assert_eq!(
            table(&images, false),
            "IMAGE                      TAG     IMAGE ID      SIZE\n\
             <none>                     <none>  00            0 B\n\
             docker.io/library/busybox  latest  bbbbbbbbbbbb  2.0 KiB\n\
             localhost:5000/x           1       bbbbbbbbbbbb  2.0 KiB\n"
        );
    }

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split_tag("localhost:5000/x"), ("localhost:5000/x", ""));
        assert_eq!(split_tag("a/b:1"), ("a/b", "1"));
    }

    #[test]
    fn what_was_imported_is_named() {
        let image = ImportedImage {
            id: "sha256:0123456789abcdef".into(),
            references: vec!["a:1".into(), "a@sha256:0".into()],
            size_bytes: 1024,
        };
        assert_eq!(imported_text(&[image]), "a:1 (0123456789ab, 1.0 KiB)\n");
    }
}
