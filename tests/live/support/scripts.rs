//! The scripts of `tests/live/scripts`: each is run straight on the server and through the proxy with a scale
//! event wanted at its awkward moment. What the client reads is the same, byte for byte.

use super::postgres::Postgres;
use super::proxy::Proxy;
use super::script::{self, Direct, Stage, Through};
use super::wire::Client;
use super::{SOON, wait_until};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// For scripts: an empty table `t`.
pub(crate) const FRESH_TABLE: &[&str] = &[
    // Never dropped: what clients read has its number in it.
    "create table if not exists t (a int)",
    "grant all on t to app",
    "truncate t",
];

/// Every script, by its name.
pub(crate) fn all() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/scripts");
    let mut out: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| {
            (
                p.file_stem().unwrap().to_string_lossy().into_owned(),
                fs::read_to_string(&p).unwrap(),
            )
        })
        .collect();
    out.sort();
    assert!(out.len() > 20, "the scripts are there");
    out
}

/// Runs a script; what the client read, or what went wrong.
pub(crate) fn attempt(
    server: &Postgres,
    client: &mut Client,
    text: &str,
    stage: &mut dyn Stage,
) -> Result<Vec<String>, String> {
    server.run(FRESH_TABLE);
    let result = catch_unwind(AssertUnwindSafe(|| script::run(text, client, stage)));
    match result {
        Ok(heard) => Ok(heard
            .iter()
            .map(|m| {
                format!(
                    "{} {}",
                    m.label(),
                    String::from_utf8_lossy(&m.body).escape_debug()
                )
            })
            .collect()),
        Err(said) => Err(said
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| said.downcast_ref::<&str>().map(|&s| s.to_owned()))
            .unwrap_or_default()),
    }
}

/// Compares the scripts whose names are `wanted`. Panics with every difference.
pub(crate) fn compare(wanted: impl Fn(&str) -> bool) {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let mut faults = Vec::new();
    let mut ran = 0;
    for (name, text) in all().into_iter().filter(|(name, _)| wanted(name)) {
        ran += 1;
        faults.extend(difference(&server, &proxy, &name, &text).map(|f| format!("{name}: {f}")));
    }
    assert!(ran > 0, "no such script");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn difference(server: &Postgres, proxy: &Proxy, name: &str, text: &str) -> Option<String> {
    let mut client = Client::connect(&server.app()).unwrap();
    let direct = attempt(server, &mut client, text, &mut Direct);
    client.close();
    let mut client = proxy.client(name);
    let before = client.server_process();
    let mut stage = Through::new(proxy.admin(), name);
    let through = attempt(server, &mut client, text, &mut stage);
    let fault = match (direct, through) {
        (Ok(direct), Ok(through)) if direct == through => {
            let stays = text.contains("! rolled_back");
            let moved = client.server_process() != before;
            (moved == stays).then(|| "moved, or not, against the script".to_owned())
        }
        (Ok(direct), Ok(through)) => {
            let mut pairs = direct.iter().zip(&through);
            let at = pairs.position(|(a, b)| a != b).unwrap_or_default();
            let (want, got) = (direct.get(at), through.get(at));
            Some(format!(
                "answer {at}: direct {want:?}, through the proxy {got:?}"
            ))
        }
        (direct, through) => Some(format!(
            "direct {:?}, through the proxy {:?}",
            direct.err(),
            through.err()
        )),
    };
    // A script that failed must not leave its session in the way of the next.
    client.close();
    wait_until("the session is gone", SOON, || {
        proxy.admin().session(name).is_none()
    });
    wait_until("no event is left", SOON, || {
        proxy.admin().cluster()["event"].is_null()
    });
    fault
}
