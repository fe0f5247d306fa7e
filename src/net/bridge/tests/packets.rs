//! What packets of other kinds than a TCP connection's meet, and what packets may not do.

use std::net::UdpSocket;

use super::nftables::Table;
use super::*;

/// Answers each datagram with a name.
pub fn answer(pod: &TestPod, port: u16, name: &'static str) {
    let socket = pod.inside(|| UdpSocket::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            socket.send_to(name.as_bytes(), from).ok();
        }
    });
}

/// Sends a datagram until one is answered: neighbours may have to be found first.
pub fn say(socket: &UdpSocket) -> String {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut buffer = [0; 64];
    // Answers to datagrams that were said twice.
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut buffer).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    for _ in 0..10 {
        // An earlier one may have been refused.
        socket.send(b"?").ok();
        if let Ok(length) = socket.recv(&mut buffer) {
            return String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
    }
    panic!("no answer");
}

#[test]
fn a_pod_that_starts_anew_gets_the_datagrams_of_old_clients() {
    on_a_host(|directory| {
        let world = world();
        let bridge = Bridge::open(settings(directory)).unwrap();
        let old = TestPod::start(&bridge, &with_port(1, Protocol::Udp, None, 5353)).unwrap();
        let bystander = TestPod::start(&bridge, &with_port(3, Protocol::Udp, None, 5354)).unwrap();
        answer(&old, 80, "old");
        answer(&bystander, 80, "bystander");
        let client = |is_outside: bool, to: SocketAddr| {
            let bind = || UdpSocket::bind(("::", 0)).unwrap();
            let socket = if is_outside { namespace::inside(world.as_fd(), bind).unwrap() } else { bind() };
            socket.connect(to).unwrap();
            socket
        };
        let (four, six): (IpAddr, IpAddr) = ("203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let clients = [
            client(true, (four, 5353).into()),
            client(true, (six, 5353).into()),
            client(false, (localhost(true), 5353).into()),
        ];
        let other = client(true, (four, 5354).into());
        for socket in &clients {
            assert_eq!(say(socket), "old");
        }
        assert_eq!(say(&other), "bystander");
        let tracked = conversations();
        assert_eq!(bridge.teardown(&old.id, None), []);
        // The kernel was told of the pod's alone, by address and protocol.
        assert_eq!(conversations(), tracked - clients.len());
        // `old` still listens in its namespace, and would answer.
        let new = TestPod::start(&bridge, &with_port(2, Protocol::Udp, None, 5353)).unwrap();
        answer(&new, 80, "new");
        for socket in &clients {
            assert_eq!(say(socket), "new");
        }
        assert_eq!(say(&other), "bystander");
    });
}

/// How many UDP conversations the host tracks, by ctnetlink's own dump.
fn conversations() -> usize {
    let mut socket = Socket::netfilter().unwrap();
    let kind = u16::try_from(libc::NFNL_SUBSYS_CTNETLINK << 8 | 1).unwrap();
    let answers = socket.dump("list conversations", kind, &[0; 4]).unwrap();
    let is_udp = |payload: &[u8]| {
        let tuple = netlink::attribute(payload.get(4..)?, 1)?;
        netlink::attribute(netlink::attribute(tuple, 2)?, 1).map(|protocol| protocol == [17])
    };
    answers.iter().filter(|(_, payload)| is_udp(payload) == Some(true)).count()
}

#[test]
fn sctp_is_led_to_the_pod_by_the_table() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Sctp, None, 9999)).unwrap();
        let wanted = elements(&lock(&bridge.books));
        let ports: Vec<_> = wanted.iter().filter(|element| element.map.family() == nftables::Family::Inet).collect();
        assert_eq!(ports.len(), 2);
        assert!(ports.iter().all(|element| element.key[0] == 132));
        let layout = bridge.layout(&lock(&bridge.books));
        // The kernel has exactly these: there is nothing to rebuild.
        assert!(!lock(&bridge.table).ensure(&layout, &wanted).unwrap());
        assert_eq!(bridge.teardown(&pod.id, None), []);
        assert!(!lock(&bridge.table).ensure(&layout, &[]).unwrap());
    });
}

#[test]
fn isolated_pods_reach_the_host_and_the_world_but_each_other_by_host_ports_alone() {
    on_a_host(|directory| {
        let world = world();
        let isolated = Settings { isolated: true, ..settings(directory) };
        let bridge = Bridge::open(isolated).unwrap();
        let a = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let b = TestPod::start(&bridge, &request(2)).unwrap();
        a.listen(80);
        echo(namespace::inside(world.as_fd(), || TcpListener::bind(("::", 99)).unwrap()).unwrap());
        for (is_v4, out) in [(true, "203.0.113.9"), (false, "2001:db8::9")] {
            let gateway = a.attachment.addresses[usize::from(!is_v4)].gateway.unwrap();
            let straight = b.inside(|| {
                TcpStream::connect_timeout(&(a.ip(is_v4), 80).into(), Duration::from_millis(400)).unwrap_err()
            });
            assert!(!matches!(straight.kind(), std::io::ErrorKind::ConnectionRefused), "{straight}");
            ask((a.ip(is_v4), 80)).expect("from the host");
            b.inside(|| ask((out.parse::<IpAddr>().unwrap(), 99))).expect("to the world");
            // Where br_netfilter has translated already what comes to the bridge, that is the bridge's to forbid.
            assert_eq!(b.inside(|| ask((gateway, 8080))).is_ok(), !host::filters_bridges());
        }
        for host in ["203.0.113.1", "2001:db8::1"] {
            let host: IpAddr = host.parse().unwrap();
            namespace::inside(world.as_fd(), || ask((host, 8080))).unwrap().expect("from the world");
        }
    });
}

#[test]
fn what_was_asked_for_is_given_and_what_cannot_be_is_refused_by_field() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let asked = |n, ips: &[&str], mac: &str| Request {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            mac: mac.into(),
            ..request(n)
        };
        let pod = TestPod::start(&bridge, &asked(1, &["fd61:7269:6c::99", "10.87.3.4"], "0A:58:00:00:00:01")).unwrap();
        assert_eq!([pod.ip(true), pod.ip(false)].map(|ip| ip.to_string()), ["10.87.3.4", "fd61:7269:6c::99"]);
        assert_eq!(pod.attachment.mac, "0a:58:00:00:00:01");
        let device = pod.inside(|| link::by_name(&mut Socket::route().unwrap(), crate::net::INTERFACE)).unwrap();
        assert_eq!(device.unwrap().mac, [0x0a, 0x58, 0, 0, 0, 1]);
        pod.listen(80);
        for is_v4 in [true, false] {
            ask((pod.ip(is_v4), 80)).unwrap();
        }
        let taken = TestPod::start(&bridge, &asked(2, &["10.87.3.4"], "")).map(drop).unwrap_err().to_string();
        assert!(taken.contains("10.87.3.4") && taken.contains(pod.id.as_str()), "{taken}");
        for (field, request) in [
            ("ips", asked(3, &["192.0.2.1"], "")),
            ("ips", asked(3, &["10.87.0.1"], "")),
            ("ips", asked(3, &["10.87.0.0"], "")),
            ("ips", asked(3, &["10.87.0.5", "10.87.0.6"], "")),
            ("mac", asked(3, &[], "01:00:00:00:00:01")),
            ("mac", asked(3, &[], "02:00:00:00:00")),
            ("mac", asked(3, &[], "02:00:00:00:00:01:02")),
            ("mac", asked(3, &[], "02:00:00:00:00:+1")),
        ] {
            match TestPod::start(&bridge, &request) {
                Err(NetError::Invalid { field: named, .. }) => assert_eq!(named, field, "{request:?}"),
                other => panic!("{request:?}: {:?}", other.map(|pod| pod.attachment)),
            }
        }
    });
}

#[test]
fn a_host_that_listened_to_routers_goes_on_listening() {
    on_a_host(|directory| {
        let _world = world();
        let device = link::host_end(&id(999));
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap();
        let before = read("all/forwarding");
        assert_eq!((before.trim(), read(&format!("{device}/accept_ra")).trim()), ("0", "1"));
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &request(1)).unwrap();
        assert_eq!(read("all/forwarding").trim(), "1");
        assert_eq!(read(&format!("{device}/accept_ra")).trim(), "2");
        assert_eq!(read("aril0/accept_ra").trim(), "0");
        assert_eq!(pod.inside(|| read("eth0/accept_ra")).trim(), "0");
    });
}

#[test]
fn nobody_outside_reaches_what_listens_on_loopback_alone() {
    on_a_host(|directory| {
        let world = world();
        let bridge = Bridge::open(settings(directory)).unwrap();
        let local = TestPod::start(&bridge, &with_port(1, Protocol::Udp, Some("127.0.0.1"), 5353)).unwrap();
        let pod = TestPod::start(&bridge, &request(2)).unwrap();
        answer(&local, 80, "pod");
        let host = UdpSocket::bind(("127.0.0.1", 5355)).unwrap();
        host.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let send = |namespace, port| {
            namespace::inside(namespace, || {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                socket.send_to(b"evil", ("127.0.0.1", port)).unwrap();
            })
            .unwrap();
        };
        for namespace in [pod.namespace.as_fd(), world.as_fd()] {
            namespace::inside(namespace, send_localhost_out).unwrap();
            [5355, 5353].into_iter().for_each(|port| send(namespace, port));
        }
        assert!(host.recv(&mut [0; 16]).is_err(), "the host's own service was reached");
        assert_eq!(datagrams_of(&local), "0", "the pod was reached");
        // It is there for the host itself.
        let here = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        here.connect(("127.0.0.1", 5353)).unwrap();
        assert_eq!(say(&here), "pod");
        // The guard is what kept the pod away.
        lock(&bridge.table).flush("guard");
        send(pod.namespace.as_fd(), 5355);
        assert_eq!(host.recv(&mut [0; 16]).unwrap(), 4);
        bridge.reconcile(&[local.live(), pod.live()]);
        send(pod.namespace.as_fd(), 5355);
        assert!(host.recv(&mut [0; 16]).is_err(), "a guard taken away did not come back");
    });
}

/// Makes the thread's namespace one that sends packets for 127.0.0.1 to its router.
fn send_localhost_out() {
    std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
    // struct ifaddrmsg: 127.0.0.1/8 (IFA_LOCAL) of the first device.
    let payload = [2, 8, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 127, 0, 0, 1];
    let mut batch = Batch::default();
    batch.push("take localhost away", libc::RTM_DELADDR, netlink_packet_core::NLM_F_ACK, &payload);
    Socket::route().unwrap().all(batch, &[]).unwrap();
}

/// How many datagrams the pod got for its own address.
fn datagrams_of(pod: &TestPod) -> String {
    let text = pod.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let values = text.lines().filter(|line| line.starts_with("Udp:")).nth(1).unwrap();
    values.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn one_flushed_chain_or_map_is_put_right() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        pod.listen(80);
        let world = world();
        let from_outside =
            || namespace::inside(world.as_fd(), || ask(("203.0.113.1".parse::<IpAddr>().unwrap(), 8080))).unwrap();
        from_outside().unwrap();
        type Damage = fn(&mut Table);
        let damages: [Damage; 3] =
            [|table| table.flush("prerouting"), |table| table.flush("ports"), |table| table.empty("any4")];
        for damage in damages {
            damage(&mut lock(&bridge.table));
            let refused = from_outside().unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            pod.check(&bridge).unwrap();
            from_outside().unwrap();
        }
        // A teardown finds its elements gone, and others' stay.
        let other = TestPod::start(&bridge, &with_port(2, Protocol::Tcp, None, 8081)).unwrap();
        lock(&bridge.table).empty("any4");
        assert_eq!(bridge.teardown(&other.id, None), []);
        from_outside().unwrap();
        // Nor does a table that is no more keep a pod from going, and a teardown makes none.
        lock(&bridge.table).delete().unwrap();
        assert_eq!(bridge.teardown(&pod.id, None), []);
        assert!(!lock(&bridge.table).exists().unwrap());
    });
}

#[test]
fn of_two_who_want_a_port_at_once_one_gets_it_and_the_other_is_told_by_whom() {
    on_a_host(|directory| {
        let host = namespace::current().unwrap();
        let bridge = Bridge::open(settings(directory)).unwrap();
        for round in 0..30u16 {
            let results: Vec<_> = std::thread::scope(|scope| {
                let one = |n| {
                    let (bridge, host) = (&bridge, &host);
                    let request = with_port(n, Protocol::Tcp, None, 8080);
                    scope.spawn(move || namespace::inside(host.as_fd(), || TestPod::start(bridge, &request)).unwrap())
                };
                let threads = [1, 2].map(|n| one(round * 2 + n));
                threads.map(|thread| thread.join().unwrap()).into()
            });
            let winner = results.iter().find_map(|result| result.as_ref().ok()).expect("one wins");
            let loser = results.iter().find_map(|result| result.as_ref().err()).expect("one loses");
            let NetError::Taken { what, owner } = loser else { panic!("{loser}") };
            let n = (1..).map(|n| round * 2 + n).find(|n| id(*n) == winner.id).unwrap();
            let name = format!("pod default/pod-{n}");
            assert_eq!(what, "host port 8080/tcp");
            assert!(owner.contains(winner.id.as_str()) && owner.contains(&name), "{owner}");
            for id in bridge.known().unwrap() {
                assert_eq!(bridge.teardown(&id, None), []);
            }
        }
    });
}
