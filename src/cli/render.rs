//! Answers as people read them: pure functions from views to text.
//!
//! Names and statements come from clients, so no control character of theirs reaches the terminal.

use crate::api::{BlockerView, ClusterView, EventView, ReloadReport, SessionView, WaitingView};
use crate::observe::EventOutcome;
use std::fmt::Write as _;

/// Rows of `waiting_for` that the live view shows.
const LIVE_ROWS: usize = 10;

/// All clusters, one line each.
pub(super) fn clusters(clusters: &[ClusterView]) -> String {
    if clusters.is_empty() {
        return "no clusters\n".to_owned();
    }
    let header = [
        "CLUSTER",
        "STATE",
        "ACU",
        "RANGE",
        "CLIENTS",
        "ACTIVE",
        "AT REST",
        "HELD",
        "PARKED",
        "SERVER CONNECTIONS",
        "GENERATION",
        "EVENT",
    ];
    let rows = clusters.iter().map(|c| {
        vec![
            c.name.clone(),
            c.state.as_str().to_owned(),
            c.capacity.to_string(),
            format!("{}-{}", c.min, c.max),
            c.clients.to_string(),
            c.sessions.active.to_string(),
            c.sessions.at_rest.to_string(),
            c.sessions.held.to_string(),
            c.sessions.parked.to_string(),
            c.server_connections.to_string(),
            c.generation.to_string(),
            c.event.as_ref().map_or_else(|| "-".to_owned(), short_event),
        ]
    });
    table(&header, rows)
}

/// One cluster in full.
pub(super) fn cluster(c: &ClusterView) -> String {
    let ladder: Vec<_> = c.ladder.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        ("cluster", format!("{} ({})", c.name, c.engine)),
        ("state", c.state.as_str().to_owned()),
        (
            "capacity",
            format!("{} ACU, of {}", c.capacity, ladder.join(", ")),
        ),
        ("generation", c.generation.to_string()),
        ("clients", c.clients.to_string()),
        (
            "sessions",
            format!(
                "{} active, {} at rest, {} held, {} parked",
                c.sessions.active, c.sessions.at_rest, c.sessions.held, c.sessions.parked
            ),
        ),
        ("server connections", c.server_connections.to_string()),
        ("used", format!("{:.0} ACU seconds", c.acu_seconds)),
    ];
    if let Some(seconds) = c.seconds_until_pause {
        rows.push(("pause", format!("in {}", age(seconds))));
    }
    let mut out = String::new();
    for (name, value) in &rows {
        line(
            &mut out,
            &format!("{:<20}{}", format!("{name}:"), clean(value)),
        );
    }
    if !c.facts.is_empty() {
        out.push('\n');
        let rows = c
            .facts
            .iter()
            .map(|f| vec![f.name.clone(), f.value.clone(), f.note.clone()]);
        out.push_str(&table(&["FACT", "VALUE", "NOTE"], rows));
    }
    if let Some(event) = &c.event {
        out.push('\n');
        out.push_str(&event_live(&c.name, event));
    }
    out
}

/// The sessions of a cluster, one line each; a session with several blockers has a line for each.
pub(super) fn sessions(sessions: &[SessionView]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let header = [
        "ID",
        "USER",
        "DATABASE",
        "APPLICATION",
        "CLIENT",
        "STATE",
        "SERVER",
        "MOVABLE",
        "AGE",
        "BLOCKER",
        "FOR",
        "DETAIL",
        "STATEMENT",
    ];
    let mut rows = Vec::new();
    for s in sessions {
        let mut row = vec![
            s.id.to_string(),
            s.user.clone(),
            s.database.clone(),
            dash(&s.application),
            s.client_address.clone(),
            s.state.as_str().to_owned(),
            if s.attached { "attached" } else { "-" }.to_owned(),
            movable(s.movable).to_owned(),
            age(s.age_seconds),
        ];
        let same = row.len();
        match s.blockers.split_first() {
            None => row.extend(["-", "-", "-", "-"].map(str::to_owned)),
            Some((first, _)) => row.extend(blocker_cells(first)),
        }
        rows.push(row);
        for blocker in s.blockers.iter().skip(1) {
            let mut row = vec![String::new(); same];
            row.extend(blocker_cells(blocker));
            rows.push(row);
        }
    }
    table(&header, rows.into_iter())
}

/// Scale events, one line each.
pub(super) fn events(events: &[EventView]) -> String {
    if events.is_empty() {
        return "no scale events\n".to_owned();
    }
    let header = [
        "ID", "FROM", "TO", "OUTCOME", "AGO", "TOOK", "HELD", "ATTEMPTS", "MOVED", "BLOCKED",
        "REASON",
    ];
    let rows = events.iter().map(|e| {
        vec![
            e.id.to_string(),
            e.from.to_string(),
            e.to.to_string(),
            e.outcome.map_or_else(
                || format!("running ({})", e.step.as_deref().unwrap_or("?")),
                |o| outcome(o).to_owned(),
            ),
            age(e.age_seconds),
            millis(e.duration_ms),
            millis(e.held_ms),
            e.attempt.to_string(),
            e.sessions_moved.to_string(),
            e.sessions_blocked.to_string(),
            dash(e.reason.as_deref().unwrap_or_default()),
        ]
    });
    table(&header, rows)
}

/// What `hold`, `release`, `pause` and `resume` left.
pub(super) fn change(c: &ClusterView) -> String {
    format!(
        "{}: {}, {} ACU, {} held\n",
        clean(&c.name),
        c.state.as_str(),
        c.capacity,
        c.sessions.held
    )
}

/// What a reload did.
pub(super) fn reload(report: &ReloadReport) -> String {
    let mut out = String::new();
    if report.changed.is_empty() && report.needs_restart.is_empty() {
        line(&mut out, "the configuration is the same");
    }
    for key in &report.changed {
        line(&mut out, &format!("changed: {}", clean(key)));
    }
    for key in &report.needs_restart {
        line(
            &mut out,
            &format!("not changed, needs a new start: {}", clean(key)),
        );
    }
    if report.certificates {
        line(&mut out, "certificates were read again");
    }
    for warning in &report.warnings {
        line(&mut out, &format!("warning: {}", clean(warning)));
    }
    out
}

/// A running event in one line, without what changes all the time.
pub(super) fn event_step(cluster: &str, e: &EventView) -> String {
    let mut out = format!(
        "{cluster} {} -> {} ACU: {}",
        e.from,
        e.to,
        e.step.as_deref().unwrap_or("running"),
    );
    if e.attempt > 1 {
        let _ = write!(out, ", attempt {}", e.attempt);
    }
    // What is over in a moment is in nobody's way.
    let lasting = |w: &&WaitingView| w.blocker.age_seconds > 0;
    if e.waiting_for.iter().any(|w| lasting(&w)) {
        let mut who: Vec<_> = e
            .waiting_for
            .iter()
            .filter(lasting)
            .map(|w| format!("session {} ({})", w.session, w.blocker.kind))
            .collect();
        let more = who.len().saturating_sub(LIVE_ROWS);
        who.truncate(LIVE_ROWS);
        let _ = write!(out, ", waiting for {}", who.join(", "));
        if more > 0 {
            let _ = write!(out, " and {more} more");
        }
    }
    clean(&out)
}

/// A running event, with who is in the way and why; each line ends.
pub(super) fn event_live(cluster: &str, e: &EventView) -> String {
    let mut out = String::new();
    line(
        &mut out,
        &clean(&format!(
            "{cluster}  {} -> {} ACU   {}   attempt {}   {} of {}   held {}   then {}",
            e.from,
            e.to,
            e.step.as_deref().unwrap_or("running"),
            e.attempt,
            age(e.age_seconds),
            age(e.timeout_seconds),
            millis(e.held_ms),
            match e.on_timeout {
                crate::config::OnTimeout::Rollback => "roll back",
                crate::config::OnTimeout::Force => "force",
            },
        )),
    );
    if e.waiting_for.is_empty() {
        return out;
    }
    let sessions: std::collections::BTreeSet<u64> =
        e.waiting_for.iter().map(|w| w.session).collect();
    let noun = if sessions.len() == 1 {
        "session"
    } else {
        "sessions"
    };
    line(&mut out, &format!("waiting for {} {noun}:", sessions.len()));
    let rows = e
        .waiting_for
        .iter()
        .take(LIVE_ROWS)
        .map(|WaitingView { session, blocker }| {
            let mut row = vec![session.to_string()];
            row.extend(blocker_cells(blocker));
            row
        });
    out.push_str(&table(
        &["SESSION", "BLOCKER", "FOR", "DETAIL", "STATEMENT"],
        rows,
    ));
    let more = e.waiting_for.len().saturating_sub(LIVE_ROWS);
    if more > 0 {
        line(&mut out, &format!("and {more} more"));
    }
    out
}

/// An event that ended, in one sentence.
pub(super) fn event_end(cluster: &str, e: &EventView) -> String {
    let took = format!(
        "{} moved, held {}, took {}",
        count(e.sessions_moved, "session"),
        millis(e.held_ms),
        millis(e.duration_ms)
    );
    let attempts = if e.attempt > 1 {
        format!(" in {} attempts", e.attempt)
    } else {
        String::new()
    };
    let because = e
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"));
    let text = match e.outcome {
        Some(EventOutcome::Completed) => {
            format!(
                "completed{attempts}: {cluster} {} -> {} ACU, {took}",
                e.from, e.to
            )
        }
        Some(EventOutcome::Forced) => format!(
            "forced{attempts}: {cluster} {} -> {} ACU, {took}, {} ended",
            e.from,
            e.to,
            count(e.sessions_blocked, "session")
        ),
        Some(EventOutcome::RolledBack) => format!(
            "rolled back{attempts}: {cluster} stays at {} ACU, {} in the way, took {}{because}",
            e.from,
            count(e.sessions_blocked, "session"),
            millis(e.duration_ms)
        ),
        Some(EventOutcome::None) => format!("nothing to do: {cluster} is at {} ACU", e.to),
        Some(EventOutcome::Failed) | None => {
            format!(
                "failed{attempts}: {cluster} {} -> {} ACU{because}",
                e.from, e.to
            )
        }
    };
    clean(&text)
}

/// `59s`, `2m13s`, `3h05m`, `2d04h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// `21ms`, `1.4s`, then as [`age`].
pub(super) fn millis(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        _ => age(ms / 1000),
    }
}

fn short_event(e: &EventView) -> String {
    format!(
        "{} -> {}: {}",
        e.from,
        e.to,
        e.step.as_deref().unwrap_or("running")
    )
}

fn blocker_cells(b: &BlockerView) -> [String; 4] {
    [
        b.kind.clone(),
        age(b.age_seconds),
        dash(&b.detail),
        dash(b.statement.as_deref().unwrap_or_default()),
    ]
}

fn movable(movable: Option<bool>) -> &'static str {
    match movable {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

fn outcome(outcome: EventOutcome) -> &'static str {
    match outcome {
        EventOutcome::RolledBack => "rolled back",
        other => other.as_str(),
    }
}

fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end());
    out.push('\n');
}

/// Columns as wide as their widest cell, two blanks apart.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut all = vec![header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()];
    all.extend(rows.map(|row| row.iter().map(|cell| clean(cell)).collect()));
    let mut widths = vec![0; header.len()];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &all {
        let mut text = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        line(&mut out, &text);
    }
    out
}

/// Control characters could move the cursor or recolour the terminal: blanks for white space, `?` for the rest.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => '?',
            // Marks that reorder text on the screen.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
            c => c,
        })
        .collect()
}
