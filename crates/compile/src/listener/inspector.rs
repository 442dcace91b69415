//! Listener filters: what looks at a connection before a filter chain is chosen.
//!
//! An inspector waits for the client's first bytes. On a port where the server speaks first it would wait for ever, so
//! each is kept away from the ports whose chains can be told apart without it.

use super::chain::{Chain, Transport};
use crate::wire;
use proto::envoy::config::listener::v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
use proto::envoy::config::listener::v3::{ListenerFilter, ListenerFilterChainMatchPredicate};
use proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use proto::envoy::r#type::v3::Int32Range;
use std::collections::BTreeMap;

/// The packet mark of what the proxy sends on with the client's address (TPROXY).
const TPROXY_MARK: u32 = 1337;
/// Enough for most client hellos; it grows where it is not.
const CLIENT_HELLO_SIZE: u32 = 512;

/// Restores the address that a captured connection was sent to.
pub(super) fn original_destination() -> ListenerFilter {
    wire::listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default())
}

/// Keeps the client's address towards the application.
pub(super) fn original_source() -> ListenerFilter {
    let config = OriginalSrc { mark: TPROXY_MARK, ..OriginalSrc::default() };
    wire::listener_filter("envoy.filters.listener.original_src", &config)
}

/// Reads the client's address from the PROXY protocol.
pub(super) fn proxy_protocol() -> ListenerFilter {
    wire::listener_filter("envoy.filters.listener.proxy_protocol", &ProxyProtocol::default())
}

/// Recognises TLS and reads its server name and ALPN.
pub(super) fn tls() -> ListenerFilter {
    let config = TlsInspector {
        initial_read_buffer_size: wire::u32_value(CLIENT_HELLO_SIZE),
        ..TlsInspector::default()
    };
    wire::listener_filter("envoy.filters.listener.tls_inspector", &config)
}

/// Recognises HTTP in plain text.
pub(super) fn http() -> ListenerFilter {
    wire::listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default())
}

/// Returns the inspectors that `chains` of an inbound listener need, each on the ports that need it. Chains for no
/// port in particular count as port 0.
pub(super) fn inbound(chains: &[Chain]) -> Vec<ListenerFilter> {
    let mut ports: BTreeMap<u16, (bool, bool)> = BTreeMap::new();
    for chain in chains {
        let (tls, http) = ports.entry(chain.condition.port.unwrap_or(0)).or_default();
        *tls |= chain.condition.transport == Transport::Tls;
        *http |= chain.condition.needs_http_inspector();
    }
    let mut filters = Vec::new();
    let with_tls: Vec<u16> = ports.iter().filter(|(_, (tls, _))| *tls).map(|(port, _)| *port).collect();
    if !with_tls.is_empty() {
        let disabled = if with_tls.contains(&0) {
            any_of(ports.iter().filter(|(_, (tls, _))| !*tls).map(|(port, _)| *port))
        } else {
            any_of(with_tls.iter().copied()).map(|ports| rule(Rule::NotMatch(Box::new(ports))))
        };
        filters.push(ListenerFilter { filter_disabled: disabled, ..tls() });
    }
    if ports.values().any(|(_, http)| *http) {
        let disabled = any_of(ports.iter().filter(|(_, (_, http))| !*http).map(|(port, _)| *port));
        filters.push(ListenerFilter { filter_disabled: disabled, ..http() });
    }
    filters
}

fn rule(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

fn any_of(ports: impl Iterator<Item = u16>) -> Option<ListenerFilterChainMatchPredicate> {
    let mut rules: Vec<_> = ports
        .map(|port| Int32Range { start: port.into(), end: i32::from(port) + 1 })
        .map(|range| rule(Rule::DestinationPortRange(range)))
        .collect();
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(rule(Rule::OrMatch(MatchSet { rules }))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Condition, Filters, MESH_HTTP, PLAIN_HTTP};
    use super::*;

    fn chain(port: u16, transport: Transport, alpn: &'static [&'static str]) -> Chain {
        let port = Some(port).filter(|port| *port != 0);
        Chain::new(Condition { port, transport, alpn, ..Condition::default() }, Filters::default())
    }

    /// Each filter as `name` or `name !port,port` (disabled there) or `name =port,port` (enabled only there).
    fn described(chains: &[Chain]) -> Vec<String> {
        fn ports(predicate: &ListenerFilterChainMatchPredicate) -> Vec<String> {
            match predicate.rule.as_ref().unwrap() {
                Rule::DestinationPortRange(range) => {
                    assert_eq!(range.end, range.start + 1);
                    vec![range.start.to_string()]
                }
                Rule::OrMatch(set) => set.rules.iter().flat_map(ports).collect(),
                Rule::NotMatch(inner) => ports(inner),
                other => panic!("{other:?}"),
            }
        }
        let text = |filter: &ListenerFilter| {
            let name = filter.name.rsplit('.').next().unwrap();
            match &filter.filter_disabled {
                None => name.to_owned(),
                Some(predicate) => {
                    let sign = if matches!(predicate.rule, Some(Rule::NotMatch(_))) { '=' } else { '!' };
                    format!("{name} {sign}{}", ports(predicate).join(","))
                }
            }
        };
        inbound(chains).iter().map(text).collect()
    }

    #[test]
    fn inspectors_stay_away_from_ports_that_do_not_need_them() {
        use Transport::{Any, Raw, Tls};
        let cases: [(&[Chain], &[&str]); 5] = [
            (&[chain(9000, Raw, &[])], &[]),
            (&[chain(15006, Any, &[]), chain(0, Tls, MESH_HTTP)], &["tls_inspector !15006"]),
            (
                &[
                    chain(0, Tls, MESH_HTTP),
                    chain(0, Raw, PLAIN_HTTP),
                    chain(80, Tls, &[]),
                    chain(90, Raw, &[]),
                ],
                &["tls_inspector !90", "http_inspector !80,90"],
            ),
            (&[chain(0, Raw, &[]), chain(80, Tls, &[]), chain(81, Tls, &[])], &["tls_inspector =80,81"]),
            (&[chain(80, Raw, PLAIN_HTTP)], &["http_inspector"]),
        ];
        for (chains, expected) in cases {
            assert_eq!(described(chains), expected);
        }
    }
}
