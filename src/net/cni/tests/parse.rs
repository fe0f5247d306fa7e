//! Lists, results of all versions, and templates.

use super::super::list::NetworkList;
use super::super::version::Version;
use super::super::{result, template};
use super::kit::{Kit, good};
use crate::net::{Address, Attachment, Driver, NetError};

fn list(text: &str) -> Result<NetworkList, String> {
    NetworkList::parse(text).map_err(|e| e.to_string())
}

#[test]
fn a_wrong_list_is_refused_with_the_key() {
    let good = r#"{"cniVersion":"1.1.0","name":"pods","disableCheck":false,"plugins":[{"type":"bridge"}]}"#;
    list(good).unwrap();
    for (from, to, key) in [
        ("\"pods\"", "\"\"", "name: missing"),
        ("\"pods\"", "\"../x\"", "name: "),
        ("\"pods\"", "\"-x\"", "name: "),
        ("\"pods\"", "\"a b\"", "name: "),
        ("\"pods\"", "7", "JSON: "),
        ("\"bridge\"", "\"../bin/sh\"", "type: "),
        ("\"bridge\"", "\"\"", "type: "),
        ("\"bridge\"", "\"a\\\\b\"", "type: "),
        ("\"bridge\"", "5", "type: is no string"),
        ("\"type\"", "\"kind\"", "type: missing"),
        ("[{\"type\":\"bridge\"}]", "[]", "plugins: "),
        ("[{\"type\":\"bridge\"}]", "{}", "JSON: "),
        ("false", "\"maybe\"", "disableCheck: "),
        ("\"type\"", "\"capabilities\":[],\"type\"", "capabilities: "),
    ] {
        let error = list(&good.replace(from, to)).unwrap_err();
        assert!(error.starts_with(key), "{to}: {error}");
    }
    let many = vec![r#"{"type":"x"}"#; 33].join(",");
    assert!(list(&good.replace(r#"{"type":"bridge"}"#, &many)).unwrap_err().starts_with("plugins: more than 32"));
}

#[test]
fn a_list_is_kept_as_it_was() {
    let text = r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0"],"name":"pods","disableCheck":true,"disableGC":"TRUE",
        "plugins":[{"type":"bridge","number":1e999,"ipam":{"type":"host-local"},"capabilities":{"ips":true}}]}"#;
    let list = list(text).unwrap();
    assert_eq!((list.version(), list.disable_check, list.disable_gc), (Version::V1_0_0, true, true));
    let again = NetworkList::parse(list.pinned(Version::V0_4_0).to_json().unwrap().get()).unwrap();
    assert_eq!(
        (again.versions.as_slice(), again.disable_check, again.disable_gc),
        (&[Version::V0_4_0][..], true, true)
    );
    assert_eq!(again.plugins[0].capabilities, ["ips"]);
    assert_eq!(again.plugins[0].delegate.as_deref(), Some("host-local"));
    assert!(again.to_json().unwrap().get().contains("1e999"));
}

fn attachment(text: &str) -> Result<Attachment, String> {
    result::attachment(&result::object(text.as_bytes())?, "pods", &[])
}

#[test]
fn results_of_every_version_are_read() {
    let first = Address { ip: "10.1.0.5".parse().unwrap(), prefix: 16, gateway: "10.1.0.1".parse().ok() };
    let of_0_3 = r#"{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","mac":"AA:00:00:00:00:01","sandbox":"/x"}],
        "ips":[{"version":"4","address":"10.1.0.5/16","gateway":"10.1.0.1","interface":0},
               {"version":"6","address":"fd00::5/64","interface":0}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.9"},{"dst":"fd01::/64"}],
        "dns":{"nameservers":["10.1.0.1"],"domain":"example.org","options":["ndots:5"]}}"#;
    let found = attachment(of_0_3).unwrap();
    assert_eq!((found.addresses[0], found.addresses.len(), found.mac.as_str()), (first, 2, "aa:00:00:00:00:01"));
    assert_eq!(found.routes[0].via.unwrap().to_string(), "10.1.0.9");
    assert_eq!(found.routes[1].via, None);
    assert_eq!((found.dns.searches, found.dns.options), (vec!["example.org".to_owned()], vec!["ndots:5".to_owned()]));
    let of_1_1 = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":""},{"name":"eth0","mtu":8900,"sandbox":"/x",
        "socketPath":"/s","pciID":"1"},{"name":"net1","sandbox":"/x"}],
        "ips":[{"address":"10.9.0.1/24","interface":0},{"address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1},
               {"address":"10.8.0.1/24","interface":2}],
        "routes":[{"dst":"0.0.0.0/0","mtu":1400,"advmss":1,"priority":2,"scope":0},{"dst":"10.3.0.0/16","table":100}],
        "dns":null,"other":{}}"#;
    let found = attachment(of_1_1).unwrap();
    assert_eq!((found.addresses.as_slice(), found.mtu, found.routes.len()), (&[first][..], 8900, 1));
    // Some plugins name no interfaces at all.
    let bare = attachment(r#"{"ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1"}]}"#).unwrap();
    assert_eq!((bare.addresses.as_slice(), bare.mac.as_str()), (&[first][..], ""));
}

#[test]
fn too_much_of_anything_is_refused() {
    let ip = |n: usize| format!(r#"{{"address":"10.0.{}.{}/8"}}"#, n / 250, n % 250 + 1);
    let ips = |n: usize| format!(r#"{{"ips":[{}]}}"#, (0..n).map(ip).collect::<Vec<_>>().join(","));
    assert_eq!(attachment(&ips(32)).unwrap().addresses.len(), 32);
    assert!(attachment(&ips(33)).unwrap_err().contains("33 addresses"));
    assert!(attachment(&ips(1025)).unwrap_err().contains("1025 ips"));
    let deep = format!("{{\"ips\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(attachment(&deep).is_err());
}

#[test]
fn ranges_of_kubelet_are_checked() {
    assert_eq!(template::ranges("10.1.0.0/16, fd00::/64").unwrap(), ["10.1.0.0/16", "fd00::/64"]);
    for wrong in
        ["", "10.1.0.0", "10.1.0.0/33", "10.1.0.0/16,10.2.0.0/16", "fd00::/64,10.1.0.0/16,1.0.0.0/8", "\"/1", "a,b"]
    {
        let error = template::ranges(wrong).unwrap_err();
        assert!(matches!(&error, NetError::Invalid { field, .. } if field == "pod_cidr"), "{wrong}: {error}");
    }
}

#[test]
fn templates_are_rendered_as_gos() {
    let both = ["10.1.0.0/16".to_owned(), "fd00::/64".to_owned()];
    for (text, wanted) in [
        ("a{{.PodCIDR}}b", "a10.1.0.0/16b"),
        ("{{range .PodCIDRRanges}}[{{.}}]{{end}}", "[10.1.0.0/16][fd00::/64]"),
        ("{{ range $i, $r := .Routes }}{{if $i}}, {{end}}{{$r}}{{end}}", "0.0.0.0/0, ::/0"),
        ("{{range $r := .Routes}}{{$r}};{{end}}", "0.0.0.0/0;::/0;"),
        ("{{range $i, $r := .Routes}}{{if $i}}x{{else}}y{{end}}{{end}}", "yx"),
        ("a {{- /* nothing */ -}} b", "ab"),
        ("a {{- .PodCIDR }} b", "a10.1.0.0/16 b"),
        ("{{range .Routes}}{{$.PodCIDR}} {{end}}", "10.1.0.0/16 10.1.0.0/16 "),
        ("{\"a\": {\"b\": {}}}", "{\"a\": {\"b\": {}}}"),
    ] {
        assert_eq!(template::render(text, &both).as_deref(), Ok(wanted), "{text}");
    }
    for (text, words) in [
        ("{{.Routes}}", "use {{range .Routes}}"),
        ("{{.Name}}", "{{.Name}} is not understood"),
        ("{{printf \"%s\" .PodCIDR}}", "not understood"),
        ("{{range .PodCIDRRanges}}{{.PodCIDR}}{{end}}", "not understood"),
        ("{{range .Other}}{{end}}", "range over \".Other\""),
        ("{{range .Routes}}", "no {{end}}"),
        ("{{end}}", "no beginning"),
        ("{{if .PodCIDR", "no }}"),
        ("{{range $i $r := .Routes}}{{end}}", "{{"),
    ] {
        let error = template::render(text, &both).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
    assert!(template::render(&"{{range .Routes}}".repeat(100), &both).unwrap_err().contains("within each other"));
}

#[test]
fn a_template_becomes_a_configuration_unless_there_is_one() {
    let kit = Kit::with_template(&[("one", &good())]);
    let template = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"one","subnet":"{{.PodCIDR}}"}]}"#;
    std::fs::write(kit.path("template"), template).unwrap();
    std::fs::remove_file(kit.path("net.d/10-test.conflist")).unwrap();
    kit.driver.set_pod_cidr("10.1.0.0/16").unwrap();
    kit.driver.status().unwrap();
    assert!(kit.read("net.d/10-aril.conflist").contains("\"subnet\":\"10.1.0.0/16\""));
    kit.driver.set_pod_cidr("10.2.0.0/16").unwrap();
    assert!(kit.read("net.d/10-aril.conflist").contains("10.2.0.0/16"), "one's own is kept up to date");
    std::fs::write(kit.path("template"), template.replace("{{.PodCIDR}}", "\"")).unwrap();
    assert!(kit.driver.set_pod_cidr("10.3.0.0/16").unwrap_err().to_string().contains("becomes no configuration"));
    assert!(kit.read("net.d/10-aril.conflist").contains("10.2.0.0/16"));
    kit.configure(r#"{"cniVersion":"1.0.0","name":"theirs","plugins":[{"type":"one"}]}"#);
    std::fs::rename(kit.path("net.d/10-test.conflist"), kit.path("net.d/05-theirs.conflist")).unwrap();
    kit.driver.set_pod_cidr("10.4.0.0/16").unwrap();
    assert!(kit.read("net.d/10-aril.conflist").contains("10.2.0.0/16"), "another's counts more");
    assert_eq!(kit.driver.describe()["pod_cidr"], "10.4.0.0/16");
}
