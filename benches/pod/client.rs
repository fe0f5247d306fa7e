//! The one CRI client that drives every daemon through the same pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aril::api::cri;
use aril::api::service::cri::runtime_service_client::RuntimeServiceClient;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::Result;
use crate::channel::channel;
use crate::processes::WORKLOAD_MARK;
use crate::samples::{Pod, op};

/// What the workload prints once it obeys SIGTERM.
pub const READY: &str = "ready";

/// The workload: the first process of a PID namespace ignores SIGTERM until it says what to do
/// with it; then it reads from a pipe that nobody writes to.
pub const WORKLOAD: &[&str] = &["/bin/sh", "-c", "trap 'exit 0' TERM; mkfifo /wait; echo ready; read line <>/wait"];

/// Limits of the workload, as kubelet would give a small burstable pod.
pub const CPU_SHARES: i64 = 102;
pub const MEMORY_LIMIT_BYTES: i64 = 64 << 20;
pub const OOM_SCORE_ADJ: i64 = 1000;

#[derive(Debug)]
pub struct Client {
    runtime: RuntimeServiceClient<Channel>,
    handler: String,
    image: String,
    cgroup: String,
    logs: PathBuf,
    own_network: bool,
    serial: u32,
}

/// A pod that is up.
#[derive(Debug)]
pub struct Up {
    name: String,
    sandbox_id: String,
    container_id: String,
}

/// What a daemon is told beside the pod itself.
#[derive(Debug)]
pub struct Setting {
    pub socket: PathBuf,
    /// CRI runtime handler; empty: the daemon's default.
    pub handler: String,
    pub image: String,
    pub cgroup: String,
    /// For container logs.
    pub logs: PathBuf,
    /// Whether pods have a network namespace of their own.
    pub own_network: bool,
}

impl Client {
    /// Waits until the daemon answers.
    pub async fn connect(setting: Setting, mut alive: impl FnMut() -> Result<()>) -> Result<Client> {
        let mut runtime = RuntimeServiceClient::new(channel(&setting.socket));
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(status) = runtime.version(cri::VersionRequest::default()).await {
            alive()?;
            if Instant::now() > deadline {
                return Err(format!("the daemon at {} gives no answer: {status}", setting.socket.display()).into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        let Setting { handler, image, cgroup, logs, own_network, .. } = setting;
        Ok(Client { runtime, handler, image, cgroup, logs, own_network, serial: 0 })
    }

    /// One pod from its start to its removal.
    pub async fn pod(&mut self) -> Result<Pod> {
        let mut pod = Pod::default();
        let up = self.up(&mut pod).await?;
        self.exec(&up, &mut pod).await?;
        self.down(&up, &mut pod).await?;
        Ok(pod)
    }

    /// Run, create, start; returns once the workload obeys SIGTERM.
    pub async fn up(&mut self, pod: &mut Pod) -> Result<Up> {
        self.start(WORKLOAD, pod).await
    }

    /// As [`up`](Self::up), with a workload that says that it is ready, and need not obey; [`kill`](Self::kill) ends it.
    pub async fn up_with(&mut self, command: &[&str]) -> Result<Up> {
        self.start(command, &mut Pod::default()).await
    }

    async fn start(&mut self, command: &[&str], pod: &mut Pod) -> Result<Up> {
        self.serial += 1;
        let name = format!("bench-{}", self.serial);
        let config = self.sandbox_config(&name);
        // As kubelet does.
        std::fs::create_dir(&config.log_directory)?;
        let run = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: self.handler.clone() };
        let start = Instant::now();
        let sandbox_id = self.runtime.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
        pod.push(op::RUN, start.elapsed());
        if self.own_network {
            self.check_address(&sandbox_id).await?;
        }

        let create = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.clone(),
            config: Some(self.container_config(&name, command)),
            sandbox_config: Some(config),
        };
        let start = Instant::now();
        let container_id = self.runtime.create_container(create).await?.into_inner().container_id;
        pod.push(op::CREATE, start.elapsed());

        let request = cri::StartContainerRequest { container_id: container_id.clone() };
        let start = Instant::now();
        self.runtime.start_container(request).await?;
        pod.push(op::START, start.elapsed());

        self.await_ready(&name).await?;
        Ok(Up { name, sandbox_id, container_id })
    }

    /// One more container in a pod, whose output nobody waits for.
    pub async fn add(&mut self, up: &Up, command: &[&str]) -> Result<()> {
        self.serial += 1;
        let mut config = self.container_config(&format!("{}-{}", up.name, self.serial), command);
        config.log_path = format!("{}.log", self.serial);
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: up.sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(&up.name)),
        };
        let container_id = self.runtime.create_container(create).await?.into_inner().container_id;
        self.runtime.start_container(cri::StartContainerRequest { container_id }).await?;
        Ok(())
    }

    /// Stops and removes a pod with all that is in it.
    pub async fn kill(&mut self, up: &Up) -> Result<()> {
        let pod_sandbox_id = || up.sandbox_id.clone();
        self.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id() }).await?;
        self.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id() }).await?;
        Ok(())
    }

    /// Where the workload's output goes.
    pub fn log(&self, up: &Up) -> PathBuf {
        self.logs.join(&up.name).join("workload.log")
    }

    /// A URL for the streams of a command, but for its input and its errors.
    pub async fn exec_url(&mut self, up: &Up, command: &[&str]) -> Result<String> {
        let request = cri::ExecRequest {
            container_id: up.container_id.clone(),
            cmd: words(command),
            stdout: true,
            ..Default::default()
        };
        Ok(self.runtime.exec(request).await?.into_inner().url)
    }

    /// A URL for connections into a pod.
    pub async fn forward_url(&mut self, up: &Up) -> Result<String> {
        let request = cri::PortForwardRequest { pod_sandbox_id: up.sandbox_id.clone(), port: Vec::new() };
        Ok(self.runtime.port_forward(request).await?.into_inner().url)
    }

    /// How many containers and pods are listed.
    pub async fn lists(&mut self) -> Result<(usize, usize)> {
        let containers = self.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner();
        let pods = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner();
        Ok((containers.containers.len(), pods.items.len()))
    }

    /// How many containers' stats are listed.
    pub async fn stats(&mut self) -> Result<usize> {
        let stats = self.runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await?.into_inner();
        Ok(stats.stats.len())
    }

    async fn exec(&mut self, up: &Up, pod: &mut Pod) -> Result<()> {
        let start = Instant::now();
        self.exec_sync(up, &["/bin/true"]).await?;
        pod.push(op::EXEC, start.elapsed());
        Ok(())
    }

    /// Runs a command, which must succeed.
    pub async fn exec_sync(&mut self, up: &Up, command: &[&str]) -> Result<()> {
        let request = cri::ExecSyncRequest { container_id: up.container_id.clone(), cmd: words(command), timeout: 10 };
        match self.runtime.exec_sync(request).await?.into_inner().exit_code {
            0 => Ok(()),
            code => Err(format!("{command:?} exited with {code}").into()),
        }
    }

    /// Stop and remove the container, then the sandbox.
    pub async fn down(&mut self, up: &Up, pod: &mut Pod) -> Result<()> {
        let container_id = || up.container_id.clone();
        let request = cri::StopContainerRequest { container_id: container_id(), timeout: 10 };
        let start = Instant::now();
        self.runtime.stop_container(request).await?;
        pod.push(op::STOP, start.elapsed());
        self.check_obeyed(container_id()).await?;

        let start = Instant::now();
        self.runtime.remove_container(cri::RemoveContainerRequest { container_id: container_id() }).await?;
        pod.push(op::REMOVE, start.elapsed());

        let pod_sandbox_id = || up.sandbox_id.clone();
        let start = Instant::now();
        self.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id() }).await?;
        pod.push(op::STOP_POD, start.elapsed());

        let start = Instant::now();
        self.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id() }).await?;
        pod.push(op::REMOVE_POD, start.elapsed());
        Ok(())
    }

    /// A stop that had to kill would not be the one that is measured.
    async fn check_obeyed(&mut self, container_id: String) -> Result<()> {
        let request = cri::ContainerStatusRequest { container_id, verbose: false };
        let status = self.runtime.container_status(request).await?.into_inner().status.unwrap_or_default();
        if status.state() != cri::ContainerState::ContainerExited || status.exit_code != 0 {
            return Err(
                format!("after its stop the workload is {:?}, exit code {}", status.state(), status.exit_code).into()
            );
        }
        Ok(())
    }

    /// A pod without an address would be made in no time.
    async fn check_address(&mut self, sandbox_id: &str) -> Result<()> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox_id.to_owned(), verbose: false };
        let status = self.runtime.pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default();
        let ip = status.network.unwrap_or_default().ip;
        if ip.is_empty() { Err("the pod has no address".into()) } else { Ok(()) }
    }

    async fn await_ready(&self, name: &str) -> Result<()> {
        let log = self.logs.join(name).join("workload.log");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains(READY)) {
            if Instant::now() > deadline {
                return Err(format!("{} never said that the workload is ready", log.display()).into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn sandbox_config(&self, name: &str) -> cri::PodSandboxConfig {
        let security_context = cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(self.own_network)),
            seccomp: Some(unconfined()),
            ..Default::default()
        };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            log_directory: self.logs.join(name).to_string_lossy().into_owned(),
            labels: BTreeMap::from([("app".to_owned(), "bench".to_owned())]),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(security_context),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container_config(&self, name: &str, command: &[&str]) -> cri::ContainerConfig {
        let (key, value) = WORKLOAD_MARK.split_once('=').unwrap_or_default();
        let resources = cri::LinuxContainerResources {
            cpu_shares: CPU_SHARES,
            memory_limit_in_bytes: MEMORY_LIMIT_BYTES,
            oom_score_adj: OOM_SCORE_ADJ,
            ..Default::default()
        };
        let security_context = cri::LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(self.own_network)),
            seccomp: Some(unconfined()),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: format!("{name}-workload"), attempt: 0 }),
            image: Some(cri::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: words(command),
            envs: vec![cri::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() }],
            log_path: "workload.log".to_owned(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security_context),
            }),
            ..Default::default()
        }
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

/// The host's network or the pod's own; a PID namespace for the container and an IPC namespace for the pod.
fn namespaces(own_network: bool) -> cri::NamespaceOption {
    let mut options = cri::NamespaceOption::default();
    options.set_network(if own_network { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Node });
    options.set_pid(cri::NamespaceMode::Container);
    options.set_ipc(cri::NamespaceMode::Pod);
    options
}

fn unconfined() -> cri::SecurityProfile {
    let mut profile = cri::SecurityProfile::default();
    profile.set_profile_type(cri::security_profile::ProfileType::Unconfined);
    profile
}
