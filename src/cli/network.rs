//! `aril network`: what pods are connected to.

use serde_json::{Value, json};

use super::args::Output;
use super::connect::Daemon;
use super::error::CliError;
use super::inspect;
use super::output::{self, Rows};
use crate::api::node::{InspectNetworkRequest, ListNetworkPodsRequest, ListNetworksRequest, Network, NetworkPod};

/// `aril network ls`.
pub(super) async fn ls(daemon: &mut Daemon, output: Output) -> Result<(), CliError> {
    let networks = daemon.node.list_networks(ListNetworksRequest {}).await?.into_inner().networks;
    if output == Output::Wide {
        let pods = daemon.node.list_network_pods(ListNetworkPodsRequest {}).await?.into_inner().pods;
        return output::print(&format!("{}\n{}", table(&networks), pod_table(&pods)));
    }
    output::print(&match output {
        Output::Json => output::json(&networks.iter().map(document).collect::<Vec<_>>())?,
        Output::Table | Output::Wide => table(&networks),
    })
}

/// The pods of networks, by driver and name.
fn pod_table(pods: &[NetworkPod]) -> String {
    let mut rows = Rows::new(&["DRIVER", "NETWORK", "POD", "NAMESPACE", "POD ID", "ADDRESSES", "PORTS"]);
    let mut sorted: Vec<&NetworkPod> = pods.iter().collect();
    sorted.sort_by_key(|pod| (&pod.driver, &pod.namespace, &pod.name, &pod.id));
    for pod in sorted {
        rows.add([
            pod.driver.clone(),
            pod.network.clone(),
            pod.name.clone(),
            pod.namespace.clone(),
            output::short(&pod.id).to_owned(),
            pod.addresses.join(","),
            pod.ports.join(","),
        ]);
    }
    rows.text()
}

fn document(network: &Network) -> Value {
    let problem = Some(&network.problem).filter(|problem| !problem.is_empty());
    json!({"driver": network.driver, "chosen": network.chosen, "pods": network.pods, "problem": problem})
}

fn table(networks: &[Network]) -> String {
    let mut rows = Rows::new(&["DRIVER", "NEXT POD", "PODS", "PROBLEM"]);
    for network in networks {
        let next = if network.chosen { "yes" } else { "no" }.to_owned();
        rows.add([network.driver.clone(), next, network.pods.to_string(), network.problem.clone()]);
    }
    rows.text()
}

/// `aril network inspect`.
pub(super) async fn inspect(daemon: &mut Daemon, drivers: &[String], output: Output) -> Result<(), CliError> {
    let next = [String::new()];
    let (mut found, mut tables) = (Vec::new(), Vec::new());
    for driver in if drivers.is_empty() { &next } else { drivers } {
        let request = InspectNetworkRequest { driver: driver.clone() };
        let answer = daemon.node.inspect_network(request).await?.into_inner();
        let mut value = document(&answer.network.unwrap_or_default());
        let pods = answer.pods.iter().map(|pod| {
            json!({"name": pod.name, "namespace": pod.namespace, "id": pod.id, "network": pod.network, "interface": pod.interface, "addresses": pod.addresses,
                "ports": pod.ports})
        });
        value["pods"] = pods.collect();
        // Text that is no JSON is shown as it is.
        value["details"] = serde_json::from_str(&answer.details).unwrap_or(Value::String(answer.details));
        value["leftovers"] = json!(answer.leftovers);
        if output != Output::Json {
            // For people the pods are a table, after all the rest.
            value["pods"] = json!(answer.pods.len());
            tables.push(pod_table(&answer.pods));
        }
        found.push(value);
    }
    inspect::print(&found, output)?;
    for table in tables {
        output::print(&format!("\n{table}"))?;
    }
    Ok(())
}
