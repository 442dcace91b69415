//! What sidecars are sent for the hosts of requests.

use crate::route::fixture::{World, destination, host, hosts, line, port, routes, rule, under, when};
use model::service::{Resolution, Vip};
use model::sidecar::{
    CaptureMode, EgressHost, EgressListener, EgressNamespace, OutboundMode, OutboundTrafficPolicy,
    SidecarPort,
};
use model::virtual_service::{GatewayRef, HttpMatch};
use model::{ExportTo, Hostname, Labels, Namespace, Protocol};
use std::time::Duration;

const CART: &str = "cart.shop.svc.cluster.local:80";

#[test]
fn services_answer_to_all_their_names() {
    let world = World::new()
        .service("shop/cart", "80/http 90/http")
        .service("infra/mail", "80/http")
        .service("shop/db", "80/tcp")
        .service("shop/other", "81/http")
        .external("shop", "*.wiki.test", "80/http");
    let got = world.outbound("shop", "80").unwrap();
    assert_eq!(
        hosts(&got),
        [
            "*.wiki.test:80 = *.wiki.test *.wiki.test.",
            "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local cart.shop.svc.cluster.local. cart \
             cart.shop.svc cart.shop 10.0.0.1",
            "mail.infra.svc.cluster.local:80 = mail.infra.svc.cluster.local mail.infra.svc.cluster.local. \
             mail.infra.svc mail.infra 10.0.0.2",
            "allow_any = *",
        ]
    );
    assert_eq!(routes(&got, CART), ["/* -> 80||cart.shop"]);
    assert_eq!(routes(&got, "allow_any"), ["/* -> PassthroughCluster"]);
    assert!(got.ignore_port_in_host_matching);
    assert!(got.virtual_hosts.iter().all(|host| host.include_request_attempt_count));
    assert_eq!(got.validate_clusters.map(|value| value.value), Some(false));
    assert_eq!(got.max_direct_response_body_size_bytes.map(|value| value.value), Some(1 << 20));
}

#[test]
fn headless_services_answer_for_their_pods() {
    let world = World::new().service_with("shop/db", "80/http", |service| {
        service.resolution = Resolution::Passthrough;
        service.vips.clear();
    });
    let got = world.outbound("infra", "80").unwrap();
    assert_eq!(
        host(&got, "db.shop.svc.cluster.local:80").domains,
        [
            "db.shop.svc.cluster.local",
            "db.shop.svc.cluster.local.",
            "db.shop.svc",
            "db.shop",
            "*.db.shop.svc.cluster.local",
            "*.db.shop.svc.cluster.local.",
            "*.db.shop.svc",
            "*.db.shop"
        ]
    );
}

#[test]
fn aliases_answer_through_what_they_stand_for() {
    let alias = |to: &'static str| {
        move |service: &mut model::Service| {
            service.resolution = Resolution::Alias;
            service.alias = Some(Hostname::new(to));
            service.vips.clear();
        }
    };
    let world = World::new()
        .service("shop/cart", "80/http")
        .service_with("infra/basket", "80/http", alias("cart.shop.svc.cluster.local"))
        .service_with("infra/trolley", "80/http", alias("basket.infra.svc.cluster.local"))
        .service_with("infra/ruled", "80/http", alias("cart.shop.svc.cluster.local"))
        .rules(
            "infra/ruled",
            &["ruled.infra.svc.cluster.local"],
            vec![rule("ruled.infra.svc.cluster.local")],
            |_| {},
        );
    let got = world.outbound("other", "80").unwrap();
    assert_eq!(
        hosts(&got),
        [
            "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local cart.shop.svc.cluster.local. \
             cart.shop.svc cart.shop basket.infra.svc.cluster.local basket.infra.svc.cluster.local. \
             basket.infra.svc basket.infra trolley.infra.svc.cluster.local \
             trolley.infra.svc.cluster.local. trolley.infra.svc trolley.infra 10.0.0.1",
            "ruled.infra.svc.cluster.local:80 = ruled.infra.svc.cluster.local \
             ruled.infra.svc.cluster.local. ruled.infra.svc ruled.infra",
            "allow_any = *",
        ]
    );
    assert_eq!(routes(&got, "ruled.infra.svc.cluster.local:80"), ["/* -> 80||cart.shop"]);
}

#[test]
fn of_services_with_one_host_the_clients_own_wins_then_the_oldest() {
    let entry = |address: [u8; 4]| {
        move |service: &mut model::Service| {
            service.key.host = Hostname::new("geo.test");
            service.registry = model::service::Registry::External;
            service.vips = vec![Vip::Ip(address.into())];
        }
    };
    let world = World::new().service_with("shop/old", "80/http", entry([172, 16, 0, 1])).service_with(
        "infra/new",
        "80/http",
        entry([172, 16, 0, 2]),
    );
    for (namespace, address) in [("shop", "172.16.0.1"), ("infra", "172.16.0.2"), ("other", "172.16.0.1")] {
        let got = world.outbound(namespace, "80").unwrap();
        assert_eq!(host(&got, "geo.test:80").domains, ["geo.test", "geo.test.", address], "{namespace}");
    }
}

#[test]
fn rules_replace_the_default_route_of_their_services() {
    let world = World::new().service("shop/cart", "80/http").service("shop/mail", "80/http 90/http").rules(
        "shop/cart",
        &["cart.shop.svc.cluster.local"],
        vec![when(vec![under("/mail")], rule("mail")), rule("cart|v1")],
        |_| {},
    );
    let got = world.outbound("shop", "80").unwrap();
    assert_eq!(routes(&got, CART), ["/mail* -> 80||mail.shop", "/* -> 80|v1|cart.shop"]);
    assert_eq!(routes(&got, "mail.shop.svc.cluster.local:80"), ["/* -> 80||mail.shop"]);
}

#[test]
fn a_destination_without_port_gets_the_listeners_even_if_it_has_another_one_only() {
    let world = World::new().service("shop/cart", "80/http").service("shop/mail", "90/http").rules(
        "shop/cart",
        &["cart.shop.svc.cluster.local"],
        vec![when(vec![under("/a")], rule("mail||90")), rule("mail")],
        |_| {},
    );
    let got = world.outbound("shop", "80").unwrap();
    assert_eq!(routes(&got, CART), ["/a* -> 90||mail.shop", "/* -> 80||mail.shop"]);
}

#[test]
fn unknown_hosts_are_served_on_port_80_and_beside_known_ones() {
    let world = World::new()
        .service("shop/cart", "90/http")
        .rules("shop/out", &["www.example.com"], vec![rule("cart||90")], |_| {})
        .rules(
            "shop/both",
            &["api.example.com", "cart.shop.svc.cluster.local"],
            vec![rule("cart||90")],
            |_| {},
        );
    assert_eq!(
        hosts(&world.outbound("shop", "80").unwrap()),
        [
            "api.example.com:80 = api.example.com",
            "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local",
            "www.example.com:80 = www.example.com",
            "allow_any = *",
        ]
    );
    let names: Vec<String> =
        world.outbound("shop", "90").unwrap().virtual_hosts.into_iter().map(|host| host.name).collect();
    assert_eq!(names, ["api.example.com:90", "cart.shop.svc.cluster.local:90", "allow_any"]);
    let other = world.outbound("shop", "91").unwrap();
    assert_eq!(hosts(&other), ["allow_any = *"]);
}

#[test]
fn the_oldest_rules_of_a_host_win_unless_none_applies() {
    let client = |key: &str| {
        let source_labels: Labels = [("app", key)].into_iter().collect();
        HttpMatch { source_labels, ..HttpMatch::default() }
    };
    let cart = ["cart.shop.svc.cluster.local"];
    let world = World::new()
        .service("shop/cart", "80/http 90/http")
        .rules("shop/a", &cart, vec![when(vec![client("x")], rule("cart|a"))], |_| {})
        .rules(
            "shop/b",
            &cart,
            vec![when(vec![HttpMatch { port: Some(80), ..HttpMatch::default() }], rule("cart|b"))],
            |_| {},
        );
    let get = |sources: &[&str], name: &str, host: &str| {
        let got = world
            .outbound_for("shop", name, |audience| {
                audience.sources = sources.iter().map(|app| [("app", *app)].into_iter().collect()).collect();
            })
            .unwrap();
        routes(&got, host)
    };
    assert_eq!(get(&["x"], "80", CART), ["/* -> 80|a|cart.shop"]);
    assert_eq!(get(&[], "80", CART), ["/* -> 80|b|cart.shop"]);
    assert_eq!(get(&[], "90", "cart.shop.svc.cluster.local:90"), ["/* -> 90||cart.shop"]);
}

#[test]
fn of_wildcards_the_most_specific_wins_for_each_service() {
    let world = World::new()
        .external("shop", "a.b.test", "80/http")
        .external("infra", "c.test", "80/http")
        .rules("shop/wide", &["*.test"], vec![rule("wide")], |_| {})
        .rules("shop/narrow", &["*.b.test"], vec![rule("narrow")], |_| {})
        .rules("shop/unknown", &["*.example"], vec![rule("unknown")], |_| {});
    let got = world.outbound("shop", "80").unwrap();
    assert_eq!(routes(&got, "a.b.test:80"), ["/* -> 80||narrow.shop"]);
    assert_eq!(routes(&got, "c.test:80"), ["/* -> 80||wide.shop"]);
    assert_eq!(host(&got, "*.example:80").domains, ["*.example"]);
    assert_eq!(got.virtual_hosts.len(), 4);
}

#[test]
fn an_address_as_host_takes_the_address_of_a_service() {
    let world = World::new().service("shop/cart", "80/http").rules(
        "shop/ip",
        &["10.0.0.1"],
        vec![rule("cart")],
        |_| {},
    );
    let got = world.outbound("infra", "80").unwrap();
    assert_eq!(host(&got, "10.0.0.1:80").domains, ["10.0.0.1"]);
    assert!(!host(&got, CART).domains.contains(&"10.0.0.1".to_owned()));
}

#[test]
fn a_sniffed_service_has_a_configuration_of_its_own() {
    let world = World::new().service("shop/cart", "70/").service("shop/mail", "70/").rules(
        "shop/cart",
        &["cart.shop.svc.cluster.local", "www.example.com"],
        vec![rule("cart|v1")],
        |_| {},
    );
    let got = world.outbound("shop", "cart.shop.svc.cluster.local:70").unwrap();
    assert_eq!(hosts(&got), ["cart.shop.svc.cluster.local:70 = *"]);
    assert_eq!(routes(&got, "cart.shop.svc.cluster.local:70"), ["/* -> 70|v1|cart.shop"]);
    let mail = world.outbound("shop", "mail.shop.svc.cluster.local:70").unwrap();
    assert_eq!(hosts(&mail), ["mail.shop.svc.cluster.local:70 = *"]);
    assert!(world.outbound("shop", "gone.shop.svc.cluster.local:70").is_none());
    assert!(world.outbound("shop", "cart.shop.svc.cluster.local:71").is_none());
    assert!(world.outbound("shop", "nonsense").is_none());
}

fn egress(port: Option<(u16, Protocol)>, bind: Option<&str>, host: &str) -> EgressListener {
    EgressListener {
        port: port.map(|(number, protocol)| SidecarPort { number, protocol, name: "x".into() }),
        bind: bind.map(Into::into),
        capture_mode: CaptureMode::Default,
        hosts: vec![EgressHost { namespace: EgressNamespace::Any, host: Hostname::new(host) }],
    }
}

#[test]
fn each_egress_listener_has_its_own_services() {
    let world = World::new()
        .service("shop/cart", "80/http 90/http")
        .service("shop/mail", "80/http 90/http")
        .sidecar("shop/default", |sidecar| {
            sidecar.egress = vec![
                egress(Some((80, Protocol::Http)), None, "cart.shop.svc.cluster.local"),
                egress(Some((0, Protocol::Http)), Some("unix:///x"), "*"),
                egress(Some((3128, Protocol::HttpProxy)), None, "mail.shop.svc.cluster.local"),
                egress(None, None, "mail.shop.svc.cluster.local"),
            ];
        });
    let names = |name: &str| {
        let got = world.outbound("shop", name).unwrap();
        got.virtual_hosts.into_iter().map(|host| host.name).collect::<Vec<_>>()
    };
    assert_eq!(names("80"), [CART, "allow_any"]);
    assert_eq!(names("90"), ["mail.shop.svc.cluster.local:90", "allow_any"]);
    assert_eq!(
        names("unix:///x"),
        [
            CART,
            "cart.shop.svc.cluster.local:90",
            "mail.shop.svc.cluster.local:80",
            "mail.shop.svc.cluster.local:90",
            "allow_any"
        ]
    );
    assert_eq!(
        names("3128"),
        ["mail.shop.svc.cluster.local:80", "mail.shop.svc.cluster.local:90", "allow_any"]
    );
    let socket = world.outbound("shop", "unix:///x").unwrap();
    assert!(!socket.ignore_port_in_host_matching);
    assert_eq!(host(&socket, "cart.shop.svc.cluster.local:90").domains[0], "cart.shop.svc.cluster.local:90");
}

#[test]
fn the_explicit_proxy_serves_every_port() {
    let world = World::new().service("shop/cart", "80/http 90/http").rules(
        "shop/cart",
        &["cart.shop.svc.cluster.local"],
        vec![rule("cart|v1")],
        |_| {},
    );
    let got = world.outbound("infra", "http_proxy").unwrap();
    assert_eq!(
        hosts(&got),
        [
            "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local \
             cart.shop.svc.cluster.local:80 cart.shop.svc.cluster.local. \
             cart.shop.svc.cluster.local.:80 cart.shop.svc cart.shop.svc:80 cart.shop cart.shop:80 \
             10.0.0.1 10.0.0.1:80",
            "cart.shop.svc.cluster.local:90 = cart.shop.svc.cluster.local:90 \
             cart.shop.svc.cluster.local.:90 cart.shop.svc:90 cart.shop:90 10.0.0.1:90",
            "allow_any = *",
        ]
    );
    assert_eq!(routes(&got, "cart.shop.svc.cluster.local:90"), ["/* -> 90|v1|cart.shop"]);
}

#[test]
fn unknown_destinations_follow_the_policy() {
    let policy = |mode, egress_proxy| OutboundTrafficPolicy { mode, egress_proxy };
    let cases = [
        (policy(OutboundMode::AllowAny, None), "allow_any", "/* -> PassthroughCluster"),
        (
            policy(OutboundMode::AllowAny, Some(destination("proxy|v1|3128"))),
            "allow_any",
            "/* -> 3128|v1|proxy.shop",
        ),
        (policy(OutboundMode::RegistryOnly, None), "block_all", "/* -> 502"),
        (
            policy(OutboundMode::AllowAnyDynamicDns, None),
            "allow_any_dynamic_dns",
            "/* -> AllowAnyDynamicDNSCluster",
        ),
    ];
    for (policy, name, route) in cases {
        let world = World::new().config(|config| config.outbound_traffic_policy = policy);
        let got = world.outbound("shop", "80").unwrap();
        assert_eq!(hosts(&got), [format!("{name} = *")]);
        assert_eq!(line(&got.virtual_hosts[0].routes[0]), route);
        assert_eq!(got.virtual_hosts[0].routes[0].name, name);
    }
}

#[test]
fn rules_apply_to_whom_they_are_exported_and_where_they_are_bound() {
    let cart = ["cart.shop.svc.cluster.local"];
    let world = World::new()
        .service("shop/cart", "80/http")
        .rules("shop/edge", &cart, vec![rule("cart|edge")], |rules| {
            rules.gateways = vec![GatewayRef::Gateway(Namespace::new("edge"), "public".into())];
        })
        .rules("shop/all", &cart, vec![rule("cart|all")], |_| {})
        .rules("shop/own", &cart, vec![rule("cart|own")], |rules| {
            rules.export_to = ExportTo::Namespaces([Namespace::new("shop")].into());
        });
    let get = |namespace| routes(&world.outbound(namespace, "80").unwrap(), CART);
    assert_eq!(get("infra"), ["/* -> 80|all|cart.shop"]);
    assert_eq!(get("shop"), ["/* -> 80|own|cart.shop"]);
}

#[test]
fn timeouts_and_retries_have_defaults() {
    let world = World::new().service("shop/cart", "80/http");
    let got = world.outbound("shop", "80").unwrap();
    let Some(super::Action::Route(action)) = &host(&got, CART).routes[0].action else { panic!() };
    assert_eq!(action.timeout, Some(Duration::ZERO.into()));
    let retries = action.retry_policy.as_ref().unwrap();
    assert_eq!(retries.num_retries.map(|value| value.value), Some(2));
    assert_eq!(
        retries.retry_on,
        "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    );
    assert!(retries.retriable_status_codes.is_empty());
    assert_eq!(retries.retry_host_predicate.len(), 1);
    assert_eq!(retries.host_selection_retry_max_attempts, 5);
    assert_eq!(port("80/http").protocol, Protocol::Http);
}
