//! Asking the authority: Istio's certificate service, over TLS.
//!
//! Who we are is said by a token, read anew each time since the kubelet replaces it, or else by a certificate that the
//! authority knows. **Invariant:** nothing is sent to a server that has not proved who it is, unless plain text was
//! asked for.

use super::certificate::Identity;
use crate::config::{CertificateFiles, Server};
use crate::store::Store;
use crate::tls::{self, TlsError};
use proto::google::protobuf::{Struct, Value};
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

/// How long the authority may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The token cannot be read.
    #[error("cannot read the token {path}")]
    Token {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The token is no token.
    #[error("the token {0} cannot be sent in a header")]
    MalformedToken(PathBuf),
    /// There is neither a token nor a certificate.
    #[error("there is no token at {0}, and no certificate that is still valid")]
    NoCredentials(PathBuf),
    /// The authority is not reached, or not who it should be.
    #[error("cannot reach the authority")]
    Connection(#[from] TlsError),
    /// The authority says no.
    #[error("the authority answered {code:?}: {message}", code = .0.code(), message = .0.message())]
    Refused(Box<Status>),
}

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct Client {
    /// The authority.
    pub server: Server,
    /// Where the token is.
    pub token: PathBuf,
    /// A certificate in files that says who we are where there is no token.
    pub provisioned: Option<CertificateFiles>,
    /// The name of the cluster whose token it is.
    pub cluster: Option<String>,
    /// What the authority may want to know: names and values.
    pub facts: Vec<(&'static str, String)>,
}

/// What says who we are.
enum Credential {
    Token(MetadataValue<Ascii>),
    Certificate(Arc<Identity>),
}

impl Client {
    /// Asks for a certificate; returns the parts of the answer.
    pub async fn request(
        &self,
        csr: &str,
        ttl: Duration,
        store: &Store,
    ) -> Result<Vec<String>, RequestError> {
        let mut refused = None;
        for credential in self.credentials(store)? {
            match self.attempt(csr, ttl, &credential, store).await {
                // The token of a virtual machine ends long before its certificate does: try the next.
                Err(RequestError::Refused(status)) if status.code() == Code::Unauthenticated => {
                    refused.get_or_insert(RequestError::Refused(status));
                }
                other => return other,
            }
        }
        Err(refused.unwrap_or_else(|| RequestError::NoCredentials(self.token.clone())))
    }

    fn credentials(&self, store: &Store) -> Result<Vec<Credential>, RequestError> {
        let mut credentials = Vec::new();
        match std::fs::read_to_string(&self.token) {
            Ok(token) if !token.trim().is_empty() => {
                let header = format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>();
                let mut header = header.map_err(|_| RequestError::MalformedToken(self.token.clone()))?;
                header.set_sensitive(true);
                credentials.push(Credential::Token(header));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RequestError::Token { path: self.token.clone(), source }),
        }
        let now = SystemTime::now().into();
        if let Some(identity) = store.identity().filter(|identity| identity.validity.contains(now)) {
            credentials.push(Credential::Certificate(identity));
        }
        if let Some(files) = &self.provisioned {
            match super::files::read(files, now) {
                Ok((identity, _)) => credentials.push(Credential::Certificate(Arc::new(identity))),
                Err(error) => tracing::debug!(%error, "the provisioned certificate is not used"),
            }
        }
        Ok(credentials)
    }

    async fn attempt(
        &self,
        csr: &str,
        ttl: Duration,
        credential: &Credential,
        store: &Store,
    ) -> Result<Vec<String>, RequestError> {
        let identity = match credential {
            Credential::Certificate(identity) => Some(identity.as_ref()),
            Credential::Token(_) => None,
        };
        let facts = self.facts.iter().map(|(name, value)| (*name, Value::from(value.as_str())));
        let message = IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(facts.collect::<Struct>()),
        };
        let mut request = Request::new(message);
        if let Credential::Token(header) = credential {
            request.metadata_mut().insert("authorization", header.clone());
        }
        if let Some(cluster) = self.cluster.as_ref().and_then(|cluster| cluster.parse().ok()) {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let exchange = async {
            let channel = tls::connect(&self.server, identity, store).await?;
            let mut client = IstioCertificateServiceClient::new(channel);
            client.create_certificate(request).await.map_err(|status| RequestError::Refused(Box::new(status)))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => Ok(answer?.into_inner().cert_chain),
            Err(_) => Err(RequestError::Refused(Box::new(Status::deadline_exceeded("no answer in time")))),
        }
    }
}
