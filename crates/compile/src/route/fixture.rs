//! Meshes for the tests of routes, and routes as lines of text.

use crate::audience::{GatewayAudience, IpFamilies, OutboundAudience};
use crate::fixtures;
use crate::scope::{self, Scope, ScopeKey};
use crate::select;
use model::destination_rule::{
    Algorithm, ConsistentHash, HashKey, HashRing, LoadBalancer, PortPolicy, Subset, TrafficPolicy,
};
use model::gateway::{Gateway, HostNamespace, Server, ServerHost, ServerTls, ServerTlsMode};
use model::proxy::{Interception, ProxyRole};
use model::route::{Headers, StringMatch};
use model::service::{Registry, Resolution, TargetPort, TrafficDistribution, Vip};
use model::virtual_service::{
    Destination, GatewayRef, HttpAction, HttpDestination, HttpMatch, HttpRule, VirtualService,
};
use model::{
    DestinationRule, ExportTo, Hostname, Kind, Labels, Locality, Mesh, MeshConfig, MeshView, MeshViewBuilder,
    Meta, Namespace, ObjectKey, Protocol, Proxy, Service, ServiceKey, ServicePort, Sidecar, Str, WorkloadId,
};
use prost::Message;
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use proto::envoy::config::route::v3::route_match::PathSpecifier;
use proto::envoy::config::route::v3::{Route, VirtualHost};
use proto::resource::Resource;

/// A mesh under construction.
pub(super) struct World {
    builder: MeshViewBuilder,
    created: i64,
}

impl World {
    pub(super) fn new() -> Self {
        Self { builder: MeshViewBuilder::new(MeshView::default()), created: 0 }
    }

    fn age(&mut self) -> i64 {
        self.created += 1;
        self.created
    }

    pub(super) fn meta(&mut self, kind: Kind, name: &str) -> Meta {
        let (namespace, name) = name.split_once('/').unwrap();
        Meta {
            key: ObjectKey::new(kind, namespace, name),
            created: self.age(),
            labels: Labels::new(),
            annotations: Labels::new(),
        }
    }

    pub(super) fn config(mut self, change: impl FnOnce(&mut MeshConfig)) -> Self {
        let mut config = MeshConfig::default();
        change(&mut config);
        self.builder.set_config(config);
        self
    }

    /// Adds `shop/cart` with ports such as `80/http 90/tcp 70/`.
    pub(super) fn service(self, name: &str, ports: &str) -> Self {
        self.service_with(name, ports, |_| {})
    }

    pub(super) fn service_with(mut self, name: &str, ports: &str, change: impl FnOnce(&mut Service)) -> Self {
        let meta = self.meta(Kind::Service, name);
        let (namespace, name) = (&meta.key.namespace, &meta.key.name);
        let host = Hostname::new(format!("{name}.{namespace}.svc.cluster.local"));
        let mut service = Service {
            key: ServiceKey { host, namespace: namespace.clone() },
            object: meta.key.clone(),
            created: meta.created,
            labels: Labels::new(),
            annotations: Labels::new(),
            vips: vec![Vip::Ip([10, 0, 0, u8::try_from(meta.created).unwrap()].into())],
            ports: ports.split(' ').map(port).collect(),
            resolution: Resolution::ClientSide,
            registry: Registry::Kubernetes,
            mesh_external: false,
            export_to: ExportTo::All,
            alias: None,
            selector: Labels::new(),
            subject_alt_names: Vec::new(),
            node_local: false,
            traffic_distribution: TrafficDistribution::Any,
            publish_not_ready: false,
        };
        change(&mut service);
        self.builder.set_service(service);
        self
    }

    /// Adds a ServiceEntry's host.
    pub(super) fn external(self, namespace: &str, host: &str, ports: &str) -> Self {
        self.service_with(&format!("{namespace}/entry"), ports, |service| {
            service.key.host = Hostname::new(host);
            service.object.kind = Kind::ServiceEntry;
            service.registry = Registry::External;
            service.resolution = Resolution::Dns;
            service.vips.clear();
            service.mesh_external = true;
        })
    }

    /// Adds the VirtualService `shop/cart` for some hosts, on the mesh unless `change` says otherwise.
    pub(super) fn rules(
        mut self,
        name: &str,
        hosts: &[&str],
        http: Vec<HttpRule>,
        change: impl FnOnce(&mut VirtualService),
    ) -> Self {
        let meta = self.meta(Kind::VirtualService, name);
        let mut rules = VirtualService {
            meta,
            hosts: hosts.iter().map(|host| Hostname::new(*host)).collect(),
            gateways: vec![GatewayRef::Mesh],
            export_to: ExportTo::All,
            http,
            tls: Vec::new(),
            tcp: Vec::new(),
        };
        change(&mut rules);
        self.builder.set_virtual_service(rules);
        self
    }

    pub(super) fn policy(
        mut self,
        name: &str,
        host: &str,
        policy: TrafficPolicy,
        subsets: Vec<Subset>,
    ) -> Self {
        let meta = self.meta(Kind::DestinationRule, name);
        self.builder.set_destination_rule(DestinationRule {
            meta,
            host: Hostname::new(host),
            export_to: ExportTo::All,
            workload_selector: None,
            policy: Some(policy),
            subsets,
        });
        self
    }

    /// Adds the Gateway `edge/public`, its servers such as `80/HTTP/a.com,ns@b.com` or `443/HTTPS/a.com tls`.
    pub(super) fn gateway(mut self, name: &str, servers: &[&str]) -> Self {
        let meta = self.meta(Kind::Gateway, name);
        let servers = servers.iter().enumerate().map(|(index, text)| server(index, text)).collect();
        self.builder.set_gateway(Gateway { meta, selector: Labels::new(), services: None, servers });
        self
    }

    pub(super) fn sidecar(mut self, name: &str, change: impl FnOnce(&mut Sidecar)) -> Self {
        let meta = self.meta(Kind::Sidecar, name);
        let mut sidecar = Sidecar {
            meta,
            selector: None,
            ingress: Vec::new(),
            egress: Vec::new(),
            outbound_traffic_policy: None,
            inbound_connection_pool: None,
        };
        change(&mut sidecar);
        self.builder.set_sidecar(sidecar);
        self
    }

    pub(super) fn view(&self) -> &MeshView {
        self.builder.view()
    }

    /// Returns the route configuration `name` of a sidecar in `namespace`.
    pub(super) fn outbound(&self, namespace: &str, name: &str) -> Option<RouteConfiguration> {
        self.outbound_for(namespace, name, |_| {})
    }

    pub(super) fn outbound_for(
        &self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut OutboundAudience),
    ) -> Option<RouteConfiguration> {
        let (scope, audience) = self.client(ProxyRole::Sidecar, namespace, change);
        super::outbound(&Mesh::new(self.view()), &scope, &audience, name).map(|resource| decode(&resource))
    }

    /// Returns the route configuration `name` of the gateway workload in `edge` that every Gateway selects.
    pub(super) fn at_gateway(&self, name: &str) -> Option<RouteConfiguration> {
        self.at_gateway_with(name, &[])
    }

    pub(super) fn at_gateway_with(&self, name: &str, ports: &[(u16, u16)]) -> Option<RouteConfiguration> {
        let (scope, audience) = self.client(ProxyRole::Router, "edge", |_| {});
        let mesh = Mesh::new(self.view());
        let mut rows: Vec<_> = mesh.gateways().collect();
        rows.sort_by_key(|row| row.created);
        let gateway = GatewayAudience {
            gateways: rows.iter().map(|row| row.key.clone()).collect(),
            port_map: ports.iter().map(|(declared, bound)| (*declared, [*bound].into())).collect(),
            ..GatewayAudience::default()
        };
        super::gateway(&mesh, &scope, &audience, &gateway, name).map(|resource| decode(&resource))
    }

    /// Returns the route configuration `name` of a gRPC library in `namespace`.
    pub(super) fn grpc(&self, namespace: &str, name: &str) -> Option<RouteConfiguration> {
        let (scope, audience) = self.client(ProxyRole::Grpc, namespace, |_| {});
        super::grpc(&Mesh::new(self.view()), &scope, &audience, name).map(|resource| decode(&resource))
    }

    /// Returns what a proxy in `namespace` sees, and its audience.
    pub(super) fn client(
        &self,
        role: ProxyRole,
        namespace: &str,
        change: impl FnOnce(&mut OutboundAudience),
    ) -> (Scope, OutboundAudience) {
        let mesh = Mesh::new(self.view());
        let selection = select::select(&mesh, &proxy(role, namespace));
        let mut audience = OutboundAudience::clone(&selection.outbound);
        audience.families = IpFamilies { v4: true, v6: false };
        change(&mut audience);
        let key: &ScopeKey = &audience.scope;
        (scope::scope(&mesh, key), audience)
    }
}

fn proxy(role: ProxyRole, namespace: &str) -> Proxy {
    Proxy {
        role,
        node_id: "test".into(),
        workload: WorkloadId { namespace: Namespace::new(namespace), name: "client".into() },
        namespace: Namespace::new(namespace),
        ips: vec![[127, 0, 0, 1].into()],
        dns_domain: format!("{namespace}.svc.cluster.local").into(),
        labels: Labels::new(),
        locality: Locality::default(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        node: None,
        interception: Interception::Redirect,
        has_identity: true,
        metadata: Default::default(),
        settings: None,
        extensions: Vec::new(),
    }
}

/// Parses `80/http`; the name is the protocol's, none means sniffed.
pub(super) fn port(text: &str) -> ServicePort {
    let (number, protocol) = text.split_once('/').unwrap();
    let number = number.parse().unwrap();
    ServicePort {
        name: format!("{protocol}-{number}").into(),
        port: number,
        protocol: Protocol::parse(protocol),
        target: TargetPort::Number(number),
        node_port: None,
    }
}

fn server(index: usize, text: &str) -> Server {
    let mut words = text.split(' ');
    let mut spec = words.next().unwrap().split('/');
    let number = spec.next().unwrap().parse().unwrap();
    let protocol = spec.next().unwrap();
    let hosts = spec.next().unwrap().split(',').map(|host| {
        let (namespace, host) = match host.split_once('@') {
            Some(("~", host)) => (HostNamespace::Nobody, host),
            Some((namespace, host)) => (HostNamespace::Only(Namespace::new(namespace)), host),
            None => (HostNamespace::Any, host),
        };
        ServerHost { namespace, host: Hostname::new(host) }
    });
    Server {
        index,
        name: None,
        port: number,
        port_name: format!("{}-{index}", protocol.to_lowercase()).into(),
        protocol: Protocol::parse(protocol),
        bind: None,
        hosts: hosts.collect(),
        tls: words.next().map(server_tls),
    }
}

fn server_tls(mode: &str) -> ServerTls {
    ServerTls {
        https_redirect: mode == "redirect",
        mode: if mode == "redirect" { ServerTlsMode::Passthrough } else { ServerTlsMode::Simple },
        ..fixtures::server_tls(ServerTlsMode::Simple)
    }
}

/// Parses `host`, `host|subset` or `host|subset|port`; short hosts are in namespace `shop`.
pub(super) fn destination(text: &str) -> Destination {
    let mut parts = text.split('|');
    let host = parts.next().unwrap();
    let host = if host.contains('.') { host.to_owned() } else { format!("{host}.shop.svc.cluster.local") };
    let subset = parts.next().filter(|subset| !subset.is_empty()).map(Str::from);
    Destination { host: Hostname::new(host), subset, port: parts.next().map(|port| port.parse().unwrap()) }
}

/// Returns a destination with a weight.
pub(super) fn weighted(text: &str, weight: u32) -> HttpDestination {
    HttpDestination {
        destination: destination(text),
        weight,
        headers: Headers::default(),
        authority_from_headers: None,
    }
}

/// Returns a rule of every request to one destination.
pub(super) fn rule(to: &str) -> HttpRule {
    rule_of(HttpAction::Route(vec![weighted(to, 0)]))
}

/// Returns a rule of every request.
pub(super) fn rule_of(action: HttpAction) -> HttpRule {
    HttpRule {
        name: None,
        matches: Vec::new(),
        action,
        rewrite: None,
        timeout: None,
        retries: None,
        fault: None,
        mirrors: Vec::new(),
        mirror_percentage: None,
        cors: None,
        headers: Headers::default(),
        authority_from_headers: None,
    }
}

/// Returns a rule of requests that meet one of these conditions.
pub(super) fn when(matches: Vec<HttpMatch>, rule: HttpRule) -> HttpRule {
    HttpRule { matches, ..rule }
}

/// Returns the condition that the path begins with `prefix`.
pub(super) fn under(prefix: &str) -> HttpMatch {
    HttpMatch { uri: Some(StringMatch::Prefix(prefix.into())), ..HttpMatch::default() }
}

/// Returns balancing by hash.
pub(super) fn hashed(key: HashKey) -> PortPolicy {
    let hash = ConsistentHash { key: Some(key), ring: HashRing::Ring { minimum_size: 1024 } };
    let load_balancer =
        LoadBalancer { algorithm: Algorithm::ConsistentHash(hash), ..LoadBalancer::default() };
    PortPolicy { load_balancer: Some(load_balancer), ..PortPolicy::default() }
}

/// Decodes a resource, whose fragments must concatenate to the message.
pub(super) fn decode(resource: &Resource) -> RouteConfiguration {
    RouteConfiguration::decode(resource.bytes().clone()).unwrap()
}

/// Returns each virtual host as `name = domain …`.
pub(super) fn hosts(configuration: &RouteConfiguration) -> Vec<String> {
    let line = |host: &VirtualHost| format!("{} = {}", host.name, host.domains.join(" "));
    configuration.virtual_hosts.iter().map(line).collect()
}

/// Returns the virtual host `name`.
pub(super) fn host<'c>(configuration: &'c RouteConfiguration, name: &str) -> &'c VirtualHost {
    let found = configuration.virtual_hosts.iter().find(|host| host.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", hosts(configuration)))
}

/// Returns the routes of the virtual host `name`, as [`line`]s.
pub(super) fn routes(configuration: &RouteConfiguration, name: &str) -> Vec<String> {
    host(configuration, name).routes.iter().map(line).collect()
}

/// Returns a route as `path -> cluster`, or `path -> cluster*weight + …`; cluster names without `outbound|` and
/// `.svc.cluster.local`.
pub(super) fn line(route: &Route) -> String {
    let short = |cluster: &str| {
        cluster.trim_start_matches("outbound|").trim_end_matches(".svc.cluster.local").to_owned()
    };
    let path = match route.r#match.as_ref().and_then(|matched| matched.path_specifier.clone()) {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path,
        Some(PathSpecifier::SafeRegex(expression)) => format!("~{}", expression.regex),
        other => format!("{other:?}"),
    };
    let target = match &route.action {
        Some(Action::Route(action)) => match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(cluster)) => short(cluster),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                let parts = weighted.clusters.iter().map(|cluster| {
                    format!("{}*{}", short(&cluster.name), cluster.weight.map_or(0, |weight| weight.value))
                });
                parts.collect::<Vec<_>>().join(" + ")
            }
            other => format!("{other:?}"),
        },
        Some(Action::Redirect(_)) => "redirect".to_owned(),
        Some(Action::DirectResponse(response)) => response.status.to_string(),
        other => format!("{other:?}"),
    };
    format!("{path} -> {target}")
}
