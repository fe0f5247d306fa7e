//! Which hosts serve a registry's images, in which order, and how each is spoken to: `hosts.toml` directories.
//!
//! Read as containerd reads them, afresh for each pull: for `host:5000` the first of `host_5000_`, `host:5000` and
//! `_default` that exists below the configured directory. In it `hosts.toml`, or without one Docker's certificate
//! files (`*.crt` to trust, `*.cert` with `*.key` to show). Mirrors come in the order of the file, the `server` last.
//!
//! One thing is otherwise on purpose: a `hosts.toml` that cannot be read fails the pull. containerd goes on without it,
//! and so asks hosts that the file was there to avoid.
//!
//! Source: containerd `docs/hosts.md`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Uri;
use toml::de::{DeTable, DeValue};

use crate::image::registry::error::{RegistryError, RegistryErrorKind, clean};
use crate::image::registry::peer::is_sound;

/// Bytes of one `hosts.toml`.
const FILE_BYTES: u64 = 1 << 20;
/// Hosts of one file, certificates of one host, headers of one host.
const MOST: usize = 64;
/// How long a connection may take where the file says nothing.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// What Docker Hub's images are called by, and where they are.
const DOCKER: &str = "docker.io";
const DOCKER_HOST: &str = "registry-1.docker.io";

/// How a host is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Http,
    Https,
    /// TLS if it is spoken there, else plain: loopback addresses, and `http://` entries that name certificates.
    Either,
}

/// One host to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub transport: Transport,
    /// `name`, `name:port`, `[address]:port`.
    pub authority: String,
    /// What comes before the repository: `/v2`.
    pub path: String,
    /// May be asked for content by digest.
    pub pull: bool,
    /// May be asked what a tag means.
    pub resolve: bool,
    /// Certificates of authorities that are trusted beside the system's.
    pub ca: Vec<PathBuf>,
    /// Certificates to show, each with its key; without one, the key is in the same file.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
    pub header: HeaderMap,
    pub dial_timeout: Duration,
}

impl Host {
    /// Whether it stands in for a registry of another name, and so has to be told that name (`ns=`).
    pub fn is_proxy_of(&self, registry: &str) -> bool {
        registry != self.authority && !(registry == DOCKER && self.authority == DOCKER_HOST)
    }

    fn everything() -> Self {
        Self {
            transport: Transport::Https,
            authority: String::new(),
            path: "/v2".to_owned(),
            pull: true,
            resolve: true,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            header: HeaderMap::new(),
            dial_timeout: DIAL_TIMEOUT,
        }
    }
}

/// What a section of the file says, before defaults.
struct Section {
    host: Host,
    /// Whether it speaks of TLS at all: that makes `http://` try TLS first.
    names_tls: bool,
    /// Whether it says that certificates are verified, or that they are not.
    names_verification: bool,
    is_http: bool,
}

impl Section {
    fn of(host: Host, names_tls: bool) -> Self {
        Self { host, names_tls, names_verification: false, is_http: false }
    }
}

/// The hosts for `registry` (host and port as in a reference). Blocks on small files.
///
/// # Errors
/// Of kind `Config`, with the file.
pub(super) fn load(directory: &Path, registry: &str) -> Result<Vec<Host>, RegistryError> {
    let mut sections = match find(directory, registry)? {
        Some(found) => read_directory(&found)?,
        None => vec![Section::of(Host::everything(), false)],
    };
    if let Some(last) = sections.last_mut().filter(|last| last.host.authority.is_empty()) {
        fill_in(last, registry);
    }
    Ok(sections.into_iter().map(finish).collect())
}

/// What is called `host:port` may be a directory `host_port_`, as not every file system takes colons.
fn find(directory: &Path, registry: &str) -> Result<Option<PathBuf>, RegistryError> {
    let without_colon = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    for name in without_colon.as_deref().into_iter().chain([registry, "_default"]) {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(unreadable(&path, &e)),
        }
    }
    Ok(None)
}

fn read_directory(directory: &Path) -> Result<Vec<Section>, RegistryError> {
    let file = directory.join("hosts.toml");
    let mut text = String::new();
    match fs::File::open(&file) {
        Ok(opened) => {
            opened.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(|e| unreadable(&file, &e))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(unreadable(&file, &e)),
    }
    if text.len() as u64 > FILE_BYTES {
        return Err(bad(&file, 0, "it is larger than 1 MiB"));
    }
    if text.is_empty() { Ok(vec![certificates(directory)?]) } else { parse(&file, directory, &text) }
}

/// Docker's layout: every `.crt` is trusted, every `.cert` shown, with the `.key` of the same name.
fn certificates(directory: &Path) -> Result<Section, RegistryError> {
    let mut host = Host::everything();
    let entries = fs::read_dir(directory).map_err(|e| unreadable(directory, &e))?;
    let mut names: Vec<PathBuf> =
        entries.take(1024).filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !path.is_dir()).collect();
    names.sort();
    for path in names {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => host.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                host.client.push((path, key.exists().then_some(key)));
            }
            _ => {}
        }
    }
    let names_tls = !host.ca.is_empty() || !host.client.is_empty();
    Ok(Section::of(host, names_tls))
}

/// The registry itself, as the last host, where the file names no other.
fn fill_in(section: &mut Section, registry: &str) {
    let host = &mut section.host;
    (host.pull, host.resolve) = (true, true);
    host.path = "/v2".to_owned();
    if registry == DOCKER {
        host.authority = DOCKER_HOST.to_owned();
        return;
    }
    host.authority = registry.to_owned();
    if !is_loopback(registry) {
        return;
    }
    // By the name as it is written, never by what it resolves to (CVE-2026-92543).
    match port(registry) {
        Some("80") => section.is_http = true,
        port => {
            section.is_http = !matches!(port, None | Some("443"));
            host.skip_verify |= !section.names_verification;
            section.names_tls = true;
        }
    }
}

fn finish(section: Section) -> Host {
    let mut host = section.host;
    host.transport = match (section.is_http, section.names_tls) {
        (false, _) => Transport::Https,
        (true, true) if port(&host.authority) != Some("80") => Transport::Either,
        (true, _) => Transport::Http,
    };
    host
}

fn port(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit_once(':')?;
    (!port.contains(']')).then_some(port)
}

/// `host` of `host[:port]`; addresses of IPv6 stay in brackets.
pub(super) fn host_of(authority: &str) -> &str {
    port(authority).map_or(authority, |port| &authority[..authority.len() - port.len() - 1])
}

/// Whether `host[:port]` is `localhost` or a loopback address, as written.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    let plain = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    plain.eq_ignore_ascii_case("localhost") || plain.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn parse(file: &Path, directory: &Path, text: &str) -> Result<Vec<Section>, RegistryError> {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1;
    let document = DeTable::parse(text)
        .map_err(|e| bad(file, line(e.span().map_or(0, |span| span.start)), &clean(e.message())))?;
    let root = document.get_ref();
    let mut sections = Vec::new();
    if let Some(value) = root.get("host") {
        let hosts =
            value.get_ref().as_table().ok_or_else(|| bad(file, line(value.span().start), "host is no table"))?;
        let mut ordered: Vec<_> = hosts.iter().collect();
        // In the order of the file, not of the alphabet.
        ordered.sort_by_key(|(name, _)| name.span().start);
        if ordered.len() > MOST {
            return Err(bad(file, line(value.span().start), "it names more than 64 hosts"));
        }
        for (name, value) in ordered {
            let place = line(name.span().start);
            let table = value.get_ref().as_table().ok_or_else(|| bad(file, place, "an entry of host is no table"))?;
            let read = section(directory, name.get_ref(), table).map_err(|reason| bad(file, place, &reason))?;
            if read.host.authority.is_empty() {
                return Err(bad(file, place, "an entry of host has no name"));
            }
            sections.push(read);
        }
    }
    let server = match root.get("server") {
        Some(value) => {
            string("server", value.get_ref()).map_err(|reason| bad(file, line(value.span().start), &reason))?
        }
        None => String::new(),
    };
    sections.push(section(directory, &server, root).map_err(|reason| bad(file, 1, &reason))?);
    Ok(sections)
}

/// One host's keys. Those that are not known are passed over, as containerd does. The error is a reason for people.
fn section(directory: &Path, server: &str, table: &DeTable<'_>) -> Result<Section, String> {
    let (mut host, is_http) = address(server, table)?;
    let (mut names_tls, mut names_verification) = (false, false);
    for (key, value) in table {
        let (key, value) = (key.get_ref().as_ref(), value.get_ref());
        match key {
            "capabilities" => (host.pull, host.resolve) = capabilities(value)?,
            "ca" => {
                host.ca = strings("ca", value)?.into_iter().map(|path| directory.join(path)).collect();
                names_tls = true;
            }
            "client" => {
                host.client = clients(directory, value)?;
                names_tls = true;
            }
            "skip_verify" => {
                host.skip_verify = value.as_bool().ok_or("skip_verify is neither true nor false")?;
                (names_tls, names_verification) = (true, true);
            }
            "header" => host.header = headers(value)?,
            "dial_timeout" => {
                let text = string("dial_timeout", value)?;
                host.dial_timeout = duration(&text).ok_or("dial_timeout is no time like \"1s\" or \"500ms\"")?;
            }
            _ => {}
        }
    }
    Ok(Section { host, names_tls, names_verification, is_http })
}

fn address(server: &str, table: &DeTable<'_>) -> Result<(Host, bool), String> {
    let mut host = Host::everything();
    if server.is_empty() {
        return Ok((host, false));
    }
    let shown = clean(server);
    let text = if server.starts_with("http") { server.to_owned() } else { format!("https://{server}") };
    let uri: Uri = text.parse().map_err(|_| format!("{shown:?} is no URL of a host"))?;
    let is_http = match uri.scheme_str() {
        Some("http") => true,
        Some("https") => false,
        _ => return Err(format!("{shown:?} is neither http:// nor https://")),
    };
    let authority = uri.authority().filter(|a| is_sound(a)).map_or("", http::uri::Authority::as_str);
    if authority.is_empty() {
        return Err(format!("{shown:?} names no host, or a user, which belongs into credentials"));
    }
    let is_docker = authority == DOCKER && !is_http;
    host.authority = if is_docker { DOCKER_HOST.to_owned() } else { authority.to_ascii_lowercase() };
    let as_it_is = match table.get("override_path") {
        Some(value) => value.get_ref().as_bool().ok_or("override_path is neither true nor false")?,
        None => false,
    };
    let given = text.split_once("://").map_or("", |(_, rest)| rest).contains('/');
    host.path = if given { tidy(uri.path()) } else { String::new() };
    if !as_it_is && !host.path.ends_with("/v2") {
        host.path.push_str("/v2");
    }
    Ok((host, is_http))
}

/// A path without empty, `.` and `..` parts and without a slash at its end.
fn tidy(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.iter().flat_map(|part| ["/", part]).collect()
}

fn capabilities(value: &DeValue<'_>) -> Result<(bool, bool), String> {
    let list = value.as_array().ok_or("capabilities is no list")?;
    let (mut pull, mut resolve) = (list.is_empty(), list.is_empty());
    for item in list {
        match string("capabilities", item.get_ref())?.to_ascii_lowercase().as_str() {
            "pull" => pull = true,
            "resolve" => resolve = true,
            "push" | "referrers" => {}
            other => {
                return Err(format!("no capability is called {:?}; there are pull, resolve and push", clean(other)));
            }
        }
    }
    Ok((pull, resolve))
}

fn clients(directory: &Path, value: &DeValue<'_>) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    if let DeValue::String(path) = value {
        return Ok(vec![(directory.join(path.as_ref()), None)]);
    }
    let list = value.as_array().ok_or("client is neither a path nor a list of paths or pairs")?;
    if list.len() > MOST {
        return Err("client names more than 64 files".to_owned());
    }
    list.iter()
        .map(|item| match item.get_ref() {
            DeValue::Array(_) => match strings("client", item.get_ref())?.as_slice() {
                [certificate, key] => {
                    let key = (!key.is_empty()).then(|| directory.join(key));
                    Ok((directory.join(certificate), key))
                }
                _ => Err("a pair of client is not a certificate and its key".to_owned()),
            },
            single => Ok((directory.join(string("client", single)?), None)),
        })
        .collect()
}

fn headers(value: &DeValue<'_>) -> Result<HeaderMap, String> {
    let table = value.as_table().ok_or("header is no table")?;
    let mut map = HeaderMap::new();
    for (name, value) in table {
        let shown = clean(name.get_ref());
        let name =
            HeaderName::try_from(name.get_ref().as_ref()).map_err(|_| format!("no header is called {shown:?}"))?;
        for text in strings("header", value.get_ref())? {
            let mut value =
                HeaderValue::try_from(text).map_err(|_| format!("header {shown:?} has a character too many"))?;
            // It may well be a key to the mirror.
            value.set_sensitive(true);
            map.append(name.clone(), value);
        }
    }
    if map.len() > MOST { Err("header has more than 64 lines".to_owned()) } else { Ok(map) }
}

fn string(key: &str, value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{key} is no text in quotes"))
}

/// One text or a list of texts.
fn strings(key: &str, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(list) if list.len() > MOST => Err(format!("{key} has more than 64 entries")),
        DeValue::Array(list) => list.iter().map(|item| string(key, item.get_ref())).collect(),
        single => Ok(vec![string(key, single)?]),
    }
}

/// Times as Go writes them: `1s`, `1m30s`, `500ms`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|&n| n > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_and_rest = &rest[digits..];
        let unit_bytes = unit_and_rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit_and_rest.len());
        let unit = match &unit_and_rest[..unit_bytes] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &unit_and_rest[unit_bytes..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

fn unreadable(path: &Path, source: &io::Error) -> RegistryError {
    RegistryError::new(RegistryErrorKind::Config, format!("read {}: {source}", path.display()))
}

fn bad(file: &Path, line: usize, reason: &str) -> RegistryError {
    let place = if line == 0 { String::new() } else { format!(":{line}") };
    RegistryError::new(RegistryErrorKind::Config, format!("{}{place}: {reason}", file.display()))
}

#[cfg(test)]
mod tests;
