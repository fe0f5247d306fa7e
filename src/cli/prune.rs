//! `aril image df` and `aril image prune`: what images and containers occupy, and giving it back.

use serde_json::json;

use super::args::{Output, PruneArgs};
use super::connect::Daemon;
use super::error::CliError;
use super::output::{self, Rows, short};
use super::request;
use crate::api::cri;
use crate::api::node::{DiskUsageRequest, DiskUsageResponse, ImageUsage};

/// `aril image df`.
pub(super) async fn df(daemon: &mut Daemon, output: Output) -> Result<(), CliError> {
    let usage = daemon.node.disk_usage(DiskUsageRequest {}).await?.into_inner();
    output::print(&match output {
        Output::Json => output::json(&document(&usage))?,
        Output::Table => summary(&usage),
        Output::Wide => summary(&usage) + "\n" + &details(&usage),
    })
}

fn document(usage: &DiskUsageResponse) -> serde_json::Value {
    let image = |i: &ImageUsage| {
        json!({"id": i.id, "tags": i.tags, "digests": i.digests, "size_bytes": i.size_bytes, "own_bytes": i.own_bytes,
            "pinned": i.pinned, "containers": i.containers})
    };
    let container = |c: &crate::api::node::ContainerUsage| json!({"id": c.id, "name": c.name, "running": c.running, "written_bytes": c.written_bytes});
    json!({
        "images_bytes": usage.images_bytes,
        "images": usage.images.iter().map(image).collect::<Vec<_>>(),
        "containers": usage.containers.iter().map(container).collect::<Vec<_>>(),
    })
}

/// How much there is of each kind, and how much of it could be given back.
fn summary(usage: &DiskUsageResponse) -> String {
    let in_use = usage.images.iter().filter(|i| !i.containers.is_empty()).count();
    let unused: u64 = usage.images.iter().filter(|i| is_unused(i)).map(|i| i.own_bytes).sum();
    let running = usage.containers.iter().filter(|c| c.running).count();
    let written = |running: Option<bool>| -> u64 {
        let wanted = usage.containers.iter().filter(|c| running.is_none_or(|r| c.running == r));
        wanted.map(|c| c.written_bytes).sum()
    };
    let mut rows = Rows::new(&["WHAT", "COUNT", "IN USE", "SIZE", "UNUSED"]);
    let mut add = |what: &str, count: usize, active: usize, size: u64, unused: u64| {
        let [size, unused] = [size, unused].map(output::bytes);
        rows.add([what.to_owned(), count.to_string(), active.to_string(), size, unused]);
    };
    add("images", usage.images.len(), in_use, usage.images_bytes, unused);
    add("containers", usage.containers.len(), running, written(None), written(Some(false)));
    rows.text()
}

fn details(usage: &DiskUsageResponse) -> String {
    let mut rows = Rows::new(&["IMAGE", "IMAGE ID", "SIZE", "OF ITS OWN", "CONTAINERS"]);
    let mut sorted: Vec<&ImageUsage> = usage.images.iter().collect();
    sorted.sort_by_key(|image| name(image));
    for image in sorted {
        let containers = image.containers.len().to_string();
        let [size, own] = [image.size_bytes, image.own_bytes].map(output::bytes);
        rows.add([name(image), short(&image.id).to_owned(), size, own, containers]);
    }
    let images = rows.text();
    let mut rows = Rows::new(&["CONTAINER", "CONTAINER ID", "RUNNING", "WRITTEN"]);
    for container in &usage.containers {
        let running = if container.running { "yes" } else { "no" }.to_owned();
        let written = output::bytes(container.written_bytes);
        rows.add([container.name.clone(), short(&container.id).to_owned(), running, written]);
    }
    images + "\n" + &rows.text()
}

fn name(image: &ImageUsage) -> String {
    image.tags.iter().chain(&image.digests).next().cloned().unwrap_or_else(|| "<none>".to_owned())
}

/// No container has it, and the configuration does not want it kept.
fn is_unused(image: &ImageUsage) -> bool {
    image.containers.is_empty() && !image.pinned
}

/// `aril image prune`.
pub(super) async fn prune(daemon: &mut Daemon, args: &PruneArgs, output: Output) -> Result<(), CliError> {
    let before = daemon.node.disk_usage(DiskUsageRequest {}).await?.into_inner();
    let doomed: Vec<&ImageUsage> =
        before.images.iter().filter(|i| is_unused(i) && (args.all || i.tags.is_empty())).collect();
    let mut freed: u64 = doomed.iter().map(|i| i.own_bytes).sum();
    if !args.dry_run {
        for image in &doomed {
            let image = Some(request::image(&image.id));
            daemon.images.remove_image(cri::RemoveImageRequest { image }).await?;
        }
        // Layers that only the removed ones shared have gone, too.
        let after = daemon.node.disk_usage(DiskUsageRequest {}).await?.into_inner();
        freed = before.images_bytes.saturating_sub(after.images_bytes);
    }
    if output == Output::Json {
        let ids: Vec<&str> = doomed.iter().map(|i| i.id.as_str()).collect();
        return output::print(&output::json(&json!({"images": ids, "freed_bytes": freed, "dry_run": args.dry_run}))?);
    }
    let lines: String = doomed.iter().map(|i| format!("{} ({})\n", name(i), short(&i.id))).collect();
    let verb = if args.dry_run { "would be removed; at least" } else { "removed;" };
    let hint = match before.images.iter().filter(|i| is_unused(i)).count() - doomed.len() {
        0 => String::new(),
        more => format!("; --all would take {more} more that no container uses"),
    };
    let count = doomed.len();
    output::print(&format!("{lines}{count} {verb} {} given back{hint}\n", output::bytes(freed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::node::ContainerUsage;

    fn usage() -> DiskUsageResponse {
        let image = |tag: &str, own_bytes, pinned, containers: &[&str]| ImageUsage {
            id: format!("sha256:{tag}"),
            tags: if tag.is_empty() { vec![] } else { vec![tag.to_owned()] },
            size_bytes: 4096,
            own_bytes,
            pinned,
            containers: containers.iter().map(|&c| c.to_owned()).collect(),
            ..ImageUsage::default()
        };
        let container = |name: &str, running| ContainerUsage {
            id: "c".repeat(64),
            name: name.to_owned(),
            running,
            written_bytes: 1024,
        };
        DiskUsageResponse {
            images: vec![image("a:1", 1024, false, &["c"]), image("b:1", 2048, false, &[]), image("p", 512, true, &[])],
            containers: vec![container("x", true), container("y", false)],
            images_bytes: 8192,
        }
    }

    #[test]
    fn the_summary_tells_what_could_go() {
        assert_eq!(
            summary(&usage()),
            "WHAT        COUNT  IN USE  SIZE     UNUSED\n\
             images      3      1       8.0 KiB  2.0 KiB\n\
             containers  2      1       2.0 KiB  1.0 KiB\n"
        );
    }

    #[test]
    fn details_name_every_image_and_container() {
        let text = details(&usage());
        for word in ["a:1", "b:1", "x", "y", "OF ITS OWN", "WRITTEN"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
