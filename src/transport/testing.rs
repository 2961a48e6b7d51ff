//! For tests: a CA, certificates that it signed, and TLS clients of every kind.

use super::stream::Stream;
use super::tls::{CertificateFiles, Certificates, Shown, Source};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::{TlsConnector, rustls};

/// A CA and the directory with its files.
pub(crate) struct Ca {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let made = params.self_signed(&key).expect("signed");
        fs::write(dir.path().join("ca.pem"), made.pem()).expect("written");
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for this common name and these host names.
    pub(crate) fn sign(&self, common_name: &str, hosts: &[&str]) -> CertificateFiles {
        let key = KeyPair::generate().expect("a key");
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let made = params.signed_by(&key, &self.issuer).expect("signed");
        let file = |end: &str| self.dir.path().join(format!("{common_name}.{end}"));
        let files = CertificateFiles {
            certificate: file("crt"),
            private_key: file("key"),
        };
        fs::write(&files.certificate, made.pem()).expect("written");
        fs::write(&files.private_key, key.serialize_pem()).expect("written");
        files
    }
}

/// What a listener shows and asks for.
pub(crate) fn serve(files: Vec<CertificateFiles>, client_ca: Option<&Path>) -> Certificates {
    let source = Source {
        shown: Shown::Files(files),
        client_ca: client_ca.map(Path::to_owned),
    };
    Certificates::read(&source).expect("read")
}

/// A TLS client: which protocols it names, and what it shows.
pub(crate) async fn connect(
    stream: Stream,
    host: &str,
    protocols: &[&[u8]],
    own: Option<&CertificateFiles>,
) -> io::Result<Stream> {
    use rustls::pki_types::pem::PemObject;
    let provider = super::tls::provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = super::tls::read_certificates(&files.certificate).expect("read");
            let key = PrivateKeyDer::from_pem_file(&files.private_key).expect("read");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let Stream::Plain(socket) = stream else {
        panic!("TLS inside TLS");
    };
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    let tls = connector.connect(name, socket).await?;
    Ok(Stream::TlsConnected(Box::new(tls)))
}

/// Believes whoever answers.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        super::tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
