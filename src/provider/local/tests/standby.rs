//! Real servers: a standby takes over, and everything that can go wrong with that.

use super::super::files::Home;
use super::place::Place;
use super::*;

fn place() -> (Place, LocalConfig) {
    let place = Place::new();
    let config = LocalConfig {
        switch: Switch::Standby,
        standby: StandbyKeys {
            stop: Duration::from_secs(10),
            ..StandbyKeys::default()
        },
        ..place.config()
    };
    (place, config)
}

async fn sql(provider: &LocalProvider, sql: &str) -> String {
    let rows = provider
        .ask(&provider.data_dir().endpoint(), sql)
        .await
        .unwrap();
    rows.into_iter()
        .flatten()
        .flatten()
        .next()
        .unwrap_or_default()
}

/// Writes through the primary; the server's process that took it.
async fn write(provider: &LocalProvider, n: u32) {
    sql(provider, &format!("INSERT INTO t VALUES ({n})")).await;
}

async fn written(provider: &LocalProvider) -> String {
    sql(
        provider,
        "SELECT count(*) || ' ' || count(DISTINCT n) FROM t",
    )
    .await
}

/// Exactly one of both homes can take a write.
async fn one_writer(provider: &LocalProvider) {
    let mut writers = 0;
    for home in [Home::First, Home::Second] {
        let endpoint = provider.data_dir.endpoint_of(home);
        let answer = provider
            .query
            .query(&endpoint, "SELECT pg_is_in_recovery()::text")
            .await;
        if matches!(&answer, Ok(rows) if rows[0][0].as_deref() == Some("false")) {
            assert_eq!(home, provider.data_dir.primary());
            writers += 1;
        }
    }
    assert_eq!(writers, 1);
}

#[tokio::test]
async fn safety_19_a_standby_takes_over_there_and_back() {
    let (_place, config) = place();
    let provider = Place::provider_with(config.clone());
    let mut now = provider.start(Capacity(1)).await.unwrap();
    sql(&provider, "CREATE TABLE t (n int)").await;
    for (n, to) in [(1, 4), (2, 1), (3, 1), (4, 2)] {
        write(&provider, n).await;
        assert_eq!(
            provider.prepare(&now, Capacity(to)).await.unwrap(),
            SwitchKind::Barrier
        );
        write(&provider, n).await;
        let old = provider.data_dir.primary();
        let next = completed(provider.cut_over(&now, Capacity(to)).await);
        assert_eq!(next.capacity, Capacity(to));
        assert_ne!(next.endpoint, now.endpoint);
        assert_ne!(next.identity.started_at, now.identity.started_at);
        assert_eq!(
            show(&provider, "shared_buffers").await,
            format!("{}MB", 32 * to)
        );
        // The largest capacity's: 16 ACU of 128 MiB at 16 MiB each.
        assert_eq!(show(&provider, "max_connections").await, "128");
        assert_eq!(written(&provider).await, format!("{} {n}", 2 * n));
        assert!(fence::is_standby(&provider.data_dir, old));
        // Told again to a caller that did not hear it.
        assert_eq!(completed(provider.cut_over(&now, Capacity(to)).await), next);
        say(&format!(
            "stop + proof + promotion: {}",
            provider.shown.lock().promotion.unwrap()
        ));
        now = next;
    }
    one_writer(&provider).await;
    provider.state.lock().await.tidy().await;
    assert_eq!(provider.data_dir.intent().unwrap(), None);
    let facts: Vec<_> = provider.facts().into_iter().map(|f| f.name).collect();
    for name in ["standby", "standby_disk", "standby_made_in", "last_switch"] {
        assert!(facts.iter().any(|f| f == name), "{facts:?}");
    }

    let provider = next_proxy(provider, &config).await;
    assert_eq!(provider.start(Capacity(8)).await.unwrap(), now);
    one_writer(&provider).await;
}

/// Ends this proxy. What it left behind in other threads is over before the lock of the directory is let go.
async fn next_proxy(provider: LocalProvider, config: &LocalConfig) -> LocalProvider {
    drop(provider);
    until("the directory is free", || DataDir::open(config).is_ok()).await;
    Place::provider_with(config.clone())
}

/// The future is dropped at every place at which it waits, as if the proxy ended there, and the next proxy
/// finds what there is.
#[tokio::test]
async fn safety_25_a_proxy_that_ends_in_any_step_leaves_one_writer_with_everything() {
    let (_place, config) = place();
    let mut provider = Place::provider_with(config.clone());
    let mut now = provider.start(Capacity(1)).await.unwrap();
    sql(&provider, "CREATE TABLE t (n int)").await;
    let (mut undone, mut finished) = (0, 0);
    let mut polls = 1;
    for n in 1.. {
        let to = Capacity(if now.capacity == Capacity(1) { 2 } else { 1 });
        provider.prepare(&now, to).await.unwrap();
        write(&provider, n).await;
        let done = polled(provider.cut_over(&now, to), polls).await;
        provider = next_proxy(provider, &config).await;
        let next = provider.start(Capacity(8)).await.unwrap();
        one_writer(&provider).await;
        assert_eq!(
            written(&provider).await,
            format!("{n} {n}"),
            "after {polls} polls"
        );
        if next.capacity == to {
            finished += 1;
        } else {
            assert_eq!(next.capacity, now.capacity);
            undone += 1;
        }
        now = next;
        if done.is_some() {
            break;
        }
        // Most polls wait for the old server's end.
        polls += if polls < 8 { 1 } else { 7 };
    }
    say(&format!(
        "{undone} undone, {finished} finished, {polls} polls"
    ));
    assert!(undone > 0 && finished > 0);
}

#[tokio::test]
async fn safety_22_a_standby_behind_the_end_of_the_log_is_never_promoted() {
    let (_place, config) = place();
    let provider = Place::provider_with(config);
    let now = provider.start(Capacity(1)).await.unwrap();
    sql(&provider, "CREATE TABLE t (n int)").await;
    provider.prepare(&now, Capacity(2)).await.unwrap();
    // The standby receives and does not replay; the patience is short.
    let standby = provider.data_dir.endpoint_of(Home::Second);
    provider
        .ask(&standby, "SELECT pg_wal_replay_pause()")
        .await
        .unwrap();
    write(&provider, 1).await;
    let mut provider = provider;
    provider.patience.replay = Duration::from_millis(200);
    let CutOver::KeptOld { instance, reason } = provider.cut_over(&now, Capacity(2)).await else {
        panic!("promoted")
    };
    assert!(reason.contains("has replayed the log up to"), "{reason}");
    assert_eq!(instance.capacity, Capacity(1));
    assert_eq!(provider.data_dir.primary(), Home::First);
    assert_eq!(written(&provider).await, "1 1");
    write(&provider, 2).await;

    // A server that crashes is started again where it was, whatever its standby has.
    let server = postmaster::find(&provider.data_dir.data())
        .unwrap()
        .unwrap()
        .0;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(server.pid()).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    until("it is gone", || !server.alive()).await;
    let again = provider.start(Capacity(1)).await.unwrap();
    assert_eq!(provider.data_dir.primary(), Home::First);
    assert_eq!(again.capacity, Capacity(1));
    assert_eq!(written(&provider).await, "2 2");
    // Crashed in between: no clean end, no promotion.
    provider.prepare(&again, Capacity(2)).await.unwrap();
    let server = postmaster::find(&provider.data_dir.data())
        .unwrap()
        .unwrap()
        .0;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(server.pid()).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    until("it is gone", || !server.alive()).await;
    let CutOver::KeptOld { reason, .. } = provider.cut_over(&again, Capacity(2)).await else {
        panic!("promoted")
    };
    assert!(reason.contains("did not stop cleanly"), "{reason}");
    assert_eq!(written(&provider).await, "2 2");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story")]
async fn safety_23_a_standby_that_cannot_be_promoted_leads_back_or_forward() {
    let (_place, config) = place();
    let provider = Place::provider_with(config);
    let now = provider.start(Capacity(1)).await.unwrap();
    sql(&provider, "CREATE TABLE t (n int)").await;
    write(&provider, 1).await;
    provider.prepare(&now, Capacity(2)).await.unwrap();
    // It can't be a primary: its data directory has lost what every start needs.
    let hidden = provider.data_dir.data_of(Home::Second).join("pg_xact");
    let intent_with = |provider: &LocalProvider| provider.data_dir.intent().unwrap();
    // As in a switch nobody else makes a standby meanwhile.
    let mut guard = place::postgres(&provider)
        .follower
        .slot
        .standby
        .lock()
        .await;
    let mut standby = guard.take().unwrap();
    let checkpoint = {
        let old = postmaster::find(&provider.data_dir.data())
            .unwrap()
            .unwrap()
            .0;
        old.stop_fast().unwrap();
        assert!(old.gone_within(Duration::from_secs(30)).await);
        provider
            .prove(place::postgres(&provider), &mut standby)
            .await
            .unwrap()
    };
    let intent = Intent {
        from: Capacity(1),
        to: Capacity(2),
        promotion: Some(checkpoint),
    };
    provider.write_intent(intent.clone()).await.unwrap();
    drop(guard);
    slot::stop(&provider.data_dir, Home::Second).await.unwrap();
    fs::rename(&hidden, hidden.with_extension("away")).unwrap();
    assert!(
        intent_with(&provider)
            .unwrap()
            .pending(Home::First)
            .is_some()
    );
    // Decided and never done, and proven so: back.
    let back = provider.start(Capacity(8)).await.unwrap();
    assert_eq!(
        (back.capacity, provider.data_dir.primary()),
        (Capacity(1), Home::First)
    );
    assert_eq!(written(&provider).await, "1 1");
    one_writer(&provider).await;
    assert_eq!(intent_with(&provider), None);

    // Decided, and it can be done: forward, although nothing runs.
    provider.prepare(&back, Capacity(2)).await.unwrap();
    let mut guard = place::postgres(&provider)
        .follower
        .slot
        .standby
        .lock()
        .await;
    let mut standby = guard.take().unwrap();
    let old = postmaster::find(&provider.data_dir.data())
        .unwrap()
        .unwrap()
        .0;
    old.stop_fast().unwrap();
    assert!(old.gone_within(Duration::from_secs(30)).await);
    let promotion = Some(
        provider
            .prove(place::postgres(&provider), &mut standby)
            .await
            .unwrap(),
    );
    drop(standby);
    provider
        .write_intent(Intent {
            promotion,
            ..intent
        })
        .await
        .unwrap();
    drop(guard);
    slot::stop(&provider.data_dir, Home::Second).await.unwrap();
    // It had let go of its fence, and was killed before it wrote down that it is a primary.
    let standby = provider.data_dir.data_of(Home::Second);
    fs::remove_file(standby.join("standby.signal")).unwrap();
    // Nobody replaces it meanwhile: it may be the only one that has the last writes.
    let follower = Arc::clone(&place::postgres(&provider).follower);
    let error = slot::ready(&*follower, &back.endpoint, Capacity(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("was to be promoted"), "{error}");
    let forward = provider.start(Capacity(8)).await.unwrap();
    assert_eq!(
        (forward.capacity, provider.data_dir.primary()),
        (Capacity(2), Home::Second)
    );
    assert_eq!(written(&provider).await, "1 1");
    one_writer(&provider).await;
}

#[tokio::test]
async fn safety_20_what_would_not_survive_is_refused_by_name() {
    let (_place, config) = place();
    let provider = Place::provider_with(config);
    let now = provider.start(Capacity(1)).await.unwrap();
    let refused = async |why: &[&str]| {
        let error = provider
            .prepare(&now, Capacity(2))
            .await
            .unwrap_err()
            .to_string();
        for why in why {
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(provider.start(Capacity(1)).await.unwrap(), now);
    };
    let at = now.endpoint.clone();
    provider
        .create_database(&at, "shop", SERVICE_USER)
        .await
        .unwrap();
    let in_shop = async |sql: &str| provider.query.query_in(&at, "shop", sql).await.unwrap();
    in_shop("CREATE UNLOGGED TABLE cart (n int)").await;
    refused(&["unlogged", "database shop", "public.cart"]).await;
    in_shop("ALTER TABLE cart SET LOGGED").await;
    sql(
        &provider,
        "SELECT pg_create_physical_replication_slot('keeps', true)",
    )
    .await;
    refused(&["replication slots", "keeps (physical)"]).await;
    sql(&provider, "SELECT pg_drop_replication_slot('keeps')").await;

    // Made between Prepare and the stop: seen in the files, before anything is promoted.
    provider.prepare(&now, Capacity(2)).await.unwrap();
    in_shop("CREATE UNLOGGED TABLE cart2 (n int)").await;
    in_shop("INSERT INTO cart2 VALUES (1)").await;
    let CutOver::KeptOld { instance, reason } = provider.cut_over(&now, Capacity(2)).await else {
        panic!("an unlogged table was lost")
    };
    assert!(reason.contains("unlogged relation"), "{reason}");
    assert_eq!(in_shop("SELECT n::text FROM cart2").await.len(), 1);
    in_shop("DROP TABLE cart2").await;

    // Settings of the old server's operator come along; a standby has no less than its primary.
    sql(&provider, "ALTER SYSTEM SET max_prepared_transactions = 7").await;
    sql(
        &provider,
        "ALTER SYSTEM SET log_min_duration_statement = '7s'",
    )
    .await;
    provider.prepare(&instance, Capacity(2)).await.unwrap();
    sql(
        &provider,
        "ALTER SYSTEM SET log_min_duration_statement = '8s'",
    )
    .await;
    completed(provider.cut_over(&instance, Capacity(2)).await);
    assert_eq!(show(&provider, "max_prepared_transactions").await, "7");
    let deadline = Instant::now() + Duration::from_secs(30);
    while show(&provider, "log_min_duration_statement").await != "8s" {
        assert!(
            Instant::now() < deadline,
            "the last change of a setting was lost"
        );
    }
}

#[test]
fn safety_22_a_data_directory_that_may_have_been_a_primary_is_never_replaced() {
    let place = Place::new();
    let data_dir = DataDir::open(&place.config()).unwrap();
    let home = data_dir.data_of(Home::Second);
    fs::create_dir(&home).unwrap();
    fs::write(home.join("PG_VERSION"), "15").unwrap();
    let error = copy::clear(&data_dir, Home::Second)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no standby.signal"), "{error}");
    assert!(home.join("PG_VERSION").exists());
    fence::fence(&data_dir, &home).unwrap();
    let unfinished = copy::clear(&data_dir, Home::Second).unwrap();
    assert!(!home.exists() && unfinished.is_dir());
    // What an interrupted copy left goes, too.
    let again = copy::clear(&data_dir, Home::Second).unwrap();
    assert!(!unfinished.exists() && again.is_dir());
}

#[tokio::test]
async fn safety_25_a_removal_of_a_standby_that_was_interrupted_leaves_no_second_primary() {
    let (_place, config) = place();
    let provider = Place::provider_with(config.clone());
    let now = provider.start(Capacity(1)).await.unwrap();
    provider.prepare(&now, Capacity(2)).await.unwrap();
    slot::stop(&provider.data_dir, Home::Second).await.unwrap();
    // Files go in any order, and the one that says what they were can be the first.
    let interrupted = |old: &std::path::Path| {
        fs::remove_file(old.join("standby.signal"))?;
        Err(std::io::ErrorKind::DirectoryNotEmpty.into())
    };
    let error = copy::clear_by(&provider.data_dir, Home::Second, interrupted).unwrap_err();
    assert!(error.to_string().contains("can't remove"), "{error}");
    assert_eq!(provider.start(Capacity(8)).await.unwrap(), now);
    let provider = next_proxy(provider, &config).await;
    assert_eq!(provider.start(Capacity(8)).await.unwrap(), now);
    provider.prepare(&now, Capacity(2)).await.unwrap();
    let left = fs::read_dir(provider.data_dir.path()).unwrap().flatten();
    let copies = left.filter(|e| e.file_name().to_string_lossy().starts_with("copy."));
    assert_eq!(copies.count(), 0);
}

#[tokio::test]
async fn a_primary_that_is_lost_while_its_standby_starts_is_not_waited_for() {
    let (place, config) = place();
    let provider = Arc::new(Place::provider_with(config));
    let now = provider.start(Capacity(1)).await.unwrap();
    let preparing = tokio::spawn({
        let provider = Arc::clone(&provider);
        async move { provider.prepare(&now, Capacity(2)).await }
    });
    let pid_file = provider
        .data_dir
        .data_of(Home::Second)
        .join("postmaster.pid");
    until("the standby starts", || pid_file.exists()).await;
    place.signal(Signal::SIGKILL);
    // Far below what a standby may take to be level.
    let error = tokio::time::timeout(Duration::from_mins(1), preparing)
        .await
        .expect("it is told of the loss")
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(error.contains("is gone"), "{error}");
}

#[tokio::test]
async fn safety_25_who_is_the_primary_is_on_disk_before_its_promotion_is_forgotten() {
    let (_place, config) = place();
    let provider = Place::provider_with(config.clone());
    let now = provider.start(Capacity(1)).await.unwrap();
    provider.prepare(&now, Capacity(2)).await.unwrap();
    // The disk takes no more, for a while.
    let full = provider.data_dir.path().join("server.tmp");
    fs::create_dir(&full).unwrap();
    let next = completed(provider.cut_over(&now, Capacity(2)).await);
    let decided = async |provider: &LocalProvider| {
        provider.state.lock().await.tidy().await;
        let intent = provider.data_dir.intent().unwrap();
        intent.is_some_and(|intent| intent.promotion.is_some())
    };
    assert!(decided(&provider).await);
    // It serves all the same, also when it is looked for.
    assert_eq!(provider.start(Capacity(8)).await.unwrap(), next);
    assert!(decided(&provider).await);
    let error = provider.prepare(&next, Capacity(1)).await.unwrap_err();
    assert!(error.to_string().contains("server.json"), "{error}");
    assert!(decided(&provider).await);
    fs::remove_dir(&full).unwrap();
    provider.prepare(&next, Capacity(1)).await.unwrap();
    let provider = next_proxy(provider, &config).await;
    assert_eq!(provider.start(Capacity(8)).await.unwrap(), next);
    assert_eq!(provider.data_dir.primary(), Home::Second);
    one_writer(&provider).await;
}
