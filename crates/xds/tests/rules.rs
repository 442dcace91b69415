//! The rules of the protocol core, one by one.

mod model;

use model::envoy::Character;
use model::hand::{Hand, hosts, removed, said, sent};
use model::wire::{DRAIN, Wire};
use model::world::{
    Content, HostSpec, Kind, Quality, bad, cluster, eds, endpoints, host, listener, route, set, snapshot,
    with_secret,
};
use prost::Message;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use proto::resource::{ResourceType, Snapshot, Warming};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use xds::session::{ChannelState, Distance, Event, Held, Names, Protocol};

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::ClusterLoadAssignment;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::RouteConfiguration;
const SDS: ResourceType = ResourceType::Secret;

fn basic() -> Vec<Content> {
    vec![eds("a", 0), endpoints("a", 0), listener("l", 0, &["r"], &[]), route("r", vec![host("h", &["a"])])]
}

#[test]
fn an_empty_mesh_is_answered() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let mut hand = Hand::new(protocol, &[]);
        hand.subscribe(CDS, &[]);
        assert_eq!(hand.summary(), [sent(CDS, &[])]);
    }
}

#[test]
fn endpoints_are_sent_when_asked_for_and_not_before() {
    let mut hand = Hand::new(Protocol::Delta, &basic());
    hand.subscribe(CDS, &[]);
    assert_eq!(hand.summary(), [sent(CDS, &["a"])]);
    hand.subscribe(EDS, &["a"]);
    assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
}

#[test]
fn a_cluster_update_is_followed_by_its_endpoints() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[0] = eds("a", 1);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["a"]), sent(EDS, &["a"])]);
}

#[test]
fn an_endpoint_change_sends_nothing_else_and_waits_for_no_cluster() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents.push(eds("b", 0));
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["b"])]);
    contents[1] = endpoints("a", 1);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
}

#[test]
fn a_virtual_host_waits_for_its_new_cluster_and_the_others_do_not() {
    let mut contents = basic();
    contents[3] = route("r", vec![host("h", &["a"]), host("i", &["a"])]);
    let mut hand = Hand::settled(&contents);
    contents[3] =
        route("r", vec![host("h", &["b"]), host("i", &["a"]), host("new", &["b"]), host("j", &["a"])]);
    contents.extend([eds("b", 0), endpoints("b", 0)]);
    hand.publish(&contents);

    let responses = hand.take();
    assert_eq!(responses.iter().map(|response| response.kind).collect::<Vec<_>>(), [CDS, RDS]);
    // `h` in its last acknowledged form, `new` not at all.
    assert_eq!(hosts(&responses[1]), ["h->{\"a\"}", "i->{\"a\"}", "j->{\"a\"}"]);
    hand.answer(&responses[1], None);
    hand.answer(&responses[0], None);
    let routes = hand.one();
    assert_eq!(hosts(&routes).len(), 4);
    assert_eq!(hosts(&routes)[0], "h->{\"b\"}");
}

#[test]
fn an_acknowledged_assignment_is_evidence_while_the_cds_answer_is_withheld() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[3] = route("r", vec![host("h", &["b"])]);
    contents.extend([eds("b", 0), endpoints("b", 0), eds("never", 0)]);
    hand.publish(&contents);
    assert_eq!(hand.summary()[0], sent(CDS, &["b", "never"]));
    hand.subscribe(EDS, &["b", "never"]);
    let assignments = hand.one();
    hand.answer(&assignments, None);
    assert_eq!(hosts(&hand.one()), ["h->{\"b\"}"]);
}

#[test]
fn a_secret_that_never_comes_holds_back_its_cluster_until_its_grace_is_over() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    let Content::Cluster(spec) = eds("b", 0) else { panic!("a cluster") };
    contents[3] = route("r", vec![host("h", &["b"])]);
    contents.extend([
        Content::Cluster(model::world::ClusterSpec { secret: Some("s".to_owned()), ..spec }),
        endpoints("b", 0),
    ]);
    hand.publish(&contents);
    hand.take();
    hand.subscribe(EDS, &["b"]);
    hand.subscribe(SDS, &["s"]);
    let assignments = hand.one();
    hand.answer(&assignments, None);
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_millis(14_999));
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_millis(1));
    assert_eq!(hosts(&hand.one()), ["h->{\"b\"}"]);
    let events = hand.session.take_events();
    let released = Event::GraceExpired { cluster: "b".into(), warming: Warming::Assignment };
    assert!(events.contains(&released), "{events:?}");
    assert!(events.contains(&Event::Stuck { clusters: vec!["b".into()] }), "{events:?}");
}

#[test]
fn a_starting_client_is_told_of_secrets_that_do_not_exist() {
    let mut contents = vec![with_secret(eds("a", 0), "s"), endpoints("a", 0)];
    contents.push(with_secret(listener("l", 0, &[], &[]), "t"));
    let mut hand = Hand::new(Protocol::Delta, &contents);
    hand.subscribe(CDS, &[]);
    hand.ack_all();
    hand.subscribe(SDS, &["s"]);
    let denial = hand.one();
    assert_eq!(said(Protocol::Delta, &denial), removed(SDS, &["s"]), "its clusters wait for it");
    hand.answer(&denial, None);
    hand.subscribe(LDS, &[]);
    hand.ack_all();
    hand.subscribe(SDS, &["t"]);
    let denial = hand.one();
    assert_eq!(said(Protocol::Delta, &denial), removed(SDS, &["t"]), "its first listener waits for it");
    hand.answer(&denial, None);

    contents.push(Content::Secret("t".to_owned(), 0));
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(SDS, &["t"])], "it is there now");
}

#[test]
fn what_is_in_use_may_wait_for_what_takes_its_place() {
    let mut contents = vec![listener("l", 0, &[], &[])];
    let mut hand = Hand::settled(&contents);
    contents[0] = with_secret(listener("l", 0, &[], &[]), "s");
    hand.publish(&contents);
    hand.ack_all();
    hand.subscribe(SDS, &["s"]);
    assert!(hand.take().is_empty());
    contents.push(Content::Secret("s".to_owned(), 0));
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(SDS, &["s"])]);
}

#[test]
fn a_reconnected_client_is_not_told_of_secrets_that_do_not_exist() {
    let mut hand = Hand::new(Protocol::Delta, &basic());
    hand.claim(CDS, &[], &[("a", "1")]);
    hand.take();
    hand.subscribe(SDS, &["s"]);
    assert!(hand.take().is_empty());
}

#[test]
fn a_name_that_does_not_resolve_is_waited_for_two_seconds() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[3] = route("r", vec![host("h", &["dns"])]);
    contents.push(cluster("dns", 0, Kind::Dns));
    hand.publish(&contents);
    hand.take();
    assert_eq!(hand.session.next_deadline(), Some(hand.now + Duration::from_secs(2)));
    hand.wait(Duration::from_secs(2));
    assert_eq!(hosts(&hand.one()), ["h->{\"dns\"}"]);
}

#[test]
fn a_changed_cluster_is_usable_all_along() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[0] = eds("a", 1);
    contents[3] = route("r", vec![host("h", &["a"]), host("i", &["a"])]);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["a"]), sent(EDS, &["a"]), sent(RDS, &["r"])]);
}

#[test]
fn a_domain_that_moves_to_a_waiting_host_holds_back_the_whole_route() {
    let mut contents = basic();
    let with = |name: &str, domains: &[&str], cluster: &str| HostSpec {
        name: name.to_owned(),
        domains: set(domains),
        clusters: set(&[cluster]),
    };
    contents[3] = route("r", vec![with("h", &["h", "moving"], "a")]);
    let mut hand = Hand::settled(&contents);
    contents[3] = route("r", vec![with("h", &["h"], "a"), with("i", &["moving"], "b")]);
    contents.extend([eds("b", 0), endpoints("b", 0)]);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["b"])]);
}

#[test]
fn a_cluster_is_removed_once_no_acknowledged_route_names_it() {
    let mut contents = basic();
    contents.extend([eds("b", 0), endpoints("b", 0)]);
    let mut hand = Hand::settled(&contents);
    contents[3] = route("r", vec![host("h", &["b"])]);
    hand.publish(&contents[2..]);
    let routes = hand.one();
    assert_eq!(hosts(&routes), ["h->{\"b\"}"]);
    hand.answer(&routes, None);
    assert_eq!(hand.summary(), [removed(CDS, &["a"])]);
}

#[test]
fn a_cluster_of_a_replaced_listener_is_kept_for_the_drain_time() {
    let contents =
        [eds("a", 0), endpoints("a", 0), eds("b", 0), endpoints("b", 0), listener("l", 0, &[], &["a"])];
    let mut hand = Hand::settled(&contents);
    let after = [contents[2].clone(), contents[3].clone(), listener("l", 0, &[], &["b"])];
    hand.publish(&after);
    let listeners = hand.one();
    hand.answer(&listeners, None);
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_secs(44));
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_secs(1));
    assert_eq!(hand.summary(), [removed(CDS, &["a"])]);
}

#[test]
fn a_listener_that_takes_an_address_travels_with_the_removal_of_the_other() {
    let contents = [eds("a", 0), endpoints("a", 0), listener("l", 0, &[], &["a"])];
    let mut hand = Hand::settled(&contents);
    hand.publish(&[eds("b", 0), endpoints("b", 0), listener("m", 0, &[], &["b"])]);
    assert_eq!(hand.summary(), [sent(CDS, &["b"])]);
    hand.subscribe(EDS, &["b"]);
    let assignments = hand.one();
    hand.answer(&assignments, None);
    assert_eq!(hand.summary(), [(LDS, vec!["m".to_owned()], vec!["l".to_owned()])]);
}

#[test]
fn only_the_newest_snapshot_is_sent_once_the_client_answers() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[0] = eds("a", 1);
    hand.publish(&contents);
    let first = hand.take();
    for version in 2..10 {
        contents[0] = eds("a", version);
        hand.publish(&contents);
        assert!(hand.take().is_empty());
    }
    hand.answer(&first[0], None);
    let second = hand.take();
    let message = DeltaDiscoveryResponse::decode(second[0].frame.message()).unwrap();
    assert_eq!(message.resources[0].version, **model::world::resource(&contents[0]).version());
    hand.answer(&first[1], None);
    hand.answer(&second[0], None);
    hand.answer(&second[1], None);
    assert!(hand.take().is_empty());
}

#[test]
fn after_fifteen_seconds_without_an_answer_the_next_cds_response_goes_out() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents.push(eds("never", 0));
    hand.publish(&contents);
    hand.take();
    contents.push(cluster("c", 0, Kind::Now));
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_secs(15));
    assert_eq!(hand.summary(), [sent(CDS, &["c"])]);
    assert_eq!(hand.session.status().stuck, ["never".into()]);
}

#[test]
fn a_named_culprit_is_quarantined_and_the_others_proceed() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[0] = bad(eds("a", 1), Quality::Bad);
    contents.push(eds("good", 0));
    hand.publish(&contents);
    let clusters = hand.take().remove(0);
    hand.answer(&clusters, Some("Error adding/updating cluster(s) a: no"));
    let others = hand.one();
    assert_eq!(said(Protocol::Delta, &others), sent(CDS, &["good"]));
    let status = hand.session.status();
    assert_eq!(&*status.channels[0].quarantined[0].name, "a");
    assert_eq!(status.channels[0].state, ChannelState::Error);
    // The rejected form is not sent again; another one is.
    hand.answer(&others, None);
    contents[0] = eds("a", 2);
    hand.publish(&contents);
    hand.ack_all();
    let clusters = &hand.session.status().channels[0];
    assert_eq!(clusters.acked["a"], model::world::resource(&contents[0]));
    assert_eq!(clusters.state, ChannelState::Synced);
}

#[test]
fn how_far_a_client_is_can_be_asked() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    let now = snapshot(&contents);
    let distance = |hand: &Hand, desired: &Snapshot| hand.session.distance(desired);
    assert_eq!(distance(&hand, &now), Distance { is_settled: true, ..Distance::default() });
    // The session has not seen the newest snapshot.
    contents[0] = bad(eds("a", 1), Quality::Bad);
    contents.push(eds("good", 0));
    let next = snapshot(&contents);
    assert_eq!(distance(&hand, &next), Distance::default());
    hand.publish(&contents);
    let mut responses = hand.take();
    let clusters = responses.remove(0);
    let names = |hand: &Hand| -> Vec<String> {
        let unsettled = distance(hand, &next).unsettled;
        unsettled.into_iter().filter(|(kind, _)| *kind == CDS).map(|(_, name)| name.to_string()).collect()
    };
    assert_eq!(names(&hand), ["a", "good"]);
    hand.answer(&clusters, Some("Error adding/updating cluster(s) a: no"));
    assert_eq!(names(&hand), ["good"]);
    responses.iter().for_each(|response| hand.answer(response, None));
    hand.ack_all();
    // What is rejected is not waited for, and its words outlive later acknowledgements.
    let after = distance(&hand, &next);
    assert!(after.is_settled && after.unsettled.is_empty(), "{after:?}");
    let [(kind, rejected, words)] = after.rejected.as_slice() else { panic!("{after:?}") };
    assert_eq!((*kind, &*rejected.name, &**words), (CDS, "a", "Error adding/updating cluster(s) a: no"));
    contents[0] = eds("a", 2);
    hand.publish(&contents);
    hand.ack_all();
    assert_eq!(distance(&hand, &snapshot(&contents)), Distance { is_settled: true, ..Distance::default() });
}

#[test]
fn suspects_are_sent_one_by_one_if_none_is_named() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents.extend([eds("b", 0), eds("c", 0)]);
    hand.publish(&contents);
    let both = hand.one();
    hand.answer(&both, Some("no"));
    let first = hand.one();
    assert_eq!(said(Protocol::Delta, &first), sent(CDS, &["b"]));
    hand.answer(&first, Some("no"));
    let second = hand.one();
    assert_eq!(said(Protocol::Delta, &second), sent(CDS, &["c"]));
    hand.answer(&second, None);
    assert!(hand.take().is_empty());
    let status = hand.session.status();
    assert_eq!(&*status.channels[0].quarantined[0].name, "b");
    assert!(status.channels[0].acked.contains_key("c"));
}

#[test]
fn responses_rejected_while_others_are_on_their_way_end_in_a_search() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents.extend([eds("b", 0), eds("c", 0), endpoints("b", 0), endpoints("c", 0)]);
    hand.publish(&contents);
    hand.ack_all();
    hand.subscribe(EDS, &["b", "c"]);
    let first = hand.one();
    hand.subscribe(EDS, &["b", "c"]);
    let second = hand.one();
    hand.answer(&first, Some("no"));
    assert!(hand.take().is_empty());
    hand.answer(&second, Some("no"));
    assert_eq!(hand.summary(), [sent(EDS, &["b"])]);
}

#[test]
fn a_rejected_route_keeps_the_clusters_of_both_versions() {
    let mut contents = basic();
    contents.extend([eds("b", 0), endpoints("b", 0)]);
    let mut hand = Hand::settled(&contents);
    contents[3] = route("r", vec![host("h", &["b"])]);
    hand.publish(&contents);
    let routes = hand.one();
    hand.publish(&[contents[2].clone(), eds("c", 0), endpoints("c", 0), route("r", vec![host("h", &["c"])])]);
    hand.answer(&routes, Some("no"));
    let clusters = hand.one();
    assert_eq!(said(Protocol::Delta, &clusters), sent(CDS, &["c"]));
    hand.answer(&clusters, None);
    let routes = hand.one();
    assert_eq!(hosts(&routes), ["h->{\"c\"}"]);
    hand.answer(&routes, None);
    assert_eq!(hand.summary(), [removed(CDS, &["a", "b"])]);
}

#[test]
fn equal_versions_are_not_sent_again_after_a_reconnect_except_endpoints() {
    let contents = basic();
    let version = |content: &Content| model::world::resource(content).version().to_string();
    let mut hand = Hand::new(Protocol::Delta, &contents);
    hand.claim(CDS, &[], &[("a", &version(&contents[0]))]);
    hand.claim(EDS, &["a"], &[("a", &version(&contents[1]))]);
    hand.claim(LDS, &[], &[("l", &version(&contents[2]))]);
    hand.claim(RDS, &["r"], &[("r", &version(&contents[3]))]);
    assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
    assert_eq!(hand.session.status().channels[0].acked.len(), 1);
}

#[test]
fn clusters_that_a_reconnecting_client_lists_and_nobody_has_are_removed_after_the_drain_time() {
    let contents = basic();
    let version = |content: &Content| model::world::resource(content).version().to_string();
    let mut hand = Hand::new(Protocol::Delta, &contents);
    hand.claim(CDS, &[], &[("a", &version(&contents[0])), ("old", "1")]);
    hand.claim(LDS, &[], &[("l", &version(&contents[2]))]);
    hand.claim(RDS, &["r"], &[("r", "another")]);
    let routes = hand.one();
    hand.answer(&routes, None);
    hand.wait(Duration::from_secs(44));
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_secs(1));
    assert_eq!(hand.summary(), [removed(CDS, &["old"])]);
}

#[test]
fn a_reconnecting_sotw_client_with_the_right_version_is_sent_nothing() {
    let mut hand = Hand::new(Protocol::Sotw, &basic());
    hand.subscribe(CDS, &[]);
    let first = DiscoveryResponse::decode(hand.one().frame.message()).unwrap();
    let mut hand = Hand::new(Protocol::Sotw, &basic());
    hand.request(CDS, Names::All(Vec::new()), Held::Set(first.version_info), None);
    assert!(hand.take().is_empty());
    let mut hand = Hand::new(Protocol::Sotw, &basic());
    hand.request(CDS, Names::All(Vec::new()), Held::Set("another".to_owned()), None);
    assert_eq!(hand.summary(), [sent(CDS, &["a"])]);
}

#[test]
fn a_client_that_reconnects_while_a_cluster_is_stuck_gets_clusters_unasked() {
    let mut hand = Hand::new(Protocol::Delta, &basic());
    hand.claim(EDS, &["a", "stuck"], &[]);
    assert_eq!(hand.take().len(), 1);
    let version = model::world::resource(&basic()[2]).version().to_string();
    hand.claim(LDS, &[], &[("l", &version)]);
    assert!(hand.take().is_empty());
    hand.wait(Duration::from_secs(15));
    assert_eq!(hand.summary(), [sent(CDS, &["a"]), sent(EDS, &["a"])]);
}

#[test]
fn sotw_answers_of_clusters_hold_all_of_them_and_those_of_endpoints_only_the_changes() {
    let mut contents = basic();
    let mut hand = Hand::new(Protocol::Sotw, &contents);
    hand.subscribe(CDS, &[]);
    hand.subscribe(EDS, &["a"]);
    hand.ack_all();
    contents.extend([eds("b", 0), endpoints("b", 0)]);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["a", "b"])]);
    hand.subscribe(EDS, &["a", "b"]);
    assert_eq!(hand.summary(), [sent(EDS, &["b"])]);
}

#[test]
fn in_sotw_an_empty_list_means_everything_only_until_a_name_was_given() {
    let mut hand = Hand::new(Protocol::Sotw, &[eds("a", 0), eds("b", 0)]);
    hand.subscribe(CDS, &["a"]);
    let one = hand.one();
    assert_eq!(said(Protocol::Sotw, &one), sent(CDS, &["a"]));
    hand.answer(&one, None);
    hand.subscribe(CDS, &["a", "*"]);
    hand.ack_all();
    assert_eq!(hand.session.status().channels[0].acked.len(), 2);
    hand.subscribe(CDS, &[]);
    assert!(hand.session.status().channels[0].acked.is_empty());
}

#[test]
fn by_name_clients_are_answered_at_once_and_never_held_back() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let mut hand = Hand::new(protocol, &basic());
        hand.subscribe(LDS, &["l"]);
        assert_eq!(hand.summary(), [sent(LDS, &["l"])]);
        hand.subscribe(RDS, &["r"]);
        assert_eq!(hand.summary(), [sent(RDS, &["r"])]);
        hand.subscribe(CDS, &["a"]);
        assert_eq!(hand.summary(), [sent(CDS, &["a"])]);
        hand.subscribe(EDS, &["a"]);
        assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
    }
}

#[test]
fn a_delta_client_that_asks_by_name_is_told_what_does_not_exist() {
    let mut hand = Hand::new(Protocol::Delta, &basic());
    hand.subscribe(LDS, &["nothing"]);
    assert_eq!(hand.summary(), [removed(LDS, &["nothing"])]);
}

#[test]
fn a_name_that_is_still_being_compiled_is_neither_denied_nor_left_out() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let pending = Snapshot { covers: 0, ..Snapshot::default() };
        let mut hand = Hand::with(protocol, Arc::new(pending));
        hand.subscribe(LDS, &["l"]);
        assert!(hand.take().is_empty());
        let events = hand.session.take_events();
        assert!(matches!(&events[..], [Event::Subscribed { revision: 1, kind: LDS, .. }]), "{events:?}");
        let mut compiled = (*snapshot(&basic())).clone();
        compiled.covers = 1;
        hand.session.on_snapshot(Arc::new(compiled), hand.now);
        assert_eq!(hand.summary(), [sent(LDS, &["l"])]);
    }
}

#[test]
fn unsubscribed_names_are_no_longer_sent_nor_counted() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    hand.unsubscribe(EDS, &["a"]);
    contents[1] = endpoints("a", 1);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    assert!(hand.session.status().channels[EDS as usize].acked.is_empty());
}

#[test]
fn a_name_subscribed_to_again_is_sent_again() {
    let mut hand = Hand::settled(&basic());
    hand.subscribe(EDS, &["a"]);
    assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
}

#[test]
fn an_unknown_nonce_settles_nothing() {
    let mut hand = Hand::new(Protocol::Delta, &basic());
    hand.subscribe(CDS, &[]);
    let mut response = hand.one();
    response.nonce = "7-1".to_owned();
    hand.answer(&response, None);
    assert!(hand.session.take_events().contains(&Event::UnknownNonce { kind: CDS }));
    assert_eq!(hand.session.status().channels[0].state, ChannelState::Stale);
}

#[test]
fn an_answer_to_a_later_nonce_settles_the_earlier_ones() {
    let mut contents = basic();
    let mut hand = Hand::settled(&contents);
    contents[0] = eds("a", 1);
    hand.publish(&contents);
    hand.take();
    hand.wait(Duration::from_secs(15));
    contents.push(eds("b", 0));
    hand.publish(&contents);
    let later = hand.take().remove(0);
    hand.answer(&later, None);
    let clusters = &hand.session.status().channels[0];
    assert_eq!(clusters.state, ChannelState::Synced);
    assert_eq!(clusters.acked["a"], model::world::resource(&contents[0]));
}

#[test]
fn a_settled_session_shares_the_snapshots_maps_and_waits_for_nothing() {
    let snapshot = snapshot(&basic());
    let mut hand = Hand::with(Protocol::Delta, snapshot.clone());
    hand.subscribe(CDS, &[]);
    hand.ack_all();
    assert!(hand.session.status().channels[0].acked.ptr_eq(&snapshot.clusters));
    assert_eq!(hand.session.next_deadline().filter(|_| hand.session.status().stuck.is_empty()), {
        // Until the client asks for listeners, its clusters have their grace.
        Some(hand.now + Duration::from_secs(15))
    });
    hand.subscribe(LDS, &[]);
    hand.ack_all();
    assert_eq!(hand.session.next_deadline(), None);
}

#[test]
fn an_envoy_starts_with_everything_and_moves_a_subset_without_a_gap() {
    let character = Character {
        protocol: Protocol::Delta,
        by_name: None,
        silent: BTreeSet::new(),
        resolves: true,
        drain: DRAIN,
    };
    let mut contents = basic();
    let mut wire = Wire::new(character, snapshot(&contents));
    wire.settle();
    assert!(wire.client.listeners.contains_key("l"));
    contents[0] = eds("a-renamed", 0);
    contents[1] = endpoints("a-renamed", 0);
    contents[3] = route("r", vec![host("h", &["a-renamed"])]);
    wire.publish(&snapshot(&contents));
    wire.settle();
    assert_eq!(wire.client.clusters.keys().collect::<Vec<_>>(), ["a-renamed"]);
    assert_eq!(wire.elapsed(), Duration::ZERO);
    let versions: BTreeMap<&str, u8> = wire.client.endpoints.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    assert_eq!(versions, BTreeMap::from([("a-renamed", 0)]));
}
