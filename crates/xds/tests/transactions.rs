//! Random configurations, changed at random moments, over a wire that delivers whenever it likes and breaks at any
//! message: whatever happens, no route in use names a cluster that cannot be used, and in the end everything that
//! can be is where it should be.

mod model;

use model::envoy::Character;
use model::wire::{DRAIN, Wire};
use model::world::{
    ClusterSpec, Content, HostSpec, Kind, ListenerSpec, Quality, RouteSpec, endpoints, set, snapshot,
};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;
use proto::resource::{ResourceType, Snapshot};
use std::collections::BTreeSet;
use std::sync::Arc;
use xds::session::Protocol;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The server reads this many requests.
    Requests(u8),
    /// The client reads this many responses.
    Responses(u8),
    /// The next snapshot is published.
    Publish,
    /// Time passes.
    Advance(u64),
    /// The stream breaks.
    Break,
}

#[derive(Clone, Debug)]
struct Story {
    character: Character,
    snapshots: Vec<Vec<Content>>,
    steps: Vec<Step>,
}

const CLUSTERS: [(&str, Kind); 6] = [
    ("c0", Kind::Eds),
    ("c1", Kind::Eds),
    ("c2", Kind::Eds),
    ("c3", Kind::Eds),
    ("c4", Kind::Dns),
    ("c5", Kind::Now),
];

/// Which clusters the client rejects. In SotW an answer is about everything sent so far, and a cluster that never warms
/// makes it come late or never: then it cannot be told for certain what is to blame, and a cluster that was taken up
/// with a rejected one may be missing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejects {
    Nothing,
    Named,
    Unnamed,
}

fn cluster(name: &'static str, warming: Kind, rejects: Rejects) -> impl Strategy<Value = Vec<Content>> {
    option::weighted(0.7, (0..3u8, 0..2u8)).prop_map(move |choice| {
        let Some((version, hosts)) = choice else { return Vec::new() };
        let quality = match (name, version) {
            ("c1" | "c2", 2) if rejects == Rejects::Named => Quality::Bad,
            ("c1", 2) if rejects == Rejects::Unnamed => Quality::Bad,
            ("c2", 2) if rejects == Rejects::Unnamed => Quality::BadUnnamed,
            _ => Quality::Good,
        };
        let secret = (name == "c3").then(|| "s".to_owned());
        let spec = ClusterSpec { name: name.to_owned(), version, warming, secret, quality };
        let mut contents = vec![Content::Cluster(spec)];
        if warming == Kind::Eds {
            contents.push(endpoints(name, hosts));
        }
        contents
    })
}

fn some_clusters(least: usize) -> impl Strategy<Value = BTreeSet<String>> {
    let names = vec!["c0", "c1", "c2", "c3", "c4", "c5", "ghost"];
    btree_set(select(names), least..3).prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

fn route(name: &'static str) -> impl Strategy<Value = Option<Content>> {
    let hosts = vec(option::weighted(0.7, some_clusters(1)), 3);
    let parts = (0..2u8, hosts, option::of(0..3usize), prop::bool::weighted(0.1), prop::bool::ANY);
    option::weighted(0.85, parts).prop_map(move |choice| {
        let (version, hosts, moving, bad, named) = choice?;
        let hosts = hosts.into_iter().enumerate().filter_map(|(index, clusters)| {
            let mut domains = set(&[&format!("d{index}")]);
            if moving == Some(index) {
                domains.insert("moving".to_owned());
            }
            Some(HostSpec { name: format!("h{index}"), domains, clusters: clusters? })
        });
        let quality = match (bad, named) {
            (false, _) => Quality::Good,
            (true, true) => Quality::Bad,
            (true, false) => Quality::BadUnnamed,
        };
        Some(Content::Route(RouteSpec { name: name.to_owned(), version, quality, hosts: hosts.collect() }))
    })
}

fn listener(address: u8) -> impl Strategy<Value = Option<Content>> {
    let routes = btree_set(select(vec!["r0".to_owned(), "r1".to_owned()]), 0..2);
    let parts = (prop::bool::ANY, 0..2u8, routes, some_clusters(0), prop::bool::weighted(0.1));
    option::weighted(0.85, parts).prop_map(move |choice| {
        // Two names for one address: one takes the other's place.
        let (other, version, routes, clusters, bad) = choice?;
        let name = format!("l{address}{}", if other { "b" } else { "" });
        let quality = if bad { Quality::Bad } else { Quality::Good };
        Some(Content::Listener(ListenerSpec {
            name,
            address,
            version,
            routes,
            clusters,
            secret: None,
            quality,
        }))
    })
}

fn contents(secret: bool, rejects: Rejects) -> impl Strategy<Value = Vec<Content>> {
    let [a, b, c, d, e, f] = CLUSTERS.map(|(name, warming)| cluster(name, warming, rejects));
    let routes = (route("r0"), route("r1"));
    let listeners = (listener(0), listener(1));
    let sloppy = prop::bool::weighted(0.2);
    ((a, b, c, d, e, f), routes, listeners, sloppy).prop_map(move |(clusters, routes, listeners, sloppy)| {
        let (a, b, c, d, e, f) = clusters;
        let mut contents = [a, b, c, d, e, f].concat();
        contents.extend([routes.0, routes.1, listeners.0, listeners.1].into_iter().flatten());
        if !sloppy {
            name_only_what_exists(&mut contents);
        }
        if secret {
            contents.push(Content::Secret("s".to_owned(), 0));
        }
        contents
    })
}

/// Most configurations name no destination that they do not have.
fn name_only_what_exists(contents: &mut [Content]) {
    let existing: BTreeSet<String> = contents
        .iter()
        .filter_map(|content| match content {
            Content::Cluster(spec) => Some(spec.name.clone()),
            _ => None,
        })
        .collect();
    for content in contents {
        match content {
            Content::Listener(spec) => spec.clusters.retain(|name| existing.contains(name)),
            Content::Route(spec) => {
                spec.hosts.iter_mut().for_each(|host| host.clusters.retain(|name| existing.contains(name)));
            }
            _ => {}
        }
    }
}

fn step(breaks: bool) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4u8).prop_map(Step::Requests),
        6 => (1..4u8).prop_map(Step::Responses),
        3 => Just(Step::Publish),
        2 => select(vec![10, 500, 2_500, 8_000, 16_000, 50_000]).prop_map(Step::Advance),
        u32::from(breaks) => Just(if breaks { Step::Break } else { Step::Publish }),
    ]
}

fn story(
    protocol: Protocol,
    breaks: bool,
    silent: impl Strategy<Value = BTreeSet<ResourceType>>,
    by_name: bool,
) -> impl Strategy<Value = Story> {
    (prop::bool::weighted(0.8), prop::bool::weighted(0.7), silent).prop_flat_map(
        move |(secret, resolves, silent)| {
            let by_name = by_name.then(|| set(&["l0", "l1"]));
            let character = Character { protocol, by_name, silent, resolves, drain: DRAIN };
            let rejects = match protocol {
                Protocol::Delta => Rejects::Unnamed,
                Protocol::Sotw if breaks => Rejects::Named,
                Protocol::Sotw => Rejects::Nothing,
            };
            (vec(contents(secret, rejects), 1..5), vec(step(breaks), 0..40))
                .prop_map(move |(snapshots, steps)| Story { character: character.clone(), snapshots, steps })
        },
    )
}

fn tell(story: &Story, check: bool) -> Wire {
    let mut snapshots = story.snapshots.iter().map(|contents| snapshot(contents));
    let first = snapshots.next().unwrap_or_default();
    let mut wire = Wire::new(story.character.clone(), first);
    wire.strict = check;
    for step in &story.steps {
        match step {
            Step::Requests(count) => {
                for _ in 0..*count {
                    wire.deliver_request();
                }
            }
            Step::Responses(count) => {
                for _ in 0..*count {
                    wire.deliver_response();
                    wire.check_references();
                }
            }
            Step::Publish => {
                if let Some(next) = snapshots.next() {
                    wire.publish(&next);
                }
            }
            Step::Advance(millis) => wire.advance(*millis),
            Step::Break => wire.reconnect(),
        }
        wire.check_references();
    }
    for next in snapshots {
        wire.publish(&next);
    }
    wire.finish();
    wire
}

/// (c) and (e): the client has what the snapshot says, as far as it takes it.
fn check_end(wire: &Wire) {
    let silent = &wire.client.character.silent;
    let snapshot: &Snapshot = &wire.snapshot;
    let status = wire.session.status();
    for kind in ResourceType::ALL {
        for (name, resource) in snapshot.of(kind) {
            let wanted = wire.client.wanted(kind);
            let everything = wire.client.character.by_name.is_none()
                && matches!(kind, ResourceType::Cluster | ResourceType::Listener);
            if (!everything && !wanted.contains(&**name)) || !good(resource.bytes()) {
                continue;
            }
            // What the client says of it on a new stream is wrong, and nobody can know.
            if wire.client.tainted.contains(&(kind, name.to_string())) {
                continue;
            }
            if wire.client.character.by_name.is_none()
                && kind != ResourceType::Cluster
                && !wire.client.initialised
            {
                continue;
            }
            assert_eq!(
                has(wire, kind, name),
                Some(model::world::read(resource.bytes())),
                "{name}: {wire_state:#?}",
                wire_state = wire.client
            );
            let acked = &status.channels[kind as usize].acked;
            let blocked = kind == ResourceType::Cluster && !wire.client.warming.is_empty();
            if !silent.contains(&kind) && !blocked {
                assert_eq!(acked.get(name), Some(resource), "{name} is not known to be acknowledged");
            }
        }
    }
    check_leftovers(wire);
}

/// What no snapshot has any more is gone, unless something in use names it.
fn check_leftovers(wire: &Wire) {
    let client = &wire.client;
    // Until the next acknowledgement, the clusters of a rejected response are kept; and until a listener has warmed,
    // those of the one before it.
    if !client.character.silent.is_empty()
        || !client.warming.is_empty()
        || !client.warming_listeners.is_empty()
        || !client.tainted.is_empty()
    {
        return;
    }
    // What a client brought along under the name of a route that no longer exists is not known.
    if client.routes.keys().any(|name| !wire.snapshot.routes.contains_key(name.as_str())) {
        return;
    }
    let named: BTreeSet<String> = wire.client.references().into_iter().map(|(_, cluster)| cluster).collect();
    for name in wire.client.clusters.keys() {
        assert!(
            wire.snapshot.clusters.contains_key(name.as_str()) || named.contains(name),
            "{name} is left over: {:#?}",
            wire.client
        );
    }
}

fn good(bytes: &[u8]) -> bool {
    match model::world::read(bytes) {
        Content::Cluster(spec) => spec.quality == Quality::Good,
        Content::Listener(spec) => spec.quality == Quality::Good,
        Content::Route(spec) => spec.quality == Quality::Good,
        Content::Assignment(..) | Content::Secret(..) => true,
    }
}

fn has(wire: &Wire, kind: ResourceType, name: &str) -> Option<Content> {
    let client = &wire.client;
    match kind {
        ResourceType::Cluster => {
            let newest = client.warming.get(name).or_else(|| client.clusters.get(name))?;
            Some(Content::Cluster(newest.spec.clone()))
        }
        ResourceType::Listener => {
            let newest = client.warming_listeners.get(name).or_else(|| client.listeners.get(name))?;
            Some(Content::Listener(newest.clone()))
        }
        ResourceType::RouteConfiguration => client.routes.get(name).cloned().map(Content::Route),
        ResourceType::ClusterLoadAssignment => Some(endpoints(name, *client.endpoints.get(name)?)),
        ResourceType::Secret => Some(Content::Secret(name.to_owned(), *client.secrets.get(name)?)),
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 5_000,
        ..ProptestConfig::default()
    }
}

fn nobody() -> impl Strategy<Value = BTreeSet<ResourceType>> {
    Just(BTreeSet::new())
}

fn some_types() -> impl Strategy<Value = BTreeSet<ResourceType>> {
    btree_set(select(ResourceType::ALL.to_vec()), 1..4)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_delta_client_converges_without_a_dangling_route(story in story(Protocol::Delta, true, nobody(), false)) {
        check_end(&tell(&story, true));
    }

    #[test]
    fn a_sotw_client_converges_without_a_dangling_route(story in story(Protocol::Sotw, false, nobody(), false)) {
        check_end(&tell(&story, true));
    }

    #[test]
    fn a_sotw_client_converges_across_broken_streams(story in story(Protocol::Sotw, true, nobody(), false)) {
        check_end(&tell(&story, false));
    }

    #[test]
    fn a_client_that_answers_only_some_types_converges(story in story(Protocol::Delta, true, some_types(), false)) {
        check_end(&tell(&story, true));
    }

    #[test]
    fn a_client_that_asks_by_name_converges(story in story(Protocol::Sotw, true, nobody(), true)) {
        check_end(&tell(&story, false));
    }

    #[test]
    fn a_delta_client_that_asks_by_name_converges(story in story(Protocol::Delta, true, nobody(), true)) {
        check_end(&tell(&story, false));
    }
}

#[test]
fn an_empty_story_ends() {
    let character = Character {
        protocol: Protocol::Delta,
        by_name: None,
        silent: BTreeSet::new(),
        resolves: true,
        drain: DRAIN,
    };
    let wire = tell(&Story { character, snapshots: Vec::new(), steps: Vec::new() }, true);
    assert_eq!(*wire.snapshot.clusters.keys().collect::<Vec<&Arc<str>>>(), Vec::<&Arc<str>>::new());
    assert!(wire.client.initialised);
}

/// A response that was on its way when an earlier one was rejected is rejected too, and so would be all that repeat it.
#[test]
fn what_was_rejected_is_not_repeated_for_ever() {
    let by_name = Some(set(&["l0", "l1"]));
    let character = Character {
        protocol: Protocol::Sotw,
        by_name,
        silent: BTreeSet::new(),
        resolves: true,
        drain: DRAIN,
    };
    let listener = |name: &str, address, route: &str| model::world::listener(name, address, &[route], &[]);
    let secret = || Content::Secret("s".to_owned(), 0);
    let host = model::world::host;
    let route = |name: &str, hosts| model::world::route(name, hosts);
    let c3 = ClusterSpec {
        name: "c3".to_owned(),
        version: 0,
        warming: Kind::Eds,
        secret: Some("s".to_owned()),
        quality: Quality::Good,
    };
    let first = vec![
        model::world::bad(route("r0", Vec::new()), Quality::BadUnnamed),
        route("r1", Vec::new()),
        listener("l0", 0, "r0"),
        listener("l1", 1, "r1"),
        secret(),
    ];
    let last = vec![
        model::world::bad(model::world::eds("c2", 2), Quality::Bad),
        endpoints("c2", 0),
        Content::Cluster(c3),
        endpoints("c3", 0),
        route("r0", vec![host("h2", &["c4"])]),
        route("r1", vec![host("h1", &["c3"]), host("h2", &["c2"])]),
        listener("l1", 1, "r0"),
        secret(),
    ];
    let steps = vec![Step::Requests(1), Step::Responses(1), Step::Requests(2)];
    check_end(&tell(&Story { character, snapshots: vec![first, vec![secret()], last], steps }, false));
}
