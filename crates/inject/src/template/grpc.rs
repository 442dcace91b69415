//! Applications that speak xDS themselves through gRPC, with an agent for certificates or without.

use super::environment::{self, Variables};
use super::{Context, Overlay, parts};
use crate::error::InjectError;
use crate::{PROXY, pod};
use k8s_api::pod::{Container, ContainerPort, EmptyDirVolumeSource, EnvVar, Lifecycle, Volume, VolumeMount};

const NO_REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";

/// An agent gets certificates and writes the bootstrap that the application reads.
pub(super) fn with_agent(context: &Context<'_>) -> Result<Overlay, InjectError> {
    let mut overlay = context.common();
    context.name_default_container(&mut overlay);
    overlay.annotations.insert(NO_REWRITE.to_owned(), "false".to_owned());
    let mut variables = environment::of_agent(context, false);
    variables.set("ISTIO_META_GENERATOR", "grpc");
    variables.set("OUTPUT_CERTS", "/var/lib/istio/data");
    variables.set("ISTIO_META_DNS_CAPTURE", "false");
    variables.set("DISABLE_ENVOY", "true");
    let wait = parts::exec(&["weft-agent", "wait", "--url=http://localhost:15020/healthz/ready"]);
    let mut proxy = Container {
        name: PROXY.to_owned(),
        image: Some(parts::proxy_image(context)),
        image_pull_policy: parts::pull_policy(context),
        ports: Some(vec![ContainerPort {
            container_port: 15020,
            protocol: Some("TCP".to_owned()),
            name: Some("mesh-metrics".to_owned()),
            ..ContainerPort::default()
        }]),
        args: Some(parts::arguments(context, "sidecar")),
        env: Some(variables.into_list()),
        lifecycle: Some(Lifecycle { post_start: Some(wait), ..Lifecycle::default() }),
        readiness_probe: context.probes_proxy().then(|| parts::readiness(context, Some(15020))),
        resources: parts::resources(context)?,
        ..Container::default()
    };
    let mounts = [parts::workload_socket(), parts::workload_certificates()]
        .into_iter()
        .chain([parts::in_memory("istio-xds", "/etc/istio/proxy"), parts::data(), parts::pod_info()])
        .chain([parts::token(context)])
        .chain(parts::roots(context));
    let volumes = parts::mount(&mut proxy, mounts);
    let shared = |volume: &str, path: &str| VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    let application = |name: &str| Container {
        name: name.to_owned(),
        env: Some(vec![
            variable("GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", "true"),
            variable("GRPC_XDS_BOOTSTRAP", "/etc/istio/proxy/grpc-bootstrap.json"),
        ]),
        volume_mounts: Some(vec![
            shared("istio-data", "/var/lib/istio/data"),
            shared("istio-xds", "/etc/istio/proxy"),
            shared("workload-certs", "/var/run/secrets/workload-spiffe-credentials"),
        ]),
        ..Container::default()
    };
    overlay.spec.containers = vec![proxy];
    overlay.spec.containers.extend(context.applications().into_iter().map(application));
    overlay.spec.volumes = Some(volumes);
    Ok(overlay)
}

const BOOTSTRAP_DIR: &str = "/var/lib/grpc/data/";
const BOOTSTRAP: &str = "/var/lib/grpc/data/bootstrap.json";
const BOOTSTRAP_VOLUME: &str = "grpc-io-proxyless-bootstrap";

/// The application connects by itself, without certificates; an init container writes the bootstrap.
pub(super) fn simple(context: &Context<'_>) -> Overlay {
    let mut overlay = Overlay::default();
    overlay.annotations.insert(NO_REWRITE.to_owned(), "false".to_owned());
    let mount = || {
        vec![VolumeMount {
            name: BOOTSTRAP_VOLUME.to_owned(),
            mount_path: BOOTSTRAP_DIR.to_owned(),
            ..VolumeMount::default()
        }]
    };
    let mut variables = Variables::default();
    variables.field("INSTANCE_IP", "status.podIP");
    variables.field("POD_NAME", "metadata.name");
    variables.field("POD_NAMESPACE", "metadata.namespace");
    variables.set("GRPC_BOOTSTRAP", bootstrap(context));
    let script = format!("printf '%s' \"$GRPC_BOOTSTRAP\" > {BOOTSTRAP}");
    overlay.spec.init_containers = Some(vec![Container {
        name: "grpc-bootstrap-init".to_owned(),
        image: Some("busybox:1.28".to_owned()),
        command: Some(vec!["sh".to_owned(), "-c".to_owned(), script]),
        env: Some(variables.into_list()),
        volume_mounts: Some(mount()),
        ..Container::default()
    }]);
    let application = |container| Container {
        name: pod::name(container).to_owned(),
        env: Some(vec![
            variable("GRPC_XDS_BOOTSTRAP", BOOTSTRAP),
            variable("GRPC_GO_LOG_VERBOSITY_LEVEL", "99"),
            variable("GRPC_GO_LOG_SEVERITY_LEVEL", "info"),
        ]),
        volume_mounts: Some(mount()),
        ..Container::default()
    };
    overlay.spec.containers = pod::containers(context.pod, "containers").iter().map(application).collect();
    overlay.spec.volumes = Some(vec![Volume {
        name: BOOTSTRAP_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }]);
    overlay
}

/// Kubernetes fills in the variables.
fn bootstrap(context: &Context<'_>) -> String {
    let global = &context.settings.values.global;
    let id = format!("sidecar~$(INSTANCE_IP)~$(POD_NAME).$(POD_NAMESPACE)~{}", global.proxy.cluster_domain);
    let server = serde_json::json!({
        "server_uri": format!("dns:///istiod.{}.svc:15010", global.istio_namespace),
        "channel_creds": [{ "type": "insecure" }],
        "server_features": ["xds_v3"],
    });
    let node = serde_json::json!({ "id": id, "metadata": { "GENERATOR": "grpc" } });
    serde_json::json!({ "xds_servers": [server], "node": node }).to_string()
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}
