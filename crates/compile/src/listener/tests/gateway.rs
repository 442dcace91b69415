use super::*;
use crate::audience::{GatewayAudience, OutboundAudience};
use crate::fixtures::{World, external, router, rule, scope_of, server_tls, service, subset};
use crate::listener::gateway;
use crate::wire;
use model::gateway::{Gateway, HostNamespace, Server, ServerHost, ServerTls, ServerTlsMode};
use model::service::Resolution;
use model::{Mesh, ObjectKey, Protocol};
use std::sync::Arc;

fn server(port: u16, protocol: Protocol, hosts: &[&str], tls: Option<ServerTls>) -> Server {
    let host = |host: &&str| match host.split_once('/') {
        Some((namespace, host)) => {
            ServerHost { namespace: HostNamespace::Only(namespace.into()), host: host.into() }
        }
        None => ServerHost { namespace: HostNamespace::Any, host: (*host).into() },
    };
    Server {
        index: 0,
        name: None,
        port,
        port_name: format!("p{port}-{}", hosts.join("-").replace(['*', '/', '.'], "x")).into(),
        protocol,
        bind: None,
        hosts: hosts.iter().map(host).collect(),
        tls,
    }
}

fn with_certificate(mode: ServerTlsMode) -> Option<ServerTls> {
    Some(ServerTls { credential_name: Some("cert".into()), ..server_tls(mode) })
}

struct Edge {
    world: World,
    gateway: GatewayAudience,
    audience: OutboundAudience,
}

impl Edge {
    fn new(servers: Vec<Server>) -> Self {
        let key = ObjectKey::new(Kind::Gateway, "app", "edge");
        let meta = crate::fixtures::meta(Kind::Gateway, "app", "edge");
        let edge = Gateway { meta, selector: Labels::new(), services: None, servers };
        Self {
            world: World::new().build(|builder| builder.set_gateway(edge)),
            gateway: GatewayAudience { gateways: vec![key], ..GatewayAudience::default() },
            audience: router(),
        }
    }

    fn world(mut self, change: impl FnOnce(World) -> World) -> Self {
        self.world = change(self.world);
        self
    }

    /// Adds a VirtualService that is bound to the Gateway.
    fn rule(self, mut rule: VirtualService, change: impl FnOnce(&mut VirtualService)) -> Self {
        rule.gateways = vec![edge()];
        change(&mut rule);
        self.world(|world| world.build(|builder| builder.set_virtual_service(rule)))
    }

    fn listeners(&self) -> Vec<Resource> {
        let mesh = Mesh::new(self.world.view());
        let scope = scope_of(&mesh, &self.audience);
        gateway(&mesh, &scope, &self.audience, &self.gateway)
    }

    #[track_caller]
    fn check(&self, expected: &str) {
        assert_eq!(described(&self.listeners()).trim(), expected.trim());
    }
}

fn edge() -> GatewayRef {
    GatewayRef::Gateway("app".into(), "edge".into())
}

#[test]
fn plain_http_servers_share_a_chain_and_routes() {
    let mut edge = Edge::new(vec![
        server(80, Protocol::Http, &["a.com"], None),
        server(80, Protocol::Http2, &["b.com"], None),
        server(81, Protocol::Grpc, &["c.com"], None),
    ]);
    edge.gateway.port_map.insert(80, [8080].into());
    edge.check(
        "
0.0.0.0_8080 0.0.0.0:8080 bound []
  - > http http.8080
0.0.0.0_81 0.0.0.0:81 bound []
  - > http http.81",
    );
}

#[test]
fn tls_servers_are_told_apart_by_server_name() {
    let edge = Edge::new(vec![
        server(
            443,
            Protocol::Https,
            &["b.com", "a.com", "app/a.com"],
            with_certificate(ServerTlsMode::Simple),
        ),
        server(443, Protocol::Https, &["*.c.com"], with_certificate(ServerTlsMode::Mutual)),
        server(443, Protocol::Https, &["other/b.com"], with_certificate(ServerTlsMode::Simple)),
        server(443, Protocol::Https, &["*"], with_certificate(ServerTlsMode::OptionalMutual)),
        // A second chain without a condition would make Envoy refuse all of them.
        server(443, Protocol::Http, &["plain.com"], None),
    ]);
    edge.check(
        "
0.0.0.0_443 0.0.0.0:443 bound [tls_inspector]
  sni=a.com,b.com > tls http https.443.p443-bxcom-axcom-appxaxcom.edge.app
  sni=*.c.com > tls http https.443.p443-xxcxcom.edge.app
  - > tls http https.443.p443-x.edge.app",
    );
    let secrets: Vec<String> =
        edge.listeners()[0].needs().secrets.iter().map(|name| name.to_string()).collect();
    assert_eq!(secrets, ["kubernetes://cert", "kubernetes://cert-cacert"]);
}

#[test]
fn plain_http_may_come_after_tls() {
    let edge = Edge::new(vec![
        server(443, Protocol::Https, &["a.com"], with_certificate(ServerTlsMode::Simple)),
        server(443, Protocol::Http, &["plain.com"], None),
    ]);
    edge.check(
        "
0.0.0.0_443 0.0.0.0:443 bound [tls_inspector]
  sni=a.com > tls http https.443.p443-axcom.edge.app
  - > http http.443",
    );
}

#[test]
fn a_server_that_needs_the_workloads_certificate_waits_for_an_identity() {
    let mut edge = Edge::new(vec![server(
        443,
        Protocol::Https,
        &["a.com"],
        Some(server_tls(ServerTlsMode::IstioMutual)),
    )]);
    assert_eq!(edge.listeners().len(), 1);
    assert!(edge.listeners()[0].needs().secrets.is_empty());
    edge.audience.has_identity = false;
    edge.check("");
}

#[test]
fn bytes_go_by_the_first_rule_that_applies() {
    let host = |rules: Vec<TcpRule>| move |vs: &mut VirtualService| vs.tcp = rules;
    let port = |port| L4Match { port: Some(port), ..L4Match::default() };
    let edge = Edge::new(vec![
        server(9000, Protocol::Tcp, &["*"], None),
        server(27017, Protocol::Mongo, &["*"], None),
        server(9001, Protocol::Tcp, &["*"], None),
        server(9443, Protocol::Tls, &["db.com"], with_certificate(ServerTlsMode::Simple)),
    ])
    .rule(
        virtual_service("a", &["a.com"]),
        host(vec![
            tcp_rule(&[port(27017)], &["mongo"]),
            tcp_rule(&[L4Match { gateways: vec![GatewayRef::Mesh], ..port(9000) }], &["mesh:1"]),
            tcp_rule(&[port(9000)], &["one:1=3", "two:1=1"]),
        ]),
    )
    .rule(
        virtual_service("b", &["*"]),
        host(vec![tcp_rule(&[port(9000)], &["late:1"]), tcp_rule(&[port(9443)], &["db:1"])]),
    );
    // Nothing is bound where no rule applies.
    edge.check(
        "
0.0.0.0_9000 0.0.0.0:9000 bound []
  - > outbound|1||one=3 outbound|1||two=1
0.0.0.0_27017 0.0.0.0:27017 bound []
  - > mongo_proxy outbound|27017||mongo
0.0.0.0_9443 0.0.0.0:9443 bound [tls_inspector]
  sni=db.com > tls outbound|1||db",
    );
}

#[test]
fn a_destination_without_a_port_takes_the_services_only_one() {
    let mut edge = Edge::new(vec![server(9000, Protocol::Tcp, &["*"], None)])
        .rule(virtual_service("a", &["*"]), |vs| vs.tcp = vec![tcp_rule(&[], &["db"])])
        .world(|world| world.service(&service("db", &[(5432, Protocol::Tcp)])));
    edge.gateway.port_map.insert(9000, [19000].into());
    edge.check("0.0.0.0_19000 0.0.0.0:19000 bound []\n  - > outbound|5432||db");
}

#[test]
fn passed_on_tls_is_routed_by_server_name() {
    let pass = || Some(server_tls(ServerTlsMode::Passthrough));
    let edge =
        Edge::new(vec![server(443, Protocol::Tls, &["*.a.com", "app/b.com", "elsewhere/c.com"], pass())])
            .rule(virtual_service("1", &["one.a.com", "b.com"]), |vs| {
                vs.tls = vec![
                    tls_rule(&["one.a.com"], |m| m.port = Some(9), &["no:1"]),
                    tls_rule(&["one.a.com"], |_| {}, &["one:1"]),
                    tls_rule(&["b.com", "x.com"], |_| {}, &["b:1"]),
                ];
            })
            .rule(virtual_service("2", &["*.a.com"]), |vs| {
                vs.tls = vec![
                    tls_rule(&["one.a.com"], |_| {}, &["late:1"]),
                    tls_rule(&["*.a.com"], |_| {}, &["any:1"]),
                ];
            })
            .rule(virtual_service("3", &["c.com"]), |vs| {
                vs.tls = vec![tls_rule(&["c.com"], |_| {}, &["c:1"])]
            });
    edge.check(
        "
0.0.0.0_443 0.0.0.0:443 bound [tls_inspector]
  sni=one.a.com > outbound|1||one
  sni=b.com,x.com > outbound|1||b
  sni=*.a.com > outbound|1||any",
    );
}

#[test]
fn east_west_gateways_lead_to_every_port_and_subset() {
    let auto = Some(server_tls(ServerTlsMode::AutoPassthrough));
    let mut of_web = rule("app", "web", "web.app.svc.cluster.local");
    of_web.subsets = vec![subset("v1", None)];
    let ports = [(80, Protocol::Http), (53, Protocol::Udp)];
    let edge =
        Edge::new(vec![server(15443, Protocol::Tls, &["*.app.svc.cluster.local"], auto)]).world(|world| {
            world
                .service(&service("web.app.svc.cluster.local", &ports))
                .service(&service("web.other.svc.cluster.local", &ports))
                .service(&external("far.app.svc.cluster.local", Resolution::Dns, &ports))
                .rule(of_web)
        });
    let alpn = "istio,istio-peer-exchange,istio-http/1.0,istio-http/1.1,istio-h2";
    let name = |subset: &str| format!("outbound_.80_.{subset}_.web.app.svc.cluster.local");
    let chain = |subset: &str| format!("  sni={0} {alpn} > {0}", name(subset));
    let head = "0.0.0.0_15443 0.0.0.0:15443 bound [tls_inspector]";
    edge.check(&format!("{head}\n{}\n{}", chain(""), chain("v1")));
}

#[test]
fn binds_are_addresses_or_sockets() {
    let mut on_address = server(80, Protocol::Http, &["a.com"], None);
    on_address.bind = Some("10.0.0.1".into());
    let mut on_socket = server(0, Protocol::Http, &["a.com"], None);
    on_socket.bind = Some("unix:///run/gw".into());
    let mut edge = Edge::new(vec![on_address, on_socket, server(80, Protocol::Http, &["a.com"], None)]);
    edge.audience.families.v6 = true;
    edge.check(
        "
10.0.0.1_80 10.0.0.1:80 bound []
  - > http http.80.10.0.0.1
unix:///run/gw_0 /run/gw bound []
  - > http http.0.unix:///run/gw
0.0.0.0_80 0.0.0.0:80+:::80 bound []
  - > http http.80",
    );
    edge.audience.switches.unprivileged = true;
    assert_eq!(edge.listeners().len(), 1);
}

#[test]
fn the_topology_decides_whom_to_believe() {
    use model::ProxySettings;
    use model::mesh_config::PathNormalization;
    use model::proxy_settings::ForwardClientCert;
    use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
        ForwardClientCertDetails, PathWithEscapedSlashesAction,
    };
    let plain = || Edge::new(vec![server(80, Protocol::Http, &["a.com"], None)]);
    let manager = managers(&plain().listeners()[0]).remove(0);
    assert_eq!(manager.forward_client_cert_details, i32::from(ForwardClientCertDetails::SanitizeSet));
    assert_eq!((manager.use_remote_address, manager.xff_num_trusted_hops), (Some(true.into()), 0));
    assert_eq!((manager.normalize_path, manager.merge_slashes), (Some(true.into()), false));

    let mut behind = plain().world(|world| {
        world.config(|config| config.path_normalization = PathNormalization::DecodeAndMergeSlashes)
    });
    behind.audience.switches.proxy = Arc::new(ProxySettings {
        num_trusted_proxies: 2,
        gateway_client_cert: ForwardClientCert::ForwardOnly,
        proxy_protocol: true,
        ..ProxySettings::default()
    });
    behind.check("0.0.0.0_80 0.0.0.0:80 bound [proxy_protocol]\n  - > http http.80");
    let manager = managers(&behind.listeners()[0]).remove(0);
    assert_eq!(manager.forward_client_cert_details, i32::from(ForwardClientCertDetails::ForwardOnly));
    assert_eq!(manager.xff_num_trusted_hops, 2);
    assert!(manager.merge_slashes);
    let action = PathWithEscapedSlashesAction::UnescapeAndForward;
    assert_eq!(manager.path_with_escaped_slashes_action, i32::from(action));
}

#[test]
fn a_proxys_settings_decide_about_headers_and_timeouts() {
    use model::ProxySettings;
    use model::proxy_settings::{ClientCertDetails, ConnectionSettings, ProxyHeaders, ServerHeader};
    use std::time::Duration;
    let mut edge = Edge::new(vec![server(80, Protocol::Http, &["a.com"], None)]);
    edge.audience.switches.proxy = Arc::new(ProxySettings {
        headers: ProxyHeaders {
            client_cert_details: Some(ClientCertDetails { chain: true, ..ClientCertDetails::default() }),
            no_request_id: true,
            no_envoy_headers: true,
            server: ServerHeader::PassedOn,
            preserve_case: true,
            forwarded_port: true,
            ..ProxyHeaders::default()
        },
        connection: ConnectionSettings {
            listener_buffer: Some(4096),
            idle_timeout: Some(Duration::from_secs(9)),
            stream_idle_timeout: Some(Duration::from_secs(8)),
            max_concurrent_streams: Some(50),
            ..ConnectionSettings::default()
        },
        ..ProxySettings::default()
    });
    let listener = edge.listeners().remove(0);
    let buffer = Listener::decode(listener.bytes().clone()).unwrap().per_connection_buffer_limit_bytes;
    assert_eq!(buffer, wire::u32_value(4096));
    let manager = managers(&listener).remove(0);
    assert_eq!((manager.server_name.as_str(), manager.server_header_transformation), ("", 2));
    assert_eq!(manager.generate_request_id, Some(false.into()));
    assert!(manager.append_x_forwarded_port);
    let details = manager.set_current_client_cert_details.unwrap();
    assert!(details.chain && !details.uri && details.subject.is_none());
    assert!(manager.http_protocol_options.unwrap().header_key_format.is_some());
    let common = manager.common_http_protocol_options.unwrap();
    assert_eq!(common.idle_timeout, wire::duration(Duration::from_secs(9)));
    assert_eq!(manager.stream_idle_timeout, wire::duration(Duration::from_secs(8)));
    assert_eq!(manager.http2_protocol_options.unwrap().max_concurrent_streams, wire::u32_value(50));
    let router = manager.http_filters.last().unwrap();
    assert_ne!(
        router.config_type,
        managers(&plain_listener()).remove(0).http_filters.last().unwrap().config_type
    );
}

fn plain_listener() -> Resource {
    Edge::new(vec![server(80, Protocol::Http, &["a.com"], None)]).listeners().remove(0)
}

#[test]
fn a_route_of_the_gateway_api_takes_what_a_server_has_opened() {
    let listeners = |semantics: &str| {
        let tls = with_certificate(ServerTlsMode::Simple);
        let edge = Edge::new(vec![server(443, Protocol::Tls, &["a.com"], tls)]);
        let mut rule = virtual_service("sni", &["a.com"]);
        rule.meta.annotations = [("internal.istio.io/route-semantics", semantics)].into_iter().collect();
        let edge = edge.rule(rule, |rule| rule.tls = vec![tls_rule(&["a.com"], |_| {}, &["c:1"])]);
        edge.listeners().len()
    };
    assert_eq!(
        (listeners("gateway"), listeners("")),
        (1, 0),
        "elsewhere such a rule means TLS that stays closed"
    );
}
