//! Destinations that a snapshot names and does not have: two halves of a change that arrive one after the other cost
//! nothing, whichever comes first, and what stays away is believed after five seconds.

mod model;

use model::hand::{Hand, hosts, removed, sent};
use model::world::{Content, eds, endpoints, host, listener, route};
use proto::resource::ResourceType;
use std::time::Duration;
use xds::session::{Event, Options, Protocol};

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::ClusterLoadAssignment;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::RouteConfiguration;

const GRACE: Duration = Options::STANDARD.absence_grace;
const MOMENT: Duration = Duration::from_millis(1);

/// Two clusters, and a route that names the first.
fn two() -> Vec<Content> {
    vec![
        eds("a", 0),
        endpoints("a", 0),
        eds("b", 0),
        endpoints("b", 0),
        listener("l", 0, &["r"], &[]),
        route("r", vec![host("h", &["a"])]),
    ]
}

fn absences(hand: &mut Hand) -> Vec<String> {
    let events = hand.session.take_events().into_iter();
    let absent = events.filter_map(|event| match event {
        Event::Absent { cluster } => Some(cluster.to_string()),
        _ => None,
    });
    absent.collect()
}

#[test]
fn a_service_that_is_deleted_before_its_route_changes_serves_until_then() {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents.drain(..2);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.wait(GRACE - MOMENT);
    assert!(hand.take().is_empty());

    contents[3] = route("r", vec![host("h", &["b"])]);
    hand.publish(&contents);
    let routes = hand.one();
    assert_eq!(hosts(&routes), ["h->{\"b\"}"]);
    hand.answer(&routes, None);
    assert_eq!(hand.summary(), [removed(CDS, &["a"])]);
    hand.wait(GRACE);
    assert_eq!(absences(&mut hand), Vec::<String>::new());
}

#[test]
fn a_service_that_is_deleted_and_still_named_is_gone_after_five_seconds() {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let contents = two();
        let mut hand = Hand::settled_with(protocol, &contents);
        hand.publish(&contents[2..]);
        assert!(hand.take().is_empty());
        assert_eq!(hand.session.next_deadline(), Some(hand.now + GRACE));
        hand.wait(GRACE);
        match protocol {
            Protocol::Delta => assert_eq!(hand.summary(), [removed(CDS, &["a"])]),
            Protocol::Sotw => assert_eq!(hand.summary()[0], sent(CDS, &["b"])),
        }
        assert_eq!(absences(&mut hand), ["a"]);
    }
}

#[test]
fn a_service_that_is_created_again_was_never_away() {
    let contents = two();
    let mut hand = Hand::settled(&contents);
    hand.publish(&contents[2..]);
    hand.wait(GRACE - MOMENT);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.wait(GRACE);
    assert!(hand.take().is_empty());
    assert_eq!(absences(&mut hand), Vec::<String>::new());
    // Should it go again, it has its grace again.
    hand.publish(&contents[2..]);
    hand.wait(GRACE - MOMENT);
    assert!(hand.take().is_empty());
    hand.wait(MOMENT);
    assert_eq!(hand.summary(), [removed(CDS, &["a"])]);
}

#[test]
fn a_route_that_changes_before_its_service_exists_waits_for_it() {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents[5] = route("r", vec![host("h", &["new"]), host("i", &["b"])]);
    hand.publish(&contents);
    // Others do not wait: `i` is new and has what it needs.
    let routes = hand.one();
    assert_eq!(hosts(&routes), ["h->{\"a\"}", "i->{\"b\"}"]);
    hand.answer(&routes, None);
    hand.wait(GRACE - MOMENT);
    assert!(hand.take().is_empty());

    contents.extend([eds("new", 0), endpoints("new", 0)]);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["new"])]);
    hand.subscribe(EDS, &["new"]);
    let assignments = hand.one();
    hand.answer(&assignments, None);
    assert_eq!(hosts(&hand.one())[0], "h->{\"new\"}");
    assert_eq!(absences(&mut hand), Vec::<String>::new());
}

#[test]
fn a_subset_renamed_in_two_steps_leaves_no_gap_in_either_order() {
    let before = two();
    let mut rule_first = before[2..].to_vec();
    rule_first.extend([eds("a2", 0), endpoints("a2", 0)]);
    let mut route_first = before.clone();
    route_first[5] = route("r", vec![host("h", &["a2"])]);
    let mut after = rule_first.clone();
    after[3] = route("r", vec![host("h", &["a2"])]);

    for between in [rule_first, route_first] {
        let mut hand = Hand::settled(&before);
        hand.publish(&between);
        for response in hand.take() {
            assert!(response.kind == CDS && response.removed == 0, "{response:?}");
            hand.answer(&response, None);
        }
        hand.publish(&after);
        hand.subscribe(EDS, &["a2"]);
        hand.ack_all();
        let status = hand.session.status();
        let names: Vec<&str> = status.channels[CDS as usize].acked.keys().map(|name| &**name).collect();
        assert_eq!(names, ["a2", "b"]);
        let route = &status.channels[RDS as usize].acked["r"];
        assert!(route.needs().clusters.contains("a2"), "{:?}", route.needs());
    }
}

#[test]
fn nothing_moves_to_or_from_a_service_whose_end_is_doubted() {
    let mut contents = two();
    contents[5] = route("r", vec![host("h", &["a", "b"]), host("i", &["b"])]);
    let mut hand = Hand::settled(&contents);
    let mut after = contents[2..].to_vec();
    after[3] = route("r", vec![host("h", &["a"]), host("i", &["a"])]);
    hand.publish(&after);
    assert!(hand.take().is_empty());
    hand.wait(GRACE);
    let routes = hand.one();
    assert_eq!(hosts(&routes), ["h->{\"a\"}", "i->{\"a\"}"]);
    hand.answer(&routes, None);
    assert_eq!(hand.summary(), [removed(CDS, &["a"])]);
}

#[test]
fn a_destination_that_never_comes_is_sent_as_it_is_after_five_seconds() {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents[5] = route("r", vec![host("h", &["ghost"])]);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.wait(GRACE);
    let routes = hand.one();
    assert_eq!(hosts(&routes), ["h->{\"ghost\"}"]);
    assert_eq!(absences(&mut hand), ["ghost"]);
    hand.answer(&routes, None);

    // What names it already goes on at once.
    contents[5] = route("r", vec![host("h", &["b", "ghost"])]);
    hand.publish(&contents);
    assert_eq!(hosts(&hand.one()), ["h->{\"b\", \"ghost\"}"]);
}

#[test]
fn a_listener_waits_for_a_destination_too() {
    let mut contents = two();
    contents[4] = listener("l", 0, &["r"], &["a"]);
    let mut hand = Hand::settled(&contents);
    contents[4] = listener("l", 0, &["r"], &["ghost"]);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.wait(GRACE);
    assert_eq!(hand.summary(), [sent(LDS, &["l"])]);
}

#[test]
fn a_client_that_starts_waits_for_nothing_that_does_not_exist() {
    let mut contents = two();
    contents[4] = listener("l", 0, &["r"], &["nowhere"]);
    contents[5] = route("r", vec![host("h", &["a"]), host("i", &["ghost"])]);
    let mut hand = Hand::settled(&contents);
    let status = hand.session.status();
    let routes = &status.channels[RDS as usize].acked;
    assert_eq!(routes["r"], model::world::resource(&contents[5]));
    assert!(status.channels[LDS as usize].acked.contains_key("l"));
    // Nor does anything else later because of it.
    contents[5] = route("r", vec![host("h", &["b"]), host("i", &["b", "ghost"])]);
    hand.publish(&contents);
    assert_eq!(hosts(&hand.one()), ["h->{\"b\"}", "i->{\"b\", \"ghost\"}"]);
    assert_eq!(absences(&mut hand), Vec::<String>::new());
}

#[test]
fn a_client_that_comes_back_waits_for_nothing_that_does_not_exist() {
    let mut contents = two();
    contents[5] = route("r", vec![host("h", &["a", "ghost"])]);
    let version = |content: &Content| model::world::resource(content).version().to_string();
    let mut hand = Hand::new(Protocol::Delta, &contents);
    hand.claim(CDS, &[], &[("a", &version(&contents[0])), ("b", &version(&contents[2]))]);
    hand.claim(LDS, &[], &[("l", &version(&contents[4]))]);
    hand.claim(RDS, &["r"], &[("r", "another")]);
    assert_eq!(hosts(&hand.one()), ["h->{\"a\", \"ghost\"}"]);
}
