//! The API over real sockets, with a `Control` that remembers what it was asked.

use super::*;
use crate::observe::{EventOutcome, SessionState};
use parking_lot::Mutex;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One cluster `shop` at 2 of 2, 4, 8 ACU.
#[derive(Default)]
pub(crate) struct Fake {
    /// Calls that would have changed something.
    pub(crate) calls: Mutex<Vec<String>>,
    /// Answers of `event`, first to last; the last stays.
    pub(crate) progress: Mutex<Vec<EventView>>,
    /// What `scale` answers instead of an event.
    pub(crate) refusal: Mutex<Option<ControlError>>,
}

pub(crate) fn cluster_view() -> ClusterView {
    ClusterView {
        name: "shop".to_owned(),
        engine: "postgres".to_owned(),
        state: ClusterState::Running,
        capacity: Capacity(2),
        min: Capacity(2),
        max: Capacity(8),
        ladder: [2, 4, 8].map(Capacity).to_vec(),
        generation: 3,
        clients: 12,
        sessions: SessionCounts {
            active: 2,
            at_rest: 9,
            held: 0,
            parked: 1,
        },
        server_connections: 11,
        event: None,
        seconds_until_pause: None,
        acu_seconds: 120.5,
        facts: vec![FactView {
            name: "cpu_limit".to_owned(),
            value: "none".to_owned(),
            note: "no cgroup can be written".to_owned(),
        }],
    }
}

pub(crate) fn session_view() -> SessionView {
    SessionView {
        id: 7,
        user: "app".to_owned(),
        database: "shop".to_owned(),
        application: "psql".to_owned(),
        client_address: "10.0.0.9:40000".to_owned(),
        state: SessionState::AtRest,
        attached: true,
        movable: Some(false),
        blockers: vec![BlockerView {
            kind: "advisory_lock".to_owned(),
            detail: "42".to_owned(),
            statement: Some("SELECT pg_advisory_lock(?)".to_owned()),
            age_seconds: 133,
        }],
        probed_seconds_ago: Some(1),
        age_seconds: 4000,
    }
}

pub(crate) fn event_view(state: EventState, outcome: Option<EventOutcome>) -> EventView {
    EventView {
        id: 5,
        from: Capacity(2),
        to: Capacity(4),
        state,
        outcome,
        reason: None,
        step: outcome.is_none().then(|| "probe".to_owned()),
        attempt: 1,
        held_ms: 21,
        held_total_ms: 21,
        sessions_moved: 11,
        sessions_blocked: 0,
        waiting_for: vec![],
        on_timeout: OnTimeout::Rollback,
        timeout_seconds: 300,
        age_seconds: 3,
        duration_ms: 812,
    }
}

impl Fake {
    fn did(&self, call: String) -> ClusterView {
        self.calls.lock().push(call);
        cluster_view()
    }
}

impl Control for Fake {
    fn clusters(&self) -> Vec<ClusterView> {
        vec![cluster_view()]
    }

    fn cluster(&self, name: &str) -> Result<ClusterView, ControlError> {
        if name == "shop" {
            Ok(cluster_view())
        } else {
            Err(ControlError::unknown_cluster(name))
        }
    }

    fn sessions(&self, cluster: &str) -> Result<Vec<SessionView>, ControlError> {
        self.cluster(cluster).map(|_| vec![session_view()])
    }

    fn events(&self, cluster: &str) -> Result<Vec<EventView>, ControlError> {
        self.cluster(cluster)
            .map(|_| vec![event_view(EventState::Done, Some(EventOutcome::Completed))])
    }

    fn event(&self, cluster: &str, id: u64) -> Result<EventView, ControlError> {
        self.cluster(cluster)?;
        let mut progress = self.progress.lock();
        match progress.len() {
            0 => Err(ControlError::unknown_event(cluster, id)),
            1 => Ok(progress[0].clone()),
            _ => Ok(progress.remove(0)),
        }
    }

    fn scale(&self, cluster: &str, request: ScaleRequest) -> Result<EventView, ControlError> {
        self.did(format!("scale {cluster} {request:?}"));
        match self.refusal.lock().take() {
            Some(error) => Err(error),
            None => Ok(event_view(EventState::Running, None)),
        }
    }

    fn hold(&self, cluster: &str, period: Option<Duration>) -> Result<ClusterView, ControlError> {
        Ok(self.did(format!("hold {cluster} {period:?}")))
    }

    fn release(&self, cluster: &str) -> Result<ClusterView, ControlError> {
        Ok(self.did(format!("release {cluster}")))
    }

    fn pause(&self, _: &str) -> Result<ClusterView, ControlError> {
        Err(ControlError::new(
            ErrorCode::NotSupported,
            "pausing is not in this release",
        ))
    }

    fn resume(&self, cluster: &str) -> Result<ClusterView, ControlError> {
        self.pause(cluster)
    }

    fn reload(&self) -> Result<ReloadReport, ControlError> {
        self.did("reload".to_owned());
        Ok(ReloadReport {
            changed: vec!["limits.max_clients".to_owned()],
            needs_restart: vec!["listen.postgres".to_owned()],
            certificates: true,
            warnings: vec![],
        })
    }

    fn drain(&self) -> Result<(), ControlError> {
        self.did("drain".to_owned());
        Ok(())
    }

    fn metrics_text(&self) -> String {
        "slackwater_clients 1\n# EOF\n".to_owned()
    }

    fn ready(&self) -> Result<(), String> {
        Err("cluster shop has no server".to_owned())
    }
}

/// Starts the API on a free port; it ends with the runtime of the test.
pub(crate) async fn start(control: Arc<Fake>, token: Option<&str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = token.map(|t| Zeroizing::new(t.to_owned()));
    tokio::spawn(serve(listener, control, token, CancellationToken::new()));
    address
}

/// Sends one request exactly as written (`{host}` is filled in) and reads status and body.
async fn raw(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = head
        .replace("{host}", &address.to_string())
        .replace('\n', "\r\n");
    let request = format!("{head}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.contains("cache-control: no-store"), "{head}");
    (status, body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (u16, serde_json::Value) {
    let (status, body) = raw(address, &format!("GET {path} HTTP/1.1\nhost: {{host}}"), "").await;
    (
        status,
        serde_json::from_str(&body).unwrap_or(serde_json::Value::String(body)),
    )
}

async fn post(address: SocketAddr, path: &str, body: &str) -> (u16, serde_json::Value) {
    let head = format!(
        "POST {path} HTTP/1.1\nhost: {{host}}\ncontent-type: application/json\ncontent-length: {}",
        body.len()
    );
    let (status, body) = raw(address, &head, body).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn answers_have_the_documented_fields() {
    let control = Arc::new(Fake::default());
    control
        .progress
        .lock()
        .push(event_view(EventState::Done, Some(EventOutcome::RolledBack)));
    let api = start(Arc::clone(&control), None).await;
    let keys = |value: &serde_json::Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<std::collections::BTreeSet<_>>()
    };
    let has = |value: &serde_json::Value, names: &str| {
        let keys = keys(value);
        for name in names.split(' ') {
            assert!(keys.contains(name), "{name} in {value}");
        }
    };
    let (status, list) = get(api, "/v1/clusters").await;
    assert_eq!(status, 200);
    has(
        &list[0],
        "name engine state capacity min max generation clients sessions server_connections event seconds_until_pause acu_seconds facts",
    );
    has(&list[0]["sessions"], "active at_rest held parked");
    let (status, one) = get(api, "/v1/clusters/shop").await;
    assert_eq!((status, &one), (200, &list[0]));
    assert_eq!(
        (one["state"].as_str(), one["capacity"].as_u64()),
        (Some("running"), Some(2))
    );

    let (status, sessions) = get(api, "/v1/clusters/shop/sessions").await;
    assert_eq!(status, 200);
    has(
        &sessions[0],
        "id user database application client_address state attached movable blockers probed_seconds_ago age_seconds",
    );
    has(
        &sessions[0]["blockers"][0],
        "kind detail statement age_seconds",
    );

    let (status, event) = get(api, "/v1/clusters/shop/events/5").await;
    assert_eq!(status, 200);
    has(
        &event,
        "id from to state outcome reason held_ms held_total_ms sessions_moved sessions_blocked step attempt waiting_for",
    );
    assert_eq!(event["outcome"], "rolled_back");
    assert_eq!(
        get(api, "/v1/clusters/shop/events").await.1[0]["outcome"],
        "completed"
    );

    assert_eq!(get(api, "/metrics").await.0, 200);
    assert_eq!(get(api, "/healthz").await.0, 200);
    let (status, body) = get(api, "/readyz").await;
    assert_eq!(
        (status, body["error"]["message"].as_str()),
        (503, Some("cluster shop has no server"))
    );
}

#[tokio::test]
async fn a_scale_request_reaches_control_as_it_was_meant() {
    let control = Arc::new(Fake::default());
    let api = start(Arc::clone(&control), None).await;
    let path = "/v1/clusters/shop/capacity";
    let (status, event) = post(
        api,
        path,
        r#"{"capacity":4,"timeout_seconds":30,"on_timeout":"force"}"#,
    )
    .await;
    assert_eq!(
        (status, event["id"].as_u64(), event["outcome"].is_null()),
        (202, Some(5), true)
    );
    assert_eq!(
        post(api, path, r#"{"capacity":2,"restart":true}"#).await.0,
        202
    );
    assert_eq!(
        *control.calls.lock(),
        [
            "scale shop ScaleRequest { capacity: Capacity(4), timeout: Some(30s), on_timeout: Some(Force), restart: false }",
            "scale shop ScaleRequest { capacity: Capacity(2), timeout: None, on_timeout: None, restart: true }",
        ]
    );
    for (code, status, word) in [
        (ErrorCode::EventRunning, 409, "event_running"),
        (ErrorCode::Draining, 503, "draining"),
    ] {
        *control.refusal.lock() = Some(ControlError::new(code, "not now"));
        let (got, body) = post(api, path, r#"{"capacity":4}"#).await;
        assert_eq!((got, &body["error"]["code"]), (status, &word.into()));
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn bad_requests_are_refused_with_what_is_wrong() {
    let control = Arc::new(Fake::default());
    let api = start(Arc::clone(&control), None).await;
    let capacity = "/v1/clusters/shop/capacity";
    for (path, body, status, code, words) in [
        (
            capacity,
            r#"{"capacity":3}"#,
            400,
            "invalid_capacity",
            "capacity 3 is not possible; 2, 4, 8 are",
        ),
        (capacity, r#"{"capacity":0}"#, 400, "not_supported", "pause"),
        (
            capacity,
            r#"{"capacity":-1}"#,
            400,
            "invalid_request",
            "u32",
        ),
        (
            capacity,
            r#"{"capacity":4,"timeout":5}"#,
            400,
            "invalid_request",
            "unknown field `timeout`",
        ),
        (
            capacity,
            r#"{"capacity":4,"timeout_seconds":0}"#,
            400,
            "invalid_request",
            "timeout_seconds is 0; 1 to 86400",
        ),
        (
            capacity,
            r#"{"capacity":4,"on_timeout":"wait"}"#,
            400,
            "invalid_request",
            "`rollback` or `force`",
        ),
        (
            capacity,
            "",
            400,
            "invalid_request",
            "the body can't be used",
        ),
        (capacity, "{", 400, "invalid_request", "EOF"),
        (
            "/v1/clusters/nope/capacity",
            r#"{"capacity":4}"#,
            404,
            "unknown_cluster",
            "\"nope\"",
        ),
        (
            "/v1/clusters/shop/hold",
            r#"{"for":5}"#,
            400,
            "invalid_request",
            "unknown field `for`",
        ),
        (
            "/v1/clusters/shop/release",
            r#"{"a":5}"#,
            400,
            "invalid_request",
            "unknown field `a`",
        ),
        (
            "/v1/clusters/shop/pause",
            "",
            400,
            "not_supported",
            "not in this release",
        ),
        (
            "/v1/clusters/shop/resume",
            "{}",
            400,
            "not_supported",
            "not in this release",
        ),
        (
            "/v1/clusters/shop/sessions",
            "",
            405,
            "method_not_allowed",
            "takes GET, not POST",
        ),
        ("/v1/nothing", "", 404, "unknown_path", "/v1/nothing"),
    ] {
        let (got, answer) = post(api, path, body).await;
        assert_eq!(
            (got, &answer["error"]["code"]),
            (status, &code.into()),
            "{path} {body}: {answer}"
        );
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{path} {body}: {message}");
    }
    let (status, answer) = get(api, capacity).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (405, &"method_not_allowed".into())
    );
    for path in [
        "/v1/clusters/shop/events/5",
        "/v1/clusters/shop/events/x",
        "/v1/clusters/x",
        "/v1/clusters/x/sessions",
        "/",
    ] {
        assert_eq!(get(api, path).await.0, 404, "{path}");
    }
    let (status, answer) = post(api, capacity, &" ".repeat(20_000)).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (413, &"body_too_large".into())
    );
    assert_eq!(*control.calls.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn hold_release_reload_and_drain() {
    let control = Arc::new(Fake::default());
    let api = start(Arc::clone(&control), None).await;
    assert_eq!(
        post(api, "/v1/clusters/shop/hold", "").await.1["name"],
        "shop"
    );
    assert_eq!(
        post(api, "/v1/clusters/shop/hold", r#"{"for_seconds":5}"#)
            .await
            .0,
        200
    );
    assert_eq!(post(api, "/v1/clusters/shop/release", "{}").await.0, 200);
    let (_, report) = post(api, "/v1/reload", "").await;
    assert_eq!(report["needs_restart"][0], "listen.postgres");
    assert_eq!(post(api, "/v1/drain", "").await.1["state"], "draining");
    assert_eq!(
        *control.calls.lock(),
        [
            "hold shop None",
            "hold shop Some(5s)",
            "release shop",
            "reload",
            "drain"
        ]
    );
}

#[tokio::test]
async fn a_web_page_can_not_ask() {
    let control = Arc::new(Fake::default());
    let api = start(Arc::clone(&control), None).await;
    for (head, status, code) in [
        (
            "POST /v1/drain HTTP/1.1\nhost: {host}\norigin: http://evil.example",
            403,
            "foreign_origin",
        ),
        (
            "POST /v1/drain HTTP/1.1\nhost: {host}\norigin: null",
            403,
            "foreign_origin",
        ),
        (
            "POST /v1/drain HTTP/1.1\nhost: evil.example:7432",
            403,
            "foreign_host",
        ),
        (
            "GET /v1/clusters HTTP/1.1\nhost: evil.example",
            403,
            "foreign_host",
        ),
        (
            "POST /v1/drain HTTP/1.1\nhost: {host}\ncontent-type: text/plain\ncontent-length: 0",
            415,
            "unsupported_media_type",
        ),
        (
            "POST /v1/drain HTTP/1.1\nhost: {host}\ntransfer-encoding: chunked",
            415,
            "unsupported_media_type",
        ),
    ] {
        let (got, body) = raw(
            api,
            head,
            if head.contains("chunked") {
                "0\r\n\r\n"
            } else {
                ""
            },
        )
        .await;
        assert_eq!(got, status, "{head}: {body}");
        assert!(body.contains(code), "{head}: {body}");
    }
    assert_eq!(*control.calls.lock(), Vec::<String>::new());
    let own = "POST /v1/drain HTTP/1.1\nhost: {host}\norigin: http://{host}";
    assert_eq!(raw(api, own, "").await.0, 200, "a page of our own may");
}

#[tokio::test]
async fn a_token_is_demanded_and_compared_whole() {
    let api = start(Arc::new(Fake::default()), Some("sesame-sesame")).await;
    let with = |path: &str, value: &str| {
        format!("GET {path} HTTP/1.1\nhost: db.example.com\nauthorization: {value}")
    };
    assert_eq!(
        raw(api, &with("/v1/clusters", "Bearer sesame-sesame"), "")
            .await
            .0,
        200
    );
    assert_eq!(
        raw(api, &with("/v1/clusters", "bearer sesame-sesame"), "")
            .await
            .0,
        200
    );
    for value in [
        "Bearer sesame",
        "Bearer sesame-sesame2",
        "Bearer",
        "Basic c2VzYW1l",
        "sesame-sesame",
    ] {
        let (status, body) = raw(api, &with("/metrics", value), "").await;
        assert_eq!(status, 401, "{value}");
        assert!(
            body.contains("admin.token_file") && !body.contains("sesame"),
            "{body}"
        );
    }
    assert_eq!(get(api, "/v1/clusters").await.0, 401);
    assert_eq!(get(api, "/healthz").await.0, 200);
}

#[tokio::test]
async fn shutdown_ends_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(
        listener,
        Arc::new(Fake::default()),
        None,
        shutdown.clone(),
    ));
    assert_eq!(get(address, "/healthz").await.0, 200);
    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), server).await;
    assert!(matches!(ended, Ok(Ok(Ok(())))));
}
