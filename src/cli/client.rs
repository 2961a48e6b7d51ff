//! Asks a proxy's admin API.

use super::{Failure, Target};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use ureq::Agent;
use ureq::http::Response;
use zeroize::Zeroizing;

/// Longest that one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A proxy's admin API.
pub(super) struct Client {
    agent: Agent,
    base: String,
    authorization: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct Refused {
    error: RefusedError,
}

#[derive(Deserialize)]
struct RefusedError {
    code: String,
    message: String,
}

impl Client {
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let base = target.admin.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            return Err(Failure::usage(format!(
                "--admin {base}: write a URL such as http://127.0.0.1:7432 (TLS is not possible here)"
            )));
        }
        let authorization = match &target.token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map(Zeroizing::new)
                    .map_err(|e| Failure::usage(format!("--token-file {}: {e}", path.display())))?;
                Some(Zeroizing::new(format!(
                    "Bearer {}",
                    text.trim_end_matches(['\r', '\n'])
                )))
            }
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            // A web proxy of the environment is not meant for this.
            .proxy(None)
            .build()
            .into();
        Ok(Self {
            agent,
            base,
            authorization,
        })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization.as_str());
        }
        self.answer(request.call())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization.as_str());
        }
        self.answer(request.send_json(body))
    }

    fn answer(&self, result: Result<Response<ureq::Body>, ureq::Error>) -> Result<Value, Failure> {
        let mut response = result.map_err(|error| {
            Failure::new(format!(
                "no answer from {}: {error}; is the proxy running, and is --admin (or SLACKWATER_ADMIN) its admin address?",
                self.base
            ))
        })?;
        let status = response.status();
        let body: Value = response.body_mut().read_json().map_err(|error| {
            Failure::new(format!(
                "{} answered {status} with something that is no JSON ({error}); is it Slackwater's admin address?",
                self.base
            ))
        })?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_value::<Refused>(body) {
            Ok(Refused { error }) => {
                let hint = if status.as_u16() == 401 {
                    " (give it with --token-file or SLACKWATER_TOKEN_FILE)"
                } else {
                    ""
                };
                Err(Failure {
                    exit: 1,
                    code: error.code,
                    message: error.message + hint,
                })
            }
            Err(_) => Err(Failure::new(format!("{} answered {status}", self.base))),
        }
    }
}

/// The path of a cluster, or of something below it.
pub(super) fn cluster_path(cluster: &str, rest: &str) -> Result<String, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if cluster.is_empty() || !cluster.chars().all(plain) {
        return Err(Failure::usage(format!(
            "{cluster:?} is no name of a cluster; it has letters, digits, hyphens and underscores"
        )));
    }
    Ok(format!("/v1/clusters/{cluster}{rest}"))
}

/// An answer as the type that it must have.
pub(super) fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| {
        Failure::new(format!(
            "the proxy's answer can't be read ({error}); is it of the same release as this command?"
        ))
    })
}
