//! What each part of a rule becomes.

use super::*;
use crate::route::fixture::{World, destination, hashed, host, routes, rule, rule_of, under, weighted, when};
use model::destination_rule::{HashKey, PortPolicy, Subset, TrafficPolicy};
use model::route::{Denominator, HeaderOperations, Headers, Percent, StringMatch};
use model::virtual_service::{DirectBody, DirectResponse, Fault, FaultDelay, Redirect, Retries, Rewrite};
use model::{Labels, Namespace, Str};
use std::time::Duration;

const CART: &str = "cart.shop.svc.cluster.local:80";

fn world(rules: Vec<HttpRule>) -> World {
    World::new().service("shop/cart", "80/http").rules(
        "shop/rules",
        &["cart.shop.svc.cluster.local"],
        rules,
        |_| {},
    )
}

/// Returns the routes of `rules` for the one service.
fn built(rules: Vec<HttpRule>) -> Vec<Route> {
    host(&world(rules).outbound("shop", "80").unwrap(), CART).routes.clone()
}

fn action_of(route: &Route) -> &RouteAction {
    match &route.action {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_match_is_a_route_and_nothing_follows_a_catch_all() {
    let got = world(vec![
        when(vec![under("/a"), under("/b")], rule("cart|ab")),
        when(vec![under("")], rule("cart|empty")),
        when(vec![under("/c"), under("/"), under("/never")], rule("cart|all")),
        rule("cart|never"),
    ]);
    assert_eq!(
        routes(&got.outbound("shop", "80").unwrap(), CART),
        [
            "/a* -> 80|ab|cart.shop",
            "/b* -> 80|ab|cart.shop",
            "* -> 80|empty|cart.shop",
            "/c* -> 80|all|cart.shop",
            "/* -> 80|all|cart.shop"
        ]
    );
}

#[test]
fn matches_apply_by_port_gateway_and_source() {
    let at = |port| HttpMatch { port: Some(port), ..HttpMatch::default() };
    let from = |namespace: &str, app: Option<&str>| HttpMatch {
        source_namespace: Some(Namespace::new(namespace)),
        source_labels: app.map(|app| ("app", app)).into_iter().collect(),
        ..HttpMatch::default()
    };
    let on = |gateways: &[GatewayRef], app: &str| HttpMatch {
        gateways: gateways.to_vec(),
        source_labels: [("app", app)].into_iter().collect::<Labels>(),
        ..HttpMatch::default()
    };
    let edge = GatewayRef::Gateway(Namespace::new("edge"), "public".into());
    let cases = [
        (at(80), true),
        (at(81), false),
        (from("shop", None), true),
        (from("infra", None), false),
        (from("shop", Some("web")), true),
        (from("shop", Some("other")), false),
        (on(&[GatewayRef::Mesh], "other"), true),
        (on(&[edge.clone(), GatewayRef::Mesh], "web"), true),
        (on(&[edge], "web"), false),
    ];
    for (conditions, applies) in cases {
        let world = world(vec![when(vec![conditions.clone()], rule("cart|yes")), rule("cart|no")]);
        let got = world
            .outbound_for("shop", "80", |audience| {
                audience.sources = [[("app", "web")].into_iter().collect()].into();
            })
            .unwrap();
        let expected = if applies { "/* -> 80|yes|cart.shop" } else { "/* -> 80|no|cart.shop" };
        assert_eq!(routes(&got, CART)[0], expected, "{conditions:?}");
    }
}

#[test]
fn names_and_metadata_say_where_a_route_is_from() {
    let named = |name: Option<&str>| HttpMatch { name: name.map(Str::from), ..under("/a") };
    let with_name = |name: Option<&str>, rule: HttpRule| HttpRule { name: name.map(Str::from), ..rule };
    let got = built(vec![
        with_name(Some("r"), when(vec![named(Some("m")), named(None)], rule("cart"))),
        with_name(None, when(vec![named(Some("m")), named(None)], rule("cart"))),
    ]);
    let names: Vec<&str> = got.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["r.m", "r", ".m", ""]);
    let metadata = got[0].metadata.as_ref().unwrap();
    let path = &metadata.filter_metadata["istio"].fields["config"];
    let expected = "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/rules";
    assert_eq!(*path, expected.into());
}

#[test]
fn traces_name_the_destination_or_the_rules() {
    let two = HttpAction::Route(vec![weighted("cart|a", 1), weighted("cart|b", 1)]);
    let exact = HttpMatch { uri: Some(StringMatch::Exact("/e".into())), ..HttpMatch::default() };
    let regex = HttpMatch { uri: Some(StringMatch::Regex("/r.+".into())), ..HttpMatch::default() };
    let got = built(vec![
        when(vec![under("/a")], rule("cart||8080")),
        when(vec![exact], rule_of(two)),
        when(vec![regex], rule("cart")),
        rule("cart"),
    ]);
    let operations: Vec<&str> =
        got.iter().map(|route| route.decorator.as_ref().unwrap().operation.as_str()).collect();
    assert_eq!(
        operations,
        [
            "cart.shop.svc.cluster.local:8080/a*",
            "rules:80/e",
            "cart.shop.svc.cluster.local:80/r.+",
            "cart.shop.svc.cluster.local:80/*"
        ]
    );
}

#[test]
fn weights_share_out_what_is_not_zero() {
    let share = |targets: Vec<HttpDestination>| {
        let world = world(vec![rule_of(HttpAction::Route(targets))]);
        routes(&world.outbound("shop", "80").unwrap(), CART)[0].clone()
    };
    let cases = [
        (vec![weighted("cart|a", 0)], "/* -> 80|a|cart.shop"),
        (vec![weighted("cart|a", 7)], "/* -> 80|a|cart.shop"),
        (vec![weighted("cart|a", 90), weighted("cart|b", 10)], "/* -> 80|a|cart.shop*90 + 80|b|cart.shop*10"),
        (vec![weighted("cart|a", 5), weighted("cart|b", 0)], "/* -> 80|a|cart.shop*5"),
        (vec![weighted("cart|a", 0), weighted("cart|b", 0)], "/* -> BlackHoleCluster"),
    ];
    for (targets, expected) in cases {
        assert_eq!(share(targets), expected);
    }
}

fn headers(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderOperations {
    let map = |entries: &[(&str, &str)]| {
        entries.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
    HeaderOperations {
        set: map(set),
        add: map(add),
        remove: remove.iter().map(|name| (*name).into()).collect(),
    }
}

fn shown(options: &[HeaderValueOption]) -> Vec<String> {
    let one = |option: &HeaderValueOption| {
        let header = option.header.as_ref().unwrap();
        format!("{}{}{}", header.key, if option.append_action == 2 { "=" } else { "+" }, header.value)
    };
    options.iter().map(one).collect()
}

#[test]
fn a_single_destinations_header_operations_join_the_rules() {
    let mut target = weighted("cart", 0);
    target.headers =
        Headers { request: headers(&[("a", "3")], &[], &["y"]), response: headers(&[], &[], &["z"]) };
    let mut rule = rule_of(HttpAction::Route(vec![target]));
    rule.headers = Headers {
        request: headers(&[("b", "1"), ("a", "1")], &[("d", "2"), ("c", "2")], &["x"]),
        response: headers(&[("e", "1")], &[], &[]),
    };
    let got = &built(vec![rule])[0];
    assert_eq!(shown(&got.request_headers_to_add), ["a=1", "b=1", "c+2", "d+2", "a=3"]);
    assert_eq!(got.request_headers_to_remove, ["x", "y"]);
    assert_eq!(shown(&got.response_headers_to_add), ["e=1"]);
    assert_eq!(got.response_headers_to_remove, ["z"]);
}

#[test]
fn weighted_destinations_keep_their_header_operations() {
    let mut a = weighted("cart|a", 1);
    a.headers.request = headers(&[("v", "a")], &[], &["x"]);
    a.headers.response = headers(&[], &[("w", "a")], &["y"]);
    a.authority_from_headers = Some("a.host".into());
    let rule = rule_of(HttpAction::Route(vec![a, weighted("cart|b", 1)]));
    let weights = |rule: HttpRule| {
        let got = built(vec![rule]);
        match action_of(&got[0]).cluster_specifier.clone() {
            Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted.clusters,
            other => panic!("{other:?}"),
        }
    };
    let got = weights(rule.clone());
    assert_eq!(shown(&got[0].request_headers_to_add), ["v=a"]);
    assert_eq!(shown(&got[0].response_headers_to_add), ["w+a"]);
    assert_eq!(got[0].request_headers_to_remove, ["x"]);
    assert_eq!(got[0].response_headers_to_remove, ["y"]);
    let literal =
        |name: &str| Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(name.to_owned()));
    assert_eq!(got[0].host_rewrite_specifier, literal("a.host"));
    // The rule's own rewriting is beside it: which of the two counts is Envoy's to say.
    let over = HttpRule { authority_from_headers: Some("rule.host".into()), ..rule };
    assert_eq!(weights(over)[0].host_rewrite_specifier, literal("a.host"));
}

#[test]
fn the_authority_comes_from_the_rewrite_the_rules_headers_or_the_destination() {
    let make = |rewrite: Option<&str>, rules: Option<&str>, own: Option<&str>| {
        let mut target = weighted("cart", 0);
        target.authority_from_headers = own.map(Into::into);
        HttpRule {
            rewrite: rewrite
                .map(|authority| Rewrite { authority: Some(authority.into()), ..Rewrite::default() }),
            authority_from_headers: rules.map(Into::into),
            ..rule_of(HttpAction::Route(vec![target]))
        }
    };
    let cases = [
        (make(Some("a"), Some("b"), Some("c")), Some("a")),
        (make(None, Some("b"), Some("c")), Some("b")),
        (make(None, None, Some("c")), Some("c")),
        (make(None, None, None), None),
    ];
    for (rule, expected) in cases {
        let got = built(vec![rule]);
        let expected = expected.map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.to_owned()));
        assert_eq!(action_of(&got[0]).host_rewrite_specifier, expected);
    }
}

#[test]
fn paths_are_rewritten_by_prefix_or_expression() {
    let with = |rewrite| HttpRule { rewrite: Some(rewrite), ..rule("cart") };
    let got = built(vec![with(Rewrite { uri: Some("/new".into()), ..Rewrite::default() })]);
    assert_eq!(action_of(&got[0]).prefix_rewrite, "/new");
    let got = built(vec![with(Rewrite {
        uri: Some("/ignored".into()),
        uri_regex: Some(("^/a(.*)".into(), "/b\\1".into())),
        ..Rewrite::default()
    })]);
    let action = action_of(&got[0]);
    assert_eq!(action.prefix_rewrite, "");
    let rewrite = action.regex_rewrite.as_ref().unwrap();
    assert_eq!(rewrite.pattern.as_ref().map(|pattern| pattern.regex.as_str()), Some("^/a(.*)"));
    assert_eq!(rewrite.substitution, "/b\\1");
}

#[test]
#[expect(deprecated, reason = "the field is set on purpose")]
fn the_deadline_bounds_grpc_too() {
    let got = built(vec![HttpRule { timeout: Some(Duration::from_millis(1500)), ..rule("cart") }]);
    let action = action_of(&got[0]);
    let expected = Some(Duration::from_millis(1500).into());
    assert_eq!((action.timeout, action.max_grpc_timeout), (expected, expected));
}

#[test]
fn retries_come_from_the_rule_else_from_the_mesh() {
    let with = |retries: Option<Retries>, mesh: Option<Retries>| {
        let world = world(vec![HttpRule { retries, ..rule("cart") }])
            .config(|config| config.default_http_retry = mesh);
        let got = world.outbound("shop", "80").unwrap();
        let policy = action_of(&host(&got, CART).routes[0]).retry_policy.clone();
        policy.and_then(|policy| policy.num_retries).map(|number| number.value)
    };
    let times = |attempts| Some(Retries { attempts, ..Retries::default() });
    let cases = [
        (None, None, Some(2)),
        (times(3), None, Some(3)),
        (times(0), None, None),
        (None, times(4), Some(4)),
        (None, times(0), None),
        (times(3), times(4), Some(3)),
        (times(0), times(4), None),
    ];
    for (rule, mesh, expected) in cases {
        assert_eq!(with(rule.clone(), mesh.clone()), expected, "{rule:?} {mesh:?}");
    }
}

#[test]
fn mirrors_are_sent_as_often_as_asked() {
    let mirror = |to: &str, percentage| Mirror { destination: destination(to), percentage };
    let percent = |numerator, denominator| Some(Percent { numerator, denominator });
    let got = built(vec![HttpRule {
        mirrors: vec![
            mirror("cart|a", None),
            mirror("cart|b", percent(50_000, Denominator::Million)),
            mirror("cart|c", percent(0, Denominator::Million)),
            mirror("cart|d|81", percent(5, Denominator::Hundred)),
        ],
        ..rule("cart")
    }]);
    let shown: Vec<(String, u32, i32)> = action_of(&got[0])
        .request_mirror_policies
        .iter()
        .map(|mirror| {
            assert!(mirror.disable_shadow_host_suffix_append);
            assert_eq!(mirror.trace_sampled.map(|sampled| sampled.value), Some(false));
            let share = mirror.runtime_fraction.as_ref().and_then(|fraction| fraction.default_value);
            let share = share.unwrap();
            (mirror.cluster.clone(), share.numerator, share.denominator)
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("outbound|80|a|cart.shop.svc.cluster.local".to_owned(), 100, 0),
            ("outbound|80|b|cart.shop.svc.cluster.local".to_owned(), 50_000, 2),
            ("outbound|81|d|cart.shop.svc.cluster.local".to_owned(), 5, 0),
        ]
    );
}

#[test]
fn rules_without_destination_redirect_or_answer() {
    let redirect = Redirect { uri: Some("/to".into()), authority: None, port: None, scheme: None, code: 302 };
    let answer = DirectResponse { status: 418, body: Some(DirectBody::Text("no".into())) };
    let got = world(vec![
        when(vec![under("/r")], rule_of(HttpAction::Redirect(redirect.clone()))),
        when(vec![under("/n")], rule_of(HttpAction::Redirect(Redirect { code: 304, ..redirect }))),
        when(vec![under("/d")], rule_of(HttpAction::DirectResponse(answer))),
    ]);
    assert_eq!(
        routes(&got.outbound("shop", "80").unwrap(), CART),
        ["/r* -> redirect", "/n* -> 500", "/d* -> 418"]
    );
}

#[test]
fn faults_and_cors_configure_their_filters() {
    let delay = FaultDelay { fixed: Duration::from_secs(1), percentage: None };
    let both = HttpRule {
        fault: Some(Fault { delay: Some(delay), abort: None }),
        cors: Some(model::virtual_service::Cors::default()),
        ..rule("cart")
    };
    let neither = HttpRule { fault: Some(Fault::default()), ..rule("cart") };
    let got = built(vec![when(vec![under("/a")], both), neither]);
    let filters = |route: &Route| route.typed_per_filter_config.keys().cloned().collect::<Vec<_>>();
    assert_eq!(filters(&got[0]), ["envoy.filters.http.cors", "envoy.filters.http.fault"]);
    assert!(filters(&got[1]).is_empty());
}

#[test]
fn hashing_follows_the_destinations_policy() {
    let header = |name: &str| hashed(HashKey::Header(name.into()));
    let subset = |name: &str, policy: Option<TrafficPolicy>| Subset {
        name: name.into(),
        labels: Labels::new(),
        policy,
    };
    let own =
        TrafficPolicy { base: header("subset"), port_level: vec![(81, header("subset-port"))], tunnel: None };
    let world = |rules| {
        world(rules).service("shop/plain", "80/http").policy(
            "shop/cart",
            "cart.shop.svc.cluster.local",
            TrafficPolicy {
                base: header("top"),
                port_level: vec![(80, header("port")), (82, PortPolicy::default())],
                tunnel: None,
            },
            vec![subset("a", Some(own.clone())), subset("b", None)],
        )
    };
    let got = |rules: Vec<HttpRule>| {
        let got = world(rules).outbound("shop", "80").unwrap();
        let route = &host(&got, CART).routes[0];
        let action = action_of(route).clone();
        let keys: Vec<String> = action
            .hash_policy
            .iter()
            .map(|policy| match &policy.policy_specifier {
                Some(
                    proto::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier::Header(
                        header,
                    ),
                ) => header.header_name.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        (keys, action.retry_policy.unwrap().retry_host_predicate.is_empty())
    };
    // A destination, what is hashed, and whether retries may return to the same host.
    let cases: [(&str, &[&str], bool); 8] = [
        ("cart", &["top"], true),
        ("cart||80", &["port"], true),
        ("cart||82", &["top"], true),
        ("cart|a", &["subset"], true),
        ("cart|a|80", &["subset"], true),
        ("cart|a|81", &["subset-port"], true),
        ("cart|b|80", &["port"], true),
        ("plain", &[], false),
    ];
    for (to, keys, anywhere) in cases {
        let (got_keys, got_anywhere) = got(vec![rule(to)]);
        assert_eq!(got_keys, keys, "{to}");
        assert_eq!(got_anywhere, anywhere, "{to}");
    }
    // Several destinations hash by all of their keys and keep away from hosts that were tried.
    let several = vec![weighted("cart|a", 1), weighted("plain", 1), weighted("cart", 1)];
    let expected = (vec!["subset".to_owned(), "top".to_owned()], false);
    assert_eq!(got(vec![rule_of(HttpAction::Route(several))]), expected);
    // Without a rule the port's own key counts.
    let elsewhere = when(vec![HttpMatch { port: Some(99), ..HttpMatch::default() }], rule("cart"));
    assert_eq!(got(vec![elsewhere]), (vec!["port".to_owned()], false));
}

#[test]
fn statistics_prefixes_are_the_matches() {
    let named = HttpMatch { stat_prefix: Some("beta".into()), ..under("/a") };
    let got = built(vec![when(vec![named, under("/b")], rule("cart"))]);
    let prefixes: Vec<&str> = got.iter().map(|route| route.stat_prefix.as_str()).collect();
    assert_eq!(prefixes, ["beta", ""]);
}
