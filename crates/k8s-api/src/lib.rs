//! The API types that Weft reads, and the source of `crds/`.
//!
//! - Istio's kinds, one module each: [`virtual_service`], [`destination_rule`], [`gateway`], [`service_entry`], [`workload_entry`],
//!   [`sidecar`], [`peer_authentication`], [`authorization_policy`], [`request_authentication`], [`telemetry`], [`envoy_filter`],
//!   [`extension`] (WasmPlugin and TrafficExtension), [`workload_group`], [`proxy_config`]; what they share is in [`meta`].
//! - [`mesh_config`]: MeshConfig and meshNetworks with Istio's defaults and merge rules.
//! - [`core`]: the Kubernetes kinds a mesh needs, with only the fields it needs; [`admission`]: webhooks' configurations.
//! - [`pod`]: the pod types with all their fields, for those who write pods.
//! - [`yaml`]: manifests to [`object::Object`]s, with errors and unknown fields located by file, line and path.
//! - [`crd`]: CustomResourceDefinitions made from the types.
//!
//! One Rust type serves all versions of a kind, because Istio's versions differ in name only. Decoding is lenient (see
//! `wire.rs`): what is wrong with a value is for `translate` to say, with a reason, about that one object.
//!
//! **Invariant:** this crate knows no other crate of the workspace: neither what a mesh makes of an object nor where
//! objects come from. It is the only door to `k8s-openapi`.

pub mod admission;
pub mod authorization_policy;
pub mod core;
pub mod crd;
pub mod destination_rule;
pub mod envoy_filter;
pub mod extension;
pub mod gateway;
pub mod mesh_config;
pub mod meta;
pub mod object;
pub mod peer_authentication;
pub mod pod;
pub mod proxy_config;
pub mod reference_grant;
pub mod request_authentication;
pub mod service_entry;
pub mod sidecar;
pub mod telemetry;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;
pub mod yaml;

mod schema;
mod wire;
