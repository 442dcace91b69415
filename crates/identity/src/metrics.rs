//! Metrics of authentication and of the certificate service. Where Istio has a metric of the same meaning, it has
//! Istio's name.

use crate::caller::{AuthError, Proof};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serve::{Counter, ReasonLabel};

/// How something was done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabel {
    /// The way, in one word.
    pub method: &'static str,
}

/// Why no certificate was signed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabel {
    /// The error, in one word.
    pub error: &'static str,
}

/// The metrics. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Callers that were authenticated, by how.
    pub authenticated: Family<MethodLabel, Counter>,
    /// Requests that were not let in, by reason.
    pub rejected: Family<ReasonLabel, Counter>,
    /// Proxies that claimed to be somebody else.
    pub false_claims: Counter,
    /// Tokens verified without the API server.
    pub tokens_offline: Counter,
    /// Tokens that the API server was asked about, by what came of it.
    pub token_reviews: Family<ReasonLabel, Counter>,
    /// Attempts to fetch the keys that tokens are signed with, by what came of it.
    pub key_fetches: Family<ReasonLabel, Counter>,
    /// Certificate requests.
    pub csr: Counter,
    /// Certificate requests of callers that are not known.
    pub csr_authentication_failures: Counter,
    /// Certificate requests that are none.
    pub csr_parsing_errors: Counter,
    /// Callers whose identity could not be certified.
    pub csr_id_errors: Counter,
    /// Certificates that could not be signed, by error.
    pub csr_sign_errors: Family<ErrorLabel, Counter>,
    /// Certificates issued.
    pub issued: Counter,
    /// Certificate requests that were turned away since too many waited.
    pub csr_shed: Counter,
    /// Keys and certificates made for clients without an agent.
    pub keys_made: Counter,
    /// Secrets that were asked for by name and refused, by reason.
    pub secrets_refused: Family<ReasonLabel, Counter>,
    /// When the root that signs expires, in seconds since 1970.
    pub root_expiry: Gauge,
    /// When the chain that signs expires, in seconds since 1970.
    pub chain_expiry: Gauge,
}

impl Metrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        let r = registry;
        r.register(
            "weft_authenticated_total",
            "Requests of known callers, by how they proved it",
            m.authenticated,
        );
        r.register("weft_unauthenticated_total", "Requests that were not let in, by reason", m.rejected);
        r.register(
            "weft_false_claims_total",
            "Proxies that claimed another identity than theirs",
            m.false_claims,
        );
        r.register(
            "weft_tokens_verified_offline_total",
            "Tokens verified without the API server",
            m.tokens_offline,
        );
        r.register("weft_token_reviews_total", "Tokens that the API server was asked about", m.token_reviews);
        r.register("weft_token_key_fetches_total", "Attempts to fetch the keys of tokens", m.key_fetches);
        r.register("citadel_server_csr_count", "Certificate requests", m.csr);
        r.register(
            "citadel_server_authentication_failure_count",
            "Certificate requests of unknown callers",
            m.csr_authentication_failures,
        );
        r.register(
            "citadel_server_csr_parsing_err_count",
            "Malformed certificate requests",
            m.csr_parsing_errors,
        );
        r.register(
            "citadel_server_id_extraction_err_count",
            "Identities that cannot be certified",
            m.csr_id_errors,
        );
        r.register(
            "citadel_server_csr_sign_err_count",
            "Certificates that could not be signed",
            m.csr_sign_errors,
        );
        r.register("citadel_server_success_cert_issuance_count", "Certificates issued", m.issued);
        r.register("weft_csr_shed_total", "Certificate requests turned away for lack of time", m.csr_shed);
        r.register(
            "weft_workload_keys_total",
            "Keys and certificates made for clients without an agent",
            m.keys_made,
        );
        r.register(
            "weft_secrets_refused_total",
            "Secrets of Kubernetes that callers asked for and may not have, by reason",
            m.secrets_refused,
        );
        r.register(
            "citadel_server_root_cert_expiry_timestamp",
            "When the root expires, in seconds since 1970",
            m.root_expiry,
        );
        r.register(
            "citadel_server_cert_chain_expiry_timestamp",
            "When the signing chain expires, in seconds since 1970",
            m.chain_expiry,
        );
        metrics
    }

    pub(crate) fn known(&self, proof: Proof) {
        let method = match proof {
            Proof::Token => "token",
            Proof::Certificate => "certificate",
        };
        self.authenticated.get_or_create(&MethodLabel { method }).inc();
    }

    pub(crate) fn unknown(&self, error: &AuthError) {
        self.rejected.get_or_create(&ReasonLabel { reason: error.as_str() }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a secret that its caller may not have.
    pub fn secret_refused(&self, reason: &'static str) {
        self.secrets_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn reviewed(&self, reason: &'static str) {
        self.token_reviews.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn fetched(&self, reason: &'static str) {
        self.key_fetches.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn not_signed(&self, error: &'static str) {
        self.csr_sign_errors.get_or_create(&ErrorLabel { error }).inc();
    }
}
