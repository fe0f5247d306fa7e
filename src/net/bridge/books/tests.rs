//! The books on a disk, without a kernel's devices.

use super::*;
use crate::net::Protocol;

fn id(n: u8) -> SandboxId {
    SandboxId::from_random([n; 32])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(host_ip: Option<&str>, host_port: u16) -> Ports {
    Ports { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip: host_ip.map(ip) }
}

fn open(directory: &Path) -> Books {
    let mut books = Books::open(directory, &["10.9.0.0/29".parse().unwrap(), "fd09::/64".parse().unwrap()]).unwrap();
    books.save_ranges().unwrap();
    books
}

fn enter(books: &mut Books, n: u8, ports: &[Ports]) -> Result<Pod, NetError> {
    books.enter(&id(n), "aril", &[], ports, &mut |_| true)
}

#[test]
fn books_outlive_whoever_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    let pod = enter(&mut books, 1, &[port(None, 8080), port(Some("10.0.0.1"), 81)]).unwrap();
    assert_eq!(pod.addresses.iter().map(|(ip, _)| *ip).collect::<Vec<_>>(), [ip("10.9.0.2"), ip("fd09::2")]);
    drop(books);
    let mut again = open(directory.path());
    let read = again.pods()[&id(1)].clone();
    assert_eq!((&read.addresses, read.is_new), (&pod.addresses, false));
    assert_eq!(read.ports.len(), 2);
    assert_eq!(enter(&mut again, 2, &[]).unwrap().addresses[0].0, ip("10.9.0.3"));
    assert_eq!(again.release(&id(1)), []);
    assert_eq!(again.release(&id(1)), []);
    assert_eq!(open(directory.path()).pods().keys().collect::<Vec<_>>(), [&id(2)]);
}

#[test]
fn a_host_port_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    enter(&mut books, 1, &[port(Some("10.0.0.1"), 80), port(None, 81)]).unwrap();
    for (host_ip, number, is_free) in [
        (Some("10.0.0.1"), 80, false),
        (None, 80, false),
        (Some("10.0.0.2"), 80, true),
        (Some("10.0.0.2"), 81, false),
        (None, 82, true),
    ] {
        let result = books.check_ports(&id(2), &[port(host_ip, number)]);
        assert_eq!(result.is_ok(), is_free, "{host_ip:?} {number}");
        assert_eq!(is_free, !result.err().is_some_and(|e| e.to_string().contains(id(1).as_str())));
    }
    let udp = Ports { protocol: Protocol::Udp, ..port(None, 81) };
    books.check_ports(&id(2), &[udp]).unwrap();
}

#[test]
fn an_address_rests_while_its_device_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    for n in 1..=5 {
        enter(&mut books, n, &[]).unwrap();
    }
    books.release(&id(2));
    let refused = books.enter(&id(6), "aril", &[], &[], &mut |_| false).unwrap_err();
    assert!(matches!(refused, NetError::Exhausted { .. }), "{refused}");
    books.release(&id(6));
    let asked_of = &mut Vec::new();
    let pod = books.enter(&id(7), "aril", &[], &[], &mut |name| {
        asked_of.push(name.to_owned());
        true
    });
    assert_eq!(pod.unwrap().addresses[0].0, ip("10.9.0.3"));
    assert_eq!(*asked_of, [host_end(&id(2))]);
}

#[test]
fn addresses_asked_for_are_given_or_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    let mut ask = |n, text| books.enter(&id(n), "aril", &[ip(text)], &[], &mut |_| true);
    assert_eq!(ask(1, "10.9.0.5").unwrap().addresses[0].0, ip("10.9.0.5"));
    assert!(matches!(ask(2, "10.9.0.5"), Err(NetError::Taken { .. })));
    assert!(matches!(ask(3, "10.9.0.1"), Err(NetError::Invalid { .. })));
    assert!(matches!(ask(4, "fd08::5"), Err(NetError::Invalid { .. })));
}

#[test]
fn damaged_entries_give_no_address_away_and_move_aside() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    enter(&mut books, 1, &[]).unwrap();
    let leases = directory.path().join(LEASES);
    fs::write(leases.join("10.9.0.3"), "a file").unwrap();
    symlink("nobody", leases.join("10.9.0.4")).unwrap();
    symlink(id(9).as_str(), leases.join("no address")).unwrap();
    symlink("x", directory.path().join(PORTS).join("tcp-0")).unwrap();
    let mut books = open(directory.path());
    assert_eq!(books.pods().len(), 1);
    assert_eq!(books.tidy(&mut |_| true), []);
    assert_eq!(fs::read_dir(directory.path().join(DAMAGED)).unwrap().count(), 4);
    assert_eq!(enter(&mut books, 2, &[]).unwrap().addresses[0].0, ip("10.9.0.3"));
    assert_eq!(fs::read_dir(leases).unwrap().count(), 4);
}

#[test]
fn an_entry_damaged_meanwhile_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    fs::write(directory.path().join(LEASES).join("10.9.0.2"), "a file").unwrap();
    assert_eq!(enter(&mut books, 1, &[]).unwrap().addresses[0].0, ip("10.9.0.2"));
    assert_eq!(open(directory.path()).pods().len(), 1);
}

#[test]
fn ranges_of_kubelet_are_for_new_pods_and_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    enter(&mut books, 1, &[]).unwrap();
    assert!(books.set_pod_cidr(vec!["10.244.1.0/24".parse().unwrap()]).unwrap());
    assert!(!books.set_pod_cidr(vec!["10.244.1.0/24".parse().unwrap()]).unwrap());
    let mut books = open(directory.path());
    assert_eq!(enter(&mut books, 2, &[]).unwrap().addresses[0].0, ip("10.244.1.2"));
    assert_eq!((books.pods()[&id(1)].addresses.len(), books.known().len()), (2, 3));
    books.release(&id(1));
    books.tidy(&mut |_| true);
    assert_eq!(books.known().len(), 1);
}

#[test]
fn live_sandboxes_win() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    let range = books.current()[0];
    assert_eq!(books.restore(&id(1), &[(ip("10.9.0.4"), range)], &[port(None, 80)]), []);
    assert_eq!(books.restore(&id(1), &[(ip("10.9.0.4"), range)], &[port(None, 80)]), []);
    let left = books.restore(&id(2), &[(ip("10.9.0.4"), range)], &[]);
    assert!(left[0].reason.contains(id(1).as_str()), "{left:?}");
    assert_eq!(open(directory.path()).pods()[&id(1)].ports.len(), 1);
}

#[test]
fn what_was_being_written_when_a_daemon_died_goes_and_nothing_is_written_twice() {
    let directory = tempfile::tempdir().unwrap();
    let half = directory.path().join(".ranges.json.1.0.tmp");
    fs::write(&half, "{").unwrap();
    let mut books = open(directory.path());
    assert!(!half.exists());
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(directory.path().join(RANGES)).unwrap());
    let before = inode();
    books.save_ranges().unwrap();
    assert_eq!(inode(), before);
    fs::remove_dir_all(directory.path()).unwrap();
    books.save_ranges().unwrap();
    enter(&mut books, 1, &[]).unwrap();
}

#[test]
fn the_gateway_of_a_range_of_before_is_nobodys_in_a_wider_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    enter(&mut books, 1, &[]).unwrap();
    books.set_pod_cidr(vec!["10.8.0.0/15".parse().unwrap()]).unwrap();
    let mut ask = |n, text| books.enter(&id(n), "aril", &[ip(text)], &[], &mut |_| true);
    assert!(matches!(ask(2, "10.9.0.1"), Err(NetError::Invalid { .. })));
    ask(3, "10.9.0.0").unwrap();
    // The next one in turn.
    let range = books.current()[0];
    books.last.insert(range, ip("10.9.0.0"));
    assert_eq!(enter(&mut books, 4, &[]).unwrap().addresses[0].0, ip("10.9.0.3"));
}

#[test]
fn an_address_asked_for_rests_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let mut books = open(directory.path());
    let pod = enter(&mut books, 1, &[]).unwrap();
    let (asked, _) = pod.addresses[0];
    books.release(&id(1));
    let refused = books.enter(&id(2), "aril", &[asked], &[], &mut |_| false).unwrap_err();
    assert!(matches!(&refused, NetError::Taken { owner, .. } if owner.contains(&host_end(&id(1)))), "{refused}");
    books.release(&id(2));
    assert_eq!(books.enter(&id(3), "aril", &[asked], &[], &mut |_| true).unwrap().addresses[0].0, asked);
}
