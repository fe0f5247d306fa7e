//! Containers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aril::api::cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, Device, ExecSyncRequest, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, Mount, MountPropagation, PodSandboxConfig,
    RemoveContainerRequest, ReopenContainerLogRequest, StartContainerRequest, StopContainerRequest,
    UpdateContainerResourcesRequest,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tonic::Status;

use super::logs::{self, LogLine};
use super::{PATIENCE, Pod, TestNode, kernel, wait_for};

/// What kubelet asks to be hidden and kept read-only.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A container about to be created.
#[derive(Clone)]
pub struct ContainerBuilder<'n> {
    node: &'n TestNode,
    sandbox_id: String,
    sandbox: PodSandboxConfig,
    /// What will be asked for.
    pub config: ContainerConfig,
}

impl<'n> ContainerBuilder<'n> {
    pub(super) fn new(pod: &Pod<'n>, command: Vec<String>) -> Self {
        let name = format!("c{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let namespaces = pod.config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.namespace_options.clone());
        let security = LinuxContainerSecurityContext {
            namespace_options: namespaces,
            masked_paths: MASKED.map(str::to_owned).to_vec(),
            readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
            ..LinuxContainerSecurityContext::default()
        };
        let config = ContainerConfig {
            log_path: format!("{name}.log"),
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            image: Some(ImageSpec { image: "probe".to_owned(), ..ImageSpec::default() }),
            command,
            linux: Some(LinuxContainerConfig { security_context: Some(security), resources: None }),
            ..ContainerConfig::default()
        };
        Self::from_config(pod, config)
    }

    pub(super) fn from_config(pod: &Pod<'n>, config: ContainerConfig) -> Self {
        Self { node: pod.node, sandbox_id: pod.id.clone(), sandbox: pod.config.clone(), config }
    }

    /// Changes anything of the request.
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the security context.
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.with(|c| change(c.linux.get_or_insert_default().security_context.get_or_insert_default()))
    }

    /// Changes the limits.
    pub fn resources(self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.with(|c| change(c.linux.get_or_insert_default().resources.get_or_insert_default()))
    }

    /// Of another image.
    pub fn image(self, reference: &str) -> Self {
        self.with(|c| c.image.get_or_insert_default().image = reference.to_owned())
    }

    /// A bind mount.
    pub fn mount(self, host_path: &std::path::Path, container_path: &str) -> Self {
        self.mount_with(host_path, container_path, |_| {})
    }

    /// A bind mount with more to it.
    pub fn mount_with(
        self,
        host_path: &std::path::Path,
        container_path: &str,
        change: impl FnOnce(&mut Mount),
    ) -> Self {
        let mut mount = Mount {
            host_path: host_path.display().to_string(),
            container_path: container_path.to_owned(),
            ..Mount::default()
        };
        change(&mut mount);
        self.with(|c| c.mounts.push(mount))
    }

    /// A bind mount with this propagation.
    pub fn mount_propagating(self, host_path: &std::path::Path, at: &str, propagation: MountPropagation) -> Self {
        self.mount_with(host_path, at, |m| m.propagation = propagation.into())
    }

    /// A device of the node.
    pub fn device(self, host_path: &str, container_path: &str, permissions: &str) -> Self {
        let device = Device {
            host_path: host_path.to_owned(),
            container_path: container_path.to_owned(),
            permissions: permissions.to_owned(),
        };
        self.with(|c| c.devices.push(device))
    }

    /// An environment variable.
    pub fn env(self, key: &str, value: &str) -> Self {
        let pair = KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() };
        self.with(|c| c.envs.push(pair))
    }

    /// Creates it.
    pub fn try_create(self) -> Result<Container<'n>, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id,
            config: Some(self.config.clone()),
            sandbox_config: Some(self.sandbox.clone()),
        };
        let answer = self.node.cri().runtime(|mut c| async move { c.create_container(request).await })?;
        let log_directory = self.sandbox.log_directory;
        Ok(Container { node: self.node, id: answer.container_id, log_directory, config: self.config })
    }

    /// Creates it, which must work.
    pub fn create(self) -> Container<'n> {
        self.try_create().unwrap_or_else(|e| panic!("create a container: {e}"))
    }

    /// Creates and starts it.
    pub fn try_run(self) -> Result<Container<'n>, Status> {
        let container = self.try_create()?;
        container.start()?;
        Ok(container)
    }

    /// Creates and starts it, which must work.
    pub fn run(self) -> Container<'n> {
        self.try_run().unwrap_or_else(|e| panic!("run a container: {e}"))
    }

    /// What the probe reports as the container's first process.
    pub fn report(self) -> Value {
        let container = self.with(|c| c.command = vec!["/probe".into(), "report".into()]).run();
        let status = container.wait_exited();
        assert_eq!(status.exit_code, 0, "{}: {}", status.message, container.log());
        serde_json::from_str(&container.log()).expect("a report in JSON")
    }
}

/// What a command in a container did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code, 128 + signal number if killed.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

/// A container that was created.
#[derive(Clone)]
pub struct Container<'n> {
    node: &'n TestNode,
    /// CRI's id of it.
    pub id: String,
    log_directory: String,
    /// What was asked for.
    pub config: ContainerConfig,
}

impl Container<'_> {
    /// The same container by another id.
    pub fn called(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    /// `StartContainer`.
    pub fn start(&self) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.node.cri().runtime(|mut c| async move { c.start_container(request).await }).map(drop)
    }

    /// `StopContainer` with a grace in seconds.
    pub fn stop(&self, grace: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        self.node.cri().runtime(|mut c| async move { c.stop_container(request).await }).map(drop)
    }

    /// `RemoveContainer`.
    pub fn remove(&self) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.node.cri().runtime(|mut c| async move { c.remove_container(request).await }).map(drop)
    }

    /// `ReopenContainerLog`.
    pub fn reopen_log(&self) -> Result<(), Status> {
        let request = ReopenContainerLogRequest { container_id: self.id.clone() };
        self.node.cri().runtime(|mut c| async move { c.reopen_container_log(request).await }).map(drop)
    }

    /// `UpdateContainerResources`.
    pub fn update(&self, change: impl FnOnce(&mut LinuxContainerResources)) -> Result<(), Status> {
        let mut linux = LinuxContainerResources::default();
        change(&mut linux);
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        };
        self.node.cri().runtime(|mut c| async move { c.update_container_resources(request).await }).map(drop)
    }

    /// `ContainerStatus`.
    pub fn try_status(&self) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = self.node.cri().runtime(|mut c| async move { c.container_status(request).await })?;
        Ok(answer.status.expect("a status"))
    }

    /// `ContainerStatus` of a container that must be there.
    pub fn status(&self) -> ContainerStatus {
        self.try_status().unwrap_or_else(|e| panic!("status of container {}: {e}", self.id))
    }

    /// Its state alone.
    pub fn state(&self) -> ContainerState {
        self.status().state()
    }

    /// Waits until it has ended.
    pub fn wait_exited(&self) -> ContainerStatus {
        wait_for("the container's end", PATIENCE, || {
            Some(self.status()).filter(|s| s.state() == ContainerState::ContainerExited)
        })
    }

    /// `ExecSync` with a limit in seconds, 0 for none.
    pub fn try_exec<'a>(&self, command: impl IntoIterator<Item = &'a str>, limit: i64) -> Result<Output, Status> {
        let cmd = command.into_iter().map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout: limit };
        let answer = self.node.cri().runtime(|mut c| async move { c.exec_sync(request).await })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Output { code: answer.exit_code, stdout: text(&answer.stdout), stderr: text(&answer.stderr) })
    }

    /// `ExecSync`, which must get an answer.
    pub fn exec<'a>(&self, command: impl IntoIterator<Item = &'a str>) -> Output {
        self.try_exec(command, 20).unwrap_or_else(|e| panic!("exec: {e}"))
    }

    /// The stdout of a shell script that must succeed, trimmed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.exec(["sh", "-c", script]);
        assert_eq!(output.code, 0, "{script}: {output:?}");
        output.stdout.trim().to_owned()
    }

    /// What the probe reports when it is executed in the container.
    pub fn report(&self) -> Value {
        serde_json::from_str(&self.exec(["/probe", "report"]).stdout).expect("a report in JSON")
    }

    /// The lines of its log.
    pub fn log_lines(&self) -> Vec<LogLine> {
        logs::read(&self.log_path())
    }

    /// All it wrote to stdout.
    pub fn log(&self) -> String {
        logs::text(&self.log_lines(), "stdout")
    }

    /// Where its log is.
    pub fn log_path(&self) -> std::path::PathBuf {
        std::path::Path::new(&self.log_directory).join(&self.config.log_path)
    }

    /// Waits until its stdout contains the text.
    pub fn wait_log(&self, text: &str) -> String {
        wait_for(&format!("{text:?} in the log"), PATIENCE, || Some(self.log()).filter(|l| l.contains(text)))
    }

    /// Its processes, seen from the node.
    pub fn pids(&self) -> Vec<i32> {
        kernel::pids_in_cgroup(&self.id)
    }

    /// Its first process: the one that is number 1 in the innermost PID namespace, else the oldest.
    pub fn init_pid(&self) -> i32 {
        let pids = self.pids();
        let is_first = |&&pid: &&i32| {
            let status = kernel::read_proc(pid, "status");
            status.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1"))
        };
        let found = pids.iter().find(is_first).or(pids.iter().min());
        *found.unwrap_or_else(|| panic!("container {} has no process", self.id))
    }

    /// Sends its first process a signal from outside.
    pub fn kill(&self, signal: Signal) {
        kernel::kill(self.init_pid(), signal);
    }

    /// The content of a cgroup file: of the v1 controller, or on v2 of that name.
    pub fn cgroup(&self, controller: &str, v1: &str, v2: &str) -> String {
        let dir = kernel::cgroup_of(self.init_pid(), controller);
        let path = if dir.join(v1).exists() { dir.join(v1) } else { dir.join(v2) };
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())).trim().to_owned()
    }
}
