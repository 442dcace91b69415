//! Limits, balancing and ejection.

use super::*;
use crate::fixtures::{router, sidecar};
use model::destination_rule::{
    ConsistentHash, H2Upgrade, HashRing, Http2Keepalive, LocalityLb, RetryBudget, StatusRange, TcpKeepalive,
    Warmup,
};
use serde_json::json;
use std::time::Duration;

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[test]
#[rustfmt::skip]
fn every_cluster_has_defaults() {
    let rows = [
        ("/type", json!("EDS")),
        ("/edsClusterConfig/serviceName", json!(CLUSTER)),
        ("/edsClusterConfig/edsConfig", json!({"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"})),
        ("/altStatName", json!("outbound|80||cart.app.svc.cluster.local;")),
        ("/connectTimeout", json!("10s")),
        ("/lbPolicy", json!("LEAST_REQUEST")),
        ("@limits/maxConnections", json!(u32::MAX)),
        ("@limits/maxPendingRequests", json!(u32::MAX)),
        ("@limits/maxRequests", json!(u32::MAX)),
        ("@limits/maxRetries", json!(u32::MAX)),
        ("/commonLbConfig", json!({"healthyPanicThreshold": {}})),
        ("/metadata/filterMetadata/istio/services", json!([{"host": HOST, "name": "cart", "namespace": "app"}])),
        ("/metadata/filterMetadata/istio/config", json!("/apis/networking.istio.io/v1/namespaces/app/destination-rule/cart")),
        ("/outlierDetection", Value::Null),
        ("@http", Value::Null),
        ("/filters", Value::Null),
    ];
    let cluster = under(Protocol::Http, PortPolicy::default(), &sidecar());
    for (path, expected) in rows {
        expect("defaults", &cluster, path, &expected);
    }
}

#[test]
#[rustfmt::skip]
fn ports_say_what_is_spoken() {
    let http2 = json!({"http2ProtocolOptions": {}});
    let downstream = json!({"httpProtocolOptions": {}, "http2ProtocolOptions": {}});
    let rows = [
        (Protocol::Http, sidecar(), "@http", Value::Null),
        (Protocol::Tcp, sidecar(), "@http", Value::Null),
        (Protocol::Http2, sidecar(), "@http/explicitHttpConfig", http2.clone()),
        (Protocol::Grpc, sidecar(), "@http/explicitHttpConfig", http2.clone()),
        (Protocol::GrpcWeb, router(), "@http/explicitHttpConfig", http2),
        (Protocol::Unsupported, sidecar(), "@http/useDownstreamProtocolConfig", downstream),
        // Gateways never sniff.
        (Protocol::Unsupported, router(), "@http", Value::Null),
    ];
    for (protocol, audience, path, expected) in rows {
        let cluster = under(protocol, PortPolicy::default(), &audience);
        expect(&protocol.to_string(), &cluster, path, &expected);
    }
    assert!(compile(&world(&cart(Protocol::Udp)), &sidecar()).is_empty(), "UDP is never proxied");
}

#[test]
#[rustfmt::skip]
fn pools_limit() {
    use Protocol::{Grpc, Http, Tcp, Unsupported};
    let http2 = json!({"http2ProtocolOptions": {}});
    let downstream = json!({"httpProtocolOptions": {}, "http2ProtocolOptions": {}});
    let keepalive = TcpKeepalive { probes: Some(3), time: seconds(7200), interval: seconds(75) };
    let pings = Http2Keepalive { interval: seconds(1), timeout: seconds(2) };
    let budget = RetryBudget { percent: 25.0, min_retry_concurrency: 3, budget_interval: seconds(10) };
    let rows: Vec<(&str, Protocol, PortPolicy, &str, Value)> = vec![
        ("connections", Tcp, tcp(|tcp| tcp.max_connections = Some(7)), "@limits/maxConnections", json!(7)),
        ("zero is no limit", Tcp, tcp(|tcp| tcp.max_connections = Some(0)), "@limits/maxConnections", json!(u32::MAX)),
        ("connect timeout", Tcp, tcp(|tcp| tcp.connect_timeout = seconds(2)), "/connectTimeout", json!("2s")),
        ("keepalive", Tcp, tcp(|tcp| tcp.keepalive = Some(keepalive)), "/upstreamConnectionOptions/tcpKeepalive", json!({"keepaliveProbes": 3, "keepaliveTime": 7200, "keepaliveInterval": 75})),
        ("keepalive by presence", Tcp, tcp(|tcp| tcp.keepalive = Some(TcpKeepalive::default())), "/upstreamConnectionOptions/tcpKeepalive", json!({})),
        ("connection lifetime", Http, tcp(|tcp| tcp.max_connection_duration = seconds(9)), "@http/commonHttpProtocolOptions/maxConnectionDuration", json!("9s")),
        ("idle time of TCP", Http, tcp(|tcp| tcp.idle_timeout = seconds(8)), "@http/commonHttpProtocolOptions/idleTimeout", json!("8s")),
        ("limits alone are HTTP/1.1", Http, tcp(|tcp| tcp.idle_timeout = seconds(8)), "@http/explicitHttpConfig", json!({"httpProtocolOptions": {}})),
        ("pending requests", Http, http(|http| http.http1_max_pending_requests = Some(1)), "@limits/maxPendingRequests", json!(1)),
        ("requests", Http, http(|http| http.http2_max_requests = Some(2)), "@limits/maxRequests", json!(2)),
        ("retries", Http, http(|http| http.max_retries = Some(4)), "@limits/maxRetries", json!(4)),
        ("requests a connection", Http, http(|http| http.max_requests_per_connection = Some(5)), "@http/commonHttpProtocolOptions/maxRequestsPerConnection", json!(5)),
        ("idle time of HTTP", Http, http(|http| http.idle_timeout = seconds(6)), "@http/commonHttpProtocolOptions/idleTimeout", json!("6s")),
        ("upgrade", Http, http(|http| http.h2_upgrade = H2Upgrade::Upgrade), "@http/explicitHttpConfig", http2.clone()),
        ("upgrade of TCP", Tcp, http(|http| http.h2_upgrade = H2Upgrade::Upgrade), "@http/explicitHttpConfig", http2),
        ("sniffed ports are not upgraded", Unsupported, http(|http| http.h2_upgrade = H2Upgrade::Upgrade), "@http/explicitHttpConfig", Value::Null),
        ("the client's protocol", Http, http(|http| http.use_client_protocol = true), "@http/useDownstreamProtocolConfig", downstream),
        ("streams", Grpc, http(|http| http.max_concurrent_streams = Some(8)), "@http/explicitHttpConfig/http2ProtocolOptions", json!({"maxConcurrentStreams": 8})),
        ("pings", Grpc, http(|http| http.http2_keepalive = Some(pings)), "@http/explicitHttpConfig/http2ProtocolOptions/connectionKeepalive", json!({"interval": "1s", "timeout": "2s"})),
        ("HTTP/1.1 has no streams", Http, http(|http| http.max_concurrent_streams = Some(8)), "@http", Value::Null),
        ("retry budget", Http, PortPolicy { retry_budget: Some(budget), ..PortPolicy::default() }, "@limits/retryBudget", json!({"budgetPercent": {"value": 25}, "budgetInterval": "10s", "minRetryConcurrency": 3})),
    ];
    for (case, protocol, base, path, expected) in rows {
        expect(case, &under(protocol, base, &sidecar()), path, &expected);
    }
}

#[test]
#[rustfmt::skip]
fn the_mesh_fills_absent_blocks() {
    let cart = cart(Protocol::Http);
    let world = || world(&cart).config(|config| {
        config.connect_timeout = Duration::from_secs(4);
        config.tcp_keepalive = Some(TcpKeepalive { probes: Some(9), time: None, interval: None });
        config.h2_upgrade = H2Upgrade::Upgrade;
        config.default_outlier_detection = ejecting(|outlier| outlier.interval = seconds(11)).outlier_detection;
        config.default_connection_pool = tcp(|tcp| tcp.max_connections = Some(12)).connection_pool;
        config.outbound_cluster_stat_name = "%SERVICE%_%SERVICE_PORT%".into();
    });
    let plain = &compile(&world(), &sidecar())[CLUSTER];
    let ruled = &compile(&world().rule(cart_rule(tcp(|tcp| tcp.connect_timeout = seconds(1)))), &sidecar())[CLUSTER];
    let rows = [
        ("timeout", plain, "/connectTimeout", json!("4s")),
        ("keepalive", plain, "/upstreamConnectionOptions/tcpKeepalive", json!({"keepaliveProbes": 9})),
        ("ejection", plain, "/outlierDetection/interval", json!("11s")),
        ("pool", plain, "@limits/maxConnections", json!(12)),
        ("statistics", plain, "/altStatName", json!("cart.app_80;")),
        ("upgrade", plain, "@http/explicitHttpConfig", json!({"http2ProtocolOptions": {}})),
        ("a block of the rule replaces the mesh's", ruled, "@limits/maxConnections", json!(u32::MAX)),
        ("other blocks stay", ruled, "/outlierDetection/interval", json!("11s")),
        ("keepalive is the mesh's even so", ruled, "/upstreamConnectionOptions/tcpKeepalive", json!({"keepaliveProbes": 9})),
    ];
    for (case, cluster, path, expected) in rows {
        expect(case, cluster, path, &expected);
    }
}

#[test]
#[rustfmt::skip]
fn endpoints_are_balanced() {
    use Algorithm::{LeastRequest, Passthrough, Random, RoundRobin, Unspecified};
    let hash = |ring| Algorithm::ConsistentHash(ConsistentHash { key: None, ring });
    let ring = HashRing::Ring { minimum_size: 1024 };
    let maglev = |table_size| HashRing::Maglev { table_size };
    let warm = |algorithm, minimum_percent, aggression| balancing(|balancer| {
        balancer.algorithm = algorithm;
        balancer.warmup = Some(Warmup { window: Duration::from_secs(60), minimum_percent, aggression });
    });
    let near = |failover: &[(&str, &str)]| balancing(|balancer| {
        let failover = failover.iter().map(|&(from, to)| (from.into(), to.into())).collect();
        balancer.locality = Some(LocalityLb { failover, ..LocalityLb::default() });
    });
    let and_ejecting = |base| PortPolicy { outlier_detection: Some(OutlierDetection::default()), ..base };
    let in_full = json!({"slowStartWindow": "60s", "minWeightPercent": {"value": 10}, "aggression": {"defaultValue": 1, "runtimeKey": "("}});
    let rows: Vec<(&str, PortPolicy, &str, Value)> = vec![
        ("unspecified", balanced(Unspecified), "/lbPolicy", json!("LEAST_REQUEST")),
        ("least requests", balanced(LeastRequest), "/lbPolicy", json!("LEAST_REQUEST")),
        ("random", balanced(Random), "/lbPolicy", json!("RANDOM")),
        // The default of protobuf is not written.
        ("round robin", balanced(RoundRobin), "/lbPolicy", Value::Null),
        ("ring", balanced(hash(ring)), "/lbPolicy", json!("RING_HASH")),
        ("ring size", balanced(hash(ring)), "/ringHashLbConfig/minimumRingSize", json!("1024")),
        ("maglev", balanced(hash(maglev(None))), "/lbPolicy", json!("MAGLEV")),
        ("maglev size", balanced(hash(maglev(Some(257)))), "/maglevLbConfig/tableSize", json!("257")),
        ("warmup", warm(LeastRequest, None, None), "/leastRequestLbConfig/slowStartConfig", json!({"slowStartWindow": "60s"})),
        ("warmup in full", warm(RoundRobin, Some(10.0), Some(1.0)), "/roundRobinLbConfig/slowStartConfig", in_full),
        ("passthrough", balanced(Passthrough), "/type", json!("ORIGINAL_DST")),
        ("passthrough balances nothing", balanced(Passthrough), "/lbPolicy", json!("CLUSTER_PROVIDED")),
        ("failover without ejection", near(&[("a", "b")]), "/commonLbConfig/localityWeightedLbConfig", Value::Null),
        ("failover with ejection", and_ejecting(near(&[("a", "b")])), "/commonLbConfig/localityWeightedLbConfig", json!({})),
        ("closeness needs no weights", and_ejecting(near(&[])), "/commonLbConfig/localityWeightedLbConfig", Value::Null),
    ];
    for (case, base, path, expected) in rows {
        expect(case, &under(Protocol::Http, base, &sidecar()), path, &expected);
    }
}

#[test]
#[rustfmt::skip]
fn failing_endpoints_are_ejected() {
    let codes = |ranges: &[(u16, u16)]| ranges.iter().map(|&(start, end)| StatusRange { start, end }).collect::<Vec<_>>();
    let exactly = |code: &str| json!({"httpResponseHeadersMatch": {"headers": [{"name": ":status", "stringMatch": {"exact": code}}]}});
    let between = |start: &str, end: &str| json!({"httpResponseHeadersMatch": {"headers": [{"name": ":status", "rangeMatch": {"start": start, "end": end}}]}});
    let matcher = "@http/outlierDetection/errorMatcher";
    let rows: Vec<(&str, PortPolicy, &str, Value)> = vec![
        ("empty", ejecting(|_| {}), "/outlierDetection", json!({"enforcingSuccessRate": 0})),
        ("5xx", ejecting(|o| o.consecutive_5xx = Some(3)), "/outlierDetection", json!({"consecutive5xx": 3, "enforcingConsecutive5xx": 100, "enforcingSuccessRate": 0})),
        ("5xx off", ejecting(|o| o.consecutive_5xx = Some(0)), "/outlierDetection", json!({"consecutive5xx": 0, "enforcingConsecutive5xx": 0, "enforcingSuccessRate": 0})),
        ("gateway errors", ejecting(|o| o.consecutive_gateway_errors = Some(2)), "/outlierDetection", json!({"consecutiveGatewayFailure": 2, "enforcingConsecutiveGatewayFailure": 100, "enforcingSuccessRate": 0})),
        ("local origin", ejecting(|o| { o.split_external_local_origin = true; o.consecutive_local_origin_failures = Some(6); }), "/outlierDetection", json!({"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailure": 6, "enforcingConsecutiveLocalOriginFailure": 100, "enforcingLocalOriginSuccessRate": 0, "enforcingSuccessRate": 0})),
        ("interval", ejecting(|o| o.interval = seconds(1)), "/outlierDetection/interval", json!("1s")),
        ("ejection time", ejecting(|o| o.base_ejection_time = seconds(2)), "/outlierDetection/baseEjectionTime", json!("2s")),
        ("share", ejecting(|o| o.max_ejection_percent = Some(50)), "/outlierDetection/maxEjectionPercent", json!(50)),
        ("no share is the default", ejecting(|o| o.max_ejection_percent = Some(0)), "/outlierDetection/maxEjectionPercent", Value::Null),
        ("no panic", ejecting(|_| {}), "/commonLbConfig/healthyPanicThreshold", json!({})),
        ("panic", ejecting(|o| o.min_health_percent = 30), "/commonLbConfig/healthyPanicThreshold", json!({"value": 30})),
        ("one code", ejecting(|o| o.http_error_codes = codes(&[(500, 500)])), matcher, exactly("500")),
        ("codes", ejecting(|o| o.http_error_codes = codes(&[(429, 429), (500, 503)])), matcher, json!({"orMatch": {"rules": [exactly("429"), between("500", "504")]}})),
    ];
    for (case, base, path, expected) in rows {
        expect(case, &under(Protocol::Http, base, &sidecar()), path, &expected);
    }
}
