//! The environment of the proxy's container: what weft-agent reads.

use super::Context;
use crate::{PROXY, pod};
use k8s_api::mesh_config::InboundTrafficPolicy;
use k8s_api::pod::{EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector};
use serde_json::Value;

/// Collects variables, of which each has one value: the last.
#[derive(Default)]
pub(super) struct Variables(Vec<EnvVar>);

impl Variables {
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.put(EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None });
    }

    pub(super) fn field(&mut self, name: &str, path: &str) {
        let field_ref = ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() };
        let source = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
        self.put(EnvVar { name: name.to_owned(), value: None, value_from: Some(source) });
    }

    fn resource(&mut self, name: &str, resource: &str) {
        let selector =
            ResourceFieldSelector { resource: resource.to_owned(), ..ResourceFieldSelector::default() };
        let source = EnvVarSource { resource_field_ref: Some(selector), ..EnvVarSource::default() };
        self.put(EnvVar { name: name.to_owned(), value: None, value_from: Some(source) });
    }

    fn put(&mut self, variable: EnvVar) {
        match self.0.iter_mut().find(|other| other.name == variable.name) {
            Some(other) => *other = variable,
            None => self.0.push(variable),
        }
    }

    pub(super) fn into_list(self) -> Vec<EnvVar> {
        self.0
    }
}

/// Returns what every agent is told. `with_envoy` is false where the application speaks xDS itself.
pub(super) fn of_agent(context: &Context<'_>, with_envoy: bool) -> Variables {
    let global = &context.settings.values.global;
    let mut variables = Variables::default();
    variables.set("PILOT_CERT_PROVIDER", &global.pilot_cert_provider);
    variables.set("CA_ADDR", authority(context));
    variables.field("POD_NAME", "metadata.name");
    variables.field("POD_NAMESPACE", "metadata.namespace");
    variables.field("INSTANCE_IP", "status.podIP");
    variables.field("SERVICE_ACCOUNT", "spec.serviceAccountName");
    variables.field("HOST_IP", "status.hostIP");
    if with_envoy {
        variables.resource("ISTIO_CPU_LIMIT", "limits.cpu");
    }
    variables.set("PROXY_CONFIG", context.proxy_json);
    variables.set("ISTIO_META_POD_PORTS", ports(context.pod));
    variables.set("ISTIO_META_APP_CONTAINERS", context.applications().join(","));
    variables.set("ISTIO_META_CLUSTER_ID", context.cluster);
    variables.field("ISTIO_META_NODE_NAME", "spec.nodeName");
    if with_envoy {
        variables.set("ISTIO_META_INTERCEPTION_MODE", context.mode().as_str());
    }
    if let Some(network) = context.network {
        variables.set("ISTIO_META_NETWORK", network);
    }
    if !context.workload.name.is_empty() {
        variables.set("ISTIO_META_WORKLOAD_NAME", &context.workload.name);
        variables.set("ISTIO_META_OWNER", context.workload.owner(context.namespace));
    }
    if context.options.bootstrap_override.is_some() {
        variables.set("ISTIO_BOOTSTRAP_OVERRIDE", "/etc/istio/custom-bootstrap/custom_bootstrap.json");
    }
    let trust_domain = &context.settings.mesh.trust_domain;
    let mesh_id = if global.mesh_id.is_empty() { trust_domain } else { &global.mesh_id };
    if !mesh_id.is_empty() {
        variables.set("ISTIO_META_MESH_ID", mesh_id);
    }
    if !trust_domain.is_empty() {
        variables.set("TRUST_DOMAIN", trust_domain);
    }
    if probes_localhost(&context.settings.mesh.inbound_traffic_policy) {
        variables.set("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true");
    }
    if !context.settings.compliance_policy.is_empty() {
        variables.set("COMPLIANCE_POLICY", &context.settings.compliance_policy);
    }
    if let Some(attributes) = otel_attributes(context) {
        variables.set("OTEL_RESOURCE_ATTRIBUTES", attributes);
    }
    of_datadog(context, &mut variables);
    for (name, value) in &context.proxy.proxy_metadata {
        variables.set(name, value);
    }
    variables
}

/// Returns the certificate authority.
fn authority(context: &Context<'_>) -> String {
    let global = &context.settings.values.global;
    if !global.ca_address.is_empty() {
        return global.ca_address.clone();
    }
    let suffix = match context.settings.control_plane.revision.as_str() {
        "" | "default" => String::new(),
        revision => format!("-{revision}"),
    };
    format!("istiod{suffix}.{}.svc:15012", global.istio_namespace)
}

/// Returns the ports of all containers, as they are written: the application's, then what the user says of the proxy.
fn ports(pod: &Value) -> String {
    let containers = pod::containers(pod, "containers").iter();
    let applications = containers.filter(|container| pod::name(container) != PROXY);
    let all = applications.chain(pod::find_anywhere(pod, PROXY));
    let ports: Vec<&Value> = all.filter_map(|container| container["ports"].as_array()).flatten().collect();
    serde_json::to_string(&ports).expect("JSON values can be written as JSON")
}

/// Whether the application only listens on the loopback interface.
fn probes_localhost(policy: &InboundTrafficPolicy) -> bool {
    policy.mode.as_ref().is_some_and(|mode| mode.as_str() == "LOCALHOST")
}

/// Returns what OpenTelemetry's conventions call the workload, where a provider asks for it.
fn otel_attributes(context: &Context<'_>) -> Option<String> {
    let wanted = context.settings.mesh.extension_providers.iter().any(|provider| {
        let settings = provider.settings.get("opentelemetry");
        settings.is_some_and(|otel| otel["serviceAttributeEnrichment"] == "OTEL_SEMANTIC_CONVENTIONS")
    });
    let container = context.applications().first().copied()?;
    let namespace = context.namespace;
    let version = context.first_label(&["app.kubernetes.io/version", "version"], "");
    let version = if version.is_empty() { version } else { format!("service.version={version},") };
    wanted.then(|| {
        format!(
            "service.namespace={namespace},{version}service.instance.id={namespace}.$(POD_NAME).{container}"
        )
    })
}

/// Passes on what Datadog's tracer is told by an annotation of the pod.
fn of_datadog(context: &Context<'_>, variables: &mut Variables) {
    if context.settings.values.global.proxy.tracer != "datadog" {
        return;
    }
    let annotation = pod::annotation(context.pod, "apm.datadoghq.com/env");
    let parsed = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok());
    for (name, value) in parsed.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        variables.set(name, text);
    }
}
