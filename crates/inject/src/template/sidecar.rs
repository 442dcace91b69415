//! The proxy beside an application, and the capture of its traffic.

use super::{Context, Overlay, capture, environment, parts};
use crate::error::InjectError;
use crate::{PROXY, pod};
use k8s_api::mesh_config::InterceptionMode;
use k8s_api::pod::{Capabilities, Container, SecurityContext, Volume};
use serde_json::Value;

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const OUR_NETWORK: &str = "default/istio-cni";

pub(super) fn overlay(context: &Context<'_>) -> Result<Overlay, InjectError> {
    let mut overlay = context.common();
    let tls_mode = context.first_label(&["security.istio.io/tlsMode"], "istio");
    overlay.labels.insert("security.istio.io/tlsMode".to_owned(), tls_mode);
    if context.metadata("ISTIO_META_ENABLE_HBONE") == Some("true") {
        let tunnel = context.first_label(&["networking.istio.io/tunnel"], "http");
        overlay.labels.insert("networking.istio.io/tunnel".to_owned(), tunnel);
    }
    context.name_default_container(&mut overlay);
    if let Some(cni) = context.settings.values.cni() {
        overlay.annotations.extend(capture::annotations(context));
        if cni.provider == "multus" {
            let networks = with_our_network(pod::annotation(context.pod, NETWORKS).unwrap_or_default())
                .map_err(|reason| InjectError::annotation(NETWORKS, reason))?;
            overlay.annotations.insert(NETWORKS.to_owned(), networks);
        }
    }
    let (proxy, volumes) = proxy(context)?;
    let mut init: Vec<Container> = capture::container(context)?.into_iter().collect();
    init.extend(capture::core_dump(context));
    if context.native {
        init.push(Container { restart_policy: Some("Always".to_owned()), ..proxy });
    } else {
        overlay.spec.containers = vec![proxy];
    }
    overlay.spec.init_containers = (!init.is_empty()).then_some(init);
    overlay.spec.volumes = Some(volumes);
    Ok(overlay)
}

fn proxy(context: &Context<'_>) -> Result<(Container, Vec<Volume>), InjectError> {
    let mut proxy = Container {
        name: PROXY.to_owned(),
        image: Some(parts::proxy_image(context)),
        image_pull_policy: parts::pull_policy(context),
        ports: Some(vec![parts::prometheus_port()]),
        args: Some(parts::arguments(context, "sidecar")),
        env: Some(environment::of_agent(context, true).into_list()),
        lifecycle: parts::lifecycle(context, context.holds_application())?,
        resources: parts::resources(context)?,
        security_context: Some(security(context)?),
        ..Container::default()
    };
    if context.probes_proxy() {
        proxy.readiness_probe = Some(parts::readiness(context, None));
        proxy.startup_probe = parts::startup(context);
    }
    let mounts = [parts::workload_socket(), parts::credential_socket(), parts::workload_certificates()]
        .into_iter()
        .chain([parts::in_memory("istio-envoy", "/etc/istio/proxy"), parts::data(), parts::pod_info()])
        .chain([parts::token(context)])
        .chain(parts::roots(context))
        .chain([parts::revocations()])
        .chain(parts::mounted_certificates(context))
        .chain(parts::bootstrap_override(context));
    let mut volumes = parts::mount(&mut proxy, mounts);
    volumes.extend(context.options.volumes.iter().cloned());
    proxy.volume_mounts.get_or_insert_default().extend(context.options.mounts.iter().cloned());
    Ok((proxy, volumes))
}

/// The proxy may do nothing, except that it must be root with `NET_ADMIN` to answer with the client's address.
fn security(context: &Context<'_>) -> Result<SecurityContext, InjectError> {
    let mut security = parts::unprivileged(context)?;
    let add = |name: &str| {
        Some(Capabilities { add: Some(vec![name.to_owned()]), drop: Some(vec!["ALL".to_owned()]) })
    };
    if context.metadata("IPTABLES_TRACE_LOGGING") == Some("true") {
        security.allow_privilege_escalation = Some(true);
        security.privileged = Some(true);
    } else if context.mode() != InterceptionMode::Tproxy {
        return Ok(security);
    }
    security.capabilities = add("NET_ADMIN");
    security.run_as_non_root = Some(false);
    security.run_as_user = Some(0);
    Ok(security)
}

impl Context<'_> {
    /// Whether the application starts after the proxy by our doing. A native sidecar starts first anyway.
    pub(crate) fn holds_application(&self) -> bool {
        let of_values = self.settings.values.global.proxy.hold_application_until_proxy_starts;
        !self.native && (of_values || self.proxy.hold_application_until_proxy_starts == Some(true))
    }
}

/// Adds our network to those of a pod, which are written as names or as JSON.
fn with_our_network(networks: &str) -> Result<String, String> {
    if networks.trim().is_empty() {
        return Ok(OUR_NETWORK.to_owned());
    }
    if !networks.trim_start().starts_with('[') {
        let is_there = networks.split(',').any(|network| network.trim() == OUR_NETWORK);
        return Ok(if is_there { networks.to_owned() } else { format!("{networks}, {OUR_NETWORK}") });
    }
    let mut list: Vec<Value> =
        serde_json::from_str(networks).map_err(|error| format!("is not a list of networks: {error}"))?;
    let (namespace, name) = OUR_NETWORK.split_once('/').expect("the constant above has a slash");
    let is_ours = |network: &Value| {
        network["name"] == OUR_NETWORK || network["name"] == name && network["namespace"] == namespace
    };
    if list.iter().any(is_ours) {
        return Ok(networks.to_owned());
    }
    list.push(serde_json::json!({ "name": name, "namespace": namespace }));
    Ok(Value::Array(list).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_network_is_added_once_to_any_form() {
        for (before, after) in [
            ("", "default/istio-cni"),
            ("alt", "alt, default/istio-cni"),
            ("a, default/istio-cni", "a, default/istio-cni"),
            (r#"[{"name":"a"}]"#, r#"[{"name":"a"},{"name":"istio-cni","namespace":"default"}]"#),
        ] {
            let once = with_our_network(before).unwrap();
            assert_eq!(once, after);
            assert_eq!(with_our_network(&once).unwrap(), after);
        }
        assert!(with_our_network("[{").is_err());
    }
}
