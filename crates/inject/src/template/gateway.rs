//! A gateway: the pod is the proxy.

use super::{Context, Overlay, environment, parts};
use crate::PROXY;
use crate::error::InjectError;
use k8s_api::pod::{Container, PodSecurityContext, SecurityContext, Sysctl};
use serde_json::Value;

pub(super) fn overlay(context: &Context<'_>) -> Result<Overlay, InjectError> {
    let mut overlay = context.common();
    let user = context.user.unwrap_or(parts::PROXY_USER);
    let group = context.group.unwrap_or(parts::PROXY_USER);
    let mut proxy = Container {
        name: PROXY.to_owned(),
        image: Some(parts::proxy_image(context)),
        image_pull_policy: parts::pull_policy(context),
        ports: Some(vec![parts::prometheus_port()]),
        args: Some(parts::arguments(context, "router")),
        env: Some(environment::of_agent(context, true).into_list()),
        readiness_probe: Some(parts::readiness(context, None)),
        security_context: Some(SecurityContext {
            run_as_user: Some(user),
            run_as_group: Some(group),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let written = &context.settings.values.global.proxy.lifecycle;
    if !written.is_null() {
        proxy.lifecycle = Some(parts::from_values("global.proxy.lifecycle", written)?);
    }
    let mounts = [parts::workload_socket(), parts::credential_socket(), parts::workload_certificates()]
        .into_iter()
        .chain([parts::in_memory("istio-envoy", "/etc/istio/proxy"), parts::data(), parts::pod_info()])
        .chain([parts::token(context)])
        .chain(parts::roots(context))
        .chain(parts::mounted_certificates(context))
        .chain(parts::bootstrap_override(context));
    let volumes = parts::mount(&mut proxy, mounts);
    overlay.spec.containers = vec![proxy];
    overlay.spec.volumes = Some(volumes);
    overlay.spec.security_context = Some(pod_security(context)?);
    Ok(overlay)
}

/// Gateways listen on ports such as 80 without being root.
fn pod_security(context: &Context<'_>) -> Result<PodSecurityContext, InjectError> {
    match &context.settings.values.gateways.security_context {
        Value::Null => {}
        Value::Object(fields) if fields.is_empty() => {}
        written => return parts::from_values("gateways.securityContext", written),
    }
    let sysctl = Sysctl { name: "net.ipv4.ip_unprivileged_port_start".to_owned(), value: "0".to_owned() };
    Ok(PodSecurityContext { sysctls: Some(vec![sysctl]), ..PodSecurityContext::default() })
}
