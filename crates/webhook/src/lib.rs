//! Admission webhooks of Kubernetes: `/inject` adds proxies to pods, `/validate` refuses what would not be used.
//!
//! ```text
//! API server ─ HTTPS ─▶ server: bounded reading ─▶ review ─▶ mutate ─▶ inject    (pure)
//!                                                       └──▶ validate ─▶ translate (pure)
//!                                    Knowledge: settings, namespaces, nodes ─┘
//! ```
//!
//! Answers come from memory: a review never waits for the API server that is waiting for it.
//!
//! **Invariant:** this crate decides nothing about a proxy's configuration and keeps no state: what it knows it asks of
//! [`Knowledge`], which belongs to whoever serves it.

mod answer;
mod https;
mod metrics;
mod mutate;
mod review;
mod routes;
mod validate;

pub use https::{Limits, serve};
pub use metrics::Metrics;
pub use routes::router;

use k8s_api::yaml::DEFAULT_NAMESPACE;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known about the cluster and the mesh, read anew for each review.
pub trait Knowledge: Send + Sync + 'static {
    /// Returns the settings of injection.
    fn injection(&self) -> Arc<inject::Settings>;
    /// Returns what objects are translated with.
    fn context(&self) -> Arc<translate::Context>;
    /// Returns the annotations of a namespace; none if it is not known.
    fn namespace_annotations(&self, namespace: &str) -> BTreeMap<String, String>;
    /// Returns the versions of the kubelets that may run a pod: that of its node if it has one, else of all nodes.
    fn kubelets(&self, node: Option<&str>) -> Vec<String>;
    /// Returns the ProxyConfig objects that apply to a pod, the most general first, as layers of proxy configuration.
    fn proxy_config(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<serde_json::Value>;
    /// Returns whether security policies that are not enforced yet are accepted, with a warning.
    fn allows_unenforced_policies(&self) -> bool;
}

/// The namespace of an object that names none.
pub(crate) fn namespace_or_default(namespace: &str) -> &str {
    if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace }
}
