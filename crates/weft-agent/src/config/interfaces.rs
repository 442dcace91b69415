//! The addresses of this network namespace, read from what the kernel says under `/proc/net`.
//!
//! Kubernetes passes one address of the pod (`INSTANCE_IP`). The others, such as the IPv6 one of a dual-stack pod,
//! and those of a virtual machine, are found here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns the local IPv4 addresses in the text of `/proc/net/fib_trie`, in its order, each once.
pub(crate) fn ipv4(fib_trie: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in fib_trie.lines() {
        if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(address) = last
            && !address.is_loopback()
            && !address.is_link_local()
            && !found.contains(&IpAddr::V4(address))
        {
            found.push(IpAddr::V4(address));
        }
    }
    found
}

/// Returns the global IPv6 addresses in the text of `/proc/net/if_inet6`.
pub(crate) fn ipv6(if_inet6: &str) -> Vec<IpAddr> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let address = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?);
        // Index, length of the prefix, scope: 00 is global.
        (words.nth(2)? == "00").then_some(IpAddr::V6(address))
    };
    if_inet6.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found_once() {
        let trie = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.244.0.0/24 2 0 2
        |-- 10.244.0.0
           /24 link UNICAST
        |-- 10.244.0.7
           /32 host LOCAL
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 169.254.1.1
           /32 host LOCAL
Local:
        |-- 10.244.0.7
           /32 host LOCAL
        |-- 10.244.0.255
           /32 link BROADCAST
";
        assert_eq!(ipv4(trie), ["10.244.0.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn only_global_ipv6_addresses_count() {
        let text = "00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000042acfffe110002 02 40 20 80     eth0
fd000000000000000000000000000007 02 40 00 80     eth0
";
        assert_eq!(ipv6(text), ["fd00::7".parse::<IpAddr>().unwrap()]);
    }
}
