//! What is noted of changes, for those who report on objects.

use index::{Change, Reset};
use k8s_api::core::EndpointSlice;
use k8s_api::object::{Object, ObjectKey};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The label of a slice that names its Service.
const SERVICE: &str = "kubernetes.io/service-name";
/// The name of the port of a control plane's Service at which it proves who it is.
const PORT: &str = "https-dns";

/// Something that has happened to an object that is reported on.
#[derive(Clone, Debug)]
pub(crate) enum Noted {
    /// It is new or different.
    Is(Arc<Object>),
    /// It is gone.
    Gone(ObjectKey),
    /// These are all of the kind.
    All(&'static str, Vec<Arc<Object>>),
    /// The names of the revision that weftd is.
    Revisions(BTreeSet<String>),
    /// Where replicas listen, by the EndpointSlice that says so; nowhere if it is gone.
    Replicas(String, BTreeSet<SocketAddr>),
    /// These slices are all that there are.
    AllReplicas(BTreeSet<String>),
}

/// What was noted, and the first view that it went into.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) noted: Vec<Noted>,
    pub(crate) generation: u64,
}

/// Notes changes until they are published.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: mpsc::UnboundedSender<Told>,
    noted: Vec<Noted>,
    /// Namespace and name of weftd's own Service.
    service: (String, String),
}

impl Feed {
    pub(crate) fn new(sender: mpsc::UnboundedSender<Told>, namespace: String, service: String) -> Self {
        Self { sender, noted: Vec::new(), service: (namespace, service) }
    }

    /// Notes a change that the index is about to take in.
    pub(crate) fn note(&mut self, change: &Change) {
        match change {
            Change::Reset(Reset::Kind("EndpointSlice"), slices) => {
                let all = slices.iter().filter_map(|slice| self.replicas(&slice.object)).collect::<Vec<_>>();
                let names = all.iter().map(|(name, _)| name.clone()).collect();
                self.noted.push(Noted::AllReplicas(names));
                self.noted.extend(all.into_iter().map(|(name, at)| Noted::Replicas(name, at)));
            }
            Change::Reset(Reset::Kind(kind), objects) if is_reported_on(kind) => {
                self.noted
                    .push(Noted::All(kind, objects.iter().map(|object| object.object.clone()).collect()));
            }
            Change::Apply(sourced) => {
                if let Some((name, at)) = self.replicas(&sourced.object) {
                    self.noted.push(Noted::Replicas(name, at));
                } else if is_reported_on(&sourced.object.key().kind) {
                    self.noted.push(Noted::Is(sourced.object.clone()));
                }
            }
            Change::Delete(key) if key.kind == "EndpointSlice" && key.namespace == self.service.0 => {
                self.noted.push(Noted::Replicas(key.name.clone(), BTreeSet::new()));
            }
            Change::Delete(key) if is_reported_on(&key.kind) => self.noted.push(Noted::Gone(key.clone())),
            Change::Revisions(names) => self.noted.push(Noted::Revisions(names.clone())),
            _ => {}
        }
    }

    /// Tells of what was noted: it is a part of this view.
    pub(crate) fn published(&mut self, generation: u64) {
        if !self.noted.is_empty() {
            // Nobody listens any more only when weftd ends.
            let _ = self.sender.send(Told { noted: std::mem::take(&mut self.noted), generation });
        }
    }

    /// Returns where replicas listen, if this is a slice of weftd's own Service.
    fn replicas(&self, object: &Object) -> Option<(String, BTreeSet<SocketAddr>)> {
        let Object::EndpointSlice(slice) = object else { return None };
        let metadata = &slice.metadata;
        let is_ours = metadata.namespace.as_ref() == Some(&self.service.0)
            && metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE)) == Some(&self.service.1);
        is_ours.then(|| (metadata.name.clone().unwrap_or_default(), addresses(slice)))
    }
}

/// Whether an object of this kind has conditions of ours. Only Istio's kinds have a place for them.
fn is_reported_on(kind: &str) -> bool {
    const KINDS: [&str; 7] = [
        "VirtualService",
        "DestinationRule",
        "Gateway",
        "ServiceEntry",
        "WorkloadEntry",
        "Sidecar",
        "PeerAuthentication",
    ];
    KINDS.contains(&kind)
}

/// Those that serve, also while they end: proxies are still there.
fn addresses(slice: &EndpointSlice) -> BTreeSet<SocketAddr> {
    let port = slice.ports.iter().find(|port| port.name == PORT).and_then(|port| port.port);
    let Some(port) = port else { return BTreeSet::new() };
    let conditions = |endpoint: &k8s_api::core::Endpoint| {
        endpoint.conditions.serving.or(endpoint.conditions.ready).unwrap_or(true)
    };
    let serving = slice.endpoints.iter().filter(|endpoint| conditions(endpoint));
    let addresses = serving.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok());
    addresses.map(|ip| SocketAddr::new(ip, port)).collect()
}
