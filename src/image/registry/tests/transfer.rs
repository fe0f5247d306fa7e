//! Blobs: whole, in parts, broken off, stalled, resumed.

use super::*;

/// A registry with one blob, and what it takes to ask for it.
async fn setting(length: usize) -> (Home, Registry, Repository, crate::id::Digest, Vec<u8>) {
    let (home, registry) = (Home::new(), Registry::start());
    let bytes = noise(length);
    let digest = registry.add_blob("a/b", &bytes).parse().unwrap();
    let repository = home.open(&format!("{}/a/b:1", registry.host())).await;
    (home, registry, repository, digest, bytes)
}

fn ranges(registry: &Registry) -> Vec<String> {
    registry.seen("GET", "/blobs/").iter().map(|s| s.header("range")).collect()
}

#[tokio::test]
async fn a_blob_comes_whole_or_in_parts() {
    let (_home, registry, repository, digest, bytes) = setting(700_000).await;
    let size = bytes.len() as u64;
    let mut blob = repository.blob(&digest, size, None);
    assert!(read(&mut blob).await.unwrap() == bytes);
    assert!(blob.ranges());
    assert_eq!(blob.chunk().await.unwrap(), None, "the end stays the end");

    let mut part = repository.blob(&digest, size, Some(100_000..300_001));
    assert_eq!(part.position(), 100_000);
    assert!(read(&mut part).await.unwrap() == bytes[100_000..300_001]);
    assert!(part.ranges());
    // A range beyond the blob is cut to it.
    let mut tail = repository.blob(&digest, size, Some(size - 5..size + 100));
    assert!(read(&mut tail).await.unwrap() == bytes[bytes.len() - 5..]);
    assert_eq!(ranges(&registry), ["", "bytes=100000-300000", "bytes=699995-699999"]);
}

#[tokio::test]
async fn nothing_is_asked_for_an_empty_part() {
    let (_home, registry, repository, digest, _) = setting(10).await;
    for range in [Some(5..5), Some(20..30)] {
        assert_eq!(read(&mut repository.blob(&digest, 10, range)).await.unwrap(), b"");
    }
    assert_eq!(read(&mut repository.blob(&digest, 0, None)).await.unwrap(), b"");
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn an_open_blob_can_be_split_into_parallel_parts() {
    let (_home, registry, repository, digest, bytes) = setting(1_000_000).await;
    let size = bytes.len() as u64;
    let mut first = repository.blob(&digest, size, None);
    first.open().await.unwrap();
    assert!(first.ranges());
    first.stop_at(400_000);
    let mut second = repository.blob(&digest, size, Some(400_000..size));
    let (a, b) = tokio::join!(read(&mut first), read(&mut second));
    assert!([a.unwrap(), b.unwrap()].concat() == bytes);
    assert_eq!(ranges(&registry), ["", "bytes=400000-999999"]);
    first.stop_at(10);
    assert_eq!(first.position(), 400_000);
}

#[tokio::test]
async fn what_breaks_off_is_resumed_where_it_stopped() {
    let (_home, registry, repository, digest, bytes) = setting(900_000).await;
    registry.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(300_000));
    registry.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(200_000));
    let mut blob = repository.blob(&digest, bytes.len() as u64, None);
    assert!(read(&mut blob).await.unwrap() == bytes);
    assert_eq!(ranges(&registry), ["", "bytes=300000-899999", "bytes=500000-899999"]);

    registry.forget();
    registry.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(100_000));
    let mut part = repository.blob(&digest, bytes.len() as u64, Some(50_000..400_000));
    assert!(read(&mut part).await.unwrap() == bytes[50_000..400_000]);
    assert_eq!(ranges(&registry), ["bytes=50000-399999", "bytes=150000-399999"]);
}

#[tokio::test]
async fn what_stalls_is_dropped_and_resumed() {
    let (_home, registry, repository, digest, bytes) = setting(300_000).await;
    registry.misbehave("GET", "/blobs/", 1, Misdeed::StallAfter(100_000));
    registry.misbehave("GET", "/blobs/", 1, Misdeed::Silence);
    let began = std::time::Instant::now();
    let mut blob = repository.blob(&digest, bytes.len() as u64, None);
    assert!(read(&mut blob).await.unwrap() == bytes);
    assert_eq!(ranges(&registry), ["", "bytes=100000-299999", "bytes=100000-299999"]);
    assert!(began.elapsed() >= 2 * STALL, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_trickle_is_a_stall_but_a_slow_reader_is_not() {
    let (_home, registry, repository, digest, bytes) = setting(300_000).await;
    registry.misbehave("GET", "/blobs/", 1, Misdeed::Trickle(10, Duration::from_millis(100)));
    let mut blob = repository.blob(&digest, bytes.len() as u64, None);
    assert!(read(&mut blob).await.unwrap() == bytes);
    let asked = ranges(&registry);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].starts_with("bytes=1") || asked[1].starts_with("bytes=2"), "{asked:?}");

    registry.forget();
    let mut blob = repository.blob(&digest, bytes.len() as u64, None);
    let mut got = blob.chunk().await.unwrap().unwrap().len();
    tokio::time::sleep(STALL + STALL / 2).await;
    got += read(&mut blob).await.unwrap().len();
    assert_eq!((got, ranges(&registry).len()), (bytes.len(), 1));
}

#[tokio::test]
async fn a_server_without_ranges_sends_the_beginning_again_and_it_is_passed_over() {
    let (_home, registry, repository, digest, bytes) = setting(500_000).await;
    registry.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(200_001));
    registry.misbehave("GET", "/blobs/", 9, Misdeed::NoRanges);
    let mut blob = repository.blob(&digest, bytes.len() as u64, None);
    assert!(read(&mut blob).await.unwrap() == bytes);
    assert_eq!(ranges(&registry), ["", "bytes=200001-499999"]);
    assert!(!blob.ranges());

    // The first part is only cut off at its end; any other is not fetched over and over.
    let mut head = repository.blob(&digest, bytes.len() as u64, Some(0..1000));
    assert!(read(&mut head).await.unwrap() == bytes[..1000]);
    assert!(!head.ranges());
    let mut middle = repository.blob(&digest, bytes.len() as u64, Some(1000..2000));
    registry.forget();
    fails(middle.chunk().await, RegistryErrorKind::NoRanges, &["no ranges", &registry.host()]);
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_server_that_only_says_it_has_ranges_is_found_out_once() {
    let (_home, registry, repository, digest, bytes) = setting(500_000).await;
    let size = bytes.len() as u64;
    registry.misbehave("GET", "/blobs/", 9, Misdeed::FalseRanges);
    let mut first = repository.blob(&digest, size, None);
    first.open().await.unwrap();
    assert!(first.ranges(), "it says so");
    let mut part = repository.blob(&digest, size, Some(100_000..200_000));
    fails(part.chunk().await, RegistryErrorKind::NoRanges, &["no ranges", &registry.host()]);
    // What is left comes all the same, after what came already.
    let mut rest = repository.blob(&digest, size, Some(100_000..size)).passing_over();
    assert!(read(&mut rest).await.unwrap() == bytes[100_000..]);
    assert!(!rest.ranges());
    // And it is not believed again.
    let mut other = repository.blob(&digest, size, None);
    other.open().await.unwrap();
    assert!(!other.ranges());
    assert_eq!(ranges(&registry), ["", "bytes=100000-199999", "bytes=100000-499999", ""]);
}

#[tokio::test]
async fn attempts_have_an_end() {
    let (_home, registry, repository, digest, bytes) = setting(100_000).await;
    registry.misbehave("GET", "/blobs/", 1000, Misdeed::TruncateAfter(1));
    let mut blob = repository.blob(&digest, bytes.len() as u64, None);
    let text = fails(read(&mut blob).await, RegistryErrorKind::Unavailable, &[&registry.host(), "blob", "broke off"]);
    assert!(text.contains(digest.as_str()), "{text}");
    assert_eq!(registry.requests().len(), 5);
    // Later it may go on from where it was.
    registry.behave();
    let (position, rest) = (blob.position(), read(&mut blob).await.unwrap());
    assert!(position == 5 && rest == bytes[5..], "from {position}, {} bytes", rest.len());
}

#[tokio::test]
async fn errors_that_pass_are_waited_out() {
    let (_home, registry, repository, digest, bytes) = setting(1000).await;
    let status = |status, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Misdeed::Status(status, headers, String::new())
    };
    registry.misbehave("GET", "/blobs/", 2, status(500, &[]));
    registry.misbehave("GET", "/blobs/", 1, status(503, &[]));
    assert!(read(&mut repository.blob(&digest, 1000, None)).await.unwrap() == bytes);
    assert_eq!(registry.requests().len(), 4);

    registry.misbehave("GET", "/blobs/", 1, status(429, &[("retry-after", "1")]));
    let began = std::time::Instant::now();
    assert!(read(&mut repository.blob(&digest, 1000, None)).await.unwrap() == bytes);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());

    // Who asks us to wait for an hour is not waited for.
    registry.forget();
    registry.misbehave("GET", "/blobs/", 9, status(429, &[("retry-after", "3600")]));
    let result = read(&mut repository.blob(&digest, 1000, None)).await;
    fails(result, RegistryErrorKind::RateLimited, &["429", "later"]);
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_registry_that_is_away_is_named_with_the_cause() {
    let home = Home::new();
    let host = {
        let registry = Registry::start();
        registry.host()
    };
    let words = ["connect to", &host, "manifest of a:1", "refused"];
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Unavailable, &words);
}
