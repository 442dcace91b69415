//! What is done with a request besides choosing its cluster: retries, redirects, fixed answers, faults, CORS, header
//! operations.

use crate::wire;
use model::route::{Denominator, HeaderOperations, Percent};
use model::virtual_service::{
    AbortStatus, Cors, DirectBody, DirectResponse, Fault, Redirect, RedirectPort, Retries, Rewrite,
};
use proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use proto::envoy::config::core::v3::{DataSource, HeaderValue, HeaderValueOption, data_source};
use proto::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use proto::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
};
use proto::envoy::config::route::v3::{DirectResponseAction, RedirectAction, RetryPolicy, RouteAction};
use proto::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use proto::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

/// The name under which routes configure the fault filter.
pub(super) const FAULT_FILTER: &str = "envoy.filters.http.fault";
/// The name under which routes configure the CORS filter.
pub(super) const CORS_FILTER: &str = "envoy.filters.http.cors";

const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const RETRIABLE_STATUS_CODES: &str = "retriable-status-codes";
const KEEP_REST_OF_PATH: &str = "%PREFIX()%";

/// Returns the retry policy of an outbound route; nothing if retries are off. With `hashed`, retries do not avoid
/// hosts that were tried, since the hash leads to one host.
pub(super) fn retry_policy(retries: Option<&Retries>, hashed: bool) -> Option<RetryPolicy> {
    let mut policy = RetryPolicy {
        num_retries: wire::u32_value(2),
        retry_on: DEFAULT_RETRY_ON.to_owned(),
        retry_host_predicate: if hashed { Vec::new() } else { vec![previous_hosts()] },
        host_selection_retry_max_attempts: 5,
        ..RetryPolicy::default()
    };
    let Some(retries) = retries else { return Some(policy) };
    if retries.attempts == 0 {
        return None;
    }
    policy.num_retries = wire::u32_value(retries.attempts);
    if let Some(conditions) = retries.retry_on.as_deref().filter(|conditions| !conditions.is_empty()) {
        (policy.retry_on, policy.retriable_status_codes) = retry_conditions(conditions);
    }
    policy.per_try_timeout = retries.per_try_timeout.and_then(wire::duration);
    if retries.remote_localities == Some(true) {
        policy.retry_priority = Some(previous_priorities());
    }
    match retries.ignore_previous_hosts {
        Some(true) => policy.retry_host_predicate = vec![previous_hosts()],
        Some(false) => policy.retry_host_predicate.clear(),
        None => {}
    }
    policy.retry_back_off = back_off(retries);
    Some(policy)
}

/// Returns the retry policy of inbound routes, where only a connection that the application closed is tried again.
pub(super) fn inbound_retry_policy(retries: Option<&Retries>) -> Option<RetryPolicy> {
    let mut policy = RetryPolicy {
        num_retries: wire::u32_value(2),
        retry_on: "reset-before-request".to_owned(),
        ..RetryPolicy::default()
    };
    let Some(retries) = retries else { return Some(policy) };
    if retries.attempts == 0 {
        return None;
    }
    policy.num_retries = wire::u32_value(retries.attempts);
    if let Some(conditions) = retries.retry_on.as_deref().filter(|conditions| !conditions.is_empty()) {
        (policy.retry_on, policy.retriable_status_codes) = retry_conditions(conditions);
    }
    policy.retry_back_off = back_off(retries);
    Some(policy)
}

/// Splits what is retried into Envoy's words and status codes.
fn retry_conditions(conditions: &str) -> (String, Vec<u32>) {
    let mut words: Vec<&str> = Vec::new();
    let mut codes = Vec::new();
    for part in conditions.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse::<u32>() {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            _ => words.push(part),
        }
    }
    let mut words = words.join(",");
    if !codes.is_empty() && !words.contains(RETRIABLE_STATUS_CODES) {
        // Istio's text, comma included even where it leads: Envoy skips the empty word.
        words.push(',');
        words.push_str(RETRIABLE_STATUS_CODES);
    }
    (words, codes)
}

fn back_off(retries: &Retries) -> Option<RetryBackOff> {
    let base_interval = wire::duration(retries.backoff?);
    Some(RetryBackOff { base_interval, ..RetryBackOff::default() })
}

fn previous_hosts() -> RetryHostPredicate {
    RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(proto::any(
            &PreviousHostsPredicate::default(),
        ))),
    }
}

fn previous_priorities() -> RetryPriority {
    let config = PreviousPrioritiesConfig { update_frequency: 2 };
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(proto::any(&config))),
    }
}

/// Returns a redirect for requests that arrived at `port`. Nothing if Envoy has no such status code.
pub(super) fn redirect(redirect: &Redirect, port: u16, tls: bool) -> Option<RedirectAction> {
    let code = match redirect.code {
        301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => return None,
    };
    let uri = redirect.uri.as_deref().unwrap_or_default();
    let path = match uri.strip_prefix(KEEP_REST_OF_PATH) {
        Some(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.to_owned()),
        // An empty path keeps the request's.
        None => PathRewriteSpecifier::PathRedirect(uri.to_owned()),
    };
    let new_port = match redirect.port {
        Some(RedirectPort::Number(number)) => number,
        // Envoy cannot take the port from the request, but these routes are for one port only.
        Some(RedirectPort::FromRequestPort) => port,
        Some(RedirectPort::FromProtocolDefault) | None => 0,
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(if tls { "https" } else { "http" });
    let is_default = matches!((new_port, scheme), (80, "http") | (443, "https"));
    Some(RedirectAction {
        host_redirect: redirect.authority.as_deref().unwrap_or_default().to_owned(),
        port_redirect: if is_default { 0 } else { new_port.into() },
        response_code: code.into(),
        scheme_rewrite_specifier: redirect
            .scheme
            .as_ref()
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_string())),
        path_rewrite_specifier: Some(path),
        ..RedirectAction::default()
    })
}

/// Returns a fixed answer.
pub(super) fn direct_response(response: &DirectResponse) -> DirectResponseAction {
    let body = response.body.as_ref().map(|body| match body {
        DirectBody::Text(text) => data_source::Specifier::InlineString(text.to_string()),
        DirectBody::Bytes(bytes) => data_source::Specifier::InlineBytes(bytes.to_vec().into()),
    });
    DirectResponseAction {
        status: response.status.into(),
        body: body.map(|specifier| DataSource { specifier: Some(specifier), ..DataSource::default() }),
        ..DirectResponseAction::default()
    }
}

/// Adds the rewriting of the path.
pub(super) fn rewrite_path(action: &mut RouteAction, rewrite: &Rewrite) {
    if let Some((pattern, substitution)) = &rewrite.uri_regex {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(wire::regex(pattern.as_ref())),
            substitution: substitution.to_string(),
        });
    } else if let Some(uri) = &rewrite.uri {
        action.prefix_rewrite = uri.to_string();
    }
}

/// Returns the fault filter's settings; nothing if there is no fault.
pub(super) fn fault(fault: &Fault) -> Option<HttpFault> {
    if fault.delay.is_none() && fault.abort.is_none() {
        return None;
    }
    let delay = fault.delay.as_ref().map(|delay| FaultDelay {
        percentage: Some(wire::fraction(delay.percentage.unwrap_or(NEVER))),
        fault_delay_secifier: Some(fault_delay::FaultDelaySecifier::FixedDelay(delay.fixed.into())),
    });
    let abort = fault.abort.as_ref().map(|abort| FaultAbort {
        percentage: abort.percentage.map(wire::fraction),
        error_type: Some(match abort.status {
            AbortStatus::Http(status) => fault_abort::ErrorType::HttpStatus(status.into()),
            AbortStatus::Grpc(status) => fault_abort::ErrorType::GrpcStatus(status),
        }),
        ..FaultAbort::default()
    });
    Some(HttpFault { delay, abort, ..HttpFault::default() })
}

const NEVER: Percent = Percent { numerator: 0, denominator: Denominator::Hundred };

/// Returns the CORS filter's settings.
pub(super) fn cors(cors: &Cors) -> CorsPolicy {
    CorsPolicy {
        allow_origin_string_match: cors.allow_origins.iter().map(wire::string_matcher).collect(),
        allow_methods: cors.allow_methods.join(","),
        allow_headers: cors.allow_headers.join(","),
        expose_headers: cors.expose_headers.join(","),
        max_age: cors.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: cors.allow_credentials.map(Into::into),
        filter_enabled: Some(wire::runtime_fraction(wire::ALL)),
        forward_not_matching_preflights: wire::bool_value(cors.forward_unmatched_preflights.unwrap_or(true)),
        ..CorsPolicy::default()
    }
}

/// Returns the headers that are set, then those that are appended to.
pub(super) fn added_headers(operations: &HeaderOperations) -> Vec<HeaderValueOption> {
    let set = operations
        .set
        .iter()
        .map(|(name, value)| header_option(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = operations
        .add
        .iter()
        .map(|(name, value)| header_option(name, value, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

/// Returns the headers that are removed.
pub(super) fn removed_headers(operations: &HeaderOperations) -> Vec<String> {
    operations.remove.iter().map(ToString::to_string).collect()
}

fn header_option(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::virtual_service::{FaultAbort as ModelAbort, FaultDelay as ModelDelay};
    use std::time::Duration;

    fn retries(conditions: &str) -> Retries {
        Retries { attempts: 1, retry_on: Some(conditions.into()), ..Retries::default() }
    }

    #[test]
    fn retry_conditions_are_words_and_codes() {
        let cases: [(&str, &str, &[u32]); 6] = [
            ("5xx, connect-failure", "5xx,connect-failure", &[]),
            ("5xx,503,429", "5xx,retriable-status-codes", &[503, 429]),
            ("gateway-error,retriable-status-codes,504", "gateway-error,retriable-status-codes", &[504]),
            ("500,502", ",retriable-status-codes", &[500, 502]),
            ("", DEFAULT_RETRY_ON, &[]),
            ("99999", "99999", &[]),
        ];
        for (conditions, words, codes) in cases {
            let got = retry_policy(Some(&retries(conditions)), false).unwrap();
            assert_eq!((got.retry_on.as_str(), got.retriable_status_codes.as_slice()), (words, codes));
        }
    }

    #[test]
    fn a_retry_avoids_hosts_that_were_tried_unless_hashed_or_told_otherwise() {
        let told =
            |ignore_previous_hosts| Retries { attempts: 1, ignore_previous_hosts, ..Retries::default() };
        let cases =
            [(None, false, true), (None, true, false), (Some(true), true, true), (Some(false), false, false)];
        for (told_so, hashed, avoids) in cases {
            let got = retry_policy(Some(&told(told_so)), hashed).unwrap();
            assert_eq!(!got.retry_host_predicate.is_empty(), avoids, "{told_so:?} {hashed}");
        }
    }

    #[test]
    fn further_retry_settings_are_carried_over() {
        let got = retry_policy(
            Some(&Retries {
                attempts: 7,
                per_try_timeout: Some(Duration::from_millis(1500)),
                remote_localities: Some(true),
                backoff: Some(Duration::from_millis(40)),
                ..Retries::default()
            }),
            false,
        )
        .unwrap();
        assert_eq!(got.num_retries, wire::u32_value(7));
        assert_eq!(got.per_try_timeout, wire::duration(Duration::from_millis(1500)));
        assert_eq!(got.retry_back_off.unwrap().base_interval, wire::duration(Duration::from_millis(40)));
        assert_eq!(got.retry_priority, Some(previous_priorities()));
        let local = Retries { attempts: 1, remote_localities: Some(false), ..Retries::default() };
        assert_eq!(retry_policy(Some(&local), false).unwrap().retry_priority, None);
    }

    #[test]
    fn inbound_retries_take_attempts_conditions_and_back_off_only() {
        let default = inbound_retry_policy(None).unwrap();
        assert_eq!(
            (default.retry_on.as_str(), default.num_retries),
            ("reset-before-request", wire::u32_value(2))
        );
        let off = Retries { attempts: 0, ..Retries::default() };
        assert_eq!(inbound_retry_policy(Some(&off)), None);
        let got = inbound_retry_policy(Some(&Retries {
            attempts: 5,
            per_try_timeout: Some(Duration::from_secs(1)),
            remote_localities: Some(true),
            backoff: Some(Duration::from_millis(50)),
            ..retries("reset,503")
        }))
        .unwrap();
        let expected = RetryPolicy {
            num_retries: wire::u32_value(5),
            retry_on: "reset,retriable-status-codes".to_owned(),
            retriable_status_codes: vec![503],
            retry_back_off: Some(RetryBackOff {
                base_interval: wire::duration(Duration::from_millis(50)),
                ..RetryBackOff::default()
            }),
            ..RetryPolicy::default()
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn redirects_leave_out_the_schemes_own_port() {
        // Port, scheme, whether the listener has TLS, and the port in the answer.
        let cases = [
            (None, None, false, 0),
            (Some(RedirectPort::Number(8443)), Some("https"), false, 8443),
            (Some(RedirectPort::Number(443)), Some("https"), false, 0),
            (Some(RedirectPort::Number(443)), None, false, 443),
            (Some(RedirectPort::Number(443)), None, true, 0),
            (Some(RedirectPort::Number(80)), None, false, 0),
            (Some(RedirectPort::Number(80)), None, true, 80),
            (Some(RedirectPort::FromRequestPort), None, false, 8080),
            (Some(RedirectPort::FromProtocolDefault), Some("https"), false, 0),
        ];
        for (port, scheme, tls, expected) in cases {
            let wanted = Redirect {
                uri: None,
                authority: Some("www".into()),
                port,
                scheme: scheme.map(Into::into),
                code: 301,
            };
            let got = redirect(&wanted, 8080, tls).unwrap();
            assert_eq!(got.port_redirect, expected, "{wanted:?} tls {tls}");
            assert_eq!(got.host_redirect, "www");
            assert_eq!(got.path_rewrite_specifier, Some(PathRewriteSpecifier::PathRedirect(String::new())));
        }
    }

    #[test]
    fn redirects_replace_the_path_or_its_prefix() {
        let to = |uri: &str| Redirect {
            uri: Some(uri.into()),
            authority: None,
            port: None,
            scheme: None,
            code: 308,
        };
        let got = redirect(&to("/a?b=1"), 80, false).unwrap();
        assert_eq!(got.path_rewrite_specifier, Some(PathRewriteSpecifier::PathRedirect("/a?b=1".to_owned())));
        assert_eq!(got.response_code, i32::from(RedirectResponseCode::PermanentRedirect));
        let got = redirect(&to("%PREFIX()%/docs"), 80, false).unwrap();
        assert_eq!(got.path_rewrite_specifier, Some(PathRewriteSpecifier::PrefixRewrite("/docs".to_owned())));
    }

    #[test]
    fn bodies_are_text_or_bytes() {
        let body = |body| direct_response(&DirectResponse { status: 503, body }).body.unwrap().specifier;
        assert_eq!(
            body(Some(DirectBody::Text("no".into()))),
            Some(data_source::Specifier::InlineString("no".to_owned()))
        );
        assert_eq!(
            body(Some(DirectBody::Bytes([0xff].into()))),
            Some(data_source::Specifier::InlineBytes(vec![0xff].into()))
        );
        assert_eq!(direct_response(&DirectResponse { status: 204, body: None }).body, None);
    }

    #[test]
    fn faults_keep_their_denominators() {
        let share = |numerator, denominator| Some(Percent { numerator, denominator });
        let got = fault(&Fault {
            delay: Some(ModelDelay { fixed: Duration::from_secs(2), percentage: None }),
            abort: Some(ModelAbort {
                status: AbortStatus::Grpc(14),
                percentage: share(500_000, Denominator::Million),
            }),
        })
        .unwrap();
        assert_eq!(got.delay.unwrap().percentage, Some(wire::fraction(NEVER)));
        let abort = got.abort.unwrap();
        assert_eq!(abort.error_type, Some(fault_abort::ErrorType::GrpcStatus(14)));
        assert_eq!(abort.percentage.map(|share| (share.numerator, share.denominator)), Some((500_000, 2)));

        let got = fault(&Fault {
            delay: Some(ModelDelay {
                fixed: Duration::from_secs(2),
                percentage: share(20, Denominator::Hundred),
            }),
            abort: Some(ModelAbort { status: AbortStatus::Http(500), percentage: None }),
        })
        .unwrap();
        assert_eq!(
            got.delay.unwrap().percentage.map(|share| (share.numerator, share.denominator)),
            Some((20, 0))
        );
        assert_eq!(got.abort.unwrap().percentage, None);
    }

    #[test]
    fn cors_settings_are_joined_and_preflights_forwarded() {
        use model::route::StringMatch;
        let got = cors(&Cors {
            allow_origins: vec![
                StringMatch::Exact("https://a".into()),
                StringMatch::Prefix("https://".into()),
            ],
            allow_methods: vec!["GET".into(), "POST".into()],
            allow_headers: vec!["a".into(), "b".into()],
            expose_headers: vec!["c".into()],
            max_age: Some(Duration::from_secs(600)),
            allow_credentials: Some(true),
            forward_unmatched_preflights: Some(false),
        });
        assert_eq!(got.allow_origin_string_match, [wire::exact("https://a"), wire::prefix("https://")]);
        assert_eq!(
            (got.allow_methods.as_str(), got.allow_headers.as_str(), got.expose_headers.as_str()),
            ("GET,POST", "a,b", "c")
        );
        assert_eq!((got.max_age.as_str(), got.allow_credentials), ("600", wire::bool_value(true)));
        assert_eq!(got.forward_not_matching_preflights, wire::bool_value(false));
        let default = cors(&Cors::default());
        assert_eq!(default.forward_not_matching_preflights, wire::bool_value(true));
        assert_eq!((default.max_age.as_str(), default.allow_credentials), ("", None));
        assert_eq!(default.filter_enabled, Some(wire::runtime_fraction(wire::ALL)));
    }
}
