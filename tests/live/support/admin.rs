//! A client of the admin API.

use super::{EVENT, SOON, wait_for};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// The name that the tests' cluster has.
pub(crate) const CLUSTER: &str = "shop";

/// Outcomes with which an event is over.
const OUTCOMES: &[&str] = &["completed", "rolled_back", "forced", "failed", "none"];

/// The admin API of one proxy.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    base: String,
    agent: ureq::Agent,
}

impl Admin {
    /// The API on this port of 127.0.0.1.
    pub(crate) fn new(port: u16) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(SOON))
            .build();
        Self {
            base: format!("http://127.0.0.1:{port}"),
            agent: config.into(),
        }
    }

    /// What `--admin` takes.
    pub(crate) fn url(&self) -> &str {
        &self.base
    }

    /// Status and text of a GET; `None` when nothing answers.
    pub(crate) fn get_text(&self, path: &str) -> Option<(u16, String)> {
        let mut answer = self.agent.get(format!("{}{path}", self.base)).call().ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        Some((answer.status().as_u16(), text))
    }

    /// The JSON of a GET that must succeed.
    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, text) = self
            .get_text(path)
            .unwrap_or_else(|| panic!("GET {path}: no answer"));
        assert_eq!(status, 200, "GET {path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("GET {path}: {e}: {text}"))
    }

    /// Status and JSON of a POST.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut answer = self
            .agent
            .post(format!("{}{path}", self.base))
            .send_json(body)
            .unwrap_or_else(|e| panic!("POST {path}: {e}"));
        let text = answer.body_mut().read_to_string().unwrap();
        let value = serde_json::from_str(&text).unwrap_or(Value::Null);
        (answer.status().as_u16(), value)
    }

    /// The cluster as the API shows it.
    pub(crate) fn cluster(&self) -> Value {
        self.get(&format!("/v1/clusters/{CLUSTER}"))
    }

    /// The capacity that the cluster has now.
    pub(crate) fn capacity(&self) -> u64 {
        self.cluster()["capacity"]
            .as_u64()
            .expect("capacity is a number")
    }

    /// The capacity of two that the cluster has not now.
    pub(crate) fn other_capacity(&self) -> u64 {
        if self.capacity() == 2 { 4 } else { 2 }
    }

    /// A count below `sessions` of the cluster.
    pub(crate) fn sessions_count(&self, state: &str) -> u64 {
        self.cluster()["sessions"][state]
            .as_u64()
            .unwrap_or_default()
    }

    /// All sessions.
    pub(crate) fn sessions(&self) -> Vec<Value> {
        let answer = self.get(&format!("/v1/clusters/{CLUSTER}/sessions"));
        answer.as_array().expect("sessions are a list").clone()
    }

    /// The session with this application name.
    pub(crate) fn session(&self, application: &str) -> Option<Value> {
        self.sessions()
            .into_iter()
            .find(|s| s["application"] == application)
    }

    /// The blockers of the session with this application name.
    pub(crate) fn blockers(&self, application: &str) -> Vec<Value> {
        self.session(application)
            .and_then(|s| s["blockers"].as_array().cloned())
            .unwrap_or_default()
    }

    /// Wants an event; its id.
    pub(crate) fn start_event(&self, options: &Value) -> u64 {
        let mut body = json!({ "capacity": self.other_capacity() });
        let fields = body.as_object_mut().expect("made as an object");
        fields.extend(options.as_object().cloned().unwrap_or_default());
        let (status, event) = self.post(&format!("/v1/clusters/{CLUSTER}/capacity"), &body);
        assert_eq!(status, 202, "{event}");
        event["id"]
            .as_u64()
            .unwrap_or_else(|| panic!("an event's id is a number: {event}"))
    }

    /// One event.
    pub(crate) fn event(&self, id: u64) -> Value {
        self.get(&format!("/v1/clusters/{CLUSTER}/events/{id}"))
    }

    /// The event's outcome once it is over.
    pub(crate) fn outcome(&self, id: u64) -> Option<String> {
        let event = self.event(id);
        let outcome = event["outcome"].as_str()?;
        OUTCOMES.contains(&outcome).then(|| outcome.to_owned())
    }

    /// Waits for the event's end; the event.
    pub(crate) fn finished(&self, id: u64, limit: Duration) -> Value {
        let mut last = Value::Null;
        wait_for("the event ends", limit, || {
            last = self.event(id);
            self.outcome(id)
        });
        self.event(id)
    }

    /// Starts events until one is seen in this step; it is in it now, or was a moment ago.
    pub(crate) fn reach(&self, step: &str, options: &Value) -> u64 {
        let end = Instant::now() + EVENT;
        loop {
            let id = self.start_event(options);
            loop {
                let event = self.event(id);
                if event["step"] == step {
                    return id;
                }
                if event["state"] != "running" {
                    break;
                }
            }
            assert!(Instant::now() < end, "no event was seen in {step}");
        }
    }

    /// Runs one event to its end, which must be good; the event.
    pub(crate) fn swap(&self) -> Value {
        let id = self.start_event(&json!({}));
        let event = self.finished(id, EVENT);
        assert_eq!(
            event["outcome"],
            "completed",
            "{event:#}\nsessions: {:#?}",
            self.sessions()
        );
        event
    }

    /// Waits until the standby of a local server follows.
    pub(crate) fn wait_standby(&self) {
        wait_for("the standby is ready", EVENT, || {
            let facts = self.cluster()["facts"].as_array()?.clone();
            facts
                .iter()
                .any(|f| {
                    f["name"] == "standby"
                        && f["value"].as_str().is_some_and(|v| v.contains("level"))
                })
                .then_some(())
        });
    }

    /// A POST without content that must be accepted.
    pub(crate) fn act(&self, what: &str) {
        let (status, answer) = self.post(&format!("/v1/clusters/{CLUSTER}/{what}"), &json!({}));
        assert!((200..300).contains(&status), "{what}: {status} {answer}");
    }

    /// A counter's value, all labels that contain `labels` added up.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = self.get_text("/metrics").expect("metrics answer");
        text.lines()
            .filter(|l| l.starts_with(name) && l.contains(labels))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}
