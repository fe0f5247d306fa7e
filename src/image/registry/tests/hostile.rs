//! Registries that lie, flood, stall and lead astray.

use super::*;

/// A registry with a manifest `a:1` and a blob in `a`.
fn registry() -> (Registry, String, String) {
    let registry = Registry::start();
    let digest = small(&registry, "a", "1");
    let blob = registry.add_blob("a", &noise(100_000));
    (registry, digest, blob)
}

#[tokio::test]
async fn other_bytes_than_promised_are_refused() {
    let (home, (registry, digest, _)) = (Home::new(), registry());
    let host = registry.host();
    for reference in [format!("{host}/a:1"), format!("{host}/a@{digest}")] {
        registry.misbehave("GET", "/manifests/", 1, Misdeed::Garble);
        fails(home.manifest(&reference).await, RegistryErrorKind::Mismatch, &[&host, &digest, "damaged or forged"]);
    }
    // A HEAD that names another digest than the one asked for.
    let repository = home.open(&format!("{host}/a@{digest}")).await;
    let other = fake::digest_of(b"other");
    registry.misbehave("HEAD", "", 1, Misdeed::Header("docker-content-digest".to_owned(), other.clone()));
    fails(repository.resolve().await, RegistryErrorKind::Mismatch, &[&other, &digest]);
}

#[tokio::test]
async fn blobs_of_another_size_are_refused_at_once() {
    let (home, (registry, _, blob)) = (Home::new(), registry());
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    let digest = blob.parse().unwrap();
    for misdeed in [Misdeed::Longer(1), Misdeed::Shorter(1)] {
        registry.misbehave("GET", "/blobs/", 1, misdeed);
        let mut blob = repository.blob(&digest, 100_000, None);
        fails(blob.chunk().await, RegistryErrorKind::Mismatch, &["bytes", "not 100000"]);
    }
    // By the total of a part, too; and a blob that is shorter than the part begins.
    let mut part = repository.blob(&digest, 200_000, Some(0..10));
    fails(part.chunk().await, RegistryErrorKind::Mismatch, &["100000 bytes", "not 200000"]);
    let mut beyond = repository.blob(&digest, 200_000, Some(150_000..150_010));
    fails(beyond.chunk().await, RegistryErrorKind::Mismatch, &["fewer than 150010"]);
    registry.misbehave("GET", "/blobs/", 1, Misdeed::WrongRange);
    let mut part = repository.blob(&digest, 100_000, Some(10..20));
    fails(part.chunk().await, RegistryErrorKind::Mismatch, &["3 bytes"]);
}

#[tokio::test]
async fn a_part_that_begins_elsewhere_is_refused() {
    let (home, (registry, _, blob)) = (Home::new(), registry());
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    for range in ["bytes 11-19/100000", "bytes 12-11/100000", "bytes 10/9", "chars 10-19/100000", ""] {
        let misdeed = Misdeed::Header("content-range".to_owned(), range.to_owned());
        registry.misbehave("GET", "/blobs/", 1, misdeed);
        let mut part = repository.blob(&blob.parse().unwrap(), 100_000, Some(10..20));
        fails(part.chunk().await, RegistryErrorKind::Protocol, &["part"]);
    }
}

#[tokio::test]
async fn endless_bodies_are_cut() {
    let (home, (registry, _, blob)) = (Home::new(), registry());
    let host = registry.host();
    registry.misbehave("GET", "", 9, Misdeed::Endless);
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Limit, &[&host, "4194304 bytes"]);
    let repository = home.open(&format!("{host}/a:1")).await;
    let got = read(&mut repository.blob(&blob.parse().unwrap(), 100_000, None)).await.unwrap();
    assert_eq!(got.len(), 100_000, "never more than the descriptor says");
    fails(repository.small_blob(&blob.parse().unwrap(), 100_000, 1 << 20).await, RegistryErrorKind::Mismatch, &[]);
}

#[tokio::test]
async fn giant_documents_are_not_even_begun() {
    let (home, registry) = (Home::new(), Registry::start());
    let giant = vec![b' '; (4 << 20) + 1];
    let digest = registry.add_manifest("a", Some("1"), OCI_INDEX, &giant);
    let host = registry.host();
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Limit, &["4194304 bytes"]);
    let repository = home.open(&format!("{host}/a:1")).await;
    registry.forget();
    let result = repository.manifest_at(&digest.parse().unwrap(), giant.len() as u64).await;
    fails(result, RegistryErrorKind::Limit, &["4194304 bytes"]);
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn redirects_have_an_end() {
    let (home, (registry, _, blob)) = (Home::new(), registry());
    let host = registry.host();
    registry.misbehave("GET", "", 1000, Misdeed::Redirect("/v2/a/manifests/1".to_owned()));
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Protocol, &[&host, "redirects"]);
    assert_eq!(registry.requests().len(), 6);
    registry.behave();
    let repository = home.open(&format!("{host}/a:1")).await;
    for to in
        ["", "ftp://127.0.0.1/x", "http://user:pw@127.0.0.1/", "http://169.254.169.254/latest", "http://[fe80::1]/"]
    {
        registry.misbehave("GET", "/blobs/", 1, Misdeed::Redirect(to.to_owned()));
        let mut blob = repository.blob(&blob.parse().unwrap(), 100_000, None);
        let text = fails(blob.chunk().await, RegistryErrorKind::Protocol, &[]);
        assert!(text.contains("redirect") || text.contains("off limits"), "{text}");
    }
}

/// A part that is resumed goes the way of redirects again, as their addresses may be good for a short time only.
#[tokio::test]
async fn a_blob_behind_a_redirect_is_resumed() {
    let (home, (registry, _, blob), storage) = (Home::new(), registry(), Registry::start());
    storage.add_blob("a", &noise(100_000));
    registry.misbehave("GET", "/blobs/", 9, Misdeed::Redirect(storage.url(&format!("/v2/a/blobs/{blob}?sig=x%2F"))));
    storage.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(40_000));
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    let got = read(&mut repository.blob(&blob.parse().unwrap(), 100_000, None)).await.unwrap();
    assert!(got == noise(100_000));
    let asked: Vec<String> = storage.requests().iter().map(|s| s.header("range")).collect();
    assert_eq!(asked, ["", "bytes=40000-99999"]);
    assert!(storage.requests()[0].target.ends_with("?sig=x%2F"));
}

#[tokio::test]
async fn huge_headers_are_refused() {
    let (home, (registry, _, _)) = (Home::new(), registry());
    let host = registry.host();
    let value = "x".repeat(300 << 10);
    registry.misbehave("GET", "", 9, Misdeed::Header("x-flood".to_owned(), value));
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Limit, &[&host, "header"]);
    registry.behave();
    let headers = (0..500).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    registry.misbehave("GET", "", 9, Misdeed::Status(200, headers, String::new()));
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Limit, &[&host, "header"]);
}

#[tokio::test]
async fn errors_of_registries_are_shown_clipped_and_clean() {
    let (home, (registry, _, _)) = (Home::new(), registry());
    let host = registry.host();
    let flood = format!("{{\"errors\":[{{\"code\":\"X\",\"message\":\"a\\u001b[31m\\nb {}\"}}]}}", "y".repeat(9000));
    registry.misbehave("GET", "", 1, Misdeed::Status(400, vec![], flood));
    let text = fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Protocol, &["X, a [31m b y"]);
    assert!(text.len() < 500, "{text}");
    registry.misbehave("GET", "", 1, Misdeed::Status(403, vec![], "[".repeat(1 << 20)));
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Unauthorized, &["403", "[[["]);
    // Even what never ends to explain itself.
    registry.misbehave("GET", "/blobs/", 1, Misdeed::Endless);
    let repository = home.open(&format!("{host}/a:1")).await;
    let absent = fake::digest_of(b"absent").parse().unwrap();
    fails(repository.blob(&absent, 3, None).chunk().await, RegistryErrorKind::NotFound, &["404"]);
}

#[tokio::test]
async fn encodings_that_were_not_asked_for_are_refused() {
    let (home, (registry, _, blob)) = (Home::new(), registry());
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    let misdeed = Misdeed::Header("content-encoding".to_owned(), "gzip".to_owned());
    registry.misbehave("GET", "/blobs/", 1, misdeed);
    let mut blob = repository.blob(&blob.parse().unwrap(), 100_000, None);
    fails(blob.chunk().await, RegistryErrorKind::Protocol, &["gzip"]);
}

/// Whatever listens on the port: the error says that it is no registry.
#[tokio::test]
async fn what_is_no_http_server_is_said_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        // Once for TLS, once for HTTP.
        for _ in 0..2 {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut sink = [0; 4096];
            assert!(tcp.read(&mut sink).unwrap() > 0);
            tcp.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        }
    });
    let home = Home::new();
    fails(home.manifest(&format!("{host}/a:1")).await, RegistryErrorKind::Protocol, &[&host, "not HTTP"]);
    tokio::task::spawn_blocking(move || server.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let (home, (registry, _, _)) = (Home::new(), registry());
    registry.misbehave("*", "", 1000, Misdeed::Silence);
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    let text = fails(repository.resolve().await, RegistryErrorKind::Unavailable, &["no answer", "1.5 s"]);
    assert!(text.contains(&registry.host()), "{text}");
}

/// Each drop comes in time, the whole never would.
#[tokio::test]
async fn documents_that_come_drop_by_drop_are_given_up() {
    let (home, (registry, _, _)) = (Home::new(), registry());
    registry.misbehave("GET", "/manifests/", 1000, Misdeed::Trickle(1, Duration::from_millis(120)));
    let settings = RegistrySettings { progress_timeout: Duration::from_millis(250), ..settings(&home.directory) };
    let reference = format!("{}/a:1", registry.host()).parse().unwrap();
    let repository = RegistryClient::new(settings).open(&reference, &Credentials::anonymous()).await.unwrap();
    fails(repository.manifest().await, RegistryErrorKind::Unavailable, &[&registry.host(), "too slow"]);
    assert_eq!(registry.requests().len(), 5);
}
