use super::*;

/// A directory of configurations: paths below it with their contents.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

#[track_caller]
fn hosts(text: &str) -> Vec<Host> {
    let root = directory(&[("r.example/hosts.toml", text)]);
    load(root.path(), "r.example").unwrap()
}

fn shown(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|h| format!("{:?} {}{}", h.transport, h.authority, h.path)).collect()
}

#[test]
fn without_a_file_the_registry_itself_is_asked() {
    let root = directory(&[]);
    for (registry, expected) in [
        ("docker.io", "Https registry-1.docker.io/v2"),
        ("quay.io", "Https quay.io/v2"),
        ("quay.io:8443", "Https quay.io:8443/v2"),
        ("localhost", "Https localhost/v2"),
        ("localhost:443", "Https localhost:443/v2"),
        ("localhost:80", "Http localhost:80/v2"),
        ("localhost:5000", "Either localhost:5000/v2"),
        ("127.0.0.1:5000", "Either 127.0.0.1:5000/v2"),
        ("127.9.8.7:5000", "Either 127.9.8.7:5000/v2"),
        ("[::1]:5000", "Either [::1]:5000/v2"),
        ("10.0.0.1:5000", "Https 10.0.0.1:5000/v2"),
        ("localhost.example:5000", "Https localhost.example:5000/v2"),
    ] {
        let hosts = load(root.path(), registry).unwrap();
        assert_eq!(shown(&hosts), [expected], "{registry}");
        assert_eq!(hosts[0].skip_verify, is_loopback(registry) && !registry.ends_with(":80"), "{registry}");
        assert!(hosts[0].pull && hosts[0].resolve);
    }
    assert_eq!(load(Path::new("/nowhere/at/all"), "quay.io").unwrap().len(), 1);
}

#[test]
fn the_directory_is_found_by_each_of_its_names() {
    let server = |name: &str| format!("server = \"https://{name}\"");
    let all = [
        ("r.example_5000_/hosts.toml", server("a")),
        ("r.example:5000/hosts.toml", server("b")),
        ("r.example/hosts.toml", server("c")),
        ("_default/hosts.toml", server("d")),
    ];
    let files: Vec<(&str, &str)> = all.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let ask = |files: &[(&str, &str)], registry: &str| {
        load(directory(files).path(), registry).unwrap().pop().unwrap().authority
    };
    assert_eq!(ask(&files, "r.example:5000"), "a");
    assert_eq!(ask(&files[1..], "r.example:5000"), "b");
    assert_eq!(ask(&files[2..], "r.example:5000"), "d");
    assert_eq!(ask(&files, "r.example"), "c");
    assert_eq!(ask(&files, "other.example"), "d");
    assert_eq!(ask(&files[..3], "other.example"), "other.example");
}

#[test]
fn mirrors_keep_the_order_of_the_file_and_the_server_is_last() {
    let hosts = hosts(
        r#"
        server = "https://up.example"
        [host."https://z.example"]
          capabilities = ["pull"]
          [host."https://z.example".header]
            x-a = "1"
        [host."http://a.example:8080/some//./x/../path/"]
          capabilities = ["Resolve", "push"]
        [host."m.example/v2"]
        [host."https://odd.example/v2/up"]
          override_path = true
        [host."https://bare.example"]
          override_path = true
        "#,
    );
    assert_eq!(
        shown(&hosts),
        [
            "Https z.example/v2",
            "Http a.example:8080/some/path/v2",
            "Https m.example/v2",
            "Https odd.example/v2/up",
            "Https bare.example",
            "Https up.example/v2",
        ]
    );
    let can: Vec<(bool, bool)> = hosts.iter().map(|h| (h.pull, h.resolve)).collect();
    assert_eq!(can[..3], [(true, false), (false, true), (true, true)]);
    assert_eq!(hosts[0].header["x-a"], "1");
    assert!(hosts[1].header.is_empty());
    assert!(hosts[0].is_proxy_of("r.example") && !hosts[0].is_proxy_of("z.example"));
}

#[test]
fn without_a_server_the_registry_comes_last_with_the_keys_of_the_file() {
    let hosts = hosts("ca = \"own.pem\"\ncapabilities = [\"resolve\"]\n[host.\"https://m.example\"]\n");
    assert_eq!(shown(&hosts), ["Https m.example/v2", "Https r.example/v2"]);
    assert!(hosts[1].ca[0].ends_with("r.example/own.pem") && hosts[1].ca[0].is_absolute());
    assert!(hosts[1].pull && hosts[1].resolve && hosts[0].ca.is_empty());
    assert!(!hosts[1].is_proxy_of("r.example"));
}

#[test]
fn docker_hub_has_its_own_host() {
    let root = directory(&[("docker.io/hosts.toml", "server = \"https://docker.io\"\n[host.\"https://m\"]\n")]);
    let hosts = load(root.path(), "docker.io").unwrap();
    assert_eq!(shown(&hosts), ["Https m/v2", "Https registry-1.docker.io/v2"]);
    assert!(hosts[0].is_proxy_of("docker.io") && !hosts[1].is_proxy_of("docker.io"));
}

#[test]
fn every_form_of_certificates_is_read() {
    let one = |client: &str| {
        let hosts = hosts(&format!("[host.\"https://m\"]\nca = [\"a.pem\", \"/b.pem\"]\nclient = {client}"));
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(hosts[0].ca.iter().map(|p| name(p)).collect::<Vec<_>>(), ["a.pem", "b.pem"]);
        assert_eq!(hosts[0].ca[1], Path::new("/b.pem"));
        let pair = |(cert, key): &(PathBuf, Option<PathBuf>)| (name(cert), key.as_deref().map(name));
        hosts[0].client.iter().map(pair).collect::<Vec<_>>()
    };
    let text = |s: &str| s.to_owned();
    assert_eq!(one("\"c.pem\""), [(text("c.pem"), None)]);
    assert_eq!(one("[\"c.pem\", \"d.pem\"]"), [(text("c.pem"), None), (text("d.pem"), None)]);
    assert_eq!(
        one("[[\"c.cert\", \"c.key\"], [\"d.pem\", \"\"]]"),
        [(text("c.cert"), Some(text("c.key"))), (text("d.pem"), None)]
    );
}

#[test]
fn an_http_entry_with_tls_keys_tries_tls_first() {
    let text = "[host.\"http://a:5000\"]\nskip_verify = false\n[host.\"http://b:80\"]\nskip_verify = true\n[host.\"http://c\"]\n";
    assert_eq!(shown(&hosts(text))[..3], ["Either a:5000/v2", "Http b:80/v2", "Http c/v2"]);
}

#[test]
fn dockers_certificate_files_are_taken_without_a_hosts_file() {
    let root = directory(&[
        ("r.example/ca.crt", "x"),
        ("r.example/me.cert", "x"),
        ("r.example/me.key", "x"),
        ("r.example/whole.cert", "x"),
        ("r.example/readme", "x"),
        ("r.example/sub.crt/x", "x"),
    ]);
    let hosts = load(root.path(), "r.example").unwrap();
    let at = |name: &str| root.path().join("r.example").join(name);
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].ca, [at("ca.crt")]);
    assert_eq!(hosts[0].client, [(at("me.cert"), Some(at("me.key"))), (at("whole.cert"), None)]);
    assert!(!hosts[0].skip_verify);
}

#[test]
fn times_are_read_as_go_writes_them() {
    let ms = Duration::from_millis;
    for (text, expected) in [
        ("1s", Some(ms(1000))),
        ("1m30s", Some(ms(90_000))),
        ("500ms", Some(ms(500))),
        ("1.5s", Some(ms(1500))),
        ("0", Some(ms(0))),
        ("", None),
        ("1", None),
        ("s", None),
        ("1x", None),
        ("-1s", None),
        ("1s ", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(duration(text), expected, "{text:?}");
    }
    assert_eq!(hosts("[host.\"https://m\"]\ndial_timeout = \"250ms\"")[0].dial_timeout, ms(250));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, place, word) in [
        ("server = ", ":1", "hosts.toml"),
        ("server = 1", ":1", "server"),
        ("\n\n[host.\"https://m\"]\ncapabilities = [\"fly\"]", ":3", "fly"),
        ("[host.\"https://m\"]\nca = 1", ":1", "ca"),
        ("[host.\"https://m\"]\nca = [1]", ":1", "ca"),
        ("[host.\"https://m\"]\nclient = [[\"a\"]]", ":1", "pair"),
        ("[host.\"https://m\"]\nskip_verify = \"yes\"", ":1", "skip_verify"),
        ("[host.\"https://m\"]\noverride_path = 1", ":1", "override_path"),
        ("[host.\"https://m\"]\ndial_timeout = \"soon\"", ":1", "dial_timeout"),
        ("[host.\"https://m\".header]\n\"a b\" = \"x\"", ":1", "header"),
        ("[host.\"https://m\".header]\na = \"x\\r\\ny\"", ":1", "header"),
        ("[host.\"httpx://m\"]\n", ":1", "httpx"),
        ("[host.\"https://user:pw@m\"]\n", ":1", "user"),
        ("[host.\"https://\"]\n", ":1", "URL"),
        ("[host.\"\"]\n", ":1", "name"),
        ("host = 1", ":1", "host"),
        ("[host]\nx = 1", ":2", "table"),
    ] {
        let root = directory(&[("r.example/hosts.toml", text)]);
        let error = load(root.path(), "r.example").unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Config);
        let shown = error.to_string();
        assert!(
            shown.contains("r.example/hosts.toml") && shown.contains(place) && shown.contains(word),
            "{text}: {shown}"
        );
        assert!(!shown.contains('\n'), "{shown:?}");
    }
    let root = directory(&[("r.example/hosts.toml", &"#".repeat(2 << 20))]);
    assert!(load(root.path(), "r.example").unwrap_err().to_string().contains("1 MiB"));
}

#[test]
fn unknown_keys_and_an_empty_file_are_passed_over() {
    assert_eq!(shown(&hosts("speed = 9\n[host.\"https://m\"]\nfuture = [1]\n")), ["Https m/v2", "Https r.example/v2"]);
    assert_eq!(shown(&hosts("")), ["Https r.example/v2"]);
}

#[test]
fn a_file_may_have_a_loopback_registry_verified() {
    for (text, skipped) in [("", true), ("skip_verify = false\n", false), ("skip_verify = true\n", true)] {
        let root = directory(&[("localhost:5000/hosts.toml", &format!("# \n{text}"))]);
        let hosts = load(root.path(), "localhost:5000").unwrap();
        assert_eq!(shown(&hosts), ["Either localhost:5000/v2"], "{text}");
        assert_eq!(hosts[0].skip_verify, skipped, "{text}");
    }
}
