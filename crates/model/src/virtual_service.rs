//! Routing rules: what Istio calls a VirtualService, parsed.

use crate::route::{Headers, Percent, StringMatch, ValueMatch};
use crate::{ExportTo, Hostname, Labels, Meta, Namespace, Str};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Routing rules for some hosts, on sidecars, on gateways or on both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// The object.
    pub meta: Meta,
    /// The hosts, lower-cased; a name without dots has been completed with the object's namespace and the
    /// mesh's domain. Empty for one that others delegate to.
    pub hosts: Vec<Hostname>,
    /// Where the rules apply; `[Mesh]` if the object names none.
    pub gateways: Vec<GatewayRef>,
    /// Who may see it.
    pub export_to: ExportTo,
    /// Rules for HTTP, in order.
    pub http: Vec<HttpRule>,
    /// Rules for TLS that is not terminated, in order.
    pub tls: Vec<TlsRule>,
    /// Rules for TCP, in order.
    pub tcp: Vec<TcpRule>,
}

/// A gateway by name, or the word `mesh` for all sidecars.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayRef {
    /// Every sidecar.
    Mesh,
    /// The Gateway of this namespace and name.
    Gateway(Namespace, Str),
}

impl fmt::Display for GatewayRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Gateway(namespace, name) => write!(f, "{namespace}/{name}"),
        }
    }
}

/// One HTTP rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRule {
    /// Its name, for telemetry and debugging.
    pub name: Option<Str>,
    /// Alternatives, any of which selects the rule; empty matches every request.
    pub matches: Vec<HttpMatch>,
    /// What is done with the request.
    pub action: HttpAction,
    /// Rewriting of path and authority.
    pub rewrite: Option<Rewrite>,
    /// The deadline of the whole request; none means unlimited.
    pub timeout: Option<Duration>,
    /// Retries; absent means the mesh's default.
    pub retries: Option<Retries>,
    /// Faults put in on purpose.
    pub fault: Option<Fault>,
    /// Copies of the request that are sent elsewhere (`mirror` and `mirrors`).
    pub mirrors: Vec<Mirror>,
    /// The share of `mirror`, also without one: a rule that is delegated to inherits it for its own `mirror`.
    pub mirror_percentage: Option<Percent>,
    /// Cross-origin policy.
    pub cors: Option<Cors>,
    /// Header operations of the rule.
    pub headers: Headers,
    /// `host` or `:authority` among the header operations, which rewrites the authority.
    pub authority_from_headers: Option<Str>,
}

/// What an HTTP rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpAction {
    /// Sends the request to one of these by weight.
    Route(Vec<HttpDestination>),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers with a fixed response.
    DirectResponse(DirectResponse),
    /// Uses the rules of another VirtualService. The index replaces these before anything is compiled.
    Delegate {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: Str,
    },
}

/// Conditions that a request must meet, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// A name, appended to the rule's.
    pub name: Option<Str>,
    /// The path.
    pub uri: Option<StringMatch>,
    /// Whether the path's case is ignored (exact and prefix only).
    pub ignore_uri_case: bool,
    /// `:scheme`.
    pub scheme: Option<StringMatch>,
    /// `:method`.
    pub method: Option<StringMatch>,
    /// `:authority`.
    pub authority: Option<StringMatch>,
    /// Headers that must match; names as written. JWT claims (`@request.auth.claims…`) are among them.
    pub headers: BTreeMap<Str, ValueMatch>,
    /// Headers that must not match.
    pub without_headers: BTreeMap<Str, ValueMatch>,
    /// Query parameters that must match.
    pub query_params: BTreeMap<Str, ValueMatch>,
    /// The port that the client dialled.
    pub port: Option<u16>,
    /// Labels that the client's workload must have.
    pub source_labels: Labels,
    /// The namespace that the client must be in.
    pub source_namespace: Option<Namespace>,
    /// Where this match applies; empty for everywhere the VirtualService does.
    pub gateways: Vec<GatewayRef>,
    /// The prefix of route statistics.
    pub stat_prefix: Option<Str>,
}

/// A place that traffic is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The host, completed like a VirtualService's hosts but not lower-cased.
    pub host: Hostname,
    /// The subset's name.
    pub subset: Option<Str>,
    /// The port; without it the compiler chooses.
    pub port: Option<u16>,
}

/// A weighted destination of an HTTP rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpDestination {
    /// Where to.
    pub destination: Destination,
    /// Its share among its siblings' weights; ignored if it is the only one.
    pub weight: u32,
    /// Header operations for this destination.
    pub headers: Headers,
    /// `host` or `:authority` among them.
    pub authority_from_headers: Option<Str>,
}

/// A weighted destination of a TCP or TLS rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L4Destination {
    /// Where to.
    pub destination: Destination,
    /// Its share among its siblings' weights; ignored if it is the only one.
    pub weight: u32,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The new path, if it changes. May hold `%PREFIX()%`, which keeps what follows a matched prefix.
    pub uri: Option<Str>,
    /// The new host, if it changes.
    pub authority: Option<Str>,
    /// The new port, if it changes.
    pub port: Option<RedirectPort>,
    /// The new scheme, if it changes.
    pub scheme: Option<Str>,
    /// One of 301, 302, 303, 307 and 308.
    pub code: u16,
}

/// Where the port of a redirect comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// Given.
    Number(u16),
    /// The scheme's own (`FROM_PROTOCOL_DEFAULT`).
    FromProtocolDefault,
    /// The listener's (`FROM_REQUEST_PORT`).
    FromRequestPort,
}

/// A fixed response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Option<DirectBody>,
}

/// The body of a fixed response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectBody {
    /// Text.
    Text(Str),
    /// Bytes.
    Bytes(std::sync::Arc<[u8]>),
}

/// Rewriting of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Replaces the matched prefix or the whole path.
    pub uri: Option<Str>,
    /// Replaces what an expression matches.
    pub uri_regex: Option<(Str, Str)>,
    /// Replaces the authority.
    pub authority: Option<Str>,
}

/// A retry policy. Fields that are absent take the default policy's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// How many times; 0 turns retries off.
    pub attempts: u32,
    /// The deadline of each try.
    pub per_try_timeout: Option<Duration>,
    /// What is retried: Envoy's words and status codes, comma separated.
    pub retry_on: Option<Str>,
    /// Whether to prefer other localities on retries.
    pub remote_localities: Option<bool>,
    /// Whether a retry may go to a host that was tried already; none means that it avoids them.
    pub ignore_previous_hosts: Option<bool>,
    /// The base interval between tries.
    pub backoff: Option<Duration>,
}

/// Faults put in on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// A delay.
    pub delay: Option<FaultDelay>,
    /// An early end.
    pub abort: Option<FaultAbort>,
}

/// A delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultDelay {
    /// How long.
    pub fixed: Duration,
    /// How often; absent counts as never.
    pub percentage: Option<Percent>,
}

/// An early end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultAbort {
    /// What is answered.
    pub status: AbortStatus,
    /// How often.
    pub percentage: Option<Percent>,
}

/// What an aborted request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortStatus {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status by number.
    Grpc(u32),
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// How many; none for all, which only `mirror` leaves open (`mirrors` have their share written out). Zero means
    /// that there is no mirroring.
    pub percentage: Option<Percent>,
}

/// Cross-origin resource sharing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Origins that may ask.
    pub allow_origins: Vec<StringMatch>,
    /// Methods that they may use.
    pub allow_methods: Vec<Str>,
    /// Headers that they may send.
    pub allow_headers: Vec<Str>,
    /// Headers that they may read.
    pub expose_headers: Vec<Str>,
    /// How long a preflight's answer may be kept.
    pub max_age: Option<Duration>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// Whether preflights that match no origin are forwarded; none for Istio's default (yes).
    pub forward_unmatched_preflights: Option<bool>,
}

/// A rule for TLS connections that are not terminated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRule {
    /// Alternatives; never empty.
    pub matches: Vec<TlsMatch>,
    /// Where to, by weight.
    pub route: Vec<L4Destination>,
}

/// Conditions on a TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsMatch {
    /// Server names, which may be wildcards; never empty.
    pub sni_hosts: Vec<Hostname>,
    /// Ranges of destination addresses.
    pub destination_subnets: Vec<IpNet>,
    /// The port that the client dialled.
    pub port: Option<u16>,
    /// Labels that the client's workload must have.
    pub source_labels: Labels,
    /// Where this match applies; empty for everywhere the VirtualService does.
    pub gateways: Vec<GatewayRef>,
    /// The namespace that the client must be in.
    pub source_namespace: Option<Namespace>,
}

/// A rule for TCP connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpRule {
    /// Alternatives; empty matches every connection.
    pub matches: Vec<L4Match>,
    /// Where to, by weight.
    pub route: Vec<L4Destination>,
}

/// Conditions on a TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct L4Match {
    /// Ranges of destination addresses.
    pub destination_subnets: Vec<IpNet>,
    /// The port that the client dialled.
    pub port: Option<u16>,
    /// Labels that the client's workload must have.
    pub source_labels: Labels,
    /// Where this match applies; empty for everywhere the VirtualService does.
    pub gateways: Vec<GatewayRef>,
    /// The namespace that the client must be in.
    pub source_namespace: Option<Namespace>,
}

impl VirtualService {
    /// Returns every destination that the rules may send traffic to, mirrors included.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let http = self.http.iter().flat_map(|rule| {
            let routes: &[HttpDestination] = match &rule.action {
                HttpAction::Route(routes) => routes,
                _ => &[],
            };
            let mirrors = rule.mirrors.iter().map(|mirror| &mirror.destination);
            routes.iter().map(|route| &route.destination).chain(mirrors)
        });
        let tls = self.tls.iter().flat_map(|rule| &rule.route);
        let tcp = self.tcp.iter().flat_map(|rule| &rule.route);
        http.chain(tls.chain(tcp).map(|route| &route.destination))
    }

    /// Returns every selector of client labels that the rules have.
    pub fn source_selectors(&self) -> impl Iterator<Item = &Labels> {
        let http = self.http.iter().flat_map(|rule| rule.matches.iter().map(|m| &m.source_labels));
        let tls = self.tls.iter().flat_map(|rule| rule.matches.iter().map(|m| &m.source_labels));
        let tcp = self.tcp.iter().flat_map(|rule| rule.matches.iter().map(|m| &m.source_labels));
        http.chain(tls).chain(tcp).filter(|selector| !selector.is_empty())
    }
}
