//! Pieces of containers and volumes that several templates share.

use super::Context;
use crate::error::InjectError;
use crate::values::Values;
use k8s_api::pod::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EmptyDirVolumeSource, ExecAction, HTTPGetAction, IntOrString, Lifecycle,
    LifecycleHandler, LocalObjectReference, ObjectFieldSelector, Probe, ProjectedVolumeSource, Quantity,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection,
    Volume, VolumeMount, VolumeProjection,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// The user and the group of the proxy, which traffic capture leaves alone.
pub(crate) const PROXY_USER: i64 = 1337;
/// Where Envoy says whether it is ready.
const READINESS_PORT: i32 = 15021;
const READINESS_PATH: &str = "/healthz/ready";

pub(super) fn pull_secrets(values: &Values) -> Option<Vec<LocalObjectReference>> {
    let secrets = &values.global.image_pull_secrets;
    let reference = |name: &String| LocalObjectReference { name: name.clone() };
    (!secrets.is_empty()).then(|| secrets.iter().map(reference).collect())
}

/// Returns an image: a whole reference, or a name below the hub.
pub(super) fn image(context: &Context<'_>, name: &str, image_type: Option<&str>) -> String {
    let global = &context.settings.values.global;
    if name.contains('/') {
        return name.to_owned();
    }
    let mut tag = global.tag.0.clone();
    let image_type = image_type.unwrap_or(&global.variant);
    if !image_type.is_empty() {
        let bare = ["-distroless", "-debug"].iter().find_map(|known| tag.strip_suffix(known));
        let bare = bare.unwrap_or(&tag).to_owned();
        tag = if image_type == "default" { bare } else { format!("{bare}-{image_type}") };
    }
    let path = if global.hub.is_empty() { name.to_owned() } else { format!("{}/{name}", &*global.hub) };
    if tag.is_empty() { path } else { format!("{path}:{tag}") }
}

pub(super) fn proxy_image(context: &Context<'_>) -> String {
    let name = context.options.proxy_image.as_deref().unwrap_or(&context.settings.values.global.proxy.image);
    let of_config = context.proxy.image.as_ref().and_then(|image| image["imageType"].as_str());
    image(context, name, context.options.proxy_image_type.as_deref().or(of_config))
}

pub(super) fn pull_policy(context: &Context<'_>) -> Option<String> {
    let policy = &context.settings.values.global.image_pull_policy;
    (!policy.is_empty()).then(|| policy.clone())
}

/// Returns what the proxy needs and may use. Any annotation about it replaces what the values say.
pub(super) fn resources(context: &Context<'_>) -> Result<Option<ResourceRequirements>, InjectError> {
    let options = context.options;
    if !options.requests.is_empty() || !options.limits.is_empty() {
        let some = |map: &BTreeMap<String, Quantity>| (!map.is_empty()).then(|| map.clone());
        return Ok(Some(ResourceRequirements {
            requests: some(&options.requests),
            limits: some(&options.limits),
            ..ResourceRequirements::default()
        }));
    }
    let written = &context.settings.values.global.proxy.resources;
    let list = |name: &str| {
        let amounts = written[name].as_object().into_iter().flatten();
        let amounts: BTreeMap<String, Quantity> =
            amounts.filter_map(|(resource, amount)| Some((resource.clone(), quantity(amount)?))).collect();
        (!amounts.is_empty()).then_some(amounts)
    };
    let (requests, limits) = (list("requests"), list("limits"));
    let claims = match &written["claims"] {
        Value::Null => None,
        claims => from_values("global.proxy.resources.claims", claims)?,
    };
    let is_set = requests.is_some() || limits.is_some() || claims.is_some();
    Ok(is_set.then_some(ResourceRequirements { requests, limits, claims }))
}

/// `null` takes an amount of the chart's back.
fn quantity(amount: &Value) -> Option<Quantity> {
    match amount {
        Value::Null => None,
        Value::String(text) => Some(Quantity(text.clone())),
        other => Some(Quantity(other.to_string())),
    }
}

pub(super) fn from_values<T: serde::de::DeserializeOwned>(
    name: &str,
    value: &Value,
) -> Result<T, InjectError> {
    T::deserialize(value).map_err(|error| InjectError::setting(name, &error))
}

/// Returns how readiness of the proxy is asked for.
pub(super) fn readiness(context: &Context<'_>, port: Option<i32>) -> Probe {
    let values = &context.settings.values.global.proxy;
    let options = context.options;
    let delay = options.readiness_initial_delay.unwrap_or(values.readiness_initial_delay_seconds);
    Probe {
        http_get: Some(http_get(port.unwrap_or(READINESS_PORT))),
        initial_delay_seconds: (delay != 0).then_some(delay),
        period_seconds: Some(options.readiness_period.unwrap_or(values.readiness_period_seconds)),
        failure_threshold: Some(options.readiness_failures.unwrap_or(values.readiness_failure_threshold)),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

/// Returns how long the kubelet waits for the proxy to start.
pub(super) fn startup(context: &Context<'_>) -> Option<Probe> {
    let values = &context.settings.values.global.proxy.startup_probe;
    values.enabled.then(|| Probe {
        http_get: Some(http_get(READINESS_PORT)),
        period_seconds: Some(1),
        timeout_seconds: Some(3),
        failure_threshold: Some(values.failure_threshold),
        ..Probe::default()
    })
}

fn http_get(port: i32) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(READINESS_PATH.to_owned()),
        port: IntOrString::Int(port),
        ..HTTPGetAction::default()
    }
}

/// Returns hooks of the proxy's container: the application waits for the proxy, or a native sidecar drains while the
/// application ends.
pub(super) fn lifecycle(context: &Context<'_>, holds: bool) -> Result<Option<Lifecycle>, InjectError> {
    let written = &context.settings.values.global.proxy.lifecycle;
    if !written.is_null() {
        return from_values("global.proxy.lifecycle", written).map(Some);
    }
    Ok(if holds {
        Some(Lifecycle { post_start: Some(exec(&["weft-agent", "wait"])), ..Lifecycle::default() })
    } else if context.native {
        let port = format!("--port={}", context.status_port());
        let command = exec(&["weft-agent", "request", &port, "POST", "drain"]);
        Some(Lifecycle { pre_stop: Some(command), ..Lifecycle::default() })
    } else {
        None
    })
}

pub(super) fn exec(command: &[&str]) -> LifecycleHandler {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    LifecycleHandler { exec: Some(ExecAction { command: Some(command) }), ..LifecycleHandler::default() }
}

/// Returns a security context that may do nothing, as a user that is not root.
pub(super) fn unprivileged(context: &Context<'_>) -> Result<SecurityContext, InjectError> {
    let values = &context.settings.values.global.proxy;
    Ok(SecurityContext {
        allow_privilege_escalation: Some(values.privileged),
        privileged: Some(values.privileged),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(context.user.unwrap_or(PROXY_USER)),
        run_as_group: Some(context.group.unwrap_or(PROXY_USER)),
        seccomp_profile: seccomp(context)?,
        ..SecurityContext::default()
    })
}

pub(super) fn seccomp(context: &Context<'_>) -> Result<Option<SeccompProfile>, InjectError> {
    match &context.settings.values.global.proxy.seccomp_profile {
        Value::Null => Ok(None),
        Value::Object(fields) if fields.is_empty() => Ok(None),
        profile => from_values("global.proxy.seccompProfile", profile).map(Some),
    }
}

pub(super) fn prometheus_port() -> ContainerPort {
    ContainerPort {
        container_port: 15090,
        protocol: Some("TCP".to_owned()),
        name: Some("http-envoy-prom".to_owned()),
        ..ContainerPort::default()
    }
}

/// Returns the arguments of the agent.
pub(super) fn arguments(context: &Context<'_>, role: &str) -> Vec<String> {
    let global = &context.settings.values.global;
    let options = context.options;
    let log_level = options.log_level.as_ref().unwrap_or(&global.proxy.log_level);
    let components = options.component_log_level.as_ref().unwrap_or(&global.proxy.component_log_level);
    let agent = options.agent_log_level.as_ref().unwrap_or(&global.logging.level);
    let mut arguments = vec![
        "proxy".to_owned(),
        role.to_owned(),
        "--domain".to_owned(),
        format!("$(POD_NAMESPACE).svc.{}", global.proxy.cluster_domain),
        format!("--proxyLogLevel={log_level}"),
        format!("--proxyComponentLogLevel={components}"),
        format!("--log_output_level={agent}"),
    ];
    if global.log_as_json {
        arguments.push("--log_as_json".to_owned());
    }
    if !global.proxy.outlier_log_path.is_empty() {
        arguments.push(format!("--outlierLogPath={}", global.proxy.outlier_log_path));
    }
    arguments
}

/// A volume of the proxy and where it is mounted.
pub(super) struct Mounted {
    pub(super) volume: Volume,
    pub(super) path: &'static str,
    pub(super) read_only: bool,
}

fn mounted(name: &str, path: &'static str, fill: impl FnOnce(&mut Volume)) -> Mounted {
    let mut volume = Volume { name: name.to_owned(), ..Volume::default() };
    fill(&mut volume);
    Mounted { volume, path, read_only: false }
}

fn empty(name: &str, path: &'static str) -> Mounted {
    mounted(name, path, |volume| volume.empty_dir = Some(EmptyDirVolumeSource::default()))
}

pub(super) fn in_memory(name: &str, path: &'static str) -> Mounted {
    let source =
        EmptyDirVolumeSource { medium: Some("Memory".to_owned()), ..EmptyDirVolumeSource::default() };
    mounted(name, path, |volume| volume.empty_dir = Some(source))
}

pub(super) fn workload_socket() -> Mounted {
    empty("workload-socket", "/var/run/secrets/workload-spiffe-uds")
}

pub(super) fn credential_socket() -> Mounted {
    empty("credential-socket", "/var/run/secrets/credential-uds")
}

pub(super) fn workload_certificates() -> Mounted {
    empty("workload-certs", "/var/run/secrets/workload-spiffe-credentials")
}

pub(super) fn data() -> Mounted {
    empty("istio-data", "/var/lib/istio/data")
}

/// The pod's labels and annotations, as files.
pub(super) fn pod_info() -> Mounted {
    let file = |field: &str| DownwardAPIVolumeFile {
        path: field.to_owned(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.{field}"),
            ..ObjectFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    let source = DownwardAPIVolumeSource {
        items: Some(vec![file("labels"), file("annotations")]),
        ..DownwardAPIVolumeSource::default()
    };
    mounted("istio-podinfo", "/etc/istio/pod", |volume| volume.downward_api = Some(source))
}

/// The token that says to the authority who the pod is, and to nobody else.
pub(super) fn token(context: &Context<'_>) -> Mounted {
    let token = ServiceAccountTokenProjection {
        audience: Some(context.settings.values.global.sds.token.aud.clone()),
        expiration_seconds: Some(43200),
        path: "istio-token".to_owned(),
    };
    let projection = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let source =
        ProjectedVolumeSource { sources: Some(vec![projection]), ..ProjectedVolumeSource::default() };
    mounted("istio-token", "/var/run/secrets/tokens", |volume| volume.projected = Some(source))
}

/// The roots of the control plane.
pub(super) fn roots(context: &Context<'_>) -> Option<Mounted> {
    let by_istiod = context.settings.values.global.pilot_cert_provider == "istiod";
    by_istiod.then(|| {
        let source = config_map("istio-ca-root-cert", false);
        mounted("istiod-ca-cert", "/var/run/secrets/istio", |volume| volume.config_map = Some(source))
    })
}

/// Certificates that are revoked.
pub(super) fn revocations() -> Mounted {
    let source = config_map("istio-ca-crl", true);
    mounted("istio-ca-crl", "/var/run/secrets/istio/crl", |volume| volume.config_map = Some(source))
}

/// A Secret with certificates that somebody else renews.
pub(super) fn mounted_certificates(context: &Context<'_>) -> Option<Mounted> {
    context.settings.values.global.mount_mtls_certs.then(|| {
        let account = context.pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty());
        let secret = SecretVolumeSource {
            optional: Some(true),
            secret_name: Some(format!("istio.{}", account.unwrap_or("default"))),
            ..SecretVolumeSource::default()
        };
        let mut certificates = mounted("istio-certs", "/etc/certs/", |volume| volume.secret = Some(secret));
        certificates.read_only = true;
        certificates
    })
}

/// A bootstrap of the user's.
pub(super) fn bootstrap_override(context: &Context<'_>) -> Option<Mounted> {
    let name = context.options.bootstrap_override.as_ref()?;
    let source = config_map(name, false);
    let path = "/etc/istio/custom-bootstrap";
    Some(mounted("custom-bootstrap-volume", path, |volume| volume.config_map = Some(source)))
}

fn config_map(name: &str, optional: bool) -> ConfigMapVolumeSource {
    ConfigMapVolumeSource {
        name: name.to_owned(),
        optional: optional.then_some(true),
        ..ConfigMapVolumeSource::default()
    }
}

/// Mounts volumes into a container and returns them.
pub(super) fn mount(container: &mut Container, mounts: impl IntoIterator<Item = Mounted>) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for Mounted { volume, path, read_only } in mounts {
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: volume.name.clone(),
            mount_path: path.to_owned(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
        volumes.push(volume);
    }
    volumes
}
