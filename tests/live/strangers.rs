//! Must show 7 of the third issue: thousands of connections that prove nothing, from other addresses than the good
//! clients'. What they may cost is memory up to a bound, which is asserted, and some latency, which is printed.

use crate::support::postgres::Postgres;
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Client;
use crate::support::{SOON, sized, wait_until};
use parking_lot::Mutex;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

/// What strangers may add to the proxy's memory.
const MEMORY_MAX: u64 = 100 << 20;

/// How long a stranger waits before it comes again.
const AGAIN: Duration = Duration::from_secs(1);

const GOOD_CLIENTS: usize = 4;

#[test]
fn i3_ms7_strangers_cost_bounded_memory_and_keep_nobody_out() {
    flood("");
}

#[test]
fn i3_ms7_strangers_are_no_worse_without_a_limit_of_failures() {
    flood("max_login_failures_per_address = 0");
}

#[expect(clippy::print_stdout, reason = "what was measured is told")]
fn flood(limits: &str) {
    let (connections, length) = sized(
        (1_000, Duration::from_secs(6)),
        (10_000, Duration::from_secs(60)),
    );
    let server = Postgres::start(&[]);
    let options = Options {
        limits: limits.to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let before = measure(&proxy, length.min(Duration::from_secs(15)));
    let memory_before = resident(&proxy);

    let strangers = Strangers::start(proxy.port(), connections);
    let (most, seen_open) = (
        Arc::<AtomicUsize>::default(),
        Arc::<Mutex<Vec<usize>>>::default(),
    );
    wait_until("the strangers are there", SOON * 2, || {
        strangers.open.load(Ordering::Relaxed) >= connections / 2
    });
    let watch = {
        let (pid, most) = (proxy.process(), Arc::clone(&most));
        let (open, seen_open) = (Arc::clone(&strangers.open), Arc::clone(&seen_open));
        let over = Arc::clone(&strangers.over);
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident_of(pid) as usize, Ordering::Relaxed);
                seen_open.lock().push(open.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(100));
            }
        })
    };
    let during = measure(&proxy, length);
    let open = median(&seen_open.lock());
    let admin = proxy.admin();
    let metric = |name: &str, label: &str| admin.metric(name, label);
    println!(
        "{open} strangers open, {} came again; in progress {}, waiting {}; refused: full {}, slow {}, failures {}",
        strangers.again.load(Ordering::Relaxed),
        metric("slackwater_logins", "state=\"in_progress\""),
        metric("slackwater_logins", "state=\"waiting\""),
        metric("slackwater_logins_refused_total", "reason=\"full\""),
        metric("slackwater_logins_refused_total", "reason=\"slow\""),
        metric(
            "slackwater_logins_refused_total",
            "reason=\"address_failures\""
        ),
    );
    strangers.stop();
    watch.join().unwrap();
    let added = (most.load(Ordering::Relaxed) as u64).saturating_sub(memory_before);
    println!(
        "memory before {} MiB, strangers added {:.1} MiB",
        memory_before >> 20,
        added as f64 / f64::from(1 << 20)
    );
    println!(
        "p99 of a query: {:?} before, {:?} during: {:.2} times; median {:?} and {:?}; {} logins, the longest {:?} (before {:?})",
        before.percentile(99),
        during.percentile(99),
        during.percentile(99).as_secs_f64() / before.percentile(99).as_secs_f64(),
        before.percentile(50),
        during.percentile(50),
        during.logins,
        during.longest_login,
        before.longest_login,
    );
    assert!(added <= MEMORY_MAX, "{} MiB were added", added >> 20);
    // Whoever keeps a place for long gives way, addresses that fail are shut out, and all come again after a moment.
    let at_least = connections / 4;
    assert!(open >= at_least, "only {open} strangers were there");
}

fn median(values: &[usize]) -> usize {
    let mut values = values.to_vec();
    values.sort_unstable();
    values[values.len() / 2]
}

fn resident(proxy: &Proxy) -> u64 {
    resident_of(proxy.process())
}

/// Resident memory of a process, in bytes.
fn resident_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

/// What good clients saw.
struct Seen {
    /// Times of queries, ascending.
    queries: Vec<Duration>,
    logins: usize,
    longest_login: Duration,
}

impl Seen {
    fn percentile(&self, percent: usize) -> Duration {
        self.queries[(self.queries.len() - 1) * percent / 100]
    }
}

/// Good clients at work: some that stay, and one that logs in again and again. A query that fails fails the test.
fn measure(proxy: &Proxy, length: Duration) -> Seen {
    let clients: Vec<Client> = (0..GOOD_CLIENTS)
        .map(|n| proxy.client(&format!("good{n}")))
        .collect();
    let end = Instant::now() + length;
    let work = |mut client: Client| {
        std::thread::spawn(move || {
            let mut times = Vec::new();
            while times.is_empty() || Instant::now() < end {
                let began = Instant::now();
                client.run("select 1");
                times.push(began.elapsed());
            }
            times
        })
    };
    let workers: Vec<JoinHandle<Vec<Duration>>> = clients.into_iter().map(work).collect();
    let (mut logins, mut longest_login) = (0, Duration::ZERO);
    while logins == 0 || Instant::now() < end {
        let began = Instant::now();
        let client = Client::connect(&proxy.named("newcomer")).expect("good clients log in");
        longest_login = longest_login.max(began.elapsed());
        logins += 1;
        client.close();
        std::thread::park_timeout(Duration::from_millis(200));
    }
    let mut queries: Vec<Duration> = workers
        .into_iter()
        .flat_map(|w| w.join().expect("no query failed"))
        .collect();
    queries.sort_unstable();
    Seen {
        queries,
        logins,
        longest_login,
    }
}

/// Connections that prove nothing, kept at their number until the end.
struct Strangers {
    over: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    again: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Strangers {
    fn start(port: u16, count: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (open, again) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (is_over, opened, came) = (Arc::clone(&over), Arc::clone(&open), Arc::clone(&again));
        let thread = std::thread::spawn(move || {
            step_back();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let hello: Arc<[u8]> = hello().into();
                for number in 0..count {
                    let (opened, came, hello) =
                        (Arc::clone(&opened), Arc::clone(&came), Arc::clone(&hello));
                    tokio::spawn(async move {
                        loop {
                            if let Ok(stream) = connect(port, number).await {
                                opened.fetch_add(1, Ordering::Relaxed);
                                let _ended = annoy(stream, number, &hello).await;
                                opened.fetch_sub(1, Ordering::Relaxed);
                            }
                            came.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(AGAIN).await;
                        }
                    });
                    // The listen queue is finite.
                    if number % 50 == 0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                while !is_over.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        Self {
            over,
            open,
            again,
            thread,
        }
    }

    fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Strangers are on machines of their own, so what they do takes no processor from the good clients: their thread
/// runs only when nobody else wants to.
fn step_back() {
    let thread = nix::unistd::gettid().to_string();
    let output = Command::new("renice")
        .args(["-n", "19", "-p", &thread])
        .output();
    assert!(output.is_ok_and(|o| o.status.success()), "renice");
}

/// Each kind has eight addresses of its own, so that one kind's failures do not shut out the others.
async fn connect(port: u16, number: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let (kind, address) = (number % KINDS, number / KINDS % 8);
    socket.bind(SocketAddr::from((
        [127, 0, kind as u8 + 1, address as u8 + 1],
        0,
    )))?;
    socket
        .connect(SocketAddr::from(([127, 0, 0, 1], port)))
        .await
}

const KINDS: usize = 6;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// One stranger of its kind, until it is hung up on.
async fn annoy(mut stream: TcpStream, number: usize, hello: &[u8]) -> std::io::Result<()> {
    match number % KINDS {
        // Slow: a start-up packet byte by byte.
        0 => {
            let packet = start_up(200);
            for byte in packet {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        // Huge: all that a start-up packet may have, but for its last byte.
        1 => {
            let packet = start_up(10_000);
            stream.write_all(&packet[..packet.len() - 1]).await?;
        }
        // Garbage.
        2 => {
            let noise: Vec<u8> = (0..4096_usize)
                .map(|n| (n * 31 + number) as u8 | 0x80)
                .collect();
            stream.write_all(&noise).await?;
        }
        // Half TLS: asked for, opened, and never finished.
        3 => {
            stream.write_all(&SSL_REQUEST).await?;
            stream.read_exact(&mut [0; 1]).await?;
            stream.write_all(hello).await?;
        }
        // A record of TLS that never ends.
        4 => {
            stream
                .write_all(&[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb])
                .await?;
            stream.write_all(&[7; 12_000]).await?;
        }
        // A user that nobody knows, with a proof that never ends.
        _ => {
            stream.write_all(&start_up(100)).await?;
            stream.read_u8().await?;
            stream.write_all(&[b'p', 0, 0, 4, 0]).await?;
            stream.write_all(&[7; 900]).await?;
        }
    }
    let mut scrap = [0; 512];
    while stream.read(&mut scrap).await? > 0 {}
    Ok(())
}

/// A start-up packet of so many bytes.
fn start_up(length: usize) -> Vec<u8> {
    let mut packet = (length as u32).to_be_bytes().to_vec();
    packet.extend([0, 3, 0, 0]);
    packet.extend(b"user\0stranger\0application_name\0");
    packet.resize(length - 2, b'a');
    packet.extend([0, 0]);
    packet
}

/// The first message of a TLS client.
fn hello() -> Vec<u8> {
    let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    connection.write_tls(&mut out).unwrap();
    out
}
