//! The other half of a registry with tokens: gives one to whoever has the password, signed as the registry wants it.
//!
//! Follows the token authentication of the distribution project: a JWT by ES256, with the certificate beside it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::json;

/// A running token server. Its thread ends with it.
pub struct TokenServer {
    address: SocketAddr,
    certificate: String,
    ending: Arc<AtomicBool>,
    issued: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// What is needed to answer.
struct Signer {
    key: KeyPair,
    certificate: Vec<u8>,
    /// As `Authorization` has to be.
    expected: String,
    issued: Arc<AtomicUsize>,
}

impl TokenServer {
    /// One that listens there and knows one user and password.
    pub fn start(listener: TcpListener, (user, password): (&str, &str)) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(Vec::new()).expect("parameters").self_signed(&key).expect("signed");
        let (ending, issued) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let signer = Signer {
            key,
            certificate: certificate.der().to_vec(),
            expected: format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
            issued: Arc::clone(&issued),
        };
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let end = Arc::clone(&ending);
        let serve = move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => answer(&stream, &signer).unwrap_or_default(),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                    Err(e) => panic!("accept: {e}"),
                }
            }
        };
        let thread = Some(std::thread::spawn(serve));
        Self { address, certificate: certificate.pem(), ending, issued, thread }
    }

    /// Where tokens are.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// By which tokens are signed.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// How many tokens it gave.
    pub fn issued(&self) -> usize {
        self.issued.load(Ordering::Relaxed)
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            thread.join().ok();
        }
    }
}

fn answer(stream: &TcpStream, signer: &Signer) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut authorized = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        authorized |= name.eq_ignore_ascii_case("authorization") && value.trim() == signer.expected;
    }
    let (status, body) = if authorized {
        signer.issued.fetch_add(1, Ordering::Relaxed);
        ("200 OK", json!({"token": signer.token(&scope(&request)), "expires_in": 300}))
    } else {
        ("401 Unauthorized", json!({"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}))
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    let mut to = stream;
    write!(to, "{head}Connection: close\r\n\r\n{body}")
}

/// The repository of `GET /token?…scope=repository:NAME:pull…`.
fn scope(request: &str) -> String {
    let query = request.split(' ').nth(1).and_then(|path| path.split_once('?')).unwrap_or_default().1;
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
    let scope = scope.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/");
    scope.split(':').nth(1).unwrap_or_default().to_owned()
}

impl Signer {
    fn token(&self, repository: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({
            "iss": "test", "sub": "", "aud": "registry", "jti": "1",
            "exp": now + 300, "nbf": now - 60, "iat": now,
            "access": [{"type": "repository", "name": repository, "actions": ["pull"]}],
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(two_numbers(&signature)))
    }
}

/// The numbers of an ECDSA signature: from DER (two INTEGERs in a SEQUENCE) to 32 bytes each, as a JWT has them.
fn two_numbers(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let (number, tail) = rest[2..].split_at(usize::from(rest[1]));
        let digits = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - digits.len()).chain(digits.iter().copied()));
        rest = tail;
    }
    numbers
}
