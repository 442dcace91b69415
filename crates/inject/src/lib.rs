//! Which pods get a proxy, and what is added to them.
//!
//! ```text
//! namespace, pod, settings ─▶ decision ─▶ annotations ─▶ templates ─▶ merge ─▶ what the user set ─▶ probes, metrics, order ─▶ patch
//!                               └ no: why                   (typed)     (strategic)  (wins)
//! ```
//!
//! The names are Istio's: containers, volumes, ports, environment, annotations and labels. What runs in the container is
//! weft-agent beside a stock Envoy, which understands these names.
//!
//! A pod is kept as the JSON it came in, so that fields which this crate has never heard of survive. What is added to it
//! is made from Kubernetes' types.
//!
//! **Invariant:** everything here is a function of its arguments: no clock, no randomness, no API server. Injecting what
//! was injected before changes nothing.

mod annotations;
mod decision;
mod diff;
mod error;
mod merge;
mod metrics;
mod native;
mod order;
mod path;
mod pipeline;
mod pod;
mod probes;
mod reinject;
mod security;
mod selector;
mod settings;
mod template;
mod values;
mod workload;

pub use decision::{Decision, Namespace, SYSTEM_NAMESPACES, SkipReason, Webhook, decide, decide_pod};
pub use diff::diff;
pub use error::InjectError;
pub use native::{NativeSidecars, supported as native_sidecars_supported};
pub use path::environment_of_path;
pub use pipeline::{Injected, Request, inject};
pub use selector::Selector;
pub use settings::{ControlPlane, Platform, Policy, Settings, SettingsError};
pub use template::Custom;
pub use values::{Values, overlay};
pub use workload::Workload;

/// The name of the proxy's container.
pub const PROXY: &str = "istio-proxy";
/// The name of the container that sets up traffic capture.
pub const INIT: &str = "istio-init";
/// The name of the container that checks that somebody else has set up traffic capture.
pub const VALIDATION: &str = "istio-validation";
/// The name of the container that lets the kernel write core dumps.
pub const CORE_DUMP: &str = "enable-core-dump";
