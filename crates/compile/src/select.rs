//! Selection: what is decided about a proxy before anything is compiled for it.
//!
//! This is the one place that sees a [`Proxy`]. Everything that generators may depend on is turned into an
//! outcome here: which scope, which selectors match, which services it is behind, what its ports accept.

use crate::audience::{
    CertificateFiles, GatewayAudience, InboundAudience, InboundMtls, IpFamilies, OutboundAudience, Selection,
    ServiceTarget, Switches,
};
use crate::scope;
use crate::shared::Shared;
use model::labels::topology;
use model::proxy::{Interception, ProxyRole};
use model::proxy_settings::parse_duration;
use model::service::{Address, Registry, TargetPort};
use model::sidecar::{CaptureMode, IngressEndpoint};
use model::view::ServiceRow;
use model::{
    Labels, Locality, Mesh, MeshView, MtlsMode, Namespace, PeerAuthentication, Proxy, ServiceKey, Str,
    Workload,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Istio's filter for exchanging workload metadata over TCP, negotiated by ALPN.
const METADATA_EXCHANGE: &str = "istio.metadata_exchange";

/// A Service with this label does not translate the ports of gateways.
const NO_PORT_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// Decides everything about `proxy` that its resources may depend on.
pub fn select(mesh: &Mesh<'_>, proxy: &Proxy) -> Selection {
    // A pod of another cluster may well have the name, the address and the labels of one here.
    let is_local = proxy.cluster.is_empty() || proxy.cluster == mesh.config().cluster;
    let workload = is_local.then(|| mesh.workload(&proxy.workload)).flatten().map(AsRef::as_ref);
    // Labels in metadata may be stale: the registry knows better.
    let labels = workload.map_or(&proxy.labels, |workload| &workload.labels);
    let targets = targets(mesh, proxy, is_local, workload, labels);
    let outbound = outbound(mesh, proxy, workload, labels, &targets);
    let inbound = (proxy.role == ProxyRole::Sidecar).then(|| {
        let instance_ip = needs_instance_ip(mesh, &outbound).then(|| proxy.ips.first().copied()).flatten();
        Shared::new(InboundAudience {
            namespace: proxy.namespace.clone(),
            scope: outbound.scope.clone(),
            targets: targets.clone(),
            mtls: inbound_mtls(mesh, &proxy.namespace, labels),
            families: outbound.families,
            instance_ip,
            has_identity: proxy.has_identity,
            interception: proxy.interception,
            switches: outbound.switches.clone(),
        })
    });
    let gateway = (proxy.role == ProxyRole::Router).then(|| Shared::new(gateway(mesh, labels, &targets)));
    Selection { outbound: Shared::new(outbound), inbound, gateway }
}

/// Returns the selection of a proxy that sees nothing.
pub(crate) fn nothing(proxy: &Proxy) -> Selection {
    let view = MeshView::default();
    select(&Mesh::new(&view), proxy)
}

fn outbound(
    mesh: &Mesh<'_>,
    proxy: &Proxy,
    workload: Option<&Workload>,
    labels: &Labels,
    targets: &[ServiceTarget],
) -> OutboundAudience {
    let is_headless =
        |target: &&ServiceTarget| mesh.service(&target.service).is_some_and(|service| service.is_headless());
    let own_headless = match targets.iter().find(is_headless) {
        Some(_) => proxy.ips.iter().copied().collect(),
        None => BTreeSet::new(),
    };
    let selected_rules = mesh
        .destination_rules(&proxy.namespace)
        .filter(|rule| rule.workload_selector.as_ref().is_some_and(|selector| selector.selects(labels)))
        .map(|rule| rule.key.clone())
        .collect();
    let known = |text: &Str, fallback: &Str| if text.is_empty() { fallback.clone() } else { text.clone() };
    let locality = match workload {
        Some(workload) if !workload.locality.is_empty() => &workload.locality,
        _ => &proxy.locality,
    };
    let network =
        workload.map_or_else(|| proxy.network.clone(), |workload| known(&proxy.network, &workload.network));
    OutboundAudience {
        role: proxy.role,
        namespace: proxy.namespace.clone(),
        dns_domain: proxy.dns_domain.clone(),
        scope: scope::select(mesh, &proxy.namespace, labels, proxy.role == ProxyRole::Router),
        sources: mesh.source_selectors().filter(|selector| selector.selects(labels)).cloned().collect(),
        selected_rules,
        families: families(&proxy.ips),
        has_identity: proxy.has_identity,
        interception: proxy.interception,
        locality: locality.clone(),
        failover_labels: failover_labels(mesh, proxy, labels, locality, &network),
        network,
        cluster: cluster(mesh, proxy).clone(),
        node: if mesh.node_matters() { proxy.node.clone() } else { None },
        own_headless,
        switches: switches(mesh, proxy),
    }
}

/// Returns the cluster that the proxy is in: this one, if it says none.
fn cluster<'p>(mesh: &Mesh<'p>, proxy: &'p Proxy) -> &'p Str {
    match proxy.cluster.is_empty() {
        true => &mesh.config().cluster,
        false => &proxy.cluster,
    }
}

/// Returns the values of the labels by which anything ranks endpoints. What is known of the proxy's place overrides
/// its labels.
fn failover_labels(
    mesh: &Mesh<'_>,
    proxy: &Proxy,
    labels: &Labels,
    locality: &Locality,
    network: &Str,
) -> Labels {
    let value = |name: &str| {
        let known = match name {
            topology::REGION => Some(&locality.region),
            topology::ZONE => Some(&locality.zone),
            topology::SUBZONE => Some(&locality.subzone),
            topology::CLUSTER => Some(cluster(mesh, proxy)),
            topology::NETWORK => Some(network),
            topology::HOSTNAME => proxy.node.as_ref(),
            _ => None,
        };
        known.map(AsRef::as_ref).filter(|known: &&str| !known.is_empty()).or_else(|| labels.get(name))
    };
    let own = mesh.failover_labels().map(AsRef::as_ref);
    own.chain(mesh.config().locality_lb.failover_labels())
        .filter_map(|name| Some((name, value(name)?)))
        .collect()
}

/// Parses an address on the workload's own host, which may be called `localhost`.
fn parse_local_address(text: &str, families: IpFamilies) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) if families.v4 => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        Some(port) => Some((Ipv6Addr::LOCALHOST, port.parse().ok()?).into()),
        None => text.parse().ok(),
    }
}

/// Without addresses, IPv4 is assumed: a bare Envoy does not say.
fn families(ips: &[IpAddr]) -> IpFamilies {
    let v6 = ips.iter().any(IpAddr::is_ipv6);
    IpFamilies { v4: !v6 || ips.iter().any(IpAddr::is_ipv4), v6 }
}

fn switches(mesh: &Mesh<'_>, proxy: &Proxy) -> Switches {
    let text = |name: &str| proxy.metadata.get(name).filter(|text| !text.is_empty());
    let flag = |name: &str| text(name).is_some_and(|text| matches!(text.as_ref(), "1" | "true"));
    let port = |name: &str| text(name).and_then(|text| text.parse::<u16>().ok());
    let files = |certificate: &str, private_key: &str, root: &str| {
        Some(CertificateFiles {
            certificate: text(certificate)?.clone(),
            private_key: text(private_key)?.clone(),
            root: text(root).cloned().unwrap_or_default(),
        })
    };
    let own = [
        "ENVOY_STATUS_PORT",
        "ENVOY_PROMETHEUS_PORT",
        "ENVOY_SECURE_METRICS_PORT",
        "ENVOY_SECURE_MERGED_METRICS_PORT",
    ];
    Switches {
        http10: flag("HTTP10"),
        http_proxy_port: port("HTTP_PROXY_PORT").unwrap_or(mesh.config().proxy_http_port),
        idle_timeout: text("IDLE_TIMEOUT")
            .and_then(|text| parse_duration(text))
            .and_then(|duration| u64::try_from(duration.as_nanos()).ok()),
        inbound_exact_balance: flag("INBOUND_LISTENER_EXACT_BALANCE"),
        outbound_exact_balance: flag("OUTBOUND_LISTENER_EXACT_BALANCE"),
        dns_proxy: text("DNS_PROXY_ADDR")
            .filter(|_| flag("DNS_CAPTURE"))
            .and_then(|address| parse_local_address(address, families(&proxy.ips))),
        dual_stack: flag("ISTIO_DUAL_STACK"),
        unprivileged: flag("UNPRIVILEGED_POD"),
        reserved_ports: own.into_iter().filter_map(port).collect(),
        client_certificates: files("TLS_CLIENT_CERT_CHAIN", "TLS_CLIENT_KEY", "TLS_CLIENT_ROOT_CERT"),
        server_certificates: files("TLS_SERVER_CERT_CHAIN", "TLS_SERVER_KEY", "TLS_SERVER_ROOT_CERT"),
        extensions: istio_extensions(proxy),
        proxy: proxy.settings.clone().unwrap_or_else(|| mesh.config().proxy.clone()),
        network_view: text("REQUESTED_NETWORK_VIEW")
            .map(|text| {
                text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Str::from).collect()
            })
            .unwrap_or_default(),
    }
}

/// Returns the extensions that the proxy has beyond those of stock Envoy. Every Envoy lists what it has; one that
/// lists nothing and says that it is Istio's is taken to be Istio's build.
fn istio_extensions(proxy: &Proxy) -> BTreeSet<Str> {
    if proxy.extensions.is_empty() && proxy.metadata.contains_key("ISTIO_VERSION") {
        return BTreeSet::from([METADATA_EXCHANGE.into()]);
    }
    proxy.extensions.iter().filter(|name| name.starts_with("istio")).cloned().collect()
}

/// Returns the services that the workload is behind, oldest first.
fn targets(
    mesh: &Mesh<'_>,
    proxy: &Proxy,
    is_local: bool,
    workload: Option<&Workload>,
    labels: &Labels,
) -> Vec<ServiceTarget> {
    // Only those of its own namespace: nobody may put a workload behind a service of theirs.
    let by_address: BTreeSet<&ServiceKey> = proxy
        .ips
        .iter()
        .flat_map(|ip| mesh.services_at(*ip))
        .filter(|service| service.namespace == proxy.namespace)
        .collect();
    let namespace = &proxy.workload.namespace;
    let selected = mesh
        .services_in(namespace)
        .filter(|row| {
            is_local
                && !by_address.contains(&row.key)
                && !row.selector.is_empty()
                && row.selector.selects(labels)
        })
        .map(|row| (row.created, row.object.name.clone(), target(row, workload)));
    let addressed = by_address.iter().filter_map(|key| {
        let row = mesh.service_row(key)?;
        let mut target = target(row, workload);
        if row.registry == Registry::External {
            // The endpoint says which port it is, whatever the service's target port is.
            for (port, number) in &mut target.ports {
                let name = row.ports.iter().find(|own| own.port == *port).map(|own| &own.name);
                let own = mesh.endpoints(key).iter().find(|endpoint| {
                    Some(&endpoint.service_port) == name
                        && matches!(endpoint.address, Address::Ip(ip) if proxy.ips.contains(&ip))
                });
                *number = own.map_or(*number, |endpoint| endpoint.port);
            }
        }
        Some((row.created, row.object.name.clone(), target))
    });
    let mut targets: Vec<_> = selected.chain(addressed).collect();
    targets.sort();
    targets.into_iter().map(|(_, _, target)| target).collect()
}

fn target(row: &ServiceRow, workload: Option<&Workload>) -> ServiceTarget {
    let named = |name: &str| {
        let ports = workload.map_or(&[][..], |workload| &workload.named_ports);
        ports.iter().find(|(candidate, _)| candidate.as_ref() == name).map(|(_, port)| *port)
    };
    let ports = row.ports.iter().map(|port| {
        let by_entry = match row.registry {
            // The port map of a WorkloadEntry goes by the names of service ports.
            Registry::External => named(&port.name),
            Registry::Kubernetes => None,
        };
        let number = by_entry.unwrap_or_else(|| match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => named(name).unwrap_or(0),
        });
        (port.port, number)
    });
    ServiceTarget { service: row.key.clone(), ports: ports.collect() }
}

fn needs_instance_ip(mesh: &Mesh<'_>, outbound: &OutboundAudience) -> bool {
    let Some(key) = &outbound.scope.sidecar else { return false };
    mesh.sidecars(&key.namespace).filter(|sidecar| sidecar.meta.key == *key).any(|sidecar| {
        sidecar.ingress.iter().any(|listener| {
            // A listener that is really bound takes the workload's address unless it names one.
            let bound =
                outbound.interception == Interception::None || listener.capture_mode == CaptureMode::None;
            matches!(listener.default_endpoint, IngressEndpoint::Instance(_))
                || (bound && listener.bind.as_ref().is_none_or(|bind| bind.is_empty()))
        })
    })
}

/// Returns what the workload's ports accept: the mesh's policy, overridden by the namespace's, overridden by the
/// workload's, overridden by port. The oldest policy counts at each level.
pub(crate) fn inbound_mtls(mesh: &Mesh<'_>, namespace: &Namespace, labels: &Labels) -> InboundMtls {
    let root = &mesh.config().root_namespace;
    let oldest = |namespace: &Namespace, applies: &dyn Fn(&PeerAuthentication) -> bool| {
        mesh.peer_authentications(namespace)
            .filter(|policy| applies(policy))
            .min_by(|a, b| a.meta.by_age(&b.meta))
            .map(AsRef::as_ref)
    };
    let general = |policy: &PeerAuthentication| policy.selector.is_none();
    let selected = |policy: &PeerAuthentication| {
        policy.selector.as_ref().is_some_and(|selector| selector.selects(labels))
    };
    let mesh_wide = oldest(root, &general);
    let namespace_wide = (namespace != root).then(|| oldest(namespace, &general)).flatten();
    // A policy with a selector in the root namespace has no effect.
    let own = (namespace != root).then(|| oldest(namespace, &selected)).flatten();
    let mode_of = |policy: Option<&PeerAuthentication>| policy.and_then(|policy| policy.mode);
    let default = mode_of(own)
        .or_else(|| mode_of(namespace_wide))
        .or_else(|| mode_of(mesh_wide))
        .unwrap_or(MtlsMode::Permissive);
    let ports: BTreeMap<u16, MtlsMode> = own
        .into_iter()
        .flat_map(|policy| &policy.port_level)
        .map(|(port, mode)| (*port, mode.unwrap_or(default)))
        .collect();
    InboundMtls { default, ports }
}

fn gateway(mesh: &Mesh<'_>, labels: &Labels, targets: &[ServiceTarget]) -> GatewayAudience {
    let mut service_ports = BTreeMap::new();
    let mut selected: Vec<_> = mesh
        .gateways()
        .filter(|row| match &row.services {
            None => row.selector.selects(labels),
            Some(hosts) => {
                let is_meant = |target: &&ServiceTarget| {
                    target.service.namespace == row.key.namespace && hosts.contains(&target.service.host)
                };
                let mut meant = targets.iter().filter(is_meant).peekable();
                let found = meant.peek().is_some();
                if found {
                    service_ports.insert(row.key.clone(), ports_of(meant));
                }
                found
            }
        })
        .collect();
    selected.sort_by(|a, b| {
        (a.created, &a.key.name, &a.key.namespace).cmp(&(b.created, &b.key.name, &b.key.namespace))
    });
    let mut port_map: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for target in targets {
        let opted_out = mesh
            .service(&target.service)
            .is_none_or(|service| service.labels.get(NO_PORT_TRANSLATION).is_some());
        if opted_out {
            continue;
        }
        for (port, number) in &target.ports {
            // The first port of a Service that leads to a workload port is translated, as in Istio; further ones
            // are bound as declared.
            if taken.insert((&target.service, *number)) && !port_map.contains_key(port) {
                port_map.insert(*port, BTreeSet::from([*number]));
            }
        }
    }
    let gateways = selected.into_iter().map(|row| row.key.clone()).collect();
    GatewayAudience { gateways, port_map, service_ports }
}

/// Returns the workload ports that each port of these services leads to.
fn ports_of<'a>(targets: impl Iterator<Item = &'a ServiceTarget>) -> BTreeMap<u16, BTreeSet<u16>> {
    let mut ports: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
    for (port, number) in targets.flat_map(|target| &target.ports) {
        ports.entry(*port).or_default().insert(*number);
    }
    ports
}

#[cfg(test)]
mod tests;
