//! What a client asks its connection to become, and what it becomes.

use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION};
use hyper::{Method, StatusCode};

use super::outlet::Framing;
use super::websocket::accept;

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What Exec and Attach can be spoken in over SPDY…
const REMOTE_SPDY: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// … and over WebSocket.
const REMOTE_WEBSOCKET: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// What a connection becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub framing: Framing,
    /// Empty: none was asked for.
    pub protocol: &'static str,
}

impl Agreed {
    /// The number in its name; 1 without.
    pub fn version(self) -> u8 {
        let digit = self.protocol.strip_prefix('v').and_then(|rest| rest.bytes().next());
        digit.map_or(1, |digit| digit.wrapping_sub(b'0'))
    }
}

/// Why it stays what it is.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub reason: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), headers: Vec::new() }
    }
}

/// Agrees on the first of the client's wishes that can be met; with the headers of the answer.
///
/// # Errors
/// [`Refusal`].
pub(super) fn agree(forward: bool, method: &Method, asked: &HeaderMap) -> Result<(Agreed, HeaderMap), Refusal> {
    let upgrade = list(asked, &UPGRADE);
    let is = |name: &str| upgrade.iter().any(|asked| asked.eq_ignore_ascii_case(name));
    if !list(asked, &CONNECTION).iter().any(|option| option.eq_ignore_ascii_case("upgrade")) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the connection must be upgraded to SPDY/3.1 or websocket"));
    }
    if is("websocket") {
        if *method != Method::GET {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "a websocket begins with GET"));
        }
        return websocket(if forward { FORWARD_WEBSOCKET } else { REMOTE_WEBSOCKET }, asked);
    }
    if is("SPDY/3.1") {
        return spdy(if forward { FORWARD_SPDY } else { REMOTE_SPDY }, asked);
    }
    Err(Refusal::new(StatusCode::BAD_REQUEST, "the connection must be upgraded to SPDY/3.1 or websocket"))
}

fn spdy(known: &'static [&'static str], asked: &HeaderMap) -> Result<(Agreed, HeaderMap), Refusal> {
    let versions = list(asked, &PROTOCOL_VERSION);
    if versions.is_empty() {
        let reason = format!("the header {PROTOCOL_VERSION} is missing; it names one of {}", known.join(", "));
        return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
    }
    let Some(protocol) = first_known(&versions, known) else {
        let reason = format!("none of the versions in {PROTOCOL_VERSION} is known; those are {}", known.join(", "));
        let mut refusal = Refusal::new(StatusCode::FORBIDDEN, reason);
        for version in known {
            refusal.headers.push((ACCEPTED_VERSIONS, HeaderValue::from_static(version)));
        }
        return Err(refusal);
    };
    let mut headers = upgraded("SPDY/3.1");
    headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    Ok((Agreed { framing: Framing::Spdy, protocol }, headers))
}

fn websocket(known: &'static [&'static str], asked: &HeaderMap) -> Result<(Agreed, HeaderMap), Refusal> {
    if asked.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut refusal = Refusal::new(StatusCode::UPGRADE_REQUIRED, "of websocket, version 13 is spoken");
        refusal.headers.push((SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refusal);
    }
    // 16 bytes in base64.
    let key = asked.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).filter(|key| key.len() == 24);
    let key =
        key.ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "the header sec-websocket-key is not 16 bytes"))?;
    let offered = list(asked, &SEC_WEBSOCKET_PROTOCOL);
    let protocol = match first_known(&offered, known) {
        Some(protocol) => protocol,
        None if offered.is_empty() => "",
        None => {
            let reason = format!("none of the subprotocols is known; those are {}", known.join(", "));
            return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
        }
    };
    let framing = match protocol {
        TUNNEL => Framing::Tunnel,
        protocol => Framing::Channels { base64: protocol.contains("base64") },
    };
    let mut headers = upgraded("websocket");
    if let Ok(answer) = HeaderValue::from_str(&accept(key)) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, answer);
    }
    if !protocol.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((Agreed { framing, protocol }, headers))
}

fn upgraded(to: &'static str) -> HeaderMap {
    let pairs = [(CONNECTION, HeaderValue::from_static("Upgrade")), (UPGRADE, HeaderValue::from_static(to))];
    pairs.into_iter().collect()
}

fn first_known(asked: &[&str], known: &'static [&'static str]) -> Option<&'static str> {
    asked.iter().find_map(|asked| known.iter().find(|known| *known == asked)).copied()
}

/// The values of a header, wherever the commas are.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    const SPDY: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "spdy/3.1")];
    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn with(base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]) -> HeaderMap {
        headers(&[base, more].concat())
    }

    fn refused(forward: bool, method: &Method, asked: &HeaderMap) -> u16 {
        agree(forward, method, asked).unwrap_err().status.as_u16()
    }

    #[test]
    fn the_first_wish_that_can_be_met_is() {
        let version = "x-stream-protocol-version";
        let asked = with(&SPDY, &[(version, "v9.channel.k8s.io, v3.channel.k8s.io"), (version, "v4.channel.k8s.io")]);
        let (agreed, answer) = agree(false, &Method::POST, &asked).unwrap();
        assert_eq!((agreed.protocol, agreed.framing, agreed.version()), ("v3.channel.k8s.io", Framing::Spdy, 3));
        assert_eq!(answer[version], "v3.channel.k8s.io");
        assert_eq!(refused(true, &Method::POST, &asked), 403);
        assert_eq!(refused(false, &Method::POST, &headers(&SPDY)), 400);
        let refusal = agree(false, &Method::POST, &with(&SPDY, &[(version, "v9")])).unwrap_err();
        assert_eq!(refusal.headers.iter().filter(|(name, _)| name == ACCEPTED_VERSIONS).count(), 4);
    }

    #[test]
    fn websockets_speak_channels_or_carry_spdy() {
        let protocol = "sec-websocket-protocol";
        let (agreed, answer) = agree(false, &Method::GET, &headers(&WEBSOCKET)).unwrap();
        assert_eq!((agreed.protocol, agreed.version()), ("", 1));
        assert_eq!(agreed.framing, Framing::Channels { base64: false });
        assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (agreed, answer) =
            agree(false, &Method::GET, &with(&WEBSOCKET, &[(protocol, "v5.channel.k8s.io")])).unwrap();
        assert_eq!((agreed.version(), &answer[protocol]), (5, &HeaderValue::from_static("v5.channel.k8s.io")));
        let base64 = with(&WEBSOCKET, &[(protocol, "x, v4.base64.channel.k8s.io")]);
        let (agreed, _) = agree(true, &Method::GET, &base64).unwrap();
        assert_eq!((agreed.framing, agreed.version()), (Framing::Channels { base64: true }, 4));
        let (agreed, _) = agree(true, &Method::GET, &with(&WEBSOCKET, &[(protocol, TUNNEL)])).unwrap();
        assert_eq!(agreed.framing, Framing::Tunnel);
        assert_eq!(refused(false, &Method::GET, &with(&WEBSOCKET, &[(protocol, TUNNEL)])), 403);
        assert_eq!(refused(false, &Method::POST, &headers(&WEBSOCKET)), 405);
        assert_eq!(refused(false, &Method::GET, &headers(&WEBSOCKET[..2])), 426);
        assert_eq!(refused(false, &Method::GET, &headers(&WEBSOCKET[..3])), 400);
    }

    #[test]
    fn what_asks_for_nothing_is_refused() {
        assert_eq!(refused(false, &Method::GET, &HeaderMap::new()), 400);
        assert_eq!(refused(false, &Method::GET, &headers(&[("connection", "Upgrade"), ("upgrade", "h2c")])), 400);
        assert_eq!(refused(false, &Method::GET, &headers(&SPDY[1..])), 400);
    }
}
