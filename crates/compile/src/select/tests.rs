use super::*;
use crate::fixtures::{World, endpoint, external, meta, service};
use model::gateway::{Gateway, Server};
use model::service::Resolution;
use model::{Hostname, Kind, Protocol, Service, WorkloadId};

fn proxy(role: ProxyRole, cluster: &str) -> Proxy {
    Proxy {
        role,
        node_id: "test".into(),
        workload: WorkloadId { namespace: "app".into(), name: "cart-1".into() },
        namespace: "app".into(),
        ips: vec![[10, 0, 0, 1].into()],
        dns_domain: "app.svc.cluster.local".into(),
        labels: labels(&[("app", "cart")]),
        locality: Locality::default(),
        cluster: cluster.into(),
        network: "".into(),
        node: None,
        interception: Interception::Redirect,
        has_identity: true,
        metadata: BTreeMap::new(),
        settings: None,
        extensions: Vec::new(),
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn workload() -> Workload {
    Workload {
        uid: None,
        id: WorkloadId { namespace: "app".into(), name: "cart-1".into() },
        ips: vec![[10, 0, 0, 1].into()],
        labels: labels(&[("app", "cart"), ("pod", "known")]),
        service_account: "cart".into(),
        node: None,
        locality: Locality::parse("r1/z1"),
        network: "".into(),
        workload_name: "cart".into(),
        named_ports: Vec::new(),
    }
}

/// A Service by labels, one by the labels of the pod only, and a ServiceEntry by address.
fn world() -> World {
    let selecting = |host: &str, selector: &[(&str, &str)]| Service {
        selector: labels(selector),
        ..service(host, &[(80, Protocol::Http)])
    };
    let entry = external("entry.test", Resolution::ClientSide, &[(80, Protocol::Http)]);
    World::new()
        .service(&selecting("a", &[("app", "cart")]))
        .service(&selecting("b", &[("pod", "known")]))
        .service(&entry)
        .endpoints(&entry, &[endpoint("10.0.0.1", 80)])
        .build(|builder| builder.set_workload(workload()))
}

fn target_hosts(selection: &Selection) -> Vec<String> {
    let inbound = selection.inbound.as_ref().expect("a sidecar");
    let mut hosts: Vec<String> =
        inbound.targets.iter().map(|target| target.service.host.to_string()).collect();
    hosts.sort();
    hosts
}

#[test]
fn a_workload_of_another_cluster_is_not_behind_the_services_of_this_one() {
    let world = world();
    let world = world.build(|builder| {
        builder.set_config(model::MeshConfig { cluster: "here".into(), ..model::MeshConfig::default() });
    });
    let of = |cluster: &str| select(&Mesh::new(world.view()), &proxy(ProxyRole::Sidecar, cluster));
    for cluster in ["here", ""] {
        let local = of(cluster);
        assert_eq!(target_hosts(&local), ["a", "b", "entry.test"], "{cluster:?}");
        assert_eq!(local.outbound.cluster.as_ref(), "here");
        assert_eq!(local.outbound.locality, Locality::parse("r1/z1"));
    }
    // ServiceEntries are not a cluster's: they count wherever the address is.
    let remote = of("there");
    assert_eq!(target_hosts(&remote), ["entry.test"]);
    assert_eq!(remote.outbound.cluster.as_ref(), "there");
    assert_eq!(remote.outbound.locality, Locality::default(), "the pod of that name is another one");
}

#[test]
fn gateways_are_chosen_by_labels_or_by_service() {
    let server = Server {
        index: 0,
        name: None,
        port: 80,
        port_name: "http".into(),
        protocol: Protocol::Http,
        bind: None,
        hosts: Vec::new(),
        tls: None,
    };
    let gateway =
        |namespace: &str, name: &str, selector: &[(&str, &str)], services: Option<&[&str]>| Gateway {
            meta: meta(Kind::Gateway, namespace, name),
            selector: labels(selector),
            services: services.map(|hosts| hosts.iter().copied().map(Hostname::new).collect()),
            servers: vec![server.clone()],
        };
    let mut service =
        Service { selector: labels(&[("app", "cart")]), ..service("a", &[(80, Protocol::Http)]) };
    service.ports[0].target = TargetPort::Number(8080);
    let world = World::new().service(&service).build(|builder| {
        builder.set_gateway(gateway("edge", "labels", &[("app", "cart")], None));
        builder.set_gateway(gateway("edge", "others", &[("app", "other")], None));
        builder.set_gateway(gateway("app", "service", &[], Some(&["x", "a"])));
        builder.set_gateway(gateway("app", "no-service", &[], Some(&["x"])));
        builder.set_gateway(gateway("edge", "elsewhere", &[], Some(&["a"])));
    });
    let selection = select(&Mesh::new(world.view()), &proxy(ProxyRole::Router, ""));
    let audience = selection.gateway.expect("a gateway");
    let names: Vec<&str> = audience.gateways.iter().map(|key| key.name.as_ref()).collect();
    assert_eq!(names, ["labels", "service"]);
    let ports = BTreeMap::from([(80, BTreeSet::from([8080]))]);
    assert_eq!(audience.port_map, ports);
    let by_service: Vec<_> = audience.service_ports.iter().map(|(key, ports)| (&*key.name, ports)).collect();
    assert_eq!(by_service, [("service", &ports)]);
}
