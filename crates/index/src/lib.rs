//! The index: objects in, views of the mesh out.
//!
//! **Invariant:** one writer owns it, and everything in a published view follows from the objects that are there
//! now, for objects whose newest form is refused from the last form that was not, and for a short while from
//! EndpointSlices that were there. It does no I/O and reads no clock.
//!
//! ```text
//! apply/delete/reset ─▶ objects ─▶ translate ─▶ dirty services, rules ─▶ publish ─▶ MeshView + ChangeSet
//! ```
//!
//! - [`Index`]: the store of objects, and what each of them leads to.
//! - `doubt`: patience with Services of which no EndpointSlice tells.
//! - `registry`: services and endpoints, which are made of several objects each.

mod doubt;
mod registry;
mod rules;
mod store;
mod workloads;

pub use doubt::{Doubt, ENDPOINT_DOUBT};
pub use store::{Change, Finding, Findings, Held, Index, Reset, Settings, Sourced, model_key};
