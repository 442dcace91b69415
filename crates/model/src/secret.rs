//! Certificates that gateways serve.

use crate::ObjectKey;
use std::fmt;

/// A server certificate, its key and the authorities it trusts, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The Kubernetes Secret (or ConfigMap) it comes from.
    pub key: ObjectKey,
    /// The certificate chain, leaf first; empty if the object holds only authorities.
    pub certificate_chain: Vec<u8>,
    /// The private key of the leaf.
    pub private_key: Vec<u8>,
    /// A signed statement that the certificate is not revoked, in DER, which servers hand out with it.
    pub ocsp_staple: Option<Vec<u8>>,
    /// The authorities that client certificates are checked against.
    pub ca: Option<Vec<u8>>,
    /// Revocation lists.
    pub crl: Option<Vec<u8>>,
    /// Until when the certificate is good, in seconds since 1970.
    pub not_after: Option<i64>,
}

// Written by hand: a private key must never reach a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("key", &self.key).finish_non_exhaustive()
    }
}
