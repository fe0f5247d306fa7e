//! The contestants: how each is found, started and taken through a pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::arena::{Arena, Stage};
use crate::client::{Client, Setting};
use crate::floor::Floor;
use crate::image::Images;
use crate::packages::first_line;
use crate::plugins::{self, Plugins};
use crate::samples::Pod;
use crate::{Network, Result, Runtime};

/// The programs and files of this machine that the runs need.
#[derive(Debug)]
pub struct Host {
    pub aril: PathBuf,
    pub shim: PathBuf,
    pub images: Images,
}

/// One runtime, ready for pods.
#[derive(Debug)]
pub enum Contestant {
    Floor(Floor),
    Plugins(Plugins),
    Daemon(Daemon),
}

impl Contestant {
    pub async fn start(runtime: Runtime, stage: &Stage, host: &Host) -> Result<Contestant> {
        match runtime {
            Runtime::Floor => Ok(Contestant::Floor(Floor::start(stage)?)),
            Runtime::CniPlugins => Ok(Contestant::Plugins(Plugins::start(stage)?)),
            _ => Ok(Contestant::Daemon(Daemon::start(runtime, stage, host, "time").await?)),
        }
    }

    /// One pod from its start to its removal.
    pub async fn pod(&mut self) -> Result<Pod> {
        match self {
            Contestant::Floor(floor) => floor.pod().await,
            Contestant::Plugins(plugins) => plugins.pod().await,
            Contestant::Daemon(daemon) => match daemon.client.pod().await {
                Ok(pod) => Ok(pod),
                Err(error) => {
                    Err(format!("{}: {error}; its log ends: {}", daemon.name, daemon.arena.log_tail()).into())
                }
            },
        }
    }
}

/// A CRI daemon in its arena, with both images imported.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    // First to be dropped is the client.
    pub client: Client,
    pub arena: Arena,
}

impl Daemon {
    pub async fn start(runtime: Runtime, stage: &Stage, host: &Host, purpose: &str) -> Result<Daemon> {
        let mut arena = Arena::new(stage, &format!("{}-{purpose}", runtime.name()))?;
        let own_network = runtime.network() != Network::Host;
        if own_network {
            arena = arena.with_network();
        }
        // Without a configuration there are no CNI pods.
        fs::create_dir(arena.dir.join("net.d"))?;
        if runtime.network() == Network::Cni {
            fs::write(arena.dir.join("net.d/bench.conflist"), plugins::configuration(&arena.dir).to_string())?;
        }
        let socket = arena.dir.join("cri.sock");
        let logs = arena.dir.join("logs");
        fs::create_dir(&logs)?;
        if runtime.is_aril() {
            start_aril(&mut arena, host, &socket, runtime)?;
        } else {
            start_containerd(&mut arena, host, &socket, runtime)?;
        }
        let setting = Setting {
            socket: socket.clone(),
            handler: String::new(),
            image: host.images.busybox.name.clone(),
            cgroup: arena.cgroup.clone(),
            logs,
            own_network,
        };
        let client = Client::connect(setting, || arena.check_daemon()).await?;
        if runtime.is_aril() {
            import(aril_import(host, &socket), &host.images.busybox.path)?;
        } else {
            import(ctr_import(&socket), &host.images.busybox.path)?;
            import(ctr_import(&socket), &host.images.pause.path)?;
        }
        Ok(Daemon { name: runtime.name(), client, arena })
    }
}

fn start_aril(arena: &mut Arena, host: &Host, socket: &Path, runtime: Runtime) -> Result<()> {
    let driver = match runtime.network() {
        Network::Host => "none",
        Network::Bridge => "bridge",
        Network::Cni => "cni",
    };
    let config = arena.dir.join("config.toml");
    let dir = arena.dir.display();
    let (socket, shim) = (socket.display(), fs::canonicalize(&host.shim)?);
    let text = format!(
        "root = \"{dir}/root\"\nstate = \"/run/aril\"\nsocket = \"{socket}\"\nshim = \"{}\"\n\
         shim_cgroup = \"{}/shims\"\n\
         [network]\ndriver = \"{driver}\"\ncni_config_dir = \"{dir}/net.d\"\ncni_plugin_dirs = [\"{}\"]\n",
        shim.display(),
        arena.cgroup,
        plugins::DIRECTORY
    );
    fs::write(&config, text)?;
    arena.start(&fs::canonicalize(&host.aril)?, &["serve".into(), "--config".into(), config.into()])
}

fn start_containerd(arena: &mut Arena, host: &Host, socket: &Path, runtime: Runtime) -> Result<()> {
    let config = arena.dir.join("config.toml");
    fs::write(&config, containerd_config(arena, host, socket, runtime))?;
    arena.start(Path::new("containerd"), &["--config".into(), config.into()])
}

/// Defaults, but for what keeps it inside its arena and what a host without CAP_SYS_RESOURCE needs.
fn containerd_config(arena: &Arena, host: &Host, socket: &Path, runtime: Runtime) -> String {
    let oci = oci(runtime);
    let dir = arena.dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{dir}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "{oci}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{oci}]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{oci}.options]
BinaryName = "{oci}"
SystemdCgroup = false
"#,
        socket = socket.display(),
        pause = host.images.pause.name,
        plugins = plugins::DIRECTORY,
    )
}

fn oci(runtime: Runtime) -> &'static str {
    if matches!(runtime, Runtime::ContainerdCrun | Runtime::ContainerdCrunCni) { "crun" } else { "runc" }
}

fn aril_import(host: &Host, socket: &Path) -> Command {
    let mut command = Command::new(&host.aril);
    command.arg("--socket").arg(socket).args(["image", "import"]);
    command
}

fn ctr_import(socket: &Path) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(["--namespace", "k8s.io", "images", "import"]);
    command
}

fn import(mut command: Command, archive: &Path) -> Result<()> {
    let output = command.arg(archive).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("import {}: {}", archive.display(), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// What the table says about a runtime.
///
/// # Errors
/// Says what is missing and how to get it.
pub fn version(runtime: Runtime, host: &Host) -> Result<String> {
    let containerd = |oci: &str| -> Result<String> {
        let daemon = first_line("containerd", Path::new("containerd"))?;
        // "containerd github.com/containerd/containerd 1.6.20~ds1 …"
        let daemon = daemon.split_whitespace().nth(2).unwrap_or_default();
        Ok(format!("containerd {daemon}, {}", first_line(oci, Path::new(oci))?.replace(" version", "")))
    };
    let aril = || -> Result<String> {
        if !host.shim.exists() {
            return Err(format!("{} is not there: build it with `make`", host.shim.display()).into());
        }
        first_line("aril", &host.aril)
    };
    let version = match runtime {
        Runtime::Floor => format!("kernel {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()),
        Runtime::CniPlugins => String::new(),
        runtime if runtime.is_aril() => aril()?,
        runtime => containerd(oci(runtime))?,
    };
    if runtime.network() == Network::Cni {
        return Ok(format!("{version}, {}", plugins::version()?).trim_start_matches(", ").to_owned());
    }
    Ok(version)
}
