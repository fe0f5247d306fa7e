//! CRI's RuntimeService: each RPC is a few lines of translation.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::batches::{self, Streamed};
use super::error::{invalid, status as error, unimplemented};
use super::{MESSAGE_LIMIT_BYTES, Service, events, filter, info, metrics, stats, status};
use crate::api::cri::*;
use crate::api::service::cri::runtime_service_server::RuntimeService;
use crate::node::{ExecOutput, recursive_read_only};

/// What the other fields of a reply may take beside the output of a command.
const REPLY_OVERHEAD_BYTES: usize = 1024;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            // Of the kubelet's runtime API, which never left this number.
            version: "0.1.0".to_owned(),
            runtime_name: "aril".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let condition = |kind: &str, status, reason: &str, message: &str| RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let network = self.node.network().status().await;
        let problem = network.problem.as_deref();
        let network_reason = if problem.is_some() { "NetworkPluginNotReady" } else { "" };
        let features =
            RuntimeHandlerFeatures { recursive_read_only_mounts: recursive_read_only(), user_namespaces: false };
        let handler = |name: &str| RuntimeHandler { name: name.to_owned(), features: Some(features) };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true, "", ""),
                    condition("NetworkReady", problem.is_none(), network_reason, problem.unwrap_or_default()),
                ],
            }),
            info: match request.get_ref().verbose {
                true => info::runtime(&self.node, &network, self.streams.address()),
                false => Default::default(),
            },
            runtime_handlers: vec![handler(""), handler("aril")],
            features: Some(RuntimeFeatures { supplemental_groups_policy: true, user_namespaces_host_network: false }),
        }))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(network) = network {
            self.node.set_pod_cidr(&network.pod_cidr).await.map_err(|e| error(&e))?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let RunPodSandboxRequest { config, runtime_handler } = request.into_inner();
        let config = config.ok_or_else(|| invalid("config", "missing"))?;
        let id = self.node.run_sandbox(config, &runtime_handler).await.map_err(|e| error(&e))?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        self.node.stop_sandbox(&request.get_ref().pod_sandbox_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        self.node.remove_sandbox(&request.get_ref().pod_sandbox_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let PodSandboxStatusRequest { pod_sandbox_id, verbose } = request.into_inner();
        let timestamp = crate::node::now();
        let sandbox = self.node.sandbox(&pod_sandbox_id).map_err(|e| error(&e))?;
        let own = self.node.containers_in(&sandbox.id);
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status::sandbox_status(&sandbox)),
            info: if verbose { info::sandbox(&self.node, &sandbox) } else { Default::default() },
            containers_statuses: own.iter().map(|container| status::container_status(container)).collect(),
            timestamp,
        }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let filter = request.get_ref().filter.as_ref();
        let all = self.node.sandboxes();
        let wanted = all.iter().filter(|sandbox| filter::sandbox(filter, sandbox));
        Ok(Response::new(ListPodSandboxResponse { items: wanted.map(|s| status::sandbox_item(s)).collect() }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        self.node.update_sandbox(request.into_inner()).await.map_err(|e| error(&e))?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        // The sandbox's config is known from its own request; the copy here adds nothing.
        let CreateContainerRequest { pod_sandbox_id, config, .. } = request.into_inner();
        let config = config.ok_or_else(|| invalid("config", "missing"))?;
        let id = self.node.create_container(&pod_sandbox_id, config).await.map_err(|e| error(&e))?;
        Ok(Response::new(CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        self.node.start_container(&request.get_ref().container_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let StopContainerRequest { container_id, timeout } = request.into_inner();
        // Less than no time is none.
        let grace = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        self.node.stop_container(&container_id, grace).await.map_err(|e| error(&e))?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        self.node.remove_container(&request.get_ref().container_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let filter = request.get_ref().filter.as_ref();
        let all = self.node.containers();
        let wanted = all.iter().filter(|container| filter::container(filter, container));
        Ok(Response::new(ListContainersResponse { containers: wanted.map(|c| status::container_item(c)).collect() }))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let ContainerStatusRequest { container_id, verbose } = request.into_inner();
        let container = self.node.container(&container_id).map_err(|e| error(&e))?;
        Ok(Response::new(ContainerStatusResponse {
            status: Some(status::container_status(&container)),
            info: if verbose { info::container(&self.node, &container) } else { Default::default() },
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let UpdateContainerResourcesRequest { container_id, linux, .. } = request.into_inner();
        let linux = linux.ok_or_else(|| invalid("linux", "missing"))?;
        self.node.update_container(&container_id, linux).await.map_err(|e| error(&e))?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.node.reopen_log(&request.get_ref().container_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let ExecSyncRequest { container_id, cmd, timeout } = request.into_inner();
        let limit = match u64::try_from(timeout) {
            Ok(0) => None,
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => return Err(invalid("timeout", "negative")),
        };
        let ExecOutput { stdout, stderr, exit_code } =
            self.node.exec_sync(&container_id, &cmd, limit).await.map_err(|e| error(&e))?;
        let (stdout, stderr) = fitting(stdout, stderr);
        Ok(Response::new(ExecSyncResponse { stdout, stderr, exit_code }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let url = self.streams.exec(request.into_inner()).await?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let url = self.streams.attach(request.into_inner()).await?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let url = self.streams.port_forward(request.into_inner()).await?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let numbers = self.node.container_numbers(&request.get_ref().container_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats::container(&numbers, self.root())) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = self.stats_of_containers(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let numbers = self.node.pod_numbers(&request.get_ref().pod_sandbox_id).await.map_err(|e| error(&e))?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats::sandbox(&numbers, self.root())) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = self.stats_of_pods(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(unimplemented("CheckpointContainer"))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics: self.metrics().await? }))
    }

    type GetContainerEventsStream = Streamed<ContainerEventResponse>;

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let events =
            events::follow(self.node.read_events(), self.stopping.clone(), |event| Some(events::response(event)));
        Ok(Response::new(Box::pin(events)))
    }

    type StreamPodSandboxesStream = Streamed<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter;
        let all = self.node.sandboxes().into_iter();
        let items = all.filter(move |s| filter::sandbox(filter.as_ref(), s)).map(|s| status::sandbox_item(&s));
        Ok(Response::new(batches::stream(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    type StreamContainersStream = Streamed<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let filter = request.into_inner().filter;
        let all = self.node.containers().into_iter();
        let items = all.filter(move |c| filter::container(filter.as_ref(), c)).map(|c| status::container_item(&c));
        Ok(Response::new(batches::stream(items, |containers| StreamContainersResponse { containers })))
    }

    type StreamContainerStatsStream = Streamed<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.stats_of_containers(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(batches::stream(stats.into_iter(), |container_stats| StreamContainerStatsResponse {
            container_stats,
        })))
    }

    type StreamPodSandboxStatsStream = Streamed<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.stats_of_pods(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(batches::stream(stats.into_iter(), |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })))
    }

    type StreamPodSandboxMetricsStream = Streamed<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.metrics().await?.into_iter();
        Ok(Response::new(batches::stream(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        })))
    }
}

/// Output that fits into one message: clients take no larger one, and half of it is better than none.
fn fitting(mut stdout: Vec<u8>, mut stderr: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let room = MESSAGE_LIMIT_BYTES - REPLY_OVERHEAD_BYTES;
    if stdout.len() + stderr.len() > room {
        // Neither may push the other out.
        let stderr_room = (room / 2).max(room.saturating_sub(stdout.len()));
        stderr.truncate(stderr_room);
        stdout.truncate(room - stderr.len());
    }
    (stdout, stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_to_what_a_message_holds() {
        let room = MESSAGE_LIMIT_BYTES - REPLY_OVERHEAD_BYTES;
        let lengths = |out: usize, err: usize| {
            let (out, err) = fitting(vec![0; out], vec![0; err]);
            (out.len(), err.len())
        };
        assert_eq!(lengths(5, 7), (5, 7));
        assert_eq!(lengths(MESSAGE_LIMIT_BYTES, 0), (room, 0));
        assert_eq!(lengths(10, MESSAGE_LIMIT_BYTES), (10, room - 10));
        assert_eq!(lengths(MESSAGE_LIMIT_BYTES, MESSAGE_LIMIT_BYTES), (room / 2, room / 2));
    }
}
