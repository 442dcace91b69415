//! The index from the outside: objects in, views out.

use index::{Index, Reset, Settings, Sourced};
use k8s_api::yaml::parse_documents;
use model::service::{Address, Health};
use model::{ChangeSet, Key, Kind, Mesh, MeshView, ObjectKey, ServiceKey, WorkloadId};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

fn objects(yaml: &str) -> Vec<Sourced> {
    let documents = parse_documents(yaml, "test.yaml");
    documents.into_iter().map(|document| Sourced::from_api(document.unwrap().object)).collect()
}

fn object(yaml: &str) -> Sourced {
    let mut objects = objects(yaml);
    assert_eq!(objects.len(), 1);
    objects.remove(0)
}

fn empty() -> Index {
    Index::new(Settings { domain: "cluster.local".into(), cluster: "c1".into() })
}

fn with(yaml: &str) -> Index {
    let mut index = empty();
    index.reset(&Reset::Everything, objects(yaml));
    index
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { host: format!("{name}.app.svc.cluster.local").as_str().into(), namespace: "app".into() }
}

/// Returns address, port and health of a service's endpoints, in order.
fn endpoints(view: &MeshView, key: &ServiceKey) -> Vec<String> {
    let health = |health| match health {
        Health::Healthy => "",
        Health::Unhealthy => " unhealthy",
        Health::Draining => " draining",
    };
    let address = |address: &Address| match address {
        Address::Ip(ip) => ip.to_string(),
        Address::Dns(host) => host.to_string(),
        Address::Unix(path) => path.to_string(),
    };
    let mesh = Mesh::new(view);
    let endpoints = mesh.endpoints(key).iter();
    endpoints.map(|e| format!("{}:{}{}", address(&e.address), e.port, health(e.health))).collect()
}

fn publish(index: &mut Index) -> (Arc<MeshView>, ChangeSet) {
    index.publish().expect("something has changed")
}

const CART: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: app}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: app, labels: {app: cart, version: v1, security.istio.io/tlsMode: istio}}
spec: {nodeName: n1, serviceAccountName: cart, containers: [{name: app, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}
";

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}}
";

fn slice(endpoints: &str) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: cart-a, namespace: app, labels: {{kubernetes.io/service-name: cart}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints: {endpoints}
"
    )
}

fn of_pod(conditions: &str) -> String {
    slice(&format!(
        "[{{addresses: [10.1.0.1], conditions: {conditions}, targetRef: {{kind: Pod, name: cart-1, namespace: app}}}}]"
    ))
}

#[test]
fn an_endpoint_takes_over_from_its_pod_and_node() {
    let yaml = [CART, &of_pod("{ready: true}"), POD, NODE].join("---");
    let (view, _) = publish(&mut with(&yaml));
    let mesh = Mesh::new(&view);
    let [endpoint] = mesh.endpoints(&key("cart")) else { panic!("one endpoint") };
    assert_eq!(endpoint.labels.get("version"), Some("v1"));
    assert_eq!(endpoint.labels.get("topology.kubernetes.io/zone"), Some("z1"));
    assert_eq!(endpoint.service_account.as_deref(), Some("spiffe://cluster.local/ns/app/sa/cart"));
    assert_eq!(endpoint.locality.to_string(), "r1/z1");
    assert_eq!(endpoint.workload.as_ref(), "cart-1");
    assert!(endpoint.mtls);
    let id = WorkloadId { namespace: "app".into(), name: "cart-1".into() };
    assert_eq!(mesh.workload(&id).expect("a pod is a workload").named_ports, [("web".into(), 8080)]);
}

#[test]
fn the_order_of_events_does_not_matter() {
    let all = [CART.to_owned(), of_pod("{ready: true}"), POD.to_owned(), NODE.to_owned()];
    let (expected, _) = publish(&mut with(&all.join("---")));
    for rotation in 0..all.len() {
        let mut index = empty();
        let mut order = all.clone();
        order.rotate_left(rotation);
        for yaml in &order {
            index.apply(object(yaml));
            index.publish();
        }
        let view = index.view();
        let (a, b) = (Mesh::new(&view), Mesh::new(&expected));
        assert_eq!(a.endpoints(&key("cart")), b.endpoints(&key("cart")), "rotated by {rotation}");
    }
}

#[test]
fn conditions_decide_whether_an_endpoint_is_sent() {
    for (conditions, expected) in [
        ("{}", &["10.1.0.1:8080"][..]),
        ("{ready: false, terminating: false}", &["10.1.0.1:8080 unhealthy"]),
        ("{ready: false}", &[]),
        ("{ready: false, serving: true, terminating: true}", &[]),
    ] {
        let yaml = [CART, &of_pod(conditions), POD].join("---");
        let (view, _) = publish(&mut with(&yaml));
        assert_eq!(endpoints(&view, &key("cart")), expected, "{conditions}");
    }
}

#[test]
fn an_endpoint_waits_for_its_pod() {
    let mut index = with(&[CART, &of_pod("{ready: true}")].join("---"));
    let (view, _) = publish(&mut index);
    assert_eq!(endpoints(&view, &key("cart")), [""; 0]);
    index.apply(object(POD));
    let (view, changes) = publish(&mut index);
    assert_eq!(endpoints(&view, &key("cart")), ["10.1.0.1:8080"]);
    assert!(changes.keys.contains(&Key::Endpoints(key("cart"))));
    assert!(!changes.keys.contains(&Key::Services));
}

#[test]
fn a_slice_that_names_no_pod_is_taken_as_it_is() {
    let yaml = [CART, &slice("[{addresses: [10.9.0.1]}]")].join("---");
    let (view, _) = publish(&mut with(&yaml));
    assert_eq!(endpoints(&view, &key("cart")), ["10.9.0.1:8080"]);
}

#[test]
fn a_change_of_status_alone_publishes_nothing() {
    let mut index = with(&[CART, &of_pod("{ready: true}"), POD].join("---"));
    publish(&mut index);
    index.apply(object(&POD.replace("phase: Running", "phase: Running, hostIP: 1.2.3.4")));
    assert!(index.publish().is_none());
}

#[test]
fn a_reset_removes_only_what_it_names() {
    let mut index = with(&[CART, &of_pod("{ready: true}"), POD].join("---"));
    publish(&mut index);
    index.reset(&Reset::Kind("Pod"), Vec::new());
    let (view, _) = publish(&mut index);
    assert_eq!(endpoints(&view, &key("cart")), [""; 0]);
    assert_eq!(view.service_count(), 1);
    index.reset(&Reset::Kind("Pod"), objects(POD));
    let (view, _) = publish(&mut index);
    assert_eq!(endpoints(&view, &key("cart")), ["10.1.0.1:8080"]);
}

const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: app}
spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}
";

#[test]
fn a_refused_form_leaves_the_last_good_one_in_use() {
    let mut index = with(&[CART, ROUTE].join("---"));
    publish(&mut index);
    index.apply(object(&ROUTE.replace("host: cart}", "host: cart}, weight: -1")));
    assert!(index.publish().is_none());
    let key = ObjectKey::new(Kind::VirtualService, "app", "cart");
    let findings = &index.findings()[&key];
    assert!(findings.serves_last_good);
    let rejection = &findings.findings[0].rejection;
    assert!(rejection.field.contains("spec.http[0].route[0]"), "{rejection}");
    assert_eq!(index.take_fresh_findings().len(), 1);
    // Right again, and nothing is left to say.
    index.apply(object(ROUTE));
    assert!(index.publish().is_none());
    assert!(index.findings().is_empty());
    assert_eq!(index.take_fresh_findings(), [(key, None)]);
}

#[test]
fn a_change_of_a_delegate_changes_its_root() {
    let root = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: app}
spec: {hosts: [cart], http: [{match: [{uri: {prefix: /a}}], delegate: {name: leaf, namespace: app}}]}
";
    let leaf = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: app}
spec: {http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: cart}}]}]}
";
    let mut index = with(root);
    publish(&mut index);
    let key = ObjectKey::new(Kind::VirtualService, "app", "root");
    let rules = |view: &MeshView| Mesh::new(view).virtual_service(&key).map_or(0, |rule| rule.http.len());
    assert_eq!(rules(&index.view()), 0);
    index.apply(object(leaf));
    let (view, changes) = publish(&mut index);
    assert_eq!(rules(&view), 1);
    assert!(changes.keys.contains(&Key::Object(key.clone())));
    index.reset(&Reset::Everything, objects(root));
    let (view, _) = publish(&mut index);
    assert_eq!(rules(&view), 0);
}

#[test]
fn a_service_entry_leads_to_its_endpoints_and_to_what_it_selects() {
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: app}
spec:
  hosts: [db.example.org]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: tcp, number: 5432, protocol: TCP}]
  workloadSelector: {labels: {app: db}}
";
    let workload = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-1, namespace: app}
spec: {address: 10.2.0.1, labels: {app: db}, ports: {tcp: 15432}, serviceAccount: db}
";
    let db = ServiceKey { host: "db.example.org".into(), namespace: "app".into() };
    let mut index = with(entry);
    let (view, _) = publish(&mut index);
    assert_eq!(endpoints(&view, &db), [""; 0]);
    index.apply(object(workload));
    let (view, _) = publish(&mut index);
    assert_eq!(endpoints(&view, &db), ["10.2.0.1:15432"]);
    index.apply(object(&workload.replace("labels: {app: db}", "labels: {app: other}")));
    let (view, _) = publish(&mut index);
    assert_eq!(endpoints(&view, &db), [""; 0]);
}

/// Everything that a few objects may look like, several forms of each.
fn forms() -> Vec<Vec<String>> {
    vec![
        vec![CART.to_owned(), CART.replace("port: 80,", "port: 81,")],
        vec![of_pod("{ready: true}"), of_pod("{ready: false, terminating: false}"), slice("[]")],
        vec![POD.to_owned(), POD.replace("version: v1", "version: v2"), POD.replace("10.1.0.1", "10.1.0.2")],
        vec![NODE.to_owned(), NODE.replace("z1", "z2")],
        vec![ROUTE.to_owned(), ROUTE.replace("hosts: [cart]", "hosts: [cart, other]")],
    ]
}

fn state(index: &Index) -> String {
    let view = index.view();
    let services: Vec<_> = view.registry().collect();
    let mesh = Mesh::new(&view);
    let rules: BTreeSet<String> = mesh.virtual_services().map(|row| format!("{row:?}")).collect();
    format!("{services:?} {rules:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_published_follows_from_the_objects_that_are_there(
        steps in prop::collection::vec((0usize..5, 0usize..4, any::<bool>()), 1..40),
    ) {
        let forms = forms();
        let mut index = empty();
        let mut present: Vec<Option<String>> = vec![None; forms.len()];
        for (which, form, publish) in steps {
            match forms[which].get(form) {
                Some(yaml) => {
                    index.apply(object(yaml));
                    present[which] = Some(yaml.clone());
                }
                None => {
                    if let Some(yaml) = present[which].take() {
                        index.delete(&object(&yaml).object.key());
                    }
                }
            }
            if publish {
                index.publish();
            }
        }
        index.publish();
        let yaml: Vec<String> = present.into_iter().flatten().collect();
        let mut fresh = empty();
        for yaml in &yaml {
            fresh.apply(object(yaml));
        }
        fresh.publish();
        prop_assert_eq!(state(&index), state(&fresh));
    }
}

#[test]
fn namespaces_that_no_selector_selects_are_no_part_of_the_mesh() {
    let selectors = |yaml: &str| {
        let yaml = format!("discoverySelectors: {yaml}");
        let config = k8s_api::mesh_config::MeshConfig::parse(&[("test", &yaml)]).unwrap().config;
        translate::mesh_config(&"cluster.local".into(), &"c1".into(), &config).value.unwrap()
    };
    let namespace = |labels: &str| {
        object(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: app, labels: {labels}}}}}"))
    };
    let set = |index: &mut Index, yaml: &str| {
        let mesh = selectors(yaml);
        index.set_mesh_config(mesh.config, mesh.context);
    };
    let rule = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: app}
spec: {hosts: [cart], http: [{timeout: -1s, route: [{destination: {host: cart}}]}]}
";
    let good = rule.replace("-1s", "1s");
    let mut index = with(&format!("{CART}---{POD}---{good}"));
    let (all, _) = publish(&mut index);
    let seen = |index: &mut Index| {
        index.publish();
        let view = index.view();
        let mesh = Mesh::new(&view);
        let workload = WorkloadId { namespace: "app".into(), name: "cart-1".into() };
        (view.service_count(), mesh.virtual_services().count(), mesh.workload(&workload).is_some())
    };
    assert_eq!(all.service_count(), 1);
    set(&mut index, "[{matchLabels: {mesh: 'yes'}}]");
    assert_eq!(seen(&mut index), (0, 0, false));
    assert_eq!(index.findings().len(), 0);
    // What is not in the mesh is not checked either.
    index.apply(object(rule));
    assert_eq!((seen(&mut index), index.findings().len()), ((0, 0, false), 0));
    index.apply(object(&good));

    index.apply(namespace("{mesh: 'yes'}"));
    assert_eq!(seen(&mut index), (1, 1, true));
    index.apply(namespace("{mesh: 'no'}"));
    assert_eq!(seen(&mut index), (0, 0, false));
    set(&mut index, "[{matchLabels: {other: x}}, {matchLabels: {mesh: 'no'}}]");
    assert_eq!(seen(&mut index), (1, 1, true));
    index.delete(&namespace("{}").object.key());
    assert_eq!(seen(&mut index), (0, 0, false));
    // Its name is a label of every namespace, also of one that there is no object of.
    set(&mut index, "[{matchLabels: {kubernetes.io/metadata.name: app}}]");
    assert_eq!(seen(&mut index), (1, 1, true));
    set(&mut index, "[]");
    assert_eq!(seen(&mut index), (1, 1, true));
}

#[test]
fn conflicts_are_findings_until_they_are_over() {
    let gateway = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: app}
spec: {selector: {app: edge}, servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]}
";
    let mut index = with(gateway);
    publish(&mut index);
    let rejection = model::Rejection {
        object: ObjectKey::new(Kind::Gateway, "app", "edge"),
        field: "spec.servers[0].port".to_owned(),
        reason: "is taken".to_owned(),
    };
    index.set_conflicts(vec![rejection.clone()]);
    let fresh = index.take_fresh_findings();
    assert_eq!(fresh[0].1.as_ref().unwrap().findings[0].rejection, rejection);
    index.set_conflicts(vec![rejection]);
    assert_eq!(index.take_fresh_findings(), []);
    // They stay with the object while it changes in other ways.
    index.apply(object(&gateway.replace("'*'", "a.test")));
    publish(&mut index);
    assert_eq!((index.findings().len(), index.take_fresh_findings().len()), (1, 0));
    index.set_conflicts(Vec::new());
    assert_eq!(index.findings().len(), 0);
    assert_eq!(index.take_fresh_findings().len(), 1);
}

#[test]
fn objects_of_another_revision_are_left_out_until_they_or_a_tag_say_otherwise() {
    let entry = |name: &str, labels: &str| {
        object(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: app, labels: {{{labels}}}}},
              spec: {{hosts: [{name}.test], ports: [{{name: http, number: 80}}], resolution: NONE}}}}"
        ))
    };
    let refused = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a, namespace: app, labels: {istio.io/rev: canary}}, spec: {hosts: []}}";
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let hosts = |index: &mut Index| -> Vec<String> {
        index.publish();
        let view = index.view();
        view.registry().map(|(service, _)| service.key.host.to_string()).collect()
    };
    let about = ObjectKey::new(Kind::VirtualService, "app", "a");
    let mut index = empty();
    index.apply(entry("all", "app: x"));
    index.apply(entry("own", "istio.io/rev: default"));
    index.apply(entry("other", "istio.io/rev: canary"));
    index.apply(object(refused));
    assert_eq!(
        hosts(&mut index),
        ["all.test", "other.test", "own.test"],
        "nobody has said which revision this is"
    );
    assert!(index.findings().contains_key(&about), "{:?}", index.findings());

    index.set_revisions(names(&["default"]));
    assert_eq!(hosts(&mut index), ["all.test", "own.test"]);
    assert!(!index.findings().contains_key(&about), "what is wrong with it is the business of others");
    assert!(index.publish().is_none());
    index.set_revisions(names(&["default", "canary"]));
    assert_eq!(hosts(&mut index), ["all.test", "other.test", "own.test"], "a tag has moved here");
    assert!(index.findings().contains_key(&about), "{:?}", index.findings());
    index.set_revisions(names(&["default", "prod"]));
    assert_eq!(hosts(&mut index), ["all.test", "own.test"]);

    // The label of an object changes.
    index.apply(entry("other", "istio.io/rev: prod"));
    index.apply(entry("own", "istio.io/rev: canary"));
    assert_eq!(hosts(&mut index), ["all.test", "other.test"]);
    index.apply(entry("own", ""));
    assert_eq!(hosts(&mut index), ["all.test", "other.test", "own.test"]);
    // Services belong to all.
    index.apply(object(&CART.replace("namespace: app}", "namespace: app, labels: {istio.io/rev: canary}}")));
    assert_eq!(hosts(&mut index).len(), 4);
}
