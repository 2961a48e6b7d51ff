//! A CA and a server certificate of Slackwater's own, for when none is configured.
//!
//! They live in `tls/` below the state directory: `ca.crt` is what clients are given as `sslrootcert`, so the
//! CA stays as long as it is valid; the server's certificate is made anew when it nears its end or its names
//! change.

use super::tls::TlsError;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_rustls::rustls;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

const DAY: Duration = Duration::from_hours(24);
const CA_LIFE: Duration = DAY.saturating_mul(3650);
const SERVER_LIFE: Duration = DAY.saturating_mul(397);
/// What has less than this left is made anew.
const RENEW_BEFORE: Duration = DAY.saturating_mul(30);

/// The files below `state_dir/tls`.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) ca_certificate: PathBuf,
    pub(super) ca_key: PathBuf,
    pub(super) server_certificate: PathBuf,
    pub(super) server_key: PathBuf,
}

impl Files {
    pub(super) fn below(state_dir: &Path) -> Self {
        let dir = state_dir.join("tls");
        Self {
            ca_certificate: dir.join("ca.crt"),
            ca_key: dir.join("ca.key"),
            server_certificate: dir.join("server.crt"),
            server_key: dir.join("server.key"),
        }
    }
}

/// Makes what is missing, ending, or for other names; keeps the rest.
pub(super) fn ensure(files: &Files, dns_names: &[String], now: UnixTime) -> Result<(), TlsError> {
    let names = all_names(dns_names);
    if let Some(dir) = files.ca_certificate.parent() {
        fs::create_dir_all(dir).map_err(|error| TlsError::new(dir, &error))?;
    }
    if !ca_is_good(files, now)? {
        make_ca(files, now)?;
    }
    if !server_is_good(files, &names, now) {
        make_server(files, &names, now)?;
    }
    Ok(())
}

/// Every name that the certificate is for, in small letters.
fn all_names(configured: &[String]) -> BTreeSet<String> {
    let host = nix::unistd::gethostname().ok();
    let host = host.and_then(|name| name.into_string().ok());
    let host = host.filter(|name| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    });
    ["localhost", "127.0.0.1", "::1"]
        .into_iter()
        .map(str::to_owned)
        .chain(host)
        .chain(configured.iter().cloned())
        .map(|name| name.to_ascii_lowercase())
        .collect()
}

fn ca_is_good(files: &Files, now: UnixTime) -> Result<bool, TlsError> {
    let path = &files.ca_certificate;
    let der = match CertificateDer::from_pem_file(path) {
        Ok(der) => der,
        Err(_) if !path.exists() => return Ok(false),
        Err(error) => return Err(TlsError::new(path, &error)),
    };
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|error| TlsError::new(path, &error))?;
    if !lasts(&certificate, now) {
        return Ok(false);
    }
    let key = read_key(&files.ca_key).map_err(|error| {
        let ca = path.display();
        TlsError::new(
            &files.ca_key,
            &format!("{error}; it belongs to {ca}: put it back, or remove both for a new CA that clients must be given"),
        )
    })?;
    if certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw() {
        Ok(true)
    } else {
        let reason = format!("is not the key of {}", path.display());
        Err(TlsError::new(&files.ca_key, &reason))
    }
}

fn server_is_good(files: &Files, names: &BTreeSet<String>, now: UnixTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(&files.server_certificate) else {
        return false;
    };
    let Ok(ca_der) = CertificateDer::from_pem_file(&files.ca_certificate) else {
        return false;
    };
    let Ok(key) = read_key(&files.server_key) else {
        return false;
    };
    let (Ok((_, certificate)), Ok((_, ca))) = (
        X509Certificate::from_der(&der),
        X509Certificate::from_der(&ca_der),
    ) else {
        return false;
    };
    lasts(&certificate, now)
        && names_of(&certificate) == *names
        && certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        && certificate.verify_signature(Some(ca.public_key())).is_ok()
}

fn lasts(certificate: &X509Certificate<'_>, now: UnixTime) -> bool {
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    end > now.as_secs().saturating_add(RENEW_BEFORE.as_secs())
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        })
        .collect()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn make_ca(files: &Files, now: UnixTime) -> Result<(), TlsError> {
    let path = &files.ca_certificate;
    let fault = |error: rcgen::Error| TlsError::new(path, &error);
    let key = KeyPair::generate().map_err(fault)?;
    let mut params = CertificateParams::default();
    set_dates(&mut params, now, CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Slackwater CA");
    let certificate = params.self_signed(&key).map_err(fault)?;
    // The key first: a CA counts as there once its certificate is.
    write(&files.ca_key, &Zeroizing::new(key.serialize_pem()), 0o600)?;
    write(path, &certificate.pem(), 0o644)
}

fn make_server(files: &Files, names: &BTreeSet<String>, now: UnixTime) -> Result<(), TlsError> {
    let path = &files.server_certificate;
    let fault = |error: rcgen::Error| TlsError::new(path, &error);
    let ca = CertificateDer::from_pem_file(&files.ca_certificate)
        .map_err(|error| TlsError::new(&files.ca_certificate, &error))?;
    let ca_key = read_key(&files.ca_key).map_err(|error| TlsError::new(&files.ca_key, &error))?;
    let issuer = Issuer::from_ca_cert_der(&ca, ca_key).map_err(fault)?;
    let key = KeyPair::generate().map_err(fault)?;
    let names: Vec<String> = names.iter().cloned().collect();
    let mut params = CertificateParams::new(names.clone()).map_err(|error| {
        TlsError::new(
            path,
            &format!("can't be made for the names {names:?}: {error}"),
        )
    })?;
    set_dates(&mut params, now, SERVER_LIFE);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Slackwater");
    let certificate = params.signed_by(&key, &issuer).map_err(fault)?;
    write(
        &files.server_key,
        &Zeroizing::new(key.serialize_pem()),
        0o600,
    )?;
    write(path, &certificate.pem(), 0o644)
}

/// From an hour ago, for clocks that are a little behind.
fn set_dates(params: &mut CertificateParams, now: UnixTime, life: Duration) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs());
    params.not_before = now - Duration::from_hours(1);
    params.not_after = now + life;
}

fn read_key(path: &Path) -> Result<KeyPair, String> {
    let pem = fs::read_to_string(path).map_err(|error| error.to_string())?;
    KeyPair::from_pem(&Zeroizing::new(pem)).map_err(|error| error.to_string())
}

/// Replaces a file at once, never readable by more than `mode` says.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let fresh = path.with_extension("new");
    let written = || -> io::Result<()> {
        if fresh.exists() {
            fs::remove_file(&fresh)?;
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    written().map_err(|error| TlsError::new(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn at(days: u32) -> UnixTime {
        UnixTime::since_unix_epoch(DAY * (20_000 + days))
    }

    fn read(files: &Files) -> [String; 4] {
        [
            &files.ca_certificate,
            &files.ca_key,
            &files.server_certificate,
            &files.server_key,
        ]
        .map(|path| fs::read_to_string(path).expect("is there"))
    }

    #[test]
    fn kept_renewed_and_renamed() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files::below(dir.path());
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let shop = names(&["Shop.db.example.com", "*.db.example.com", "10.0.0.5"]);
        let run = |names: &[String], day| {
            ensure(&files, names, at(day)).expect("made");
            read(&files)
        };
        let first = run(&shop, 0);
        assert_eq!(run(&shop, 300), first, "a restart changes nothing");
        for key in [&files.ca_key, &files.server_key] {
            let mode = fs::metadata(key).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let renewed = run(&shop, 370);
        assert_eq!(renewed[..2], first[..2], "the CA stays");
        assert_ne!(renewed[2], first[2], "27 days were left");
        let renamed = run(&names(&["other.example.com"]), 370);
        assert_eq!(renamed[..2], first[..2]);
        assert_ne!(renamed[2], renewed[2]);
        let der = CertificateDer::from_pem_file(&files.server_certificate).expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&der).expect("DER");
        let got = names_of(&certificate);
        for name in ["localhost", "127.0.0.1", "::1", "other.example.com"] {
            assert!(got.contains(name), "{got:?}");
        }
        assert!(!got.contains("*.db.example.com"), "{got:?}");
        fs::remove_file(&files.server_key).expect("removed");
        let mended = run(&names(&["other.example.com"]), 370);
        assert_eq!(mended[..2], first[..2]);
        assert_ne!(
            run(&shop, 3640)[0],
            first[0],
            "a CA near its end is replaced"
        );
    }

    #[test]
    fn a_lost_ca_key_is_never_papered_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files::below(dir.path());
        ensure(&files, &[], at(0)).expect("made");
        fs::copy(&files.server_key, &files.ca_key).expect("copied");
        let error = ensure(&files, &[], at(0)).expect_err("another key");
        assert!(error.to_string().contains("is not the key of"), "{error}");
        fs::remove_file(&files.ca_key).expect("removed");
        let error = ensure(&files, &[], at(0)).expect_err("no key").to_string();
        assert!(
            error.contains("ca.key") && error.contains("put it back"),
            "{error}"
        );
    }
}
