//! `WWW-Authenticate`: what a registry wants to see.

use http::header::{HeaderMap, WWW_AUTHENTICATE};

/// Header lines, and characters of all of them, that are looked at.
const LINES: usize = 8;
const BYTES: usize = 8 << 10;

/// One way to authenticate that the registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// Where a token is to be had, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

/// The best of what is offered: tokens before passwords. `None` if there is nothing we can do.
pub(super) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    let mut bytes = 0;
    for value in headers.get_all(WWW_AUTHENTICATE).iter().take(LINES) {
        bytes += value.len();
        if let Some(text) = value.to_str().ok().filter(|_| bytes <= BYTES) {
            all.extend(parse(text));
        }
    }
    let bearer = all.iter().find(|c| matches!(c, Challenge::Bearer(_))).cloned();
    bearer.or_else(|| all.first().cloned())
}

/// All challenges of one line that are understood: `Bearer realm="…",service="…", Basic realm="…"`.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let trimmed = after.trim_start_matches([' ', '\t']);
        match (trimmed.strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let Some((value, after)) = read_value(value.trim_start_matches([' ', '\t'])) else { break };
                // A name that comes twice could mean two things; the first stands.
                if !parameters.iter().any(|(name, _)| name.eq_ignore_ascii_case(word)) {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            // A parameter before any scheme.
            (Some(_), None) => break,
            (None, _) => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, parameters)).collect()
}

fn challenge(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    if scheme == "basic" {
        return Some(Challenge::Basic);
    }
    if scheme != "bearer" {
        return None;
    }
    let mut bearer = Bearer { realm: String::new(), service: None, scope: None };
    for (name, value) in parameters {
        match name.as_str() {
            "realm" => bearer.realm = value,
            "service" => bearer.service = Some(value),
            "scope" => bearer.scope = Some(value),
            _ => {}
        }
    }
    (!bearer.realm.is_empty()).then_some(Challenge::Bearer(bearer))
}

fn token(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

fn read_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn real_registries_are_understood() {
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/busybox:pull"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm = "https://a/t" , scope="repository:x:pull,push", error="invalid_token""#,
                vec![bearer("https://a/t", None, Some("repository:x:pull,push"))],
            ),
            (r#"Bearer realm=https://a/t?x=1,service=s"#, vec![bearer("https://a/t?x=1", Some("s"), None)]),
            (r#"Basic realm="x", Bearer realm="https://a""#, vec![Challenge::Basic, bearer("https://a", None, None)]),
            (r#"Bearer realm="https://a\"b\\c""#, vec![bearer("https://a\"b\\c", None, None)]),
            (r#"Bearer realm="https://a",REALM="https://evil""#, vec![bearer("https://a", None, None)]),
            (r#"Bearer service="x""#, vec![]),
            (r#"Bearer realm="https://a"#, vec![]),
            ("Negotiate", vec![]),
            ("Negotiate oYG2MIGz, Basic realm=x", vec![Challenge::Basic]),
            (r#"realm="x""#, vec![]),
            ("", vec![]),
            ("=,=\"", vec![]),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn tokens_are_preferred_and_floods_are_cut() {
        let mut headers = HeaderMap::new();
        assert_eq!(choose(&headers), None);
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=x"));
        assert_eq!(choose(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"https://a\""));
        assert_eq!(choose(&headers), Some(bearer("https://a", None, None)));

        let mut flood = HeaderMap::new();
        flood.append(WWW_AUTHENTICATE, HeaderValue::try_from("x".repeat(BYTES)).unwrap());
        flood.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
        assert_eq!(choose(&flood), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_to_its_end(text in "[ -~]{0,80}|[a-zB =\",\\\\]{0,60}") {
            parse(&text);
        }
    }
}
