//! What else an HTTP rule does: rewriting, retries, faults, mirroring, CORS.

use super::matching::string_match;
use super::text;
use crate::parse::{fraction, header_name, is_method, percent, positive_duration, regex, retry_condition};
use crate::report::At;
use crate::virtual_service::{Scope, destination, unknown};
use k8s_api::virtual_service as api;
use model::Str;
use model::route::{Denominator, Percent, StringMatch};
use model::virtual_service::{AbortStatus, Cors, Fault, FaultAbort, FaultDelay, Mirror, Retries, Rewrite};
use std::time::Duration;

/// The statuses of gRPC in the order of their numbers.
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(super) fn rewrite(at: &At<'_>, given: &api::HttpRewrite) -> Rewrite {
    if given.uri.is_empty() && given.authority.is_empty() && given.uri_regex_rewrite.is_none() {
        at.reject("needs something to change: uri, uriRegexRewrite or authority");
    }
    let at_regex = at.field("uriRegexRewrite");
    if !given.uri.is_empty() && given.uri_regex_rewrite.is_some() {
        at_regex.reject("cannot be combined with uri");
    }
    let uri_regex = given.uri_regex_rewrite.as_ref().map(|rewrite| {
        if rewrite.matches.is_empty() || rewrite.rewrite.is_empty() {
            at_regex.reject("both match and rewrite are required");
        } else {
            at_regex.field("match").check(regex(&rewrite.matches));
        }
        (Str::from(rewrite.matches.as_str()), Str::from(rewrite.rewrite.as_str()))
    });
    Rewrite { uri: text(&given.uri), uri_regex, authority: text(&given.authority) }
}

/// Parses a retry policy.
pub(crate) fn retries(at: &At<'_>, given: &api::HttpRetry) -> Retries {
    let attempts = given.attempts.unwrap_or_default();
    if attempts < 0 {
        at.field("attempts").reject(format!("{attempts} must not be negative"));
    }
    let has_policy = given.per_try_timeout.is_some()
        || !given.retry_on.is_empty()
        || given.retry_remote_localities.is_some();
    if attempts == 0 && has_policy {
        at.field("attempts").reject("0 turns retries off, so the rest must be left out");
    }
    let at_conditions = at.field("retryOn");
    for condition in given.retry_on.split(',').filter(|_| !given.retry_on.is_empty()) {
        at_conditions.check(retry_condition(condition.trim()));
    }
    let time = |field, given: &Option<String>| {
        given.as_ref().and_then(|given| at.field(field).check(positive_duration(given)))
    };
    Retries {
        attempts: u32::try_from(attempts).unwrap_or_default(),
        per_try_timeout: time("perTryTimeout", &given.per_try_timeout),
        retry_on: text(&given.retry_on),
        remote_localities: given.retry_remote_localities,
        ignore_previous_hosts: given.retry_ignore_previous_hosts,
        backoff: time("backoff", &given.backoff),
    }
}

pub(super) fn fault(at: &At<'_>, given: &api::HttpFaultInjection) -> Fault {
    if given.abort.is_none() && given.delay.is_none() {
        at.reject("needs a fault: delay, abort or both");
    }
    Fault {
        delay: given.delay.as_ref().and_then(|delay| fault_delay(&at.field("delay"), delay)),
        abort: given.abort.as_ref().and_then(|abort| fault_abort(&at.field("abort"), abort)),
    }
}

fn fault_delay(at: &At<'_>, given: &api::FaultDelay) -> Option<FaultDelay> {
    let at_percent = at.field("percent");
    let percent = given.percent.filter(|percent| *percent != 0).and_then(|given| {
        at_percent.warn("is deprecated: use percentage");
        let numerator = at_percent.check(percent(given.into()))?;
        Some(Percent { numerator, denominator: Denominator::Hundred })
    });
    let percentage = share(&at.field("percentage"), given.percentage.as_ref()).or(percent);
    if given.exponential_delay.is_some() {
        at.field("exponentialDelay").reject("is not supported by any proxy: use fixedDelay");
        return None;
    }
    let Some(fixed) = &given.fixed_delay else {
        at.warn("has no effect without fixedDelay");
        return None;
    };
    let fixed = at.field("fixedDelay").check(positive_duration(fixed)).unwrap_or(Duration::ZERO);
    Some(FaultDelay { fixed, percentage })
}

fn fault_abort(at: &At<'_>, given: &api::FaultAbort) -> Option<FaultAbort> {
    let percentage = share(&at.field("percentage"), given.percentage.as_ref());
    let set = [given.http_status.is_some(), given.grpc_status.is_some(), given.http2_error.is_some()];
    if set.into_iter().filter(|is_set| *is_set).count() > 1 {
        at.reject("only one of httpStatus, grpcStatus and http2Error can be set");
        return None;
    }
    if given.http2_error.is_some() {
        at.field("http2Error").reject("is not supported by any proxy: use httpStatus or grpcStatus");
        return None;
    }
    let status = if let Some(name) = &given.grpc_status {
        let number = GRPC_STATUSES.iter().position(|status| status == name);
        let Some(number) = number.and_then(|number| u32::try_from(number).ok()) else {
            unknown(&at.field("grpcStatus"), name, &GRPC_STATUSES);
            return None;
        };
        AbortStatus::Grpc(number)
    } else if let Some(status) = given.http_status {
        match u16::try_from(status) {
            Ok(status @ 200..=599) => AbortStatus::Http(status),
            _ => {
                at.field("httpStatus").reject(format!("{status} is not in the range 200..599"));
                return None;
            }
        }
    } else {
        at.warn("has no effect without httpStatus or grpcStatus");
        return None;
    };
    Some(FaultAbort { status, percentage })
}

/// Parses the share of `mirror`, which is kept apart because rules that are delegated to inherit it.
pub(super) fn mirror_percentage(at: &At<'_>, rule: &api::HttpRoute) -> Option<Percent> {
    let at_percent = at.field("mirrorPercent");
    let whole = rule.mirror_percent().and_then(|given| {
        at_percent.warn("is deprecated: use mirrorPercentage");
        let numerator = at_percent.check(percent(given.into()))?;
        Some(Percent { numerator, denominator: Denominator::Hundred })
    });
    share_of_mirror(&at.field("mirrorPercentage"), rule.mirror_percentage.as_ref()).or(whole)
}

pub(super) fn mirrors(
    at: &At<'_>,
    scope: &Scope<'_>,
    rule: &api::HttpRoute,
    percentage: Option<Percent>,
) -> Vec<Mirror> {
    let single = rule.mirror.as_ref().map(|given| {
        let destination = destination(&at.field("mirror"), scope, Some(given));
        Mirror { destination, percentage }
    });
    let at = at.field("mirrors");
    let listed = rule.mirrors.iter().enumerate().map(|(i, given)| {
        let at = at.index(i);
        let all = Percent { numerator: 100, denominator: Denominator::Hundred };
        let percentage = share_of_mirror(&at.field("percentage"), given.percentage.as_ref());
        // Written out: unlike the share of `mirror`, it is never inherited.
        let percentage = Some(percentage.unwrap_or(all));
        Mirror {
            destination: destination(&at.field("destination"), scope, given.destination.as_ref()),
            percentage,
        }
    });
    single.into_iter().chain(listed).collect()
}

pub(super) fn cors(at: &At<'_>, given: &api::CorsPolicy) -> Cors {
    let at_origins = at.field("allowOrigins");
    let mut allow_origins: Vec<StringMatch> = given
        .allow_origins
        .iter()
        .enumerate()
        .filter_map(|(i, origin)| allowed(&at_origins.index(i), origin))
        .collect();
    if !given.allow_origin.is_empty() {
        at.field("allowOrigin").warn("is deprecated: use allowOrigins");
        if given.allow_origins.is_empty() {
            allow_origins =
                given.allow_origin.iter().map(|origin| StringMatch::Exact(origin.as_str().into())).collect();
        }
    }
    let at_methods = at.field("allowMethods");
    for (i, method) in given.allow_methods.iter().enumerate().filter(|(_, method)| !is_method(method)) {
        at_methods.index(i).reject(format!("{method:?} is not an HTTP method"));
    }
    let names = |field, given: &[String]| {
        let at = at.field(field);
        for (i, name) in given.iter().enumerate() {
            at.index(i).check(header_name(name));
        }
        given.iter().map(|name| Str::from(name.as_str())).collect::<Vec<_>>()
    };
    let at_age = at.field("maxAge");
    let max_age = given.max_age.as_ref().and_then(|given| at_age.check(positive_duration(given)));
    if max_age.is_some_and(|age| age.subsec_nanos() != 0) {
        at_age.reject("must be a whole number of seconds");
    }
    Cors {
        allow_origins,
        allow_methods: given.allow_methods.iter().map(|method| Str::from(method.as_str())).collect(),
        allow_headers: names("allowHeaders", &given.allow_headers),
        expose_headers: names("exposeHeaders", &given.expose_headers),
        max_age,
        allow_credentials: given.allow_credentials,
        forward_unmatched_preflights: match &given.unmatched_preflights {
            None | Some(api::UnmatchedPreflights::Unspecified) => None,
            Some(api::UnmatchedPreflights::Forward) => Some(true),
            Some(api::UnmatchedPreflights::Ignore) => Some(false),
            Some(api::UnmatchedPreflights::Other(value)) => {
                unknown(&at.field("unmatchedPreflights"), value, api::UnmatchedPreflights::VALUES);
                None
            }
        },
    }
}

fn allowed(at: &At<'_>, origin: &api::StringMatch) -> Option<StringMatch> {
    let is_empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    if is_empty(&origin.exact) && is_empty(&origin.prefix) && is_empty(&origin.regex) {
        at.reject("needs a value for one of exact, prefix and regex");
        return None;
    }
    string_match(at, origin, false)
}

/// Parses a share, in which no value means none.
fn share(at: &At<'_>, given: Option<&api::Percent>) -> Option<Percent> {
    given.and_then(|given| at.field("value").check(fraction(given.value.unwrap_or_default())))
}

/// As [`share`], without a lower limit.
fn share_of_mirror(at: &At<'_>, given: Option<&api::Percent>) -> Option<Percent> {
    let value = given?.value.unwrap_or_default();
    let smallest = if value > 0.0 && value < 0.0001 { 0.0 } else { value };
    at.field("value").check(fraction(smallest))
}
