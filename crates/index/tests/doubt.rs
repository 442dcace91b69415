//! Services of which no EndpointSlice tells: what is served meanwhile, and for how long. Time is an argument.

use index::{Doubt, ENDPOINT_DOUBT, Index, Settings, Sourced};
use k8s_api::yaml::parse_documents;
use model::service::{Address, Health};
use model::{Kind, Mesh, ObjectKey, ServiceKey};
use std::time::{Duration, Instant};

const MOMENT: Duration = Duration::from_millis(10);

/// An index and a clock.
struct World {
    index: Index,
    now: Instant,
}

fn object(yaml: &str) -> Sourced {
    let document = parse_documents(yaml, "test.yaml").pop().unwrap().unwrap();
    Sourced::from_api(document.object)
}

fn service(fields: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: cart, namespace: app}}, spec: {{clusterIP: 10.96.0.1, selector: {{app: cart}}, {fields} ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}"
    )
}

fn slice(name: &str, address_type: &str, endpoints: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: app, labels: {{kubernetes.io/service-name: cart}}}}, addressType: {address_type}, ports: [{{name: http, port: 8080}}], endpoints: {endpoints}}}"
    )
}

/// An endpoint of a slice, at 10.1.0.N.
fn listed(number: u8, conditions: &str) -> String {
    format!(
        "{{addresses: [10.1.0.{number}], conditions: {conditions}, targetRef: {{kind: Pod, name: cart-{number}, namespace: app}}}}"
    )
}

fn pod(number: u8, ready: &str, metadata: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: cart-{number}, namespace: app, labels: {{app: cart}}{metadata}}}, spec: {{}}, status: {{podIP: 10.1.0.{number}, phase: Running, conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
    )
}

impl World {
    /// Has a Service with two pods in one slice, `a`, and has published it.
    fn with_two_pods() -> Self {
        let mut world = Self::empty();
        world.apply(&service(""));
        world.apply(&pod(1, "True", ""));
        world.apply(&pod(2, "True", ""));
        world.apply(&two("a"));
        assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
        world
    }

    /// Has published a mesh of nothing.
    fn empty() -> Self {
        let index = Index::new(Settings { domain: "cluster.local".into(), cluster: "c1".into() });
        let mut world = Self { index, now: Instant::now() };
        world.publish();
        world
    }

    fn apply(&mut self, yaml: &str) {
        self.index.apply(object(yaml));
    }

    fn delete(&mut self, yaml: &str) {
        self.index.delete(&object(yaml).object.key());
    }

    fn publish(&mut self) {
        self.index.publish_at(self.now);
    }

    /// Publishes as weftd does while so much time passes: when something has changed, and when a doubt is over.
    fn pass(&mut self, time: Duration) {
        self.publish();
        let end = self.now + time;
        while let Some(next) = self.index.doubts_until().filter(|next| *next <= end) {
            assert!(next > self.now, "time goes on");
            self.now = next;
            self.publish();
        }
        self.now = end;
    }

    /// Publishes and returns the addresses that get traffic.
    fn endpoints(&mut self) -> Vec<String> {
        self.publish();
        let view = self.index.view();
        let mesh = Mesh::new(&view);
        let healthy = mesh.endpoints(&key()).iter().filter(|endpoint| endpoint.health == Health::Healthy);
        healthy
            .map(|endpoint| match &endpoint.address {
                Address::Ip(ip) => ip.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn knows_the_service(&mut self) -> bool {
        self.publish();
        self.index.view().service_count() == 1
    }
}

fn key() -> ServiceKey {
    ServiceKey { host: "cart.app.svc.cluster.local".into(), namespace: "app".into() }
}

fn cart() -> ObjectKey {
    ObjectKey::new(Kind::Service, "app", "cart")
}

fn two(name: &str) -> String {
    slice(name, "IPv4", &format!("[{}, {}]", listed(1, "{ready: true}"), listed(2, "{ready: true}")))
}

const NOTHING: [&str; 0] = [];

#[test]
fn endpoints_stay_while_their_slice_is_replaced_by_one_of_another_name() {
    let mut world = World::with_two_pods();
    world.delete(&two("a"));
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
    world.pass(ENDPOINT_DOUBT - MOMENT);
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
    let one = slice("b", "IPv4", &format!("[{}]", listed(2, "{ready: true}")));
    world.apply(&one);
    // What a slice says takes effect at once.
    assert_eq!(world.endpoints(), ["10.1.0.2"]);
    assert_eq!(world.index.take_doubts(), [Doubt::Kept(cart())]);
    world.pass(ENDPOINT_DOUBT * 2);
    assert_eq!(world.endpoints(), ["10.1.0.2"]);
    assert_eq!(world.index.take_doubts(), []);
    assert_eq!(world.index.doubts_until(), None);
}

fn one(name: &str, number: u8) -> String {
    slice(name, "IPv4", &format!("[{}]", listed(number, "{ready: true}")))
}

#[test]
fn slices_that_go_together_stay_together() {
    let mut world = World::with_two_pods();
    world.apply(&one("a", 1));
    world.apply(&one("b", 2));
    world.publish();
    // As after a new list: the order says nothing, and one has been touched before.
    world.delete(&one("a", 1));
    world.apply(&one("b", 2));
    world.apply(&one("a", 1));
    world.delete(&one("a", 1));
    world.delete(&one("b", 2));
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
    world.pass(ENDPOINT_DOUBT);
    assert_eq!(world.endpoints(), NOTHING);
}

#[test]
fn a_slice_that_went_before_the_last_one_is_believed() {
    let mut world = World::with_two_pods();
    world.apply(&one("a", 1));
    world.apply(&one("b", 2));
    world.publish();
    world.delete(&one("a", 1));
    assert_eq!(world.endpoints(), ["10.1.0.2"]);
    world.delete(&one("b", 2));
    assert_eq!(world.endpoints(), ["10.1.0.2"]);
    // Not those that went with another that is back.
    world.apply(&one("b", 2));
    world.apply(&one("a", 1));
    world.publish();
    world.delete(&one("b", 2));
    world.apply(&one("c", 2));
    world.delete(&one("a", 1));
    world.delete(&one("c", 2));
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
}

#[test]
fn a_service_that_stays_without_slices_has_no_endpoints() {
    let mut world = World::with_two_pods();
    world.delete(&two("a"));
    world.publish();
    assert_eq!(world.index.doubts_until(), Some(world.now + ENDPOINT_DOUBT));
    world.pass(ENDPOINT_DOUBT);
    assert_eq!(world.endpoints(), NOTHING);
    assert!(world.knows_the_service());
    assert_eq!(world.index.take_doubts(), [Doubt::Kept(cart()), Doubt::Believed(cart())]);
    assert_eq!(world.index.doubts_until(), None);
}

#[test]
fn what_a_slice_says_is_not_doubted() {
    let gone = "{ready: false, serving: true, terminating: true}";
    for endpoints in [
        "[]".to_owned(),
        format!("[{}, {}]", listed(1, "{ready: false}"), listed(2, "{ready: false, terminating: false}")),
        format!("[{}, {}]", listed(1, gone), listed(2, gone)),
    ] {
        let mut world = World::with_two_pods();
        world.apply(&slice("a", "IPv4", &endpoints));
        assert_eq!(world.endpoints(), NOTHING, "{endpoints}");
        assert_eq!((world.index.take_doubts(), world.index.doubts_until()), (Vec::new(), None));
        // Nor does it come back when the slice goes.
        world.delete(&two("a"));
        assert_eq!(world.endpoints(), NOTHING, "{endpoints}");
    }
}

#[test]
fn a_slice_less_is_not_doubted_while_there_is_another() {
    let mut world = World::with_two_pods();
    let one = slice("b", "IPv4", &format!("[{}]", listed(2, "{ready: true}")));
    world.apply(&one);
    world.delete(&two("a"));
    assert_eq!(world.endpoints(), ["10.1.0.2"]);
    assert_eq!(world.index.doubts_until(), None);
    // And what went before is not what went last.
    world.delete(&one);
    assert_eq!(world.endpoints(), ["10.1.0.2"]);
}

#[test]
fn each_address_family_is_doubted_by_itself() {
    let mut world = World::with_two_pods();
    let six = slice("six", "IPv6", "[{addresses: ['fd00::1']}]");
    world.apply(&six);
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2", "fd00::1"]);
    world.delete(&two("a"));
    let mut kept = world.endpoints();
    kept.sort();
    assert_eq!(kept, ["10.1.0.1", "10.1.0.2", "fd00::1"]);
    world.delete(&six);
    assert_eq!(world.endpoints().len(), 3);
    world.apply(&two("b"));
    let mut kept = world.endpoints();
    kept.sort();
    assert_eq!(kept, ["10.1.0.1", "10.1.0.2", "fd00::1"]);
    world.pass(ENDPOINT_DOUBT);
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
}

#[test]
fn a_pod_that_stops_is_not_kept() {
    for (what, say) in [
        ("deleted", None),
        ("not ready", Some(pod(1, "False", ""))),
        ("terminating", Some(pod(1, "True", ", deletionTimestamp: '2026-01-01T00:00:00Z'"))),
        ("finished", Some(pod(1, "True", "").replace("Running", "Succeeded"))),
        ("elsewhere", Some(pod(1, "True", "").replace("podIP: 10.1.0.1", "podIP: 10.1.0.9"))),
    ] {
        for slice_goes_first in [true, false] {
            let mut world = World::with_two_pods();
            if slice_goes_first {
                world.delete(&two("a"));
                assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
            }
            match &say {
                Some(yaml) => world.apply(yaml),
                None => world.delete(&pod(1, "True", "")),
            }
            if !slice_goes_first {
                world.publish();
                world.delete(&two("a"));
            }
            assert_eq!(world.endpoints(), ["10.1.0.2"], "{what}");
        }
    }
}

#[test]
fn a_service_whose_pods_have_all_stopped_has_no_endpoints_at_once() {
    let mut world = World::with_two_pods();
    world.delete(&two("a"));
    world.delete(&pod(1, "True", ""));
    world.delete(&pod(2, "True", ""));
    assert_eq!(world.endpoints(), NOTHING);
    assert!(world.knows_the_service());
    assert_eq!(world.index.take_doubts(), []);
}

#[test]
fn a_service_that_wants_pods_that_are_not_ready_keeps_them() {
    let mut world = World::with_two_pods();
    world.apply(&service("publishNotReadyAddresses: true,"));
    world.apply(&pod(1, "False", ""));
    world.delete(&two("a"));
    assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
}

#[test]
fn a_service_that_is_deleted_and_made_again_has_its_endpoints_until_its_new_slice_comes() {
    // Whoever makes the slices takes the old one away before or after the Service is there again.
    for slice_goes_first in [true, false] {
        let mut world = World::with_two_pods();
        world.delete(&service(""));
        assert!(!world.knows_the_service());
        if slice_goes_first {
            world.delete(&two("a"));
            world.pass(Duration::from_secs(3));
            world.apply(&service(""));
        } else {
            world.pass(Duration::from_secs(3));
            world.apply(&service(""));
            world.delete(&two("a"));
        }
        assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
        // It has the whole time from when it was there again.
        world.pass(ENDPOINT_DOUBT - MOMENT);
        assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
        world.apply(&two("b"));
        world.pass(ENDPOINT_DOUBT);
        assert_eq!(world.endpoints(), ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(world.index.take_doubts(), [Doubt::Kept(cart())]);
    }
}

#[test]
fn slices_of_a_service_that_was_deleted_long_ago_are_forgotten() {
    let mut world = World::with_two_pods();
    world.delete(&service(""));
    world.delete(&two("a"));
    world.pass(ENDPOINT_DOUBT);
    assert_eq!((world.index.take_doubts(), world.index.doubts_until()), (Vec::new(), None));
    world.apply(&service(""));
    assert_eq!(world.endpoints(), NOTHING);
}

#[test]
fn a_service_that_is_new_waits_for_its_slice() {
    let mut world = World::empty();
    world.apply(&service(""));
    world.apply(&pod(1, "True", ""));
    assert!(!world.knows_the_service());
    world.pass(ENDPOINT_DOUBT - MOMENT);
    // An edit does not start the wait again.
    world.apply(&service("sessionAffinity: None, type: NodePort,"));
    assert!(!world.knows_the_service());
    let mut late = World { index: std::mem::replace(&mut world.index, World::empty().index), now: world.now };
    late.pass(MOMENT);
    assert!(late.knows_the_service());
    assert_eq!(late.endpoints(), NOTHING);
    assert_eq!(late.index.take_doubts(), [Doubt::Awaited(cart()), Doubt::Believed(cart())]);
    assert_eq!(late.index.doubts_until(), None);
}

#[test]
fn a_slice_ends_the_wait_even_if_it_lists_nothing() {
    for (endpoints, expected) in
        [("[]".to_owned(), &[][..]), (format!("[{}]", listed(1, "{ready: true}")), &["10.1.0.1"])]
    {
        let mut world = World::empty();
        world.apply(&pod(1, "True", ""));
        world.apply(&service(""));
        assert!(!world.knows_the_service());
        world.apply(&slice("a", "IPv4", &endpoints));
        assert!(world.knows_the_service());
        assert_eq!(world.endpoints(), expected);
        assert_eq!(world.index.doubts_until(), None);
    }
}

#[test]
fn services_that_need_no_slices_do_not_wait_for_any() {
    let external = service("type: ExternalName, externalName: a.test,");
    let entry = "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, namespace: app}, spec: {address: 10.2.0.1, labels: {app: cart}}}";
    let mut world = World::empty();
    world.apply(&external);
    assert!(world.knows_the_service());
    let mut world = World::empty();
    world.apply(entry);
    world.apply(&service(""));
    assert_eq!(world.endpoints(), ["10.2.0.1"]);
}

#[test]
fn what_is_there_at_the_start_is_not_doubted() {
    let index = Index::new(Settings { domain: "cluster.local".into(), cluster: "c1".into() });
    let mut world = World { index, now: Instant::now() };
    world.apply(&service(""));
    assert!(world.knows_the_service());
    assert_eq!(world.index.take_doubts(), []);
}

#[test]
fn without_a_clock_nothing_is_doubted() {
    let mut world = World::with_two_pods();
    world.delete(&two("a"));
    world.index.publish();
    let view = world.index.view();
    assert!(Mesh::new(&view).endpoints(&key()).is_empty());
    assert_eq!(world.index.doubts_until(), None);
}
