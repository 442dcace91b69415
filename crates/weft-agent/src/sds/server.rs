//! The SDS server on its Unix socket.

use super::secret::type_url;
use super::session::{Event, Names, Request, Response, Session};
use crate::store::Store;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use proto::google::rpc;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Status, Streaming};

/// Listens on a socket that only the user of this process can open. What an earlier agent left is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{} is there and is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        _ => {}
    }
    // Under its own name only when nobody else can open it.
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

/// Serves secrets until the listener fails.
pub async fn serve(listener: UnixListener, store: Arc<Store>) -> Result<(), tonic::transport::Error> {
    let service = SecretDiscoveryServiceServer::new(Service { store });
    let server = tonic::transport::Server::builder().add_service(service);
    server.serve_with_incoming(UnixListenerStream::new(listener)).await
}

struct Service {
    store: Arc<Store>,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type DeltaSecretsStream = Stream<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Stream<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::DeltaSecretsStream>, Status> {
        Ok(tonic::Response::new(run(self.store.clone(), request.into_inner())))
    }

    async fn stream_secrets(
        &self,
        request: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<tonic::Response<Self::StreamSecretsStream>, Status> {
        Ok(tonic::Response::new(run(self.store.clone(), request.into_inner())))
    }

    async fn fetch_secrets(
        &self,
        _: tonic::Request<DiscoveryRequest>,
    ) -> Result<tonic::Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served on streams only"))
    }
}

/// A variant of the protocol.
trait Variant: Send + 'static {
    /// What the client is sent.
    type Response: Send + 'static;

    fn request(self) -> Request;
    fn response(response: Response) -> Self::Response;
}

impl Variant for DiscoveryRequest {
    type Response = DiscoveryResponse;

    fn request(self) -> Request {
        Request {
            nonce: self.response_nonce,
            error: self.error_detail.map(message),
            names: Names::All(self.resource_names),
        }
    }

    fn response(response: Response) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: response.nonce.clone(),
            resources: response.secrets.iter().map(|(_, secret)| secret.any()).collect(),
            type_url: type_url(),
            nonce: response.nonce,
            ..DiscoveryResponse::default()
        }
    }
}

impl Variant for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;

    fn request(self) -> Request {
        Request {
            nonce: self.response_nonce,
            error: self.error_detail.map(message),
            names: Names::Change {
                add: self.resource_names_subscribe,
                remove: self.resource_names_unsubscribe,
                known: self.initial_resource_versions.into_iter().collect(),
            },
        }
    }

    fn response(response: Response) -> DeltaDiscoveryResponse {
        let resource = |(name, secret): (String, super::secret::Secret)| Resource {
            name,
            version: secret.version.to_string(),
            resource: Some(secret.any()),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: response.nonce.clone(),
            resources: response.secrets.into_iter().map(resource).collect(),
            type_url: type_url(),
            nonce: response.nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

fn message(status: rpc::Status) -> String {
    status.message
}

/// Starts the task of one stream.
fn run<V: Variant>(store: Arc<Store>, mut requests: Streaming<V>) -> Stream<V::Response> {
    let (responses, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut changes = store.changes();
        let mut session = Session::default();
        let id = store.join();
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        for event in session.on_request(request.request()) {
                            note(&store, id, event);
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                _ = changes.changed() => {}
            }
            if let Some(response) = session.next_response(|name| store.secret(name)) {
                let names: Vec<&str> = response.secrets.iter().map(|(name, _)| name.as_str()).collect();
                tracing::debug!(?names, nonce = response.nonce, "sending secrets");
                if responses.send(Ok(V::response(response))).await.is_err() {
                    break;
                }
            }
        }
        store.leave(id);
    });
    ReceiverStream::new(stream)
}

fn note(store: &Store, id: super::board::SubscriberId, event: Event) {
    match event {
        Event::Subscribed(name) => store.subscribed(id, &name),
        Event::Unsubscribed(name) => store.unsubscribed(id, &name),
        Event::Acknowledged(name, version) => store.acknowledged(id, &name, &version),
        Event::Refused(name, version, reason) => {
            tracing::warn!(secret = name, reason, "Envoy has refused a secret");
            store.refused(id, &name, &version, &reason);
        }
    }
}
