//! What a token says.

use crate::caller::{Pod, Rejection};
use model::{SpiffeId, Str, TrustDomain};
use serde::Deserialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far clocks may differ.
const LEEWAY: Duration = Duration::from_secs(10);
const SUBJECT: &str = "system:serviceaccount";

/// What a token is bound to: it is good for as long as that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The namespace of the service account.
    pub namespace: Str,
    /// The name of the service account.
    pub service_account: Str,
    /// Its unique id.
    pub service_account_uid: Option<Str>,
    /// The pod.
    pub pod: Option<Pod>,
}

/// The claims of a token whose signature is good.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    pub(crate) issuer: String,
    pub(crate) binding: Binding,
    pub(crate) node: Option<Str>,
    pub(crate) expires: SystemTime,
    not_before: Option<SystemTime>,
    audiences: Vec<String>,
}

#[derive(Deserialize)]
struct Wire {
    iss: String,
    sub: String,
    aud: OneOrMany,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Object,
    #[serde(default)]
    pod: Option<Object>,
    #[serde(default)]
    node: Option<NamedObject>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    uid: String,
}

#[derive(Deserialize)]
struct NamedObject {
    name: String,
}

impl Claims {
    /// Reads the claims of a service account's token. One without expiry or audience is no such token: Kubernetes
    /// made those once, and they never end.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        let wire: Wire = serde_json::from_slice(payload).map_err(|_| Rejection::Subject)?;
        let (namespace, account) = parse_username(&wire.sub).ok_or(Rejection::Subject)?;
        let mut binding = Binding {
            namespace: namespace.into(),
            service_account: account.into(),
            service_account_uid: None,
            pod: None,
        };
        let mut node = None;
        if let Some(kubernetes) = wire.kubernetes {
            if kubernetes.namespace != namespace || kubernetes.serviceaccount.name != account {
                return Err(Rejection::Subject);
            }
            binding.service_account_uid = Some(kubernetes.serviceaccount.uid.into());
            binding.pod = kubernetes.pod.map(|pod| Pod { name: pod.name.into(), uid: pod.uid.into() });
            node = kubernetes.node.map(|node| node.name.into());
        }
        Ok(Self {
            issuer: wire.iss,
            binding,
            node,
            expires: moment(wire.exp).ok_or(Rejection::Malformed)?,
            not_before: wire.nbf.and_then(moment),
            audiences: match wire.aud {
                OneOrMany::One(audience) => vec![audience],
                OneOrMany::Many(audiences) => audiences,
            },
        })
    }

    /// Checks when and for whom the token is good.
    pub(crate) fn check(&self, now: SystemTime, audiences: &[String]) -> Result<(), Rejection> {
        if now > self.expires + LEEWAY {
            return Err(Rejection::Expired);
        }
        if self.not_before.is_some_and(|begin| now + LEEWAY < begin) {
            return Err(Rejection::NotYetValid);
        }
        if !self.audiences.iter().any(|audience| audiences.contains(audience)) {
            return Err(Rejection::Audience);
        }
        Ok(())
    }

    pub(crate) fn id(&self, domain: &TrustDomain) -> Result<SpiffeId, Rejection> {
        let namespace = model::Namespace::new(self.binding.namespace.clone());
        SpiffeId::new(domain, &namespace, &self.binding.service_account).map_err(|_| Rejection::Subject)
    }
}

/// Splits `system:serviceaccount:NAMESPACE:NAME`: exactly four parts.
pub(crate) fn parse_username(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(SUBJECT)?.strip_prefix(':')?;
    let (namespace, name) = rest.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// A number of seconds as JSON may have it, in the range that clocks can reach.
fn moment(seconds: f64) -> Option<SystemTime> {
    let since = (0.0..=1e11).contains(&seconds).then(|| Duration::from_secs_f64(seconds))?;
    UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_have_exactly_four_parts() {
        assert_eq!(parse_username("system:serviceaccount:a:b"), Some(("a", "b")));
        for name in [
            "",
            "admin",
            "system:serviceaccount",
            "system:serviceaccount:",
            "system:serviceaccount:a",
            "system:serviceaccount:a:",
            "system:serviceaccount::b",
            "system:serviceaccount:a:b:c",
            "system:serviceaccounts:a:b",
            "system:node:a",
        ] {
            assert_eq!(parse_username(name), None, "{name}");
        }
    }

    #[test]
    fn times_that_no_clock_reaches_are_refused() {
        for seconds in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(moment(seconds), None);
        }
        assert_eq!(moment(1.5), Some(UNIX_EPOCH + Duration::from_millis(1500)));
    }
}
