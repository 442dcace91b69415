//! All sources together.

use crate::connect::Config;
use crate::kinds::{Absence, Kind};
use crate::mesh_settings::MeshSettings;
use crate::objects::{Follower, Objects};
use crate::outage::Outage;
use crate::revision_tags::RevisionTags;
use crate::source::{Progress, Source, everywhere};
use crate::state::{Reporter, States};
use index::Change;
use k8s_api::core::{ConfigMap, EndpointSlice, Namespace, Node, Pod, Secret, Service};
use k8s_api::destination_rule::DestinationRule;
use k8s_api::gateway::Gateway;
use k8s_api::peer_authentication::PeerAuthentication;
use k8s_api::reference_grant::ReferenceGrant;
use k8s_api::service_entry::ServiceEntry;
use k8s_api::sidecar::Sidecar;
use k8s_api::virtual_service::VirtualService;
use k8s_api::workload_entry::WorkloadEntry;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// The name of the source that follows the mesh configuration.
const MESH_CONFIG: &str = "MeshConfig";
/// The name of the source that follows the names of the revision.
const REVISION_TAG: &str = "RevisionTag";

/// The names of the sources: each tells `Change::Synced` once.
pub const SOURCES: &[&str] = &[
    MESH_CONFIG,
    REVISION_TAG,
    Service::NAME,
    EndpointSlice::NAME,
    Pod::NAME,
    Node::NAME,
    Namespace::NAME,
    Secret::NAME,
    ConfigMap::NAME,
    VirtualService::NAME,
    DestinationRule::NAME,
    Gateway::NAME,
    ServiceEntry::NAME,
    WorkloadEntry::NAME,
    Sidecar::NAME,
    PeerAuthentication::NAME,
    ReferenceGrant::NAME,
];

/// Why the sources cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A field of the base mesh configuration has the wrong type.
    #[error("the base mesh configuration is not a MeshConfig")]
    BaseMeshConfig(#[source] serde_json::Error),
}

/// Tells `sender` of everything in the cluster that concerns the mesh, until nobody listens to it any more. The state
/// of each source is kept in `states`.
///
/// Errors of the API server are never returned: they are logged, noted in `states` and retried for ever.
///
/// # Errors
/// If the base mesh configuration cannot be used.
pub async fn run(
    client: Client,
    config: Config,
    sender: mpsc::Sender<Change>,
    states: watch::Sender<States>,
) -> Result<(), RunError> {
    let mesh =
        MeshSettings::new(&config.mesh_config_map, config.base_mesh_config, config.last_good_mesh_config);
    let mesh = mesh.map_err(RunError::BaseMeshConfig)?;
    let outage = Outage::new(client.clone(), sender.clone());
    let mut sources = Sources { client, sender: sender.clone(), states, outage, tasks: JoinSet::new() };
    sources.follow_mesh_config(mesh, &config.namespace, &config.mesh_config_map);
    sources.follow_revision_tags(&config.revision);
    sources.follow::<Service>();
    sources.follow::<EndpointSlice>();
    sources.follow::<Pod>();
    sources.follow::<Node>();
    sources.follow::<Namespace>();
    sources.follow::<Secret>();
    sources.follow::<ConfigMap>();
    sources.follow::<VirtualService>();
    sources.follow::<DestinationRule>();
    sources.follow::<Gateway>();
    sources.follow::<ServiceEntry>();
    sources.follow::<WorkloadEntry>();
    sources.follow::<Sidecar>();
    sources.follow::<PeerAuthentication>();
    sources.follow::<ReferenceGrant>();

    let mut tasks = sources.tasks;
    tokio::select! {
        () = sender.closed() => {}
        // A source ends by itself only if nobody listens.
        Some(ended) = tasks.join_next() => if let Err(error) = ended && error.is_panic() {
            std::panic::resume_unwind(error.into_panic());
        },
    }
    Ok(())
}

/// The sources that are running.
struct Sources {
    client: Client,
    sender: mpsc::Sender<Change>,
    states: watch::Sender<States>,
    outage: Outage,
    tasks: JoinSet<()>,
}

impl Sources {
    fn follow<K: Kind>(&mut self) {
        self.spawn(Source {
            api: everywhere::<K>(&self.client),
            fields: K::FIELDS.map(str::to_owned),
            labels: None,
            absence: K::ABSENCE,
            follower: Objects::<K>::new(),
            reporter: Reporter::new(K::NAME, self.states.clone()),
            sender: self.sender.clone(),
            progress: Progress::new(),
            outage: self.outage.clone(),
        });
    }

    fn follow_mesh_config(&mut self, mesh: MeshSettings, namespace: &str, name: &str) {
        self.spawn(Source {
            api: Api::namespaced(self.client.clone(), namespace),
            fields: Some(format!("metadata.name={name}")),
            labels: None,
            absence: Absence::Forbidden,
            follower: mesh,
            reporter: Reporter::new(MESH_CONFIG, self.states.clone()),
            sender: self.sender.clone(),
            progress: Progress::new(),
            outage: self.outage.clone(),
        });
    }

    fn follow_revision_tags(&mut self, revision: &str) {
        self.spawn(Source {
            api: everywhere(&self.client),
            fields: None,
            labels: Some(RevisionTags::selector(revision)),
            absence: Absence::Forbidden,
            follower: RevisionTags::new(revision),
            reporter: Reporter::new(REVISION_TAG, self.states.clone()),
            sender: self.sender.clone(),
            progress: Progress::new(),
            outage: self.outage.clone(),
        });
    }

    fn spawn<F: Follower>(&mut self, source: Source<F>) {
        self.tasks.spawn(source.run());
    }
}
