//! Networks that are cut in silence, in one direction or both: between the proxy and its server, and between a
//! client and the proxy. The proxy runs in a network namespace of its own, with one cable to each.

use crate::fault_kills::some_more;
use crate::support::ledger::Ledger;
use crate::support::postgres::Postgres;
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{SOON, sized, skipped, wait_until};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

/// Which frames get lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Those that the proxy sends.
    FromProxy,
    /// Those that are sent to it.
    ToProxy,
    /// All.
    Both,
}

const CUTS: [Cut; 3] = [Cut::FromProxy, Cut::ToProxy, Cut::Both];

/// A dead peer is noticed soon.
const IMPATIENT: &str = "keepalive = \"1s\"\ntcp_user_timeout = \"3s\"";

/// One cable: an end here and one in the proxy's namespace.
struct Cable {
    name: String,
    here: Ipv4Addr,
    there: Ipv4Addr,
}

/// The proxy's namespace, the thread's own, and two cables. Gone on drop.
struct Net {
    name: String,
    home: File,
    server: Cable,
    client: Cable,
}

fn ip(arguments: &str) -> bool {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output();
    output.is_ok_and(|o| o.status.success())
}

impl Net {
    /// `None`, and a word about it, where this can't be done.
    fn make() -> Option<Self> {
        let number = std::process::id() % 60_000;
        let name = format!("swt{number}");
        if !ip(&format!("netns add {name}")) {
            skipped("network namespaces need root and iproute2");
            return None;
        }
        let cable = |letter: char, at: u8| {
            let address =
                |last| Ipv4Addr::new(10, 70 + (number >> 8) as u8 % 100, number as u8, at + last);
            let cable = Cable {
                name: format!("sw{letter}{number}"),
                here: address(1),
                there: address(2),
            };
            let Cable {
                name: dev,
                here,
                there,
            } = &cable;
            for step in [
                format!("link add {dev} type veth peer name {dev}p"),
                format!("link set {dev}p netns {name}"),
                format!("addr add {here}/30 dev {dev}"),
                format!("link set {dev} up"),
                format!("-n {name} addr add {there}/30 dev {dev}p"),
                format!("-n {name} link set {dev}p up"),
                format!("-n {name} link set lo up"),
            ] {
                assert!(ip(&step), "ip {step}");
            }
            cable
        };
        Some(Self {
            home: File::open("/proc/thread-self/ns/net").unwrap(),
            server: cable('s', 0),
            client: cable('c', 4),
            name,
        })
    }

    /// From here on this thread's sockets and processes are in the proxy's namespace.
    fn enter(&self) {
        let there = File::open(format!("/run/netns/{}", self.name)).unwrap();
        setns(there, CloneFlags::CLONE_NEWNET).expect("as root");
    }

    /// Does something outside of it.
    fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.home, CloneFlags::CLONE_NEWNET).expect("as root");
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Sends frames to a network card that there is not, so that they are lost and nobody is told.
    fn cut(&self, cable: &Cable, cut: Cut) {
        let Cable {
            name: dev,
            here,
            there,
        } = cable;
        if cut != Cut::ToProxy {
            let step =
                format!("neigh replace {here} lladdr 02:00:00:00:00:01 dev {dev}p nud permanent");
            assert!(ip(&format!("-n {} {step}", self.name)), "{step}");
        }
        if cut != Cut::FromProxy {
            let step =
                format!("neigh replace {there} lladdr 02:00:00:00:00:01 dev {dev} nud permanent");
            self.outside(|| assert!(ip(&step), "{step}"));
        }
    }

    fn mend(&self, cable: &Cable) {
        let Cable {
            name: dev,
            here,
            there,
        } = cable;
        // The one that was not cut is not there to be deleted.
        ip(&format!("-n {} neigh del {here} dev {dev}p", self.name));
        self.outside(|| ip(&format!("neigh del {there} dev {dev}")));
    }

    fn proxy(&self, server: &Postgres, limits: &str) -> Proxy {
        self.scaling(server, limits, "")
    }

    fn scaling(&self, server: &Postgres, limits: &str, scaling: &str) -> Proxy {
        let options = Options {
            scaling: scaling.to_owned(),
            limits: format!("login_timeout = \"5s\"\n{limits}"),
            sessions: "snapshot_after = \"200ms\"".to_owned(),
            everywhere: true,
            ..Options::default()
        };
        let proxy = Proxy::unready(&format!("{}:{}", self.server.here, server.port()), &options);
        proxy.wait_ready();
        proxy
    }

    fn far_client(&self, proxy: &Proxy, name: &str) -> Client {
        let target = proxy.named(name).at(self.client.there);
        self.outside(|| Client::connect(&target).expect("the cable is whole"))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = setns(&self.home, CloneFlags::CLONE_NEWNET);
        for cable in [&self.server, &self.client] {
            ip(&format!("link del {}", cable.name));
        }
        ip(&format!("netns del {}", self.name));
    }
}

fn server() -> Postgres {
    let server = Postgres::start(&["listen_addresses=*"]);
    server.allow_network();
    server.run(&["create table t (a int)", "grant all on t to app"]);
    server
}

fn admin(server: &Postgres, net: &Net) -> Target {
    server.admin().at(net.server.here)
}

#[test]
fn fault_network_to_the_server_is_cut_for_a_second_and_nobody_notices() {
    let Some(net) = Net::make() else { return };
    let server = server();
    net.enter();
    let proxy = net.proxy(&server, "");
    let ledger = Ledger::start(&admin(&server, &net), &proxy.app(), 6);
    for cut in CUTS {
        let written = ledger.written();
        wait_until("rows are written", SOON, || ledger.written() > written + 50);
        net.cut(&net.server, cut);
        let until = Instant::now() + Duration::from_secs(1);
        wait_until("a second has passed", SOON, || Instant::now() > until);
        net.mend(&net.server);
    }
    let written = ledger.written();
    wait_until("rows are written", SOON, || ledger.written() > written + 50);
    ledger.stop().must_be_right(&admin(&server, &net));
}

#[test]
fn fault_network_to_the_server_is_cut_for_long_and_everybody_is_told_the_truth() {
    let Some(net) = Net::make() else { return };
    let server = server();
    net.enter();
    let proxy = net.proxy(&server, IMPATIENT);
    let mut rests = proxy.client("rests");
    for (round, cut) in CUTS.into_iter().enumerate() {
        rests.run(&format!("set app.round = '{round}'"));
        wait_until("it is probed", SOON, || {
            proxy
                .admin()
                .session("rests")
                .is_some_and(|s| s["movable"] == true)
        });
        let mut runs = proxy.client("runs");
        let mut open = proxy.client("open");
        open.run("set app.spoils = 'x'");
        open.run("begin");
        open.run("insert into t values (1)");
        runs.start("select pg_sleep(600)").unwrap();
        net.cut(&net.server, cut);
        let since = Instant::now();
        let error = runs.finish().unwrap_err().server();
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "08007")
        );
        let error = open.finish().unwrap_err().server();
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "57P02")
        );
        // A new client is told at its deadline.
        let error = Client::connect(&proxy.app()).unwrap_err().server();
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "57P03")
        );
        assert!(
            since.elapsed() < Duration::from_secs(40),
            "{cut:?}: bounded"
        );
        rests.start("show app.round").unwrap();
        if sized(false, true) {
            let until = since + Duration::from_secs(30);
            wait_until("half a minute has passed", SOON * 2, || {
                Instant::now() > until
            });
        }
        net.mend(&net.server);
        let rows = rests
            .finish()
            .expect("it was proven, and waits for its server");
        assert_eq!(
            rows[0][0].as_deref(),
            Some(round.to_string().as_str()),
            "{cut:?}"
        );
        wait_until(
            "no server connection is counted that is not there",
            SOON,
            || proxy.admin().cluster()["server_connections"].as_u64() <= Some(2),
        );
    }
}

/// Nobody mends it: each request that waits for the server is told so after `max_outage`, and the session is kept.
#[test]
fn fault_network_to_the_server_is_cut_for_ever_and_who_waits_is_told() {
    let Some(net) = Net::make() else { return };
    let server = server();
    net.enter();
    let proxy = net.scaling(&server, IMPATIENT, "max_outage = \"2s\"");
    let mut clients: Vec<Client> = ["one", "two", "three"].map(|n| proxy.client(n)).into();
    for client in &mut clients {
        client.run("set app.tenant = 'mine'");
    }
    for name in ["one", "two", "three"] {
        wait_until("it is probed", SOON, || {
            let session = proxy.admin().session(name);
            session.is_some_and(|s| s["movable"] == true)
        });
    }
    net.cut(&net.server, Cut::Both);
    wait_until("the proxy has noticed", SOON, || {
        let attached = |s: &serde_json::Value| s["attached"] == true;
        !proxy.admin().sessions().iter().any(attached)
    });
    for _ in 0..2 {
        let since = Instant::now();
        for client in &mut clients {
            client.start("show app.tenant").unwrap();
        }
        for client in &mut clients {
            let error = client.finish().unwrap_err().server();
            assert_eq!(
                (error.severity.as_str(), error.code.as_str()),
                ("ERROR", "57P03")
            );
            assert!(since.elapsed() >= Duration::from_millis(1500), "it waited");
        }
    }
    // For ever was not that long.
    net.mend(&net.server);
    for client in &mut clients {
        wait_until("it is served again", SOON, || {
            let rows = client.query("show app.tenant");
            rows.is_ok_and(|rows| rows[0][0].as_deref() == Some("mine"))
        });
    }
}

#[test]
fn fault_network_to_clients_is_cut_for_a_second_and_nobody_notices() {
    let Some(net) = Net::make() else { return };
    let server = server();
    net.enter();
    let proxy = net.proxy(&server, "");
    let clients = proxy.app().at(net.client.there);
    let ledger = net.outside(|| Ledger::start(&server.admin(), &clients, 6));
    for cut in CUTS {
        // (Each of them: who still waits to repeat what was lost would be cut off twice.)
        some_more(&ledger, 1);
        net.cut(&net.client, cut);
        let until = Instant::now() + Duration::from_secs(1);
        wait_until("a second has passed", SOON, || Instant::now() > until);
        net.mend(&net.client);
    }
    some_more(&ledger, 1);
    ledger.stop().must_be_right(&admin(&server, &net));
}

#[test]
fn fault_network_to_a_client_is_cut_and_what_it_held_is_free() {
    let Some(net) = Net::make() else { return };
    let server = server();
    net.enter();
    let proxy = net.proxy(&server, IMPATIENT);
    let mut watcher = Client::connect(&admin(&server, &net)).unwrap();
    for cut in CUTS {
        let mut rests = net.far_client(&proxy, "rests");
        rests.run("select pg_advisory_lock(1)");
        let mut runs = net.far_client(&proxy, "runs");
        runs.run("select pg_advisory_lock(2)");
        runs.start("insert into t select 5 from pg_sleep(600)")
            .unwrap();
        wait_until("it runs", SOON, || {
            watcher.value("select count(*) from pg_stat_activity where wait_event = 'PgSleep'")
                == "1"
        });
        net.cut(&net.client, cut);
        wait_until("the locks are free", SOON, || {
            watcher.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
        });
        wait_until("the statement was canceled", SOON, || {
            watcher.value("select count(*) from pg_stat_activity where wait_event = 'PgSleep'")
                == "0"
        });
        wait_until("no session is left", SOON, || {
            proxy.admin().sessions().is_empty()
        });
        net.mend(&net.client);
    }
    assert_eq!(watcher.value("select count(*) from t"), "0");
}

#[test]
fn fault_network_to_a_held_client_is_cut_and_its_request_is_never_sent() {
    let Some(net) = Net::make() else { return };
    let server = server();
    net.enter();
    let proxy = net.proxy(&server, IMPATIENT);
    let mut watcher = Client::connect(&admin(&server, &net)).unwrap();
    let mut client = net.far_client(&proxy, "held");
    client.run("select 1");
    let act = |what: &str| proxy.admin().act(what);
    act("hold");
    client.start("insert into t values (1)").unwrap();
    wait_until("it is held", SOON, || {
        proxy.admin().sessions_count("held") == 1
    });
    net.cut(&net.client, Cut::Both);
    wait_until("the proxy has noticed", SOON, || {
        proxy.admin().sessions().is_empty()
    });
    act("release");
    net.mend(&net.client);
    assert_eq!(watcher.value("select count(*) from t"), "0");
}
