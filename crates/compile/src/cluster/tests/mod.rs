//! Each row is a mesh or a policy, and what the cluster must say at some place of its JSON form.

mod inbound;
mod kinds;
mod policies;
mod tls;

use super::{outbound, outbound_services};
use crate::audience::OutboundAudience;
use crate::fixtures::{World, by_name, endpoint, policy, rule, scope_of, service};
use model::destination_rule::{
    Algorithm, ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, HttpPool, LoadBalancer,
    OutlierDetection, PortPolicy, TcpPool,
};
use model::{Mesh, Protocol, Service};
use serde_json::Value;
use std::collections::BTreeMap;

const HOST: &str = "cart.app.svc.cluster.local";
const CLUSTER: &str = "outbound|80||cart.app.svc.cluster.local";

/// Checks `cluster` at `path`, a JSON pointer that may begin with one of the names below; null stands for nothing.
#[track_caller]
fn expect(case: &str, cluster: &Value, path: &str, expected: &Value) {
    const PLACES: [(&str, &str); 4] = [
        ("@http", "/typedExtensionProtocolOptions/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
        ("@limits", "/circuitBreakers/thresholds/0"),
        ("@marked", "/transportSocketMatches/0/transportSocket/typedConfig"),
        ("@socket", "/transportSocket/typedConfig"),
    ];
    let place = PLACES.iter().find_map(|(name, place)| path.strip_prefix(name).map(|rest| (place, rest)));
    let path = place.map_or_else(|| path.to_owned(), |(place, rest)| format!("{place}{rest}"));
    crate::fixtures::expect(case, cluster, &path, expected);
}

/// The service `cart` with one port.
fn cart(protocol: Protocol) -> Service {
    service(HOST, &[(80, protocol)])
}

/// A mesh of one service with one endpoint.
fn world(service: &Service) -> World {
    World::new().service(service).endpoints(service, &[endpoint("10.0.0.1", 80)])
}

/// A rule for `cart`.
fn cart_rule(base: PortPolicy) -> DestinationRule {
    DestinationRule { policy: Some(policy(base)), ..rule("app", "cart", HOST) }
}

/// The outbound clusters of a proxy.
fn compile(world: &World, audience: &OutboundAudience) -> BTreeMap<String, Value> {
    let mesh = Mesh::new(world.view());
    let scope = scope_of(&mesh, audience);
    let services = outbound_services(&mesh, &scope, audience);
    by_name(services.iter().flat_map(|service| outbound(&mesh, &scope, audience, service)))
}

/// The cluster of `cart` under a policy.
fn under(protocol: Protocol, base: PortPolicy, audience: &OutboundAudience) -> Value {
    let world = world(&cart(protocol)).rule(cart_rule(base));
    compile(&world, audience).remove(CLUSTER).expect("there is a cluster")
}

fn tcp(change: impl FnOnce(&mut TcpPool)) -> PortPolicy {
    let mut tcp = TcpPool::default();
    change(&mut tcp);
    PortPolicy {
        connection_pool: Some(ConnectionPool { tcp: Some(tcp), http: None }),
        ..PortPolicy::default()
    }
}

fn http(change: impl FnOnce(&mut HttpPool)) -> PortPolicy {
    let mut http = HttpPool::default();
    change(&mut http);
    PortPolicy {
        connection_pool: Some(ConnectionPool { tcp: None, http: Some(http) }),
        ..PortPolicy::default()
    }
}

fn balanced(algorithm: Algorithm) -> PortPolicy {
    balancing(|balancer| balancer.algorithm = algorithm)
}

fn balancing(change: impl FnOnce(&mut LoadBalancer)) -> PortPolicy {
    let mut balancer = LoadBalancer::default();
    change(&mut balancer);
    PortPolicy { load_balancer: Some(balancer), ..PortPolicy::default() }
}

fn ejecting(change: impl FnOnce(&mut OutlierDetection)) -> PortPolicy {
    let mut outlier = OutlierDetection::default();
    change(&mut outlier);
    PortPolicy { outlier_detection: Some(outlier), ..PortPolicy::default() }
}

fn encrypted(tls: ClientTls) -> PortPolicy {
    PortPolicy { tls: Some(tls), ..PortPolicy::default() }
}

fn client_tls(mode: ClientTlsMode) -> ClientTls {
    ClientTls {
        mode,
        client_certificate: None,
        private_key: None,
        ca_certificates: None,
        credential_name: None,
        subject_alt_names: Vec::new(),
        sni: None,
        insecure_skip_verify: None,
        ca_crl: None,
    }
}
