//! A small mesh for tests: builders that take what matters and default the rest.

use crate::audience::{InboundAudience, InboundMtls, IpFamilies, OutboundAudience, ServiceTarget, Switches};
use crate::scope::{Scope, ScopeKey, scope};
use model::destination_rule::{DestinationRule, PortPolicy, Subset, TrafficPolicy};
use model::gateway::{ServerTls, ServerTlsMode, TlsVersion};
use model::proxy::{Interception, ProxyRole};
use model::service::{Address, Health, Registry, Resolution, TargetPort, TrafficDistribution, Vip};
use model::{
    Endpoint, ExportTo, Kind, Labels, Locality, Mesh, MeshConfig, MeshView, MeshViewBuilder, Meta, MtlsMode,
    Namespace, ObjectKey, PeerAuthentication, Protocol, Service, ServiceKey, ServicePort,
};
use proto::resource::Resource;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A service of namespace `app`, with ports that are named after their number: `p80` and so on.
pub(crate) fn service(host: &str, ports: &[(u16, Protocol)]) -> Service {
    let name = host.split('.').next().unwrap_or(host);
    Service {
        key: ServiceKey { host: host.into(), namespace: "app".into() },
        object: ObjectKey::new(Kind::Service, "app", name),
        created: 0,
        labels: Labels::new(),
        annotations: Labels::new(),
        vips: vec![Vip::Ip([10, 96, 0, 1].into())],
        ports: ports.iter().map(|&(number, protocol)| port(number, protocol)).collect(),
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
    }
}

/// A port named after its number that leads to the same number.
pub(crate) fn port(number: u16, protocol: Protocol) -> ServicePort {
    ServicePort {
        name: format!("p{number}").into(),
        port: number,
        protocol,
        target: TargetPort::Number(number),
        node_port: None,
    }
}

/// A ServiceEntry's host outside the mesh.
pub(crate) fn external(host: &str, resolution: Resolution, ports: &[(u16, Protocol)]) -> Service {
    Service {
        object: ObjectKey::new(Kind::ServiceEntry, "app", "entry"),
        registry: Registry::External,
        mesh_external: true,
        resolution,
        ..service(host, ports)
    }
}

/// A ready endpoint of a pod with a sidecar, for the service port of the same number.
pub(crate) fn endpoint(ip: &str, port: u16) -> Endpoint {
    Endpoint {
        address: Address::Ip(ip.parse().unwrap()),
        additional_addresses: Vec::new(),
        port,
        service_port: format!("p{port}").into(),
        labels: Labels::new(),
        service_account: Some("spiffe://cluster.local/ns/app/sa/cart".into()),
        namespace: "app".into(),
        workload: "cart-1".into(),
        locality: Locality::default(),
        network: "".into(),
        cluster: "Kubernetes".into(),
        node: None,
        weight: None,
        health: Health::Healthy,
        mtls: true,
    }
}

/// A DestinationRule of `namespace` for `host`.
pub(crate) fn rule(namespace: &str, name: &str, host: &str) -> DestinationRule {
    DestinationRule {
        meta: meta(Kind::DestinationRule, namespace, name),
        host: host.into(),
        export_to: ExportTo::All,
        workload_selector: None,
        policy: None,
        subsets: Vec::new(),
    }
}

/// Metadata of an object of unknown age.
pub(crate) fn meta(kind: Kind, namespace: &str, name: &str) -> Meta {
    Meta {
        key: ObjectKey::new(kind, namespace, name),
        created: 0,
        labels: Labels::new(),
        annotations: Labels::new(),
    }
}

/// A policy without exceptions by port.
pub(crate) fn policy(base: PortPolicy) -> TrafficPolicy {
    TrafficPolicy { base, ..TrafficPolicy::default() }
}

/// The subset whose endpoints have the label `version`.
pub(crate) fn subset(version: &str, policy: Option<TrafficPolicy>) -> Subset {
    Subset { name: version.into(), labels: [("version", version)].into_iter().collect(), policy }
}

/// The TLS settings of a server that names neither certificates nor anything else.
pub(crate) fn server_tls(mode: ServerTlsMode) -> ServerTls {
    ServerTls {
        https_redirect: false,
        mode,
        server_certificate: None,
        private_key: None,
        ca_certificates: None,
        ca_crl: None,
        credential_name: None,
        credential_names: Vec::new(),
        tls_certificates: Vec::new(),
        ca_cert_credential_name: None,
        subject_alt_names: Vec::new(),
        verify_certificate_spki: Vec::new(),
        verify_certificate_hash: Vec::new(),
        min_version: TlsVersion::Auto,
        max_version: TlsVersion::Auto,
        cipher_suites: Vec::new(),
        ecdh_curves: Vec::new(),
        insecure_skip_verify: false,
    }
}

/// A PeerAuthentication for a whole namespace.
pub(crate) fn peer_authentication(namespace: &str, mode: MtlsMode) -> PeerAuthentication {
    PeerAuthentication {
        meta: meta(Kind::PeerAuthentication, namespace, "default"),
        selector: None,
        mode: Some(mode),
        port_level: BTreeMap::new(),
    }
}

/// A sidecar with an identity in namespace `app` that sees everything.
pub(crate) fn sidecar() -> OutboundAudience {
    OutboundAudience {
        role: ProxyRole::Sidecar,
        namespace: "app".into(),
        dns_domain: "app.svc.cluster.local".into(),
        scope: ScopeKey { namespace: "app".into(), sidecar: None, gateway: false },
        sources: BTreeSet::new(),
        selected_rules: BTreeSet::new(),
        families: IpFamilies { v4: true, v6: false },
        has_identity: true,
        interception: Interception::Redirect,
        locality: Locality::default(),
        network: "".into(),
        cluster: "Kubernetes".into(),
        node: None,
        failover_labels: Labels::new(),
        own_headless: BTreeSet::new(),
        switches: Switches::default(),
    }
}

/// A gateway with an identity in namespace `app`.
pub(crate) fn router() -> OutboundAudience {
    let mut router = sidecar();
    router.role = ProxyRole::Router;
    router.scope.gateway = true;
    router
}

/// A workload with an identity in namespace `app` behind these services.
pub(crate) fn workload(targets: &[(&Service, &[(u16, u16)])]) -> InboundAudience {
    InboundAudience {
        namespace: "app".into(),
        scope: sidecar().scope,
        targets: targets
            .iter()
            .map(|(service, ports)| ServiceTarget { service: service.key.clone(), ports: ports.to_vec() })
            .collect(),
        mtls: InboundMtls { default: MtlsMode::Permissive, ports: BTreeMap::new() },
        families: IpFamilies { v4: true, v6: false },
        instance_ip: None,
        has_identity: true,
        interception: Interception::Redirect,
        switches: Switches::default(),
    }
}

/// A mesh that is being put together.
#[derive(Default)]
pub(crate) struct World {
    builder: MeshViewBuilder,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn config(mut self, change: impl FnOnce(&mut MeshConfig)) -> Self {
        let mut config = MeshConfig::default();
        change(&mut config);
        self.builder.set_config(config);
        self
    }

    pub(crate) fn service(mut self, service: &Service) -> Self {
        self.builder.set_service(service.clone());
        self
    }

    pub(crate) fn endpoints(mut self, service: &Service, endpoints: &[Endpoint]) -> Self {
        self.builder.set_endpoints(&service.key, endpoints.into());
        self
    }

    pub(crate) fn rule(mut self, rule: DestinationRule) -> Self {
        self.builder.set_destination_rule(rule);
        self
    }

    pub(crate) fn peer_authentication(mut self, policy: PeerAuthentication) -> Self {
        self.builder.set_peer_authentication(policy);
        self
    }

    pub(crate) fn build(self, build: impl FnOnce(&mut MeshViewBuilder)) -> Self {
        let mut world = self;
        build(&mut world.builder);
        world
    }

    pub(crate) fn view(&self) -> &MeshView {
        self.builder.view()
    }
}

/// Returns what proxies of this audience see.
pub(crate) fn scope_of(mesh: &Mesh<'_>, audience: &OutboundAudience) -> Scope {
    scope(mesh, &audience.scope)
}

/// Returns the resources by name, in the JSON form of protobuf.
pub(crate) fn by_name(resources: impl IntoIterator<Item = Resource>) -> BTreeMap<String, Value> {
    resources.into_iter().map(|resource| (resource.name().to_string(), json(&resource))).collect()
}

/// Returns a resource in the JSON form of protobuf.
pub(crate) fn json(resource: &Resource) -> Value {
    proto::json::to_json(resource.kind().type_url(), resource.bytes()).unwrap()
}

/// Checks that `actual` has `expected` at `path`, a JSON pointer; null stands for nothing there.
#[track_caller]
pub(crate) fn expect(case: &str, actual: &Value, path: &str, expected: &Value) {
    let found = actual.pointer(path).unwrap_or(&Value::Null);
    assert_eq!(found, expected, "{case}: {path}");
}

/// A namespace.
pub(crate) fn namespace(name: &str) -> Namespace {
    name.into()
}
