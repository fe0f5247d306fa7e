//! Whose credentials are sent, and where: only to the host they belong to.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::api::cri::AuthConfig;
use crate::image::registry::error::{RegistryError, RegistryErrorKind};

/// Bytes of one user name, password or token.
const MOST: usize = 64 << 10;

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be sent.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What a registry is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    Anonymous,
    Password {
        username: String,
        password: Secret,
    },
    /// A refresh token, to be exchanged for access tokens at the registry's token server.
    Identity(Secret),
    /// An access token, sent as it is.
    Registry(Secret),
}

/// Credentials and the host they belong to.
///
/// They are sent to that host alone, and to the token server which that host names over TLS; never to a mirror with
/// another name and never along a redirect. Its `Debug` names the kind and the host, no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    proof: Proof,
    /// Host and port in normal form; `None`: the registry that the image reference names.
    host: Option<String>,
}

impl Credentials {
    /// None at all: what the registry gives to everyone.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { proof: Proof::Anonymous, host: None }
    }

    /// User name and password for the registry of the reference that is pulled.
    #[must_use]
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        let proof = Proof::Password { username: username.into(), password: Secret::new(password) };
        Self { proof, host: None }
    }

    /// What kubelet or a person sent along with PullImage.
    ///
    /// The first of these that is there counts: user name and password, `identity_token`, `auth` (base64 of
    /// `user:password`), `registry_token`. With a `server_address` (host, `host:port` or a URL) they are for that
    /// host only, else for the registry that the image reference names.
    ///
    /// # Errors
    /// Of kind `Config`, if a field cannot be read; its content is not repeated.
    ///
    /// Source: CRI v1 `AuthConfig`; containerd's `ParseAuth` for the order.
    pub fn from_auth_config(auth: Option<&AuthConfig>) -> Result<Self, RegistryError> {
        let Some(auth) = auth else { return Ok(Self::anonymous()) };
        let fields = [
            ("username", &auth.username),
            ("password", &auth.password),
            ("auth", &auth.auth),
            ("server_address", &auth.server_address),
            ("identity_token", &auth.identity_token),
            ("registry_token", &auth.registry_token),
        ];
        for (name, value) in fields {
            if value.len() > MOST {
                return Err(unreadable(name, "it is longer than 64 KiB"));
            }
        }
        let host = match auth.server_address.trim() {
            "" => None,
            address => Some(host_of(address).ok_or_else(|| unreadable("server_address", "it names no host"))?),
        };
        let proof = if !auth.username.is_empty() {
            Proof::Password { username: auth.username.clone(), password: Secret::new(&auth.password) }
        } else if !auth.identity_token.is_empty() {
            Proof::Identity(Secret::new(sendable("identity_token", &auth.identity_token)?))
        } else if !auth.auth.is_empty() {
            decode(&auth.auth)?
        } else if !auth.registry_token.is_empty() {
            Proof::Registry(Secret::new(sendable("registry_token", &auth.registry_token)?))
        } else {
            Proof::Anonymous
        };
        Ok(Self { proof: unwrap_token(proof), host })
    }

    /// The proof for `endpoint`, if it is the host these credentials belong to. `registry` is the one of the reference.
    pub(super) fn for_endpoint(&self, registry: &str, endpoint: &str) -> Proof {
        let owner = self.host.clone().unwrap_or_else(|| normal(registry));
        if owner == normal(endpoint) { self.proof.clone() } else { Proof::Anonymous }
    }
}

impl Proof {
    /// Tells proofs apart in the cache of tokens without keeping the secrets themselves.
    pub fn fingerprint(&self) -> [u8; 32] {
        let (kind, first, second) = match self {
            Self::Anonymous => (0, "", ""),
            Self::Password { username, password } => (1, username.as_str(), password.reveal()),
            Self::Identity(token) => (2, token.reveal(), ""),
            Self::Registry(token) => (3, token.reveal(), ""),
        };
        let mut hash = Sha256::new();
        hash.update([kind]);
        hash.update(first.len().to_le_bytes());
        hash.update(first);
        hash.update(second);
        hash.finalize().into()
    }

    /// The value of a Basic `Authorization` header.
    pub fn basic(username: &str, password: &Secret) -> Secret {
        Secret::new(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal()))))
    }
}

fn decode(auth: &str) -> Result<Proof, RegistryError> {
    let text = auth.trim();
    let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text));
    let decoded = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|pair| pair.split_once(':'));
    let (username, password) = pair.ok_or_else(|| unreadable("auth", "it is not base64 of user:password"))?;
    // Some tools pad the password with zero bytes.
    Ok(Proof::Password { username: username.to_owned(), password: Secret::new(password.trim_matches('\0')) })
}

/// Docker's way to say that a password is an identity token is a user called `<token>`.
fn unwrap_token(proof: Proof) -> Proof {
    match proof {
        Proof::Password { username, password } if username == "<token>" => Proof::Identity(password),
        other => other,
    }
}

/// Tokens go into a header, where line ends would begin another one.
fn sendable<'a>(field: &'static str, token: &'a str) -> Result<&'a str, RegistryError> {
    let fine = token.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(token) } else { Err(unreadable(field, "it has characters that no token has")) }
}

fn unreadable(field: &'static str, reason: &'static str) -> RegistryError {
    RegistryError::new(RegistryErrorKind::Config, format!("the credentials' {field} cannot be used: {reason}"))
}

/// The host and port in an address as it stands in credentials: a URL, or host and port alone.
fn host_of(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (!host.is_empty()).then(|| normal(host))
}

/// One spelling for one host: lower case, no default port, one name for Docker Hub.
pub(super) fn normal(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    let lower = lower.strip_suffix(":443").map_or(lower.clone(), str::to_owned);
    match lower.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AuthConfig {
        AuthConfig::default()
    }

    fn proof(auth: &AuthConfig) -> Proof {
        Credentials::from_auth_config(Some(auth)).unwrap().for_endpoint("r.example", "r.example")
    }

    fn pair(username: &str, password: &str) -> Proof {
        Proof::Password { username: username.to_owned(), password: Secret::new(password) }
    }

    #[test]
    fn the_first_kind_in_the_documented_order_counts() {
        let mut auth = config();
        assert_eq!(proof(&auth), Proof::Anonymous);
        auth.registry_token = "r".to_owned();
        assert_eq!(proof(&auth), Proof::Registry(Secret::new("r")));
        auth.auth = STANDARD.encode("me:pass:word");
        assert_eq!(proof(&auth), pair("me", "pass:word"));
        auth.identity_token = "i".to_owned();
        assert_eq!(proof(&auth), Proof::Identity(Secret::new("i")));
        auth.username = "you".to_owned();
        auth.password = "p".to_owned();
        assert_eq!(proof(&auth), pair("you", "p"));
        auth.username = "<token>".to_owned();
        assert_eq!(proof(&auth), Proof::Identity(Secret::new("p")));
    }

    #[test]
    fn they_stay_with_their_host() {
        let mut auth = config();
        auth.username = "me".to_owned();
        let none = Proof::Anonymous;
        let at = |auth: &AuthConfig, registry: &str, endpoint: &str| {
            Credentials::from_auth_config(Some(auth)).unwrap().for_endpoint(registry, endpoint)
        };
        assert_ne!(at(&auth, "r.example", "r.example"), none);
        assert_ne!(at(&auth, "r.example", "R.example:443"), none);
        assert_eq!(at(&auth, "r.example", "mirror.example"), none);
        assert_eq!(at(&auth, "r.example:5000", "r.example"), none);
        assert_ne!(at(&auth, "docker.io", "registry-1.docker.io"), none);

        for (address, endpoint, sent) in [
            ("https://mirror.example/v2/", "mirror.example", true),
            ("mirror.example:5000", "mirror.example:5000", true),
            ("mirror.example:5000", "r.example", false),
            ("https://mirror.example", "r.example", false),
            ("https://index.docker.io/v1/", "registry-1.docker.io", true),
            ("https://r.example@evil.example", "r.example", false),
            ("r.example.evil.example", "r.example", false),
        ] {
            auth.server_address = address.to_owned();
            assert_eq!(at(&auth, "r.example", endpoint) != none, sent, "{address} at {endpoint}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_showing_it() {
        for (field, auth) in [
            ("auth", AuthConfig { auth: "hunter2!".to_owned(), ..config() }),
            ("auth", AuthConfig { auth: STANDARD.encode("hunter2"), ..config() }),
            ("identity_token", AuthConfig { identity_token: "hunter2\r\nX: y".to_owned(), ..config() }),
            ("registry_token", AuthConfig { registry_token: "hunter2\n".to_owned(), ..config() }),
            ("server_address", AuthConfig { server_address: "https://".to_owned(), ..config() }),
            ("password", AuthConfig { username: "hunter2".to_owned(), password: "x".repeat(MOST + 1), ..config() }),
        ] {
            let error = Credentials::from_auth_config(Some(&auth)).unwrap_err();
            assert_eq!(error.kind(), RegistryErrorKind::Config);
            let text = error.to_string();
            assert!(text.contains(field) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut auth = config();
        auth.username = "me".to_owned();
        auth.password = "hunter2".to_owned();
        let shown = format!("{:?}", Credentials::from_auth_config(Some(&auth)).unwrap());
        assert!(shown.contains("me") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn fingerprints_tell_proofs_apart() {
        let all = [
            Proof::Anonymous,
            pair("a", "bc"),
            pair("ab", "c"),
            Proof::Identity(Secret::new("abc")),
            Proof::Registry(Secret::new("abc")),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.fingerprint() == b.fingerprint(), i == j);
            }
        }
    }
}
