use super::*;
use crate::wire::pb;
use pb::request::Body;
use proptest::prelude::*;

fn create(plan: Vec<u8>) -> pb::Request {
    pb::Request { id: 7, body: Some(Body::Create(pb::Create { container_id: "c".into(), plan })) }
}

fn roundtrip(request: &pb::Request, fds: Vec<OwnedFd>) -> Result<(pb::Request, Vec<OwnedFd>), PacketError> {
    let (a, b) = socket::pair().unwrap();
    Outgoing::new(request, fds).unwrap().send(a.as_fd()).unwrap();
    receive(b.as_fd(), &mut vec![0; MAX_PACKET_BYTES])
}

fn memfd(bytes: &[u8], seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create(c"test", flags).unwrap());
    file.write_all(bytes).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

#[test]
fn short_and_long_messages_arrive_with_their_descriptors() {
    for len in [0, 100, MAX_PACKET_BYTES - 20, MAX_PACKET_BYTES, 1 << 20] {
        let request = create(vec![0xa5; len]);
        let (read, write) = nix::unistd::pipe().unwrap();
        let (got, fds) = roundtrip(&request, vec![read, write]).unwrap();
        assert_eq!(got, request);
        assert_eq!(fds.len(), 2);
        nix::unistd::write(&fds[1], b"!").unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&fds[0], &mut byte).unwrap(), 1);
    }
}

#[test]
fn what_exceeds_the_protocol_is_refused_by_the_sender() {
    let long = create(vec![0; MAX_MESSAGE_BYTES]);
    assert!(matches!(Outgoing::new(&long, vec![]), Err(PacketError::TooLarge { .. })));
    let fds = |n| (0..n).map(|_| memfd(b"", SealFlag::empty())).collect::<Vec<_>>();
    assert!(Outgoing::new(&create(vec![]), fds(socket::MAX_FDS)).is_ok());
    assert!(matches!(Outgoing::new(&create(vec![]), fds(socket::MAX_FDS + 1)), Err(PacketError::TooLarge { .. })));
    // The memfd of a long message counts.
    assert!(matches!(
        Outgoing::new(&create(vec![0; MAX_PACKET_BYTES]), fds(socket::MAX_FDS)),
        Err(PacketError::TooLarge { .. })
    ));
}

#[test]
fn a_memfd_must_be_sealed_and_small() {
    let bytes = create(vec![1; 10]).encode_to_vec();
    assert!(decode::<pb::Request>(&[IN_MEMFD], vec![memfd(&bytes, SEALS)]).is_ok());
    for missing in SEALS.iter() {
        let fd = memfd(&bytes, SEALS.difference(missing));
        let refused = decode::<pb::Request>(&[IN_MEMFD], vec![fd]);
        assert!(matches!(refused, Err(PacketError::Malformed("memfd is not sealed"))), "{missing:?}");
    }
    let huge = memfd(b"", SealFlag::empty());
    nix::unistd::ftruncate(&huge, 1 << 40).unwrap();
    fcntl(&huge, FcntlArg::F_ADD_SEALS(SEALS)).unwrap();
    assert!(matches!(decode::<pb::Request>(&[IN_MEMFD], vec![huge]), Err(PacketError::Malformed("message too long"))));
    let (read, _write) = nix::unistd::pipe().unwrap();
    assert!(matches!(
        decode::<pb::Request>(&[IN_MEMFD], vec![read]),
        Err(PacketError::Malformed("descriptor is no memfd"))
    ));
}

#[test]
fn tags_and_their_company_are_checked() {
    let decode = |packet: &[u8]| decode::<pb::Request>(packet, vec![]);
    assert!(matches!(decode(&[]), Err(PacketError::Malformed("no tag"))));
    assert!(matches!(decode(&[2]), Err(PacketError::Malformed("unknown tag"))));
    assert!(matches!(decode(&[IN_MEMFD]), Err(PacketError::Malformed("memfd announced, none came"))));
    assert!(matches!(decode(&[IN_MEMFD, 0]), Err(PacketError::Malformed("bytes beside a memfd"))));
    assert_eq!(decode(&[INLINE]).unwrap().0, pb::Request::default());
}

#[test]
fn a_closed_peer_and_an_oversized_packet_are_told_apart() {
    let (a, b) = socket::pair().unwrap();
    socket::send(a.as_fd(), &vec![0; MAX_PACKET_BYTES + 1], &[]).unwrap();
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    assert!(matches!(receive::<pb::Request>(b.as_fd(), &mut buffer), Err(PacketError::Malformed(_))));
    drop(a);
    assert!(matches!(receive::<pb::Request>(b.as_fd(), &mut buffer), Err(PacketError::Closed)));
}

proptest! {
    /// Whatever comes, decoding ends in a message or an error.
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        decode::<pb::Request>(&bytes, vec![]).ok();
        decode::<pb::Packet>(&bytes, vec![]).ok();
        let mut inline = vec![INLINE];
        inline.extend_from_slice(&bytes);
        decode::<pb::Request>(&inline, vec![]).ok();
        decode::<pb::Request>(&[IN_MEMFD], vec![memfd(&bytes, SEALS)]).ok();
    }

    /// A message with any one byte changed is a message or an error.
    #[test]
    fn damaged_messages_never_panic(at in 0usize..200, to in any::<u8>(), plan in proptest::collection::vec(any::<u8>(), 0..150)) {
        let mut bytes = vec![INLINE];
        create(plan).encode(&mut bytes).unwrap();
        let at = at % bytes.len();
        bytes[at] = to;
        decode::<pb::Request>(&bytes, vec![]).ok();
    }
}
