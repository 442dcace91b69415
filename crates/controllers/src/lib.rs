//! Kubernetes as a source of the mesh: one task per kind lists and watches, and hands on what it learns.
//!
//! **Invariant:** this is the only crate that talks to the API server. It knows objects, not meshes: what an object
//! means is decided by others. It never tells of fewer objects than there are: an object is taken away only by a
//! delete event or by a complete list without it, never because a list, a watch or a connection broke.
//!
//! ```text
//!              ┌ Service ───┐
//! API server ──┼ Pod ───────┼─▶ Change::{Reset, Apply, Delete, MeshConfig, ..} ─▶ index
//!              └ … ─────────┘        └ States: synced? last error? how many objects?
//! ```
//!
//! - [`connect`]: from a kubeconfig to a client whose dead connections are noticed.
//! - [`run`]: the sources, until nobody listens any more.
//! - [`token_keys`], [`review_token`], [`read_secret`] and others: single questions, and [`ServiceAccounts`].
//! - [`follow_config_map`], [`ProxyConfigs`]: what injection asks for and no mesh does.
//! - [`Writers`]: the only ones who write without being asked, one replica at a time.
//! - `source`: one source; lists, watches, errors, and kinds that are not there.
//! - `objects`, `mesh_settings`: what a source makes of what it sees, without I/O.

mod access;
mod accounts;
mod backoff;
mod config_map;
mod connect;
mod kinds;
mod mesh_settings;
mod objects;
mod outage;
mod proxy_configs;
mod revision_tags;
mod run;
mod source;
mod state;
mod tap;
mod trouble;
mod unsupported;
mod write;

pub use access::{
    AccessError, ReadSecret, SecretData, TokenKeys, TokenReview, apply_config_map, change_secret,
    create_secret, delete_config_map, list_config_maps, may_list_secrets, read_secret, review_token,
    token_keys,
};
pub use accounts::ServiceAccounts;
pub use config_map::{ConfigMapData, follow_config_map};
pub use connect::{Config, ConnectError, connect};
pub use kube::Client;
pub use proxy_configs::ProxyConfigs;
pub use run::{RunError, SOURCES, run};
pub use state::{SourceError, SourceState, States};
pub use tap::Seen;
pub use unsupported::follow_unsupported;
pub use write::{
    Bundles, Leads, Reported, RootCertificates, Statuses, Wish, WriteState, WriteStates, Writers,
};
