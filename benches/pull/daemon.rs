//! The daemons that pull.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aril::api::cri;
use aril::api::service::cri::image_service_client::ImageServiceClient;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::arena::{Arena, Stage};
use crate::channel::channel;
use crate::packages::first_line;
use crate::usage::Usage;
use crate::{Args, Result, Runtime, absolute};

/// One daemon in an arena of its own, without any image.
#[derive(Debug)]
pub struct Daemon {
    // Goes before the arena.
    images: ImageServiceClient<Channel>,
    arena: Arena,
}

impl Daemon {
    pub async fn start(runtime: Runtime, args: &Args, stage: &Stage) -> Result<Daemon> {
        let mut arena = Arena::new(stage, runtime.name())?;
        let socket = arena.dir.join("cri.sock");
        let config = arena.dir.join("config.toml");
        match runtime {
            Runtime::Aril => {
                fs::write(&config, aril_config(&arena, &absolute(&args.shim)?, &socket))?;
                let program = absolute(&args.aril)?;
                arena.start(&program, &["serve".into(), "--config".into(), config.into()])?;
            }
            Runtime::Containerd => {
                fs::write(&config, containerd_config(&arena, &socket))?;
                arena.start(&args.containerd, &["--config".into(), config.into()])?;
            }
        }
        let mut images = ImageServiceClient::new(channel(&socket));
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(status) = images.list_images(cri::ListImagesRequest::default()).await {
            arena.check_daemon()?;
            if Instant::now() > deadline {
                return Err(format!("{} gives no answer: {status}", runtime.name()).into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Daemon { images, arena })
    }

    pub async fn pull(&mut self, reference: &str) -> Result<()> {
        let image = cri::ImageSpec { image: reference.to_owned(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(image), ..Default::default() };
        match self.images.pull_image(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(format!("pull {reference}: {status}; the log ends: {}", self.arena.log_tail()).into()),
        }
    }

    /// Where it keeps its data.
    pub fn root(&self) -> PathBuf {
        self.arena.dir.join("root")
    }

    /// What it and everything it started have used so far; the peak counts from the last call.
    pub fn usage(&self) -> Result<Usage> {
        Usage::read(&self.arena.family())
    }
}

fn aril_config(arena: &Arena, shim: &Path, socket: &Path) -> String {
    format!(
        "root = \"{}/root\"\nstate = \"/run/aril\"\nsocket = \"{}\"\nshim = \"{}\"\nshim_cgroup = \"{}/shims\"\n",
        arena.dir.display(),
        socket.display(),
        shim.display(),
        arena.cgroup
    )
}

/// Its defaults, inside its arena.
fn containerd_config(arena: &Arena, socket: &Path) -> String {
    let dir = arena.dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/cni"
conf_dir = "{dir}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
"#,
        socket.display()
    )
}

/// What the table says about a runtime.
///
/// # Errors
/// Says what is missing and how to get it.
pub fn version(runtime: Runtime, args: &Args) -> Result<String> {
    match runtime {
        Runtime::Aril => first_line("aril", &args.aril),
        // "containerd github.com/containerd/containerd 1.6.20~ds1 …"
        Runtime::Containerd => {
            let line = first_line("containerd", &args.containerd)?;
            Ok(format!("containerd {}", line.split_whitespace().nth(2).unwrap_or_default()))
        }
    }
}
