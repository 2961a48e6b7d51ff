//! The certificates that clients are shown: read from files, chosen by the host name that a client asks for,
//! and what each means for channel binding.

use super::end_point::{EndPoint, end_point};
use super::tls::{TlsError, provider, read_certificates};
use aws_lc_rs::digest;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// One certificate and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
}

/// Every certificate of the listeners, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Served(Vec<One>);

#[derive(Debug)]
struct One {
    key: Arc<CertifiedKey>,
    /// Host names that it is for, in small letters; `*.` stands for one label.
    names: Vec<String>,
    end_point: Option<EndPoint>,
    /// SHA-256 of the certificate.
    fingerprint: [u8; 32],
}

impl Served {
    /// Reads each; an error names the file and says what is wrong with it.
    pub(super) fn read(files: &[CertificateFiles]) -> Result<Self, TlsError> {
        files
            .iter()
            .map(One::read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What channel binding to the certificate means that this name is shown; `None` where it has no meaning.
    /// To be asked with the name of the handshake, of the very configuration that served it.
    pub(super) fn end_point(&self, server_name: Option<&str>) -> Option<&EndPoint> {
        self.choose(server_name)?.end_point.as_ref()
    }

    /// SHA-256 of the certificate that this name is shown.
    pub(super) fn fingerprint(&self, server_name: Option<&str>) -> [u8; 32] {
        self.choose(server_name)
            .map_or([0; 32], |one| one.fingerprint)
    }

    /// The first that is for this name, else the first of all.
    fn choose(&self, server_name: Option<&str>) -> Option<&One> {
        let name = server_name.map(str::to_ascii_lowercase);
        let named = name.and_then(|name| self.0.iter().find(|one| one.is_for(&name)));
        named.or_else(|| self.0.first())
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.choose(hello.server_name())?;
        Some(Arc::clone(&chosen.key))
    }
}

impl One {
    fn read(files: &CertificateFiles) -> Result<Self, TlsError> {
        let (certificate, private_key) = (&files.certificate, &files.private_key);
        let chain = read_certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(private_key)
            .map_err(|error| TlsError::new(private_key, &error))?;
        let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
        let (names, end_point) = (names(certificate, leaf)?, end_point(leaf));
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, leaf).as_ref());
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            let key = private_key.display();
            TlsError::new(certificate, &format!("can't be used with {key}: {error}"))
        })?;
        Ok(Self {
            key: Arc::new(key),
            names,
            end_point,
            fingerprint,
        })
    }

    fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest == parent),
            None => name == host,
        })
    }
}

/// The host names of a certificate: its alternative names, or where it has none its common name.
fn names(path: &Path, der: &[u8]) -> Result<Vec<String>, TlsError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| TlsError::new(path, &error))?;
    let alternative = certificate
        .subject_alternative_name()
        .map_err(|error| TlsError::new(path, &error))?;
    let names: Vec<String> = match alternative {
        Some(extension) => extension
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            })
            .collect(),
        None => certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok().map(str::to_ascii_lowercase))
            .collect(),
    };
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn one(dir: &Path, name: &str, names: &[&str]) -> CertificateFiles {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).expect("names");
        let made = params.self_signed(&key).expect("signed");
        let files = CertificateFiles {
            certificate: dir.join(format!("{name}.crt")),
            private_key: dir.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, made.pem()).expect("written");
        fs::write(&files.private_key, key.serialize_pem()).expect("written");
        files
    }

    #[test]
    fn the_name_chooses_and_the_first_serves_the_rest() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = [
            one(dir.path(), "first", &["one.example.com"]),
            one(dir.path(), "wild", &["*.db.example.com", "db.example.com"]),
            one(
                dir.path(),
                "exact",
                &["shop.db.example.com", "Upper.Example.COM"],
            ),
        ];
        let served = Served::read(&files).expect("read");
        let chosen = |name: Option<&str>| {
            let chosen = served.choose(name).expect("there is one");
            served.0.iter().position(|one| std::ptr::eq(one, chosen))
        };
        assert_eq!(chosen(None), Some(0));
        for (name, expected) in [
            ("one.example.com", 0),
            ("x.db.example.com", 1),
            ("X.DB.example.com", 1),
            ("db.example.com", 1),
            ("shop.db.example.com", 1),
            ("upper.example.com", 2),
            ("a.b.db.example.com", 0),
            ("elsewhere.org", 0),
        ] {
            assert_eq!(chosen(Some(name)), Some(expected), "{name}");
        }
        assert_ne!(
            served.end_point(Some("x.db.example.com")),
            served.end_point(None)
        );
    }

    #[test]
    fn a_certificate_without_alternative_names_goes_by_its_common_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Old.example.com");
        let made = params.self_signed(&key).expect("signed");
        let path = dir.path().join("old.crt");
        assert_eq!(names(&path, made.der()).expect("read"), ["old.example.com"]);
        let text = names(&path, b"nothing").expect_err("no certificate");
        assert!(text.to_string().contains("old.crt"), "{text}");
    }
}
