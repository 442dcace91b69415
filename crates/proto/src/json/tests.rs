use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use serde_json::json;

use super::*;
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::core::v3::{Address, DataSource, Metadata, address, data_source, transport_socket};
use crate::envoy::config::core::v3::{SocketAddress, TransportSocket, socket_address};
use crate::envoy::extensions::transport_sockets::tls::v3::{
    Secret, TlsCertificate, UpstreamTlsContext, secret,
};
use crate::google::protobuf::{self, Any, Struct};
use crate::{any, type_url::CLUSTER, type_url::SECRET, xds};

fn cluster_with(config: Any) -> Cluster {
    Cluster {
        name: "outbound|9080||reviews.default.svc.cluster.local".to_owned(),
        connect_timeout: Some(Duration::from_millis(10_500).into()),
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
        }),
        metadata: Some(Metadata {
            filter_metadata: BTreeMap::from([(
                "istio".to_owned(),
                [("port", protobuf::Value::from(9080.0)), ("ratio", 0.5.into())]
                    .into_iter()
                    .collect::<Struct>(),
            )]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn tls_cluster() -> Cluster {
    cluster_with(any(&UpstreamTlsContext { sni: "reviews".to_owned(), ..Default::default() }))
}

/// Writes, reads, and expects the bytes that went in.
fn round_trip(cluster: &Cluster, options: WriteOptions) -> Value {
    let bytes = cluster.encode_to_vec();
    let json = to_json_with(CLUSTER, &bytes, options).unwrap();
    let read = from_json(CLUSTER, &json).unwrap();
    assert_eq!(Cluster::decode(read).unwrap(), *cluster);
    json
}

#[test]
fn cluster_with_nested_any_round_trips() {
    let expected = json!({
        "name": "outbound|9080||reviews.default.svc.cluster.local",
        "connectTimeout": "10.500s",
        "transportSocket": {
            "name": "envoy.transport_sockets.tls",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "reviews",
            },
        },
        "metadata": { "filterMetadata": { "istio": { "port": 9080, "ratio": 0.5 } } },
    });
    let json = round_trip(&tls_cluster(), WriteOptions::default());
    assert_eq!(json, expected);
    // `json!` makes both 9080 and 9080.0 a number; the text is what counts.
    assert!(json.to_string().contains("\"port\":9080,"), "{json}");
}

#[test]
fn proto_names_are_written_on_request_and_read() {
    let json = round_trip(&tls_cluster(), WriteOptions { proto_names: true, ..Default::default() });
    assert_eq!(json["transport_socket"]["typed_config"]["sni"], "reviews");
    assert_eq!(json["metadata"]["filter_metadata"]["istio"]["port"], 9080);
}

#[test]
fn any_of_unknown_type_is_kept_as_base64() {
    let config =
        Any { type_url: "type.googleapis.com/acme.Secretive".to_owned(), value: vec![1, 2, 3].into() };
    let json = round_trip(&cluster_with(config), WriteOptions::default());
    let expected = json!({ "@type": "type.googleapis.com/acme.Secretive", "value": "AQID" });
    assert_eq!(json["transportSocket"]["typedConfig"], expected);
}

#[test]
fn any_with_foreign_bytes_does_not_fail_the_document() {
    let mut config = any(&UpstreamTlsContext::default());
    config.value = vec![0xff].into();
    let json = to_json(CLUSTER, &cluster_with(config).encode_to_vec()).unwrap();
    assert_eq!(json["transportSocket"]["typedConfig"]["value"], "/w==");
}

#[test]
fn any_of_unknown_type_with_fields_is_an_error_with_its_path() {
    let json = json!({ "transportSocket": { "typedConfig": { "@type": "a/acme.Thing", "color": "red" } } });
    let error = from_json(CLUSTER, &json).unwrap_err().to_string();
    assert_eq!(error, "$.transportSocket.typedConfig: unknown message type \"a/acme.Thing\"");
}

#[test]
fn any_of_well_known_type_is_under_value() {
    let json = round_trip(&cluster_with(any(&protobuf::UInt32Value { value: 7 })), WriteOptions::default());
    let config = json!({ "@type": "type.googleapis.com/google.protobuf.UInt32Value", "value": 7 });
    assert_eq!(json["transportSocket"]["typedConfig"], config);
}

#[test]
fn typed_struct_is_expanded() {
    let nested: Struct = [("depth", protobuf::Value::from(3.0)), ("name", "x".into())].into_iter().collect();
    let value: Struct =
        [("config", protobuf::Value::from(nested)), ("list", vec![true.into(), 1.0.into()].into())]
            .into_iter()
            .collect();
    let type_url = "type.googleapis.com/acme.Filter".to_owned();
    let typed = xds::r#type::v3::TypedStruct { type_url, value: Some(value) };
    let json = round_trip(&cluster_with(any(&typed)), WriteOptions::default());
    let expected = json!({
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "typeUrl": "type.googleapis.com/acme.Filter",
        "value": { "config": { "depth": 3, "name": "x" }, "list": [true, 1] },
    });
    assert_eq!(json["transportSocket"]["typedConfig"], expected);
}

#[test]
fn null_is_a_value_in_a_struct_and_absent_elsewhere() {
    let typed = json!({ "@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "value": { "a": null } });
    let json = json!({ "name": null, "transportSocket": { "typedConfig": typed } });
    let bytes = from_json(CLUSTER, &json).unwrap();
    let expected = json!({ "transportSocket": { "typedConfig": typed } });
    assert_eq!(to_json(CLUSTER, &bytes).unwrap(), expected);
}

#[test]
fn equal_maps_encode_to_equal_bytes() {
    let keys: Vec<String> = (0..40).map(|i| format!("key-{i}")).collect();
    let forward: Struct = keys.iter().map(|key| (key.as_str(), key.as_str())).collect();
    let backward: Struct = keys.iter().rev().map(|key| (key.as_str(), key.as_str())).collect();
    assert_eq!(any(&forward), any(&backward));
}

#[test]
fn reading_json_gives_the_same_bytes_each_time() {
    let fields: serde_json::Map<String, Value> = (0..40).map(|i| (format!("key-{i}"), json!(i))).collect();
    let typed = json!({ "@type": "type.googleapis.com/xds.type.v3.TypedStruct", "value": fields });
    let metadata = json!({ "filterMetadata": { "b": fields, "a": fields, "c": {} } });
    let json = json!({ "name": "c", "metadata": metadata, "transportSocket": { "typedConfig": typed } });

    let first = from_json(CLUSTER, &json).unwrap();
    for _ in 0..20 {
        assert_eq!(from_json(CLUSTER, &json).unwrap(), first);
    }
    // The same as the typed message, which sorts its maps.
    assert_eq!(Cluster::decode(first.clone()).unwrap().encode_to_vec(), first);
}

#[test]
fn unknown_field_is_an_error_or_reported() {
    let json = json!({ "name": "c", "loadAssignment": { "endpoints": [{}, { "colour": 1 }] } });
    let error = from_json(CLUSTER, &json).unwrap_err().to_string();
    assert_eq!(
        error,
        "$.loadAssignment.endpoints[1].colour: envoy.config.endpoint.v3.LocalityLbEndpoints has no such field"
    );
    let (bytes, skipped) = from_json_lenient(CLUSTER, &json).unwrap();
    assert_eq!(skipped, ["$.loadAssignment.endpoints[1].colour"]);
    assert_eq!(Cluster::decode(bytes).unwrap().load_assignment.unwrap().endpoints.len(), 2);
}

#[test]
fn values_that_do_not_fit_are_errors_with_their_path() {
    for (json, path) in [
        (json!({ "connectTimeout": "soon" }), "$.connectTimeout: "),
        (json!({ "type": "NONSENSE" }), "$.type: "),
        (json!({ "name": 1 }), "$.name: "),
        (json!({ "loadAssignment": [] }), "$.loadAssignment: "),
        (json!({ "transportSocket": { "typedConfig": {} } }), "$.transportSocket.typedConfig: "),
        (json!({ "type": "EDS", "clusterType": {} }), "$.type: "),
        (json!({ "altStatName": "a", "alt_stat_name": "b" }), "$.alt_stat_name: "),
    ] {
        let error = from_json(CLUSTER, &json).unwrap_err().to_string();
        assert!(error.starts_with(path), "{json}: {error}");
    }
}

#[test]
fn enums_and_oneofs_round_trip() {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "10.0.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        })),
    };
    let json = to_json("envoy.config.core.v3.Address", &address.encode_to_vec()).unwrap();
    assert_eq!(json, json!({ "socketAddress": { "address": "10.0.0.1", "portValue": 80 } }));
    assert_eq!(from_json("envoy.config.core.v3.Address", &json).unwrap(), address.encode_to_vec());

    let json = json!({ "type": "EDS", "lbPolicy": "LEAST_REQUEST" });
    let bytes = from_json(CLUSTER, &json).unwrap();
    assert_eq!(to_json(CLUSTER, &bytes).unwrap(), json);
}

#[test]
fn private_keys_are_redacted_on_request() {
    let inline = |text: &str| DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    };
    let secret = Secret {
        name: "default".to_owned(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(inline("CHAIN")),
            private_key: Some(inline("KEY")),
            ..Default::default()
        })),
    };
    let bytes = secret.encode_to_vec();
    let json = to_json_with(SECRET, &bytes, WriteOptions { redact: true, ..Default::default() }).unwrap();
    let expected = json!({
        "certificateChain": { "inlineString": "CHAIN" },
        "privateKey": { "inlineString": "[redacted]" },
    });
    assert_eq!(json["tlsCertificate"], expected);
    assert_eq!(to_json(SECRET, &bytes).unwrap()["tlsCertificate"]["privateKey"]["inlineString"], "KEY");
}

#[test]
fn unknown_top_level_type_is_an_error() {
    assert!(matches!(to_json("type.googleapis.com/acme.Thing", &[]), Err(JsonError::UnknownType { .. })));
    assert!(matches!(to_json(CLUSTER, &[0xff]), Err(JsonError::Malformed { .. })));
}
