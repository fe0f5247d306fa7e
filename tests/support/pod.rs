//! Pods.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use aril::api::cri::{
    ContainerConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};
use tonic::Status;

use super::{Container, ContainerBuilder, TestNode};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A pod about to be run.
#[derive(Clone)]
pub struct PodBuilder<'n> {
    node: &'n TestNode,
    /// What will be asked for.
    pub config: PodSandboxConfig,
    handler: String,
}

impl<'n> PodBuilder<'n> {
    pub(super) fn new(node: &'n TestNode, name: &str) -> Self {
        let uid = format!("uid-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            ..LinuxSandboxSecurityContext::default()
        };
        let config = PodSandboxConfig {
            log_directory: node.path(format!("logs/{uid}")).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod-{uid}", node.cgroup_parent()),
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            metadata: Some(PodSandboxMetadata { name: name.to_owned(), uid, namespace: "test".to_owned(), attempt: 0 }),
            ..PodSandboxConfig::default()
        };
        Self { node, config, handler: String::new() }
    }

    /// Changes anything of the request.
    pub fn with(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the Linux part.
    pub fn linux(self, change: impl FnOnce(&mut LinuxPodSandboxConfig)) -> Self {
        self.with(|c| change(c.linux.get_or_insert_default()))
    }

    /// Changes the namespaces.
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.linux(|l| {
            change(l.security_context.get_or_insert_default().namespace_options.get_or_insert_default());
        })
    }

    /// On the node's network.
    pub fn host_network(self) -> Self {
        self.namespaces(|n| n.network = NamespaceMode::Node.into())
    }

    /// A sysctl of the pod.
    pub fn sysctl(self, name: &str, value: &str) -> Self {
        self.linux(|l| drop(l.sysctls.insert(name.to_owned(), value.to_owned())))
    }

    /// Of another runtime handler.
    pub fn handler(mut self, name: &str) -> Self {
        name.clone_into(&mut self.handler);
        self
    }

    /// Runs it.
    pub fn try_run(self) -> Result<Pod<'n>, Status> {
        let request = RunPodSandboxRequest { config: Some(self.config.clone()), runtime_handler: self.handler };
        let answer = self.node.cri().runtime(|mut c| async move { c.run_pod_sandbox(request).await })?;
        Ok(Pod { node: self.node, id: answer.pod_sandbox_id, config: self.config })
    }

    /// Runs it, which must work.
    pub fn run(self) -> Pod<'n> {
        self.try_run().unwrap_or_else(|e| panic!("run a pod: {e}"))
    }
}

/// A pod that was run.
pub struct Pod<'n> {
    pub(super) node: &'n TestNode,
    /// CRI's id of it.
    pub id: String,
    /// What was asked for.
    pub config: PodSandboxConfig,
}

impl<'n> Pod<'n> {
    /// A container with this command and the probe image.
    pub fn container<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> ContainerBuilder<'n> {
        ContainerBuilder::new(self, command.into_iter().map(str::to_owned).collect())
    }

    /// A container that is wholly as `config` says.
    pub fn container_from(&self, config: ContainerConfig) -> ContainerBuilder<'n> {
        ContainerBuilder::from_config(self, config)
    }

    /// Creates and starts a container.
    pub fn run<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> Container<'n> {
        self.container(command).run()
    }

    /// A container that waits to be killed.
    pub fn sleeper(&self) -> Container<'n> {
        self.run(["sleep", "100000"])
    }

    /// Runs a shell script to its end: exit code and what it wrote.
    pub fn script(&self, script: &str) -> (i32, String) {
        let container = self.run(["sh", "-c", script]);
        let status = container.wait_exited();
        (status.exit_code, container.log())
    }

    /// `PodSandboxStatus`.
    pub fn try_status(&self) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer = self.node.cri().runtime(|mut c| async move { c.pod_sandbox_status(request).await })?;
        Ok(answer.status.expect("a status"))
    }

    /// `PodSandboxStatus` of a pod that must be there.
    pub fn status(&self) -> PodSandboxStatus {
        self.try_status().unwrap_or_else(|e| panic!("status of pod {}: {e}", self.id))
    }

    /// Whether it is READY.
    pub fn is_ready(&self) -> bool {
        self.status().state() == PodSandboxState::SandboxReady
    }

    /// `StopPodSandbox`.
    pub fn stop(&self) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.cri().runtime(|mut c| async move { c.stop_pod_sandbox(request).await }).map(drop)
    }

    /// `RemovePodSandbox`.
    pub fn remove(&self) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.cri().runtime(|mut c| async move { c.remove_pod_sandbox(request).await }).map(drop)
    }

    /// A log file of the pod.
    pub fn log_path(&self, name: &str) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(name)
    }
}
