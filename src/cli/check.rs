//! `slackwater check`: the configuration, and what can be tried of it without touching a server.

use super::Failure;
use crate::backend::Engine;
use crate::config::{AuthSource, CertificateFiles, Config, ProviderConfig, Tls};
use nix::unistd::{AccessFlags, access};
use std::io::Write;
use std::path::Path;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

/// Checks the file and prints what was found; 0: it can be used.
pub(super) fn run(path: &Path, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            if json {
                let problems: Vec<_> = error
                    .problems
                    .iter()
                    .map(|p| serde_json::json!({ "line": p.line, "key": p.key, "message": p.message }))
                    .collect();
                writeln!(
                    out,
                    "{:#}",
                    serde_json::json!({ "ok": false, "problems": problems })
                )?;
            } else {
                writeln!(out, "{error}")?;
            }
            return Ok(2);
        }
    };
    let mut found = Found {
        notes: Vec::new(),
        problems: Vec::new(),
    };
    found.listeners(&config);
    found.tls(&config.tls);
    found.directory("state_dir", &config.state_dir);
    found.clusters(&config);
    let ok = found.problems.is_empty();
    if json {
        let problems: Vec<_> = found
            .problems
            .iter()
            .map(|(key, message)| serde_json::json!({ "line": 0, "key": key, "message": message }))
            .collect();
        let answer = serde_json::json!({
            "ok": ok, "problems": problems, "warnings": config.warnings, "notes": found.notes,
        });
        writeln!(out, "{answer:#}")?;
    } else {
        for note in &found.notes {
            writeln!(out, "{note}")?;
        }
        for warning in &config.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        for (key, message) in &found.problems {
            writeln!(out, "{}: {key}: {message}", path.display())?;
        }
        if ok {
            writeln!(out, "{} can be used", path.display())?;
        }
    }
    Ok(if ok { 0 } else { 2 })
}

/// Loads a certificate with its key; the error names the key in proxy.toml.
fn load_certificate(files: &CertificateFiles) -> Result<usize, (&'static str, String)> {
    let bad = |key: &'static str, path: &Path, reason: &dyn std::fmt::Display| {
        (key, format!("{}: {reason}", path.display()))
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|e| bad("tls.certificate", &files.certificate, &e))?;
    if certificates.is_empty() {
        return Err(bad(
            "tls.certificate",
            &files.certificate,
            &"holds no certificate in PEM form",
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&files.private_key)
        .map_err(|e| bad("tls.private_key", &files.private_key, &e))?;
    let count = certificates.len();
    CertifiedKey::from_der(certificates, key, &aws_lc_rs::default_provider()).map_err(|e| {
        bad(
            "tls.private_key",
            &files.private_key,
            &format!("doesn't fit the certificate: {e}"),
        )
    })?;
    Ok(count)
}

struct Found {
    notes: Vec<String>,
    problems: Vec<(String, String)>,
}

impl Found {
    fn listeners(&mut self, config: &Config) {
        let listeners = [
            ("postgres", &config.listen.postgres),
            ("mysql", &config.listen.mysql),
        ];
        for (name, listen) in listeners {
            let Some(listen) = listen else { continue };
            let addresses: Vec<_> = listen.addresses.iter().map(ToString::to_string).collect();
            self.notes.push(format!(
                "listen: {name} on {} (TLS {:?})",
                addresses.join(", "),
                listen.tls
            ));
        }
        let token = if config.admin.token.is_some() {
            "with a token"
        } else {
            "without a token"
        };
        self.notes
            .push(format!("admin: {} {token}", config.admin.address));
    }

    fn tls(&mut self, tls: &Tls) {
        if tls.certificates.is_empty() {
            self.notes
                .push("tls: a CA and a certificate are made in state_dir".to_owned());
        }
        for files in &tls.certificates {
            match load_certificate(files) {
                Ok(count) => self.notes.push(format!(
                    "tls: {} loads ({count} in the chain), and the key fits",
                    files.certificate.display()
                )),
                Err((key, message)) => self.problems.push((key.to_owned(), message)),
            }
        }
        if let Some(path) = &tls.client_ca {
            let found: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let fault = match found {
                Ok(found) if found.is_empty() => "holds no certificate in PEM form".to_owned(),
                Ok(found) => {
                    let count = found.len();
                    self.notes.push(format!(
                        "tls: clients are asked for a certificate of one of {count} CAs in {}",
                        path.display()
                    ));
                    return;
                }
                Err(error) => error.to_string(),
            };
            let key = "tls.client_ca".to_owned();
            self.problems
                .push((key, format!("{}: {fault}", path.display())));
        }
    }

    fn directory(&mut self, key: &str, path: &Path) {
        let Some(there) = path
            .ancestors()
            .find(|p| p.exists() || p.as_os_str().is_empty())
        else {
            return;
        };
        let here = if there.as_os_str().is_empty() {
            Path::new(".")
        } else {
            there
        };
        if !here.is_dir() {
            self.problems.push((
                key.to_owned(),
                format!("{} is not a directory", here.display()),
            ));
        } else if let Err(error) = access(here, AccessFlags::W_OK | AccessFlags::X_OK) {
            self.problems.push((
                key.to_owned(),
                format!(
                    "this user can't write to {}: {}",
                    here.display(),
                    error.desc()
                ),
            ));
        } else {
            let made = if there == path {
                ""
            } else {
                ", which will be made"
            };
            self.notes.push(format!("{key}: {}{made}", path.display()));
        }
    }

    fn clusters(&mut self, config: &Config) {
        for cluster in &config.clusters {
            let name = &cluster.name;
            let ladder: Vec<_> = cluster
                .capacity
                .ladder
                .iter()
                .map(ToString::to_string)
                .collect();
            let role = if cluster.default { ", default" } else { "" };
            let verifiers = match &cluster.auth.source {
                AuthSource::Server { .. } => "verifiers from the server".to_owned(),
                AuthSource::Users { users, .. } => format!("{} users from a file", users.len()),
            };
            self.notes.push(format!(
                "clusters.{name}: {}{role}, {} ACU, {verifiers}",
                cluster.engine,
                ladder.join(", ")
            ));
            match &cluster.provider {
                ProviderConfig::Static(provider) => {
                    for (capacity, address) in &provider.endpoints {
                        self.notes.push(format!(
                            "clusters.{name}: {capacity} ACU at {address}, not contacted"
                        ));
                    }
                    let rules = if cluster.engine.speaks_mysql() {
                        "the host parts of the server's accounts"
                    } else {
                        "address rules in the server's pg_hba.conf"
                    };
                    self.notes.push(match provider.proxy_protocol {
                        None => format!(
                            "clusters.{name}: {rules} see Slackwater's address, not the client's"
                        ),
                        Some(_) => format!(
                            "clusters.{name}: connections begin with a PROXY header; what takes it sees the client's address"
                        ),
                    });
                    let detection = match cluster.engine {
                        Engine::Postgres => continue,
                        Engine::Mariadb => {
                            "locks of sessions are seen where the server has the plugin metadata_lock_info"
                        }
                        Engine::Mysql => {
                            "locks, variables and statements of sessions are seen where service_user may read performance_schema and has PROCESS"
                        }
                    };
                    self.notes.push(format!(
                        "clusters.{name}: {detection}; `slackwater status {name}` tells what is missing"
                    ));
                }
                ProviderConfig::Local(provider) => {
                    self.directory(
                        &format!("clusters.{name}.provider.data_dir"),
                        &provider.data_dir,
                    );
                }
            }
        }
    }
}
