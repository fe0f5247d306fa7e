//! What pods and containers use, by the names and labels of cAdvisor: the same as kubelet gets, with fractions of seconds.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::text::{Kind, Metric, Page};
use crate::cri;
use crate::node::{FullPod, Node};

/// So long a reading serves all who ask, while anybody has it: however many ask, the kernel is not asked more often.
const FRESH: Duration = Duration::from_secs(1);

/// The last reading, and when it was made. Whoever waits for the lock waits for a reading that is of use to him, too.
static LAST: Mutex<Option<(Instant, Weak<Vec<FullPod>>)>> = Mutex::const_new(None);

/// Everything about all pods that are ready; none if it cannot be read.
pub(super) async fn pods(node: &Arc<Node>) -> Option<Arc<Vec<FullPod>>> {
    let mut last = LAST.lock().await;
    let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH).and_then(|(_, pods)| pods.upgrade());
    if fresh.is_some() {
        return fresh;
    }
    let begun = Instant::now();
    let pods = Arc::new(node.full_numbers().await.ok()?);
    *last = Some((begun, Arc::downgrade(&pods)));
    Some(pods)
}

/// Says what the values to come are.
pub(super) fn describe(page: &mut Page, metric: &cri::Metric) {
    let kind = if metric.is_counter() { Kind::Counter } else { Kind::Gauge };
    page.describe(&Metric { name: metric.name, kind, help: metric.help });
}

/// Tells the values of a pod.
pub(super) fn write(page: &mut Page, metric: &cri::Metric, pod: &FullPod) {
    metric.each(pod, |labels, value| page.sample(metric.name, labels, value));
}
