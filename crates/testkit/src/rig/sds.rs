//! A stand-in for the agent beside a proxy: serves certificates over SDS, as a bootstrap's cluster `sds-grpc` expects.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use tonic::{Request, Response, Status, Streaming};

use super::RigError;
use super::pki::{Authority, Identity};
use super::server::{Server, ended};

/// Serves one certificate as `default` and for every `file-cert:…`, and its authority as `ROOTCA` and for every
/// `file-root:…`: an agent on whose disk all files are that a proxy may be told of.
#[derive(Debug)]
pub struct SecretServer {
    server: Server,
    rejections: Arc<Mutex<Vec<String>>>,
}

impl SecretServer {
    /// Starts the server on `listen` with a certificate of `authority`.
    pub fn start(listen: SocketAddr, authority: &Authority, identity: &Identity) -> Result<Self, RigError> {
        let rejections = Arc::new(Mutex::new(Vec::new()));
        let service = Secrets {
            roots: authority.certificate_pem(),
            identity: identity.clone(),
            rejections: rejections.clone(),
        };
        let server = Server::start("sds", listen, move |listener, mut stop| async move {
            let serving = tonic::transport::Server::builder()
                .add_service(SecretDiscoveryServiceServer::new(Handle(Arc::new(service))))
                .serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener));
            // Whoever still reads is cut off.
            tokio::select! {
                _ = serving => {}
                _ = ended(&mut stop) => {}
            }
        })?;
        Ok(Self { server, rejections })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Returns what clients have said when they rejected a secret.
    pub fn rejections(&self) -> Vec<String> {
        self.rejections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Secrets {
    roots: String,
    identity: Identity,
    rejections: Arc<Mutex<Vec<String>>>,
}

impl Secrets {
    fn find(&self, name: &str) -> Option<Secret> {
        let inline = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..DataSource::default()
            })
        };
        let content = if name == "default" || name.starts_with("file-cert:") {
            secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(&self.identity.certificate_pem),
                private_key: inline(&self.identity.key_pem),
                ..TlsCertificate::default()
            })
        } else if name == "ROOTCA" || name.starts_with("file-root:") {
            secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(&self.roots),
                ..CertificateValidationContext::default()
            })
        } else {
            return None;
        };
        Some(Secret { name: name.to_owned(), r#type: Some(content) })
    }

    /// Returns the answer to a request that asks for other names than the last one; the same again is an
    /// acknowledgement.
    fn answer(&self, request: DiscoveryRequest, known: &mut BTreeSet<String>) -> Option<DiscoveryResponse> {
        if let Some(error) = request.error_detail {
            self.rejections.lock().unwrap_or_else(PoisonError::into_inner).push(error.message);
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        if names == *known {
            return None;
        }
        *known = names;
        let secrets = known.iter().filter_map(|name| self.find(name));
        Some(DiscoveryResponse {
            version_info: "1".to_owned(),
            nonce: "1".to_owned(),
            resources: secrets.map(|secret| proto::any(&secret)).collect(),
            type_url: <Secret as prost::Name>::type_url(),
            ..DiscoveryResponse::default()
        })
        .filter(|response| !response.resources.is_empty())
    }
}

/// Streams outlive the call that starts them, so they share the secrets.
struct Handle(Arc<Secrets>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Handle {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let secrets = self.0.clone();
        let mut known = BTreeSet::new();
        let answers = request.into_inner().filter_map(move |request| {
            let answer = match request {
                Ok(request) => secrets.answer(request, &mut known).map(Ok),
                Err(status) => Some(Err(status)),
            };
            std::future::ready(answer)
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("the agent serves whole states"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("the agent serves streams"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: &[&str]) -> DiscoveryRequest {
        let resource_names = names.iter().map(|name| (*name).to_owned()).collect();
        DiscoveryRequest { resource_names, ..DiscoveryRequest::default() }
    }

    #[test]
    fn what_an_agent_has_is_served_once_and_nothing_else() {
        let authority = Authority::new("mesh");
        let secrets = Secrets {
            roots: authority.certificate_pem(),
            identity: authority.issue("workload", &["spiffe://cluster.local/ns/a/sa/b"]),
            rejections: Arc::default(),
        };
        let mut known = BTreeSet::new();
        for (names, served) in [(["default"], 1), (["ROOTCA"], 1), (["file-root:/ca.pem"], 1)] {
            let response = secrets.answer(request(&names), &mut known).unwrap();
            assert_eq!(response.resources.len(), served, "{names:?}");
        }
        assert!(secrets.answer(request(&["file-root:/ca.pem"]), &mut known).is_none(), "an acknowledgement");
        assert!(secrets.answer(request(&["kubernetes://a"]), &mut known).is_none(), "not the agent's");
    }

    #[test]
    fn rejections_are_kept() {
        let authority = Authority::new("mesh");
        let secrets = Secrets {
            roots: authority.certificate_pem(),
            identity: authority.issue("workload", &[]),
            rejections: Arc::default(),
        };
        let mut refused = request(&["default"]);
        refused.error_detail =
            Some(proto::google::rpc::Status { message: "no key".to_owned(), ..Default::default() });
        secrets.answer(refused, &mut BTreeSet::new());
        assert_eq!(*secrets.rejections.lock().unwrap(), ["no key"]);
    }
}
