//! The workload's certificate: a key that is made here, a request to the authority, and the next one in time.
//!
//! ```text
//! key ─▶ request ─▶ authority ─▶ Identity ─▶ Store ─▶ SDS ─▶ Envoy
//!   ▲                                │ when half of its life is over, give or take
//!   └────────────────────────────────┘
//! ```

pub mod authority;
pub mod certificate;
pub mod files;
pub mod key;
mod output;
pub mod renew;

pub use certificate::{Identity, IdentityError};
pub use key::PrivateKey;
