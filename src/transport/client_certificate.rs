//! What a client's certificate says of who shows it. The TLS handshake has checked its chain and its key.

use super::stream::Stream;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The common name (CN) in the subject of a client's certificate, as PostgreSQL reads it: the first one.
/// `None` without a certificate, without a CN, or where one can't be read plainly or hides a NUL.
pub fn common_name(stream: &Stream) -> Option<String> {
    name_in(stream.peer_certificate()?)
}

fn name_in(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    let name = name.as_str().ok()?;
    (!name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, *name);
        }
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn what_counts_as_a_name() {
        assert_eq!(name_in(&named(&["app"])).as_deref(), Some("app"));
        assert_eq!(name_in(&named(&["ümlaut"])).as_deref(), Some("ümlaut"));
        assert_eq!(name_in(&named(&[])), None);
        assert_eq!(name_in(&named(&[""])), None);
        assert_eq!(name_in(&named(&["app\0.evil"])), None);
        assert_eq!(name_in(b"no certificate"), None);
    }
}
