//! Must show 8: drivers that people use, over TLS (verify-full) and SCRAM, work through swaps.

use crate::support::postgres::{APP, Postgres};
use crate::support::proxy::Proxy;
use crate::support::{SOON, sized, wait_for};
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

#[test]
fn ms8_psycopg_sync() {
    python("psycopg_sync.py");
}

#[test]
fn ms8_psycopg_async() {
    python("psycopg_async.py");
}

#[test]
fn ms8_psycopg_pipeline() {
    python("psycopg_pipeline.py");
}

#[test]
fn ms8_asyncpg() {
    python("asyncpg_work.py");
}

#[test]
fn ms8_node_postgres() {
    script(Path::new("node"), "node_work.js");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn python(name: &str) {
    script(&root().join("target/drivers/venv/bin/python"), name);
}

/// Runs a driver's script beside swaps. It prints `server N` whenever another server process answers it, and
/// `right` at its end, after it compared the table with what it was told.
fn script(interpreter: &Path, name: &str) {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut work = Work::start(interpreter, name, proxy.port(), &proxy.ca());
    work.next_server();
    for _ in 0..sized(5, 10) {
        proxy.admin().swap();
        work.next_server();
    }
    work.must_be_right();
}

#[test]
fn ms8_scripts_are_right_about_postgresql() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut server = Postgres::start(&[]);
    server.stop();
    server.turn_on_tls(&certificate, &key);
    server.boot();
    for name in [
        "psycopg_sync.py",
        "psycopg_async.py",
        "psycopg_pipeline.py",
        "asyncpg_work.py",
        "node_work.js",
    ] {
        server.run(&["drop table if exists work", "drop type if exists mood"]);
        let venv = root().join("target/drivers/venv/bin/python");
        let node = name == "node_work.js";
        let interpreter = if node { PathBuf::from("node") } else { venv };
        let mut work = Work::start(&interpreter, name, server.port(), &certificate);
        work.next_server();
        work.must_be_right();
    }
}

/// A driver's script at work.
struct Work {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Work {
    fn start(interpreter: &Path, name: &str, port: u16, ca: &Path) -> Self {
        let mut child = Command::new(interpreter)
            .arg(root().join("tests/drivers").join(name))
            .env("NODE_PATH", root().join("target/drivers/node_modules"))
            .env("PYTHONUNBUFFERED", "1")
            .env("WORK_HOST", "localhost")
            .env("WORK_PORT", port.to_string())
            .env("WORK_USER", APP.0)
            .env("WORK_PASSWORD", APP.1)
            .env("WORK_DATABASE", "app")
            .env("WORK_CA", ca)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e} (run `make setup`)", interpreter.display()));
        let (sender, lines) = mpsc::sync_channel(1024);
        let output = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        match self.lines.recv_timeout(SOON) {
            Ok(line) => line,
            Err(e) => panic!("nothing new from the driver ({e}): {}", self.complaint()),
        }
    }

    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = errors.read_to_string(&mut text);
        }
        text
    }

    fn next_server(&mut self) {
        let line = self.line();
        assert!(line.starts_with("server "), "{line}");
    }

    fn must_be_right(&mut self) {
        drop(self.child.stdin.take());
        let line = self.line();
        assert_eq!(line, "right", "{}", self.complaint());
        assert!(self.child.wait().unwrap().success(), "{}", self.complaint());
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ms8_tokio_postgres() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ca = wait_for("the CA's certificate", SOON, || {
        proxy.ca().exists().then(|| proxy.ca())
    });
    runtime.block_on(async {
        let mut config = tokio_postgres::Config::new();
        config
            .host("localhost")
            .port(proxy.port())
            .user(APP.0)
            .password(APP.1)
            .dbname("app");
        config.ssl_mode(tokio_postgres::config::SslMode::Require);
        let (mut client, connection) = config
            .connect(Tls::new(&ca))
            .await
            .expect("logs in over TLS");
        let connection = tokio::spawn(connection);
        client
            .batch_execute("create table work (n int)")
            .await
            .unwrap();
        let insert = client
            .prepare("insert into work values ($1)")
            .await
            .unwrap();
        let pid = client.prepare("select pg_backend_pid()").await.unwrap();
        let mut last = 0_i32;
        let mut written = 0_i32;
        for _ in 0..sized(5, 10) {
            for _ in 0..20 {
                let (a, b): (Values<'_>, Values<'_>) = ([&written], [&(written + 1)]);
                let both = futures_util::future::join(
                    client.execute(&insert, &a),
                    client.execute(&insert, &b),
                );
                let (first, second) = both.await;
                assert_eq!((first.unwrap(), second.unwrap()), (1, 1));
                written += 2;
            }
            let transaction = client.transaction().await.unwrap();
            transaction.execute(&insert, &[&written]).await.unwrap();
            transaction.commit().await.unwrap();
            written += 1;
            let process: i32 = client.query_one(&pid, &[]).await.unwrap().get(0);
            assert_ne!(process, last, "another server process after each swap");
            last = process;
            let admin = proxy.admin();
            tokio::task::spawn_blocking(move || admin.swap())
                .await
                .unwrap();
        }
        let row = client
            .query_one("select count(*), count(distinct n) from work", &[])
            .await
            .unwrap();
        let wanted = i64::from(written);
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, i64>(1)),
            (wanted, wanted)
        );
        drop(client);
        connection.await.unwrap().expect("the connection ends well");
    });
}

/// The only value of a statement.
type Values<'a> = [&'a (dyn tokio_postgres::types::ToSql + Sync); 1];

/// TLS for tokio-postgres that checks chain and host name.
#[derive(Clone)]
struct Tls(Arc<ClientConfig>);

impl Tls {
    fn new(ca: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_file_iter(ca).expect("the CA's certificate is readable")
        {
            roots.add(certificate.unwrap()).unwrap();
        }
        Self(Arc::new(
            ClientConfig::builder()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        ))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Secured<S>;
    type TlsConnect = Named;
    type Error = tokio_rustls::rustls::pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Named, Self::Error> {
        Ok(Named(
            TlsConnector::from(Arc::clone(&self.0)),
            ServerName::try_from(domain.to_owned())?,
        ))
    }
}

/// TLS towards one name.
struct Named(TlsConnector, ServerName<'static>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Named {
    type Stream = Secured<S>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Secured<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { Ok(Secured(self.0.connect(self.1, stream).await?)) })
    }
}

/// A TLS stream that offers no channel binding.
struct Secured<S>(TlsStream<S>);

impl<S> tokio_postgres::tls::TlsStream for Secured<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
