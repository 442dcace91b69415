//! Statistics: which Envoy keeps, and which parts of their names are labels.
//!
//! Dashboards know the labels by Istio's names. Names of clusters and prefixes of listeners may contain dots, so where
//! the control plane ends them with `;` that is where they end; otherwise it is guessed.

use crate::config::Config;
use proto::envoy::config::metrics::v3::{
    HistogramBucketSettings, StatsConfig, StatsMatcher, TagSpecifier, stats_matcher, tag_specifier,
};
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use proto::envoy::r#type::matcher::v3::{ListStringMatcher, RegexMatcher, StringMatcher};

/// What readiness and the agent's own metrics need.
const PREFIXES: [&str; 8] = [
    "reporter=",
    "cluster_manager",
    "listener_manager",
    "server",
    "cluster.xds-grpc",
    "wasm",
    "component",
    "istio",
];
const SUFFIXES: [&str; 4] = ["rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied"];
/// What tells whether connections are left.
const CONNECTIONS: &str = "downstream_cx_active";
/// Those of virtual hosts whose routes have a `stat_prefix`.
const ROUTES: &str = r"vhost\.*\.route\.*";

/// The first group is cut out of the name, the second is the label's value.
const TAGS: [(&str, &str); 14] = [
    ("cluster_name", r"^cluster\.(((?:[^;]+(?=;\.))|(?:.+?(?:\..+?\.svc\.cluster\.local)?(?=\.)));?\.)"),
    ("tcp_prefix", r"^tcp\.(((?:[^;]+(?=;\.))|(?:.*?(?=\.\w+?$)));?\.)\w+?$"),
    ("response_code", r"_rq(_(\d{3}))$"),
    ("response_code_class", r"_rq(_(\dxx))$"),
    (
        "http_conn_manager_listener_prefix",
        r"^listener(?=\.).*?\.http\.(((?:[^;]+(?=;\.))|(?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*));?\.)",
    ),
    (
        "http_conn_manager_prefix",
        r"^http\.(((?:[^;]+(?=;\.))|(?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*));?\.)",
    ),
    ("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
    ("mongo_prefix", r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$"),
    ("cache", r"(cache\.(.+?)\.)"),
    ("component", r"(component\.(.+?)\.)"),
    ("tag", r"(tag\.(.+?);\.)"),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
];

/// Returns which statistics are kept, and their labels.
pub(super) fn config(config: &Config) -> StatsConfig {
    let tag = |name: &str, regex: String| TagSpecifier {
        tag_name: name.to_owned(),
        tag_value: Some(tag_specifier::TagValue::Regex(regex)),
    };
    let extra = config.stats.extra_tags.iter();
    let extra = extra.map(|name| tag(name, format!(r"({}=\.=(.*?);\.;)", escape(name))));
    StatsConfig {
        stats_tags: TAGS.iter().map(|(name, regex)| tag(name, (*regex).to_owned())).chain(extra).collect(),
        use_all_default_tags: Some(false.into()),
        stats_matcher: Some(StatsMatcher {
            stats_matcher: Some(stats_matcher::StatsMatcher::InclusionList(ListStringMatcher {
                patterns: kept(config),
            })),
        }),
        histogram_bucket_settings: config
            .stats
            .histogram_buckets
            .iter()
            .map(|(prefix, buckets)| HistogramBucketSettings {
                r#match: Some(pattern(MatchPattern::Prefix(prefix.clone()))),
                buckets: buckets.clone(),
                bins: None,
            })
            .collect(),
        ..StatsConfig::default()
    }
}

fn kept(config: &Config) -> Vec<StringMatcher> {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let mut suffixes = own(&SUFFIXES);
    if config.drain.exit_on_zero_connections {
        suffixes.push(CONNECTIONS.to_owned());
    }
    let prefixes = config.stats.prefixes.iter().cloned().chain(own(&PREFIXES)).map(MatchPattern::Prefix);
    let suffixes = config.stats.suffixes.iter().cloned().chain(suffixes).map(MatchPattern::Suffix);
    let regexes = config.stats.regexes.iter().cloned().chain(own(&[ROUTES]));
    let regexes =
        regexes.map(|regex| MatchPattern::SafeRegex(RegexMatcher { regex, ..RegexMatcher::default() }));
    prefixes.chain(suffixes).chain(regexes).map(pattern).collect()
}

fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

/// A tag is a name, not an expression.
fn escape(name: &str) -> String {
    let special = |c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-';
    name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}
