//! Requests by RPC: how many are under way, how long they took, and how they ended.
//!
//! Only RPCs of the services have a name here; whatever else a client asks for shares one. So no client can make the
//! numbers grow.

use std::sync::OnceLock;
use std::time::Instant;

use self::Kind::{Request, Stream};
use super::instrument::{Counter, Gauge, Held, Histogram};

/// gRPC's status codes by number, by the names its libraries give them in metrics.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

const CANCELED: usize = 1;
const UNKNOWN: usize = 2;

/// What is to be known of an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It ends by itself: how long it took tells something.
    Request,
    /// It lasts as long as its client, or the process behind it, wants.
    Stream,
}

/// One RPC.
#[derive(Debug)]
pub struct Rpc {
    path: &'static str,
    /// Its name; those of aril's own service have the service's before them.
    pub name: &'static str,
    /// See [`Kind`].
    pub kind: Kind,
    /// Requests under way.
    pub under_way: Gauge,
    ended: [OnceLock<Box<Ended>>; CODES.len()],
}

/// Requests that ended with one code.
#[derive(Debug, Default)]
pub struct Ended {
    /// How long they took; of [`Kind::Request`] alone.
    pub took: Histogram,
    /// How many there were.
    pub count: Counter,
}

impl Rpc {
    const fn new(path: &'static str, name: &'static str, kind: Kind) -> Self {
        let ended = [const { OnceLock::new() }; CODES.len()];
        Self { path, name, kind, under_way: Gauge::new(), ended }
    }

    /// Counts a request until the returned value is dropped.
    pub fn begin(&'static self) -> Call {
        Call { rpc: self, begun: Instant::now(), is_told: false, _under_way: self.under_way.hold() }
    }

    /// How requests ended, by the codes that were seen.
    pub fn ended(&self) -> impl Iterator<Item = (&'static str, &Ended)> {
        CODES.iter().zip(&self.ended).filter_map(|(code, ended)| Some((*code, &**ended.get()?)))
    }

    fn end(&self, code: usize, begun: Instant) {
        let ended = self.ended[code].get_or_init(Box::default);
        ended.count.add(1);
        if self.kind == Kind::Request {
            ended.took.observe(begun.elapsed());
        }
    }
}

/// A request under way.
#[derive(Debug)]
#[must_use = "it is under way as long as this lives"]
pub struct Call {
    rpc: &'static Rpc,
    begun: Instant,
    is_told: bool,
    _under_way: Held,
}

impl Call {
    /// It has ended with this status, as a `grpc-status` says it. Only the first word counts.
    pub fn end(&mut self, status: &[u8]) {
        if !std::mem::replace(&mut self.is_told, true) {
            let code = std::str::from_utf8(status).ok().and_then(|digits| digits.parse::<usize>().ok());
            self.rpc.end(code.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN), self.begun);
        }
    }
}

impl Drop for Call {
    /// Nobody waited for its end.
    fn drop(&mut self) {
        if !self.is_told {
            self.rpc.end(CANCELED, self.begun);
        }
    }
}

/// The RPC at the path of a request.
pub fn at(path: &str) -> &'static Rpc {
    match RPCS.binary_search_by(|rpc| rpc.path.cmp(path)) {
        Ok(found) => &RPCS[found],
        Err(_) => &OTHER,
    }
}

/// Every RPC there is, and what is none.
pub fn all() -> impl Iterator<Item = &'static Rpc> {
    RPCS.iter().chain([&OTHER])
}

static OTHER: Rpc = Rpc::new("", "other", Request);

/// By their paths.
#[rustfmt::skip]
static RPCS: [Rpc; 55] = [
    Rpc::new("/aril.v1.Node/Attach", "Node/Attach", Stream),
    Rpc::new("/aril.v1.Node/DiskUsage", "Node/DiskUsage", Request),
    Rpc::new("/aril.v1.Node/Events", "Node/Events", Stream),
    Rpc::new("/aril.v1.Node/Exec", "Node/Exec", Stream),
    Rpc::new("/aril.v1.Node/ImportImage", "Node/ImportImage", Request),
    Rpc::new("/aril.v1.Node/Info", "Node/Info", Request),
    Rpc::new("/aril.v1.Node/InspectNetwork", "Node/InspectNetwork", Request),
    Rpc::new("/aril.v1.Node/ListNetworkPods", "Node/ListNetworkPods", Request),
    Rpc::new("/aril.v1.Node/ListNetworks", "Node/ListNetworks", Request),
    Rpc::new("/aril.v1.Node/PullImage", "Node/PullImage", Request),
    Rpc::new("/aril.v1.Node/RemoveImage", "Node/RemoveImage", Request),
    Rpc::new("/aril.v1.Node/SystemReset", "Node/SystemReset", Request),
    Rpc::new("/aril.v1.Node/Tunnel", "Node/Tunnel", Stream),
    Rpc::new("/aril.v1.Node/VerifyImage", "Node/VerifyImage", Request),
    Rpc::new("/runtime.v1.ImageService/ImageFsInfo", "ImageFsInfo", Request),
    Rpc::new("/runtime.v1.ImageService/ImageStatus", "ImageStatus", Request),
    Rpc::new("/runtime.v1.ImageService/ListImages", "ListImages", Request),
    Rpc::new("/runtime.v1.ImageService/PullImage", "PullImage", Request),
    Rpc::new("/runtime.v1.ImageService/RemoveImage", "RemoveImage", Request),
    Rpc::new("/runtime.v1.ImageService/StreamImages", "StreamImages", Request),
    Rpc::new("/runtime.v1.RuntimeService/Attach", "Attach", Request),
    Rpc::new("/runtime.v1.RuntimeService/CheckpointContainer", "CheckpointContainer", Request),
    Rpc::new("/runtime.v1.RuntimeService/ContainerStats", "ContainerStats", Request),
    Rpc::new("/runtime.v1.RuntimeService/ContainerStatus", "ContainerStatus", Request),
    Rpc::new("/runtime.v1.RuntimeService/CreateContainer", "CreateContainer", Request),
    Rpc::new("/runtime.v1.RuntimeService/Exec", "Exec", Request),
    Rpc::new("/runtime.v1.RuntimeService/ExecSync", "ExecSync", Request),
    Rpc::new("/runtime.v1.RuntimeService/GetContainerEvents", "GetContainerEvents", Stream),
    Rpc::new("/runtime.v1.RuntimeService/ListContainerStats", "ListContainerStats", Request),
    Rpc::new("/runtime.v1.RuntimeService/ListContainers", "ListContainers", Request),
    Rpc::new("/runtime.v1.RuntimeService/ListMetricDescriptors", "ListMetricDescriptors", Request),
    Rpc::new("/runtime.v1.RuntimeService/ListPodSandbox", "ListPodSandbox", Request),
    Rpc::new("/runtime.v1.RuntimeService/ListPodSandboxMetrics", "ListPodSandboxMetrics", Request),
    Rpc::new("/runtime.v1.RuntimeService/ListPodSandboxStats", "ListPodSandboxStats", Request),
    Rpc::new("/runtime.v1.RuntimeService/PodSandboxStats", "PodSandboxStats", Request),
    Rpc::new("/runtime.v1.RuntimeService/PodSandboxStatus", "PodSandboxStatus", Request),
    Rpc::new("/runtime.v1.RuntimeService/PortForward", "PortForward", Request),
    Rpc::new("/runtime.v1.RuntimeService/RemoveContainer", "RemoveContainer", Request),
    Rpc::new("/runtime.v1.RuntimeService/RemovePodSandbox", "RemovePodSandbox", Request),
    Rpc::new("/runtime.v1.RuntimeService/ReopenContainerLog", "ReopenContainerLog", Request),
    Rpc::new("/runtime.v1.RuntimeService/RunPodSandbox", "RunPodSandbox", Request),
    Rpc::new("/runtime.v1.RuntimeService/RuntimeConfig", "RuntimeConfig", Request),
    Rpc::new("/runtime.v1.RuntimeService/StartContainer", "StartContainer", Request),
    Rpc::new("/runtime.v1.RuntimeService/Status", "Status", Request),
    Rpc::new("/runtime.v1.RuntimeService/StopContainer", "StopContainer", Request),
    Rpc::new("/runtime.v1.RuntimeService/StopPodSandbox", "StopPodSandbox", Request),
    Rpc::new("/runtime.v1.RuntimeService/StreamContainerStats", "StreamContainerStats", Request),
    Rpc::new("/runtime.v1.RuntimeService/StreamContainers", "StreamContainers", Request),
    Rpc::new("/runtime.v1.RuntimeService/StreamPodSandboxMetrics", "StreamPodSandboxMetrics", Request),
    Rpc::new("/runtime.v1.RuntimeService/StreamPodSandboxStats", "StreamPodSandboxStats", Request),
    Rpc::new("/runtime.v1.RuntimeService/StreamPodSandboxes", "StreamPodSandboxes", Request),
    Rpc::new("/runtime.v1.RuntimeService/UpdateContainerResources", "UpdateContainerResources", Request),
    Rpc::new("/runtime.v1.RuntimeService/UpdatePodSandboxResources", "UpdatePodSandboxResources", Request),
    Rpc::new("/runtime.v1.RuntimeService/UpdateRuntimeConfig", "UpdateRuntimeConfig", Request),
    Rpc::new("/runtime.v1.RuntimeService/Version", "Version", Request),
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Package, service and name of every RPC in a definition.
    fn defined(text: &str) -> Vec<String> {
        let word = |line: &str| line.split([' ', '(', ';']).nth(1).unwrap_or_default().to_owned();
        let (mut package, mut service, mut paths) = (String::new(), String::new(), Vec::new());
        for line in text.lines().map(str::trim) {
            match line.split(' ').next() {
                Some("package") => package = word(line),
                Some("service") => service = word(line),
                Some("rpc") => paths.push(format!("/{package}.{service}/{}", word(line))),
                _ => {}
            }
        }
        paths
    }

    #[test]
    fn every_rpc_of_the_services_has_a_place() {
        let mut paths = defined(include_str!("../../proto/cri.proto"));
        paths.extend(defined(include_str!("../../proto/aril.proto")));
        paths.sort_unstable();
        assert_eq!(paths, RPCS.iter().map(|rpc| rpc.path).collect::<Vec<_>>());
        let mut names: Vec<&str> = all().map(|rpc| rpc.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RPCS.len() + 1);
        assert_eq!(at("/runtime.v1.RuntimeService/Version").name, "Version");
        for path in ["", "/", "/runtime.v1.RuntimeService/Versio", "/runtime.v1.RuntimeService/Versions"] {
            assert_eq!(at(path).name, "other");
        }
    }

    #[test]
    fn calls_end_with_their_code_once() {
        static RPC: Rpc = Rpc::new("/a", "a", Request);
        let mut call = RPC.begin();
        assert_eq!(RPC.under_way.get(), 1);
        call.end(b"5");
        call.end(b"0");
        drop(call);
        drop(RPC.begin());
        for odd in [&b"17"[..], b"-1", b"", b"\xff", b"99999999999999999999999"] {
            RPC.begin().end(odd);
        }
        let ended: Vec<_> =
            RPC.ended().map(|(code, ended)| (code, ended.count.get(), ended.took.read().count)).collect();
        assert_eq!(ended, [("Canceled", 1, 1), ("Unknown", 5, 5), ("NotFound", 1, 1)]);
        assert_eq!(RPC.under_way.get(), 0);
    }

    #[test]
    fn a_call_costs_well_under_a_microsecond() {
        const TIMES: u32 = 2_000;
        let best = (0..50).map(|_| {
            let begun = Instant::now();
            for _ in 0..TIMES {
                at("/runtime.v1.RuntimeService/ReopenContainerLog").begin().end(b"0");
            }
            begun.elapsed() / TIMES
        });
        let best = best.min().unwrap();
        assert!(best < Duration::from_micros(2), "{best:?}");
    }
}
