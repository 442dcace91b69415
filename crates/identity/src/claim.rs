//! What a proxy says of itself, against what it has proved.

use crate::caller::Caller;
use model::Proxy;

/// The metadata in which Istio's proxies name their service account.
const SERVICE_ACCOUNT: &str = "SERVICE_ACCOUNT";

/// Why a proxy is not who it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It claims another namespace.
    #[error("claims namespace {claimed:?}, has proved {proved:?}")]
    Namespace {
        /// The namespace of its node.
        claimed: String,
        /// The namespace of its identity.
        proved: String,
    },
    /// It claims another service account.
    #[error("claims service account {claimed:?}, has proved {proved:?}")]
    ServiceAccount {
        /// The service account of its node.
        claimed: String,
        /// The service account of its identity.
        proved: String,
    },
}

/// Checks that `proxy` claims nothing but what `caller` has proved: the namespace whose configuration it sees, the
/// namespace of its pod, and the service account, if it names one. Whoever needs the service account takes that of
/// the caller, so leaving it out wins nothing.
pub fn authorize(caller: &Caller, proxy: &Proxy) -> Result<(), ClaimError> {
    let proved = caller.id.namespace();
    for claimed in [&proxy.namespace, &proxy.workload.namespace] {
        if claimed != proved {
            return Err(ClaimError::Namespace { claimed: claimed.to_string(), proved: proved.to_string() });
        }
    }
    match proxy.metadata.get(SERVICE_ACCOUNT) {
        Some(claimed) if claimed.as_ref() != caller.id.service_account() => Err(ClaimError::ServiceAccount {
            claimed: claimed.to_string(),
            proved: caller.id.service_account().to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Proof;
    use model::proxy::{Interception, ProxyRole};
    use model::{Labels, Locality, WorkloadId};
    use std::time::SystemTime;

    fn proxy(namespace: &str, pod_namespace: &str, account: Option<&str>) -> Proxy {
        Proxy {
            role: ProxyRole::Sidecar,
            node_id: "sidecar~10.0.0.1~cart-1.shop~shop.svc.cluster.local".into(),
            workload: WorkloadId { namespace: pod_namespace.into(), name: "cart-1".into() },
            namespace: namespace.into(),
            ips: Vec::new(),
            dns_domain: "shop.svc.cluster.local".into(),
            labels: Labels::default(),
            locality: Locality::default(),
            cluster: "Kubernetes".into(),
            network: "".into(),
            node: None,
            interception: Interception::Redirect,
            has_identity: true,
            metadata: account.map(|account| (SERVICE_ACCOUNT.into(), account.into())).into_iter().collect(),
            extensions: Vec::new(),
            settings: None,
        }
    }

    fn check(proxy: &Proxy) -> Result<(), ClaimError> {
        let caller = Caller {
            id: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            proof: Proof::Certificate,
            pod: None,
            node: None,
            expires: SystemTime::UNIX_EPOCH,
        };
        authorize(&caller, proxy)
    }

    #[test]
    fn a_proxy_may_be_who_it_is() {
        assert_eq!(check(&proxy("shop", "shop", Some("cart"))), Ok(()));
        assert_eq!(check(&proxy("shop", "shop", None)), Ok(()));
    }

    #[test]
    fn a_proxy_may_not_be_another() {
        for other in [
            proxy("bank", "bank", Some("cart")),
            proxy("bank", "shop", Some("cart")),
            proxy("shop", "bank", Some("cart")),
        ] {
            let error = check(&other).unwrap_err();
            assert_eq!(error.to_string(), "claims namespace \"bank\", has proved \"shop\"");
        }
        for account in ["admin", ""] {
            let error = check(&proxy("shop", "shop", Some(account))).unwrap_err();
            assert_eq!(error.to_string(), format!("claims service account {account:?}, has proved \"cart\""));
        }
    }
}
