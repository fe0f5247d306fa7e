//! Connections to a pod's own loopback, for those who are not in the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::namespace::inside;
use super::thread::apart;

/// How long one address may take to answer; on loopback that is a process that accepts nobody.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a port of localhost in a network namespace: by IPv4, else by IPv6.
///
/// # Errors
/// That of IPv4, as socket(2), connect(2) and setns(2); `TimedOut`.
pub async fn localhost(namespace: OwnedFd, port: u16) -> io::Result<TcpStream> {
    let namespace = Arc::new(namespace);
    let first = match connect(&namespace, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(connection) => return Ok(connection),
        Err(e) => e,
    };
    connect(&namespace, Ipv6Addr::LOCALHOST.into(), port).await.map_err(|_| first)
}

async fn connect(namespace: &Arc<OwnedFd>, ip: IpAddr, port: u16) -> io::Result<TcpStream> {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let namespace = Arc::clone(namespace);
    // A socket belongs to the namespace its maker is in, for ever; all else can be done from here.
    let make = move || {
        inside(namespace.as_fd(), || {
            socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
        })
    };
    let made = apart("make a socket", make).await.map_err(io::Error::other)???;
    let socket = TcpSocket::from_std_stream(made.into());
    let connected = timeout(PATIENCE, socket.connect(SocketAddr::new(ip, port))).await;
    let connection = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    // The kernel may give a socket the very port it is to connect to, and then connects it to itself.
    if connection.local_addr()? == connection.peer_addr()? {
        return Err(Errno::ECONNREFUSED.into());
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::namespace;

    #[tokio::test]
    async fn nobody_is_connected_to_himself() {
        let own = apart("test", || {
            let own = namespace::create().unwrap();
            let only = || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40001 40001");
            namespace::inside(own.as_fd(), only).unwrap().unwrap();
            own
        });
        let refused = localhost(own.await.unwrap(), 40_001).await.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::ECONNREFUSED as i32));
    }

    #[tokio::test]
    async fn both_localhosts_of_a_namespace_are_tried_and_no_other() {
        let (own, port, six) = apart("test", || {
            let own = namespace::create().unwrap();
            let listen = |address: &str| std::net::TcpListener::bind(address).unwrap();
            let (four, six) = namespace::inside(own.as_fd(), || (listen("127.0.0.1:0"), listen("[::1]:0"))).unwrap();
            // Who connects is never asked for anything; the sockets stay open.
            let port = four.local_addr().unwrap().port();
            std::mem::forget(four);
            (own, port, six)
        })
        .await
        .unwrap();
        let copy = || own.try_clone().unwrap();
        assert_eq!(localhost(copy(), port).await.unwrap().peer_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
        let other = six.local_addr().unwrap().port();
        assert_eq!(localhost(copy(), other).await.unwrap().peer_addr().unwrap().ip(), Ipv6Addr::LOCALHOST);
        drop(six);
        let refused = localhost(copy(), other).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // The same port out here is somebody else's.
        let outside = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert!(localhost(outside.into(), port).await.is_err());
    }
}
