//! Why a configuration cannot be used, and why a plugin did not do what it was asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::super::NetError;

/// Why there is no usable configuration list.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody has written one yet.
    #[error("no CNI configuration in {}: a network's installer puts a .conflist there", dir.display())]
    #[allow(missing_docs)]
    Absent { dir: PathBuf },
    /// It cannot be read.
    #[error("{step} {}: {source}", path.display())]
    #[allow(missing_docs)]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    /// It is no configuration.
    #[error("CNI configuration {}: {reason}", path.display())]
    #[allow(missing_docs)]
    Broken { path: PathBuf, reason: String },
    /// No version of the list is spoken here.
    #[error("cniVersion: {reason}")]
    #[allow(missing_docs)]
    Versions { reason: String },
    /// A key has a value it cannot have.
    #[error("{key}: {reason}")]
    #[allow(missing_docs)]
    Key { key: String, reason: String },
    /// Everybody could change what is run as root.
    #[error("{} can be written by everybody, and says what is run as root: chmod o-w it", path.display())]
    #[allow(missing_docs)]
    Writable { path: PathBuf },
}

impl ConfigError {
    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }

    /// With the file named, unless it is already.
    pub(super) fn of(self, file: &std::path::Path) -> Self {
        match self {
            Self::Versions { .. } | Self::Key { .. } => {
                Self::Broken { path: file.to_owned(), reason: self.to_string() }
            }
            named => named,
        }
    }
}

impl From<ConfigError> for NetError {
    fn from(e: ConfigError) -> Self {
        Self::NotReady { reason: e.to_string() }
    }
}

/// Why a plugin did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It is nowhere, or nothing that may be run.
    #[error("{0}")]
    Unusable(String),
    /// It took too long and was killed.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// The time that all plugins have together was over before it was called, or before it answered.
    #[error("no answer within the {} s that all plugins of the network have together", .0.as_secs_f32())]
    Late(Duration),
    /// It said no, in CNI's form.
    #[error("{text}")]
    #[allow(missing_docs)]
    Refused { code: u32, text: String },
    /// It did something else.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    /// With all that a person needs to know.
    pub(super) fn of(self, plugin: &str, network: &str, step: &'static str) -> NetError {
        let (plugin, network) = (plugin.to_owned(), network.to_owned());
        match self {
            Self::Deadline(limit) => NetError::Deadline { plugin, network, step, limit },
            Self::Late(limit) => NetError::Late { plugin, network, step, limit },
            other => NetError::Plugin { plugin, network, step, reason: other.to_string() },
        }
    }
}

/// The start of what a stranger wrote, on one line.
pub(super) fn quoted(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MOST)]);
    let line = one_line(&text, MOST);
    if line.is_empty() { "nothing".to_owned() } else { format!("{line:?}") }
}

/// Text on one line, without control characters, of `most` characters.
pub(super) fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > 4 * most {
            break;
        }
    }
    if line.chars().count() > most {
        line = line.chars().take(most).collect();
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_write_is_short_and_on_one_line() {
        assert_eq!(one_line(" a\n\tb \u{1b}[1m c\0", 20), "a b [1m c");
        assert_eq!(one_line(&"x".repeat(1000), 5), "xxxxx…");
        assert_eq!(quoted(b"  \n"), "nothing");
        assert_eq!(quoted(b"a \"b\"\nc"), r#""a \"b\" c""#);
        assert!(quoted(&[0xff; 100_000]).chars().count() < 210);
    }

    #[test]
    fn a_deadline_says_how_long_was_waited() {
        let error = Failure::Deadline(Duration::from_secs(30)).of("bridge", "pods", "ADD");
        assert_eq!(error.to_string(), "CNI plugin bridge of network pods, ADD: no answer within 30 s");
        let late = Failure::Late(Duration::from_secs(80));
        let text = late.to_string();
        assert_eq!(text, "no answer within the 80 s that all plugins of the network have together");
        let error = late.of("bridge", "pods", "DEL").to_string();
        assert_eq!(error, format!("CNI plugin bridge of network pods, DEL: {text}"));
    }
}
