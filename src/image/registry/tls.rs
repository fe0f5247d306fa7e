//! What is trusted, and what is shown, when a host is spoken to over TLS.
//!
//! Nothing here is loaded before the first connection that needs it. The system's authorities are kept for a while,
//! as reading them is most of the work; what `hosts.toml` names is read for each pull.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::image::registry::error::clean;
use crate::image::registry::hosts::Host;

/// How long the system's authorities are believed to be unchanged.
const ROOTS_LAST: Duration = Duration::from_secs(600);
/// Bytes of one certificate or key file.
const FILE_BYTES: u64 = 4 << 20;

/// The system's certificate authorities, read when first needed.
#[derive(Debug, Default)]
pub(super) struct Roots(Mutex<Option<(Instant, Arc<RootCertStore>)>>);

impl Roots {
    fn get(&self) -> Arc<RootCertStore> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, store)) = kept.as_ref().filter(|(read, _)| read.elapsed() < ROOTS_LAST) {
            return Arc::clone(store);
        }
        let mut store = RootCertStore::empty();
        // Without a single authority every certificate is refused, and that error says what to do.
        let found = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(found.certs);
        let store = Arc::new(store);
        *kept = Some((Instant::now(), Arc::clone(&store)));
        store
    }
}

/// The part of a [`Host`] that TLS needs.
#[derive(Debug, Clone)]
pub(super) struct TlsSettings {
    ca: Vec<PathBuf>,
    client: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
}

impl TlsSettings {
    pub fn of(host: &Host) -> Self {
        Self { ca: host.ca.clone(), client: host.client.clone(), skip_verify: host.skip_verify }
    }

    /// For hosts that nobody configured: the system's authorities alone, and nothing is shown.
    pub fn of_strangers() -> Self {
        Self { ca: Vec::new(), client: Vec::new(), skip_verify: false }
    }
}

/// A configuration for connections to one host. Blocks on files. The error is a sentence for people.
pub(super) fn configure(settings: &TlsSettings, roots: &Roots) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("set up TLS: {e}"))?;
    let verifier: Arc<dyn ServerCertVerifier> = if settings.skip_verify {
        Arc::new(Unverified(Arc::clone(&provider)))
    } else {
        verifier(settings, roots, &provider)?
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let keys = settings
        .client
        .iter()
        .map(|(certificate, key)| client_key(certificate, key.as_deref(), &provider))
        .collect::<Result<Vec<_>, _>>()?;
    let mut config = match keys.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_resolver(Arc::new(ClientKeys(keys))),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn verifier(
    settings: &TlsSettings,
    roots: &Roots,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let mut store = roots.get();
    let mut own = Vec::new();
    for file in &settings.ca {
        let before = own.len();
        own.extend(certificates(file)?);
        if own.len() == before {
            return Err(format!("{} holds no certificate in PEM", file.display()));
        }
    }
    if !own.is_empty() {
        let mut more = RootCertStore::clone(&store);
        more.add_parsable_certificates(own.iter().cloned());
        store = Arc::new(more);
    }
    if store.is_empty() {
        return Ok(Arc::new(Pinned { chains: None, own, provider: Arc::clone(provider) }));
    }
    let chains = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider))
        .build()
        .map_err(|e| format!("set up TLS: {e}"))?;
    Ok(Arc::new(Pinned { chains: Some(chains), own, provider: Arc::clone(provider) }))
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|e| format!("read {}: {e}", file.display()))?;
    opened.take(FILE_BYTES).read_to_end(&mut bytes).map_err(|e| format!("read {}: {e}", file.display()))?;
    Ok(bytes)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(file)?;
    CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{} is no certificate in PEM: {}", file.display(), clean(&e.to_string())))
}

fn client_key(certificate: &Path, key: Option<&Path>, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let chain = certificates(certificate)?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM", certificate.display()));
    }
    let file = key.unwrap_or(certificate);
    // What is in a key's file must not get into a message.
    let key = PrivateKeyDer::from_pem_slice(&read(file)?)
        .map_err(|_| format!("{} holds no private key in PEM", file.display()))?;
    CertifiedKey::from_der(chain, key, provider)
        .map(Arc::new)
        .map_err(|e| format!("{} and its key cannot be used: {e}", certificate.display()))
}

/// Chains as usual; beside them, a certificate that the configuration names is taken for itself, if the name fits.
///
/// Registries are often set up with one self-signed certificate, which then also serves as its own authority. A chain
/// of one such is none by the rules that webpki follows.
#[derive(Debug)]
struct Pinned {
    /// `None` where there is no authority at all.
    chains: Option<Arc<WebPkiServerVerifier>>,
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chained = match &self.chains {
            Some(chains) => chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        };
        match chained {
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))
                if self.own.iter().any(|own| own == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// `skip_verify`: any certificate will do, if the server has its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Our certificates for a server that asks for one: the first that an authority it names has signed, else the first.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = || self.0.iter().filter(|key| key.key.choose_scheme(schemes).is_some());
        // An issuer's name stands in a certificate in the very encoding in which the server names it.
        let signed = |key: &&Arc<CertifiedKey>| {
            key.cert.iter().any(|cert| authorities.iter().any(|name| contains(cert.as_ref(), name)))
        };
        usable().find(signed).or_else(|| usable().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// What to do about a certificate that was refused, of the host that is configured or of one it names.
pub(super) fn remedy(error: &rustls::Error, is_stranger: bool) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_))
            if is_stranger =>
        {
            "the registry sent us there, and its hosts.toml counts for the registry alone: add the authority to the system's"
        }
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::Other(_) => {
                "name its authority with `ca` in the registry's hosts.toml, or install ca-certificates"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use the name that the certificate was made for"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "check the clock, or have the certificate renewed"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "check the clock",
            _ => "have the registry's certificate checked",
        },
        rustls::Error::AlertReceived(_) => "check whether it wants a client certificate (`client` in hosts.toml)",
        rustls::Error::InvalidMessage(_) => {
            "it may speak plain HTTP; then name it as `http://…` in the registry's hosts.toml"
        }
        _ => "check its TLS settings",
    }
}
