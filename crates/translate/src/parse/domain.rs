//! Host names, patterns of them, and the other things that stand where hosts do.

use super::Invalid;
use std::net::IpAddr;

/// The longest domain name.
const MAX_DOMAIN: usize = 255;

/// Checks a label of a domain name: letters, digits and inner hyphens, at most 63 of them.
pub fn is_dns_label(label: &str) -> bool {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    bytes.len() <= 63
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// Checks a domain name, which may end with a dot.
pub fn domain(name: &str) -> Result<(), Invalid> {
    check_length(name)?;
    check_labels(name, name)
}

/// Checks a domain name or a pattern such as `*`, `*.example.org` or `*-old.example.org`.
pub fn wildcard_domain(name: &str) -> Result<(), Invalid> {
    check_length(name)?;
    let (first, rest) = match name.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (name, None),
    };
    let suffix = first.strip_prefix('*').map(|suffix| suffix.strip_prefix('-').unwrap_or(suffix));
    let fits = match suffix {
        Some("") => first == "*",
        Some(suffix) => is_dns_label(suffix),
        None => is_dns_label(first),
    };
    if !fits {
        return Err(bad_label(name, first));
    }
    rest.map_or(Ok(()), |rest| check_labels(name, rest))
}

/// Refuses patterns in which `*` is only a part of a label.
pub(crate) fn not_partial_wildcard(name: &str) -> Result<(), Invalid> {
    if name.contains('*') && name != "*" && !name.starts_with("*.") {
        return Err(Invalid::new(format!(
            "{name:?} has a partial wildcard: `*` must stand for whole labels at the start"
        )));
    }
    Ok(())
}

/// Checks the address of an endpoint that is found by name.
pub(crate) fn ip_or_fqdn(address: &str) -> Result<(), Invalid> {
    if address.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    domain(address)
        .map_err(|_| Invalid::new(format!("{address:?} is neither a domain name nor an IP address")))
}

/// Checks the path of a Unix socket: absolute, or abstract (`@name`), and not a directory.
pub fn unix_path(path: &str) -> Result<(), Invalid> {
    if path.starts_with('@') && path.len() > 1 {
        return Ok(());
    }
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(Invalid::new(format!("{path:?} is not the absolute path of a file")));
    }
    Ok(())
}

/// Splits `namespace/host`, checking the host as gateways and sidecars do. Without a slash there is no namespace.
pub(crate) fn namespaced_host(text: &str, allows_ip: bool) -> Result<(Option<&str>, &str), Invalid> {
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, text),
    };
    if namespace == Some("") || host.is_empty() {
        return Err(Invalid::new(format!("{text:?} needs a namespace before the slash and a host after it")));
    }
    if allows_ip && host.parse::<IpAddr>().is_ok() {
        return Ok((namespace, host));
    }
    if host != "*" && !host.contains('.') {
        return Err(Invalid::new(format!(
            "{host:?} is a short name: it must be a fully qualified domain name"
        )));
    }
    wildcard_domain(host)?;
    not_partial_wildcard(host)?;
    Ok((namespace, host))
}

fn check_length(name: &str) -> Result<(), Invalid> {
    match name.len() {
        0 => Err(Invalid::new("must not be empty: a domain name is needed")),
        1..=MAX_DOMAIN => Ok(()),
        long => {
            Err(Invalid::new(format!("a domain name has at most {MAX_DOMAIN} characters, this one {long}")))
        }
    }
}

fn check_labels(name: &str, rest: &str) -> Result<(), Invalid> {
    // The last label may be empty: `example.org.` is unambiguous.
    let labels = rest.strip_suffix('.').unwrap_or(rest);
    if let Some(bad) = labels.split('.').find(|label| !is_dns_label(label)) {
        return Err(bad_label(name, bad));
    }
    let last = rest.rsplit('.').next().unwrap_or_default();
    if last.parse::<i64>().is_ok() {
        return Err(Invalid::new(format!(
            "{name:?} is not a domain name: the last label must not be a number"
        )));
    }
    Ok(())
}

fn bad_label(name: &str, label: &str) -> Invalid {
    Invalid::new(format!(
        "{name:?} is not a domain name: the label {label:?} must be letters, digits and inner hyphens, 63 at most"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_and_patterns() {
        for good in ["a", "a.b", "a.b.", "A-1.b", "1a.b"] {
            assert_eq!(domain(good), Ok(()), "{good}");
            assert_eq!(wildcard_domain(good), Ok(()), "{good}");
        }
        for good in ["*", "*.a", "*-a.b", "*a.b", "*a"] {
            assert_eq!(wildcard_domain(good), Ok(()), "{good}");
            assert!(domain(good).is_err(), "{good}");
        }
        let long = format!("{}.b", "a".repeat(64));
        for bad in ["", ".", "a..b", "-a.b", "a_b.c", "a.*.b", "a.b*", "1.2.3.4", "a/b", "**", "*-", &long] {
            assert!(wildcard_domain(bad).is_err(), "{bad}");
        }
        assert!(domain(&"a.".repeat(128)).is_err());
    }

    #[test]
    fn hosts_with_namespaces() {
        assert_eq!(namespaced_host("ns/a.b", false), Ok((Some("ns"), "a.b")));
        assert_eq!(namespaced_host("*", false), Ok((None, "*")));
        assert_eq!(namespaced_host("1.1.1.1", true), Ok((None, "1.1.1.1")));
        for bad in ["/a.b", "ns/", "ns/short", "ns/*a.b", "1.1.1.1"] {
            assert!(namespaced_host(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn unix_sockets() {
        assert_eq!(unix_path("/a/b"), Ok(()));
        assert_eq!(unix_path("@a"), Ok(()));
        for bad in ["", "/", "a/b", "/a/", "@"] {
            assert!(unix_path(bad).is_err(), "{bad}");
        }
    }
}
