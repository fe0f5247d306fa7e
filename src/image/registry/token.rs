//! Getting in: Basic, and Bearer tokens from the token server that a registry names.
//!
//! A token is kept until it expires, for one host, one repository and one set of credentials; so pulls of the same
//! repository ask once, and a pull with other credentials asks anew.
//!
//! Where credentials go: to the host they belong to, and to the token server it names, if that is reached over TLS,
//! or the registry itself is spoken to without TLS, when nothing is lost. Redirects of a token server are followed on
//! the same host only, unless the request carried nothing.
//!
//! Source: the distribution project's token authentication specification (GET, and POST of OAuth 2), RFC 6750, 7617.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::image::registry::challenge::{self, Bearer, Challenge};
use crate::image::registry::credentials::{Proof, Secret};
use crate::image::registry::error::{RegistryError, RegistryErrorKind as Kind, clean};
use crate::image::registry::peer::{Answer, Ask, Follow, Peer, is_sound};

/// Bytes of a token server's answer, and of one token in it.
const ANSWER_BYTES: u64 = 256 << 10;
const TOKEN_BYTES: usize = 64 << 10;
/// Bytes of a realm, a service or a scope.
const FIELD_BYTES: usize = 4 << 10;
/// Tokens kept over all registries, and bytes of them with what they were got by.
const KEPT: usize = 256;
const KEPT_BYTES: usize = 1 << 20;
/// What a token is good for if its server does not say (60 s by the specification), and the most that is believed.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// A token is not used in its last moments: it has to arrive.
const MARGIN: Duration = Duration::from_secs(5);

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub host: String,
    pub repository: String,
    pub proof: [u8; 32],
}

/// What a registry turned out to want.
#[derive(Debug, Clone)]
enum Known {
    Basic,
    Bearer { bearer: Bearer, over_tls: bool, token: Secret, until: Instant },
}

/// Everything learned about getting in, for all registries.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<Key, Known>>);

impl Tokens {
    fn get(&self, key: &Key) -> Option<Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: &Key, known: Known) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= KEPT {
            let now = Instant::now();
            map.retain(|_, known| !matches!(known, Known::Bearer { until, .. } if *until <= now));
        }
        map.remove(key);
        let mut bytes: usize = cost(key, &known) + map.iter().map(|(key, known)| cost(key, known)).sum::<usize>();
        while (map.len() >= KEPT || bytes > KEPT_BYTES)
            && let Some(any) = map.keys().next().cloned()
        {
            bytes -= map.remove(&any).map_or(0, |gone| cost(&any, &gone));
        }
        map.insert(key.clone(), known);
    }

    fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Bytes that an entry takes up, about.
fn cost(key: &Key, known: &Known) -> usize {
    let words = match known {
        Known::Basic => 0,
        Known::Bearer { bearer, token, .. } => {
            let fields = [Some(&bearer.realm), bearer.service.as_ref(), bearer.scope.as_ref()];
            token.reveal().len() + fields.into_iter().flatten().map(String::len).sum::<usize>()
        }
    };
    size_of::<(Key, Known)>() + key.host.len() + key.repository.len() + words
}

/// The way into one repository at one host with one proof.
pub(super) struct Gate {
    key: Key,
    proof: Proof,
    tokens: Arc<Tokens>,
    /// Held while a token is fetched: layers that are pulled side by side ask once.
    asking: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("host", &self.key.host).finish_non_exhaustive()
    }
}

impl Gate {
    pub fn new(host: &str, repository: &str, proof: Proof, tokens: Arc<Tokens>) -> Self {
        let key = Key { host: host.to_owned(), repository: repository.to_owned(), proof: proof.fingerprint() };
        Self { key, proof, tokens, asking: tokio::sync::Mutex::new(()) }
    }

    /// What to send along with a request, by what is known so far.
    pub async fn authorization(&self, peer: &Peer) -> Result<Option<Secret>, RegistryError> {
        if let Proof::Registry(token) = &self.proof {
            return Ok(Some(Secret::new(format!("Bearer {}", token.reveal()))));
        }
        match self.tokens.get(&self.key) {
            None => Ok(None),
            Some(Known::Basic) => Ok(self.basic()),
            Some(Known::Bearer { token, until, .. }) if until > Instant::now() => Ok(Some(token)),
            Some(Known::Bearer { bearer, over_tls, token, .. }) => {
                self.fetch(peer, &bearer, over_tls, Some(&token)).await.map(Some)
            }
        }
    }

    /// What to send after a 401 to a request that carried `sent`; `None` if there is nothing better.
    pub async fn answer(
        &self,
        peer: &Peer,
        refused: &Answer,
        sent: Option<&Secret>,
    ) -> Result<Option<Secret>, RegistryError> {
        if matches!(self.proof, Proof::Registry(_)) {
            return Ok(None);
        }
        match challenge::choose(refused.response.headers()) {
            Some(Challenge::Bearer(bearer)) => self.fetch(peer, &bearer, refused.over_tls, sent).await.map(Some),
            Some(Challenge::Basic) => {
                let basic = self.basic().filter(|basic| Some(basic) != sent);
                match &basic {
                    Some(_) => self.tokens.put(&self.key, Known::Basic),
                    None => self.tokens.forget(&self.key),
                }
                Ok(basic)
            }
            None => Ok(None),
        }
    }

    fn basic(&self) -> Option<Secret> {
        match &self.proof {
            Proof::Password { username, password } => Some(Proof::basic(username, password)),
            _ => None,
        }
    }

    /// A token that is not `stale`, from the cache or from the realm.
    async fn fetch(
        &self,
        peer: &Peer,
        bearer: &Bearer,
        over_tls: bool,
        stale: Option<&Secret>,
    ) -> Result<Secret, RegistryError> {
        let _turn = self.asking.lock().await;
        if let Some(Known::Bearer { token, until, .. }) = self.tokens.get(&self.key)
            && until > Instant::now()
            && Some(&token) != stale
        {
            return Ok(token);
        }
        self.tokens.forget(&self.key);
        let realm = check_realm(&bearer.realm, over_tls).map_err(|reason| {
            let realm = clean(&bearer.realm);
            RegistryError::new(Kind::Protocol, format!("{} wants a token from {realm:?}, {reason}", self.key.host))
        })?;
        let fields = [Some(&bearer.realm), bearer.service.as_ref(), bearer.scope.as_ref()];
        if fields.into_iter().flatten().any(|field| field.len() > FIELD_BYTES) {
            let text = format!("{} asks for a token with more words than are accepted", self.key.host);
            return Err(RegistryError::new(Kind::Limit, text));
        }
        let issued = Instant::now();
        let grant = self.ask(peer, bearer, &realm).await?;
        let until = issued + grant.life();
        let token = Secret::new(format!("Bearer {}", grant.token));
        let known = Known::Bearer { bearer: bearer.clone(), over_tls, token: token.clone(), until };
        self.tokens.put(&self.key, known);
        Ok(token)
    }

    async fn ask(&self, peer: &Peer, bearer: &Bearer, realm: &Uri) -> Result<Grant, RegistryError> {
        match &self.proof {
            Proof::Identity(token) => {
                let form = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
                self.post(peer, bearer, realm, &form).await
            }
            Proof::Password { username, password } => {
                let answer = self.get(peer, bearer, realm, Some((username, password))).await?;
                // Some servers know the way of OAuth alone.
                if matches!(answer.response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
                    let form = [("grant_type", "password"), ("username", username), ("password", password.reveal())];
                    return self.post(peer, bearer, realm, &form).await;
                }
                self.read(peer, answer).await
            }
            Proof::Anonymous | Proof::Registry(_) => {
                let answer = self.get(peer, bearer, realm, None).await?;
                self.read(peer, answer).await
            }
        }
    }

    fn scope(&self, bearer: &Bearer) -> String {
        bearer.scope.clone().unwrap_or_else(|| format!("repository:{}:pull", self.key.repository))
    }

    fn what(&self) -> String {
        format!("a token for {}", self.key.repository)
    }

    async fn get(
        &self,
        peer: &Peer,
        bearer: &Bearer,
        realm: &Uri,
        login: Option<(&String, &Secret)>,
    ) -> Result<Answer, RegistryError> {
        let mut query = Vec::new();
        if let Some((username, _)) = login {
            query.push(("account", username.as_str()));
        }
        if let Some(service) = &bearer.service {
            query.push(("service", service));
        }
        let scope = self.scope(bearer);
        // Several scopes stand in one field, but are asked for one by one.
        query.extend(scope.split(' ').filter(|s| !s.is_empty()).map(|s| ("scope", s)));
        let separator = if realm.query().is_some() { '&' } else { '?' };
        let uri = format!("{realm}{separator}{}", encode(&query)).parse().map_err(|_| self.odd_realm())?;
        let basic = login.map(|(username, password)| Proof::basic(username, password));
        self.request(peer, Method::GET, uri, basic.as_ref(), None).await
    }

    async fn post(
        &self,
        peer: &Peer,
        bearer: &Bearer,
        realm: &Uri,
        form: &[(&str, &str)],
    ) -> Result<Grant, RegistryError> {
        let scope = self.scope(bearer);
        let mut fields = form.to_vec();
        fields.extend([("client_id", "aril"), ("scope", scope.as_str())]);
        if let Some(service) = &bearer.service {
            fields.push(("service", service));
        }
        let answer = self.request(peer, Method::POST, realm.clone(), None, Some(Secret::new(encode(&fields)))).await?;
        self.read(peer, answer).await
    }

    async fn request(
        &self,
        peer: &Peer,
        method: Method,
        uri: Uri,
        authorization: Option<&Secret>,
        form: Option<Secret>,
    ) -> Result<Answer, RegistryError> {
        let what = self.what();
        let headers: [(HeaderName, HeaderValue); 1] = [(header::ACCEPT, HeaderValue::from_static("application/json"))];
        let carries_nothing = authorization.is_none() && form.is_none();
        let follow = if carries_nothing { Follow::Everywhere } else { Follow::SameHost };
        peer.send(Ask { what: &what, method, uri, headers: &headers, authorization, form, follow }).await
    }

    async fn read(&self, peer: &Peer, answer: Answer) -> Result<Grant, RegistryError> {
        let what = self.what();
        match answer.response.status() {
            StatusCode::OK | StatusCode::CREATED => {}
            // What a token server does not like is what it was shown.
            StatusCode::BAD_REQUEST if self.proof != Proof::Anonymous => {
                let error = peer.refusal(answer, &what).await;
                return Err(RegistryError::new(Kind::Unauthorized, error.to_string()));
            }
            _ => return Err(peer.refusal(answer, &what).await),
        }
        let from = answer.from.clone();
        let bytes = peer.body(answer, &what, ANSWER_BYTES).await?;
        let malformed = |reason: &str| {
            RegistryError::new(
                Kind::Protocol,
                format!("{from} answered the request for {what} with no token: {reason}"),
            )
        };
        // An error of serde repeats a little of the text, which may be a token.
        let raw: RawGrant = serde_json::from_slice(&bytes)
            .map_err(|e| malformed(&format!("line {}, column {} is not what was expected", e.line(), e.column())))?;
        let token = raw.token.filter(|t| !t.is_empty()).or(raw.access_token).unwrap_or_default();
        if token.is_empty() || token.len() > TOKEN_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(malformed("it is empty, too long, or has characters that no token has"));
        }
        Ok(Grant { token, expires_in: raw.expires_in })
    }

    fn odd_realm(&self) -> RegistryError {
        RegistryError::new(Kind::Protocol, format!("{} names a token server that is no address", self.key.host))
    }
}

/// A token server's address, if a registry that was reached like this may name it. The error is a clause for people.
fn check_realm(realm: &str, over_tls: bool) -> Result<Uri, &'static str> {
    let uri: Uri = realm.parse().map_err(|_| "which is no address")?;
    let authority = uri.authority().ok_or("which names no host")?;
    if !is_sound(authority) {
        return Err("which is no host, or holds credentials of its own");
    }
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Ok(uri),
        Some(scheme) if *scheme == Scheme::HTTP && !over_tls => Ok(uri),
        Some(scheme) if *scheme == Scheme::HTTP => Err("which is less safe than itself: plain HTTP instead of TLS"),
        _ => Err("which is neither http:// nor https://"),
    }
}

#[derive(Deserialize)]
struct RawGrant {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Number>,
}

struct Grant {
    token: String,
    expires_in: Option<serde_json::Number>,
}

impl Grant {
    /// How long the token is used. Counted from the request, as clocks of servers differ from ours.
    fn life(&self) -> Duration {
        let said = self.expires_in.as_ref().and_then(serde_json::Number::as_f64);
        let life = said.and_then(|s| Duration::try_from_secs_f64(s).ok()).filter(|life| !life.is_zero());
        life.unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE).saturating_sub(MARGIN)
    }
}

fn encode(fields: &[(&str, &str)]) -> String {
    let part = |text| utf8_percent_encode(text, UNRESERVED);
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{}={}", part(name), part(value))).collect();
    pairs.join("&")
}

/// Whether a refusal asks for credentials.
pub(super) fn is_challenge(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::UNAUTHORIZED && headers.contains_key(header::WWW_AUTHENTICATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_server_is_never_less_safe_than_its_registry() {
        for (realm, plain, tls) in [
            ("https://auth.example/token", true, true),
            ("https://auth.example/token?x=1", true, true),
            ("http://auth.example/token", true, false),
            ("https://me:pw@auth.example/token", false, false),
            ("https://auth.example:port/token", false, false),
            ("ftp://auth.example/", false, false),
            ("/token", false, false),
            ("auth.example", false, false),
            ("", false, false),
            ("https://a b/", false, false),
        ] {
            assert_eq!((check_realm(realm, false).is_ok(), check_realm(realm, true).is_ok()), (plain, tls), "{realm}");
        }
    }

    #[test]
    fn lives_are_bounded() {
        let life = |text: &str| Grant { token: String::new(), expires_in: serde_json::from_str(text).unwrap() }.life();
        let seconds = Duration::from_secs;
        assert_eq!(life("null"), seconds(55));
        assert_eq!(life("300"), seconds(295));
        assert_eq!(life("300.0"), seconds(295));
        assert_eq!(life("-1"), seconds(55));
        assert_eq!(life("0"), seconds(55));
        assert_eq!(life("3"), seconds(0));
        assert_eq!(life("1e300"), seconds(55));
        assert_eq!(life("1000000"), seconds(3595));
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            encode(&[("scope", "repository:a/b:pull"), ("x", "1 2&=ü")]),
            "scope=repository%3Aa%2Fb%3Apull&x=1%202%26%3D%C3%BC"
        );
    }

    #[test]
    fn no_more_tokens_than_a_few_are_kept() {
        let tokens = Tokens::default();
        for n in 0..KEPT + 10 {
            let key = Key { host: n.to_string(), repository: String::new(), proof: [0; 32] };
            tokens.put(&key, Known::Basic);
        }
        assert_eq!(tokens.0.lock().unwrap().len(), KEPT);
        // Nor more bytes of them.
        for n in 0..KEPT {
            let key = Key { host: n.to_string(), repository: String::new(), proof: [0; 32] };
            let bearer = Bearer { realm: "r".repeat(FIELD_BYTES), service: None, scope: None };
            let token = Secret::new("t".repeat(TOKEN_BYTES));
            tokens.put(&key, Known::Bearer { bearer, over_tls: true, token, until: Instant::now() + DEFAULT_LIFE });
        }
        let map = tokens.0.lock().unwrap();
        let bytes: usize = map.iter().map(|(key, known)| cost(key, known)).sum();
        assert!(bytes <= KEPT_BYTES && bytes > KEPT_BYTES / 2, "{bytes}");
    }
}
