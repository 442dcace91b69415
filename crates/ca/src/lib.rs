//! The certificate authority: from a certificate request and an identity to an X.509 SVID, and from an old root to a
//! new one.
//!
//! **Invariant:** this crate knows neither a clock, nor the network, nor a disk, and makes no random choices. Time,
//! serial numbers, keys and the content of files are arguments. It never sees how a caller proved who it is: what it
//! is told to certify, it certifies.
//!
//! ```text
//! request (PEM) ──▶ Csr ───────────┐
//! files, Secret ──▶ IssuerMaterial ┼▶ Authority::issue ──▶ IssuedChain ──▶ answer of the CSR service, SDS
//! roots ──────────▶ TrustBundle ───┘        ▲
//! acknowledgements of proxies ──▶ rotation ─┘ which root signs, which are trusted
//! ```
//!
//! What a request asks for besides its key is never read, so it cannot be granted by mistake. What a certificate
//! says follows from the identity and from [`Policy`] alone.

pub mod authority;
pub mod bundle;
pub mod certificate;
mod chain;
pub mod crl;
pub mod csr;
mod der;
mod issue;
pub mod key;
pub mod material;
mod pem;
pub mod renewal;
pub mod root;
pub mod rotation;
mod time;

pub use crate::pem::PemError;
pub use authority::{Authority, IssueError, IssuedChain, Policy};
pub use bundle::{BundleHash, TrustBundle};
pub use certificate::{CaCertificate, Fingerprint};
pub use chain::ChainError;
pub use crl::RevocationLists;
pub use csr::{Csr, CsrError};
pub use issue::{BACKDATE, Serial};
pub use key::{KeyKind, PublicKey, SigningKeyPair};
pub use material::{IssuerMaterial, Loaded};
pub use renewal::RenewalPolicy;
pub use rotation::Rotation;
pub use time::{UnixTime, Validity};
