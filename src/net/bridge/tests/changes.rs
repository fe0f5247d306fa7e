//! What others do to the host while pods are up, or did before.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::packets::{answer, say};
use super::*;

/// Adds a route to the outside world's device.
fn add_route(to: [u8; 4], prefix: u8) {
    let mut socket = Socket::route().unwrap();
    let device = link::by_name(&mut socket, &link::host_end(&id(999))).unwrap().unwrap();
    let mut message = RouteMessage::default();
    message.header.address_family = netlink_packet_route::AddressFamily::Inet;
    message.header.destination_prefix_length = prefix;
    message.header.table = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(IpAddr::from(to).into()));
    message.attributes.push(RouteAttribute::Oif(device.index));
    let mut batch = Batch::default();
    batch.message("add route", libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &message);
    socket.all(batch, &[]).unwrap();
}

/// Whether the tables are as they should be, by somebody who has not looked yet.
fn is_whole(bridge: &Bridge) -> bool {
    let books = lock(&bridge.books);
    !Table::open("aril0").unwrap().ensure(&bridge.layout(&books), &elements(&books)).unwrap()
}

/// As `nft flush ruleset` does.
fn flush_ruleset() {
    Table::open("aril0").unwrap().delete().unwrap();
}

#[test]
fn a_range_that_somebody_else_routes_is_refused_by_name() {
    on_a_host(|directory| {
        let _world = world();
        for (subnet, prefix) in [([203, 0, 113, 0], 24), ([203, 0, 112, 0], 23)] {
            let subnets = vec![(subnet.into(), prefix)];
            let bridge = Bridge::open(Settings { subnets, ..settings(directory) }).unwrap();
            for refused in [bridge.status(), TestPod::start(&bridge, &request(1)).map(drop)] {
                assert!(refused.unwrap_err().to_string().contains("203.0.113.0/24"));
            }
            assert_eq!(link::by_name(&mut lock(&bridge.route), "aril0").unwrap(), None);
            // kubelet knows better.
            bridge.set_pod_cidr("203.0.113.0/24").unwrap();
            bridge.status().unwrap();
            TestPod::start(&bridge, &request(1)).unwrap();
            assert_eq!(bridge.reset(), []);
        }
    });
}

#[test]
fn routes_of_a_vpn_do_not_hide_the_pods_and_are_none_of_their_affair() {
    on_a_host(|directory| {
        let _world = world();
        for (to, prefix) in [([0; 4], 1), ([128, 0, 0, 0], 1), ([10, 0, 0, 0], 8)] {
            add_route(to, prefix);
        }
        let bridge = Bridge::open(settings(directory)).unwrap();
        bridge.status().unwrap();
        let pod = TestPod::start(&bridge, &request(1)).unwrap();
        pod.listen(80);
        ask((pod.ip(true), 80)).unwrap();
    });
}

#[test]
fn a_route_into_the_range_that_comes_later_is_told_and_pods_are_looked_after_all_the_same() {
    on_a_host(|directory| {
        let _world = world();
        let bridge = Bridge::open(settings(directory)).unwrap();
        let pod = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        pod.listen(80);
        add_route([10, 87, 200, 0], 24);
        flush_ruleset();
        assert_eq!(bridge.reconcile(&[pod.live()]), []);
        assert!(is_whole(&bridge));
        ask((localhost(true), 8080)).unwrap();
        let told = bridge.status().unwrap_err().to_string();
        assert!(told.contains("10.87.200.0/24"), "{told}");
        assert!(bridge.describe()["overlap"].as_str().unwrap().contains("10.87.200.0/24"));
        // The range is taken already.
        TestPod::start(&bridge, &request(2)).unwrap();
    });
}

#[test]
fn pods_have_ipv6_where_the_host_has_switched_it_off() {
    on_a_host(|directory| {
        for device in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
        }
        let bridge = Bridge::open(settings(directory)).unwrap();
        let (a, b) = (TestPod::start(&bridge, &request(1)).unwrap(), TestPod::start(&bridge, &request(2)).unwrap());
        a.listen(80);
        for is_v4 in [true, false] {
            ask((a.ip(is_v4), 80)).unwrap();
            assert_eq!(b.inside(|| ask((a.ip(is_v4), 80))).unwrap(), b.ip(is_v4));
        }
    });
}

#[test]
fn the_bridge_takes_packets_for_loopback_only_behind_its_guard() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let owner = lock(&bridge.table).seize();
        let refused = TestPod::start(&bridge, &request(1)).map(drop).unwrap_err().to_string();
        assert!(refused.contains("table inet aril"), "{refused}");
        let switch = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/aril0/route_localnet").unwrap();
        assert_eq!(switch().trim(), "0");
        drop(owner);
        TestPod::start(&bridge, &request(1)).unwrap();
        assert_eq!(switch().trim(), "1");
    });
}

#[test]
fn the_next_pod_without_ports_brings_the_tables_back() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let first = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        first.listen(80);
        assert_eq!(bridge.reconcile(&[first.live()]), []);
        flush_ruleset();
        let second = TestPod::start(&bridge, &request(2)).unwrap();
        assert!(is_whole(&bridge));
        ask((localhost(true), 8080)).unwrap();
        // Nor do pods that come and go hide that somebody else has changed them.
        lock(&bridge.table).flush("guard");
        assert_eq!(bridge.teardown(&second.id, None), []);
        TestPod::start(&bridge, &request(3)).unwrap();
        assert!(is_whole(&bridge));
    });
}

#[test]
fn pods_that_come_and_go_leave_the_tables_known() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let _first = TestPod::start(&bridge, &request(1)).unwrap();
        bridge.status().unwrap();
        for n in 2..5 {
            let pod = TestPod::start(&bridge, &with_port(n, Protocol::Tcp, None, 8080 + n)).unwrap();
            assert!(lock(&bridge.table).is_untouched());
            assert_eq!(bridge.teardown(&pod.id, None), []);
            assert!(lock(&bridge.table).is_untouched());
        }
        assert!(is_whole(&bridge));
    });
}

/// Whether one of the descriptors is readable, or becomes so.
fn is_told(descriptors: &[OwnedFd], wait: Duration) -> bool {
    let mut polled: Vec<PollFd<'_>> = descriptors.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut polled, PollTimeout::try_from(wait).unwrap()).unwrap() > 0
}

#[test]
fn changes_by_others_are_told_and_mended_at_once_and_ones_own_wake_nobody() {
    on_a_host(|directory| {
        let bridge = Bridge::open(settings(directory)).unwrap();
        let watches = bridge.watches();
        let old = TestPod::start(&bridge, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        old.listen(80);
        bridge.mend().unwrap();
        let other = TestPod::start(&bridge, &with_port(2, Protocol::Tcp, None, 8081)).unwrap();
        assert_eq!(bridge.teardown(&other.id, None), []);
        // Of tables; that the bridge has a carrier since its first port, the kernel tells when it likes.
        let of_tables = &watches[..1];
        assert!(!is_told(of_tables, Duration::ZERO), "woken by what the driver did itself");
        let changes: [(&str, &dyn Fn()); 4] = [
            ("ruleset flushed", &flush_ruleset),
            ("bridge deleted", &|| delete(&bridge, "aril0")),
            ("bridge set down", &|| set_down(&bridge)),
            ("bridge without addresses", &|| take_address(&bridge)),
        ];
        for (what, change) in changes {
            change();
            assert!(is_told(&watches, PATIENCE), "{what}");
            bridge.mend().unwrap();
            for is_v4 in [true, false] {
                ask((old.ip(is_v4), 80)).expect(what);
            }
            ask((localhost(true), 8080)).expect(what);
            old.check(&bridge).unwrap();
            bridge.mend().unwrap();
        }
        assert!(!is_told(of_tables, Duration::ZERO));
        // Who only asks finds all in order too.
        delete(&bridge, "aril0");
        bridge.status().unwrap();
        ask((old.ip(true), 80)).unwrap();
    });
}

fn set_down(bridge: &Bridge) {
    let mut route = lock(&bridge.route);
    let found = link::by_name(&mut route, "aril0").unwrap().unwrap();
    let mut message = netlink_packet_route::link::LinkMessage::default();
    message.header.index = found.index;
    message.header.change_mask = netlink_packet_route::link::LinkFlags::Up;
    let mut batch = Batch::default();
    batch.message("set device down", libc::RTM_NEWLINK, 0, &message);
    route.all(batch, &[]).unwrap();
}

fn take_address(bridge: &Bridge) {
    let index = lock(&bridge.made).unwrap().index;
    // struct ifaddrmsg: 10.87.0.1/16 (IFA_LOCAL).
    let [a, b, c, d] = index.to_ne_bytes();
    let payload = [2, 16, 0, 0, a, b, c, d, 8, 0, 2, 0, 10, 87, 0, 1];
    let mut batch = Batch::default();
    batch.push("take address away", libc::RTM_DELADDR, netlink_packet_core::NLM_F_ACK, &payload);
    lock(&bridge.route).all(batch, &[]).unwrap();
}

#[test]
fn two_bridges_on_a_host_leave_each_other_alone() {
    on_a_host(|directory| {
        let first = Bridge::open(settings(directory)).unwrap();
        let subnets = vec![([10, 86, 0, 0].into(), 16), ([0xfd62, 0, 0, 0, 0, 0, 0, 0].into(), 64)];
        let other =
            Settings { name: "br-two".into(), subnets, state_dir: directory.join("two"), ..settings(directory) };
        let second = Bridge::open(other).unwrap();
        let a = TestPod::start(&first, &with_port(1, Protocol::Tcp, None, 8080)).unwrap();
        let b = TestPod::start(&second, &with_port(2, Protocol::Tcp, None, 8081)).unwrap();
        let works = |pod: &TestPod, port| {
            for is_v4 in [true, false] {
                ask((pod.ip(is_v4), 80)).unwrap();
            }
            ask((localhost(true), port)).unwrap();
        };
        a.listen(80);
        b.listen(80);
        for _ in 0..2 {
            assert_eq!(first.reconcile(&[a.live()]), []);
            assert_eq!(second.reconcile(&[b.live()]), []);
            a.check(&first).unwrap();
            b.check(&second).unwrap();
            works(&a, 8080);
            works(&b, 8081);
        }
        assert!(lock(&first.table).is_untouched() || is_whole(&first));
        assert_eq!(second.reset(), []);
        a.check(&first).unwrap();
        works(&a, 8080);
        assert_eq!(link::by_name(&mut lock(&first.route), "br-two").unwrap(), None);
    });
}

#[test]
fn clients_who_talked_before_the_pod_was_there_are_heard_once_it_is() {
    on_a_host(|directory| {
        let world = world();
        let bridge = Bridge::open(settings(directory)).unwrap();
        // From here on the host tracks.
        let bystander = TestPod::start(&bridge, &with_port(1, Protocol::Udp, None, 5354)).unwrap();
        answer(&bystander, 80, "bystander");
        let client = |ip: &str, port: u16| {
            let socket = namespace::inside(world.as_fd(), || UdpSocket::bind(("::", 0)).unwrap()).unwrap();
            socket.connect((ip.parse::<IpAddr>().unwrap(), port)).unwrap();
            socket
        };
        let early = ["203.0.113.1", "2001:db8::1"].map(|ip| client(ip, 5353));
        let other = client("203.0.113.1", 5354);
        assert_eq!(say(&other), "bystander");
        for socket in &early {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send(b"?").unwrap();
            // The host itself says that nobody listens, by when it has noted the conversation.
            assert_eq!(socket.recv(&mut [0; 16]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        }
        let pod = TestPod::start(&bridge, &with_port(2, Protocol::Udp, None, 5353)).unwrap();
        answer(&pod, 80, "pod");
        for socket in &early {
            assert_eq!(say(socket), "pod");
        }
        assert_eq!(say(&other), "bystander");
    });
}

#[test]
fn settings_that_can_be_no_bridge_are_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let plain = settings(directory.path());
    let host_bits = vec![([10, 87, 0, 1].into(), 16)];
    for (settings, field, word) in [
        (Settings { name: "lo".into(), ..plain.clone() }, "name", "bridge"),
        (Settings { subnets: host_bits, ..plain.clone() }, "subnets", "10.87.0.0/16"),
        (Settings { mtu: Some(100), ..plain }, "mtu", "1280"),
    ] {
        match Bridge::open(settings) {
            Err(NetError::Invalid { field: named, reason }) => {
                assert!(named == field && reason.contains(word), "{named}: {reason}");
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}
