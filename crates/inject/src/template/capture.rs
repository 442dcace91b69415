//! The container that sets up traffic capture, or checks that a CNI plugin has done so.

use super::{Context, parts};
use crate::error::InjectError;
use crate::{CORE_DUMP, INIT, VALIDATION};
use k8s_api::mesh_config::InterceptionMode;
use k8s_api::pod::{Capabilities, Container, EnvVar, SecurityContext};
use std::collections::BTreeMap;

/// What is captured, with the annotations over the values.
struct Capture {
    include_ip_ranges: String,
    exclude_ip_ranges: String,
    include_inbound_ports: String,
    exclude_inbound_ports: String,
    include_outbound_ports: Option<String>,
    exclude_outbound_ports: Option<String>,
}

impl Capture {
    fn of(context: &Context<'_>) -> Self {
        let values = &context.settings.values.global.proxy;
        let options = context.options;
        let or =
            |option: &Option<String>, default: &str| option.clone().unwrap_or_else(|| default.to_owned());
        let if_any = |option: &Option<String>, default: &str| {
            option.clone().or_else(|| (!default.is_empty()).then(|| default.to_owned()))
        };
        let excluded = or(&options.exclude_inbound_ports, &values.exclude_inbound_ports);
        Self {
            include_ip_ranges: or(&options.include_ip_ranges, &values.include_ip_ranges),
            exclude_ip_ranges: or(&options.exclude_ip_ranges, &values.exclude_ip_ranges),
            include_inbound_ports: or(&options.include_inbound_ports, &values.include_inbound_ports),
            exclude_inbound_ports: with_port(&excluded, &context.status_port()),
            include_outbound_ports: if_any(&options.include_outbound_ports, &values.include_outbound_ports),
            exclude_outbound_ports: if_any(&options.exclude_outbound_ports, &values.exclude_outbound_ports),
        }
    }
}

/// Adds the agent's own port to a list, unless it is there or turned off.
fn with_port(list: &str, port: &str) -> String {
    let mut ports: Vec<&str> = list.split(',').map(str::trim).filter(|port| !port.is_empty()).collect();
    if port != "0" && !port.is_empty() && !ports.contains(&port) {
        ports.push(port);
    }
    ports.join(",")
}

/// Returns the annotations by which a CNI plugin knows what to capture.
pub(super) fn annotations(context: &Context<'_>) -> BTreeMap<String, String> {
    let capture = Capture::of(context);
    let mut annotations = BTreeMap::new();
    let mut put = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            annotations.insert(name.to_owned(), value.to_owned());
        }
    };
    let some = |text| Some(text).filter(|text: &&str| !text.is_empty());
    put("sidecar.istio.io/interceptionMode", Some(context.mode().as_str()));
    put("traffic.sidecar.istio.io/includeOutboundIPRanges", some(&capture.include_ip_ranges));
    put("traffic.sidecar.istio.io/excludeOutboundIPRanges", some(&capture.exclude_ip_ranges));
    put("traffic.sidecar.istio.io/includeInboundPorts", Some(&capture.include_inbound_ports));
    put("traffic.sidecar.istio.io/excludeInboundPorts", Some(&capture.exclude_inbound_ports));
    put("traffic.sidecar.istio.io/includeOutboundPorts", capture.include_outbound_ports.as_deref());
    put("traffic.sidecar.istio.io/excludeOutboundPorts", capture.exclude_outbound_ports.as_deref());
    annotations
}

/// Returns the arguments of the container: Istio's, which the agent's image understands.
fn arguments(context: &Context<'_>, validates: bool) -> Vec<String> {
    let capture = Capture::of(context);
    let global = &context.settings.values.global;
    let options = context.options;
    let is_tproxy = context.mode() == InterceptionMode::Tproxy;
    // As root the proxy is known by its group.
    let user = context.user.filter(|_| !is_tproxy).unwrap_or(parts::PROXY_USER);
    let mut excluded = "15090,15021".to_owned();
    if !capture.exclude_inbound_ports.is_empty() {
        excluded = format!("{excluded},{}", capture.exclude_inbound_ports);
    }
    let mut arguments = vec!["istio-iptables".to_owned()];
    let mut flag = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
    flag("-p", &context.settings.mesh.proxy_listen_port.to_string());
    flag("-z", &context.settings.mesh.proxy_inbound_listen_port.to_string());
    flag("-u", &user.to_string());
    flag("-m", context.mode().as_str());
    flag("-i", &capture.include_ip_ranges);
    flag("-x", &capture.exclude_ip_ranges);
    flag("-b", &capture.include_inbound_ports);
    flag("-d", &excluded);
    for (name, value) in [
        ("-q", &capture.include_outbound_ports),
        ("-o", &capture.exclude_outbound_ports),
        ("-k", &options.virtual_interfaces),
        ("-c", &options.exclude_interfaces),
    ] {
        if let Some(value) = value {
            flag(name, value);
        }
    }
    let level = options.agent_log_level.as_ref().unwrap_or(&global.logging.level);
    arguments.push(format!("--log_output_level={level}"));
    let mut switch = |name: &str, on: bool| {
        if on {
            arguments.push(name.to_owned());
        }
    };
    switch("--log_as_json", global.log_as_json);
    switch("--run-validation", validates);
    switch("--skip-rule-apply", validates);
    switch("--force-apply", !validates && global.proxy_init.force_apply_iptables);
    switch("--native-nftables", global.native_nftables);
    arguments
}

/// Returns the container, unless nothing is captured.
pub(super) fn container(context: &Context<'_>) -> Result<Option<Container>, InjectError> {
    if context.mode() == InterceptionMode::None {
        return Ok(None);
    }
    let validates = context.settings.values.cni().is_some();
    let metadata = &context.proxy.proxy_metadata;
    let variable = |(name, value): (&String, &String)| EnvVar {
        name: name.clone(),
        value: Some(value.clone()),
        value_from: None,
    };
    let env: Vec<EnvVar> = metadata.iter().map(variable).collect();
    let mut security = parts::unprivileged(context)?;
    if !validates {
        security.capabilities = Some(capabilities(&["NET_ADMIN", "NET_RAW"]));
        as_root(&mut security);
    }
    Ok(Some(Container {
        name: if validates { VALIDATION } else { INIT }.to_owned(),
        image: Some(parts::image(context, &context.settings.values.global.proxy_init.image, None)),
        image_pull_policy: parts::pull_policy(context),
        args: Some(arguments(context, validates)),
        env: (!env.is_empty()).then_some(env),
        resources: parts::resources(context)?,
        security_context: Some(security),
        ..Container::default()
    }))
}

/// Returns the container that lets the kernel write core dumps where the proxy may write.
pub(super) fn core_dump(context: &Context<'_>) -> Option<Container> {
    let global = &context.settings.values.global;
    let script = "sysctl -w kernel.core_pattern=/var/lib/istio/data/core.proxy && ulimit -c unlimited";
    global.proxy.enable_core_dump.then(|| {
        let mut security = SecurityContext {
            allow_privilege_escalation: Some(true),
            privileged: Some(true),
            capabilities: Some(capabilities(&["SYS_ADMIN"])),
            ..SecurityContext::default()
        };
        as_root(&mut security);
        Container {
            name: CORE_DUMP.to_owned(),
            image: Some(parts::image(context, &global.proxy_init.image, None)),
            image_pull_policy: parts::pull_policy(context),
            command: Some(vec!["/bin/sh".to_owned()]),
            args: Some(vec!["-c".to_owned(), script.to_owned()]),
            security_context: Some(security),
            ..Container::default()
        }
    })
}

fn capabilities(add: &[&str]) -> Capabilities {
    let add = add.iter().map(|&name| name.to_owned()).collect();
    Capabilities { add: Some(add), drop: Some(vec!["ALL".to_owned()]) }
}

/// The kernel's tables are root's.
fn as_root(security: &mut SecurityContext) {
    security.read_only_root_filesystem = Some(false);
    security.run_as_non_root = Some(false);
    security.run_as_user = Some(0);
    security.run_as_group = Some(0);
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn the_agents_port_is_excluded_once() {
        for (list, port, expected) in [
            ("", "15020", "15020"),
            ("4,5", "15020", "4,5,15020"),
            ("15020, 4", "15020", "15020,4"),
            ("4", "0", "4"),
            ("", "0", ""),
        ] {
            assert_eq!(with_port(list, port), expected, "{list:?} {port}");
        }
    }
}
