//! Metrics of the agent, of Envoy, and of the application, as one answer.
//!
//! They are put one after the other; the application's come last, since in OpenMetrics' form they end with a mark. What
//! cannot be had is left out and counted: a broken application must not hide what Envoy says about it.

use crate::config::ScrapeTarget;
use crate::http::{Answer, HttpError, Question};
use crate::metrics::Metrics;
use axum::http::{HeaderMap, HeaderName, header};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text";
/// How long the scraper waits.
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";
/// How long it is waited for without that.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer of each.
const LIMIT: usize = 32 << 20;
/// What of the scraper's request is passed on: in which form it wants metrics, and who it is.
const PASSED_ON: [HeaderName; 2] = [header::ACCEPT, header::USER_AGENT];

/// Where metrics come from.
pub(super) struct Sources<'a> {
    pub(super) envoy: SocketAddr,
    pub(super) application: Option<&'a ScrapeTarget>,
    pub(super) loopback: IpAddr,
    pub(super) metrics: &'a Metrics,
}

/// What the scraper gets.
pub(super) struct Merged {
    pub(super) content_type: String,
    pub(super) text: Vec<u8>,
}

/// Asks everybody at once.
pub(super) async fn scrape(sources: &Sources<'_>, query: Option<&str>, headers: &HeaderMap) -> Merged {
    sources.metrics.scrapes.inc();
    let envoy = match query {
        Some(query) => format!("/stats/prometheus?{query}"),
        None => "/stats/prometheus".to_owned(),
    };
    let envoy = ask(sources.envoy, &envoy, headers);
    let application = async {
        let target = sources.application?;
        Some(ask(SocketAddr::new(sources.loopback, target.port), &target.path, headers).await)
    };
    let (envoy, application) = tokio::join!(envoy, application);
    let note = |part: &'static str, error: HttpError| {
        tracing::warn!(part, %error, "metrics lack a part");
        sources.metrics.scrape_failed(part);
    };
    let envoy = envoy.map_err(|error| note("envoy", error)).ok();
    let application = application.and_then(|answer| answer.map_err(|error| note("application", error)).ok());
    // After the others, so that what was just counted is in it.
    merge(&sources.metrics.text(), envoy.as_ref(), application.as_ref())
}

async fn ask(address: SocketAddr, path: &str, headers: &HeaderMap) -> Result<Answer, HttpError> {
    let mut question = Question { limit: LIMIT, timeout: timeout(headers), ..Question::get(address, path) };
    for name in PASSED_ON {
        if let Some(value) = headers.get(&name) {
            question.headers.insert(name, value.clone());
        }
    }
    let answer = question.send().await?;
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(HttpError::Protocol(format!("{address}{path} answers {}", answer.status)))
}

/// A little less than the scraper waits, so that it gets what there is.
fn timeout(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let given = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds * 0.9).ok());
    given.filter(|given| !given.is_zero()).unwrap_or(DEFAULT_TIMEOUT).min(Duration::from_secs(60))
}

fn merge(agent: &str, envoy: Option<&Answer>, application: Option<&Answer>) -> Merged {
    let mut text = agent.as_bytes().to_vec();
    if let Some(envoy) = envoy {
        append(&mut text, without_end(&envoy.body));
    }
    let mut content_type = TEXT.to_owned();
    if let Some(application) = application {
        let kind = application.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if let Some(kind) = kind.filter(|kind| kind.trim_start().starts_with(OPEN_METRICS)) {
            content_type = kind.to_owned();
            append(&mut text, without_end(&application.body));
            append(&mut text, b"# EOF\n");
        } else {
            append(&mut text, &application.body);
        }
    }
    Merged { content_type, text }
}

/// Appends on a line of its own.
fn append(text: &mut Vec<u8>, part: &[u8]) {
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(part);
}

/// Cuts OpenMetrics' end mark off.
fn without_end(body: &[u8]) -> &[u8] {
    let trimmed = body.trim_ascii_end();
    match trimmed.strip_suffix(b"# EOF") {
        Some(rest) if rest.is_empty() || rest.ends_with(b"\n") => rest,
        _ => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn answer(kind: &'static str, body: &'static str) -> Answer {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);
        Answer { status: StatusCode::OK, headers, body: body.into() }
    }

    fn check(envoy: Option<&Answer>, application: Option<&Answer>) -> (String, String) {
        let merged = merge("agent 1\n", envoy, application);
        (merged.content_type, String::from_utf8(merged.text).unwrap())
    }

    #[test]
    fn parts_follow_each_other() {
        let envoy = answer("text/plain", "envoy 1\n");
        let application = answer("text/plain; version=0.0.4", "app 1");
        let expected = (TEXT.to_owned(), "agent 1\nenvoy 1\napp 1".to_owned());
        assert_eq!(check(Some(&envoy), Some(&application)), expected);
        assert_eq!(check(None, None), (TEXT.to_owned(), "agent 1\n".to_owned()));
    }

    #[test]
    fn open_metrics_have_one_end() {
        let envoy = answer("text/plain", "envoy 1");
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        for body in ["app 1\n# EOF\n", "app 1\n# EOF", "app 1\n"] {
            let application = answer(kind, body);
            let expected = (kind.to_owned(), "agent 1\nenvoy 1\napp 1\n# EOF\n".to_owned());
            assert_eq!(check(Some(&envoy), Some(&application)), expected, "{body:?}");
        }
        // Envoy's end would be taken for that of all.
        let envoy = answer(kind, "envoy 1\n# EOF\n");
        let application = answer("text/plain", "app 1\n");
        assert_eq!(check(Some(&envoy), Some(&application)).1, "agent 1\nenvoy 1\napp 1\n");
    }

    #[test]
    fn the_scrapers_patience_is_respected_within_reason() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(TIMEOUT_HEADER), value.parse().unwrap())])
        };
        assert_eq!(timeout(&headers("10")), Duration::from_secs(9));
        assert_eq!(timeout(&headers("1e9")), Duration::from_secs(60));
        for bad in ["-1", "NaN", "soon", "0"] {
            assert_eq!(timeout(&headers(bad)), DEFAULT_TIMEOUT, "{bad}");
        }
    }
}
