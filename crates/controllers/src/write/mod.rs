//! What weftd writes: the `caBundle` of its webhooks, and the roots that pods know it by. One process writes at a time.
//!
//! ```text
//! election (pure) ◀─▶ lease ══ leads ══▶ keeper ◀─▶ agenda (pure): budget, failures, fights
//!                                          │
//! watch ─▶ Seen ─▶ webhooks, root_cert: what differs ─▶ server-side apply
//! ```
//!
//! A write names the version of the object that it rests on, so that nobody overwrites what they have not seen.

mod addresses;
mod agenda;
mod election;
mod keeper;
mod lease;
mod root_cert;
mod status;
mod webhooks;

use crate::kinds::Absence;
use crate::revision_tags::REVISION;
use crate::source::everywhere;
use crate::tap::{Seen, Selection, tap};
use addresses::Addresses;
use election::{Election, Pace};
use k8s_api::admission::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use keeper::Keeper;
use kube::Client;
use lease::Lease;
use root_cert::RootCerts;
use status::StatusDomain;
pub use status::{Reported, Statuses, Wish};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use webhooks::{Configuration, Told, Webhooks};

/// What the configurations of our webhooks have as `caBundle`, each; nothing while that is not known.
pub type Bundles = Option<Arc<Vec<Vec<u8>>>>;

/// The roots that pods are to know, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootCertificates {
    /// The roots.
    pub pem: Arc<str>,
    /// The namespaces.
    pub namespaces: Arc<BTreeSet<String>>,
}

/// The name that fields are owned by, unless several writers own parts of one object.
const MANAGER: &str = "weft";

/// Until when this process is the one that writes, if nothing else happens; nothing if it is not.
#[derive(Clone, Debug)]
pub struct Leads(watch::Receiver<Option<tokio::time::Instant>>);

impl Leads {
    /// Returns whether this process is the one that writes.
    pub fn is_leader(&self) -> bool {
        self.0.borrow().is_some_and(|until| until > tokio::time::Instant::now())
    }
}

/// How the writers are doing, by name.
pub type WriteStates = BTreeMap<&'static str, WriteState>;

/// How one is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteState {
    /// What was written.
    pub writes: u64,
    /// What could not be.
    pub failures: u64,
    /// What somebody else had changed, and is to be corrected.
    pub corrections: u64,
    /// The last error, if nothing was written since.
    pub last_error: Option<String>,
}

/// Who writes.
#[derive(Clone)]
pub struct Writers {
    /// The API server. The client should be for this alone: a lease must not wait behind lists.
    pub client: Client,
    /// The namespace of the leases.
    pub namespace: String,
    /// The revision whose webhooks are meant.
    pub revision: String,
    /// What nobody else is called.
    pub identity: String,
    /// How they are doing.
    pub states: watch::Sender<WriteStates>,
}

impl Writers {
    /// Does `work` until `stop`, which is told until when this process is the one that writes what belongs to its
    /// revision.
    pub async fn lead_revision(&self, work: impl AsyncFnOnce(Leads), stop: CancellationToken) {
        self.lead(format!("weft-leader-{}", self.revision), work, stop).await;
    }

    /// As [`Writers::lead_revision`], for what there is once for all revisions of a cluster, which take turns.
    pub async fn lead_cluster(&self, work: impl AsyncFnOnce(Leads), stop: CancellationToken) {
        self.lead("weft-leader".to_owned(), work, stop).await;
    }

    async fn lead(&self, name: String, work: impl AsyncFnOnce(Leads), stop: CancellationToken) {
        let (leading, leads) = watch::channel(None);
        let lease = self.lease(name).hold(leading, stop);
        tokio::select! {
            () = work(Leads(leads)) => {}
            () = lease => {}
        }
    }

    /// Keeps the `caBundle` of the revision's webhooks equal to `bundle`. What they have is told in `bundles`, whoever
    /// leads.
    pub async fn webhooks(
        &self,
        bundle: watch::Receiver<Option<Arc<str>>>,
        bundles: watch::Sender<Bundles>,
        leads: Leads,
    ) {
        let (told, leads) = (Told::new(2, bundles), leads.0);
        tokio::join!(
            self.follow::<MutatingWebhookConfiguration>(&told, &bundle, &leads),
            self.follow::<ValidatingWebhookConfiguration>(&told, &bundle, &leads),
        );
    }

    /// Keeps the conditions of objects as they are wanted. `seen` tells of the objects.
    pub async fn statuses(
        &self,
        wanted: watch::Receiver<Arc<Statuses>>,
        seen: mpsc::UnboundedReceiver<Seen<Reported>>,
        leads: Leads,
    ) {
        let keeper = Keeper {
            name: "Status",
            manager: "weft-status",
            client: self.client.clone(),
            domain: StatusDomain::default(),
            seen,
            wanted,
            leads: leads.0,
            states: self.states.clone(),
        };
        keeper.keep().await;
    }

    async fn follow<K: Configuration>(
        &self,
        told: &Told,
        bundle: &watch::Receiver<Option<Arc<str>>>,
        leads: &watch::Receiver<Option<tokio::time::Instant>>,
    ) {
        let (sender, seen) = mpsc::unbounded_channel();
        let selection = Selection {
            name: K::KIND,
            fields: None,
            labels: Some(format!("{REVISION}={}", self.revision)),
            absence: Absence::Forbidden,
        };
        let keeper = Keeper {
            name: K::KIND,
            manager: MANAGER,
            client: self.client.clone(),
            domain: Webhooks::<K>::new(told.clone()),
            seen,
            wanted: bundle.clone(),
            leads: leads.clone(),
            states: self.states.clone(),
        };
        let api = everywhere::<K>(&self.client);
        tokio::join!(tap(self.client.clone(), api, selection, sender), keeper.keep());
    }

    /// Keeps the ConfigMap `istio-ca-root-cert` in every namespace that is named.
    pub async fn root_certificates(&self, wanted: watch::Receiver<Option<RootCertificates>>, leads: Leads) {
        let (sender, seen) = mpsc::unbounded_channel();
        let selection = Selection {
            name: "RootCertificate",
            fields: Some(format!("metadata.name={}", root_cert::NAME)),
            labels: None,
            absence: Absence::Forbidden,
        };
        let keeper = Keeper {
            name: "RootCertificate",
            manager: MANAGER,
            client: self.client.clone(),
            domain: RootCerts::default(),
            seen,
            wanted,
            leads: leads.0,
            states: self.states.clone(),
        };
        let api = everywhere(&self.client);
        tokio::join!(tap(self.client.clone(), api, selection, sender), keeper.keep());
    }

    /// Keeps addresses in the status of every ServiceEntry that should have some and has none of its own.
    pub async fn addresses(&self, leads: Leads) {
        let (sender, seen) = mpsc::unbounded_channel();
        let selection =
            Selection { name: "ServiceEntry", fields: None, labels: None, absence: Absence::NotServed };
        // Nothing but the objects says what is wanted.
        let (_nobody, wanted) = watch::channel(());
        let keeper = Keeper {
            name: "Address",
            manager: "weft-addresses",
            client: self.client.clone(),
            domain: Addresses::default(),
            seen,
            wanted,
            leads: leads.0,
            states: self.states.clone(),
        };
        tokio::join!(tap(self.client.clone(), everywhere(&self.client), selection, sender), keeper.keep());
    }

    fn lease(&self, name: String) -> Lease {
        Lease {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            name,
            identity: self.identity.clone(),
            election: Election::new(self.identity.clone(), Pace::STANDARD),
        }
    }
}
