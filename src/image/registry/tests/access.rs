//! Who is shown credentials, and who is not.

use super::fake::{Access, TokenPolicy, TokenServer, decode_form};
use super::*;
use crate::api::cri::AuthConfig;

fn login() -> Credentials {
    Credentials::password("me", "hunter2")
}

fn policy() -> TokenPolicy {
    TokenPolicy { users: vec![("me".to_owned(), "hunter2".to_owned())], ..TokenPolicy::default() }
}

fn guarded(access: Access) -> Registry {
    let registry = Registry::with(Options { access, ..Options::default() });
    small(&registry, "a", "1");
    registry.add_blob("a", &noise(1000));
    registry
}

fn basic() -> Registry {
    guarded(Access::Basic("me".to_owned(), "hunter2".to_owned()))
}

fn authorizations(requests: &[fake::Seen]) -> Vec<String> {
    requests.iter().map(|s| s.header("authorization")).collect()
}

const BASIC: &str = "Basic bWU6aHVudGVyMg==";

#[tokio::test]
async fn a_password_is_sent_when_it_is_asked_for_and_from_then_on() {
    let (home, registry) = (Home::new(), basic());
    let reference = format!("{}/a:1", registry.host());
    let repository = home.open_with(&reference, &login()).await;
    repository.resolve().await.unwrap();
    repository.manifest().await.unwrap();
    assert_eq!(authorizations(&registry.requests()), ["", BASIC, BASIC]);
    // The next pull knows already: one request is all it takes to find out whether the credentials are good.
    registry.forget();
    home.open_with(&reference, &login()).await.resolve().await.unwrap();
    assert_eq!(authorizations(&registry.requests()), [BASIC]);

    registry.forget();
    let wrong = home.open_with(&reference, &Credentials::password("me", "hunter3")).await;
    let text = fails(wrong.resolve().await, RegistryErrorKind::Unauthorized, &["401", "credentials"]);
    assert!(!text.contains("hunter"), "{text}");
    assert_eq!(registry.requests().len(), 2, "once without, once with");
    registry.forget();
    fails(home.manifest(&reference).await, RegistryErrorKind::Unauthorized, &["401", "UNAUTHORIZED"]);
    assert_eq!(authorizations(&registry.requests()), [""]);
}

#[tokio::test]
async fn tokens_are_fetched_once_and_kept_for_their_repository_and_credentials() {
    let tokens = TokenServer::start(policy());
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    small(&registry, "b", "1");
    let at = |repository: &str| format!("{}/{repository}:1", registry.host());
    let repository = home.open_with(&at("a"), &login()).await;
    repository.resolve().await.unwrap();
    let digest = fake::digest_of(&noise(1000)).parse().unwrap();
    let mut blobs: Vec<Blob> = (0..4).map(|_| repository.blob(&digest, 1000, None)).collect();
    for blob in &mut blobs {
        assert_eq!(read(blob).await.unwrap().len(), 1000);
    }
    assert_eq!(tokens.issued(), 1);
    let asked = tokens.requests();
    assert_eq!((asked[0].method.as_str(), asked[0].header("authorization").as_str()), ("GET", BASIC));
    let fields = decode_form(asked[0].target.split_once('?').unwrap().1);
    let expected = [("account", "me"), ("service", "tests"), ("scope", "repository:a:pull")];
    assert_eq!(fields, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    // The registry itself never saw the password.
    assert_eq!(authorizations(&registry.requests())[..3], ["", "Bearer token-1", "Bearer token-1"]);

    registry.forget();
    home.open_with(&at("a"), &login()).await.resolve().await.unwrap();
    assert_eq!(authorizations(&registry.requests()), ["Bearer token-1"], "a second pull is one request");
    home.open_with(&at("b"), &login()).await.resolve().await.unwrap();
    assert_eq!(tokens.issued(), 2, "another repository is another token");

    // Other credentials do not profit from a token that is at hand.
    let stranger = home.open_with(&at("a"), &Credentials::password("you", "x")).await;
    fails(stranger.resolve().await, RegistryErrorKind::Unauthorized, &[&tokens.host(), "check the credentials"]);
    let nobody = home.open(&at("a")).await;
    fails(nobody.resolve().await, RegistryErrorKind::Unauthorized, &[&tokens.host(), "token"]);
    assert_eq!(tokens.issued(), 2);
}

#[tokio::test]
async fn everybody_gets_an_anonymous_token() {
    let tokens = TokenServer::start(TokenPolicy { seconds: None, ..TokenPolicy::default() });
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    home.manifest(&format!("{}/a:1", registry.host())).await.unwrap();
    assert_eq!(authorizations(&tokens.requests()), [""]);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let tokens = TokenServer::start(policy());
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    repository.resolve().await.unwrap();
    tokens.revoke();
    repository.resolve().await.unwrap();
    assert_eq!(tokens.issued(), 2);

    // A registry that likes no token is not asked for ever.
    registry.forget();
    let challenge = format!("Bearer realm=\"{}\"", tokens.realm());
    let never = Misdeed::Status(401, vec![("www-authenticate".to_owned(), challenge)], String::new());
    registry.misbehave("*", "", 1000, never);
    fails(repository.resolve().await, RegistryErrorKind::Unauthorized, &["401"]);
    assert_eq!((registry.requests().len(), tokens.issued()), (2, 3));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_runs_out() {
    // The last seconds of a token are not used, so one of six seconds lasts for one.
    let tokens = TokenServer::start(TokenPolicy { seconds: Some(6), ..policy() });
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    repository.resolve().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    repository.resolve().await.unwrap();
    assert_eq!(tokens.issued(), 2);
    assert_eq!(authorizations(&registry.requests()), ["", "Bearer token-1", "Bearer token-2"]);
}

#[tokio::test]
async fn parallel_requests_share_one_token() {
    let tokens = TokenServer::start(policy());
    tokens.misbehave("GET", "/token", 1, Misdeed::Trickle(30, Duration::from_millis(50)));
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    let all = tokio::join!(repository.resolve(), repository.resolve(), repository.resolve(), repository.manifest());
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok() && all.3.is_ok());
    assert_eq!(tokens.issued(), 1);
}

#[tokio::test]
async fn identity_tokens_are_exchanged_by_post() {
    let tokens =
        TokenServer::start(TokenPolicy { identities: vec!["long-lived".to_owned()], ..TokenPolicy::default() });
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    let auth = AuthConfig { identity_token: "long-lived".to_owned(), ..AuthConfig::default() };
    let credentials = Credentials::from_auth_config(Some(&auth)).unwrap();
    home.open_with(&format!("{}/a:1", registry.host()), &credentials).await.manifest().await.unwrap();
    let asked = tokens.requests();
    assert_eq!((asked.len(), asked[0].method.as_str(), asked[0].target.as_str()), (1, "POST", "/token"));
    let fields = decode_form(&asked[0].body);
    let has = |name: &str, value: &str| fields.contains(&(name.to_owned(), value.to_owned()));
    assert!(has("grant_type", "refresh_token") && has("refresh_token", "long-lived"), "{fields:?}");
    assert!(has("scope", "repository:a:pull") && has("service", "tests") && has("client_id", "aril"), "{fields:?}");

    let auth = AuthConfig { identity_token: "stale".to_owned(), ..AuthConfig::default() };
    let credentials = Credentials::from_auth_config(Some(&auth)).unwrap();
    let stale = home.open_with(&format!("{}/a:1", registry.host()), &credentials).await;
    let text = fails(stale.manifest().await, RegistryErrorKind::Unauthorized, &["401"]);
    assert!(!text.contains("stale"), "{text}");
}

#[tokio::test]
async fn a_token_server_that_knows_only_post_gets_the_password_so() {
    let tokens = TokenServer::start(TokenPolicy { post_only: true, ..policy() });
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    home.open_with(&format!("{}/a:1", registry.host()), &login()).await.manifest().await.unwrap();
    let methods: Vec<String> = tokens.requests().into_iter().map(|r| r.method).collect();
    assert_eq!(methods, ["GET", "POST"]);
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let (home, registry) = (Home::new(), guarded(Access::Exactly("Bearer opaque".to_owned())));
    let auth = AuthConfig { registry_token: "opaque".to_owned(), ..AuthConfig::default() };
    let credentials = Credentials::from_auth_config(Some(&auth)).unwrap();
    home.open_with(&format!("{}/a:1", registry.host()), &credentials).await.manifest().await.unwrap();
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn credentials_for_another_host_stay_at_home() {
    let (home, registry) = (Home::new(), basic());
    let auth = |server_address: &str| {
        let (username, password) = ("me".to_owned(), "hunter2".to_owned());
        let server_address = server_address.to_owned();
        let auth = AuthConfig { username, password, server_address, ..AuthConfig::default() };
        Credentials::from_auth_config(Some(&auth)).unwrap()
    };
    let reference = format!("{}/a:1", registry.host());
    for (address, fine) in [
        (registry.host(), true),
        (format!("https://{}/v2/", registry.host()), true),
        ("https://127.0.0.1".to_owned(), false),
        ("https://registry.example".to_owned(), false),
    ] {
        registry.forget();
        let result = home.open_with(&reference, &auth(&address)).await.resolve().await;
        assert_eq!(result.is_ok(), fine, "{address}: {result:?}");
        assert_eq!(authorizations(&registry.requests()).contains(&BASIC.to_owned()), fine, "{address}");
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_credentials() {
    let (home, registry, storage) = (Home::new(), basic(), Registry::start());
    let host = registry.host();
    home.hosts(&host, &format!("server = \"http://{host}\"\n[header]\nx-key = \"for this host alone\"\n"));
    let digest = storage.add_blob("a", &noise(1000)).parse().unwrap();
    let repository = home.open_with(&format!("{host}/a:1"), &login()).await;
    // First within the host, which is still trusted, then away from it.
    let away = storage.url(&format!("/v2/a/blobs/{digest}?signed=1"));
    registry.misbehave("GET", "/step", 1, Misdeed::Redirect(away));
    repository.resolve().await.unwrap();
    registry.forget();
    registry.misbehave("GET", "/blobs/", 1, Misdeed::Redirect("/step".to_owned()));
    assert_eq!(read(&mut repository.blob(&digest, 1000, None)).await.unwrap().len(), 1000);

    let own = registry.requests();
    assert_eq!(authorizations(&own), [BASIC, BASIC]);
    assert!(own.iter().all(|s| s.header("x-key") == "for this host alone"));
    let foreign = storage.requests();
    assert_eq!((foreign.len(), foreign[0].header("authorization").as_str()), (1, ""));
    assert_eq!(foreign[0].header("x-key"), "");
}

/// A loopback registry calls itself `http://`, although nobody knew beforehand whether it speaks TLS.
#[tokio::test]
async fn a_redirect_to_itself_keeps_credentials() {
    let (home, registry) = (Home::new(), basic());
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    repository.resolve().await.unwrap();
    registry.misbehave("GET", "/manifests/1", 1, Misdeed::Redirect(registry.url("/v2/a/manifests/1?again")));
    registry.forget();
    repository.manifest().await.unwrap();
    assert_eq!(authorizations(&registry.requests()), [BASIC, BASIC]);
}

/// A challenge from where a redirect led is nobody's business to answer.
#[tokio::test]
async fn a_challenge_after_a_redirect_gets_no_password() {
    let (home, registry, thief) = (Home::new(), basic(), basic());
    let digest = thief.add_blob("a", &noise(1000)).parse().unwrap();
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    repository.resolve().await.unwrap();
    registry.misbehave("GET", "/blobs/", 9, Misdeed::Redirect(thief.url(&format!("/v2/a/blobs/{digest}"))));
    let result = repository.blob(&digest, 1000, None).chunk().await;
    fails(result, RegistryErrorKind::Unauthorized, &[&thief.host(), "401"]);
    assert_eq!(authorizations(&thief.requests()), [""]);
}

#[tokio::test]
async fn a_token_server_that_leads_elsewhere_is_not_followed() {
    let (tokens, thief) = (TokenServer::start(policy()), TokenServer::start(policy()));
    tokens.misbehave("GET", "/token", 9, Misdeed::Redirect(thief.realm()));
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    fails(repository.resolve().await, RegistryErrorKind::Protocol, &["another host", &thief.host()]);
    assert!(thief.requests().is_empty());
}

#[tokio::test]
async fn a_token_server_may_lead_elsewhere_who_shows_nothing() {
    let open = || TokenServer::start(TokenPolicy::default());
    let (first, second) = (open(), open());
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&second)));
    let challenge = format!("Bearer realm=\"{}\",service=\"tests\"", first.realm());
    let headers = vec![("www-authenticate".to_owned(), challenge)];
    registry.misbehave("*", "", 1, Misdeed::Status(401, headers, String::new()));
    let there = format!("{}?scope=repository:a:pull&service=tests", second.realm());
    first.misbehave("GET", "/token", 1, Misdeed::Redirect(there));
    home.open(&format!("{}/a:1", registry.host())).await.resolve().await.unwrap();
    assert_eq!((first.requests().len(), second.issued()), (1, 1));
    assert_eq!(authorizations(&second.requests()), [""]);
}

/// A realm may be any address that we can reach and its author cannot.
#[tokio::test]
async fn what_a_host_says_that_a_registry_names_is_not_repeated() {
    let (tokens, home) = (TokenServer::start(policy()), Home::new());
    let registry = guarded(Access::tokens_of(&tokens));
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    for status in [400, 403, 404, 418] {
        tokens.misbehave("GET", "/token", 1, Misdeed::Status(status, vec![], "internal secret".to_owned()));
        let text = repository.resolve().await.unwrap_err().to_string();
        assert!(text.contains(&tokens.host()) && !text.contains("secret"), "{status}: {text}");
    }
    // The registry itself may explain.
    registry.misbehave("*", "", 9, Misdeed::Status(403, vec![], "not you".to_owned()));
    let text = repository.manifest().await.unwrap_err().to_string();
    assert!(text.contains("not you"), "{text}");
}

#[tokio::test]
async fn odd_realms_and_challenges_are_refused() {
    let (home, registry) = (Home::new(), guarded(Access::Everybody));
    let repository = home.open_with(&format!("{}/a:1", registry.host()), &login()).await;
    for (challenge, kind, word) in [
        (
            "Bearer realm=\"http://169.254.169.254/latest/meta-data\"".to_owned(),
            RegistryErrorKind::Protocol,
            "off limits",
        ),
        ("Bearer realm=\"https://[fd00:ec2::254]/x\"".to_owned(), RegistryErrorKind::Protocol, "off limits"),
        ("Bearer realm=\"file:///etc/passwd\"".to_owned(), RegistryErrorKind::Protocol, "no address"),
        ("Bearer realm=\"http://me:pw@127.0.0.1/\"".to_owned(), RegistryErrorKind::Protocol, "credentials"),
        ("Bearer realm=\"/token\"".to_owned(), RegistryErrorKind::Protocol, "names no host"),
        (
            format!("Bearer realm=\"http://127.0.0.1/\",scope=\"{}\"", "x".repeat(5000)),
            RegistryErrorKind::Limit,
            "words",
        ),
        ("Bearer service=\"x\"".to_owned(), RegistryErrorKind::Unauthorized, "401"),
        ("Negotiate".to_owned(), RegistryErrorKind::Unauthorized, "401"),
    ] {
        let headers = vec![("www-authenticate".to_owned(), challenge)];
        registry.misbehave("*", "", 1, Misdeed::Status(401, headers, String::new()));
        let result = repository.resolve().await;
        let text = result.unwrap_err();
        assert_eq!(text.kind(), kind, "{text}");
        assert!(text.to_string().contains(word), "no {word} in: {text}");
    }
}

#[tokio::test]
async fn answers_of_token_servers_are_bounded_and_checked() {
    let tokens = TokenServer::start(TokenPolicy::default());
    let (home, registry) = (Home::new(), guarded(Access::tokens_of(&tokens)));
    let repository = home.open(&format!("{}/a:1", registry.host())).await;
    for (misdeed, kind) in [
        (Misdeed::Endless, RegistryErrorKind::Limit),
        (Misdeed::Body(vec![b'x'; 1 << 20]), RegistryErrorKind::Limit),
        (Misdeed::Body(b"{\"token\":\"sec".to_vec()), RegistryErrorKind::Protocol),
        (Misdeed::Body(b"[[[[[[".repeat(1000)), RegistryErrorKind::Protocol),
        (Misdeed::Body(b"{}".to_vec()), RegistryErrorKind::Protocol),
        (Misdeed::Body(b"{\"token\":\"\"}".to_vec()), RegistryErrorKind::Protocol),
        (Misdeed::Body(b"{\"token\":\"secret\\r\\nX: y\"}".to_vec()), RegistryErrorKind::Protocol),
        (Misdeed::Body(b"{\"token\":17}".to_vec()), RegistryErrorKind::Protocol),
        (Misdeed::Body(format!("{{\"token\":\"{}\"}}", "s".repeat(70_000)).into_bytes()), RegistryErrorKind::Protocol),
        (Misdeed::Status(403, vec![], "no".to_owned()), RegistryErrorKind::Unauthorized),
        (Misdeed::Status(404, vec![], String::new()), RegistryErrorKind::NotFound),
    ] {
        tokens.misbehave("GET", "/token", 1, misdeed.clone());
        let text = fails(repository.resolve().await, kind, &[&tokens.host()]);
        assert!(!text.contains("sec"), "{text}");
    }
    // And a passing fault passes.
    tokens.misbehave("GET", "/token", 2, Misdeed::Status(502, vec![], String::new()));
    repository.resolve().await.unwrap();
}
