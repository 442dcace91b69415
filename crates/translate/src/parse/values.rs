//! Ports, addresses, shares, labels and other scalars.

use super::{Invalid, domain, is_dns_label};
use crate::report::At;
use ipnet::IpNet;
use model::route::{Denominator, Percent};
use model::virtual_service::GatewayRef;
use model::{Labels, Namespace, Str};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Checks a port number.
pub(crate) fn port(number: u32) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Invalid::new(format!("port {number} must be in the range 1..65535"))),
    }
}

/// Parses an IP address.
pub(crate) fn ip(text: &str) -> Result<IpAddr, Invalid> {
    text.parse().map_err(|_| Invalid::new(format!("{text:?} is not an IP address")))
}

/// Parses an IP address or a range such as `10.0.0.0/8`.
pub(crate) fn subnet(text: &str) -> Result<IpNet, Invalid> {
    let invalid = || Invalid::new(format!("{text:?} is not an IP address or a range such as 10.0.0.0/8"));
    if text.contains('/') {
        return text.parse().map_err(|_| invalid());
    }
    text.parse::<IpAddr>().map(IpNet::from).map_err(|_| invalid())
}

/// Checks a whole number of percents.
pub(crate) fn percent(value: i64) -> Result<u32, Invalid> {
    match u32::try_from(value) {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err(Invalid::new(format!("{value} is not a percentage: it must be in the range 0..100"))),
    }
}

/// Parses a percentage to millionths, as Envoy takes it.
pub(crate) fn fraction(value: f64) -> Result<Percent, Invalid> {
    if !(0.0..=100.0).contains(&value) || (value > 0.0 && value < 0.0001) {
        return Err(Invalid::new(format!(
            "{value} is not a percentage: it must be 0 or in the range 0.0001..100"
        )));
    }
    // Truncated like Istio does; the range is checked above, so the cast cannot wrap.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000,000")]
    let numerator = (value * 10_000.0) as u32;
    Ok(Percent { numerator, denominator: Denominator::Million })
}

/// Rejects an empty value.
pub(crate) fn required(at: &At<'_>, value: &str, what: &str) {
    if value.is_empty() {
        at.reject(format!("must not be empty: {what} is needed"));
    }
}

/// Parses the name of a gateway: `mesh`, `name`, `namespace/name` or the old `name.namespace.svc…`.
pub(crate) fn gateway_ref(at: &At<'_>, text: &str, own: &str) -> Option<GatewayRef> {
    if text == "mesh" {
        return Some(GatewayRef::Mesh);
    }
    if let Some((namespace, name)) = text.split_once('/') {
        if !is_dns_label(namespace) || !is_dns_label(name) {
            at.reject(format!("{text:?} is not a gateway: it must be `name` or `namespace/name`"));
            return None;
        }
        return Some(GatewayRef::Gateway(Namespace::new(namespace), name.into()));
    }
    at.check(domain(text))?;
    if let Some((name, rest)) = text.split_once('.') {
        let namespace = rest.split('.').next().unwrap_or(rest);
        at.warn(format!("{text:?} is the old form of a gateway's name: write \"{namespace}/{name}\""));
        return Some(GatewayRef::Gateway(Namespace::new(namespace), name.into()));
    }
    Some(GatewayRef::Gateway(Namespace::new(own), text.into()))
}

/// Takes over a selector of labels, checking that it is one.
pub(crate) fn selector(at: &At<'_>, labels: &BTreeMap<String, String>) -> Labels {
    for (key, value) in labels {
        let at = at.key(key);
        if key.is_empty() {
            at.reject("the key of a label must not be empty");
        } else if key.contains('*') || value.contains('*') {
            at.reject("wildcards are not supported in selectors: name the label's exact key and value");
        } else if !is_label_value(value) {
            at.reject(format!(
                "{value:?} is not the value of a label: letters, digits, `-`, `_` and `.`, 63 at most"
            ));
        }
    }
    labels.iter().map(|(key, value)| (Str::from(key.as_str()), Str::from(value.as_str()))).collect()
}

fn is_label_value(value: &str) -> bool {
    let is_edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Decodes base64, of the standard or the URL alphabet, padded or not: protobuf JSON allows all.
pub(crate) fn base64(text: &str) -> Result<Vec<u8>, Invalid> {
    let invalid = || Invalid::new("is not base64");
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
        return Err(invalid());
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return Err(invalid()),
        };
        buffer = (buffer << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits).to_le_bytes()[0]);
            buffer &= (1 << bits) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use model::{Kind, ObjectKey};

    #[test]
    fn shares_are_counted_in_millionths() {
        let million = |numerator| Ok(Percent { numerator, denominator: Denominator::Million });
        assert_eq!(fraction(0.0), million(0));
        assert_eq!(fraction(0.0001), million(1));
        assert_eq!(fraction(12.5), million(125_000));
        assert_eq!(fraction(100.0), million(1_000_000));
        for bad in [-1.0, 0.000_01, 100.1, f64::NAN, f64::INFINITY] {
            assert!(fraction(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gateways_are_named_in_three_ways() {
        let report = Report::new(ObjectKey::new(Kind::VirtualService, "shop", "x"));
        let at = report.at("gateways");
        let parse = |text| gateway_ref(&at, text, "shop").map(|gateway| gateway.to_string());
        for (text, parsed) in [
            ("mesh", Some("mesh")),
            ("edge", Some("shop/edge")),
            ("infra/edge", Some("infra/edge")),
            ("edge.infra.svc.cluster.local", Some("infra/edge")),
            ("edge.infra", Some("infra/edge")),
            ("./edge", None),
            ("infra/", None),
            ("no_label", None),
        ] {
            assert_eq!(parse(text).as_deref(), parsed, "{text}");
        }
        let outcome = report.with(Some(()));
        assert_eq!((outcome.rejections.len(), outcome.warnings.len()), (3, 2));
    }

    #[test]
    fn base64_in_both_alphabets() {
        assert_eq!(base64("aGk="), Ok(b"hi".to_vec()));
        assert_eq!(base64("aGk"), Ok(b"hi".to_vec()));
        assert_eq!(base64("-_8="), Ok(vec![0xfb, 0xff]));
        assert_eq!(base64(""), Ok(Vec::new()));
        for bad in ["a", "a===", "a b=", "aGk=x"] {
            assert!(base64(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_and_subnets() {
        assert_eq!(port(65535), Ok(65535));
        assert!(port(0).is_err() && port(65536).is_err());
        assert_eq!(subnet("10.0.0.1").map(|net| net.to_string()), Ok("10.0.0.1/32".to_owned()));
        assert!(subnet("10.0.0.0/33").is_err() && subnet("x").is_err());
    }
}
