//! Request bodies: small JSON objects in which an unknown field is an error that names it.

use super::{ControlError, ErrorCode, ScaleRequest};
use crate::backend::Capacity;
use crate::scale::event::OnTimeout;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Largest request body, in bytes.
pub(super) const MAX_BODY: usize = 16 << 10;

/// Longest time that can be asked for, in seconds: a day.
const MAX_SECONDS: u64 = 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaleBody {
    capacity: u32,
    timeout_seconds: Option<u64>,
    on_timeout: Option<OnTimeout>,
    #[serde(default)]
    restart: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct HoldBody {
    for_seconds: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// Reads the body of `POST capacity`; the capacity must be on `ladder`.
pub(super) fn scale(body: &[u8], ladder: &[Capacity]) -> Result<ScaleRequest, ControlError> {
    let body: ScaleBody = parse(body)?;
    if body.capacity == 0 {
        return Err(ControlError::new(
            ErrorCode::NotSupported,
            "capacity 0 (pause) is not in this release",
        ));
    }
    let capacity = Capacity(body.capacity);
    if !ladder.contains(&capacity) {
        let possible: Vec<_> = ladder.iter().map(ToString::to_string).collect();
        return Err(ControlError::new(
            ErrorCode::InvalidCapacity,
            format!(
                "capacity {capacity} is not possible; {} are",
                possible.join(", ")
            ),
        ));
    }
    Ok(ScaleRequest {
        capacity,
        timeout: period("timeout_seconds", body.timeout_seconds)?,
        on_timeout: body.on_timeout,
        restart: body.restart,
    })
}

/// Reads the body of `POST hold`.
pub(super) fn hold(body: &[u8]) -> Result<Option<Duration>, ControlError> {
    let body: HoldBody = if body.is_empty() {
        HoldBody::default()
    } else {
        parse(body)?
    };
    period("for_seconds", body.for_seconds)
}

/// Reads the body of a request that has nothing to say: empty, or `{}`.
pub(super) fn nothing(body: &[u8]) -> Result<(), ControlError> {
    if !body.is_empty() {
        parse::<EmptyBody>(body)?;
    }
    Ok(())
}

fn period(name: &str, seconds: Option<u64>) -> Result<Option<Duration>, ControlError> {
    match seconds {
        Some(seconds) if !(1..=MAX_SECONDS).contains(&seconds) => Err(ControlError::new(
            ErrorCode::InvalidRequest,
            format!("{name} is {seconds}; 1 to {MAX_SECONDS} are possible"),
        )),
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|error| {
        ControlError::new(
            ErrorCode::InvalidRequest,
            format!("the body can't be used: {error}"),
        )
    })
}
