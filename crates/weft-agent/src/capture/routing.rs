//! What capture needs besides rules: an address of the loopback interface, and routes for what is marked.

use super::netlink::{Change, Netlink, Object};
use ::capture::{Family, Routing, TproxySettings};
use anyhow::Context as _;

/// Makes addresses and routes what `routing` says. What it does not say, and an earlier run may have left, is gone.
pub(super) fn apply(routing: &Routing, tproxy: &TproxySettings, kernel: &[Family]) -> anyhow::Result<()> {
    let mut netlink = Netlink::new().context("cannot speak to the kernel about routes")?;
    let wanted = steps(routing, kernel);
    let everything = Routing { local_v6_address: true, marked: Some((tproxy.mark, tproxy.table)) };
    for stale in steps(&everything, kernel).iter().filter(|object| !wanted.contains(object)) {
        netlink.change(Change::Remove, stale).with_context(|| format!("cannot take away: {stale}"))?;
    }
    for object in &wanted {
        netlink.change(Change::Add, object).with_context(|| format!("cannot set up: {object}"))?;
    }
    Ok(())
}

/// Returns what is wanted.
pub(super) fn steps(routing: &Routing, kernel: &[Family]) -> Vec<Object> {
    let mut wanted = Vec::new();
    let has_v6 = kernel.contains(&Family::V6);
    if routing.local_v6_address && has_v6 {
        wanted.push(Object::LocalAddress);
    }
    if let Some((mark, table)) = routing.marked {
        for family in kernel {
            // A route that nothing is sent to yet, before the rule that sends there.
            wanted.push(Object::LocalRoute { family: *family, table });
            wanted.push(Object::MarkRule { family: *family, mark, table });
        }
    }
    wanted
}
