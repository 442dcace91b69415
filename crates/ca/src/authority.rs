//! The authority: what it may sign, and for how long.

use crate::bundle::TrustBundle;
use crate::certificate::Fingerprint;
use crate::csr::Csr;
use crate::issue::{self, BACKDATE, Issuer, Leaf, Name, Serial};
use crate::key::{PublicKey, verification_algorithms};
use crate::material::IssuerMaterial;
use crate::pem;
use crate::time::{UnixTime, Validity};
use model::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime as WebpkiTime};
use std::sync::Arc;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// How long certificates are valid if the caller does not say: a day.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3_600);
/// How long they may be valid at most, unless configured otherwise: 90 days.
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3_600);

/// What an authority signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The only trust domain whose identities are certified.
    pub trust_domain: TrustDomain,
    /// How long certificates are valid if the caller does not say.
    pub default_ttl: Duration,
    /// The longest that a caller may ask for; more is refused, not shortened.
    pub max_ttl: Duration,
}

impl Policy {
    /// Returns the usual lifetimes for a trust domain: [`DEFAULT_TTL`] and [`MAX_TTL`].
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, default_ttl: DEFAULT_TTL, max_ttl: MAX_TTL }
    }
}

/// Signs certificates. Cheap to clone; to replace its key or roots, make another one.
#[derive(Clone, Debug)]
pub struct Authority {
    material: Arc<IssuerMaterial>,
    bundle: Arc<TrustBundle>,
    policy: Arc<Policy>,
    /// The tail of every answer, in PEM: intermediates, then all roots as one element.
    tail: Arc<[String]>,
    key_id: Arc<[u8]>,
}

impl Authority {
    /// Makes an authority that signs with `material` and answers with the roots of `bundle`, which must have that of
    /// `material` among them.
    ///
    /// A certificate is issued and checked as a peer would check it before anybody gets one: whatever makes the chain
    /// unusable, such as name constraints of an intermediate, comes to light here.
    pub fn new(
        material: IssuerMaterial,
        bundle: TrustBundle,
        policy: Policy,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        if policy.default_ttl.is_zero() || policy.default_ttl > policy.max_ttl {
            return Err(AuthorityError::Policy { default: policy.default_ttl, max: policy.max_ttl });
        }
        if !bundle.contains(&material.root()) {
            return Err(AuthorityError::RootNotTrusted);
        }
        let signer = material.signer();
        let key_id = match signer.key_id() {
            Some(id) => id.to_vec(),
            None => issue::key_id_of(material.key().bits()).to_vec(),
        };
        let tail = material.presented().iter().map(|link| link.to_pem()).chain([bundle.to_pem()]).collect();
        let authority = Self {
            material: Arc::new(material),
            bundle: Arc::new(bundle),
            policy: Arc::new(policy),
            tail,
            key_id: key_id.into(),
        };
        authority.check_itself(now)?;
        Ok(authority)
    }

    /// Returns an authority with the same key that answers with other roots.
    pub fn with_bundle(&self, bundle: TrustBundle) -> Result<Self, AuthorityError> {
        if !bundle.contains(&self.material.root()) {
            return Err(AuthorityError::RootNotTrusted);
        }
        let presented = self.material.presented().iter().map(|link| link.to_pem());
        Ok(Self {
            tail: presented.chain([bundle.to_pem()]).collect(),
            bundle: Arc::new(bundle),
            ..self.clone()
        })
    }

    /// Issues a certificate for `id` and the key of `csr`.
    ///
    /// Nothing else of the request matters. Without a `ttl`, or with one of zero, the certificate is valid for the
    /// default time; it never outlives the chain that it is issued from.
    pub fn issue(
        &self,
        csr: &Csr,
        id: &SpiffeId,
        ttl: Option<Duration>,
        now: UnixTime,
        serial: Serial,
    ) -> Result<IssuedChain, IssueError> {
        self.issue_for_key(csr.public_key(), id, ttl, now, serial)
    }

    /// Issues a certificate for `id` and a key that the caller knows to belong to it.
    pub fn issue_for_key(
        &self,
        key: &PublicKey,
        id: &SpiffeId,
        ttl: Option<Duration>,
        now: UnixTime,
        serial: Serial,
    ) -> Result<IssuedChain, IssueError> {
        if *id.trust_domain() != self.policy.trust_domain {
            return Err(IssueError::ForeignTrustDomain {
                asked: id.trust_domain().clone(),
                ours: self.policy.trust_domain.clone(),
            });
        }
        let names = [Name::Uri(id.as_str().to_owned())];
        let validity = self.validity(ttl, now)?;
        self.sign(&Leaf { key, names: &names, validity, serial, client: true })
    }

    /// Issues a certificate for a server of the control plane that clients know by `names`, of which there must be at
    /// least one. It names no workload and is of no use as a client's.
    pub fn issue_server(
        &self,
        key: &PublicKey,
        names: &[ServerName<'_>],
        ttl: Option<Duration>,
        now: UnixTime,
        serial: Serial,
    ) -> Result<IssuedChain, IssueError> {
        let names: Vec<Name> = names
            .iter()
            .filter_map(|name| match name {
                ServerName::DnsName(name) => Some(Name::Dns(name.as_ref().to_owned())),
                ServerName::IpAddress(ip) => Some(Name::Ip((*ip).into())),
                // There is no other kind, but the enum does not promise so.
                _ => None,
            })
            .collect();
        if names.is_empty() {
            return Err(IssueError::NoName);
        }
        let validity = self.validity(ttl, now)?;
        self.sign(&Leaf { key, names: &names, validity, serial, client: false })
    }

    /// Returns the roots that answers come with.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Returns what it signs.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns what it signs with.
    pub fn material(&self) -> &IssuerMaterial {
        &self.material
    }

    /// Returns when certificates may be issued: while all of the chain is valid.
    pub fn validity_of_chain(&self) -> Validity {
        self.material.validity()
    }

    fn validity(&self, ttl: Option<Duration>, now: UnixTime) -> Result<Validity, IssueError> {
        let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(self.policy.default_ttl);
        if ttl > self.policy.max_ttl {
            return Err(IssueError::TtlTooLong { asked: ttl, max: self.policy.max_ttl });
        }
        let chain = self.material.validity();
        if now < chain.not_before {
            return Err(IssueError::IssuerNotYetValid(chain.not_before));
        }
        // A certificate that is valid for less than a second is valid for one: times have no fractions.
        let not_after = now.after(ttl.max(Duration::from_secs(1))).min(chain.not_after);
        if not_after <= now {
            return Err(IssueError::IssuerExpired(chain.not_after));
        }
        Ok(Validity { not_before: now.before(BACKDATE).max(chain.not_before), not_after })
    }

    fn sign(&self, leaf: &Leaf<'_>) -> Result<IssuedChain, IssueError> {
        let issuer =
            Issuer { key: self.material.key(), name: self.material.signer().subject(), key_id: &self.key_id };
        let der = issue::leaf(&issuer, leaf).map_err(IssueError::Signing)?;
        Ok(IssuedChain {
            leaf: CertificateDer::from(der),
            serial: leaf.serial,
            validity: leaf.validity,
            material: Arc::clone(&self.material),
            bundle: Arc::clone(&self.bundle),
            tail: Arc::clone(&self.tail),
        })
    }

    /// Issues a certificate for nobody and verifies it with another implementation, as client and as server.
    fn check_itself(&self, now: UnixTime) -> Result<(), AuthorityError> {
        let names = [Name::Uri(format!("spiffe://{}/ns/weft/sa/self-check", self.policy.trust_domain))];
        // Nobody but this authority has the private half of its own key, so the certificate is of no use to anybody.
        let key = PublicKey::of_authority(self.material.key());
        let validity = self.validity(None, now)?;
        let leaf =
            Leaf { key: &key, names: &names, validity, serial: Serial::from_random([0; 20]), client: true };
        let chain = self.sign(&leaf)?;
        verify(&chain, &self.bundle, now)
    }
}

fn verify(chain: &IssuedChain, bundle: &TrustBundle, now: UnixTime) -> Result<(), AuthorityError> {
    let certificates = chain.der_chain();
    let Some((leaf, intermediates)) = certificates.split_first() else { return Ok(()) };
    let root = bundle.get(&chain.material.root()).ok_or(AuthorityError::RootNotTrusted)?;
    let anchor = anchor_from_trusted_cert(root.der())?;
    let seconds = u64::try_from(now.as_seconds()).unwrap_or(0);
    let time = WebpkiTime::since_unix_epoch(Duration::from_secs(seconds));
    let leaf = EndEntityCert::try_from(leaf)?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        let algorithms = verification_algorithms();
        leaf.verify_for_usage(
            algorithms,
            std::slice::from_ref(&anchor),
            intermediates,
            time,
            usage,
            None,
            None,
        )?;
    }
    Ok(())
}

/// A certificate with everything that goes with it.
#[derive(Clone, Debug)]
pub struct IssuedChain {
    leaf: CertificateDer<'static>,
    serial: Serial,
    validity: Validity,
    material: Arc<IssuerMaterial>,
    bundle: Arc<TrustBundle>,
    tail: Arc<[String]>,
}

impl IssuedChain {
    /// Returns the certificate.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// Returns what a peer is presented: the leaf, then the intermediates; no root.
    pub fn der_chain(&self) -> Vec<CertificateDer<'static>> {
        let presented = self.material.presented().iter().map(|link| link.der().clone());
        std::iter::once(self.leaf.clone()).chain(presented).collect()
    }

    /// Returns what a peer is presented in PEM, one after the other: what belongs into a `certificate_chain`.
    pub fn pem_chain(&self) -> String {
        let intermediates = &self.tail[..self.tail.len().saturating_sub(1)];
        let mut pem = pem::encode(pem::CERTIFICATE, &self.leaf);
        pem.extend(intermediates.iter().map(String::as_str));
        pem
    }

    /// Returns the answer of the certificate service: the leaf, the intermediates, and all roots as one element, each
    /// in PEM with a newline at its end.
    pub fn response(&self) -> Vec<String> {
        let leaf = pem::encode(pem::CERTIFICATE, &self.leaf);
        std::iter::once(leaf).chain(self.tail.iter().cloned()).collect()
    }

    /// Returns the root that it leads to.
    pub fn root(&self) -> Fingerprint {
        self.material.root()
    }

    /// Returns the roots that the answer comes with.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Returns the serial number of the leaf.
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// Returns when the leaf is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Returns the last moment at which the leaf is valid.
    pub fn not_after(&self) -> UnixTime {
        self.validity.not_after
    }
}

/// Why an authority does not work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Lifetimes that contradict each other.
    #[error(
        "certificates are to be valid for {default:?} by default, which is nothing or more than the maximum, {max:?}"
    )]
    Policy {
        /// The default.
        default: Duration,
        /// The maximum.
        max: Duration,
    },
    /// Peers would not trust what it signs.
    #[error("the root that the signing certificate leads to is not among the trusted ones")]
    RootNotTrusted,
    /// The certificate for the self-check was not issued.
    #[error("cannot issue a certificate")]
    Issue(#[from] IssueError),
    /// The certificate for the self-check does not verify.
    #[error("certificates that it issues do not verify: {0}")]
    NotVerifiable(#[from] webpki::Error),
}

/// Why a certificate is not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// An identity of others. The caller's authentication should not have let it pass.
    #[error("identities of trust domain {asked} are not ours to certify; ours are of {ours}")]
    ForeignTrustDomain {
        /// The domain of the identity.
        asked: TrustDomain,
        /// The domain of the authority.
        ours: TrustDomain,
    },
    /// A longer life than is allowed: `InvalidArgument` in terms of gRPC.
    #[error("a certificate for {asked:?} was asked for; at most {max:?} are allowed")]
    TtlTooLong {
        /// What was asked for.
        asked: Duration,
        /// What is allowed.
        max: Duration,
    },
    /// A server without a name: the fault of our own code or configuration.
    #[error("a server's certificate needs a name")]
    NoName,
    /// The chain is over: `Internal` in terms of gRPC.
    #[error("the authority's certificate chain expired at {0}")]
    IssuerExpired(UnixTime),
    /// The chain has not begun: `Internal` in terms of gRPC.
    #[error("the authority's certificate chain is not valid before {0}")]
    IssuerNotYetValid(UnixTime),
    /// The key did not sign: `Internal` in terms of gRPC.
    #[error("cannot sign")]
    Signing(#[source] rcgen::Error),
}
