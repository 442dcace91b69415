//! Mesh-wide settings: the part of Istio's MeshConfig that compilation depends on, with defaults applied.

use crate::destination_rule::{
    ClientTls, ConnectionPool, H2Upgrade, LocalityLb, OutlierDetection, TcpKeepalive,
};
use crate::gateway::TlsVersion;
use crate::sidecar::OutboundTrafficPolicy;
use crate::virtual_service::Retries;
use crate::{Hostname, Namespace, ProxySettings, Str};
use std::sync::Arc;
use std::time::Duration;

/// Mesh-wide settings. [`MeshConfig::default`] is Istio's.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// The DNS domain of the cluster (`--domain`), such as `cluster.local`.
    pub domain: Str,
    /// The name of the cluster whose pods and Services these are (`--cluster-id`).
    pub cluster: Str,
    /// The namespace of mesh-wide objects.
    pub root_namespace: Namespace,
    /// The trust domain of workload identities.
    pub trust_domain: Str,
    /// Further trust domains whose identities are accepted.
    pub trust_domain_aliases: Vec<Str>,
    /// Where captured outbound connections arrive.
    pub proxy_listen_port: u16,
    /// Where captured inbound connections arrive.
    pub proxy_inbound_listen_port: u16,
    /// The port of the explicit HTTP proxy; 0 for none.
    pub proxy_http_port: u16,
    /// How long to wait for an upstream connection.
    pub connect_timeout: Duration,
    /// How long to sniff; zero for as long as it takes.
    pub protocol_detection_timeout: Duration,
    /// How soon a failed DNS query is repeated.
    pub dns_refresh_rate: Duration,
    /// Keep-alive of upstream connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Whether mutual TLS is used wherever both sides can.
    pub enable_auto_mtls: bool,
    /// Traffic to unknown destinations.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// TLS towards destinations that are resolved by the host of a request.
    pub dynamic_dns_tls: Option<ClientTls>,
    /// Whether inbound traffic goes to the address it was sent to (otherwise to loopback).
    pub inbound_passthrough: bool,
    /// Preference by locality.
    pub locality_lb: LocalityLb,
    /// Upgrading of ports declared as HTTP.
    pub h2_upgrade: H2Upgrade,
    /// Retries of rules that have no policy.
    pub default_http_retry: Option<Retries>,
    /// Retries of inbound routes.
    pub default_inbound_http_retry: Option<Retries>,
    /// Limits where no DestinationRule has any.
    pub default_connection_pool: Option<ConnectionPool>,
    /// Ejection where no DestinationRule has any.
    pub default_outlier_detection: Option<OutlierDetection>,
    /// The pattern of statistics names of outbound clusters; empty for the default.
    pub outbound_cluster_stat_name: Str,
    /// The pattern of statistics names of inbound clusters; empty for the default.
    pub inbound_cluster_stat_name: Str,
    /// Normalisation of request paths.
    pub path_normalization: PathNormalization,
    /// The file that access logs are written to; empty for none.
    pub access_log_file: Str,
    /// The format of access logs; empty for the default.
    pub access_log_format: Str,
    /// Whether access logs are JSON.
    pub access_log_json: bool,
    /// Whether listeners log connections that no filter chain takes.
    pub listener_log: bool,
    /// TLS where it is not the mesh's own: what servers and clients do not say.
    pub tls_defaults: TlsDefaults,
    /// TLS that workloads accept from each other. There are no curves in it.
    pub mesh_tls: TlsDefaults,
    /// Hosts of services, and whether they stay inside of their cluster.
    pub cluster_local: Vec<(Hostname, bool)>,
    /// Settings of proxies that bring none of their own.
    pub proxy: Arc<ProxySettings>,
    /// How long replaced listeners drain.
    pub drain_duration: Duration,
}

impl Default for MeshConfig {
    fn default() -> Self {
        use crate::sidecar::OutboundMode;
        Self {
            domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            root_namespace: Namespace::new("istio-system"),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            proxy_http_port: 0,
            connect_timeout: Duration::from_secs(10),
            protocol_detection_timeout: Duration::ZERO,
            dns_refresh_rate: Duration::from_secs(60),
            tcp_keepalive: None,
            enable_auto_mtls: true,
            outbound_traffic_policy: OutboundTrafficPolicy {
                mode: OutboundMode::AllowAny,
                egress_proxy: None,
            },
            dynamic_dns_tls: None,
            inbound_passthrough: true,
            locality_lb: LocalityLb { enabled: Some(true), ..LocalityLb::default() },
            h2_upgrade: H2Upgrade::Default,
            default_http_retry: None,
            default_inbound_http_retry: None,
            default_connection_pool: None,
            default_outlier_detection: None,
            outbound_cluster_stat_name: "".into(),
            inbound_cluster_stat_name: "".into(),
            path_normalization: PathNormalization::Default,
            access_log_file: "".into(),
            access_log_format: "".into(),
            access_log_json: false,
            listener_log: true,
            tls_defaults: TlsDefaults::default(),
            mesh_tls: TlsDefaults::default(),
            cluster_local: Vec::new(),
            proxy: Arc::default(),
            drain_duration: Duration::from_secs(45),
        }
    }
}

impl MeshConfig {
    /// Returns whether clients of a service get endpoints of their own cluster only: as the settings say for exactly this
    /// host or the narrowest pattern, the last one first. What runs a cluster stays in it if nothing is said.
    pub fn is_cluster_local(&self, host: &Hostname) -> bool {
        let said = self.cluster_local.iter().rev();
        let exact = said.clone().find(|(own, _)| own == host);
        let narrowest = |best: Option<&(Hostname, bool)>, next: &(Hostname, bool)| {
            best.is_none_or(|best| next.0.as_str().len() > best.0.as_str().len())
        };
        let patterns = said.filter(|(own, _)| own.is_wildcard() && host.is_within(own));
        let pattern = patterns.fold(None, |best, next| if narrowest(best, next) { Some(next) } else { best });
        match exact.or(pattern) {
            Some((_, is_local)) => *is_local,
            None => {
                let host = host.as_str().strip_suffix(self.domain.as_ref()).unwrap_or_default();
                host == "kubernetes.default.svc." || host.ends_with(".kube-system.svc.")
            }
        }
    }
}

/// Parameters of TLS. What is not said has Envoy's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsDefaults {
    /// The lowest version.
    pub min_version: TlsVersion,
    /// Cipher suites for TLS 1.2.
    pub cipher_suites: Vec<Str>,
    /// Key exchange curves.
    pub ecdh_curves: Vec<Str>,
}

/// Normalisation of request paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathNormalization {
    /// As [`PathNormalization::Base`].
    Default,
    /// None.
    None,
    /// Dot segments are resolved.
    Base,
    /// Slashes are merged as well.
    MergeSlashes,
    /// `%2F` and `%5C` are decoded as well.
    DecodeAndMergeSlashes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_setting_decides_what_stays_in_its_cluster() {
        let said =
            [("*.infra.svc.cluster.local", true), ("open.infra.svc.cluster.local", false), ("*", false)];
        let settings = |said: &[(&str, bool)]| MeshConfig {
            cluster_local: said.iter().map(|(host, local)| ((*host).into(), *local)).collect(),
            ..MeshConfig::default()
        };
        let some = settings(&said[..2]);
        for (host, expected) in [
            ("mail.infra.svc.cluster.local", true),
            ("open.infra.svc.cluster.local", false),
            ("cart.app.svc.cluster.local", false),
            ("kubernetes.default.svc.cluster.local", true),
            ("dns.kube-system.svc.cluster.local", true),
            ("dns.kube-system.svc.other", false),
        ] {
            assert_eq!(some.is_cluster_local(&host.into()), expected, "{host}");
        }
        let all = settings(&said);
        assert!(all.is_cluster_local(&"mail.infra.svc.cluster.local".into()));
        assert!(!all.is_cluster_local(&"dns.kube-system.svc.cluster.local".into()));
    }
}
