//! Sets up logging: text for people, JSON for machines, always on standard error.

use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level can't be read.
    #[error(
        "log level {level:?} can't be read: {reason}; write error, warn, info, debug or trace, or target=level,..."
    )]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else logs already.
    #[error("logging was set up already")]
    Again,
}

/// Starts logging for the whole process, once. `level` is a level or a list of `target=level`;
/// without a `format`, text where standard error is a terminal and JSON elsewhere.
pub fn init(format: Option<LogFormat>, level: &str) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|error| LogError::Level {
            level: level.to_owned(),
            reason: error.to_string(),
        })?;
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => base.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => base
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|_| LogError::Again)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_told() {
        let error = init(Some(LogFormat::Text), "slackwater=loud")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"slackwater=loud\"") && error.contains("debug"),
            "{error}"
        );
    }
}
