use super::*;
use crate::audience::{IpFamilies, OutboundAudience};
use crate::fixtures::{World, endpoint, external, policy, rule, scope_of, service, sidecar};
use crate::listener::{fixed, outbound, outbound_plan};
use model::destination_rule::{
    Algorithm, ConnectionPool, ConsistentHash, HashKey, HashRing, LoadBalancer, PortPolicy, TcpPool, Tunnel,
};
use model::proxy::Interception;
use model::service::Resolution;
use model::sidecar::{
    CaptureMode, EgressHost, EgressListener, EgressNamespace, OutboundMode, OutboundTrafficPolicy,
    SidecarPort,
};
use model::{Key, Mesh, ObjectKey, Protocol, Sidecar};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use std::time::Duration;

fn listeners(world: &World, audience: &OutboundAudience) -> Vec<Resource> {
    let mesh = Mesh::new(world.view());
    let scope = scope_of(&mesh, audience);
    let plan = outbound_plan(&mesh, &scope, audience);
    plan.iter().filter_map(|key| outbound(&mesh, &scope, audience, key)).collect()
}

fn given(services: &[Service]) -> World {
    services.iter().fold(World::new(), |world, service| world.service(service))
}

/// `created` settles who is older.
fn aged(created: i64, mut service: Service) -> Service {
    service.created = created;
    service
}

#[track_caller]
fn check(world: &World, audience: &OutboundAudience, expected: &str) {
    let actual = described(&listeners(world, audience));
    assert_eq!(actual.trim(), expected.trim());
}

#[test]
fn http_ports_share_a_listener_and_bytes_get_one_an_address() {
    let cart = service("cart.app.svc.cluster.local", &[(80, Protocol::Http), (81, Protocol::Tcp)]);
    let mail = service("mail.app.svc.cluster.local", &[(80, Protocol::Grpc), (82, Protocol::Unsupported)]);
    check(
        &given(&[cart, at(mail, &["10.96.0.2"])]),
        &sidecar(),
        "
0.0.0.0_80 0.0.0.0:80 [http_inspector]
  raw_buffer http/1.1,h2c > http 80
  * > PassthroughCluster
10.96.0.1_81 10.96.0.1:81 []
  - > outbound|81||cart.app.svc.cluster.local
10.96.0.2_82 10.96.0.2:82 [http_inspector]
  raw_buffer http/1.1,h2c > http mail.app.svc.cluster.local:82
  * > set_filter_state outbound|82||mail.app.svc.cluster.local",
    );
}

#[test]
fn declared_protocols_decide_what_is_in_front_of_bytes() {
    let ports = [(1, Protocol::Https), (2, Protocol::Mongo), (3, Protocol::Redis), (4, Protocol::Udp)];
    check(
        &given(&[service("db.app.svc.cluster.local", &ports)]),
        &sidecar(),
        "
10.96.0.1_1 10.96.0.1:1 []
  - > outbound|1||db.app.svc.cluster.local
10.96.0.1_2 10.96.0.1:2 []
  - > mongo_proxy outbound|2||db.app.svc.cluster.local
10.96.0.1_3 10.96.0.1:3 []
  - > outbound|3||db.app.svc.cluster.local",
    );
}

#[test]
fn services_without_an_address_share_the_wildcard_by_server_name() {
    let world = given(&[
        at(external("a.example.com", Resolution::Dns, &[(443, Protocol::Tls)]), &[]),
        at(external("b.example.com", Resolution::Passthrough, &[(443, Protocol::Https)]), &[]),
        at(external("*.c.example.com", Resolution::Passthrough, &[(443, Protocol::Tls)]), &[]),
        at(external("*-odd.example.com", Resolution::Passthrough, &[(443, Protocol::Tls)]), &[]),
    ]);
    check(
        &world,
        &sidecar(),
        "
0.0.0.0_443 0.0.0.0:443 [tls_inspector]
  sni=*.c.example.com > outbound|443||*.c.example.com
  sni=a.example.com > outbound|443||a.example.com
  sni=b.example.com > outbound|443||b.example.com
  * > PassthroughCluster",
    );
}

#[test]
fn older_services_win_and_different_protocols_share() {
    let wildcard =
        |created, host, protocol| aged(created, at(external(host, Resolution::Dns, &[(90, protocol)]), &[]));
    let cases: [(&[(&str, Protocol)], &str); 6] = [
        // Bytes over bytes: the first stays.
        (&[("a", Protocol::Tcp), ("b", Protocol::Tcp)], "[]\n  - > outbound|90||a"),
        (
            &[("a", Protocol::Tcp), ("b", Protocol::Http)],
            "[http_inspector]\n  raw_buffer http/1.1,h2c > http 90\n  * > outbound|90||a",
        ),
        (
            &[("a", Protocol::Http), ("b", Protocol::Tcp), ("c", Protocol::Tcp)],
            "[http_inspector]\n  raw_buffer http/1.1,h2c > http 90\n  * > outbound|90||b",
        ),
        (
            &[("a", Protocol::Tcp), ("b", Protocol::Unsupported)],
            "[http_inspector]\n  raw_buffer http/1.1,h2c > http 90\n  * > outbound|90||a",
        ),
        // A server that speaks first must not wait for an inspector.
        (&[("a", Protocol::Mongo), ("b", Protocol::Http)], "[]\n  - > mongo_proxy outbound|90||a"),
        (
            &[("a", Protocol::Http), ("b", Protocol::MySql)],
            "[http_inspector]\n  raw_buffer http/1.1,h2c > http 90\n  * > PassthroughCluster",
        ),
    ];
    for (services, expected) in cases {
        let services: Vec<Service> = (0..)
            .zip(services)
            .map(|(created, (host, protocol))| wildcard(created, *host, *protocol))
            .collect();
        check(&given(&services), &sidecar(), &format!("0.0.0.0_90 0.0.0.0:90 {expected}"));
    }
}

#[test]
fn ranges_are_matched_on_the_wildcard_and_single_addresses_bound() {
    let addresses = ["172.30.1.2/16", "172.30.0.0/16", "172.31.4.4/32", "172.31.5.5"];
    let plant = at(external("plant", Resolution::Passthrough, &[(1883, Protocol::Tcp)]), &addresses);
    check(
        &given(&[plant]),
        &sidecar(),
        "
0.0.0.0_1883 0.0.0.0:1883 []
  172.30.0.0/16 > outbound|1883||plant
  * > PassthroughCluster
172.31.4.4_1883 172.31.4.4:1883 []
  - > outbound|1883||plant
172.31.5.5_1883 172.31.5.5:1883 []
  - > outbound|1883||plant",
    );
}

#[test]
fn headless_services_have_a_listener_a_pod_but_for_the_proxy_itself() {
    let mut db = service("db.app.svc.cluster.local", &[(5432, Protocol::Tcp), (80, Protocol::Http)]);
    db.vips.clear();
    db.resolution = Resolution::Passthrough;
    let pods = [endpoint("10.1.0.1", 5432), endpoint("10.1.0.2", 5432), endpoint("10.1.0.1", 80)];
    let world = World::new().service(&db).endpoints(&db, &pods);
    let mut audience = sidecar();
    audience.own_headless.insert("10.1.0.2".parse().unwrap());
    check(
        &world,
        &audience,
        "
10.1.0.1_5432 10.1.0.1:5432 []
  - > outbound|5432||db.app.svc.cluster.local
0.0.0.0_80 0.0.0.0:80 [http_inspector]
  raw_buffer http/1.1,h2c > http 80
  * > PassthroughCluster",
    );
    // Without endpoints there is nothing to send bytes to.
    let alone = World::new().service(&db);
    check(
        &alone,
        &sidecar(),
        "
0.0.0.0_80 0.0.0.0:80 [http_inspector]
  raw_buffer http/1.1,h2c > http 80
  * > PassthroughCluster",
    );
}

#[test]
fn addresses_follow_the_families_of_the_proxy() {
    let cart = at(service("cart", &[(80, Protocol::Http), (81, Protocol::Tcp)]), &["10.96.0.1", "fd00::11"]);
    let cases = [
        ((true, false), "0.0.0.0_80 0.0.0.0:80", "10.96.0.1_81 10.96.0.1:81"),
        ((false, true), "::_80 :::80", "fd00::11_81 fd00::11:81"),
        ((true, true), "0.0.0.0_80 0.0.0.0:80+:::80", "10.96.0.1_81 10.96.0.1:81+fd00::11:81"),
    ];
    for ((v4, v6), http, tcp) in cases {
        let mut audience = sidecar();
        audience.families = IpFamilies { v4, v6 };
        let expected = format!(
            "{http} [http_inspector]\n  raw_buffer http/1.1,h2c > http 80\n  * > PassthroughCluster\n\
             {tcp} []\n  - > outbound|81||cart"
        );
        check(&given(std::slice::from_ref(&cart)), &audience, &expected);
    }
}

#[test]
fn listeners_keep_off_reserved_ports() {
    let ports =
        [(15021, Protocol::Tcp), (15001, Protocol::Http), (15006, Protocol::Tcp), (70, Protocol::Tcp)];
    let mut audience = sidecar();
    audience.switches.reserved_ports.insert(15021);
    let expected = "10.96.0.1_70 10.96.0.1:70 []\n  - > outbound|70||a";
    check(&given(&[service("a", &ports)]), &audience, expected);
}

#[test]
fn tls_rules_are_chains_by_server_name() {
    let vault = service("vault", &[(8200, Protocol::Tls)]);
    let mut vs = virtual_service("vault", &["vault"]);
    vs.tls = vec![
        tls_rule(&["vault"], |m| m.source_labels = label("team", "red"), &["red:1"]),
        tls_rule(&["vault"], |m| m.source_namespace = Some("qa".into()), &["qa:1"]),
        tls_rule(&["vault"], |m| m.port = Some(1), &["other:1"]),
        tls_rule(&["vault"], |m| m.gateways = vec![GatewayRef::Gateway("x".into(), "y".into())], &["gw:1"]),
        tls_rule(&["vault"], |_| {}, &["all:1=1", "none:1=0", "some:1=2"]),
        tls_rule(&["alt"], |m| m.destination_subnets = vec!["10.50.0.0/16".parse().unwrap()], &["alt:1"]),
        tls_rule(&["last", "also"], |_| {}, &["last:1"]),
        tls_rule(&["zero"], |_| {}, &["a:1=0", "b:1=0"]),
    ];
    let world = given(&[vault]).build(|builder| builder.set_virtual_service(vs));
    let rest = "
  10.50.0.0/16 sni=alt > outbound|1||alt
  10.50.0.0/16 sni=also,last > outbound|1||last
  * > PassthroughCluster";
    let head = "10.96.0.1_8200 10.96.0.1:8200 [tls_inspector]\n  sni=vault > ";
    let mut red = sidecar();
    red.sources.insert(label("team", "red"));
    check(&world, &red, &format!("{head}outbound|1||red{rest}"));
    check(&world, &sidecar(), &format!("{head}outbound|1||all=1 outbound|1||some=2{rest}"));
}

#[test]
fn tcp_rules_end_with_one_that_takes_everything() {
    let db = || service("db", &[(5432, Protocol::Tcp)]);
    let subnet =
        |text: &str| L4Match { destination_subnets: vec![text.parse().unwrap()], ..L4Match::default() };
    let port = |port| L4Match { port: Some(port), ..L4Match::default() };
    let head = "10.96.0.1_5432 10.96.0.1:5432 []\n";
    let cases = [
        (vec![tcp_rule(&[], &["a:1"]), tcp_rule(&[], &["b:1"])], "  - > outbound|1||a"),
        (vec![tcp_rule(&[port(1)], &["a:1"]), tcp_rule(&[port(5432)], &["b"])], "  - > outbound|5432||b"),
        (vec![tcp_rule(&[port(1)], &["a:1"])], "  - > outbound|5432||db"),
        (
            vec![tcp_rule(&[subnet("10.2.9.9/16"), subnet("10.3.0.0/16")], &["a:1"])],
            "  10.2.0.0/16 10.3.0.0/16 > outbound|1||a\n  * > outbound|5432||db",
        ),
    ];
    for (rules, expected) in cases {
        let mut vs = virtual_service("db", &["db"]);
        vs.tcp = rules;
        let world = given(&[db()]).build(|builder| builder.set_virtual_service(vs));
        check(&world, &sidecar(), &format!("{head}{expected}"));
    }
}

fn egress(
    port: Option<(u16, Protocol)>,
    bind: Option<&str>,
    mode: CaptureMode,
    host: &str,
) -> EgressListener {
    EgressListener {
        port: port.map(|(number, protocol)| SidecarPort { number, protocol, name: "p".into() }),
        bind: bind.map(Into::into),
        capture_mode: mode,
        hosts: vec![EgressHost { namespace: EgressNamespace::Any, host: host.into() }],
    }
}

fn with_sidecar(world: World, egress: Vec<EgressListener>) -> (World, OutboundAudience) {
    let meta = crate::fixtures::meta(Kind::Sidecar, "app", "default");
    let mut audience = sidecar();
    audience.scope.sidecar = Some(ObjectKey::new(Kind::Sidecar, "app", "default"));
    let sidecar = Sidecar {
        meta,
        selector: None,
        ingress: Vec::new(),
        egress,
        outbound_traffic_policy: None,
        inbound_connection_pool: None,
    };
    (world.build(|builder| builder.set_sidecar(sidecar)), audience)
}

#[test]
fn egress_listeners_lock_their_ports_and_bind_where_they_say() {
    let services = [
        service("a", &[(80, Protocol::Http), (81, Protocol::Tcp)]),
        at(service("b", &[(80, Protocol::Http), (81, Protocol::Tcp)]), &["10.96.0.2"]),
    ];
    let (world, audience) = with_sidecar(
        given(&services),
        vec![
            egress(Some((81, Protocol::Tcp)), None, CaptureMode::Default, "b"),
            egress(Some((80, Protocol::Http)), Some("127.0.0.7"), CaptureMode::None, "a"),
            egress(Some((0, Protocol::Http)), Some("unix:///run/x"), CaptureMode::Default, "a"),
            egress(None, None, CaptureMode::Default, "*"),
        ],
    );
    check(
        &world,
        &audience,
        "
10.96.0.2_81 10.96.0.2:81 []
  - > outbound|81||b
127.0.0.7_80 127.0.0.7:80 bound []
  - > http 80
unix:///run/x_0 /run/x bound []
  - > http unix:///run/x
0.0.0.0_80 0.0.0.0:80 [http_inspector]
  raw_buffer http/1.1,h2c > http 80
  * > PassthroughCluster
10.96.0.1_81 10.96.0.1:81 []
  - > outbound|81||a",
    );
}

#[test]
fn mixed_protocols_on_one_bind_are_told_apart() {
    let (world, audience) = with_sidecar(
        given(&[service("a", &[(80, Protocol::Http)]), service("b", &[(80, Protocol::Tcp)])]),
        vec![egress(None, Some("10.9.9.9"), CaptureMode::Default, "*")],
    );
    let expected =
        "10.9.9.9_80 10.9.9.9:80 [http_inspector]\n  raw_buffer http/1.1,h2c > http 80\n  * > outbound|80||b";
    check(&world, &audience, expected);
}

#[test]
fn without_capture_everything_is_bound_on_loopback() {
    let ports = [(80, Protocol::Http), (81, Protocol::Tcp), (82, Protocol::Unsupported)];
    let world = given(&[service("a", &ports)]);
    let mut audience = sidecar();
    audience.interception = Interception::None;
    let expected = "
127.0.0.1_80 127.0.0.1:80 bound []
  - > http 80
127.0.0.1_81 127.0.0.1:81 bound []
  - > outbound|81||a
127.0.0.1_82 127.0.0.1:82 bound [http_inspector]
  raw_buffer http/1.1,h2c > http a:82
  * > set_filter_state outbound|82||a";
    check(&world, &audience, expected);
    audience.switches.unprivileged = true;
    check(&world, &audience, "");
}

#[test]
fn what_no_service_claims_follows_the_policy() {
    let exit = service("exit", &[(8080, Protocol::Http), (8443, Protocol::Tcp)]);
    let proxy = Destination { host: "exit".into(), subset: Some("v1".into()), port: Some(8443) };
    let policy = |mode, egress_proxy| OutboundTrafficPolicy { mode, egress_proxy };
    let cases = [
        (policy(OutboundMode::AllowAny, None), "PassthroughCluster"),
        (policy(OutboundMode::RegistryOnly, None), "BlackHoleCluster"),
        (policy(OutboundMode::AllowAny, Some(proxy)), "outbound|8443|v1|exit"),
    ];
    for (policy, cluster) in cases {
        let world =
            given(std::slice::from_ref(&exit)).config(|config| config.outbound_traffic_policy = policy);
        let mesh = Mesh::new(world.view());
        let audience = sidecar();
        let scope = scope_of(&mesh, &audience);
        let expected = format!(
            "\nvirtualOutbound 0.0.0.0:15001 bound []\n  :15001 > BlackHoleCluster\n  - > {cluster}\n"
        );
        assert_eq!(described(&fixed(&mesh, &scope, &audience)), expected);
        let http = described(&listeners(&world, &audience));
        assert!(http.contains(&format!("  * > {cluster}\n")), "{http}");
    }
}

#[test]
fn unknown_hosts_are_resolved_where_the_policy_says_so() {
    let policy = OutboundTrafficPolicy { mode: OutboundMode::AllowAnyDynamicDns, egress_proxy: None };
    let world = given(&[service("a", &[(80, Protocol::Http), (81, Protocol::Unsupported)])])
        .config(|config| config.outbound_traffic_policy = policy);
    let mesh = Mesh::new(world.view());
    let mut audience = sidecar();
    audience.switches.http_proxy_port = 18888;
    let scope = scope_of(&mesh, &audience);
    let fixed = fixed(&mesh, &scope, &audience);
    assert_eq!(
        described(&fixed),
        "\nvirtualOutbound 0.0.0.0:15001 bound [http_inspector]\n  :15001 > BlackHoleCluster\n  \
         http/1.1,h2c > http allow_any_dynamic_dns\n  - > PassthroughCluster\n\
         127.0.0.1_18888 127.0.0.1:18888 bound []\n  - > http http_proxy\n"
    );
    // A server that speaks first is waited for, not cut off.
    assert!(decode(&fixed[0]).continue_on_listener_filters_timeout);
    let inner = &managers(&fixed[0])[0];
    let Some(RouteSpecifier::RouteConfig(routes)) = &inner.route_specifier else {
        panic!("the routes are inline");
    };
    assert_eq!(routes.virtual_hosts[0].name, "allow_any_dynamic_dns");
    assert_eq!(routes.virtual_hosts[0].routes.len(), 1);
    for resource in fixed.iter().chain(&listeners(&world, &audience)) {
        for manager in managers(resource) {
            let cached =
                |name: &str| manager.http_filters.iter().filter(|filter| filter.name == name).count();
            assert_eq!(cached("envoy.filters.http.dynamic_forward_proxy"), 1, "{}", resource.name());
        }
    }
}

#[test]
fn fixed_listeners_depend_on_capture_and_on_the_explicit_proxy() {
    let world = World::new();
    let mesh = Mesh::new(world.view());
    let mut audience = sidecar();
    let scope = scope_of(&mesh, &audience);
    audience.interception = Interception::None;
    assert_eq!(described(&fixed(&mesh, &scope, &audience)), "\n");

    audience.switches.http_proxy_port = 18888;
    let resources = fixed(&mesh, &scope, &audience);
    assert_eq!(described(&resources), "\n127.0.0.1_18888 127.0.0.1:18888 bound []\n  - > http http_proxy\n");
    let absolute = managers(&resources[0])[0].http_protocol_options.as_ref().unwrap().allow_absolute_url;
    assert_eq!(absolute, Some(true.into()));

    audience.interception = Interception::Tproxy;
    assert_eq!(decode(&fixed(&mesh, &scope, &audience)[0]).transparent, Some(true.into()));
    assert!(fixed(&mesh, &scope, &crate::fixtures::router()).is_empty());
}

#[test]
fn tcp_proxies_follow_the_destination_rule() {
    let db = service("db", &[(5432, Protocol::Tcp)]);
    let pool = TcpPool {
        idle_timeout: Some(Duration::from_secs(3)),
        max_connection_duration: Some(Duration::from_secs(9)),
        ..TcpPool::default()
    };
    let hash =
        ConsistentHash { key: Some(HashKey::SourceIp(true)), ring: HashRing::Ring { minimum_size: 1 } };
    let mut of_db = rule("app", "db", "db");
    let mut whole = policy(PortPolicy {
        connection_pool: Some(ConnectionPool { tcp: Some(pool), http: None }),
        load_balancer: Some(LoadBalancer {
            algorithm: Algorithm::ConsistentHash(hash),
            ..LoadBalancer::default()
        }),
        ..PortPolicy::default()
    });
    whole.tunnel = Some(Tunnel { post: true, target_host: "far".into(), target_port: 99 });
    of_db.policy = Some(whole);
    let mut audience = sidecar();
    audience.switches.idle_timeout = Some(1_000_000_000);
    let proxies = |world: &World| proxies(&listeners(world, &audience)[0]);

    let plain = &proxies(&given(std::slice::from_ref(&db)))[0];
    assert_eq!(plain.idle_timeout, Some(Duration::from_secs(1).into()));
    assert!(plain.hash_policy.is_empty() && plain.tunneling_config.is_none());

    let shaped = &proxies(&given(std::slice::from_ref(&db)).rule(of_db))[0];
    assert_eq!(shaped.idle_timeout, Some(Duration::from_secs(3).into()));
    assert_eq!(shaped.max_downstream_connection_duration, Some(Duration::from_secs(9).into()));
    assert_eq!(shaped.hash_policy.len(), 1);
    let tunnel = shaped.tunneling_config.as_ref().unwrap();
    assert_eq!((tunnel.hostname.as_str(), tunnel.use_post), ("far:99", true));
}

#[test]
fn connection_managers_follow_the_protocol_and_the_switches() {
    let filters = |resource: &Resource| -> Vec<String> {
        let managers = managers(resource);
        managers[0]
            .http_filters
            .iter()
            .map(|filter| filter.name.rsplit('.').next().unwrap().to_owned())
            .collect()
    };
    let plain = listeners(&given(&[service("a", &[(80, Protocol::Http)])]), &sidecar());
    assert_eq!(filters(&plain[0]), ["grpc_stats", "fault", "cors", "router"]);
    let web = listeners(&given(&[service("a", &[(80, Protocol::GrpcWeb)])]), &sidecar());
    assert_eq!(filters(&web[0])[0], "grpc_web");
    let dynamic =
        external("*.example.com", Resolution::DynamicDns, &[(80, Protocol::Http), (443, Protocol::Tls)]);
    let dynamic = listeners(&given(&[at(dynamic, &[])]), &sidecar());
    assert_eq!(filters(&dynamic[0]), ["grpc_stats", "fault", "cors", "dynamic_forward_proxy", "router"]);
    let names =
        decode(&dynamic[1]).filter_chains[0].filters.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    assert_eq!(names, ["envoy.filters.network.sni_dynamic_forward_proxy", "envoy.filters.network.tcp_proxy"]);

    let mut audience = sidecar();
    audience.switches.http10 = true;
    audience.switches.idle_timeout = Some(5_000_000_000);
    let old = listeners(&given(&[service("a", &[(80, Protocol::Http)])]), &audience);
    let manager = &managers(&old[0])[0];
    assert!(manager.http_protocol_options.as_ref().unwrap().accept_http_10);
    let idle = manager.common_http_protocol_options.as_ref().unwrap().idle_timeout;
    assert_eq!(idle, Some(Duration::from_secs(5).into()));
    let matched = decode(&old[0]).filter_chains[0].filter_chain_match.clone().unwrap();
    assert_eq!(matched.application_protocols, ["http/1.1", "h2c"]);
}

#[test]
fn access_logs_are_written_where_the_mesh_says() {
    use proto::envoy::extensions::access_loggers::file::v3::FileAccessLog;
    let ports = [(80, Protocol::Http), (81, Protocol::Tcp)];
    let log = |change: &dyn Fn(&mut model::MeshConfig)| {
        let world = given(&[service("a", &ports)]).config(|config| {
            config.access_log_file = "/dev/stdout".into();
            change(config);
        });
        let all = listeners(&world, &sidecar());
        let logs = managers(&all[0])[0].access_log.clone();
        assert_eq!(proxies(&all[1])[0].access_log, logs);
        let mesh = Mesh::new(world.view());
        let audience = sidecar();
        let arrival = decode(&fixed(&mesh, &scope_of(&mesh, &audience), &audience)[0]);
        assert!(arrival.access_log[0].filter.is_some());
        match logs[0].config_type.as_ref().unwrap() {
            proto::envoy::config::accesslog::v3::access_log::ConfigType::TypedConfig(config) => {
                let file = FileAccessLog::decode(config.value.clone()).unwrap();
                proto::json::to_json(
                    "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    &file.encode_to_vec(),
                )
                .unwrap()["logFormat"]
                    .clone()
            }
        }
    };
    let text =
        |format: &serde_json::Value| format["textFormatSource"]["inlineString"].as_str().unwrap().to_owned();
    let default = text(&log(&|_| {}));
    assert!(default.starts_with("[%START_TIME%] \"%REQ(:METHOD)% "), "{default}");
    assert!(default.ends_with(" %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"), "{default}");
    assert_eq!(text(&log(&|config| config.access_log_format = "%PROTOCOL%".into())), "%PROTOCOL%\n");
    let json = log(&|config| config.access_log_json = true);
    assert_eq!(json["jsonFormat"]["authority"], "%REQ(:AUTHORITY)%");
    assert_eq!(json["jsonFormat"]["start_time"], "%START_TIME%");
    let own = log(&|config| {
        config.access_log_json = true;
        config.access_log_format = r#"{"path": "%REQ_WITHOUT_QUERY(:PATH)%"}"#.into();
    });
    assert_eq!(own["jsonFormat"]["path"], "%REQ_WITHOUT_QUERY(:PATH)%");
    assert_eq!(own["formatters"][0]["name"], "envoy.formatter.req_without_query");
}

#[test]
fn a_listener_reads_no_more_than_its_own_services() {
    let a = service("a", &[(80, Protocol::Http), (81, Protocol::Tcp)]);
    let b = at(service("b", &[(80, Protocol::Http), (81, Protocol::Tcp)]), &["10.96.0.2"]);
    let world = given(&[a.clone(), b.clone()]);
    let mesh = Mesh::new(world.view());
    let audience = sidecar();
    let scope = scope_of(&mesh, &audience);
    let plan = outbound_plan(&mesh, &scope, &audience);
    let reader = Mesh::new(world.view());
    let key = plan.iter().find(|key| key.name() == "10.96.0.1_81").unwrap();
    assert!(outbound(&reader, &scope, &audience, key).is_some());
    let reads = reader.into_reads();
    let of_b =
        |key: &Key| matches!(key, Key::Service(service) | Key::Endpoints(service) if *service == b.key);
    assert!(!reads.iter().any(of_b), "{reads:?}");
    assert!(!reads.contains(&Key::Services));
    // More HTTP services on a port make no other listener.
    let alone = given(&[a]);
    let mesh = Mesh::new(alone.view());
    let scope = scope_of(&mesh, &audience);
    let before = outbound_plan(&mesh, &scope, &audience);
    assert_eq!(before[0], plan[0]);
}
