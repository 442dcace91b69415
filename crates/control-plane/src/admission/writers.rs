//! What weftd writes to the cluster, and for which namespaces.

use super::{Current, Facts};
use crate::args::{Args, Writes};
use crate::secure::Presenting;
use crate::status::StatusWriting;
use anyhow::{Result, bail};
use controllers::{Bundles, Client, Leads, RootCertificates, WriteStates, Writers};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use translate::Context;

/// What writing rests on.
pub(crate) struct Writing {
    /// The API server. For this alone, so that a lease does not wait behind lists.
    pub(crate) client: Client,
    /// What is presented, and the roots.
    pub(crate) presenting: Presenting,
    /// Where to tell what webhooks' configurations have.
    pub(crate) bundles: watch::Sender<Bundles>,
    /// What is known of the cluster.
    pub(crate) facts: watch::Receiver<Arc<Facts>>,
    /// Which namespaces are in the mesh.
    pub(crate) settings: watch::Receiver<Option<Current>>,
    /// How it is going.
    pub(crate) states: watch::Sender<WriteStates>,
    /// What nobody else is called.
    pub(crate) identity: String,
    /// What is said about objects; nothing if nobody asks.
    pub(crate) status: Option<StatusWriting>,
}

/// Writes what the flags ask for until `stopping`, and gives the leases back.
pub(crate) async fn write(args: Args, writing: Writing, stopping: CancellationToken) -> Result<()> {
    let Writing { client, presenting, bundles, facts, settings, states, identity, status } = writing;
    let writers = Writers {
        client,
        namespace: args.source.namespace.clone(),
        revision: args.mesh.revision.clone(),
        identity,
        states,
    };
    let does = |what| args.admission.write.contains(&what);
    let of_revision = async |leads: Leads| {
        let webhooks = async {
            match does(Writes::Webhooks) {
                true => writers.webhooks(presenting.bundle, bundles, leads.clone()).await,
                false => std::future::pending().await,
            }
        };
        let statuses = async {
            match status {
                Some(StatusWriting { wanted, seen, leads: told }) => {
                    told.send_replace(Some(leads.clone()));
                    writers.statuses(wanted, seen, leads.clone()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::join!(webhooks, statuses);
    };
    let of_cluster = async |leads: Leads| {
        let (sender, wanted) = watch::channel(None);
        let certificates = async {
            match does(Writes::RootCertificates) {
                true => writers.root_certificates(wanted, leads.clone()).await,
                false => std::future::pending().await,
            }
        };
        let addresses = async {
            match does(Writes::Addresses) {
                true => writers.addresses(leads.clone()).await,
                false => std::future::pending().await,
            }
        };
        tokio::join!(certificates, addresses, want(presenting.roots, facts, settings, sender));
    };
    let revision = async {
        if does(Writes::Webhooks) || does(Writes::Status) {
            writers.lead_revision(of_revision, stopping.clone()).await;
        }
    };
    let cluster = async {
        if does(Writes::RootCertificates) || does(Writes::Addresses) {
            writers.lead_cluster(of_cluster, stopping.clone()).await;
        }
    };
    tokio::join!(revision, cluster);
    Ok(())
}

/// Returns a name that no other process has, also not the one before in the same pod.
///
/// # Errors
///
/// If the system has no randomness.
pub(crate) fn identity(pod: Option<&str>) -> Result<String> {
    let mut random = [0; 4];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        bail!("the system has no randomness");
    }
    Ok(format!("{}_{:08x}", pod.unwrap_or("weftd"), u32::from_be_bytes(random)))
}

/// Keeps `wanted` up to date.
async fn want(
    mut roots: watch::Receiver<Option<Arc<str>>>,
    mut facts: watch::Receiver<Arc<Facts>>,
    mut settings: watch::Receiver<Option<Current>>,
    wanted: watch::Sender<Option<RootCertificates>>,
) {
    loop {
        let pem = roots.borrow_and_update().clone();
        let facts_now = facts.borrow_and_update().clone();
        let current = settings.borrow_and_update().clone();
        if let (Some(pem), Some(current)) = (pem, current) {
            let namespaces = Arc::new(namespaces(&facts_now, &current.context));
            let now = Some(RootCertificates { pem, namespaces });
            wanted.send_if_modified(|known| {
                let is_news = *known != now;
                *known = now;
                is_news
            });
        }
        let changed = tokio::select! {
            changed = roots.changed() => changed,
            changed = facts.changed() => changed,
            changed = settings.changed() => changed,
        };
        if changed.is_err() {
            // Only when weftd ends.
            return std::future::pending().await;
        }
    }
}

/// Returns the namespaces whose pods may have proxies.
fn namespaces(facts: &Facts, context: &Context) -> BTreeSet<String> {
    let all = facts.namespaces().filter(|(name, facts)| {
        !facts.is_ending
            && !inject::SYSTEM_NAMESPACES.contains(&name.as_str())
            && context.discovers(&facts.labels)
    });
    all.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use index::{Change, Sourced};
    use k8s_api::mesh_config::MeshConfig;
    use k8s_api::yaml::parse_documents;

    #[test]
    fn namespaces_of_the_mesh_are_those_that_are_discovered_and_stay() {
        let mut facts = Facts::default();
        for text in [
            "{name: shop, labels: {mesh: 'on'}}",
            "{name: other}",
            "{name: kube-system, labels: {mesh: 'on'}}",
            "{name: ending, labels: {mesh: 'on'}, deletionTimestamp: '2026-01-01T00:00:00Z'}",
        ] {
            let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {text}}}");
            let object = parse_documents(&text, "test").pop().unwrap().unwrap().object;
            facts.take_in(&Change::Apply(Sourced::from_api(object)));
        }
        let of = |mesh: &str| {
            let config = MeshConfig::parse(&[("test", mesh)]).unwrap().config;
            let mesh = translate::mesh_config(&"cluster.local".into(), &"c".into(), &config).value.unwrap();
            Vec::from_iter(namespaces(&facts, &mesh.context))
        };
        assert_eq!(of(""), ["other", "shop"]);
        assert_eq!(of("discoverySelectors: [{matchLabels: {mesh: 'on'}}]"), ["shop"]);
    }

    #[test]
    fn no_two_processes_are_called_the_same() {
        let (one, other) = (identity(Some("weftd-1")).unwrap(), identity(Some("weftd-1")).unwrap());
        assert!(one != other && one.starts_with("weftd-1_"));
    }
}
