//! TLS on both legs: certificates shown to clients, and connections opened towards servers.
//!
//! TLS 1.2 and 1.3, with AWS-LC. Sessions are not resumed: database clients don't, and each ticket would cost
//! memory and a write.

pub use super::end_point::EndPoint;
pub use super::served::CertificateFiles;

use super::ServerTls;
use super::end_point::end_point;
use super::self_made;
use super::served::Served;
use super::server_certificate::{client_config, explain};
use super::stream::Stream;
use arc_swap::ArcSwap;
use futures_util::FutureExt;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The protocol's registered name in ALPN.
pub const ALPN: &[u8] = b"postgresql";

/// A certificate, key or CA file that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl TlsError {
    pub(super) fn new(path: &Path, reason: &impl Display) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// What clients are shown, and what they may be asked to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The certificates.
    pub shown: Shown,
    /// Clients are asked for a certificate; one that is shown must be signed by a CA of this PEM file.
    pub client_ca: Option<PathBuf>,
}

/// Where the certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// PEM files of the operator's, at least one pair; the name that a client asks for chooses, and the first
    /// serves the rest.
    Files(Vec<CertificateFiles>),
    /// A CA and a certificate that are kept, and where needed made, in `state_dir/tls`. The certificate is for
    /// localhost, 127.0.0.1, ::1, this machine's name, and `dns_names` (wildcards and IP addresses too).
    SelfMade {
        /// The proxy's own directory.
        state_dir: PathBuf,
        /// More names.
        dns_names: Vec<String>,
    },
}

/// What clients are shown now. Installing swaps it for new connections; live ones go on.
#[derive(Debug)]
pub struct Certificates(ArcSwap<Ready>);

/// Certificates that were read and are good to be used.
#[derive(Debug)]
pub struct Ready {
    source: Source,
    config: Arc<ServerConfig>,
    /// The same without ALPN, for which MySQL's protocol has no name.
    nameless: Arc<ServerConfig>,
    served: Arc<Served>,
}

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL's, which has a name in ALPN.
    Postgres,
    /// MySQL's, which has none.
    MySql,
}

/// A client's connection after its TLS handshake on a listener of MySQL's protocol.
#[derive(Debug)]
pub struct SecuredMySql {
    /// The connection.
    pub stream: Stream,
    /// SHA-256 of the certificate that was shown.
    pub fingerprint: [u8; 32],
}

/// A client's connection after its TLS handshake.
#[derive(Debug)]
pub struct Secured {
    /// The connection.
    pub stream: Stream,
    /// What channel binding to the certificate that was shown means; `None` where it has no meaning.
    pub end_point: Option<EndPoint>,
}

impl Ready {
    /// Reads, and makes what is self-made and missing or near its end. Reads and writes files: not for a
    /// runtime's worker.
    pub fn read(source: &Source) -> Result<Self, TlsError> {
        let served = match &source.shown {
            Shown::Files(files) => Served::read(files)?,
            Shown::SelfMade {
                state_dir,
                dns_names,
            } => {
                let files = self_made::Files::below(state_dir);
                self_made::ensure(&files, dns_names, UnixTime::now())?;
                Served::read(&[CertificateFiles {
                    certificate: files.server_certificate,
                    private_key: files.server_key,
                }])?
            }
        };
        let served = Arc::new(served);
        let config = server_config(Arc::clone(&served), source.client_ca.as_deref())?;
        let mut nameless = config.clone();
        nameless.alpn_protocols.clear();
        Ok(Self {
            source: source.clone(),
            config: Arc::new(config),
            nameless: Arc::new(nameless),
            served,
        })
    }
}

impl Certificates {
    /// Reads what is there now; see [`Ready::read`].
    pub fn read(source: &Source) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::from_pointee(Ready::read(source)?)))
    }

    /// Shows these to new connections from now on.
    pub fn install(&self, ready: Ready) {
        self.0.store(Arc::new(ready));
    }

    /// The self-made CA's certificate, which clients take as `sslrootcert`; `None` for configured files.
    pub fn ca_path(&self) -> Option<PathBuf> {
        match &self.0.load().source.shown {
            Shown::Files(_) => None,
            Shown::SelfMade { state_dir, .. } => {
                Some(self_made::Files::below(state_dir).ca_certificate)
            }
        }
    }

    /// The server's side of a TLS handshake with a client.
    pub async fn accept(&self, stream: Stream) -> io::Result<Secured> {
        self.accept_begun(stream, &[]).await
    }

    /// The same, when the client's first bytes were read already.
    pub async fn accept_begun(&self, stream: Stream, begun: &[u8]) -> io::Result<Secured> {
        let ready = self.0.load_full();
        let stream = shake_hands(stream, begun, Arc::clone(&ready.config)).await?;
        let end_point = ready.served.end_point(stream.server_name()).cloned();
        Ok(Secured { stream, end_point })
    }

    /// The same for MySQL's protocol.
    pub async fn accept_mysql(&self, stream: Stream, begun: &[u8]) -> io::Result<SecuredMySql> {
        let ready = self.0.load_full();
        let stream = shake_hands(stream, begun, Arc::clone(&ready.nameless)).await?;
        let fingerprint = ready.served.fingerprint(stream.server_name());
        Ok(SecuredMySql {
            stream,
            fingerprint,
        })
    }
}

async fn shake_hands(
    stream: Stream,
    begun: &[u8],
    config: Arc<ServerConfig>,
) -> io::Result<Stream> {
    let Stream::Plain(socket) = stream else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "TLS inside TLS is not spoken",
        ));
    };
    let acceptor = TlsAcceptor::from(config);
    let mut fault = None;
    let feed = |connection: &mut ServerConnection| {
        let mut rest = begun;
        while !rest.is_empty() && matches!(connection.read_tls(&mut rest), Ok(1..)) {
            if let Err(error) = connection.process_new_packets() {
                fault = Some(error);
                break;
            }
        }
    };
    // Boxed: a handshake's state is kilobytes, and would stay part of the session's future for its life.
    let mut handshake = Box::pin(acceptor.accept_with(socket, feed));
    let done = match fault {
        None => handshake.await,
        // It would wait for bytes that change nothing; the first poll sends the alert.
        Some(fault) => match (&mut handshake).now_or_never() {
            Some(done) => done,
            None => Err(io::Error::new(io::ErrorKind::InvalidData, fault)),
        },
    };
    match done {
        Ok(tls) => Ok(Stream::TlsAccepted(Box::new(tls))),
        Err(error) => Err(retold(error, |error| match error {
            rustls::Error::AlertReceived(alert) => {
                format!("the client refused the TLS handshake: {alert:?}")
            }
            rustls::Error::InvalidMessage(_) => "what the client sent is not TLS".to_owned(),
            rustls::Error::NoApplicationProtocol => {
                "the client speaks other protocols than postgresql (ALPN)".to_owned()
            }
            rustls::Error::InvalidCertificate(fault) => {
                format!("the client's certificate was not accepted: {fault}")
            }
            other => format!("TLS handshake with the client failed: {other}"),
        })),
    }
}

/// Bytes in one TLS record towards clients: as many as PostgreSQL puts there (`PQ_SEND_BUFFER_SIZE`). Some of its
/// programs wait for the socket while a part of a larger record lies in their TLS library (`pg_basebackup` and
/// `pg_receivewal`, which call `select` themselves), and would wait for ever.
const RECORD_MAX: usize = 8192;

fn server_config(served: Arc<Served>, client_ca: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new(client_ca.unwrap_or(Path::new("TLS")), &error))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(read_certificates(path)?);
            if added == 0 {
                return Err(TlsError::new(path, &"holds no usable CA certificate"));
            }
            // Asked for and not demanded: each cluster says whether it does.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .allow_unauthenticated()
                .build();
            let verifier = verifier.map_err(|error| TlsError::new(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(served);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_fragment_size = Some(RECORD_MAX);
    Ok(config)
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificates of a PEM file, of which there must be one at least.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::new(path, &"holds no PEM certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::new(path, &error)),
    }
}

/// What was built for one way of connecting, and the state of the CA file then.
struct Cached {
    mode: ServerTls,
    protocol: Protocol,
    ca: Option<PathBuf>,
    stamp: Option<(SystemTime, u64)>,
    config: Arc<ClientConfig>,
}

/// One entry per protocol, `server_tls` and CA file in the configuration. Process-wide, since it only spares work.
static CLIENT_CONFIGS: Mutex<Vec<Cached>> = Mutex::new(Vec::new());

/// The client's side of a TLS handshake with a server, after its `S`. `host` is the name that was dialled;
/// the certificate is checked as `mode` says, against `ca` or else the system's CAs. A CA file that changes
/// is read again. Errors say which check failed.
pub async fn connect(
    stream: Stream,
    host: &str,
    mode: ServerTls,
    ca: Option<&Path>,
) -> io::Result<Stream> {
    connect_for(Protocol::Postgres, stream, host, mode, ca).await
}

/// The same for another protocol.
pub async fn connect_for(
    protocol: Protocol,
    stream: Stream,
    host: &str,
    mode: ServerTls,
    ca: Option<&Path>,
) -> io::Result<Stream> {
    let Stream::Plain(socket) = stream else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "TLS inside TLS is not spoken",
        ));
    };
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(_) if mode == ServerTls::VerifyFull => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "server_tls = verify-full needs a host name or IP address, and \"{host}\" is none"
                ),
            ));
        }
        Err(_) => ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
    };
    let connector = TlsConnector::from(cached_config(protocol, mode, ca).await?);
    match Box::pin(connector.connect(name, socket)).await {
        Ok(tls) => Ok(Stream::TlsConnected(Box::new(tls))),
        Err(error) => Err(retold(error, |error| explain(error, host, ca))),
    }
}

async fn cached_config(
    protocol: Protocol,
    mode: ServerTls,
    ca: Option<&Path>,
) -> io::Result<Arc<ClientConfig>> {
    let verified = matches!(mode, ServerTls::VerifyCa | ServerTls::VerifyFull);
    let ca = ca.filter(|_| verified);
    let stamp = match ca {
        None => None,
        Some(path) => tokio::fs::metadata(path)
            .await
            .ok()
            .and_then(|meta| Some((meta.modified().ok()?, meta.len()))),
    };
    {
        let cache = CLIENT_CONFIGS.lock();
        let found = cache.iter().find(|c| {
            c.mode == mode && c.protocol == protocol && c.ca.as_deref() == ca && c.stamp == stamp
        });
        if let Some(found) = found {
            return Ok(Arc::clone(&found.config));
        }
    }
    let path = ca.map(Path::to_owned);
    let built = tokio::task::spawn_blocking(move || client_config(mode, path.as_deref())).await;
    let mut config = built
        .map_err(io::Error::other)?
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    if protocol == Protocol::MySql {
        config.alpn_protocols.clear();
    }
    let config = Arc::new(config);
    let mut cache = CLIENT_CONFIGS.lock();
    cache.retain(|c| c.mode != mode || c.protocol != protocol || c.ca.as_deref() != ca);
    cache.push(Cached {
        mode,
        protocol,
        ca: ca.map(Path::to_owned),
        stamp,
        config: Arc::clone(&config),
    });
    Ok(config)
}

/// What channel binding to the server's certificate means, on a connection that [`connect`] made.
pub fn server_end_point(stream: &Stream) -> Option<EndPoint> {
    match stream {
        Stream::TlsConnected(_) => end_point(stream.peer_certificate()?),
        Stream::Plain(_) | Stream::TlsAccepted(_) | Stream::Compressed(_) => None,
    }
}

/// A TLS error in words of our own; any other error as it is.
fn retold(error: io::Error, tell: impl Fn(&rustls::Error) -> String) -> io::Error {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner.map(tell) {
        Some(text) => io::Error::new(error.kind(), text),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Both sides of a handshake over a pipe.
    async fn pair(
        certificates: &Certificates,
        host: &str,
        mode: ServerTls,
        ca: Option<&Path>,
    ) -> (io::Result<Stream>, io::Result<Stream>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::join!(
            accept(certificates, near),
            connect(Stream::duplex(far), host, mode, ca)
        )
    }

    async fn accept(
        certificates: &Certificates,
        near: tokio::io::DuplexStream,
    ) -> io::Result<Stream> {
        let secured = certificates.accept(Stream::duplex(near)).await?;
        Ok(secured.stream)
    }

    #[tokio::test]
    async fn records_are_no_larger_than_postgresqls_own() {
        let dir = tempfile::tempdir().unwrap();
        let served = self_made(dir.path(), &[]);
        let (near, tap) = tokio::io::duplex(64 * 1024);
        let (relayed, far) = tokio::io::duplex(64 * 1024);
        let (mut from_server, mut to_server) = tokio::io::split(tap);
        let (mut from_client, mut to_client) = tokio::io::split(relayed);
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let seen = tokio::spawn(async move {
            let mut largest = 0;
            let mut header = [0; 5];
            while from_server.read_exact(&mut header).await.is_ok() {
                let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
                from_server.read_exact(&mut body).await.unwrap();
                largest = largest.max(body.len());
                to_client.write_all(&header).await.unwrap();
                to_client.write_all(&body).await.unwrap();
            }
            largest
        });
        let (near, far) = tokio::join!(
            accept(&served, near),
            connect(Stream::duplex(far), "localhost", ServerTls::Require, None)
        );
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        let sent = vec![7; 200_000];
        let mut told = vec![0; sent.len()];
        let (written, read) = tokio::join!(
            async {
                near.write_all(&sent).await?;
                near.flush().await
            },
            far.read_exact(&mut told)
        );
        written.unwrap();
        read.unwrap();
        drop((near, far));
        let largest = seen.await.unwrap();
        // Content type and tag come on top.
        assert!(
            (RECORD_MAX..RECORD_MAX + 64).contains(&largest),
            "{largest}"
        );
    }

    fn self_made(dir: &Path, names: &[String]) -> Certificates {
        let shown = Shown::SelfMade {
            state_dir: dir.to_owned(),
            dns_names: names.to_vec(),
        };
        let source = Source {
            shown,
            client_ca: None,
        };
        Certificates::read(&source).expect("made")
    }

    fn files(certificate: &Path, private_key: &Path, client_ca: Option<&Path>) -> Source {
        Source {
            shown: Shown::Files(vec![CertificateFiles {
                certificate: certificate.to_owned(),
                private_key: private_key.to_owned(),
            }]),
            client_ca: client_ca.map(Path::to_owned),
        }
    }

    /// What a reload does.
    fn reload(served: &Certificates) -> Result<(), TlsError> {
        let source = served.0.load().source.clone();
        served.install(Ready::read(&source)?);
        Ok(())
    }

    async fn refusal(
        certificates: &Certificates,
        host: &str,
        mode: ServerTls,
        ca: Option<&Path>,
    ) -> String {
        let (_, connected) = pair(certificates, host, mode, ca).await;
        connected.expect_err("must be refused").to_string()
    }

    async fn works(certificates: &Certificates, host: &str, mode: ServerTls, ca: Option<&Path>) {
        let (accepted, connected) = pair(certificates, host, mode, ca).await;
        let (mut near, mut far) = (accepted.expect("accepted"), connected.expect("connected"));
        far.write_all(b"hello").await.expect("written");
        far.flush().await.expect("flushed");
        let mut got = [0; 5];
        near.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"hello");
        assert_eq!(near.application_protocol(), Some(ALPN));
        let is_name = host.parse::<std::net::IpAddr>().is_err();
        assert_eq!(near.server_name(), is_name.then_some(host));
        assert!(near.is_tls() && far.is_tls());
    }

    #[tokio::test]
    async fn each_mode_checks_what_it_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = ["*.db.example.com".to_owned()];
        let ours = self_made(dir.path(), &names);
        let ca = ours.ca_path().expect("self-made");
        let other_dir = tempfile::tempdir().expect("a directory");
        let other = self_made(other_dir.path(), &[]);
        let other_ca = other.ca_path().expect("self-made");
        for mode in [ServerTls::Prefer, ServerTls::Require] {
            works(&ours, "elsewhere.example.org", mode, Some(&other_ca)).await;
        }
        works(
            &ours,
            "elsewhere.example.org",
            ServerTls::VerifyCa,
            Some(&ca),
        )
        .await;
        for host in ["localhost", "127.0.0.1", "shop.db.example.com"] {
            works(&ours, host, ServerTls::VerifyFull, Some(&ca)).await;
        }
        let text = refusal(
            &ours,
            "elsewhere.example.org",
            ServerTls::VerifyFull,
            Some(&ca),
        )
        .await;
        assert!(
            text.contains("name check") && text.contains("*.db.example.com"),
            "{text}"
        );
        for mode in [ServerTls::VerifyCa, ServerTls::VerifyFull] {
            let text = refusal(&ours, "localhost", mode, Some(&other_ca)).await;
            assert!(text.contains("chain check"), "{text}");
        }
        let text = refusal(&ours, "localhost", ServerTls::VerifyCa, Some(dir.path())).await;
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
    }

    #[tokio::test]
    async fn a_self_signed_certificate_may_be_its_own_ca() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("s.crt"), dir.path().join("s.key"));
        let pair = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["db.local".to_owned()]).expect("a name");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let write = |params: &rcgen::CertificateParams| {
            let made = params.self_signed(&pair).expect("signed");
            fs::write(&cert, made.pem()).expect("written");
        };
        write(&params);
        fs::write(&key, pair.serialize_pem()).expect("written");
        let served = Certificates::read(&files(&cert, &key, None)).expect("read");
        works(&served, "db.local", ServerTls::VerifyFull, Some(&cert)).await;
        let text = refusal(&served, "localhost", ServerTls::VerifyFull, Some(&cert)).await;
        assert!(text.contains("name check"), "{text}");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        write(&params);
        reload(&served).expect("read again");
        let text = refusal(&served, "db.local", ServerTls::VerifyCa, Some(&cert)).await;
        assert!(
            text.contains("expired"),
            "the changed CA file was read again: {text}"
        );
    }

    #[tokio::test]
    async fn case_17_a_reload_swaps_and_a_bad_one_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = self_made(dir.path(), &[]);
        let tls = dir.path().join("tls");
        let (cert, key) = (dir.path().join("c.crt"), dir.path().join("c.key"));
        let copy = |from: &Path| {
            fs::copy(from.join("server.crt"), &cert).expect("copied");
            fs::copy(from.join("server.key"), &key).expect("copied");
        };
        copy(&tls);
        let served = Certificates::read(&files(&cert, &key, None)).expect("read");
        let (live, _far) = pair(&served, "localhost", ServerTls::Require, None).await;
        let mut live = live.expect("accepted");
        fs::write(&cert, "nothing").expect("written");
        let text = reload(&served).expect_err("no certificate").to_string();
        assert!(text.contains("c.crt") && text.contains("no PEM"), "{text}");
        works(
            &served,
            "localhost",
            ServerTls::VerifyFull,
            ours.ca_path().as_deref(),
        )
        .await;
        let other_dir = tempfile::tempdir().expect("a directory");
        let other = self_made(other_dir.path(), &[]);
        fs::copy(other_dir.path().join("tls/server.crt"), &cert).expect("copied");
        let text = reload(&served).expect_err("another key").to_string();
        assert!(text.contains("can't be used with"), "{text}");
        copy(&other_dir.path().join("tls"));
        reload(&served).expect("a good pair");
        works(
            &served,
            "localhost",
            ServerTls::VerifyFull,
            other.ca_path().as_deref(),
        )
        .await;
        live.write_all(b"still here")
            .await
            .expect("a live connection goes on");
    }

    #[tokio::test]
    async fn garbage_is_no_tls() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = self_made(dir.path(), &[]);
        let (near, mut far) = tokio::io::duplex(1024);
        far.write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("written");
        let error = ours
            .accept(Stream::duplex(near))
            .await
            .expect_err("garbage");
        assert!(error.to_string().contains("not TLS"), "{error}");
    }
}
