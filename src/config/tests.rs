use super::file::{keys, parse};
use super::*;
use crate::settings::Choice;

fn config(text: &str) -> Result<Config, String> {
    parse(Path::new("/c.toml"), text).map(Raw::finish).map_err(|e| e.to_string())
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = config("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.socket, Path::new("/run/aril/aril.sock"));
    assert_eq!(config.worker_threads, 2);
}

#[test]
fn every_key_is_taken() {
    let text = r#"
        root = "/a"
        state = "/b"
        socket = "/c.sock"
        shim = "/d"
        cgroup_parent = "/kube/pods"
        shim_cgroup = "/kube/shims"
        shm_size_bytes = 1_048_576
        pinned_images = ["pause", "registry.example/tool:1"]
        registry_config_dir = "/e"
        image_pull_progress_timeout_seconds = 5
        stream_address = "::1"
        stream_port = 10010
        worker_threads = 0x4
        log_level = "debug"
        log_format = "json"
        [network]
        driver = "bridge"
        netns_dir = "/f"
        cni_config_dir = "/g"
        cni_plugin_dirs = ["/h", "/i"]
        cni_template = "/j"
        cni_ports_elsewhere = true
        cni_timeout_seconds = 7
        cni_total_timeout_seconds = 9
        bridge = "br-pods"
        subnets = ["10.1.0.0/16", "fd00:1::/64"]
        mtu = 1400
        isolate = true
        masquerade = false
        [metrics]
        address = "[::1]:9537"
        allow_remote = true
    "#;
    let expected = Config {
        root: "/a".into(),
        state: "/b".into(),
        socket: "/c.sock".into(),
        shim: Some("/d".into()),
        cgroup_parent: "/kube/pods".into(),
        shim_cgroup: "/kube/shims".into(),
        shm_size_bytes: 1 << 20,
        pinned_images: vec!["pause".into(), "registry.example/tool:1".into()],
        registry_config_dir: "/e".into(),
        image_pull_progress_timeout: Duration::from_secs(5),
        network: Network {
            driver: Choice::Bridge,
            netns_dir: "/f".into(),
            cni_config_dir: "/g".into(),
            cni_plugin_dirs: vec!["/h".into(), "/i".into()],
            cni_template: Some("/j".into()),
            cni_ports_elsewhere: true,
            cni_timeout: Some(Duration::from_secs(7)),
            cni_total_timeout: Some(Duration::from_secs(9)),
            bridge: "br-pods".into(),
            subnets: vec![("10.1.0.0".parse().unwrap(), 16), ("fd00:1::".parse().unwrap(), 64)],
            mtu: 1400,
            isolate: true,
            masquerade: false,
        },
        streams: "[::1]:10010".parse().unwrap(),
        metrics: Metrics { address: Some(MetricsAddress::Tcp("[::1]:9537".parse().unwrap())), allow_remote: true },
        worker_threads: 4,
        log_level: LogLevel::Debug,
        log_format: LogFormat::Json,
    };
    assert_eq!(config(text).unwrap(), expected);
    assert_eq!(text.matches(" = ").count(), keys().count());
}

#[test]
fn an_unknown_key_is_refused_with_line_and_nearest() {
    assert_eq!(
        config("root = \"/a\"\nlog-levl = \"info\"\n").unwrap_err(),
        "/c.toml:2: no key is called `log-levl`; the nearest is `log_level`"
    );
    assert!(config("[sockets]\nx = 1").unwrap_err().ends_with("the nearest is `socket`"));
    let error = config("\n[network]\ndrivr = \"bridge\"").unwrap_err();
    assert_eq!(error, "/c.toml:3: no key is called `network.drivr`; the nearest is `network.driver`");
    assert!(config("network = 1").unwrap_err().contains("no key is called `network`"));
    assert!(config("workers = 3").unwrap_err().contains("`worker_threads`"));
}

#[test]
fn wrong_values_say_what_is_wanted() {
    for (text, wants) in [
        ("root = 1", "`root` wants an absolute path"),
        ("root = \"here\"", "`root` wants an absolute path"),
        ("worker_threads = 0", "from 1 to 64"),
        ("worker_threads = -1", "from 1 to 64"),
        ("worker_threads = 99999999999999999999", "from 1 to 64"),
        ("stream_address = \"localhost\"", "an IP address"),
        ("stream_port = 65536", "from 0 to 65535"),
        ("log_level = \"loud\"", "one of"),
        ("cgroup_parent = \"/a/../b\"", "cgroup path"),
        ("cgroup_parent = \"/\"", "cgroup path"),
        ("network.driver = \"calico\"", "one of"),
        ("network.bridge = \"a name far too long\"", "name of an interface"),
        ("network.bridge = \"a/b\"", "name of an interface"),
        ("network.subnets = [\"10.0.0.0/8\", \"10.1.0.0/16\"]", "one of IPv4"),
        ("network.subnets = [\"10.0.0.0\"]", "address range"),
        ("network.subnets = [\"10.0.0.1/8\"]", "all bits behind its length zero"),
        ("network.subnets = [\"fd00::1/64\"]", "all bits behind its length zero"),
        ("network.bridge = \"lo\"", "but loopback"),
        ("network.subnets = []", "address range"),
        ("network.mtu = 100", "from 1280"),
        ("network.isolate = 1", "true or false"),
        ("network.cni_plugin_dirs = [\"bin\"]", "absolute paths"),
        ("metrics.address = \"9537\"", "an IP address with a port"),
        ("metrics.address = \"127.0.0.1:0\"", "an IP address with a port"),
        ("metrics.address = \"localhost:9537\"", "an IP address with a port"),
        ("metrics.address = \"unix://run/m.sock\"", "an IP address with a port"),
        ("metrics.address = \"unix:///\"", "an IP address with a port"),
        ("metrics.allow_remote = 1", "true or false"),
        ("pinned_images = \"pause\"", "list of image names"),
        ("pinned_images = [\"pause\", 1]", "list of image names"),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.starts_with("/c.toml:1: ") && error.contains(wants), "{error}");
    }
}

#[test]
fn a_syntax_error_is_one_line_with_its_place() {
    let error = config("root = \"/a\"\nstate = \n").unwrap_err();
    assert!(error.starts_with("/c.toml:2: "), "{error}");
    assert!(!error.contains('\n'), "{error}");
    assert!(config("root = \"/a\"\nroot = \"/b\"").is_err());
}

#[test]
fn flags_win_and_the_socket_moves_with_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "root = \"/a\"\nsocket = \"/c.sock\"\nlog_level = \"warn\"").unwrap();
    let mut overrides = Overrides { file: Some(file), ..Default::default() };
    assert_eq!(Config::load(&overrides).unwrap().socket, Path::new("/c.sock"));

    overrides.state = Some("/s".into());
    overrides.log_level = Some(LogLevel::Trace);
    let config = Config::load(&overrides).unwrap();
    assert_eq!(config.root, Path::new("/a"));
    assert_eq!(config.socket, Path::new("/s/aril.sock"));
    assert_eq!(config.log_level, LogLevel::Trace);

    overrides.socket = Some("relative.sock".into());
    assert!(Config::load(&overrides).unwrap_err().to_string().contains("absolute"));
}

#[test]
fn a_named_file_must_exist() {
    let overrides = Overrides { file: Some("/nowhere/config.toml".into()), ..Default::default() };
    assert!(Config::load(&overrides).unwrap_err().to_string().starts_with("read configuration /nowhere"));
}

#[test]
fn the_shim_is_found_beside_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let executable = dir.path().join("aril");
    let shim = dir.path().join("aril-shim");
    let mut config = Config::default();
    std::fs::write(&shim, "").unwrap();
    assert_eq!(config.find_shim(Some(&executable)).unwrap(), shim);
    // As it is installed: below the program's own prefix.
    let installed = dir.path().join("libexec/aril/aril-shim");
    std::fs::create_dir_all(installed.parent().unwrap()).unwrap();
    std::fs::write(&installed, "").unwrap();
    let found = config.find_shim(Some(&dir.path().join("bin/aril"))).unwrap();
    assert_eq!(found, installed);
    config.shim = Some(dir.path().join("absent"));
    let error = config.find_shim(Some(&executable)).unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("`shim`"), "{error}");
}

#[test]
fn metrics_are_in_reach_of_others_only_if_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let load = |text: &str| {
        std::fs::write(&file, format!("[metrics]\n{text}")).unwrap();
        Config::load(&Overrides { file: Some(file.clone()), ..Default::default() })
    };
    for address in ["0.0.0.0:9537", "[::]:9537", "10.1.2.3:80", "[::ffff:10.1.2.3]:80"] {
        let error = load(&format!("address = \"{address}\"")).unwrap_err().to_string();
        assert!(error.contains("allow_remote = true") && error.contains(address), "{error}");
        assert!(load(&format!("address = \"{address}\"\nallow_remote = true")).is_ok());
    }
    for address in ["127.0.0.1:9537", "127.9.9.9:1", "[::1]:9537", "[::ffff:127.0.0.1]:9537"] {
        assert!(load(&format!("address = \"{address}\"")).is_ok());
    }
    let socket = load("address = \"unix:///run/m.sock\"").unwrap().metrics.address;
    assert_eq!(socket, Some(MetricsAddress::Unix("/run/m.sock".into())));
}
