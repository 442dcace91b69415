//! Which clusters there are, and how they find endpoints.

use super::super::{fixed, gateway};
use super::*;
use crate::audience::{GatewayAudience, IpFamilies};
use crate::fixtures::{external, meta, port, router, server_tls, sidecar, subset};
use model::gateway::{Gateway, Server, ServerTlsMode};
use model::proxy::ProxyRole;
use model::service::{Address, Resolution, TargetPort};
use model::sidecar::{OutboundMode, OutboundTrafficPolicy};
use model::{Endpoint, Kind, Labels, ServicePort};
use serde_json::json;
use std::collections::BTreeSet;

#[test]
#[rustfmt::skip]
fn resolutions() {
    use Resolution::{Dns, DnsRoundRobin, DynamicDns, Passthrough};
    let entry = |resolution| external("a.org", resolution, &[(80, Protocol::Http)]);
    let race = Service { annotations: [("istio.io/connect-strategy", "RACE_FIRST_TCP_CONNECT")].into_iter().collect(), ..entry(Dns) };
    let moved = Service { ports: vec![ServicePort { target: TargetPort::Number(8080), ..port(80, Protocol::Http) }], ..entry(Passthrough) };
    let dynamic = external("*.org", DynamicDns, &[(80, Protocol::Http)]);
    let dynamic_http2 = external("*.org", DynamicDns, &[(80, Protocol::Http2)]);
    let checked = json!({"autoSni": true, "autoSanValidation": true});
    let options = "/typedExtensionProtocolOptions/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/upstreamHttpProtocolOptions";
    let headless = Service { resolution: Passthrough, ..cart(Protocol::Tcp) };
    let six = OutboundAudience { families: IpFamilies { v4: false, v6: true }, ..sidecar() };
    let named = Endpoint { address: Address::Dns("b.org".into()), weight: Some(2), ..endpoint("10.0.0.1", 80) };
    let (one, two) = (vec![named.clone()], vec![named.clone(), named]);
    let cache = json!({"name": "*.org_dfp_dns_cache", "dnsLookupFamily": "V4_ONLY"});
    type Row<'a> = (&'a str, Service, &'a [Endpoint], OutboundAudience, &'a str, Value);
    let rows: Vec<Row<'_>> = vec![
        ("DNS", entry(Dns), &one, sidecar(), "/type", json!("STRICT_DNS")),
        ("a name that does not resolve delays nothing", entry(Dns), &one, sidecar(), "/waitForWarmOnInit", json!(false)),
        ("refresh", entry(Dns), &one, sidecar(), "/dnsRefreshRate", json!("60s")),
        ("lifetimes are respected", entry(Dns), &one, sidecar(), "/respectDnsTtl", json!(true)),
        ("family", entry(Dns), &one, sidecar(), "/dnsLookupFamily", json!("V4_ONLY")),
        ("the other family", entry(Dns), &one, six, "/dnsLookupFamily", json!("V6_ONLY")),
        ("names", entry(Dns), &one, sidecar(), "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address/socketAddress/address", json!("b.org")),
        ("weights", entry(Dns), &one, sidecar(), "/loadAssignment/endpoints/0/loadBalancingWeight", json!(2)),
        ("external", entry(Dns), &one, sidecar(), "/metadata/filterMetadata/istio/external", json!(true)),
        ("round robin", entry(DnsRoundRobin), &one, sidecar(), "/type", json!("LOGICAL_DNS")),
        ("a logical name is a single one", entry(DnsRoundRobin), &two, sidecar(), "/type", json!("STRICT_DNS")),
        ("racing", race.clone(), &one, sidecar(), "/type", json!("LOGICAL_DNS")),
        ("racing families", race.clone(), &one, sidecar(), "/dnsLookupFamily", json!("ALL")),
        ("none", entry(Passthrough), &[], sidecar(), "/type", json!("ORIGINAL_DST")),
        ("none on a gateway", entry(Passthrough), &[], router(), "/type", json!("EDS")),
        ("another port", moved, &[], sidecar(), "/originalDstLbConfig/upstreamPortOverride", json!(8080)),
        ("headless", headless.clone(), &[], sidecar(), "/type", json!("ORIGINAL_DST")),
        ("headless on a gateway", headless.clone(), &[], router(), "/type", json!("EDS")),
        ("dynamic", dynamic.clone(), &[], sidecar(), "/clusterType/typedConfig/dnsCacheConfig", cache),
        ("dynamic with options of HTTP", dynamic_http2, &[], sidecar(), options, checked),
        ("dynamic balances nothing", dynamic.clone(), &[], sidecar(), "/lbPolicy", json!("CLUSTER_PROVIDED")),
    ];
    for (case, service, endpoints, audience, path, expected) in rows {
        let world = World::new().service(&service).endpoints(&service, endpoints);
        expect(case, compile(&world, &audience).values().next().expect(case), path, &expected);
    }
    assert!(compile(&World::new().service(&entry(Dns)), &sidecar()).is_empty(), "Envoy refuses a DNS cluster without names");
    let alias = Service { resolution: Resolution::Alias, alias: Some(HOST.into()), ..entry(Dns) };
    assert!(compile(&World::new().service(&alias), &sidecar()).is_empty(), "an alias has no cluster of its own");
}

#[test]
fn subsets_follow_their_port() {
    let rule = DestinationRule {
        subsets: vec![subset("v1", Some(policy(balanced(Algorithm::Random)))), subset("v2", None)],
        ..rule("app", "cart", HOST)
    };
    let world = world(&cart(Protocol::Http)).rule(rule);
    let mesh = Mesh::new(world.view());
    let audience = sidecar();
    let resources = outbound(&mesh, &scope_of(&mesh, &audience), &audience, &cart(Protocol::Http).key);
    let names: Vec<&str> = resources.iter().map(|resource| &**resource.name()).collect();
    let v1 = "outbound|80|v1|cart.app.svc.cluster.local";
    assert_eq!(names, [CLUSTER, v1, "outbound|80|v2|cart.app.svc.cluster.local"]);
    for resource in &resources {
        assert_eq!(resource.needs().assignments, BTreeSet::from([resource.name().clone()]));
    }
    let clusters = by_name(resources);
    let rows = [
        ("its own policy", "/lbPolicy", json!("RANDOM")),
        ("its name", "/metadata/filterMetadata/istio/subset", json!("v1")),
        ("its SNI", "@marked/sni", json!("outbound_.80_.v1_.cart.app.svc.cluster.local")),
    ];
    for (case, path, expected) in rows {
        expect(case, &clusters[v1], path, &expected);
    }
}

#[test]
fn a_scope_limits_ports() {
    let cart = service(HOST, &[(80, Protocol::Http), (81, Protocol::Http)]);
    let world = world(&cart);
    let mesh = Mesh::new(world.view());
    let audience = sidecar();
    let mut scope = scope_of(&mesh, &audience);
    scope.services.get_mut(&cart.key.host).expect("it is visible").ports = Some(vec![81]);
    let clusters = by_name(outbound(&mesh, &scope, &audience, &cart.key));
    assert_eq!(clusters.keys().collect::<Vec<_>>(), ["outbound|81||cart.app.svc.cluster.local"]);
}

#[test]
fn roles_have_their_fixed_clusters() {
    let world = World::new();
    let mesh = Mesh::new(world.view());
    let of = |audience: &OutboundAudience| by_name(fixed(&mesh, &scope_of(&mesh, audience), audience));
    let sidecars = of(&sidecar());
    assert_eq!(sidecars.keys().collect::<Vec<_>>(), ["BlackHoleCluster", "PassthroughCluster"]);
    assert_eq!(of(&router()).keys().collect::<Vec<_>>(), ["BlackHoleCluster"]);
    assert!(of(&OutboundAudience { role: ProxyRole::Grpc, ..sidecar() }).is_empty());
    let downstream = json!({"httpProtocolOptions": {}, "http2ProtocolOptions": {}});
    let rows = [
        ("/type", json!("ORIGINAL_DST")),
        ("/lbPolicy", json!("CLUSTER_PROVIDED")),
        ("@http/commonHttpProtocolOptions/idleTimeout", json!("300s")),
        ("@http/useDownstreamProtocolConfig", downstream),
    ];
    for (path, expected) in rows {
        expect("passthrough", &sidecars["PassthroughCluster"], path, &expected);
    }
}

#[test]
fn libraries_get_what_they_know() {
    let library = OutboundAudience { role: ProxyRole::Grpc, has_identity: false, ..sidecar() };
    let ads = json!({"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"});
    let expected = json!({
        "name": CLUSTER,
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": ads, "serviceName": CLUSTER},
    });
    assert_eq!(under(Protocol::Grpc, balanced(Algorithm::Random), &library), expected);
}

#[test]
fn gateways_that_pass_tls_through_have_a_cluster_for_each_server_name() {
    let tls = server_tls(ServerTlsMode::AutoPassthrough);
    let server = Server {
        index: 0,
        name: None,
        port: 15443,
        port_name: "tls".into(),
        protocol: Protocol::Tls,
        bind: None,
        hosts: Vec::new(),
        tls: Some(tls),
    };
    let meta = meta(Kind::Gateway, "app", "edge");
    let edge = Gateway { meta, selector: Labels::new(), services: None, servers: vec![server] };
    let selected = |gateways| GatewayAudience { gateways, ..GatewayAudience::default() };
    let with_edge = selected(vec![edge.meta.key.clone()]);
    let world = world(&cart(Protocol::Grpc))
        .service(&external("a.org", Resolution::ClientSide, &[(80, Protocol::Http)]))
        .rule(DestinationRule { subsets: vec![subset("v1", None)], ..rule("app", "cart", HOST) })
        .build(|builder| builder.set_gateway(edge));
    let mesh = Mesh::new(world.view());
    let audience = router();
    let scope = scope_of(&mesh, &audience);
    let clusters = by_name(gateway(&mesh, &scope, &audience, &with_edge));
    let names =
        ["outbound_.80_._.cart.app.svc.cluster.local", "outbound_.80_.v1_.cart.app.svc.cluster.local"];
    assert_eq!(clusters.keys().collect::<Vec<_>>(), names, "and none for hosts outside the mesh");
    for cluster in clusters.values() {
        expect("TLS is not touched", cluster, "/transportSocketMatches", &Value::Null);
        expect("nor what is inside", cluster, "@http", &Value::Null);
    }
    assert!(gateway(&mesh, &scope, &audience, &selected(Vec::new())).is_empty());
}

#[test]
fn unknown_hosts_have_a_cluster_that_resolves_them() {
    let policy = OutboundTrafficPolicy { mode: OutboundMode::AllowAnyDynamicDns, egress_proxy: None };
    let fixed = |world: &World, audience: &OutboundAudience| {
        let mesh = Mesh::new(world.view());
        by_name(fixed(&mesh, &scope_of(&mesh, audience), audience))
    };
    let name = "AllowAnyDynamicDNSCluster";
    let cache = "/clusterType/typedConfig/dnsCacheConfig";
    let open = World::new().config(|config| config.outbound_traffic_policy = policy.clone());
    let mut asks = sidecar();
    asks.switches.dns_proxy = Some(([127, 0, 0, 1], 15053).into());
    let clusters = fixed(&open, &sidecar());
    expect("open", &clusters[name], &format!("{cache}/name"), &json!("allow_any_dfp_dns_cache"));
    expect("open", &clusters[name], &format!("{cache}/typedDnsResolverConfig"), &json!(null));
    expect("open", &clusters[name], "@http/commonHttpProtocolOptions/idleTimeout", &json!("300s"));
    expect("open", &clusters[name], "/transportSocket", &json!(null));
    let resolver = format!("{cache}/typedDnsResolverConfig/typedConfig/resolvers/0/socketAddress");
    let resolver = |field: &str| format!("{resolver}/{field}");
    expect("captured", &fixed(&open, &asks)[name], &resolver("portValue"), &json!(15053));

    let encrypted = World::new().config(|config| {
        config.outbound_traffic_policy = policy.clone();
        config.dynamic_dns_tls = Some(client_tls(ClientTlsMode::Simple));
    });
    let cluster = &fixed(&encrypted, &sidecar())[name];
    expect("tls", cluster, "/transportSocket/name", &json!("envoy.transport_sockets.tls"));
    expect("tls", cluster, "@http/upstreamHttpProtocolOptions/autoSni", &json!(true));
    expect("tls", cluster, "@http/upstreamHttpProtocolOptions/autoSanValidation", &json!(true));

    assert!(!fixed(&World::new(), &sidecar()).contains_key(name), "only where the policy says so");
    assert!(!fixed(&open, &router()).contains_key(name), "a gateway has no unknown destinations");
}
