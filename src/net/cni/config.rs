//! Which configuration counts: the first by name in the directory, read at each use.
//!
//! A directory, a file and a parse cost some ten microseconds beside the milliseconds of a plugin, so nothing is kept
//! and nothing can be stale; an installer's change counts from the next pod on.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::list::NetworkList;
use super::trust::Trust;

/// Longest file, in bytes.
const LONGEST: u64 = 1 << 20;
/// Files a directory may have before it is not one of configurations.
const MOST_FILES: usize = 1000;

/// A configuration list with the file it is from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// The list.
    pub list: NetworkList,
}

/// The list that counts: of the files that end in `.conflist`, `.conf` or `.json`, the first by name. If that one is
/// broken the network is not ready: going on with the next one would connect pods to another network than meant.
///
/// # Errors
/// [`ConfigError`] naming the file.
pub(super) fn load(dir: &Path, trust: &Trust) -> Result<Loaded, ConfigError> {
    let first = names(dir, &["conflist", "conf", "json"])?.into_iter().next();
    let path = first.map(|name| dir.join(name)).ok_or_else(|| ConfigError::Absent { dir: dir.to_owned() })?;
    check_dir(dir, trust)?;
    let list = read_list(&path, trust).map_err(|e| e.of(&path))?;
    Ok(Loaded { path, list })
}

fn read_list(path: &Path, trust: &Trust) -> Result<NetworkList, ConfigError> {
    let text = read(path, trust)?;
    if path.extension().is_none_or(|e| e != "conflist") {
        return NetworkList::parse_single(&text);
    }
    let mut list = NetworkList::parse(&text)?;
    if !list.only_inlined {
        let beside = path.with_file_name(&list.name);
        for name in names(&beside, &["conf"])? {
            check_dir(&beside, trust)?;
            let file = beside.join(name);
            list.append_text(&read(&file, trust)?).map_err(|e| e.of(&file))?;
        }
    }
    if list.plugins.is_empty() {
        let reason = format!("missing, and {} has no *.conf", path.with_file_name(&list.name).display());
        return Err(ConfigError::Key { key: "plugins".to_owned(), reason });
    }
    Ok(list)
}

/// The names in a directory with one of these endings, sorted; none if there is no such directory.
fn names(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, ConfigError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(ConfigError::io("read directory", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries.take(MOST_FILES) {
        let entry = entry.map_err(ConfigError::io("read directory", dir))?;
        let name = PathBuf::from(entry.file_name());
        let is_wanted = name.extension().is_some_and(|ending| endings.iter().any(|e| ending == *e));
        if is_wanted && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn check_dir(dir: &Path, trust: &Trust) -> Result<(), ConfigError> {
    let meta = fs::metadata(dir).map_err(ConfigError::io("read directory", dir))?;
    if trust.is_everybodys(dir, &meta) { Err(ConfigError::Writable { path: dir.to_owned() }) } else { Ok(()) }
}

fn read(path: &Path, trust: &Trust) -> Result<String, ConfigError> {
    // Opening somebody's pipe must not wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.map_err(ConfigError::io("open", path))?;
    let meta = file.metadata().map_err(ConfigError::io("stat", path))?;
    let broken = |reason: &str| ConfigError::Broken { path: path.to_owned(), reason: reason.to_owned() };
    if !meta.is_file() {
        return Err(broken("is no regular file"));
    }
    if trust.is_everybodys(path, &meta) {
        return Err(ConfigError::Writable { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(ConfigError::io("read", path))?;
    if bytes.len() as u64 > LONGEST {
        return Err(broken("is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| broken("is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::version::Version;
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn of(files: &[(&str, &str)]) -> Result<NetworkList, String> {
        load(dir(files).path(), &Trust::default()).map(|l| l.list).map_err(|e| e.to_string())
    }

    fn kinds(list: &NetworkList) -> Vec<&str> {
        list.plugins.iter().map(|p| p.kind.as_str()).collect()
    }

    #[test]
    fn the_first_by_name_counts() {
        let other = LIST.replace("pods", "other");
        let list = of(&[("20-b.conflist", &other), ("10-a.conflist", LIST), ("00-readme.txt", "x")]).unwrap();
        assert_eq!(
            (list.name.as_str(), kinds(&list), list.version()),
            ("pods", vec!["bridge", "portmap"], Version::V1_0_0)
        );
        let single = of(&[("5.conf", r#"{"cniVersion":"0.4.0","name":"one","type":"ptp"}"#), ("6.conflist", LIST)]);
        assert_eq!(kinds(&single.unwrap()), ["ptp"]);
    }

    #[test]
    fn a_broken_first_one_is_told_and_not_passed_over() {
        let error = of(&[("10-a.conflist", "{"), ("20-b.conflist", LIST)]).unwrap_err();
        assert!(error.contains("10-a.conflist") && error.contains("EOF"), "{error}");
        let error = of(&[("10-a.conf", LIST)]).unwrap_err();
        assert!(error.contains(".conflist"), "{error}");
    }

    #[test]
    fn no_configuration_names_the_directory() {
        let error = load(Path::new("/nonexistent/net.d"), &Trust::default()).unwrap_err().to_string();
        assert!(error.contains("no CNI configuration in /nonexistent/net.d"), "{error}");
    }

    #[test]
    fn plugins_of_the_directory_beside_the_file_are_appended() {
        let extra = r#"{"type":"tuning"}"#;
        let files =
            [("a.conflist", LIST), ("pods/20.conf", r#"{"type":"sbr"}"#), ("pods/10.conf", extra), ("pods/x", "{")];
        assert_eq!(kinds(&of(&files).unwrap()), ["bridge", "portmap", "tuning", "sbr"]);
        let only = LIST.replace("\"name\"", "\"loadOnlyInlinedPlugins\":true,\"name\"");
        assert_eq!(kinds(&of(&[("a.conflist", &only), ("pods/10.conf", extra)]).unwrap()), ["bridge", "portmap"]);
        let without = r#"{"cniVersion":"1.1.0","name":"pods"}"#;
        assert_eq!(kinds(&of(&[("a.conflist", without), ("pods/10.conf", extra)]).unwrap()), ["tuning"]);
        assert!(of(&[("a.conflist", without)]).unwrap_err().contains("plugins: missing"));
        let contrary = r#"{"cniVersion":"1.1.0","name":"pods","loadOnlyInlinedPlugins":true}"#;
        assert!(of(&[("a.conflist", contrary)]).unwrap_err().contains("loadOnlyInlinedPlugins"));
    }

    #[test]
    fn what_everybody_may_write_is_refused() {
        let dir = dir(&[("a.conflist", LIST)]);
        let file = dir.path().join("a.conflist");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let error = load(dir.path(), &Trust::default()).unwrap_err().to_string();
        assert!(error.contains("a.conflist can be written by everybody"), "{error}");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(load(dir.path(), &Trust::default()), Err(ConfigError::Writable { .. })));
    }

    #[test]
    fn a_huge_file_and_a_pipe_are_refused() {
        let huge = format!("{LIST}{}", " ".repeat(1 << 20));
        assert!(of(&[("a.conflist", &huge)]).unwrap_err().contains("1 MiB"));
        let dir = dir(&[]);
        let dev = dir.path().join("a.conflist");
        std::os::unix::fs::symlink("/dev/null", &dev).unwrap();
        // Everybody's device; either reason is right.
        assert!(load(dir.path(), &Trust::default()).is_err());
    }
}
