//! A client that looks at every response about endpoints: what a proxy shows of itself later may have been repaired by
//! then.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use prost::{Message as _, Name as _};
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use proto::envoy::config::core::v3::{HealthStatus, Node};
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use serde_json::Value;
use tokio::sync::oneshot;

use super::RigError;

/// What one response said of one assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The name of the assignment.
    pub name: String,
    /// Its version; empty if it was removed.
    pub version: String,
    /// The nonce of the response.
    pub nonce: String,
    /// When the response came.
    pub at: Instant,
    /// How many of its endpoints get traffic; none if it was removed.
    pub endpoints: usize,
}

/// Subscribes to all clusters and to the endpoints of each over delta ADS, as Envoy does. Ends on drop.
#[derive(Debug)]
pub struct EndpointWatch {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The assignments that were seen so far.
    names: BTreeSet<String>,
    responses: u64,
    /// Why the stream ended.
    ended: Option<String>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndpointWatch {
    /// Connects to an xDS server as `node` and hands what each response says of each assignment to `look`.
    pub fn start(
        server: SocketAddr,
        node: &Value,
        look: impl FnMut(&Seen) + Send + 'static,
    ) -> Result<Self, RigError> {
        let invalid = |reason: String| RigError::Answer { what: "a node".to_owned(), answer: reason };
        let node = proto::json::from_json(&Node::type_url(), node).map_err(|e| invalid(e.to_string()))?;
        let node = Node::decode(node).map_err(|e| invalid(e.to_string()))?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let told = shared.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let reason = match runtime {
                Err(error) => error.to_string(),
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        result = follow(server, node, look, &told) => match result {
                            Ok(()) => "the server ended the stream".to_owned(),
                            Err(error) => error,
                        },
                        _ = stopped => "it was stopped".to_owned(),
                    }
                }),
            };
            told.lock().ended = Some(reason);
        };
        let thread = std::thread::Builder::new().name("endpoint-watch".to_owned()).spawn(body);
        let thread = thread.map_err(RigError::io("could not start a thread"))?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns the assignments that were seen so far.
    pub fn names(&self) -> BTreeSet<String> {
        self.shared.lock().names.clone()
    }

    /// Returns how many responses about endpoints were looked at.
    pub fn responses(&self) -> u64 {
        self.shared.lock().responses
    }

    /// Returns why the stream has ended, if it has.
    pub fn ended(&self) -> Option<String> {
        self.shared.lock().ended.clone()
    }
}

impl Drop for EndpointWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panics only if `look` does, which has been printed.
            let _ = thread.join();
        }
    }
}

async fn follow(
    server: SocketAddr,
    node: Node,
    mut look: impl FnMut(&Seen),
    shared: &Shared,
) -> Result<(), String> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{server}"));
    let channel = channel.map_err(|e| e.to_string())?.connect().await.map_err(|e| e.to_string())?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let (requests, inbox) = unbounded();
    let first = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: Cluster::type_url(),
        ..DeltaDiscoveryRequest::default()
    };
    send(&requests, first);
    let responses = client.delta_aggregated_resources(inbox).await.map_err(|e| e.to_string())?;
    let mut responses = responses.into_inner();
    // Subscribed to, by the name of the assignment.
    let mut wanted = BTreeSet::new();
    while let Some(response) = responses.message().await.map_err(|e| e.to_string())? {
        let at = Instant::now();
        if response.type_url == ClusterLoadAssignment::type_url() {
            let all = assignments(&response, at)?;
            let mut state = shared.lock();
            state.responses += 1;
            state.names.extend(all.iter().map(|seen| seen.name.clone()));
            drop(state);
            all.iter().filter(|seen| wanted.contains(&seen.name)).for_each(&mut look);
        }
        acknowledge(&requests, &response);
        if response.type_url == Cluster::type_url() {
            let subscribed = wanted_of(&response.resources)?;
            wanted.extend(subscribed.iter().cloned());
            // Envoy, too, does not ask for the endpoints of a cluster that it has lost; clusters and assignments
            // are named alike.
            let dropped: Vec<String> =
                response.removed_resources.into_iter().filter(|name| wanted.remove(name)).collect();
            let change = DeltaDiscoveryRequest {
                type_url: ClusterLoadAssignment::type_url(),
                resource_names_subscribe: subscribed,
                resource_names_unsubscribe: dropped,
                ..DeltaDiscoveryRequest::default()
            };
            send(&requests, change);
        }
    }
    Ok(())
}

/// Returns the names of the assignments that clusters need.
fn wanted_of(clusters: &[Resource]) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for resource in clusters {
        let cluster: Cluster = decode(resource)?;
        if cluster.cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)) {
            continue;
        }
        let given = cluster.eds_cluster_config.map(|config| config.service_name).unwrap_or_default();
        names.push(if given.is_empty() { cluster.name } else { given });
    }
    Ok(names)
}

fn assignments(response: &DeltaDiscoveryResponse, at: Instant) -> Result<Vec<Seen>, String> {
    let seen = |name: &str, version: &str, endpoints: usize| Seen {
        name: name.to_owned(),
        version: version.to_owned(),
        nonce: response.nonce.clone(),
        at,
        endpoints,
    };
    let mut all = Vec::new();
    for resource in &response.resources {
        let assignment: ClusterLoadAssignment = decode(resource)?;
        let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
        let serving = endpoints.filter(|endpoint| {
            matches!(endpoint.health_status(), HealthStatus::Unknown | HealthStatus::Healthy)
        });
        all.push(seen(&resource.name, &resource.version, serving.count()));
    }
    all.extend(response.removed_resources.iter().map(|name| seen(name, "", 0)));
    Ok(all)
}

fn decode<M: prost::Message + Default>(resource: &Resource) -> Result<M, String> {
    let any = resource.resource.as_ref().ok_or_else(|| format!("{} is without content", resource.name))?;
    M::decode(any.value.as_ref()).map_err(|error| format!("{}: {error}", resource.name))
}

fn acknowledge(requests: &UnboundedSender<DeltaDiscoveryRequest>, response: &DeltaDiscoveryResponse) {
    let answer = DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    send(requests, answer);
}

fn send(requests: &UnboundedSender<DeltaDiscoveryRequest>, request: DeltaDiscoveryRequest) {
    // A stream that has ended says so when it is read.
    let _ = requests.unbounded_send(request);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::envoy::config::endpoint::v3::{LbEndpoint, LocalityLbEndpoints};

    #[test]
    fn endpoints_that_get_traffic_are_counted_and_removals_seen() {
        let endpoint =
            |health: HealthStatus| LbEndpoint { health_status: health as i32, ..LbEndpoint::default() };
        let assignment = ClusterLoadAssignment {
            cluster_name: "a".to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![
                    endpoint(HealthStatus::Healthy),
                    endpoint(HealthStatus::Unhealthy),
                    endpoint(HealthStatus::Draining),
                    endpoint(HealthStatus::Unknown),
                ],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        };
        let response = DeltaDiscoveryResponse {
            nonce: "n".to_owned(),
            resources: vec![Resource {
                name: "a".to_owned(),
                version: "1".to_owned(),
                resource: Some(proto::any(&assignment)),
                ..Resource::default()
            }],
            removed_resources: vec!["b".to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        let all = assignments(&response, Instant::now()).unwrap();
        let told: Vec<_> =
            all.iter().map(|seen| (seen.name.as_str(), seen.version.as_str(), seen.endpoints)).collect();
        assert_eq!(told, [("a", "1", 2), ("b", "", 0)]);
    }

    #[test]
    fn a_server_that_is_not_there_ends_the_watch() {
        let watch = EndpointWatch::start(([127, 0, 0, 1], 1).into(), &serde_json::json!({"id": "a"}), |_| {})
            .unwrap();
        let ended =
            super::super::poll("the end", std::time::Duration::from_secs(10), || watch.ended()).unwrap();
        assert!(!ended.is_empty());
    }
}
