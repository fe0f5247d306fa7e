//! `hosts.toml`: who is asked, in which order, for what.

use super::fake::Access;
use super::*;

fn entry(registry: &Registry, keys: &str) -> String {
    format!("[host.\"{}\"]\n{keys}\n", registry.url(""))
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_told_for_whom() {
    let (home, first, second) = (Home::new(), Registry::start(), Registry::start());
    let digest = small(&second, "library/busybox", "1");
    home.hosts("docker.io", &[entry(&first, ""), entry(&second, "")].concat());
    let got = home.manifest("busybox:1").await.unwrap();
    assert_eq!(got.digest.as_str(), digest);
    for mirror in [&first, &second] {
        assert_eq!(mirror.requests()[0].target, "/v2/library/busybox/manifests/1?ns=docker.io");
    }
}

#[tokio::test]
async fn a_mirror_that_may_not_say_what_a_tag_means_is_not_asked() {
    let (home, mirror, server) = (Home::new(), Registry::start(), Registry::start());
    let old = mirror.add_manifest("a", Some("1"), OCI_MANIFEST, b"old");
    let new = small(&server, "a", "1");
    let blob = mirror.add_blob("a", &noise(1000)).parse().unwrap();
    let text = format!("server = \"{}\"\n{}", server.url(""), entry(&mirror, "capabilities = [\"pull\"]"));
    home.hosts("r.example", &text);
    let repository = home.open("r.example/a:1").await;
    assert_eq!(repository.resolve().await.unwrap().digest.as_str(), new);
    assert_eq!(repository.manifest().await.unwrap().digest.as_str(), new);
    assert!(mirror.requests().is_empty());
    // Content by digest is what it is good for.
    assert_eq!(read(&mut repository.blob(&blob, 1000, None)).await.unwrap().len(), 1000);
    home.manifest(&format!("r.example/a@{old}")).await.unwrap();
    assert_eq!(mirror.requests().len(), 2);

    home.hosts("r.example", "server = \"http://127.0.0.1:1\"\ncapabilities = [\"push\"]\n");
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Config, &["r.example", "hosts.toml"]);
}

#[tokio::test]
async fn a_mirror_out_of_order_is_passed_over_for_the_rest_of_the_pull() {
    let (home, server) = (Home::new(), Registry::start());
    small(&server, "a", "1");
    let blob = server.add_blob("a", &noise(1000)).parse().unwrap();
    let broken = Registry::start();
    broken.misbehave("*", "", 1000, Misdeed::Status(502, vec![], String::new()));
    let away = {
        let gone = Registry::start();
        entry(&gone, "")
    };
    let text = format!("server = \"{}\"\n{away}{}", server.url(""), entry(&broken, ""));
    home.hosts("r.example", &text);
    let repository = home.open("r.example/a:1").await;
    repository.manifest().await.unwrap();
    assert_eq!(broken.requests().len(), 2, "tried again once, then given up");
    assert_eq!(read(&mut repository.blob(&blob, 1000, None)).await.unwrap().len(), 1000);
    assert_eq!(broken.requests().len(), 2);
    // The next pull gives it a chance again.
    home.manifest("r.example/a:1").await.unwrap();
    assert_eq!(broken.requests().len(), 4);
}

#[tokio::test]
async fn a_mirror_that_lies_or_lacks_something_is_made_up_for() {
    let (home, mirror, server) = (Home::new(), Registry::start(), Registry::start());
    home.hosts("r.example", &format!("server = \"{}\"\n{}", server.url(""), entry(&mirror, "")));
    let digest = small(&server, "a", "1");
    small(&mirror, "a", "1");
    mirror.misbehave("GET", "/manifests/", 1, Misdeed::Garble);
    let got = home.manifest(&format!("r.example/a@{digest}")).await.unwrap();
    assert_eq!(got.digest.as_str(), digest);

    let bytes = noise(100_000);
    let blob = server.add_blob("a", &bytes).parse().unwrap();
    let repository = home.open("r.example/a:1").await;
    assert!(read(&mut repository.blob(&blob, 100_000, None)).await.unwrap() == bytes);
    // In the middle of a blob the next host goes on.
    mirror.add_blob("a", &bytes);
    mirror.misbehave("GET", "/blobs/", 1, Misdeed::TruncateAfter(30_000));
    mirror.misbehave("GET", "/blobs/", 9, Misdeed::Status(500, vec![], String::new()));
    server.forget();
    assert!(read(&mut repository.blob(&blob, 100_000, None)).await.unwrap() == bytes);
    assert_eq!(server.requests()[0].header("range"), "bytes=30000-99999");
}

#[tokio::test]
async fn when_all_fail_the_last_counts_and_the_others_are_mentioned() {
    let (home, mirror, server) = (Home::new(), Registry::start(), Registry::start());
    mirror.misbehave("*", "", 9, Misdeed::Status(403, vec![], "no guests".to_owned()));
    home.hosts("r.example", &format!("server = \"{}\"\n{}", server.url(""), entry(&mirror, "")));
    let words = [&server.host(), "404", "before that", &mirror.host(), "403", "no guests"];
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::NotFound, &words);
}

#[tokio::test]
async fn a_blob_that_one_mirror_spoilt_comes_from_the_next() {
    let (home, mirror, server) = (Home::new(), Registry::start(), Registry::start());
    let blob = mirror.add_blob("a", &noise(1000)).parse().unwrap();
    server.add_blob("a", &noise(1000));
    home.hosts("r.example", &format!("server = \"{}\"\n{}", server.url(""), entry(&mirror, "")));
    mirror.misbehave("GET", "/blobs/", 9, Misdeed::Garble);
    let repository = home.open("r.example/a:1").await;
    assert!(repository.small_blob(&blob, 1000, 1000).await.unwrap() == noise(1000));
    assert_eq!((mirror.requests().len(), server.requests().len()), (1, 1));
    // Of this blob it is not asked again; large ones are given up by whoever compares their digest.
    assert_eq!(read(&mut repository.blob(&blob, 1000, None)).await.unwrap().len(), 1000);
    assert_eq!(mirror.requests().len(), 1);
    assert!(!repository.distrust(&blob));
    fails(
        read(&mut repository.blob(&blob, 1000, None)).await,
        RegistryErrorKind::Mismatch,
        &["every host", "r.example"],
    );
}

#[tokio::test]
async fn paths_and_headers_are_as_configured() {
    let (home, mirror) = (Home::new(), Registry::start());
    small(&mirror, "a", "1");
    let url = mirror.url("");
    let odd = format!(
        "[host.\"{url}/odd/v2/root\"]\noverride_path = true\n[host.\"{url}/odd/v2/root\".header]\nx-key = [\"a\", \"b\"]\n"
    );
    let below = format!("[host.\"{url}/below\"]\n");
    home.hosts("_default", &[odd, below].concat());
    home.manifest("r.example:5000/a:1").await.unwrap();
    let requests = mirror.requests();
    assert_eq!(requests[0].target, "/odd/v2/root/a/manifests/1?ns=r.example:5000");
    let values: Vec<_> = requests[0].headers.get_all("x-key").iter().collect();
    assert_eq!(values, ["a", "b"]);
    assert_eq!(requests[1].target, "/below/v2/a/manifests/1?ns=r.example:5000");
    assert_eq!(requests[1].header("x-key"), "");
}

#[tokio::test]
async fn credentials_of_a_registry_are_not_shown_to_its_mirrors() {
    let (home, server) = (Home::new(), Registry::start());
    let mirror =
        Registry::with(Options { access: Access::Basic("me".to_owned(), "hunter2".to_owned()), ..Options::default() });
    small(&mirror, "a", "1");
    small(&server, "a", "1");
    let host = server.host();
    home.hosts(&host, &format!("server = \"{}\"\n{}", server.url(""), entry(&mirror, "")));
    let reference = format!("{host}/a:1");
    home.open_with(&reference, &Credentials::password("me", "hunter2")).await.manifest().await.unwrap();
    let mirrored = mirror.requests();
    assert_eq!((mirrored.len(), mirrored[0].header("authorization").as_str()), (1, ""));
    assert_eq!(server.requests().len(), 1);

    // A key that the file itself names for the mirror is its own.
    let key = "[host.\"URL\".header]\nauthorization = \"Basic bWU6aHVudGVyMg==\"\n".replace("URL", &mirror.url(""));
    home.hosts(&host, &format!("server = \"{}\"\n{}{key}", server.url(""), entry(&mirror, "")));
    server.forget();
    home.manifest(&reference).await.unwrap();
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_file_that_cannot_be_read_fails_the_pull() {
    let home = Home::new();
    home.hosts("r.example", "[host.\"https://m\"]\nskip_verify = \"please\"\n");
    let result = home.client.open(&"r.example/a:1".parse().unwrap(), &Credentials::anonymous()).await;
    fails(result, RegistryErrorKind::Config, &["r.example/hosts.toml:1", "skip_verify"]);
    home.hosts("r.example", "[host.\"https://m\"]\nca = \"absent.pem\"\n");
    // Not even the next host is asked: the file said to trust only what is not there.
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Config, &["absent.pem", "m"]);
}
