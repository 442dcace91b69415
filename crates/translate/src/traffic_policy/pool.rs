//! Limits on connections, and ejection.

use super::time;
use crate::parse::{duration, percent};
use crate::report::At;
use crate::virtual_service::unknown;
use k8s_api::destination_rule as api;
use model::destination_rule::{
    ConnectionPool, H2Upgrade, Http2Keepalive, HttpPool, OutlierDetection, StatusRange, TcpKeepalive, TcpPool,
};

/// Parses limits on connections.
pub(crate) fn connection_pool(at: &At<'_>, given: &api::ConnectionPoolSettings) -> ConnectionPool {
    if given.tcp.is_none() && given.http.is_none() {
        at.reject("must have at least one of tcp and http");
    }
    ConnectionPool {
        tcp: given.tcp.as_ref().map(|tcp| tcp_pool(&at.field("tcp"), tcp)),
        http: given.http.as_ref().map(|http| http_pool(&at.field("http"), http)),
    }
}

fn tcp_pool(at: &At<'_>, given: &api::TcpSettings) -> TcpPool {
    let at_idle = at.field("idleTimeout");
    TcpPool {
        max_connections: limit(at, "maxConnections", given.max_connections),
        connect_timeout: time(at, "connectTimeout", given.connect_timeout.as_ref()),
        keepalive: given
            .tcp_keepalive
            .as_ref()
            .map(|keepalive| tcp_keepalive(&at.field("tcpKeepalive"), keepalive)),
        max_connection_duration: time(at, "maxConnectionDuration", given.max_connection_duration.as_ref()),
        // Zero means for ever here.
        idle_timeout: given.idle_timeout.as_ref().and_then(|given| at_idle.check(duration(given))),
    }
}

/// Parses keep-alive of sockets.
pub(crate) fn tcp_keepalive(at: &At<'_>, given: &api::TcpKeepalive) -> TcpKeepalive {
    TcpKeepalive {
        probes: given.probes,
        time: time(at, "time", given.time.as_ref()),
        interval: time(at, "interval", given.interval.as_ref()),
    }
}

fn http_pool(at: &At<'_>, given: &api::HttpSettings) -> HttpPool {
    let h2_upgrade =
        given.h2_upgrade_policy.as_ref().map(|policy| h2_upgrade(&at.field("h2UpgradePolicy"), policy));
    if given.use_client_protocol && h2_upgrade == Some(H2Upgrade::Upgrade) {
        at.field("useClientProtocol").reject("cannot be combined with h2UpgradePolicy UPGRADE");
    }
    HttpPool {
        http1_max_pending_requests: limit(at, "http1MaxPendingRequests", given.http1_max_pending_requests),
        http2_max_requests: limit(at, "http2MaxRequests", given.http2_max_requests),
        max_requests_per_connection: limit(at, "maxRequestsPerConnection", given.max_requests_per_connection),
        max_retries: limit(at, "maxRetries", given.max_retries),
        idle_timeout: time(at, "idleTimeout", given.idle_timeout.as_ref()),
        h2_upgrade: h2_upgrade.unwrap_or_default(),
        use_client_protocol: given.use_client_protocol,
        max_concurrent_streams: limit(at, "maxConcurrentStreams", given.max_concurrent_streams),
        http2_keepalive: given.http2_keep_alive.as_ref().map(|keepalive| {
            let at = at.field("http2KeepAlive");
            for (field, value) in [("interval", &keepalive.interval), ("timeout", &keepalive.timeout)] {
                if value.is_none() {
                    at.field(field).reject("is required");
                }
            }
            Http2Keepalive {
                interval: time(&at, "interval", keepalive.interval.as_ref()),
                timeout: time(&at, "timeout", keepalive.timeout.as_ref()),
            }
        }),
    }
}

/// Parses the policy of upgrading to HTTP/2.
pub(crate) fn h2_upgrade(at: &At<'_>, given: &api::H2UpgradePolicy) -> H2Upgrade {
    match given {
        api::H2UpgradePolicy::Default => H2Upgrade::Default,
        api::H2UpgradePolicy::DoNotUpgrade => H2Upgrade::DoNotUpgrade,
        api::H2UpgradePolicy::Upgrade => H2Upgrade::Upgrade,
        api::H2UpgradePolicy::Other(value) => {
            unknown(at, value, api::H2UpgradePolicy::VALUES);
            H2Upgrade::Default
        }
    }
}

/// Parses ejection of failing endpoints.
pub(crate) fn outlier_detection(at: &At<'_>, given: &api::OutlierDetection) -> OutlierDetection {
    if given.consecutive_errors.is_some_and(|errors| errors != 0) {
        let at = at.field("consecutiveErrors");
        at.warn("is deprecated and has no effect: use consecutive5xxErrors or consecutiveGatewayErrors");
    }
    if !given.split_external_local_origin_errors
        && given.consecutive_local_origin_failures.unwrap_or_default() > 0
    {
        let at = at.field("consecutiveLocalOriginFailures");
        at.reject("needs splitExternalLocalOriginErrors: true");
    }
    let share =
        |field, given: Option<i32>| given.and_then(|given| at.field(field).check(percent(given.into())));
    OutlierDetection {
        consecutive_5xx: given.consecutive_5xx_errors,
        consecutive_gateway_errors: given.consecutive_gateway_errors,
        consecutive_local_origin_failures: given.consecutive_local_origin_failures,
        split_external_local_origin: given.split_external_local_origin_errors,
        interval: time(at, "interval", given.interval.as_ref()),
        base_ejection_time: time(at, "baseEjectionTime", given.base_ejection_time.as_ref()),
        max_ejection_percent: share("maxEjectionPercent", given.max_ejection_percent),
        min_health_percent: share("minHealthPercent", given.min_health_percent).unwrap_or_default(),
        http_error_codes: http_error_codes(at, &given.outlier_detection_http_error_codes),
    }
}

/// Parses status codes, each of which becomes a range of its own in the order of the object.
fn http_error_codes(at: &At<'_>, given: &[u32]) -> Vec<StatusRange> {
    let at = at.field("outlierDetectionHttpErrorCodes");
    let code = |(i, code): (usize, &u32)| match u16::try_from(*code) {
        Ok(code @ 100..=599) => Some(StatusRange { start: code, end: code }),
        _ => {
            at.index(i).reject(format!("{code} is not in the range 100..599"));
            None
        }
    };
    given.iter().enumerate().filter_map(code).collect()
}

/// Parses a limit, in which 0 is the same as none.
fn limit(at: &At<'_>, field: &str, given: Option<i32>) -> Option<u32> {
    let given = given?;
    let limit = u32::try_from(given).ok();
    if limit.is_none() {
        at.field(field).reject(format!("{given} must not be negative"));
    }
    limit.filter(|limit| *limit > 0)
}
