//! Passwords of registries, where docker, podman and others keep theirs: `config.json` and credential helpers.
//!
//! The file is the caller's own; the daemon never reads one. It is `REGISTRY_AUTH_FILE`, else `config.json` in
//! `DOCKER_CONFIG`, else `~/.docker/config.json`. What is kept for one registry is given out for that one alone.
//!
//! Follows docker's `config.json` (`auths`, `credHelpers`, `credsStore`) and the credential helper protocol.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::error::CliError;
use crate::api::node::RegistryLogin;
use crate::disk::{self, Durability};

/// Docker Hub as images name it, and as the file has it for historical reasons.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// The largest file or answer that is read.
const MOST_BYTES: u64 = 1 << 20;
/// How long a helper may take. Some ask the person for a passphrase first.
const HELPER_TIME: Duration = Duration::from_secs(120);

/// A user and a password, as typed.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Without a colon, which ends it where it is sent.
    pub username: String,
    /// Anything.
    pub password: String,
}

impl std::fmt::Debug for Login {
    /// Names the user, never the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// `USER:PASSWORD` of a flag.
pub(super) fn parse(text: &str) -> Result<Login, String> {
    match text.split_once(':') {
        Some((username, password)) if !username.is_empty() => {
            Ok(Login { username: username.to_owned(), password: password.to_owned() })
        }
        _ => Err("write USER:PASSWORD".to_owned()),
    }
}

/// The registry that an image's name begins with.
pub(super) fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => host_of(first).to_owned(),
        _ => HUB.to_owned(),
    }
}

/// What is kept for a registry; `None` if nothing is.
pub(super) fn find(registry: &str) -> Result<Option<RegistryLogin>, CliError> {
    match path() {
        Some(path) => File::read(&path)?.find(registry),
        None => Ok(None),
    }
}

/// Keeps a login; tells where.
pub(super) fn keep(registry: &str, login: &Login) -> Result<String, CliError> {
    let path = path().ok_or_else(no_home)?;
    let mut file = File::read(&path)?;
    if let Some(helper) = file.helper(registry) {
        let secret = json!({"ServerURL": key_of(registry), "Username": login.username, "Secret": login.password});
        call(&helper, "store", &secret.to_string())?;
        return Ok(format!("docker-credential-{helper}"));
    }
    let auth = BASE64.encode(format!("{}:{}", login.username, login.password));
    file.forget(registry);
    let auths = file.content.entry("auths").or_insert_with(|| json!({}));
    if let Value::Object(auths) = auths {
        auths.insert(key_of(registry).to_owned(), json!({"auth": auth}));
    }
    file.write()?;
    Ok(path.display().to_string())
}

/// Forgets what is kept for a registry; false if there was nothing.
pub(super) fn forget(registry: &str) -> Result<bool, CliError> {
    let path = path().ok_or_else(no_home)?;
    let mut file = File::read(&path)?;
    let mut found = file.forget(registry);
    if found {
        file.write()?;
    }
    if let Some(helper) = file.helper(registry) {
        // Helpers do not agree on what to say of something they do not have.
        found |= file.find(registry)?.is_some();
        call(&helper, "erase", key_of(registry))?;
    }
    Ok(found)
}

fn no_home() -> CliError {
    CliError::Failed("there is nowhere to keep passwords: set HOME, or REGISTRY_AUTH_FILE to a file".to_owned())
}

fn path() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("REGISTRY_AUTH_FILE")
        .or_else(|| Some(variable("DOCKER_CONFIG")?.join("config.json")))
        .or_else(|| Some(variable("HOME")?.join(".docker/config.json")))
}

/// A `config.json`, with all in it that is not ours.
struct File {
    path: PathBuf,
    content: Map<String, Value>,
}

impl File {
    fn read(path: &Path) -> Result<Self, CliError> {
        let wrong = |why: &str| CliError::Failed(format!("read passwords from {}: {why}; mend it", path.display()));
        let mut text = Vec::new();
        match fs::File::open(path) {
            Ok(file) => {
                let read = file.take(MOST_BYTES + 1).read_to_end(&mut text);
                read.map_err(|e| CliError::io(format!("read {}", path.display()), e))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(CliError::io(format!("open {}", path.display()), e)),
        }
        if text.len() as u64 > MOST_BYTES {
            return Err(wrong("it is larger than 1 MiB"));
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self { path: path.to_owned(), content: Map::new() });
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(content)) if content.get("auths").is_some_and(|auths| !auths.is_object()) => {
                Err(wrong("its auths is no JSON object"))
            }
            Ok(Value::Object(content)) => Ok(Self { path: path.to_owned(), content }),
            Ok(_) => Err(wrong("it is no JSON object")),
            Err(e) => Err(wrong(&format!("it is no JSON (line {})", e.line()))),
        }
    }

    fn write(&self) -> Result<(), CliError> {
        // Behind a link lies the file that is meant.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
            disk::private_dir(dir).map_err(|e| CliError::io(format!("make directory {}", dir.display()), e))?;
        }
        let text = serde_json::to_vec_pretty(&self.content).map_err(|e| CliError::Failed(e.to_string()))?;
        disk::write_atomic(&path, &text, Durability::Power)
            .map_err(|e| CliError::io(format!("write {}", path.display()), e))
    }

    /// The helper that keeps the passwords of a registry.
    fn helper(&self, registry: &str) -> Option<String> {
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.into_iter().flatten().find(|(key, _)| same(key, registry)).map(|(_, helper)| helper);
        let helper = own.or(self.content.get("credsStore"))?.as_str()?;
        (!helper.is_empty()).then(|| helper.to_owned())
    }

    fn find(&self, registry: &str) -> Result<Option<RegistryLogin>, CliError> {
        if let Some(helper) = self.helper(registry)
            && let Some(login) = asked(&helper, registry)?
        {
            return Ok(Some(login));
        }
        let auths = self.content.get("auths").and_then(Value::as_object);
        let entry = auths.into_iter().flatten().find(|(key, _)| same(key, registry));
        entry.map_or(Ok(None), |(key, entry)| self.login(key, entry, registry))
    }

    fn login(&self, key: &str, entry: &Value, registry: &str) -> Result<Option<RegistryLogin>, CliError> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
        let mut login = RegistryLogin {
            username: text("username").unwrap_or_default(),
            password: text("password").unwrap_or_default(),
            identity_token: text("identitytoken").unwrap_or_default(),
            server_address: registry.to_owned(),
        };
        if let Some(auth) = text("auth") {
            let plain = BASE64.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let Some((username, password)) = plain.as_deref().and_then(|plain| plain.split_once(':')) else {
                let path = self.path.display();
                return Err(CliError::Failed(format!("the entry {key:?} in {path} is malformed; `aril login` again")));
            };
            // Some write zeros behind the password.
            (login.username, login.password) = (username.to_owned(), password.trim_end_matches('\0').to_owned());
        }
        let is_empty = login.username.is_empty() && login.identity_token.is_empty();
        Ok((!is_empty).then_some(login))
    }

    /// Takes all entries of a registry out.
    fn forget(&mut self, registry: &str) -> bool {
        let Some(Value::Object(auths)) = self.content.get_mut("auths") else { return false };
        let before = auths.len();
        auths.retain(|key, _| !same(key, registry));
        auths.len() < before
    }
}

/// `host[:port]` of a key, which may be an address with a scheme and a path.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        host => host,
    }
}

/// Whether a key means this registry. A key with a path below the registry, as some tools write them, does not: it is
/// for a part of its images only.
fn same(key: &str, registry: &str) -> bool {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path.trim_end_matches('/'));
    matches!(path, "" | "v1" | "v2") && host_of(key) == host_of(registry)
}

fn key_of(registry: &str) -> &str {
    if host_of(registry) == HUB { HUB_KEY } else { registry }
}

/// What a helper keeps for a registry.
fn asked(helper: &str, registry: &str) -> Result<Option<RegistryLogin>, CliError> {
    let Some(answer) = call(helper, "get", key_of(registry))? else { return Ok(None) };
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (username, secret) = (text("Username"), text("Secret"));
    let mut login = RegistryLogin { server_address: registry.to_owned(), ..RegistryLogin::default() };
    if username == TOKEN_USER {
        login.identity_token = secret;
    } else {
        (login.username, login.password) = (username, secret);
    }
    Ok(Some(login))
}

/// Runs `docker-credential-<helper>`; `None` if it has nothing.
fn call(helper: &str, verb: &str, input: &str) -> Result<Option<Value>, CliError> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| CliError::Failed(format!("{program} {verb}: {why}"));
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(failed("this is no name of a credential helper; correct config.json".to_owned()));
    }
    let mut command = Command::new(&program);
    command.arg(verb);
    let (status, output) = run(command, input, HELPER_TIME).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed("it is not installed, but config.json names it".to_owned()),
        io::ErrorKind::TimedOut => failed(format!("it did not answer within {} s", HELPER_TIME.as_secs())),
        _ => CliError::io(format!("run {program}"), e),
    })?;
    let told = String::from_utf8_lossy(&output).trim().to_owned();
    match status.success() {
        true if verb == "get" => match serde_json::from_str(&told) {
            Ok(answer) => Ok(Some(answer)),
            Err(_) => Err(failed("it answered no JSON".to_owned())),
        },
        true => Ok(None),
        // What every helper says, by the protocol's reference.
        false if told.contains("credentials not found") => Ok(None),
        false => Err(failed(told.lines().next().unwrap_or("it failed").chars().take(200).collect())),
    }
}

/// Gives a program its input and waits for its end, at most so long; what it said up to the bound on answers.
fn run(mut command: Command, input: &str, most: Duration) -> io::Result<(ExitStatus, Vec<u8>)> {
    let deadline = Instant::now() + most;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let (stdin, stdout, input) = (child.stdin.take(), child.stdout.take(), input.to_owned());
    let (sender, receiver) = mpsc::channel();
    // A thread of its own, as a program may neither read nor write nor end. It is left behind with such a one.
    std::thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // One that does not read its input says itself what it lacks.
            stdin.write_all(input.as_bytes()).ok();
        }
        let mut output = Vec::new();
        let read = stdout.map_or(Ok(0), |stdout| stdout.take(MOST_BYTES).read_to_end(&mut output));
        sender.send(read.map(|_| output)).ok();
    });
    let left = || deadline.saturating_duration_since(Instant::now());
    let said = receiver.recv_timeout(left());
    while said.is_ok() && !left().is_zero() {
        if let Some(status) = child.try_wait()? {
            return Ok((status, said.unwrap_or_else(|_| Ok(Vec::new()))?));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        let Value::Object(content) = serde_json::from_str(text).unwrap() else { panic!("no object") };
        File { path: "/config.json".into(), content }
    }

    fn found(text: &str, registry: &str) -> Option<(String, String, String)> {
        let login = file(text).find(registry).unwrap()?;
        assert_eq!(login.server_address, registry);
        Some((login.username, login.password, login.identity_token))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String, String)> {
        Some((user.to_owned(), password.to_owned(), String::new()))
    }

    #[test]
    fn registries_of_names() {
        for (name, registry) in [
            ("busybox", "docker.io"),
            ("library/busybox", "docker.io"),
            ("index.docker.io/library/busybox", "docker.io"),
            ("localhost/x", "localhost"),
            ("host:5000/a/b:1", "host:5000"),
            ("quay.io/a@sha256:00", "quay.io"),
        ] {
            assert_eq!(registry_of(name), registry, "{name}");
        }
    }

    #[test]
    fn entries_are_found_by_their_host_alone() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "quay.io": {"auth": "cXVheTpwOncK"},
            "http://plain.example:5000/v2/": {"username": "u", "password": "p"},
            "ghcr.io/team": {"auth": "dGVhbTpwdw=="},
            "token.example": {"identitytoken": "t"},
            "empty.example": {}
        }}"#;
        assert_eq!(found(text, "docker.io"), pair("hub", "pw"));
        assert_eq!(found(text, "quay.io"), pair("quay", "p:w\n"));
        assert_eq!(found(text, "plain.example:5000"), pair("u", "p"));
        assert_eq!(found(text, "token.example"), Some((String::new(), String::new(), "t".to_owned())));
        for other in ["plain.example", "quay.io:443", "evil.quay.io", "ghcr.io", "empty.example", "example"] {
            assert_eq!(found(text, other), None, "{other}");
        }
    }

    #[test]
    fn malformed_files_are_refused_by_name() {
        for auth in ["!", "bm9jb2xvbg==", "/w=="] {
            let error = file(&format!(r#"{{"auths": {{"a.example": {{"auth": "{auth}"}}}}}}"#)).find("a.example");
            let error = error.unwrap_err().to_string();
            assert!(error.contains("a.example") && !error.contains(auth), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["[]", "{", "\"x\"", "{\"auths\": []}"] {
            fs::write(&path, text).unwrap();
            assert!(File::read(&path).err().unwrap().to_string().contains("config.json"), "{text}");
        }
        fs::write(&path, " \n").unwrap();
        assert!(File::read(&path).unwrap().content.is_empty());
    }

    #[test]
    fn the_helper_of_a_registry_comes_before_the_one_of_all() {
        let both = file(r#"{"credsStore": "all", "credHelpers": {"gcr.io": "gcloud"}}"#);
        assert_eq!(both.helper("gcr.io").as_deref(), Some("gcloud"));
        assert_eq!(both.helper("quay.io").as_deref(), Some("all"));
        assert_eq!(file(r#"{"credsStore": ""}"#).helper("quay.io"), None);
        for bad in ["../evil", "a b", "a;b", "a/b"] {
            assert!(call(bad, "get", "x").unwrap_err().to_string().contains("no name"), "{bad}");
        }
        let absent = call("surely-not-installed", "get", "x").unwrap_err().to_string();
        assert!(absent.contains("docker-credential-surely-not-installed"), "{absent}");
    }

    #[test]
    fn a_helper_is_not_waited_for_without_end_nor_read_without_bound() {
        let sh = |script: &str, input: &str, seconds| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run(command, input, Duration::from_secs_f64(seconds))
        };
        let (status, output) = sh("read -r line; echo \"got $line\"; exit 3", "x\n", 30.0).unwrap();
        assert_eq!((status.code(), output.as_slice()), (Some(3), &b"got x\n"[..]));
        for script in ["exec sleep 100", "exec >&-; exec sleep 100", "while :; do :; done"] {
            let began = Instant::now();
            assert_eq!(sh(script, "", 0.3).unwrap_err().kind(), io::ErrorKind::TimedOut, "{script}");
            assert!(began.elapsed() < Duration::from_secs(20), "{script}");
        }
        let (_, flood) = sh("exec yes 2>/dev/null", "", 30.0).unwrap();
        assert_eq!(flood.len() as u64, MOST_BYTES);
    }

    #[test]
    fn what_is_not_ours_stays_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config.json");
        let mut file = File::read(&path).unwrap();
        file.content.insert("auths".into(), json!({"https://quay.io/v2/": {"auth": "x"}, "a.io": {"auth": "eTp6"}}));
        file.content.insert("psFormat".into(), json!("table"));
        assert!(file.forget("quay.io") && !file.forget("quay.io"));
        file.write().unwrap();
        let again = File::read(&path).unwrap();
        assert_eq!(again.content["psFormat"], "table");
        assert_eq!(again.content["auths"].as_object().unwrap().len(), 1);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", parse("me:secret").unwrap()).contains("secret"));
        assert!(parse("me").is_err() && parse(":x").is_err());
        assert_eq!(parse("me:a:b").unwrap().password, "a:b");
    }
}
