//! The bootstrap of an Envoy, put together from typed messages.
//!
//! ```text
//! Envoy ── xds-grpc ───────────────▶ control plane     mutual TLS, certificate by SDS
//!       ── sds-grpc ── Unix socket ▶ agent             certificates
//! :15021 ── agent ─────────────────▶ agent             readiness
//! :15090 ── prometheus_stats ──────▶ Envoy itself      metrics
//! ```
//!
//! **Invariant:** equal configurations give equal text, and no private key is in it.

mod clusters;
mod listeners;
mod stats;
#[cfg(test)]
mod tests;
mod wire;

use crate::config::{Config, RuntimeValue};
use prost::{Message as _, Name as _};
use proto::envoy::config::bootstrap::v3::bootstrap::{DynamicResources, StaticResources};
use proto::envoy::config::bootstrap::v3::runtime_layer::{AdminLayer, LayerSpecifier};
use proto::envoy::config::bootstrap::v3::{Admin, Bootstrap, LayeredRuntime, RuntimeLayer, bootstrap};
use proto::envoy::config::core::v3::api_config_source::ApiType;
use proto::envoy::config::core::v3::{ApiConfigSource, ApiVersion, Locality, Node};
use proto::envoy::config::overload::v3::{OverloadManager, ResourceMonitor, resource_monitor};
use proto::envoy::extensions::bootstrap::internal_listener::v3::InternalListener;
use proto::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use proto::google::protobuf::{Struct, Value};

/// The cluster of the control plane; compiled configuration and dashboards know it by this name.
pub const XDS_CLUSTER: &str = "xds-grpc";
/// The cluster of the agent's SDS server; compiled configuration names it.
pub const SDS_CLUSTER: &str = "sds-grpc";
/// The socket of the agent's SDS server.
pub const SDS_SOCKET: &str = "./var/run/secrets/workload-spiffe-uds/socket";
/// The runtime setting that limits connections to all listeners.
const CONNECTION_LIMIT: &str = "overload.global_downstream_max_connections";

/// Returns the bootstrap as JSON.
///
/// # Errors
/// If a message has no JSON form, which would be a mistake of this module.
pub fn json(config: &Config) -> Result<String, proto::json::JsonError> {
    let options = proto::json::WriteOptions { proto_names: true, ..Default::default() };
    let message = bootstrap(config).encode_to_vec();
    let json = proto::json::to_json_with(&Bootstrap::type_url(), &message, options)?;
    Ok(format!("{json:#}\n"))
}

/// Returns the node that the agent's own streams have: that of Envoy, with the agent's name.
pub fn agent_node(config: &Config) -> Node {
    Node { user_agent_name: "weft-agent".to_owned(), ..node(config) }
}

/// Returns the bootstrap.
pub fn bootstrap(config: &Config) -> Bootstrap {
    Bootstrap {
        node: Some(node(config)),
        layered_runtime: Some(runtime(config)),
        bootstrap_extensions: vec![wire::extension(
            "envoy.bootstrap.internal_listener",
            &InternalListener { buffer_size_kb: wire::u32_value(64) },
        )],
        stats_config: Some(stats::config(config)),
        stats_flush_interval: config.stats.flush_interval.map(Into::into),
        stats_eviction: config
            .stats
            .eviction_interval
            .map(|interval| bootstrap::StatsEviction::StatsEvictionInterval(interval.into())),
        admin: Some(Admin {
            address: Some(wire::address(config.node.families.loopback(), config.ports.admin)),
            ignore_global_conn_limit: true,
            ..Admin::default()
        }),
        dynamic_resources: Some(DynamicResources {
            lds_config: Some(wire::over_ads()),
            cds_config: Some(wire::over_ads()),
            ads_config: Some(ApiConfigSource {
                api_type: ApiType::DeltaGrpc.into(),
                transport_api_version: ApiVersion::V3.into(),
                set_node_on_first_message_only: true,
                grpc_services: vec![wire::grpc_service(XDS_CLUSTER)],
                ..ApiConfigSource::default()
            }),
            ..DynamicResources::default()
        }),
        static_resources: Some(StaticResources {
            clusters: clusters::all(config),
            listeners: listeners::all(config),
            secrets: Vec::new(),
        }),
        overload_manager: Some(overload(config)),
        cluster_manager: clusters::manager(config),
        ..Bootstrap::default()
    }
}

fn node(config: &Config) -> Node {
    let [region, zone, sub_zone] = config.node.locality.clone();
    let known = !region.is_empty();
    Node {
        id: config.node.id.clone(),
        cluster: config.node.cluster.clone(),
        locality: known.then_some(Locality { region, zone, sub_zone }),
        metadata: Some(
            config.node.metadata.iter().map(|(name, value)| (name.as_str(), wire::json(value))).collect(),
        ),
        ..Node::default()
    }
}

fn runtime(config: &Config) -> LayeredRuntime {
    let settings = config.runtime.iter().filter(|(name, _)| *name != CONNECTION_LIMIT);
    let settings: Struct = settings
        .map(|(name, value)| {
            let value = match value {
                RuntimeValue::Bool(value) => Value::from(*value),
                RuntimeValue::Text(text) => Value::from(text.as_str()),
            };
            (name.as_str(), value)
        })
        .collect();
    let layer = |name: &str, layer| RuntimeLayer { name: name.to_owned(), layer_specifier: Some(layer) };
    LayeredRuntime {
        layers: vec![
            layer("global config", LayerSpecifier::StaticLayer(settings)),
            layer("admin", LayerSpecifier::AdminLayer(AdminLayer {})),
        ],
    }
}

/// Envoy warns when nobody has said how many connections it may take. Like Istio we set no limit of our own, but one
/// that the user has set as a runtime value, which Envoy does not read any more, is respected.
fn overload(config: &Config) -> OverloadManager {
    let limit = match config.runtime.get(CONNECTION_LIMIT) {
        Some(RuntimeValue::Text(text)) => text.parse().ok().filter(|limit| *limit > 0),
        _ => None,
    };
    let limit = DownstreamConnectionsConfig {
        max_active_downstream_connections: limit.unwrap_or(i64::from(i32::MAX)),
    };
    OverloadManager {
        resource_monitors: vec![ResourceMonitor {
            name: "envoy.resource_monitors.global_downstream_max_connections".to_owned(),
            config_type: Some(resource_monitor::ConfigType::TypedConfig(proto::any(&limit))),
        }],
        ..OverloadManager::default()
    }
}
