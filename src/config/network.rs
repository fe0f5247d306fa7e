//! The table `[network]`.

use std::net::IpAddr;
use std::time::Duration;

use toml::de::DeValue;

use super::keys::{Key, PATH, absolute, number};
use crate::settings::Choice;

const YES_OR_NO: &str = "true or false";

/// The keys of the table, by their full names.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "network.driver",
        wants: "one of \"auto\", \"bridge\", \"cni\", \"none\"",
        take: |raw, v| Choice::parse(v.as_str()?).map(|choice| raw.network.driver = choice),
    },
    Key { name: "network.netns_dir", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.network.netns_dir = p) },
    Key {
        name: "network.cni_config_dir",
        wants: PATH,
        take: |raw, v| absolute(v).map(|p| raw.network.cni_config_dir = p),
    },
    Key {
        name: "network.cni_plugin_dirs",
        wants: "a list of absolute paths like [\"/opt/cni/bin\"]",
        take: |raw, v| {
            raw.network.cni_plugin_dirs = v.as_array()?.iter().map(|v| absolute(v.get_ref())).collect::<Option<_>>()?;
            Some(())
        },
    },
    Key {
        name: "network.cni_template",
        wants: PATH,
        take: |raw, v| absolute(v).map(|p| raw.network.cni_template = Some(p)),
    },
    Key {
        name: "network.cni_ports_elsewhere",
        wants: YES_OR_NO,
        take: |raw, v| v.as_bool().map(|b| raw.network.cni_ports_elsewhere = b),
    },
    Key {
        name: "network.cni_timeout_seconds",
        wants: "a whole number from 1 to 240",
        take: |raw, v| number(v, 1..=240).map(|n| raw.network.cni_timeout = Some(Duration::from_secs(n))),
    },
    Key {
        name: "network.cni_total_timeout_seconds",
        wants: "a whole number from 1 to 480",
        take: |raw, v| number(v, 1..=480).map(|n| raw.network.cni_total_timeout = Some(Duration::from_secs(n))),
    },
    Key {
        name: "network.bridge",
        wants: "the name of an interface but loopback: 1 to 15 letters, digits, '-', '_' or '.'",
        take: |raw, v| interface(v.as_str()?).map(|name| raw.network.bridge = name),
    },
    Key {
        name: "network.subnets",
        wants: "one address range, or one of IPv4 and one of IPv6, like [\"10.88.0.0/16\"], all bits behind its length zero",
        take: |raw, v| subnets(v).map(|ranges| raw.network.subnets = ranges),
    },
    Key {
        name: "network.mtu",
        wants: "a whole number from 1280 to 65535, or 0 for that of the way out",
        take: |raw, v| {
            let mtu = number(v, 0..=65535).filter(|mtu| *mtu == 0 || *mtu >= 1280)?;
            raw.network.mtu = u32::try_from(mtu).ok()?;
            Some(())
        },
    },
    Key { name: "network.isolate", wants: YES_OR_NO, take: |raw, v| v.as_bool().map(|b| raw.network.isolate = b) },
    Key {
        name: "network.masquerade",
        wants: YES_OR_NO,
        take: |raw, v| v.as_bool().map(|b| raw.network.masquerade = b),
    },
];

fn interface(name: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_taken = matches!(name, "." | ".." | "lo" | "all" | "default");
    let fits = (1..=15).contains(&name.len()) && name.chars().all(is_plain) && !is_taken;
    fits.then(|| name.to_owned())
}

fn subnets(value: &DeValue<'_>) -> Option<Vec<(IpAddr, u8)>> {
    let range = |v: &toml::Spanned<DeValue<'_>>| {
        let (ip, prefix) = v.get_ref().as_str()?.split_once('/')?;
        let (ip, prefix) = (ip.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        let rest = match ip {
            IpAddr::V4(ip) => ip.to_bits().checked_shl(prefix.into()).unwrap_or(0).into(),
            IpAddr::V6(ip) => ip.to_bits().checked_shl(prefix.into()).unwrap_or(0),
        };
        (rest == 0 && prefix <= if ip.is_ipv4() { 30 } else { 126 }).then_some((ip, prefix))
    };
    let ranges: Vec<(IpAddr, u8)> = value.as_array()?.iter().map(range).collect::<Option<_>>()?;
    match ranges[..] {
        [_] => Some(ranges),
        [(a, _), (b, _)] if a.is_ipv4() != b.is_ipv4() => Some(ranges),
        _ => None,
    }
}
