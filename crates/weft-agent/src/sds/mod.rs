//! Serving secrets to Envoy, over a Unix socket that only its user can open.

pub mod board;
mod files;
pub mod secret;
mod server;
pub mod session;

pub use files::follow;
pub use server::{bind, serve};
