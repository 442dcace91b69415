//! The blocks of a DestinationRule as Envoy's settings.

use super::draft::{Draft, Protocol};
use crate::destination_rule::Blocks;
use crate::endpoint::{panic_threshold, weighs_localities};
use crate::wire;
use model::destination_rule::{
    Algorithm, ConnectionPool, H2Upgrade, HashRing, HttpPool, LoadBalancer, OutlierDetection, RetryBudget,
    StatusRange, TcpKeepalive, TcpPool, Warmup,
};
use model::{MeshConfig, Service};
use proto::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use proto::envoy::config::cluster::v3::circuit_breakers::thresholds;
use proto::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use proto::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    RoundRobinLbConfig, SlowStartConfig,
};
use proto::envoy::config::cluster::v3::{
    CircuitBreakers, OutlierDetection as Ejection, UpstreamConnectionOptions,
};
use proto::envoy::config::common::matcher::v3::{HttpHeadersMatch, MatchPredicate, match_predicate};
use proto::envoy::config::core::v3::{self as core, KeepaliveSettings, RuntimeDouble};
use proto::envoy::config::route::v3::HeaderMatcher;
use proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use proto::envoy::r#type::v3::{Int64Range, Percent};
use std::time::Duration;

/// Envoy insists on a runtime key here. This one, which is Istio's, nobody sets.
const NO_RUNTIME_KEY: &str = "(";

impl Draft {
    /// Sets limits. Those that are absent or zero are taken away: Envoy's own are low.
    pub(super) fn apply_connection_pool(
        &mut self,
        config: &MeshConfig,
        pool: Option<&ConnectionPool>,
        retry_budget: Option<&RetryBudget>,
    ) {
        let tcp = pool.and_then(|pool| pool.tcp.as_ref());
        let http = pool.and_then(|pool| pool.http.as_ref());
        let limit =
            |value: Option<u32>| wire::u32_value(value.filter(|&value| value > 0).unwrap_or(u32::MAX));
        self.cluster.circuit_breakers = Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
                max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
                max_requests: limit(http.and_then(|http| http.http2_max_requests)),
                max_retries: limit(http.and_then(|http| http.max_retries)),
                retry_budget: retry_budget.map(retry_budget_message),
                ..Thresholds::default()
            }],
            ..CircuitBreakers::default()
        });
        let connect_timeout = tcp.and_then(|tcp| tcp.connect_timeout).unwrap_or(config.connect_timeout);
        self.cluster.connect_timeout = Some(connect_timeout.into());
        self.apply_keepalive(config, tcp);
        self.apply_http_limits(tcp, http);
    }

    fn apply_keepalive(&mut self, config: &MeshConfig, tcp: Option<&TcpPool>) {
        let own = tcp.and_then(|tcp| tcp.keepalive.as_ref());
        let mesh = config.tcp_keepalive.as_ref();
        if own.is_none() && mesh.is_none() {
            return;
        }
        let sources = || own.into_iter().chain(mesh);
        let seconds = |time: fn(&TcpKeepalive) -> Option<Duration>| {
            let seconds = sources().find_map(time).map(|time| time.as_secs())?;
            wire::u32_value(u32::try_from(seconds).unwrap_or(u32::MAX))
        };
        let probes = sources().find_map(|keepalive| keepalive.probes.filter(|&probes| probes > 0));
        self.cluster.upstream_connection_options = Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive {
                keepalive_probes: probes.map(Into::into),
                keepalive_time: seconds(|keepalive| keepalive.time),
                keepalive_interval: seconds(|keepalive| keepalive.interval),
            }),
            ..UpstreamConnectionOptions::default()
        });
    }

    fn apply_http_limits(&mut self, tcp: Option<&TcpPool>, http: Option<&HttpPool>) {
        let idle_timeout =
            http.and_then(|http| http.idle_timeout).or_else(|| tcp.and_then(|tcp| tcp.idle_timeout));
        if let Some(idle_timeout) = idle_timeout {
            self.http.common_mut().idle_timeout = Some(idle_timeout.into());
        }
        if let Some(duration) = tcp.and_then(|tcp| tcp.max_connection_duration) {
            self.http.common_mut().max_connection_duration = Some(duration.into());
        }
        let Some(http) = http else { return };
        if let Some(requests) = http.max_requests_per_connection.filter(|&requests| requests > 0) {
            self.http.common_mut().max_requests_per_connection = wire::u32_value(requests);
        }
        if http.use_client_protocol {
            self.http.protocol = Protocol::Downstream;
        }
    }

    /// Upgrades HTTP/1.1 to HTTP/2 where the rule says so, or the mesh for ports that are declared as HTTP.
    pub(super) fn apply_upgrade(
        &mut self,
        config: &MeshConfig,
        pool: Option<&ConnectionPool>,
        protocol: model::Protocol,
    ) {
        let http = pool.and_then(|pool| pool.http.as_ref());
        let upgrades = match http {
            Some(http) if http.use_client_protocol => false,
            Some(HttpPool { h2_upgrade: H2Upgrade::Upgrade, .. }) => true,
            Some(HttpPool { h2_upgrade: H2Upgrade::DoNotUpgrade, .. }) => false,
            _ => config.h2_upgrade == H2Upgrade::Upgrade && protocol.is_http(),
        };
        if upgrades && self.http.protocol == Protocol::Default {
            self.http.protocol = Protocol::Http2(Box::default());
        }
    }

    /// Sets limits that only HTTP/2 has. The protocol must be settled.
    pub(super) fn apply_http2_limits(&mut self, pool: Option<&ConnectionPool>) {
        let Some(http) = pool.and_then(|pool| pool.http.as_ref()) else { return };
        let Protocol::Http2(options) = &mut self.http.protocol else { return };
        if let Some(streams) = http.max_concurrent_streams.filter(|&streams| streams > 0) {
            options.max_concurrent_streams = wire::u32_value(streams);
        }
        if let Some(keepalive) = &http.http2_keepalive {
            options.connection_keepalive = Some(KeepaliveSettings {
                interval: keepalive.interval.map(Into::into),
                timeout: keepalive.timeout.map(Into::into),
                ..KeepaliveSettings::default()
            });
        }
    }

    /// Sets ejection. Envoy's statistical checks are off: a rule that asks for consecutive errors means only these.
    pub(super) fn apply_outlier_detection(&mut self, outlier: &OutlierDetection) {
        // A count of zero turns the check off.
        let enforced = |count: Option<u32>| count.map(|count| if count > 0 { 100 } else { 0 }.into());
        let mut ejection = Ejection {
            enforcing_success_rate: wire::u32_value(0),
            consecutive_5xx: outlier.consecutive_5xx.map(Into::into),
            enforcing_consecutive_5xx: enforced(outlier.consecutive_5xx),
            consecutive_gateway_failure: outlier.consecutive_gateway_errors.map(Into::into),
            enforcing_consecutive_gateway_failure: enforced(outlier.consecutive_gateway_errors),
            interval: outlier.interval.map(Into::into),
            base_ejection_time: outlier.base_ejection_time.map(Into::into),
            max_ejection_percent: outlier.max_ejection_percent.filter(|&percent| percent > 0).map(Into::into),
            ..Ejection::default()
        };
        if outlier.split_external_local_origin {
            ejection.split_external_local_origin_errors = true;
            ejection.enforcing_local_origin_success_rate = wire::u32_value(0);
            let failures = outlier.consecutive_local_origin_failures.filter(|&failures| failures > 0);
            ejection.consecutive_local_origin_failure = failures.map(Into::into);
            ejection.enforcing_consecutive_local_origin_failure = enforced(failures);
        }
        self.cluster.outlier_detection = Some(ejection);
        self.http.error_matcher = error_matcher(&outlier.http_error_codes);
    }

    /// Sets balancing. Clusters that go where the connection was going have no choice.
    pub(super) fn apply_balancing(&mut self, config: &MeshConfig, blocks: Blocks<'_>, service: &Service) {
        let panic = panic_threshold(blocks, service);
        let weighted = weighs_localities(config, blocks, service);
        self.cluster.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: panic.into() }),
            locality_config_specifier: weighted.then(|| {
                LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default())
            }),
            ..CommonLbConfig::default()
        });
        self.apply_algorithm(blocks.load_balancer);
    }

    /// Sets the algorithm; the default is the better of two by active requests.
    pub(super) fn apply_algorithm(&mut self, balancer: Option<&LoadBalancer>) {
        let slow_start = balancer.and_then(|balancer| balancer.warmup.as_ref()).map(slow_start);
        let (policy, config) = match balancer.map(|balancer| &balancer.algorithm) {
            None | Some(Algorithm::Unspecified | Algorithm::LeastRequest) => (
                LbPolicy::LeastRequest,
                slow_start.map(|slow_start| {
                    LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                        slow_start_config: Some(slow_start),
                        ..LeastRequestLbConfig::default()
                    })
                }),
            ),
            Some(Algorithm::RoundRobin) => (
                LbPolicy::RoundRobin,
                slow_start.map(|slow_start| {
                    LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: Some(slow_start) })
                }),
            ),
            Some(Algorithm::Random) => (LbPolicy::Random, None),
            Some(Algorithm::Passthrough) => (LbPolicy::ClusterProvided, None),
            Some(Algorithm::ConsistentHash(hash)) => match hash.ring {
                HashRing::Ring { minimum_size } => (
                    LbPolicy::RingHash,
                    Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
                        minimum_ring_size: wire::u64_value(minimum_size),
                        ..RingHashLbConfig::default()
                    })),
                ),
                HashRing::Maglev { table_size } => (
                    LbPolicy::Maglev,
                    table_size.map(|size| {
                        LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: wire::u64_value(size) })
                    }),
                ),
            },
        };
        self.cluster.lb_policy = policy as i32;
        self.cluster.lb_config = config;
    }
}

fn retry_budget_message(budget: &RetryBudget) -> thresholds::RetryBudget {
    thresholds::RetryBudget {
        budget_percent: Some(Percent { value: budget.percent }),
        min_retry_concurrency: wire::u32_value(budget.min_retry_concurrency),
        budget_interval: budget.budget_interval.map(Into::into),
    }
}

fn slow_start(warmup: &Warmup) -> SlowStartConfig {
    SlowStartConfig {
        slow_start_window: Some(warmup.window.into()),
        min_weight_percent: warmup.minimum_percent.map(|value| Percent { value }),
        aggression: warmup
            .aggression
            .map(|default_value| RuntimeDouble { default_value, runtime_key: NO_RUNTIME_KEY.to_owned() }),
    }
}

/// Returns a matcher of the status codes that count as errors; nothing to leave it to Envoy.
fn error_matcher(ranges: &[StatusRange]) -> Option<MatchPredicate> {
    let status = |range: &StatusRange| {
        let specifier = match range.start == range.end {
            true => HeaderMatchSpecifier::StringMatch(wire::exact(range.start.to_string())),
            false => HeaderMatchSpecifier::RangeMatch(Int64Range {
                start: range.start.into(),
                // Envoy's ranges are open at the end.
                end: i64::from(range.end) + 1,
            }),
        };
        let header = HeaderMatcher {
            name: ":status".to_owned(),
            header_match_specifier: Some(specifier),
            ..HeaderMatcher::default()
        };
        let headers = HttpHeadersMatch { headers: vec![header] };
        MatchPredicate { rule: Some(match_predicate::Rule::HttpResponseHeadersMatch(headers)) }
    };
    match ranges {
        [] => None,
        [range] => Some(status(range)),
        ranges => {
            let rules = ranges.iter().map(status).collect();
            let any = match_predicate::MatchSet { rules };
            Some(MatchPredicate { rule: Some(match_predicate::Rule::OrMatch(any)) })
        }
    }
}
