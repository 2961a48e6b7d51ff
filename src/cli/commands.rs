//! The commands that ask a running proxy.

use super::client::{Client, cluster_path, read};
use super::{ClientCommand, Failure, ScaleArgs, Target, render, watch};
use crate::api::{ClusterView, EventState, EventView, ReloadReport, SessionView};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

/// How often `events --follow` asks.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Runs one command; `terminal`: a person looks at `out`.
pub(super) fn run(
    command: &ClientCommand,
    out: &mut dyn Write,
    terminal: bool,
) -> Result<u8, Failure> {
    let target = command.target();
    let client = Client::new(target)?;
    match command {
        ClientCommand::Status { cluster: None, .. } => {
            let answer = client.get("/v1/clusters")?;
            show(target, out, answer, |clusters: Vec<ClusterView>| {
                render::clusters(&clusters)
            })
        }
        ClientCommand::Status {
            cluster: Some(cluster),
            ..
        } => {
            let answer = client.get(&cluster_path(cluster, "")?)?;
            show(target, out, answer, |cluster: ClusterView| {
                render::cluster(&cluster)
            })
        }
        ClientCommand::Sessions { cluster, .. } => {
            let answer = client.get(&cluster_path(cluster, "/sessions")?)?;
            show(target, out, answer, |sessions: Vec<SessionView>| {
                render::sessions(&sessions)
            })
        }
        ClientCommand::Events {
            cluster,
            follow: true,
            ..
        } => follow(&client, cluster, target.json, out),
        ClientCommand::Events { cluster, .. } => {
            let answer = client.get(&cluster_path(cluster, "/events")?)?;
            show(target, out, answer, |events: Vec<EventView>| {
                render::events(&events)
            })
        }
        ClientCommand::Scale(args) => scale(&client, args, out, terminal),
        ClientCommand::Pause { cluster, .. } => change(&client, target, cluster, "/pause", out),
        ClientCommand::Resume { cluster, .. } => change(&client, target, cluster, "/resume", out),
        ClientCommand::Release { cluster, .. } => change(&client, target, cluster, "/release", out),
        ClientCommand::Hold {
            cluster, period, ..
        } => {
            let body = match period {
                Some(period) => json!({ "for_seconds": period.as_secs() }),
                None => json!({}),
            };
            let answer = client.post(&cluster_path(cluster, "/hold")?, &body)?;
            show(target, out, answer, |cluster: ClusterView| {
                render::change(&cluster)
            })
        }
        ClientCommand::Reload { .. } => {
            let answer = client.post("/v1/reload", &json!({}))?;
            show(target, out, answer, |report: ReloadReport| {
                render::reload(&report)
            })
        }
        ClientCommand::Drain { .. } => {
            let answer = client.post("/v1/drain", &json!({}))?;
            show(target, out, answer, |_: Value| {
                "draining: no new clients are taken; sessions end when at rest, and the proxy after 30 s at most\n"
                    .to_owned()
            })
        }
    }
}

fn change(
    client: &Client,
    target: &Target,
    cluster: &str,
    action: &str,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let answer = client.post(&cluster_path(cluster, action)?, &json!({}))?;
    show(target, out, answer, |cluster: ClusterView| {
        render::change(&cluster)
    })
}

/// Prints an answer, as it came or for people.
fn show<T: serde::de::DeserializeOwned>(
    target: &Target,
    out: &mut dyn Write,
    answer: Value,
    text: impl FnOnce(T) -> String,
) -> Result<u8, Failure> {
    if target.json {
        writeln!(out, "{answer:#}")?;
    } else {
        out.write_all(text(read(answer)?).as_bytes())?;
    }
    out.flush()?;
    Ok(0)
}

fn scale(
    client: &Client,
    args: &ScaleArgs,
    out: &mut dyn Write,
    terminal: bool,
) -> Result<u8, Failure> {
    let mut body = json!({ "capacity": args.capacity });
    if let Some(timeout) = args.timeout {
        body["timeout_seconds"] = timeout.as_secs().into();
    }
    if args.force || args.rollback {
        body["on_timeout"] = if args.force { "force" } else { "rollback" }.into();
    }
    if args.restart {
        body["restart"] = true.into();
    }
    let answer = client.post(&cluster_path(&args.cluster, "/capacity")?, &body)?;
    let event: EventView = read(answer.clone())?;
    let json = args.target.json;
    let ended = event.state == EventState::Done;
    if ended || !(args.wait || (terminal && !json)) {
        if json {
            writeln!(out, "{answer:#}")?;
        } else if ended {
            writeln!(out, "{}", render::event_end(&args.cluster, &event))?;
        } else {
            writeln!(
                out,
                "event {} started: {} {} -> {} ACU; see it with: slackwater events {}",
                event.id, args.cluster, event.from, event.to, args.cluster
            )?;
        }
        return Ok(if ended { watch::exit_code(&event) } else { 0 });
    }
    watch::follow_event(
        client,
        &args.cluster,
        event,
        watch::Style::of(json, terminal),
        out,
    )
}

/// Prints events as they end, until the proxy is away or nobody reads.
fn follow(client: &Client, cluster: &str, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let path = cluster_path(cluster, "/events")?;
    let mut printed: BTreeSet<u64> = BTreeSet::new();
    let mut first = true;
    loop {
        let answer = client.get(&path)?;
        let items = answer.as_array().cloned().unwrap_or_default();
        let mut known = BTreeSet::new();
        for item in items.into_iter().rev() {
            let event: EventView = read(item.clone())?;
            if event.state == EventState::Running {
                continue;
            }
            known.insert(event.id);
            if printed.contains(&event.id) {
                continue;
            }
            if json {
                writeln!(out, "{item}")?;
            } else {
                writeln!(
                    out,
                    "event {}: {}",
                    event.id,
                    render::event_end(cluster, &event)
                )?;
            }
        }
        if first && known.is_empty() && !json {
            writeln!(out, "no events yet; waiting")?;
        }
        out.flush()?;
        first = false;
        // What the proxy has forgotten can't come again.
        printed = known;
        watch::pause(FOLLOW_INTERVAL);
    }
}
