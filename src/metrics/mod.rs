//! The numbers of this node, for Prometheus.
//!
//! Owns the endpoint and the text. Counts nothing itself: what the daemon does it counts where it does it
//! ([`crate::observe`]), and what there is, is looked at when somebody asks. What may hang (the network's books, counters
//! of cgroups) is asked by a thread of its own with a limit, and left out of a page rather than waited for; that is counted too.
//!
//! No label has values that a stranger can make up without a bound: those of RPCs, codes, states, steps and results are
//! lists, and those of pods are as many as there are pods.
//!
//! Follows Prometheus' text-based exposition format 0.0.4 and OpenMetrics 1.0.

mod containers;
mod daemon;
mod process;
mod server;
mod text;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::server::{Listener, serve};
use self::text::{Format, Page};
use crate::cri;
use crate::net::PoolUse;
use crate::node::Node;
use crate::observe::instrument::{Counter, Family};

/// How long the network's books may keep a page waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the kernel's counters of containers may.
const COUNTING: Duration = Duration::from_secs(5);

/// What is handed to a client at a time.
const PIECE_BYTES: usize = 32 << 10;

/// Parts that were left out of a page.
static FAILURES: Family<&'static str, Counter, 4> = Family::new();

/// Readers of the network's books: where one hangs, there is no second.
static READING: Semaphore = Semaphore::const_new(1);

/// Writes a page in pieces; `send` says whether more is wanted.
async fn write(node: Arc<Node>, format: Format, send: impl AsyncFn(String) -> bool) {
    let mut page = Page::new(format);
    daemon::write(&mut page, &node);
    process::write(&mut page, node.started_at());
    let pools = match timeout(PATIENCE, pools(&node)).await {
        Ok(Some(pools)) => pools,
        _ => {
            FAILURES.of(|part| *part == "network", || "network").add(1);
            Vec::new()
        }
    };
    daemon::addresses(&mut page, &pools);
    let pods = match timeout(COUNTING, containers::pods(&node)).await {
        Ok(Some(pods)) => pods,
        _ => {
            FAILURES.of(|part| *part == "containers", || "containers").add(1);
            Arc::default()
        }
    };
    for metric in cri::metrics_of_pods() {
        containers::describe(&mut page, metric);
        for pod in &*pods {
            containers::write(&mut page, metric, pod);
            if page.text.len() >= PIECE_BYTES && !send(std::mem::take(&mut page.text)).await {
                return;
            }
        }
    }
    page.text.push_str(format.end());
    send(page.text).await;
}

/// How full the ranges of addresses are.
async fn pools(node: &Arc<Node>) -> Option<Vec<PoolUse>> {
    let reading = READING.acquire().await.ok()?;
    let node = Arc::clone(node);
    let read = move || {
        let _reading = reading;
        node.network().pools()
    };
    tokio::task::spawn_blocking(read).await.ok()
}
