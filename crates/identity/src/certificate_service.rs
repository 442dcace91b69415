//! `istio.v1.auth.IstioCertificateService`: a certificate for whoever has proved who it is.

use crate::caller::{Caller, Clock};
use crate::metrics::Metrics;
use crate::signing::SigningPool;
use ca::{Authority, Csr, CsrError, IssueError, IssuedChain, Serial, UnixTime};
use futures::future::BoxFuture;
use model::SpiffeId;
use proto::google::protobuf::Struct;
use proto::google::protobuf::value::Kind;
use proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use serve::Peer;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{debug, error, info, warn};

/// The largest message that is read: a request of the largest size in PEM, and metadata.
const MAX_MESSAGE: usize = 96 << 10;
/// After how many milliseconds a caller that was turned away should try again.
const RETRY_AFTER_MS: &str = "500";
const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

const CERT_SIGNER: &str = "CertSigner";
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Decides who may have certificates for others: the proxies of nodes, which keep those of their pods.
pub trait Impersonation: Send + Sync + 'static {
    /// Returns whether `caller` may have a certificate for `identity`.
    fn may_impersonate<'a>(&'a self, caller: &'a Caller, identity: &'a SpiffeId) -> BoxFuture<'a, bool>;
}

/// Nobody may have certificates for others.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Impersonation for Nobody {
    fn may_impersonate<'a>(&'a self, _: &'a Caller, _: &'a SpiffeId) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }
}

/// Is told of every certificate that is issued: whoever replaces a root has to know who has one of it.
pub trait Recorder: Send + Sync + 'static {
    /// Takes note of a certificate for `caller`, which asked from `address`, before it is handed out.
    fn issued(&self, caller: &Caller, address: Option<IpAddr>, issued: &IssuedChain);
}

/// Takes no note.
struct Unrecorded;

impl Recorder for Unrecorded {
    fn issued(&self, _: &Caller, _: Option<IpAddr>, _: &IssuedChain) {}
}

/// The certificate service. It serves only requests that have passed the [`Gate`](crate::Gate).
pub struct CertificateService {
    authority: watch::Receiver<Option<Authority>>,
    impersonation: Arc<dyn Impersonation>,
    pool: SigningPool,
    clock: Clock,
    metrics: Metrics,
    recorder: Arc<dyn Recorder>,
}

impl CertificateService {
    /// Makes a service that signs with what `authority` has at the time.
    pub fn new(
        authority: watch::Receiver<Option<Authority>>,
        impersonation: Arc<dyn Impersonation>,
        pool: SigningPool,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self { authority, impersonation, pool, clock, metrics, recorder: Arc::new(Unrecorded) }
    }

    /// Returns it with somebody who takes note of what is issued.
    #[must_use]
    pub fn recorded_by(mut self, recorder: Arc<dyn Recorder>) -> Self {
        self.recorder = recorder;
        self
    }

    /// Returns it as a gRPC service that reads no message larger than a request can be.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Returns for whom the certificate is: the caller, or somebody whose certificates it may have.
    async fn subject(&self, caller: &Caller, metadata: &Metadata<'_>) -> Result<SpiffeId, Status> {
        let Some(asked) = metadata.text(IMPERSONATED_IDENTITY)? else { return Ok(caller.id.clone()) };
        let refused = || {
            self.metrics.csr_authentication_failures.inc();
            Status::unauthenticated("request impersonation authentication failure")
        };
        let asked: SpiffeId = asked.parse().map_err(|_| refused())?;
        let own = asked.trust_domain() == caller.id.trust_domain();
        if !own || !self.impersonation.may_impersonate(caller, &asked).await {
            warn!(caller = %caller.id, %asked, "may not have certificates for others");
            return Err(refused());
        }
        Ok(asked)
    }

    async fn sign(
        &self,
        subject: SpiffeId,
        csr: String,
        ttl: Option<Duration>,
    ) -> Result<IssuedChain, Status> {
        let Some(authority) = self.authority.borrow().clone() else {
            self.metrics.not_signed("not-ready");
            return Err(Status::unavailable("the certificate authority is not ready"));
        };
        // The same workload in the name that its mesh has now.
        let domain = &authority.policy().trust_domain;
        let id = SpiffeId::new(domain, subject.namespace(), subject.service_account()).map_err(|error| {
            self.metrics.csr_id_errors.inc();
            Status::internal(format!("the identity cannot be certified: {error}"))
        })?;
        let now = UnixTime::from((self.clock)());
        let issued = self.pool.run(move || issue(&authority, &id, &csr, ttl, now)).await;
        let issued = issued.map_err(|error| {
            self.metrics.csr_shed.inc();
            overloaded(&error.to_string())
        })?;
        issued.map_err(|failure| {
            match &failure {
                Failure::Csr(_) => self.metrics.csr_parsing_errors.inc(),
                Failure::Issue(error) => self.metrics.not_signed(label_of(error)),
                Failure::Random => self.metrics.not_signed("random"),
            }
            failure.into()
        })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csr.inc();
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            // The gate lets nobody through without one, so this service is not behind a gate.
            error!("certificate request without a caller: refused");
            return Err(Status::unauthenticated("request authenticate failure"));
        };
        let address = request.extensions().get::<Peer>().map(|peer| peer.address().ip());
        let IstioCertificateRequest { csr, validity_duration, metadata } = request.into_inner();
        let metadata = Metadata(metadata.as_ref());
        if metadata.text(CERT_SIGNER)?.is_some_and(|signer| !signer.is_empty()) {
            return Err(Status::invalid_argument(
                "metadata CertSigner: certificates are signed by weftd itself, other signers cannot be chosen",
            ));
        }
        let subject = self.subject(&caller, &metadata).await?;
        // As in Istio: nothing, and less than nothing, is the default.
        let ttl =
            u64::try_from(validity_duration).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        match self.sign(subject, csr, ttl).await {
            Ok(issued) => {
                self.recorder.issued(&caller, address, &issued);
                self.metrics.issued.inc();
                debug!(caller = %caller.id, serial = %issued.serial(), until = %issued.not_after(), "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain: issued.response() }))
            }
            Err(status) => {
                info!(caller = %caller.id, reason = status.message(), "no certificate issued");
                Err(status)
            }
        }
    }
}

fn issue(
    authority: &Authority,
    id: &SpiffeId,
    csr: &str,
    ttl: Option<Duration>,
    now: UnixTime,
) -> Result<IssuedChain, Failure> {
    let csr = Csr::from_pem(csr).map_err(Failure::Csr)?;
    let mut serial = [0; 20];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| Failure::Random)?;
    authority.issue(&csr, id, ttl, now, Serial::from_random(serial)).map_err(Failure::Issue)
}

enum Failure {
    Csr(CsrError),
    Issue(IssueError),
    Random,
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Csr(error) => Self::invalid_argument(format!("CSR signing error ({error})")),
            Failure::Issue(error @ IssueError::TtlTooLong { .. }) => {
                Self::invalid_argument(format!("CSR signing error ({error})"))
            }
            Failure::Issue(error) => Self::internal(format!("CSR signing error ({error})")),
            Failure::Random => Self::internal("CSR signing error (the system has no randomness)"),
        }
    }
}

fn label_of(error: &IssueError) -> &'static str {
    match error {
        IssueError::ForeignTrustDomain { .. } => "trust-domain",
        IssueError::TtlTooLong { .. } => "ttl",
        IssueError::NoName => "no-name",
        IssueError::IssuerExpired(_) => "issuer-expired",
        IssueError::IssuerNotYetValid(_) => "issuer-not-yet-valid",
        IssueError::Signing(_) => "signing",
    }
}

/// Says that there is too much to do, and when to come again.
fn overloaded(message: &str) -> Status {
    let mut status = Status::resource_exhausted(message);
    status.metadata_mut().insert(RETRY_PUSHBACK, tonic::metadata::MetadataValue::from_static(RETRY_AFTER_MS));
    status
}

struct Metadata<'a>(Option<&'a Struct>);

impl Metadata<'_> {
    fn text(&self, name: &str) -> Result<Option<&str>, Status> {
        match self.0.and_then(|metadata| metadata.fields.get(name)).and_then(|value| value.kind.as_ref()) {
            None | Some(Kind::NullValue(_)) => Ok(None),
            Some(Kind::StringValue(text)) => Ok(Some(text)),
            Some(_) => Err(Status::invalid_argument(format!("metadata {name} is not a text"))),
        }
    }
}
