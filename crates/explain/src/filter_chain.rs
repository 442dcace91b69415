//! The filter chain of a connection.
//!
//! Envoy narrows the chains step by step: at each step those whose criterion matches most specifically stay, or
//! else those without one. It never goes back, so a chain that fits better in a later step does not help.

use crate::{Failure, Seen};
use proto::envoy::config::core::v3::CidrRange;
use proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use std::net::IpAddr;

/// Returns the chain that takes a connection.
pub(crate) fn find<'a>(listener: &'a Listener, seen: &Seen<'_>) -> Result<&'a FilterChain, Failure> {
    let empty = FilterChainMatch::default();
    let mut chains: Vec<&FilterChain> = listener.filter_chains.iter().collect();
    narrow(&mut chains, |chain| {
        match criteria(chain).and_then(|criteria| criteria.destination_port.as_ref()) {
            None => Some(0),
            Some(port) => (port.value == u32::from(seen.port)).then_some(1),
        }
    });
    narrow(&mut chains, |chain| prefix_rank(&criteria(chain).unwrap_or(&empty).prefix_ranges, seen.address));
    narrow(&mut chains, |chain| name_rank(&criteria(chain).unwrap_or(&empty).server_names, seen.server_name));
    narrow(&mut chains, |chain| match criteria(chain).map_or("", |criteria| &criteria.transport_protocol) {
        "" => Some(0),
        transport => (transport == seen.transport).then_some(1),
    });
    narrow(&mut chains, |chain| {
        let wanted = &criteria(chain).unwrap_or(&empty).application_protocols;
        match seen.application {
            _ if wanted.is_empty() => Some(0),
            Some(application) => wanted.iter().any(|one| one == application).then_some(1),
            None => None,
        }
    });
    match chains[..] {
        [chain] => Ok(chain),
        [] => listener.default_filter_chain.as_ref().ok_or(Failure::NoFilterChain),
        _ => Err(Failure::SeveralFilterChains),
    }
}

fn criteria(chain: &FilterChain) -> Option<&FilterChainMatch> {
    chain.filter_chain_match.as_ref()
}

/// Keeps the chains with the highest rank; those without rank do not match.
fn narrow(chains: &mut Vec<&FilterChain>, rank: impl Fn(&FilterChain) -> Option<usize>) {
    let best = chains.iter().filter_map(|chain| rank(chain)).max();
    chains.retain(|chain| best.is_some() && rank(chain) == best);
}

fn prefix_rank(ranges: &[CidrRange], address: Option<IpAddr>) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    let address = address?;
    let lengths = ranges.iter().filter_map(|range| {
        let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
        contains(range.address_prefix.parse().ok()?, length, address).then_some(length as usize + 1)
    });
    lengths.max()
}

fn contains(prefix: IpAddr, length: u32, address: IpAddr) -> bool {
    match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or(0);
            prefix.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(prefix), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
            prefix.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

/// The exact name ranks highest, then the longest wildcard.
fn name_rank(names: &[String], seen: Option<&str>) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let seen = seen?.to_ascii_lowercase();
    let ranks = names.iter().filter_map(|name| match name.strip_prefix('*') {
        Some(suffix) => (seen.len() > suffix.len() && seen.ends_with(suffix)).then_some(suffix.len() + 1),
        None => (*name == seen).then_some(usize::MAX),
    });
    ranks.max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::google::protobuf::UInt32Value;

    fn chain(name: &str, criteria: FilterChainMatch) -> FilterChain {
        FilterChain { name: name.to_owned(), filter_chain_match: Some(criteria), ..FilterChain::default() }
    }

    fn seen(port: u16) -> Seen<'static> {
        Seen { address: None, port, server_name: None, transport: "raw_buffer", application: None }
    }

    fn names(names: &[&str]) -> FilterChainMatch {
        FilterChainMatch {
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..FilterChainMatch::default()
        }
    }

    fn found(listener: &Listener, seen: &Seen<'_>) -> Result<String, Failure> {
        find(listener, seen).map(|chain| chain.name.clone())
    }

    #[test]
    fn a_chosen_port_is_not_given_up_for_a_better_later_match() {
        let of_port =
            FilterChainMatch { destination_port: Some(UInt32Value { value: 80 }), ..names(&["a.org"]) };
        let filter_chains = vec![chain("port", of_port), chain("any", FilterChainMatch::default())];
        let listener = Listener { filter_chains, ..Listener::default() };
        assert_eq!(found(&listener, &seen(80)), Err(Failure::NoFilterChain));
        assert_eq!(found(&listener, &seen(81)), Ok("any".to_owned()));
    }

    #[test]
    fn the_most_specific_server_name_wins() {
        let filter_chains = vec![
            chain("wide", names(&["*.org"])),
            chain("narrow", names(&["*.a.org"])),
            chain("exact", names(&["b.a.org"])),
        ];
        let listener = Listener { filter_chains, ..Listener::default() };
        for (name, expected) in [("b.a.org", "exact"), ("c.a.org", "narrow"), ("a.org", "wide")] {
            let seen = Seen { server_name: Some(name), ..seen(443) };
            assert_eq!(found(&listener, &seen), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn equal_chains_are_ambiguous_and_no_chain_is_the_default_one() {
        let filter_chains = vec![chain("a", names(&["a.org"])), chain("b", names(&["a.org"]))];
        let default_filter_chain = Some(chain("default", FilterChainMatch::default()));
        let listener = Listener { filter_chains, default_filter_chain, ..Listener::default() };
        let known = Seen { server_name: Some("a.org"), ..seen(443) };
        assert_eq!(found(&listener, &known), Err(Failure::SeveralFilterChains));
        assert_eq!(found(&listener, &seen(443)), Ok("default".to_owned()));
    }

    #[test]
    fn the_longest_prefix_wins() {
        let range = |prefix: &str, length| FilterChainMatch {
            prefix_ranges: vec![CidrRange {
                address_prefix: prefix.to_owned(),
                prefix_len: Some(UInt32Value { value: length }),
            }],
            ..FilterChainMatch::default()
        };
        let filter_chains = vec![chain("wide", range("10.0.0.0", 8)), chain("narrow", range("10.1.0.0", 16))];
        let listener = Listener { filter_chains, ..Listener::default() };
        let at = |ip: &str| Seen { address: Some(ip.parse().unwrap()), ..seen(80) };
        assert_eq!(found(&listener, &at("10.1.2.3")), Ok("narrow".to_owned()));
        assert_eq!(found(&listener, &at("10.2.2.3")), Ok("wide".to_owned()));
        assert_eq!(found(&listener, &at("11.2.2.3")), Err(Failure::NoFilterChain));
    }
}
