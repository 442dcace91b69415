use super::*;
use crate::audience::{InboundAudience, IpFamilies, OutboundAudience};
use crate::fixtures::{World, scope_of, service, sidecar, workload};
use crate::listener::inbound;
use model::gateway::{ServerTls, ServerTlsMode};
use model::proxy::Interception;
use model::sidecar::{CaptureMode, IngressEndpoint, IngressListener, SidecarPort};
use model::{Mesh, MtlsMode, ObjectKey, Protocol, Sidecar};

fn listeners(world: &World, audience: &InboundAudience) -> Vec<Resource> {
    let mesh = Mesh::new(world.view());
    let outbound = sidecar();
    inbound(&mesh, &scope_of(&mesh, &outbound), audience, &outbound)
}

/// The chains of the first listener for this port; 0 stands for those of ports that no service has.
fn chains(world: &World, audience: &InboundAudience, port: u16) -> Vec<String> {
    let prefix = format!(":{port}");
    decode(&listeners(world, audience)[0])
        .filter_chains
        .iter()
        .map(|chain| format!("{} > {}", condition(chain), target(chain)))
        .filter(|line| match port {
            0 => !line.starts_with(':'),
            _ => line.starts_with(&prefix),
        })
        .map(|line| line.trim_start_matches(&prefix).trim_start().to_owned())
        .collect()
}

const MESH: &str = "istio,istio-peer-exchange,istio-http/1.0,istio-http/1.1,istio-h2";
const MESH_HTTP: &str = "istio-http/1.0,istio-http/1.1,istio-h2";

#[test]
fn chains_follow_the_protocol_and_the_mode() {
    let http = "http inbound|8080||";
    let tcp = "inbound|8080||";
    let table: [(Protocol, MtlsMode, Vec<String>); 9] = [
        (Protocol::Http, MtlsMode::Strict, vec![format!("tls > tls {http}")]),
        (
            Protocol::Grpc,
            MtlsMode::Permissive,
            vec![format!("tls {MESH} > tls {http}"), format!("raw_buffer > {http}")],
        ),
        (Protocol::Http2, MtlsMode::Disable, vec![format!("raw_buffer > {http}")]),
        (Protocol::Tcp, MtlsMode::Strict, vec![format!("tls > tls {tcp}")]),
        (
            Protocol::Https,
            MtlsMode::Permissive,
            vec![format!("tls {MESH} > tls {tcp}"), format!("tls > {tcp}"), format!("raw_buffer > {tcp}")],
        ),
        (Protocol::Mongo, MtlsMode::Disable, vec![format!("raw_buffer > mongo_proxy {tcp}")]),
        (
            Protocol::Unsupported,
            MtlsMode::Strict,
            vec![format!("tls {MESH_HTTP} > tls {http}"), format!("tls > tls {tcp}")],
        ),
        (
            Protocol::Unsupported,
            MtlsMode::Permissive,
            vec![
                format!("tls {MESH_HTTP} > tls {http}"),
                format!("raw_buffer http/1.1,h2c > {http}"),
                format!("tls istio-peer-exchange,istio > tls {tcp}"),
                format!("raw_buffer > {tcp}"),
                format!("tls > {tcp}"),
            ],
        ),
        (
            Protocol::Unsupported,
            MtlsMode::Disable,
            vec![format!("raw_buffer http/1.1,h2c > {http}"), format!("raw_buffer > {tcp}")],
        ),
    ];
    for (protocol, mode, expected) in table {
        let cart = service("cart", &[(80, protocol)]);
        let world = World::new().service(&cart);
        let mut audience = workload(&[(&cart, &[(80, 8080)])]);
        audience.mtls.default = mode;
        assert_eq!(chains(&world, &audience, 8080), expected, "{protocol} {mode:?}");
        // Ports that no service has are undeclared.
        if protocol == Protocol::Unsupported {
            let elsewhere: Vec<String> = expected
                .iter()
                .map(|line| line.replace("inbound|8080||", "InboundPassthroughCluster"))
                .collect();
            assert_eq!(chains(&world, &audience, 0), elsewhere, "{mode:?}");
        }
    }
}

#[test]
fn without_a_certificate_strict_ports_refuse_everything() {
    let cart = service("cart", &[(80, Protocol::Http), (81, Protocol::Tcp)]);
    let world = World::new().service(&cart);
    let mut audience = workload(&[(&cart, &[(80, 8080), (81, 8081)])]);
    audience.has_identity = false;
    assert_eq!(chains(&world, &audience, 8080), ["raw_buffer > http inbound|8080||"]);
    assert_eq!(chains(&world, &audience, 8081), ["raw_buffer > inbound|8081||"]);

    audience.mtls.ports.insert(8080, MtlsMode::Strict);
    audience.mtls.ports.insert(9999, MtlsMode::Strict);
    assert_eq!(chains(&world, &audience, 8080), ["> BlackHoleCluster"]);
    assert_eq!(chains(&world, &audience, 9999), ["> BlackHoleCluster"]);
    audience.mtls.default = MtlsMode::Strict;
    assert_eq!(chains(&world, &audience, 0), ["- > BlackHoleCluster"]);
    assert_eq!(chains(&world, &audience, 8081), ["> BlackHoleCluster"]);
    for resource in listeners(&world, &audience) {
        assert!(resource.needs().secrets.is_empty());
    }
}

#[test]
fn ports_with_a_mode_of_their_own_have_chains_of_their_own() {
    let cart = service("cart", &[(80, Protocol::Http)]);
    let world = World::new().service(&cart);
    let mut audience = workload(&[(&cart, &[(80, 8080)])]);
    audience.mtls.default = MtlsMode::Strict;
    audience.mtls.ports = [(8080, MtlsMode::Permissive), (83, MtlsMode::Disable)].into();
    assert_eq!(chains(&world, &audience, 8080).len(), 2);
    assert_eq!(
        chains(&world, &audience, 83),
        [
            "raw_buffer http/1.1,h2c > http InboundPassthroughCluster",
            "raw_buffer > InboundPassthroughCluster"
        ]
    );
}

#[test]
fn the_oldest_service_decides_what_a_port_speaks() {
    let first = service("first", &[(80, Protocol::Tcp), (81, Protocol::Udp), (82, Protocol::Http)]);
    let second = service("second", &[(90, Protocol::Http)]);
    let world = World::new().service(&first).service(&second);
    let mut audience = workload(&[(&first, &[(80, 8080), (81, 8081), (82, 0)]), (&second, &[(90, 8080)])]);
    audience.mtls.default = MtlsMode::Disable;
    assert_eq!(chains(&world, &audience, 8080), ["raw_buffer > inbound|8080||"]);
    let ports: Vec<Option<u32>> = decode(&listeners(&world, &audience)[0])
        .filter_chains
        .iter()
        .filter_map(|chain| chain.filter_chain_match.as_ref())
        .map(|matched| matched.destination_port.map(|port| port.value))
        .collect();
    assert_eq!(ports, [Some(15006), None, None, Some(8080)]);
}

#[test]
fn captured_connections_arrive_with_their_addresses() {
    let names = |audience: &InboundAudience| -> Vec<String> {
        let listener = decode(&listeners(&World::new(), audience)[0]);
        assert_eq!(listener.name, "virtualInbound");
        listener.listener_filters.iter().map(|f| f.name.rsplit('.').next().unwrap().to_owned()).collect()
    };
    let mut audience = workload(&[]);
    assert_eq!(names(&audience), ["original_dst", "tls_inspector", "http_inspector"]);
    audience.interception = Interception::Tproxy;
    assert_eq!(names(&audience), ["original_dst", "original_src", "tls_inspector", "http_inspector"]);
    assert_eq!(decode(&listeners(&World::new(), &audience)[0]).transparent, Some(true.into()));
    audience.interception = Interception::None;
    assert!(listeners(&World::new(), &audience).is_empty());
}

fn ingress(
    number: u16,
    protocol: Protocol,
    bind: Option<&str>,
    capture_mode: CaptureMode,
) -> IngressListener {
    IngressListener {
        port: SidecarPort { number, protocol, name: "p".into() },
        bind: bind.map(Into::into),
        capture_mode,
        default_endpoint: IngressEndpoint::OriginalDestination,
        tls: None,
        connection_pool: None,
    }
}

fn with_ingress(ingress: Vec<IngressListener>) -> (World, InboundAudience) {
    let cart = service("cart", &[(80, Protocol::Http)]);
    let mut audience = workload(&[(&cart, &[(80, 8080)])]);
    audience.scope.sidecar = Some(ObjectKey::new(Kind::Sidecar, "app", "default"));
    audience.mtls.default = MtlsMode::Disable;
    let sidecar = Sidecar {
        meta: crate::fixtures::meta(Kind::Sidecar, "app", "default"),
        selector: None,
        ingress,
        egress: Vec::new(),
        outbound_traffic_policy: None,
        inbound_connection_pool: None,
    };
    (World::new().service(&cart).build(|builder| builder.set_sidecar(sidecar)), audience)
}

#[test]
fn a_sidecars_listeners_replace_those_of_services() {
    let (world, audience) = with_ingress(vec![
        ingress(9080, Protocol::Http, None, CaptureMode::Default),
        ingress(9081, Protocol::Tcp, Some("127.0.0.1"), CaptureMode::None),
        ingress(9081, Protocol::Http, Some("127.0.0.1"), CaptureMode::None),
    ]);
    assert!(chains(&world, &audience, 8080).is_empty());
    assert_eq!(chains(&world, &audience, 9080), ["raw_buffer > http inbound|9080||"]);
    let all = listeners(&world, &audience);
    assert_eq!(
        described(&all[1..]),
        "\n127.0.0.1_9081 127.0.0.1:9081 bound []\n  :9081 raw_buffer > inbound|9081||\n"
    );
    assert!(decode(&all[1]).filter_chains[0].metadata.is_some());
}

#[test]
fn without_capture_only_a_sidecars_listeners_are_bound() {
    let (world, mut audience) = with_ingress(vec![ingress(9080, Protocol::Http, None, CaptureMode::Default)]);
    audience.interception = Interception::None;
    audience.instance_ip = Some("10.1.0.6".parse().unwrap());
    assert_eq!(
        described(&listeners(&world, &audience)),
        "\n10.1.0.6_9080 10.1.0.6:9080 bound []\n  :9080 raw_buffer > http inbound|9080||\n"
    );
    audience.switches.unprivileged = true;
    assert_eq!(listeners(&world, &audience).len(), 1);
}

#[test]
fn a_sidecars_own_tls_needs_mutual_tls_to_be_off() {
    let mut listener = ingress(9443, Protocol::Https, None, CaptureMode::Default);
    listener.tls = Some(ServerTls {
        credential_name: Some("cert".into()),
        ..crate::fixtures::server_tls(ServerTlsMode::Simple)
    });
    let (world, mut audience) = with_ingress(vec![listener]);
    assert_eq!(chains(&world, &audience, 9443), ["tls > tls http inbound|9443||"]);
    assert!(listeners(&world, &audience)[0].needs().secrets.contains("kubernetes://cert"));
    audience.mtls.default = MtlsMode::Strict;
    assert_eq!(chains(&world, &audience, 9443), ["tls > tls inbound|9443||"]);
    assert!(listeners(&world, &audience)[0].needs().secrets.is_empty());
}

#[test]
fn chains_that_agree_to_swap_metadata_can() {
    let cart = service("cart", &[(80, Protocol::Tcp)]);
    let world = World::new().service(&cart);
    let mut audience = workload(&[(&cart, &[(80, 8080)])]);
    let agreed = "istio-peer-exchange".as_bytes();
    let agrees = |chain: &proto::envoy::config::listener::v3::FilterChain| {
        let socket = chain.transport_socket.as_ref().map(Message::encode_to_vec).unwrap_or_default();
        socket.windows(agreed.len()).any(|window| window == agreed)
    };
    for (extensions, expected) in [(vec![], false), (vec!["istio.metadata_exchange"], true)] {
        audience.switches.extensions = extensions.into_iter().map(Into::into).collect();
        let listener = decode(&listeners(&world, &audience)[0]);
        assert_eq!(listener.filter_chains.iter().any(agrees), expected);
        for chain in &listener.filter_chains {
            assert_eq!(chain.filters[0].name == "istio.metadata_exchange", expected);
        }
    }
}

#[test]
fn inbound_connection_managers_name_the_client() {
    use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::ForwardClientCertDetails;
    let cart = service("cart", &[(80, Protocol::Grpc)]);
    let world = World::new().service(&cart);
    let all = listeners(&world, &workload(&[(&cart, &[(80, 8080)])]));
    let manager = managers(&all[0]).pop().unwrap();
    assert_eq!(manager.server_name, "istio-envoy");
    assert_eq!(manager.forward_client_cert_details, i32::from(ForwardClientCertDetails::AppendForward));
    assert_eq!(manager.use_remote_address, Some(false.into()));
    assert!(manager.http2_protocol_options.is_some());
    assert!(all[0].needs().clusters.contains("inbound|8080||"));
}

#[test]
fn captured_connections_of_both_families_arrive_if_the_proxy_captures_both() {
    let world = World::new();
    let mesh = Mesh::new(world.view());
    let addresses = |change: fn(&mut OutboundAudience)| -> Vec<String> {
        let mut outbound = sidecar();
        change(&mut outbound);
        let scope = scope_of(&mesh, &outbound);
        let audience = InboundAudience {
            families: outbound.families,
            switches: outbound.switches.clone(),
            ..workload(&[])
        };
        let captured = crate::listener::fixed(&mesh, &scope, &outbound)
            .into_iter()
            .chain(inbound(&mesh, &scope, &audience, &outbound));
        let all = captured.map(|resource| {
            let listener = decode(&resource);
            let first = listener.address.iter();
            let others = listener.additional_addresses.iter().filter_map(|other| other.address.as_ref());
            first.chain(others).map(address_text).collect::<Vec<_>>().join(" ")
        });
        all.collect()
    };
    assert_eq!(addresses(|_| ()), ["0.0.0.0:15001", "0.0.0.0:15006"]);
    assert_eq!(
        addresses(|audience| audience.families = IpFamilies { v4: true, v6: true }),
        ["0.0.0.0:15001", "0.0.0.0:15006"],
        "as istiod does by default"
    );
    assert_eq!(
        addresses(|audience| {
            audience.families = IpFamilies { v4: true, v6: true };
            audience.switches.dual_stack = true;
        }),
        ["0.0.0.0:15001 :::15001", "0.0.0.0:15006 :::15006"]
    );
    assert_eq!(
        addresses(|audience| audience.switches.dual_stack = true),
        ["0.0.0.0:15001", "0.0.0.0:15006"],
        "there is nothing to capture"
    );
}
