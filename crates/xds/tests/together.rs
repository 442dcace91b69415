//! Routes and endpoints that change at the same time: a request meets those of one configuration.

mod model;

use model::hand::{Hand, hosts, sent};
use model::world::{Content, eds, endpoints, host, listener, route};
use proto::resource::ResourceType;
use std::time::Duration;
use xds::session::Options;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::ClusterLoadAssignment;
const RDS: ResourceType = ResourceType::RouteConfiguration;

const GRACE: Duration = Options::STANDARD.endpoint_grace;

/// A cluster for each of two hosts.
fn two() -> Vec<Content> {
    vec![
        eds("a", 0),
        endpoints("a", 0),
        eds("b", 0),
        endpoints("b", 0),
        listener("l", 0, &["r"], &[]),
        route("r", vec![host("h", &["a"]), host("i", &["b"])]),
    ]
}

/// Host `h` is about to go to a cluster that is not warm yet.
fn leaving() -> (Hand, Vec<Content>) {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents.extend([eds("new", 0), endpoints("new", 0)]);
    contents[5] = route("r", vec![host("h", &["new"]), host("i", &["b"])]);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(CDS, &["new"])]);
    (hand, contents)
}

#[test]
fn endpoints_wait_for_a_route_that_leaves_their_cluster_and_others_do_not() {
    let (mut hand, mut contents) = leaving();
    contents[1] = endpoints("a", 1);
    contents[3] = endpoints("b", 1);
    hand.publish(&contents);
    let others = hand.one();
    assert_eq!(model::hand::said(xds::session::Protocol::Delta, &others), sent(EDS, &["b"]));
    hand.answer(&others, None);

    hand.subscribe(EDS, &["new"]);
    let new = hand.one();
    hand.answer(&new, None);
    let routes = hand.one();
    assert_eq!(hosts(&routes)[0], "h->{\"new\"}");
    hand.answer(&routes, None);
    assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
}

#[test]
fn endpoints_wait_for_two_seconds_at_most_however_often_they_change() {
    let (mut hand, mut contents) = leaving();
    contents[1] = endpoints("a", 1);
    hand.publish(&contents);
    hand.wait(GRACE / 2);
    contents[1] = endpoints("a", 2);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    assert_eq!(hand.session.next_deadline(), Some(hand.now + GRACE / 2));
    hand.wait(GRACE / 2);
    let response = hand.one();
    hand.answer(&response, None);
    // The route is still held back, and waited for no longer.
    contents[1] = endpoints("a", 3);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(EDS, &["a"])]);
}

#[test]
fn a_route_waits_for_endpoints_that_were_not_sent_yet() {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents[1] = endpoints("a", 1);
    hand.publish(&contents);
    let first = hand.one();
    contents[3] = endpoints("b", 1);
    contents[5] = route("r", vec![host("h", &["b"]), host("i", &["b"])]);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.answer(&first, None);
    assert_eq!(hand.summary(), [sent(EDS, &["b"]), sent(RDS, &["r"])]);
}

#[test]
fn a_route_that_names_the_cluster_already_does_not_wait() {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents[1] = endpoints("a", 1);
    hand.publish(&contents);
    hand.one();
    contents[1] = endpoints("a", 2);
    contents[5] = route("r", vec![host("h", &["a"]), host("i", &["a", "b"])]);
    hand.publish(&contents);
    // `i` comes to name it and waits; `h` does not.
    assert!(hand.take().is_empty());
    contents[5] = route("r", vec![host("h", &["a"]), host("i", &["b"]), host("j", &["b"])]);
    hand.publish(&contents);
    assert_eq!(hand.summary(), [sent(RDS, &["r"])]);
}

#[test]
fn a_route_that_comes_waits_for_endpoints_that_wait_for_one_that_leaves() {
    let mut contents = two();
    contents.extend([eds("c", 0), endpoints("c", 0)]);
    let mut hand = Hand::settled(&contents);
    contents[1] = endpoints("a", 1);
    contents[5] = route("r", vec![host("h", &["c"]), host("i", &["a"])]);
    hand.publish(&contents);
    let first = hand.one();
    assert_eq!(hosts(&first), ["h->{\"c\"}", "i->{\"b\"}"]);
    hand.answer(&first, None);
    let responses = hand.take();
    assert_eq!(responses.iter().map(|response| response.kind).collect::<Vec<_>>(), [EDS, RDS]);
    assert_eq!(hosts(&responses[1]), ["h->{\"c\"}", "i->{\"a\"}"]);
}

#[test]
fn hosts_that_change_places_while_both_their_endpoints_change_take_two_seconds() {
    let mut contents = two();
    let mut hand = Hand::settled(&contents);
    contents[1] = endpoints("a", 1);
    contents[3] = endpoints("b", 1);
    contents[5] = route("r", vec![host("h", &["b"]), host("i", &["a"])]);
    hand.publish(&contents);
    assert!(hand.take().is_empty());
    hand.wait(GRACE);
    assert_eq!(hand.summary(), [sent(EDS, &["a", "b"]), sent(RDS, &["r"])]);
}
