use super::*;
use crate::service::{Address, Health, Locality, TrafficDistribution, Vip};
use crate::{Endpoint, Kind, Meta};

fn key(host: &str) -> ServiceKey {
    ServiceKey { host: host.into(), namespace: "app".into() }
}

fn service(host: &str, registry: Registry) -> Service {
    Service {
        key: key(host),
        object: ObjectKey::new(Kind::Service, "app", host),
        created: 0,
        labels: Labels::new(),
        annotations: Labels::new(),
        vips: Vec::new(),
        ports: Vec::new(),
        resolution: Resolution::ClientSide,
        registry,
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

fn endpoint(ip: &str, account: &str) -> Endpoint {
    Endpoint {
        address: Address::Ip(ip.parse().unwrap()),
        additional_addresses: Vec::new(),
        port: 80,
        service_port: "http".into(),
        labels: Labels::new(),
        service_account: Some(account.into()),
        namespace: "app".into(),
        workload: "w".into(),
        locality: Locality::default(),
        network: "".into(),
        cluster: "".into(),
        node: None,
        weight: None,
        health: Health::Healthy,
        mtls: false,
    }
}

fn changes(builder: &mut MeshViewBuilder) -> BTreeSet<Key> {
    builder.publish().map(|(_, changes)| changes.keys).unwrap_or_default()
}

#[test]
fn writing_what_is_there_publishes_nothing() {
    let mut builder = MeshViewBuilder::default();
    builder.set_service(service("a", Registry::Kubernetes));
    builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.1", "sa")]));
    assert!(builder.publish().is_some());
    builder.cause(ObjectKey::new(Kind::Service, "app", "a"));
    builder.set_service(service("a", Registry::Kubernetes));
    builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.1", "sa")]));
    assert!(builder.publish().is_none());
}

#[test]
fn a_new_address_of_the_same_account_changes_the_endpoints_only() {
    let mut builder = MeshViewBuilder::default();
    builder.set_service(service("a", Registry::Kubernetes));
    builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.1", "sa")]));
    builder.publish();
    builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.2", "sa")]));
    assert_eq!(changes(&mut builder), BTreeSet::from([Key::Endpoints(key("a"))]));
    builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.2", "other")]));
    let expected = BTreeSet::from([Key::Endpoints(key("a")), Key::ServiceAccounts(key("a"))]);
    assert_eq!(changes(&mut builder), expected);
}

#[test]
fn a_change_outside_the_row_leaves_the_rows_alone() {
    let mut builder = MeshViewBuilder::default();
    builder.set_service(service("a", Registry::Kubernetes));
    builder.publish();
    let moved =
        Service { vips: vec![Vip::Ip("10.96.0.1".parse().unwrap())], ..service("a", Registry::Kubernetes) };
    builder.set_service(moved);
    assert_eq!(changes(&mut builder), BTreeSet::from([Key::Service(key("a"))]));
}

#[test]
fn external_services_are_found_by_the_addresses_of_their_endpoints() {
    let mut builder = MeshViewBuilder::default();
    builder.set_service(service("ext", Registry::External));
    builder.set_endpoints(&key("ext"), Arc::from([endpoint("10.0.0.1", "sa")]));
    let (view, _) = builder.publish().unwrap();
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let mesh = Mesh::new(&view);
    assert_eq!(mesh.services_at(ip).collect::<Vec<_>>(), [&key("ext")]);
    assert_eq!(mesh.into_reads(), BTreeSet::from([Key::ServicesAt(ip)]));
    builder.remove_service(&key("ext"));
    assert!(changes(&mut builder).contains(&Key::ServicesAt(ip)));
    assert_eq!(Mesh::new(builder.view()).services_at(ip).count(), 0);
}

#[test]
fn destination_rules_are_found_by_host_and_pattern() {
    let rule = |name: &str, host: &str| DestinationRule {
        meta: Meta {
            key: ObjectKey::new(Kind::DestinationRule, "app", name),
            created: 0,
            labels: Labels::new(),
            annotations: Labels::new(),
        },
        host: host.into(),
        export_to: ExportTo::All,
        workload_selector: None,
        policy: None,
        subsets: Vec::new(),
    };
    let mut builder = MeshViewBuilder::default();
    for (name, host) in [("b", "b.org"), ("a2", "a.org"), ("a1", "a.org"), ("all", "*"), ("net", "*.net")] {
        builder.set_destination_rule(rule(name, host));
    }
    let (view, _) = builder.publish().unwrap();
    let mesh = Mesh::new(&view);
    let app = Namespace::new("app");
    let found = |host: &str| -> Vec<Str> {
        mesh.destination_rules_for(&app, &host.into()).map(|row| row.key.name.clone()).collect()
    };
    assert_eq!(found("a.org"), ["a1", "a2", "all"].map(Str::from));
    assert_eq!(found("x.net"), ["all", "net"].map(Str::from));
    assert_eq!(found("*.net"), ["net", "all"].map(Str::from));

    // Moving a rule to another host is a change for both, and nobody else's.
    builder.set_destination_rule(rule("b", "c.org"));
    let changed = changes(&mut builder);
    assert!(changed.contains(&Key::DestinationRulesFor(app.clone(), "b.org".into())));
    assert!(changed.contains(&Key::DestinationRulesFor(app.clone(), "c.org".into())));
    assert!(!changed.contains(&Key::WildcardDestinationRules(app.clone())));
    builder.remove_destination_rule(&ObjectKey::new(Kind::DestinationRule, "app", "all"));
    assert!(changes(&mut builder).contains(&Key::WildcardDestinationRules(app.clone())));
    assert_eq!(Mesh::new(builder.view()).destination_rules_for(&app, &"b.org".into()).count(), 0);
}

#[test]
fn labels_that_rank_endpoints_are_counted() {
    let near = Service {
        traffic_distribution: TrafficDistribution::PreferSameZone,
        ..service("a", Registry::Kubernetes)
    };
    let mut builder = MeshViewBuilder::default();
    builder.set_service(near.clone());
    builder.set_service(Service { key: key("b"), ..near.clone() });
    assert!(changes(&mut builder).contains(&Key::FailoverLabels));
    assert_eq!(Mesh::new(builder.view()).failover_labels().count(), 3);
    builder.remove_service(&key("a"));
    assert!(!changes(&mut builder).contains(&Key::FailoverLabels));
    builder.set_service(Service { key: key("b"), ..service("b", Registry::Kubernetes) });
    assert!(changes(&mut builder).contains(&Key::FailoverLabels));
    assert_eq!(Mesh::new(builder.view()).failover_labels().count(), 0);
}

#[test]
fn what_was_not_found_was_read_as_well() {
    let view = MeshView::default();
    let mesh = Mesh::new(&view);
    assert!(mesh.service(&key("a")).is_none());
    assert_eq!(mesh.into_reads(), BTreeSet::from([Key::Service(key("a"))]));
}
