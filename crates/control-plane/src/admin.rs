//! Readiness, metrics and debug pages.

mod access;
#[cfg(test)]
mod tests;

pub(crate) use access::Doorkeepers;

use crate::source::is_agent;
use crate::sources::Sources;
use crate::writer::WriterState;
use access::Viewer;
use anyhow::{Context as _, Result};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use prometheus_client::registry::Registry;
use proto::google::protobuf::value::Kind;
use proto::json::{WriteOptions, to_json_with};
use proto::resource::{ResourceSet, ResourceType};
use push::Push;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xds::registry::SessionView;

/// What the pages show.
#[derive(Clone)]
pub(crate) struct AdminState {
    pub(crate) writer: watch::Receiver<WriterState>,
    pub(crate) sources: Sources,
    pub(crate) push: Push,
    pub(crate) sessions: xds::Registry,
    pub(crate) metrics: Arc<Registry>,
    /// How far the replacement of a root is; nothing if there is no authority.
    pub(crate) rotation: Option<watch::Receiver<String>>,
    /// Who knows tokens; nobody, if there is no authority.
    pub(crate) doorkeepers: Option<Doorkeepers>,
    /// weftd's own namespace.
    pub(crate) namespace: String,
    /// How writing to the cluster is going.
    pub(crate) writes: watch::Receiver<controllers::WriteStates>,
    /// Ports that a pod which is ready has to answer at, by what they are for.
    pub(crate) ports: Vec<(&'static str, watch::Receiver<bool>)>,
    pub(crate) stopping: CancellationToken,
}

/// Serves `/ready`.
pub(crate) async fn serve_health(listener: TcpListener, state: AdminState) -> Result<()> {
    let routes = Router::new().route("/ready", get(ready)).with_state(state);
    axum::serve(listener, routes).await.context("the health server ended")
}

/// Serves metrics and debug pages.
pub(crate) async fn serve_monitoring(listener: TcpListener, state: AdminState) -> Result<()> {
    let routes = monitoring(state).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, routes).await.context("the monitoring server ended")
}

/// Every page of the monitoring port, each for whom it is.
fn monitoring(state: AdminState) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .route("/debug/syncz", get(syncz))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/registryz", get(registryz))
        .route("/debug/sourcez", get(sourcez))
        .route("/debug/findingz", get(findingz))
        .route("/debug/rotationz", get(rotationz))
        .layer(axum::middleware::from_fn_with_state(state.clone(), access::guard))
        .with_state(state)
}

async fn ready(State(state): State<AdminState>) -> Response {
    let writer = state.writer.borrow();
    if state.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    if !writer.is_ready() {
        let names: Vec<String> = writer.waiting_for.iter().map(|name| state.sources.explain(name)).collect();
        let text = format!("waiting for {}\n", names.join(", "));
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    // A Service that led API servers or proxies here before they are answered would lose what they ask.
    let closed = state.ports.iter().filter(|(_, served)| !*served.borrow()).map(|(name, _)| *name);
    let closed: Vec<&str> = closed.collect();
    if !closed.is_empty() {
        let text = format!("not served yet: {}\n", closed.join(", "));
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ready\n".into_response()
}

async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &state.metrics).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let own = own_metrics(&state);
    // The library ends its text with a marker, after which nothing is read.
    let text = match text.strip_suffix("# EOF\n") {
        Some(text) => format!("{text}{own}# EOF\n"),
        None => text + &own,
    };
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

fn own_metrics(state: &AdminState) -> String {
    let writer = state.writer.borrow();
    let stats = state.push.stats();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let gauges = [
        ("weft_objects", "Objects that are read", count(writer.objects)),
        (
            "weft_objects_rejected",
            "Objects that are not used, or not in their newest form",
            count(writer.rejected),
        ),
        (
            "weft_objects_last_good",
            "Objects of which an older form is in use because the newest one is not good",
            count(writer.findings.values().filter(|findings| findings.serves_last_good).count()),
        ),
        ("pilot_services", "Services in the mesh", count(writer.view.service_count())),
        (
            "weft_mesh_generation",
            "How many changes led to the mesh that proxies are served",
            stats.generation,
        ),
        ("weft_push_selections", "Different kinds of proxies that are connected", count(stats.groups)),
        ("weft_push_remembered", "Results that are remembered", count(stats.remembered)),
    ];
    let counters = [
        ("weft_push_evaluations", "Computations that were done", stats.counters.evaluated),
        ("weft_push_unchanged", "Computations with the same result as before", stats.counters.unchanged),
        (
            "weft_endpoints_kept",
            "Services whose endpoints stayed in use for a while after their last EndpointSlice was gone",
            writer.doubts.kept,
        ),
        (
            "weft_endpoints_awaited",
            "New Services that were not used before there was an EndpointSlice",
            writer.doubts.awaited,
        ),
        (
            "weft_endpoints_believed_absent",
            "Services that had no EndpointSlice for so long that they have no endpoints",
            writer.doubts.believed,
        ),
        ("weft_compiler_failures", "Defects of the compiler that were met", stats.failures),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}");
    }
    for (name, help, value) in counters {
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {value}");
    }
    text += &write_metrics(&state.writes.borrow());
    text
}

fn write_metrics(states: &controllers::WriteStates) -> String {
    let mut text = String::new();
    type Read = fn(&controllers::WriteState) -> u64;
    let counters: [(&str, &str, Read); 3] = [
        ("weft_writes", "Objects that were written to the cluster", |state| state.writes),
        ("weft_write_failures", "Objects that could not be written", |state| state.failures),
        (
            "weft_write_corrections",
            "Objects that somebody else had changed and that are written again",
            |state| state.corrections,
        ),
    ];
    for (name, help, read) in counters.into_iter().filter(|_| !states.is_empty()) {
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} counter");
        for (writer, state) in states {
            let _ = writeln!(text, "{name}_total{{writer=\"{writer}\"}} {}", read(state));
        }
    }
    text
}

async fn syncz(State(state): State<AdminState>, Extension(viewer): Extension<Viewer>) -> Json<Value> {
    // An agent's own stream is not a proxy.
    let sessions = state.sessions.sessions();
    let seen = sessions.iter().filter(|session| !is_agent(&session.node) && viewer.may_see(session));
    Json(seen.map(sync_status).collect())
}

/// In the form that istioctl reads.
fn sync_status(session: &SessionView) -> Value {
    let metadata = |name: &str| {
        let fields = &session.node.metadata.as_ref()?.fields;
        match fields.get(name)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text.clone()),
            _ => None,
        }
    };
    let id = &session.node.id;
    let mut parts = id.split('~');
    let (kind, workload) = match (parts.next(), parts.nth(1)) {
        (Some(kind), Some(workload)) => (kind.to_owned(), workload.to_owned()),
        _ => (metadata("PROXY_TYPE").unwrap_or_default(), id.clone()),
    };
    let mut status = Map::from_iter([
        ("cluster_id".to_owned(), json!(metadata("CLUSTER_ID").unwrap_or_else(|| "Kubernetes".to_owned()))),
        ("proxy".to_owned(), json!(workload)),
        ("proxy_type".to_owned(), json!(kind)),
        ("istio_version".to_owned(), json!(metadata("ISTIO_VERSION").unwrap_or_default())),
        (
            "stuck_clusters".to_owned(),
            json!(session.status.stuck.iter().map(AsRef::as_ref).collect::<Vec<&str>>()),
        ),
    ]);
    for channel in &session.status.channels {
        let name = match channel.kind {
            ResourceType::Cluster => "cluster",
            ResourceType::ClusterLoadAssignment => "endpoint",
            ResourceType::Listener => "listener",
            ResourceType::RouteConfiguration => "route",
            ResourceType::Secret => "secret",
        };
        status.insert(format!("{name}_sent"), json!(channel.nonce_sent));
        status.insert(format!("{name}_acked"), json!(channel.nonce_acked));
        status.insert(format!("{name}_status"), json!(channel.state.as_str()));
        status.insert(format!("{name}_behind"), json!(channel.behind));
        if let Some(error) = &channel.error {
            status.insert(format!("{name}_error"), json!(error));
        }
    }
    Value::Object(status)
}

#[derive(Deserialize)]
struct DumpQuery {
    #[serde(rename = "proxyID")]
    proxy_id: Option<String>,
}

/// Shows what a proxy has acknowledged, in the form of Envoy's own dump.
async fn config_dump(
    State(state): State<AdminState>,
    Extension(viewer): Extension<Viewer>,
    Query(query): Query<DumpQuery>,
) -> Response {
    let Some(wanted) = query.proxy_id else {
        let text =
            "say which proxy: /debug/config_dump?proxyID=<name>.<namespace>, as listed by /debug/syncz\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let is_it = |session: &SessionView| {
        let id = &session.node.id;
        !is_agent(&session.node) && (*id == wanted || id.split('~').nth(2) == Some(&wanted))
    };
    let found = state.sessions.sessions().into_iter().rev().find(is_it);
    // Whoever may not see everything is not told either whether it is connected.
    let is_visible = found.as_ref().is_some_and(|session| viewer.may_see(session));
    if viewer != Viewer::Everything && !is_visible {
        return (StatusCode::FORBIDDEN, "not a proxy of your namespace\n").into_response();
    }
    let Some(session) = found else {
        return (StatusCode::NOT_FOUND, format!("{wanted:?} is not connected\n")).into_response();
    };
    let configs: Vec<Value> =
        session.status.channels.iter().map(|channel| dump(channel.kind, &channel.acked)).collect();
    Json(json!({ "configs": configs })).into_response()
}

fn dump(kind: ResourceType, acked: &ResourceSet) -> Value {
    let (message, list, field) = match kind {
        ResourceType::Cluster => ("ClustersConfigDump", "dynamic_active_clusters", "cluster"),
        ResourceType::ClusterLoadAssignment => {
            ("EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint_config")
        }
        ResourceType::Listener => ("ListenersConfigDump", "dynamic_listeners", "listener"),
        ResourceType::RouteConfiguration => ("RoutesConfigDump", "dynamic_route_configs", "route_config"),
        ResourceType::Secret => ("SecretsConfigDump", "dynamic_active_secrets", "secret"),
    };
    let options = WriteOptions { proto_names: true, redact: true };
    let entries: Vec<Value> = acked
        .values()
        .map(|resource| {
            let value = to_json_with(kind.type_url(), resource.bytes(), options);
            let mut content = value.unwrap_or_else(|error| json!({ "error": error.to_string() }));
            if let Value::Object(fields) = &mut content {
                fields.insert("@type".to_owned(), json!(kind.type_url()));
            }
            match kind {
                ResourceType::Listener => json!({
                    "name": resource.name().as_ref(),
                    "active_state": { "version_info": resource.version().as_ref(), field: content },
                }),
                _ => json!({ "version_info": resource.version().as_ref(), field: content }),
            }
        })
        .collect();
    json!({ "@type": format!("type.googleapis.com/envoy.admin.v3.{message}"), list: entries })
}

async fn registryz(State(state): State<AdminState>) -> Json<Value> {
    let view = state.writer.borrow().view.clone();
    let services = view.registry().map(|(service, endpoints)| {
        json!({
            "hostname": service.key.host.as_str(),
            "namespace": service.key.namespace.as_str(),
            "object": service.object.to_string(),
            "ports": service.ports.iter().map(|port| json!({
                "name": port.name.as_ref(), "port": port.port, "protocol": port.protocol.to_string(),
            })).collect::<Vec<_>>(),
            "addresses": service.vips.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "endpoints": endpoints.len(),
        })
    });
    Json(services.collect())
}

/// Shows how each source is doing.
async fn sourcez(State(state): State<AdminState>) -> Json<Value> {
    Json(state.sources.states())
}

/// Shows how far the replacement of a root is.
async fn rotationz(State(state): State<AdminState>) -> String {
    match &state.rotation {
        Some(progress) => progress.borrow().clone(),
        None => "there is no certificate authority\n".to_owned(),
    }
}

/// Shows what is to be said about objects.
async fn findingz(State(state): State<AdminState>) -> Json<Value> {
    let findings = state.writer.borrow().findings.clone();
    let list = findings.iter().map(|(object, found)| {
        let findings = found.findings.iter().map(|finding| {
            json!({
                "field": finding.rejection.field,
                "reason": finding.rejection.reason,
                "error": finding.is_error,
            })
        });
        json!({
            "object": object.to_string(),
            "origin": found.origin.to_string(),
            "servesLastGood": found.serves_last_good,
            "findings": findings.collect::<Vec<_>>(),
        })
    });
    Json(list.collect())
}
