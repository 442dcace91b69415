//! Authentication, the gate and the certificate service, with real tokens, certificates and TLS connections.

mod certificates;
mod gate;
mod requests;
mod rig;
mod tokens;
