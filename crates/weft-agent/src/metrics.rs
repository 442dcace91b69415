//! The agent's own metrics, under Istio's names.

use crate::identity::Identity;
use crate::names;
use ca::TrustBundle;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The label of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SecretLabel {
    resource_name: &'static str,
}

/// The label of what was scraped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ScrapeLabel {
    r#type: &'static str,
}

/// The agent's own metrics. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests for certificates.
    pub requests: Counter,
    /// Those that failed.
    pub failed_requests: Counter,
    /// Scrapes of merged metrics.
    pub scrapes: Counter,
    failed_scrapes: Family<ScrapeLabel, Counter>,
    ends: Family<SecretLabel, Gauge>,
    left: Family<SecretLabel, Gauge>,
    startup: Gauge<f64, AtomicU64>,
    started: Instant,
    registry: Arc<Registry>,
}

impl Metrics {
    /// Returns new metrics.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("istio_agent");
        let (requests, failed_requests, scrapes) =
            (Counter::default(), Counter::default(), Counter::default());
        let failed_scrapes = Family::<ScrapeLabel, Counter>::default();
        let (ends, left) = (Family::<SecretLabel, Gauge>::default(), Family::<SecretLabel, Gauge>::default());
        let startup = Gauge::<f64, AtomicU64>::default();
        registry.register("num_outgoing_requests", "Requests for certificates", requests.clone());
        registry.register(
            "num_failed_outgoing_requests",
            "Requests for certificates that failed",
            failed_requests.clone(),
        );
        registry.register("scrapes", "Scrapes of merged metrics", scrapes.clone());
        registry.register(
            "scrape_failures",
            "Scrapes of merged metrics that lack a part",
            failed_scrapes.clone(),
        );
        let help = "When a certificate ends, in seconds since 1970";
        registry.register("cert_expiry_timestamp_seconds", help, ends.clone());
        registry.register(
            "cert_expiry_seconds",
            "In how many seconds a certificate ends; negative if it has",
            left.clone(),
        );
        registry.register("startup_duration_seconds", "How long it took to be ready", startup.clone());
        Self {
            requests,
            failed_requests,
            scrapes,
            failed_scrapes,
            ends,
            left,
            startup,
            started: Instant::now(),
            registry: Arc::new(registry),
        }
    }

    /// Notes when certificates end.
    pub fn certificate(&self, identity: &Identity, roots: &TrustBundle) {
        let set = |resource_name, end: i64| {
            self.ends.get_or_create(&SecretLabel { resource_name }).set(end);
        };
        set(names::WORKLOAD_CERTIFICATE, identity.validity.not_after.as_seconds());
        let first = roots.iter().map(|root| root.validity().not_after.as_seconds()).min();
        set(names::WORKLOAD_ROOTS, first.unwrap_or_default());
    }

    /// Notes that a part of merged metrics is missing: `envoy`, `application` or `agent`.
    pub fn scrape_failed(&self, part: &'static str) {
        self.failed_scrapes.get_or_create(&ScrapeLabel { r#type: part }).inc();
    }

    /// Notes that the proxy is ready for the first time.
    pub fn ready(&self) {
        self.startup.set(self.started.elapsed().as_secs_f64());
    }

    /// Returns all of them as text, without OpenMetrics' end mark: others follow.
    pub fn text(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        for resource_name in [names::WORKLOAD_CERTIFICATE, names::WORKLOAD_ROOTS] {
            let label = SecretLabel { resource_name };
            if let Some(end) = self.ends.get(&label).map(|end| end.get()) {
                self.left.get_or_create(&label).set(end.saturating_sub(now));
            }
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        if let Some(end) = out.rfind("# EOF") {
            out.truncate(end);
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
