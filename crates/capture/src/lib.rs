//! Traffic capture: which packets of a workload the kernel hands to the workload's Envoy.
//!
//! ```text
//! Settings ─▶ Plan ─┬─▶ nftables   one transaction for `nft --file -`
//!                   └─▶ iptables   one input each for `iptables-restore` and `ip6tables-restore`
//! ```
//!
//! The rules are Istio's: what it captures, this captures, in the same order of decisions. They are kept in tables and
//! chains of their own, so that others' rules stay as they are and ours can be replaced and taken away as a whole.
//!
//! **Invariant:** runs nothing and reads nothing: what the kernel has already comes in as text, what it should do goes
//! out as text. Every word of a script comes from a typed value, since annotations of pods end up in it.

pub mod iptables;
pub mod nftables;
mod plan;
mod rule;
mod settings;

pub use plan::{Family, Plan, Routing, Tables};
pub use rule::{Chain, Hook, Is, Owner, Protocol, Rule, State, Table, Verdict};
pub use settings::{
    Dns, InboundPorts, Interface, InvalidSetting, Mode, OutboundRanges, OwnerGroups, Settings,
    TproxySettings, list, ports, ranges,
};
