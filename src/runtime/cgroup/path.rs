//! Cgroup paths: checked once, because they can come from requests.

use super::error::{CgroupError, clipped};

/// Longest path in bytes. The kernel prints cgroup paths into a page; files and sub-cgroups need room too.
const MAX_PATH_BYTES: usize = 1024;
/// NAME_MAX.
const MAX_NAME_BYTES: usize = 255;
/// Deepest path. Kubernetes uses four levels.
const MAX_DEPTH: usize = 32;

/// The path of a cgroup from the root of each hierarchy: absolute, not the root itself, without empty,
/// `.` or `..` components and without control characters, so it is one line and one word of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupPath(String);

impl CgroupPath {
    pub(super) fn parse(text: &str) -> Result<Self, CgroupError> {
        match fault(text) {
            None => Ok(Self(text.to_owned())),
            Some(reason) => Err(CgroupError::Path { path: clipped(text), reason }),
        }
    }

    /// With the leading slash.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the leading slash: to be opened from a hierarchy's root directory.
    pub(super) fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// The relative paths of the cgroups above, outermost first, without the root.
    pub(super) fn ancestors(&self) -> impl DoubleEndedIterator<Item = &str> {
        let relative = self.relative();
        relative.match_indices('/').map(|(end, _)| &relative[..end])
    }

    pub(super) fn child(&self, name: &str) -> Result<Self, CgroupError> {
        if name.contains('/') {
            return Err(CgroupError::Path { path: clipped(name), reason: "the name of a sub-cgroup has no '/'" });
        }
        Self::parse(&format!("{}/{name}", self.0))
    }
}

fn fault(text: &str) -> Option<&'static str> {
    let Some(relative) = text.strip_prefix('/') else {
        return Some("it must begin with '/'");
    };
    if relative.is_empty() {
        return Some("the root cgroup is everybody's");
    }
    if text.len() > MAX_PATH_BYTES {
        return Some("it is longer than 1024 bytes");
    }
    if relative.split('/').count() > MAX_DEPTH {
        return Some("it is deeper than 32 levels");
    }
    relative.split('/').find_map(name_fault)
}

fn name_fault(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("it has an empty component"),
        "." | ".." => Some("it has a '.' or '..' component"),
        // Control files stand beside the sub-cgroups; the kernel reserves this prefix for more of them.
        _ if name == "tasks" || name.starts_with("cgroup.") => Some("a component is the name of a control file"),
        _ if name.len() > MAX_NAME_BYTES => Some("a component is longer than 255 bytes"),
        _ if name.chars().any(char::is_control) => Some("it has a control character"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_paths_are_refused() {
        let long_name = format!("/{}", "x".repeat(256));
        let long_path = "/abcdefghij".repeat(100);
        let deep = "/a".repeat(33);
        for bad in [
            "",
            "/",
            "a",
            "a/b",
            "//",
            "/a/",
            "//a",
            "/a//b",
            "/..",
            "/a/..",
            "/a/../b",
            "/.",
            "/a/./b",
            "/a\n",
            "/a\0b",
            "/a\tb",
            "/cgroup.procs",
            "/a/cgroup.kill/b",
            "/tasks",
            &long_name,
            &long_path,
            &deep,
        ] {
            assert!(CgroupPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ordinary_paths_are_taken() {
        for good in ["/a", "/kubepods/burstable/pod12-34/ctr", "/system.slice/crio-1.scope", "/ä b", "/...", "/a..b"] {
            assert_eq!(CgroupPath::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn ancestors_come_outermost_first() {
        let path = CgroupPath::parse("/a/b/c").unwrap();
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(path.relative(), "a/b/c");
    }

    #[test]
    fn a_child_is_one_component() {
        let path = CgroupPath::parse("/a").unwrap();
        assert_eq!(path.child("b").unwrap().as_str(), "/a/b");
        for bad in ["", "..", "b/c", "cgroup.x", "x\n"] {
            assert!(path.child(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Whatever is accepted stays below the hierarchy's root, however it is resolved.
        #[test]
        fn an_accepted_path_never_leaves_the_root(text in "[/.a\\PC\n]{0,40}") {
            if let Ok(path) = CgroupPath::parse(&text) {
                let relative = path.relative();
                prop_assert!(!relative.is_empty() && !relative.starts_with('/'));
                for name in relative.split('/') {
                    prop_assert!(!name.is_empty() && name != "." && name != ".." && name.len() <= 255);
                    prop_assert!(!name.chars().any(char::is_control));
                }
            }
        }

        #[test]
        fn normal_names_are_always_accepted(names in proptest::collection::vec("[a-z0-9][a-z0-9_-]{0,20}", 1..8)) {
            prop_assume!(names.iter().all(|n| n != "tasks"));
            let text = format!("/{}", names.join("/"));
            let path = CgroupPath::parse(&text).unwrap();
            prop_assert_eq!(path.ancestors().count(), names.len() - 1);
        }
    }
}
