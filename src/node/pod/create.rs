//! Creating a container: from the CRI config to an init held right before its program.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::container::{Doing, Entry, erase};
use super::ending::limited;
use super::{Done, KILL_DEADLINE, Pod, Reply, answer, answer_all, chain};
use crate::api::cri;
use crate::compile::compile;
use crate::disk::{self, Durability};
use crate::id::ContainerId;
use crate::image::{Hold, Image};
use crate::node::error::NodeError;
use crate::node::record::{ContainerRecord, ImageVolume, SandboxRecord, User, VERSION, container_name};
use crate::node::state::{ContainerEvent, ContainerState};
use crate::node::timeline::{self, Operation, Recorder};
use crate::node::{Node, machine, now, spec};
use crate::plan;
use crate::wire::client::{Shim, WireError};
use crate::wire::session::Created;

/// How long the kernel work of a container may take: its volumes may lie on slow filesystems.
const CREATE_DEADLINE: Duration = Duration::from_secs(100);

/// The step of a container's building that mounts images, as the shim calls it.
const IMAGE_VOLUMES: &str = "image volumes";

/// Everything decided, nothing done.
struct Prepared {
    record: ContainerRecord,
    hold: Hold,
    plan: plan::Container,
    spec: Vec<u8>,
}

/// How a creation ended.
#[derive(Debug)]
pub(super) enum Creation {
    Done(Created, Recorder),
    Undone(NodeError),
    /// It failed and not even that could be undone.
    Stuck(NodeError, NodeError),
}

impl Pod {
    pub(super) fn create_container(&mut self, config: cri::ContainerConfig, reply: Reply<ContainerId>) {
        if let Some(id) = self.named(&config) {
            return self.join_create(&id, &config, reply);
        }
        let shim = match (&self.shim, self.doing) {
            (Some(shim), super::Doing::Nothing) if self.record.state.is_ready() => shim.clone(),
            _ => return answer(reply, Err(self.refused("create a container in it"))),
        };
        let mut recorder = Recorder::begin("CreateContainer");
        let prepared =
            self.check_target(&config).and_then(|()| prepare(&self.node, &self.record, config, &mut recorder));
        let Prepared { record, hold, plan, spec } = match prepared {
            Ok(prepared) => prepared,
            Err(e) => return answer(reply, Err(e)),
        };
        let id = record.id.clone();
        let record = Arc::new(record);
        let mut entry = Entry::new(Arc::clone(&record), hold);
        entry.doing = Doing::Creating(vec![reply]);
        self.containers.insert(id.clone(), entry);
        let node = Arc::clone(&self.node);
        self.ops.push(async move {
            let creation = create(&node, &shim, &record, &plan, &spec, recorder).await;
            Done::Created(id, Box::new(creation))
        });
    }

    /// The container that has the name and attempt of `config`.
    fn named(&self, config: &cri::ContainerConfig) -> Option<ContainerId> {
        let name = container_name(config);
        self.containers.iter().find(|(_, entry)| entry.record.name() == name).map(|(id, _)| id.clone())
    }

    /// The container whose PID namespace is to be joined must run in this pod.
    fn check_target(&self, config: &cri::ContainerConfig) -> Result<(), NodeError> {
        let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = context.and_then(|s| s.namespace_options.as_ref());
        let Some(target) = options.filter(|o| o.pid() == cri::NamespaceMode::Target).map(|o| &o.target_id) else {
            return Ok(());
        };
        let running = |entry: &Entry| entry.record.id.as_str() == target && entry.record.state.is_running();
        if self.containers.values().any(running) {
            return Ok(());
        }
        let field = "config.linux.security_context.namespace_options.target_id";
        Err(NodeError::invalid(field, format!("{target:?} is no running container of this pod")))
    }

    /// A CreateContainer with the name of one there is.
    fn join_create(&mut self, id: &ContainerId, config: &cri::ContainerConfig, reply: Reply<ContainerId>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let difference = match (&mut entry.doing, &entry.record.state) {
            _ if *entry.record.config != *config => "and its config is another one",
            (Doing::Creating(waiters), _) => return waiters.push(reply),
            (_, ContainerState::Created { .. } | ContainerState::Running { .. }) => {
                return answer(reply, Ok(id.clone()));
            }
            (_, ContainerState::Removing { .. }) => "but is being removed",
            _ => "but has exited",
        };
        let (name, attempt) = entry.record.name();
        let name = format!("{name} (attempt {attempt})");
        answer(reply, Err(NodeError::Exists { object: "container", name, id: id.short().to_owned(), difference }));
    }

    pub(super) fn on_created(&mut self, id: &ContainerId, creation: Creation) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let mut waiters = match std::mem::replace(&mut entry.doing, Doing::Nothing) {
            Doing::Creating(waiters) => waiters,
            _ => Vec::new(),
        };
        match creation {
            Creation::Done(created, recorder) => {
                let pid = created.pid;
                let operation = fill(Arc::make_mut(&mut entry.record), created, recorder);
                debug!(container = %id, elapsed_us = operation.elapsed_us, steps = ?operation.steps, "container made");
                timeline::keep(&mut Arc::make_mut(&mut entry.record).timeline, operation);
                for warning in &entry.record.warnings {
                    warn!(container = %id, "{warning}");
                }
                self.apply(id, &ContainerEvent::Created { pid });
                // Also if it has ended already, which changes its state no more.
                self.publish_container(id);
                info!(container = %id, sandbox = %self.record.id, pid, "container created");
                answer_all(&mut waiters, Ok(id.clone()));
            }
            Creation::Undone(e) => {
                self.containers.remove(id);
                answer_all(&mut waiters, Err(&Arc::new(e)));
            }
            Creation::Stuck(e, left) => {
                // Shown as exited, so that whoever asked for it can remove it.
                warn!(container = %id, error = %chain(&left), "half-made container not undone");
                self.apply(id, &ContainerEvent::Lost { at: now(), message: chain(&e) });
                self.publish_container(id);
                answer_all(&mut waiters, Err(&Arc::new(e)));
            }
        }
    }
}

/// What the creation found out.
fn fill(record: &mut ContainerRecord, created: Created, mut recorder: Recorder) -> Operation {
    let plan::ResolvedUser { uid, gid, groups, .. } = created.user;
    record.user = Some(User { uid, gid, groups });
    record.warnings.extend(created.warnings);
    recorder.parts("shim", created.steps);
    recorder.end()
}

/// All of the creation that needs no kernel.
fn prepare(
    node: &Node,
    sandbox: &SandboxRecord,
    config: cri::ContainerConfig,
    recorder: &mut Recorder,
) -> Result<Prepared, NodeError> {
    let reference = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
    if reference.is_empty() {
        return Err(spec::SpecError::Invalid { field: "image.image".to_owned(), reason: "missing".to_owned() }.into());
    }
    let image = node.images.get(reference).ok_or_else(|| NodeError::NoImage(reference.to_owned()))?;
    let image_volumes = image_volumes(node, &config)?;
    let held: Vec<String> = image.layers.iter().chain(image_volumes.iter().flat_map(|v| &v.layers)).cloned().collect();
    let hold = node.images.hold(&held);
    if !node.images.has_layers(&held) {
        // Removed between the look-up and the hold.
        return Err(NodeError::NoImage(reference.to_owned()));
    }
    recorder.lap("image");
    let id = node.new_container_id()?;
    let (spec, extra) = spec::container_spec(&spec::Input {
        id: &id,
        sandbox: &sandbox.config,
        config: &config,
        image: image_defaults(&image),
        paths: &paths(node, sandbox, &id, &image),
        image_volumes: &image_volumes.iter().map(|v| volume_paths(node, v)).collect::<Vec<_>>(),
        defaults: &node.defaults,
        devices: &machine::devices,
    })?;
    recorder.lap("spec");
    let plan = compile(&spec, &extra)?;
    let spec = serde_json::to_vec_pretty(&spec).map_err(std::io::Error::from);
    let spec = spec.map_err(NodeError::io("encode", node.settings.container_spec(&id)))?;
    let record = ContainerRecord {
        version: VERSION,
        id,
        sandbox: sandbox.id.clone(),
        state: ContainerState::Creating,
        created_at: now(),
        image_id: image.id.clone(),
        image_name: image_name(&image, &config),
        layers: image.layers.clone(),
        image_volumes,
        log_path: plan.stdio.as_ref().map(|s| s.log_path.clone()).unwrap_or_default(),
        stop_signal: plan.stop_signal,
        user: None,
        resources: config.linux.as_ref().and_then(|l| l.resources.clone()),
        warnings: extra.warnings,
        timeline: Vec::new(),
        unreachable: false,
        config: Arc::new(config),
    };
    recorder.lap("plan");
    Ok(Prepared { record, hold, plan, spec })
}

/// The images that are mounted as volumes. They must have been pulled before, as the container's own.
fn image_volumes(node: &Node, config: &cri::ContainerConfig) -> Result<Vec<ImageVolume>, NodeError> {
    let mut volumes = Vec::new();
    for (mount, asked) in config.mounts.iter().enumerate() {
        let Some(spec) = &asked.image else { continue };
        let image = node.images.get(&spec.image).ok_or_else(|| NodeError::NoVolumeImage {
            field: format!("mounts[{mount}].image"),
            image: spec.image.clone(),
        })?;
        volumes.push(ImageVolume { mount, image_id: image.id.clone(), layers: image.layers.clone() });
    }
    Ok(volumes)
}

fn volume_paths(node: &Node, volume: &ImageVolume) -> spec::ImageVolume {
    let layers = volume.layers.iter().map(|key| node.images.layer_path(key)).chain([node.settings.empty()]);
    // The root was checked to be text when the configuration was read.
    let layers = layers.map(|path| path.to_string_lossy().into_owned()).collect();
    spec::ImageVolume { mount: volume.mount, id: volume.image_id.clone(), layers }
}

fn image_defaults(image: &Image) -> spec::Image<'_> {
    let config = &image.config;
    spec::Image {
        user: &config.user,
        env: &config.env,
        entrypoint: &config.entrypoint,
        cmd: &config.cmd,
        working_dir: &config.working_dir,
        stop_signal: &config.stop_signal,
    }
}

fn paths(node: &Node, sandbox: &SandboxRecord, id: &ContainerId, image: &Image) -> spec::Paths {
    // Both roots were checked to be text when the configuration was read.
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let (dir, etc) = (node.settings.container(id), node.settings.etc(&sandbox.id));
    spec::Paths {
        layers: image.layers.iter().map(|key| text(node.images.layer_path(key))).collect(),
        upper: text(dir.join("upper")),
        work: text(dir.join("work")),
        hosts: text(etc.join("hosts")),
        hostname: text(etc.join("hostname")),
        resolv_conf: text(etc.join("resolv.conf")),
    }
}

/// The name a person would know the image by: kubelet asks for images by their id.
fn image_name(image: &Image, config: &cri::ContainerConfig) -> String {
    let spec = config.image.clone().unwrap_or_default();
    if !image.id.as_str().trim_start_matches("sha256:").starts_with(spec.image.trim_start_matches("sha256:")) {
        return spec.image;
    }
    if !spec.user_specified_image.is_empty() {
        return spec.user_specified_image;
    }
    image.repo_tags.iter().chain(&image.repo_digests).next().cloned().unwrap_or(spec.image)
}

/// Makes a container, or undoes what was made of it.
async fn create(
    node: &Arc<Node>,
    shim: &Shim,
    record: &ContainerRecord,
    plan: &plan::Container,
    spec: &[u8],
    mut recorder: Recorder,
) -> Creation {
    match try_create(node, shim, record, plan, spec, &mut recorder).await {
        Ok(created) => Creation::Done(created, recorder),
        Err(e) => match undo(node, shim, record).await {
            Ok(()) => Creation::Undone(e),
            Err(left) => Creation::Stuck(e, left),
        },
    }
}

async fn try_create(
    node: &Node,
    shim: &Shim,
    record: &ContainerRecord,
    plan: &plan::Container,
    spec: &[u8],
    recorder: &mut Recorder,
) -> Result<Created, NodeError> {
    node.store.save_container(record)?;
    let settings = &node.settings;
    make_dirs(&settings.container(&record.id), plan)?;
    node.store.save_copy(record)?;
    let path = settings.container_spec(&record.id);
    disk::write_atomic(&path, spec, Durability::Process).map_err(NodeError::io("write", &path))?;
    recorder.lap("files");
    let created =
        limited("create container", record.id.short(), CREATE_DEADLINE, shim.create(record.id.as_str(), plan)).await;
    recorder.lap("shim");
    created.map_err(|e| match e {
        NodeError::Shim { source: WireError::Shim { step, message, .. }, .. } if step == IMAGE_VOLUMES => {
            NodeError::ImageVolume(message)
        }
        e => e,
    })
}

/// The writable layer: its root is the container's, so it looks like that of the image.
fn make_dirs(dir: &Path, plan: &plan::Container) -> Result<(), NodeError> {
    disk::private_dir(dir).map_err(NodeError::io("make directory", dir))?;
    let Some(rootfs) = &plan.rootfs else { return Ok(()) };
    let upper = Path::new(&rootfs.upper);
    for path in [upper, Path::new(&rootfs.work)] {
        if !path.as_os_str().is_empty() {
            DirBuilder::new().mode(0o755).create(path).map_err(NodeError::io("make directory", path))?;
        }
    }
    if let Some(lower) = rootfs.lower.first().filter(|_| !upper.as_os_str().is_empty()) {
        let root = std::fs::metadata(lower).map_err(NodeError::io("look at layer", lower))?;
        chown(upper, Some(root.uid()), Some(root.gid())).map_err(NodeError::io("chown", upper))?;
        let mode = Permissions::from_mode(root.mode() & 0o7777);
        std::fs::set_permissions(upper, mode).map_err(NodeError::io("chmod", upper))?;
    }
    Ok(())
}

async fn undo(node: &Arc<Node>, shim: &Shim, record: &ContainerRecord) -> Result<(), NodeError> {
    match timeout(KILL_DEADLINE, shim.delete(record.id.as_str(), true)).await {
        Ok(Ok(()) | Err(WireError::Gone)) => {}
        Ok(Err(e)) => return Err(NodeError::shim("undo container", record.id.short())(e)),
        Err(_) => {
            let object = record.id.short().to_owned();
            let hint = crate::node::error::STUCK;
            return Err(NodeError::Deadline { step: "undo container", object, limit: KILL_DEADLINE, hint });
        }
    }
    erase(node, record.sandbox.clone(), record.id.clone()).await
}
