//! TLS: own authorities, client certificates, `skip_verify`, and never back to plain HTTP. Proxies.

use super::fake::{Access, Authority, Identity, TokenPolicy, TokenServer, self_signed};
use super::*;
use crate::image::registry::connect::Proxies;

fn tls(identity: Identity, clients: Option<&Authority>) -> Registry {
    let clients = clients.map(|authority| authority.pem().to_owned());
    let registry = Registry::with(Options { identity: Some(identity), clients, ..Options::default() });
    small(&registry, "a", "1");
    registry
}

/// An entry for the registry, under a name that is not loopback's, so that nothing is allowed by default.
fn entry(registry: &Registry, keys: &str) -> String {
    format!("server = \"https://{}\"\n{keys}\n", registry.host())
}

#[tokio::test]
async fn an_own_authority_has_to_be_named() {
    let (home, authority) = (Home::new(), Authority::new("ours"));
    let registry = tls(authority.sign(&["127.0.0.1"]), None);
    home.hosts("r.example", &entry(&registry, ""));
    let words = ["connect to", &registry.host(), "UnknownIssuer", "hosts.toml"];
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Tls, &words);
    assert!(registry.requests().is_empty());

    home.write("r.example", "ca.pem", authority.pem());
    home.hosts("r.example", &entry(&registry, "ca = \"ca.pem\""));
    home.manifest("r.example/a:1").await.unwrap();
    home.hosts("r.example", &entry(&registry, "skip_verify = true"));
    home.manifest("r.example/a:1").await.unwrap();
    home.hosts("r.example", &entry(&registry, "skip_verify = false"));
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Tls, &[]);
}

#[tokio::test]
async fn each_host_has_its_own_authority() {
    let home = Home::new();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (first, second) = (tls(ours.sign(&["127.0.0.1"]), None), tls(theirs.sign(&["127.0.0.1"]), None));
    home.write("r.example", "ours.pem", ours.pem());
    let host = |registry: &Registry| format!("[host.\"{}\"]\nca = \"ours.pem\"\n", registry.url(""));
    home.hosts("r.example", &[host(&second), host(&first)].concat());
    home.manifest("r.example/a:1").await.unwrap();
    assert_eq!((first.requests().len(), second.requests().len()), (1, 0));
}

#[tokio::test]
async fn names_count_even_for_a_known_authority() {
    let (home, authority) = (Home::new(), Authority::new("ours"));
    let registry = tls(authority.sign(&["other.example"]), None);
    home.write("r.example", "ca.pem", authority.pem());
    home.hosts("r.example", &entry(&registry, "ca = \"ca.pem\""));
    let text = fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Tls, &["name"]);
    assert!(text.contains("other.example"), "{text}");
}

#[tokio::test]
async fn a_certificate_can_be_its_own_authority() {
    let home = Home::new();
    let identity = self_signed(&["127.0.0.1"]);
    let registry = tls(identity.clone(), None);
    home.write("r.example", "ca.pem", &identity.certificate);
    home.hosts("r.example", &entry(&registry, "ca = [\"ca.pem\"]"));
    home.manifest("r.example/a:1").await.unwrap();

    let wrong_name = self_signed(&["other.example"]);
    let registry = tls(wrong_name.clone(), None);
    home.write("r.example", "ca.pem", &wrong_name.certificate);
    home.hosts("r.example", &entry(&registry, "ca = \"ca.pem\""));
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Tls, &["name"]);
    // Having signed itself is not enough: it must be the very certificate.
    let stranger = tls(self_signed(&["127.0.0.1"]), None);
    home.hosts("r.example", &entry(&stranger, "ca = \"ca.pem\""));
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Tls, &[]);
}

#[tokio::test]
async fn the_client_certificate_that_the_server_wants_is_shown() {
    let (home, servers) = (Home::new(), Authority::new("servers"));
    let (ours, others) = (Authority::new("our clients"), Authority::new("other clients"));
    let registry = tls(servers.sign(&["127.0.0.1"]), Some(&ours));
    let (mine, other) = (ours.sign(&["me"]), others.sign(&["me"]));
    for (file, text) in [
        ("ca.pem", servers.pem().to_owned()),
        ("mine.cert", mine.certificate.clone()),
        ("mine.key", mine.key.clone()),
        ("other.pem", [other.certificate, other.key].concat()),
        ("mine.pem", [mine.certificate, mine.key].concat()),
    ] {
        home.write("r.example", file, &text);
    }
    for (client, fine) in [
        ("[[\"mine.cert\", \"mine.key\"]]", true),
        ("\"mine.pem\"", true),
        ("[\"other.pem\", \"mine.pem\"]", true),
        ("\"other.pem\"", false),
    ] {
        home.hosts("r.example", &entry(&registry, &format!("ca = \"ca.pem\"\nclient = {client}")));
        let result = home.manifest("r.example/a:1").await;
        assert_eq!(result.is_ok(), fine, "{client}: {result:?}");
    }
    for (client, word) in [
        ("\"mine.key\"", "no certificate"),
        ("\"mine.cert\"", "no private key"),
        ("[[\"mine.cert\", \"absent\"]]", "absent"),
        ("[[\"mine.cert\", \"other.pem\"]]", "mine.cert"),
    ] {
        home.hosts("r.example", &entry(&registry, &format!("ca = \"ca.pem\"\nclient = {client}")));
        let error = home.manifest("r.example/a:1").await.unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains("PRIVATE KEY-"), "{client}: {error}");
    }
}

#[tokio::test]
async fn dockers_certificate_files_work_too() {
    let (home, authority) = (Home::new(), Authority::new("ours"));
    let registry = tls(authority.sign(&["127.0.0.1"]), Some(&authority));
    let client = authority.sign(&["me"]);
    // A file without a server: the directory is that of the registry itself.
    let host = registry.host();
    home.write(&host, "ca.crt", authority.pem());
    home.write(&host, "me.cert", &client.certificate);
    home.write(&host, "me.key", &client.key);
    home.manifest(&format!("{host}/a:1")).await.unwrap();
}

#[tokio::test]
async fn loopback_needs_no_entry_with_tls_or_without() {
    let home = Home::new();
    let (plain, secure) = (Registry::start(), tls(self_signed(&["nobody.example"]), None));
    small(&plain, "a", "1");
    for registry in [&plain, &secure] {
        home.manifest(&format!("{}/a:1", registry.host())).await.unwrap();
        home.manifest(&format!("localhost:{}/a:1", registry.port())).await.unwrap();
        assert_eq!(registry.requests().len(), 2);
    }
}

#[tokio::test]
async fn a_redirect_from_tls_to_plain_http_is_refused() {
    let (home, storage) = (Home::new(), Registry::start());
    let registry = tls(self_signed(&["127.0.0.1"]), None);
    let digest = storage.add_blob("a", &noise(1000)).parse().unwrap();
    let to = storage.url(&format!("/v2/a/blobs/{digest}"));
    registry.misbehave("GET", "/blobs/", 9, Misdeed::Redirect(to));
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    let result = repository.blob(&digest, 1000, None).chunk().await;
    fails(result, RegistryErrorKind::Protocol, &["from TLS to plain HTTP", &storage.host()]);
    assert!(storage.requests().is_empty());
}

#[tokio::test]
async fn a_token_server_without_tls_gets_nothing_for_a_registry_with_it() {
    let users = vec![("me".to_owned(), "hunter2".to_owned())];
    let policy = TokenPolicy { users, ..TokenPolicy::default() };
    let (home, authority) = (Home::new(), Authority::new("ours"));
    let login = Credentials::password("me", "hunter2");
    let registry_of = |tokens: &TokenServer| {
        let identity = Some(authority.sign(&["127.0.0.1"]));
        let registry = Registry::with(Options { access: Access::tokens_of(tokens), identity, clients: None });
        small(&registry, "a", "1");
        registry
    };
    let plain = TokenServer::start(policy.clone());
    let registry = registry_of(&plain);
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login).await;
    fails(repository.manifest().await, RegistryErrorKind::Protocol, &["plain HTTP instead of TLS", &plain.host()]);
    assert!(plain.requests().is_empty());

    // Over TLS it gets them, on another port, as those of Docker Hub do on another host.
    let secure = TokenServer::with_tls(policy, Some(&authority.sign(&["127.0.0.1"])));
    let registry = registry_of(&secure);
    let host = registry.host();
    home.write(&host, "ca.crt", authority.pem());
    home.open_with(&format!("{host}/a:1"), &login).await.manifest().await.unwrap();
    assert_eq!(secure.issued(), 1);
}

/// That a registry on this machine is not verified says nothing about whom it names.
#[tokio::test]
async fn what_is_trusted_of_a_registry_is_not_of_whom_it_names() {
    let users = vec![("me".to_owned(), "hunter2".to_owned())];
    let policy = TokenPolicy { users, ..TokenPolicy::default() };
    let (home, authority) = (Home::new(), Authority::new("ours"));
    let names = ["127.0.0.1", "localhost"];
    let tokens = TokenServer::with_tls(policy, Some(&authority.sign(&names)));
    let registry = tls(authority.sign(&names), Some(&authority));
    let host = registry.host();
    home.write(&host, "ca.pem", authority.pem());
    let me = authority.sign(&["me"]);
    home.write(&host, "me.pem", &[me.certificate, me.key].concat());
    let realm = tokens.realm().replace("127.0.0.1", "localhost");
    let headers = vec![("www-authenticate".to_owned(), format!("Bearer realm=\"{realm}\""))];
    registry.misbehave("*", "", 9, Misdeed::Status(401, headers, String::new()));
    for keys in ["", "skip_verify = true\n", "skip_verify = false\nca = \"ca.pem\"\n"] {
        home.hosts(&host, &format!("{keys}client = \"me.pem\"\n"));
        let repository = home.open_with(&format!("{host}/a:1"), &Credentials::password("me", "hunter2")).await;
        let text = fails(repository.manifest().await, RegistryErrorKind::Tls, &["localhost", "the system's"]);
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(tokens.requests().is_empty());
}

#[tokio::test]
async fn a_host_that_speaks_plain_http_where_tls_is_due_is_not_spoken_to() {
    let (home, registry) = (Home::new(), Registry::start());
    small(&registry, "a", "1");
    home.hosts("r.example", &entry(&registry, ""));
    fails(home.manifest("r.example/a:1").await, RegistryErrorKind::Tls, &["plain HTTP", "hosts.toml"]);
    assert!(registry.requests().is_empty());
}

/// A registry that plays the proxy: it answers for any host it is asked about.
#[tokio::test]
async fn plain_requests_go_through_a_proxy_whole() {
    let (home, proxy) = (Home::new(), Registry::start());
    small(&proxy, "a", "1");
    home.hosts("r.example", "server = \"http://r.example\"\n");
    home.hosts("direct.example", &format!("server = \"{}\"\n", proxy.url("")));
    let address = format!("http://user:pw@{}", proxy.host());
    let client = RegistryClient::with_proxies(settings(&home.directory), Proxies::of(&address, "", "no.example"));
    let fetch = async |reference: &str| {
        let repository = client.open(&reference.parse().unwrap(), &Credentials::anonymous()).await.unwrap();
        repository.manifest().await.unwrap()
    };
    fetch("r.example/a:1").await;
    let seen = proxy.requests();
    assert_eq!(seen[0].header("proxy-authorization"), "Basic dXNlcjpwdw==");
    assert_eq!(seen[0].header("host"), "r.example");
    // What is on this machine is asked directly.
    proxy.forget();
    fetch("direct.example/a:1").await;
    assert_eq!(proxy.requests()[0].header("proxy-authorization"), "");
}

/// TLS goes through a tunnel: the proxy sees the name of the host, and nothing of what is said.
#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    use std::io::{BufRead, BufReader, Write};
    let (home, authority) = (Home::new(), Authority::new("ours"));
    let registry = tls(authority.sign(&["r.example"]), None);
    home.write("r.example", "ca.pem", authority.pem());
    home.hosts("r.example", "server = \"https://r.example\"\nca = \"ca.pem\"\n");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://user:pw@{}", listener.local_addr().unwrap());
    let target = registry.host();
    let proxy = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let mut lines = Vec::new();
        let mut reader = BufReader::new(client.try_clone().unwrap());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_lowercase());
        }
        (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let server = std::net::TcpStream::connect(target).unwrap();
        let (up, down) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let upwards = std::thread::spawn(move || {
            std::io::copy(&mut &client, &mut &up).ok();
            up.shutdown(std::net::Shutdown::Both).ok();
        });
        std::io::copy(&mut &server, &mut &down).ok();
        down.shutdown(std::net::Shutdown::Both).ok();
        upwards.join().unwrap();
        lines
    });
    let client = RegistryClient::with_proxies(settings(&home.directory), Proxies::of("", &address, ""));
    {
        let repository = client.open(&"r.example/a:1".parse().unwrap(), &Credentials::anonymous()).await.unwrap();
        repository.manifest().await.unwrap();
    }
    let lines = tokio::task::spawn_blocking(move || proxy.join().unwrap()).await.unwrap();
    assert_eq!(lines[0], "connect r.example:443 http/1.1");
    assert!(lines.contains(&"proxy-authorization: basic dxnlcjpwdw==".to_owned()), "{lines:?}");
}
