//! Must show 7 of the third issue: thousands of connections that prove nothing, from other addresses than the good
//! clients'. What they may cost is memory up to a bound, which is asserted, and some latency, which is printed.

use crate::support::postgres::Postgres;
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::Client;
use crate::support::{SOON, sized, wait_until};
use parking_lot::Mutex;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

/// Whoever has proven nothing yet is served by threads of its own, so it can't keep sessions waiting for theirs.
#[test]
fn strangers_never_wake_the_threads_that_serve_sessions() {
    let server = Postgres::start(&[]);
    let proxy = Proxy::with(&server, &Options::default());
    let woken = |threads| wake_ups(proxy.process(), threads);
    wait_until("all threads rest", SOON, || woken("clients-") > 0);
    let (serving, logging_in) = (woken("clients-"), woken("logins-"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let hello = hello();
        for number in 0..KINDS * 4 {
            let stranger = connect(proxy.port(), number).await.unwrap();
            // Those that the proxy waits for are left alone after a moment.
            let moment = Duration::from_millis(50);
            let _ended = tokio::time::timeout(moment, annoy(stranger, number, &hello)).await;
        }
    });
    wait_until("strangers are served", SOON, || {
        woken("logins-") > logging_in + KINDS as u64
    });
    assert_eq!(woken("clients-"), serving);
    proxy.client("good").close();
    assert!(woken("clients-") > serving, "a session was served");
}

/// How often threads of a process with such names have gone to sleep.
fn wake_ups(pid: u32, threads: &str) -> u64 {
    let of_one = |dir: fs::DirEntry| {
        let status = fs::read_to_string(dir.path().join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.map(str::trim)
        };
        field("Name:")
            .filter(|name| name.starts_with(threads))
            .and_then(|_| field("voluntary_ctxt_switches:"))?
            .parse::<u64>()
            .ok()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let counts: Vec<u64> = tasks.map_while(Result::ok).filter_map(of_one).collect();
    assert!(!counts.is_empty(), "there are threads {threads}");
    counts.iter().sum()
}

#[expect(clippy::print_stdout, reason = "what was measured is told")]
fn flood(limits: &str) {
    let (connections, window) = sized(
        (1_000, Duration::from_millis(500)),
        (10_000, Duration::from_secs(3)),
    );
    let server = Postgres::start(&[]);
    let options = Options {
        limits: limits.to_owned(),
        ..Options::default()
    };
    let proxy = Proxy::with(&server, &options);
    let mut quiet = measure(&proxy, 3, window);
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
    let during = measure(&proxy, 10, window);
    let open = *median(&mut seen_open.lock());
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
    // The machine may have become slower or faster meanwhile.
    quiet.and(measure(&proxy, 3, window));
    let added = (most.load(Ordering::Relaxed) as u64).saturating_sub(memory_before);
    println!(
        "memory before {} MiB, strangers added {:.1} MiB",
        memory_before >> 20,
        added as f64 / f64::from(1 << 20)
    );
    for load in [Load::Paced, Load::Saturating] {
        let (mut quiet, mut during) = (quiet.of(load), during.of(load));
        let percentile = |of: &mut [Window], p: fn(&Window) -> Duration| {
            let mut all: Vec<Duration> = of.iter().map(p).collect();
            *median(&mut all)
        };
        let (before, now) = (
            percentile(&mut quiet, |w| w.p99),
            percentile(&mut during, |w| w.p99),
        );
        println!(
            "{load:?}: p99 of a query {before:?} without strangers, {now:?} with them: {:.2} times; median {:?} and {:?}",
            now.as_secs_f64() / before.as_secs_f64(),
            percentile(&mut quiet, |w| w.p50),
            percentile(&mut during, |w| w.p50),
        );
    }
    println!(
        "{} logins, the longest {:?} (without strangers {:?})",
        during.logins, during.longest_login, quiet.longest_login,
    );
    assert!(added <= MEMORY_MAX, "{} MiB were added", added >> 20);
    // Whoever keeps a place for long gives way, addresses that fail are shut out, and all come again after a moment.
    let at_least = connections / 4;
    assert!(open >= at_least, "only {open} strangers were there");
}

fn median<T: Ord>(values: &mut [T]) -> &T {
    values.sort_unstable();
    &values[values.len() / 2]
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

/// How good clients ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Each at a steady rate, whatever the answers take; a query's time counts from when it was due.
    Paced,
    /// The next query as soon as the last one is answered, which takes all of a small machine.
    Saturating,
}

/// Between two queries of a client under [`Load::Paced`].
const PACE: Duration = Duration::from_millis(1);

/// What good clients saw in one stretch of time.
#[derive(Debug, Clone, Copy)]
struct Window {
    p50: Duration,
    p99: Duration,
}

/// What good clients saw.
struct Seen {
    windows: Vec<(Load, Window)>,
    logins: usize,
    longest_login: Duration,
}

impl Seen {
    fn of(&self, load: Load) -> Vec<Window> {
        let windows = self.windows.iter().filter(|(of, _)| *of == load);
        windows.map(|(_, window)| *window).collect()
    }

    fn and(&mut self, more: Self) {
        self.windows.extend(more.windows);
        self.logins += more.logins;
        self.longest_login = self.longest_login.max(more.longest_login);
    }
}

/// Good clients at work: some that stay, under each load in turn, and one that logs in again and again. A query that fails
/// fails the test.
fn measure(proxy: &Proxy, rounds: usize, length: Duration) -> Seen {
    let mut clients: Vec<Client> = (0..GOOD_CLIENTS)
        .map(|n| proxy.client(&format!("good{n}")))
        .collect();
    let over = AtomicBool::new(false);
    let (mut logins, mut longest_login) = (0, Duration::ZERO);
    let mut windows = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while logins == 0 || !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let client =
                    Client::connect(&proxy.named("newcomer")).expect("good clients log in");
                longest_login = longest_login.max(began.elapsed());
                logins += 1;
                client.close();
                std::thread::park_timeout(Duration::from_millis(200));
            }
        });
        // Also when a query fails.
        let _over = Over(&over);
        for _ in 0..rounds {
            for load in [Load::Paced, Load::Saturating] {
                windows.push((load, look(&mut clients, load, length)));
            }
        }
    });
    Seen {
        windows,
        logins,
        longest_login,
    }
}

/// Sets what it holds when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn look(clients: &mut [Client], load: Load, length: Duration) -> Window {
    let end = Instant::now() + length;
    let ask = |client: &mut Client| {
        let (mut times, mut due) = (Vec::new(), Instant::now());
        while times.is_empty() || due < end {
            if load == Load::Saturating {
                due = Instant::now();
            }
            std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
            client.run("select 1");
            times.push(due.elapsed());
            due += PACE;
        }
        times
    };
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(move || ask(client)))
            .collect();
        let all = threads
            .into_iter()
            .map(|t| t.join().expect("no query failed"));
        all.flatten().collect()
    });
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    Window {
        p50: percentile(50),
        p99: percentile(99),
    }
}

/// Connections that prove nothing, kept at their number until the end, by a process of its own.
struct Strangers {
    over: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    again: Arc<AtomicUsize>,
    process: Child,
    listener: JoinHandle<()>,
}

/// Where the process of the strangers finds what to do: the proxy's port and their number.
const ORDER: &str = "SLACKWATER_TEST_STRANGERS";

/// Before each line of what the process tells.
const TOLD: &str = "open and again:";

impl Strangers {
    fn start(port: u16, count: usize) -> Self {
        let this = std::env::current_exe().expect("a test knows its own program");
        let mut process = Command::new("setsid")
            .arg(this)
            .args(["--exact", "strangers::of_a_machine_of_their_own"])
            .args(["--ignored", "--nocapture", "--test-threads", "1"])
            .env(ORDER, format!("{port} {count}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a test program runs");
        let over = Arc::new(AtomicBool::new(false));
        let (open, again) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (opened, came) = (Arc::clone(&open), Arc::clone(&again));
        let told = BufReader::new(process.stdout.take().expect("a pipe"));
        let listener = std::thread::spawn(move || {
            for line in told.lines().map_while(Result::ok) {
                let Some((_, numbers)) = line.split_once(TOLD) else {
                    continue;
                };
                let mut numbers = numbers.split_whitespace().map(|n| n.parse().unwrap());
                opened.store(numbers.next().unwrap(), Ordering::Relaxed);
                came.store(numbers.next().unwrap(), Ordering::Relaxed);
            }
        });
        Self {
            over,
            open,
            again,
            process,
            listener,
        }
    }

    fn stop(mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It ends with its input.
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success(), "the strangers");
        self.listener.join().unwrap();
    }
}

/// What the process of the strangers runs.
#[test]
#[ignore = "a part of the tests of strangers"]
#[expect(clippy::print_stdout, reason = "the test that started it listens")]
fn of_a_machine_of_their_own() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let (port, count) = order.split_once(' ').unwrap();
    let (port, count): (u16, usize) = (port.parse().unwrap(), count.parse().unwrap());
    let _stepped_back = StepBack::new();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    std::thread::spawn(move || {
        let _ended = std::io::stdin().read_to_end(&mut Vec::new());
        over.store(true, Ordering::Relaxed);
    });
    let (open, again) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let hello: Arc<[u8]> = hello().into();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut comers = 0..count;
        while !is_over.load(Ordering::Relaxed) {
            // The listen queue is finite.
            for number in comers.by_ref().take(200) {
                let (open, again) = (Arc::clone(&open), Arc::clone(&again));
                let hello = Arc::clone(&hello);
                tokio::spawn(async move {
                    loop {
                        if let Ok(stream) = connect(port, number).await {
                            open.fetch_add(1, Ordering::Relaxed);
                            let _ended = annoy(stream, number, &hello).await;
                            open.fetch_sub(1, Ordering::Relaxed);
                        }
                        again.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(AGAIN).await;
                    }
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (open, again) = (open.load(Ordering::Relaxed), again.load(Ordering::Relaxed));
            println!("{TOLD} {open} {again}");
        }
    });
}

/// Strangers are on machines of their own, so what they do takes no processor from the good clients: their process
/// runs only when nobody else wants to. Until it is dropped.
struct StepBack(Option<PathBuf>);

impl StepBack {
    fn new() -> Self {
        let process = std::process::id().to_string();
        let idle = Command::new("chrt")
            .args(["--all-tasks", "--idle", "--pid", "0", &process])
            .output();
        assert!(idle.is_ok_and(|o| o.status.success()), "chrt");
        // The system shares the processors among sessions of processes first, or among control groups, and what was said
        // above counts only within one.
        let hierarchies = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"];
        let group = hierarchies.into_iter().find_map(|hierarchy| {
            let group = Path::new(hierarchy).join(format!("slackwater-test-{process}"));
            fs::create_dir(&group).ok()?;
            let idle = fs::write(group.join("cpu.idle"), "1");
            if idle
                .and_then(|()| fs::write(group.join("cgroup.procs"), &process))
                .is_ok()
            {
                return Some(group);
            }
            fs::remove_dir(&group).unwrap();
            None
        });
        if group.is_none() {
            // Without control groups the nice value of a session can be had; the process is the only one of its own.
            let _ = fs::write("/proc/self/autogroup", "19");
        }
        Self(group)
    }
}

impl Drop for StepBack {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            let all = group.with_file_name("cgroup.procs");
            fs::write(all, std::process::id().to_string()).unwrap();
            fs::remove_dir(group).unwrap();
        }
    }
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
