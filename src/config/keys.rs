//! The keys outside of tables, and how values are read.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::de::DeValue;

use super::{LogFormat, LogLevel, Raw};

/// One key of the file: its name, what it wants in words, and how it is taken; `None` refuses the value.
pub(super) struct Key {
    pub name: &'static str,
    pub wants: &'static str,
    pub take: fn(&mut Raw, &DeValue<'_>) -> Option<()>,
}

pub(super) const PATH: &str = "an absolute path in quotes";

pub(super) const KEYS: &[Key] = &[
    Key { name: "root", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.root = Some(p)) },
    Key { name: "state", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.state = Some(p)) },
    Key { name: "socket", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.socket = Some(p)) },
    Key { name: "shim", wants: PATH, take: |raw, v| absolute(v).map(|p| raw.shim = Some(p)) },
    Key {
        name: "cgroup_parent",
        wants: "a cgroup path like \"/aril\", without `..`",
        take: |raw, v| cgroup(v.as_str()?).map(|p| raw.cgroup_parent = Some(p)),
    },
    Key {
        name: "shim_cgroup",
        wants: "a cgroup path like \"/aril-shims\", without `..`",
        take: |raw, v| cgroup(v.as_str()?).map(|p| raw.shim_cgroup = Some(p)),
    },
    Key {
        name: "shm_size_bytes",
        wants: "a whole number from 4096 to 1099511627776",
        take: |raw, v| number(v, 4096..=1 << 40).map(|n| raw.shm_size_bytes = Some(n)),
    },
    Key {
        name: "pinned_images",
        wants: "a list of image names like [\"registry.k8s.io/pause:3.10\"]",
        take: |raw, v| names(v).map(|n| raw.pinned_images = Some(n)),
    },
    Key {
        name: "registry_config_dir",
        wants: PATH,
        take: |raw, v| absolute(v).map(|p| raw.registry_config_dir = Some(p)),
    },
    Key {
        name: "image_pull_progress_timeout_seconds",
        wants: "a whole number from 1 to 3600",
        take: |raw, v| number(v, 1..=3600).map(|n| raw.image_pull_progress_timeout_seconds = Some(n)),
    },
    Key {
        name: "stream_address",
        wants: "an IP address in quotes",
        take: |raw, v| v.as_str()?.parse().ok().map(|ip| raw.stream_address = Some(ip)),
    },
    Key {
        name: "stream_port",
        wants: "a whole number from 0 to 65535",
        take: |raw, v| number(v, 0..=65535).and_then(|n| u16::try_from(n).ok()).map(|n| raw.stream_port = Some(n)),
    },
    Key {
        name: "worker_threads",
        wants: "a whole number from 1 to 64",
        take: |raw, v| number(v, 1..=64).and_then(|n| usize::try_from(n).ok()).map(|n| raw.worker_threads = Some(n)),
    },
    Key {
        name: "log_level",
        wants: "one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
        take: |raw, v| LogLevel::parse(v.as_str()?).map(|l| raw.log_level = Some(l)),
    },
    Key {
        name: "log_format",
        wants: "\"text\" or \"json\"",
        take: |raw, v| LogFormat::parse(v.as_str()?).map(|f| raw.log_format = Some(f)),
    },
];

pub(super) fn absolute(value: &DeValue<'_>) -> Option<PathBuf> {
    value.as_str().map(PathBuf::from).filter(|p| p.is_absolute())
}

fn names(value: &DeValue<'_>) -> Option<Vec<String>> {
    let name = |v: &toml::Spanned<DeValue<'_>>| v.get_ref().as_str().filter(|n| !n.is_empty()).map(str::to_owned);
    value.as_array()?.iter().map(name).collect()
}

fn cgroup(path: &str) -> Option<String> {
    let parts = path.strip_prefix('/')?.split('/');
    let sound = parts.into_iter().all(|part| !matches!(part, "" | "." | ".."));
    sound.then(|| path.to_owned())
}

pub(super) fn number(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| range.contains(n))
}
