//! `slackwater dev`: a local server, a CA and a proxy, without configuration.
use super::{AppError, DevOptions};

/// Sets up local servers and a proxy in front of them, prints how to connect, and runs until told to end.
pub async fn dev(_options: DevOptions) -> Result<(), AppError> {
    Err(AppError("nothing is wired".to_owned()))
}
