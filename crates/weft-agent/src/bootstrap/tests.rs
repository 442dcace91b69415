//! Bootstraps, compared with files and shown to Envoy.

use super::*;
use crate::config::tests::Host;
use testkit::rig::Envoy;

/// Compares with `testdata/bootstrap/NAME.json`, which `UPDATE_GOLDEN=1` rewrites, and lets Envoy judge it.
fn check(name: &str, host: &Host) {
    let config = host.load().unwrap();
    let text = json(&config).unwrap();
    let path = format!("{}/testdata/bootstrap/{name}.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{path} differs; UPDATE_GOLDEN=1 rewrites it. Now it is:\n{text}");
    assert_eq!(json(&config).unwrap(), text, "equal configurations give equal text");
    assert!(!text.contains("PRIVATE KEY"));
    Envoy::validate(&text).unwrap();
}

#[test]
fn a_sidecar() {
    check("sidecar", &Host::pod());
}

#[test]
fn a_gateway_with_two_families_and_all_settings() {
    let mut host = Host::pod()
        .set("INSTANCE_IP", "fd00::7,10.244.0.7")
        .set("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")
        .set("XDS_ROOT_CA", "SYSTEM")
        .set("ISTIOD_SAN", "istiod.example.com")
        .set(
            "PROXY_CONFIG",
            r#"{"discoveryAddress":"[fd00::1]:15012","extraStatTags":["request.path"],"runtimeValues":{
              "overload.global_downstream_max_connections":"5000","re2.max_program_size.error_level":"",
              "envoy.reloadable_features.no_such_thing":"true"},
              "proxyStatsMatcher":{"inclusionRegexps":[".*upstream_rq.*"],"inclusionSuffixes":["_cx"]},
              "statsEvictionInterval":"300s","proxyAdminPort":16000}"#,
        )
        .file(
            "./etc/istio/pod/annotations",
            "sidecar.istio.io/statsHistogramBuckets=\"{\\\"istiocustom\\\":[1,5,10]}\"\nsidecar.istio.io/statsFlushInterval=\"10s\"\n",
        )
        .file("./etc/istio/pod/labels", "istio=\"ingressgateway\"\ntopology.istio.io/locality=\"eu.eu-1.a\"\n");
    host.words = vec!["proxy", "router", "--outlierLogPath", "/dev/null"];
    check("gateway", &host);
}

#[test]
fn plain_text() {
    check(
        "plain",
        &Host::pod().set("PROXY_CONFIG", "controlPlaneAuthPolicy: NONE\ndiscoveryAddress: 10.0.0.1:15010"),
    );
}

#[test]
fn a_bad_limit_of_connections_is_none() {
    for (value, expected) in [("5000", 5000), ("0", i64::from(i32::MAX)), ("many", i64::from(i32::MAX))] {
        let runtime = format!("runtimeValues: {{ {CONNECTION_LIMIT}: \"{value}\" }}");
        let config = Host::pod().set("PROXY_CONFIG", runtime).load().unwrap();
        let monitor = overload(&config).resource_monitors.remove(0);
        let Some(resource_monitor::ConfigType::TypedConfig(any)) = monitor.config_type else {
            panic!("none")
        };
        let limit = DownstreamConnectionsConfig::decode(any.value).unwrap();
        assert_eq!(limit.max_active_downstream_connections, expected, "{value}");
    }
}

/// What Envoy makes of names of statistics, seen at its metrics.
#[test]
fn labels_are_cut_at_the_right_dot() {
    let clusters = ["outbound|443||www.example.com;", "outbound|80|v1|a.b.svc.cluster.local", "xds-grpc"];
    let host = Host::pod().set("PROXY_CONFIG", "proxyStatsMatcher:\n  inclusionPrefixes: [cluster.]");
    let mut config = bootstrap(&host.load().unwrap());
    let resources = config.static_resources.as_mut().unwrap();
    resources.listeners.clear();
    config.dynamic_resources = None;
    resources.clusters = clusters
        .map(|name| proto::envoy::config::cluster::v3::Cluster {
            name: name.to_owned(),
            ..Default::default()
        })
        .to_vec();
    let options = proto::json::WriteOptions { proto_names: true, ..Default::default() };
    let text = proto::json::to_json_with(&Bootstrap::type_url(), &config.encode_to_vec(), options).unwrap();
    let envoy = Envoy::start(&text.to_string()).unwrap();
    let metrics = envoy.admin_get("/stats/prometheus").unwrap().text();
    for name in ["outbound|443||www.example.com", "outbound|80|v1|a.b.svc.cluster.local", "xds-grpc"] {
        let line = format!("envoy_cluster_upstream_cx_total{{cluster_name=\"{name}\"}} 0");
        assert!(metrics.contains(&line), "{line} is missing in:\n{metrics}");
    }
}
