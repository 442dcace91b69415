//! What tests need that is not under test: the real parts, stand-in apps, certificates, reference data.
//!
//! - [`tools`]: where `cargo xtask tools` has put Envoy, the API server and the others.
//! - [`rig`]: starts and stops them, each on ports and in folders of its own.
//! - [`shared`]: the reference material beside the clone.
//!
//! **Invariant:** nothing that is shipped depends on this crate, and it knows nothing of how Weft is wired up: it
//! starts other people's programs and its own stand-ins, and a test connects them to what it tests.

pub mod rig;
pub mod shared;
pub mod tools;
