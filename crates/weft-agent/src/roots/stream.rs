//! The agent's own stream to the control plane.

use super::subscription::{Action, Subscription};
use crate::config::Server;
use crate::identity::certificate::roots_from_pem;
use crate::identity::renew::{backoff, chain};
use crate::names;
use crate::sds::secret::type_url;
use crate::store::Store;
use crate::tls;
use ca::TrustBundle;
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proto::google::rpc;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

/// A stream that lived as long as this was a good one: the next attempt does not wait.
const GOOD: Duration = Duration::from_secs(60);
/// gRPC's number for an argument that is not understood.
const INVALID_ARGUMENT: i32 = 3;

/// Follows the roots, for ever. A control plane that does not serve them costs an attempt every half minute; roots
/// then come with certificates only.
pub async fn follow(server: Server, node: Node, store: Arc<Store>) {
    let mut subscription = Subscription::default();
    let mut delays = backoff();
    let mut changes = store.changes();
    loop {
        // Without a certificate the control plane would not know us.
        while server.trust.is_some() && store.identity().is_none() {
            if changes.changed().await.is_err() {
                return;
            }
        }
        let started = Instant::now();
        let ended = stream(&server, &node, &store, &mut subscription).await;
        subscription.on_disconnect();
        store.stream_ended();
        if started.elapsed() >= GOOD {
            delays = backoff();
        }
        let wait = delays.next().unwrap_or(GOOD);
        let error = ended.err().map_or_else(|| "it has ended".to_owned(), |error| chain(error.as_ref()));
        tracing::debug!(error, ?wait, "the stream of roots is down");
        tokio::time::sleep(wait).await;
    }
}

async fn stream(
    server: &Server,
    node: &Node,
    store: &Store,
    subscription: &mut Subscription,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let identity = store.identity();
    let channel = tls::connect(server, identity.as_deref(), store).await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let (requests, receiver) = mpsc::channel(4);
    let known = subscription.known_version().filter(|_| store.workload_roots().is_some());
    let first = DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: type_url(),
        resource_names_subscribe: vec![names::WORKLOAD_ROOTS.to_owned()],
        initial_resource_versions: known
            .map(|version| (names::WORKLOAD_ROOTS.to_owned(), version.to_owned()))
            .into_iter()
            .collect(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await?;
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
    let mut changes = store.changes();
    loop {
        let action = tokio::select! {
            response = responses.message() => match response? {
                Some(response) => on_response(&response, store, subscription),
                None => return Ok(()),
            },
            changed = changes.changed() => {
                changed?;
                subscription.on_progress(store.roots_progress())
            }
        };
        if let Some(answer) = answer(action) {
            requests.send(answer).await?;
        }
    }
}

fn on_response(response: &DeltaDiscoveryResponse, store: &Store, subscription: &mut Subscription) -> Action {
    let found = response.resources.iter().find(|resource| resource.name == names::WORKLOAD_ROOTS);
    let Some(resource) = found else { return subscription.on_nothing(&response.nonce, None) };
    let body = resource.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default();
    match roots(&body) {
        Ok(roots) => {
            tracing::info!(roots = roots.len(), "the control plane has sent roots");
            subscription.on_roots(&response.nonce, &resource.version);
            store.set_stream_roots(roots);
            subscription.on_progress(store.roots_progress())
        }
        Err(reason) => {
            tracing::warn!(reason, "the control plane has sent roots that cannot be used");
            subscription.on_nothing(&response.nonce, Some(reason))
        }
    }
}

fn roots(body: &[u8]) -> Result<TrustBundle, String> {
    let secret = Secret::decode(body).map_err(|error| error.to_string())?;
    let Some(secret::Type::ValidationContext(context)) = secret.r#type else {
        return Err("not a validation context".to_owned());
    };
    let pem = match context.trusted_ca.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(pem)) => pem,
        Some(Specifier::InlineString(pem)) => pem.into(),
        _ => return Err("the roots are not inline".to_owned()),
    };
    roots_from_pem(&pem).map_err(|error| chain(&error))
}

fn answer(action: Action) -> Option<DeltaDiscoveryRequest> {
    let (nonce, error) = match action {
        Action::Wait => return None,
        Action::Acknowledge { nonce } => (nonce, None),
        Action::Refuse { nonce, reason } => (nonce, Some(reason)),
    };
    Some(DeltaDiscoveryRequest {
        type_url: type_url(),
        response_nonce: nonce,
        error_detail: error.map(|message| rpc::Status {
            code: INVALID_ARGUMENT,
            message,
            details: Vec::new(),
        }),
        ..DeltaDiscoveryRequest::default()
    })
}
