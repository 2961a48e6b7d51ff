//! Follows one scale event until it ends: in place on a terminal, a line per step elsewhere.

use super::client::{Client, cluster_path, read};
use super::{Failure, render};
use crate::api::{EventState, EventView};
use crate::observe::EventOutcome;
use std::io::Write;
use std::time::Duration;

/// How often the event is asked for.
const INTERVAL: Duration = Duration::from_millis(150);

/// Requests that may fail one after the other before following is given up.
const MAX_FAILURES: u32 = 20;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Refreshed in place.
    Live,
    /// A line whenever the step or those in the way change.
    Plain,
    /// Nothing but the ended event.
    Json,
}

impl Style {
    pub(super) const fn of(json: bool, terminal: bool) -> Self {
        match (json, terminal) {
            (true, _) => Self::Json,
            (false, true) => Self::Live,
            (false, false) => Self::Plain,
        }
    }
}

/// Shows `event` until it ends; the answer is the exit code.
pub(super) fn follow_event(
    client: &Client,
    cluster: &str,
    mut event: EventView,
    style: Style,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let path = cluster_path(cluster, &format!("/events/{}", event.id))?;
    let mut screen = Screen {
        lines: 0,
        last: String::new(),
    };
    let mut failures = 0;
    loop {
        if event.state == EventState::Done {
            screen.clear(style, out)?;
            if style == Style::Json {
                writeln!(out, "{:#}", serde_json::json!(event))?;
            } else {
                writeln!(out, "{}", render::event_end(cluster, &event))?;
            }
            out.flush()?;
            return Ok(exit_code(&event));
        }
        screen.show(cluster, &event, style, out)?;
        pause(INTERVAL);
        match client.get(&path).and_then(read) {
            Ok(next) => {
                event = next;
                failures = 0;
            }
            // The event goes on without this command; a hiccup must not end the view.
            Err(failure) => {
                failures += 1;
                if failures >= MAX_FAILURES || failure.code == "unknown_event" {
                    return Err(failure);
                }
            }
        }
    }
}

/// Exit code of `scale` for an event that ended.
pub(super) fn exit_code(event: &EventView) -> u8 {
    match event.outcome {
        Some(EventOutcome::Completed | EventOutcome::Forced | EventOutcome::None) => 0,
        Some(EventOutcome::RolledBack) => 3,
        Some(EventOutcome::Failed) | None => 4,
    }
}

/// Waits; client commands have no runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "a synchronous command on its own thread, no runtime"
)]
pub(super) fn pause(period: Duration) {
    std::thread::sleep(period);
}

struct Screen {
    /// Lines of the last picture.
    lines: usize,
    /// Last plain line.
    last: String,
}

impl Screen {
    fn show(
        &mut self,
        cluster: &str,
        event: &EventView,
        style: Style,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        match style {
            Style::Json => {}
            Style::Plain => {
                let line = render::event_step(cluster, event);
                if line != self.last {
                    writeln!(out, "{line}")?;
                    out.flush()?;
                    self.last = line;
                }
            }
            Style::Live => {
                let picture = render::event_live(cluster, event);
                let up = self.up();
                // Long lines are cut, not wrapped, while the picture is drawn.
                write!(out, "\x1b[?7l{up}\x1b[J{picture}\x1b[?7h")?;
                out.flush()?;
                self.lines = picture.lines().count();
            }
        }
        Ok(())
    }

    fn clear(&mut self, style: Style, out: &mut dyn Write) -> Result<(), Failure> {
        if style == Style::Live && self.lines > 0 {
            write!(out, "{}\x1b[J", self.up())?;
            self.lines = 0;
        }
        Ok(())
    }

    fn up(&self) -> String {
        if self.lines == 0 {
            String::new()
        } else {
            format!("\x1b[{}A\r", self.lines)
        }
    }
}
