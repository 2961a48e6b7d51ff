//! How a server's certificate is checked, with libpq's meanings of `require`, `verify-ca` and `verify-full`.

use super::ServerTls;
use super::tls::{TlsError, provider, read_certificates};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::rustls;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is configured for TLS towards a server: reads the CA file, or the system's CAs.
pub(super) fn client_config(mode: ServerTls, ca: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier: Arc<dyn ServerCertVerifier> = match mode {
        ServerTls::Disable | ServerTls::Prefer | ServerTls::Require => {
            Arc::new(Unchecked(algorithms))
        }
        ServerTls::VerifyCa | ServerTls::VerifyFull => {
            let anchors = match ca {
                Some(path) => read_certificates(path)?,
                None => rustls_native_certs::load_native_certs().certs,
            };
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(anchors.iter().cloned());
            if added == 0 {
                let path = ca.unwrap_or(Path::new("the system's CA store"));
                return Err(TlsError::new(path, &"holds no usable CA certificate"));
            }
            Arc::new(Checked {
                roots,
                anchors,
                algorithms,
                name: mode == ServerTls::VerifyFull,
            })
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new(ca.unwrap_or(Path::new("TLS")), &error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![super::tls::ALPN.to_vec()];
    // PostgreSQL resumes no sessions.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// `prefer` and `require`: encrypted, with whoever answers. A signature by an unknown key proves nothing, so
/// it isn't looked at either, and old forms of certificates do.
#[derive(Debug)]
struct Unchecked(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// `verify-ca`, and with `name` `verify-full`.
#[derive(Debug)]
struct Checked {
    roots: RootCertStore,
    /// The same, whole: a server may use a self-signed certificate that is itself in the CA file.
    anchors: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    name: bool,
}

impl ServerCertVerifier for Checked {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.anchors.iter().any(|anchor| anchor == end_entity) {
            if let Some(fault) = date_fault(end_entity, now) {
                return Err(fault.into());
            }
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn date_fault(der: &CertificateDer<'_>, now: UnixTime) -> Option<CertificateError> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Some(CertificateError::BadEncoding);
    };
    let validity = certificate.validity();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < validity.not_before.timestamp() {
        Some(CertificateError::NotValidYet)
    } else if now > validity.not_after.timestamp() {
        Some(CertificateError::Expired)
    } else {
        None
    }
}

/// Which check a server's certificate failed, and what to do.
pub(super) fn explain(error: &Error, host: &str, ca: Option<&Path>) -> String {
    let holder = ca.map_or_else(
        || "the system's CA store".to_owned(),
        |path| path.display().to_string(),
    );
    match error {
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "the server's certificate was not issued by a CA in {holder} (chain check of server_tls = verify-ca and verify-full)"
            ),
            CertificateError::NotValidForNameContext { presented, .. } => format!(
                "the server's certificate is for {}, not for \"{host}\" (name check of server_tls = verify-full)",
                if presented.is_empty() {
                    "no name at all".to_owned()
                } else {
                    presented.join(", ")
                }
            ),
            CertificateError::NotValidForName => format!(
                "the server's certificate is not for \"{host}\" (name check of server_tls = verify-full)"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired (or this machine's clock is wrong)".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet (or this machine's clock is wrong)"
                    .to_owned()
            }
            other => format!("the server's certificate can't be used: {other}"),
        },
        Error::AlertReceived(alert) => format!("the server refused the TLS handshake: {alert:?}"),
        Error::InvalidMessage(_) => {
            format!("what the server sent is not TLS: {error}")
        }
        other => format!("TLS handshake with the server failed: {other}"),
    }
}
