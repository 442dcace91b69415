//! Metrics of listeners.

use crate::table::Table;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// Its name.
    pub listener: &'static str,
}

/// A listener and what happened there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabel {
    /// The listener's name.
    pub listener: &'static str,
    /// What happened, in one word.
    pub reason: &'static str,
}

/// The metrics of all listeners. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Connections now.
    pub connections: Family<ListenerLabel, Gauge>,
    /// Connections that are not settled, now.
    pub strangers: Family<ListenerLabel, Gauge>,
    /// Connections accepted.
    pub accepted: Family<ListenerLabel, Counter>,
    /// Connections ended by us, or not let in, by reason.
    pub ended: Family<EventLabel, Counter>,
}

impl Metrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        registry.register("weft_connections", "Connections, by listener", m.connections);
        registry.register(
            "weft_connections_unproved",
            "Connections whose client has not shown that it may be here, by listener",
            m.strangers,
        );
        registry.register("weft_connections_accepted", "Connections accepted, by listener", m.accepted);
        registry.register(
            "weft_connections_ended",
            "Connections refused or ended by weftd, by listener and reason",
            m.ended,
        );
        metrics
    }

    pub(crate) fn of(&self, listener: &'static str) -> ListenerMetrics {
        let label = ListenerLabel { listener };
        ListenerMetrics {
            listener,
            connections: self.connections.get_or_create_owned(&label),
            strangers: self.strangers.get_or_create_owned(&label),
            accepted: self.accepted.get_or_create_owned(&label),
            ended: self.ended.clone(),
        }
    }
}

/// The metrics of one listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerMetrics {
    listener: &'static str,
    connections: Gauge,
    strangers: Gauge,
    pub(crate) accepted: Counter,
    ended: Family<EventLabel, Counter>,
}

impl ListenerMetrics {
    pub(crate) fn count<H: Clone>(&self, table: &Table<H>) {
        self.connections.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        self.strangers.set(i64::try_from(table.strangers()).unwrap_or(i64::MAX));
    }

    pub(crate) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&EventLabel { listener: self.listener, reason }).inc();
    }
}
