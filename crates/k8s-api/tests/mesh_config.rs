//! MeshConfig: defaults, merge rules, and the table of fields that are read.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_api::crd::schema_of;
use k8s_api::mesh_config::{
    FIELDS, MeshConfig, MeshNetworks, MeshOutboundMode, Use, field, fields_not_read, markdown,
};
use k8s_api::yaml::parse_value;
use serde_json::{Value, json};

fn merge(layers: &[Value]) -> MeshConfig {
    MeshConfig::merge(layers).unwrap()
}

#[test]
fn defaults_are_istios() {
    let mesh = MeshConfig::default();
    assert_eq!(
        (mesh.proxy_listen_port, mesh.proxy_inbound_listen_port, mesh.proxy_http_port),
        (15001, 15006, 0)
    );
    assert_eq!((mesh.connect_timeout.as_str(), mesh.dns_refresh_rate.as_str()), ("10s", "60s"));
    assert!(mesh.enable_auto_mtls && mesh.enable_tracing && mesh.enable_prometheus_merge);
    assert_eq!(mesh.outbound_traffic_policy.mode, Some(MeshOutboundMode::AllowAny));
    assert_eq!(mesh.locality_lb_setting.as_ref().unwrap().enabled, Some(true));
    assert_eq!(mesh.default_service_export_to, ["*"]);
    assert_eq!(mesh.default_config.drain_duration, "45s");
    assert_eq!(mesh.default_config.discovery_address, "istiod.istio-system.svc:15012");
    assert_eq!(mesh, merge(&[]));
    assert_eq!(mesh, merge(&[json!({ "trustDomain": null })]));
}

#[test]
fn fields_are_replaced_as_a_whole() {
    let mesh = merge(&[
        json!({ "localityLbSetting": { "failoverPriority": ["tier"] }, "enableAutoMtls": false, "outboundTrafficPolicy": {} }),
    ]);
    assert_eq!(mesh.locality_lb_setting.unwrap().enabled, None);
    assert!(!mesh.enable_auto_mtls);
    assert_eq!(mesh.outbound_traffic_policy.mode, None);
}

#[test]
fn default_config_and_default_providers_are_merged_by_field() {
    let shared = json!({
        "defaultConfig": { "concurrency": 2, "proxyMetadata": { "A": "1", "B": "1" }, "drainDuration": "7s" },
        "defaultProviders": { "metrics": ["prometheus"] },
    });
    let own = json!({
        "defaultConfig": { "concurrency": 4, "proxyMetadata": { "B": "2" } },
        "defaultProviders": { "tracing": ["zipkin"] },
    });
    let mesh = merge(&[shared, own]);
    let config = &mesh.default_config;
    assert_eq!(
        (config.concurrency, config.drain_duration.as_str(), config.status_port),
        (Some(4), "7s", 15020)
    );
    assert_eq!((config.proxy_metadata["A"].as_str(), config.proxy_metadata["B"].as_str()), ("1", "2"));
    let providers = mesh.default_providers.unwrap();
    assert_eq!(
        (providers.metrics, providers.tracing),
        (vec!["prometheus".to_owned()], vec!["zipkin".to_owned()])
    );
}

#[test]
fn extension_providers_are_appended_and_equal_names_replaced() {
    let layer = json!({ "extensionProviders": [
        { "name": "envoy", "envoyFileAccessLog": { "path": "/logs" } },
        { "name": "authz", "envoyExtAuthzGrpc": { "service": "a", "port": 1 } },
    ] });
    let mesh = merge(&[layer]);
    let names: Vec<&str> = mesh.extension_providers.iter().map(|provider| provider.name.as_str()).collect();
    assert_eq!(names, ["prometheus", "stackdriver", "envoy", "authz"]);
    assert_eq!(mesh.extension_providers[2].settings["envoyFileAccessLog"]["path"], "/logs");
}

#[test]
fn trust_domain_aliases_are_united() {
    let mesh =
        merge(&[json!({ "trustDomainAliases": ["b", "a"] }), json!({ "trustDomainAliases": ["c", "a"] })]);
    assert_eq!(mesh.trust_domain_aliases, ["a", "b", "c"]);
}

#[test]
fn effective_configuration_survives_being_written() {
    let mesh = merge(&[
        json!({ "enableTracing": false, "proxyHttpPort": 8, "defaultServiceExportTo": [], "meshMTLS": { "minProtocolVersion": "TLSV1_3" } }),
    ]);
    assert_eq!(merge(&[serde_json::to_value(&mesh).unwrap()]), mesh);
}

#[test]
fn layers_are_parsed_with_warnings() {
    let shared = ("shared", "trustDomain: a\nrootNamespace: root\n");
    let own = (
        "own",
        "trustDomain: b\nrootNamespaze: x\ndefaultConfig:\n  drainDuration: 3s\n  statNameLength: 2\nextensionProviders: []\n",
    );
    let parsed = MeshConfig::parse(&[shared, own]).unwrap();
    assert_eq!((parsed.config.trust_domain.as_str(), parsed.config.root_namespace.as_str()), ("b", "root"));
    let warnings: Vec<String> =
        parsed.warnings.iter().map(|(origin, warning)| format!("{origin}: {warning}")).collect();
    assert_eq!(
        warnings,
        [
            "own: line 2: rootNamespaze: unknown field, it has no effect",
            "own: line 5: defaultConfig.statNameLength: Weft does not act on this field yet",
            "own: line 6: extensionProviders: Weft does not act on this field yet",
        ]
    );
    let error =
        MeshConfig::parse(&[("own", "trustDomain: a\ndefaultConfig:\n  concurrency: many\n")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "own:3: defaultConfig.concurrency: invalid type: string \"many\", expected u32"
    );
}

#[test]
fn every_field_is_in_the_table() {
    let schema = schema_of::<MeshConfig>();
    let properties = |schema: &Value| {
        schema["properties"].as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>()
    };
    let mut wanted = properties(&schema);
    assert!(wanted.remove("defaultConfig"));
    let nested = properties(&schema["properties"]["defaultConfig"]);
    wanted.extend(nested.into_iter().map(|name| format!("defaultConfig.{name}")));
    let listed: Vec<String> = FIELDS.iter().map(|field| field.path.to_owned()).collect();
    assert_eq!(
        listed,
        wanted.into_iter().collect::<Vec<_>>(),
        "fields.rs must list exactly these, in this order"
    );
    assert_eq!(field("trustDomain").unwrap().used, Use::Read);
    assert_eq!(field("nothing"), None);
}

/// `UPDATE_GOLDEN=1` rewrites the page.
#[test]
fn documentation_has_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/mesh-config.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (head, rest) = text.split_once("| field | today |\n").unwrap();
    let tail = rest
        .lines()
        .skip_while(|line| line.starts_with('|'))
        .fold(String::new(), |tail, line| tail + line + "\n");
    let wanted = format!("{head}{}{tail}", markdown());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(&page).unwrap() == wanted,
        "docs/mesh-config.md is stale: run with UPDATE_GOLDEN=1"
    );
}

#[test]
fn set_fields_that_are_not_read_are_listed() {
    let layer = json!({ "trustDomain": "a", "ca": {}, "ingressClass": null, "defaultConfig": { "image": {}, "statNameLength": 9, "drainDuration": "1s" } });
    // The image is the injector's.
    assert_eq!(fields_not_read(&layer), ["ca", "defaultConfig.statNameLength"]);
}

#[test]
fn mesh_networks_are_read() {
    let text = "networks:\n  n1:\n    endpoints: [{fromRegistry: c1}, {fromCidr: 10.0.0.0/8}]\n    gateways: [{address: 1.1.1.1, port: 443}]\n";
    let networks = parse_value::<MeshNetworks>(text, "x").unwrap();
    assert!(networks.warnings.is_empty());
    let network = &networks.value.networks["n1"];
    assert_eq!(network.endpoints[0].from_registry.as_deref(), Some("c1"));
    assert_eq!(network.gateways[0].port, 443);
}
