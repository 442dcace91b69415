//! What a change costs, and that what it leads to is what compiling from scratch would give.

use compile::Shared;
use compile::query;
use model::destination_rule::{OutlierDetection, PortPolicy, TrafficPolicy};
use model::proxy::{Interception, ProxyRole};
use model::route::{Headers, StringMatch};
use model::service::{Address, Health, Registry, Resolution, TargetPort, TrafficDistribution, Vip};
use model::virtual_service::{Destination, GatewayRef, HttpAction, HttpDestination, HttpMatch, HttpRule};
use model::{
    DestinationRule, Endpoint, ExportTo, Key, Kind, Labels, Locality, MeshViewBuilder, Meta, Namespace,
    ObjectKey, Protocol, Proxy, Service, ServiceKey, ServicePort, VirtualService, WorkloadId,
};
use proptest::prelude::*;
use proto::resource::{ResourceType, Snapshot};
use push::Engine;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn namespace(number: usize) -> Namespace {
    Namespace::new(format!("ns{number}"))
}

fn key(service: usize, namespaces: usize) -> ServiceKey {
    let namespace = namespace(service % namespaces);
    ServiceKey { host: format!("svc{service}.{namespace}.svc.cluster.local").as_str().into(), namespace }
}

fn service(number: usize, namespaces: usize, port: u16) -> Service {
    let key = key(number, namespaces);
    Service {
        object: ObjectKey::new(Kind::Service, key.namespace.as_str(), format!("svc{number}")),
        key,
        created: 0,
        labels: Labels::new(),
        annotations: Labels::new(),
        vips: vec![Vip::Ip(std::net::Ipv4Addr::from(0x0a60_0000 + u32::try_from(number).unwrap()).into())],
        ports: vec![ServicePort {
            name: "http".into(),
            port,
            protocol: Protocol::Http,
            target: TargetPort::Number(8080),
            node_port: None,
        }],
        resolution: Resolution::ClientSide,
        registry: Registry::Kubernetes,
        mesh_external: false,
        export_to: ExportTo::All,
        alias: None,
        selector: Labels::new(),
        subject_alt_names: Vec::new(),
        node_local: false,
        traffic_distribution: TrafficDistribution::Any,
        publish_not_ready: false,
    }
}

fn endpoint(ip: u32) -> Endpoint {
    Endpoint {
        address: Address::Ip(std::net::Ipv4Addr::from(0x0a00_0000 + ip).into()),
        additional_addresses: Vec::new(),
        port: 8080,
        service_port: "http".into(),
        labels: [("version", if ip.is_multiple_of(2) { "v1" } else { "v2" })].into_iter().collect(),
        service_account: None,
        namespace: "ns0".into(),
        workload: "w".into(),
        locality: Locality::default(),
        network: "".into(),
        cluster: "Kubernetes".into(),
        node: None,
        weight: None,
        health: Health::Healthy,
        mtls: false,
    }
}

fn locality(zone: &str) -> Locality {
    Locality { region: "r".into(), zone: zone.into(), subzone: "".into() }
}

/// A rule by which locality counts: without outlier detection it never does.
fn failing_over(service: usize, namespaces: usize) -> DestinationRule {
    let key = key(service, namespaces);
    let base = PortPolicy { outlier_detection: Some(OutlierDetection::default()), ..PortPolicy::default() };
    DestinationRule {
        meta: Meta {
            key: ObjectKey::new(Kind::DestinationRule, key.namespace.as_str(), format!("svc{service}")),
            created: 0,
            labels: Labels::new(),
            annotations: Labels::new(),
        },
        host: key.host,
        export_to: ExportTo::All,
        workload_selector: None,
        policy: Some(TrafficPolicy { base, ..TrafficPolicy::default() }),
        subsets: Vec::new(),
    }
}

fn rule(service: usize, namespaces: usize, weight: u32, export_to: ExportTo) -> VirtualService {
    let key = key(service, namespaces);
    let destination = |to: usize, weight| HttpDestination {
        destination: Destination { host: self::key(to, namespaces).host, subset: None, port: None },
        weight,
        headers: Headers::default(),
        authority_from_headers: None,
    };
    VirtualService {
        meta: Meta {
            key: ObjectKey::new(Kind::VirtualService, key.namespace.as_str(), format!("svc{service}")),
            created: 0,
            labels: Labels::new(),
            annotations: Labels::new(),
        },
        hosts: vec![key.host],
        gateways: vec![GatewayRef::Mesh],
        export_to,
        http: vec![HttpRule {
            name: None,
            matches: vec![HttpMatch {
                uri: Some(StringMatch::Prefix("/api".into())),
                ..HttpMatch::default()
            }],
            action: HttpAction::Route(vec![
                destination(service, 100 - weight),
                destination(service + 1, weight),
            ]),
            rewrite: None,
            timeout: None,
            retries: None,
            fault: None,
            mirrors: Vec::new(),
            mirror_percentage: None,
            cors: None,
            headers: Headers::default(),
            authority_from_headers: None,
        }],
        tls: Vec::new(),
        tcp: Vec::new(),
    }
}

fn proxy(number: usize, namespaces: usize) -> Proxy {
    let namespace = namespace(number % namespaces);
    Proxy {
        role: ProxyRole::Sidecar,
        node_id: format!("sidecar~10.9.0.1~pod{number}.{namespace}~{namespace}.svc.cluster.local").into(),
        workload: WorkloadId { namespace: namespace.clone(), name: format!("pod{number}").into() },
        dns_domain: format!("{namespace}.svc.cluster.local").into(),
        namespace,
        ips: vec!["10.9.0.1".parse().unwrap()],
        // What differs between pods and is selected by nobody must not matter.
        labels: [("pod-template-hash", format!("h{number}").as_str())].into_iter().collect(),
        locality: Locality::default(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        node: Some(format!("node{}", number % 50).into()),
        interception: Interception::Redirect,
        has_identity: true,
        metadata: BTreeMap::new(),
        settings: None,
        extensions: Vec::new(),
    }
}

fn mesh(services: usize, namespaces: usize) -> MeshViewBuilder {
    let mut builder = MeshViewBuilder::default();
    for number in 0..services {
        builder.set_service(service(number, namespaces, 80));
        builder
            .set_endpoints(&key(number, namespaces), Arc::from([endpoint(u32::try_from(number).unwrap())]));
    }
    builder
}

/// Publishes what was built and applies it.
fn apply(engine: &mut Engine, builder: &mut MeshViewBuilder) -> push::Applied {
    let (view, changes) = builder.publish().expect("something has changed");
    engine.apply(Arc::new(view), &changes)
}

/// Returns the names of resources that differ, by type.
fn difference(before: &Snapshot, after: &Snapshot) -> BTreeSet<(ResourceType, String)> {
    let mut different = BTreeSet::new();
    for kind in ResourceType::ALL {
        let (before, after) = (before.of(kind), after.of(kind));
        for (name, resource) in after {
            if before.get(name).is_none_or(|old| old.version() != resource.version()) {
                different.insert((kind, name.to_string()));
            }
        }
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        different.extend(gone.map(|name| (kind, name.to_string())));
    }
    different
}

#[test]
fn a_thousand_proxies_of_a_namespace_share_one_compilation() {
    let mut builder = mesh(50, 1);
    let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
    let _first = engine.connect(proxy(0, 1));
    let before = engine.counters().evaluated;
    for number in 1..1000 {
        engine.connect(proxy(number, 1));
    }
    assert_eq!(engine.group_count(), 1);
    // One selection each, and nothing else.
    assert_eq!(engine.counters().evaluated - before, 999);
}

#[test]
fn an_endpoint_that_flips_costs_one_assignment() {
    let namespaces = 10;
    let mut builder = mesh(1000, namespaces);
    let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
    let receivers: Vec<_> = (0..1000).map(|number| engine.connect(proxy(number, namespaces)).1).collect();
    let before = receivers[0].borrow().clone();

    builder.set_endpoints(&key(7, namespaces), Arc::from([endpoint(7), endpoint(8)]));
    let applied = apply(&mut engine, &mut builder);

    assert_eq!(applied.sessions, 1000);
    let after = receivers[0].borrow().clone();
    let name = "outbound|80||svc7.ns7.svc.cluster.local".to_owned();
    assert_eq!(difference(&before, &after), BTreeSet::from([(ResourceType::ClusterLoadAssignment, name)]));
    // One assignment for all, then for each of the ten audiences the set it is in and the snapshot of that.
    assert!(applied.evaluated <= 1 + 2 * 10, "{applied:?}");
    // Nothing is encoded twice: everybody has the same one.
    let assignment = |receiver: &tokio::sync::watch::Receiver<Arc<Snapshot>>| {
        receiver.borrow().assignments.get("outbound|80||svc7.ns7.svc.cluster.local").cloned().unwrap()
    };
    assert!(receivers.iter().all(|receiver| Arc::ptr_eq(&assignment(receiver), &assignment(&receivers[0]))));
}

#[test]
fn zones_share_all_that_does_not_depend_on_a_place() {
    let mut builder = mesh(50, 1);
    // Endpoints of a name are in the cluster, in the order of their distance.
    let named = Service { resolution: Resolution::Dns, ..service(50, 1, 80) };
    builder.set_service(named);
    let in_zone = |ip: u32, zone: &str| Endpoint { locality: locality(zone), ..endpoint(ip) };
    builder.set_endpoints(&key(50, 1), Arc::from([in_zone(1, "a"), in_zone(2, "b")]));
    builder.set_destination_rule(failing_over(50, 1));
    let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
    let in_zone = |number: usize, zone: &str| Proxy { locality: locality(zone), ..proxy(number, 1) };
    let (_, a) = engine.connect(in_zone(0, "a"));
    let before = engine.counters().evaluated;
    let (_, b) = engine.connect(in_zone(1, "b"));
    let (a, b) = (a.borrow().clone(), b.borrow().clone());
    let named = "outbound|80||svc50.ns0.svc.cluster.local".to_owned();
    assert_eq!(difference(&a, &b), BTreeSet::from([(ResourceType::Cluster, named.clone())]));
    let shared = |kind: ResourceType| {
        a.of(kind)
            .values()
            .filter(|resource| **resource.name() != *named)
            .all(|resource| b.of(kind).get(resource.name()).is_some_and(|other| Arc::ptr_eq(other, resource)))
    };
    assert!(ResourceType::ALL.into_iter().all(shared));
    // The choice of endpoints of each cluster, one cluster, and some sets: no other cluster, listener or route.
    assert!(engine.counters().evaluated - before <= 50 + 12, "{}", engine.counters().evaluated - before);
}

#[test]
fn a_rule_touches_only_those_who_import_it() {
    let namespaces = 10;
    let mut builder = mesh(100, namespaces);
    let own = ExportTo::Namespaces(BTreeSet::from([namespace(3)]));
    builder.set_virtual_service(rule(3, namespaces, 10, own.clone()));
    let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
    let receivers: Vec<_> = (0..100).map(|number| engine.connect(proxy(number, namespaces)).1).collect();
    let before: Vec<_> = receivers.iter().map(|receiver| receiver.borrow().clone()).collect();

    builder.set_virtual_service(rule(3, namespaces, 20, own));
    let applied = apply(&mut engine, &mut builder);

    assert_eq!(applied.sessions, 10);
    for (number, receiver) in receivers.iter().enumerate() {
        let different = difference(&before[number], &receiver.borrow());
        let expected = match number % namespaces {
            3 => BTreeSet::from([(ResourceType::RouteConfiguration, "80".to_owned())]),
            _ => BTreeSet::new(),
        };
        assert_eq!(different, expected, "proxy {number}");
    }
}

#[test]
fn what_nobody_needs_any_more_is_forgotten() {
    let mut builder = mesh(20, 2);
    let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
    let (id, _receiver) = engine.connect(proxy(0, 2));
    assert!(engine.remembered() > 20);
    engine.disconnect(id);
    engine.sweep();
    assert_eq!(engine.remembered(), 0);
    assert_eq!(engine.group_count(), 0);
}

#[derive(Clone, Debug)]
enum Edit {
    Service(usize, u16),
    RemoveService(usize),
    Endpoints(usize, u32),
    Rule(usize, u32, bool),
    RemoveRule(usize),
    Connect(usize),
    Disconnect(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0usize..8, prop_oneof![Just(80u16), Just(81)])
            .prop_map(|(service, port)| Edit::Service(service, port)),
        (0usize..8).prop_map(Edit::RemoveService),
        (0usize..8, 0u32..4).prop_map(|(service, count)| Edit::Endpoints(service, count)),
        (0usize..8, 0u32..100, any::<bool>())
            .prop_map(|(service, weight, all)| Edit::Rule(service, weight, all)),
        (0usize..8).prop_map(Edit::RemoveRule),
        (0usize..6).prop_map(Edit::Connect),
        (0usize..6).prop_map(Edit::Disconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_results_are_those_from_scratch(edits in prop::collection::vec(edit(), 1..30)) {
        let namespaces = 3;
        let mut builder = mesh(8, namespaces);
        let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
        let mut connected = BTreeMap::new();
        for edit in edits {
            match edit {
                Edit::Service(number, port) => builder.set_service(service(number, namespaces, port)),
                Edit::RemoveService(number) => builder.remove_service(&key(number, namespaces)),
                Edit::Endpoints(number, count) => {
                    if builder.view().registry().any(|(service, _)| service.key == key(number, namespaces)) {
                        builder.set_endpoints(&key(number, namespaces), (0..count).map(endpoint).collect());
                    }
                }
                Edit::Rule(number, weight, all) => {
                    let own = ExportTo::Namespaces(BTreeSet::from([namespace(number % namespaces)]));
                    let export_to = if all { ExportTo::All } else { own };
                    builder.set_virtual_service(rule(number, namespaces, weight, export_to));
                }
                Edit::RemoveRule(number) => {
                    builder.remove_virtual_service(&rule(number, namespaces, 0, ExportTo::All).meta.key);
                }
                Edit::Connect(number) => {
                    connected.entry(number).or_insert_with(|| engine.connect(proxy(number, namespaces)));
                }
                Edit::Disconnect(number) => {
                    if let Some((id, _)) = connected.remove(&number) {
                        engine.disconnect(id);
                        engine.sweep();
                    }
                }
            }
            if let Some((view, changes)) = builder.publish() {
                engine.apply(Arc::new(view), &changes);
            }
            for (number, (_, receiver)) in &connected {
                let (_, scratch) = query::snapshot(engine.view(), &Shared::new(proxy(*number, namespaces)));
                let different = difference(&receiver.borrow(), &scratch);
                prop_assert!(different.is_empty(), "proxy {number}: {different:?}");
            }
        }
    }
}

#[test]
fn it_is_known_what_an_object_went_into_and_what_went_into_a_resource() {
    let mut builder = mesh(20, 2);
    builder.set_virtual_service(rule(4, 2, 10, ExportTo::All));
    builder.set_virtual_service(rule(6, 2, 10, ExportTo::All));
    let mut engine = Engine::new(Arc::new(builder.publish().unwrap().0));
    let (_, receiver) = engine.connect(proxy(0, 2));
    let about = |number: usize| rule(number, 2, 0, ExportTo::All).meta.key;
    let resting = |engine: &Engine, number| engine.resting_on(&[Key::Object(about(number))]);

    let of_four = resting(&engine, 4);
    assert!(!of_four.is_empty());
    let snapshot = receiver.borrow().clone();
    for ((kind, name), versions) in &of_four {
        assert_eq!(*kind, ResourceType::RouteConfiguration, "{name}");
        let resource = snapshot.of(*kind).get(name).unwrap();
        assert!(versions.contains(resource.version()));
        let objects = engine.objects_in(*kind, name, resource.version());
        assert!(objects.contains(&about(4)), "{objects:?}");
        assert!(engine.objects_in(*kind, name, "another").is_empty());
    }
    let (kind, name) = (ResourceType::Cluster, "outbound|80||svc1.ns1.svc.cluster.local");
    let cluster = snapshot.clusters.get(name).unwrap();
    assert!(!engine.objects_in(kind, name, cluster.version()).contains(&about(4)));

    // With the object, what rests on it changes; and asking costs nothing.
    let before = engine.counters();
    builder.set_virtual_service(rule(4, 2, 50, ExportTo::All));
    apply(&mut engine, &mut builder);
    let changed = difference(&snapshot, &receiver.borrow());
    let now = resting(&engine, 4);
    assert!(
        !changed.is_empty()
            && changed.iter().all(|(kind, name)| now.contains_key(&(*kind, name.as_str().into())))
    );
    assert_ne!(now, of_four);
    assert!(resting(&engine, 9).is_empty(), "there is no such object");
    let after = engine.counters();
    assert!(after.evaluated > before.evaluated);
    resting(&engine, 6);
    assert_eq!(engine.counters(), after);
}
