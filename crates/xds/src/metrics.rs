//! Metrics of the server. Where Istio has a metric of the same meaning, it has Istio's name.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proto::resource::{ResourceType, Warming};
use serve::{Counter, ReasonLabel};
use std::sync::{Arc, OnceLock};

/// The type of a resource, or of what was done with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// `cds`, `eds`, …; type URLs where Istio has them.
    pub r#type: &'static str,
}

/// The version that a proxy says it has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VersionLabel {
    /// Its `ISTIO_VERSION`.
    pub version: String,
}

/// The metrics of one type, which need not be looked up for each message.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    pub(crate) pushes: Counter,
    pub(crate) push_time: Histogram,
    pub(crate) ack_time: Histogram,
    pub(crate) config_size: Histogram,
}

type TypedHistogram = Family<TypeLabel, Histogram, fn() -> Histogram>;

/// The metrics of a server. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connected streams by proxy version.
    pub connected: Family<VersionLabel, Gauge>,
    /// Responses by type.
    pub pushes: Family<TypeLabel, Counter>,
    /// Rejected responses by type.
    pub rejects: Family<TypeLabel, Counter>,
    /// Answers to nonces that the stream never sent, by type.
    pub unknown_nonces: Family<TypeLabel, Counter>,
    /// Seconds from a change's arrival at a session to the response being ready, by type.
    pub push_time: TypedHistogram,
    /// Seconds for which writing a response blocked.
    pub send_time: Histogram,
    /// Seconds from a response to its acknowledgement, by type.
    pub ack_time: TypedHistogram,
    /// The size of responses by type URL.
    pub config_size: TypedHistogram,
    /// Streams ended because the client did not read.
    pub write_timeouts: Counter,
    /// Clusters that were no longer waited for, by what they waited for.
    pub grace_expirations: Family<ReasonLabel, Counter>,
    /// Clusters that keep clients from answering, now.
    pub stuck_clusters: Gauge,
    /// Streams refused, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// By [`ResourceType`].
    typed: Arc<[OnceLock<Typed>; 5]>,
}

impl Metrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new([0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0]);
        let metrics = Self {
            connected: Family::default(),
            pushes: Family::default(),
            rejects: Family::default(),
            unknown_nonces: Family::default(),
            push_time: Family::new_with_constructor(seconds),
            send_time: Histogram::new([0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0]),
            ack_time: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0])
            }),
            config_size: Family::new_with_constructor(|| Histogram::new([1.0, 1e4, 1e6, 4e6, 1e7, 4e7])),
            write_timeouts: Counter::default(),
            grace_expirations: Family::default(),
            stuck_clusters: Gauge::default(),
            refused: Family::default(),
            typed: Arc::default(),
        };
        let m = metrics.clone();
        registry.register("pilot_xds", "Connected xDS clients, by version", m.connected);
        registry.register("pilot_xds_pushes", "xDS responses sent, by type", m.pushes);
        registry.register("pilot_total_xds_rejects", "xDS responses rejected by proxies, by type", m.rejects);
        registry.register("pilot_xds_expired_nonce", "xDS requests with an unknown nonce", m.unknown_nonces);
        registry.register("pilot_xds_push_time", "Seconds to prepare a response, by type", m.push_time);
        registry.register("pilot_xds_send_time", "Seconds for which sending a response blocked", m.send_time);
        registry.register("pilot_xds_config_size_bytes", "Size of responses, by type", m.config_size);
        registry.register(
            "pilot_xds_write_timeout",
            "Streams ended since the client did not read",
            m.write_timeouts,
        );
        registry.register(
            "weft_xds_ack_seconds",
            "Seconds from a response to its acknowledgement",
            m.ack_time,
        );
        registry.register(
            "weft_xds_grace_expirations",
            "Clusters that routes no longer wait for although nothing shows that they have warmed",
            m.grace_expirations,
        );
        registry.register(
            "weft_xds_stuck_clusters",
            "Clusters that keep proxies from answering",
            m.stuck_clusters,
        );
        registry.register("weft_xds_refused", "Streams refused, by reason", m.refused);
        metrics
    }

    /// Returns the metrics of one type.
    pub(crate) fn of(&self, kind: ResourceType) -> &Typed {
        self.typed[kind as usize].get_or_init(|| Typed {
            pushes: self.pushes.get_or_create(&type_label(kind)).clone(),
            push_time: self.push_time.get_or_create(&type_label(kind)).clone(),
            ack_time: self.ack_time.get_or_create(&type_label(kind)).clone(),
            config_size: self.config_size.get_or_create(&TypeLabel { r#type: kind.type_url() }).clone(),
        })
    }
}

/// Returns Istio's label for a type: `cds`, `eds`, ….
pub(crate) fn type_label(kind: ResourceType) -> TypeLabel {
    TypeLabel {
        r#type: match kind {
            ResourceType::Cluster => "cds",
            ResourceType::ClusterLoadAssignment => "eds",
            ResourceType::Listener => "lds",
            ResourceType::RouteConfiguration => "rds",
            ResourceType::Secret => "sds",
        },
    }
}

pub(crate) fn warming_label(warming: Warming) -> ReasonLabel {
    ReasonLabel {
        reason: match warming {
            Warming::Assignment => "assignment",
            Warming::Dns => "dns",
            Warming::Nothing => "other",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_keep_istios_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.pushes.get_or_create(&type_label(ResourceType::Cluster)).add(3);
        metrics.write_timeouts.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("# TYPE pilot_xds_pushes counter\npilot_xds_pushes{type=\"cds\"} 3\n"),
            "{text}"
        );
        assert!(text.contains("\npilot_xds_write_timeout 1\n"), "{text}");
    }
}
