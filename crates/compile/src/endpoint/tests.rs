//! Each row is a client and its endpoints, and the groups that these come in.

use super::*;
use crate::fixtures::{
    World, endpoint, json, peer_authentication, policy, rule, scope_of, service, sidecar, subset,
};
use model::PeerAuthentication;
use model::destination_rule::{
    ClientTls, DestinationRule, Distribute, LoadBalancer, LocalityLb, OutlierDetection, PortPolicy,
};
use model::labels::topology;
use model::service::TrafficDistribution;
use serde_json::Value;

const HOST: &str = "cart.app.svc.cluster.local";
const CLUSTER: &str = "outbound|80||cart.app.svc.cluster.local";

fn cart() -> Service {
    service(HOST, &[(80, model::Protocol::Http)])
}

fn at(ip: &str, locality: &str) -> Endpoint {
    let locality = Locality::parse(locality);
    let labels = [(topology::REGION, &locality.region), (topology::ZONE, &locality.zone)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name, value.clone()))
        .collect();
    Endpoint { labels, locality, ..endpoint(ip, 80) }
}

fn client_at(locality: &str) -> OutboundAudience {
    let locality = Locality::parse(locality);
    let failover_labels = [(topology::REGION, &locality.region), (topology::ZONE, &locality.zone)]
        .into_iter()
        .map(|(name, value)| (name, value.clone()))
        .collect();
    OutboundAudience { locality, failover_labels, ..sidecar() }
}

/// Returns one line a group: `region/zone p<priority> w<weight>: addresses`, where `!` marks unready endpoints and
/// `*` those that take mutual TLS.
fn lines(world: &World, audience: &OutboundAudience, cluster: &str) -> Vec<String> {
    let mesh = Mesh::new(world.view());
    let scope = scope_of(&mesh, audience);
    let key = select(&mesh, &scope, audience, cluster).expect("the cluster has an assignment");
    let message = json(&assignment(&mesh, &key));
    assert_eq!(message["clusterName"], cluster);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    message["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|group| {
            let members = group["lbEndpoints"].as_array().into_iter().flatten().map(|member| {
                let address = text(&member["endpoint"]["address"]["socketAddress"]["address"]);
                let unready = if member["healthStatus"] == "UNHEALTHY" { "!" } else { "" };
                let mark = &member["metadata"]["filterMetadata"]["envoy.transport_socket_match"]["tlsMode"];
                let mark = if mark == "istio" { "*" } else { "" };
                format!(" {address}{unready}{mark}")
            });
            let place = [&group["locality"]["region"], &group["locality"]["zone"]].map(text).join("/");
            let priority = group["priority"].as_u64().unwrap_or_default();
            let weight = group["loadBalancingWeight"].as_u64().unwrap_or_default();
            format!("{place} p{priority} w{weight}:{}", members.collect::<String>())
        })
        .collect()
}

fn locality_rule(locality: LocalityLb, ejects: bool) -> DestinationRule {
    DestinationRule {
        policy: Some(policy(PortPolicy {
            load_balancer: Some(LoadBalancer { locality: Some(locality), ..LoadBalancer::default() }),
            outlier_detection: ejects.then(OutlierDetection::default),
            ..PortPolicy::default()
        })),
        ..rule("app", "cart", HOST)
    }
}

#[test]
fn localities_are_weighed_and_ranked() {
    let three = [at("10.0.0.1", "west/a"), at("10.0.0.2", "west/b"), at("10.0.0.3", "east/a")];
    let plain = ["east/a p0 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"];
    let region_first = ["east/a p2 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p1 w1: 10.0.0.2*"];
    let shares = |to: &[(&str, u32)]| LocalityLb {
        distribute: vec![Distribute {
            from: "west/*".into(),
            to: to.iter().map(|&(pattern, share)| (pattern.into(), share)).collect(),
        }],
        ..LocalityLb::default()
    };
    let failover = LocalityLb { failover: vec![("west".into(), "north".into())], ..LocalityLb::default() };
    let by_labels = |labels: &[&str]| LocalityLb {
        failover_priority: labels.iter().map(|&label| label.into()).collect(),
        ..LocalityLb::default()
    };
    let off = LocalityLb { enabled: Some(false), ..failover.clone() };
    type Row<'a> = (&'a str, Option<(LocalityLb, bool)>, &'a str, &'a [&'a str]);
    let cases: &[Row<'_>] = &[
        ("no rule", None, "west/a", &plain),
        ("closeness without ejection does nothing", Some((LocalityLb::default(), false)), "west/a", &plain),
        ("closeness", Some((LocalityLb::default(), true)), "west/a", &region_first),
        ("switched off", Some((off, true)), "west/a", &plain),
        (
            "the named region is preferred to others",
            Some((failover.clone(), true)),
            "west/b",
            &["east/a p2 w1: 10.0.0.3*", "west/a p1 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"],
        ),
        (
            "shares, rounded up; others stay without endpoints",
            Some((shares(&[("west/*", 75)]), false)),
            "west/a",
            &["east/a p0 w1:", "west/a p0 w38: 10.0.0.1*", "west/b p0 w38: 10.0.0.2*"],
        ),
        ("shares of another client", Some((shares(&[("west/*", 75)]), false)), "north/a", &plain),
        (
            "labels",
            Some((by_labels(&[topology::REGION, topology::ZONE]), true)),
            "east/b",
            &["east/a p0 w1: 10.0.0.3*", "west/a p1 w1: 10.0.0.1*", "west/b p1 w1: 10.0.0.2*"],
        ),
        (
            "a label with a value is not compared with the client's",
            Some((by_labels(&["topology.kubernetes.io/zone=b"]), true)),
            "west/a",
            &["east/a p1 w1: 10.0.0.3*", "west/a p1 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"],
        ),
    ];
    for (case, given, client, expected) in cases {
        let cart = cart();
        let mut world = World::new().service(&cart).endpoints(&cart, &three);
        if let Some((locality, ejects)) = given {
            world = world.rule(locality_rule(locality.clone(), *ejects));
        }
        assert_eq!(lines(&world, &client_at(client), CLUSTER), *expected, "{case}");
    }
}

#[test]
fn traffic_distribution_needs_no_ejection_and_yields_to_a_rule() {
    let near = Service { traffic_distribution: TrafficDistribution::PreferSameZone, ..cart() };
    let three = [at("10.0.0.1", "west/a"), at("10.0.0.2", "west/b"), at("10.0.0.3", "east/a")];
    let world = World::new().service(&near).endpoints(&near, &three);
    let ranked = ["east/a p2 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p1 w1: 10.0.0.2*"];
    assert_eq!(lines(&world, &client_at("west/a"), CLUSTER), ranked);
    let world = world.rule(locality_rule(LocalityLb::default(), false));
    let even = ["east/a p0 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"];
    assert_eq!(lines(&world, &client_at("west/a"), CLUSTER), even);
}

#[test]
fn endpoints_are_chosen() {
    let cart = cart();
    let labelled = Endpoint { labels: [("version", "v1")].into_iter().collect(), ..endpoint("10.0.0.1", 80) };
    let all = [
        labelled,
        Endpoint { weight: Some(5), ..endpoint("10.0.0.2", 80) },
        Endpoint { health: Health::Unhealthy, ..endpoint("10.0.0.3", 80) },
        Endpoint { service_port: "other".into(), ..endpoint("10.0.0.4", 80) },
        Endpoint { network: "far".into(), node: Some("n1".into()), ..endpoint("10.0.0.5", 80) },
        Endpoint { address: Address::Dns("a.org".into()), ..endpoint("10.0.0.6", 80) },
    ];
    let strict = PortPolicy {
        outlier_detection: Some(OutlierDetection { min_health_percent: 10, ..OutlierDetection::default() }),
        ..PortPolicy::default()
    };
    let world = |service: &Service| {
        World::new().service(service).endpoints(service, &all).rule(DestinationRule {
            subsets: vec![
                subset("v1", None),
                model::destination_rule::Subset {
                    labels: Labels::new(),
                    ..subset("strict", Some(policy(strict.clone())))
                },
            ],
            ..rule("app", "cart", HOST)
        })
    };
    let local = Service { node_local: true, ..cart.clone() };
    let on = |node: Option<&str>| OutboundAudience { node: node.map(Into::into), ..sidecar() };
    let mut near = sidecar();
    near.switches.network_view.insert("far".into());
    let everything = ["/ p0 w8: 10.0.0.1* 10.0.0.2* 10.0.0.3!* 10.0.0.5*"];
    let cases: &[(&str, &Service, OutboundAudience, &str, &[&str])] = &[
        ("all of the port, unready ones included", &cart, sidecar(), "", &everything),
        ("a subset", &cart, sidecar(), "v1", &["/ p0 w1: 10.0.0.1*"]),
        (
            "a share of ready ones leaves others out",
            &cart,
            sidecar(),
            "strict",
            &["/ p0 w7: 10.0.0.1* 10.0.0.2* 10.0.0.5*"],
        ),
        ("a network", &cart, near, "", &["/ p0 w1: 10.0.0.5*"]),
        ("the client's node", &local, on(Some("n1")), "", &["/ p0 w1: 10.0.0.5*"]),
        ("a client that does not say where it is", &local, on(None), "", &[]),
    ];
    for (case, service, audience, subset, expected) in cases {
        let cluster = format!("outbound|80|{subset}|{HOST}");
        assert_eq!(lines(&world(service), audience, &cluster), *expected, "{case}");
    }
}

#[test]
fn marks_follow_labels_policies_and_rules() {
    let cart = cart();
    let both = [endpoint("10.0.0.1", 80), Endpoint { mtls: false, ..endpoint("10.0.0.2", 80) }];
    let tls = |mode| {
        let tls = ClientTls {
            mode,
            client_certificate: None,
            private_key: None,
            ca_certificates: None,
            credential_name: None,
            subject_alt_names: Vec::new(),
            sni: None,
            insecure_skip_verify: None,
            ca_crl: None,
        };
        DestinationRule {
            policy: Some(policy(PortPolicy { tls: Some(tls), ..PortPolicy::default() })),
            ..rule("app", "cart", HOST)
        }
    };
    let world = || World::new().service(&cart).endpoints(&cart, &both);
    let disable = peer_authentication("istio-system", MtlsMode::Disable);
    let by_port = PeerAuthentication {
        selector: Some(Labels::new()),
        mode: None,
        port_level: [(80, Some(MtlsMode::Disable))].into_iter().collect(),
        ..peer_authentication("app", MtlsMode::Strict)
    };
    let cases = [
        ("capable", world(), "/ p0 w2: 10.0.0.1* 10.0.0.2"),
        ("mesh says no", world().peer_authentication(disable.clone()), "/ p0 w2: 10.0.0.1 10.0.0.2"),
        (
            "namespace says yes",
            world()
                .peer_authentication(disable)
                .peer_authentication(peer_authentication("app", MtlsMode::Strict)),
            "/ p0 w2: 10.0.0.1* 10.0.0.2",
        ),
        ("port says no", world().peer_authentication(by_port), "/ p0 w2: 10.0.0.1 10.0.0.2"),
        ("rule: ISTIO_MUTUAL", world().rule(tls(ClientTlsMode::IstioMutual)), "/ p0 w2: 10.0.0.1* 10.0.0.2"),
        ("rule: SIMPLE", world().rule(tls(ClientTlsMode::Simple)), "/ p0 w2: 10.0.0.1 10.0.0.2"),
    ];
    for (case, world, expected) in cases {
        assert_eq!(lines(&world, &sidecar(), CLUSTER), [expected], "{case}");
    }
}

#[test]
fn clients_that_differ_in_nothing_that_matters_share_a_key() {
    let cart = cart();
    let world = World::new().service(&cart).endpoints(&cart, &[endpoint("10.0.0.1", 80)]);
    let mesh = Mesh::new(world.view());
    let key =
        |audience: &OutboundAudience| select(&mesh, &scope_of(&mesh, audience), audience, CLUSTER).unwrap();
    let east = OutboundAudience { has_identity: false, ..client_at("east/a") };
    assert_eq!(key(&client_at("west/a")), key(&east));
}

#[test]
fn an_assignment_reads_its_service_and_the_policies_only() {
    let cart = cart();
    let world = World::new().service(&cart).endpoints(&cart, &[endpoint("10.0.0.1", 80)]);
    let mesh = Mesh::new(world.view());
    let audience = sidecar();
    let key = select(&mesh, &scope_of(&mesh, &audience), &audience, CLUSTER).unwrap();
    let mesh = Mesh::new(world.view());
    assignment(&mesh, &key);
    let expected = BTreeSet::from([
        model::Key::Endpoints(cart.key.clone()),
        model::Key::MeshConfig,
        model::Key::PeerAuthentications("app".into()),
        model::Key::PeerAuthentications("istio-system".into()),
    ]);
    assert_eq!(mesh.into_reads(), expected);
}

#[test]
fn names_without_an_assignment_have_no_key() {
    let cart = cart();
    let named =
        crate::fixtures::external("a.org", model::service::Resolution::Dns, &[(80, model::Protocol::Http)]);
    let world = World::new().service(&cart).service(&named);
    let mesh = Mesh::new(world.view());
    let audience = sidecar();
    let scope = scope_of(&mesh, &audience);
    for name in [
        "outbound|81||cart.app.svc.cluster.local",
        "outbound|80|v9|cart.app.svc.cluster.local",
        "outbound|80||a.org",
        "outbound|80||x",
        "inbound|80||",
    ] {
        assert_eq!(select(&mesh, &scope, &audience, name), None, "{name}");
    }
}

#[test]
fn workloads_are_named_by_their_canonical_service() {
    let labels = |labels: &[(&'static str, &'static str)]| labels.iter().copied().collect::<Labels>();
    let cases = [
        (labels(&[]), "cart-1;app;cart-1;;Kubernetes"),
        (labels(&[("app", "cart"), ("version", "v1")]), "cart-1;app;cart;v1;Kubernetes"),
        (
            labels(&[("app.kubernetes.io/name", "c"), ("app", "cart"), ("version", "latest")]),
            "cart-1;app;c;;Kubernetes",
        ),
    ];
    for (labels, expected) in cases {
        assert_eq!(workload_text(&Endpoint { labels, ..endpoint("10.0.0.1", 80) }), expected);
    }
}
