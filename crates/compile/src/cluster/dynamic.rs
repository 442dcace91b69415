//! Clusters that resolve the host of each request (Envoy's dynamic forward proxy).
//!
//! A cluster of this kind shares a cache of names with the filters that fill it: both sides must describe the cache
//! alike, or Envoy refuses the second one.

use super::PASSTHROUGH_IDLE_TIMEOUT;
use super::draft::{Draft, Protocol};
use super::outbound::lookup_family;
use crate::audience::OutboundAudience;
use crate::names::{DYNAMIC_DNS_CACHE, DYNAMIC_DNS_CLUSTER};
use crate::tls::{self, Identity};
use crate::wire;
use model::MeshConfig;
use model::destination_rule::ClientTls;
use proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, LbPolicy,
};
use proto::envoy::config::core::v3::UpstreamHttpProtocolOptions;
use proto::envoy::extensions::clusters::dynamic_forward_proxy::v3::{ClusterConfig, cluster_config};
use proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;

/// The most names of unknown hosts that a proxy remembers.
const MAX_HOSTS: u32 = 1024;

/// Returns the DNS cache of a wildcard host that is resolved at request time. The filters that fill it must name exactly
/// this one.
pub fn dns_cache(audience: &OutboundAudience, host: &str) -> DnsCacheConfig {
    DnsCacheConfig {
        name: format!("{host}_dfp_dns_cache"),
        dns_lookup_family: lookup_family(audience.families) as i32,
        ..DnsCacheConfig::default()
    }
}

/// Returns the DNS cache of hosts that no service has.
pub fn unknown_hosts_cache(audience: &OutboundAudience) -> DnsCacheConfig {
    // The agent that takes a workload's own queries knows names of the mesh, so it is to be asked here as well.
    let resolver = audience.switches.dns_proxy.map(|address| CaresDnsResolverConfig {
        resolvers: vec![wire::socket_address(address.ip(), address.port())],
        ..CaresDnsResolverConfig::default()
    });
    DnsCacheConfig {
        name: DYNAMIC_DNS_CACHE.to_owned(),
        dns_lookup_family: lookup_family(audience.families) as i32,
        max_hosts: wire::u32_value(MAX_HOSTS),
        typed_dns_resolver_config: resolver
            .map(|resolver| wire::extension("envoy.network.dns_resolver.cares", &resolver)),
        ..DnsCacheConfig::default()
    }
}

/// Returns the type of a cluster that looks into `cache`. `insecure` lifts Envoy's demand that names in requests are
/// checked against certificates.
pub(super) fn discovery_type(cache: DnsCacheConfig, insecure: bool) -> ClusterDiscoveryType {
    let config = ClusterConfig {
        allow_insecure_cluster_options: insecure,
        cluster_implementation_specifier: Some(
            cluster_config::ClusterImplementationSpecifier::DnsCacheConfig(cache),
        ),
        ..ClusterConfig::default()
    };
    ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
        typed_config: Some(proto::any(&config)),
    })
}

/// Returns the cluster of requests for hosts that no service has.
pub(super) fn unknown_hosts(config: &MeshConfig, audience: &OutboundAudience) -> Draft {
    let mut draft = Draft::new(DYNAMIC_DNS_CLUSTER, DiscoveryType::Static);
    draft.set_stat_name(DYNAMIC_DNS_CLUSTER);
    draft.cluster.cluster_discovery_type = Some(discovery_type(unknown_hosts_cache(audience), true));
    draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    draft.apply_connection_pool(config, config.default_connection_pool.as_ref(), None);
    match &config.dynamic_dns_tls {
        Some(tls) => encrypt(&mut draft, config, audience, tls),
        None => {
            draft.http.protocol = Protocol::Downstream;
            draft.http.common_mut().idle_timeout = Some(PASSTHROUGH_IDLE_TIMEOUT.into());
        }
    }
    draft
}

fn encrypt(draft: &mut Draft, config: &MeshConfig, audience: &OutboundAudience, given: &ClientTls) {
    let upstream = tls::client(Identity::outbound(audience).under(config), given, &[], false);
    draft.cluster.transport_socket = Some(upstream.socket());
    // Whatever else is expected of the certificate, it is to be one for the host of the request.
    draft.http.upstream = Some(UpstreamHttpProtocolOptions {
        auto_sni: upstream.auto_sni,
        auto_san_validation: given.insecure_skip_verify != Some(true),
        ..UpstreamHttpProtocolOptions::default()
    });
    draft.needs.secrets.extend(upstream.secrets);
}
