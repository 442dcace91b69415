//! Kinds that Weft does not act on: each object is said once in the log, and in its conditions if these are written.

use super::conditions::is_policy;
use controllers::{Client, Reported};
use k8s_api::object::ObjectKey;
use std::collections::BTreeSet;
use tokio::sync::mpsc;
use tracing::{error, warn};

/// Follows them for as long as the future lives. `allows` says that policies are accepted that nobody enforces.
pub(crate) async fn follow(client: Client, allows: bool, reported: mpsc::UnboundedSender<Reported>) {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut said = BTreeSet::new();
    let say = async {
        while let Some(object) = seen.recv().await {
            say(&mut said, &object, allows);
            // Perhaps nobody reports.
            let _ = reported.send(object);
        }
    };
    tokio::join!(controllers::follow_unsupported(client, sender), say);
}

fn say(said: &mut BTreeSet<ObjectKey>, object: &Reported, allows: bool) {
    let key = &object.key;
    if object.is_gone {
        said.remove(key);
    } else if said.insert(key.clone()) {
        match is_policy(&key.kind) {
            true if allows => warn!(object = %key, "is not enforced: traffic passes as if it were not there"),
            true => error!(object = %key, "is not enforced: traffic passes as if it were not there"),
            false => warn!(object = %key, "Weft does not act on this kind yet"),
        }
    }
}
