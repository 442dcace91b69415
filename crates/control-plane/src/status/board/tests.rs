use super::*;
use k8s_api::yaml::parse_documents;
use proto::envoy::config::core::v3::Node;
use proto::resource::{Body, Needs, Resource};
use xds::session::{Distance, Quarantined};

fn rule(name: &str, generation: u32, labels: &str) -> Arc<Object> {
    let text = format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}, namespace: shop, generation: {generation}, labels: {{{labels}}}}}, spec: {{hosts: [a]}}}}"
    );
    Arc::new(parse_documents(&text, "test").pop().unwrap().unwrap().object)
}

fn key(name: &str) -> ObjectKey {
    rule(name, 1, "").key()
}

fn told(generation: u64, noted: Vec<Noted>) -> Told {
    Told { noted, generation }
}

fn names(names: &[&str]) -> Noted {
    Noted::Revisions(names.iter().map(|name| (*name).to_owned()).collect())
}

fn route(name: &str, content: &'static str) -> Arc<Resource> {
    let body = Body::Whole(content.as_bytes().into());
    Arc::new(Resource::new(ResourceType::RouteConfiguration, name, body, Needs::default()))
}

fn snapshot(routes: &[&Arc<Resource>]) -> Arc<Snapshot> {
    let routes = routes.iter().map(|route| (route.name().clone(), Arc::clone(route))).collect();
    Arc::new(Snapshot { routes, ..Snapshot::default() })
}

fn resting(routes: &[&Arc<Resource>]) -> Resting {
    let mut resting = Resting::new();
    for route in routes {
        let named = resting.entry((route.kind(), route.name().clone())).or_default();
        named.insert(route.version().clone());
    }
    resting
}

fn progress(stream: u64, desired: &Arc<Snapshot>, unsettled: &[&str]) -> Progress {
    let unsettled = unsettled.iter().map(|name| (ResourceType::RouteConfiguration, Arc::from(*name)));
    let unsettled: Vec<_> = unsettled.collect();
    let distance = Distance { is_settled: unsettled.is_empty(), unsettled, ..Distance::default() };
    let node = Arc::new(Node { id: format!("p{stream}"), ..Node::default() });
    Progress { stream, node, desired: desired.clone(), distance }
}

fn refusing(mut progress: Progress, route: &Arc<Resource>) -> Progress {
    let quarantined = Quarantined { name: route.name().clone(), version: route.version().clone() };
    progress.distance.rejected = vec![(route.kind(), quarantined, "bad".into())];
    progress
}

/// Total, acknowledged, and waited for.
fn numbers(counts: &Counts) -> (usize, usize, usize) {
    (counts.total, counts.acked, counts.waiting)
}

#[test]
fn an_object_is_in_force_where_everything_of_a_view_with_it_is_acknowledged() {
    let mut board = Board::default();
    board.take_in(told(7, vec![names(&["default"]), Noted::Is(rule("a", 1, ""))]));
    let (new, other) = (route("80", "new"), route("90", "other"));
    let (with, without) = (snapshot(&[&new, &other]), snapshot(&[&other]));
    let now = Instant::now();
    let a = resting(&[&new]);
    assert_eq!(board.entry(&key("a"), 1).unwrap().since, 7);
    assert!(board.entry(&key("a"), 2).is_none(), "it has not been seen yet");

    // Nobody has got as far as the seventh view.
    board.observe(vec![progress(1, &with, &[]), progress(2, &without, &[])], 6, now);
    assert_eq!(numbers(&board.counts(7, &a, now)), (1, 0, 2));
    // One has; the other one does not use the object, but may have used it before.
    board.observe(vec![progress(1, &with, &[]), progress(2, &without, &["90"])], 7, now);
    assert_eq!(numbers(&board.counts(7, &a, now)), (1, 1, 1));
    board.observe(vec![progress(1, &with, &[]), progress(2, &without, &[])], 8, now);
    assert_eq!(numbers(&board.counts(7, &a, now)), (1, 1, 0));
    // What comes later does not take that back, and who goes away does not count.
    board.observe(vec![progress(1, &with, &["80"])], 9, now);
    assert_eq!(numbers(&board.counts(7, &a, now)), (1, 1, 0));
    assert_eq!(numbers(&board.counts(9, &a, now)), (1, 0, 1));
}

#[test]
fn who_is_stuck_on_something_else_holds_nothing_up_for_ever() {
    let mut board = Board::default();
    let (ours, other) = (route("80", "ours"), route("90", "other"));
    let both = snapshot(&[&ours, &other]);
    let start = Instant::now();
    let later = start + STUCK_AFTER;
    board.observe(vec![progress(1, &both, &["90"])], 5, start);
    assert_eq!(numbers(&board.counts(5, &resting(&[&ours]), start)), (1, 0, 1));
    board.observe(vec![progress(1, &both, &["90"])], 6, later);
    assert_eq!(numbers(&board.counts(5, &resting(&[&ours]), later)), (1, 1, 0));
    assert_eq!(numbers(&board.counts(5, &resting(&[&other]), later)), (1, 0, 1));
}

#[test]
fn a_refusal_is_put_down_to_what_the_proxy_did_not_have_before() {
    let mut board = Board::default();
    board.take_in(told(1, vec![names(&["default"]), Noted::Is(rule("old", 1, ""))]));
    let (good, bad) = (route("80", "good"), route("80", "bad"));
    let now = Instant::now();
    assert!(board.observe(vec![progress(1, &snapshot(&[&good]), &[])], 1, now).is_empty());
    board.take_in(told(2, vec![Noted::Is(rule("new", 1, ""))]));
    let refused = || vec![refusing(progress(1, &snapshot(&[&bad]), &[]), &bad)];
    let fresh = board.observe(refused(), 2, now);
    assert_eq!(fresh, [(ResourceType::RouteConfiguration, bad.name().clone(), bad.version().clone())]);
    let both = ["old", "new"].map(|name| model::ObjectKey::new(model::Kind::VirtualService, "shop", name));
    board.blame(fresh[0].clone(), BTreeSet::from(both));
    let refusals = board.refusals();
    assert_eq!(
        Vec::from_iter(refusals.keys().cloned()),
        [key("new")],
        "the other one is in force all the same"
    );
    assert_eq!(refusals[&key("new")], Refusal { proxies: 1, words: "p1 refuses RDS 80: bad".to_owned() });
    // It stays so, although the proxy settles with what it has.
    assert!(board.observe(refused(), 9, now).is_empty());
    assert!(board.refusals().contains_key(&key("new")));
    // A proxy that comes later has never had any of it.
    let all = vec![
        refusing(progress(1, &snapshot(&[&bad]), &[]), &bad),
        refusing(progress(2, &snapshot(&[&bad]), &[]), &bad),
    ];
    board.observe(all, 9, now);
    assert_eq!(board.refusals().len(), 2);
    board.observe(
        vec![progress(1, &snapshot(&[&good]), &[]), progress(2, &snapshot(&[&good]), &[])],
        10,
        now,
    );
    assert!(board.refusals().is_empty());
}

#[test]
fn objects_belong_to_one_revision_and_are_noted_once_for_each_generation() {
    let mut board = Board::default();
    let all = [
        ("all", ""),
        ("own", "istio.io/rev: canary"),
        ("tagged", "istio.io/rev: prod"),
        ("other", "istio.io/rev: old"),
    ];
    let objects = all.map(|(name, labels)| rule(name, 1, labels));
    board.take_in(told(1, vec![names(&["canary", "prod"]), Noted::All("VirtualService", objects.to_vec())]));
    let ours = |board: &Board| board.ours().map(|entry| entry.reported.key.name.clone()).collect::<Vec<_>>();
    assert_eq!(ours(&board), ["own", "tagged"], "what has no revision is the default one's");
    board.take_in(told(2, vec![names(&["canary", "default"])]));
    assert_eq!(ours(&board), ["all", "own"]);
    // A status that changes makes no new generation.
    board.take_in(told(3, vec![Noted::Is(rule("own", 1, "istio.io/rev: canary"))]));
    assert_eq!(board.entry(&key("own"), 1).unwrap().since, 1);
    board.take_in(told(4, vec![Noted::Is(rule("own", 2, "istio.io/rev: canary"))]));
    assert_eq!(board.entry(&key("own"), 2).unwrap().since, 4);
    let gone = board
        .take_in(told(5, vec![Noted::Gone(key("own")), Noted::All("VirtualService", objects[..1].to_vec())]));
    let gone: Vec<String> =
        gone.into_iter().filter(|object| object.is_gone).map(|object| object.key.name).collect();
    assert_eq!(gone, ["own", "other", "tagged"]);
    assert_eq!(ours(&board), ["all"]);
}

#[test]
fn replicas_are_where_slices_say() {
    let mut board = Board::default();
    let at = |text: &str| BTreeSet::from([text.parse().unwrap()]);
    let one = Noted::Replicas("one".to_owned(), at("10.0.0.1:15012"));
    let two = Noted::Replicas("two".to_owned(), at("10.0.0.2:15012"));
    board.take_in(told(0, vec![one, two]));
    assert_eq!(board.replicas().len(), 2);
    board.take_in(told(0, vec![Noted::AllReplicas(BTreeSet::from(["two".to_owned()]))]));
    assert_eq!(board.replicas(), at("10.0.0.2:15012"));
    board.take_in(told(0, vec![Noted::Replicas("two".to_owned(), BTreeSet::new())]));
    assert!(board.replicas().is_empty());
}
