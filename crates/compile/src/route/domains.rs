//! Under which names a service's virtual host answers.

use model::service::Vip;
use model::{Hostname, Service};
use std::collections::HashSet;

use crate::audience::IpFamilies;

/// A name of a virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Domain {
    /// The name.
    pub(super) name: String,
    /// Whether it was made by shortening another: a real host of this name goes first.
    pub(super) shortened: bool,
}

impl Domain {
    /// Returns a name that a service or rule was given.
    pub(super) fn full(name: impl Into<String>) -> Self {
        Self { name: name.into(), shortened: false }
    }
}

/// For whom names are made.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    /// The suffix of its own names, such as `default.svc.cluster.local`.
    pub(super) dns_domain: &'a str,
    /// The address families it can use.
    pub(super) families: IpFamilies,
}

/// Returns every name under which `client` may call `service`: its host with and without the final dot, what is left
/// of it in the client's own domain, the same for each of `aliases`, and its addresses.
pub(super) fn of_service(client: Client<'_>, service: &Service, aliases: &[&Hostname]) -> Vec<Domain> {
    let mut domains = of_host(client, &service.key.host);
    for alias in aliases {
        domains.extend(of_host(client, alias));
    }
    if service.is_headless() {
        // The pods of a StatefulSet have names below their service's.
        let pods: Vec<Domain> = domains
            .iter()
            .map(|domain| Domain { name: format!("*.{}", domain.name), shortened: domain.shortened })
            .collect();
        domains.extend(pods);
    }
    domains.extend(addresses(client.families, &service.vips).map(Domain::full));
    domains
}

fn of_host(client: Client<'_>, host: &Hostname) -> Vec<Domain> {
    let host = host.as_str();
    let mut domains = vec![Domain::full(host), Domain::full(format!("{host}."))];
    let short = short_names(host, client.dns_domain);
    domains.extend(short.into_iter().map(|name| Domain { name, shortened: true }));
    domains
}

/// Returns the names that `host` has in `domain`, shorter than itself.
fn short_names(host: &str, domain: &str) -> Vec<String> {
    match domain.split_once(".svc.") {
        Some((own, _)) => kubernetes_names(host, own),
        None => names_in_domain(host, domain),
    }
}

/// `name.namespace.svc…` is `name.namespace`, `name.namespace.svc` and, in its own namespace, `name`.
fn kubernetes_names(host: &str, own: &str) -> Vec<String> {
    let Some((name_and_namespace, _)) = host.split_once(".svc.") else { return Vec::new() };
    let Some((name, namespace)) = name_and_namespace.split_once('.') else { return Vec::new() };
    if name.is_empty() || namespace.is_empty() {
        return Vec::new();
    }
    let mut names = Vec::with_capacity(3);
    if namespace == own {
        names.push(name.to_owned());
    }
    names.push(format!("{name_and_namespace}.svc"));
    names.push(name_and_namespace.to_owned());
    names
}

/// Drops the labels that `host` shares with `domain` at the end.
fn names_in_domain(host: &str, domain: &str) -> Vec<String> {
    let shared = host.rsplit('.').zip(domain.rsplit('.')).take_while(|(a, b)| a == b).count();
    let labels: Vec<&str> = host.split('.').collect();
    if shared == 0 || shared >= labels.len() {
        return Vec::new();
    }
    let (unique, rest) = labels.split_at(labels.len() - shared);
    let unique_name = unique.join(".");
    let mut names = Vec::with_capacity(2);
    if unique.len() == 2 {
        names.push(format!("{unique_name}.{}", rest[0]));
    }
    names.push(unique_name);
    names
}

/// Returns the addresses that a client can use as they are written in a URL; the first if it can use none.
fn addresses(families: IpFamilies, vips: &[Vip]) -> impl Iterator<Item = String> {
    let usable = |vip: &&Vip| match vip {
        Vip::Ip(ip) if ip.is_ipv4() => families.v4,
        Vip::Ip(_) => families.v6,
        Vip::Cidr(net) if net.addr().is_ipv4() => families.v4,
        Vip::Cidr(_) => families.v6,
    };
    let none = !vips.iter().any(|vip| usable(&vip));
    let fallback = vips.first().filter(|_| none).map(as_host);
    let all: Vec<String> = vips.iter().filter(usable).map(as_host).collect();
    all.into_iter().chain(fallback)
}

fn as_host(vip: &Vip) -> String {
    match vip {
        Vip::Ip(ip) if ip.is_ipv6() => format!("[{ip}]"),
        other => other.to_string(),
    }
}

/// Returns a host as it is written in a URL: an IPv6 address gets its brackets.
pub(super) fn in_url(host: &str) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(_) => format!("[{host}]"),
        Err(_) => host.to_owned(),
    }
}

/// The names that virtual hosts of one configuration have taken: Envoy refuses a configuration that has one twice.
#[derive(Default)]
pub(super) struct Taken {
    /// In lower case.
    names: HashSet<String>,
    /// Hosts of services, which no shortened name may take.
    hosts: HashSet<String>,
}

impl Taken {
    /// Reserves a host for the service that has it.
    pub(super) fn reserve(&mut self, host: &str) {
        self.hosts.insert(host.to_owned());
    }

    /// Returns those of `domains` that are free, and takes them.
    pub(super) fn take(&mut self, domains: Vec<Domain>) -> Vec<String> {
        let mut free = Vec::with_capacity(domains.len());
        for domain in domains {
            let lower = domain.name.to_ascii_lowercase();
            if (domain.shortened && self.hosts.contains(&domain.name)) || !self.names.insert(lower) {
                continue;
            }
            free.push(domain.name);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_hosts_have_short_names_by_namespace() {
        let cases: [(&str, &str, &[&str]); 6] = [
            (
                "cart.shop.svc.cluster.local",
                "shop.svc.cluster.local",
                &["cart", "cart.shop.svc", "cart.shop"],
            ),
            ("cart.shop.svc.cluster.local", "web.svc.cluster.local", &["cart.shop.svc", "cart.shop"]),
            ("api.example.org", "web.svc.cluster.local", &[]),
            (".svc.cluster.local", "web.svc.cluster.local", &[]),
            ("cart.svc.cluster.local", "web.svc.cluster.local", &[]),
            ("api.example.org", "", &[]),
        ];
        for (host, domain, expected) in cases {
            assert_eq!(short_names(host, domain), expected, "{host} in {domain}");
        }
    }

    #[test]
    fn other_domains_shorten_by_shared_labels() {
        let cases: [(&str, &str, &[&str]); 5] = [
            ("foo.local.campus.net", "local.campus.net", &["foo"]),
            ("foo.local.campus.net", "remote.campus.net", &["foo.local.campus", "foo.local"]),
            ("foo.local.campus.net", "example.com", &[]),
            ("foo.net", "foo.net", &[]),
            ("svc.default.example.org", "default.example.org", &["svc"]),
        ];
        for (host, domain, expected) in cases {
            assert_eq!(short_names(host, domain), expected, "{host} in {domain}");
        }
    }

    #[test]
    fn addresses_are_those_of_usable_families() {
        let vip = |ip: &str| Vip::Ip(ip.parse().unwrap());
        let both = [vip("10.0.0.1"), vip("fd00::1")];
        let cidr = [Vip::Cidr("172.32.0.0/24".parse().unwrap())];
        let v4 = IpFamilies { v4: true, v6: false };
        let v6 = IpFamilies { v4: false, v6: true };
        let cases: [(IpFamilies, &[Vip], &[&str]); 6] = [
            (v4, &both, &["10.0.0.1"]),
            (v6, &both, &["[fd00::1]"]),
            (IpFamilies { v4: true, v6: true }, &both, &["10.0.0.1", "[fd00::1]"]),
            (v6, &both[..1], &["10.0.0.1"]),
            (v4, &cidr, &["172.32.0.0/24"]),
            (v4, &[], &[]),
        ];
        for (families, vips, expected) in cases {
            assert_eq!(addresses(families, vips).collect::<Vec<_>>(), expected, "{families:?}");
        }
        assert_eq!(in_url("fd00::1"), "[fd00::1]");
        assert_eq!(in_url("10.0.0.1"), "10.0.0.1");
    }

    #[test]
    fn a_name_is_taken_once_and_short_names_yield_to_hosts() {
        let mut taken = Taken::default();
        taken.reserve("cart.com");
        let short = |name: &str| Domain { name: name.to_owned(), shortened: true };
        assert_eq!(taken.take(vec![Domain::full("a"), short("cart.com"), short("b")]), ["a", "b"]);
        assert_eq!(taken.take(vec![Domain::full("A"), Domain::full("cart.com")]), ["cart.com"]);
    }
}
