//! What the daemon tells of itself: requests, pods, images, network, errors.
//!
//! Counters come from [`crate::observe`], the rest from what is in memory when somebody asks.

use super::text::{Metric, Page, float};
use crate::net::PoolUse;
use crate::node::Node;
use crate::observe::{metrics, rpc};

const BUILD: Metric = Metric::gauge("aril_build_info", "Always 1; the version is in the label.");
const REQUESTS: Metric = Metric::histogram(
    "aril_cri_request_duration_seconds",
    "How long requests took until the end of their answers, by RPC and gRPC code.",
);
const UNDER_WAY: Metric = Metric::gauge("aril_cri_requests_in_flight", "Requests under way, by RPC.");
const STREAMS: Metric =
    Metric::gauge("aril_cri_streams_open", "Streams open that last as long as their clients want, by RPC.");
const STREAMS_ENDED: Metric =
    Metric::counter("aril_cri_streams_ended_total", "Such streams that ended, by RPC and gRPC code.");
const STEPS: Metric = Metric::histogram(
    "aril_step_duration_seconds",
    "How long the steps of starts and stops took, by operation and step, as in timelines.",
);
const ERRORS: Metric = Metric::counter("aril_errors_total", "Requests that failed, by the step that failed.");
const PODS: Metric = Metric::gauge("aril_pods", "Pods by state.");
const CONTAINERS: Metric = Metric::gauge("aril_containers", "Containers by state.");
const SHIMS: Metric = Metric::gauge("aril_shims", "Shims the daemon is connected to.");
const EXECS: Metric = Metric::gauge("aril_exec_sessions_open", "Exec sessions that run, with streams or without.");
const STREAMING: Metric =
    Metric::gauge("aril_streaming_sessions_open", "Clients of exec, attach and port-forward on the streaming server.");
const EVENTS_LOST: Metric =
    Metric::counter("aril_events_lost_total", "Events that were gone before a client had read them.");
const PULLS: Metric = Metric::histogram("aril_image_pull_duration_seconds", "How long pulls took, by result.");
const PULLS_UNDER_WAY: Metric = Metric::gauge("aril_image_pulls_in_flight", "Pulls under way.");
const DOWNLOADED: Metric =
    Metric::counter("aril_image_downloaded_bytes_total", "Bytes of layers that came from registries.");
const UNPACKED: Metric = Metric::counter(
    "aril_image_unpacked_bytes_total",
    "Bytes on disk of layers that were unpacked, by pull or import.",
);
const IMAGES: Metric = Metric::gauge("aril_images", "Images.");
const LAYERS: Metric = Metric::gauge("aril_image_layers", "Layers in the image store.");
const STORE_BYTES: Metric = Metric::gauge("aril_image_store_bytes", "What the image store occupies.");
const STORE_INODES: Metric = Metric::gauge("aril_image_store_inodes", "Files and directories in the image store.");
const ADDRESSES_USED: Metric =
    Metric::gauge("aril_network_addresses_in_use", "Addresses of the bridge that pods have, by range.");
const ADDRESSES: Metric = Metric::gauge("aril_network_addresses", "Addresses of the bridge for pods, by range.");
const CONNECTED: Metric = Metric::gauge("aril_network_pods", "Pods with a network of their own, by driver.");
const SCRAPE_FAILURES: Metric =
    Metric::counter("aril_scrape_failures_total", "Parts of a page that could not be read and were left out.");

/// States of pods and containers; last those whose shim does not answer, of which nobody knows.
const POD_STATES: [&str; 6] = ["creating", "ready", "stopping", "stopped", "removing", "unreachable"];
const CONTAINER_STATES: [&str; 6] = ["creating", "created", "running", "exited", "removing", "unreachable"];

/// Tells all that is known without asking anybody.
pub(super) fn write(page: &mut Page, node: &Node) {
    page.describe(&BUILD);
    page.sample(BUILD.name, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    requests(page);
    page.describe(&STEPS);
    for (key, took) in metrics::steps() {
        let (operation, step) = key.unwrap_or(("other", "other"));
        page.histogram(STEPS.name, &[("operation", operation), ("step", step)], &took.read());
    }
    page.describe(&ERRORS);
    for (step, count) in metrics::failures() {
        page.sample(ERRORS.name, &[("step", step.unwrap_or("other"))], float(count));
    }
    objects(page, node);
    page.single(&EXECS, float(metrics::EXEC_SESSIONS.get()));
    page.single(&STREAMING, float(metrics::STREAMING_SESSIONS.get()));
    page.single(&EVENTS_LOST, float(metrics::EVENTS_LOST.get()));
    images(page, node);
    page.describe(&SCRAPE_FAILURES);
    for (part, count) in super::FAILURES.iter() {
        page.sample(SCRAPE_FAILURES.name, &[("part", part.unwrap_or(&"other"))], float(count.get()));
    }
}

fn requests(page: &mut Page) {
    let of = |kind| rpc::all().filter(move |rpc| rpc.kind == kind);
    page.describe(&REQUESTS);
    for rpc in of(rpc::Kind::Request) {
        for (code, ended) in rpc.ended() {
            page.histogram(REQUESTS.name, &[("rpc", rpc.name), ("code", code)], &ended.took.read());
        }
    }
    for (metric, kind) in [(&UNDER_WAY, rpc::Kind::Request), (&STREAMS, rpc::Kind::Stream)] {
        page.describe(metric);
        for rpc in of(kind) {
            page.sample(metric.name, &[("rpc", rpc.name)], float(rpc.under_way.get()));
        }
    }
    page.describe(&STREAMS_ENDED);
    for rpc in of(rpc::Kind::Stream) {
        for (code, ended) in rpc.ended() {
            page.sample(STREAMS_ENDED.name, &[("rpc", rpc.name), ("code", code)], float(ended.count.get()));
        }
    }
}

fn objects(page: &mut Page, node: &Node) {
    let pods = by_state(POD_STATES, node.sandboxes().iter().map(|sandbox| sandbox.state_name()));
    by_label(page, &PODS, "state", pods);
    let containers = by_state(CONTAINER_STATES, node.containers().iter().map(|container| container.state_name()));
    by_label(page, &CONTAINERS, "state", containers);
    page.single(&SHIMS, float(count(node.shims())));
    by_label(page, &CONNECTED, "driver", node.network().connected());
}

/// How many there are of each state; those that are none of them count as the last.
fn by_state<'a>(names: [&'static str; 6], states: impl Iterator<Item = &'a str>) -> [(&'static str, usize); 6] {
    let mut counts = names.map(|name| (name, 0));
    for state in states {
        let at = names.iter().position(|name| *name == state).unwrap_or(names.len() - 1);
        counts[at].1 += 1;
    }
    counts
}

fn by_label<'a>(page: &mut Page, metric: &Metric, label: &str, values: impl IntoIterator<Item = (&'a str, usize)>) {
    page.describe(metric);
    for (value, n) in values {
        page.sample(metric.name, &[(label, value)], float(count(n)));
    }
}

fn images(page: &mut Page, node: &Node) {
    page.describe(&PULLS);
    for (result, took) in metrics::PULLS.iter() {
        page.histogram(PULLS.name, &[("result", result.unwrap_or(&"other"))], &took.read());
    }
    page.single(&PULLS_UNDER_WAY, float(metrics::PULLS_UNDER_WAY.get()));
    page.single(&DOWNLOADED, float(metrics::DOWNLOADED.get()));
    page.single(&UNPACKED, float(metrics::UNPACKED.get()));
    let usage = node.images().usage();
    page.single(&IMAGES, float(count(node.images().list().len())));
    page.single(&LAYERS, float(count(node.images().layer_count())));
    page.single(&STORE_BYTES, float(usage.used_bytes));
    page.single(&STORE_INODES, float(usage.inodes_used));
}

/// Tells how full the ranges of addresses are.
pub(super) fn addresses(page: &mut Page, pools: &[PoolUse]) {
    page.describe(&ADDRESSES_USED);
    for pool in pools {
        page.sample(ADDRESSES_USED.name, &[("range", &pool.range)], float(count(pool.used)));
    }
    page.describe(&ADDRESSES);
    for pool in pools {
        page.sample(ADDRESSES.name, &[("range", &pool.range)], pool.size);
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
