//! The workload's own ports.

use super::super::inbound;
use super::*;
use crate::audience::InboundAudience;
use crate::fixtures::{meta, workload};
use model::destination_rule::TrafficPolicy;
use model::proxy::Interception;
use model::sidecar::{CaptureMode, IngressEndpoint, IngressListener, SidecarPort};
use model::{Kind, Sidecar};
use serde_json::json;

const ADDRESS: &str = "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address";

fn compile_inbound(world: &World, audience: &InboundAudience) -> BTreeMap<String, Value> {
    let mesh = Mesh::new(world.view());
    let scope = crate::scope::scope(&mesh, &audience.scope);
    by_name(inbound(&mesh, &scope, audience))
}

#[test]
#[rustfmt::skip]
fn ports_have_clusters() {
    use Protocol::{Grpc, Http, Udp, Unsupported};
    let cart = service(HOST, &[(80, Http), (81, Grpc), (82, Unsupported), (83, Udp), (84, Http)]);
    let audience = workload(&[(&cart, &[(80, 8080), (81, 8081), (82, 8082), (83, 8083), (84, 0)])]);
    let limited = DestinationRule {
        policy: Some(TrafficPolicy {
            port_level: vec![(81, PortPolicy { outlier_detection: Some(OutlierDetection::default()), ..tcp(|tcp| tcp.max_connections = Some(5)) })],
            ..policy(encrypted(client_tls(ClientTlsMode::Simple)))
        }),
        ..rule("app", "cart", HOST)
    };
    let clusters = compile_inbound(&world(&cart).rule(limited), &audience);
    let names = ["InboundPassthroughCluster", "inbound|8080||", "inbound|8081||", "inbound|8082||"];
    assert_eq!(clusters.keys().collect::<Vec<_>>(), names, "none for UDP and for a name that the workload lacks");
    let bind = json!({"sourceAddress": {"address": "127.0.0.6", "portValue": 0}});
    let rows = [
        ("InboundPassthroughCluster", "/upstreamBindConfig", bind.clone()),
        ("inbound|8080||", "/type", json!("ORIGINAL_DST")),
        ("inbound|8080||", "/cleanupInterval", json!("9223372035s")),
        ("inbound|8080||", "/upstreamBindConfig", bind),
        ("inbound|8080||", "/altStatName", json!("inbound|8080||;")),
        ("inbound|8080||", "/transportSocket", Value::Null),
        ("inbound|8080||", "/metadata/filterMetadata/istio/services/0/host", json!(HOST)),
        ("inbound|8081||", "@limits/maxConnections", json!(5)),
        ("inbound|8081||", "/outlierDetection", Value::Null),
        ("inbound|8081||", "@http/explicitHttpConfig", json!({"http2ProtocolOptions": {}})),
        ("inbound|8082||", "@http/useDownstreamProtocolConfig/http2ProtocolOptions", json!({})),
    ];
    for (name, path, expected) in rows {
        expect(name, &clusters[name], path, &expected);
    }
}

#[test]
fn the_mesh_and_the_workload_decide_where_connections_go() {
    let cart = cart(Protocol::Http);
    let audience = workload(&[(&cart, &[(80, 8080)])]);
    let loopback = world(&cart).config(|config| config.inbound_passthrough = false);
    let clusters = compile_inbound(&loopback, &audience);
    let expected = json!({"socketAddress": {"address": "127.0.0.1", "portValue": 8080}});
    expect("loopback", &clusters["inbound|8080||"], ADDRESS, &expected);

    let unbound = InboundAudience { interception: Interception::None, ..audience.clone() };
    let clusters = compile_inbound(&world(&cart), &unbound);
    let names: Vec<&String> = clusters.keys().collect();
    assert_eq!(names, ["InboundPassthroughCluster"], "the workload itself listens");

    let mut dual = audience;
    dual.families.v6 = true;
    let clusters = compile_inbound(&world(&cart), &dual);
    let extra = "/upstreamBindConfig/extraSourceAddresses/0/address/address";
    expect("both families", &clusters["InboundPassthroughCluster"], extra, &json!("::6"));
    expect("a port has one", &clusters["inbound|8080||"], extra, &Value::Null);
}

#[test]
fn the_oldest_service_decides_about_a_shared_port() {
    let old = service("old.app.svc.cluster.local", &[(80, Protocol::Http2)]);
    let new = service("new.app.svc.cluster.local", &[(90, Protocol::Http)]);
    let audience = workload(&[(&old, &[(80, 8080)]), (&new, &[(90, 8080)])]);
    let clusters = compile_inbound(&World::new().service(&old).service(&new), &audience);
    let shared = &clusters["inbound|8080||"];
    expect("protocol", shared, "@http/explicitHttpConfig", &json!({"http2ProtocolOptions": {}}));
    expect("both are named", shared, "/metadata/filterMetadata/istio/services/1/name", &json!("new"));
}

#[test]
fn sidecars_define_clusters_in_place_of_services() {
    let pool = |max| tcp(|tcp| tcp.max_connections = Some(max)).connection_pool;
    let listener = |number, default_endpoint, connection_pool| IngressListener {
        port: SidecarPort { number, protocol: Protocol::Http, name: "http".into() },
        bind: None,
        capture_mode: CaptureMode::Default,
        default_endpoint,
        tls: None,
        connection_pool,
    };
    let sidecar = Sidecar {
        meta: meta(Kind::Sidecar, "app", "own"),
        selector: None,
        ingress: vec![
            listener(9080, IngressEndpoint::Localhost(8080), None),
            listener(9081, IngressEndpoint::Instance(8081), pool(3)),
            listener(9082, IngressEndpoint::Unix("/var/run/x".into()), None),
            listener(9083, IngressEndpoint::OriginalDestination, None),
        ],
        egress: Vec::new(),
        outbound_traffic_policy: None,
        inbound_connection_pool: pool(2),
    };
    let cart = cart(Protocol::Http);
    let mut audience = workload(&[(&cart, &[(80, 8080)])]);
    audience.scope.sidecar = Some(sidecar.meta.key.clone());
    audience.instance_ip = Some([10, 1, 0, 6].into());
    let world = world(&cart).build(|builder| builder.set_sidecar(sidecar));
    let clusters = compile_inbound(&world, &audience);
    let rows = [
        ("inbound|9080||", ADDRESS, json!({"socketAddress": {"address": "127.0.0.1", "portValue": 8080}})),
        ("inbound|9080||", "/upstreamBindConfig", Value::Null),
        ("inbound|9080||", "@limits/maxConnections", json!(2)),
        ("inbound|9081||", ADDRESS, json!({"socketAddress": {"address": "10.1.0.6", "portValue": 8081}})),
        ("inbound|9081||", "/upstreamBindConfig/sourceAddress/address", json!("127.0.0.6")),
        ("inbound|9081||", "@limits/maxConnections", json!(3)),
        ("inbound|9082||", ADDRESS, json!({"pipe": {"path": "/var/run/x"}})),
        ("inbound|9083||", "/type", json!("ORIGINAL_DST")),
    ];
    for (name, path, expected) in rows {
        expect(name, &clusters[name], path, &expected);
    }
    assert_eq!(clusters.len(), 5, "services define none");
}
