//! Nothing a stranger writes makes a parser panic.

use proptest::prelude::*;

use super::super::list::NetworkList;
use super::super::{result, template};
use super::kit::RESULT;

/// JSON of the right words in wrong places.
fn json() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("ips"),
        Just("interfaces"),
        Just("routes"),
        Just("dns"),
        Just("address"),
        Just("interface"),
        Just("sandbox"),
        Just("name"),
        Just("type"),
        Just("plugins"),
        Just("cniVersion"),
        Just("cniVersions"),
        Just("capabilities"),
        Just("1.0.0"),
        Just("eth0"),
        Just("10.0.0.1/8"),
        Just("::/0"),
        Just("mac"),
        Just("dst"),
        Just("ipam"),
    ];
    let leaf = prop_oneof![
        word.clone().prop_map(|w| format!("{w:?}")),
        any::<i64>().prop_map(|n| n.to_string()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        "[ -~]{0,8}".prop_map(|s| format!("{s:?}")),
    ];
    leaf.prop_recursive(4, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|all| format!("[{}]", all.join(","))),
            prop::collection::vec((word.clone(), inner), 0..6).prop_map(|all| {
                let pairs: Vec<String> = all.into_iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
                format!("{{{}}}", pairs.join(","))
            }),
        ]
    })
}

/// A text with some bytes changed.
fn bent(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((0..text.len(), any::<u8>()), 1..6).prop_map(move |changes| {
        let mut bytes = text.as_bytes().to_vec();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes
    })
}

fn read_all(bytes: &[u8]) {
    if let Ok(raw) = result::object(bytes)
        && let Ok(found) = result::attachment(&raw, "pods", &[])
    {
        assert!(!found.addresses.is_empty() && found.addresses.len() <= 32);
    }
    let text = String::from_utf8_lossy(bytes);
    for list in [NetworkList::parse(&text), NetworkList::parse_single(&text)] {
        match list {
            Ok(list) => assert!(!list.name.contains('/') && list.plugins.iter().all(|p| !p.kind.contains('/'))),
            Err(e) => assert!(e.to_string().len() < 2000 && !e.to_string().contains('\n'), "{e}"),
        }
    }
}

proptest! {
    #[test]
    fn any_json_is_read_or_refused(text in json()) {
        read_all(text.as_bytes());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn bent_results_are_read_or_refused(bytes in bent(RESULT)) {
        read_all(&bytes);
    }

    #[test]
    fn any_template_is_rendered_or_refused(text in "(\\{\\{|\\}\\}|range|end|if|else|-| |\\.|\\$i|,|:=|PodCIDRRanges|Routes|PodCIDR|/\\*|\\*/|x|é){0,40}") {
        if let Ok(out) = template::render(&text, &["10.0.0.0/8".to_owned()]) {
            assert!(out.len() < 100_000);
        }
    }
}
