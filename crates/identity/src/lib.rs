//! Who a caller is, what it may call, and the certificate that it gets.
//!
//! **Invariant:** nobody is believed. An identity is what a token or a certificate proves; what a proxy says of
//! itself is compared with it. This crate knows neither the Kubernetes API nor xDS: where keys, reviews and the
//! standing of workloads come from is injected, and the services behind the [`Gate`] are whatever is put there.
//!
//! ```text
//!            ┌ token ──────▶ keys of the cluster (KeySource), WorkloadIndex; TokenReviewer decides what is left
//! Credentials┤                                                                        ╲
//!            └ certificate ▶ the trust bundle of now                                    ▶ Caller ─▶ Gate ─▶ services
//!                                                            table of methods ─────────╱     └─▶ CertificateService
//! ```

mod caller;
mod certificate;
mod certificate_service;
mod claim;
mod gate;
mod methods;
mod metrics;
mod signing;
mod tls;
mod token;
mod workload;

pub use caller::{
    AuthError, Authenticator, Caller, Clock, Credentials, Pod, Proof, Rejection, authenticate, system_clock,
};
pub use certificate::{CertificateAuthenticator, Purpose, TrustDomains, serial_and_end};
pub use certificate_service::{CertificateService, Impersonation, Nobody, Recorder};
pub use claim::{ClaimError, authorize};
pub use gate::{Gate, GateConfig};
pub use methods::{Access, METHODS, REPLICA_COUNTS, access_of};
pub use metrics::Metrics;
pub use signing::SigningPool;
pub use tls::{Identity, ServerTls, TlsError, Trust};
pub use token::{
    Binding, KeySource, KeySourceError, PublishedKeys, Review, ReviewError, Standing, TokenAuthenticator,
    TokenConfig, TokenReviewer, WorkloadIndex,
};
pub use workload::{KeyError, WorkloadKey, WorkloadKeys, roots_secret};
