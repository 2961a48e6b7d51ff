//! `tls-server-end-point` (RFC 5929): what SCRAM-SHA-256-PLUS binds to, on both legs.

use aws_lc_rs::digest;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::RsaSsaPssParams;

/// The hash of a server's certificate.
pub type EndPoint = std::sync::Arc<[u8]>;

/// Hashes a certificate with the hash function of its own signature, and with SHA-256 where that is MD5 or
/// SHA-1. `None` where the signature has no hash function of its own (Ed25519): such a certificate can't be
/// bound to, and PostgreSQL can't either.
pub(super) fn end_point(der: &[u8]) -> Option<EndPoint> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let algorithm = &certificate.signature_algorithm;
    let mut oid = algorithm.algorithm.to_id_string();
    if oid == RSASSA_PSS {
        let parameters = algorithm.parameters.as_ref()?;
        oid = RsaSsaPssParams::try_from(parameters)
            .ok()?
            .hash_algorithm_oid()
            .to_id_string();
    }
    Some(digest::digest(hash_of(&oid)?, der).as_ref().into())
}

const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";

/// The hash function behind the name of a signature or hash algorithm.
fn hash_of(oid: &str) -> Option<&'static digest::Algorithm> {
    Some(match oid {
        // MD5 and SHA-1, with RSA, DSA, ECDSA, and alone.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10040.4.3"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.2.5"
        | "1.3.14.3.2.26" => &digest::SHA256,
        "1.2.840.113549.1.1.11"
        | "2.16.840.1.101.3.4.3.2"
        | "1.2.840.10045.4.3.2"
        | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            &digest::SHA384
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            &digest::SHA512
        }
        "1.2.840.113549.1.1.14"
        | "2.16.840.1.101.3.4.3.1"
        | "1.2.840.10045.4.3.1"
        | "2.16.840.1.101.3.4.2.4" => &digest::SHA224,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (algorithm, length) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ECDSA_P521_SHA512, Some(64)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
            let params = rcgen::CertificateParams::new(["a.b".to_owned()]).expect("a name");
            let made = params.self_signed(&key).expect("signed");
            let hash = end_point(made.der());
            assert_eq!(hash.as_ref().map(|h| h.len()), length, "{algorithm:?}");
            if length == Some(48) {
                let expected = digest::digest(&digest::SHA384, made.der());
                assert_eq!(hash.as_deref(), Some(expected.as_ref()));
            }
        }
        assert_eq!(end_point(b"no certificate"), None);
    }

    #[test]
    fn weak_hashes_are_replaced() {
        for oid in ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.5"] {
            assert_eq!(hash_of(oid), Some(&digest::SHA256), "{oid}");
        }
        assert_eq!(hash_of("1.3.101.112"), None, "Ed25519 has none");
    }
}
