//! Preference by locality: weights and priorities of groups of endpoints.

use super::Member;
use crate::audience::OutboundAudience;
use crate::destination_rule::Blocks;
use crate::wire;
use model::destination_rule::LocalityLb;
use model::{Locality, MeshConfig, Service, Str};
use proto::envoy::config::core::v3 as core;
use proto::envoy::config::endpoint::v3::LocalityLbEndpoints;
use std::collections::{BTreeMap, BTreeSet};

/// How traffic is spread over localities, as far as it depends on the client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Spread {
    /// By the number of endpoints.
    Even,
    /// By given shares of localities.
    Shares(Vec<(Str, u32)>),
    /// By preference.
    Failover {
        /// Labels that rank endpoints, with the client's values, the most important first.
        labels: Vec<(Str, Str)>,
        /// Whether closeness ranks them as well.
        closeness: Option<Closeness>,
    },
}

/// Ranking of localities against the client's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Closeness {
    client: Locality,
    /// The region to fall back to before all other ones.
    failover: Option<Str>,
}

/// A locality policy that applies to a cluster.
#[derive(Clone, Copy, Debug)]
enum LocalityPolicy<'a> {
    /// The rule's or the mesh's.
    Given(&'a LocalityLb),
    /// A service's traffic distribution: ranking by labels, failing over even without ejection.
    Distribution(&'static [&'static str]),
}

/// Returns the locality policy of a cluster: the rule's, the service's or the mesh's.
fn locality_policy<'a>(
    config: &'a MeshConfig,
    blocks: Blocks<'a>,
    service: &Service,
) -> Option<LocalityPolicy<'a>> {
    let enabled = |policy: &&LocalityLb| policy.enabled != Some(false);
    if let Some(policy) = blocks.load_balancer.and_then(|balancer| balancer.locality.as_ref()) {
        return Some(policy).filter(enabled).map(LocalityPolicy::Given);
    }
    match service.traffic_distribution.labels() {
        [] => Some(&config.locality_lb).filter(enabled).map(LocalityPolicy::Given),
        labels => Some(LocalityPolicy::Distribution(labels)),
    }
}

/// Returns whether a cluster weighs its localities: where weights or ranks of them are given, and act.
pub(crate) fn weighs_localities(config: &MeshConfig, blocks: Blocks<'_>, service: &Service) -> bool {
    match locality_policy(config, blocks, service) {
        None => false,
        Some(LocalityPolicy::Distribution(_)) => true,
        Some(LocalityPolicy::Given(policy)) => {
            let ranked = !policy.failover.is_empty() || !policy.failover_priority.is_empty();
            !policy.distribute.is_empty() || (ranked && blocks.outlier_detection.is_some())
        }
    }
}

/// Returns how the traffic of `audience` is spread.
pub(super) fn spread(
    config: &MeshConfig,
    audience: &OutboundAudience,
    blocks: Blocks<'_>,
    service: &Service,
) -> Spread {
    let value = |name: &str| Str::from(audience.failover_labels.get(name).unwrap_or_default());
    let policy = match locality_policy(config, blocks, service) {
        None => return Spread::Even,
        Some(LocalityPolicy::Distribution(labels)) => {
            let labels = labels.iter().map(|&name| (name.into(), value(name))).collect();
            return Spread::Failover { labels, closeness: None };
        }
        Some(LocalityPolicy::Given(policy)) => policy,
    };
    if !policy.distribute.is_empty() {
        let applies =
            policy.distribute.iter().find(|entry| matches_locality(&audience.locality, &entry.from));
        return applies.map_or(Spread::Even, |entry| Spread::Shares(entry.to.clone()));
    }
    // Without ejection Envoy never finds out that a locality is down, and would never leave it.
    if blocks.outlier_detection.is_none() {
        return Spread::Even;
    }
    let labels: Vec<(Str, Str)> = policy
        .failover_priority
        .iter()
        .map(|entry| match entry.split_once('=') {
            Some((name, value)) => (name.into(), value.into()),
            None => (entry.clone(), value(entry)),
        })
        .collect();
    let by_closeness = labels.is_empty() || !policy.failover.is_empty();
    let closeness = by_closeness.then(|| Closeness {
        client: audience.locality.clone(),
        failover: policy
            .failover
            .iter()
            .find(|(from, _)| *from == audience.locality.region)
            .map(|(_, to)| to.clone()),
    });
    Spread::Failover { labels, closeness }
}

/// Whether `locality` is among those that `pattern` (`region/zone/subzone`, `*` for any) stands for.
fn matches_locality(locality: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.splitn(3, '/');
    let region = parts.next().unwrap_or_default();
    let mut narrower = |actual: &Str| match parts.next() {
        None | Some("" | "*") => true,
        Some(part) => part == &**actual,
    };
    (region == "*" || region == &*locality.region) && narrower(&locality.zone) && narrower(&locality.subzone)
}

/// The endpoints of one locality and priority.
pub(super) struct Group<'a> {
    locality: &'a Locality,
    members: Vec<Member<'a>>,
    weight: u32,
    priority: u32,
}

impl<'a> Group<'a> {
    pub(super) fn new(locality: &'a Locality, members: Vec<Member<'a>>, priority: u32) -> Self {
        let weight = members.iter().fold(0_u32, |sum, member| sum.saturating_add(member.weight()));
        Self { locality, members, weight, priority }
    }

    pub(super) fn into_message(self) -> LocalityLbEndpoints {
        let Locality { region, zone, subzone } = self.locality;
        LocalityLbEndpoints {
            locality: Some(core::Locality {
                region: region.as_ref().to_owned(),
                zone: zone.as_ref().to_owned(),
                sub_zone: subzone.as_ref().to_owned(),
            }),
            lb_endpoints: self.members.into_iter().map(Member::into_message).collect(),
            load_balancing_weight: wire::u32_value(self.weight).filter(|weight| weight.value > 0),
            priority: self.priority,
            ..LocalityLbEndpoints::default()
        }
    }
}

/// Gives groups their weights and priorities.
pub(super) fn spread_out<'a>(spread: &Spread, mut groups: Vec<Group<'a>>) -> Vec<Group<'a>> {
    match spread {
        Spread::Even => {}
        Spread::Shares(shares) => share_out(shares, &mut groups),
        Spread::Failover { labels, closeness } => {
            if !labels.is_empty() {
                groups = groups.into_iter().flat_map(|group| rank_by_labels(labels, group)).collect();
            }
            if let Some(closeness) = closeness {
                for group in &mut groups {
                    // There are five ranks of closeness inside each rank by labels.
                    group.priority = group.priority * 5 + closeness.rank(group.locality);
                }
            }
            close_gaps(&mut groups);
        }
    }
    groups
}

/// Gives every locality its share. A share of several localities is divided by their weights and rounded up. Localities
/// without a share stay, without endpoints.
fn share_out(shares: &[(Str, u32)], groups: &mut [Group<'_>]) {
    let mut open: Vec<usize> = (0..groups.len()).collect();
    for (pattern, share) in shares {
        let (mine, rest): (Vec<usize>, Vec<usize>) =
            open.into_iter().partition(|&index| matches_locality(groups[index].locality, pattern));
        open = rest;
        let total: u64 = mine.iter().map(|&index| u64::from(groups[index].weight)).sum();
        for index in mine {
            let part = u64::from(groups[index].weight) * u64::from(*share);
            let part = part.div_ceil(total.max(1));
            // A share of zero leaves the weight as it was.
            if part > 0 {
                groups[index].weight = u32::try_from(part).unwrap_or(u32::MAX);
            }
        }
    }
    for index in open {
        groups[index].members.clear();
    }
}

/// Splits a group by how many leading labels its endpoints share with the client.
fn rank_by_labels<'a>(labels: &[(Str, Str)], group: Group<'a>) -> Vec<Group<'a>> {
    let mut by_rank: BTreeMap<usize, Vec<Member<'a>>> = BTreeMap::new();
    for member in group.members {
        let differs = |(name, value): &(Str, Str)| {
            member.endpoint.labels.get(name).unwrap_or_default() != value.as_ref()
        };
        let rank = labels.iter().position(differs).map_or(0, |first| labels.len() - first);
        by_rank.entry(rank).or_default().push(member);
    }
    let group_of =
        |(rank, members)| Group::new(group.locality, members, u32::try_from(rank).unwrap_or(u32::MAX));
    by_rank.into_iter().map(group_of).collect()
}

impl Closeness {
    fn rank(&self, locality: &Locality) -> u32 {
        let Locality { region, zone, subzone } = &self.client;
        if *region != locality.region {
            let is_preferred = self.failover.as_ref().is_none_or(|preferred| *preferred == locality.region);
            return if is_preferred { 3 } else { 4 };
        }
        match (*zone == locality.zone, *subzone == locality.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    }
}

/// Envoy wants priorities without gaps, from 0.
fn close_gaps(groups: &mut [Group<'_>]) {
    let ranks: BTreeSet<u32> = groups.iter().map(|group| group.priority).collect();
    for group in groups {
        let position = ranks.iter().position(|rank| *rank == group.priority).unwrap_or_default();
        group.priority = u32::try_from(position).unwrap_or(u32::MAX);
    }
}
