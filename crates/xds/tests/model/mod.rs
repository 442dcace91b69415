//! A model of Envoy and of the wire between it and a session.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared by test programs that each use a part of it"
)]

pub mod envoy;
pub mod hand;
pub mod wire;
pub mod world;
