//! The clusters of services: their ports and subsets.

use super::draft::{Draft, Protocol};
use super::dynamic::{self, dns_cache};
use super::{Discovery, discovery, races};
use crate::audience::{GatewayAudience, IpFamilies, OutboundAudience};
use crate::destination_rule::{Blocks, MergedRule, lookup};
use crate::endpoint;
use crate::names::{self, OutboundName, StatParts};
use crate::scope::{Scope, ScopedService};
use crate::select::inbound_mtls;
use crate::tls::{self, Identity, Spoken, Upstream};
use crate::wire;
use model::destination_rule::{Algorithm, ClientTls, ClientTlsMode};
use model::gateway::ServerTlsMode;
use model::proxy::ProxyRole;
use model::service::{Registry, Resolution, TargetPort};
use model::{Labels, Mesh, MeshConfig, MtlsMode, Service, ServiceKey, ServicePort, Str};
use proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy, OriginalDstLbConfig,
    TransportSocketMatch,
};
use proto::envoy::config::core::v3::UpstreamHttpProtocolOptions;
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use proto::google::protobuf::{ListValue, Struct, Value};
use proto::resource::Resource;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::time::Duration;

/// Spreads the queries of many proxies that started together.
const DNS_JITTER: Duration = Duration::from_millis(100);
/// Queries over one UDP socket, after which a new one is taken: some resolvers get stuck.
const DNS_QUERIES_PER_SOCKET: u32 = 100;

/// Returns the clusters of all visible ports of `service`, each followed by those of its subsets.
pub fn outbound(
    mesh: &Mesh<'_>,
    scope: &Scope,
    audience: &OutboundAudience,
    service: &ServiceKey,
) -> Vec<Resource> {
    let Some(scoped) = scope.services.get(&service.host).filter(|scoped| scoped.key == *service) else {
        return Vec::new();
    };
    clusters(mesh, audience, scoped, Form::Outbound)
}

/// Returns the clusters that AUTO_PASSTHROUGH servers of a gateway lead to, one for each server name of mutual TLS
/// inside the mesh. TLS is passed through, so they add none. Without such a server there are none.
pub fn gateway(
    mesh: &Mesh<'_>,
    scope: &Scope,
    audience: &OutboundAudience,
    gateway: &GatewayAudience,
) -> Vec<Resource> {
    let passes = |key| {
        mesh.gateway(key).is_some_and(|gateway| {
            let modes = gateway.servers.iter().filter_map(|server| server.tls.as_ref()).map(|tls| tls.mode);
            modes.into_iter().any(|mode| mode == ServerTlsMode::AutoPassthrough)
        })
    };
    if !gateway.gateways.iter().any(passes) {
        return Vec::new();
    }
    scope
        .service_order
        .iter()
        .filter_map(|key| scope.services.get(&key.host).filter(|scoped| scoped.key == *key))
        .flat_map(|scoped| clusters(mesh, audience, scoped, Form::SniDnat))
        .collect()
}

/// What a cluster is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Requests and connections that are routed here.
    Outbound,
    /// Mutual TLS that a gateway passes through by its server name.
    SniDnat,
}

fn clusters(
    mesh: &Mesh<'_>,
    audience: &OutboundAudience,
    scoped: &ScopedService,
    form: Form,
) -> Vec<Resource> {
    let Some(service) = mesh.service(&scoped.key) else { return Vec::new() };
    if form == Form::SniDnat && service.mesh_external {
        return Vec::new();
    }
    let rule = lookup(mesh, audience, &service.key.host, &service.key.namespace);
    let context = Context {
        mesh,
        config: mesh.config(),
        audience,
        identity: Identity::outbound(audience).under(mesh.config()),
        service,
        rule: rule.as_deref(),
        accounts: OnceCell::new(),
        accepts_mtls: OnceCell::new(),
    };
    let visible = |port: &&ServicePort| {
        port.protocol != model::Protocol::Udp
            && scoped.ports.as_ref().is_none_or(|ports| ports.contains(&port.port))
    };
    let mut resources = Vec::with_capacity(service.ports.len());
    for port in service.ports.iter().filter(visible) {
        resources.extend(context.cluster(port, "", form));
        for subset in rule.iter().flat_map(|rule| rule.subsets()) {
            resources.extend(context.cluster(port, &subset.name, form));
        }
    }
    resources
}

/// What the clusters of one service have in common.
struct Context<'a> {
    mesh: &'a Mesh<'a>,
    config: &'a MeshConfig,
    audience: &'a OutboundAudience,
    identity: Identity<'a>,
    service: &'a Service,
    rule: Option<&'a MergedRule>,
    accounts: OnceCell<Vec<Str>>,
    accepts_mtls: OnceCell<bool>,
}

impl Context<'_> {
    /// Returns the cluster of a port, or of a subset of it.
    fn cluster(&self, port: &ServicePort, subset: &str, form: Form) -> Option<Resource> {
        let rule = self.rule;
        let own = rule.map(|rule| rule.port_policy(port.port, subset)).unwrap_or_default();
        let blocks = own.or_mesh(self.config);
        let discovery = discovery(self.audience, self.service, blocks)?;
        let name = OutboundName { port: port.port, subset, host: self.service.key.host.as_str() };
        let text = match form {
            Form::Outbound => name.cluster(),
            Form::SniDnat => name.sni(),
        };
        let mut draft = Draft::new(&text, DiscoveryType::Static);
        self.describe(&mut draft, port, subset);
        self.find_endpoints(&mut draft, discovery, blocks, port, subset, form)?;
        if self.audience.role == ProxyRole::Grpc {
            return self.for_library(draft, discovery, blocks);
        }
        if form == Form::Outbound {
            draft.http.protocol = self.protocol(port);
            let may_be_http = port.protocol.is_http() || port.protocol.is_unsupported();
            draft.http.preserve_case = may_be_http && self.audience.switches.proxy.headers.preserve_case;
        }
        draft.apply_connection_pool(self.config, blocks.connection_pool, blocks.retry_budget);
        draft.apply_upgrade(self.config, blocks.connection_pool, port.protocol);
        draft.apply_http2_limits(blocks.connection_pool);
        if let Some(outlier) = blocks.outlier_detection.filter(|_| discovery != Discovery::DynamicDns) {
            draft.apply_outlier_detection(outlier);
        }
        match discovery {
            Discovery::DynamicDns => draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32,
            _ => draft.apply_balancing(self.config, blocks, self.service),
        }
        if discovery == Discovery::OriginalDestination {
            draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            draft.cluster.lb_config = self.port_override(port);
        }
        if form == Form::Outbound {
            let encryption = self.encryption(blocks, port, &name, draft.http.is_http2());
            self.encrypt(&mut draft, encryption, discovery, blocks.tls);
            if let Some(version) = blocks.proxy_protocol {
                draft.wrap_in_proxy_protocol(version);
            }
        }
        if discovery == Discovery::DynamicDns {
            draft.check_names_of_requests();
        }
        if self.identity.exchanges_metadata {
            draft.exchange_metadata();
        }
        Some(draft.finish())
    }

    /// Sets what tools and statistics go by.
    fn describe(&self, draft: &mut Draft, port: &ServicePort, subset: &str) {
        let Service { key, mesh_external, .. } = self.service;
        let name = registry_name(self.service);
        let parts = StatParts {
            host: key.host.as_str(),
            namespace: key.namespace.as_str(),
            name,
            port: port.port,
            port_name: &port.name,
            target_port: 0,
            subset,
        };
        let pattern = &self.config.outbound_cluster_stat_name;
        draft.cluster.alt_stat_name = names::stat_name(pattern, &draft.cluster.name, &parts);
        draft.annotate("services", services_metadata([self.service]));
        if *mesh_external && subset.is_empty() {
            draft.annotate("external", true.into());
        }
        if let Some(rule) = self.rule {
            draft.annotate("config", names::config_path(rule.key()).into());
            if !subset.is_empty() {
                draft.annotate("subset", subset.into());
            }
        }
    }

    /// Sets the type; returns nothing for a name-resolving cluster without names, which Envoy would refuse.
    fn find_endpoints(
        &self,
        draft: &mut Draft,
        discovery: Discovery,
        blocks: Blocks<'_>,
        port: &ServicePort,
        subset: &str,
        form: Form,
    ) -> Option<()> {
        let set_type = |draft: &mut Draft, kind: DiscoveryType| {
            draft.cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
        };
        match discovery {
            Discovery::Eds => {
                set_type(draft, DiscoveryType::Eds);
                draft.ask_for_endpoints();
            }
            Discovery::OriginalDestination => {
                set_type(draft, DiscoveryType::OriginalDst);
                if matches!(self.service.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
                    self.resolve(draft);
                }
            }
            Discovery::DynamicDns => {
                let cache = dns_cache(self.audience, self.service.key.host.as_str());
                draft.cluster.cluster_discovery_type = Some(dynamic::discovery_type(cache, false));
            }
            Discovery::StrictDns | Discovery::LogicalDns => {
                let groups = self.names_to_resolve(&draft.cluster.name, blocks, port, subset, form)?;
                // A logical name is a single one.
                let single = groups.len() == 1 && groups[0].lb_endpoints.len() == 1;
                set_type(
                    draft,
                    match discovery == Discovery::LogicalDns && single {
                        true => DiscoveryType::LogicalDns,
                        false => DiscoveryType::StrictDns,
                    },
                );
                draft.cluster.load_assignment = Some(ClusterLoadAssignment {
                    cluster_name: draft.cluster.name.clone(),
                    endpoints: groups,
                    ..ClusterLoadAssignment::default()
                });
                self.resolve(draft);
            }
        }
        Some(())
    }

    fn names_to_resolve(
        &self,
        cluster: &str,
        blocks: Blocks<'_>,
        port: &ServicePort,
        subset: &str,
        form: Form,
    ) -> Option<Vec<LocalityLbEndpoints>> {
        let of = endpoint::Of {
            cluster,
            service: self.service,
            port,
            rule: self.rule,
            subset,
            blocks,
            sni_dnat: form == Form::SniDnat,
        };
        let key = endpoint::key(self.config, self.audience, &of).without_ranks_by_labels();
        let groups = endpoint::groups(self.mesh, &key, true);
        groups.iter().any(|group| !group.lb_endpoints.is_empty()).then_some(groups)
    }

    /// Sets how names are resolved.
    #[expect(
        deprecated,
        reason = "the replacement is another kind of cluster, which older proxies do not know"
    )]
    fn resolve(&self, draft: &mut Draft) {
        let cluster = &mut draft.cluster;
        let family = match races(self.service) {
            true => DnsLookupFamily::All,
            false => lookup_family(self.audience.families),
        };
        cluster.dns_lookup_family = family as i32;
        cluster.respect_dns_ttl = true;
        cluster.dns_refresh_rate = Some(self.config.dns_refresh_rate.into());
        cluster.dns_jitter = Some(DNS_JITTER.into());
        let resolver = CaresDnsResolverConfig {
            udp_max_queries: wire::u32_value(DNS_QUERIES_PER_SOCKET),
            ..CaresDnsResolverConfig::default()
        };
        cluster.typed_dns_resolver_config =
            Some(wire::extension("envoy.network.dns_resolver.cares", &resolver));
        // A name that does not resolve must not keep a proxy from starting.
        cluster.wait_for_warm_on_init = wire::bool_value(false);
    }

    fn protocol(&self, port: &ServicePort) -> Protocol {
        if port.protocol.is_http2() {
            Protocol::Http2(Box::default())
        } else if port.protocol.is_unsupported() && self.audience.role == ProxyRole::Sidecar {
            Protocol::Downstream
        } else {
            Protocol::Default
        }
    }

    /// A ServiceEntry without resolution may move traffic to another port of the same address.
    fn port_override(&self, port: &ServicePort) -> Option<LbConfig> {
        match port.target {
            TargetPort::Number(number)
                if self.service.registry == Registry::External && number != 0 && number != port.port =>
            {
                Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
                    upstream_port_override: wire::u32_value(number.into()),
                    ..OriginalDstLbConfig::default()
                }))
            }
            _ => None,
        }
    }

    /// Finishes a cluster for a gRPC library, which refuses much of what Envoy takes.
    fn for_library(&self, mut draft: Draft, discovery: Discovery, blocks: Blocks<'_>) -> Option<Resource> {
        if discovery != Discovery::Eds {
            return None;
        }
        draft.cluster.metadata = None;
        draft.cluster.alt_stat_name = String::new();
        draft.cluster.lb_policy = LbPolicy::RoundRobin as i32;
        if blocks.load_balancer.is_some_and(|lb| matches!(lb.algorithm, Algorithm::ConsistentHash(_))) {
            draft.cluster.lb_policy = LbPolicy::RingHash as i32;
        }
        if let Some(outlier) = blocks.outlier_detection {
            draft.apply_outlier_detection(outlier);
            draft.http.error_matcher = None;
        }
        if blocks.connection_pool.is_some() {
            let connect_timeout = draft.cluster.connect_timeout.take();
            draft.apply_connection_pool(self.config, blocks.connection_pool, None);
            draft.cluster.connect_timeout = connect_timeout;
            draft.cluster.upstream_connection_options = None;
        }
        draft.http = super::draft::Http::default();
        Some(draft.finish())
    }

    /// Decides how connections are encrypted.
    fn encryption(
        &self,
        blocks: Blocks<'_>,
        port: &ServicePort,
        name: &OutboundName<'_>,
        http2: bool,
    ) -> Encryption {
        let identity = self.identity;
        let spoken = Spoken { http2, sniffed: port.protocol.is_unsupported() };
        let Some(tls) = blocks.tls else {
            return match self.automatic(port, name.subset) {
                false => Encryption::None,
                true => match identity.client_files {
                    Some(files) => Encryption::Always(tls::client_files(
                        identity,
                        files,
                        self.accounts(),
                        &name.sni(),
                        http2,
                    )),
                    None => Encryption::WhereMarked(tls::mesh_client(
                        identity,
                        self.accounts(),
                        &name.sni(),
                        spoken,
                    )),
                },
            };
        };
        // Files given to the proxy stand in for whatever certificate is asked for, except towards the outside, where
        // only the rule knows.
        let files = identity.client_files.filter(|_| !self.service.mesh_external);
        let sni = tls.sni.as_deref();
        match (tls.mode, files) {
            (ClientTlsMode::Disable, _) => Encryption::None,
            (ClientTlsMode::Mutual | ClientTlsMode::IstioMutual, Some(files)) => {
                let names = tls.subject_alt_names.iter().map(AsRef::as_ref);
                Encryption::Always(tls::client_files(identity, files, names, sni.unwrap_or_default(), http2))
            }
            (ClientTlsMode::Simple | ClientTlsMode::Mutual, _) if self.is_withheld(tls) => Encryption::None,
            (ClientTlsMode::Simple | ClientTlsMode::Mutual, _) => {
                let accounts: &[Str] = match self.service.registry {
                    Registry::External => self.account_list(),
                    Registry::Kubernetes => &[],
                };
                Encryption::Always(tls::client(identity, tls, accounts, http2))
            }
            (ClientTlsMode::IstioMutual, None) => {
                let as_given = identity.client_files.is_some();
                let names: &[Str] = match tls.subject_alt_names.is_empty() && !as_given {
                    true => self.account_list(),
                    false => &tls.subject_alt_names,
                };
                let sni = match sni {
                    Some(sni) => sni.to_owned(),
                    None if as_given => name.cluster(),
                    None => name.sni(),
                };
                let names = names.iter().map(AsRef::as_ref);
                Encryption::Always(tls::mesh_client(identity, names, &sni, spoken))
            }
        }
    }

    /// Whether mutual TLS is used without having been asked for.
    fn automatic(&self, port: &ServicePort, subset: &str) -> bool {
        if !self.identity.present || self.service.mesh_external || !self.config.enable_auto_mtls {
            return false;
        }
        let accepted = *self.accepts_mtls.get_or_init(|| {
            let namespace = &self.service.key.namespace;
            inbound_mtls(self.mesh, namespace, &Labels::new()).default != MtlsMode::Disable
        });
        if !accepted {
            return false;
        }
        // Istio looks at the policy of the host or of the subset here, and not at entries for the port.
        let policy = match subset {
            "" => self.rule.and_then(MergedRule::policy),
            name => self.rule.and_then(|rule| rule.subset(name)?.policy.as_ref()),
        };
        let balancer = policy.and_then(|policy| policy.base.load_balancer.as_ref());
        let passes_through = self.service.resolution == Resolution::Passthrough
            || balancer.is_some_and(|balancer| balancer.algorithm == Algorithm::Passthrough);
        // Where endpoints cannot be marked one by one, all of them must take it.
        !passes_through || self.all_take_mtls(port)
    }

    fn all_take_mtls(&self, port: &ServicePort) -> bool {
        let mut endpoints = self
            .mesh
            .endpoints(&self.service.key)
            .iter()
            .filter(|endpoint| endpoint.service_port == port.name);
        let first = endpoints.next();
        first.is_some_and(|first| first.mtls) && endpoints.all(|endpoint| endpoint.mtls)
    }

    /// Whether TLS with a secret is withheld: every sidecar that the rule is visible to would ask for the secret and wait
    /// for it, so sidecars only get it by a rule that selects them.
    fn is_withheld(&self, tls: &ClientTls) -> bool {
        let open = |name: &Str| name.starts_with("configmap://");
        self.audience.role == ProxyRole::Sidecar
            && tls.credential_name.as_ref().is_some_and(|name| !open(name))
            && !self.rule.is_some_and(MergedRule::has_workload_selector)
    }

    fn encrypt(
        &self,
        draft: &mut Draft,
        encryption: Encryption,
        discovery: Discovery,
        given: Option<&ClientTls>,
    ) {
        let upstream = match encryption {
            Encryption::None => return,
            Encryption::WhereMarked(upstream) if discovery != Discovery::OriginalDestination => {
                let marked = Struct::from_iter([("tlsMode", "istio")]);
                let matching = |name: &str, marks, socket| TransportSocketMatch {
                    name: name.to_owned(),
                    r#match: Some(marks),
                    transport_socket: Some(socket),
                };
                let raw = tls::raw_buffer("envoy.transport_sockets.raw_buffer");
                draft.cluster.transport_socket_matches = vec![
                    matching("tlsMode-istio", marked, upstream.socket()),
                    matching("tlsMode-disabled", Struct::default(), raw),
                ];
                return;
            }
            Encryption::WhereMarked(upstream) | Encryption::Always(upstream) => upstream,
        };
        draft.cluster.transport_socket = Some(upstream.socket());
        if upstream.auto_sni {
            draft.http.upstream = Some(UpstreamHttpProtocolOptions {
                auto_sni: true,
                auto_san_validation: upstream.auto_san_validation,
                ..UpstreamHttpProtocolOptions::default()
            });
        }
        if discovery == Discovery::DynamicDns && !(upstream.auto_sni && upstream.auto_san_validation) {
            let cache = dns_cache(self.audience, self.service.key.host.as_str());
            draft.cluster.cluster_discovery_type = Some(dynamic::discovery_type(cache, true));
        }
        let by_rule =
            given.is_some_and(|tls| matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual));
        if by_rule {
            // Tells the filter that chooses ALPNs by request to leave this cluster's alone.
            draft.annotate("alpn_override", "false".into());
        }
        draft.needs.secrets.extend(upstream.secrets);
    }

    fn accounts(&self) -> impl Iterator<Item = &str> {
        self.account_list().iter().map(AsRef::as_ref)
    }

    /// Returns the names that the service's certificates may have: its own and its endpoints', in every trust domain.
    fn account_list(&self) -> &[Str] {
        self.accounts.get_or_init(|| {
            let endpoints = self.mesh.service_accounts(&self.service.key);
            let names: BTreeSet<Str> = self
                .service
                .subject_alt_names
                .iter()
                .chain(endpoints.into_iter().flatten())
                .map(|account| spiffe_id(self.config, account))
                .collect();
            let aliases = names.iter().flat_map(|name| in_domains(name, &self.config.trust_domain_aliases));
            let aliases: Vec<Str> = aliases.collect();
            names.into_iter().chain(aliases).collect::<BTreeSet<Str>>().into_iter().collect()
        })
    }
}

/// How connections are encrypted.
enum Encryption {
    None,
    /// To every endpoint.
    Always(Upstream),
    /// To endpoints that are marked; in plain text to others.
    WhereMarked(Upstream),
}

/// Completes `namespace/account`; anything else is a name already.
fn spiffe_id(config: &MeshConfig, account: &Str) -> Str {
    match account.split_once('/') {
        Some((namespace, name)) if !account.contains(':') && !name.contains('/') => {
            format!("spiffe://{}/ns/{namespace}/sa/{name}", config.trust_domain).into()
        }
        _ => account.clone(),
    }
}

/// Returns a SPIFFE id of a workload as it is in other trust domains.
fn in_domains<'a>(id: &'a str, domains: &'a [Str]) -> impl Iterator<Item = Str> + 'a {
    let path = id.strip_prefix("spiffe://").and_then(|rest| rest.find("/ns/").map(|start| &rest[start..]));
    path.into_iter()
        .flat_map(move |path| domains.iter().map(move |domain| format!("spiffe://{domain}{path}").into()))
}

pub(super) fn lookup_family(families: IpFamilies) -> DnsLookupFamily {
    match families.v4 {
        true => DnsLookupFamily::V4Only,
        false => DnsLookupFamily::V6Only,
    }
}

/// Returns the name that Istio's registry has for a service: the object's for Kubernetes, the host for others.
pub(super) fn registry_name(service: &Service) -> &str {
    match service.registry {
        Registry::Kubernetes => &service.object.name,
        Registry::External => service.key.host.as_str(),
    }
}

/// Returns the `services` field of Istio's metadata.
pub(super) fn services_metadata<'s>(services: impl IntoIterator<Item = &'s Service>) -> Value {
    let entry = |service: &Service| {
        let fields = Struct::from_iter([
            ("host", service.key.host.as_str()),
            ("name", registry_name(service)),
            ("namespace", service.key.namespace.as_str()),
        ]);
        Value::from(fields)
    };
    let values = services.into_iter().map(entry).collect();
    Value { kind: Some(proto::google::protobuf::value::Kind::ListValue(ListValue { values })) }
}
