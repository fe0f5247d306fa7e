//! The network of pods, for people.

use tonic::Status;

use super::error::status as error;
use crate::api::cri;
use crate::api::node::*;
use crate::id::SandboxId;
use crate::net::{self, Attachment, Overview};
use crate::node::{Node, SandboxRecord};

/// Every driver.
pub(super) async fn list(node: &Node) -> ListNetworksResponse {
    let overview = node.network().overview().await;
    ListNetworksResponse { networks: overview.iter().map(network).collect() }
}

/// One driver: that of the next pod, if none is named.
pub(super) async fn inspect(node: &Node, driver: &str) -> Result<InspectNetworkResponse, Status> {
    let overview = node.network().overview().await;
    let is_wanted = |o: &&Overview| if driver.is_empty() { o.chosen } else { o.driver == driver };
    let Some(found) = overview.iter().find(is_wanted) else {
        let names: Vec<&str> = overview.iter().map(|o| o.driver).collect();
        let message = match driver {
            "" => "pods are connected to no network now".to_owned(),
            name => format!("no network driver is called {name:?}: there are {}", names.join(", ")),
        };
        return Err(Status::not_found(message));
    };
    let leftovers = node.network().leftovers().into_iter().flat_map(|(_, left)| left);
    Ok(InspectNetworkResponse {
        network: Some(network(found)),
        pods: found.pods.iter().map(|(id, attachment)| pod(node, id, attachment)).collect(),
        details: found.details.to_string(),
        leftovers: leftovers.map(|left| format!("{}: {}", left.what, left.reason)).collect(),
    })
}

/// Takes away what outlives pods.
pub(super) async fn reset(node: &Node) -> Result<SystemResetResponse, Status> {
    let pods = node.counts().0;
    if pods > 0 {
        let pods = if pods == 1 { "is a pod".to_owned() } else { format!("are {pods} pods") };
        let message = format!("there {pods}: remove what is there first, with `aril rm --force`");
        return Err(Status::failed_precondition(message));
    }
    let left = node.reset_network().await.map_err(|e| error(&e))?;
    Ok(SystemResetResponse { left })
}

fn network(overview: &Overview) -> Network {
    Network {
        driver: overview.driver.to_owned(),
        chosen: overview.chosen,
        problem: overview.problem.clone().unwrap_or_default(),
        pods: u32::try_from(overview.pods.len()).unwrap_or(u32::MAX),
    }
}

/// Every pod that is connected, from memory.
pub(super) fn pods(node: &Node) -> ListNetworkPodsResponse {
    let connected = |record: std::sync::Arc<SandboxRecord>| {
        let attachment = record.network.as_ref()?;
        Some(pod_of(record.config.metadata.as_ref(), &record.id, attachment))
    };
    ListNetworkPodsResponse { pods: node.sandboxes().into_iter().filter_map(connected).collect() }
}

fn pod(node: &Node, id: &SandboxId, attachment: &Attachment) -> NetworkPod {
    // One that is just being made, or removed, has no name for others yet, or any more.
    let record = node.sandbox(id.as_str()).ok();
    pod_of(record.as_ref().and_then(|record| record.config.metadata.as_ref()), id, attachment)
}

fn pod_of(metadata: Option<&cri::PodSandboxMetadata>, id: &SandboxId, attachment: &Attachment) -> NetworkPod {
    NetworkPod {
        name: metadata.map(|m| m.name.clone()).unwrap_or_default(),
        namespace: metadata.map(|m| m.namespace.clone()).unwrap_or_default(),
        driver: attachment.driver.clone(),
        id: id.to_string(),
        network: attachment.network.clone(),
        interface: attachment.interface.clone(),
        addresses: attachment.addresses.iter().map(|a| format!("{}/{}", a.ip, a.prefix)).collect(),
        ports: attachment.ports.iter().map(port).collect(),
    }
}

fn port(port: &net::Ports) -> String {
    let net::Ports { protocol, container_port, host_port, host_ip } = port;
    let host = match host_ip {
        Some(ip) if ip.is_ipv6() => format!("[{ip}]:"),
        Some(ip) => format!("{ip}:"),
        None => String::new(),
    };
    format!("{host}{host_port}:{container_port}/{}", protocol.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_people_know_them() {
        let of = |ip: Option<&str>| {
            let host_ip = ip.map(|ip| ip.parse().unwrap());
            port(&net::Ports { protocol: net::Protocol::Tcp, container_port: 80, host_port: 8080, host_ip })
        };
        assert_eq!(of(None), "8080:80/tcp");
        assert_eq!(of(Some("192.0.2.1")), "192.0.2.1:8080:80/tcp");
        assert_eq!(of(Some("::1")), "[::1]:8080:80/tcp");
    }
}
