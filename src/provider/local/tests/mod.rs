//! Real servers: made, adopted, resized, and everything that can go wrong with that.

pub(super) mod place;
mod standby;

use super::super::QueryError;
use super::process::POLL;
use super::*;
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use place::{Place, query};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const SERVICE_USER: &str = "slackwater";

impl LocalConfig {
    pub(super) fn for_tests() -> Self {
        Self {
            engine: Engine::Postgres,
            cluster: "test".to_owned(),
            data_dir: PathBuf::from("/nonexistent"),
            binaries: None,
            switch: Switch::Restart,
            standby: StandbyKeys::default(),
            memory_per_acu: 128 << 20,
            cpu_per_acu: 250,
            max_capacity: Capacity(16),
            max_server_connections: 20,
            service_user: SERVICE_USER.to_owned(),
            service_password: None,
        }
    }
}

async fn show(provider: &LocalProvider, setting: &str) -> String {
    let sql = format!("SELECT current_setting('{setting}')");
    let mut rows = provider
        .ask(&provider.data_dir().endpoint(), &sql)
        .await
        .unwrap();
    rows.remove(0).remove(0).unwrap()
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not in 30 s: {what}");
        tokio::time::sleep(POLL).await;
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the times of a restart are for people to see"
)]
pub(super) fn say(line: &str) {
    eprintln!("{line}");
}

/// Runs a future for so many polls and drops it where it then waits, as if the proxy ended there; what it came to, if it did.
pub(super) async fn polled<T>(future: impl Future<Output = T>, polls: u32) -> Option<T> {
    let mut future = Box::pin(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        left -= 1;
        match future.as_mut().poll(context) {
            std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}

pub(super) fn completed(cut_over: CutOver) -> Instance {
    match cut_over {
        CutOver::Completed(instance) => instance,
        other => panic!("not completed: {other:?}"),
    }
}

#[tokio::test]
async fn resized_up_and_down_and_adopted_by_the_next_proxy() {
    let place = Place::new();
    let provider = place.provider();
    let mut now = provider.start(Capacity(1)).await.unwrap();
    let first_pid = place.pid();
    assert_eq!(
        (now.capacity, show(&provider, "shared_buffers").await),
        (Capacity(1), "32MB".into())
    );
    assert_eq!(show(&provider, "max_connections").await, "30");
    // The wanted capacity of the second call is ignored: a server runs.
    let same = provider.start(Capacity(2)).await.unwrap();
    assert_eq!(same, now);
    let mut pids = vec![first_pid];
    let mut times = Vec::new();
    for to in [4, 1, 2, 2, 8, 1] {
        assert_eq!(
            provider.prepare(&now, Capacity(to)).await.unwrap(),
            SwitchKind::Barrier
        );
        let next = completed(provider.cut_over(&now, Capacity(to)).await);
        assert_ne!(next.identity.started_at, now.identity.started_at);
        assert_eq!(
            next.identity.system_identifier,
            now.identity.system_identifier
        );
        assert_eq!(next.capacity, Capacity(to));
        assert_eq!(
            show(&provider, "shared_buffers").await,
            format!("{}MB", 32 * to)
        );
        // Asked again, it is only told again.
        assert_eq!(completed(provider.cut_over(&now, Capacity(to)).await), next);
        pids.push(place.pid());
        times.push(provider.last_switch().unwrap());
        now = next;
    }
    assert_eq!(show(&provider, "max_connections").await, "30");
    pids.dedup();
    assert_eq!(pids.len(), 7);
    for times in times {
        say(&format!("stop + start + first query: {times}"));
    }
    let names: Vec<_> = provider
        .facts()
        .into_iter()
        .map(|f| (f.name, f.value))
        .collect();
    assert!(
        names.contains(&("shared_buffers".to_owned(), "32768kB".to_owned())),
        "{names:?}"
    );
    provider.state.lock().await.tidy().await;
    assert_eq!(provider.data_dir.intent().unwrap(), None);

    drop(provider);
    let provider = place.provider();
    let adopted = provider.start(Capacity(8)).await.unwrap();
    assert_eq!(adopted, now);
    let next = completed(provider.cut_over(&adopted, Capacity(2)).await);
    assert_eq!(next.capacity, Capacity(2));
    assert!(!pids.contains(&place.pid()));
}

#[tokio::test]
async fn what_would_fail_at_the_start_is_refused_while_the_old_server_serves() {
    let place = Place::new();
    let provider = place.provider();
    let now = provider.start(Capacity(1)).await.unwrap();
    let refused = async |why: &str, to: u32| {
        let error = provider
            .prepare(&now, Capacity(to))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(provider.start(Capacity(1)).await.unwrap(), now);
    };
    refused("paused", 0).await;
    refused("lower memory_per_acu", 1_000_000).await;

    let conf = place.pgdata().join("postgresql.conf");
    let good = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{good}\nwork_mem = lots\n")).unwrap();
    refused("work_mem", 2).await;
    fs::write(
        &conf,
        format!("{good}\nshared_preload_libraries = 'no_such_library'\n"),
    )
    .unwrap();
    refused("names `no_such_library`, which can't be loaded", 2).await;
    fs::write(&conf, &good).unwrap();

    let hba = place.pgdata().join("pg_hba.conf");
    let good = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("{good}\nlocal all all guesswork\n")).unwrap();
    refused("pg_hba.conf would not be read at a start: line", 2).await;
    fs::write(&hba, &good).unwrap();

    provider.prepare(&now, Capacity(2)).await.unwrap();
    let stale = completed(provider.cut_over(&now, Capacity(2)).await);
    let error = provider
        .prepare(&now, Capacity(4))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("restarted at") && stale != now, "{error}");
}

#[tokio::test]
async fn a_failed_start_goes_back_to_the_old_settings() {
    let place = Place::new();
    let provider = place.provider();
    let old = provider.start(Capacity(2)).await.unwrap();
    // 8 TiB of shared memory: no host maps that.
    let CutOver::KeptOld { instance, reason } = provider.cut_over(&old, Capacity(1_000_000)).await
    else {
        panic!("a server with 8 TiB")
    };
    assert!(reason.contains("shared memory"), "{reason}");
    assert_eq!(instance.capacity, Capacity(2));
    assert_ne!(instance.identity.started_at, old.identity.started_at);
    assert_eq!(show(&provider, "shared_buffers").await, "64MB");
    // Told again to a caller that did not hear it.
    let CutOver::KeptOld {
        instance: again, ..
    } = provider.cut_over(&old, Capacity(1_000_000)).await
    else {
        panic!("a second try")
    };
    assert_eq!(again, instance);

    // Neither the new nor the old settings: lost, and back once the cause is gone.
    let conf = place.pgdata().join("postgresql.conf");
    let good = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{good}\nwork_mem = lots\n")).unwrap();
    let CutOver::Lost { reason } = provider.cut_over(&instance, Capacity(1)).await else {
        panic!("started with a broken configuration")
    };
    assert!(
        reason.contains("work_mem") && reason.contains("as before"),
        "{reason}"
    );
    fs::write(&conf, good).unwrap();
    let now = completed(provider.cut_over(&instance, Capacity(1)).await);
    assert_eq!(now.capacity, Capacity(1));
}

#[tokio::test]
async fn a_stop_that_hangs_is_told_and_goes_on_later() {
    let place = Place::new();
    let mut provider = place.provider();
    provider.patience.stop = Duration::from_millis(50);
    let old = provider.start(Capacity(1)).await.unwrap();
    let pid = place.pid();
    place.signal(Signal::SIGSTOP);
    let CutOver::Lost { reason } = provider.cut_over(&old, Capacity(2)).await else {
        panic!("a stopped process stopped")
    };
    assert!(
        reason.contains(&format!("process {pid} has not stopped")),
        "{reason}"
    );
    assert_eq!(place.pid(), pid);
    place.signal(Signal::SIGCONT);
    provider.patience.stop = Duration::from_secs(30);
    let now = completed(provider.cut_over(&old, Capacity(2)).await);
    assert_eq!(now.capacity, Capacity(2));
}

#[tokio::test]
async fn an_interrupted_change_is_undone_at_the_next_start() {
    let place = Place::new();
    let provider = place.provider();
    let old = provider.start(Capacity(2)).await.unwrap();
    provider.prepare(&old, Capacity(4)).await.unwrap();
    // As if the proxy ended just after the signal.
    place.signal(Signal::SIGINT);
    drop(provider);
    let provider = place.provider();
    let now = provider.start(Capacity(8)).await.unwrap();
    assert_eq!(now.capacity, Capacity(2));
    assert_ne!(now.identity.started_at, old.identity.started_at);
    assert_eq!(provider.data_dir.intent().unwrap(), None);

    // As if it ended between Prepare and the signal: the running server is adopted.
    provider.prepare(&now, Capacity(4)).await.unwrap();
    drop(provider);
    let provider = place.provider();
    assert_eq!(provider.start(Capacity(8)).await.unwrap(), now);
    assert_eq!(provider.data_dir.intent().unwrap(), None);
}

#[tokio::test]
async fn a_killed_server_is_started_again_and_a_dropped_cut_over_goes_on() {
    let place = Place::new();
    let provider = place.provider();
    let old = provider.start(Capacity(1)).await.unwrap();
    let server = place.server().unwrap();
    place.signal(Signal::SIGKILL);
    until("it is gone", || !server.alive()).await;
    assert!(
        place.pgdata().join("postmaster.pid").exists(),
        "no stale pid file to test with"
    );
    let after_crash = provider.start(Capacity(2)).await.unwrap();
    assert_eq!(after_crash.capacity, Capacity(2));
    assert_ne!(after_crash.identity.started_at, old.identity.started_at);

    // The future is dropped as soon as the old process is gone, and after each further step.
    let before = place.server().unwrap();
    for polls in 1..40 {
        let mut cut_over = Box::pin(provider.cut_over(&after_crash, Capacity(4)));
        let mut left = polls;
        let stopped = std::future::poll_fn(|context| {
            left -= 1;
            match cut_over.as_mut().poll(context) {
                std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
                std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                std::task::Poll::Pending => std::task::Poll::Pending,
            }
        });
        if stopped.await.is_some() {
            break;
        }
    }
    let now = completed(provider.cut_over(&after_crash, Capacity(4)).await);
    assert_eq!(now.capacity, Capacity(4));
    assert!(!before.alive());
    let logged = fs::read_to_string(provider.data_dir.log()).unwrap();
    assert_eq!(
        logged.matches("received fast shutdown request").count(),
        1,
        "{logged}"
    );
}

#[tokio::test]
async fn servers_of_others_are_left_alone() {
    let place = Place::new();
    let provider = place.provider();
    provider.start(Capacity(1)).await.unwrap();
    let server = place.server().unwrap();
    place.signal(Signal::SIGINT);
    until("it is gone", || !server.alive()).await;
    // Started by hand, at another port.
    let mut settings = provider.scale.sizes(Capacity(1)).arguments();
    settings.push(format!("port={}", provider.data_dir.port() - 1));
    let foreign = postmaster::spawn(
        &place::postgres(&provider).install,
        &provider.data_dir,
        files::Home::First,
        &settings,
    )
    .unwrap();
    until("the pid file is there", || place.server() == Some(foreign)).await;
    let error = provider.start(Capacity(1)).await.unwrap_err().to_string();
    assert!(
        error.contains("another port or socket") && error.contains("pg_ctl"),
        "{error}"
    );
    assert!(foreign.alive());

    // A pid file whose number belongs to somebody else now.
    foreign.stop_fast().unwrap();
    assert!(foreign.gone_within(Duration::from_secs(30)).await);
    fs::write(
        place.pgdata().join("postmaster.pid"),
        format!("{}\n", std::process::id()),
    )
    .unwrap();
    assert_eq!(place.server(), None);
    fs::remove_file(place.pgdata().join("postmaster.pid")).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_replaced_and_a_wrong_service_password_told() {
    let place = Place::new();
    let provider = place.provider();
    let port = provider.data_dir.port();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let now = provider.start(Capacity(1)).await.unwrap();
    assert_ne!(provider.data_dir.port(), port);
    drop(taken);
    drop(provider);

    let config = LocalConfig {
        service_password: Some("wrong".to_owned()),
        ..place.config()
    };
    let error = Place::provider_with(config)
        .start(Capacity(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("service account's login was refused"),
        "{error}"
    );
    assert_eq!(place.provider().start(Capacity(1)).await.unwrap(), now);
}

#[tokio::test]
async fn users_and_databases_are_made_once() {
    let place = Place::new();
    let provider = place.provider();
    let at = provider.start(Capacity(1)).await.unwrap().endpoint;
    let user = "we\"ird \\user";
    for password in ["first", "se'c\\ond"] {
        provider.create_user(&at, user, password).await.unwrap();
        provider.create_database(&at, "app db", user).await.unwrap();
    }
    let rows = query(user, "se'c\\ond", "app db", &at, "SELECT current_user")
        .await
        .unwrap();
    assert_eq!(rows, [[Some(user.to_owned())]]);
    let wrong = query(user, "first", "app db", &at, "SELECT 1")
        .await
        .unwrap_err();
    assert!(matches!(wrong, QueryError::Auth(_)), "{wrong}");
    let logged = fs::read_to_string(provider.data_dir.log()).unwrap();
    assert!(!logged.contains("ond'"), "{logged}");
}

#[tokio::test]
async fn cpu_quota_follows_the_capacity_where_the_host_allows_it() {
    let place = Place::new();
    let provider = place.provider();
    let old = provider.start(Capacity(1)).await.unwrap();
    let shown = |name: &str| {
        provider
            .facts()
            .into_iter()
            .find(|f| f.name == name)
            .unwrap()
    };
    // A restart of the proxy applies it at once.
    provider.start(Capacity(1)).await.unwrap();
    match provider.cpu_group() {
        Err(why) => {
            let fact = shown("cpu_quota");
            assert!(
                fact.note.contains(why.as_str()) && fact.value.contains("all"),
                "{fact:?}"
            );
        }
        Ok(group) => {
            until("the quota begins", || {
                shown("cpu_quota").value == "0.250 CPU"
            })
            .await;
            assert!(
                matches!(group.shown().as_str(), "5000" | "5000 20000"),
                "{}",
                group.shown()
            );
            let members = fs::read_to_string(group.directory().join("cgroup.procs")).unwrap();
            assert!(members.lines().any(|l| l == place.pid().to_string()));
            assert!(members.lines().count() > 3, "the children too: {members}");
            // All CPUs while it restarts and just after.
            completed(provider.cut_over(&old, Capacity(2)).await);
            assert!(
                matches!(group.shown().as_str(), "-1" | "max 20000"),
                "{}",
                group.shown()
            );
            until("the new quota begins", || {
                shown("cpu_quota").value == "0.500 CPU"
            })
            .await;
        }
    }
}

#[tokio::test]
async fn servers_run_under_an_unprivileged_account_apart_from_us() {
    let place = Place::new();
    let provider = place.provider();
    provider.start(Capacity(1)).await.unwrap();
    let pid = place.pid();
    let owner = fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    assert_ne!(owner, 0);
    assert_eq!(fs::metadata(place.pgdata()).unwrap().uid(), owner);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(2)
        .unwrap()
        .to_owned();
    assert_eq!(group, pid.to_string(), "not a process group of its own");
    if !Uid::effective().is_root() {
        assert_eq!(owner, Uid::effective().as_raw());
    }
}

/// Root's tests are run once more as an ordinary user.
#[tokio::test]
async fn works_for_an_ordinary_user() {
    if !Uid::effective().is_root() {
        return;
    }
    let place = Place::new();
    let user = nix::unistd::User::from_name("postgres")
        .unwrap()
        .expect("Debian's PostgreSQL is installed");
    let program = place.directory.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let module = module_path!().split_once("::").unwrap().1;
    let output = tokio::process::Command::new(&program)
        .args(["--exact", "--nocapture"])
        .arg(format!(
            "{module}::resized_up_and_down_and_adopted_by_the_next_proxy"
        ))
        .arg(format!(
            "{module}::servers_run_under_an_unprivileged_account_apart_from_us"
        ))
        .arg(format!(
            "{module}::cpu_quota_follows_the_capacity_where_the_host_allows_it"
        ))
        .current_dir("/")
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("3 passed"),
        "{text}\n{errors}"
    );
}

#[tokio::test]
async fn safety_25_what_a_killed_server_left_behind_does_not_keep_the_next_one_down() {
    let place = Place::new();
    let provider = place.provider();
    let old = provider.start(Capacity(1)).await.unwrap();
    let server = place.server().unwrap();
    // One of its processes stands still, as one does that waits for what another had.
    let children = format!("/proc/{0}/task/{0}/children", server.pid());
    let children = fs::read_to_string(children).unwrap();
    let stuck = children.split_ascii_whitespace().next().unwrap();
    let stuck = Process::of(stuck.parse().unwrap()).unwrap();
    stuck.signal(Signal::SIGSTOP).unwrap();
    place.signal(Signal::SIGKILL);
    until("it is gone", || !server.alive()).await;
    assert!(stuck.alive());
    let next = provider.start(Capacity(2)).await.unwrap();
    assert_ne!(next.identity.started_at, old.identity.started_at);
    assert!(!stuck.alive());
}
