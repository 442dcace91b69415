//! The paths, and reading of reviews within bounds.

use crate::review::{API_VERSION, Reply, Request, Response, Review};
use crate::{Knowledge, Metrics, mutate, validate};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::post;
use std::sync::Arc;
use std::time::Duration;

/// Both forms of an object at the API server's own limit, written out as JSON.
const LARGEST: usize = 8 << 20;
/// API servers give up after ten seconds by default.
const READING: Duration = Duration::from_secs(10);

/// One of the webhooks: what answers a review, of which the path may say which cluster asks, and what notes the answer.
#[derive(Clone)]
struct Hook {
    knowledge: Arc<dyn Knowledge>,
    metrics: Metrics,
    answer: fn(&dyn Knowledge, &str, &Request) -> Response,
    note: fn(&Metrics, &Request, &Response),
}

/// Returns the routes of the webhooks: `/inject`, `/validate`, each with anything below it.
pub fn router(knowledge: Arc<dyn Knowledge>, metrics: Metrics) -> Router {
    let inject = Hook {
        knowledge: knowledge.clone(),
        metrics: metrics.clone(),
        answer: mutate::mutate,
        note: Metrics::injected,
    };
    let validate = Hook {
        knowledge,
        metrics,
        answer: |knowledge, _, request| validate::validate(knowledge, request),
        note: Metrics::validated,
    };
    let routes = |path: &str, hook: Hook| {
        let below = format!("{path}/{{*settings}}");
        Router::new().route(path, post(answer)).route(&below, post(answer)).with_state(hook)
    };
    routes("/inject", inject).merge(routes("/validate", validate))
}

async fn answer(State(hook): State<Hook>, request: HttpRequest) -> HttpResponse {
    let refuse = |status: StatusCode, reason: &str| (status, format!("{reason}\n")).into_response();
    let media = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if media.unwrap_or_default().split(';').next().map(str::trim) != Some("application/json") {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be application/json");
    }
    let path = request.uri().path().to_owned();
    let body = match tokio::time::timeout(READING, to_bytes(request.into_body(), LARGEST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the review is too large, or broke off"),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time"),
    };
    // Large objects take milliseconds, which must not hold up other connections.
    let work = tokio::task::spawn_blocking(move || hook.reply(&path, &body));
    match work.await {
        Ok(Ok(reply)) => axum::Json(reply).into_response(),
        Ok(Err(reason)) => refuse(StatusCode::BAD_REQUEST, &reason),
        Err(error) => {
            tracing::error!(%error, "a review could not be answered");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the review could not be answered")
        }
    }
}

impl Hook {
    fn reply(&self, path: &str, body: &[u8]) -> Result<Reply, String> {
        let review: Review =
            serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview: {error}"))?;
        if review.kind != "AdmissionReview" || review.api_version != API_VERSION {
            let (version, kind) = (&review.api_version, &review.kind);
            return Err(format!("{version} {kind} is not AdmissionReview of {API_VERSION}"));
        }
        let request = review.request.ok_or_else(|| "the review has no request".to_owned())?;
        let mut response = (self.answer)(self.knowledge.as_ref(), path, &request);
        (self.note)(&self.metrics, &request, &response);
        response.uid = request.uid;
        Ok(Reply { api_version: API_VERSION, kind: "AdmissionReview", response })
    }
}
