//! Host ports from ::1, by the daemon.

use std::net::{Shutdown, UdpSocket};

use super::*;

/// As [`on_a_host`], with a runtime whose threads are in that namespace, as the daemon's are in the host's.
fn on_a_serving_host<T: Send>(act: impl FnOnce(&Path) -> T + Send) -> T {
    on_a_host(|directory| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _entered = runtime.enter();
        act(directory)
    })
}

fn here(port: u16) -> SocketAddr {
    (localhost(false), port).into()
}

#[test]
fn a_host_port_is_served_at_both_localhosts_until_its_pod_goes() {
    on_a_serving_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let only_here = TestPod::start(&bridge, &with_port(2, Protocol::Tcp, Some("::1"), 8081)).unwrap();
        let elsewhere = TestPod::start(&bridge, &with_port(3, Protocol::Tcp, Some("127.0.0.1"), 8082)).unwrap();
        for pod in [&pod, &only_here, &elsewhere] {
            pod.listen(80);
        }
        let gateway = |pod: &TestPod| pod.attachment.addresses[1].gateway.unwrap();
        assert_eq!(ask(here(8080)).unwrap(), gateway(&pod));
        ask((localhost(true), 8080)).unwrap();
        assert_eq!(ask(here(8081)).unwrap(), gateway(&only_here));
        assert!(ask((localhost(true), 8081)).is_err());
        assert!(ask(here(8082)).is_err());

        // The host's processes cannot take it.
        assert!(TcpListener::bind(here(8080)).is_err());
        // Tried again, a pod is not refused for what its first try left.
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        pod.listen(80);
        ask(here(8080)).unwrap();
        assert_eq!(bridge.teardown(&pod.id, None), []);
        assert_eq!(ask(here(8080)).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        TcpListener::bind(here(8080)).unwrap();
    });
}

#[test]
fn a_daemon_that_starts_again_serves_again() {
    on_a_serving_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let a = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let b = TestPod::start(&bridge, &with_port(2, Protocol::Tcp, None, 8081)).unwrap();
        a.listen(80);
        b.listen(80);
        drop(bridge);
        assert!(ask(here(8080)).is_err());
        let thief = TcpListener::bind(here(8081)).unwrap();

        let bridge = Bridge::open(settings(directory)).unwrap();
        let left = bridge.reconcile(&[a.live(), b.live()]);
        ask(here(8080)).unwrap();
        let [one] = &left[..] else { panic!("{left:?}") };
        assert!(one.what.contains(b.id.as_str()) && one.reason.contains("8081"), "{one:?}");
        drop(thief);
        assert_eq!(bridge.reconcile(&[a.live(), b.live()]), []);
        ask(here(8081)).unwrap();
        // A stranger's are closed.
        assert_eq!(bridge.reconcile(&[a.live()]), []);
        assert!(ask(here(8081)).is_err());
        assert_eq!(bridge.teardown(&a.id, None), []);
        assert_eq!(bridge.reset(), []);
        assert!(ask(here(8080)).is_err());
    });
}

#[test]
fn each_direction_ends_by_itself_and_a_workload_may_listen_by_ipv4_alone() {
    on_a_serving_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        // Nobody listens: an error, not an end.
        let mut stream = TcpStream::connect(here(8080)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

        let listener = pod.inside(|| TcpListener::bind(("0.0.0.0", 80)).unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let mut stream = TcpStream::connect(here(8080)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(sent == received);
        server.join().unwrap();
    });
}

#[test]
fn datagrams_from_localhost_are_answered_each_client_its_own() {
    on_a_serving_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Udp, None, 5353)).unwrap();
        // By IPv4 alone: the first try is refused, which the client never learns.
        let server = pod.inside(|| UdpSocket::bind(("0.0.0.0", 80)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                server.send_to(&buffer[..length], from).ok();
            }
        });
        let clients: Vec<UdpSocket> = (0..5)
            .map(|_| {
                let client = UdpSocket::bind(here(0)).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                client.connect(here(5353)).unwrap();
                client
            })
            .collect();
        for round in 0..3u8 {
            for (n, client) in (0u8..).zip(&clients) {
                client.send(&[round, n]).unwrap();
            }
            for (n, client) in (0u8..).zip(&clients) {
                let mut answer = [0; 3];
                assert_eq!(client.recv(&mut answer).unwrap(), 2);
                assert_eq!(answer[..2], [round, n]);
            }
        }
        assert_eq!(bridge.teardown(&pod.id, None), []);
        UdpSocket::bind(here(5353)).unwrap();
    });
}
