//! Which gRPC methods there are, and what each asks of a caller.
//!
//! A method that is not in [`METHODS`] does not exist for anybody, whatever services are registered behind the gate:
//! whoever adds a service decides here who may call it.

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Anyone,
    /// A proved identity.
    Proved,
    /// An identity proved by something that ends when the workload does. A certificate outlives its workload, so with
    /// it alone only those get a new one who have nothing else.
    Fresh,
}

/// Not gRPC: where replicas of weftd ask each other how far proxies are, in JSON. Who they are is checked there.
pub const REPLICA_COUNTS: &str = "/weft.dev/replica/counts";

/// Every method that may be called, and by whom.
pub const METHODS: &[(&str, Access)] = &[
    ("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", Access::Proved),
    ("/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources", Access::Proved),
    ("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", Access::Proved),
    ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", Access::Proved),
    ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", Access::Proved),
    ("/grpc.health.v1.Health/Check", Access::Anyone),
    ("/grpc.health.v1.Health/Watch", Access::Anyone),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Proved),
    ("/istio.v1.auth.IstioCertificateService/CreateCertificate", Access::Fresh),
    (REPLICA_COUNTS, Access::Proved),
];

/// Returns what the method at `path` asks of its caller, or `None` if nobody may call it.
pub fn access_of(path: &str) -> Option<Access> {
    METHODS.iter().find(|(method, _)| *method == path).map(|(_, access)| *access)
}
