//! What pods may say that they are, and whether they are heard from the first moment on.

use std::net::UdpSocket;

use super::*;

/// Gives a pod's end one more address.
fn add_address(pod: &TestPod, ip: IpAddr, range: &str) {
    pod.inside(|| {
        let mut socket = Socket::route().unwrap();
        let device = link::by_name(&mut socket, crate::net::INTERFACE).unwrap().unwrap();
        let mut batch = Batch::default();
        link::add_address(&mut batch, device.index, ip, range.parse().unwrap());
        socket.all(batch, &[]).unwrap();
    });
}

/// Whether one of some datagrams arrives.
fn arrives(from: &UdpSocket, at: &UdpSocket, to: SocketAddr) -> bool {
    at.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    (0..3).any(|_| {
        // Refused where nobody could be found before.
        from.send_to(b"?", to).ok();
        at.recv(&mut [0; 16]).is_ok()
    })
}

#[test]
fn a_pod_poses_as_nobody_else() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &request(1)).unwrap();
        let neighbour = TestPod::start(&bridge, &request(2)).unwrap();
        for (is_v4, foreign, range) in
            [(true, "10.87.9.9", "10.87.0.0/16"), (false, "fd61:7269:6c::999", "fd61:7269:6c::/64")]
        {
            let foreign: IpAddr = foreign.parse().unwrap();
            add_address(&pod, foreign, range);
            let gateway = pod.attachment.addresses[usize::from(!is_v4)].gateway.unwrap();
            let bind = |ip: IpAddr| UdpSocket::bind((ip, 0)).unwrap();
            let (host, there) = (bind(gateway), neighbour.inside(|| bind(neighbour.ip(is_v4))));
            let (itself, posing) = pod.inside(|| (bind(pod.ip(is_v4)), bind(foreign)));
            let at = |socket: &UdpSocket| socket.local_addr().unwrap();
            // What it says in its own name arrives, and it is found by its own name.
            assert!(arrives(&itself, &host, at(&host)) && arrives(&itself, &there, at(&there)));
            assert!(arrives(&host, &itself, at(&itself)) && arrives(&there, &itself, at(&itself)));
            // In another's it does not, and whoever looks for that one does not find it here.
            assert!(!arrives(&posing, &host, at(&host)) && !arrives(&posing, &there, at(&there)));
            assert!(!arrives(&host, &posing, at(&posing)) && !arrives(&there, &posing, at(&posing)));
            // The table is what kept it from that.
            lock(&bridge.table).flush("sources");
            assert!(arrives(&posing, &host, at(&host)) && arrives(&there, &posing, at(&posing)));
            assert_eq!(bridge.reconcile(&[pod.live(), neighbour.live()]), []);
        }
    });
}

#[test]
fn the_sources_of_pods_are_known_to_a_driver_that_was_opened_again() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let asked = Request { mac: "0a:58:00:00:00:07".into(), ..request(1) };
        let pod = TestPod::start(&bridge, &asked).unwrap();
        pod.listen(80);
        let wanted = elements(&lock(&bridge.books));
        drop(bridge);
        let bridge = Bridge::open(settings(directory)).unwrap();
        // A pod that comes before the first reconciliation.
        let other = TestPod::start(&bridge, &request(2)).unwrap();
        ask((pod.ip(true), 80)).unwrap();
        assert_eq!(bridge.reconcile(&[pod.live(), other.live()]), []);
        let known = elements(&lock(&bridge.books));
        assert!(wanted.iter().all(|element| known.contains(element)));
        for is_v4 in [true, false] {
            assert_eq!(other.inside(|| ask((pod.ip(is_v4), 80))).unwrap(), other.ip(is_v4));
        }
        assert_eq!(bridge.teardown(&pod.id, None), []);
        assert_eq!(bridge.teardown(&other.id, None), []);
        assert_eq!(elements(&lock(&bridge.books)), []);
    });
}

#[test]
fn where_ports_cannot_be_told_apart_what_is_routed_is_of_the_ranges() {
    on_a_host(|directory| {
        let world = world();
        let bridge = Bridge::open(settings(directory)).unwrap();
        lock(&bridge.table).forgo_ports();
        let pod = TestPod::start(&bridge, &request(1)).unwrap();
        assert_eq!(bridge.describe()["sources_checked"], "by range");
        pod.listen(80);
        let outside = namespace::inside(world.as_fd(), || UdpSocket::bind(("::", 99)).unwrap()).unwrap();
        for (is_v4, foreign, range, out) in [
            (true, "192.0.2.7", "192.0.2.0/24", "203.0.113.9"),
            (false, "2001:db8:9::7", "2001:db8:9::/64", "2001:db8::9"),
        ] {
            ask((pod.ip(is_v4), 80)).unwrap();
            let (foreign, out): (IpAddr, IpAddr) = (foreign.parse().unwrap(), out.parse().unwrap());
            add_address(&pod, foreign, range);
            let bind = |ip: IpAddr| pod.inside(|| UdpSocket::bind((ip, 0)).unwrap());
            assert!(arrives(&bind(pod.ip(is_v4)), &outside, (out, 99).into()));
            assert!(!arrives(&bind(foreign), &outside, (out, 99).into()));
            lock(&bridge.table).flush("guard");
            assert!(arrives(&bind(foreign), &outside, (out, 99).into()));
            assert_eq!(bridge.reconcile(&[pod.live()]), []);
        }
    });
}

#[test]
fn a_fresh_pod_hears_the_first_datagram() {
    on_a_host(|directory| {
        let host = namespace::current().unwrap();
        let bridge = Bridge::open(settings(directory)).unwrap();
        // Side by side: the kernel's worker then has much to do.
        std::thread::scope(|scope| {
            for n in 0..20 {
                let (bridge, host) = (&bridge, &host);
                let act = move || {
                    let pod = TestPod::start(bridge, &request(n)).unwrap();
                    let is_local = |ip| pod::is_local(&mut Socket::route().unwrap(), ip);
                    let [_, v6] = &pod.attachment.addresses[..] else { panic!("{:?}", pod.attachment) };
                    assert!(is_local(v6.gateway.unwrap()));
                    assert!(pod.inside(|| is_local(v6.ip)), "setup ended before the kernel was ready");
                    for is_v4 in [true, false] {
                        let at = pod.inside(|| UdpSocket::bind((pod.ip(is_v4), 80)).unwrap());
                        let gateway = pod.attachment.addresses[usize::from(!is_v4)].gateway.unwrap();
                        let from = UdpSocket::bind((gateway, 0)).unwrap();
                        at.set_read_timeout(Some(PATIENCE)).unwrap();
                        from.set_read_timeout(Some(PATIENCE)).unwrap();
                        from.send_to(b"?", (pod.ip(is_v4), 80)).unwrap();
                        let (_, client) = at.recv_from(&mut [0; 16]).expect("the first datagram to a pod");
                        at.send_to(b"!", client).unwrap();
                        from.recv(&mut [0; 16]).expect("the first datagram of a pod");
                    }
                };
                scope.spawn(move || namespace::inside(host.as_fd(), act).unwrap());
            }
        });
    });
}
