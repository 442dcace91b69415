//! How endpoints are chosen.

use super::time;
use crate::parse::{Invalid, duration, positive_duration, required};
use crate::report::At;
use crate::virtual_service::unknown;
use k8s_api::destination_rule as api;
use model::Str;
use model::destination_rule::{
    Algorithm, ConsistentHash, Distribute, HashKey, HashRing, LoadBalancer, LocalityLb, Warmup,
};
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) fn load_balancer(
    at: &At<'_>,
    given: &api::LoadBalancerSettings,
    has_outlier: bool,
) -> LoadBalancer {
    let at_locality = at.field("localityLbSetting");
    let at_zone = at.field("zoneAwareLbSetting");
    if given.locality_lb_setting.is_some() && given.zone_aware_lb_setting.is_some() {
        at_zone.reject("cannot be combined with localityLbSetting");
    }
    if let Some(zone) = &given.zone_aware_lb_setting {
        check_failover(&at_zone, &zone.failover);
        at_zone.warn("is not supported yet and has no effect: use localityLbSetting");
    }
    let locality = given.locality_lb_setting.as_ref().map(|locality| locality_lb(&at_locality, locality));
    let fails_over = locality.as_ref().is_some_and(|locality| !locality.failover.is_empty())
        || given.zone_aware_lb_setting.as_ref().is_some_and(|zone| !zone.failover.is_empty());
    if fails_over && !has_outlier {
        at.warn("failover needs outlierDetection, without which no endpoint ever counts as failed");
    }
    LoadBalancer { algorithm: algorithm(at, given), locality, warmup: warmup(at, given) }
}

fn algorithm(at: &At<'_>, given: &api::LoadBalancerSettings) -> Algorithm {
    let set = [given.simple.is_some(), given.consistent_hash.is_some(), given.backend_utilization.is_some()];
    if set.into_iter().filter(|is_set| *is_set).count() > 1 {
        at.reject("only one of simple, consistentHash and backendUtilization can be set");
    }
    if given.backend_utilization.is_some() {
        at.field("backendUtilization").warn("is not supported yet: endpoints are balanced by least request");
    }
    if let Some(hash) = &given.consistent_hash {
        return Algorithm::ConsistentHash(consistent_hash(&at.field("consistentHash"), hash));
    }
    match &given.simple {
        None | Some(api::SimpleLb::Unspecified) => Algorithm::Unspecified,
        Some(api::SimpleLb::LeastRequest | api::SimpleLb::LeastConn) => Algorithm::LeastRequest,
        Some(api::SimpleLb::Random) => Algorithm::Random,
        Some(api::SimpleLb::Passthrough) => Algorithm::Passthrough,
        Some(api::SimpleLb::RoundRobin) => Algorithm::RoundRobin,
        Some(api::SimpleLb::Other(value)) => {
            unknown(&at.field("simple"), value, api::SimpleLb::VALUES);
            Algorithm::Unspecified
        }
    }
}

fn consistent_hash(at: &At<'_>, given: &api::ConsistentHashLb) -> ConsistentHash {
    let keys = [
        given.http_header_name.is_some(),
        given.http_cookie.is_some(),
        given.use_source_ip.is_some(),
        given.http_query_parameter_name.is_some(),
    ];
    if keys.into_iter().filter(|is_set| *is_set).count() > 1 {
        at.reject(
            "only one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName can be set",
        );
    }
    if given.ring_hash.is_some() && given.maglev.is_some() {
        at.field("maglev").reject("cannot be combined with ringHash");
    }
    let old_size = given.minimum_ring_size.filter(|size| *size > 0);
    if old_size.is_some() {
        at.field("minimumRingSize").warn("is deprecated: use ringHash.minimumRingSize");
    }
    let ring = if let Some(maglev) = &given.maglev {
        let at_size = at.field("maglev");
        let table_size = maglev.table_size.filter(|size| *size > 0);
        if let Some(size) = table_size
            && !is_prime(size)
        {
            at_size.field("tableSize").reject(format!("{size} must be a prime number of at most 5000011"));
        }
        HashRing::Maglev { table_size }
    } else {
        let size = given.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size).filter(|size| *size > 0);
        HashRing::Ring { minimum_size: size.or(old_size).unwrap_or(1024) }
    };
    ConsistentHash { key: hash_key(at, given), ring }
}

fn hash_key(at: &At<'_>, given: &api::ConsistentHashLb) -> Option<HashKey> {
    if let Some(name) = &given.http_header_name {
        return Some(HashKey::Header(name.as_str().into()));
    }
    if let Some(name) = &given.http_query_parameter_name {
        return Some(HashKey::QueryParameter(name.as_str().into()));
    }
    if let Some(cookie) = &given.http_cookie {
        let at = at.field("httpCookie");
        required(&at.field("name"), &cookie.name, "the cookie's name");
        let at_attributes = at.field("attributes");
        for (i, _) in cookie.attributes.iter().enumerate().filter(|(_, attribute)| attribute.name.is_empty())
        {
            let at = at_attributes.index(i);
            at.field("name").reject("must not be empty: the attribute's name is needed");
        }
        return Some(HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: (!cookie.path.is_empty()).then(|| cookie.path.as_str().into()),
            ttl: cookie.ttl.as_ref().and_then(|ttl| at.field("ttl").check(duration(ttl))),
            attributes: cookie
                .attributes
                .iter()
                .map(|attribute| (Str::from(attribute.name.as_str()), Str::from(attribute.value.as_str())))
                .collect(),
        });
    }
    given.use_source_ip.map(HashKey::SourceIp)
}

fn warmup(at: &At<'_>, given: &api::LoadBalancerSettings) -> Option<Warmup> {
    let Some(warmup) = &given.warmup else {
        let window = time(at, "warmupDurationSecs", given.warmup_duration_secs.as_ref())?;
        return Some(Warmup { window, minimum_percent: None, aggression: None });
    };
    if given.warmup_duration_secs.is_some() {
        at.field("warmupDurationSecs").warn("has no effect beside warmup");
    }
    let at = at.field("warmup");
    let at_duration = at.field("duration");
    let window = match &warmup.duration {
        Some(given) => at_duration.check(positive_duration(given)),
        None => {
            at_duration.reject("is required");
            None
        }
    };
    if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        at.field("minimumPercent").reject("must be in the range 0..100");
    }
    if warmup.aggression.is_some_and(|aggression| aggression.is_nan() || aggression <= 0.0) {
        at.field("aggression").reject("must be greater than 0, where 1 is linear");
    }
    Some(Warmup {
        window: window.unwrap_or(Duration::ZERO),
        minimum_percent: Some(warmup.minimum_percent.unwrap_or(10.0)),
        aggression: Some(warmup.aggression.unwrap_or(1.0)),
    })
}

/// Parses preference by locality.
pub(crate) fn locality_lb(at: &At<'_>, given: &api::LocalityLbSetting) -> LocalityLb {
    if !given.distribute.is_empty() && !given.failover.is_empty() {
        at.field("failover").reject("cannot be combined with distribute");
    }
    check_distribute(&at.field("distribute"), &given.distribute);
    check_failover(at, &given.failover);
    let distribute = given.distribute.iter().map(|given| Distribute {
        from: given.from.as_str().into(),
        to: given.to.iter().map(|(to, weight)| (Str::from(to.as_str()), *weight)).collect(),
    });
    LocalityLb {
        enabled: given.enabled,
        distribute: distribute.collect(),
        failover: given
            .failover
            .iter()
            .map(|given| (given.from.as_str().into(), given.to.as_str().into()))
            .collect(),
        failover_priority: given.failover_priority.iter().map(|label| Str::from(label.as_str())).collect(),
    }
}

fn check_distribute(at: &At<'_>, given: &[api::LocalityDistribute]) {
    let mut sources = BTreeSet::new();
    for (i, given) in given.iter().enumerate() {
        let at = at.index(i);
        let at_from = at.field("from");
        at_from.check(locality(&given.from));
        check_overlap(&at_from, &given.from, &mut sources);
        let at_to = at.field("to");
        let mut targets = BTreeSet::new();
        for (to, weight) in &given.to {
            let at = at_to.key(to);
            at.check(locality(to));
            check_overlap(&at, to, &mut targets);
            if !(1..=100).contains(weight) {
                at.reject(format!("{weight} is not a share: it must be in the range 1..100"));
            }
        }
        let total: u64 = given.to.values().map(|weight| u64::from(*weight)).sum();
        if total != 100 {
            at_to.reject(format!("the shares must add up to 100, not {total}"));
        }
    }
}

/// Rejects localities of which one contains another.
fn check_overlap<'a>(at: &At<'_>, given: &'a str, others: &mut BTreeSet<&'a str>) {
    let trimmed = given.trim_end_matches('*').trim_end_matches('/');
    let within = |outer: &str, inner: &str| {
        outer.is_empty()
            || inner == outer
            || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    if let Some(other) = others.iter().find(|other| within(other, trimmed) || within(trimmed, other)) {
        at.reject(format!("{given:?} overlaps with {other:?}"));
    }
    others.insert(trimmed);
}

fn locality(text: &str) -> Result<(), Invalid> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        return Err(Invalid::new(format!(
            "{text:?} is not a locality: write region, region/zone or region/zone/subzone"
        )));
    }
    let wildcards = text.matches('*').count();
    if wildcards > 1 || (wildcards == 1 && parts.last() != Some(&"*")) {
        return Err(Invalid::new(format!("{text:?} may have `*` only once, as its last part")));
    }
    Ok(())
}

fn check_failover(at: &At<'_>, given: &[api::LocalityFailover]) {
    let at = at.field("failover");
    for (i, given) in given.iter().enumerate() {
        let at = at.index(i);
        if given.from == given.to {
            at.field("to").reject("must be another region than from");
        }
        for (field, region) in [("from", &given.from), ("to", &given.to)] {
            if region.contains(['*', '/']) {
                at.field(field)
                    .reject(format!("{region:?} must be the name of a region, without zone or wildcard"));
            }
        }
    }
}

/// Envoy takes no larger tables than 5,000,011 entries.
fn is_prime(number: u64) -> bool {
    if !(2..=5_000_011).contains(&number) {
        return false;
    }
    (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
}
