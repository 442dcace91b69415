//! Edits under load: random valid changes of a mesh while requests flow through a real Envoy.
//!
//! **The rule.** A request fails if its answer is allowed by neither the configuration before nor the one after the
//! edits in flight. Several edits may be in flight, and Envoy may have stopped anywhere on the way, so an answer is
//! allowed if one and the same configuration allows it, out of those between the last one that Envoy was seen to follow
//! when the request began and the newest one when it ended. A route of one configuration that leads to an endpoint of
//! another is a failure, and so is whatever is only half of an edit. 503 is allowed where the configuration itself
//! leads nowhere: to a Service that is deleted.
//!
//! **What an edit is.** One or more objects, written or deleted one after the other in a random order, now and then
//! with pauses. Only what would be a different configuration is left out: endpoints are there before the Service or the
//! replica that they replace goes, and go after it, because a Service without endpoints answers 503 and is right to.
//!
//! **What ends.** A pod's process ends only after Envoy has dropped its address and its requests have ended.
//!
//! The generator does not know where objects go; a [`Target`] does: a [`Directory`], or a Kubernetes [`Cluster`].

mod cluster;
mod load;
mod manifests;
mod mesh;
mod random;
mod rollout;
mod target;

pub use cluster::Cluster;
pub use load::{History, Load};
pub use manifests::{all_pods, manifests};
pub use mesh::{Edit, Mesh, Outcome, Pod};
pub use random::Random;
pub use rollout::{Options, ResponseWatch, Rollout};
pub use target::{Change, Directory, Target};
