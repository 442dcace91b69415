//! The steps of an injection, in order.

use crate::annotations::Options;
use crate::error::InjectError;
use crate::reinject::{self, Overrides, STATUS, Status};
use crate::settings::{Platform, Settings};
use crate::template::{self, Context};
use crate::workload::Workload;
use crate::{PROXY, diff, merge, metrics, order, pod, probes, security};
use json_patch::Patch;
use k8s_api::mesh_config::{InterceptionMode, ProxyConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A pod that gets a proxy, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The pod.
    pub pod: &'a Value,
    /// Its namespace.
    pub namespace: &'a str,
    /// The annotations of the namespace.
    pub namespace_annotations: &'a BTreeMap<String, String>,
    /// What made the pod; absent where the pod itself says it.
    pub workload: Option<&'a Workload>,
    /// ProxyConfig objects that apply to the pod, the most general first.
    pub proxy_config: &'a [Value],
    /// Whether the proxy can be a native sidecar.
    pub native_sidecar: bool,
    /// Variables that the path of the webhook asks for.
    pub environment: &'a BTreeMap<String, String>,
}

/// What comes of it.
#[derive(Clone, Debug)]
pub struct Injected {
    /// The pod with its proxy.
    pub pod: Value,
    /// What makes it of the pod as it was.
    pub patch: Patch,
    /// What the pod's author should know.
    pub warnings: Vec<String>,
}

/// Adds a proxy to a pod.
///
/// # Errors
/// Why the pod cannot have one. It must not run without: its author would not know.
pub fn inject(settings: &Settings, request: &Request<'_>) -> Result<Injected, InjectError> {
    pod::check(request.pod)?;
    let mut options = Options::parse(request.pod)?;
    let mut warnings = std::mem::take(&mut options.warnings);
    let ids = match settings.platform {
        Platform::Kubernetes => security::Ids::default(),
        Platform::OpenShift => security::Ids::of_namespace(request.namespace_annotations)?,
    };
    let mut pod = request.pod.clone();
    if settings.platform == Platform::OpenShift {
        security::forget_assigned_user(&mut pod);
    }
    let proxy = proxy_config(settings, request, &options)?;
    let status = Status::of_pod(&pod);
    let overrides = Overrides::of_pod(&pod)?;
    let original = reinject::original(&pod, status.as_ref(), &overrides);
    let of_pod;
    let workload = match request.workload {
        Some(workload) => workload,
        None => {
            of_pod = Workload::of_pod(request.pod);
            &of_pod
        }
    };
    let context = Context {
        settings,
        options: &options,
        pod: &original,
        proxy: &proxy,
        proxy_json: &proxy.changed().to_string(),
        workload,
        namespace: request.namespace,
        native: options.native.unwrap_or(request.native_sidecar),
        cluster: cluster(settings, request),
        network: network(settings, request),
        user: ids.user,
        group: ids.group,
    };
    let (mut merged, overlay) = apply(&pod, template::overlays(&context)?);
    reinject::reapply(&mut merged, &pod, &overlay, (status.as_ref(), &overrides));
    let is_tproxy = context.mode() == InterceptionMode::Tproxy;
    security::follow_the_user(&mut merged, &pod, &overrides, is_tproxy);
    warnings.extend(finish(&mut merged, &overlay, &context, request)?);
    warnings.extend(without_effect(&context, &overlay));
    let patch = diff::diff(request.pod, &merged);
    Ok(Injected { pod: merged, patch, warnings })
}

/// Merges the mesh's proxy configuration, ProxyConfig objects and the annotation.
fn proxy_config(
    settings: &Settings,
    request: &Request<'_>,
    options: &Options,
) -> Result<ProxyConfig, InjectError> {
    let layers = request.proxy_config.iter().chain(&options.proxy_config);
    let merged = settings.mesh.default_config.with(layers);
    merged.map_err(|error| InjectError::annotation("proxy.istio.io/config", error.to_string()))
}

fn cluster<'a>(settings: &'a Settings, request: &Request<'a>) -> &'a str {
    let of_path = request.environment.get("ISTIO_META_CLUSTER_ID").map(String::as_str);
    let of_values = settings.values.global.multi_cluster.cluster_name.as_str();
    [of_path, Some(of_values)].into_iter().flatten().find(|name| !name.is_empty()).unwrap_or("Kubernetes")
}

fn network<'a>(settings: &'a Settings, request: &Request<'a>) -> Option<&'a str> {
    let of_path = request.environment.get("ISTIO_META_NETWORK").map(String::as_str);
    let of_pod = pod::label(request.pod, NETWORK);
    let of_values = Some(settings.values.global.network.as_str());
    [of_pod, of_path, of_values].into_iter().flatten().find(|name| !name.is_empty())
}

const NETWORK: &str = "topology.istio.io/network";

/// Merges the templates over the pod. Returns the pod, and the templates by themselves.
fn apply(pod: &Value, overlays: Vec<Value>) -> (Value, Value) {
    let mut merged = pod.clone();
    let mut all = json!({});
    for overlay in overlays {
        merge::merge(&mut all, &overlay);
        // What the user says about a native sidecar may stand among the containers, and an earlier injection may have
        // made the other kind.
        for (from, to) in [("containers", "initContainers"), ("initContainers", "containers")] {
            if pod::find(&all, to, PROXY).is_some() && pod::find(&merged, to, PROXY).is_none() {
                move_proxy(&mut merged, from, to);
            }
        }
        merge::merge(&mut merged, &overlay);
    }
    (merged, all)
}

fn move_proxy(pod: &mut Value, from: &str, to: &str) {
    let Some(mut proxy) = pod::take(pod, from, PROXY) else { return };
    if to == "containers" {
        // Only init containers have it.
        pod::object(&mut proxy).remove("restartPolicy");
    }
    match pod::object(&mut pod["spec"]).entry(to).or_insert_with(|| json!([])) {
        Value::Array(containers) => containers.push(proxy),
        other => *other = json!([proxy]),
    }
}

/// What depends on the whole pod.
fn finish(
    merged: &mut Value,
    overlay: &Value,
    context: &Context<'_>,
    request: &Request<'_>,
) -> Result<Vec<String>, InjectError> {
    let settings = context.settings;
    if let Some(proxy) = pod::find_anywhere_mut(merged, PROXY) {
        for (name, value) in request.environment {
            pod::set_variable(proxy, name, value);
        }
    }
    let says = |merged: &Value, name: &str, default: bool| match pod::annotation(merged, name) {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        _ => default,
    };
    let agent_port = context.agent_port();
    let mut warnings = Vec::new();
    if says(merged, "prometheus.istio.io/merge-metrics", settings.mesh.enable_prometheus_merge) {
        warnings = metrics::merge(merged, agent_port)?;
    }
    let rewrites = settings.values.sidecar_injector_webhook.rewrite_app_http_probe;
    if context.options.status_port != Some(0)
        && says(merged, "sidecar.istio.io/rewriteAppHTTPProbers", rewrites)
    {
        probes::rewrite(merged, agent_port);
    }
    if let Some(network) = context.network {
        pod::set(merged, "labels", NETWORK, network);
    }
    let status = Status::of_overlay(overlay, &settings.control_plane.revision);
    let status = serde_json::to_string(&status).expect("names can be written as JSON");
    pod::set(merged, "annotations", STATUS, status);
    for (name, value) in &settings.values.sidecar_injector_webhook.injected_annotations {
        pod::set(merged, "annotations", name, value.0.clone());
    }
    let of_values = settings.values.global.proxy.hold_application_until_proxy_starts;
    order::order(merged, of_values || context.proxy.hold_application_until_proxy_starts == Some(true));
    Ok(warnings)
}

/// Returns what is asked for and cannot be had from weft-agent.
fn without_effect(context: &Context<'_>, overlay: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(proxy) = pod::find_anywhere(overlay, PROXY) else { return warnings };
    for (name, meaning) in [
        ("DISABLE_ENVOY", "runs without an Envoy"),
        ("ISTIO_META_DNS_CAPTURE", "answers DNS"),
        ("ISTIO_META_ENABLE_DNS_SERVER", "answers DNS"),
    ] {
        if pod::variable(proxy, name) == Some("true") {
            warnings.push(format!("{name} is set, but no weft-agent {meaning} yet: it will not start"));
        }
    }
    if !context.settings.compliance_policy.is_empty() {
        let policy = &context.settings.compliance_policy;
        warnings.push(format!("compliance policy {policy}: weft-agent does not act on it yet"));
    }
    let (said, listens) = (context.status_port(), context.agent_port());
    if said != "0" && said != listens.to_string() {
        warnings.push(format!(
            "global.proxy.statusPort is {said}, but the agent listens on {listens}: set defaultConfig.statusPort"
        ));
    }
    warnings
}

impl Context<'_> {
    /// Returns the port that the agent listens on.
    fn agent_port(&self) -> u16 {
        self.options.status_port.filter(|port| *port != 0).unwrap_or(self.proxy.status_port)
    }
}
