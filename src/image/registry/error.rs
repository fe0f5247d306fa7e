//! Why a registry did not give what was asked for: one sentence with host, step and cause.

use std::fmt;
use std::time::Duration;

/// Characters of a stranger's text that are shown.
const EXCERPT: usize = 240;

/// What went wrong, coarsely: what the caller does next depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryErrorKind {
    /// The registry has no such repository, tag, manifest or blob.
    NotFound,
    /// Credentials are missing, wrong, or not enough.
    Unauthorized,
    /// The registry wants fewer requests, and waiting a little did not help.
    RateLimited,
    /// No connection, a broken or stalled one, or an answer that says the registry is out of order.
    Unavailable,
    /// The registry's certificate is not to be trusted, or ours is not by it.
    Tls,
    /// An answer that no registry should give.
    Protocol,
    /// More of something than is accepted.
    Limit,
    /// The bytes are not those that the digest or size promised.
    Mismatch,
    /// Our own configuration: `hosts.toml`, certificate files, proxies, credentials that cannot be read.
    Config,
    /// The server has no ranges: the blob has to be fetched in one piece.
    NoRanges,
}

/// Why a request to a registry failed. Its text is one sentence, to be prefixed with what was wanted ("pull busybox").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct RegistryError {
    kind: RegistryErrorKind,
    text: String,
    /// Another attempt, or another mirror, may do better.
    transient: bool,
    /// How long the host asked us to wait before that.
    wait: Option<Duration>,
}

impl RegistryError {
    pub(in crate::image) fn new(kind: RegistryErrorKind, text: impl Into<String>) -> Self {
        let transient = matches!(kind, RegistryErrorKind::Unavailable | RegistryErrorKind::RateLimited);
        Self { kind, text: text.into(), transient, wait: None }
    }

    pub(super) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.wait = wait;
        self
    }

    pub(super) fn wait(&self) -> Option<Duration> {
        self.wait
    }

    pub(super) fn is_transient(&self) -> bool {
        self.transient
    }

    /// Adds what was tried before at other hosts.
    pub(super) fn after(mut self, earlier: &[RegistryError]) -> Self {
        if !earlier.is_empty() {
            let list: Vec<&str> = earlier.iter().map(|e| e.text.as_str()).collect();
            self.text = format!("{} (before that: {})", self.text, excerpt(&list.join("; "), 2 * EXCERPT));
        }
        self
    }

    /// What went wrong, coarsely.
    #[must_use]
    pub fn kind(&self) -> RegistryErrorKind {
        self.kind
    }
}

/// A stranger's text for people: no control characters, no more than fits a line.
pub(super) fn clean(text: &str) -> String {
    excerpt(text, EXCERPT)
}

fn excerpt(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut gap = false;
    for (count, c) in text.chars().enumerate() {
        if count >= most {
            out.push('…');
            break;
        }
        if c.is_control() || c.is_whitespace() || is_invisible(c) {
            gap = true;
            continue;
        }
        if gap && !out.is_empty() {
            out.push(' ');
        }
        gap = false;
        out.push(c);
    }
    out
}

/// Characters that turn or hide the text around them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// What a body says went wrong: `errors[]` of the distribution specification, else its beginning.
pub(super) fn explain(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: serde_json::Value,
        #[serde(default)]
        message: serde_json::Value,
    }
    /// Token servers use the field of OAuth 2, or Docker Hub's.
    #[derive(serde::Deserialize)]
    struct Other {
        #[serde(alias = "details", alias = "error_description", alias = "message")]
        error: Option<String>,
    }
    if let Ok(list) = serde_json::from_slice::<Errors>(body) {
        let shown = list.errors.iter().take(3).map(|item| {
            let word = |value: &serde_json::Value| value.as_str().map(str::to_owned).unwrap_or_default();
            let (code, message) = (word(&item.code), word(&item.message));
            if code.is_empty() || message.is_empty() { code + &message } else { format!("{code}, {message}") }
        });
        let text = shown.filter(|s| !s.is_empty()).collect::<Vec<_>>().join("; ");
        return clean(&text);
    }
    if let Ok(Other { error: Some(text) }) = serde_json::from_slice::<Other>(body) {
        return clean(&text);
    }
    let text = String::from_utf8_lossy(body);
    // A page for browsers says nothing to a person at a shell.
    if text.trim_start().starts_with('<') { String::new() } else { clean(&text) }
}

/// An error with all its causes, each once, in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        next = cause.source();
    }
    clean(&text)
}

/// `": <text>"`, or nothing for an empty text.
pub(super) struct Detail<'a>(pub &'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_is_clipped_and_has_no_control_characters() {
        assert_eq!(clean("a\r\n\x1b[31mb\u{202e}c\0"), "a [31mb c");
        let long = clean(&"x".repeat(5000));
        assert_eq!(long.chars().count(), EXCERPT + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn bodies_of_errors_are_put_in_words() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(explain(body), "MANIFEST_UNKNOWN, manifest unknown");
        assert_eq!(explain(br#"{"errors":[{"code":7,"message":"b"}]}"#), "b");
        assert_eq!(explain(br#"{"errors":[]}"#), "");
        assert_eq!(explain(br#"{"details":"incorrect username or password"}"#), "incorrect username or password");
        assert_eq!(explain(b"<html><body>502</body></html>"), "");
        assert_eq!(explain(b"no such\nhost"), "no such host");
        assert_eq!(explain(&[0xff, 0xfe, b'a']), "\u{fffd}\u{fffd}a");
        let deep = "[".repeat(100_000);
        assert!(explain(deep.as_bytes()).len() < 1000);
    }
}
