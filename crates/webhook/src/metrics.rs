//! What the webhooks count, under Istio's names.

use crate::review::{Request, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of what was asked and answered. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Counter,
    success: Counter,
    failure: Counter,
    skip: Counter,
    passed: Family<Kind, Counter>,
    failed: Family<Kind, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    group: String,
    resource: String,
}

/// Longer names are nobody's: who asks decides about them, and each is kept in memory.
const LONGEST: usize = 64;

impl Metrics {
    /// Registers the counters.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (name, help, counter) in [
            ("sidecar_injection_requests", "Pods that were asked about", &metrics.requests),
            ("sidecar_injection_success", "Pods that got a proxy", &metrics.success),
            ("sidecar_injection_failure", "Pods that were refused", &metrics.failure),
            ("sidecar_injection_skip", "Pods that are to have no proxy", &metrics.skip),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, family) in [
            ("galley_validation_passed", "Objects that were accepted", &metrics.passed),
            ("galley_validation_failed", "Objects that were refused", &metrics.failed),
        ] {
            registry.register(name, help, family.clone());
        }
        metrics
    }

    /// Notes the answer about a pod.
    pub(crate) fn injected(&self, _: &Request, response: &Response) {
        self.requests.inc();
        match (response.allowed, &response.patch) {
            (false, _) => self.failure.inc(),
            (true, Some(_)) => self.success.inc(),
            (true, None) => self.skip.inc(),
        };
    }

    /// Notes the answer about an object.
    pub(crate) fn validated(&self, request: &Request, response: &Response) {
        let short = |text: &str| if text.len() <= LONGEST { text.to_owned() } else { "?".to_owned() };
        let kind =
            Kind { group: short(&request.resource.group), resource: short(&request.resource.resource) };
        let family = if response.allowed { &self.passed } else { &self.failed };
        family.get_or_create(&kind).inc();
    }
}
