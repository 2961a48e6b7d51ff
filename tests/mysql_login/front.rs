//! The client's side of log-ins as real clients see it: behind it a server connection and nothing but a copy of bytes.

use crate::server::{Server, log_in, run, soon};
use slackwater::auth::mysql::rsa::PrivateKey;
use slackwater::auth::mysql::{Credential, Password};
use slackwater::backend::Endpoint;
use slackwater::backend::mysql::connect::{ConnectError, Connected, Login, Request};
use slackwater::backend::mysql::exec::{self, ExecError, Outcome};
use slackwater::backend::mysql::offer::Offer;
use slackwater::backend::mysql::verifiers::{Passwords, Verifiers};
use slackwater::net::admission::{Admission, AdmissionLimits};
use slackwater::net::authentication::ClientCertificate;
use slackwater::net::mysql::handshake::HandshakeConfig;
use slackwater::net::mysql::login::{Accounts, Entry, LoggedIn, NotLoggedIn};
use slackwater::transport::socket::{Listener, bind};
use slackwater::transport::stream::Stream;
use slackwater::transport::tls::{Certificates, Shown, Source};
use slackwater::transport::{Address, ListenTls};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Asks as root.
struct Root(Endpoint);

impl Accounts for Root {
    fn name(&self) -> &'static str {
        "shop"
    }

    fn tells_address(&self) -> bool {
        false
    }

    async fn ask(&self, sql: &str) -> Result<Outcome, ExecError> {
        let secret = Credential::Password(Password::new(b""));
        let login = Login {
            endpoint: &self.0,
            socket: &crate::server::SOCKET,
            request: &Request::own(b"root", None),
            credential: Some(&secret),
            client: None,
            deadline: soon(),
        };
        exec::connect_and_query(&login, sql).await
    }

    fn report_trouble(&self) {}
}

/// A listener with one cluster behind it.
pub(crate) struct Front {
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
    shared: Arc<Shared>,
    accepts: tokio::task::JoinHandle<()>,
}

struct Shared {
    offer: Offer,
    config: HandshakeConfig,
    entries: Vec<Entry<Root>>,
    endpoint: Endpoint,
    ids: AtomicU32,
    admission: Arc<Admission>,
    /// Log-ins whose credential was a hash, and a password.
    kinds: [AtomicU32; 2],
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

impl Front {
    pub(crate) async fn start(server: &Server, root: &mut Connected, tls: ListenTls) -> Self {
        run(root, "DO 0").await;
        let dir = tempfile::tempdir().expect("a directory");
        let source = Source {
            shown: Shown::SelfMade {
                state_dir: dir.path().to_owned(),
                dns_names: Vec::new(),
            },
            client_ca: None,
        };
        let limits = AdmissionLimits {
            max_logins: 100,
            max_logins_per_address: 100,
            max_waiting: 100,
            max_failures_per_address: 0,
            failure_window: Duration::from_secs(1),
        };
        let shared = Arc::new(Shared {
            offer: root.offer.clone(),
            config: HandshakeConfig {
                tls,
                proxied: Vec::new(),
                certificates: Arc::new(Certificates::read(&source).expect("made")),
                mock_secret: [5; 32],
                rsa: Arc::new(PrivateKey::generate().expect("a key")),
            },
            entries: vec![Entry {
                cluster: Root(server.socket()),
                family: root.offer.family(),
                default: true,
                hostnames: Vec::new(),
                verifiers: Verifiers::server(),
                passwords: Passwords::default(),
                client_certificate: ClientCertificate::Off,
                thousands: AtomicU32::new(0),
            }],
            endpoint: server.socket(),
            ids: AtomicU32::new(70_000),
            admission: Arc::new(Admission::new(
                limits,
                slackwater::observe::Metrics::new().logins.clone(),
            )),
            kinds: [const { AtomicU32::new(0) }; 2],
        });
        let any = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let listener = bind(&any).await.expect("a free port");
        let Ok(Address::Tcp { port, .. }) = listener.local_address() else {
            panic!("TCP");
        };
        let accepts = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            port,
            dir,
            shared,
            accepts,
        }
    }

    /// How many log-ins brought a hash, and how many a password.
    pub(crate) fn kinds(&self) -> (u32, u32) {
        let [hash, password] = &self.shared.kinds;
        (
            hash.load(Ordering::Relaxed),
            password.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn ca(&self) -> String {
        self.dir.path().join("tls/ca.crt").display().to_string()
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>) {
    loop {
        let newcomer = listener.accept().await.expect("accepts");
        let stream = newcomer.settle(&crate::server::SOCKET).expect("a socket");
        tokio::spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(stream: Stream, shared: Arc<Shared>) {
    let peer = stream.peer_address().map(|a| a.ip());
    let pass = shared.admission.enter(peer, soon()).await.expect("a place");
    let id = shared.ids.fetch_add(1, Ordering::Relaxed);
    let done = slackwater::net::mysql::login::log_in(
        stream,
        pass,
        soon(),
        &shared.offer,
        id,
        &shared.entries,
        &shared.config,
    );
    let LoggedIn {
        arrival,
        credential,
        standing,
        ..
    } = match done.await {
        Ok(done) => done,
        Err(NotLoggedIn::Gone | NotLoggedIn::Client | NotLoggedIn::Server) => return,
    };
    let kind = usize::from(matches!(credential, Credential::Password(_)));
    shared.kinds[kind].fetch_add(1, Ordering::Relaxed);
    let request = Request {
        user: arrival.response.user.clone(),
        database: arrival.response.database.clone(),
        capabilities: arrival.capabilities,
        max_packet: arrival.response.max_packet,
        charset: arrival.response.charset,
        attributes: arrival.response.attributes.clone(),
    };
    let connected = match log_in(&shared.endpoint, &request, Some(&credential)).await {
        Ok(connected) => connected,
        Err(ConnectError::Server { payload, .. }) => return arrival.refuse_with(&payload).await,
        Err(error) => panic!("{error}"),
    };
    let Ok((mut client, buffered)) = arrival.welcome(connected.status, 0).await else {
        return;
    };
    let mut server = connected.stream;
    tokio::io::AsyncWriteExt::write_all(&mut server, &buffered)
        .await
        .expect("written");
    let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    drop(standing);
}
