//! What the node says that pods and containers use.

use std::fmt::Debug;

use aril::api::cri::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest, ListPodSandboxStatsRequest,
    PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, StreamContainerStatsRequest,
    StreamPodSandboxStatsRequest, UInt64Value,
};
use tonic::{Response, Status, Streaming};

use super::TestNode;

/// A number that must be there.
pub fn number(value: Option<UInt64Value>) -> u64 {
    value.expect("a number").value
}

/// `ContainerStats`.
pub fn container(node: &TestNode, id: &str) -> Result<ContainerStats, Status> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    let answer = node.cri().runtime(|mut c| async move { c.container_stats(request).await })?;
    Ok(answer.stats.expect("numbers"))
}

/// `PodSandboxStats`.
pub fn pod(node: &TestNode, id: &str) -> Result<PodSandboxStats, Status> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    let answer = node.cri().runtime(|mut c| async move { c.pod_sandbox_stats(request).await })?;
    Ok(answer.stats.expect("numbers"))
}

/// The ids in `ListContainerStats`, which must be those in its streaming twin.
pub fn containers(node: &TestNode, filter: Option<ContainerStatsFilter>) -> Vec<String> {
    let request = ListContainerStatsRequest { filter: filter.clone() };
    let listed = node.cri().runtime(|mut c| async move { c.list_container_stats(request).await });
    let id = |s: ContainerStats| s.attributes.expect("attributes").id;
    let listed: Vec<String> = listed.expect("list containers' numbers").stats.into_iter().map(id).collect();
    let request = StreamContainerStatsRequest { filter };
    let streamed = node.cri().runtime(|mut c| async move { all(c.stream_container_stats(request).await).await });
    let streamed = streamed.expect("stream containers' numbers").into_iter().flat_map(|batch| batch.container_stats);
    assert_eq!(streamed.map(id).collect::<Vec<_>>(), listed);
    listed
}

/// As [`containers`], of pods.
pub fn pods(node: &TestNode, filter: Option<PodSandboxStatsFilter>) -> Vec<String> {
    let request = ListPodSandboxStatsRequest { filter: filter.clone() };
    let listed = node.cri().runtime(|mut c| async move { c.list_pod_sandbox_stats(request).await });
    let id = |s: PodSandboxStats| s.attributes.expect("attributes").id;
    let listed: Vec<String> = listed.expect("list pods' numbers").stats.into_iter().map(id).collect();
    let request = StreamPodSandboxStatsRequest { filter };
    let streamed = node.cri().runtime(|mut c| async move { all(c.stream_pod_sandbox_stats(request).await).await });
    let streamed = streamed.expect("stream pods' numbers").into_iter().flat_map(|batch| batch.pod_sandbox_stats);
    assert_eq!(streamed.map(id).collect::<Vec<_>>(), listed);
    listed
}

/// Every message of a stream.
pub async fn all<T: Debug>(stream: Result<Response<Streaming<T>>, Status>) -> Result<Response<Vec<T>>, Status> {
    let mut stream = stream?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(Response::new(messages))
}
