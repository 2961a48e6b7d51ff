//! Paths and methods, and how answers and refusals are written.

use super::guard::{Guard, Refusal};
use super::{Control, ControlError, ErrorCode, request};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde::Serialize;
use std::sync::Arc;

type Shared = Arc<dyn Control>;
type Answer = Result<Response, ControlError>;

/// All routes, each behind `guard`.
pub(super) fn router(control: Shared, guard: Guard) -> Router {
    let guard = Arc::new(guard);
    let reads = Router::new()
        .route("/v1/clusters", only_get(get(clusters)))
        .route("/v1/clusters/{cluster}", only_get(get(cluster)))
        .route("/v1/clusters/{cluster}/sessions", only_get(get(sessions)))
        .route("/v1/clusters/{cluster}/events", only_get(get(events)))
        .route("/v1/clusters/{cluster}/events/{id}", only_get(get(event)))
        .route("/metrics", only_get(get(metrics)))
        .route("/healthz", only_get(get(healthz)))
        .route("/readyz", only_get(get(readyz)));
    let writes = Router::new()
        .route("/v1/clusters/{cluster}/capacity", only_post(post(scale)))
        .route("/v1/clusters/{cluster}/hold", only_post(post(hold)))
        .route("/v1/clusters/{cluster}/release", only_post(post(release)))
        .route("/v1/clusters/{cluster}/pause", only_post(post(pause)))
        .route("/v1/clusters/{cluster}/resume", only_post(post(resume)))
        .route("/v1/reload", only_post(post(reload)))
        .route("/v1/drain", only_post(post(drain)));
    reads
        .merge(writes)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(request::MAX_BODY))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let guard = Arc::clone(&guard);
            async move { guarded(&guard, request, next).await }
        }))
        .with_state(control)
}

fn only_get(route: MethodRouter<Shared>) -> MethodRouter<Shared> {
    route.fallback(|method: Method, uri: Uri| async move { wrong_method(&method, &uri, "GET") })
}

fn only_post(route: MethodRouter<Shared>) -> MethodRouter<Shared> {
    route.fallback(|method: Method, uri: Uri| async move { wrong_method(&method, &uri, "POST") })
}

async fn guarded(guard: &Guard, request: Request, next: Next) -> Response {
    let open = matches!(request.uri().path(), "/healthz" | "/readyz");
    let checked = guard.check(request.method(), open, request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refuse(refusal),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

async fn clusters(State(control): State<Shared>) -> Response {
    json(StatusCode::OK, &control.clusters())
}

async fn cluster(State(control): State<Shared>, Path(name): Path<String>) -> Answer {
    Ok(json(StatusCode::OK, &control.cluster(&name)?))
}

async fn sessions(State(control): State<Shared>, Path(name): Path<String>) -> Answer {
    let sessions = beside(move || control.sessions(&name)).await?;
    Ok(json(StatusCode::OK, &sessions?))
}

async fn events(State(control): State<Shared>, Path(name): Path<String>) -> Answer {
    Ok(json(StatusCode::OK, &control.events(&name)?))
}

async fn event(State(control): State<Shared>, Path((name, id)): Path<(String, String)>) -> Answer {
    let id = id.parse().map_err(|_| {
        ControlError::new(
            ErrorCode::UnknownEvent,
            format!("{id:?} is no event; events have numbers"),
        )
    })?;
    Ok(json(StatusCode::OK, &control.event(&name, id)?))
}

async fn scale(State(control): State<Shared>, Path(name): Path<String>, body: Body) -> Answer {
    let body = read(body).await?;
    let wanted = control
        .cluster(&name)
        .and_then(|cluster| request::scale(&body, &cluster.ladder))
        .and_then(|wanted| control.scale(&name, wanted))?;
    Ok(json(StatusCode::ACCEPTED, &wanted))
}

async fn hold(State(control): State<Shared>, Path(name): Path<String>, body: Body) -> Answer {
    let body = read(body).await?;
    let period = request::hold(&body)?;
    answer(control.hold(&name, period))
}

async fn release(State(control): State<Shared>, Path(name): Path<String>, body: Body) -> Answer {
    read_nothing(body).await?;
    answer(control.release(&name))
}

async fn pause(State(control): State<Shared>, Path(name): Path<String>, body: Body) -> Answer {
    read_nothing(body).await?;
    answer(control.pause(&name))
}

async fn resume(State(control): State<Shared>, Path(name): Path<String>, body: Body) -> Answer {
    read_nothing(body).await?;
    answer(control.resume(&name))
}

async fn reload(State(control): State<Shared>, body: Body) -> Answer {
    read_nothing(body).await?;
    answer(beside(move || control.reload()).await?)
}

async fn drain(State(control): State<Shared>, body: Body) -> Answer {
    read_nothing(body).await?;
    answer(
        control
            .drain()
            .map(|()| serde_json::json!({ "state": "draining" })),
    )
}

async fn metrics(State(control): State<Shared>) -> Answer {
    let content_type = HeaderValue::from_static(crate::observe::metrics::CONTENT_TYPE);
    let text = beside(move || control.metrics_text()).await?;
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// Does what waits, for sessions or for the disk, on a thread that serves nobody else.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        ControlError::new(
            ErrorCode::Unavailable,
            "the answer could not be made; the proxy's log says why",
        )
    })
}

async fn healthz() -> Response {
    json(StatusCode::OK, &serde_json::json!({ "alive": true }))
}

async fn readyz(State(control): State<Shared>) -> Response {
    match control.ready() {
        Ok(()) => json(StatusCode::OK, &serde_json::json!({ "ready": true })),
        Err(reason) => refuse((StatusCode::SERVICE_UNAVAILABLE, "not_ready", reason)),
    }
}

async fn not_found(uri: Uri) -> Response {
    refuse((
        StatusCode::NOT_FOUND,
        "unknown_path",
        format!(
            "there is nothing at {}; docs/admin-api.md lists the paths",
            uri.path()
        ),
    ))
}

fn wrong_method(method: &Method, uri: &Uri, allowed: &'static str) -> Response {
    let mut response = refuse((
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} takes {allowed}, not {method}", uri.path()),
    ));
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

async fn read(body: Body) -> Result<Bytes, ControlError> {
    axum::body::to_bytes(body, request::MAX_BODY)
        .await
        .map_err(|_| {
            ControlError::new(
                ErrorCode::BodyTooLarge,
                format!(
                    "the body is cut off, or longer than {} bytes",
                    request::MAX_BODY
                ),
            )
        })
}

async fn read_nothing(body: Body) -> Result<(), ControlError> {
    let body = read(body).await?;
    request::nothing(&body)
}

fn answer<T: Serialize>(result: Result<T, ControlError>) -> Answer {
    result.map(|value| json(StatusCode::OK, &value))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    (status, axum::Json(value)).into_response()
}

fn refuse((status, code, message): Refusal) -> Response {
    json(
        status,
        &serde_json::json!({ "error": { "code": code, "message": message } }),
    )
}

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        refuse((status, self.code.as_str(), self.message))
    }
}
