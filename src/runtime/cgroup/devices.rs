//! Which devices the processes of a cgroup may use: the v1 devices controller.
//!
//! A container has a dozen rules, one write each to `devices.allow` or `devices.deny`. Both files are opened once, which
//! is why the devices controller of cgroups-rs is not used: it opens the file again for each rule.

use std::os::fd::OwnedFd;

use super::error::{CgroupError, clipped};
use super::{Cgroup, file};
use crate::plan::DeviceRule;

/// Linux has 12 bits of major numbers and 20 of minor ones; more would be cut off silently.
const MAX_NUMBER: i64 = 0xf_ffff;

impl Cgroup {
    /// Adds device rules in the order given; the first of a container is usually "deny all".
    ///
    /// Returns a sentence for what this host cannot hold: v2 has no device controller but only programs, and on a host
    /// without the v1 controller the devices in the container's `/dev` are the whole protection.
    ///
    /// # Errors
    /// [`CgroupError::Value`] for a rule that is none; [`CgroupError::Kernel`] with `EPERM` for a device that the
    /// cgroup above may not use. Rules before the refused one stay.
    pub fn allow_devices(&self, rules: &[DeviceRule]) -> Result<Vec<String>, CgroupError> {
        let lines = rules.iter().map(line).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Ok(Vec::new());
        }
        let Some(index) = self.hierarchies.position("devices") else {
            return Ok(vec![
                "device rules are not enforced: they are not supported on cgroup v2 yet, and no v1 devices \
                 hierarchy is mounted"
                    .to_owned(),
            ]);
        };
        let object =
            |file: &str| format!("{file} of cgroup {}", self.hierarchies.get(index).object(self.path.relative()));
        let mut files: [Option<OwnedFd>; 2] = [None, None];
        for (rule, line) in rules.iter().zip(&lines) {
            let name = if rule.allow { "devices.allow" } else { "devices.deny" };
            let slot = &mut files[usize::from(rule.allow)];
            let file = match slot {
                Some(file) => file,
                None => {
                    let dir = self.dir(index).ok_or(nix::errno::Errno::ENOENT);
                    let opened = dir.and_then(|dir| file::open_write(dir, name));
                    slot.insert(opened.map_err(|errno| CgroupError::kernel("open", object(name), errno))?)
                }
            };
            file::write_to(&*file, line).map_err(|errno| CgroupError::Kernel {
                step: "add device rule",
                object: format!("{line:?} to {}", object(name)),
                errno,
                hint: match errno {
                    nix::errno::Errno::EPERM => "; the cgroup above may not use that device",
                    _ => "",
                },
            })?;
        }
        Ok(Vec::new())
    }
}

/// A rule as the kernel reads it: `c 136:* rwm`.
fn line(rule: &DeviceRule) -> Result<String, CgroupError> {
    let refuse = |reason: &str| {
        let what =
            format!("device rule {:?} {}:{} {:?}", clipped(&rule.kind), rule.major, rule.minor, clipped(&rule.access));
        Err(CgroupError::Value { what, reason: reason.to_owned() })
    };
    if !matches!(rule.kind.as_str(), "a" | "b" | "c") {
        return refuse("its kind is none of a, b, c");
    }
    if rule.access.is_empty() || rule.access.len() > 3 || !rule.access.bytes().all(|b| b"rwm".contains(&b)) {
        return refuse("its access is not made of r, w and m");
    }
    let number = |n: i64| match n {
        -1 => Some("*".to_owned()),
        0..=MAX_NUMBER => Some(n.to_string()),
        _ => None,
    };
    match (number(rule.major), number(rule.minor)) {
        (Some(major), Some(minor)) => Ok(format!("{} {major}:{minor} {}", rule.kind, rule.access)),
        _ => refuse("a device number is out of range"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        DeviceRule { allow: true, kind: kind.to_owned(), major, minor, access: access.to_owned() }
    }

    #[test]
    fn wildcards_are_stars() {
        assert_eq!(line(&rule("c", -1, -1, "m")).unwrap(), "c *:* m");
        assert_eq!(line(&rule("c", 136, -1, "rwm")).unwrap(), "c 136:* rwm");
        assert_eq!(line(&rule("b", 8, 0, "r")).unwrap(), "b 8:0 r");
        assert_eq!(line(&rule("a", -1, -1, "rwm")).unwrap(), "a *:* rwm");
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in [
            rule("x", 1, 3, "rwm"),
            rule("", 1, 3, "rwm"),
            rule("c", -2, 3, "r"),
            rule("c", 1, 1 << 20, "r"),
            rule("c", i64::MAX, 0, "r"),
            rule("c", 1, 3, ""),
            rule("c", 1, 3, "rx"),
            rule("c", 1, 3, "rwmr"),
            rule("c 1:3 rwm\na", 1, 3, "r"),
        ] {
            assert!(matches!(line(&bad), Err(CgroupError::Value { .. })), "{bad:?}");
        }
    }
}
