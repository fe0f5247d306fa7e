//! Pods' networks, asked from the node's own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use aril::api::cri::{PortMapping, StatusRequest};

use super::{Container, Options, PATIENCE, Pod, PodBuilder, TestNode, wait_for};

/// A node with these lines in its configuration.
pub fn node_with(config: &str) -> TestNode {
    TestNode::with(Options { config: config.to_owned(), ..Options::default() })
}

/// The address CRI tells of a pod.
pub fn address(pod: &Pod<'_>) -> IpAddr {
    let network = pod.status().network.expect("a network");
    network.ip.parse().unwrap_or_else(|e| panic!("address {:?} of pod {}: {e}", network.ip, pod.id))
}

/// A container that says `word` to everybody who asks on this port.
pub fn server<'n>(pod: &Pod<'n>, port: u16, word: &str) -> Container<'n> {
    let script = format!("mkdir -p /www && echo {word} >/www/word && exec httpd -f -p {port} -h /www");
    pod.run(["sh", "-c", &script])
}

/// What a server says to a client in the node's own network.
pub fn ask(node: &TestNode, to: SocketAddr) -> std::io::Result<String> {
    node.in_network(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /word HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().last().unwrap_or_default().to_owned())
    })
}

/// As [`ask`], once the server listens.
pub fn hear(node: &TestNode, to: SocketAddr) -> String {
    wait_for("an answer", PATIENCE, || ask(node, to).ok())
}

/// A port of a pod on the host.
pub fn port(container_port: i32, host_port: i32) -> PortMapping {
    PortMapping { container_port, host_port, ..PortMapping::default() }
}

/// The pod with one such port.
pub fn with_port<'n>(pod: PodBuilder<'n>, container_port: i32, host_port: i32) -> PodBuilder<'n> {
    pod.with(|c| c.port_mappings = vec![port(container_port, host_port)])
}

/// Reason and message of NetworkReady, if it is false.
pub fn not_ready(node: &TestNode) -> Option<(String, String)> {
    let answer = node.cri().runtime(|mut c| async move { c.status(StatusRequest { verbose: true }).await });
    let conditions = answer.expect("a status").status.unwrap().conditions;
    let ready = conditions.into_iter().find(|c| c.r#type == "NetworkReady").expect("the condition");
    (!ready.status).then_some((ready.reason, ready.message))
}
