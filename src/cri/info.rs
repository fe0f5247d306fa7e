//! What `verbose` adds to a status: one JSON object under the key "info".

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::image::Image;
use crate::net;
use crate::node::{ContainerRecord, Node, SandboxRecord};

type Info = BTreeMap<String, String>;

fn info(value: &Value) -> Info {
    [("info".to_owned(), value.to_string())].into()
}

/// About a sandbox.
pub(super) fn sandbox(node: &Node, record: &SandboxRecord) -> Info {
    info(&json!({
        // The process that holds the pod's namespaces.
        "pid": node.shim_pid(&record.id).unwrap_or_default(),
        "state": record.state,
        "runtimeHandler": record.runtime_handler,
        "runDirectory": node.settings().run(&record.id),
        "overhead": record.overhead,
        "resources": record.resources,
        "network": record.network,
        "networkNamespace": node.network().pin(&record.id),
        "timeline": record.timeline,
        "warnings": record.warnings,
        "config": *record.config,
    }))
}

/// About a container. Environments are part of the config and so of this.
pub(super) fn container(node: &Node, record: &ContainerRecord) -> Info {
    let spec = node.oci_spec(&record.id).and_then(|text| serde_json::from_str::<Value>(&text).ok());
    info(&json!({
        "sandboxID": record.sandbox,
        "pid": record.state.pid().unwrap_or_default(),
        "state": record.state,
        "layers": record.layers,
        "imageVolumes": record.image_volumes,
        "directory": node.settings().container(&record.id),
        "timeline": record.timeline,
        "warnings": record.warnings,
        "config": *record.config,
        "runtimeSpec": spec,
    }))
}

/// About an image.
pub(super) fn image(image: &Image) -> Info {
    let config = &image.config;
    info(&json!({
        "layers": image.layers,
        "imageSpec": { "config": {
            "User": config.user,
            "Env": config.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "WorkingDir": config.working_dir,
            "StopSignal": config.stop_signal,
            "Volumes": config.volumes,
            "Labels": config.labels,
        }},
    }))
}

/// About the runtime.
pub(super) fn runtime(node: &Node, network: &net::Status, streams: Option<std::net::SocketAddr>) -> Info {
    let settings = node.settings();
    let config = json!({
        "root": settings.root,
        "state": settings.state,
        "shim": settings.shim,
        "cgroupParent": settings.cgroup_parent,
        "cgroupVersion": crate::node::cgroup_version(),
        "podCIDR": node.network().pod_cidr(),
        "network": {
            "driver": network.driver,
            "problem": network.problem,
            "configured": settings.network,
            "leftovers": node.network().leftovers().len(),
        },
        // None before the first request for streams.
        "streamAddress": streams,
        "version": env!("CARGO_PKG_VERSION"),
    });
    [("config".to_owned(), config.to_string())].into()
}
