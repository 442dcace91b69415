//! SPIFFE identities: who a workload is, as its certificate says.

use crate::{Namespace, Str};
use std::fmt;
use std::str::FromStr;

/// The longest trust domain that every implementation of SPIFFE must take.
const MAX_TRUST_DOMAIN: usize = 255;
/// The longest SPIFFE id that every implementation must take.
const MAX_ID: usize = 2048;
const SCHEME: &str = "spiffe://";

/// A trust domain: the name that all identities of one authority share, such as `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Str);

impl TrustDomain {
    /// Parses a trust domain: lower-case letters, digits, `.`, `-` and `_`, at most 255 of them.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain(shortened(text)));
        }
        Ok(Self(text.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The identity of a workload: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
///
/// Holding one proves that it is a well-formed SPIFFE id of that shape: nothing in it needs escaping, and no part can
/// be taken for two.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Str,
    trust_domain: TrustDomain,
    namespace: Namespace,
    service_account: Str,
}

impl SpiffeId {
    /// Returns the identity of a service account.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &Namespace,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        check_segment(namespace.as_str())?;
        check_segment(service_account)?;
        let uri = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        if uri.len() > MAX_ID {
            return Err(IdentityError::TooLong(uri.len()));
        }
        Ok(Self {
            uri: uri.into(),
            trust_domain: trust_domain.clone(),
            namespace: namespace.clone(),
            service_account: service_account.into(),
        })
    }

    /// Returns the identity as a URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Returns the identity without its scheme, as policies write it.
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    /// Returns the trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the name of the service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID {
            return Err(IdentityError::TooLong(text.len()));
        }
        let other_shape = || IdentityError::Shape(shortened(text));
        let rest = text.strip_prefix(SCHEME).ok_or_else(other_shape)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let &[trust_domain, "ns", namespace, "sa", service_account] = parts.as_slice() else {
            return Err(other_shape());
        };
        Self::new(&TrustDomain::parse(trust_domain)?, &Namespace::new(namespace), service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.uri, f)
    }
}

/// Why a text is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a trust domain.
    #[error("\"{0}\" is no trust domain: 1 to 255 lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain(String),
    /// A namespace or service account that no SPIFFE id can hold.
    #[error(
        "\"{0}\" is no part of a SPIFFE id: letters, digits, dots, dashes and underscores, not only dots"
    )]
    Segment(String),
    /// Another kind of URI.
    #[error("\"{0}\" is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Shape(String),
    /// Longer than SPIFFE allows.
    #[error("a SPIFFE id of {0} bytes: 2048 are allowed")]
    TooLong(usize),
}

/// Checks a path segment as the SPIFFE id standard defines it.
fn check_segment(segment: &str) -> Result<(), IdentityError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if segment.is_empty() || segment == "." || segment == ".." || !segment.bytes().all(allowed) {
        return Err(IdentityError::Segment(shortened(segment)));
    }
    Ok(())
}

/// Keeps messages about foreign input short.
fn shortened(text: &str) -> String {
    const LIMIT: usize = 80;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_it_is_written() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews.v1".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "cluster.local");
        assert_eq!(id.namespace().as_str(), "default");
        assert_eq!(id.service_account(), "reviews.v1");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/reviews.v1");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/reviews.v1");
        let same = SpiffeId::new(&"cluster.local".parse().unwrap(), &"default".into(), "reviews.v1").unwrap();
        assert_eq!(id, same);
    }

    #[test]
    fn what_is_no_workload_identity_is_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/./sa/b",
            "spiffe://td/NS/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:1/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a%2fb/sa/b",
            "spiffe://td/ns/a/sa/b%00",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/ns/a/sa/b,spiffe://td/ns/c/sa/d",
            "spiffe://td/ns/a/sa/ü",
            " spiffe://td/ns/a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn parts_cannot_smuggle_in_other_parts() {
        let domain = TrustDomain::parse("td").unwrap();
        for (namespace, account) in
            [("a/sa/b", "c"), ("a", "b/c"), ("a", ""), ("", "b"), ("a", ".."), ("a", "*")]
        {
            let made = SpiffeId::new(&domain, &Namespace::new(namespace), account);
            assert!(made.is_err(), "{namespace:?} {account:?}");
        }
    }

    #[test]
    fn lengths_are_limited() {
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert!(TrustDomain::parse(&"a".repeat(256)).is_err());
        let domain = TrustDomain::parse("td").unwrap();
        let prefix = "spiffe://td/ns/a/sa/".len();
        assert!(SpiffeId::new(&domain, &"a".into(), &"b".repeat(2048 - prefix)).is_ok());
        let error = SpiffeId::new(&domain, &"a".into(), &"b".repeat(2049 - prefix)).unwrap_err();
        assert_eq!(error, IdentityError::TooLong(2049));
    }
}
