//! What probes, restores and scans cost; run by hand, it prints and asserts nothing of time.

use super::*;

/// Not a check: prints what a probe and a restore cost.
#[test]
#[ignore = "a measurement: cargo test --release --test session_state costs -- --ignored --nocapture"]
#[expect(clippy::print_stderr, reason = "a measurement prints")]
fn costs() {
    let server = Server::shared();
    let time = |label: &str, n: usize, mut run: Box<dyn FnMut() -> Duration>| {
        let mut took: Vec<_> = (0..n).map(|_| run().as_micros()).collect();
        took.sort_unstable();
        eprintln!("{label:34} min {:6} median {:6} us", took[0], took[n / 2]);
    };
    let mut plain = server.app();
    time(
        "SELECT 1",
        2000,
        Box::new(move || {
            let started = tokio_now();
            plain.query("SELECT 1");
            started.elapsed()
        }),
    );
    let mut plain = server.app();
    time(
        "probe, plain session",
        2000,
        Box::new(move || {
            let started = tokio_now();
            plain.probe(&[]);
            started.elapsed()
        }),
    );
    let mut full = server.app();
    furnish(&mut full);
    let snapshot = full.probe(&CUSTOM).snapshot;
    let bytes = full.put_probe(&CUSTOM, None).0.len();
    eprintln!("probe request: {bytes} bytes");
    time(
        "probe, 30 settings, 5 statements",
        2000,
        Box::new(move || {
            let started = tokio_now();
            full.probe(&CUSTOM);
            started.elapsed()
        }),
    );
    let from = server.app();
    time(
        "connect alone",
        200,
        Box::new(move || {
            let started = tokio_now();
            from.again();
            started.elapsed()
        }),
    );
    let from = server.app();
    time(
        "probe on a fresh connection",
        200,
        Box::new(move || {
            let mut new = from.again();
            let started = tokio_now();
            new.probe(&[]);
            started.elapsed()
        }),
    );
    let from = server.app();
    time(
        "restore and verify, fresh",
        200,
        Box::new(move || {
            let mut new = from.again();
            let started = tokio_now();
            let (_, probe) = new.restore(&snapshot, &BTreeSet::new()).unwrap();
            verify(&snapshot, &probe, &BTreeSet::new()).unwrap();
            started.elapsed()
        }),
    );
    scan_costs();
}

#[expect(clippy::print_stderr, reason = "a measurement prints")]
fn scan_costs() {
    let texts = [
        "SELECT abalance FROM pgbench_accounts WHERE aid = $1",
        "UPDATE accounts SET balance = balance + 1 WHERE owner_id = $1 AND branch = 'north' RETURNING id, balance, owner_id, created_at, updated_at",
    ];
    for text in texts {
        let started = tokio_now();
        let mut found = 0;
        for _ in 0..100_000 {
            found += hints::scan(std::hint::black_box(text.as_bytes()))
                .custom_names
                .len();
        }
        eprintln!(
            "scan of {} bytes: {} ns ({found})",
            text.len(),
            started.elapsed().as_nanos() / 100_000
        );
    }
}
